"""Retrieval between pictures and texts, and between two styles of drawing, by cosine similarity.

Guarantees: query i's only right answer is item i; ties count against the query, so that constant
embeddings score nothing; chance stands beside every recall. Does not: embed anything.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

RECALL_AT = (1, 5)


def ranks(queries: ArrayLike, candidates: ArrayLike) -> NDArray[np.int64]:
    """Rank of candidate i for query i, from 1, by cosine similarity; what is as near as it counts
    as nearer.

    queries, candidates: `[n, width]`, finite. Raises ValueError for other shapes or values.
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (queries, candidates))
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(
            f"retrieval needs one candidate a query: {a.shape} queries, {b.shape} candidates"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(
            "an embedding is not finite: the training diverged, or the input was not normalised"
        )
    a, b = (
        values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        for values in (a, b)
    )
    similarity = np.round(a @ b.T, 9)
    return (similarity >= np.diag(similarity)[:, None]).sum(axis=1)


def recall(
    found: NDArray[np.int64], at: int, interval: Callable[[int, int], Any]
) -> dict[str, float]:
    """Share of queries whose answer is among the first `at`, its interval, and chance."""
    value, low, high = interval(int((found <= at).sum()), len(found))
    return {"value": value, "low": low, "high": high, "chance": min(1.0, at / len(found))}


def table(
    pictures: ArrayLike,
    texts: Mapping[str, ArrayLike],
    interval: Callable[[int, int], Any],
    at: Sequence[int] = RECALL_AT,
) -> pd.DataFrame:
    """Recall in both directions for texts in each language: rows (language, direction), columns
    recall, interval and chance.
    """
    rows = {}
    for language, embedded in texts.items():
        rows[(language, "image to text")] = _row(ranks(pictures, embedded), interval, at)
        rows[(language, "text to image")] = _row(ranks(embedded, pictures), interval, at)
    frame = pd.DataFrame(rows).T
    frame.index.names = ["language", "direction"]
    return frame


def across_styles(
    features: Mapping[str, Mapping[str, ArrayLike]],
    interval: Callable[[int, int], Any],
    at: Sequence[int] = RECALL_AT,
) -> pd.DataFrame:
    """Twitter's drawing i looked for among Google's, by each kind of features (name to style to
    `[n, width]`): a row a kind.
    """
    rows = {
        name: _row(ranks(styles["twitter"], styles["google"]), interval, at)
        for name, styles in features.items()
    }
    return pd.DataFrame(rows).T.rename_axis("features")


def _row(
    found: NDArray[np.int64], interval: Callable[[int, int], Any], at: Sequence[int]
) -> dict[str, float]:
    row: dict[str, float] = {}
    for k in at:
        one = recall(found, k, interval)
        row |= {f"R@{k}": one["value"], f"R@{k} low": one["low"], f"R@{k} high": one["high"]}
        row[f"chance R@{k}"] = one["chance"]
    return row
