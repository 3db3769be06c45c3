"""The losses of group-relative policy optimisation as pure functions: masks, token losses, KL, the
loss of a step.

    completions, lengths -> completion_mask -> mask [N, T] -> totals of the whole step
    log-probabilities [B, T] of a part -> policy_loss -> share of the step's loss, and sums

A step is cut into parts (micro-batches x ranks); the share of each part needs the totals of the
whole step. Advantages come from advantages.py.

Guarantees: losses and gradients equal TRL 1.16's to 1e-6 and closed forms; the shares of a step add
up to the same loss and gradient however the step is cut; values after a completion's end (NaN too)
never reach loss or gradient; log-ratios of any size give a finite loss and gradient
(tests/reasoning/test_grpo.py).
Out of scope: generating, judging answers, stepping an optimizer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from moxin_lab.reasoning.advantages import check_budget

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo"]
LOSS_TYPES: tuple[LossType, ...] = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo")
Level = Literal["token", "sequence"]
LEVELS: tuple[Level, ...] = ("token", "sequence")
Estimator = Literal["k1", "k2", "k3"]
ESTIMATORS: tuple[Estimator, ...] = ("k1", "k2", "k3")
MAX_LOG_RATIO = 20.0
"""Bound in nats of a log-ratio, as in verl (core_algos.py): exp(89) is infinite in float32, and the
gradient of a clipped token would be 0 x infinity, NaN.
"""


@dataclass(frozen=True)
class Objective:
    """Which loss a step minimises.

    max_completion_length: response budget in tokens, the constant of `dr_grpo`.
    importance_sampling_level: one ratio per token, or one per sequence (GSPO, which is `grpo` at
    sequence level; the other losses then weigh a sequence by its length).
    epsilon_low, epsilon_high: ratios are clipped to [1 - epsilon_low, 1 + epsilon_high]; `cispo`
    has an upper bound only.
    kl_coef: weight of the KL to the reference, 0 for none. Moxin's script: 0.001 with k3, `grpo`,
    and verl's default of 0.2 for both bounds.
    entropy_coef: weight of the entropy, which is subtracted from each token's loss, 0 for none
    (Schulman et al. 2017, arXiv 1707.06347, equation 9).

    Raises ValueError for an unknown name or a value outside its range.
    """

    max_completion_length: int
    loss_type: LossType = "grpo"
    importance_sampling_level: Level = "token"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    kl_coef: float = 0.0
    kl_estimator: Estimator = "k3"
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("loss_type", self.loss_type, LOSS_TYPES),
            ("importance_sampling_level", self.importance_sampling_level, LEVELS),
            ("kl_estimator", self.kl_estimator, ESTIMATORS),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: available are {', '.join(known)}")
        check_budget(self.max_completion_length)
        if not 0 <= self.epsilon_low <= 1:
            raise ValueError(
                f"epsilon_low is {self.epsilon_low}; a ratio's lower bound 1 - epsilon_low must be "
                "in 0..1"
            )
        for name in ("epsilon_high", "kl_coef", "entropy_coef"):
            size = getattr(self, name)
            if not (math.isfinite(size) and size >= 0):
                raise ValueError(f"{name} is {size}; give a finite number, 0 or more")


# --------------------------------------------------------------------------------------------------
# masks


@dataclass(frozen=True, eq=False)
class Completions:
    """mask: bool [N, T], tokens with loss. truncated: bool [N], completions without an end token
    within their length.
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
    """Which tokens of padded completions, int64 [N, T], were generated: up to and including the
    first end token, within `lengths` [N].

    Padding begins where `lengths` says and not at a pad token, which may also be the end token or
    be sampled.
    mask_truncated_completions: completions cut by the budget carry no loss (Yu et al. 2025, arXiv
    2503.14476, section 3.4), so that a correct but long chain is not penalised for its length.
    metrics: `completions/mean_length`, `min_length`, `max_length`, `clipped_ratio`.

    Raises ValueError for lengths outside 1..T or no end token.
    """
    if (
        completion_ids.dim() != 2
        or lengths.shape != completion_ids.shape[:1]
        or not completion_ids.numel()
    ):
        raise ValueError(
            f"completion_ids have shape {list(completion_ids.shape)} and lengths "
            f"{list(lengths.shape)}, not [N, T] and [N]"
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
    inside = torch.arange(width, device=completion_ids.device) < lengths[:, None]  # [N, T]
    ends = (
        torch.isin(completion_ids, torch.tensor(list(eos_ids), device=completion_ids.device))
        & inside
    )
    mask = inside & (ends.cumsum(dim=1) - ends.long() == 0)  # no end token before this one
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


# --------------------------------------------------------------------------------------------------
# losses


@dataclass(frozen=True)
class Totals:
    """What all parts of one optimizer step need: the step's sequences, its tokens with loss, and
    the mean of these tokens over all optimizer steps of the same rollout (equal to `tokens` where a
    rollout serves one step).
    """

    sequences: int
    tokens: int
    rollout_tokens: float


def totals(masks: Sequence[Tensor]) -> list[Totals]:
    """Totals of each optimizer step of one rollout, from the steps' masks, bool [N, T] each.

    As in TRL, a masked completion counts as a sequence, and its tokens do not count. Raises
    ValueError for a rollout without a step or a step without a sequence.
    """
    if not masks or not all(len(mask) for mask in masks):
        raise ValueError(
            f"a rollout of {len(masks)} steps with {[len(mask) for mask in masks]} sequences has "
            "nothing to learn"
        )
    tokens = [int(mask.sum()) for mask in masks]
    mean = sum(tokens) / len(masks)
    return [Totals(len(mask), count, mean) for mask, count in zip(masks, tokens, strict=True)]


def token_weights(mask: Tensor, step: Totals, objective: Objective) -> Tensor:
    """Weight of each token's loss in the loss of the step, float64 [B, T].

    With S sequences, N tokens with loss, |o_i| of them in sequence i, and the response budget L:

    - `grpo`: 1 / (S |o_i|), the mean over sequences of their means. Shao et al. 2024, arXiv
      2402.03300, equation 3.
    - `dr_grpo`: 1 / (S L), independent of the answers' lengths. Liu et al. 2025, arXiv 2503.20783,
      section 3.
    - `bnpo`: 1 / N of this optimizer step. TRL takes N of the micro-batch, which makes the gradient
      depend on the cut.
    - `dapo`, `cispo`: 1 / N, N averaged over the optimizer steps of the rollout. Yu et al. 2025,
      arXiv 2503.14476, section 3.3; MiniMax 2025, arXiv 2506.13585, section 3.1.
    """
    active = mask.double()
    if objective.loss_type == "grpo":
        return active / (active.sum(dim=1, keepdim=True).clamp(min=1) * step.sequences)
    if objective.loss_type == "dr_grpo":
        return active / (step.sequences * objective.max_completion_length)
    return active / max(1.0, step.tokens if objective.loss_type == "bnpo" else step.rollout_tokens)


def ratios(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, level: Level) -> Tensor:
    """Importance ratio of the policy to the one that sampled; 1 where the mask is off.

    [B, T] per token, or [B, 1] per sequence: the geometric mean over its tokens (Zheng et al. 2025,
    arXiv 2507.18071, section 4.1). The log-ratio is bounded to +-MAX_LOG_RATIO; outside, the ratio
    has no gradient.
    """
    log_ratios = (log_probs - old_log_probs).masked_fill(~mask, 0.0)
    if level == "sequence":
        lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
        log_ratios = log_ratios.sum(dim=1, keepdim=True) / lengths  # [B, T] -> [B, 1]
    return log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def token_losses(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, objective: Objective
) -> Tensor:
    """Loss of each token, [B, T], without KL; 0 where the mask is off.

    With ratio r, advantage A and clipping bounds l (epsilon_low) and h (epsilon_high):

    - all but `cispo`: -min(r A, clip(r, 1 - l, 1 + h) A). Schulman et al. 2017, arXiv 1707.06347,
      equation 7; separate bounds from Yu et al. 2025, arXiv 2503.14476, section 3.1. A clipped
      token has no gradient.
    - `cispo`: -stop_gradient(min(r, 1 + h)) A log p. MiniMax 2025, arXiv 2506.13585, section 3.1.
      Every token keeps its gradient, with a bounded weight. In TRL `epsilon_high` is the bound
      itself, 1 + h.
    """
    ratio = ratios(log_probs, old_log_probs, mask, objective.importance_sampling_level)
    advantage = advantages.to(log_probs.dtype).unsqueeze(1)  # [B, 1]
    if objective.loss_type == "cispo":
        losses = -ratio.detach().clamp(max=1 + objective.epsilon_high) * advantage * log_probs
    else:
        clipped = ratio.clamp(1 - objective.epsilon_low, 1 + objective.epsilon_high)
        losses = -torch.min(ratio * advantage, clipped * advantage)
    return losses.expand_as(log_probs).masked_fill(~mask, 0.0)


def kl_estimates(log_probs: Tensor, reference_log_probs: Tensor, estimator: Estimator) -> Tensor:
    """Estimate of KL(policy || reference) from each token that the policy sampled.

    With d = log p - log q:

    - `k1`: d. Unbiased, may be negative. As a loss it has no effect: the expectation of its
      gradient is 0.
    - `k2`: d^2 / 2. Biased and low in variance; its gradient is in expectation that of KL(p || q).
    - `k3`: exp(-d) - 1 + d. Unbiased, never negative; its gradient is in expectation that of KL(q
      || p). Constant where d < -MAX_LOG_RATIO, so that it stays finite.

    Schulman 2020, "Approximating KL divergence". The expectations are over samples of the policy.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"unknown kl_estimator {estimator!r}: available are {', '.join(ESTIMATORS)}"
        )
    difference = log_probs - reference_log_probs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    difference = difference.clamp(min=-MAX_LOG_RATIO)
    return torch.expm1(-difference) + difference


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
    """A part's share of the step's loss, `loss`, with gradient; and sums without gradient, which
    `metrics` turns into values of the log.

    log_probs, mask: [B, T] of the part, and so are the optional tensors. old_log_probs: of the
    policy that sampled (default: this policy, every ratio is 1). reference_log_probs: required for
    kl_coef above 0; with kl_coef 0 the KL is only logged. entropies: required, with gradient, for
    entropy_coef above 0; otherwise only logged. behaviour_weights: factors of each token's loss
    without KL and entropy (decoupled objective, arXiv 2505.24298, section 5.2). advantages: [B].
    Half precision is widened to float32.

    Raises ValueError for shapes that do not fit, a missing reference or missing entropies.
    """
    named = {
        "old_log_probs": old_log_probs,
        "reference_log_probs": reference_log_probs,
        "entropies": entropies,
        "behaviour_weights": behaviour_weights,
    }
    for name, tensor in {"mask": mask, **named}.items():
        if tensor is not None and tensor.shape != log_probs.shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, log_probs {list(log_probs.shape)}: they "
                "must agree"
            )
    if advantages.shape != log_probs.shape[:1]:
        raise ValueError(
            f"advantages have shape {list(advantages.shape)}, not [{len(log_probs)}]: one for each "
            "sequence"
        )
    if objective.kl_coef and reference_log_probs is None:
        raise ValueError(
            f"kl_coef is {objective.kl_coef} and there are no reference_log_probs: compute them "
            "once with the reference model, or set it to 0"
        )
    if objective.entropy_coef and (entropies is None or _without_gradient(log_probs, entropies)):
        raise ValueError(
            f"entropy_coef is {objective.entropy_coef} and the entropies have no gradient: compute "
            "them with `entropy_gradient`, or set it to 0"
        )
    mask = mask.bool()
    # Masked before any arithmetic: the gradient of a value masked after an infinity is NaN, not 0.
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
        entropies = _masked(entropies, mask)
        sums["entropy"] = entropies.detach().double().sum()
        if objective.entropy_coef:
            losses = losses - objective.entropy_coef * entropies
    sums.update(_clipped(log_probs.detach(), old, advantages, mask, objective))
    return {"loss": (losses * token_weights(mask, step, objective).to(losses.dtype)).sum(), **sums}


def metrics(sums: Mapping[str, Any]) -> dict[str, float]:
    """Values of a step's log from the sums over its parts, under TRL's names.

    `kl` and `entropy` in nats, mean over tokens; `clip_ratio/low_mean`, `high_mean` and
    `region_mean`, shares of the ratios (per token or per sequence) that the bounds clip.
    """
    tokens, num_ratios = max(1, int(sums["tokens"])), max(1, int(sums["ratios"]))
    means = {name: float(sums[name]) / tokens for name in ("kl", "entropy") if name in sums}
    low, high = float(sums["clipped_low"]) / num_ratios, float(sums["clipped_high"]) / num_ratios
    return {
        **means,
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low + high,
    }


def _without_gradient(log_probs: Tensor, entropies: Tensor) -> bool:
    return log_probs.requires_grad and not entropies.requires_grad


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    """0 where the mask is off; half precision widened to float32."""
    wide = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    return wide.masked_fill(~mask, 0.0)


def _clipped(
    log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, objective: Objective
) -> dict[str, Tensor]:
    """Numbers of ratios, and of those that the lower and the upper bound clip."""
    ratio = ratios(log_probs, old, mask, objective.importance_sampling_level)
    counted = (
        mask if objective.importance_sampling_level == "token" else mask.any(dim=1, keepdim=True)
    )
    advantage = advantages.unsqueeze(1)
    low = (ratio < 1 - objective.epsilon_low) & (advantage < 0) & counted
    high = (ratio > 1 + objective.epsilon_high) & (advantage > 0) & counted
    low = low & (objective.loss_type != "cispo")  # which has no lower bound
    return {"ratios": counted.sum(), "clipped_low": low.sum(), "clipped_high": high.sum()}
