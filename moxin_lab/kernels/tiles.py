"""Triton kernels of windowed, document-wise, grouped attention: forward, and backward in three
launches without atomics.

    key tiles of one query tile, W the window      | edge | full | full | ... | full | diagonal |
                                                    masked   no mask at all             masked

Every kernel walks only tiles that hold a visible pair, and applies the mask only in those that also
hold an invisible one. Query i stands at key place i + S - T (the last query is the last key); it
sees keys j with max(i' - W + 1, start(i)) <= j <= i'.

Guarantees: float32 is multiplied as float32, not as tf32; one writer an output element and a fixed
order of additions, so the same inputs give the same bytes; any T and S; keys and values of grouped
heads are read where they lie.
Does not: dropout, bias, or choose tile sizes (window_attention.py does). These kernels run on any
GPU that Triton knows and, slowly, in Triton's interpreter; hopper_forward.py and hopper_backward.py
have the big ones in the terms of one chip.
"""

import triton
import triton.language as tl


@triton.jit
def key_tile_range(
    first, last, first_start, last_start, window, BN: tl.constexpr, HAS_WINDOW: tl.constexpr
):
    """Key tiles of the queries at key places first..last, whose documents begin at
    first_start..last_start (never falling).

    Returns low <= full_low <= full_high <= end: tiles low..full_low and full_high..end need the
    mask, those between do not.
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
def visible(places, keys, starts, window, num_keys, HAS_WINDOW: tl.constexpr):
    """Which of `keys` each query sees; shapes broadcast."""
    seen = (keys <= places) & (keys >= starts) & (keys < num_keys)
    if HAS_WINDOW:
        seen = seen & (keys > places - window)
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
    places,
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
    """Key tiles low..high-1 into the running sums (Milakov and Gimelshein 2018, arXiv 1805.02867),
    in base 2.
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
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        if MASKED:
            seen = visible(
                places[:, None], keys[None, :], starts[:, None], window, num_keys, HAS_WINDOW
            )
            scores = tl.where(seen, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        anchor = new_max
        if MASKED:  # a row that has seen nothing yet
            anchor = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.exp2(scores - anchor[:, None])
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
    """Output [B, H, T, D] and log2 of each row's sum, float32 [B, H, T]. `scale` has log2(e) in it."""
    # Late tiles first: they are the longest where a window or the start of the text makes them
    # unequal.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1) % HEADS
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    rows = tile * BM + tl.arange(0, BM)
    dims = tl.arange(0, D)
    shift = num_keys - num_queries
    places = rows + shift
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
        places,
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
        places,
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
        places,
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
    # Rows beyond the text may have seen nothing; they are not stored.
    row_sum = tl.where(inside, row_sum, 1.0)
    output_ptr += batch * output_batch + head * output_head
    output = (acc / row_sum[:, None]).to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + offsets * output_row + dims[None, :], output, mask=inside[:, None])
    log_sum_ptr += (batch * HEADS + head) * log_sum_row
    tl.store(log_sum_ptr + rows, row_max + tl.log2(row_sum), mask=inside)


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
    """delta, float32 [B, H, T]: the product of each output row with its gradient, which every row
    of dS subtracts.
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
    first, last, end_place, shift, num_queries, window, BM: tl.constexpr, HAS_WINDOW: tl.constexpr
):
    """Query tiles that see one of the keys first..last, the document of the last of which ends at
    end_place: (low, end).
    """
    last_query = end_place - shift
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
    """Query tiles low..high-1 into dK and dV of one key tile; with STORE, dS^T of each goes to
    memory for dQ.
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

    Units (batch, key/value head) from `first_unit` on. With STORE, dS^T goes to `scores_ptr`: rows
    are keys (`head_rows` a query head), column c is the query that stands c places behind the first
    key of the tile.
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
    end_place = num_keys - 1
    if HAS_STARTS:
        end_place = tl.load(ends_ptr + batch * num_keys + last)
    low, end = query_tile_range(first, last, end_place, shift, num_queries, window, BM, HAS_WINDOW)
    if STORE:  # whole key tiles of queries, so that `backward_queries_stored` finds every dS that it reads written
        end = ((end * BM + BN - 1) // BN) * (BN // BM)
    # Query tiles whose every row sees every key of this tile.
    full_low = (last - shift + BM - 1) // BM
    full_end = num_queries // BM
    if HAS_STARTS:  # rows of the document in which the first key stands
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
    places,
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
    """Key tiles low..high-1 into dQ of one query tile, with the scores computed again."""
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
                places[:, None], keys[None, :], starts[:, None], window, num_keys, HAS_WINDOW
            )
            weights = tl.where(seen, weights, 0.0)
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
    """dQ of one query tile without stored scores: two more products a tile, no memory that grows
    with the pairs.
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
    """dQ of one query tile from the dS^T that `backward_keys` stored (T == S): one product a tile
    instead of three, no mask.

    BM must be the key tile of `backward_keys`, whose first key each band of columns counts from.
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
