"""Guarantees of notebook 05's tables beside the trainings: worked examples, baselines, records."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from moxin_lab.posttraining import batches, reduction_experiment, tables, verdicts


def test_weights_of_mean_do_not_depend_on_the_cut_and_those_of_part_mean_do():
    shares = reduction_experiment.worked_example(counts=(8, 2))
    assert shares.loc["mean"].tolist() == ["80%", "20%", "80%", "20%"]
    assert shares.loc["sum"].tolist() == shares.loc["mean"].tolist()
    assert shares.loc["sequence"].tolist() == ["50%"] * 4
    assert shares.loc["part_mean"].tolist() == ["80%", "20%", "50%", "50%"]
    equal = reduction_experiment.worked_example(counts=(8, 8))  # as notebook 05 suggests to try
    assert equal.shape == (4, 4) and set(equal.to_numpy().ravel()) == {"50%"}


@pytest.mark.parametrize("reduction", ["mean", "sequence", "part_mean"])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_weights_of_a_step_sum_to_one(reduction, parts):
    counts = torch.tensor([3.0, 1.0, 7.0, 2.0])
    total = sum(
        float((chunk * batches.label_weights(reduction, chunk, 13, 4, parts)).sum())
        for chunk in counts.chunk(parts)
    )
    assert math.isclose(total, 1.0, rel_tol=1e-6)


def test_the_worked_pair_has_equal_movement_per_token():
    example = tables.preference_example()
    assert np.isclose(example.loc["per token", "chosen"], -example.loc["per token", "rejected"])
    assert np.isclose(example.loc["plain DPO", "rejected"], 4 * -example.loc["plain DPO", "chosen"])
    assert np.isclose(example.loc["per token", "loss"], math.log1p(math.exp(-1.0)))


def pairs(lengths):
    return [
        SimpleNamespace(
            chosen=SimpleNamespace(num_targets=chosen), rejected=SimpleNamespace(num_targets=other)
        )
        for chosen, other in lengths
    ]


def test_the_rule_of_length_is_chosen_on_training_pairs_and_ties_miss():
    train, test = pairs([(2, 5), (1, 4), (6, 3)]), pairs([(2, 3), (3, 3), (4, 1)])
    assert tables.length_rule(train, test) == ("the shorter answer", 1)
    assert tables.length_rule(pairs([(5, 2)]), test) == ("the longer answer", 1)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.5, 0.7, "more rows exactly"),
        (0.0, 0.1, "a rule that reads no prompt wins"),
        (0.1, 0.5, "not told apart"),
    ],
)
def test_a_baseline_that_wins_is_said(low, high, said):
    exact = pd.DataFrame(
        {"value": [0.3, 0.4], "low": [0.2, low], "high": [0.4, high]}, index=["majority", "SFT"]
    )
    assert said in tables.above_majority(exact, "SFT")


def test_one_seed_is_recorded_without_an_interval():
    over_seeds = pd.DataFrame(
        {"mean": [0.4], "low": [0.1], "high": [0.7]}, index=["exact match: a"]
    )
    preferred = pd.DataFrame({"value": [0.6], "low": [0.5], "high": [0.7]}, index=["DPO"])
    one, three = (verdicts.of_preferences(preferred, over_seeds, n)[-1] for n in (1, 3))
    assert one.interval is None and three.interval == (0.1, 0.7)
