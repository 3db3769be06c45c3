"""Captions, anchors and tables of a rendered notebook.

Guarantees: figures and tables are numbered in reading order, each with an anchor; header cells have
their scope; a table that is wider than a telephone names each of its values; a long one is folded
below its caption and has a list of orders above it.
Out of scope: cells and their outputs (`cells.py`).
"""

import re
from typing import Any

from moxin_lab.lab.sorting import make_sortable

STACKED_FROM = 4
"""Columns: a telephone shows a row of such a table as lines of name and value. Our choice."""
FOLDED_FROM = 16
"""Rows: a longer table is looked up, not read, and is many screens of a telephone. Our choice."""


def number_captions(soup: Any, used: set[str]) -> None:
    """`Figure 3.` and `Table 5.` before the captions, and an anchor on each, in reading order."""
    for kind, found in (
        ("Figure", soup.select("figure.moxin-figure > figcaption")),
        ("Table", soup.select("table.moxin-table > caption")),
    ):
        for number, caption in enumerate(found, 1):
            whole = caption.parent  # the anchor must show the picture, not the words below it
            whole["id"] = unique(f"{kind.lower()}-{number}", used)
            label = soup.new_tag("a", attrs={"class": "numbered", "href": f"#{whole['id']}"})
            label.string = f"{kind} {number}."
            caption.insert(0, label)
            label.insert_after(" ")


def make_table_readable(table: Any, soup: Any) -> None:
    for name in ("border", "class"):
        if name in table.attrs and table[name] != ["moxin-table"]:
            del table[name]
    for cell in table.find_all("th"):
        if not cell.get("scope"):
            cell["scope"] = "col" if cell.find_parent("thead") else "row"
    name_values(table)
    if not table.find_parent(class_="scroll"):
        about = table.caption.get_text() if table.caption else "Table"
        table.wrap(
            soup.new_tag(
                "div",
                attrs={"class": "scroll", "role": "group", "tabindex": "0", "aria-label": about},
            )
        )
    add_order(table, soup)


def name_values(table: Any) -> None:
    """Each value of a wide table with the name of its column, for a telephone's stacked rows."""
    head = table.find("thead")
    names = _column_names(head) if head else []
    if len(names) < STACKED_FROM:
        return
    table["class"] = [*table.get("class", []), "stack"]
    for row in table.select("tbody > tr"):
        cells = row.find_all(["th", "td"], recursive=False)
        several = sum(cell.name == "th" for cell in cells) > 1
        for cell, name in zip(cells, names, strict=False):
            if name and (cell.name == "td" or several):
                cell["data-label"] = name


def add_order(table: Any, soup: Any) -> None:
    """A list of orders above a long table inside its `.scroll`."""
    if (control := make_sortable(table, soup)) is None:
        return
    columns = len(table.select("thead > tr > *"))
    scroll = table.find_parent(class_="scroll")
    scroll.wrap(
        soup.new_tag("div", attrs={"class": "sortable", "style": f"--columns:{columns}"})
    ).insert(0, control)


def fold_long_tables(soup: Any) -> None:
    """Fold each table of a notebook that has `FOLDED_FROM` rows, below its numbered caption."""
    for table in soup.select("table.moxin-table"):
        rows = len(table.select("tbody > tr"))
        if rows < FOLDED_FROM or table.find_parent("details"):
            continue
        details, summary = soup.new_tag("details", attrs={"class": "long"}), soup.new_tag("summary")
        said = table.caption.get_text(" ", strip=True)
        badge = table.caption.find(class_="scale")
        if badge:
            said = said.removesuffix(badge.get_text()).rstrip()
        summary.string = f"{said} ({rows} rows)"
        (table.find_parent(class_="sortable") or table.find_parent(class_="scroll")).wrap(details)
        details.insert(0, summary)


def _column_names(head: Any) -> list[str]:
    """Names of a table's columns; an identifier becomes words, in the head itself as well."""
    names = []
    for cell in head.find_all("tr")[-1].find_all(["th", "td"]):
        if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", cell.get_text()):
            cell.string = cell.get_text().replace("_", " ")
        names.append(" ".join(cell.get_text().split()))
    return names


def unique(base: str, used: set[str]) -> str:
    """`base`, with a number behind it if it is used already; now it is used."""
    name, count = base, 1
    while name in used:
        count += 1
        name = f"{base}-{count}"
    used.add(name)
    return name
