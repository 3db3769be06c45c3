"""Windowed, document-wise, grouped attention on Triton kernels, as a PyTorch operator with its
gradient.

    output = window_attention(query, key, value, sliding_window=4096, starts=starts, ends=ends)

    launch              computes                                            products per tile
    -----------------   -------------------------------------------------   -----------------
    forward             output, log2 of each row's sum                      2
    backward: delta     delta = rowsum(output * d output)                   0
    backward: keys      S^T, dP^T, dV, dK; stores dS^T of some heads        4
    backward: queries   dQ = dS K, from the stored dS^T                     1

If the workspace is too small for the dS^T of one head group, the launch for the queries computes S
and dP again, with 3 products per tile. Five products instead of seven make the backward fast;
storing dS^T instead of adding up dQ with atomics keeps it deterministic. The kernels are those of
tiles_forward.py and tiles_backward.py, and on Hopper with 16-bit types those of hopper_*.py.

Guarantees: equal to `reference` forward and backward at any T <= S (tests/kernels); deterministic;
a custom operator whose shapes are known to torch.compile.
Out of scope: dropout, bias, head sizes other than 16, 32, 64, 128 and 256, second derivatives.
"""

import functools
import math
import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.runtime.interpreter  # a submodule that `import triton` alone does not load
from torch import Tensor

from moxin_lab.kernels import tiles_backward, tiles_forward

WORKSPACE_SHARE = 1 / 16
"""Largest share of the device's memory for the stored dS^T. Heads are processed in groups that fit
into it.
"""
HEAD_DIMS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Tiles:
    """Tile sizes of one kernel (rows and keys) and Triton's number of warps and stages."""

    rows: int
    keys: int
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class Plan:
    """Tiles of the launches forward, keys and queries; `hopper`: use the kernels of hopper_*.py."""

    forward: Tiles
    keys: Tiles
    queries: Tiles
    hopper: bool = False


@functools.lru_cache
def hopper_module() -> Any:
    """The kernels of hopper_*.py by name, or the reason why they cannot be imported."""
    try:
        from moxin_lab.kernels import (
            hopper_backward_keys,
            hopper_backward_queries,
            hopper_forward,
        )
    except ImportError as error:
        return f"this Triton ({triton.__version__}) lacks what kernels/hopper_*.py need: {error}"
    return SimpleNamespace(
        forward=hopper_forward.forward,
        backward_keys=hopper_backward_keys.backward_keys,
        backward_queries=hopper_backward_queries.backward_queries,
    )


@functools.lru_cache
def _is_hopper(device_index: int) -> bool:
    if torch.cuda.get_device_capability(device_index) != (9, 0):
        return False
    module_or_reason = hopper_module()
    if isinstance(module_or_reason, str):
        warnings.warn(
            f"attention runs on the slower kernels of tiles_*.py: {module_or_reason}", stacklevel=2
        )
    return not isinstance(module_or_reason, str)


def plan_for(query: Tensor) -> Plan:
    """The tiles for inputs like `query` [B, H, T, D], by head size, dtype and GPU."""
    head_dim = query.shape[3]
    if not query.is_cuda:  # Triton's interpreter: small tiles, so that small tests use several
        return Plan(Tiles(16, 16), Tiles(16, 32), Tiles(32, 32))
    if query.element_size() == 2 and head_dim in (64, 128) and _is_hopper(query.device.index):
        return Plan(Tiles(128, 128, 4, 2), Tiles(64, 128, 4, 2), Tiles(128, 128, 4, 3), hopper=True)
    if query.element_size() == 2 and head_dim <= 128:
        return Plan(Tiles(128, 64, 4, 3), Tiles(64, 128, 8, 2), Tiles(128, 128, 8, 3))
    return Plan(Tiles(64, 32, 4, 2), Tiles(32, 64, 4, 1), Tiles(64, 64, 4, 1))


def unsupported_reason(query: Tensor) -> str | None:
    """Why the kernels cannot run on tensors like `query` [B, H, T, D]; None if they can."""
    if query.shape[3] not in HEAD_DIMS:
        sizes = ", ".join(map(str, HEAD_DIMS))
        return f"head_dim is {query.shape[3]}: the kernels support {sizes}"
    if query.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"dtype is {query.dtype}: the kernels support float16, bfloat16 and float32"
    if not query.is_cuda and not isinstance(
        tiles_forward.forward, triton.runtime.interpreter.InterpretedFunction
    ):
        return (
            "the tensors are on the CPU: set TRITON_INTERPRET=1 before Triton is imported to run "
            "the kernels there"
        )
    return None


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    sliding_window: int | None = None,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
) -> Tensor:
    """Attention of queries [B, H, T, D] over keys and values [B, H_kv, S, D], T <= S; the last
    query is at the position of the last key.

    sliding_window: a query at position i sees keys j > i - sliding_window.
    starts: int32 [B, T], index of the first key of each query's document; never decreasing along a
        row.
    ends: int32 [B, S], index of the last key of each key's document (for the gradient).

    Returns [B, H, T, D] in memory of the layout [B, T, H, D]. Raises ValueError if the kernels
    cannot run.
    """
    reason = unsupported_reason(query)
    if reason is not None:
        raise ValueError(f"the triton backend cannot run: {reason}")
    window = 0 if sliding_window is None or sliding_window >= key.shape[2] else sliding_window
    return _attention(query, key, value, starts, ends, window)[0]


@functools.lru_cache
def workspace_bytes(device: torch.device) -> int:
    """`WORKSPACE_SHARE` of the GPU's memory; in the interpreter, of one GiB."""
    total = (
        torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 2**30
    )
    return int(total * WORKSPACE_SHARE)


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    """Strides of batch, head and row of a tensor [B, H, T, D]."""
    return tensor.stride(0), tensor.stride(1), tensor.stride(2)


def _rows_last(tensor: Tensor) -> Tensor:
    """The tensor with unit stride in the last dimension and rows aligned to 16 bytes, as TMA needs
    them; a copy only if it is not so already.
    """
    aligned = all(stride * tensor.element_size() % 16 == 0 for stride in tensor.stride()[:3])
    return (
        tensor
        if tensor.stride(3) == 1 and aligned and tensor.data_ptr() % 16 == 0
        else tensor.contiguous()
    )


def _like_rows(tensor: Tensor) -> Tensor:
    """New memory [B, T, H, D] viewed as [B, H, T, D], which the output projection reads without a
    copy.
    """
    batch, heads, length, head_dim = tensor.shape
    return tensor.new_empty(batch, length, heads, head_dim).transpose(1, 2)


def _log_sum_row(length: int) -> int:
    """Row length of float32 row sums, rounded up to 16 bytes for TMA."""
    return length + -length % 4


def _descriptor(tensor: Tensor, block: list[int]) -> Any:
    """A TMA descriptor with tiles of `block` over the last two dimensions of a 4-dimensional tensor
    or of a matrix.
    """
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    shape = [1] * (tensor.ndim - len(block)) + block
    bits = tensor.element_size() * 8
    swizzle = 0 if bits == 32 else min(128, block[-1] * 2)
    return TensorDescriptor.from_tensor(
        tensor, shape, gl.NVMMASharedLayout(swizzle, bits, rank=tensor.ndim)
    )


@torch.library.custom_op("moxin_lab::window_attention", mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor | None,
    ends: Tensor | None,
    window: int,
) -> tuple[Tensor, Tensor]:
    """Output [B, H, T, D] and log2 of each row's sum, float32 [B, H, T rounded up to 4]."""
    query, key, value = _rows_last(query), _rows_last(key), _rows_last(value)
    batch, heads, num_queries, head_dim = query.shape
    kv_heads, num_keys = key.shape[1:3]
    output = _like_rows(query)
    log_sum = query.new_empty(batch, heads, _log_sum_row(num_queries), dtype=torch.float32)
    plan = plan_for(query)
    scale = math.log2(math.e) / math.sqrt(head_dim)  # the kernels compute 2^x, not e^x
    sizes = {
        "HEADS": heads,
        "GROUP": heads // kv_heads,
        "D": head_dim,
        "BM": plan.forward.rows,
        "BN": plan.forward.keys,
    }
    flags = {"HAS_WINDOW": window > 0, "HAS_STARTS": starts is not None}
    # Without documents a kernel never reads this pointer, but it must be one.
    starts_or_any = log_sum if starts is None else starts.contiguous()
    if plan.hopper:
        hopper = hopper_module()
        items = triton.cdiv(num_queries, plan.forward.rows) * batch * heads
        programs = min(items, _multiprocessors(query.device.index))
        hopper.forward[(programs,)](
            _descriptor(query, [plan.forward.rows // 2, head_dim]),
            _descriptor(key, [plan.forward.keys, head_dim]),
            _descriptor(value, [plan.forward.keys, head_dim]),
            output,
            log_sum,
            starts_or_any,
            *_strides(output),
            log_sum.shape[2],
            num_queries,
            num_keys,
            window,
            scale,
            items,
            **sizes,
            **flags,
            UNITS=batch * heads,
            STAGES=plan.forward.stages,
            num_warps=4,
        )
    else:
        tiles_forward.forward[(triton.cdiv(num_queries, plan.forward.rows), batch * heads)](
            query,
            key,
            value,
            output,
            log_sum,
            starts_or_any,
            *_strides(query),
            *_strides(key),
            *_strides(value),
            *_strides(output),
            log_sum.shape[2],
            num_queries,
            num_keys,
            window,
            scale,
            **sizes,
            **flags,
            num_warps=plan.forward.warps,
            num_stages=plan.forward.stages,
        )
    return output, log_sum


@functools.lru_cache
def _multiprocessors(device_index: int) -> int:
    return torch.cuda.get_device_properties(device_index).multi_processor_count


@_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, starts: Any, ends: Any, window: int
) -> tuple[Tensor, Tensor]:
    batch, heads, length, _ = query.shape
    return _like_rows(query), query.new_empty(
        batch, heads, _log_sum_row(length), dtype=torch.float32
    )


@torch.library.custom_op("moxin_lab::window_attention_backward", mutates_args=())
def _attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum: Tensor,
    starts: Tensor | None,
    ends: Tensor | None,
    window: int,
    workspace_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value. `workspace_bytes`: room for the stored dS^T."""
    gradient = _rows_last(gradient)
    query, key, value = _rows_last(query), _rows_last(key), _rows_last(value)
    batch, heads, num_queries, head_dim = query.shape
    kv_heads, num_keys = key.shape[1:3]
    group = heads // kv_heads
    plan = plan_for(query)
    dq, dk, dv = _like_rows(query), _like_rows(key), _like_rows(value)
    # TMA also reads the rows beyond the text, which must not hold NaN: zero times NaN is NaN.
    delta = (
        torch.zeros_like(log_sum) if log_sum.shape[2] != num_queries else torch.empty_like(log_sum)
    )
    flags = {"HAS_WINDOW": window > 0, "HAS_STARTS": starts is not None}
    sizes = {"HEADS": heads, "GROUP": group, "D": head_dim}
    starts_or_any = log_sum if starts is None else starts.contiguous()
    ends_or_any = log_sum if ends is None else ends.contiguous()
    natural_scale = 1 / math.sqrt(head_dim)
    scale = math.log2(math.e) * natural_scale
    tiles_backward.output_dot_gradient[(triton.cdiv(num_queries, 64), batch * heads)](
        output,
        gradient,
        delta,
        *_strides(output),
        *_strides(gradient),
        log_sum.shape[2],
        num_queries,
        HEADS=heads,
        D=head_dim,
        BM=64,
    )
    units = batch * kv_heads
    key_tiles = triton.cdiv(num_keys, plan.keys.keys)
    # Stored dS^T: `head_rows` rows of keys per query head. Queries that see one key tile form a
    # band, so a row holds `band` columns instead of all T queries.
    reach = num_keys if window == 0 else min(num_keys, window + plan.keys.keys - 1)
    band = triton.cdiv(reach, plan.keys.keys) * plan.keys.keys
    head_rows = key_tiles * plan.keys.keys
    unit_bytes = group * head_rows * band * query.element_size()
    stored = num_queries == num_keys and unit_bytes <= workspace_bytes
    at_once = min(units, workspace_bytes // unit_bytes) if stored else units
    rows = at_once * group * head_rows if stored else 64
    scores = query.new_empty(rows, band if stored else 64)
    for first_unit in range(0, units, at_once):
        count = min(at_once, units - first_unit)
        if plan.hopper and num_queries == num_keys:
            items = key_tiles * count
            hopper_module().backward_keys[(min(items, _multiprocessors(query.device.index)),)](
                _descriptor(query, [plan.keys.rows, head_dim]),
                _descriptor(key, [plan.keys.keys // 2, head_dim]),
                _descriptor(value, [plan.keys.keys // 2, head_dim]),
                _descriptor(gradient, [plan.keys.rows, head_dim]),
                _descriptor(log_sum.flatten(0, 1), [1, plan.keys.rows]),
                _descriptor(delta.flatten(0, 1), [1, plan.keys.rows]),
                _descriptor(scores, [plan.keys.keys // 2, plan.keys.rows]),
                dk,
                dv,
                starts_or_any,
                ends_or_any,
                *_strides(dk),
                num_queries,
                num_keys,
                window,
                scale,
                natural_scale,
                items,
                first_unit,
                count,
                head_rows,
                **sizes,
                **flags,
                BM=plan.keys.rows,
                BN=plan.keys.keys,
                STAGES=plan.keys.stages,
                STORE=stored,
                num_warps=4,
            )
        else:
            tiles_backward.backward_keys[(key_tiles, count)](
                query,
                key,
                value,
                gradient,
                dk,
                dv,
                log_sum,
                delta,
                starts_or_any,
                ends_or_any,
                scores,
                *_strides(query),
                *_strides(key),
                *_strides(value),
                *_strides(gradient),
                *_strides(dk),
                *_strides(dv),
                log_sum.shape[2],
                num_queries,
                num_keys,
                window,
                scale,
                natural_scale,
                band,
                head_rows,
                first_unit,
                **sizes,
                **flags,
                BM=plan.keys.rows,
                BN=plan.keys.keys,
                STORE=stored,
                num_warps=plan.keys.warps,
                num_stages=plan.keys.stages,
            )
        if stored and plan.hopper:
            items = triton.cdiv(num_queries, plan.queries.rows) * count * group
            hopper_module().backward_queries[(min(items, _multiprocessors(query.device.index)),)](
                _descriptor(scores, [plan.queries.rows, plan.queries.rows // 2]),
                _descriptor(key, [plan.queries.rows, head_dim]),
                dq,
                starts_or_any,
                *_strides(dq),
                num_queries,
                window,
                natural_scale,
                items,
                first_unit,
                count * group,
                head_rows,
                **sizes,
                **flags,
                BM=plan.queries.rows,
                STAGES=plan.queries.stages,
                num_warps=4,
            )
        elif stored:
            tiles_backward.backward_queries_stored[
                (triton.cdiv(num_queries, plan.queries.rows), count * group)
            ](
                scores,
                key,
                dq,
                starts_or_any,
                *_strides(key),
                *_strides(dq),
                num_queries,
                num_keys,
                window,
                natural_scale,
                band,
                head_rows,
                first_unit,
                **sizes,
                **flags,
                BM=plan.queries.rows,
                num_warps=plan.queries.warps,
                num_stages=plan.queries.stages,
            )
    if not stored:
        tiles_backward.backward_queries[
            (triton.cdiv(num_queries, plan.queries.rows), batch * heads)
        ](
            query,
            key,
            value,
            gradient,
            dq,
            log_sum,
            delta,
            starts_or_any,
            *_strides(query),
            *_strides(key),
            *_strides(value),
            *_strides(gradient),
            *_strides(dq),
            log_sum.shape[2],
            num_queries,
            num_keys,
            window,
            scale,
            natural_scale,
            **sizes,
            **flags,
            BM=plan.queries.rows,
            BN=min(64, plan.queries.keys),
            num_warps=plan.queries.warps,
            num_stages=2,
        )
    return dq, dk, dv


@_attention_backward.register_fake
def _(gradient, query, key, value, output, log_sum, starts, ends, window, workspace_bytes):
    return _like_rows(query), _like_rows(key), _like_rows(value)


def _save_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    query, key, value, starts, ends, window = inputs
    ctx.save_for_backward(query, key, value, *output, starts, ends)
    ctx.window = window
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: Any) -> tuple:
    query, key, value, output, log_sum, starts, ends = ctx.saved_tensors
    grads = _attention_backward(
        gradient,
        query,
        key,
        value,
        output,
        log_sum,
        starts,
        ends,
        ctx.window,
        workspace_bytes(query.device),
    )
    return *grads, None, None, None


_attention.register_autograd(_backward, setup_context=_save_for_backward)
