"""The fields of a public summary that follow from records: a release's `release.json` and the data
cards of the sets that its model was trained on.

    fields(root, root / "release" / "moxin-lab-small")["2.1.c"]["items"]

Guarantees: made anew from the same files, a field is the same; a card that lacks what a field needs
is an error, not a blank.
Out of scope: what no record holds (rights, purposes), which the summary's file says.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moxin_lab.lab.artifacts import LabError, parse_yaml, read_json, read_text

LARGE = 0.03
"""A public data set is listed by itself if it is more than this share of all public data of its
modality (explanatory notice to the template, 24 July 2025).
"""
LANGUAGES = {
    "en": "English",
    "zh": "Chinese (simplified script)",
    "ja": "Japanese",
    "ko": "Korean",
    "code": "program code, with comments mostly in English",
}
EU_LANGUAGES = ("en",)
"""Of those, official languages of the Union."""
_BUILT_FROM = re.compile(
    r"^\| `(?P<package>[^`]+)` \| (?P<kind>\w+) \| (?P<version>\S+) \| `[^`]+` \| "
    r"`(?P<sha256>[0-9a-f]{64})` \| (?P<licence>[^|]+?) \|$",
    re.M,
)


def fields(root: Path, release: Path) -> dict[str, dict[str, Any]]:
    """Field -> its parts, each with `records: true`. Raises LabError for a release or a card that
    lacks something.
    """
    manifest = read_json(release / "release.json")
    sets = [data_set(root, name, text) for name, text in manifest["training_text"].items()]
    total = sum(item["bytes"] for item in sets)
    large = [item for item in sets if item["bytes"] > LARGE * total]
    others = [item for item in sets if item["bytes"] <= LARGE * total]
    languages = list(dict.fromkeys(name for item in sets for name in item["codes"]))
    unknown = [name for name in languages if name not in LANGUAGES]
    if unknown:
        raise LabError(
            f"data cards name languages that a summary cannot name: {', '.join(unknown)}; add them "
            "to LANGUAGES of openness/summary_records.py"
        )
    weights = manifest["archive"]["files"]["bfloat16/model/model.safetensors"]
    found: dict[str, dict[str, Any]] = {
        "1.2.a": {
            "items": [
                {
                    "name": f"{manifest['name']} {manifest['version']}",
                    "sha256": weights,
                    "link": "model/model.safetensors",
                }
            ],
            "documentation": [
                {"name": "Model card", "link": "README.md"},
                {"name": "Technical report", "link": "technical_report.html"},
                {"name": "List of files with SHA-256", "link": "release.json"},
            ],
        },
        "1.2.c": {"date": _day(manifest["date"])},
        "1.3.a": {"items": ["Text"]},
        "1.3.b": {
            "size": f"Less than 1 billion tokens: {manifest['tokens_read']:,} tokens were read, "
            f"from {total:,} bytes of text",
            "unit": "tokens",
        },
        "1.3.e": {
            "items": [LANGUAGES[name] for name in languages],
            "eu_languages": ", ".join(LANGUAGES[n] for n in languages if n in EU_LANGUAGES),
        },
        "2.1.b": {"items": ["Text"]},
        "2.1.c": {"items": [_large(item) for item in large]},
        "2.1.e": {
            "size": "Text kept for training, in bytes of UTF-8: "
            + ", ".join(f"{item['title']} {item['bytes']:,}" for item in sets)
            + ".",
        },
    }
    if others:
        found["2.1.d"] = {"items": [_other(item) for item in others]}
    return {name: {**parts, "records": True} for name, parts in found.items()}


def data_set(root: Path, name: str, text: Mapping[str, int]) -> dict[str, Any]:
    """A data card as the summary sees it; text: documents and bytes that were kept of it."""
    path = root / "data_cards" / name / "README.md"
    parts = read_text(path).split("---\n", 2)
    matter = parse_yaml(parts[1], path) if len(parts) == 3 else None
    packages = [match.groupdict() for match in _BUILT_FROM.finditer(parts[-1])]
    lead = re.search(r"^# .+\n\n(.+)$", parts[-1], re.M)
    if not isinstance(matter, dict) or not packages or lead is None:
        raise LabError(
            f"{path} does not say its language, the packages that it is built from, and what it "
            "holds in a first sentence"
        )
    return {
        "name": name,
        "title": matter["pretty_name"],
        "content": lead[1],
        "codes": list(matter["language"]),
        "packages": packages,
        "link": f"../../data_cards/{name}/README.md",
        **text,
    }


def _versions(item: Mapping[str, Any]) -> str:
    return ", ".join(f"{part['package']} {part['version']}" for part in item["packages"])


def _licences(item: Mapping[str, Any]) -> str:
    return ", ".join(dict.fromkeys(part["licence"] for part in item["packages"]))


def _named(item: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": item["title"],
        "link": item["link"],
        "version": _versions(item),
        "licence": _licences(item),
    }


def _large(item: Mapping[str, Any]) -> dict[str, Any]:
    return _named(item) | {
        "selection": (
            f"{item['documents']:,} documents with {item['bytes']:,} bytes were kept. Left out "
            "were documents that are too short, in another language, nearly equal to an earlier "
            "one, or with text of a benchmark, and pages held back for tests."
        ),
    }


def _other(item: Mapping[str, Any]) -> dict[str, Any]:
    return _named(item) | {
        "modality": "Text",
        "content": item["content"],
        "languages": ", ".join(LANGUAGES[name] for name in item["codes"]),
        "dates": "Start and end of the collection by its authors are not known.",
        "other": f"{item['documents']:,} documents with {item['bytes']:,} bytes were kept.",
    }


def _day(date: str) -> str:
    """2026-11-29 as 29/11/2026, the template's form."""
    return "/".join(reversed(date.split("-")))
