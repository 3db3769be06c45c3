"""Group-relative policy optimisation as pure functions: checks, advantages of groups, token losses,
KL, the loss of a step.

    rewards [N], prompts [N] -> group_advantages -> advantages [N]           a step is cut into parts (micro-batches x ranks);
    completions, lengths     -> completion_mask  -> mask [N, T] -> totals    each part's share needs the totals of the whole step
    log-probabilities [B, T] of a part           -> policy_loss -> share of the step's loss, and sums for the log

Guarantees: losses, gradients and advantages equal TRL 1.16's to 1e-6 and closed forms; the shares
of a step add up to the same loss and gradient however the step is cut; what stands behind a
completion's end (NaN too) never reaches loss or gradient; a group never mixes prompts
(tests/reasoning/test_grpo.py). Does not: generate, judge answers, or step an optimizer.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo"]
LOSS_TYPES: tuple[LossType, ...] = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo")
Level = Literal["token", "sequence"]
LEVELS: tuple[Level, ...] = ("token", "sequence")
Estimator = Literal["k1", "k2", "k3"]
ESTIMATORS: tuple[Estimator, ...] = ("k1", "k2", "k3")
ScaleRewards = Literal["group", "batch", "none"]
SCALES: tuple[ScaleRewards, ...] = ("group", "batch", "none")
STD_EPSILON = 1e-4  # beside the standard deviation, as in TRL

Baseline = Literal["group", "batch"]
BASELINES: tuple[Baseline, ...] = ("group", "batch")

Reward = Callable[[Sequence[Any], Sequence[str]], Sequence[float]]
"""(problems, their completions: one each, in the same order) to one finite number each."""


@dataclass(frozen=True)
class Objective:
    """Which loss a step minimises.

    max_completion_length: response budget in tokens, `dr_grpo`'s constant. importance_sampling_level: a
    ratio a token, or one a sequence (GSPO, which is `grpo` at sequence level; the other losses then
    weigh a sequence by its length).
    epsilon_low, epsilon_high: ratios are clipped to [1 - epsilon_low, 1 + epsilon_high]; `cispo`
    has an upper bound only.
    kl_coef: weight of the KL to the reference, 0 for none. Moxin's script: 0.001 with k3,
    `grpo`, verl's 0.2 for both bounds. Raises ValueError for an unknown name or a value outside its
    range.
    """

    max_completion_length: int
    loss_type: LossType = "grpo"
    importance_sampling_level: Level = "token"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    kl_coef: float = 0.0
    kl_estimator: Estimator = "k3"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("loss_type", self.loss_type, LOSS_TYPES),
            ("importance_sampling_level", self.importance_sampling_level, LEVELS),
            ("kl_estimator", self.kl_estimator, ESTIMATORS),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: available are {', '.join(known)}")
        _check_budget(self.max_completion_length)
        if not 0 <= self.epsilon_low <= 1:
            raise ValueError(
                f"epsilon_low is {self.epsilon_low}; a ratio's lower bound 1 - epsilon_low must be in 0..1"
            )
        for name, number in (
            ("epsilon_high", self.epsilon_high),
            ("kl_coef", self.kl_coef),
        ):
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(f"{name} is {number}; give a finite number, 0 or more")


# ------------------------------------------------------------------------------------------------------------------
# checks


def check_run(
    examples: Sequence[Any],
    reward: Reward,
    *,
    num_generations: int,
    max_completion_length: int,
    prompts_per_step: int = 1,
) -> None:
    """Refuse before the first rollout what would fail or learn nothing after it.

    The reward is called once, on an empty and a short completion of the first example. Raises
    ValueError for an empty or too small prompt set, a group of less than two, a budget below one
    token, and as `check_rewards`; what the reward itself raises comes through.
    """
    _check_budget(max_completion_length)
    _check_group_size(num_generations)
    if prompts_per_step < 1:
        raise ValueError(f"prompts_per_step is {prompts_per_step}; give 1 or more")
    if len(examples) < prompts_per_step:
        what = (
            "the prompt set is empty"
            if not len(examples)
            else f"the prompt set has {len(examples)} prompts"
        )
        raise ValueError(
            f"{what}, a step takes {prompts_per_step}: load more prompts or check what filtered them"
        )
    probe = ["", "1"]
    try:
        check_rewards(reward([examples[0]] * len(probe), probe), len(probe))
    except ValueError as error:
        raise ValueError(
            f"the reward failed its trial on the completions {probe} of the first prompt: {error}"
        ) from error


def check_rewards(rewards: Any, expected: int) -> np.ndarray:
    """Rewards as float64 [expected]. Raises ValueError for another length or shape, what is no
    number, NaN and infinity.
    """
    try:
        found = np.asarray(
            rewards.detach().cpu() if isinstance(rewards, Tensor) else rewards, dtype=np.float64
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"rewards are not numbers ({error}): return one float for each completion"
        ) from error
    if found.shape != (expected,):
        raise ValueError(
            f"rewards have shape {list(found.shape)}, not [{expected}]: return one float for each completion"
        )
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {expected} rewards are not finite, the first at position {bad[0]} ({found[bad[0]]}): "
            "a completion that cannot be judged gets the lowest reward, not NaN"
        )
    return found


def _check_group_size(num_generations: int) -> None:
    if num_generations < 2:
        raise ValueError(
            f"the group size is {num_generations}: a completion is judged against others of its prompt, give 2 or more"
        )


def _check_budget(max_completion_length: int) -> None:
    if max_completion_length < 1:
        raise ValueError(
            f"the response budget is {max_completion_length} tokens (max_completion_length); give 1 or more"
        )


# --------------------------------------------------------------------------------------------------------------
# advantages


@dataclass(frozen=True, eq=False)
class Groups:
    """advantages: float64 [N], in the order of the rewards. group_of: int64 [N], number of a
    completion's group, by first appearance. zero_variance: bool [G], groups whose rewards are all
    equal: they have advantage 0 and teach nothing.
    """

    advantages: np.ndarray
    group_of: np.ndarray
    zero_variance: np.ndarray
    metrics: dict[str, float]


def group_advantages(
    rewards: Any,
    prompts: Sequence[Hashable],
    *,
    num_generations: int,
    scale_rewards: ScaleRewards = "group",
    baseline: Baseline = "group",
) -> Groups:
    """Advantage of each completion over the others of its prompt: reward - group mean, divided by
    (deviation + 1e-4).

    prompts: what a completion answers, one key each (a prompt's number or text), in any order:
    equal keys are a group.
    scale_rewards: `group`, the group's own standard deviation (Shao et al. 2024, arXiv 2402.03300, section
    4.1.2), unbiased as in TRL; `batch`, that of all rewards; `none`, no division (Liu et al. 2025,
    arXiv 2503.20783, which `dr_grpo` comes from).
    baseline: `group`, the group's mean reward; `batch`, the mean of all rewards, which with scale
    `batch` is what PPO without a critic does with gamma = lambda = 1 (AReaL, arXiv 2505.24298,
    section 7): a group of equal rewards then teaches, too.
    metrics: `reward`, `reward_std` (mean of the groups'), `frac_reward_zero_std`. Raises ValueError
    as `check_rewards`, for no completions, and for a group that has not exactly `num_generations`
    members.
    """
    _check_group_size(num_generations)
    if scale_rewards not in SCALES:
        raise ValueError(
            f"unknown scale_rewards {scale_rewards!r}: available are {', '.join(SCALES)}"
        )
    if baseline not in BASELINES:
        raise ValueError(f"unknown baseline {baseline!r}: available are {', '.join(BASELINES)}")
    if not len(prompts):
        raise ValueError(
            "there are no completions to compare: the prompt set or the rollout is empty"
        )
    values = check_rewards(rewards, len(prompts))
    number_of: dict[Hashable, int] = {}
    group_of = np.array(
        [number_of.setdefault(prompt, len(number_of)) for prompt in prompts], dtype=np.int64
    )
    sizes = np.bincount(group_of)
    if (sizes != num_generations).any():
        wrong = int(np.flatnonzero(sizes != num_generations)[0])
        raise ValueError(
            f"prompt {list(number_of)[wrong]!r} has {sizes[wrong]} completions, not {num_generations} ({(sizes != num_generations).sum()} "
            f"of {len(sizes)} groups are wrong): give each drawn prompt its own key, and that key to all of its completions"
        )
    members = np.argsort(group_of, kind="stable").reshape(-1, num_generations)
    grouped = values[members]
    deviations = grouped.std(axis=1, ddof=1)
    zero_variance = grouped.max(axis=1) == grouped.min(axis=1)
    deviations[zero_variance] = (
        0.0  # a mean of equal numbers may miss them by a rounding, which 1e-4 would magnify
    )
    centred = np.where(zero_variance[:, None], 0.0, grouped - grouped.mean(axis=1, keepdims=True))
    if baseline == "batch":
        centred = grouped - values.mean() if values.max() > values.min() else np.zeros_like(grouped)
    if scale_rewards == "group":
        centred = centred / (deviations[:, None] + STD_EPSILON)
    elif scale_rewards == "batch":
        centred = centred / (values.std(ddof=1) + STD_EPSILON)
    advantages = np.empty_like(values)
    advantages[members] = centred
    metrics = {
        "reward": float(values.mean()),
        "reward_std": float(deviations.mean()),
        "frac_reward_zero_std": float(zero_variance.mean()),
    }
    return Groups(advantages, group_of, zero_variance, metrics)


# -------------------------------------------------------------------------------------------------------------------
# masks


@dataclass(frozen=True, eq=False)
class Completions:
    """mask: bool [N, T], tokens with loss. truncated: bool [N], no end token within the
    completion's length.
    """

    mask: Tensor
    truncated: Tensor
    metrics: dict[str, float]


def completion_mask(
    completion_ids: Tensor,
    lengths: Tensor,
    *,
    eos_ids: Sequence[int],
    mask_truncated_completions: bool = False,
) -> Completions:
    """Which tokens of padded completions, int64 [N, T], were generated: up to and with the first
    end token, within `lengths` [N].

    Padding is told by `lengths`, not by an id, so a pad token that is also the end token, or was
    sampled, does no harm.
    mask_truncated_completions: completions cut by the budget carry no loss (Yu et al. 2025, arXiv 2503.14476,
    section 3.4), so that a good thought is not punished for its length. metrics:
    `completions/mean_length`, `min_length`, `max_length`, `clipped_ratio`. Raises ValueError for
    lengths outside 1..T or no end token.
    """
    if (
        completion_ids.dim() != 2
        or lengths.shape != completion_ids.shape[:1]
        or not completion_ids.numel()
    ):
        raise ValueError(
            f"completion_ids have shape {list(completion_ids.shape)} and lengths {list(lengths.shape)}, not [N, T] and [N]"
        )
    if not len(eos_ids):
        raise ValueError(
            "eos_ids is empty: without an end token every completion counts as truncated"
        )
    width = completion_ids.shape[1]
    if bool(((lengths < 1) | (lengths > width)).any()):
        raise ValueError(
            f"lengths lie in {int(lengths.min())}..{int(lengths.max())}, not in 1..{width}"
        )
    inside = torch.arange(width, device=completion_ids.device) < lengths[:, None]
    ends = (
        torch.isin(completion_ids, torch.tensor(list(eos_ids), device=completion_ids.device))
        & inside
    )
    mask = inside & (ends.cumsum(dim=1) - ends.long() == 0)
    truncated = ~ends.any(dim=1)
    counts = mask.sum(dim=1)
    metrics = {
        "completions/mean_length": float(counts.double().mean()),
        "completions/min_length": float(counts.min()),
        "completions/max_length": float(counts.max()),
        "completions/clipped_ratio": float(truncated.double().mean()),
    }
    return Completions(
        mask & ~truncated[:, None] if mask_truncated_completions else mask, truncated, metrics
    )


# ------------------------------------------------------------------------------------------------------------------
# losses


@dataclass(frozen=True)
class Totals:
    """What the parts of one optimizer step share: its sequences, its tokens with loss, and the mean
    of the latter over all optimizer steps that the same rollout feeds (equal to `tokens` where a
    rollout feeds one step).
    """

    sequences: int
    tokens: int
    rollout_tokens: float


def totals(masks: Sequence[Tensor]) -> list[Totals]:
    """Totals of each optimizer step of one rollout, from the steps' masks, bool [N, T] each. As in
    TRL, a masked completion counts as a sequence and its tokens do not count.

    Raises ValueError for a rollout without a step or a step without a sequence.
    """
    if not masks or not all(len(mask) for mask in masks):
        raise ValueError(
            f"a rollout of {len(masks)} steps with {[len(mask) for mask in masks]} sequences has nothing to learn"
        )
    tokens = [int(mask.sum()) for mask in masks]
    return [
        Totals(len(mask), own, sum(tokens) / len(masks))
        for mask, own in zip(masks, tokens, strict=True)
    ]


def token_weights(mask: Tensor, step: Totals, objective: Objective) -> Tensor:
    """Weight of each token's loss in the step's, float64 [B, T]. With S sequences, N tokens and L
    the response budget:

    - `grpo`: 1 / (S |o_i|), the mean over sequences of their means. Shao et al. 2024, arXiv
      2402.03300, equation 3.
    - `dr_grpo`: 1 / (S L), free of the answers' lengths. Liu et al. 2025, arXiv 2503.20783, section
      3.
    - `bnpo`: 1 / N of this optimizer step. TRL takes N of the micro-batch, which makes the gradient
      depend on the cut.
    - `dapo`, `cispo`: 1 / N, mean over the optimizer steps of the rollout. Yu et al. 2025, arXiv
      2503.14476, section 3.3;
      MiniMax 2025, arXiv 2506.13585, section 3.1.
    """
    active = mask.double()
    if objective.loss_type == "grpo":
        return active / (active.sum(dim=1, keepdim=True).clamp(min=1) * step.sequences)
    if objective.loss_type == "dr_grpo":
        return active / (step.sequences * objective.max_completion_length)
    return active / max(1.0, step.tokens if objective.loss_type == "bnpo" else step.rollout_tokens)


def ratios(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, level: Level) -> Tensor:
    """Importance ratio of the policy to the one that sampled: [B, T], or [B, 1], its geometric mean
    over a sequence's tokens (Zheng et al. 2025, arXiv 2507.18071, section 4.1). 1 where the mask is
    off.
    """
    log_ratios = (log_probs - old_log_probs).masked_fill(~mask, 0.0)
    if level == "sequence":
        log_ratios = log_ratios.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(
            min=1
        )
    return log_ratios.exp()


def token_losses(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, objective: Objective
) -> Tensor:
    """Loss of each token, [B, T] (0 where the mask is off), without KL. With ratio r, advantage A
    and bounds l, h:

    - all but `cispo`: -min(r A, clip(r, 1 - l, 1 + h) A). Schulman et al. 2017, arXiv 1707.06347,
      equation 7; separate bounds
      from Yu et al. 2025, arXiv 2503.14476, section 3.1. A clipped token has no gradient.
    - `cispo`: -stop_gradient(min(r, 1 + h)) A log p. MiniMax 2025, arXiv 2506.13585, section 3.1.
      Every token keeps its
      gradient, its weight is bounded. TRL's `epsilon_high` is the bound itself, 1 + h.
    """
    ratio = ratios(log_probs, old_log_probs, mask, objective.importance_sampling_level)
    advantage = advantages.to(log_probs.dtype).unsqueeze(1)
    if objective.loss_type == "cispo":
        losses = -ratio.detach().clamp(max=1 + objective.epsilon_high) * advantage * log_probs
    else:
        clipped = ratio.clamp(1 - objective.epsilon_low, 1 + objective.epsilon_high)
        losses = -torch.min(ratio * advantage, clipped * advantage)
    return losses.expand_as(log_probs).masked_fill(~mask, 0.0)


def kl_estimates(log_probs: Tensor, reference_log_probs: Tensor, estimator: Estimator) -> Tensor:
    """Estimate of KL(policy || reference) from each token the policy sampled. With d = log p - log
    q:

    - `k1`: d. Unbiased, may be negative. As a loss it teaches nothing: the expectation of its
      gradient is 0.
    - `k2`: d^2 / 2. Biased and low in variance; its gradient is in expectation that of KL(p || q).
    - `k3`: exp(-d) - 1 + d. Unbiased, never negative; its gradient is in expectation that of KL(q
      || p).

    Schulman 2020, "Approximating KL divergence". The expectations are those of samples of the
    policy itself.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"unknown kl_estimator {estimator!r}: available are {', '.join(ESTIMATORS)}"
        )
    difference = log_probs - reference_log_probs
    if estimator == "k1":
        return difference
    return difference**2 / 2 if estimator == "k2" else torch.expm1(-difference) + difference


def policy_loss(
    log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    step: Totals,
    objective: Objective,
    *,
    old_log_probs: Tensor | None = None,
    reference_log_probs: Tensor | None = None,
    entropies: Tensor | None = None,
    behaviour_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Share of a part in the step's loss, `loss`, with gradient; and sums without, which `metrics`
    turns into the log's.

    log_probs, mask: [B, T] of the part, as old_log_probs (of the policy that sampled; left out:
    this one, every ratio 1), reference_log_probs (must be there for a KL coefficient above 0; given
    without one, the KL is logged only), entropies, and behaviour_weights, by which each token's
    loss without KL is multiplied (decoupled objective, arXiv 2505.24298, section 5.2).
    advantages: [B]. Half precision is widened to float32. Raises ValueError for shapes that do not
    fit or a missing reference.
    """
    named = {
        "old_log_probs": old_log_probs,
        "reference_log_probs": reference_log_probs,
        "entropies": entropies,
    }
    named["behaviour_weights"] = behaviour_weights
    for name, tensor in {"mask": mask, **named}.items():
        if tensor is not None and tensor.shape != log_probs.shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, log_probs {list(log_probs.shape)}: they must agree"
            )
    if advantages.shape != log_probs.shape[:1]:
        raise ValueError(
            f"advantages have shape {list(advantages.shape)}, not [{len(log_probs)}]: one for each sequence"
        )
    if objective.kl_coef and reference_log_probs is None:
        raise ValueError(
            f"the KL coefficient is {objective.kl_coef} and there are no reference_log_probs: compute them once with the "
            "reference model, or set the coefficient to 0"
        )
    mask = mask.bool()
    # Before any arithmetic, because the gradient of what is masked behind an infinity is NaN, not
    # 0.
    log_probs = _masked(log_probs, mask)
    old = log_probs.detach() if old_log_probs is None else _masked(old_log_probs, mask).detach()
    losses = token_losses(log_probs, old, advantages, mask, objective)
    if behaviour_weights is not None:
        losses = losses * _masked(behaviour_weights, mask).detach()
    sums = {"sequences": mask.new_tensor(len(mask), dtype=torch.int64), "tokens": mask.sum()}
    if reference_log_probs is not None:
        reference = _masked(reference_log_probs, mask).detach()
        kl = kl_estimates(log_probs, reference, objective.kl_estimator)
        sums["kl"] = kl.detach().double().sum()
        if objective.kl_coef:
            losses = losses + objective.kl_coef * kl
    if entropies is not None:
        sums["entropy"] = _masked(entropies, mask).detach().double().sum()
    sums.update(_clipped(log_probs.detach(), old, advantages, mask, objective))
    return {"loss": (losses * token_weights(mask, step, objective).to(losses.dtype)).sum(), **sums}


def metrics(sums: Mapping[str, Any]) -> dict[str, float]:
    """A step's log from the sums of its parts added up, under TRL's names: `kl` and `entropy`
    (nats, mean over tokens), `clip_ratio/low_mean`, `high_mean` and `region_mean` (share of the
    ratios whose token or sequence the bounds hold back).
    """
    tokens, compared = max(1, int(sums["tokens"])), max(1, int(sums["ratios"]))
    found = {name: float(sums[name]) / tokens for name in ("kl", "entropy") if name in sums}
    low, high = float(sums["clipped_low"]) / compared, float(sums["clipped_high"]) / compared
    return {
        **found,
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low + high,
    }


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    wide = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    return wide.masked_fill(~mask, 0.0)


def _clipped(
    log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, objective: Objective
) -> dict[str, Tensor]:
    ratio = ratios(log_probs, old, mask, objective.importance_sampling_level)
    counted = (
        mask if objective.importance_sampling_level == "token" else mask.any(dim=1, keepdim=True)
    )
    advantage = advantages.unsqueeze(1)
    low = (ratio < 1 - objective.epsilon_low) & (advantage < 0) & counted
    high = (ratio > 1 + objective.epsilon_high) & (advantage > 0) & counted
    low = low & (objective.loss_type != "cispo")  # which has no lower bound
    return {"ratios": counted.sum(), "clipped_low": low.sum(), "clipped_high": high.sum()}
