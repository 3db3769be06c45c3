"""Hybrid retrieval: BM25 and vectors, each with its candidates, joined by a weighted sum.

    for hit in search(index, "How do I insert a table?", count=5): hit.found.text
    is_weak(index, question, hits)         # nothing in the index speaks of it

Scores of the two halves have different units, so each is divided by its best one in the question's
candidates (BM25), or scaled from the candidates' worst to best (cosines); the sum weighs the dense
half by DENSE_WEIGHT (convex combination, Bruch et al. 2023, arXiv 2210.11934).

Guarantees: the order of equal scores is fixed; without vectors the result is BM25's own order.
Out of scope: reading the passages (`answers.py`).
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from moxin_lab.serving.index import Found, Index
from moxin_lab.serving.terms import question_terms

Mode = Literal["hybrid", "lexical", "dense"]
CANDIDATES = 100
"""Passages that each half proposes."""
DENSE_WEIGHT = {"e5": 0.2, "minilm": 0.2, "model": 0.1}
"""Weight of the dense half by encoder, chosen on validation questions (docs/knowledge-base.md);
minilm's was not measured and is e5's.
"""
COVERAGE = 0.5
"""Share of a question's weight in terms that the best passages must hold. Our choice: headings as
questions choose 0.9, which would refuse questions in other words than the page's.
"""
NEVER = 2.0
COSINE = {"e5": 0.88, "minilm": NEVER, "model": NEVER}
"""Cosine from which a passage is close enough without shared terms, chosen as the weights."""


class Hit(NamedTuple):
    """A passage found. score: of the fusion, 0 to 1; bm25, cosine: of the halves that found it."""

    found: Found
    score: float
    bm25: float | None
    cosine: float | None


def search(
    index: Index,
    question: str,
    count: int = 5,
    *,
    mode: Mode | None = None,
    weight: float | None = None,
) -> list[Hit]:
    """The best passages for a question, best first.

    mode: default hybrid, or lexical for an index without vectors. weight: of the dense half, 0 to
    1, default DENSE_WEIGHT. Raises ValueError for another weight.
    """
    mode = mode or ("hybrid" if index.has_vectors else "lexical")
    if weight is None:
        weight = DENSE_WEIGHT.get(kind(index), 0.0)
    if not 0 <= weight <= 1:
        raise ValueError(f"the weight of the dense half is {weight}: it is 0 to 1")
    lexical = dict(index.lexical(question, CANDIDATES)) if mode != "dense" else {}
    dense = dict(index.dense(question, CANDIDATES)) if mode != "lexical" else {}
    scores = fuse(lexical, dense, {"lexical": 0.0, "dense": 1.0}.get(mode, weight))
    order = sorted(scores, key=lambda passage: (-scores[passage], passage))[:count]
    return [
        Hit(index.passage(number), scores[number], lexical.get(number), dense.get(number))
        for number in order
    ]


def fuse(lexical: dict[int, float], dense: dict[int, float], weight: float) -> dict[int, float]:
    """Scores of all candidates, 0 to 1: `weight` of the dense half, the rest of the lexical one."""
    scores: dict[int, float] = {}
    if lexical and weight < 1:
        best = max(lexical.values())
        for passage, score in lexical.items():
            scores[passage] = (1 - weight) * (score / best if best > 0 else 1.0)
    if dense and weight > 0:
        low, high = min(dense.values()), max(dense.values())
        for passage, cosine in dense.items():
            scaled = (cosine - low) / (high - low) if high > low else 1.0
            scores[passage] = scores.get(passage, 0.0) + weight * scaled
    return scores


def documents(hits: Sequence[Hit], count: int) -> list[str]:
    """The first `count` documents of the hits, each once."""
    return list(dict.fromkeys(hit.found.document for hit in hits))[:count]


def is_weak(
    index: Index,
    question: str,
    hits: Sequence[Hit],
    *,
    coverage_needed: float = COVERAGE,
    cosine_needed: float | None = None,
) -> bool:
    """Whether nothing found speaks of the question: no hit holds `coverage_needed` of the weight of
    its terms, and none has a cosine of `cosine_needed`.
    """
    needed = COSINE.get(kind(index), NEVER) if cosine_needed is None else cosine_needed
    if any(hit.cosine is not None and hit.cosine >= needed for hit in hits):
        return False
    return coverage(index, question, hits) < coverage_needed


def coverage(index: Index, question: str, hits: Sequence[Hit]) -> float:
    """The largest share of the question's terms that one hit holds, 0 to 1, each term weighted by
    its inverse document frequency (that of BM25); a term that no passage holds counts most.
    """
    words = question_terms(question)
    if not words or not hits:
        return 0.0
    counts = index.frequencies(words)
    weights = {
        word: math.log(1 + (index.size - held + 0.5) / (held + 0.5))
        for word, held in counts.items()
    }
    total = sum(weights.values())
    return max(
        sum(weights[word] for word in index.holding(hit.found.passage, words)) / total
        for hit in hits
    )


def kind(index: Index) -> str:
    """The kind of the index's encoder: e5, minilm, model or none."""
    return index.facts["encoder"].partition(":")[0]
