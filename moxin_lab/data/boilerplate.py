"""Boilerplate of a site: lines at the edges of pages (navigation, footers) that its pages share.

    found = shared_lines((site, text) for each page)     # one pass, a count of lines by site
    strip(text, found[site])                             # text -> text

The rule: a line is shared if at least `MIN_PAGES` pages and `MIN_SHARE` of the pages of its site
have it among their first or last `EDGE` lines, case folded and each run of digits taken as one; a
line without a letter (a closing bracket) is never boilerplate.
From a page the shared lines are removed that stand before its first line of its own and after its
last one; blank lines there go with them. A page without a line of its own is left empty.

Guarantees: lines between a page's own lines stay, so a heading that every page of a manual has
("Parameters") is kept in its place; `strip` is a pure function and a second run changes nothing;
the set of pages decides, not their order; time is linear in the text, memory in the distinct lines
at edges.
Out of scope: boilerplate in the middle of a page, which extraction of the main content removes;
program code, whose licence headers and includes are content.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable

EDGE = 30
"""Lines of a page's beginning and of its end that are counted. Our choice."""
MIN_PAGES = 5
MIN_SHARE = 0.1
"""Both our choice. On a small site five pages with one line are no accident; on a large one a tenth
of the pages is what a section's menu has."""

_DIGITS = re.compile(r"\d+")


def shared_lines(pages: Iterable[tuple[str, str]]) -> dict[str, frozenset[int]]:
    """For every site, the keys of the lines that its pages share.

    pages: (site, text) of each. Pages in one language make a site, or a language with few pages
    keeps its menus.
    """
    counts: dict[str, Counter[int]] = {}
    number: Counter[str] = Counter()
    for site, text in pages:
        number[site] += 1
        lines = [line for line in text.splitlines() if line.strip()]
        edges = lines if len(lines) <= 2 * EDGE else lines[:EDGE] + lines[-EDGE:]
        keys = {_key(line) for line in edges if any(map(str.isalpha, line))}
        counts.setdefault(site, Counter()).update(keys)
    return {
        site: frozenset(key for key, count in found.items() if count >= _least(number[site]))
        for site, found in counts.items()
    }


def strip(text: str, shared: frozenset[int]) -> str:
    """`text` without the shared lines at its two ends; unchanged if there are none."""
    lines = text.splitlines(keepends=True)
    first = _leading(lines, shared)
    last = len(lines) - _leading(lines[first:][::-1], shared)
    if (first, last) == (0, len(lines)):
        return text
    kept = "".join(lines[first:last])
    # The line that is now last keeps its line break only if the text ended in one.
    return kept if text[-1:] in "\r\n" else kept.rstrip("\r\n")


def _leading(lines: list[str], shared: frozenset[int]) -> int:
    """How many lines come before the first line of the page's own; none if no shared line does."""
    stop = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if _key(line) not in shared:
            break
        stop = number
    else:
        return len(lines) if stop else 0
    while 0 < stop < len(lines) and not lines[stop].strip():
        stop += 1
    return stop


def _least(pages: int) -> int:
    return max(MIN_PAGES, math.ceil(MIN_SHARE * pages))


def _key(line: str) -> int:
    """A 64-bit hash of the line; "Page 3 of 12" has the key of "page 4 of 12"."""
    folded = " ".join(_DIGITS.sub("0", line).casefold().split())
    digest = hashlib.blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
