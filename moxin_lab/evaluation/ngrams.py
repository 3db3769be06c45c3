"""Token n-gram language models with interpolated modified Kneser-Ney smoothing: baselines.

    trigram = NGram.fit(train_tokens, order=3, vocab_size=8192, bos_id=1)
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
An n-gram is a pair of two numbers: the rank of its history among all histories of that length, and
its newest token. So any order packs into 63 bits, as long as tokens of training text x vocabulary
does.

Out of scope: data beyond memory. Fitting holds about 40 bytes per training token and order; with a
`device` on a GPU, 200 million tokens at order 5 take seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from moxin_lab.evaluation.bits_per_byte import prefix_token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""KenLM's discounts for data whose counts of counts allow no estimate."""


@dataclass(frozen=True)
class Level:
    """One order of the model, k: its n-grams, and what their histories pass on."""

    keys: Tensor
    """int64 [n], ascending: rank of the history (k - 1 tokens) x `vocab_size` + newest token. A
    rank here is the number of a history one order up."""
    shares: Tensor
    """max(c - D(c), 0) / c(h.) of each n-gram, float64 [n]; 0 for one that is only a history."""
    gammas: Tensor
    """Weight of the next lower order after each history of k - 1 tokens, float64 [ranks of the
    order below]; 1 where nothing follows it."""
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
        bos_id: int,
        offsets: ArrayLike | None = None,
        device: torch.device | str = "cpu",
    ) -> "NGram":
        """Counts n-grams and smooths.

        Args:
            token_lists: tokens of each document, without bos; or, with `offsets`, the tokens of all
                documents in one flat array.
            order: 1 for a unigram model, 3 for a trigram model.
            bos_id: what precedes a document, see `bits_per_byte.prefix_token_id`.
            offsets: int [documents + 1]; document i is `token_lists[offsets[i] : offsets[i + 1]]`.
            device: where to count and, later, to look up.
        Raises ValueError for no tokens, for ids outside the vocabulary, and for n-grams whose pair
        of numbers does not fit in 63 bits.
        """
        ids, ends = _flatten(token_lists, offsets, vocab_size)
        if order < 1 or len(ids) * vocab_size >= 2**63:
            raise ValueError(
                f"order {order} over {vocab_size} tokens: the order must be at least 1, "
                "and tokens of text x vocabulary must be below 2^63"
            )
        if not len(ids):
            raise ValueError("an n-gram model needs at least one training token")
        tokens, scored = _padded(ids, ends, order, bos_id, device)
        # ranks[k]: int32 [positions], the rank of the k tokens that end there among the order's.
        ranks = [torch.zeros_like(tokens, dtype=torch.int32)]
        all_keys = []
        for _ in range(order):
            keys, rank = torch.unique(_keys(ranks[-1], tokens, vocab_size), return_inverse=True)
            all_keys.append(keys)
            ranks.append(rank.int())
        counts = torch.bincount(ranks[order][scored], minlength=len(all_keys[-1]))
        levels = []
        for length in range(order, 0, -1):
            keys = all_keys[length - 1]
            histories = 1 if length == 1 else len(all_keys[length - 2])
            levels.append(_smooth(keys, counts, vocab_size, histories))
            if length > 1:
                # Each different n-gram counts once for what remains without its oldest token.
                shorter = keys.new_zeros(len(keys))
                shorter[ranks[length].long()] = ranks[length - 1].long()
                counts = torch.bincount(shorter[counts > 0], minlength=histories)
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
        device = self.levels[0].keys.device
        tokens, scored = _padded(ids, ends, self.order, self.bos_id, device)
        probabilities = self._probabilities(tokens)[scored].cpu().numpy()
        running = np.concatenate([[0.0], np.cumsum(-np.log(probabilities))])
        losses: NDArray[np.float64] = np.diff(running[ends])
        return losses

    def next_token_probabilities(self, history: Sequence[int]) -> NDArray[np.float64]:
        """Distribution over the vocabulary after bos and `history`: float64 [vocab_size]."""
        padded = [self.bos_id] * self.order + list(history)
        recent = padded[len(padded) - (self.order - 1) :]
        rows = np.tile([*recent, 0], (self.vocab_size, 1))  # [vocab_size, order]
        rows[:, -1] = np.arange(self.vocab_size)
        tokens = torch.as_tensor(rows.reshape(-1), device=self.levels[0].keys.device)
        found = self._probabilities(tokens).view(self.vocab_size, self.order)[:, -1]
        probabilities: NDArray[np.float64] = found.cpu().numpy()
        return probabilities

    def _probabilities(self, tokens: Tensor) -> Tensor:
        """Probability of each token of a stream given the `order - 1` before it; the values of the
        first `order - 1` tokens mean nothing.
        """
        result = torch.full_like(tokens, 1.0 / self.vocab_size, dtype=torch.float64)
        rank = torch.zeros_like(tokens)  # of the history's k - 1 tokens; -1: never seen
        for level in self.levels:
            history = _one_back(rank)
            known = history >= 0
            result = torch.where(known, level.gammas[history.clamp(min=0)] * result, result)
            keys = history * self.vocab_size + tokens
            at = torch.searchsorted(level.keys, keys).clamp(max=len(level.keys) - 1)
            seen = known & (level.keys[at] == keys)
            result += torch.where(seen, level.shares[at], 0.0)
            rank = torch.where(seen, at, -1)
        return result


def fit_orders(
    documents: Sequence[Sequence[int]],
    tokenizer: "PreTrainedTokenizerBase",
    orders: Mapping[str, int],
    *,
    device: torch.device | str = "cpu",
) -> dict[str, NGram]:
    """An n-gram model of each order by name, all on the same documents, which are given without
    what the tokenizer puts before a text.
    """
    sizes = {"vocab_size": len(tokenizer), "bos_id": prefix_token_id(tokenizer)}
    return {
        name: NGram.fit(documents, order=order, device=device, **sizes)
        for name, order in orders.items()
    }


def _smooth(keys: Tensor, counts: Tensor, vocab_size: int, histories: int) -> Level:
    """keys, counts: int64 [n]; a count of 0 is an n-gram that is only a history. histories: number
    of ranks of the order below.
    """
    discounts, estimated = _discounts(counts[counts > 0].cpu().numpy())
    table = torch.tensor([0.0, *discounts], dtype=torch.float64, device=keys.device)
    removed = torch.minimum(table[counts.clamp(max=3)], counts.double())
    history = keys // vocab_size
    zeros = torch.zeros(histories, dtype=torch.float64, device=keys.device)
    totals = zeros.index_add(0, history, counts.double())
    followed = totals > 0
    mass = zeros.index_add(0, history, removed)
    gammas = torch.where(followed, mass / totals.clamp(min=1), 1.0)
    shares = (counts - removed) / totals[history].clamp(min=1)
    return Level(keys, shares, gammas, discounts, estimated)


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


def _padded(
    ids: NDArray[np.int64],
    ends: NDArray[np.int64],
    order: int,
    bos_id: int,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """The documents as one stream, each after `order - 1` times bos: tokens int64 [positions], and
    which of them are of a document, bool [positions].
    """
    before = order - 1
    lengths = np.diff(ends)
    stream = np.full(len(ids) + before * len(lengths), bos_id, dtype=np.int64)
    scored = np.zeros(len(stream), dtype=bool)
    at = np.arange(len(ids)) + before * np.repeat(np.arange(1, len(lengths) + 1), lengths)
    stream[at], scored[at] = ids, True
    return torch.as_tensor(stream, device=device), torch.as_tensor(scored, device=device)


def _one_back(ranks: Tensor) -> Tensor:
    """The value one position earlier; the first has none before it and keeps its own."""
    return torch.cat((ranks[:1], ranks[:-1]))


def _keys(ranks: Tensor, tokens: Tensor, vocab_size: int) -> Tensor:
    """The n-gram that ends at each position: rank of its history and newest token as one number."""
    return _one_back(ranks).long() * vocab_size + tokens
