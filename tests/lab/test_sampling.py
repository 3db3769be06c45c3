"""A byte limit shared out among sources: exact, the same in any order, and no source vanishes."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab.lab import sampling

DOCUMENTS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5000)), max_size=40)


@given(DOCUMENTS, st.integers(1600, 60_000), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_the_limit_is_kept_to_a_byte_per_source_and_no_source_with_text_vanishes(
    documents, limit, seed
):
    sources, sizes = [source for source, _ in documents], [size for _, size in documents]
    keys = [f"d{index}" for index in range(len(documents))]
    chosen = sampling.spread(keys, sources, sizes, limit, seed=seed)
    taken = sum(size for _, size in chosen)
    assert min(sum(sizes), limit) - len(set(sources)) <= taken <= min(sum(sizes), limit)
    assert len({index for index, _ in chosen}) == len(chosen)
    with_text = {source for source, size in documents if size}
    assert {sources[index] for index, _ in chosen} == with_text
    for source in with_text:
        cut = [sizes[index] - size for index, size in chosen if sources[index] == source]
        assert sum(part > 0 for part in cut) <= 1 and min(cut) >= 0


@given(DOCUMENTS, st.integers(1, 60_000), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_documents_does_not_matter(documents, limit, generator: random.Random):
    named = [(f"d{index}", source, size) for index, (source, size) in enumerate(documents)]
    shuffled = list(named)
    generator.shuffle(shuffled)
    first, second = (
        {(rows[index][0], size) for index, size in sampling.spread(*_columns(rows), limit, seed=1)}
        for rows in (named, shuffled)
    )
    # a source's share is rounded down whatever the order of the sources
    assert first == second


def _columns(rows):
    return [[row[column] for row in rows] for column in range(3)]


def test_another_seed_chooses_other_documents():
    keys = [f"d{index}" for index in range(100)]
    one, two = (sampling.spread(keys, ["a"] * 100, [10] * 100, 100, seed=seed) for seed in (0, 1))
    assert {index for index, _ in one} != {index for index, _ in two}


@given(st.text(max_size=60), st.integers(1, 80))
@settings(max_examples=200, deadline=None)
def test_a_beginning_is_the_longest_that_fits(text, size):
    beginning = sampling.beginning(text, size)
    assert text.startswith(beginning) and len(beginning.encode()) <= size
    assert beginning == text or len(text[: len(beginning) + 1].encode()) > size


def test_a_limit_without_room_and_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="limit is 0 bytes"):
        sampling.spread(["a"], ["s"], [3], 0)
    with pytest.raises(ValueError, match="1 keys, 2 sources and 1 sizes"):
        sampling.spread(["a"], ["s", "t"], [3], 5)
