"""Passages: neighbouring paragraphs of one section, short enough to be found and read.

    passages = cut(document)

Guarantees: every paragraph is in exactly one passage, whole, but for one that is longer than a
passage may be: it is cut between sentences, or rows of a table, and each part of a table repeats
the table's first row.
Out of scope: what a passage means; overlap between passages.
"""

import re
from dataclasses import dataclass

from moxin_lab.serving.documents import Document, Paragraph

MAX_BYTES = 900
"""UTF-8 bytes of a passage: about 200 tokens, in English as in Japanese."""
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


@dataclass(frozen=True)
class Passage:
    """headings: those of its paragraphs, the document's title first. first, last: numbers of its
    paragraphs in the document, from 1.
    """

    headings: tuple[str, ...]
    first: int
    last: int
    text: str


def cut(document: Document, max_bytes: int = MAX_BYTES) -> list[Passage]:
    """The passages of a document in their order; none is longer than `max_bytes`, unless a single
    sentence or row is.
    """
    made: list[Passage] = []
    for number, paragraph in enumerate(document.paragraphs, 1):
        headings = paragraph.headings
        if not headings or headings[0] != document.title:
            headings = (document.title, *headings)
        for part in _parts(paragraph, max_bytes):
            joins = (
                made
                and made[-1].headings == headings
                and _size(made[-1].text) + _size(part) < max_bytes
            )
            if joins:
                before = made.pop()
                made.append(Passage(headings, before.first, number, f"{before.text}\n{part}"))
            else:
                made.append(Passage(headings, number, number, part))
    return made


def _parts(paragraph: Paragraph, max_bytes: int) -> list[str]:
    """A paragraph in one piece, or in as many as its length asks for."""
    if _size(paragraph.text) <= max_bytes:
        return [paragraph.text]
    if paragraph.kind in ("table", "code"):
        units, between = paragraph.text.split("\n"), "\n"
    else:
        units, between = _SENTENCE.split(paragraph.text), " "
    head = units[0] if paragraph.kind == "table" and _size(units[0]) < max_bytes // 3 else ""
    parts: list[str] = []
    for unit in units:
        if parts and _size(parts[-1]) + _size(unit) < max_bytes:
            parts[-1] += between + unit
        else:
            parts.append(f"{head}\n{unit}" if head and parts else unit)
    return parts


def _size(text: str) -> int:
    return len(text.encode())
