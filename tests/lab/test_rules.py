"""Guarantees of `moxin_lab.lab.rules`: an interval has one verdict, and "no difference seen" is not
"reproduced".
"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.lab import rules
from moxin_lab.lab.claims import VERDICTS

NUMBERS = st.floats(-2, 2, allow_nan=False)
MARGINS = st.floats(1e-6, 1)


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (0.00, -0.01, 0.01, "reproduced"),
        (0.01, 0.005, 0.015, "reproduced"),  # a difference is seen, and it is inside the margin
        (0.00, -0.03, 0.03, "no difference seen"),
        (0.087, -0.003, 0.178, "undecided"),  # zero is inside, but the value is not near it
        (0.019, 0.001, 0.04, "undecided"),  # a difference is seen; its size is open
        (0.05, 0.03, 0.07, "contradicted"),
        (-0.05, -0.07, -0.03, "contradicted"),
    ],
)
def test_a_null_claim_is_reproduced_only_inside_its_margin(value, low, high, verdict):
    assert rules.judge_null(value, low, high, 0.02) == verdict


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (-0.05, -0.07, -0.03, "reproduced"),
        (-0.05, -0.15, 0.01, "reproduced"),
        (-0.017, -0.084, 0.050, "no difference seen"),
        (0.087, -0.003, 0.178, "undecided"),
        (0.05, 0.03, 0.07, "contradicted"),
    ],
)
def test_a_claim_that_a_rival_adds_nothing_is_not_refuted_by_a_worse_rival(
    value, low, high, verdict
):
    assert rules.judge_null(value, low, high, 0.02, one_sided=True) == verdict


def test_a_gain_whose_interval_contains_zero_is_no_difference_seen():
    assert rules.judge_gain(0.1, 0.2) == "reproduced"
    assert rules.judge_gain(-0.2, -0.1) == "contradicted"
    assert rules.judge_gain(-0.1, 0.2) == rules.judge_gain(0.0, 0.2) == "no difference seen"


@given(
    value=NUMBERS, below=st.floats(0, 1), above=st.floats(0, 1), margin=MARGINS, side=st.booleans()
)
def test_every_interval_has_a_verdict_and_one_that_contains_zero_is_no_contradiction(
    value, below, above, margin, side
):
    low, high = value - below, value + above
    verdict = rules.judge_null(value, low, high, margin, one_sided=side)
    assert verdict in VERDICTS and verdict != "not attempted"
    if verdict == "reproduced":
        assert high <= margin and (side or low >= -margin)
    if low <= 0 <= high:
        assert verdict != "contradicted"


@given(value=NUMBERS, half=st.floats(0, 1), wider=st.floats(0, 1), margin=MARGINS)
def test_a_wider_interval_is_never_reproduced_where_a_narrower_is_not(value, half, wider, margin):
    narrow = rules.judge_null(value, value - half, value + half, margin)
    wide = rules.judge_null(value, value - half - wider, value + half + wider, margin)
    assert wide != "reproduced" or narrow == "reproduced"
    assert wide != "contradicted" or narrow == "contradicted"


def test_a_claim_of_several_parts_has_the_verdict_of_its_least_favourable_part():
    assert rules.all_of(["reproduced", "reproduced"]) == "reproduced"
    assert rules.all_of(["reproduced", "no difference seen"]) == "no difference seen"
    assert rules.all_of(["undecided", "no difference seen"]) == "undecided"
    assert rules.all_of(["reproduced", "contradicted", "undecided"]) == "contradicted"
    assert set(rules.ORDER) == set(VERDICTS)


@pytest.mark.parametrize(
    ("value", "low", "high"), [(math.nan,) * 3, (0.5, 0.1, 0.2), (0.0, -math.inf, 0.1)]
)
def test_an_interval_without_finite_ends_in_order_is_refused(value, low, high):
    with pytest.raises(ValueError, match="decides nothing"):
        rules.judge_null(value, low, high, 0.02)


@pytest.mark.parametrize("margin", [0.0, -0.1, math.nan, math.inf])
def test_a_margin_that_is_not_positive_is_refused(margin):
    with pytest.raises(ValueError, match="state a positive one"):
        rules.judge_null(0.0, -0.1, 0.1, margin)
