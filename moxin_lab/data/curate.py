"""Stage 01, the ledger: how many documents and bytes are left after each step, and the files of the
artifact `documents`.

    documents/train.parquet      id, source, language, page, text, num_bytes
              heldout.parquet    likewise
              udhr.parquet       likewise
              rejected.parquet   the same keys, then step, reason, detail, content (bytes)
              funnel.json        documents and bytes after each step, by source and language

Guarantees: the same documents give the same bytes (rows sorted by id, fixed writer settings, locked
pyarrow); every document that entered is in train, heldout or rejected, which `Funnel.write` checks
before it writes.
Out of scope: decisions; the steps make them.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from moxin_lab.data.extract import DOCUMENTS, REJECTED, CurationError

STEPS = (
    "extraction",
    "NFC",
    "short filter",
    "language",
    "exact duplicates",
    "near-duplicates",
    "split",
)


class Funnel:
    """Collects what each step keeps and rejects, in order."""

    def __init__(self) -> None:
        self._counts: list[pd.DataFrame] = []
        self._rejected: list[pa.Table] = []

    def step(self, name: str, kept: pa.Table, rejected: pa.Table | None = None) -> pa.Table:
        """Note the documents after step `name` and those it rejected; returns `kept`, so that a
        cell reads as one chain.
        """
        # a cell run twice counts once
        self._counts = [count for count in self._counts if count["step"].iloc[0] != name]
        self._rejected = [
            table for table in self._rejected if set(table["step"].to_pylist()) != {name}
        ]
        frame = pd.DataFrame({key: kept[key].to_pylist() for key in ("source", "language")})
        frame["documents"] = 1
        frame["bytes"] = [len(text.encode()) for text in kept["text"].to_pylist()]
        totals = frame.groupby(["source", "language"], as_index=False).sum()
        self._counts.append(totals.assign(step=name))
        if rejected is not None and rejected.num_rows:
            self._rejected.append(rejected)
        return kept

    def counts(self) -> pd.DataFrame:
        """step, source, language, documents, bytes: one row for each that has documents."""
        return pd.concat(self._counts, ignore_index=True)[
            ["step", "source", "language", "documents", "bytes"]
        ]

    def rejected(self) -> pa.Table:
        """All rejected rows so far, sorted by id."""
        return pa.concat_tables([REJECTED.empty_table(), *self._rejected]).sort_by("id")

    def reasons(self) -> pd.DataFrame:
        """step, reason, source, language, documents: the rejected rows counted."""
        keys = ["step", "reason", "source", "language"]
        frame = self.rejected().select(keys).to_pandas()
        return frame.groupby(keys).size().reset_index(name="documents")

    def write(
        self, folder: Path, train: pa.Table, heldout: pa.Table, udhr: pa.Table, entered: int
    ) -> None:
        """Write the artifact. Raises CurationError if the rows that entered are not all accounted
        for, or an id occurs twice.
        """
        rejected = self.rejected()
        left = train.num_rows + heldout.num_rows + udhr.num_rows + rejected.num_rows
        if left != entered:
            raise CurationError(
                f"{entered} rows entered curation and {left} left it: "
                "a step lost or invented documents"
            )
        ids = [key for table in (train, heldout, udhr, rejected) for key in table["id"].to_pylist()]
        if len(set(ids)) != len(ids):
            raise CurationError(
                "two rows of the curated documents have the same id: "
                "a source gives two documents one id"
            )
        folder.mkdir(parents=True)
        for name, table in (("train", train), ("heldout", heldout), ("udhr", udhr)):
            sizes = pa.array([len(text.encode()) for text in table["text"].to_pylist()], pa.int64())
            write_table(
                table.select(DOCUMENTS.names).append_column("num_bytes", sizes),
                folder / f"{name}.parquet",
            )
        write_table(rejected, folder / "rejected.parquet")
        ledger = {"steps": _records(self.counts()), "rejected": _records(self.reasons())}
        (folder / "funnel.json").write_text(
            json.dumps(ledger, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def write_table(table: pa.Table, path: Path) -> None:
    """Parquet with zstd, rows sorted by id, without anything that differs between runs."""
    pq.write_table(
        table.sort_by("id"), path, compression="zstd", compression_level=6, write_statistics=False
    )


def sizes(documents: pa.Table) -> pd.DataFrame:
    """Index language; documents and bytes of text."""
    frame = pd.DataFrame({"language": documents["language"].to_pylist(), "documents": 1})
    frame["bytes"] = [len(text.encode()) for text in documents["text"].to_pylist()]
    return frame.groupby("language").sum()


def set_apart(documents: pa.Table, sources: Iterable[str]) -> tuple[pa.Table, pa.Table]:
    """(other documents, those of the named sources), each in its order."""
    named = pa.compute.is_in(documents["source"], pa.array(list(sources), pa.string()))
    return documents.filter(pa.compute.invert(named)), documents.filter(named)


def table_of(tables: Iterable[pa.Table]) -> pa.Table:
    """One table, sorted by id."""
    return pa.concat_tables(tables).sort_by("id")


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(frame.to_json(orient="records"))
