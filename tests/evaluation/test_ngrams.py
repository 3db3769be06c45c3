"""N-gram baselines: proper distributions, equal to a second implementation with dictionaries."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab.evaluation.ngrams import FALLBACK_DISCOUNTS, NGram, fit_orders
from tests.posttraining.examples import make_tokenizer

BOS = 1


def zipf_documents(seed, vocab_size=40, documents=60, length=50):
    """Second-order text: half the tokens follow from the two before, the others are Zipf."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, vocab_size - 3)
    shares /= shares.sum()
    result = []
    for _ in range(documents):
        tokens = [4, 5]
        for _ in range(rng.integers(1, length)):
            follows = 4 + (7 * tokens[-1] + 3 * tokens[-2]) % (vocab_size - 4)
            tokens.append(
                int(follows if rng.random() < 0.5 else 4 + rng.choice(vocab_size - 4, p=shares))
            )
        result.append(tokens)
    return result


class DictionaryKneserNey:
    """Interpolated modified Kneser-Ney, written straight from the formula."""

    def __init__(self, documents, order, vocab_size):
        self.order, self.vocab_size = order, vocab_size
        self.counts = {
            order: Counter(gram for tokens in documents for gram in self.grams(tokens, order))
        }
        for k in range(order - 1, 0, -1):
            left = defaultdict(set)
            for gram in self.counts[k + 1]:
                left[gram[1:]].add(gram[0])
            self.counts[k] = Counter({gram: len(seen) for gram, seen in left.items()})
        self.discounts = {}
        for k, counts in self.counts.items():
            n = [sum(c == i for c in counts.values()) for i in range(5)]
            if all(n[1:]):
                y = n[1] / (n[1] + 2 * n[2])
                three = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
                if all(0 < d <= c for c, d in enumerate(three, 1)):
                    self.discounts[k] = three
            self.discounts.setdefault(k, FALLBACK_DISCOUNTS)

    @staticmethod
    def grams(tokens, order):
        padded = [BOS] * (order - 1) + tokens
        return [tuple(padded[i : i + order]) for i in range(len(tokens))]

    def probability(self, gram):
        if not gram:
            return 1 / self.vocab_size
        counts, discounts = self.counts[len(gram)], self.discounts[len(gram)]
        lower = self.probability(gram[1:])
        after = [c for other, c in counts.items() if other[:-1] == gram[:-1]]
        if not after:
            return lower
        discount = lambda c: min(c, discounts[min(c, 3) - 1]) if c else 0.0  # noqa: E731
        gamma = sum(discount(c) for c in after) / sum(after)
        return (counts[gram] - discount(counts[gram])) / sum(after) + gamma * lower

    def loss(self, tokens):
        return -sum(math.log(self.probability(gram)) for gram in self.grams(tokens, self.order))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_losses_equal_the_dictionary_implementation(order, seed):
    train, heldout = zipf_documents(seed), zipf_documents(seed + 100, documents=8)
    model = NGram.fit(train, order=order, vocab_size=50, bos_id=1)
    reference = DictionaryKneserNey(train, order, 50)
    assert order == 1 or model.levels[-1].estimated, (
        "the data should exercise the estimated discounts"
    )
    np.testing.assert_allclose(
        model.document_losses(heldout), [reference.loss(t) for t in heldout], rtol=1e-10
    )


documents = st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=8).filter(
    lambda d: any(d)
)


@given(train=documents, history=st.lists(st.integers(0, 9), max_size=4), order=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_probabilities_sum_to_one_after_any_history(train, history, order):
    probabilities = NGram.fit(train, order=order, vocab_size=10, bos_id=1).next_token_probabilities(
        history
    )
    assert probabilities.min() > 0
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)


@given(
    train=documents,
    heldout=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    order=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_a_document_loss_is_the_sum_over_next_token_probabilities(train, heldout, order):
    model = NGram.fit(train, order=order, vocab_size=10, bos_id=1)
    chain = -sum(
        math.log(model.next_token_probabilities(heldout[:i])[token])
        for i, token in enumerate(heldout)
    )
    assert model.document_losses([heldout])[0] == pytest.approx(chain, rel=1e-9)


def test_order_five_packs_over_a_vocabulary_of_32_000():
    """32,000^5 does not fit in 63 bits."""
    train, heldout = zipf_documents(9), zipf_documents(10, documents=6)
    train, heldout = ([[777 * t for t in tokens] for tokens in part] for part in (train, heldout))
    model = NGram.fit(train, order=5, vocab_size=32000, bos_id=1)
    reference = DictionaryKneserNey(train, 5, 32000)
    np.testing.assert_allclose(
        model.document_losses(heldout), [reference.loss(t) for t in heldout], rtol=1e-10
    )


def test_history_does_not_cross_documents():
    train, heldout = zipf_documents(3), zipf_documents(4, documents=6)
    model = NGram.fit(train, order=3, vocab_size=50, bos_id=1)
    together = model.document_losses(heldout)
    np.testing.assert_allclose(together, [model.document_losses([tokens])[0] for tokens in heldout])
    shuffled = NGram.fit(train[::-1], order=3, vocab_size=50, bos_id=1)
    np.testing.assert_array_equal(shuffled.document_losses(heldout), together)


def test_flat_ids_with_offsets_equal_token_lists():
    train, heldout = zipf_documents(5), [[], *zipf_documents(6, documents=3), []]
    flat = np.concatenate([np.array(tokens) for tokens in train])
    offsets = np.cumsum([0] + [len(tokens) for tokens in train])
    by_lists = NGram.fit(train, order=2, vocab_size=50, bos_id=1).document_losses(heldout)
    by_offsets = NGram.fit(flat, order=2, vocab_size=50, bos_id=1, offsets=offsets).document_losses(
        heldout
    )
    np.testing.assert_array_equal(by_lists, by_offsets)
    assert by_lists[0] == by_lists[-1] == 0.0


def test_a_trigram_beats_a_unigram_where_order_matters_and_both_beat_uniform():
    train, heldout = zipf_documents(7, documents=300), zipf_documents(8)
    tokens = sum(map(len, heldout))
    unigram, trigram = (
        NGram.fit(train, order=k, vocab_size=50, bos_id=1).document_losses(heldout).sum() / tokens
        for k in (1, 3)
    )
    assert trigram < unigram - 0.3
    assert unigram < math.log(50)


def test_without_counts_of_counts_discounts_are_the_fallback_and_marked_as_such():
    model = NGram.fit([[4, 5, 6]], order=1, vocab_size=10, bos_id=1)
    assert model.levels[0].discounts == FALLBACK_DISCOUNTS
    assert not model.levels[0].estimated


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ([[]], {}, "at least one training token"),
        ([[3, 50]], {}, "do not fit a vocabulary of 50"),
        ([[3]], {"order": 0}, "order"),
        ([[3, 4]], {"vocab_size": 2**62}, "63"),
        (np.array([3, 4]), {"offsets": [0, 1]}, "offsets"),
    ],
)
def test_bad_input_is_refused(documents, options, message):
    with pytest.raises(ValueError, match=message):
        NGram.fit(documents, **{"order": 2, "vocab_size": 50, "bos_id": 1, **options})


def test_what_precedes_a_document_is_the_tokenizers_word():
    tokenizer = make_tokenizer(template=False)
    documents = [tokenizer.encode(text, add_special_tokens=False) for text in ("aab", "aac", "aad")]
    fitted = fit_orders(documents, tokenizer, {"bigram": 2})["bigram"]
    assert fitted.bos_id == tokenizer.bos_token_id == 1
    tokenizer.bos_token = None
    fitted = fit_orders(documents, tokenizer, {"bigram": 2})["bigram"]
    assert fitted.bos_id == tokenizer.eos_token_id == 2
    expected = NGram.fit(documents, order=2, vocab_size=len(tokenizer), bos_id=2)
    np.testing.assert_array_equal(
        fitted.document_losses(documents), expected.document_losses(documents)
    )
    with pytest.raises(TypeError, match="bos_id"):
        NGram.fit(documents, order=2, vocab_size=len(tokenizer))
