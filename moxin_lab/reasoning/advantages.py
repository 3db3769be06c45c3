"""Rewards of a rollout: checks, and the advantage of each completion over the others of its prompt.

    rewards [N], prompts [N] -> group_advantages -> Groups: advantages [N], groups without variance

Guarantees: advantages equal TRL 1.16's to 1e-6; a group never mixes prompts; equal rewards have an
advantage of exactly 0 (tests/reasoning/test_advantages.py).
Out of scope: judging answers, losses (grpo.py).
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from moxin_lab.scales.sections import BATCH_BASELINE_NEEDS_BATCH_SCALE

ScaleRewards = Literal["group", "batch", "none"]
SCALES: tuple[ScaleRewards, ...] = ("group", "batch", "none")
Baseline = Literal["group", "batch"]
BASELINES: tuple[Baseline, ...] = ("group", "batch")
STD_EPSILON = 1e-4  # added to the standard deviation, as in TRL

Reward = Callable[[Sequence[Any], Sequence[str]], Sequence[float]]
"""(problems, one completion of each, in the same order) to one finite number each."""


@dataclass(frozen=True, eq=False)
class Groups:
    """advantages: float64 [N], in the order of the rewards. group_of: int64 [N], index of each
    completion's group, by first appearance. zero_variance: bool [G], groups whose rewards are all
    equal: with the group's baseline they have advantage 0 and no gradient.
    """

    advantages: np.ndarray
    group_of: np.ndarray
    zero_variance: np.ndarray
    metrics: dict[str, float]


def check_run(
    problems: Sequence[Any],
    reward: Reward,
    *,
    num_generations: int,
    max_completion_length: int,
    prompts_per_step: int = 1,
) -> None:
    """Refuse, before the first rollout, a run that would fail or learn nothing.

    The reward is called once, on an empty and a short completion of the first problem. Raises
    ValueError for an empty or too small prompt set, a group of less than two, a budget below one
    token, and as `check_rewards`; errors that the reward itself raises are passed on.
    """
    check_budget(max_completion_length)
    _check_num_generations(num_generations)
    if prompts_per_step < 1:
        raise ValueError(f"prompts_per_step is {prompts_per_step}; give 1 or more")
    if len(problems) < prompts_per_step:
        size = f"has {len(problems)} prompts" if len(problems) else "is empty"
        raise ValueError(
            f"the prompt set {size}, a step takes {prompts_per_step}: load more prompts or check "
            "what filtered them"
        )
    trial = ["", "1"]
    try:
        check_rewards(reward([problems[0]] * len(trial), trial), len(trial))
    except ValueError as error:
        raise ValueError(
            f"the reward failed its trial on the completions {trial} of the first prompt: {error}"
        ) from error


def check_rewards(rewards: Any, expected: int) -> np.ndarray:
    """Rewards as float64 [expected].

    Raises ValueError for another length or shape, values that are not numbers, NaN and infinity.
    """
    if isinstance(rewards, Tensor):
        rewards = rewards.detach().cpu()
    try:
        values = np.asarray(rewards, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"rewards are not numbers ({error}): return one float for each completion"
        ) from error
    if values.shape != (expected,):
        raise ValueError(
            f"rewards have shape {list(values.shape)}, not [{expected}]: return one float for each "
            "completion"
        )
    not_finite = np.flatnonzero(~np.isfinite(values))
    if len(not_finite):
        first = not_finite[0]
        raise ValueError(
            f"{len(not_finite)} of {expected} rewards are not finite, the first at position "
            f"{first} ({values[first]}): a completion that cannot be judged gets the lowest "
            "reward, not NaN"
        )
    return values


def check_budget(max_completion_length: int) -> None:
    """Raises ValueError for a response budget below one token."""
    if max_completion_length < 1:
        raise ValueError(
            f"the response budget is {max_completion_length} tokens (max_completion_length); "
            "give 1 or more"
        )


def centred_rewards(
    grouped: np.ndarray, scale_rewards: ScaleRewards = "group", baseline: Baseline = "group"
) -> np.ndarray:
    """Rewards [G, num_generations] minus the baseline, divided by the standard deviation plus 1e-4.
    A row of equal rewards is exactly 0 under its own baseline.
    """
    if baseline == "group":
        centred = grouped - grouped.mean(axis=1, keepdims=True)
        # The mean of equal numbers may differ from them by rounding, which 1e-4 would magnify.
        centred[grouped.max(axis=1) == grouped.min(axis=1)] = 0.0
    elif grouped.max() > grouped.min():
        centred = grouped - grouped.mean()
    else:
        centred = np.zeros_like(grouped)
    if scale_rewards == "group":
        return centred / (grouped.std(axis=1, ddof=1, keepdims=True) + STD_EPSILON)
    if scale_rewards == "batch":
        return centred / (grouped.std(ddof=1) + STD_EPSILON)
    return centred


def group_advantages(
    rewards: Any,
    prompts: Sequence[Hashable],
    *,
    num_generations: int,
    scale_rewards: ScaleRewards = "group",
    baseline: Baseline = "group",
) -> Groups:
    """Advantage of each completion over the others of its prompt: (reward - baseline) / (standard
    deviation + 1e-4).

    prompts: one key for each completion (the index or the text of its prompt), in any order; equal
    keys form a group.
    scale_rewards: `group`, the group's own standard deviation (Shao et al. 2024, arXiv 2402.03300,
    section 4.1.2), unbiased as in TRL; `batch`, that of all rewards; `none`, no division (Liu et
    al. 2025, arXiv 2503.20783, where `dr_grpo` comes from).
    baseline: `group`, the group's mean reward; `batch`, the mean of all rewards. `batch` for both
    is what PPO without a critic does with gamma = lambda = 1 (AReaL, arXiv 2505.24298, section 7):
    a group of equal rewards then has a gradient, too. Baseline `batch` with scale `group` is
    refused: it would divide such a group's distance from the mean by 1e-4.
    metrics: `reward`, `reward_std` (mean over groups), `frac_reward_zero_std`.

    Raises ValueError as `check_rewards`, for unknown or contradicting options, for no completions,
    and for a group that does not have exactly `num_generations` members.
    """
    _check_options(num_generations, scale_rewards, baseline)
    if not len(prompts):
        raise ValueError(
            "there are no completions to compare: the prompt set or the rollout is empty"
        )
    values = check_rewards(rewards, len(prompts))
    group_of = _groups_of(prompts, num_generations)
    members = np.argsort(group_of, kind="stable").reshape(-1, num_generations)
    grouped = values[members]  # [G, num_generations]
    zero_variance = grouped.max(axis=1) == grouped.min(axis=1)
    deviations = np.where(zero_variance, 0.0, grouped.std(axis=1, ddof=1))
    centred = centred_rewards(grouped, scale_rewards, baseline)
    advantages = np.empty_like(values)
    advantages[members] = centred  # [G, num_generations] -> [N]
    metrics = {
        "reward": float(values.mean()),
        "reward_std": float(deviations.mean()),
        "frac_reward_zero_std": float(zero_variance.mean()),
    }
    return Groups(advantages, group_of, zero_variance, metrics)


def _check_options(num_generations: int, scale_rewards: ScaleRewards, baseline: Baseline) -> None:
    _check_num_generations(num_generations)
    if scale_rewards not in SCALES:
        raise ValueError(
            f"unknown scale_rewards {scale_rewards!r}: available are {', '.join(SCALES)}"
        )
    if baseline not in BASELINES:
        raise ValueError(f"unknown baseline {baseline!r}: available are {', '.join(BASELINES)}")
    if baseline == "batch" and scale_rewards == "group":
        raise ValueError(BATCH_BASELINE_NEEDS_BATCH_SCALE)


def _check_num_generations(num_generations: int) -> None:
    if num_generations < 2:
        raise ValueError(
            f"num_generations is {num_generations}: a completion is judged against others of its "
            "prompt, give 2 or more"
        )


def _groups_of(prompts: Sequence[Hashable], num_generations: int) -> np.ndarray:
    """Index of each prompt's group by first appearance, int64 [N].

    Raises ValueError unless every group has `num_generations` members.
    """
    index_of: dict[Hashable, int] = {}
    group_of = np.array(
        [index_of.setdefault(prompt, len(index_of)) for prompt in prompts], dtype=np.int64
    )
    sizes = np.bincount(group_of)
    wrong = np.flatnonzero(sizes != num_generations)
    if len(wrong):
        raise ValueError(
            f"prompt {list(index_of)[wrong[0]]!r} has {sizes[wrong[0]]} completions, not "
            f"{num_generations} ({len(wrong)} of {len(sizes)} groups are wrong): give each drawn "
            "prompt its own key, and that key to all of its completions"
        )
    return group_of
