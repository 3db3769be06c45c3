"""Guarantees of advantages: TRL's values, groups of one prompt, errors before the first rollout."""

import ast
import inspect
import math
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab.reasoning import advantages


def trl_advantages(rewards, num_generations, scale):
    """TRL's own lines, cut out of its generation, which needs a model."""
    from trl.trainer import grpo_trainer

    source = textwrap.dedent(
        inspect.getsource(grpo_trainer.GRPOTrainer._generate_and_score_completions)
    )
    (lines,) = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.If)
        and "multi_objective_aggregation == 'sum_then_normalize'" in ast.unparse(node.test)
    )
    trainer = SimpleNamespace(
        multi_objective_aggregation="sum_then_normalize",
        reward_weights=torch.ones(1),
        scale_rewards=scale,
    )
    names = {
        **vars(grpo_trainer),
        "self": trainer,
        "rewards_per_func": rewards[:, None],
        "num_generations": num_generations,
        "device": "cpu",
        "unscorable_mask": torch.zeros(len(rewards), dtype=torch.bool),
    }
    exec(compile(ast.Module([lines], []), "trl", "exec"), names)
    return names["advantages"], names["is_std_zero"]


@pytest.mark.parametrize("scale", advantages.SCALES)
def test_advantages_equal_trls(scale):
    rewards = torch.tensor([1, 0, 0, 1, 5, -5, -5, -5, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    prompts = [name for name in "abc" for _ in range(4)]
    found = advantages.group_advantages(rewards, prompts, num_generations=4, scale_rewards=scale)
    expected, zero = trl_advantages(rewards, 4, scale)
    np.testing.assert_allclose(found.advantages, expected, atol=1e-6)
    assert scale == "batch" or found.zero_variance[found.group_of].tolist() == zero.tolist()
    assert found.advantages.dtype == np.float64 and found.zero_variance.tolist() == [
        False,
        False,
        True,
    ]
    assert found.metrics["frac_reward_zero_std"] == pytest.approx(1 / 3)
    assert found.metrics["reward"] == pytest.approx(rewards.mean().item())
    assert found.metrics["reward_std"] == pytest.approx((math.sqrt(1 / 3) + 5) / 3)


@settings(max_examples=40, deadline=None)
@given(
    st.permutations(range(12)),
    st.lists(st.sampled_from([0.0, 1.0, -5.0]), min_size=12, max_size=12),
)
def test_groups_never_mix_prompts_in_whatever_order_completions_come(order, rewards):
    prompts = [f"prompt {number // 4}" for number in range(12)]
    straight = advantages.group_advantages(rewards, prompts, num_generations=4)
    mixed = advantages.group_advantages(
        [rewards[i] for i in order], [prompts[i] for i in order], num_generations=4
    )
    np.testing.assert_allclose(mixed.advantages, straight.advantages[list(order)], atol=1e-12)
    assert mixed.metrics == pytest.approx(straight.metrics)
    alone = [
        advantages.group_advantages(
            rewards[i : i + 4], prompts[i : i + 4], num_generations=4
        ).advantages
        for i in (0, 4, 8)
    ]
    np.testing.assert_allclose(straight.advantages, np.concatenate(alone), atol=1e-12)
    np.testing.assert_allclose(straight.advantages.reshape(3, 4).sum(axis=1), 0, atol=1e-9)


def test_wrong_group_sizes_are_refused():
    with pytest.raises(
        ValueError, match=r"prompt 'b' has 2 completions, not 3 \(1 of 2 groups are wrong\)"
    ):
        advantages.group_advantages([0, 1, 0, 1, 0], list("aaabb"), num_generations=3)
    with pytest.raises(
        ValueError, match="prompt 'a' has 4 completions, not 2"
    ):  # a prompt drawn twice under one key
        advantages.group_advantages([0, 1, 0, 1], list("aaaa"), num_generations=2)
    with pytest.raises(ValueError, match="num_generations is 1"):
        advantages.group_advantages([0, 1], list("ab"), num_generations=1)


def test_equal_rewards_have_advantage_zero_exactly():
    found = advantages.group_advantages(
        [0.1] * 3 + [1.0, 0.0, 0.0], list("aaabbb"), num_generations=3
    )
    assert found.advantages[:3].tolist() == [0, 0, 0] and found.zero_variance.tolist() == [
        True,
        False,
    ]
    assert np.mean([0.1] * 3) != 0.1  # why it would not be
    batch = advantages.group_advantages(
        [0.1] * 3 + [1.0, 0.0, 0.0], list("aaabbb"), num_generations=3, scale_rewards="batch"
    )
    assert batch.advantages[:3].tolist() == [0, 0, 0]


def constant_reward(value):
    return lambda problems, completions: [value] * len(completions)


def check_run(**changes):
    options = {
        "examples": ["1 + 1", "1 + 2"],
        "reward": constant_reward(1.0),
        "num_generations": 8,
        "max_completion_length": 64,
    }
    options.update(changes)
    advantages.check_run(options.pop("examples"), options.pop("reward"), **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": []}, "the prompt set is empty, a step takes 1"),
        ({"prompts_per_step": 3}, "the prompt set has 2 prompts, a step takes 3"),
        ({"prompts_per_step": 0}, "prompts_per_step is 0"),
        ({"num_generations": 1}, "num_generations is 1: .* give 2 or more"),
        (
            {"max_completion_length": 0},
            r"the response budget is 0 tokens \(max_completion_length\)",
        ),
        (
            {"reward": constant_reward(math.nan)},
            r"trial .* 2 of 2 rewards are not finite, the first at position 0 \(nan\)",
        ),
        ({"reward": constant_reward(math.inf)}, "2 of 2 rewards are not finite"),
        ({"reward": constant_reward(None)}, "not finite|not numbers"),
        ({"reward": constant_reward("good")}, "rewards are not numbers"),
        ({"reward": lambda problems, completions: [1.0]}, r"rewards have shape \[1\], not \[2\]"),
        ({"reward": lambda problems, completions: 1.0}, r"rewards have shape \[\], not \[2\]"),
    ],
)
def test_bad_input_is_refused_before_the_first_rollout(changes, message):
    check_run()
    with pytest.raises(ValueError, match=message):
        check_run(**changes)


def test_errors_that_a_reward_raises_are_passed_on():
    def broken(problems, completions):
        raise KeyError("answer")

    with pytest.raises(KeyError, match="answer"):
        check_run(reward=broken)


def test_rewards_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"1 of 4 rewards are not finite, the first at position 2 \(nan\)"
    ):
        advantages.group_advantages([0, 1, math.nan, 1], list("aabb"), num_generations=2)
    with pytest.raises(ValueError, match=r"rewards have shape \[3\], not \[4\]"):
        advantages.group_advantages([0, 1, 1], list("aabb"), num_generations=2)
    with pytest.raises(ValueError, match="no completions"):
        advantages.group_advantages([], [], num_generations=2)
    with pytest.raises(ValueError, match="unknown scale_rewards 'std'"):
        advantages.group_advantages([0, 1], list("aa"), num_generations=2, scale_rewards="std")


def test_the_batchs_baseline_is_not_divided_by_a_groups_own_deviation():
    """It would give a group of equal rewards advantages of 0.25 / 1e-4 = 2,500."""
    rewards, prompts = [1.0, 1.0, 0.0, 1.0], list("aabb")
    with pytest.raises(ValueError, match="Set scale_rewards to batch or none"):
        advantages.group_advantages(rewards, prompts, num_generations=2, baseline="batch")
    for scale in ("batch", "none"):
        found = advantages.group_advantages(
            rewards, prompts, num_generations=2, baseline="batch", scale_rewards=scale
        )
        assert np.abs(found.advantages).max() < 2
