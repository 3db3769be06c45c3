"""Automatic checks of a public summary as a document: where it lies, how it reads, its dates and
versions, by the names of `summary_metrics.yml`.

Guarantees: of a model without a release here, what only its provider could publish scores 0.
Out of scope: its fields (`summary_checks.py`).
"""

import hashlib
import re
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise

from moxin_lab.openness.summary_sheet import (
    NEEDS_ANSWER,
    Found,
    Sheet,
    is_date,
    links,
    met,
    plainness,
    texts,
)

PAGE = "public_summary.html"


def apply(check: str, sheet: Sheet) -> Found:
    """The result of a check of the document, or NEEDS_ANSWER."""
    if check in CHECKS:
        return CHECKS[check](sheet)
    kind, _, part = check.partition(" ")
    if kind == "has":
        return met(bool(sheet.document.get(part)), f"the document's {part} is stated")
    raise ValueError(f"unknown check {check!r} of the document")


def _one_document(sheet: Sheet) -> Found:
    named = [name for name in sheet.summary["fields"] if f'id="field-{name}"' not in sheet.html]
    return met(not named, "one page has every field" + (f", but not {named}" if named else ""))


def _findable(sheet: Sheet) -> Found:
    if sheet.release is None:
        return Found(0, "no model's folder has it")
    card = (sheet.release / "README.md").read_text(encoding="utf-8")
    return met(f"({PAGE})" in card, "the model card links to it")


def _accessible(sheet: Sheet) -> Found:
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", sheet.html)]
    in_order = all(later <= earlier + 1 for earlier, later in pairwise(levels))
    whole = "<script" not in sheet.html and '<html lang="' in sheet.html and levels[:1] == [1]
    return met(whole and in_order, "it has a language, ordered headings, no script, no download")


def _plain_document(sheet: Sheet) -> Found:
    return plainness(list(texts(dict(sheet.summary["fields"]))))


def _structured(sheet: Sheet) -> Found:
    present = [name for name in sheet.order if name in sheet.summary["fields"]]
    places = [sheet.html.find(f'id="field-{name}"') for name in present]
    return met(
        -1 not in places and places == sorted(places), "its fields stand in the template's order"
    )


def _provenance(sheet: Sheet) -> Found:
    return met(
        bool(sheet.document.get("made_from")) and str(sheet.document["made_from"]) in sheet.html,
        "the page says who made it and what it is made from",
    )


def _integrity(sheet: Sheet) -> Found:
    if sheet.release is None:
        return Found(0, "no published hash binds it")
    bound = sheet.manifest["files"].get(PAGE, {}).get("sha256")
    same = bound == hashlib.sha256(sheet.html.encode()).hexdigest()
    return met(same, "the release's list of files has its SHA-256")


def _machine_readable(sheet: Sheet) -> Found:
    return Found(1, "the same fields are published as JSON")


def _exportable(sheet: Sheet) -> Found:
    return met("<script" not in sheet.html, "one self-contained HTML file, which prints and copies")


def _language(sheet: Sheet) -> Found:
    language = sheet.document.get("language")
    return met(
        f'<html lang="{language}"' in sheet.html, "the page is in the language of the documents"
    )


def _beside_the_model(sheet: Sheet) -> Found:
    if sheet.release is None:
        return Found(0, "it does not lie beside the model")
    weights = any(name.endswith(".safetensors") for name in sheet.manifest["files"])
    return met(weights, "it lies in the folder of the weights")


def _agrees_with_the_release(sheet: Sheet) -> Found:
    if sheet.release is None:
        return NEEDS_ANSWER
    card = (sheet.release / "README.md").read_text(encoding="utf-8")
    sets = [item["name"] for item in sheet.field("2.1.c").get("items") or []]
    absent = [name for name in sets if name not in card]
    return met(bool(sets) and not absent, "the model card names the same data sets")


def _across_versions(sheet: Sheet) -> Found:
    versions = [str(item["version"]) for item in sheet.document.get("versions") or []]
    if len(versions) < 2:
        return Found(None, "the first version")
    return NEEDS_ANSWER


def _timely(sheet: Sheet) -> Found:
    if sheet.release is None:
        return Found(0, "the provider has published none")
    published = datetime.strptime(sheet.manifest["date"], "%Y-%m-%d")
    date = str(sheet.document.get("date"))
    early = is_date(date, "%d/%m/%Y") and datetime.strptime(date, "%d/%m/%Y") <= published
    return met(early, "it is published with the model or before")


def _dated_truly(sheet: Sheet) -> Found:
    if sheet.release is None:
        return met(bool(sheet.document.get("date")), "it is the day of the sources that it cites")
    stated, made = str(sheet.document.get("date")), sheet.manifest["date"]
    same = is_date(stated, "%d/%m/%Y") and (
        datetime.strptime(stated, "%d/%m/%Y").strftime("%Y-%m-%d") == made
    )
    return met(same, "it is the day of the release")


def _day_date(sheet: Sheet) -> Found:
    return met(is_date(sheet.document.get("date"), "%d/%m/%Y"), "the date is DD/MM/YYYY")


def _keeps_links(sheet: Sheet) -> Found:
    wanted = set(links(dict(sheet.summary["fields"])))
    lost = sorted(link for link in wanted if f'href="{link}"' not in sheet.html)
    return met(
        not lost,
        f"all {len(wanted)} links are links on the page" + (f", not {lost}" if lost else ""),
    )


CHECKS: dict[str, Callable[[Sheet], Found]] = {
    "one document": _one_document,
    "findable": _findable,
    "accessible": _accessible,
    "structured": _structured,
    "provenance": _provenance,
    "integrity": _integrity,
    "machine-readable": _machine_readable,
    "exportable": _exportable,
    "language": _language,
    "beside the model": _beside_the_model,
    "agrees with the release": _agrees_with_the_release,
    "across versions": _across_versions,
    "timely": _timely,
    "day date": _day_date,
    "keeps links": _keeps_links,
    "plain document": _plain_document,
    "accurate": _dated_truly,
}
