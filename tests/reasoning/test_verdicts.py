"""The verdict on the reward follows from what was paid, and can go either way."""

import pandas as pd
import pytest

from moxin_lab import scales
from moxin_lab.reasoning import verdicts

GRPO = scales.load("tiny").reasoning.grpo
COMPLETIONS = GRPO.prompts_per_step * GRPO.num_generations


def examples(rewards):
    reasons = ["correct", "wrong", "no_answer"]
    return pd.DataFrame({"reason": reasons, "decided by": "number", "reward": rewards})


@pytest.mark.parametrize(
    ("rewards", "ones", "expected"),
    [
        ([1.0, 0.0, 0.0], [3, 0, COMPLETIONS], "reproduced"),
        ([1.0, 0.0, 0.1], [3, 0, 5], "contradicted"),  # paid for a wrong answer
        ([0.5, 0.0, 0.0], [3, 0, 5], "contradicted"),
        ([1.0, 0.0, 0.0], [3, 0.5, 5], "contradicted"),  # a share in training
        ([1.0, 0.0, 0.0], [3, COMPLETIONS + 1, 5], "contradicted"),
    ],
)
def test_a_reward_other_than_0_or_1_contradicts_the_binary_reward(rewards, ones, expected):
    log = pd.DataFrame({"reward": [count / COMPLETIONS for count in ones]})
    assert verdicts.judge_binary(examples(rewards), log, GRPO)[0] == expected


def test_where_the_scale_pays_otherwise_the_claim_is_not_attempted():
    log = pd.DataFrame({"reward": [0.5]})
    other = GRPO.model_copy(update={"reward_values": (-5.0, 5.0)})
    verdict, evidence = verdicts.judge_binary(examples([1.0, 0.0, 0.0]), log, other)
    assert verdict == "not attempted" and "(-5.0, 5.0)" in evidence
