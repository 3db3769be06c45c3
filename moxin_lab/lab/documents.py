"""Pages of the report that no stage makes: deviations, data cards, bills, measurements, glossary.

Guarantees: each is made from files of the repository alone (`papers/deviations.yml`,
`data_cards/*/README.md`, `reports/released/*/*.json`, `papers/summaries/`, `release/`,
`lab/glossary.yml`), and a file that is not
there has no page.
Out of scope: the front page (`front_page.py`) and stages (`site.py`).
"""

import re
from collections.abc import Mapping, Sequence, Set
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from moxin_lab.lab import bills_page, claims, glossary, layout, measured, summary_page
from moxin_lab.lab.artifacts import parse_yaml, read_json
from moxin_lab.lab.layout import NavItem
from moxin_lab.stages import STAGES

TRAINING_DATA_TOPICS = ("data", "openness")
TRAINING_DATA_CLAIMS = (
    "pretraining.three-phases",
    "pretraining.phase-3-content",
    "pretraining.phase-3-science",
    "pretraining.tokens-2t",
    "sft.tulu3",
    "dpo.tulu3",
    "sft.infinity-instruct",
    "sft.chat-tulu2",
    "grpo.data-r1",
)
"""Topics, and claims of other topics, that say on what a model was trained: the public summaries of
training content concern them.
"""
Links = list[tuple[str, str]]
"""(words, address) of each link."""


class Document(NamedTuple):
    """A page of the navigation's second list."""

    name: str
    title: str

    @property
    def href(self) -> str:
        return f"{self.name}.html"


def listed(root: Path, out: Path) -> list[Document]:
    """The documents that this repository and its report in `out` have, in the order of the
    navigation.
    """
    found = []
    if any((root / "reports" / "released").glob("*/*.json")):
        found.append(Document("measurements", "Measurements on GPUs"))
    if (root / "papers" / "deviations.yml").exists():
        found.append(Document("deviations", "Where sources disagree"))
    if data_cards(root):
        found.append(Document("data", "Data cards"))
    if bills_page.listed(out):
        found.append(Document("bills", "Bills of materials"))
    if summary_page.published(root):
        found.append(Document("summaries", "Training content"))
    return [*found, Document("glossary", "Glossary")]


def write(root: Path, out: Path, shared: Mapping[str, Any]) -> list[Path]:
    """Write every listed document, and one page per data card and per deviation; the paths."""
    pages = {
        "measurements": _measurements,
        "deviations": _deviations,
        "data": _cards,
        "bills": lambda root, nav: bills_page.values(out, nav, _card_pages(root)),
        "summaries": _summaries,
        "glossary": _glossary,
    }
    for document in listed(root, out):
        values = pages[document.name](root, shared["nav"])
        _write(out, document.name, document.title, shared, values)
    cards, found = data_cards(root), deviations(root)
    for card in cards:
        _card(root, out, card, shared)
    for deviation in found:
        _deviation(root, out, deviation, shared)
    summaries = summary_page.published(root)
    for summary in summaries:
        summary_page.write(summary, out, shared)
    hrefs = [entry["href"] for entry in (*cards, *found, *summaries)]
    return [out / page for page in (*(document.href for document in listed(root, out)), *hrefs)]


def data_cards(root: Path) -> list[dict[str, str]]:
    """Name, title, licence and page of each data card, in the order of names."""
    cards = []
    for readme in sorted((root / "data_cards").glob("*/README.md")):
        front, _ = _parts(readme)
        licence = front.get("license_name") or front.get("license") or ""
        licence = ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence)
        cards.append(
            {
                "name": readme.parent.name,
                "title": str(front.get("pretty_name") or ""),
                "license": licence,
                "href": f"data-{readme.parent.name}.html",
                **_published(readme.parent / "croissant.json"),
            }
        )
    return cards


def _published(croissant: Path) -> dict[str, str]:
    """Version, date and identifier that a card's Croissant file states; empty without one."""
    value = read_json(croissant) if croissant.is_file() else {}
    keys = {"version": "version", "published": "datePublished", "identifier": "identifier"}
    return {name: str(value.get(key) or "") for name, key in keys.items()}


def _card_pages(root: Path) -> dict[str, str]:
    return {card["name"]: card["href"] for card in data_cards(root)}


def deviations(root: Path) -> list[dict[str, Any]]:
    """Entries of `papers/deviations.yml` with their pages; none where there is no such file."""
    if not (root / "papers" / "deviations.yml").exists():
        return []
    return [{**item, "href": f"deviation-{item['id']}.html"} for item in claims.deviations(root)]


def by_claim(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Deviations that touch each claim, by the claim's id."""
    found: dict[str, list[dict[str, Any]]] = {}
    for item in deviations(root):
        for name in item.get("claims") or []:
            found.setdefault(name, []).append(item)
    return found


def related(root: Path, out: Path) -> dict[str, list[tuple[str, Links]]]:
    """The documents that concern each claim, by the claim's id: what they are, and their links.

    Deviations that touch it; cards of the data that its notebook reads; of a claim on what a model
    was trained on the public summaries; in the bills of materials the models that its notebook
    makes, and of a claim on openness the bills as such.
    """
    disputed, cards = by_claim(root), {card["name"]: card["href"] for card in data_cards(root)}
    read = {info.name: [name for name in info.data_cards if name in cards] for info in STAGES}
    summaries = [(item["model"], item["href"]) for item in summary_page.published(root)]
    billed = bills_page.models_by_stage(out) if bills_page.listed(out) else None
    found = {}
    for claim in claims.load(root):
        stage, topic = claim["tested_in"], claim["topic"]
        on_training = topic in TRAINING_DATA_TOPICS or claim["id"] in TRAINING_DATA_CLAIMS
        models = (billed or {}).get(stage, [])
        bills = [(name, f"bills.html#model-{name}") for name in models]
        if billed is not None and topic == "openness":
            bills = [("of this report", "bills.html")]
        pages: list[tuple[str, Links]] = [
            ("sources disagree", [(d["title"], d["href"]) for d in disputed.get(claim["id"], [])]),
            ("data cards", [(name, cards[name]) for name in read.get(stage, [])]),
            ("training content", summaries if on_training else []),
            ("bills of materials", bills),
        ]
        found[claim["id"]] = [(what, links) for what, links in pages if links]
    return found


def _write(
    out: Path, name: str, title: str, shared: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    values = dict(values)
    layout.write_page(
        out / f"{name}.html",
        f"{values.pop('template', name)}.html.j2",
        **{
            "kind": "document",
            "here": name,
            "page_title": f"{title}, Moxin Lab",
            "title": title,
            "contents": [],
            **shared,
            **values,
        },
    )


def _measurements(root: Path, nav: Sequence[NavItem]) -> dict[str, Any]:
    charts = measured.charts(root)
    return {
        "charts": charts,
        "rule": measured.RULE,
        "notes": {chart.source: (chart.machine, chart.note) for chart in charts},
        "contents": [
            (2, f"chart-{number}", chart.question.title) for number, chart in enumerate(charts, 1)
        ],
    }


def _shown(item: Mapping[str, Any], nav: Sequence[NavItem], known: Set[str]) -> dict[str, Any]:
    """A deviation with the pages of its notebooks, and whether each of its claims is listed."""
    hrefs = {each.name: each.href for each in nav}
    titles = {each.name: f"{each.number} {each.title}" for each in nav}
    treated = [(titles.get(name, name), hrefs.get(name)) for name in item["treated"]]
    touched = [(name, name in known) for name in item.get("claims") or []]
    return {**item, "treated": treated, "claims": touched}


def _deviation(root: Path, out: Path, item: Mapping[str, Any], shared: Mapping[str, Any]) -> None:
    known = {each["id"]: each["claim"] for each in claims.load(root)}
    values = {
        "template": "deviation",
        "here": "deviations",
        "item": _shown(item, shared["nav"], known.keys()),
        "words": known,
    }
    _write(out, f"deviation-{item['id']}", item["title"], shared, values)


def _deviations(root: Path, nav: Sequence[NavItem]) -> dict[str, Any]:
    known = {item["id"] for item in claims.load(root)}
    groups: dict[str, list[dict[str, Any]]] = {}
    for item in deviations(root):
        groups.setdefault(item["topic"], []).append(_shown(item, nav, known))
    contents = [
        entry
        for topic, items in groups.items()
        for entry in (
            (2, f"topic-{topic.replace(' ', '-')}", topic.capitalize()),
            *((3, f"deviation-{item['id']}", item["title"]) for item in items),
        )
    ]
    return {"groups": list(groups.items()), "contents": contents}


def _cards(root: Path, nav: Sequence[NavItem]) -> dict[str, Any]:
    return {"cards": data_cards(root)}


def _summaries(root: Path, nav: Sequence[NavItem]) -> dict[str, Any]:
    return {"summaries": summary_page.published(root)}


def _card(root: Path, out: Path, card: Mapping[str, str], shared: Mapping[str, Any]) -> None:
    from moxin_lab.lab.cells import render_notebook

    _, text = _parts(root / "data_cards" / card["name"] / "README.md")
    cell = {"cell_type": "markdown", "metadata": {}, "source": text}
    rendered = render_notebook({"cells": [cell]}, card["title"] or card["name"], lambda _: None)
    values = {
        "template": "card",
        "here": "data",
        "card": card,
        "billed": bills_page.listed(out),
        "title_html": layout.markup(rendered.title_html),
        "body": layout.markup(_with_anchors(rendered.html, rendered.headings)),
        "contents": [heading for heading in rendered.headings if heading[0] in (2, 3)],
    }
    _write(out, f"data-{card['name']}", rendered.title, shared, values)


def _with_anchors(html: str, headings: Sequence[tuple[int, str, str]]) -> str:
    """Links to a heading as code hosts name it (`#personal-data`) lead to the page's anchor."""
    anchors = {
        re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-"): anchor
        for _, anchor, text in headings
    }
    return re.sub(r'href="#([^"]+)"', lambda m: f'href="#{escape(anchors.get(m[1], m[1]))}"', html)


def _glossary(root: Path, nav: Sequence[NavItem]) -> dict[str, Any]:
    return {"terms": glossary.terms()}


def _parts(readme: Path) -> tuple[dict[str, Any], str]:
    """Front matter and text of a card."""
    text = readme.read_text(encoding="utf-8")
    parts = text.split("---\n", 2)
    if len(parts) != 3 or parts[0].strip():
        return {}, text
    front = parse_yaml(parts[1], readme)
    return front if isinstance(front, dict) else {}, parts[2]
