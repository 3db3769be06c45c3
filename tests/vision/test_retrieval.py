"""`moxin_lab.vision.retrieval`: ranks equal a plain sort, ties never help, chance is stated."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.evaluation.statistics import wilson_interval
from moxin_lab.vision import retrieval


@given(st.integers(2, 20), st.integers(0, 9))
def test_the_same_embeddings_find_each_other_first(count, seed):
    vectors = np.random.default_rng(seed).normal(size=(count, 8))
    assert (retrieval.ranks(vectors, 3 * vectors) == 1).all(), "length does not matter"


def test_constant_embeddings_score_nothing():
    rank = retrieval.ranks(np.ones((10, 4)), np.ones((10, 4)))
    assert (rank == 10).all() and retrieval.recall(rank, 5, wilson_interval)["value"] == 0


def test_random_embeddings_score_chance():
    rng = np.random.default_rng(0)
    rank = retrieval.ranks(rng.normal(size=(500, 32)), rng.normal(size=(500, 32)))
    one = retrieval.recall(rank, 50, wilson_interval)
    assert one["chance"] == 0.1 and one["low"] < 0.1 < one["high"]


def test_ranks_equal_a_plain_sort():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(30, 5)), rng.normal(size=(30, 5))
    cosine = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (
        b / np.linalg.norm(b, axis=1, keepdims=True)
    ).T
    expected = [int(np.flatnonzero(np.argsort(-row) == i)[0]) + 1 for i, row in enumerate(cosine)]
    assert retrieval.ranks(a, b).tolist() == expected


def test_other_shapes_and_diverged_embeddings_are_refused():
    with pytest.raises(ValueError, match="one candidate per query"):
        retrieval.ranks(np.ones((3, 2)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="not finite"):
        retrieval.ranks(np.full((3, 2), np.nan), np.ones((3, 2)))


def test_the_table_has_both_directions_of_every_language():
    vectors = np.eye(6)
    table = retrieval.recall_table(
        vectors, {"en": vectors, "ko": np.roll(vectors, 1, axis=0)}, wilson_interval
    )
    assert (
        table.loc[("en", "image to text"), "R@1"] == 1
        and table.loc[("ko", "text to image"), "R@1"] == 0
    )
    assert table.loc[("en", "text to image"), "chance R@5"] == pytest.approx(5 / 6)


def test_a_tower_is_compared_with_pixels_and_with_itself_untrained():
    def row(value, half):
        return {"R@5": value, "R@5 low": value - half, "R@5 high": value + half}

    across = pd.DataFrame(
        {
            "SigLIP": row(0.3, 0.05),
            "DINO": row(0.5, 0.2),
            "pixels": row(0.7, 0.05),
            "SigLIP, untrained": row(0.2, 0.05),
        }
    ).T
    said = retrieval.style_summary(across, ("SigLIP", "DINO"), "pixels")
    assert "SigLIP's recall at 5, 0.30, is below the raw pixels (0.70) and above itself" in said
    assert "DINO's recall at 5, 0.50, is not seen to differ from the raw pixels (0.70)." in said


def test_the_sentence_on_recall_has_its_chance_and_says_why_there_is_none():
    vectors = np.eye(10)
    table = retrieval.recall_table(vectors, {"en": vectors}, wilson_interval)
    said = retrieval.recall_summary(table)
    assert "In `en`, image to text, recall at 5 is 1.000" in said and "2.0 times chance" in said
    assert "without their text encoder" in retrieval.recall_summary(pd.DataFrame())
