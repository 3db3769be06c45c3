"""What a block does between joined projections and what reads them, each as one kernel with its
gradient: rotated heads of joined queries, keys and values, and SwiGLU of a joined gate and up.

    query, key, value = split_heads(qkv, cos, sin, heads, kv_heads)   # [B, T, (H + 2 H_kv) D]
    inner = swiglu(gate_up)                                           # [N, 2 I] -> [N, I]

One product over joined weights is faster than several narrow ones, but its gradient must be one
tensor again. Torch's compiler joins it by a kernel that computes each part for every element: at
width 512 that took 0.8 ms of a block's 4.7 on an H200. These kernels write the parts where they
belong.

Guarantees: equal to the plain operations, forward and backward, up to rounding of the dtype (sums
and sigmoids are float32; tests/kernels/test_joined.py, in Triton's interpreter on the CPU); custom
operators whose shapes are known to torch.compile.
Out of scope: head sizes that are no power of two, second derivatives.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _split_heads(
    joined_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    cos_ptr,
    sin_ptr,
    num_tokens,
    angle_tokens,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head of BLOCK tokens between the joined row and its own tensor. BACKWARD: from the heads
    to the joined row, with the rotation transposed. cos, sin: float32 [angle_tokens, D].
    """
    head = tl.program_id(1)
    tokens = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    inside = tokens < num_tokens
    half = tl.arange(0, D // 2)[None, :]
    joined = joined_ptr + (tokens * (HEADS + 2 * KV_HEADS) + head) * D + half
    if head < HEADS:
        own = query_ptr + (tokens * HEADS + head) * D + half
    elif head < HEADS + KV_HEADS:
        own = key_ptr + (tokens * KV_HEADS + head - HEADS) * D + half
    else:
        own = value_ptr + (tokens * KV_HEADS + head - HEADS - KV_HEADS) * D + half
    if BACKWARD:
        source, target = own, joined
    else:
        source, target = joined, own
    first = tl.load(source, mask=inside)
    second = tl.load(source + D // 2, mask=inside)
    if head < HEADS + KV_HEADS:
        angles = (tokens % angle_tokens) * D + half
        cos = tl.load(cos_ptr + angles, mask=inside)
        # The first half of sin carries the minus sign of the rotation; the second half does not.
        sin = tl.load(sin_ptr + angles + D // 2, mask=inside)
        if BACKWARD:
            sin = -sin
        x, y = first.to(tl.float32), second.to(tl.float32)
        first = (x * cos - y * sin).to(target.dtype.element_ty)
        second = (y * cos + x * sin).to(target.dtype.element_ty)
    tl.store(target, first, mask=inside)
    tl.store(target + D // 2, second, mask=inside)


@triton.jit
def _swiglu_forward(joined_ptr, inner_ptr, width, BLOCK: tl.constexpr):
    """silu(gate) * up of BLOCK numbers of one row; joined [rows, 2 width]."""
    row = tl.program_id(0).to(tl.int64)  # the axis without a limit of 65,535
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(joined_ptr + row * 2 * width + columns, mask=inside).to(tl.float32)
    up = tl.load(joined_ptr + row * 2 * width + width + columns, mask=inside).to(tl.float32)
    inner = gate * tl.sigmoid(gate) * up
    tl.store(inner_ptr + row * width + columns, inner.to(inner_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(gradient_ptr, joined_ptr, joined_gradient_ptr, width, BLOCK: tl.constexpr):
    """The gradient of both halves of one row."""
    row = tl.program_id(0).to(tl.int64)  # the axis without a limit of 65,535
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    start = row * 2 * width
    gate = tl.load(joined_ptr + start + columns, mask=inside).to(tl.float32)
    up = tl.load(joined_ptr + start + width + columns, mask=inside).to(tl.float32)
    gradient = tl.load(gradient_ptr + row * width + columns, mask=inside).to(tl.float32)
    share = tl.sigmoid(gate)
    to_up = gradient * gate * share
    to_gate = gradient * up * share * (1 + gate * (1 - share))
    dtype = joined_gradient_ptr.dtype.element_ty
    tl.store(joined_gradient_ptr + start + columns, to_gate.to(dtype), mask=inside)
    tl.store(joined_gradient_ptr + start + width + columns, to_up.to(dtype), mask=inside)


def _launch_heads(
    joined: Tensor, parts: tuple[Tensor, Tensor, Tensor], cos: Tensor, sin: Tensor, backward: bool
) -> None:
    batch, length, heads, head_dim = parts[0].shape
    block = 64 if joined.is_cuda else 16
    grid = (triton.cdiv(batch * length, block), heads + 2 * parts[1].shape[2])
    _split_heads[grid](
        joined,
        *parts,
        cos,
        sin,
        batch * length,
        cos.shape[0] * cos.shape[1],
        HEADS=heads,
        KV_HEADS=parts[1].shape[2],
        D=head_dim,
        BACKWARD=backward,
        BLOCK=block,
        num_warps=4,
    )


@torch.library.custom_op("moxin_lab::split_heads", mutates_args=())
def _heads(
    joined: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    parts = _empty_heads(joined, heads, kv_heads)
    _launch_heads(joined.contiguous(), parts, cos.contiguous(), sin.contiguous(), False)
    return parts


def _empty_heads(joined: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, width = joined.shape
    head_dim = width // (heads + 2 * kv_heads)
    query = joined.new_empty(batch, length, heads, head_dim)
    key = joined.new_empty(batch, length, kv_heads, head_dim)
    return query, key, torch.empty_like(key)


@_heads.register_fake
def _(joined: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> Any:
    return _empty_heads(joined, heads, kv_heads)


@torch.library.custom_op("moxin_lab::split_heads_backward", mutates_args=())
def _heads_backward(query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    joined = _empty_joined(query, key)
    parts = (query.contiguous(), key.contiguous(), value.contiguous())
    _launch_heads(joined, parts, cos.contiguous(), sin.contiguous(), True)
    return joined


def _empty_joined(query: Tensor, key: Tensor) -> Tensor:
    batch, length, heads, head_dim = query.shape
    return query.new_empty(batch, length, (heads + 2 * key.shape[2]) * head_dim)


@_heads_backward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _empty_joined(query, key)


def _save_angles(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(inputs[1], inputs[2])


def _heads_gradient(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple:
    return _heads_backward(query, key, value, *ctx.saved_tensors), None, None, None, None


_heads.register_autograd(_heads_gradient, setup_context=_save_angles)


def split_heads(
    joined: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, rotated, and values: [B, T, H, D], [B, T, H_kv, D] twice.

    joined: [B, T, (H + 2 H_kv) D]. cos, sin: float32 [B or 1, T, 1, D] of `rotary_angles`, the
    first half of sin with the minus sign.
    """
    query, key, value = _heads(joined, cos, sin, heads, kv_heads)
    return query, key, value


@torch.library.custom_op("moxin_lab::swiglu", mutates_args=())
def _swiglu(joined: Tensor) -> Tensor:
    joined = joined.contiguous()
    width = joined.shape[-1] // 2
    inner = joined.new_empty(*joined.shape[:-1], width)
    rows = inner.numel() // width
    block = 1024 if joined.is_cuda else 32
    _swiglu_forward[(rows, triton.cdiv(width, block))](
        joined, inner, width, BLOCK=block, num_warps=4
    )
    return inner


@_swiglu.register_fake
def _(joined: Tensor) -> Tensor:
    return joined.new_empty(*joined.shape[:-1], joined.shape[-1] // 2)


@torch.library.custom_op("moxin_lab::swiglu_backward", mutates_args=())
def _swiglu_gradient(gradient: Tensor, joined: Tensor) -> Tensor:
    gradient, joined = gradient.contiguous(), joined.contiguous()
    width = gradient.shape[-1]
    rows = gradient.numel() // width
    result = torch.empty_like(joined)
    block = 1024 if joined.is_cuda else 32
    _swiglu_backward[(rows, triton.cdiv(width, block))](
        gradient, joined, result, width, BLOCK=block, num_warps=4
    )
    return result


@_swiglu_gradient.register_fake
def _(gradient: Tensor, joined: Tensor) -> Tensor:
    return joined.new_empty(joined.shape)


_swiglu.register_autograd(
    lambda ctx, gradient: _swiglu_gradient(gradient, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


def swiglu(joined: Tensor) -> Tensor:
    """silu(gate) * up of joined [..., 2 I] with the gate first: [..., I]."""
    result: Tensor = _swiglu(joined)
    return result
