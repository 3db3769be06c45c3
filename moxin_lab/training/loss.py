"""Linear layer and cross-entropy as one operation over chunks of tokens: the logits of all tokens
are never in memory at once.

    # hidden_states [B, T, C], weight [V, C], labels [B, T]
    loss = linear_cross_entropy(hidden_states, model.lm_head.weight, labels, reduction="sum")

A chunk's gradients follow from its logits (softmax minus target), so both are computed in the
forward pass and the logits discarded: chunk x vocabulary numbers are in memory instead of tokens x
vocabulary, twice. Large chunks keep the matrix products large; small ones fit a processor's cache.

Guarantees: loss and both gradients equal those of `F.cross_entropy` on the full logits to rounding
(tests/training/test_loss.py); softmax and sums run in float32 at least, and the weight's gradient
is summed over chunks in float32; under autocast the products run in autocast's dtype, as those of
the full logits would. Traced by torch.compile without a graph break.
Out of scope: second derivatives; filtering small gradients (each one is exact).
"""

from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        chunk_tokens: int,
        label_smoothing: float,
        product_dtype: torch.dtype,
        wants_gradients: bool,
    ) -> Tensor:
        """Sum over tokens; hidden [N, C], weight [V, C], labels [N], -100 where nothing is
        predicted.
        """
        wants_hidden, wants_weight = (
            wants and wants_gradients for wants in ctx.needs_input_grad[:2]
        )
        exact = torch.promote_types(product_dtype, torch.float32)
        matrix = weight.to(product_dtype)
        num_tokens = hidden.shape[0]
        total = hidden.new_zeros((), dtype=exact)
        hidden_parts = []
        grad_weight: Any = None
        for start in range(0, num_tokens, chunk_tokens):
            states = hidden[start : start + chunk_tokens].to(product_dtype)
            targets = labels[start : start + chunk_tokens, None]
            counted = targets != IGNORE_INDEX
            targets = torch.where(counted, targets, 0)
            logits = states @ matrix.T  # [chunk, C] @ [C, V] -> [chunk, V]
            if logits.is_cuda and product_dtype != torch.float64:
                # The kernel overwrites the logits with their gradient.
                from moxin_lab.kernels.cross_entropy import cross_entropy_

                row_labels = targets[:, 0].where(counted[:, 0], IGNORE_INDEX)
                losses = cross_entropy_(logits, row_labels, label_smoothing, IGNORE_INDEX)
                total = total + losses.sum()
                gradient = logits
            else:
                added, gradient = _plain(logits.to(exact), targets, counted, label_smoothing)
                total = total + added
                gradient = gradient.to(product_dtype)
            if not (wants_hidden or wants_weight):
                continue
            if wants_hidden:
                hidden_parts.append((gradient @ matrix).to(hidden.dtype))
            if wants_weight and num_tokens <= chunk_tokens:
                # One chunk: there is no sum over chunks, so no float32 copy either.
                grad_weight = gradient.T @ states  # [V, C]
            elif wants_weight and grad_weight is None:
                grad_weight = (gradient.T @ states).to(exact)
            elif wants_weight and product_dtype == exact:
                grad_weight.addmm_(gradient.T, states)
            elif wants_weight:
                grad_weight += gradient.T @ states
        empty = hidden.new_zeros(())
        ctx.save_for_backward(
            torch.cat(hidden_parts) if wants_hidden else empty,
            grad_weight if wants_weight else empty,
        )
        ctx.wants, ctx.weight_dtype = (wants_hidden, wants_weight), weight.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.wants
        return (
            grad_hidden * grad_output.to(grad_hidden.dtype) if wants_hidden else None,
            (grad_weight * grad_output).to(ctx.weight_dtype) if wants_weight else None,
            *[None] * 5,
        )


def _plain(
    logits: Tensor, targets: Tensor, counted: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Sum of losses and its gradient, written over the logits [N, V]; targets int64 [N, 1], counted
    bool [N, 1].
    """
    normaliser = logits.logsumexp(dim=-1, keepdim=True)
    losses = normaliser - (1 - label_smoothing) * logits.gather(1, targets)
    if label_smoothing:
        losses = losses - label_smoothing * logits.mean(dim=-1, keepdim=True)
    total = torch.where(counted, losses, 0.0).sum()
    gradient = logits.sub_(normaliser).exp_()
    gradient.scatter_add_(1, targets, gradient.new_full((), label_smoothing - 1).expand_as(targets))
    if label_smoothing:
        gradient.sub_(label_smoothing / logits.shape[1])
    return total, gradient.mul_(counted)


def linear_cross_entropy(
    hidden_states: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    chunk_tokens: int = 4096,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of `hidden_states @ weight.T` against `labels`, as
    `F.cross_entropy(logits.float(), labels)` would give it.

    Args:
        hidden_states: [..., C]. weight: [V, C]. labels: int64 [...], `IGNORE_INDEX` (-100) where
        nothing is predicted.
        chunk_tokens: tokens whose logits are in memory at once.
        label_smoothing: share of the target spread evenly over the vocabulary (Szegedy et al. 2016,
        arXiv 1512.00567).
        reduction: "mean" over the labels that count (NaN if none does, as in PyTorch) or "sum".

    Returns a scalar of float32 (float64 for float64 input). Raises ValueError for shapes or
    settings that do not fit.
    """
    if (
        hidden_states.shape[:-1] != labels.shape
        or weight.ndim != 2
        or weight.shape[1] != hidden_states.shape[-1]
    ):
        raise ValueError(
            f"hidden_states {tuple(hidden_states.shape)}, weight {tuple(weight.shape)}, labels "
            f"{tuple(labels.shape)}: expected [..., C], [V, C] and [...]"
        )
    if chunk_tokens < 1 or not 0 <= label_smoothing < 1:
        raise ValueError(
            f"chunk_tokens {chunk_tokens} must be at least 1, label_smoothing {label_smoothing} in "
            "[0, 1)"
        )
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}: it must be 'mean' or 'sum'")
    device = hidden_states.device.type
    autocast = torch.is_autocast_enabled(device)
    product_dtype = torch.get_autocast_dtype(device) if autocast else hidden_states.dtype
    if not autocast and weight.dtype != hidden_states.dtype:
        raise ValueError(
            f"hidden_states are {hidden_states.dtype}, weight is {weight.dtype}: they must be "
            "equal, or under autocast"
        )
    with torch.autocast(device, enabled=False):
        total = _LinearCrossEntropy.apply(
            hidden_states.flatten(0, -2),
            weight,
            labels.flatten(),
            chunk_tokens,
            label_smoothing,
            product_dtype,
            torch.is_grad_enabled(),
        )
    return total if reduction == "sum" else total / (labels != IGNORE_INDEX).sum()
