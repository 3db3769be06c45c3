"""The order of a table's rows is the reader's choice, without a script: a list of orders above the
table, the rank of each row in each column, and style rules that put rows in the order chosen.

    control = make_sortable(table, soup)       # adds ranks to the rows; a list of orders, or None

Guarantees: before a choice nothing of the table differs, and nothing does in a browser without the
selectors that are needed; rows with equal values keep their order, rows without a value come last;
a column's numbers are compared as numbers, with thousands, signs, exponents, intervals behind them
and units of size and time; the rules of `rules` reach `MAX_COLUMNS` columns. Where a browser has
`reading-flow` (Chromium from 137), a screen reader reads the rows in the order chosen and the head
of that column is named `ascending` or `descending`; `aria-sort` cannot be set without a script.
Out of scope: tables with groups of rows or cells over several columns, whose order has a meaning;
the order in which a screen reader reads rows in a browser without `reading-flow`: as given.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

SORTED_FROM = 6
"""Rows: fewer are seen at a glance. Our choice."""
MAX_COLUMNS = 16
"""Columns that can be chosen; `rules` has four rules for each."""
LONGEST_NAME = 60
"""Letters: a column with a longer text is prose, which nobody sorts by. Our choice."""
AS_GIVEN = "as given"
MISSING = ("", "–", "—", "-", "\N{MINUS SIGN}", "n/a")

_NUMBER = re.compile(r"([+-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?|[+-]?∞)(.*)", re.DOTALL)
_INTERVAL = re.compile(r"\s*(?:[(\[][^)\]]*[)\]]|±\s*[\d.,]+)\s*$")
_UNITS = {
    **{unit: 1024.0**power for power, unit in enumerate(("bytes", "KiB", "MiB", "GiB", "TiB"))},
    **{unit: 1000.0**power for power, unit in enumerate(("byte", "kB", "MB", "GB", "TB"))},
    **{"µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0},
}
_TIMES = {"µs", "ms", "s", "min", "h"}
_KINDS = (_UNITS.keys() - _TIMES, _TIMES)


def make_sortable(table: Any, soup: Any) -> Any | None:
    """Give the rows of a parsed table their ranks; the list of orders, to stand above the table.

    None, and an unchanged table, where it has fewer than `SORTED_FROM` rows, no caption, more than
    one head or body, a cell over several rows or columns, or no column of numbers: the order of
    words was chosen to be read.
    """
    bodies, heads, caption = table.find_all("tbody"), table.select("thead > tr"), table.caption
    if len(bodies) != 1 or len(heads) != 1 or caption is None or table.find("tfoot"):
        return None
    names = [" ".join(cell.get_text().split()) for cell in heads[0].find_all(["th", "td"])]
    rows = bodies[0].find_all("tr", recursive=False)
    cells = [row.find_all(["th", "td"], recursive=False) for row in rows]
    if len(rows) < SORTED_FROM or any(len(row) != len(names) for row in cells):
        return None
    if any(cell.get("colspan") or cell.get("rowspan") for row in cells for cell in row):
        return None
    choices: list[tuple[str, str]] = []
    styles: list[list[str]] = [[] for _ in rows]
    for column, name in enumerate(names[:MAX_COLUMNS]):
        texts = [" ".join(row[column].get_text().split()) for row in cells]
        if max(map(len, texts)) > LONGEST_NAME:
            continue
        if any(row[column].find(["sup", "sub", "br"]) for row in cells):
            continue  # 10<sup>3</sup> would read as 103
        ranks, numeric = ranked(texts)
        if len(set(ranks)) < 2:
            continue
        for style, rank in zip(styles, ranks, strict=True):
            style += [] if rank is None else [f"--k{column}:{rank}"]
        name = name or "first column"
        orders = {"d": "highest first", "a": "lowest first"} if numeric else {"a": "A to Z"}
        choices += [(f"{way}{column}", f"{name}, {words}") for way, words in orders.items()]
    if not any(way.startswith("d") for way, _ in choices):
        return None
    for row, style in zip(rows, styles, strict=True):
        if style:
            row["style"] = ";".join([*filter(None, [row.get("style")]), *style])
    return _control(choices, " ".join(caption.get_text().split()), soup)


def ranked(texts: Sequence[str]) -> tuple[list[int | None], bool]:
    """The place of each text among all, equal ones sharing it and missing ones without any; and
    whether all are numbers of one kind.
    """
    present = [text for text in texts if text not in MISSING]
    numbers = _numbers(present)
    keys: list[Any] = [_words(text) for text in present] if numbers is None else list(numbers)
    place = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    found = iter(keys)
    ranks = [None if text in MISSING else place[next(found)] for text in texts]
    return ranks, numbers is not None


def rules() -> str:
    """The style rules of every column: order of the rows, and a mark in its head that a screen
    reader reads as a word.
    """
    lines = []
    for column in range(MAX_COLUMNS):
        for way, order, mark, word in (
            ("a", f"var(--k{column}, 9999)", "▲", "--ascending"),
            ("d", f"calc(-1 * var(--k{column}, -9999))", "▼", "--descending"),
        ):
            chosen = f'.sortable:has([value="{way}{column}"]:checked)'
            head = f"{chosen} thead > tr > :nth-child({column + 1})::after"
            lines.append(f"{chosen} tbody > tr {{ order: {order}; }}")
            lines.append(f'{head} {{ content: " {mark}" / var({word}); }}')
    return "\n".join(lines) + "\n"


def _control(choices: Sequence[tuple[str, str]], caption: str, soup: Any) -> Any:
    label = soup.new_tag("label", attrs={"class": "sort"})
    label.append("Order ")
    named = f"Order of the rows: {caption}"
    # a browser that remembers a choice would show another order than the list says
    select = soup.new_tag("select", attrs={"aria-label": named, "autocomplete": "off"})
    for value, words in [("", AS_GIVEN), *choices]:
        option = soup.new_tag("option", attrs={"value": value})
        option.string = words
        select.append(option)
    label.append(select)
    return label


def _numbers(texts: Sequence[str]) -> list[float] | None:
    """The texts as numbers of one unit, or of units of one kind; None where one is none."""
    parts = [_value_and_unit(text) for text in texts]
    found = [part for part in parts if part is not None]
    units = {unit for _, unit in found}
    if not found or len(found) < len(parts):
        return None
    if len(units) == 1:
        return [value for value, _ in found]
    for kind in _KINDS:
        if units <= kind:
            return [value * _UNITS[unit] for value, unit in found]
    return None


def _value_and_unit(text: str) -> tuple[float, str] | None:
    text = text.replace("\N{MINUS SIGN}", "-")
    if re.fullmatch(r"\d+ (?:min|h|s)(?: \d+ (?:min|h|s))+", text):  # 2 min 5 s
        pairs = re.findall(r"(\d+) (min|h|s)", text)
        return sum(int(value) * _UNITS[unit] for value, unit in pairs), "s"
    found = _NUMBER.fullmatch(text)
    if found is None or re.match(r"[./:-]\d", found[2]):  # a version, a date, a share such as 3/4
        return None
    digits = found[1].replace(",", "").replace("∞", "inf")
    return float(digits), _INTERVAL.sub("", found[2]).strip()


def _words(text: str) -> tuple[tuple[int, float, str], ...]:
    """A key that puts `phase 2` before `phase 10`, 2.9.1 before 2.13.0 and -0.3 before -0.1, and
    knows no capitals.
    """
    text = text.casefold().replace("\N{MINUS SIGN}", "-")
    decimals = "" if re.search(r"\d\.\d+\.\d", text) else r"(?:\.[0-9]+)?"
    number = rf"[0-9]+{decimals}"
    return tuple(
        (0, float(part), "") if re.fullmatch(rf"-?{number}", part) else (1, math.inf, part)
        for part in re.findall(rf"^-?{number}|{number}|[^0-9]+", text)
    )
