"""Terms explained where they stand: the first occurrence of a term on a page is a button that opens
its explanation, without a script.

Guarantees: headings, links, code, formulas and tables stay as they are; a term is marked once per
page; pages without a term get nothing.
Out of scope: the page that lists all terms (`documents.py`).
"""

import re
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import yaml

_UNTOUCHED = (
    *("a", "button", "code", "pre", "math", "svg"),
    *("table", "label", "details", "figure", "summary"),
)
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")


@cache
def terms() -> tuple[dict[str, str], ...]:
    """Name, anchor, text and pattern of each term, in alphabetical order."""
    entries = yaml.safe_load((Path(__file__).parent / "glossary.yml").read_text(encoding="utf-8"))
    made = [
        {
            "name": entry["name"],
            "anchor": "term-" + re.sub(r"[^A-Za-z0-9]+", "-", entry["name"]).lower().strip("-"),
            "text": entry["text"],
            "pattern": rf"(?<![\w-])(?:{entry.get('match', re.escape(entry['name']))})(?![\w-])",
        }
        for entry in entries
    ]
    return tuple(sorted(made, key=lambda entry: entry["name"].lower()))


def explain(html: str) -> str:
    """A page's body in which the first occurrence of each term in prose opens its explanation."""
    open_terms = list(terms())
    notes: list[str] = []

    def section(found: re.Match[str]) -> str:
        return found[1] + _explain_section(found[2], open_terms, notes) + found[3]

    marked = re.sub(r'(?s)(<section class="words" id="[^"]*">)(.*?)(</section>)', section, html)
    return marked + "".join(notes)


def _explain_section(html: str, open_terms: list[dict[str, str]], notes: list[str]) -> str:
    from bs4 import BeautifulSoup, NavigableString

    if not any(re.search(term["pattern"], html) for term in open_terms):
        return html
    soup = BeautifulSoup(html, "html.parser")
    for text in list(soup.find_all(string=True)):
        if type(text) is not NavigableString or text.find_parent([*_UNTOUCHED, *_HEADINGS]):
            continue
        marked = _mark(str(text), open_terms, notes)
        if marked is not None:
            text.replace_with(BeautifulSoup(marked, "html.parser"))
    return str(soup)


def _mark(text: str, open_terms: list[dict[str, str]], notes: list[str]) -> str | None:
    """HTML of a piece of text with its terms marked; None if there is none."""
    pieces: list[str] = []
    rest, found_any = text, False
    while True:
        found = [(m, term) for term in open_terms if (m := re.search(term["pattern"], rest))]
        if not found:
            break
        match, term = min(found, key=lambda pair: (pair[0].start(), -pair[0].end()))
        open_terms.remove(term)
        notes.append(_note(term))
        pieces += [
            escape(rest[: match.start()], quote=False),
            f'<button type="button" class="term" popovertarget="{term["anchor"]}">'
            f"{escape(match[0], quote=False)}</button>",
        ]
        rest, found_any = rest[match.end() :], True
    return "".join([*pieces, escape(rest, quote=False)]) if found_any else None


def _note(term: dict[str, Any]) -> str:
    return (
        f'<p popover class="term-note" id="{term["anchor"]}">'
        f"<strong>{escape(term['name'])}.</strong> "
        f"{escape(term['text'], quote=False)} "
        f'<a href="glossary.html#{term["anchor"]}">All terms</a></p>'
    )
