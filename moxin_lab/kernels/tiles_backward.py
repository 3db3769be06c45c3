"""Windowed, document-wise, grouped attention in Triton: the backward kernels, in three launches
without atomics.

    output_dot_gradient        delta = rowsum(output * d output)
    backward_keys              dK, dV; optionally stores dS^T
    backward_queries_stored    dQ = dS K from the stored dS^T, or
    backward_queries           dQ with S and dP computed again

Masks, tile ranges, guarantees and scope are those of tiles_forward.py.
"""

import triton
import triton.language as tl

from moxin_lab.kernels.tiles_forward import key_tile_range, visible


@triton.jit
def output_dot_gradient(
    output_ptr,
    gradient_ptr,
    delta_ptr,
    output_batch,
    output_head,
    output_row,
    gradient_batch,
    gradient_head,
    gradient_row,
    log_sum_row,
    num_queries,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
):
    """delta, float32 [B, H, T]: the dot product of each output row and its gradient, which is
    subtracted in every row of dS.
    """
    head = tl.program_id(1) % HEADS
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    dims = tl.arange(0, D)
    inside = rows < num_queries
    offsets = rows[:, None].to(tl.int64)
    output_ptr += batch * output_batch + head * output_head
    gradient_ptr += batch * gradient_batch + head * gradient_head
    output = tl.load(
        output_ptr + offsets * output_row + dims[None, :], mask=inside[:, None], other=0.0
    ).to(tl.float32)
    gradient = tl.load(
        gradient_ptr + offsets * gradient_row + dims[None, :], mask=inside[:, None], other=0.0
    ).to(tl.float32)
    tl.store(
        delta_ptr + (batch * HEADS + head) * log_sum_row + rows,
        tl.sum(output * gradient, 1),
        mask=inside,
    )


@triton.jit
def query_tile_range(
    first,
    last,
    end_position,
    shift,
    num_queries,
    window,
    BM: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """Range (low, end) of the query tiles that see one of the keys first..last. `end_position` is
    the last position of the document of key `last`.
    """
    last_query = end_position - shift
    if HAS_WINDOW:
        last_query = tl.minimum(last_query, last + window - 1 - shift)
    low = tl.maximum(first - shift, 0) // BM
    return low, tl.minimum(last_query, num_queries - 1) // BM + 1


@triton.jit
def _key_range(
    dk,
    dv,
    key,
    value,
    keys,
    query_ptr,
    gradient_ptr,
    log_sum_ptr,
    delta_ptr,
    starts_ptr,
    scores_ptr,
    query_row,
    gradient_row,
    band,
    shift,
    num_queries,
    num_keys,
    window,
    scale,
    low,
    high,
    tile_first,
    MASKED: tl.constexpr,
    BM: tl.constexpr,
    D: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    STORE: tl.constexpr,
):
    """Add the query tiles low..high-1 to dK and dV [BN, D] of one key tile. With STORE, dS^T of
    each is written to memory for dQ.
    """
    dims = tl.arange(0, D)
    for tile in tl.range(low, high):
        rows = tile * BM + tl.arange(0, BM)
        inside = rows < num_queries
        offsets = rows[:, None].to(tl.int64)
        query = tl.load(
            query_ptr + offsets * query_row + dims[None, :], mask=inside[:, None], other=0.0
        )
        log_sum = tl.load(log_sum_ptr + rows, mask=inside, other=0.0)
        # S^T and, with the row sums of the forward pass, the weights P^T [BN, BM].
        weights = tl.exp2(
            tl.dot(key, tl.trans(query), input_precision="ieee") * scale - log_sum[None, :]
        )
        if MASKED:
            starts = tl.zeros((BM,), tl.int32)
            if HAS_STARTS:
                starts = tl.load(starts_ptr + rows, mask=inside, other=0)
            seen = visible(
                (rows + shift)[None, :],
                keys[:, None],
                starts[None, :],
                window,
                num_keys,
                HAS_WINDOW,
            )
            weights = tl.where(seen & inside[None, :], weights, 0.0)
        gradient = tl.load(
            gradient_ptr + offsets * gradient_row + dims[None, :], mask=inside[:, None], other=0.0
        )
        dv = tl.dot(weights.to(gradient.dtype), gradient, dv, input_precision="ieee")
        delta = tl.load(delta_ptr + rows, mask=inside, other=0.0)
        # dS^T = P^T (dP^T - delta), [BN, BM]
        ds = (
            weights * (tl.dot(value, tl.trans(gradient), input_precision="ieee") - delta[None, :])
        ).to(query.dtype)
        dk = tl.dot(ds, query, dk, input_precision="ieee")
        if STORE:
            columns = tile * BM + tl.arange(0, BM) - tile_first
            tl.store(
                scores_ptr + keys[:, None].to(tl.int64) * band + columns[None, :],
                ds,
                mask=(columns < band)[None, :],
            )
    return dk, dv


@triton.jit
def backward_keys(
    query_ptr,
    key_ptr,
    value_ptr,
    gradient_ptr,
    dk_ptr,
    dv_ptr,
    log_sum_ptr,
    delta_ptr,
    starts_ptr,
    ends_ptr,
    scores_ptr,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    value_batch,
    value_head,
    value_row,
    gradient_batch,
    gradient_head,
    gradient_row,
    dk_batch,
    dk_head,
    dk_row,
    dv_batch,
    dv_head,
    dv_row,
    log_sum_row,
    num_queries,
    num_keys,
    window,
    scale,
    natural_scale,
    band,
    head_rows,
    first_unit,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    STORE: tl.constexpr,
):
    """dK and dV of one key tile, over all query heads of its group and all query tiles that see it.

    A unit is a pair (batch, key/value head); this launch computes those from `first_unit` on. With
    STORE, dS^T is written to `scores_ptr`: its rows are keys (`head_rows` rows per query head), and
    column c is the query c positions after the first key of the tile.
    """
    tile = tl.program_id(0)
    unit = first_unit + tl.program_id(1)
    kv_head = unit % (HEADS // GROUP)
    batch = (unit // (HEADS // GROUP)).to(tl.int64)
    first = tile * BN
    last = tl.minimum(first + BN, num_keys) - 1
    keys = first + tl.arange(0, BN)
    dims = tl.arange(0, D)
    shift = num_keys - num_queries
    offsets = keys[:, None].to(tl.int64)
    inside = (keys < num_keys)[:, None]
    key_ptr += batch * key_batch + kv_head * key_head
    value_ptr += batch * value_batch + kv_head * value_head
    key = tl.load(key_ptr + offsets * key_row + dims[None, :], mask=inside, other=0.0)
    value = tl.load(value_ptr + offsets * value_row + dims[None, :], mask=inside, other=0.0)
    end_position = num_keys - 1
    if HAS_STARTS:
        end_position = tl.load(ends_ptr + batch * num_keys + last)
    low, end = query_tile_range(
        first, last, end_position, shift, num_queries, window, BM, HAS_WINDOW
    )
    if STORE:
        # Up to full tiles of BN queries: `backward_queries_stored` reads tiles of that size, and
        # every dS that it reads must have been written.
        end = ((end * BM + BN - 1) // BN) * (BN // BM)
    # Query tiles of which every row sees every key of this tile: they need no mask.
    full_low = (last - shift + BM - 1) // BM
    full_end = num_queries // BM
    if HAS_STARTS:  # only rows in the document of the first key
        full_end = tl.minimum(
            full_end, (tl.load(ends_ptr + batch * num_keys + first) - shift + 1) // BM
        )
    if HAS_WINDOW:
        full_end = tl.minimum(full_end, (first + window - shift) // BM)
    if first + BN > num_keys:
        full_end = low
    full_low = tl.minimum(tl.maximum(full_low, low), end)
    full_end = tl.minimum(tl.maximum(full_end, full_low), end)
    dk = tl.zeros((BN, D), tl.float32)
    dv = tl.zeros((BN, D), tl.float32)
    if HAS_STARTS:
        starts_ptr += batch * num_queries
    for member in range(GROUP):
        head = kv_head * GROUP + member
        head_query = query_ptr + batch * query_batch + head * query_head
        head_gradient = gradient_ptr + batch * gradient_batch + head * gradient_head
        head_log_sum = log_sum_ptr + (batch * HEADS + head) * log_sum_row
        head_delta = delta_ptr + (batch * HEADS + head) * log_sum_row
        head_scores = scores_ptr
        if STORE:
            head_scores += (tl.program_id(1) * GROUP + member).to(tl.int64) * head_rows * band
        dk, dv = _key_range(
            dk,
            dv,
            key,
            value,
            keys,
            head_query,
            head_gradient,
            head_log_sum,
            head_delta,
            starts_ptr,
            head_scores,
            query_row,
            gradient_row,
            band,
            shift,
            num_queries,
            num_keys,
            window,
            scale,
            low,
            full_low,
            first,
            True,
            BM,
            D,
            HAS_WINDOW,
            HAS_STARTS,
            STORE,
        )
        dk, dv = _key_range(
            dk,
            dv,
            key,
            value,
            keys,
            head_query,
            head_gradient,
            head_log_sum,
            head_delta,
            starts_ptr,
            head_scores,
            query_row,
            gradient_row,
            band,
            shift,
            num_queries,
            num_keys,
            window,
            scale,
            full_low,
            full_end,
            first,
            False,
            BM,
            D,
            HAS_WINDOW,
            HAS_STARTS,
            STORE,
        )
        dk, dv = _key_range(
            dk,
            dv,
            key,
            value,
            keys,
            head_query,
            head_gradient,
            head_log_sum,
            head_delta,
            starts_ptr,
            head_scores,
            query_row,
            gradient_row,
            band,
            shift,
            num_queries,
            num_keys,
            window,
            scale,
            full_end,
            end,
            first,
            True,
            BM,
            D,
            HAS_WINDOW,
            HAS_STARTS,
            STORE,
        )
    dk_ptr += batch * dk_batch + kv_head * dk_head
    dv_ptr += batch * dv_batch + kv_head * dv_head
    tl.store(
        dk_ptr + offsets * dk_row + dims[None, :],
        (dk * natural_scale).to(dk_ptr.dtype.element_ty),
        mask=inside,
    )
    tl.store(dv_ptr + offsets * dv_row + dims[None, :], dv.to(dv_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _query_range(
    dq,
    query,
    gradient,
    log_sum,
    delta,
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
    high,
    MASKED: tl.constexpr,
    BN: tl.constexpr,
    D: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """Add the key tiles low..high-1 to dQ [BM, D] of one query tile, computing S and dP again."""
    dims = tl.arange(0, D)
    for tile in tl.range(low, high):
        keys = tile * BN + tl.arange(0, BN)
        offsets = keys[:, None].to(tl.int64)
        inside = (keys < num_keys)[:, None]
        key = tl.load(key_ptr + offsets * key_row + dims[None, :], mask=inside, other=0.0)
        value = tl.load(value_ptr + offsets * value_row + dims[None, :], mask=inside, other=0.0)
        weights = tl.exp2(
            tl.dot(query, tl.trans(key), input_precision="ieee") * scale - log_sum[:, None]
        )
        if MASKED:
            seen = visible(
                positions[:, None], keys[None, :], starts[:, None], window, num_keys, HAS_WINDOW
            )
            weights = tl.where(seen, weights, 0.0)
        # dS = P (dP - delta), [BM, BN]
        ds = weights * (tl.dot(gradient, tl.trans(value), input_precision="ieee") - delta[:, None])
        dq = tl.dot(ds.to(key.dtype), key, dq, input_precision="ieee")
    return dq


@triton.jit
def backward_queries(
    query_ptr,
    key_ptr,
    value_ptr,
    gradient_ptr,
    dq_ptr,
    log_sum_ptr,
    delta_ptr,
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
    gradient_batch,
    gradient_head,
    gradient_row,
    dq_batch,
    dq_head,
    dq_row,
    log_sum_row,
    num_queries,
    num_keys,
    window,
    scale,
    natural_scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_STARTS: tl.constexpr,
):
    """dQ of one query tile without stored dS^T: two more products per tile, but no memory that
    grows with the number of pairs.
    """
    tile = tl.program_id(0)
    head = tl.program_id(1) % HEADS
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    rows = tile * BM + tl.arange(0, BM)
    dims = tl.arange(0, D)
    inside = rows < num_queries
    shift = num_keys - num_queries
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
    offsets = rows[:, None].to(tl.int64)
    query_ptr += batch * query_batch + head * query_head
    gradient_ptr += batch * gradient_batch + head * gradient_head
    key_ptr += batch * key_batch + (head // GROUP) * key_head
    value_ptr += batch * value_batch + (head // GROUP) * value_head
    query = tl.load(
        query_ptr + offsets * query_row + dims[None, :], mask=inside[:, None], other=0.0
    )
    gradient = tl.load(
        gradient_ptr + offsets * gradient_row + dims[None, :], mask=inside[:, None], other=0.0
    )
    log_sum = tl.load(
        log_sum_ptr + (batch * HEADS + head) * log_sum_row + rows, mask=inside, other=0.0
    )
    delta = tl.load(delta_ptr + (batch * HEADS + head) * log_sum_row + rows, mask=inside, other=0.0)
    dq = tl.zeros((BM, D), tl.float32)
    dq = _query_range(
        dq,
        query,
        gradient,
        log_sum,
        delta,
        key_ptr,
        value_ptr,
        key_row,
        value_row,
        rows + shift,
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
    dq = _query_range(
        dq,
        query,
        gradient,
        log_sum,
        delta,
        key_ptr,
        value_ptr,
        key_row,
        value_row,
        rows + shift,
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
    dq = _query_range(
        dq,
        query,
        gradient,
        log_sum,
        delta,
        key_ptr,
        value_ptr,
        key_row,
        value_row,
        rows + shift,
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
    dq_ptr += batch * dq_batch + head * dq_head
    tl.store(
        dq_ptr + offsets * dq_row + dims[None, :],
        (dq * natural_scale).to(dq_ptr.dtype.element_ty),
        mask=inside[:, None],
    )


@triton.jit
def backward_queries_stored(
    scores_ptr,
    key_ptr,
    dq_ptr,
    starts_ptr,
    key_batch,
    key_head,
    key_row,
    dq_batch,
    dq_head,
    dq_row,
    num_queries,
    num_keys,
    window,
    natural_scale,
    band,
    head_rows,
    first_unit,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_STARTS: tl.constexpr,
):
    """dQ of one query tile from the dS^T that `backward_keys` stored (T == S): one product per tile
    instead of three, and no mask.

    BM must be the BN of `backward_keys`, because the columns of each band count from the first key
    of one of its tiles.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    local_head = tl.program_id(1)
    unit = first_unit + local_head // GROUP
    kv_head = unit % (HEADS // GROUP)
    head = kv_head * GROUP + local_head % GROUP
    batch = (unit // (HEADS // GROUP)).to(tl.int64)
    rows = tile * BM + tl.arange(0, BM)
    dims = tl.arange(0, D)
    low_key = 0
    if HAS_STARTS:
        low_key = tl.load(starts_ptr + batch * num_queries + tile * BM)
    if HAS_WINDOW:
        low_key = tl.maximum(low_key, tile * BM - window + 1)
    scores_ptr += local_head.to(tl.int64) * head_rows * band
    key_ptr += batch * key_batch + kv_head * key_head
    dq = tl.zeros((BM, D), tl.float32)
    for key_tile in tl.range(low_key // BM, tile + 1):
        keys = key_tile * BM + tl.arange(0, BM)
        offsets = keys[:, None].to(tl.int64)
        # dS^T [keys, queries], read from the band of this key tile.
        ds = tl.load(scores_ptr + offsets * band + (rows - key_tile * BM)[None, :])
        key = tl.load(
            key_ptr + offsets * key_row + dims[None, :], mask=(keys < num_keys)[:, None], other=0.0
        )
        dq = tl.dot(tl.trans(ds), key, dq, input_precision="ieee")
    dq_ptr += batch * dq_batch + head * dq_head
    offsets = rows[:, None].to(tl.int64)
    tl.store(
        dq_ptr + offsets * dq_row + dims[None, :],
        (dq * natural_scale).to(dq_ptr.dtype.element_ty),
        mask=(rows < num_queries)[:, None],
    )
