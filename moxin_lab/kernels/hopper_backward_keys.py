"""Attention backward in Gluon for Hopper, first part: dK, dV and the stored dS^T.

    producer warp    TMA loads of query, gradient, key and value tiles, row sums and deltas
    consumer 0, 1    four warps each, for 64 of a tile's 128 keys: four products per tile

The exponentials of one consumer run while the products of the other do. dS^T is written through
shared memory by TMA, so storing it costs no instruction per number.

The function is that of `backward_keys` in tiles_backward.py; barriers, guarantees and scope are
those of hopper_forward.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# Triton 3.6 has `thread_barrier`, 3.7 calls it `barrier`.
_barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier


@gluon.jit
def _backward_work_item(
    index,
    first_unit,
    num_queries,
    num_keys,
    window,
    ends_ptr,
    KV_HEADS: gl.constexpr,
    BM: gl.constexpr,
    BN: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_STARTS: gl.constexpr,
    units,
):
    """Unit of the workspace, batch, key/value head and first key of work item `index`, and the
    range of query tiles that see its key tile: masked from low to full_low, unmasked to full_end,
    masked to end. T == S here.
    """
    unit = index % units
    first = (index // units) * BN
    ALIGN: gl.constexpr = BN // BM
    batch = (first_unit + unit) // KV_HEADS
    kv_head = (first_unit + unit) % KV_HEADS
    last = gl.minimum(first + BN, num_keys) - 1
    last_query = num_queries - 1
    full_end = num_queries // BM
    if HAS_WINDOW:
        last_query = gl.minimum(last_query, last + window - 1)
        full_end = gl.minimum(full_end, (first + window) // BM)
    if HAS_STARTS:
        last_query = gl.minimum(last_query, gl.load(ends_ptr + batch * num_keys + last))
        full_end = gl.minimum(full_end, (gl.load(ends_ptr + batch * num_keys + first) + 1) // BM)
    low = first // BM
    # Up to full tiles of BN queries: `backward_queries` reads tiles of that size, and every dS that
    # it reads must have been written.
    end = (last_query // BN + 1) * ALIGN
    if first + BN > num_keys:
        full_end = low
    full_low = gl.minimum(gl.maximum((last + BM - 1) // BM, low), end)
    full_end = gl.minimum(gl.maximum(full_end, full_low), end)
    return unit, batch, kv_head, first, low, full_low, full_end, end


@gluon.jit
def _backward_producer(
    query_desc,
    key_desc,
    value_desc,
    gradient_desc,
    log_sum_desc,
    delta_desc,
    ends_ptr,
    queries,
    gradients,
    log_sums,
    deltas,
    keys,
    values,
    query_full,
    query_empty,
    gradient_full,
    gradient_empty,
    key_full,
    key_empty,
    num_queries,
    num_keys,
    window,
    num_items,
    first_unit,
    units,
    HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    D: gl.constexpr,
    BM: gl.constexpr,
    BN: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_STARTS: gl.constexpr,
):
    """Load key and value of each work item once, and the query tiles of all heads of its group."""
    count = 0  # query tiles loaded so far: slot and phase of the rings
    turn = 0  # work items so far: phase of the barriers of key and value
    for index in range(gl.program_id(0), num_items, gl.num_programs(0)):
        unit, batch, kv_head, first, low, full_low, full_end, end = _backward_work_item(
            index,
            first_unit,
            num_queries,
            num_keys,
            window,
            ends_ptr,
            HEADS // GROUP,
            BM,
            BN,
            HAS_WINDOW,
            HAS_STARTS,
            units,
        )
        mbarrier.wait(key_empty.index(0), (turn & 1) ^ 1)
        mbarrier.expect(key_full.index(0), 2 * BN * D * 2)
        for half in gl.static_range(2):
            first_key = first + half * (BN // 2)
            tma.async_copy_global_to_shared(
                key_desc, [batch, kv_head, first_key, 0], key_full.index(0), keys.index(half)
            )
            tma.async_copy_global_to_shared(
                value_desc, [batch, kv_head, first_key, 0], key_full.index(0), values.index(half)
            )
        turn += 1
        for member in range(GROUP):
            head = kv_head * GROUP + member
            for tile in range(low, end):
                slot = count % STAGES
                phase = ((count // STAGES) & 1) ^ 1
                mbarrier.wait(query_empty.index(slot), phase)
                mbarrier.expect(query_full.index(slot), BM * (D * 2 + 4))
                tma.async_copy_global_to_shared(
                    query_desc,
                    [batch, head, tile * BM, 0],
                    query_full.index(slot),
                    queries.index(slot),
                )
                tma.async_copy_global_to_shared(
                    log_sum_desc,
                    [batch * HEADS + head, tile * BM],
                    query_full.index(slot),
                    log_sums.index(slot),
                )
                mbarrier.wait(gradient_empty.index(slot), phase)
                mbarrier.expect(gradient_full.index(slot), BM * (D * 2 + 4))
                tma.async_copy_global_to_shared(
                    gradient_desc,
                    [batch, head, tile * BM, 0],
                    gradient_full.index(slot),
                    gradients.index(slot),
                )
                tma.async_copy_global_to_shared(
                    delta_desc,
                    [batch * HEADS + head, tile * BM],
                    gradient_full.index(slot),
                    deltas.index(slot),
                )
                count += 1


@gluon.jit
def _backward_step(
    dk,
    dv,
    key,
    value,
    queries,
    gradients,
    staged,
    scores_desc,
    query_full,
    query_empty,
    gradient_full,
    gradient_empty,
    log_sums,
    deltas,
    starts_ptr,
    count,
    tile,
    first,
    scores_row,
    num_queries,
    num_keys,
    window,
    scale,
    MASKED: gl.constexpr,
    ROWS: gl.constexpr,
    BM: gl.constexpr,
    D: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_STARTS: gl.constexpr,
    STORE: gl.constexpr,
    SCORES: gl.constexpr,
    WEIGHTS: gl.constexpr,
    HALF: gl.constexpr,
    dtype: gl.constexpr,
):
    """One query tile: S^T and dP^T [ROWS, BM], then dV and dK [ROWS, D].

    The exponentials run while dP^T is multiplied here, and while the other consumer multiplies.
    """
    slot = count % STAGES
    phase = (count // STAGES) & 1
    rows = tile * BM + gl.arange(0, BM, gl.SliceLayout(0, SCORES))
    inside = rows < num_queries
    empty = gl.zeros([ROWS, BM], gl.float32, SCORES)
    mbarrier.wait(query_full.index(slot), phase)
    query = queries.index(slot).reshape([BM, D])
    scores = warpgroup_mma(key, query.permute((1, 0)), empty, use_acc=False, is_async=True)
    mbarrier.wait(gradient_full.index(slot), phase)
    gradient = gradients.index(slot).reshape([BM, D])
    products = warpgroup_mma(value, gradient.permute((1, 0)), empty, use_acc=False, is_async=True)
    # dP^T may still run: wait for S^T only.
    scores = warpgroup_mma_wait(1, [scores])
    log_sum = log_sums.index(slot).reshape([BM]).load(gl.SliceLayout(0, SCORES))
    weights = gl.exp2(scores * scale - log_sum[None, :])
    if MASKED:
        keys = first + HALF * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
        seen = (keys[:, None] <= rows[None, :]) & inside[None, :] & (keys < num_keys)[:, None]
        if HAS_WINDOW:
            seen = seen & (keys[:, None] > (rows - window)[None, :])
        if HAS_STARTS:
            starts = gl.load(starts_ptr + rows, mask=inside, other=0)
            seen = seen & (keys[:, None] >= starts[None, :])
        weights = gl.where(seen, weights, 0.0)
    dv = warpgroup_mma(gl.convert_layout(weights.to(dtype), WEIGHTS), gradient, dv, is_async=True)
    products = warpgroup_mma_wait(1, [products])
    delta = deltas.index(slot).reshape([BM]).load(gl.SliceLayout(0, SCORES))
    ds = (weights * (products - delta[None, :])).to(dtype)
    dk = warpgroup_mma(gl.convert_layout(ds, WEIGHTS), query, dk, is_async=True)
    if STORE:
        # Two buffers per consumer: before one is overwritten, the store issued two tiles ago must
        # have read it, and all warps must know.
        buffer = staged.index(HALF * 2 + count % 2)
        tma.store_wait(1)
        _barrier()
        buffer.store(ds)
        fence_async_shared()  # makes the store visible to TMA
        tma.async_copy_shared_to_global(scores_desc, [scores_row, tile * BM - first], buffer)
    dk, dv = warpgroup_mma_wait(0, [dk, dv])
    mbarrier.arrive(query_empty.index(slot), count=1)
    mbarrier.arrive(gradient_empty.index(slot), count=1)
    return dk, dv, count + 1


@gluon.jit
def _backward_consumer(
    HALF: gl.constexpr,
    dk_ptr,
    dv_ptr,
    starts_ptr,
    ends_ptr,
    scores_desc,
    queries,
    gradients,
    log_sums,
    deltas,
    keys,
    values,
    staged,
    query_full,
    query_empty,
    gradient_full,
    gradient_empty,
    key_full,
    key_empty,
    dk_batch,
    dk_head,
    dk_row,
    num_queries,
    num_keys,
    window,
    scale,
    natural_scale,
    num_items,
    first_unit,
    units,
    head_rows,
    HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    D: gl.constexpr,
    BM: gl.constexpr,
    BN: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_STARTS: gl.constexpr,
    STORE: gl.constexpr,
    dtype: gl.constexpr,
):
    """dK and dV of half HALF of the keys of each work item, and with STORE their dS^T."""
    ROWS: gl.constexpr = BN // 2
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BM, 16]
    )
    ACC: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16]
    )
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=ACC, k_width=2)
    STORED: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    count = 0  # query tiles read so far, as in the producer
    turn = 0
    for index in range(gl.program_id(0), num_items, gl.num_programs(0)):
        unit, batch, kv_head, first, low, full_low, full_end, end = _backward_work_item(
            index,
            first_unit,
            num_queries,
            num_keys,
            window,
            ends_ptr,
            HEADS // GROUP,
            BM,
            BN,
            HAS_WINDOW,
            HAS_STARTS,
            units,
        )
        mbarrier.wait(key_full.index(0), turn & 1)
        key = keys.index(HALF).reshape([ROWS, D])
        value = values.index(HALF).reshape([ROWS, D])
        dk = gl.zeros([ROWS, D], gl.float32, ACC)
        dv = gl.zeros([ROWS, D], gl.float32, ACC)
        starts = starts_ptr
        if HAS_STARTS:
            starts += batch * num_queries
        for member in range(GROUP):
            scores_row = (unit * GROUP + member) * head_rows + first + HALF * ROWS
            for tile in range(low, full_low):
                dk, dv, count = _backward_step(
                    dk,
                    dv,
                    key,
                    value,
                    queries,
                    gradients,
                    staged,
                    scores_desc,
                    query_full,
                    query_empty,
                    gradient_full,
                    gradient_empty,
                    log_sums,
                    deltas,
                    starts,
                    count,
                    tile,
                    first,
                    scores_row,
                    num_queries,
                    num_keys,
                    window,
                    scale,
                    True,
                    ROWS,
                    BM,
                    D,
                    STAGES,
                    HAS_WINDOW,
                    HAS_STARTS,
                    STORE,
                    SCORES,
                    WEIGHTS,
                    HALF,
                    dtype,
                )
            for tile in range(full_low, full_end):
                dk, dv, count = _backward_step(
                    dk,
                    dv,
                    key,
                    value,
                    queries,
                    gradients,
                    staged,
                    scores_desc,
                    query_full,
                    query_empty,
                    gradient_full,
                    gradient_empty,
                    log_sums,
                    deltas,
                    starts,
                    count,
                    tile,
                    first,
                    scores_row,
                    num_queries,
                    num_keys,
                    window,
                    scale,
                    False,
                    ROWS,
                    BM,
                    D,
                    STAGES,
                    HAS_WINDOW,
                    HAS_STARTS,
                    STORE,
                    SCORES,
                    WEIGHTS,
                    HALF,
                    dtype,
                )
            for tile in range(full_end, end):
                dk, dv, count = _backward_step(
                    dk,
                    dv,
                    key,
                    value,
                    queries,
                    gradients,
                    staged,
                    scores_desc,
                    query_full,
                    query_empty,
                    gradient_full,
                    gradient_empty,
                    log_sums,
                    deltas,
                    starts,
                    count,
                    tile,
                    first,
                    scores_row,
                    num_queries,
                    num_keys,
                    window,
                    scale,
                    True,
                    ROWS,
                    BM,
                    D,
                    STAGES,
                    HAS_WINDOW,
                    HAS_STARTS,
                    STORE,
                    SCORES,
                    WEIGHTS,
                    HALF,
                    dtype,
                )
        mbarrier.arrive(key_empty.index(0), count=1)
        turn += 1
        key_rows = first + HALF * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, STORED))
        offsets = (
            batch.to(gl.int64) * dk_batch
            + kv_head.to(gl.int64) * dk_head
            + key_rows.to(gl.int64)[:, None] * dk_row
        )
        offsets = offsets + gl.arange(0, D, gl.SliceLayout(0, STORED))[None, :]
        inside = (key_rows < num_keys)[:, None]
        gl.store(
            dk_ptr + offsets, gl.convert_layout((dk * natural_scale).to(dtype), STORED), mask=inside
        )
        gl.store(dv_ptr + offsets, gl.convert_layout(dv.to(dtype), STORED), mask=inside)
    if STORE:  # shared memory must outlive the last stores
        tma.store_wait(0)


@gluon.jit
def backward_keys(
    query_desc,
    key_desc,
    value_desc,
    gradient_desc,
    log_sum_desc,
    delta_desc,
    scores_desc,
    dk_ptr,
    dv_ptr,
    starts_ptr,
    ends_ptr,
    dk_batch,
    dk_head,
    dk_row,
    num_queries,
    num_keys,
    window,
    scale,
    natural_scale,
    num_items,
    first_unit,
    units,
    head_rows,
    HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    D: gl.constexpr,
    BM: gl.constexpr,
    BN: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_STARTS: gl.constexpr,
    STORE: gl.constexpr,
    num_warps: gl.constexpr,
):
    """dK, dV and, with STORE, dS^T in the layout of `backward_keys` in tiles_backward.py;
    persistent.

    `units`: pairs (batch, key/value head) of this launch, from `first_unit` on.
    `head_rows`: rows of the stored dS^T per query head.
    """
    dtype: gl.constexpr = query_desc.dtype
    queries = gl.allocate_shared_memory(dtype, [STAGES] + query_desc.block_shape, query_desc.layout)
    gradients = gl.allocate_shared_memory(
        dtype, [STAGES] + gradient_desc.block_shape, gradient_desc.layout
    )
    log_sums = gl.allocate_shared_memory(
        gl.float32, [STAGES] + log_sum_desc.block_shape, log_sum_desc.layout
    )
    deltas = gl.allocate_shared_memory(
        gl.float32, [STAGES] + delta_desc.block_shape, delta_desc.layout
    )
    keys = gl.allocate_shared_memory(dtype, [2] + key_desc.block_shape, key_desc.layout)
    values = gl.allocate_shared_memory(dtype, [2] + value_desc.block_shape, value_desc.layout)
    staged = gl.allocate_shared_memory(dtype, [4] + scores_desc.block_shape, scores_desc.layout)
    query_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    query_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    gradient_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    gradient_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    key_full = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    key_empty = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    mbarrier.init(key_full.index(0), count=1)
    mbarrier.init(key_empty.index(0), count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(query_full.index(i), count=1)
        mbarrier.init(query_empty.index(i), count=2)
        mbarrier.init(gradient_full.index(i), count=1)
        mbarrier.init(gradient_empty.index(i), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _backward_consumer,
                (
                    0,
                    dk_ptr,
                    dv_ptr,
                    starts_ptr,
                    ends_ptr,
                    scores_desc,
                    queries,
                    gradients,
                    log_sums,
                    deltas,
                    keys,
                    values,
                    staged,
                    query_full,
                    query_empty,
                    gradient_full,
                    gradient_empty,
                    key_full,
                    key_empty,
                    dk_batch,
                    dk_head,
                    dk_row,
                    num_queries,
                    num_keys,
                    window,
                    scale,
                    natural_scale,
                    num_items,
                    first_unit,
                    units,
                    head_rows,
                    HEADS,
                    GROUP,
                    D,
                    BM,
                    BN,
                    STAGES,
                    HAS_WINDOW,
                    HAS_STARTS,
                    STORE,
                    dtype,
                ),
            ),
            (
                _backward_consumer,
                (
                    1,
                    dk_ptr,
                    dv_ptr,
                    starts_ptr,
                    ends_ptr,
                    scores_desc,
                    queries,
                    gradients,
                    log_sums,
                    deltas,
                    keys,
                    values,
                    staged,
                    query_full,
                    query_empty,
                    gradient_full,
                    gradient_empty,
                    key_full,
                    key_empty,
                    dk_batch,
                    dk_head,
                    dk_row,
                    num_queries,
                    num_keys,
                    window,
                    scale,
                    natural_scale,
                    num_items,
                    first_unit,
                    units,
                    head_rows,
                    HEADS,
                    GROUP,
                    D,
                    BM,
                    BN,
                    STAGES,
                    HAS_WINDOW,
                    HAS_STARTS,
                    STORE,
                    dtype,
                ),
            ),
            (
                _backward_producer,
                (
                    query_desc,
                    key_desc,
                    value_desc,
                    gradient_desc,
                    log_sum_desc,
                    delta_desc,
                    ends_ptr,
                    queries,
                    gradients,
                    log_sums,
                    deltas,
                    keys,
                    values,
                    query_full,
                    query_empty,
                    gradient_full,
                    gradient_empty,
                    key_full,
                    key_empty,
                    num_queries,
                    num_keys,
                    window,
                    num_items,
                    first_unit,
                    units,
                    HEADS,
                    GROUP,
                    D,
                    BM,
                    BN,
                    STAGES,
                    HAS_WINDOW,
                    HAS_STARTS,
                ),
            ),
        ],
        [4, 1],
        [240, 24],
    )
