"""Guarantees of notebook 06's sentences and records beside the trainings."""

import numpy as np
import pandas as pd
import pytest

from moxin_lab.evaluation import statistics
from moxin_lab.reasoning import advantages, answers, figures, verdicts


def passed(grpo, majority):
    rows = [
        {"model": model, "group": "in-family", "k": 1, "value": value, "low": value, "high": value}
        for model, value in (("GRPO", grpo), ("majority", majority))
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("grpo", "majority", "said"),
    [
        (0.5, 0.2, "above the majority answer's pass@1 in every group"),
        (0.2, 0.5, "at least as well as GRPO in 1 of 1 groups: in-family 0.500 against 0.200"),
        (0.3, 0.3, "at least as well as GRPO in 1 of 1"),
    ],
)
def test_a_majority_that_wins_is_said(grpo, majority, said):
    assert said in answers.beaten_by_majority(passed(grpo, majority), "GRPO")


def test_gains_over_seeds_need_more_than_one_seed():
    rows = {"group": ["a", "a", "b"], "gain": [0.1, 0.3, 0.2], "low": [0.01, -0.1, 0.1]}
    seeds = pd.DataFrame({**rows, "high": [0.2, 0.5, 0.3]})
    gains = answers.gains_over_seeds(seeds, statistics.seed_interval)
    assert gains["group"].tolist() == ["a"] and np.isclose(gains["mean"], 0.2).all()
    assert "in 1 of 2 the interval" in gains["words"].iloc[0]


def test_the_table_of_no_levels_records_nothing():
    empty = pd.DataFrame(columns=["group", "mean", "low", "high", "seeds", "words"])
    assert verdicts.of_seeds(empty, answers.no_levels()) == []


@pytest.mark.parametrize(
    ("gain", "at_four", "said"),
    [(0.08, -0.07, True), (0.08, 0.07, False), (-0.08, -0.07, False)],
)
def test_a_gain_at_one_and_a_loss_at_four_are_said_together(gain, at_four, said):
    def row(second, k, value):
        ends = {"low": value - 0.01, "high": value + 0.01}
        return {"first": "GRPO", "second": second, "group": "in-family", "k": k} | {
            "value": value,
            **ends,
        }

    rows = [row("CoT-SFT", 1, gain), row("CoT-SFT", 4, at_four), row("SFT for as long", 1, -0.5)]
    text = answers.gain_in_words(
        pd.DataFrame(rows).set_index(["first", "second", "group", "k"]).sort_index()
    )
    assert f"pass@4 changes by {at_four:+.3f}" in text
    assert ("no more of them right" in text) == said


def test_the_captions_say_what_the_figures_of_grpo_show():
    rewards = [1, 0, 0, 1, 0, 0, 0, 0]
    assert "2 of 8 completions are right" in figures.worked_group_finding(rewards)
    assert "+1.62" in figures.worked_group_finding(rewards)
    assert "nothing to learn" in figures.worked_group_finding([1] * 8)
    log = pd.DataFrame({"reward": [0.1] * 5 + [0.9] * 5, "frac_reward_zero_std": [0.25] * 10})
    assert "mean reward 0.10 in the first fifth of 10 steps, 0.90 in the last; 25 %" in (
        figures.reward_finding(log)
    )
    rows = [("a", "in-family", 1, 0.2), ("b", "in-family", 1, 0.4), ("b", "harder", 1, 0.9)]
    passed = pd.DataFrame(rows, columns=["model", "group", "k", "value"])
    assert figures.pass_at_finding(passed).endswith("best first: b 0.40, a 0.20.")


def test_the_worked_group_says_what_it_draws():
    rewards = [1, 0, 0, 1, 0, 0, 0, 0]
    text = figures.worked_group_alt(rewards)
    expected = advantages.centred_rewards(np.array([rewards], dtype=float))[0]
    assert text.count("gives") == len(rewards) and f"1 gives {expected[0]:+.2f}" in text
    assert "+0.00" in figures.worked_group_alt([1] * 8)
    figures.worked_group(rewards)
