"""flash-attn-4 (package `flash-attn-4`, extra `gpu`) as a PyTorch operator that torch.compile does not break its graph at.

Guarantees: causal and windowed attention with grouped heads, forward and backward, by the package's own kernels; `refusal`
says in words why they cannot run.
Does not: documents (their borders would have to be known on the host), dropout, a deterministic backward (its dQ is added up by
atomics; the `triton` back end is deterministic).
"""

from typing import Any

import torch
from torch import Tensor


def package() -> Any:
    """flash-attn-4's interface module, or the reason in words why it cannot be had."""
    try:
        from flash_attn.cute import interface
    except ImportError as error:
        return f"flash-attn-4 cannot be imported ({error}): pip install 'moxin-lab[gpu]'"
    return interface


def refusal(query: Tensor) -> str | None:
    """Why the kernels cannot run on tensors like `query`; None where they can."""
    if not query.is_cuda or torch.cuda.get_device_capability(query.device)[0] < 9:
        return "flash-attn-4 needs a GPU of compute capability 9.0 or above"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"dtype is {query.dtype}: flash-attn-4 knows float16 and bfloat16"
    if query.shape[3] not in (64, 96, 128):
        return f"head_dim is {query.shape[3]}: flash-attn-4 is used for 64, 96 and 128"
    found = package()
    return found if isinstance(found, str) else None


def flash_attention(query: Tensor, key: Tensor, value: Tensor, sliding_window: int | None) -> Tensor:
    """As `window_attention`, without documents. Raises ValueError where the kernels cannot run."""
    reason = refusal(query)
    if reason is not None:
        raise ValueError(f"the flash back end cannot run: {reason}")
    window = 0 if sliding_window is None or sliding_window >= key.shape[2] else sliding_window
    return _flash(query, key, value, window)[0]


def _window(window: int) -> dict[str, int | None]:
    return {"window_size_left": window - 1 if window else None, "window_size_right": 0 if window else None}


@torch.library.custom_op("moxin_lab::flash", mutates_args=())
def _flash(query: Tensor, key: Tensor, value: Tensor, window: int) -> tuple[Tensor, Tensor]:
    # The package reads [B, T, H, D].
    rows = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    output, log_sum, *_ = package()._flash_attn_fwd(*rows, causal=True, **_window(window), return_lse=True)
    return output.transpose(1, 2), log_sum


@_flash.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, window: int) -> tuple[Tensor, Tensor]:
    batch, heads, length, head_dim = query.shape
    output = query.new_empty(batch, length, heads, head_dim).transpose(1, 2)
    return output, query.new_empty(batch, heads, length, dtype=torch.float32)


@torch.library.custom_op("moxin_lab::flash_backward", mutates_args=())
def _flash_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, log_sum: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value, output, gradient = (t.transpose(1, 2) for t in (query, key, value, output, gradient))
    gradients = package()._flash_attn_bwd(
        query, key, value, output, gradient.contiguous(), log_sum, causal=True, **_window(window)
    )
    return gradients[0].transpose(1, 2), gradients[1].transpose(1, 2), gradients[2].transpose(1, 2)


@_flash_backward.register_fake
def _(gradient, query, key, value, output, log_sum, window):
    def like(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)

    return like(query), like(key), like(value)


def _remember(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    query, key, value, window = inputs
    ctx.save_for_backward(query, key, value, *output)
    ctx.window = window
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, gradient: Tensor, _: Any) -> tuple:
    return *_flash_backward(gradient, *ctx.saved_tensors, ctx.window), None


_flash.register_autograd(_gradients, setup_context=_remember)
