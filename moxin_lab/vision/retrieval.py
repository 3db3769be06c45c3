"""Retrieval between pictures and texts, and between two styles of drawing, by cosine similarity.

Guarantees: the only correct answer to query i is candidate i; ties count against the query, so that
constant embeddings score 0; chance is stated with every recall.
Out of scope: computing embeddings.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

RECALL_AT = (1, 5)

Interval = Callable[[int, int], tuple[float, float, float]]
"""(hits, queries) to (share, low, high): `evaluation.statistics.wilson_interval`."""


def ranks(queries: ArrayLike, candidates: ArrayLike) -> NDArray[np.int64]:
    """Rank of candidate i for query i, int64 [n], from 1, by cosine similarity; candidates that are
    equally similar count as nearer.

    queries, candidates: `[n, width]`, finite. Raises ValueError for other shapes or values.
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (queries, candidates))
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(
            f"retrieval needs one candidate per query: {a.shape} queries, {b.shape} candidates"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(
            "an embedding is not finite: the training diverged, or the input was not normalised"
        )
    a, b = (
        values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        for values in (a, b)
    )
    similarity = np.round(a @ b.T, 9)  # [queries, candidates]; rounded, so that ties are equal
    return (similarity >= np.diag(similarity)[:, None]).sum(axis=1)


def recall(rank: NDArray[np.int64], at: int, interval: Interval) -> dict[str, float]:
    """Share of queries whose answer is among the first `at`, its interval, and chance. rank: of
    `ranks`.
    """
    value, low, high = interval(int((rank <= at).sum()), len(rank))
    return {"value": value, "low": low, "high": high, "chance": min(1.0, at / len(rank))}


def recall_table(
    pictures: ArrayLike,
    texts: Mapping[str, ArrayLike],
    interval: Interval,
    at: Sequence[int] = RECALL_AT,
) -> pd.DataFrame:
    """Recall between pictures and texts: one row per language and direction, columns recall,
    interval and chance.

    pictures: `[n, width]`. texts: language to `[n, width]`.
    """
    rows = {}
    for language, embedded in texts.items():
        rows[(language, "image to text")] = _row(ranks(pictures, embedded), interval, at)
        rows[(language, "text to image")] = _row(ranks(embedded, pictures), interval, at)
    frame = pd.DataFrame(rows).T
    frame.index.names = ["language", "direction"]
    return frame


def style_recall_table(
    features: Mapping[str, Mapping[str, ArrayLike]],
    interval: Interval,
    at: Sequence[int] = RECALL_AT,
) -> pd.DataFrame:
    """Recall of Twitter's drawings among Google's drawings of the same concepts: one row per kind
    of features.

    features: kind to style to `[n, width]`.
    """
    rows = {
        name: _row(ranks(styles["twitter"], styles["google"]), interval, at)
        for name, styles in features.items()
    }
    return pd.DataFrame(rows).T.rename_axis("features")


def recall_summary(recall: pd.DataFrame, at: int = 5) -> str:
    """A sentence on the first row of `recall_table`, or on why there is none."""
    if not len(recall):
        return "Published towers come without their text encoder: nothing is matched with words."
    (language, direction), row = recall.index[0], recall.iloc[0]
    value, chance = row[f"R@{at}"], row[f"chance R@{at}"]
    return (
        f"In `{language}`, {direction}, recall at {at} is {value:.3f} ({row[f'R@{at} low']:.3f} to "
        f"{row[f'R@{at} high']:.3f}), {value / chance:.1f} times chance."
    )


def style_summary(across: pd.DataFrame, towers: Sequence[str], pixels: str, at: int = 5) -> str:
    """Sentences on `style_recall_table`: whether each tower is above raw pixels, and above itself
    untrained (the row `<tower>, untrained`, where there is one).

    pixels: the row of the raw pixels. A tower is above or below another row if the interval of its
    recall at `at` excludes that row's value.
    """

    def against(tower: str, other: str) -> str:
        row, value = across.loc[tower], across.loc[other, f"R@{at}"]
        low, high = row[f"R@{at} low"], row[f"R@{at} high"]
        word = "above" if low > value else "below" if high < value else "not seen to differ from"
        return f"{word} {'the raw pixels' if other == pixels else 'itself untrained'} ({value:.2f})"

    sentences = []
    for tower in towers:
        others = [name for name in (pixels, f"{tower}, untrained") if name in across.index]
        said = " and ".join(against(tower, other) for other in others)
        sentences.append(
            f"{tower}'s recall at {at}, {across.loc[tower, f'R@{at}']:.2f}, is {said}."
        )
    return " ".join(sentences)


def _row(rank: NDArray[np.int64], interval: Interval, at: Sequence[int]) -> dict[str, float]:
    row: dict[str, float] = {}
    for k in at:
        result = recall(rank, k, interval)
        row[f"R@{k}"] = result["value"]
        row |= {f"R@{k} low": result["low"], f"R@{k} high": result["high"]}
        row[f"chance R@{k}"] = result["chance"]
    return row
