"""Stage 01, first step: from raw rows of a data set to documents, one row per document.

    data card or hub set -> rows -> decode UTF-8 -> text by kind -> documents
                                        |              |
                                        +--------------+---> rejected: raw bytes and the reason

HTML becomes text with resiliparse, the extractor of DCLM-BASELINE (main content only: no
navigation, no footer, no script); reStructuredText and code stay as they are; the dialogues of a
topic file become plain text, one turn per line; a question of a benchmark becomes the text that
lm-evaluation-harness would show, with its answer.

Guarantees: every row of a source is in exactly one of the two tables it returns; what cannot be
read is set aside and never raises; code is not changed by one byte (no NFC, no whitespace), because
a string literal or an identifier is its bytes.
Out of scope: repair. A page that is cut off is rejected, not completed; bytes that are not UTF-8
are not guessed at.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from resiliparse.extract.html2text import extract_plain_text

from moxin_lab.data.card_files import read_card
from moxin_lab.lab.hub import open_set
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
    """The text unchanged: code, reStructuredText, rendered dialogues."""
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
    """One document per topic file: a single dialogue is too short. Topics are translations of each
    other.
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


def _mmlu_text(row: dict[str, Any]) -> str:
    """A question of MMLU with its choices and the right one, in lm-evaluation-harness's form of the
    task: what the benchmark asks for is what the model reads.
    """
    letters = "ABCD"
    choices = [f"{letter}. {text}" for letter, text in zip(letters, row["choices"], strict=True)]
    return "\n".join([row["question"].strip(), *choices, f"Answer: {letters[row['answer']]}"])


def _hellaswag_text(row: dict[str, Any]) -> str:
    """A context of HellaSwag with its right ending, cleaned as lm-evaluation-harness's task
    `hellaswag` does.
    """
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    parts = (context, row["endings"][int(row["label"])])
    return " ".join(_without_brackets(part).strip() for part in parts)


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
    configuration: str | None = None
    split: str = "train"


HUB_SETS = {
    "slimpajama": HubSet("cerebras/SlimPajama-627B", ("text",), "en", itemgetter("text")),
    "dclm-baseline": HubSet("mlfoundations/dclm-baseline-1.0", ("text",), "en", itemgetter("text")),
    "the-stack-dedup": HubSet(
        "bigcode/the-stack-dedup", ("content",), "code", itemgetter("content")
    ),
    "mmlu-auxiliary-train": HubSet(
        "cais/mmlu",
        ("question", "choices", "answer"),
        "en",
        _mmlu_text,
        # The configuration `auxiliary_train` has the same rows inside a column `train`.
        configuration="all",
        split="auxiliary_train",
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


def extract_hub(
    name: str, rows: int | None, *, path: str | None = None, progress: Progress | None = None
) -> tuple[pa.Table, pa.Table]:
    """Documents and rejected rows of the first `rows` rows (None: all) of hub set `name`, streamed
    with `datasets`.

    path: a local folder of files with the set's columns, read in place of the hub. Raises
    CurationError for an unknown name or missing columns, and whatever `datasets` raises if the set
    cannot be reached.
    """
    if name not in HUB_SETS:
        raise CurationError(f"no hub set {name!r}: there are {', '.join(HUB_SETS)}")
    hub = HUB_SETS[name]
    stream = open_set(
        path or hub.path,
        name=hub.path,
        columns=hub.columns,
        revision=None,
        limit=rows,
        error=CurationError,
        configuration=hub.configuration,
        split=hub.split,
    )

    def raws() -> Iterator[Raw]:
        for index, row in enumerate(stream):
            key = f"{name}/{index:012d}"
            content = hub.text(row).encode("utf-8", "surrogatepass")
            yield Raw(key, hub.language, key, content, keep_text)

    return render(name, raws(), rows or 0, progress)


# ---- both


def extract(
    name: str,
    data_card: Callable[[str], Path],
    hub_path: Callable[[str], str],
    hub_rows: int | None = None,
    progress: Progress | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Documents and rejected rows of source `name`: a hub set, read where `hub_path` of its hub
    name says, or a data card whose folder `data_card(name)` gives.
    """
    if name in HUB_SETS:
        path = hub_path(HUB_SETS[name].path)
        return extract_hub(name, hub_rows, path=path, progress=progress)
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
