"""Stage 01, first step: from raw rows of a data set to documents, one row a document.

    data card or hub set -> rows -> decode UTF-8 -> text by kind -> documents
                                        |              |
                                        +--------------+---> rejected, with the raw bytes and the reason

Does: HTML to text with resiliparse, the extractor of DCLM-BASELINE (main content only: no
navigation, no footer, no script); reStructuredText as it stands; the dialogues of a topic file as
plain text, one turn a line; code verbatim.
Guarantees: every row of a source is in exactly one of the two tables it returns; what cannot be
read is set aside and never raises; code is not changed by one byte (no NFC, no whitespace), because
a string literal or an identifier is its bytes.
Does not: repair. A page that is cut off is rejected, not completed; bytes that are not UTF-8 are
not guessed at.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from resiliparse.extract.html2text import extract_plain_text

from moxin_lab.data.card_files import read_card
from moxin_lab.lab.progress import Progress

DOCUMENTS = pa.schema(
    [(name, pa.string()) for name in ("id", "source", "language", "page", "text")]
)
"""`page` is the group key of the split: equal for all translations of one page."""

REJECTED = pa.schema(
    [
        (name, pa.string())
        for name in ("id", "source", "language", "page", "step", "reason", "detail")
    ]
    + [("content", pa.binary())]
)
"""`content` holds the bytes that the step received: raw bytes before decoding, the text as UTF-8
after it.
"""


class CurationError(ValueError):
    """A source that cannot be read at all; the message names it and says what to do."""


class Raw(NamedTuple):
    """One row of a source before any work on it. `render` turns the decoded text into a document's
    text.
    """

    id: str
    language: str
    page: str
    content: bytes
    render: Callable[[str], str]


class Unreadable(Exception):
    """A row that yields no document: reason (one of a few, for counting) and detail."""


# ---- text by kind


def html_to_text(html: str) -> str:
    """Main content of a page as text, block elements on their own lines, list items marked.

    Raises Unreadable if the page is cut off, is not HTML, or has no main content.
    """
    fault = html_fault(html)
    if fault:
        raise Unreadable("broken HTML", fault)
    text = extract_plain_text(html, main_content=True).strip()
    if not text:
        raise Unreadable(
            "no main content", "the page holds no text outside navigation, scripts and footer"
        )
    return text


def html_fault(html: str) -> str | None:
    """What shows that markup is damaged, or None.

    HTML parsers accept anything, so damage must be looked for: a download cut off inside a tag, a
    comment or an element whose content is not markup swallows the rest of the page without a word.
    A missing `</html>` is legal and no fault.
    """
    if "\0" in html:
        return "NUL character"
    if not re.search(r"<[a-zA-Z!/]", html):
        return "no markup"
    if html.rfind("<!--") > html.rfind("-->"):
        return "ends inside a comment"
    for name in ("script", "style", "title", "textarea"):
        opened = [match.end() for match in re.finditer(rf"<{name}\b[^>]*>", html, re.IGNORECASE)]
        if opened and not re.search(rf"</{name}\s*>", html[opened[-1] :], re.IGNORECASE):
            return f"ends inside <{name}>"
    if re.search(r"<[a-zA-Z/][^<>]*\Z", html):
        return "ends inside a tag"
    return None


def keep_text(text: str) -> str:
    """The text as it stands: code, reStructuredText, rendered dialogues."""
    return text


# ---- rows of the data cards


def _help_pages(rows: Iterable[dict[str, Any]]) -> Iterator[Raw]:
    for row in rows:
        language, page = row["language"], row["page"]
        yield Raw(
            f"help_pages/{language}/{page}",
            language,
            f"help_pages/{page}",
            row["html"],
            html_to_text,
        )


def _python_docs(rows: Iterable[dict[str, Any]]) -> Iterator[Raw]:
    for row in rows:
        key = f"python_docs/{row['page']}"
        yield Raw(key, "en", key, row["rst"], keep_text)


def _code_samples(rows: Iterable[dict[str, Any]]) -> Iterator[Raw]:
    for row in rows:
        key = f"code_samples/{row['path']}"
        yield Raw(key, "code", key, row["content"], keep_text)


def _conversations(rows: Iterable[dict[str, Any]]) -> Iterator[Raw]:
    """One document a topic file: a single dialogue is too short to be one. Topics are translations
    of each other.
    """
    files: dict[tuple[str, str, str], list[str]] = {}
    for row in sorted(rows, key=lambda row: (row["path"], row["index"])):
        dialogue = "\n".join(turn.strip() for turn in row["conversation"])
        files.setdefault((row["language"], row["category"], row["path"]), []).append(dialogue)
    for (language, category, path), dialogues in files.items():
        key = f"conversations/{language}/{Path(path).stem}"
        yield Raw(
            key, language, f"conversations/{category}", "\n\n".join(dialogues).encode(), keep_text
        )


def _udhr(rows: Iterable[dict[str, Any]]) -> Iterator[Raw]:
    for row in rows:
        yield Raw(f"udhr/{row['code']}", row["language"], "udhr", row["html"], html_to_text)


CARDS: dict[str, Callable[[Iterable[dict[str, Any]]], Iterator[Raw]]] = {
    "help_pages": _help_pages,
    "python_docs": _python_docs,
    "code_samples": _code_samples,
    "conversations": _conversations,
    "udhr": _udhr,
}


def extract_card(card: Path, progress: Progress | None = None) -> tuple[pa.Table, pa.Table]:
    """Documents and rejected rows of the data card in folder `card` (its name says how its rows are
    read).

    Raises CurationError if the card is unknown, and CardError if one of its parquet files is
    missing, damaged or empty.
    """
    if card.name not in CARDS:
        raise CurationError(f"no reader for data card {card.name!r}: there are {', '.join(CARDS)}")
    rows = read_card(card).to_pylist()
    return render(card.name, CARDS[card.name](rows), len(rows), progress)


# ---- hub sets (scale `full`)


class HubSet(NamedTuple):
    """A set on the Hugging Face hub: where it lies, the column of its text, and the language label
    of its documents.
    """

    path: str
    column: str
    language: str


HUB_SETS = {
    "slimpajama": HubSet("cerebras/SlimPajama-627B", "text", "en"),
    "dclm-baseline": HubSet("mlfoundations/dclm-baseline-1.0", "text", "en"),
    "the-stack-dedup": HubSet("bigcode/the-stack-dedup", "content", "code"),
}
"""The three pretraining sets of the report (v6, section 3.3). Their rows are text already:
extraction keeps it.
"""


def extract_hub(
    name: str, rows: int | None, *, path: str | None = None, progress: Progress | None = None
) -> tuple[pa.Table, pa.Table]:
    """Documents and rejected rows of the first `rows` rows (None: all) of hub set `name`, streamed
    with `datasets`.

    `path` replaces the hub address by a local data set with the same columns. Raises CurationError
    for an unknown name or a missing text column, and whatever `datasets` raises if the set cannot
    be reached.
    """
    if name not in HUB_SETS:
        raise CurationError(f"no hub set {name!r}: there are {', '.join(HUB_SETS)}")
    import datasets

    hub = HUB_SETS[name]
    stream = datasets.load_dataset(path or hub.path, split="train", streaming=True)
    if rows is not None:
        stream = stream.take(rows)

    def raws() -> Iterator[Raw]:
        for index, row in enumerate(stream):
            if hub.column not in row:
                raise CurationError(
                    f"{path or hub.path} has no column {hub.column!r}, only {', '.join(row)}"
                )
            key = f"{name}/{index:012d}"
            yield Raw(
                key, hub.language, key, row[hub.column].encode("utf-8", "surrogatepass"), keep_text
            )

    return render(name, raws(), rows or 0, progress)


# ---- both


def extract(
    name: str,
    data_card: Callable[[str], Path],
    hub_rows: int | None = None,
    progress: Progress | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Documents and rejected rows of source `name`: a hub set, or a data card whose folder
    `data_card(name)` gives.
    """
    if name in HUB_SETS:
        return extract_hub(name, hub_rows, progress=progress)
    return extract_card(data_card(name), progress)


def render(
    source: str, raws: Iterable[Raw], total: int, progress: Progress | None = None
) -> tuple[pa.Table, pa.Table]:
    """Decode and render each row; returns documents and rejected rows, both sorted by id. `total`
    is for progress only.
    """
    documents: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for number, raw in enumerate(raws, start=1):
        row: dict[str, Any] = {
            "id": raw.id,
            "source": source,
            "language": raw.language,
            "page": raw.page,
        }
        try:
            documents.append(row | {"text": raw.render(raw.content.decode("utf-8"))})
        except UnicodeDecodeError as error:
            detail = f"{error.reason} at byte {error.start} of {len(raw.content)}"
            rejected.append(row | _rejection("invalid UTF-8", detail, raw.content))
        except Unreadable as error:
            rejected.append(row | _rejection(error.args[0], error.args[1], raw.content))
        if progress is not None and number % 200 == 0:
            progress(number, max(total, number), f"extracting {source}")
    return (
        pa.Table.from_pylist(documents, schema=DOCUMENTS).sort_by("id"),
        pa.Table.from_pylist(rejected, schema=REJECTED).sort_by("id"),
    )


def _rejection(reason: str, detail: str, content: bytes) -> dict[str, Any]:
    return {"step": "extraction", "reason": reason, "detail": detail, "content": content}
