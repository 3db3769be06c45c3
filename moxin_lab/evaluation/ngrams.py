"""Token n-gram language models with interpolated modified Kneser-Ney smoothing: baselines.

    trigram = NGram.fit(train_tokens, order=3, vocab_size=8192)
    nats = trigram.document_losses(heldout_tokens)  # as bits_per_byte.document_losses gives them

The estimate, for a history h of k - 1 tokens, and h' without its oldest token:

    p_k(w | h) = max(c(hw) - D(c(hw)), 0) / c(h.) + gamma(h) p_{k-1}(w | h'),   p_0 = 1 / V

At the highest order c is the raw count; below, it is the number of different tokens seen before hw.
D is one of three discounts (for counts of 1, of 2, and of 3 or more), estimated from counts of
counts. gamma(h) passes exactly the discounted mass to the next lower order.
Source: Chen and Goodman, An Empirical Study of Smoothing Techniques for Language Modeling (1999),
section 3. The interpolation of unigrams with the uniform distribution and the fallback discounts
are those of KenLM (Heafield et al. 2013).

Guarantees: after any history, a proper distribution over the whole vocabulary (the probabilities
sum to one and none is zero); the same conditions as for the neural model (same tokens, bos before
each document and not scored, no history across documents).
Out of scope: data beyond memory. All n-grams are held as sorted int64 keys; about 100 million
training tokens fit in 8 GiB.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""KenLM's discounts for data whose counts of counts allow no estimate."""


@dataclass(frozen=True)
class Level:
    """One order of the model: its n-grams and their histories as sorted packed keys."""

    keys: NDArray[np.int64]
    """Packed n-grams, ascending: the newest token is the last digit in base `vocab_size`."""
    shares: NDArray[np.float64]
    """max(c - D(c), 0) / c(h.) of each n-gram."""
    histories: NDArray[np.int64]
    """Packed histories (`keys // vocab_size`), ascending and unique."""
    gammas: NDArray[np.float64]
    """Weight of the next lower order after each history."""
    discounts: tuple[float, float, float]
    """Subtracted from counts of 1, 2, and 3 or more."""
    estimated: bool
    """False where counts of counts allowed no estimate and FALLBACK_DISCOUNTS were used."""


@dataclass(frozen=True)
class NGram:
    """A fitted model; see the module's docstring. `NGram.fit` makes one."""

    order: int
    vocab_size: int
    bos_id: int
    levels: tuple[Level, ...]
    """The orders 1, 2, ..., `order`."""

    @staticmethod
    def fit(
        token_lists: Sequence[Sequence[int]] | NDArray[np.integer],
        *,
        order: int,
        vocab_size: int,
        bos_id: int = 1,
        offsets: ArrayLike | None = None,
    ) -> "NGram":
        """Counts n-grams and smooths.

        Args:
            token_lists: tokens of each document, without bos; or, with `offsets`, the tokens of all
                documents in one flat array.
            order: 1 for a unigram model, 3 for a trigram model.
            offsets: int [documents + 1]; document i is `token_lists[offsets[i] : offsets[i + 1]]`.
        Raises ValueError for no tokens, for ids outside the vocabulary, and for an order whose keys
        do not fit in 63 bits.
        """
        if order < 1 or vocab_size**order >= 2**63:
            raise ValueError(
                f"order {order} over {vocab_size} tokens: the order must be at least 1, "
                "and n-grams must pack into 63 bits"
            )
        ids, ends = _flatten(token_lists, offsets, vocab_size)
        if not len(ids):
            raise ValueError("an n-gram model needs at least one training token")
        keys, counts = np.unique(_packed(ids, ends, order, vocab_size, bos_id), return_counts=True)
        levels = [_smooth(keys, counts, vocab_size)]
        for length in range(order - 1, 0, -1):
            # Keys of the order above are unique: this counts the different tokens seen before.
            keys, counts = np.unique(keys % vocab_size**length, return_counts=True)
            levels.append(_smooth(keys, counts, vocab_size))
        return NGram(order, vocab_size, bos_id, tuple(reversed(levels)))

    def document_losses(
        self,
        token_lists: Sequence[Sequence[int]] | NDArray[np.integer],
        *,
        offsets: ArrayLike | None = None,
    ) -> NDArray[np.float64]:
        """Negative log-likelihood of each document in nats: float64 [documents].

        Arguments as in `fit`.
        """
        ids, ends = _flatten(token_lists, offsets, self.vocab_size)
        probabilities = self._probabilities(
            _packed(ids, ends, self.order, self.vocab_size, self.bos_id)
        )
        running = np.concatenate([[0.0], np.cumsum(-np.log(probabilities))])
        return np.diff(running[ends])

    def next_token_probabilities(self, history: Sequence[int]) -> NDArray[np.float64]:
        """Distribution over the vocabulary after bos and `history`: float64 [vocab_size]."""
        padded = [self.bos_id] * (self.order - 1) + list(history)
        packed = 0
        for token in padded[len(padded) - (self.order - 1) :]:
            packed = packed * self.vocab_size + token
        return self._probabilities(
            packed * self.vocab_size + np.arange(self.vocab_size, dtype=np.int64)
        )

    def _probabilities(self, keys: NDArray[np.int64]) -> NDArray[np.float64]:
        """Probability of the newest token of each packed n-gram, given the other tokens."""
        result = np.full(len(keys), 1.0 / self.vocab_size)
        for length, level in enumerate(self.levels, start=1):
            suffix = keys % self.vocab_size**length
            at, known = _find(level.histories, suffix // self.vocab_size)
            result = np.where(known, level.gammas[at] * result, result)
            at, seen = _find(level.keys, suffix)
            result += np.where(seen, level.shares[at], 0.0)
        return result


def _smooth(keys: NDArray[np.int64], counts: NDArray[np.int64], vocab_size: int) -> Level:
    discounts, estimated = _discounts(counts)
    table = np.array([0.0, *discounts])
    removed = np.minimum(table[np.minimum(counts, 3)], counts)
    histories, starts = np.unique(keys // vocab_size, return_index=True)
    totals = np.add.reduceat(counts, starts).astype(np.float64)
    gammas = np.add.reduceat(removed, starts) / totals
    lengths = np.diff(np.append(starts, len(keys)))
    shares = (counts - removed) / np.repeat(totals, lengths)
    return Level(keys, shares, histories, gammas, discounts, estimated)


def _discounts(counts: NDArray[np.int64]) -> tuple[tuple[float, float, float], bool]:
    """Chen and Goodman's three discounts, and whether they could be estimated.

    The fallback is used if a count of counts is missing or a discount is out of range.
    """
    # n[i] is the number of n-grams seen i + 1 times, up to four times.
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(np.float64)
    if (n > 0).all():
        y = n[0] / (n[0] + 2 * n[1])
        first, second, third = (float(c - (c + 1) * y * n[c] / n[c - 1]) for c in (1, 2, 3))
        if 0 < first <= 1 and 0 < second <= 2 and 0 < third <= 3:
            return (first, second, third), True
    return FALLBACK_DISCOUNTS, False


def _flatten(
    token_lists: Sequence[Sequence[int]] | NDArray[np.integer],
    offsets: ArrayLike | None,
    vocab_size: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The tokens of all documents in one array, and the offsets of the documents in it."""
    if offsets is not None:
        ids, ends = np.asarray(token_lists, dtype=np.int64), np.asarray(offsets, dtype=np.int64)
        if len(ends) < 1 or ends[0] != 0 or ends[-1] != len(ids) or (np.diff(ends) < 0).any():
            raise ValueError("offsets must rise from 0 to the number of tokens")
    else:
        ends = np.concatenate([[0], np.cumsum([len(tokens) for tokens in token_lists])]).astype(
            np.int64
        )
        ids = np.concatenate(
            [
                np.zeros(0, dtype=np.int64),
                *(np.asarray(tokens, dtype=np.int64) for tokens in token_lists),
            ]
        )
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(
            f"token ids from {ids.min()} to {ids.max()} do not fit a vocabulary of {vocab_size}"
        )
    return ids, ends


def _packed(
    ids: NDArray[np.int64], ends: NDArray[np.int64], order: int, vocab_size: int, bos_id: int
) -> NDArray[np.int64]:
    """Each token and its `order - 1` predecessors as one integer: int64 [tokens].

    bos replaces predecessors before the beginning of the document.
    """
    position = np.arange(len(ids)) - np.repeat(ends[:-1], np.diff(ends))
    packed = ids.copy()
    for back in range(1, order):
        previous = np.full(len(ids), bos_id, dtype=np.int64)
        previous[back:] = ids[:-back] if back <= len(ids) else ids[:0]
        previous[position < back] = bos_id
        packed += previous * vocab_size**back
    return packed


def _find(
    sorted_keys: NDArray[np.int64], keys: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The position of each key in the sorted keys, and whether it is one of them."""
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return at, sorted_keys[at] == keys
