"""Rows of a published set, from the hub or from local files of the same schema, streamed once its
columns are known to be there.

Guarantees: a set with other columns is refused before its first row; what is left out of it is
counted by reason (`Rows`).
Does not: download when imported, or know any set: names, columns and the rows' form are the
caller's.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Rows(NamedTuple):
    """An iterator of rows and, filled as it runs, the reasons for which rows were left out."""

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
) -> Any:
    """Split `train` as an iterable of at most `limit` rows (None: all).

    path: the hub name, or a folder or file that `datasets` loads. name, columns: the published set
    and what it is documented to have. revision: a commit of the hub set. Raises `error` for missing
    columns, and whatever `datasets` raises.
    """
    import datasets

    stream = datasets.load_dataset(path, split="train", streaming=True, revision=revision)
    found = stream.column_names or list(next(iter(stream), {}))
    missing = [column for column in columns if column not in found]
    if missing:
        raise error(
            f"{path} has the columns {', '.join(found) or '(none)'}; {name} has {', '.join(columns)}: "
            f"{', '.join(missing)} missing. Give a path to files of that schema."
        )
    return stream if limit is None else stream.take(limit)
