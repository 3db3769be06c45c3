"""Corpora of your own: a folder of parquet or JSON Lines files, or a hub set, as an entry of the
scale file.

    data.corpora:
      - {name: poems, path: lab_corpora/poems, text: body, language: en, licence: CC0-1.0}
      - {name: wiki-ja, hub: wikimedia/wikipedia, subset: 20231101.ja, text: text, language: ja,
         licence: CC-BY-SA-4.0, rows: 100000}

Its documents go through every step of stage 01 that those of the data cards go through.

Guarantees: rows are read in the order of file names and lines; a row whose text is missing or empty
is rejected with the reason; a missing folder, column or file is refused with the name of the
corpus. Out of scope: extraction (the column holds text, not HTML), and checking that the licence is
true.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from moxin_lab.data.extract import CurationError, Raw, Unreadable, keep_text, render
from moxin_lab.lab.progress import Progress
from moxin_lab.scales.sections import CorpusSettings

SUFFIXES = (".parquet", ".jsonl")


def extract_corpus(
    entry: CorpusSettings, root: Path, progress: Progress | None = None
) -> tuple[pa.Table, pa.Table]:
    """Documents and rejected rows of one corpus, in the columns of `extract.DOCUMENTS` and
    `extract.REJECTED`.

    root: what a relative `path` counts from. Raises CurationError where the corpus cannot be read
    at all, and what `datasets` raises for a hub set that cannot be reached.
    """
    raws = (_raw(entry, index, row) for index, row in enumerate(_rows(entry, root)))
    return render(entry.name, raws, entry.rows or 0, progress)


def _raw(entry: CorpusSettings, index: int, row: dict[str, Any]) -> Raw:
    absent = [name for name in (entry.text, entry.page) if name and name not in row]
    if absent:
        raise CurationError(
            f"corpus {entry.name!r} has no column {absent[0]!r}, only {', '.join(row)}"
        )
    identifier = f"{entry.name}/{index:012d}"
    # Rows of one page, such as translations, stay on one side of the split.
    page = f"{entry.name}/{row[entry.page]}" if entry.page else identifier
    text = row[entry.text]
    if not isinstance(text, str) or not text.strip():
        return Raw(identifier, entry.language, page, b"", _no_text)
    return Raw(identifier, entry.language, page, text.encode("utf-8", "surrogatepass"), keep_text)


def _no_text(text: str) -> str:
    raise Unreadable("no text", "the text column of the row is missing or empty")


def _rows(entry: CorpusSettings, root: Path) -> Iterator[dict[str, Any]]:
    """The first `rows` rows, all if that is None."""
    left = entry.rows
    for row in _hub_rows(entry) if entry.hub else _file_rows(entry, root):
        if left is not None:
            if left == 0:
                return
            left -= 1
        yield row


def _hub_rows(entry: CorpusSettings) -> Iterator[dict[str, Any]]:
    import datasets

    yield from datasets.load_dataset(entry.hub, entry.subset, split="train", streaming=True)


def _file_rows(entry: CorpusSettings, root: Path) -> Iterator[dict[str, Any]]:
    assert entry.path is not None
    folder = root / entry.path
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    if not files:
        raise CurationError(
            f"corpus {entry.name!r}: no {' or '.join(SUFFIXES)} file in the folder {folder}"
        )
    for file in files:
        try:
            if file.suffix == ".parquet":
                for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
                    yield from batch.to_pylist()
            else:
                yield from pyarrow.json.read_json(file).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise CurationError(f"corpus {entry.name!r}: {file} cannot be read: {error}") from error
