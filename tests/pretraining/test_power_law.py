"""The ladder's fit: it finds planted parameters, and its intervals hold what they promise."""

import numpy as np
import pytest

from moxin_lab.pretraining import power_law

COMPUTE = np.array([1e14, 7e14, 5e15, 3e16, 2e17])


def planted(work, floor=1.2, exponent=0.15):
    return floor + 0.9 * (work / 5e15) ** -exponent


def test_the_fit_finds_planted_parameters():
    law = power_law.fit(COMPUTE, planted(COMPUTE))
    assert law.exponent == pytest.approx(0.15, rel=0.01)
    assert law.floor == pytest.approx(1.2, rel=0.02)
    assert law.at(2e18) == pytest.approx(planted(2e18), rel=0.005)


def test_without_a_floor_the_law_is_a_line_in_logarithms():
    law = power_law.fit(COMPUTE[:4], planted(COMPUTE[:4], floor=0), floor=False)
    assert law.floor == 0 and law.exponent == pytest.approx(0.15, rel=0.01)


def test_the_interval_of_the_next_rung_covers_it_about_as_often_as_stated():
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(60):
        runs = [3, 3, 3, 1]
        losses = planted(COMPUTE) + generator.normal(0, 0.01, 5) / np.sqrt([*runs, 1])
        found = power_law.assess(
            COMPUTE[:4],
            losses[:4],
            seeds=runs,
            seed_spread=0.01,
            at={"next": COMPUTE[4]},
            resamples=300,
            seed=trial,
        )["predictions"]["next"]
        covered += found["low"] <= losses[4] <= found["high"]
    assert covered >= 51  # 95 % of 60 is 57; 51 or fewer have a chance of 1 %


def test_a_far_extrapolation_is_less_certain_than_a_near_one():
    losses = planted(COMPUTE) + np.array([0.01, -0.01, 0.01, -0.01, 0.0])
    found = power_law.assess(
        COMPUTE, losses, seeds=[1] * 5, seed_spread=0, at={"near": 1e18, "far": 1e23}
    )["predictions"]
    widths = {name: one["high"] - one["low"] for name, one in found.items()}
    assert widths["far"] > 2 * widths["near"]


def test_too_few_rungs_and_a_spread_from_nothing_are_refused():
    with pytest.raises(ValueError, match="at least 3"):
        power_law.fit(COMPUTE[:2], planted(COMPUTE[:2]))
    with pytest.raises(ValueError, match="a fourth rung or a second seed"):
        power_law.assess(COMPUTE[:3], planted(COMPUTE[:3]), seeds=[1] * 3, seed_spread=0, at={})
