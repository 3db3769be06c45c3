"""FineWeb2's rehydration: a document that stands for many copies is repeated, if the documents with
so many copies survive the later filters.

    sizes = cluster_sizes(ids, exact copies, near-duplicates)       # documents each one stands for
    table = repetitions(sizes, removed)                             # cluster size -> repetitions
    expand(documents, sizes, table)

Source of the rule: huggingface/fineweb-2, misc/rehydration/README.md. Cluster sizes that later
filters remove as often as all documents, or oftener, are repeated once, the size that they remove
least `max_repetitions` times, and sizes in between by linear interpolation; a moving mean over five
neighbouring sizes smooths this, the first two and the last two excepted. There the sizes above a
limit are one group; here neighbouring sizes are joined until a group has `MIN_DOCUMENTS`.

Guarantees: pure functions; nothing is repeated where filters remove all sizes alike.
Out of scope: that repeating helps a model, which FineWeb2 measured and this project did not.
"""

from collections import Counter

import numpy as np
import pyarrow as pa

MAX_REPETITIONS = 10
"""FineWeb2's largest."""
MIN_DOCUMENTS = 100
"""Of a group of cluster sizes, so that its removal rate means something. Our choice."""
WINDOW = 5


def cluster_sizes(ids: list[str], *removed: pa.Table) -> np.ndarray:
    """int64 [ids]: how many documents each kept one stands for, itself among them.

    removed: columns id and duplicate_of, one table per step of deduplication, in their order. A
    copy of a document that a later step removes counts for the one that stays. ValueError for a
    duplicate of a document that is neither kept nor removed.
    """
    stands_for = Counter(dict.fromkeys(ids, 1))
    of = {
        key: kept
        for table in removed
        for key, kept in zip(
            table["id"].to_pylist(), table["duplicate_of"].to_pylist(), strict=True
        )
    }
    for key in of:
        kept = key
        while kept in of:
            kept = of[kept]
        if kept not in stands_for:
            raise ValueError(f"{key} is a duplicate of {kept}, which is not among the documents")
        stands_for[kept] += 1
    return np.array([stands_for[key] for key in ids], dtype=np.int64)


def repetitions(
    sizes: np.ndarray,
    removed: np.ndarray,
    *,
    max_repetitions: int = MAX_REPETITIONS,
    min_documents: int = MIN_DOCUMENTS,
) -> dict[int, int]:
    """The smallest cluster size of each group to its repetitions, sizes ascending.

    sizes: int64 [documents], of the documents after deduplication. removed: bool [documents],
    whether a later filter removed the document.
    """
    starts, rates = _removal_rates(sizes, removed, min_documents)
    if not len(rates):
        return {}
    overall, least = removed.mean(), rates.min()
    values = np.ones(len(rates))
    below = rates < overall
    values[below] += (max_repetitions - 1) * (overall - rates[below]) / (overall - least)
    half = WINDOW // 2
    if len(values) > 2 * half:
        values[half:-half] = np.convolve(values, np.full(WINDOW, 1 / WINDOW), mode="valid")
    return dict(zip(starts, np.round(values).astype(int).tolist(), strict=True))


def expand(documents: pa.Table, sizes: np.ndarray, table: dict[int, int]) -> pa.Table:
    """The rows in their order, each as often as `table` says for its cluster size."""
    starts = np.array(sorted(table), dtype=np.int64)
    group = np.maximum(np.searchsorted(starts, sizes, side="right") - 1, 0)
    counts = np.array([table[start] for start in starts.tolist()] or [1], dtype=np.int64)
    return documents.take(np.repeat(np.arange(len(sizes)), counts[group]))


def _removal_rates(
    sizes: np.ndarray, removed: np.ndarray, min_documents: int
) -> tuple[list[int], np.ndarray]:
    """The first size and the removal rate of each group; too small a last group joins the one
    before.
    """
    groups: list[tuple[int, int, int]] = []  # first size, documents, removed ones
    for size in np.unique(sizes).tolist():
        mine = sizes == size
        count, gone = int(mine.sum()), int(removed[mine].sum())
        if groups and groups[-1][1] < min_documents:
            first, documents, before = groups.pop()
            groups.append((first, documents + count, before + gone))
        else:
            groups.append((size, count, gone))
    if len(groups) > 1 and groups[-1][1] < min_documents:
        _, count, gone = groups.pop()
        first, documents, before = groups.pop()
        groups.append((first, documents + count, before + gone))
    return [first for first, _, _ in groups], np.array([gone / n for _, n, gone in groups])
