"""Windowed, document-wise, grouped attention in Triton: the forward kernel, and the tile ranges and
mask that the backward kernels (tiles_backward.py) share.

    key tiles of one query tile, W the window:

    | edge   | full | full | ... | full | diagonal |
      masked        no mask at all        masked

Every kernel processes only tiles that hold a visible pair, and applies the mask only in those that
also hold an invisible one. Query i is at key position p = i + S - T (the last query is at the last
key) and sees keys j with max(p - W + 1, start(i)) <= j <= p.

Guarantees: float32 is multiplied as float32, not as tf32; each output element has one writer and a
fixed order of additions, so equal inputs give equal bytes; any T <= S; keys and values of grouped
heads are not copied. The kernels run on any GPU that Triton supports and, slowly, in Triton's
interpreter; hopper_*.py hold faster ones for Hopper.
Out of scope: dropout, bias, and the choice of tile sizes (window_attention.py).
"""

import triton
import triton.language as tl


@triton.jit
def key_tile_range(
    first, last, first_start, last_start, window, BN: tl.constexpr, HAS_WINDOW: tl.constexpr
):
    """Range of key tiles for the queries at key positions first..last, whose documents begin at
    first_start..last_start (never decreasing).

    Returns low <= full_low <= full_high <= end: the tiles from low to full_low and from full_high
    to end need the mask, those between do not.
    """
    low_key, full_key = first_start, last_start
    if HAS_WINDOW:
        low_key = tl.maximum(low_key, first - window + 1)
        full_key = tl.maximum(full_key, last - window + 1)
    low = low_key // BN
    end = last // BN + 1
    full_high = tl.minimum(tl.maximum((first + 1) // BN, low), end)
    full_low = tl.minimum(tl.maximum((full_key + BN - 1) // BN, low), full_high)
    return low, full_low, full_high, end


@triton.jit
def visible(positions, keys, starts, window, num_keys, HAS_WINDOW: tl.constexpr):
    """Whether each query sees each key; positions, keys and starts are broadcast."""
    seen = (keys <= positions) & (keys >= starts) & (keys < num_keys)
    if HAS_WINDOW:
        seen = seen & (keys > positions - window)
    return seen


@triton.jit
def _forward_range(
    acc,
    row_max,
    row_sum,
    query,
    key_ptr,
    value_ptr,
    key_stride,
    value_stride,
    positions,
    starts,
    window,
    num_keys,
    scale,
    low,
    high,
    MASKED: tl.constexpr,
    BN: tl.constexpr,
    D: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """Add the key tiles low..high-1 to the running sums of an online softmax in base 2 (Milakov
    and Gimelshein 2018, arXiv 1805.02867).

    acc: [BM, D], sum of weighted values. row_max, row_sum: [BM].
    """
    columns = tl.arange(0, BN)
    dims = tl.arange(0, D)
    for tile in tl.range(low, high):
        keys = tile * BN + columns
        key_offsets = keys[:, None].to(tl.int64)
        if MASKED:
            inside = (keys < num_keys)[:, None]
            key = tl.load(
                key_ptr + key_offsets * key_stride + dims[None, :], mask=inside, other=0.0
            )
            value = tl.load(
                value_ptr + key_offsets * value_stride + dims[None, :], mask=inside, other=0.0
            )
        else:
            key = tl.load(key_ptr + key_offsets * key_stride + dims[None, :])
            value = tl.load(value_ptr + key_offsets * value_stride + dims[None, :])
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale  # [BM, BN]
        if MASKED:
            seen = visible(
                positions[:, None], keys[None, :], starts[:, None], window, num_keys, HAS_WINDOW
            )
            scores = tl.where(seen, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        anchor = new_max
        if MASKED:  # a row that has seen no key yet: -inf - -inf would be NaN
            anchor = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.exp2(scores - anchor[:, None])  # [BM, BN]
        shrink = tl.exp2(row_max - anchor)
        row_sum = row_sum * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(value.dtype), value, acc, input_precision="ieee")
        row_max = new_max
    return acc, row_max, row_sum


@triton.jit
def forward(
    query_ptr,
    key_ptr,
    value_ptr,
    output_ptr,
    log_sum_ptr,
    starts_ptr,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    value_batch,
    value_head,
    value_row,
    output_batch,
    output_head,
    output_row,
    log_sum_row,
    num_queries,
    num_keys,
    window,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_STARTS: tl.constexpr,
):
    """Output [B, H, T, D] and log2 of each row's sum, float32 [B, H, T].

    One program computes BM queries of one head. `scale` includes log2(e). `log_sum_row` is the row
    length of `log_sum`. GROUP: query heads per key/value head.
    """
    # Late tiles first: they see the most keys, and the last programs to run should be short.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1) % HEADS
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    rows = tile * BM + tl.arange(0, BM)
    dims = tl.arange(0, D)
    shift = num_keys - num_queries
    positions = rows + shift
    inside = rows < num_queries
    first = tile * BM
    last = tl.minimum(first + BM, num_queries) - 1
    starts = tl.zeros((BM,), tl.int32)
    first_start, last_start = 0, 0
    if HAS_STARTS:
        row_starts = starts_ptr + batch * num_queries
        starts = tl.load(row_starts + rows, mask=inside, other=0)
        first_start, last_start = tl.load(row_starts + first), tl.load(row_starts + last)
    low, full_low, full_high, end = key_tile_range(
        first + shift, last + shift, first_start, last_start, window, BN, HAS_WINDOW
    )
    query_ptr += batch * query_batch + head * query_head
    key_ptr += batch * key_batch + (head // GROUP) * key_head
    value_ptr += batch * value_batch + (head // GROUP) * value_head
    offsets = rows[:, None].to(tl.int64)
    query = tl.load(
        query_ptr + offsets * query_row + dims[None, :], mask=inside[:, None], other=0.0
    )
    acc = tl.zeros((BM, D), tl.float32)
    row_max = tl.full((BM,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BM,), tl.float32)
    acc, row_max, row_sum = _forward_range(
        acc,
        row_max,
        row_sum,
        query,
        key_ptr,
        value_ptr,
        key_row,
        value_row,
        positions,
        starts,
        window,
        num_keys,
        scale,
        low,
        full_low,
        True,
        BN,
        D,
        HAS_WINDOW,
    )
    acc, row_max, row_sum = _forward_range(
        acc,
        row_max,
        row_sum,
        query,
        key_ptr,
        value_ptr,
        key_row,
        value_row,
        positions,
        starts,
        window,
        num_keys,
        scale,
        full_low,
        full_high,
        False,
        BN,
        D,
        HAS_WINDOW,
    )
    acc, row_max, row_sum = _forward_range(
        acc,
        row_max,
        row_sum,
        query,
        key_ptr,
        value_ptr,
        key_row,
        value_row,
        positions,
        starts,
        window,
        num_keys,
        scale,
        full_high,
        end,
        True,
        BN,
        D,
        HAS_WINDOW,
    )
    # Rows beyond the text may have seen no key. They are not stored, but must not divide by zero.
    row_sum = tl.where(inside, row_sum, 1.0)
    output_ptr += batch * output_batch + head * output_head
    output = (acc / row_sum[:, None]).to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + offsets * output_row + dims[None, :], output, mask=inside[:, None])
    log_sum_ptr += (batch * HEADS + head) * log_sum_row
    tl.store(log_sum_ptr + rows, row_max + tl.log2(row_sum), mask=inside)
