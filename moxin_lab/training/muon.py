"""Muon for the matrices of the blocks, beside AdamW for the rest: a second optimizer to compare
with.

    momentum  m <- 0.95 m + 0.05 gradient            (and once more towards m: Nesterov)
    update    five Newton-Schulz steps bring m's singular values near 1
    weights   w <- (1 - rate x decay) w - rate x 0.2 x sqrt(max(rows, columns)) x update

The factor gives an update the root mean square of AdamW's, so that AdamW's learning rate and weight
decay carry over (Liu et al. 2025, arXiv 2502.16982, section 2.2, Moonshot). The steps and their
coefficients are Jordan's (kellerjordan.github.io/posts/muon), in bfloat16 as there.

Guarantees: the update is that of `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, which PyTorch
has from 2.9 on (tests/training/test_muon.py); matrices of one shape are done together, which on a
GPU is what takes the time; a step with `found_inf` above 0 changes nothing, as with our AdamW.
Out of scope: matrices that are split over devices; embedding, head and norms (`muon_with_adamw`).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from moxin_lab.training.optimizer import AdamWSettings, adamw_of

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """`params`: matrices. Raises ValueError for a parameter that is none."""

    def __init__(self, params: Any, *, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(
                        f"Muon is for matrices, and a parameter has shape "
                        f"{tuple(parameter.shape)}: give it to AdamW"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for matrices in alike.values():
                self._update(matrices, group["lr"], group["weight_decay"], found_inf)
        return loss

    def _update(
        self, matrices: list[nn.Parameter], lr: float, decay: float, found_inf: Tensor | None
    ) -> None:
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        gradients = torch.stack([matrix.grad for matrix in matrices])  # [matrices, rows, columns]
        taken: Tensor | float = 1.0
        if found_inf is not None:
            # A product with 0 would keep a NaN.
            gradients = torch.where(found_inf > 0, torch.stack(buffers), gradients)
            taken = 1 - found_inf
        momentum = torch.stack(buffers).lerp_(gradients, 1 - MOMENTUM)
        torch._foreach_copy_(buffers, list(momentum.unbind()))
        update = orthogonal(gradients.lerp(momentum, MOMENTUM))
        rate = lr * 0.2 * math.sqrt(max(matrices[0].shape))
        torch._foreach_mul_(matrices, 1 - lr * decay * taken)
        change = update.to(matrices[0].dtype) * (-rate * taken)
        torch._foreach_add_(matrices, list(change.unbind()))


def orthogonal(matrices: Tensor) -> Tensor:
    """Newton-Schulz: matrices [N, rows, columns] with the same singular vectors and singular values
    of about 0.7 to 1.2, in bfloat16.
    """
    first, second, third = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    states = matrices.bfloat16()
    if tall:
        states = states.mT
    states = states / states.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(STEPS):
        gram = states @ states.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
        states = torch.baddbmm(states, polynomial, states, beta=first)
    return states.mT if tall else states


def muon_with_adamw(model: nn.Module, settings: AdamWSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks; AdamW for embedding, head and norms, as the pretraining
    has it: decay on the head alone of these. settings: a scale's `pretraining` section, whose
    learning rate and weight decay both optimizers take.
    """
    decay: float = settings.weight_decay  # type: ignore[attr-defined]
    matrices, decayed, others = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and ".layers." in name:
            matrices.append(parameter)
        elif parameter.ndim >= 2 and "embed_tokens" not in name:
            decayed.append(parameter)
        else:
            others.append(parameter)
    rest = [
        {"params": decayed, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [
        Muon(matrices, lr=settings.learning_rate, weight_decay=decay),
        adamw_of([group for group in rest if group["params"]], settings),
    ]
