"""The artifact `documents` of stage 01, as everything after it is read.

    documents/train/00000.parquet ...   id, source, language, page, project, code_language, licence,
                                        text, num_bytes
              heldout/                  likewise
              removed/                  likewise, with step, reason and detail before the text
              udhr/                     the Universal Declaration, for evaluation, in three folders
              funnel.json, run.json     counts after each step; what was run on what

    train = curated.read(stage.input("documents"), "train").to_pandas()
    for shard in curated.shards(folder, "removed", ["step", "num_bytes"]): ...

Guarantees: shards come in the order of their names, rows in that of their ids within a shard; a
shard that is missing, cut, damaged or no table of documents is named before a row of it is used.
Out of scope: writing it (`data/engine.py`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SIDES = ("train", "heldout", "removed", "udhr")
REQUIRED = ("id", "source", "language", "text")
"""Of these no row may lack one."""


def read(documents: Path, side: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one side as one table; by default all columns.

    documents: the artifact, or the folder of a finished `moxin-lab curate`. Raises
    FileNotFoundError if the side has no shard, and ValueError that names a damaged one.
    """
    return pa.concat_tables(shards(documents, side, columns))


def shards(documents: Path, side: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The tables of one side, one shard in memory at a time; arguments and errors as `read`."""
    for path in paths(documents, side):
        yield _table(path, columns)


def paths(documents: Path, side: str) -> list[Path]:
    """The files of one side, sorted. Raises FileNotFoundError if there is none."""
    folder = documents / "udhr" / "train" if side == "udhr" else documents / side
    found = sorted(folder.glob("*.parquet"))
    if not found:
        raise FileNotFoundError(f"{folder} has no parquet file: run stage 01 first")
    return found


def _table(path: Path, columns: Sequence[str] | None) -> pa.Table:
    try:
        names = pq.read_schema(path).names
        wanted = [*(REQUIRED if columns is None else columns)]
        if missing := [name for name in wanted if name not in names]:
            raise ValueError(f"{path} lacks {', '.join(missing)}: it is not a table of documents")
        table = pq.read_table(path, columns=columns and list(columns), partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is damaged or not a parquet file: {error}; run stage 01 again"
        ) from error
    for name in set(REQUIRED) & set(table.column_names):
        kind = table.schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise ValueError(f"{path}: {name} is {kind}, not text")
        if count := table[name].null_count:
            first = pc.index(pc.is_null(table[name]), True).as_py()
            raise ValueError(f"{path}: {count} rows have no {name}, the first is row {first}")
    return table
