"""How a page was made, from a stage's record: facts, machine, numbers, files and versions.

Guarantees: a field that a record lacks is omitted. Out of scope: layout.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moxin_lab.lab.show import format_bytes, format_number, format_seconds


def measure_row(measure: Mapping[str, Any]) -> dict[str, str]:
    labels = ", ".join(f"{name} {label}" for name, label in (measure.get("labels") or {}).items())
    return {
        "name": str(measure["name"]).replace("_", " "),
        "labels": labels,
        "value": format_number(measure.get("value"), measure.get("interval")),
        "unit": str(measure.get("unit") or ""),
    }


def facts(record: Mapping[str, Any], scale: str, state: str) -> list[str]:
    facts = [f"{scale} scale", state]
    if record.get("seed") is not None:
        facts.append(f"seed {record['seed']}")
    if record.get("seconds") is not None:
        facts.append(format_seconds(record["seconds"]))
    if record.get("peak_memory_bytes"):
        facts.append(f"peak memory {format_bytes(record['peak_memory_bytes'])}")
    return facts


def provenance(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    environment = dict(record.get("environment") or {})
    environment.pop("packages", None)
    commit = environment.pop("git_commit", None)
    dirty = environment.pop("git_dirty", None)
    rows = [("Scale", record.get("scale")), ("Seed", record.get("seed"))]
    rows += [
        ("Time", format_seconds(record.get("seconds"))),
        ("Peak memory", format_bytes(record.get("peak_memory_bytes"))),
    ]
    rows += [("Finished", record.get("finished_at"))]
    if commit:
        rows.append(("Commit", f"{commit[:12]}{' with uncommitted changes' if dirty else ''}"))
    memory = environment.pop("memory_bytes", None)
    labels = {"cpu": "Processor", "gpu": "GPU", "python": "Python"}
    for name, value in environment.items():
        if not isinstance(value, dict | list):
            rows.append(
                (
                    labels.get(name, name.replace("_", " ").capitalize()),
                    "none" if name == "gpu" and not value else value,
                )
            )
    rows.append(("Memory", format_bytes(memory)))
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def files(record: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for role, kind in (("data card", "data_cards"), ("input", "inputs"), ("output", "outputs")):
        for name, about in (record.get(kind) or {}).items():
            maker = f"{role}, from {about['stage']}" if about.get("stage") else role
            rows.append(
                {
                    "name": name,
                    "role": maker,
                    "size": format_bytes(about.get("size")),
                    "sha256": about.get("sha256", ""),
                }
            )
    return rows


def folded(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    packages = (record.get("environment") or {}).get("packages") or {}
    blocks = [
        (
            "Parameters and settings",
            {**(record.get("parameters") or {}), **(record.get("settings") or {})},
        ),
        ("Package versions", {name: version for name, version in packages.items() if version}),
    ]
    return [(name, _outline(content)) for name, content in blocks if content]


def _outline(content: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(
        json.loads(json.dumps(content, default=str)), sort_keys=False, allow_unicode=True, width=100
    ).strip()


def made_with(done: Sequence[Mapping[str, Any]]) -> str:
    commits = {
        commit[:12] for r in done if (commit := (r.get("environment") or {}).get("git_commit"))
    }
    if not commits:
        return "Made by moxin-lab from the stage records under runs/."
    plural = "s" if len(commits) > 1 else ""
    return f"Made by moxin-lab from stage records of commit{plural} {', '.join(sorted(commits))}."
