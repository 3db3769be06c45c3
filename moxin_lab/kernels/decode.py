"""Triton kernels of one decoding step: few rows through large matrices, and attention over a ring
with rotation and write inside.

    hidden [B, C] -> few_rows_linear(norm inside) -> qkv [B, (H + 2 H_kv) D] -> ring_attention ->
    few_rows_linear(+ hidden) -> ...
                                                                     |
                                     rotates q and k, writes k and v into slot length mod W, attends
                                     to the ring

A step reads every weight once and computes almost nothing, so its floor is bytes over bandwidth:
the kernels stream weights and fuse what would be launches of their own (norm, SiLU, residual sums,
rotation, cache write).

Guarantees: shapes do not depend on the position, which is read from memory on the device, so one
CUDA graph serves a whole text; every sum has a fixed order; slots that are not written or are
padding never reach the output, even if they hold NaN (tests/model/test_decode.py, in Triton's
interpreter on the CPU).
Tried and left out: programmatic dependent launch with the first weights loaded before the wait
(6.32 instead of 6.18 ms a token for one row, 9.88 instead of 8.43 for eight: the early programs
take room from those at work).
Does not: more than 16 rows (`few_rows_linear`), or more than one new token a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_ROWS = 16
PROGRAMS_A_MULTIPROCESSOR = 1
"""About how many programs `ring_attention` starts on each. More would hide latency, but their
partial sums must be put together: on an H100 a token of the 8B model took 6.18, 6.36 and 6.72 ms
with 1, 2 and 4 (one row), 8.43, 8.32 and 8.47 (eight).
"""


@triton.jit
def _weights(weight_ptr, columns, places, in_features, num_columns):
    """A tile [BN, BK] of a matrix, which nobody reads again in this step."""
    return tl.load(
        weight_ptr + columns[:, None].to(tl.int64) * in_features + places[None, :],
        mask=(columns < num_columns)[:, None] & (places < in_features)[None, :],
        other=0.0,
        eviction_policy="evict_first",
    )


@triton.jit
def _accumulate(
    acc,
    squares,
    weight,
    x_ptr,
    norm_ptr,
    rows,
    places,
    in_features,
    x_row,
    num_rows,
    HAS_NORM: tl.constexpr,
    DOT: tl.constexpr,
):
    """acc [BN, ROWS] or [BN] += weight x^T; squares: the rows' sums of squares, for the norm."""
    inside = places < in_features
    if DOT:
        x = tl.load(
            x_ptr + rows[None, :] * x_row + places[:, None],
            mask=(rows < num_rows)[None, :] & inside[:, None],
            other=0.0,
        )
        if HAS_NORM:
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, 0)
            x = (
                wide * tl.load(norm_ptr + places, mask=inside, other=0.0).to(tl.float32)[:, None]
            ).to(x.dtype)
        acc = tl.dot(weight, x, acc, input_precision="ieee")
    else:
        x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += tl.sum(x * x, 0)
            x = x * tl.load(norm_ptr + places, mask=inside, other=0.0).to(tl.float32)
        acc += tl.sum(weight.to(tl.float32) * x[None, :], 1)
    return acc, squares


@triton.jit
def _matrix_tile(
    acc,
    squares,
    weight,
    x_ptr,
    norm_ptr,
    weight_ptr,
    rows,
    columns,
    in_features,
    x_row,
    num_rows,
    num_columns,
    BK: tl.constexpr,
    HAS_NORM: tl.constexpr,
    DOT: tl.constexpr,
):
    """The whole depth of a tile of columns; `weight` is its first stretch, already on its way."""
    places = tl.arange(0, BK)
    acc, squares = _accumulate(
        acc,
        squares,
        weight,
        x_ptr,
        norm_ptr,
        rows,
        places,
        in_features,
        x_row,
        num_rows,
        HAS_NORM,
        DOT,
    )
    for start in tl.range(BK, in_features, BK):
        places = start + tl.arange(0, BK)
        weight = _weights(weight_ptr, columns, places, in_features, num_columns)
        acc, squares = _accumulate(
            acc,
            squares,
            weight,
            x_ptr,
            norm_ptr,
            rows,
            places,
            in_features,
            x_row,
            num_rows,
            HAS_NORM,
            DOT,
        )
    return acc, squares


@triton.jit
def _few_rows(
    x_ptr,
    norm_ptr,
    first_ptr,
    second_ptr,
    third_ptr,
    residual_ptr,
    output_ptr,
    num_rows,
    in_features,
    first_width,
    second_width,
    third_width,
    x_row,
    residual_row,
    output_row,
    eps,
    ROWS: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    DOT: tl.constexpr,
):
    """One tile of output columns. GATED: silu(x first^T) * (x second^T); else up to three matrices
    side by side.
    """
    tile = tl.program_id(0)
    rows = tl.arange(0, ROWS)
    weight_ptr = first_ptr
    local, width = tile * BN, first_width
    out_column = tile * BN
    if not GATED:
        first_tiles, second_tiles = tl.cdiv(first_width, BN), tl.cdiv(second_width, BN)
        if tile >= first_tiles + second_tiles:
            weight_ptr = third_ptr
            local = (tile - first_tiles - second_tiles) * BN
            width = third_width
            out_column = first_width + second_width + local
        elif tile >= first_tiles:
            weight_ptr = second_ptr
            local = (tile - first_tiles) * BN
            width = second_width
            out_column = first_width + local
    columns = local + tl.arange(0, BN)
    weight = _weights(weight_ptr, columns, tl.arange(0, BK), in_features, width)
    if GATED:
        other = _weights(second_ptr, columns, tl.arange(0, BK), in_features, width)
    if DOT:
        acc = tl.zeros((BN, ROWS), tl.float32)
        squares = tl.zeros((ROWS,), tl.float32)
    else:
        acc = tl.zeros((BN,), tl.float32)
        squares = tl.sum(tl.zeros((16,), tl.float32), 0)
    unused = squares
    acc, squares = _matrix_tile(
        acc,
        squares,
        weight,
        x_ptr,
        norm_ptr,
        weight_ptr,
        rows,
        columns,
        in_features,
        x_row,
        num_rows,
        width,
        BK,
        HAS_NORM,
        DOT,
    )
    scale = tl.zeros_like(squares) + 1.0
    if HAS_NORM:
        scale = tl.rsqrt(squares / in_features + eps)
    if DOT:
        scale = scale[None, :]
    acc = acc * scale
    if GATED:
        up = tl.zeros_like(acc)
        up, unused = _matrix_tile(
            up,
            unused,
            other,
            x_ptr,
            norm_ptr,
            second_ptr,
            rows,
            columns,
            in_features,
            x_row,
            num_rows,
            width,
            BK,
            HAS_NORM,
            DOT,
        )
        acc = acc * tl.sigmoid(acc) * up * scale
    places = out_column + tl.arange(0, BN)
    inside = columns < width
    if DOT:
        kept = inside[:, None] & (rows < num_rows)[None, :]
        if HAS_RESIDUAL:
            acc += tl.load(
                residual_ptr + rows[None, :] * residual_row + places[:, None], mask=kept, other=0.0
            ).to(tl.float32)
        tl.store(
            output_ptr + rows[None, :] * output_row + places[:, None],
            acc.to(output_ptr.dtype.element_ty),
            mask=kept,
        )
    else:
        if HAS_RESIDUAL:
            acc += tl.load(residual_ptr + places, mask=inside, other=0.0).to(tl.float32)
        tl.store(output_ptr + places, acc.to(output_ptr.dtype.element_ty), mask=inside)


def tile_sizes(
    batch: int, in_features: int, gated: bool, norm: bool, item_bytes: int
) -> tuple[bool, int, int, int, int]:
    """Whether to use the tensor cores, output columns and depth of a tile, warps, stages.

    Measured on an H100 at the full width in bfloat16. item_bytes: of one number on a GPU, 0 for
    Triton's interpreter.
    """
    if not item_bytes:
        return batch > 1, 16, 32, 4, 2
    if batch > 1 and item_bytes > 2:
        return True, 32, 32, 4, 3
    if batch > 1:  # with a norm inside every tile reads all of x: fewer, larger tiles
        return (True, 64, 64, 4, 6) if norm else (True, 32, 256, 4, 4)
    if norm:
        return False, 2 if gated or in_features < 8192 else 4, 2048, 4, 3
    return False, 8, 1024, 8, 3


def few_rows_linear(
    x: Tensor,
    weights: list[Tensor],
    *,
    norm: Tensor | None = None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    gated: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """x [B, C] through one to three matrices [N_i, C] side by side, B at most 16; returns [B, sum
    N_i].

    norm: weight [C] of an RMSNorm applied to x first. gated: two matrices of one shape, silu(x
    first^T) * (x second^T), [B, N].
    residual: [B, N], added. dtype: of the output; default that of x. Sums are float32.
    """
    batch, in_features = x.shape
    if batch > MAX_ROWS:
        raise ValueError(f"{batch} rows are more than {MAX_ROWS}: use a matrix product")
    if not 1 <= len(weights) <= 3 or (gated and len(weights) != 2):
        raise ValueError(f"{len(weights)} matrices: one to three, two with gated")
    widths = [len(weight) for weight in weights] + [0, 0]
    out_features = widths[0] if gated else sum(widths)
    output = x.new_empty(batch, out_features, dtype=dtype or x.dtype)
    dot, rows_a_program, depth, warps, stages = tile_sizes(
        batch, in_features, gated, norm is not None, x.element_size() if x.is_cuda else 0
    )
    blocks = [triton.cdiv(width, rows_a_program) for width in widths]
    second = weights[1] if len(weights) > 1 else weights[0]
    third = weights[2] if len(weights) > 2 else weights[0]
    _few_rows[(blocks[0] if gated else sum(blocks),)](
        x,
        x if norm is None else norm,
        weights[0],
        second,
        third,
        x if residual is None else residual,
        output,
        batch,
        in_features,
        widths[0],
        widths[1],
        widths[2],
        x.stride(0),
        0 if residual is None else residual.stride(0),
        output.stride(0),
        eps,
        ROWS=MAX_ROWS,
        BN=rows_a_program,
        BK=depth,
        HAS_NORM=norm is not None,
        HAS_RESIDUAL=residual is not None,
        GATED=gated,
        DOT=dot,
        num_warps=warps,
        num_stages=stages,
    )
    return output


@triton.jit
def _rotated(pointer, cos, sin, half, D: tl.constexpr):
    """A head of D at `pointer`, its two halves turned: ([D/2], [D/2])."""
    first, second = (
        tl.load(pointer + half).to(tl.float32),
        tl.load(pointer + D // 2 + half).to(tl.float32),
    )
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _ring(
    qkv_ptr,
    keys_ptr,
    values_ptr,
    cos_ptr,
    sin_ptr,
    length_ptr,
    padding_ptr,
    partial_ptr,
    counter_ptr,
    output_ptr,
    qkv_row,
    cache_batch,
    cache_head,
    output_row,
    num_slots,
    slots_a_split,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BN: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_ROUNDED: tl.constexpr,
    HAS_PADDING: tl.constexpr,
):
    """Query heads of one key/value head over one stretch of slots; the last program of a head to
    end puts stretches together.
    """
    pair = tl.program_id(0)
    split = tl.program_id(1)
    batch = (pair // KV_HEADS).to(tl.int64)
    kv_head = pair % KV_HEADS
    length = tl.load(length_ptr)
    new_slot = length % num_slots
    half = tl.arange(0, D // 2)
    members = tl.arange(0, 16)
    in_group = members < GROUP
    cos, sin = (
        tl.load(cos_ptr + batch * (D // 2) + half),
        tl.load(sin_ptr + batch * (D // 2) + half),
    )
    qkv_ptr += batch * qkv_row
    # Queries, rotated, as two halves of the head: [16, D/2] each, rows beyond the group zero.
    query_ptr = qkv_ptr + (kv_head * GROUP + members)[:, None] * D + half[None, :]
    first = tl.load(query_ptr, mask=in_group[:, None], other=0.0).to(tl.float32)
    second = tl.load(query_ptr + D // 2, mask=in_group[:, None], other=0.0).to(tl.float32)
    dtype = keys_ptr.dtype.element_ty
    query_low = (first * cos[None, :] - second * sin[None, :]).to(dtype)
    query_high = (second * cos[None, :] + first * sin[None, :]).to(dtype)
    # The new key and value; rotated in float32, rounded as the ring stores them.
    key_low, key_high = _rotated(qkv_ptr + HEADS * D + kv_head * D, cos, sin, half, D)
    key_low, key_high = key_low.to(dtype), key_high.to(dtype)
    dims = tl.arange(0, D)
    value = tl.load(qkv_ptr + (HEADS + KV_HEADS) * D + kv_head * D + dims).to(dtype)
    keys_ptr += batch * cache_batch + kv_head * cache_head
    values_ptr += batch * cache_batch + kv_head * cache_head
    first_slot = split * slots_a_split
    if (new_slot >= first_slot) & (new_slot < first_slot + slots_a_split):
        tl.store(keys_ptr + new_slot * D + half, key_low)
        tl.store(keys_ptr + new_slot * D + D // 2 + half, key_high)
        tl.store(values_ptr + new_slot * D + dims, value)
    padding = 0
    if HAS_PADDING:
        padding = tl.load(padding_ptr + batch)
    acc = tl.zeros((16, D), tl.float32)
    row_max = tl.full((16,), float("-inf"), tl.float32)
    row_sum = tl.zeros((16,), tl.float32)
    # Slots beyond the tokens seen are not read at all while the ring fills.
    end_slot = tl.minimum(tl.minimum(first_slot + slots_a_split, num_slots), length + 1)
    for start in tl.range(first_slot, end_slot, BN):
        slots = start + tl.arange(0, BN)
        place = (
            length - (length - slots + num_slots) % num_slots
        )  # length - slots may be negative: remainders keep its sign
        held = (slots < end_slot) & (place >= 0) & (place >= padding)
        stored = held & (slots != new_slot)
        is_new = slots == new_slot
        offsets = slots[:, None] * D + half[None, :]
        low = tl.load(keys_ptr + offsets, mask=stored[:, None], other=0.0)
        high = tl.load(keys_ptr + offsets + D // 2, mask=stored[:, None], other=0.0)
        low = tl.where(is_new[:, None], key_low[None, :], low)
        high = tl.where(is_new[:, None], key_high[None, :], high)
        scores = (
            tl.dot(query_low, tl.trans(low), input_precision="ieee")
            + tl.dot(query_high, tl.trans(high), input_precision="ieee")
        ) * scale
        scores = tl.where(held[None, :], scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        anchor = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.exp2(scores - anchor[:, None])
        shrink = tl.exp2(row_max - anchor)
        row_sum = row_sum * shrink + tl.sum(weights, 1)
        tile = tl.load(
            values_ptr + slots[:, None] * D + dims[None, :], mask=stored[:, None], other=0.0
        )
        tile = tl.where(is_new[:, None], value[None, :], tile)
        acc = tl.dot(weights.to(dtype), tile, acc * shrink[:, None], input_precision="ieee")
        row_max = new_max
    output_ptr += batch * output_row + (kv_head * GROUP + members)[:, None] * D + dims[None, :]
    if SPLITS == 1:
        tl.store(
            output_ptr,
            (acc / row_sum[:, None]).to(output_ptr.dtype.element_ty),
            mask=in_group[:, None],
        )
    else:
        # [pair, split, 16, D + 2]: sums, maxima, products.
        mine = partial_ptr + (pair * SPLITS + split).to(tl.int64) * 16 * (D + 2)
        tl.store(mine + members * (D + 2), row_max, mask=in_group)
        tl.store(mine + members * (D + 2) + 1, row_sum, mask=in_group)
        tl.store(mine + members[:, None] * (D + 2) + 2 + dims[None, :], acc, mask=in_group[:, None])
        tl.debug_barrier()
        done = tl.atomic_add(counter_ptr + pair, 1, sem="acq_rel")
        if done == SPLITS - 1:
            tl.store(counter_ptr + pair, 0)
            tl.debug_barrier()
            # All maxima first, so that the products can be loaded without waiting for one another.
            others = tl.arange(0, SPLITS_ROUNDED)
            heads = (
                partial_ptr
                + (pair * SPLITS + others).to(tl.int64)[:, None] * 16 * (D + 2)
                + members[None, :] * (D + 2)
            )
            counted = (others < SPLITS)[:, None] & in_group[None, :]
            maxima = tl.load(heads, mask=counted, other=float("-inf"), cache_modifier=".cg")
            sums = tl.load(heads + 1, mask=counted, other=0.0, cache_modifier=".cg")
            top = tl.max(maxima, 0)
            top = tl.where(top == float("-inf"), 0.0, top)
            total_sum = tl.sum(sums * tl.exp2(maxima - top[None, :]), 0)
            total = tl.zeros((16, D), tl.float32)
            for other in tl.static_range(SPLITS):
                theirs = partial_ptr + (pair * SPLITS + other).to(tl.int64) * 16 * (D + 2)
                share = tl.load(
                    theirs + members * (D + 2), mask=in_group, other=0.0, cache_modifier=".cg"
                )
                part = theirs + members[:, None] * (D + 2) + 2 + dims[None, :]
                part = tl.load(part, mask=in_group[:, None], other=0.0, cache_modifier=".cg")
                total += part * tl.exp2(share - top)[:, None]
            tl.store(
                output_ptr,
                (total / total_sum[:, None]).to(output_ptr.dtype.element_ty),
                mask=in_group[:, None],
            )


class RingWorkspace:
    """What `ring_attention` needs beside its inputs, made once for a cache: partial sums and
    counters.
    """

    def __init__(
        self, batch_size: int, kv_heads: int, head_dim: int, num_slots: int, device: torch.device
    ) -> None:
        pairs = batch_size * kv_heads
        self.block = (
            16 if device.type != "cuda" else min(64, max(16, triton.next_power_of_2(num_slots)))
        )
        wanted = (
            2
            if device.type != "cuda"
            else max(1, PROGRAMS_A_MULTIPROCESSOR * _multiprocessors(device) // pairs)
        )
        tiles = triton.cdiv(num_slots, self.block)
        self.slots_a_split = triton.cdiv(tiles, min(wanted, tiles)) * self.block
        self.splits = triton.cdiv(num_slots, self.slots_a_split)
        self.partial = torch.empty(
            pairs, self.splits, 16, head_dim + 2, dtype=torch.float32, device=device
        )
        self.counters = torch.zeros(pairs, dtype=torch.int32, device=device)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def ring_attention(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    length: Tensor,
    padding: Tensor | None,
    workspace: RingWorkspace,
    num_heads: int,
) -> Tensor:
    """One new token a row over a ring: rotates its queries and key, writes key and value, attends;
    returns [B, H D].

    qkv: [B, (H + 2 H_kv) D], unrotated. keys, values: one layer's ring [B, H_kv, W, D], written in
    place at slot length mod W.
    cos, sin: float32 [B, D/2] of the new token's position. length: int32 [1] on the device, tokens
    seen before. padding: int32 [B], left padding that no query sees. H / H_kv at most 16.
    """
    batch, kv_heads, num_slots, head_dim = keys.shape
    if num_heads // kv_heads > 16:
        raise ValueError(
            f"{num_heads} query heads over {kv_heads} key/value heads: at most 16 to one"
        )
    output = qkv.new_empty(batch, num_heads * head_dim)
    _ring[(batch * kv_heads, workspace.splits)](
        qkv,
        keys,
        values,
        cos,
        sin,
        length,
        length if padding is None else padding,
        workspace.partial,
        workspace.counters,
        output,
        qkv.stride(0),
        keys.stride(0),
        keys.stride(1),
        output.stride(0),
        num_slots,
        workspace.slots_a_split,
        head_dim**-0.5 * 1.4426950408889634,
        HEADS=num_heads,
        KV_HEADS=kv_heads,
        GROUP=num_heads // kv_heads,
        D=head_dim,
        BN=workspace.block,
        SPLITS=workspace.splits,
        SPLITS_ROUNDED=triton.next_power_of_2(workspace.splits),
        HAS_PADDING=padding is not None,
        num_warps=4,
        num_stages=3,
    )
    return output
