"""The pipeline as a picture: stages as boxes in the order in which they run, with the artifact that
each hands on.

Guarantees: the same stages give the same bytes; colours are those of the page, so light and dark
both work; the text alternative names every stage and what it leaves.
Out of scope: measurements (the templates draw bars).
"""

import textwrap
from collections.abc import Sequence
from html import escape

from moxin_lab.lab.layout import NavItem
from moxin_lab.stages import STAGES

WIDTH, HEIGHT, GAP = 142, 84, 26
"""Of a box and of the space between two boxes, in CSS pixels."""


def pipeline(nav: Sequence[NavItem], columns: int) -> str:
    """SVG of the stages, row by row in reading order; a stage without a page is dashed."""
    leaves = {info.name: info.leaves for info in STAGES}
    rows = -(-len(nav) // columns)
    width = columns * WIDTH + (columns - 1) * GAP + 2
    height = rows * HEIGHT + (rows - 1) * GAP + 2
    parts = []
    for position, item in enumerate(nav):
        x, y = _corner(position, columns)
        parts.append(_box(item, leaves.get(item.name, ()), x, y))
        if position + 1 < len(nav):
            parts.append(_arrow(position, columns))
    in_words = "; ".join(
        f"{item.number} {item.title}"
        + (f" leaves {', '.join(_words(leaves[item.name]))}" if leaves.get(item.name) else "")
        for item in nav
    )
    kind = "wide" if columns > 2 else "narrow"
    return (
        f'<svg class="pipeline {kind}" role="img" aria-label="The stages in order: '
        f'{escape(in_words)}." viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"{''.join(parts)}</svg>"
    )


def _corner(position: int, columns: int) -> tuple[int, int]:
    row, column = divmod(position, columns)
    return 1 + column * (WIDTH + GAP), 1 + row * (HEIGHT + GAP)


def _box(item: NavItem, leaves: Sequence[str], x: int, y: int) -> str:
    title = textwrap.wrap(f"{item.number} {item.title}", 17)
    given = textwrap.wrap(", ".join(_words(leaves)), 22)[:2]
    lines = [
        f'<text class="name" x="{x + 9}" y="{y + 20 + 16 * i}">{escape(line)}</text>'
        for i, line in enumerate(title[:2])
    ]
    top = y + HEIGHT - 9 - 14 * (len(given) - 1)
    lines += [
        f'<text class="gives" x="{x + 9}" y="{top + 14 * i}">{escape(line)}</text>'
        for i, line in enumerate(given)
    ]
    state = "" if item.href else ' class="absent"'
    return (
        f'<g{state}><rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="5"/>'
        f"{''.join(lines)}</g>"
    )


def _arrow(position: int, columns: int) -> str:
    x, y = _corner(position, columns)
    if (position + 1) % columns:
        left, middle = x + WIDTH + 4, y + HEIGHT // 2
        return f'<path d="M{left} {middle}h{GAP - 8}m-6 -5l6 5l-6 5"/>'
    # to the beginning of the next row, through the space between the rows
    start, bottom = x + WIDTH // 2, y + HEIGHT
    end = 1 + WIDTH // 2
    middle = bottom + GAP // 2
    return f'<path d="M{start} {bottom + 3}V{middle}H{end}V{bottom + GAP - 3}m-5 -6l5 6l5 -6"/>'


def _words(names: Sequence[str]) -> list[str]:
    return [name.replace("_", " ") for name in names]
