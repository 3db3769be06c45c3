"""Questions whose answers are known, made by rule from the help pages of four languages.

    pages = read_pages(card, languages)          # rows of data_cards/help_pages as documents
    titles = title_questions(pages["ja"])        # the page's heading asks for the page
    commands = command_questions(pages["ja"])    # "How do I get to ...?": one right paragraph

A page's heading is a question in the words of its authors; the right answer is the page, or any
other page of the same heading. As the pages are parallel, the heading in one language is a
question to the pages in another. Many pages say in one marked paragraph how to reach a command:
that paragraph is the exact answer to a question about the command.

Guarantees: questions are split into two halves by a hash of the page, so all languages of a page
are in one half; settings are chosen on `validation`, figures are of `test`; pages left out of the
index for questions without an answer are the same in every language.
Out of scope: how a person would ask; no question was written by hand.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resiliparse.parse.html import HTMLTree

from moxin_lab.data.card_files import read_card
from moxin_lab.serving.documents import Document, clean, read_document

Half = Literal["validation", "test"]
ASK = {
    "en": "How do I get to {}?",
    "zh": "如何打开{}？",
    "ja": "{}を開くにはどうすればよいですか？",
    "ko": "{} 명령은 어떻게 실행합니까?",
}
"""Our own words around a command's name."""
LEFT_OUT = 5
"""One page of so many is left out of an index: its heading asks for what is not there."""


@dataclass(frozen=True)
class Page:
    """A help page: its document, and the paragraph that says how to reach its command, if one does.

    name: path below the language's folder, equal for all languages. command: that paragraph's text.
    """

    name: str
    language: str
    document: Document
    command: str | None


@dataclass(frozen=True)
class Question:
    """pages: names of the pages that are right. answer: the right paragraph's text, if there is
    one.
    """

    text: str
    language: str
    pages: frozenset[str]
    answer: str | None = None


def read_pages(
    card: Path, languages: Sequence[str], limit: int | None = None
) -> dict[str, list[Page]]:
    """The pages of the card by language, evenly spread if `limit` is below their number; the same
    pages in each language.
    """
    rows = read_card(card).to_pandas()
    names = sorted(set(rows["page"]))
    if limit is not None and limit < len(names):
        names = [names[i * len(names) // limit] for i in range(limit)]
    chosen = rows[rows["page"].isin(names)]
    found: dict[str, list[Page]] = {}
    for language in languages:
        part = chosen[chosen["language"] == language].sort_values("page")
        found[language] = [
            _page(name, language, html)
            for name, html in zip(part["page"], part["html"], strict=True)
        ]
    return found


def _page(name: str, language: str, html: bytes) -> Page:
    document = read_document(f"{name}.html", html)
    return Page(name, language, document, _command(html, document))


def _command(html: bytes, document: Document) -> str | None:
    """The one paragraph of the box "To access this command", if it is one of the document's."""
    body = HTMLTree.parse(html.decode("utf-8")).body
    texts = (
        []
        if body is None
        else [
            clean(paragraph.text_content or "")
            for paragraph in body.query_selector_all(".howtogetbody p").values()
        ]
    )
    texts = [text for text in texts if text]
    held = [paragraph.text for paragraph in document.paragraphs]
    return texts[0] if len(texts) == 1 and held.count(texts[0]) == 1 else None


def half(page: str) -> Half:
    """The half that a page's questions are in."""
    return "validation" if _digest(page) % 2 else "test"


def is_left_out(page: str) -> bool:
    """Whether a page is left out of indexes that must not answer everything."""
    return _digest(f"left out {page}") % LEFT_OUT == 0


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def title_questions(pages: Sequence[Page]) -> list[Question]:
    """The heading of each page, once for pages of the same heading."""
    by_title: dict[str, set[str]] = {}
    for page in pages:
        by_title.setdefault(page.document.title, set()).add(page.name)
    language = pages[0].language if pages else ""
    return [Question(title, language, frozenset(names)) for title, names in by_title.items()]


def command_questions(pages: Sequence[Page]) -> list[Question]:
    """How to get to the command of each page that says so in one paragraph and has a heading of its
    own.
    """
    titles = Counter(page.document.title for page in pages)
    return [
        Question(
            ASK[page.language].format(page.document.title),
            page.language,
            frozenset({page.name}),
            page.command,
        )
        for page in pages
        if page.command is not None and titles[page.document.title] == 1
    ]


def of_half(questions: Iterable[Question], wanted: Half) -> list[Question]:
    """The questions of one half; one about several pages goes with the first of their names."""
    return [one for one in questions if half(min(one.pages)) == wanted]
