"""A public summary of training content as a page, beside the model or in the report's site.

    html = page(summary, links=lambda address: address)

    published(root)                          # those of papers/summaries/ and release/
    write(published(root)[0], reports / "tiny", shared)

Guarantees: every field of the template has its heading, also a blank one, which says so, and
whether a "no" above it leaves nothing to state; an address
that `links` does not know is shown as text.
Out of scope: what the fields say and how they are graded (`moxin_lab.openness.summary`).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moxin_lab.lab import layout
from moxin_lab.lab.artifacts import read_json, write_atomically

SECTIONS = {
    "1": "General information",
    "2.1": "Publicly available data sets",
    "2.2": "Private data sets of third parties",
    "2.3": "Data crawled and scraped from online sources",
    "2.4": "User data",
    "2.5": "Synthetic data",
    "2.6": "Other sources of data",
    "3": "Data processing",
}
FIELDS = {
    "1.1.a": "Provider and contact",
    "1.1.b": "Authorised representative",
    "1.2.a": "Model with its version",
    "1.2.b": "Models that it depends on",
    "1.2.c": "Date of placement on the Union market",
    "1.3.a": "Modalities",
    "1.3.b": "Size of the training data",
    "1.3.c": "Types of content",
    "1.3.d": "Latest date of acquisition",
    "1.3.e": "Languages",
    "1.3.f": "Other characteristics",
    "1.3.g": "Comments on the size",
    "2.1.a": "Were public data sets used?",
    "2.1.b": "Their modalities",
    "2.1.c": "Large public data sets",
    "2.1.d": "Other public data sets",
    "2.1.e": "Comments",
    "2.2.1.a": "Are there licence agreements with rightholders?",
    "2.2.1.b": "Their modalities",
    "2.2.2.a": "Were other private data sets obtained?",
    "2.2.2.b": "Their modalities",
    "2.2.2.c": "Publicly known private data sets",
    "2.2.2.d": "Private data sets that are not publicly known",
    "2.2.2.e": "Comments",
    "2.3.a": "Were crawlers used by the provider or on its behalf?",
    "2.3.b": "Names of the crawlers",
    "2.3.c": "Purposes of the crawlers",
    "2.3.d": "Behaviour of the crawlers",
    "2.3.e": "Period of collection",
    "2.3.f": "Content and sources",
    "2.3.g": "Modalities",
    "2.3.h": "Most relevant domains",
    "2.3.i": "Comments",
    "2.4.a": "Was data of users of the model used?",
    "2.4.b": "Was data of users of other services used?",
    "2.4.c": "Those services",
    "2.4.d": "Modalities",
    "2.4.e": "Comments",
    "2.5.a": "Was synthetic data made by the provider or on its behalf?",
    "2.5.b": "Modalities",
    "2.5.c": "Models on the market that made it",
    "2.5.d": "Other models that made it",
    "2.5.e": "Comments",
    "2.6.a": "Were other sources used?",
    "2.6.b": "Those sources",
    "2.6.c": "Comments",
    "3.1.a": "Signatory of the Code of Practice?",
    "3.1.b": "Measures before training to respect reservations of rights",
    "3.1.c": "Comments on copyright",
    "3.2.a": "Removal of illegal content",
    "3.3.a": "Other information",
}
"""The template's fields (explanatory notice of 24 July 2025, annex), in our words."""
PARENTS = {
    **dict.fromkeys(("2.1.b", "2.1.c", "2.1.d", "2.1.e"), ("2.1.a",)),
    "2.2.1.b": ("2.2.1.a",),
    **dict.fromkeys(("2.2.2.b", "2.2.2.c", "2.2.2.d", "2.2.2.e"), ("2.2.2.a",)),
    **dict.fromkeys([f"2.3.{letter}" for letter in "bcdefghi"], ("2.3.a",)),
    "2.4.c": ("2.4.b",),
    **dict.fromkeys(("2.4.d", "2.4.e"), ("2.4.a", "2.4.b")),
    **dict.fromkeys(("2.5.b", "2.5.c", "2.5.d", "2.5.e"), ("2.5.a",)),
    **dict.fromkeys(("2.6.b", "2.6.c"), ("2.6.a",)),
}
"""Fields that a "no" above them makes inapplicable."""
BLANK = "Not stated."


def page(
    summary: Mapping[str, Any],
    *,
    links: Callable[[str], str | None],
    grade: Mapping[str, Any] | None = None,
    shared: Mapping[str, Any] | None = None,
) -> str:
    """The page's HTML. links: the address of a link of the summary on this page, or None.

    grade: `Graded.as_dict()`, and `sections` of it; shown at the end. shared: of the site's pages.
    """
    document = dict(summary["document"])
    addresses = {address: links(address) for address in _links(summary)}
    return layout.rendered(
        "summary.html.j2",
        **{
            "kind": "document",
            "here": "summaries",
            "scale": "",
            "nav": [],
            "documents": [],
            **(shared or {}),
            "page_title": f"Public summary of training content, {summary['model']}",
            "title": f"Public summary of training content: {summary['model']}",
            "lead": document.pop("lead"),
            "document": document,
            "sections": list(_sections(summary["fields"])),
            "links": addresses,
            "blank": BLANK,
            "grades": grade,
            "contents": [
                (2, f"section-{number}", f"{number} {title}") for number, title in SECTIONS.items()
            ]
            + ([(2, "grade", "How it is graded")] if grade else []),
        },
    )


def answered_no(field: str, fields: Mapping[str, Any]) -> bool:
    """Whether a question above this field is answered no, so that the field does not apply."""
    parents = PARENTS.get(field, ())
    return bool(parents) and all(
        (fields.get(parent) or {}).get("answer") == "no" for parent in parents
    )


def published(root: Path) -> list[dict[str, Any]]:
    """The summaries of this repository with their grades, in the order of names: `name`, `model`,
    `href`, `content`, `grade`, `letters`.
    """
    files = [
        *(root / "release").glob("*/public_summary.json"),
        *(
            path
            for path in (root / "papers" / "summaries").glob("*.json")
            if not path.stem.endswith("_grade")
        ),
    ]
    found = []
    for path in files:
        name = path.parent.name if path.stem == "public_summary" else path.stem
        content = read_json(path)
        grade = read_json(path.with_name(f"{path.stem}_grade.json"))
        letters = {what: _words(grade[what]) for what in ("transparency", "usefulness")}
        found.append(
            {
                "name": name,
                "model": content["model"],
                "href": f"summary-{name}.html",
                "content": content,
                "grade": grade,
                "letters": letters,
            }
        )
    return sorted(found, key=lambda item: str(item["name"]))


def write(item: Mapping[str, Any], out: Path, shared: Mapping[str, Any]) -> None:
    """The page of a published summary in the site, with its grade."""
    grade = item["grade"]
    words = (
        f"Transparency {item['letters']['transparency']}, usefulness "
        f"{item['letters']['usefulness']}: graded by this lab with the 242 metrics and the "
        "rule of a public grading (DOI 10.1145/3805689.3806755), not by its authors. Of the 77 "
        "summaries that they graded, the best, of Apertus, has A (92.90 %) and A+ (97.14 %)."
    )
    rows = [(name, *map(_words, pair)) for name, pair in grade["sections"].items()]
    grades = {"words": words, "sections": rows, "metrics": grade["metrics"]}
    html = page(item["content"], links=_in_the_site, grade=grades, shared=shared)
    write_atomically(out / item["href"], html)


def _in_the_site(address: str) -> str | None:
    """A data card has its page. Nothing in the site leads outside: addresses are text."""
    card = re.fullmatch(r"\.\./\.\./data_cards/(\w+)/README\.md", address)
    return f"data-{card[1]}.html" if card else None


def _words(grade: Mapping[str, Any]) -> str:
    if grade["percent"] is None:
        return str(grade["letter"])
    return f"{grade['letter']} ({grade['percent']:.2f} %)"


def _sections(fields: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, title in SECTIONS.items():
        yield {
            "number": number,
            "title": title,
            "fields": [
                {
                    "number": name,
                    "title": words,
                    "not_applicable": _not_applicable(name, fields),
                    "parts": {
                        key: value
                        for key, value in fields.get(name, {}).items()
                        if key != "records" and value
                    },
                }
                for name, words in FIELDS.items()
                if name.startswith(f"{number}.")
            ],
        }


def _not_applicable(field: str, fields: Mapping[str, Mapping[str, Any]]) -> str:
    """Why a field does not apply; empty if it does, or says something all the same."""
    said = {name for name, value in fields.get(field, {}).items() if name != "records" and value}
    if said <= {"not_applicable"} and answered_no(field, fields):
        return f"{' and '.join(PARENTS[field])} is answered no."
    return str(fields.get(field, {}).get("not_applicable") or "")


def _links(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("link"), str):
            yield value["link"]
        for inner in value.values():
            yield from _links(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _links(inner)
