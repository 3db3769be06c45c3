"""flash-attn-4 (package `flash-attn-4`, extra `gpu`) as a PyTorch operator, at which torch.compile
does not break its graph.

Guarantees: causal and windowed attention with grouped heads and documents (by the package's kernels
for rows of unequal lengths laid end to end), forward and backward; `unsupported_reason` says why
the kernels cannot run.
Out of scope: dropout; a deterministic backward (dQ is accumulated by atomics; the `triton` backend
is deterministic).
"""

from typing import Any

import torch
from torch import Tensor


def package() -> Any:
    """The interface module of flash-attn-4, or the reason why it cannot be imported."""
    try:
        from flash_attn.cute import interface
    except ImportError as error:
        return f"flash-attn-4 cannot be imported ({error}): pip install 'moxin-lab[gpu]'"
    return interface


def unsupported_reason(query: Tensor) -> str | None:
    """Why the kernels cannot run on tensors like `query` [B, H, T, D]; None if they can."""
    if not query.is_cuda or torch.cuda.get_device_capability(query.device)[0] < 9:
        return "flash-attn-4 needs a GPU of compute capability 9.0 or above"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"dtype is {query.dtype}: flash-attn-4 supports float16 and bfloat16"
    if query.shape[3] not in (64, 96, 128):
        return f"head_dim is {query.shape[3]}: flash-attn-4 is used for 64, 96 and 128"
    module_or_reason = package()
    return module_or_reason if isinstance(module_or_reason, str) else None


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sliding_window: int | None,
    runs: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention as in `window_attention`; `runs` are the borders of documents
    (`AttentionMask.document_runs`). Raises ValueError if the kernels cannot run.
    """
    reason = unsupported_reason(query)
    if reason is not None:
        raise ValueError(f"the flash backend cannot run: {reason}")
    window = 0 if sliding_window is None or sliding_window >= key.shape[2] else sliding_window
    queries, keys = (None, None) if runs is None else runs
    return _flash(query, key, value, queries, keys, window)[0]


def _options(queries: Tensor | None, keys: Tensor | None, window: int) -> dict[str, Any]:
    # The length of the longest document is not passed: the kernels do not need it on this GPU, and
    # each new value would make torch.compile compile a block again.
    return {
        "causal": True,
        "window_size_left": window - 1 if window else None,
        "window_size_right": 0 if window else None,
        "cu_seqlens_q": queries,
        "cu_seqlens_k": keys,
    }


def _rows(tensor: Tensor, runs: Tensor | None) -> Tensor:
    """[B, H, T, D] as the package reads it: [B, T, H, D], or with documents [B * T, H, D]."""
    tensor = tensor.transpose(1, 2)
    return tensor if runs is None else tensor.reshape(-1, *tensor.shape[2:])


def _heads(tensor: Tensor, batch: int) -> Tensor:
    """The inverse of `_rows`: back to [B, H, T, D]."""
    return tensor.reshape(batch, -1, *tensor.shape[-2:]).transpose(1, 2)


@torch.library.custom_op("moxin_lab::flash", mutates_args=())
def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Tensor | None,
    keys: Tensor | None,
    window: int,
) -> tuple[Tensor, Tensor]:
    """Output [B, H, T, D] and the log-sum-exp of each row, float32 [B, H, T], or with documents
    [H, B * T].
    """
    rows = [_rows(tensor, queries) for tensor in (query, key, value)]
    output, log_sum, *_ = package()._flash_attn_fwd(
        *rows, **_options(queries, keys, window), return_lse=True
    )
    return _heads(output, len(query)), log_sum


@_flash.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Tensor | None,
    keys: Tensor | None,
    window: int,
) -> tuple[Tensor, Tensor]:
    batch, heads, length, head_dim = query.shape
    output = query.new_empty(batch, length, heads, head_dim).transpose(1, 2)
    shape = (batch, heads, length) if queries is None else (heads, batch * length)
    return output, query.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("moxin_lab::flash_backward", mutates_args=())
def _flash_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum: Tensor,
    queries: Tensor | None,
    keys: Tensor | None,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch = len(query)
    query, key, value, output, gradient = (
        _rows(t, queries) for t in (query, key, value, output, gradient)
    )
    gradients = package()._flash_attn_bwd(
        query, key, value, output, gradient.contiguous(), log_sum, **_options(queries, keys, window)
    )
    return _heads(gradients[0], batch), _heads(gradients[1], batch), _heads(gradients[2], batch)


@_flash_backward.register_fake
def _(gradient, query, key, value, output, log_sum, queries, keys, window):
    def like(tensor: Tensor) -> Tensor:
        return torch.empty_like(
            tensor.transpose(1, 2), memory_format=torch.contiguous_format
        ).transpose(1, 2)

    return like(query), like(key), like(value)


def _save_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    query, key, value, queries, keys, window = inputs
    ctx.save_for_backward(query, key, value, *output, queries, keys)
    ctx.window = window
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: Any) -> tuple:
    return *_flash_backward(gradient, *ctx.saved_tensors, ctx.window), None, None, None


_flash.register_autograd(_backward, setup_context=_save_for_backward)
