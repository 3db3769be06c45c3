"""Scores of `dclm`'s quality classifier on samples of curated text, for notebook 01.

    found = scores.measure(folder, seed=0)      # None where hardly a page has a label by its name

A fastText classifier learns from three quarters of the pages whose names say what they are
(`quality.weak_label`) and scores others: the last quarter, and a sample of those without a label.

Guarantees: no scored page was learnt from; the samples are decided by a hash of the ids, so they
do not depend on the order of documents; memory holds the samples.
Out of scope: which documents a recipe keeps (`steps_across.top_quality`).
"""

import hashlib
import heapq
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moxin_lab.data import quality
from moxin_lab.data.steps import CODE
from moxin_lab.lab import curated

CHARACTERS = 5_000
"""Beginning of a page that is read."""
LABELLED, SCORED = 2000, 3000
"""Pages with each label, and pages without one, at the most."""
LEAST = 60
"""Pages of a kind below which nothing is learnt. Our choice."""
BUCKETS = 200_000
"""Rows for pairs of words: a tenth of fastText's, which is enough for so few pages."""
TOP = 0.1
"""DCLM's share of documents that are kept."""


class Scores(NamedTuple):
    """Of each kind of page its scores, float64; the score that the best `TOP` of the unlabelled
    reach; the chance that a good page scores above a bad one; how many pages were learnt from.
    """

    unlabelled: np.ndarray
    good: np.ndarray
    bad: np.ndarray
    cut: float
    auc: float
    learnt: tuple[int, int]
    """Good and bad ones."""


def measure(folder: Path, seed: int) -> Scores | None:
    """Trains and scores; None where fewer than `LEAST` pages of a kind have a label.

    folder: the artifact `documents`.
    """
    found = _samples(folder)
    # In the order of their hashes, so any part is a sample.
    tested = {label: rows[: len(rows) // 4] for label, rows in found.items()}
    known = {label: rows[len(rows) // 4 :] for label, rows in found.items()}
    if min(len(found[0]), len(found[1])) < LEAST or not found[None]:
        return None
    learnt = [(text, label) for label in (0, 1) for text in known[label]]
    # Mixed, or the classifier would see one kind after the other.
    learnt.sort(key=lambda pair: hashlib.sha256(pair[0].encode()).digest())
    texts, labels = (list(column) for column in zip(*learnt, strict=True))
    score = quality.fasttext(texts, labels, seed, buckets=BUCKETS)
    bad, good, unlabelled = (score(part) for part in (tested[0], tested[1], found[None]))
    truth = [0] * len(bad) + [1] * len(good)
    return Scores(
        unlabelled,
        good,
        bad,
        quality.cut(unlabelled, TOP),
        quality.auc(np.concatenate([bad, good]), truth),
        (len(known[1]), len(known[0])),
    )


def sentence(found: Scores) -> str:
    """What the classifier learnt from and how well it tells kinds apart."""
    good, bad = found.learnt
    return (
        f"Learnt from {good:,} good and {bad:,} bad pages. Of the others a good one scores "
        f"above a bad one in {found.auc:.0%} of the pairs ({len(found.good):,} x "
        f"{len(found.bad):,}); chance is 50 %."
    )


def _samples(folder: Path) -> dict[int | None, list[str]]:
    """Beginnings of training prose by label, in the order of a hash of the ids; of more than are
    wanted the first.
    """
    wanted = {0: LABELLED, 1: LABELLED, None: SCORED}
    found: dict[int | None, list[tuple[bytes, str]]] = {label: [] for label in wanted}
    for shard in curated.shards(folder, "train", ["id", "language", "page", "text"]):
        columns = (shard[name].to_pylist() for name in ("id", "language", "page", "text"))
        for key, language, page, text in zip(*columns, strict=True):
            if language != CODE:
                digest = hashlib.sha256(key.encode()).digest()
                found[quality.weak_label(page)].append((digest, text[:CHARACTERS]))
        found = {label: heapq.nsmallest(wanted[label], rows) for label, rows in found.items()}
    return {label: [text for _, text in rows] for label, rows in found.items()}
