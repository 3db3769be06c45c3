"""Reads a data card's parquet files, or says which file is wrong and how to restore it.

Guarantees: the columns are those that `sources.py` records or that the caller requires; a damaged,
empty or missing file is refused by name.
Out of scope: the numbers of a card (`card_numbers.py`) and checking them (`cards.py`).
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moxin_lab.data.sources import SOURCES, source


class CardError(RuntimeError):
    """A data card's file is missing, damaged, empty, or has other columns than it should."""


def read_card(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """The rows of a data card's folder or of one parquet file, in the order of the file names.

    Args:
        path: a parquet file, or a folder `data_cards/<name>`, whose `data/*.parquet` are read
            except those sampled from a model, which form a separate configuration.
        schema: the required columns; by default those of the data set of that name in `sources.py`.
    Raises `CardError`, naming the file, the fault and the remedy, for a file that is missing, is
    empty, is no intact parquet file, has other columns, or has no rows.
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
        actual, expected = (
            ", ".join(f"{field.name}: {field.type}" for field in fields)
            for fields in (table.schema, schema)
        )
        raise CardError(f"{path} has the columns ({actual}), expected ({expected}). {remedy(path)}")
    if table.num_rows == 0:
        raise CardError(f"{path} has no rows. {remedy(path)}")
    return table


def remedy(path: Path) -> str:
    """What to do about a missing or damaged file of a card, as a sentence."""
    name = next((part for part in path.parts if part in SOURCES), "NAME")
    if name in SOURCES and path.name in SOURCES[name].sampled:
        return (
            f"Restore it with `git checkout -- data_cards/{name}`: "
            "a model's answers cannot be rebuilt."
        )
    return (
        f"Restore it with `git checkout -- data_cards/{name}`, "
        f"or rebuild it with `moxin-lab cards build {name}`."
    )
