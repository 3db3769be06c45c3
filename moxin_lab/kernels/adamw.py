"""AdamW as one kernel per tensor: a single pass over the weights, the gradients and both moments.

    optimizer = AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)

Guarantees: the update equals that of `torch.optim.AdamW(fused=True)`, computed in float32 whatever
the dtypes of the tensors, and the state has the same layout, so either optimizer continues a run of
the other (tests/kernels/test_adamw.py, in Triton's interpreter on the CPU). A step with
`optimizer.found_inf` (float32 [], set between backward pass and update) above 0 changes nothing, as
with PyTorch's fused optimizers, and nothing waits for the device to know it.
Out of scope: AMSGrad, `maximize`, sparse gradients and the unscaling of a gradient scaler, each of
which raises an error.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.distributed.tensor import DTensor


@triton.jit
def _update(
    weights_ptr,
    gradients_ptr,
    means_ptr,
    squares_ptr,
    corrections_ptr,
    found_inf_ptr,
    index,
    size,
    learning_rate,
    decay,
    beta1,
    beta2,
    eps,
    BLOCK: tl.constexpr,
):
    """One block of tensor `index` of a parameter group (Loshchilov and Hutter 2019, arXiv
    1711.05101, algorithm 2). corrections: float32 [tensors, 2], 1 - beta^step of both moments.
    """
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < tl.where(tl.load(found_inf_ptr) > 0, 0, size)
    weights = tl.load(weights_ptr + offsets, mask=inside).to(tl.float32)
    gradients = tl.load(gradients_ptr + offsets, mask=inside).to(tl.float32)
    means = tl.load(means_ptr + offsets, mask=inside).to(tl.float32)
    squares = tl.load(squares_ptr + offsets, mask=inside).to(tl.float32)
    weights -= learning_rate * decay * weights
    means += (1 - beta1) * (gradients - means)
    squares = beta2 * squares + (1 - beta2) * gradients * gradients
    mean_correction = tl.load(corrections_ptr + 2 * index)
    square_correction = tl.load(corrections_ptr + 2 * index + 1)
    weights -= (
        learning_rate
        / mean_correction
        * means
        / (tl.sqrt(squares) / tl.sqrt(square_correction) + eps)
    )
    tl.store(weights_ptr + offsets, weights.to(weights_ptr.dtype.element_ty), mask=inside)
    tl.store(means_ptr + offsets, means.to(means_ptr.dtype.element_ty), mask=inside)
    tl.store(squares_ptr + offsets, squares.to(squares_ptr.dtype.element_ty), mask=inside)


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` whose step is one kernel per tensor, with the same constants, parameter
    groups and state dictionary.
    """

    def __init__(self, params: Any, **constants: Any) -> None:
        refused = constants.keys() & {
            "amsgrad",
            "maximize",
            "foreach",
            "capturable",
            "differentiable",
        }
        if refused:
            raise ValueError(
                f"this AdamW does not support {', '.join(sorted(refused))}: use torch.optim.AdamW"
            )
        super().__init__(params, **{**constants, "fused": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if getattr(self, "grad_scale", None) is not None:
            raise RuntimeError(
                "unscaling by a gradient scaler (float16) is not supported by this AdamW: "
                "let the scaler unscale before the step, or use torch.optim.AdamW"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        lists: tuple[list[Any], ...] = ([], [], [], [], [], [])
        self._init_group(group, *lists)  # creates missing state as torch does
        weights, gradients, means, squares, _, steps = lists
        if not weights:
            return
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None:
            found_inf = torch.zeros((), device=steps[0].device)
        torch._foreach_add_(steps, 1 - found_inf)
        beta1, beta2 = (float(beta) for beta in group["betas"])
        # The step counts are on the device, and so are the corrections: no copy to it, and no wait.
        num_steps = torch.stack(steps).double()
        corrections = torch.stack((1 - beta1**num_steps, 1 - beta2**num_steps), dim=1).float()
        for index, tensors in enumerate(zip(weights, gradients, means, squares, strict=True)):
            _launch(
                *(_local(tensor) for tensor in tensors),
                corrections,
                found_inf,
                index,
                float(group["lr"]),
                float(group["weight_decay"]),
                beta1,
                beta2,
                float(group["eps"]),
            )


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor (FSDP2), or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _launch(weights: Tensor, gradients: Tensor, means: Tensor, squares: Tensor, *rest: Any) -> None:
    if not (weights.is_contiguous() and means.is_contiguous() and squares.is_contiguous()):
        raise ValueError(
            f"a parameter of shape {list(weights.shape)} is not contiguous: "
            "make it contiguous before the optimizer is built"
        )
    corrections, found_inf, index, learning_rate, decay, beta1, beta2, eps = rest
    size = weights.numel()
    if size:
        block = 2048 if weights.is_cuda else 64
        _update[(triton.cdiv(size, block),)](
            weights,
            gradients.contiguous(),
            means,
            squares,
            corrections,
            found_inf,
            index,
            size,
            learning_rate,
            decay,
            beta1,
            beta2,
            eps,
            BLOCK=block,
            num_warps=4,
        )
