"""AdamW for every training here: our kernel on a GPU, PyTorch's fused one elsewhere; the update and the state are the same."""

from typing import Any

import torch


def build_adamw(groups: list[dict[str, Any]], **constants: Any) -> torch.optim.AdamW:
    """groups: parameter groups, on the device where they will be trained; constants: lr, betas, eps, weight_decay.

    On one H100 the kernel moves 2.96 TB/s, and a training step takes 171.0 instead of 175.6 ms (reports/released/h100).
    """
    optimizer = _fastest(groups, constants)
    # The fused step offers to divide by a float16 scaler's scale itself. Clipping needs gradients divided before the step, and
    # Lightning refuses to clip under any mixed precision, bfloat16 too, where that offer stands.
    optimizer._step_supports_amp_scaling = False
    return optimizer


def _fastest(groups: list[dict[str, Any]], constants: dict[str, Any]) -> torch.optim.AdamW:
    if all(parameter.is_cuda for group in groups for parameter in group["params"]):
        from moxin_lab.kernels.adamw import AdamW

        return AdamW(groups, **constants)
    return torch.optim.AdamW(groups, **constants, fused=True)


def adamw_of(groups: list[dict[str, Any]], settings: Any) -> torch.optim.AdamW:
    """`build_adamw` with the constants of a training's settings: learning_rate, adam_beta1, adam_beta2, adam_eps. Each group
    says its own weight_decay."""
    return build_adamw(
        groups, lr=settings.learning_rate, betas=(settings.adam_beta1, settings.adam_beta2), eps=settings.adam_eps
    )
