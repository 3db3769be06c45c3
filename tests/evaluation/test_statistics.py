"""Intervals: correct on cases with a known answer, and the same for the same seed."""

import numpy as np
import pytest
import scipy.stats

from moxin_lab.data import measures
from moxin_lab.evaluation.statistics import (
    bootstrap_interval,
    paired_bootstrap,
    paired_proportions,
    seed_interval,
    wilson_interval,
)


def test_bootstrap_agrees_with_the_normal_interval_of_a_mean():
    values = np.random.default_rng(0).normal(5, 2, size=400)
    estimate = bootstrap_interval(values, resamples=5000)
    half = 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert (estimate.low, estimate.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.03
    )


def test_bootstrap_covers_the_true_value_as_often_as_its_level_says():
    rng = np.random.default_rng(1)
    hits = 0
    for i in range(200):
        weights = rng.integers(50, 500, size=60)
        values = weights * rng.normal(2.0, 0.5, size=60)
        estimate = bootstrap_interval(values, weights, resamples=400, seed=i)
        hits += estimate.low <= 2.0 <= estimate.high
    assert 0.88 <= hits / 200 <= 0.99


def test_intervals_are_the_same_for_one_seed_and_differ_between_seeds():
    values = np.random.default_rng(2).random(50)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_pairing_removes_shared_difficulty():
    rng = np.random.default_rng(3)
    difficulty = rng.normal(0, 10, size=100)
    a, b = difficulty + rng.normal(0.5, 0.1, size=100), difficulty
    paired = paired_bootstrap(a, b)
    assert 0.4 < paired.low < paired.value < paired.high < 0.6
    alone = bootstrap_interval(a)
    assert alone.high - alone.low > 10 * (paired.high - paired.low)


def test_wilson_equals_published_values():
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3 (score without
    # continuity correction)
    assert wilson_interval(81, 263)[1:] == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148)[1:] == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20)[1:] == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29)[1:] == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_where_none_or_all_succeed_wilsons_interval_ends_at_the_share_itself():
    for trials in range(1, 200):
        assert wilson_interval(0, trials).low == 0.0
        assert wilson_interval(trials, trials).high == 1.0
        assert measures.wilson(0, trials)[0] == 0.0
        assert measures.wilson(trials, trials)[1] == 1.0


def test_a_paired_interval_of_proportions_holds_the_truth_as_often_as_it_says():
    """By enumeration, not by drawing: every outcome of n pairs with its probability."""
    for n, gained, lost in ((20, 0.1, 0.1), (24, 0.05, 0.25), (40, 0.02, 0.02)):
        held = 0.0
        for up in range(n + 1):
            for down in range(n + 1 - up):
                same = n - up - down
                chance = scipy.stats.multinomial.pmf(
                    [up, down, same], n, [gained, lost, 1 - gained - lost]
                )
                first = [1] * up + [0] * down + [1] * same
                second = [0] * up + [1] * down + [1] * same
                found = paired_proportions(first, second)
                held += chance * (found.low <= gained - lost <= found.high)
        assert 0.94 <= held <= 1, (n, gained, lost, held)


def test_a_paired_interval_of_proportions_is_that_of_its_source_and_never_empty():
    # (7 + 1) / 22 and (2 + 1) / 22, by hand
    first, second = [1] * 7 + [0] * 2 + [1] * 11, [0] * 7 + [1] * 2 + [1] * 11
    found = paired_proportions(first, second)
    half = 1.959964 * np.sqrt((11 / 22 - (5 / 22) ** 2) / 22)
    assert found == pytest.approx((5 / 20, 5 / 22 - half, 5 / 22 + half), abs=1e-6)
    swapped = paired_proportions(second, first)
    assert swapped == pytest.approx((-found.value, -found.high, -found.low))
    equal = paired_proportions([1, 0, 1], [1, 0, 1])
    assert equal.low < equal.value == 0 < equal.high
    wide = paired_proportions(first, second, level=0.999)
    assert wide.low < found.low and wide.high > found.high
    for a, b in (([], []), ([1], [1, 0]), ([0.5], [1]), ([float("nan")], [1])):
        with pytest.raises(ValueError, match=r"same items|rightly"):
            paired_proportions(a, b)


def test_a_level_corrected_for_many_comparisons_has_draws_beyond_its_ends():
    values = np.random.default_rng(0).normal(size=30)
    level = 1 - 0.05 / 100  # by default 2,000 draws would leave half a draw beyond each end
    few = bootstrap_interval(values, level=level, resamples=2000)
    default = bootstrap_interval(values, level=level)
    many = bootstrap_interval(values, level=level, resamples=400_000)
    assert abs(default.high - many.high) < abs(few.high - many.high)
    assert bootstrap_interval(values) == bootstrap_interval(values, resamples=2000)


@pytest.mark.parametrize(
    ("values", "weights"), [([], None), ([1.0], [0]), ([1.0, 2.0], [1.0]), ([[1.0]], None)]
)
def test_impossible_input_is_refused(values, weights):
    with pytest.raises(ValueError, match=r"item|weight"):
        bootstrap_interval(values, weights)


def test_impossible_counts_are_refused():
    for successes, trials in ((1, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match="proportion"):
            wilson_interval(successes, trials)


def test_seed_interval_is_scipys_student_interval_and_one_seed_has_none():
    values = [0.71, 0.78, 0.74]
    estimate = seed_interval(values)
    sem = np.std(values, ddof=1) / np.sqrt(3)
    assert estimate[1:] == pytest.approx(
        scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=sem)
    )
    assert (
        estimate.value == pytest.approx(np.mean(values))
        and estimate.low < min(values) < max(values) < estimate.high
    )
    alone = seed_interval([0.5])
    assert alone.value == 0.5 and np.isnan(alone.low) and np.isnan(alone.high)
    for invalid in ([], [0.1, np.nan], [[0.1, 0.2]]):
        with pytest.raises(ValueError, match="one finite number per seed"):
            seed_interval(invalid)
