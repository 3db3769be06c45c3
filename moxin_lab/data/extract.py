"""Stage 01, first step: from raw rows of a data set to documents, one row per document.

    data card or hub set -> rows -> bytes to text -> text by kind -> documents
                              |           |              |
                              +-----------+--------------+---> rejected: raw bytes and the reason

`encodings.py` finds the encoding. HTML becomes the text of its main content (`html_text.py`);
reStructuredText and code stay as they are; the dialogues of a topic file become plain text, one
turn per line; a question of a benchmark becomes the text that lm-evaluation-harness would show,
with its answer.

Guarantees: every row of a source is in exactly one of the two tables it returns; a row that cannot
be read (a null, a number, a missing key, a damaged page) is set aside with its reason and never
ends the source; code is not changed (no NFC, no whitespace), because a string literal or an
identifier is its bytes: only a byte-order mark goes.
Out of scope: repair. A page that is cut off in a tag, a comment, a script or an element that needs
its end tag is rejected, not completed (`html_scan.py` says what cannot be told).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from moxin_lab.data.card_files import read_card
from moxin_lab.data.encodings import check_replaced, decode
from moxin_lab.data.html_text import html_to_text
from moxin_lab.data.unreadable import Unreadable

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


ROWS_AT_ONCE = 256
"""Rows that are held as Python objects at a time."""


class CurationError(ValueError):
    """A source that cannot be read at all; the message names it and says what to do."""


class Raw(NamedTuple):
    """One row of a source before any work on it.

    content: bytes, whose encoding is to be found, or text. render: turns the text of the row into
    that of the document.
    """

    id: str
    language: str
    page: str
    content: bytes | str
    render: Callable[[str], str]


def keep_text(text: str) -> str:
    """The text unchanged: code, reStructuredText, rendered dialogues."""
    return text


def _refuse(text: str) -> str:
    raise Unreadable("damaged row", text)


# ---- rows of the data cards


def _value(row: Mapping[str, Any], column: str, kind: type | tuple[type, ...] = str) -> Any:
    """The value of a column. Raises Unreadable if it is absent, null or of another type."""
    if column not in row:
        raise Unreadable("damaged row", f"no column {column!r}")
    value = row[column]
    if not isinstance(value, kind):
        what = "null" if value is None else f"{value!r:.40}, a {type(value).__name__}"
        raise Unreadable("damaged row", f"{column} is {what}")
    return value


def _each(
    source: str, rows: Iterable[dict[str, Any]], read: Callable[[dict[str, Any]], Raw]
) -> Iterator[Raw]:
    """`read` of each row; a row that it cannot read becomes one that `render` rejects."""
    for index, row in enumerate(rows):
        try:
            yield read(row)
        except Unreadable as error:
            yield _damaged(source, index, row, error)


def _damaged(source: str, index: int, row: dict[str, Any], error: Unreadable) -> Raw:
    key = f"{source}/row-{index:012d}"
    language = row.get("language")
    detail = str(error.args[1])
    return Raw(key, language if isinstance(language, str) else "und", key, detail, _refuse)


def _help_page(row: dict[str, Any]) -> Raw:
    language, page = _value(row, "language"), _value(row, "page")
    html = _value(row, "html", (bytes, str))
    return Raw(f"help_pages/{language}/{page}", language, f"help_pages/{page}", html, html_to_text)


def _python_doc(row: dict[str, Any]) -> Raw:
    key = f"python_docs/{_value(row, 'page')}"
    return Raw(key, "en", key, _value(row, "rst", (bytes, str)), keep_text)


def _code_sample(row: dict[str, Any]) -> Raw:
    key = f"code_samples/{_value(row, 'path')}"
    return Raw(key, "code", key, _value(row, "content", (bytes, str)), keep_text)


def _declaration(row: dict[str, Any]) -> Raw:
    key = f"udhr/{_value(row, 'code')}"
    html = _value(row, "html", (bytes, str))
    return Raw(key, _value(row, "language"), "udhr", html, html_to_text)


def _conversations(rows: Iterable[dict[str, Any]]) -> Iterator[Raw]:
    """One document per topic file: a single dialogue is too short. Topics are translations of each
    other.
    """
    files: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
    for number, row in enumerate(rows):
        try:
            key = (_value(row, "language"), _value(row, "category"), _value(row, "path"))
            index, turns = _value(row, "index", int), _texts(row, "conversation")
        except Unreadable as error:
            yield _damaged("conversations", number, row, error)
            continue
        files.setdefault(key, []).append((index, "\n".join(turn.strip() for turn in turns)))
    for (language, category, path), dialogues in sorted(files.items(), key=lambda item: item[0][2]):
        text = "\n\n".join(dialogue for _, dialogue in sorted(dialogues, key=itemgetter(0)))
        key_ = f"conversations/{language}/{Path(path).stem}"
        content = text.encode("utf-8", "surrogatepass")
        yield Raw(key_, language, f"conversations/{category}", content, keep_text)


CARDS: dict[str, Callable[[Iterable[dict[str, Any]]], Iterator[Raw]]] = {
    "help_pages": lambda rows: _each("help_pages", rows, _help_page),
    "python_docs": lambda rows: _each("python_docs", rows, _python_doc),
    "code_samples": lambda rows: _each("code_samples", rows, _code_sample),
    "conversations": _conversations,
    "udhr": lambda rows: _each("udhr", rows, _declaration),
}


def extract_card(card: Path) -> tuple[pa.Table, pa.Table]:
    """Documents and rejected rows of the data card in folder `card` (its name says how its rows are
    read).

    Raises CurationError if the card is unknown, and CardError if one of its parquet files is
    missing, damaged or empty.
    """
    if card.name not in CARDS:
        raise CurationError(f"no reader for data card {card.name!r}: there are {', '.join(CARDS)}")
    table = read_card(card)
    rows = (row for batch in table.to_batches(ROWS_AT_ONCE) for row in batch.to_pylist())
    return render(card.name, CARDS[card.name](rows))


# ---- hub sets (scale `full`)


def _mmlu_text(row: dict[str, Any]) -> str:
    """A question of MMLU with its choices and the right one, in lm-evaluation-harness's form of the
    task: what the benchmark asks for is what the model reads.
    """
    letters = "ABCD"
    choices = [
        f"{letter}. {text}" for letter, text in zip(letters, _texts(row, "choices"), strict=True)
    ]
    answer = letters[_value(row, "answer", int)]
    return "\n".join([_value(row, "question").strip(), *choices, f"Answer: {answer}"])


def _hellaswag_text(row: dict[str, Any]) -> str:
    """A context of HellaSwag with its right ending, cleaned as lm-evaluation-harness's task
    `hellaswag` does.
    """
    label, first, second = (_value(row, name) for name in ("activity_label", "ctx_a", "ctx_b"))
    ending = _texts(row, "endings")[int(_value(row, "label", (str, int)))]
    parts = (f"{label}: {first} {second.capitalize()}", ending)
    return " ".join(_without_brackets(part).strip() for part in parts)


def _texts(row: dict[str, Any], column: str) -> list[str]:
    """A column of texts. Raises Unreadable."""
    texts = _value(row, column, list)
    if not all(isinstance(text, str) for text in texts):
        raise Unreadable("damaged row", f"{column} holds something that is no text")
    return texts


def _without_brackets(text: str) -> str:
    """WikiHow's `[title]` marks a heading; other brackets are remains of how the
    set was made.
    """
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


class HubSet(NamedTuple):
    """A set on the Hugging Face hub: its name there, the columns that are read, the language label
    of its documents, and the text of a row.
    """

    path: str
    columns: tuple[str, ...]
    language: str
    text: Callable[[dict[str, Any]], str]
    labels: Mapping[str, str] = {}
    """Columns of what else is known of a document, by the names of `steps.Labels`."""


HUB_SETS = {
    "slimpajama": HubSet(
        "cerebras/SlimPajama-627B",
        ("text",),
        "en",
        itemgetter("text"),
    ),
    "dclm-baseline": HubSet(
        "mlfoundations/dclm-baseline-1.0",
        ("text",),
        "en",
        itemgetter("text"),
        labels={"page": "url"},
    ),
    "the-stack-dedup": HubSet(
        "bigcode/the-stack-dedup",
        ("content",),
        "code",
        itemgetter("content"),
        labels={
            "id": "hexsha",
            "code_language": "lang",
            "licence": "max_stars_repo_licenses",
            "project": "max_stars_repo_name",
        },
    ),
    "mmlu-auxiliary-train": HubSet(
        "cais/mmlu",
        ("question", "choices", "answer"),
        "en",
        _mmlu_text,
    ),
    "hellaswag-train": HubSet(
        "Rowan/hellaswag",
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        "en",
        _hellaswag_text,
    ),
}
"""The three pretraining sets of the report (v6, section 3.3), whose rows are text already, and the
training sets of benchmarks that it names for phase 3 (section 3.3.3).
"""


def hub_text(hub: HubSet, row: dict[str, Any]) -> str:
    """The text of a row. Raises Unreadable if its values are not what the set documents."""
    for column in hub.columns:
        _value(row, column, object)
    try:
        text = hub.text(row)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise Unreadable("damaged row", f"{type(error).__name__}: {error}") from error
    return _value({"text": text}, "text")


# ---- both


def render(source: str, raws: Iterable[Raw]) -> tuple[pa.Table, pa.Table]:
    """Decode and render each row; returns documents and rejected rows, both sorted by id. At
    most `ROWS_AT_ONCE` rows are held as Python objects.
    """
    tables = (_Rows(DOCUMENTS), _Rows(REJECTED))
    for raw in raws:
        row = {"id": raw.id, "source": source, "language": raw.language, "page": raw.page}
        try:
            tables[0].add(row | {"text": _text(raw)})
        except Unreadable as error:
            tables[1].add(row | _rejection(error, raw.content))
    return tables[0].table(), tables[1].table()


class _Rows:
    """Rows that become Arrow memory `ROWS_AT_ONCE` at a time."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.rows: list[dict[str, Any]] = []
        self.batches: list[pa.RecordBatch] = []

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) == ROWS_AT_ONCE:
            self._flush()

    def table(self) -> pa.Table:
        """All rows, sorted by id."""
        self._flush()
        return pa.Table.from_batches(self.batches, schema=self.schema).sort_by("id")

    def _flush(self) -> None:
        self.batches.append(pa.RecordBatch.from_pylist(self.rows, schema=self.schema))
        self.rows = []


def _text(raw: Raw) -> str:
    """The document's text. Raises Unreadable."""
    if isinstance(raw.content, bytes):
        text = decode(raw.content).text
    else:
        text = raw.content.removeprefix("\ufeff")
    text = raw.render(text)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        detail = f"a lone surrogate at character {error.start}"
        raise Unreadable("invalid Unicode", detail) from error
    check_replaced(text)
    return text


def _rejection(error: Unreadable, content: bytes | str) -> dict[str, Any]:
    reason, detail = error.args
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    return {"step": "extraction", "reason": reason, "detail": detail, "content": content}
