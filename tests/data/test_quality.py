"""Quality: labels by a page's name, classifiers that learn and repeat, what is kept by score."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab.data import quality


@pytest.mark.parametrize(
    ("page", "label"),
    [
        ("django/usr/share/doc/django/html/intro/tutorial01.html", 1),
        ("django/html/faq/models.html", 1),
        ("django/html/releases/1.2.html", 0),
        ("django/html/_modules/django/intro.html", 1),
        ("django/html/_modules/django/db.html", 0),
        ("pandas/html/user_guide/io.html", 1),
        ("pandas/html/whatsnew/v1.0.html", 0),
        ("pandas/html/genindex.html", 0),
        ("qt/qstring-members.html", 0),
        ("openjdk/api/java/util/class-use/List.html", 0),
        ("help/*/gnome-help/about.page", 1),
        ("linux/networking/bonding.html", None),
        ("handbook-like/x.html", None),
        ("", None),
    ],
)
def test_a_part_of_the_name_gives_the_label_the_last_one_first(
    page: str, label: int | None
) -> None:
    assert quality.weak_label(page) == label


def pages(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Lists of names, and sentences that take as many words of the same lengths."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, count).tolist()
    words = [[f"name{n}" for n in range(40)], [f"word{n}" for n in range(40)]]
    texts = [" ".join(draw.choice(words[label], draw.integers(20, 200))) for label in labels]
    return texts, labels


@pytest.mark.parametrize(
    "train", [partial(quality.fasttext, buckets=10_000), quality.pooled], ids=["fasttext", "pooled"]
)
def test_a_classifier_learns_what_words_tell_and_repeats_itself(train) -> None:
    texts, labels = pages(100, 0)
    fresh, truth = pages(60, 1)
    first = train(texts, labels, 0)([*fresh, "", "語 unseen"])
    again = train(texts, labels, 0)([*fresh, "", "語 unseen"])
    assert first.tolist() == again.tolist()
    assert first.shape == (62,)
    assert ((first >= 0) & (first <= 1)).all()
    assert quality.auc(first[:60], truth) > 0.99


def test_the_pooled_score_does_not_depend_on_what_is_scored_beside() -> None:
    texts, labels = pages(32, 0)
    score = quality.pooled(texts, labels, 0)
    texts += ["", "one"]
    alone = np.concatenate([score([text]) for text in texts])
    np.testing.assert_allclose(score(texts), alone, atol=1e-6)


def test_the_pooled_classifier_takes_12_kflop_a_token() -> None:
    assert quality.FLOP_A_TOKEN == 12_288


def test_length_knows_length_and_chance_knows_nothing() -> None:
    texts = ["x" * (10 + n) for n in range(400)]
    labels = [int(n >= 200) for n in range(400)]
    score = quality.length(texts, labels, 0)(["x" * 20, "x" * 400, ""])
    assert score[0] < 0.05 < 0.95 < score[1]
    assert score[2] == score[0]
    assert 0.4 < quality.auc(quality.chance(texts, labels, 0)(texts), labels) < 0.6


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in rows], dtype=float)
    good = [score for score, label in rows if label]
    bad = [score for score, label in rows if not label]
    value = quality.auc(scores, [label for _, label in rows])
    if not good or not bad:
        assert np.isnan(value)
        return
    pairs = [(g > b) + (g == b) / 2 for g in good for b in bad]
    assert value == pytest.approx(np.mean(pairs))


def test_the_best_tenth_is_a_tenth_and_order_does_not_matter() -> None:
    ids = [f"d{n}" for n in range(200)]
    scores = np.arange(200) // 15 / 20  # ties at the cut
    keep = quality.top_share(scores, ids, 0.1)
    assert keep.sum() == 20
    assert scores[keep].min() >= scores[~keep].max()
    back = quality.top_share(scores[::-1], ids[::-1], 0.1)
    assert back[::-1].tolist() == keep.tolist()
    assert quality.cut(scores, 0.1) == scores[keep].min()
    with pytest.raises(ValueError, match="at least one document"):
        quality.cut(np.zeros(0), 0.1)


def test_upsampling_meets_the_budget_rises_with_quality_and_drops_the_worst() -> None:
    draw = np.random.default_rng(0)
    count = 5_000
    scores, sizes = draw.random(count), draw.integers(10, 1_000, count)
    ids = [str(n) for n in range(count)]
    for share in (0.1, 1.0, 2.0):
        times = quality.upsampled(scores, ids, sizes, share * sizes.sum())
        assert abs((times * sizes).sum() - share * sizes.sum()) <= sizes.max()
        assert times.max() <= quality.MAX_REPETITIONS
        by_score = times[np.argsort(scores)]
        assert by_score[: int(0.38 * count)].max() == 0
        means = [part.mean() for part in np.array_split(by_score, 10)]
        assert all(b >= a - 0.05 for a, b in pairwise(means))


def test_a_document_is_repeated_as_often_wherever_it_stands() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.7, 0.8])
    ids, sizes = ["a", "b", "c", "d", "e"], np.array([5, 5, 5, 5, 5])
    times = quality.upsampled(scores, ids, sizes, 10)
    back = quality.upsampled(scores[::-1], ids[::-1], sizes, 10)
    assert back[::-1].tolist() == times.tolist()


@pytest.mark.parametrize("budget", [0, 1e9])
def test_a_budget_that_cannot_be_met_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="is not between 0 and"):
        quality.upsampled(np.array([0.1, 0.2]), ["a", "b"], np.array([1, 1]), budget)
