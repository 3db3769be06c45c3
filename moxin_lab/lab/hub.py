"""Rows of a published data set, streamed from the hub or from local files of the same schema.

Guarantees: a set without the expected columns is refused before its first row; rows that are
omitted are counted by reason (`Rows`); importing this module downloads nothing.
Out of scope: any particular set; names, columns and what a row becomes are the caller's.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Rows(NamedTuple):
    """An iterator of rows, and how many were omitted for each reason, counted as it runs."""

    rows: Iterator[Any]
    left_out: Counter[str]


def open_set(
    path: str,
    *,
    name: str,
    columns: Sequence[str],
    revision: str | None,
    limit: int | None,
    error: type[ValueError],
    configuration: str | None = None,
    split: str = "train",
) -> Any:
    """Split `train` as an iterable of at most `limit` rows (None: all).

    path: name on the hub, or a local folder of files that `datasets` loads (parquet, JSON lines,
    also
    compressed). name, columns: the published set and its documented columns. revision: a commit of
    the hub set. configuration, split: of the hub set; of a local folder all files are read. Raises
    `error` for missing columns, and whatever `datasets` raises.
    """
    import datasets

    if Path(path).exists():
        configuration, split = None, "train"
    stream = datasets.load_dataset(
        path, configuration, split=split, streaming=True, revision=revision
    )
    present = stream.column_names or list(next(iter(stream), {}))
    missing = [column for column in columns if column not in present]
    if missing:
        raise error(
            f"{path} has the columns {', '.join(present) or '(none)'}; {name} has "
            f"{', '.join(columns)}: {', '.join(missing)} missing. "
            "Give a path to files of that schema."
        )
    return stream if limit is None else stream.take(limit)
