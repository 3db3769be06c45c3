"""Rehydration: copies are counted for the document that stays, and repeated by FineWeb2's rule."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.data.rehydrate import cluster_sizes, expand, repetitions


def removals(*pairs: tuple[str, str]) -> pa.Table:
    ids, kept = zip(*pairs, strict=True) if pairs else ((), ())
    strings = [pa.array(column, pa.string()) for column in (ids, kept)]
    return pa.table(strings, names=["id", "duplicate_of"])


def test_a_copy_of_a_near_duplicate_counts_for_the_one_that_stays() -> None:
    exact = removals(("b1", "b"), ("b2", "b"), ("c1", "c"))
    near = removals(("b", "a"))
    assert cluster_sizes(["a", "c", "d"], exact, near).tolist() == [4, 2, 1]


def test_a_duplicate_of_an_unknown_document_is_refused() -> None:
    with pytest.raises(ValueError, match="b is a duplicate of x"):
        cluster_sizes(["a"], removals(("b", "x")))


def rates(*groups: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(cluster size, documents, removed documents) of each group as columns."""
    sizes = [size for size, count, _ in groups for _ in range(count)]
    removed = [i < gone for _, count, gone in groups for i in range(count)]
    return np.array(sizes), np.array(removed)


def test_sizes_that_filters_spare_are_repeated_and_others_are_not() -> None:
    # rates .5, .1, .3 and .5; all documents .35
    sizes, removed = rates((1, 100, 50), (2, 100, 10), (3, 100, 30), (9, 100, 50))
    assert repetitions(sizes, removed) == {1: 1, 2: 10, 3: 3, 9: 1}


def test_five_sizes_are_smoothed_as_fineweb2_does() -> None:
    # rates 1, 0, 0, 0, 1: unsmoothed 1 10 10 10 1; the mean of all five in the middle
    sizes, removed = rates((1, 100, 100), (2, 100, 0), (3, 100, 0), (4, 100, 0), (5, 100, 100))
    assert repetitions(sizes, removed) == {1: 1, 2: 10, 3: 6, 4: 10, 5: 1}


def test_rare_sizes_are_joined_with_their_neighbours() -> None:
    sizes, removed = rates((1, 200, 100), (2, 60, 0), (3, 60, 0), (70, 3, 3))
    assert repetitions(sizes, removed) == {1: 1, 2: 10}


def test_nothing_is_repeated_where_all_sizes_are_removed_alike() -> None:
    sizes, removed = rates((1, 100, 10), (2, 100, 10))
    assert repetitions(sizes, removed) == {1: 1, 2: 1}
    assert repetitions(np.zeros(0, np.int64), np.zeros(0, bool)) == {}


def test_rows_are_repeated_in_their_order() -> None:
    documents = pa.table({"id": ["a", "b", "c", "d"]})
    table = {1: 1, 2: 3, 5: 2}
    repeated = expand(documents, np.array([1, 2, 4, 900]), table)
    assert repeated["id"].to_pylist() == [*"abbbcccdd"]
    assert expand(documents.slice(0, 0), np.zeros(0, np.int64), {}).num_rows == 0


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=300))
def test_repetitions_lie_between_one_and_the_largest(rows: list[tuple[int, bool]]) -> None:
    sizes = np.array([size for size, _ in rows], dtype=np.int64)
    removed = np.array([gone for _, gone in rows], dtype=bool)
    table = repetitions(sizes, removed, min_documents=5)
    assert all(1 <= count <= 10 for count in table.values())
    assert not len(rows) or min(table) == sizes.min()
