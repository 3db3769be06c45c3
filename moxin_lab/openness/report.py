"""Tables and sentences of notebook 10. Each function takes plain results and returns a DataFrame or
a text.

Out of scope: drawing (figures.py), verdicts, and models.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from moxin_lab.lab import claims, nearest_evidence
from moxin_lab.lab.artifacts import (
    LabError,
    describe,
    parse_yaml,
    read_json,
    read_text,
    write_json,
)
from moxin_lab.openness import mof, mof_evidence, summary

NUMERALS = {3: "III", 2: "II", 1: "I"}


def readings(root: Path) -> dict[str, mof.Evaluation]:
    """MOF evaluations of the lab and of upstream Moxin, two readings each; the first and the third
    are the committed entries.
    """
    lab, upstream = mof.load(root / "MOF.yml"), mof.load(root / "papers" / "moxin_mof.yml")
    checked = mof_evidence.check_all(root / "MOF.yml")
    marked = [
        {"name": name}
        for name, item in mof_evidence.evidence(root / "papers" / "moxin_mof.yml").items()
        if item["blog"] == "yes"
    ]
    blog = mof.check({**upstream, "release": {**upstream["release"], "components": marked}})
    return {
        "Lab, as listed": mof.evaluate_entry(lab),
        "Lab, by its evidence": mof_evidence.with_evidence(lab, checked),
        "Moxin, favourable reading": mof.evaluate_entry(upstream),
        "Moxin, its own blog": mof.evaluate_entry(blog),
    }


def class_table(evaluations: Mapping[str, mof.Evaluation]) -> pd.DataFrame:
    """Class, progress in percent, and what the next class requires; one row per reading."""
    rows = []
    for name, evaluation in evaluations.items():
        nearest = evaluation.next_class
        lacking = (
            "nothing"
            if nearest is None
            else ", ".join(nearest.missing + nearest.unlicensed + nearest.invalid)
        )
        progress = {
            f"{NUMERALS[result.number]} (%)": result.progress for result in evaluation.classes
        }
        rows.append(
            {
                "release": name,
                "class": evaluation.class_name,
                **progress,
                "next class lacks": lacking,
            }
        )
    return pd.DataFrame(rows)


def component_table(
    evaluation: mof.Evaluation, evidence: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """The 17 components of the lab: status, resolved licence and its origin, whether it is open,
    and whether it is made for the type of content.
    """
    return pd.DataFrame(
        {
            "component": component.name,
            "class": NUMERALS[component.mof_class] + ("" if component.required else " (optional)"),
            "evidence": evidence[component.name]["status"],
            "licence": component.licence or "–",
            "licence from": component.licence_from or "–",
            "open": _yes(component.open, component.status),
            "fits its type": _yes(component.type_appropriate, component.status),
        }
        for component in evaluation.components
    )


def evidence_table(
    evidence: Mapping[str, Mapping[str, Any]], checked: Mapping[str, mof_evidence.Checked]
) -> pd.DataFrame:
    """Files of each component, one row per file, with the first 12 digits of the SHA-256 and what
    is wrong with it; a component without a file has the reason instead.
    """
    rows = []
    for name, item in evidence.items():
        state = "; ".join(checked[name].problems) or ("holds" if checked[name].holds else "–")
        files = [(file["path"], file["sha256"][:12]) for file in item.get("files") or []]
        for path, sha256 in files or [(item["note"], "–")]:
            rows.append(
                {
                    "component": name,
                    "file, or why there is none": path,
                    "SHA-256": sha256,
                    "made by": item.get("notebook") or "–",
                    "evidence": state,
                }
            )
    return pd.DataFrame(rows)


def summary_table(grades: Mapping[str, summary.Graded]) -> pd.DataFrame:
    """Grades of public summaries: one row per section, two columns per model."""
    rows = {}
    for section in [*summary.sections(), None]:
        rows[section or "Whole summary"] = {
            f"{model}: {what}": grade.letter
            if grade.percent is None
            else f"{grade.letter} ({grade.percent:.1f} %)"
            for model, graded in grades.items()
            for what, grade in zip(
                ("transparency", "usefulness"), summary.pair(graded, section), strict=True
            )
        }
    return pd.DataFrame(rows).T.rename_axis("section")


def lost_table(graded: summary.Graded) -> pd.DataFrame:
    """The metrics that a summary does not meet in full, heaviest first, with the reason."""
    lost = [m for m in graded.metrics if m.score is not None and m.score < 1]
    lost.sort(key=lambda metric: -metric.weight * (1 - (metric.score or 0)))
    return pd.DataFrame(
        {
            "metric": metric.id,
            "section": metric.section,
            "weight": metric.weight,
            "score": metric.score,
            "how": metric.how,
            "reason": metric.reason,
        }
        for metric in lost
    )


def data_card_table(root: Path) -> pd.DataFrame:
    """The data sets of `data_cards/`: licence on the card, number of rows, size, and SHA-256 of the
    data.
    """
    rows = []
    for card in sorted((root / "data_cards").glob("*/README.md")):
        parts = read_text(card).split("---\n", 2)
        matter = parse_yaml(parts[1], card) if len(parts) == 3 and not parts[0] else None
        if not isinstance(matter, dict) or "license" not in matter:
            raise LabError(f"{card} does not begin with YAML front matter that says its license")
        licence = matter.get("license_name", matter["license"])
        rows.append(
            {"data set": card.parent.name, "licence on its card": licence, **_data_of(card.parent)}
        )
    return pd.DataFrame(rows)


def _data_of(folder: Path) -> dict[str, Any]:
    """Rows, size and hash of a card's data; where a command builds it (`build.json`), those of the
    build that the card describes, and no hash of a folder that is not there.
    """
    data, built = folder / "data", folder / "build.json"
    if not data.is_dir() and built.is_file():
        packages = read_json(built)["packages"]
        return {
            "rows": sum(package["documents"] for package in packages),
            "MiB": sum(package["text_bytes"] for package in packages) / 2**20,
            "SHA-256 of data/": "built on demand",
        }
    files = sorted(data.glob("*.parquet"))
    return {
        "rows": sum(pq.read_metadata(file).num_rows for file in files),
        "MiB": sum(file.stat().st_size for file in files) / 2**20,
        "SHA-256 of data/": describe(data)["sha256"][:12],
    }


def upstream_table(
    evaluation: mof.Evaluation, evidence: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """The 17 components of upstream Moxin: what public snapshots show, what its blog says, whether
    the component counts here, what is missing, and what was read until when.
    """
    rows = [
        {
            "component": component.name,
            "class": NUMERALS[component.mof_class] + ("" if component.required else " (optional)"),
            "found": evidence[component.name]["status"],
            "its blog says": evidence[component.name]["blog"],
            "counts here": "yes" if component.status == "included" else "no",
            "note": evidence[component.name]["note"],
            "missing": evidence[component.name].get("gap", "–"),
            "read": f"{evidence[component.name]['source']}; until "
            f"{evidence[component.name]['read']}",
        }
        for component in evaluation.components
    ]
    return pd.DataFrame(rows)


def found_sentence(evidence: Mapping[str, Mapping[str, Any]], components: Sequence[str]) -> str:
    """What public snapshots show of some components of upstream Moxin, and what its blog says."""
    parts = "; ".join(
        f"{name}: {evidence[name]['status']} (its blog: {evidence[name]['blog']})"
        for name in components
    )
    return f"In public snapshots {parts}."


def verdict_counts(verdicts: Sequence[claims.Verdict]) -> pd.DataFrame:
    """Number of claims by topic (rows, in the order of the claims) and verdict (columns)."""
    pairs = Counter((item.topic, item.verdict) for item in verdicts)
    topics = list(dict.fromkeys(item.topic for item in verdicts))
    return pd.DataFrame(
        {v: [pairs[topic, v] for topic in topics] for v in claims.VERDICTS}, index=topics
    )


def decided_table(verdicts: Sequence[claims.Verdict]) -> pd.DataFrame:
    """Claims with a verdict of this run, and the evidence."""
    rows = [
        {
            "claim": f"{v.id}: {v.claim}",
            "verdict": v.verdict,
            "evidence": v.evidence,
            "notebook": v.stage[:2],
        }
        for v in verdicts
        if v.verdict not in claims.OPEN
    ]
    return pd.DataFrame(rows, columns=["claim", "verdict", "evidence", "notebook"])


def undecided_table(verdicts: Sequence[claims.Verdict]) -> pd.DataFrame:
    """Claims without a verdict: what a notebook saw, or why there is none, and the command that
    would attempt the claim; `none` where no stage of this lab attempts it.
    """
    rows = [
        {
            "claim": f"{v.id}: {v.claim}",
            "why not, or what was seen": v.evidence,
            "command": v.command or "none",
        }
        for v in verdicts
        if v.verdict in claims.OPEN
    ]
    return pd.DataFrame(rows, columns=["claim", "why not, or what was seen", "command"])


def nearest_evidence_list(
    verdicts: Sequence[claims.Verdict], beside: nearest_evidence.Beside
) -> str:
    """Markdown: the nearest evidence beside each claim without a verdict, by kind, the strongest
    kind first.

    beside: of `nearest_evidence.evidence`.
    """
    undecided = [item.id for item in verdicts if item.verdict in claims.OPEN]
    found = [each for claim in undecided for each in beside.get(claim, ())]
    lines = []
    for kind, meaning in nearest_evidence.KINDS.items():
        if rows := [each for each in found if each.kind == kind]:
            lines += ["", f"**{kind.capitalize()}**: {meaning}.", ""]
            lines += [_bullet(each) for each in rows]
    return "\n".join(lines)


def _bullet(each: nearest_evidence.Evidence) -> str:
    scale = f" ({each.scale} scale)" if each.scale else ""
    sources = ", ".join(f"`{name}`" if "/" in name else name for name in each.read_from)
    return f"- `{each.claim}`{scale}: {each.sentence}" + (f" From {sources}." if sources else "")


def nearest_evidence_sentence(
    verdicts: Sequence[claims.Verdict], beside: nearest_evidence.Beside
) -> str:
    """How many of the claims that need full scale and have no verdict have evidence beside them."""
    waiting = [v.id for v in verdicts if v.verdict in claims.OPEN and v.scale_needed == "full"]
    bare = sum(all(each.kind == "none" for each in beside[claim]) for claim in waiting)
    read = sum(any(each.sources for each in beside[claim]) for claim in waiting)
    text = f"Evidence stands beside {read} of the {len(waiting)} claims that need full scale; "
    text += f"beside {bare} there is none, for the reason given. "
    if unread := len(waiting) - bare - read:
        text += f"Of {unread} more the stage that measures it has not run, or ran without it. "
    return text + "No verdict rests on any of this."


def deviation_table(deviations: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Where the sources disagree, what each says, and which reading the lab follows."""
    return pd.DataFrame(
        {
            "what disagrees": item["title"],
            "sources": " ".join(f"[{source}] {text}" for source, text in item["sources"].items()),
            "our reading": item["reading"],
            "treated in": ", ".join(name[:2] for name in item["treated"]),
        }
        for item in deviations
    )


def stage_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Finished stages: time, peak memory, and SHA-256 (12 digits) of inputs and outputs."""
    return pd.DataFrame(
        {
            "stage": record["stage"],
            "seconds": record["seconds"],
            "peak memory (GiB)": record["peak_memory_bytes"] / 2**30,
            "inputs": ", ".join(
                f"{name} {item['sha256'][:12]}" for name, item in record["inputs"].items()
            )
            or "–",
            "outputs": ", ".join(
                f"{name} {item['sha256'][:12]}" for name, item in record["outputs"].items()
            ),
        }
        for record in records
    )


def environment_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Machine and versions of the stages; a row shows several values where stages differ."""
    values_by_name: dict[str, list[str]] = {}
    for record in records:
        environment = dict(record["environment"])
        packages = environment.pop("packages", {})
        for name, value in [*environment.items(), *packages.items()]:
            if value is not None:
                values_by_name.setdefault(name.replace("_", " "), []).append(str(value))
    return pd.DataFrame(
        {"what": name, "value": "; ".join(dict.fromkeys(values))}
        for name, values in values_by_name.items()
    )


def provenance_sentence(records: Sequence[Mapping[str, Any]]) -> str:
    """Number and time of the finished stages, and the inputs that differ from the outputs of the
    stages that made them.
    """
    outputs = {
        name: item["sha256"] for record in records for name, item in record["outputs"].items()
    }
    inputs = [
        (name, item["sha256"]) for record in records for name, item in record["inputs"].items()
    ]
    stale = sorted({name for name, sha256 in inputs if outputs.get(name) != sha256})
    seconds = sum(record["seconds"] for record in records)
    state = (
        f"Used in another version than the present one: {', '.join(stale)}."
        if stale
        else "Every input is the present output of the stage that made it."
    )
    return f"{len(records)} stages in {seconds:.0f} s. {state}"


def save(
    folder: Path,
    evaluations: Mapping[str, mof.Evaluation],
    verdicts: Sequence[claims.Verdict],
    grades: Mapping[str, summary.Graded],
) -> None:
    """The artifact `openness`: `mof.json`, `claims.json` and `summaries.json`."""
    folder.mkdir()
    write_json(folder / "mof.json", {name: item.as_dict() for name, item in evaluations.items()})
    write_json(folder / "summaries.json", {name: item.as_dict() for name, item in grades.items()})
    write_json(folder / "claims.json", [dataclasses.asdict(item) for item in verdicts])


def _yes(value: bool, status: str) -> str:
    return "–" if status == "absent" else "yes" if value else "no"
