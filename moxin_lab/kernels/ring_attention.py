"""Attention of one new token over a ring in Triton, with rotation and cache write in one kernel.

    qkv [B, (H + 2 H_kv) D]  ->  rotate q and k  ->  write k and v into slot length mod W
                             ->  attend to the ring  ->  [B, H D]

The slots of a head are split over several programs; the last one to finish combines the partial
sums.

Guarantees: shapes do not depend on the position, which is read from memory on the device, so one
CUDA graph serves a whole text; every sum has a fixed order; slots that are not written or are
padding never reach the output, even if they hold NaN (tests/model/test_decode.py, in Triton's
interpreter on the CPU).
Out of scope: more than one new token per row; gradients.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS_PER_MULTIPROCESSOR = 1
"""Number of programs that `ring_attention` starts on each multiprocessor, approximately. More would
hide latency, but their partial sums must be combined: on an H100 one token of the 8B model took
6.18, 6.36 and 6.72 ms with 1, 2 and 4 programs for one row, and 8.43, 8.32 and 8.47 ms for eight.
"""


@triton.jit
def _rotated(pointer, cos, sin, half, D: tl.constexpr):
    """The two halves ([D/2], [D/2]) of the head at `pointer`, rotated."""
    first = tl.load(pointer + half).to(tl.float32)
    second = tl.load(pointer + D // 2 + half).to(tl.float32)
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
    slots_per_split,
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
    """Query heads of one key/value head over one range of slots (a split). The last program of a
    head to finish combines its splits.
    """
    pair = tl.program_id(0)  # (batch, key/value head)
    split = tl.program_id(1)
    batch = (pair // KV_HEADS).to(tl.int64)
    kv_head = pair % KV_HEADS
    length = tl.load(length_ptr)
    new_slot = length % num_slots
    half = tl.arange(0, D // 2)
    members = tl.arange(0, 16)
    in_group = members < GROUP
    cos = tl.load(cos_ptr + batch * (D // 2) + half)
    sin = tl.load(sin_ptr + batch * (D // 2) + half)
    qkv_ptr += batch * qkv_row
    # Rotated queries as two halves of the head, [16, D/2] each; rows beyond the group are zero.
    query_ptr = qkv_ptr + (kv_head * GROUP + members)[:, None] * D + half[None, :]
    first = tl.load(query_ptr, mask=in_group[:, None], other=0.0).to(tl.float32)
    second = tl.load(query_ptr + D // 2, mask=in_group[:, None], other=0.0).to(tl.float32)
    dtype = keys_ptr.dtype.element_ty
    query_low = (first * cos[None, :] - second * sin[None, :]).to(dtype)
    query_high = (second * cos[None, :] + first * sin[None, :]).to(dtype)
    # The new key and value: rotated in float32, then rounded to the dtype of the ring.
    key_low, key_high = _rotated(qkv_ptr + HEADS * D + kv_head * D, cos, sin, half, D)
    key_low, key_high = key_low.to(dtype), key_high.to(dtype)
    dims = tl.arange(0, D)
    value = tl.load(qkv_ptr + (HEADS + KV_HEADS) * D + kv_head * D + dims).to(dtype)
    keys_ptr += batch * cache_batch + kv_head * cache_head
    values_ptr += batch * cache_batch + kv_head * cache_head
    first_slot = split * slots_per_split
    if (new_slot >= first_slot) & (new_slot < first_slot + slots_per_split):
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
    end_slot = tl.minimum(tl.minimum(first_slot + slots_per_split, num_slots), length + 1)
    for start in tl.range(first_slot, end_slot, BN):
        slots = start + tl.arange(0, BN)
        # Position of the token in each slot. Remainders keep the sign of a negative number, so
        # num_slots is added first.
        position = length - (length - slots + num_slots) % num_slots
        visible = (slots < end_slot) & (position >= 0) & (position >= padding)
        # The new token comes from registers: another program may not have written it yet.
        stored = visible & (slots != new_slot)
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
        scores = tl.where(visible[None, :], scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        anchor = tl.where(new_max == float("-inf"), 0.0, new_max)  # -inf - -inf would be NaN
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
        # partial [pair, split, 16, D + 2]: maximum, sum, weighted values.
        mine = partial_ptr + (pair * SPLITS + split).to(tl.int64) * 16 * (D + 2)
        tl.store(mine + members * (D + 2), row_max, mask=in_group)
        tl.store(mine + members * (D + 2) + 1, row_sum, mask=in_group)
        tl.store(mine + members[:, None] * (D + 2) + 2 + dims[None, :], acc, mask=in_group[:, None])
        # All threads must have stored before one of them counts this program as finished; acq_rel
        # makes the stores visible to the program that reads the last count.
        tl.debug_barrier()
        done = tl.atomic_add(counter_ptr + pair, 1, sem="acq_rel")
        if done == SPLITS - 1:
            tl.store(counter_ptr + pair, 0)  # for the next launch
            tl.debug_barrier()
            # All maxima first, so that the loads of weighted values do not wait for one another.
            # ".cg" reads them from the L2 cache, which the other programs have written.
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
    """Buffers of `ring_attention` for one cache: partial sums and counters. Allocated once, so that
    a CUDA graph can use them.
    """

    def __init__(
        self, batch_size: int, kv_heads: int, head_dim: int, num_slots: int, device: torch.device
    ) -> None:
        pairs = batch_size * kv_heads
        self.block = (
            16 if device.type != "cuda" else min(64, max(16, triton.next_power_of_2(num_slots)))
        )
        max_splits = (
            2
            if device.type != "cuda"
            else max(1, PROGRAMS_PER_MULTIPROCESSOR * _multiprocessors(device) // pairs)
        )
        tiles = triton.cdiv(num_slots, self.block)
        self.slots_per_split = triton.cdiv(tiles, min(max_splits, tiles)) * self.block
        self.splits = triton.cdiv(num_slots, self.slots_per_split)
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
    """Attention of one new token per row over a ring: rotates its queries and key, writes key and
    value into the ring, and attends; returns [B, H D].

    qkv: [B, (H + 2 H_kv) D], not rotated; H / H_kv at most 16.
    keys, values: the ring of one layer, [B, H_kv, W, D], written in slot length mod W.
    cos, sin: float32 [B, D/2] of the position of the new token.
    length: int32 [1] on the device, number of tokens before the new one.
    padding: int32 [B], number of padding tokens at the left, which no query sees.
    """
    batch, kv_heads, num_slots, head_dim = keys.shape
    if num_heads // kv_heads > 16:
        raise ValueError(
            f"{num_heads} query heads over {kv_heads} key/value heads: "
            "at most 16 query heads can share one"
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
        workspace.slots_per_split,
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
