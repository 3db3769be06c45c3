"""Guarantees of `moxin_lab.lab.smoothing`: the mean lies on the curve, not beside it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.lab.smoothing import centred_mean


@given(
    n=st.integers(1, 80), window=st.integers(1, 30), slope=st.floats(-5, 5), start=st.floats(-9, 9)
)
def test_the_mean_of_a_straight_line_is_the_line(n, window, slope, start):
    line = start + slope * np.arange(n)
    assert np.allclose(centred_mean(line, window), line, atol=1e-6)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60), st.integers(1, 40))
def test_it_is_the_mean_of_the_values_on_both_sides(values, window):
    means = centred_mean(values, window)
    for i, mean in enumerate(means):
        half = min(window // 2, i, len(values) - 1 - i)
        assert mean == pytest.approx(np.mean(values[i - half : i + half + 1]), abs=1e-6)


def test_it_does_not_lie_above_a_falling_loss():
    loss = 8 * np.exp(-np.arange(200) / 40) + np.random.default_rng(0).normal(0, 0.05, 200)
    assert 0.3 < (centred_mean(loss, 15) > loss).mean() < 0.7


@pytest.mark.parametrize(("values", "window"), [([1.0], 0), ([[1.0]], 3)])
def test_what_has_no_mean_is_refused(values, window):
    with pytest.raises(ValueError, match="has no mean"):
        centred_mean(values, window)
