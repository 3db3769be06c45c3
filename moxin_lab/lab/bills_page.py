"""The bills of materials of a report as a page, from the CycloneDX file beside it.

    listed(out)             # whether the report has bills
    values(out, nav, cards) # of the page's template
    models_by_stage(out)    # their rows on the page are named model-NAME

Guarantees: each number and hash on the page stands in the bill; models link to the pages of their
stages, data sets to their cards.
Out of scope: writing and checking bills (`moxin_lab.openness.bills`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moxin_lab.lab.artifacts import LabError, read_json
from moxin_lab.lab.layout import NavItem
from moxin_lab.lab.show import format_bytes

CYCLONEDX, SPDX = "bills/lab.cdx.json", "bills/lab.spdx.json"


def listed(out: Path) -> bool:
    """Whether the report in `out` has both bills."""
    return (out / CYCLONEDX).is_file() and (out / SPDX).is_file()


def models_by_stage(out: Path) -> dict[str, list[str]]:
    """Names of the models that the bill lists, by the stage that made them. Raises LabError as
    `values` does.
    """
    found: dict[str, list[str]] = {}
    for model in values(out, [], {})["models"]:
        found.setdefault(model["stage"], []).append(model["name"])
    return found


def values(out: Path, nav: Sequence[NavItem], cards: Mapping[str, str]) -> dict[str, Any]:
    """What the template shows. cards: page of each data card. Raises LabError for a file that is
    not the lab's bill.
    """
    path = out / CYCLONEDX
    bill = read_json(path)
    hrefs = {item.name: item.href for item in nav}
    titles = {item.name: f"{item.number} {item.title}" for item in nav}
    try:
        components = bill["components"]
        models = [
            _model(component, hrefs, titles, cards)
            for component in components
            if component["type"] == "machine-learning-model"
        ]
        data = [_data(component, cards) for component in components if component["type"] == "data"]
        packages = [(c["name"], c["version"]) for c in components if c["type"] == "library"]
    except (KeyError, TypeError, IndexError) as error:
        raise LabError(
            f"{path} is not a bill of this lab: {error}; write it again with: moxin-lab bills write"
        ) from error
    return {
        "models": sorted(models, key=lambda model: (model["stage"], model["name"])),
        "data": data,
        "packages": packages,
        "files": [(name, format_bytes((out / name).stat().st_size)) for name in (SPDX, CYCLONEDX)],
        "contents": [
            (2, "models", "Models"),
            (2, "data", "Data sets"),
            (2, "packages", "Software"),
            (2, "files", "The files"),
        ],
    }


def _model(
    component: Mapping[str, Any],
    hrefs: Mapping[str, str | None],
    titles: Mapping[str, str],
    cards: Mapping[str, str],
) -> dict[str, Any]:
    card = component["modelCard"]
    properties = {item["name"]: item["value"] for item in card["properties"]}
    trained = [d["ref"].removeprefix("data:") for d in card["modelParameters"]["datasets"]]
    stage = properties["stage"]
    return {
        "name": component["name"],
        "what": component["description"],
        "stage": titles.get(stage, stage),
        "href": hrefs.get(stage),
        "size": format_bytes(int(properties["bytes"])),
        "licence": _licence(component),
        "sha256": component["hashes"][0]["content"],
        "trained_on": [(name, cards.get(name)) for name in trained],
        "metrics": [
            (metric["type"], metric["value"])
            for metric in card["quantitativeAnalysis"]["performanceMetrics"]
        ],
    }


def _data(component: Mapping[str, Any], cards: Mapping[str, str]) -> dict[str, Any]:
    part = component["data"][0]
    properties = {item["name"]: item["value"] for item in part["contents"]["properties"]}
    return {
        "name": component["name"],
        "title": part["name"],
        "href": cards.get(component["name"]),
        "version": component["version"],
        "size": format_bytes(int(properties["bytes"])),
        "use": properties["use"],
        "licence": _licence(component) or "of each package",
        "sha256": component["hashes"][0]["content"],
    }


def _licence(component: Mapping[str, Any]) -> str:
    found = component.get("licenses") or []
    return ", ".join(
        each.get("expression") or (each.get("license") or {}).get("id", "") for each in found
    )
