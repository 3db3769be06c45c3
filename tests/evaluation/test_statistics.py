"""Intervals: correct on cases with a known answer, and the same for the same seed."""

import numpy as np
import pytest
import scipy.stats

from moxin_lab.evaluation.statistics import (
    bootstrap_interval,
    paired_bootstrap,
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
