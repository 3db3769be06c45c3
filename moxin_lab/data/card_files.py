"""Reading a data card's parquet files: the rows, or an error that names the file and how to get it
back.

Guarantees: columns are those that `sources.py` records, or that the caller insists on; a damaged,
empty or missing file is refused by name.
Out of scope: what a card prints and whether it is true (cards.py).
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moxin_lab.data.sources import SOURCES, source


class CardError(RuntimeError):
    """A data card's file is missing, damaged, empty, or has other columns than it should."""


def read_card(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """The rows of a data card folder, or of one of its parquet files, in file-name order.

    path: `data_cards/<name>` (its `data/*.parquet` are read, but for those sampled from a model,
    which are a configuration of their own) or a parquet file.
    schema: the columns to insist on; by default those that `sources.py` gives for the data set of
    that name. Raises `CardError` naming the file, what is wrong, and what to do, for a file that is
    missing, has no bytes, is no parquet file or a damaged one, has other columns, or has no rows.
    """
    folder = path if path.is_dir() or not path.suffix else path.parent.parent
    known = SOURCES.get(folder.name)
    if schema is None:
        schema = source(folder.name).schema
    if folder != path:
        return _read_parquet(path, schema)
    files = {file.name for file in (path / "data").glob("*.parquet")}
    if known:
        files = (files - known.sampled.keys()) | known.rows.keys()
    if not files:
        raise CardError(f"{path} holds no data/*.parquet. {remedy(path)}")
    return pa.concat_tables(_read_parquet(path / "data" / name, schema) for name in sorted(files))


def _read_parquet(path: Path, schema: pa.Schema) -> pa.Table:
    if not path.is_file():
        raise CardError(f"{path} is missing. {remedy(path)}")
    if path.stat().st_size == 0:
        raise CardError(f"{path} is empty: it has 0 bytes. {remedy(path)}")
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise CardError(
            f"{path} is not a readable parquet file: {error}. {remedy(path)}"
        ) from error
    if not table.schema.equals(schema):
        found, expected = (
            ", ".join(f"{field.name}: {field.type}" for field in each)
            for each in (table.schema, schema)
        )
        raise CardError(f"{path} has the columns ({found}), expected ({expected}). {remedy(path)}")
    if table.num_rows == 0:
        raise CardError(f"{path} has no rows. {remedy(path)}")
    return table


def remedy(path: Path) -> str:
    name = next((part for part in path.parts if part in SOURCES), "NAME")
    if name in SOURCES and path.name in SOURCES[name].sampled:
        return f"Restore it with `git checkout -- data_cards/{name}`: no build makes a model's answers again."
    return f"Restore it with `git checkout -- data_cards/{name}`, or rebuild it with `moxin-lab cards build {name}`."
