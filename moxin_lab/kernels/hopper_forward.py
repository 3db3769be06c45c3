"""The attention forward in Gluon, Triton's lower-level language, for Hopper (compute capability
9.0): the function of tiles_forward.py, faster.

    producer warp    TMA loads of query, key and value tiles into rings of shared memory
    consumer 0, 1    four warps each, for half of the tile's rows: wgmma, softmax, wgmma

Why it is separate from tiles_forward.py: Triton waits for each product of queries and keys before
it starts anything else. Here the softmax of one tile runs while the tensor cores multiply the
previous weights by their values, and while the other consumer multiplies (both overlaps are
described in FlashAttention-3, Shah et al. 2024, arXiv 2407.08608, sections 3.1 and 3.2).

Synchronisation: each slot of a ring has two barriers. The producer waits for `empty`, which both
consumers signal when they have read the slot, then loads; the arrival of the bytes signals `full`,
for which the consumers wait. The parity of the number of passes over the ring is the phase of a
barrier.

Guarantees: the same function and masks as tiles_forward.py; deterministic; tested on a GPU against
the reference (tests/kernels), since Gluon has no interpreter. Gluon is experimental: this was
written for and run on Triton 3.6. If its import fails, `window_attention` uses tiles_*.py and
warns.
Out of scope: other GPUs; head sizes other than 64 and 128; float32.
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


@gluon.jit
def _key_tile_range(
    first, last, first_start, last_start, window, BN: gl.constexpr, HAS_WINDOW: gl.constexpr
):
    """As in tiles_forward.py."""
    low_key = first_start
    full_key = last_start
    if HAS_WINDOW:
        low_key = gl.maximum(low_key, first - window + 1)
        full_key = gl.maximum(full_key, last - window + 1)
    low = low_key // BN
    end = last // BN + 1
    full_high = gl.minimum(gl.maximum((first + 1) // BN, low), end)
    full_low = gl.minimum(gl.maximum((full_key + BN - 1) // BN, low), full_high)
    return low, full_low, full_high, end


@gluon.jit
def _forward_work_item(
    index,
    num_queries,
    num_keys,
    window,
    starts_ptr,
    HEADS: gl.constexpr,
    KV_HEADS: gl.constexpr,
    BM: gl.constexpr,
    BN: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_STARTS: gl.constexpr,
    UNITS: gl.constexpr,
):
    """Batch, head, first row and range of key tiles of work item `index`.

    Late rows come first, because they see the most keys. Heads that share keys are neighbours, so
    that they run at the same time and the keys stay in cache.
    """
    num_tiles = (num_queries + BM - 1) // BM
    tile = num_tiles - 1 - index // UNITS
    unit = index % UNITS
    batch = unit // HEADS
    head = unit % HEADS
    row = tile * BM
    shift = num_keys - num_queries
    last_row = gl.minimum(row + BM, num_queries) - 1
    first_start = 0
    last_start = 0
    if HAS_STARTS:
        first_start = gl.load(starts_ptr + batch * num_queries + row)
        last_start = gl.load(starts_ptr + batch * num_queries + last_row)
    low, full_low, full_high, end = _key_tile_range(
        row + shift, last_row + shift, first_start, last_start, window, BN, HAS_WINDOW
    )
    return batch, head, row, low, full_low, full_high, end


@gluon.jit
def _forward_producer(
    query_desc,
    key_desc,
    value_desc,
    starts_ptr,
    queries,
    keys,
    values,
    query_full,
    query_empty,
    key_full,
    key_empty,
    value_full,
    value_empty,
    num_queries,
    num_keys,
    window,
    num_items,
    HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    UNITS: gl.constexpr,
    D: gl.constexpr,
    BM: gl.constexpr,
    BN: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_STARTS: gl.constexpr,
):
    """Load the tiles of all work items of this program, key tiles from the last to the first."""
    count = 0  # tiles loaded so far: slot and phase of the rings
    turn = 0  # work items so far: phase of the query's barriers
    for index in range(gl.program_id(0), num_items, gl.num_programs(0)):
        batch, head, row, low, full_low, full_high, end = _forward_work_item(
            index,
            num_queries,
            num_keys,
            window,
            starts_ptr,
            HEADS,
            HEADS // GROUP,
            BM,
            BN,
            HAS_WINDOW,
            HAS_STARTS,
            UNITS,
        )
        kv_head = head // GROUP
        mbarrier.wait(query_empty.index(0), (turn & 1) ^ 1)
        mbarrier.expect(query_full.index(0), BM * D * 2)
        tma.async_copy_global_to_shared(
            query_desc, [batch, head, row, 0], query_full.index(0), queries.index(0)
        )
        tma.async_copy_global_to_shared(
            query_desc, [batch, head, row + BM // 2, 0], query_full.index(0), queries.index(1)
        )
        turn += 1
        for i in range(end - low):
            slot = count % STAGES
            phase = ((count // STAGES) & 1) ^ 1
            first_key = (end - 1 - i) * BN
            mbarrier.wait(key_empty.index(slot), phase)
            mbarrier.expect(key_full.index(slot), BN * D * 2)
            tma.async_copy_global_to_shared(
                key_desc, [batch, kv_head, first_key, 0], key_full.index(slot), keys.index(slot)
            )
            mbarrier.wait(value_empty.index(slot), phase)
            mbarrier.expect(value_full.index(slot), BN * D * 2)
            tma.async_copy_global_to_shared(
                value_desc,
                [batch, kv_head, first_key, 0],
                value_full.index(slot),
                values.index(slot),
            )
            count += 1


@gluon.jit
def _mask(
    scores,
    positions,
    columns,
    starts,
    window,
    num_keys,
    HAS_WINDOW: gl.constexpr,
    HAS_STARTS: gl.constexpr,
):
    """-inf in scores [ROWS, BN] for keys (`columns`) that a query does not see."""
    seen = columns[None, :] <= positions[:, None]
    if HAS_WINDOW:
        seen = seen & (columns[None, :] > (positions - window)[:, None])
    if HAS_STARTS:
        seen = seen & (columns[None, :] >= starts[:, None])
    return gl.where(seen & (columns < num_keys)[None, :], scores, float("-inf"))


@gluon.jit
def _forward_step(
    acc,
    row_max,
    row_sum,
    weights,
    query,
    keys,
    values,
    key_full,
    key_empty,
    value_full,
    value_empty,
    count,
    tile,
    positions,
    starts,
    window,
    num_keys,
    scale,
    MASKED: gl.constexpr,
    ROWS: gl.constexpr,
    BN: gl.constexpr,
    D: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_STARTS: gl.constexpr,
    SCORES: gl.constexpr,
    WEIGHTS: gl.constexpr,
    ACC: gl.constexpr,
    dtype: gl.constexpr,
):
    """Scores of key tile `count`, while the weights of tile `count - 1` are multiplied by their
    values.
    """
    slot = count % STAGES
    before = (count - 1) % STAGES
    mbarrier.wait(key_full.index(slot), (count // STAGES) & 1)
    key = keys.index(slot).reshape([BN, D]).permute((1, 0))
    empty = gl.zeros([ROWS, BN], gl.float32, SCORES)
    scores = warpgroup_mma(query, key, empty, use_acc=False, is_async=True)
    mbarrier.wait(value_full.index(before), ((count - 1) // STAGES) & 1)
    acc = warpgroup_mma(weights, values.index(before).reshape([BN, D]), acc, is_async=True)
    # One of the two products may still run: wait for the scores only.
    scores = warpgroup_mma_wait(1, [scores])
    mbarrier.arrive(key_empty.index(slot), count=1)
    if MASKED:
        columns = tile * BN + gl.arange(0, BN, gl.SliceLayout(0, SCORES))
        scores = _mask(scores, positions, columns, starts, window, num_keys, HAS_WINDOW, HAS_STARTS)
    new_max = gl.maximum(row_max, gl.max(scores, 1) * scale)
    anchor = new_max
    if MASKED:
        anchor = gl.where(new_max == float("-inf"), 0.0, new_max)
    shrink = gl.exp2(row_max - anchor)
    scores = gl.exp2(scores * scale - anchor[:, None])
    row_sum = row_sum * shrink + gl.sum(scores, 1)
    new_weights = gl.convert_layout(scores.to(dtype), WEIGHTS)
    acc = warpgroup_mma_wait(0, [acc])
    mbarrier.arrive(value_empty.index(before), count=1)
    # The sums so far are relative to the old maximum. The new weights are multiplied in the next
    # step, after this.
    acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, ACC))[:, None]
    return acc, new_max, row_sum, new_weights, count + 1


@gluon.jit
def _forward_consumer(
    HALF: gl.constexpr,
    output_ptr,
    log_sum_ptr,
    starts_ptr,
    queries,
    keys,
    values,
    query_full,
    query_empty,
    key_full,
    key_empty,
    value_full,
    value_empty,
    output_batch,
    output_head,
    output_row,
    log_sum_row,
    num_queries,
    num_keys,
    window,
    scale,
    num_items,
    HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    UNITS: gl.constexpr,
    D: gl.constexpr,
    BM: gl.constexpr,
    BN: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_STARTS: gl.constexpr,
    dtype: gl.constexpr,
):
    """Output and row sums of half HALF of the rows of each work item."""
    ROWS: gl.constexpr = BM // 2
    ACC: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16]
    )
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BN, 16]
    )
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=ACC, k_width=2)
    STORED: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    count = 0  # tiles read so far, as in the producer
    turn = 0
    for index in range(gl.program_id(0), num_items, gl.num_programs(0)):
        batch, head, row, low, full_low, full_high, end = _forward_work_item(
            index,
            num_queries,
            num_keys,
            window,
            starts_ptr,
            HEADS,
            HEADS // GROUP,
            BM,
            BN,
            HAS_WINDOW,
            HAS_STARTS,
            UNITS,
        )
        rows = row + HALF * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
        inside = rows < num_queries
        positions = rows + (num_keys - num_queries)
        starts = gl.zeros([ROWS], gl.int32, gl.SliceLayout(1, SCORES))
        if HAS_STARTS:
            starts = gl.load(starts_ptr + batch * num_queries + rows, mask=inside, other=0)
        mbarrier.wait(query_full.index(0), turn & 1)
        query = queries.index(HALF).reshape([ROWS, D])
        # The first tile, which holds the diagonal. Only the other consumer can overlap with it.
        slot = count % STAGES
        mbarrier.wait(key_full.index(slot), (count // STAGES) & 1)
        empty = gl.zeros([ROWS, BN], gl.float32, SCORES)
        scores = warpgroup_mma(
            query,
            keys.index(slot).reshape([BN, D]).permute((1, 0)),
            empty,
            use_acc=False,
            is_async=True,
        )
        scores = warpgroup_mma_wait(0, [scores])
        mbarrier.arrive(key_empty.index(slot), count=1)
        columns = (end - 1) * BN + gl.arange(0, BN, gl.SliceLayout(0, SCORES))
        scores = _mask(scores, positions, columns, starts, window, num_keys, HAS_WINDOW, HAS_STARTS)
        row_max = gl.max(scores, 1) * scale
        anchor = gl.where(row_max == float("-inf"), 0.0, row_max)
        scores = gl.exp2(scores * scale - anchor[:, None])
        row_sum = gl.sum(scores, 1)
        weights = gl.convert_layout(scores.to(dtype), WEIGHTS)
        acc = gl.zeros([ROWS, D], gl.float32, ACC)
        count += 1
        # Tiles from the diagonal down to the window's edge: masked, unmasked, masked.
        for tile in range(end - 1 - gl.maximum(full_high, low)):
            acc, row_max, row_sum, weights, count = _forward_step(
                acc,
                row_max,
                row_sum,
                weights,
                query,
                keys,
                values,
                key_full,
                key_empty,
                value_full,
                value_empty,
                count,
                end - 2 - tile,
                positions,
                starts,
                window,
                num_keys,
                scale,
                True,
                ROWS,
                BN,
                D,
                STAGES,
                HAS_WINDOW,
                HAS_STARTS,
                SCORES,
                WEIGHTS,
                ACC,
                dtype,
            )
        full_end = gl.minimum(full_high, end - 1)
        for tile in range(full_end - full_low):
            acc, row_max, row_sum, weights, count = _forward_step(
                acc,
                row_max,
                row_sum,
                weights,
                query,
                keys,
                values,
                key_full,
                key_empty,
                value_full,
                value_empty,
                count,
                full_end - 1 - tile,
                positions,
                starts,
                window,
                num_keys,
                scale,
                False,
                ROWS,
                BN,
                D,
                STAGES,
                HAS_WINDOW,
                HAS_STARTS,
                SCORES,
                WEIGHTS,
                ACC,
                dtype,
            )
        edge_end = gl.minimum(full_low, full_end)
        for tile in range(edge_end - low):
            acc, row_max, row_sum, weights, count = _forward_step(
                acc,
                row_max,
                row_sum,
                weights,
                query,
                keys,
                values,
                key_full,
                key_empty,
                value_full,
                value_empty,
                count,
                edge_end - 1 - tile,
                positions,
                starts,
                window,
                num_keys,
                scale,
                True,
                ROWS,
                BN,
                D,
                STAGES,
                HAS_WINDOW,
                HAS_STARTS,
                SCORES,
                WEIGHTS,
                ACC,
                dtype,
            )
        mbarrier.arrive(query_empty.index(0), count=1)
        # The weights of the last tile have not been multiplied by their values yet.
        slot = (count - 1) % STAGES
        mbarrier.wait(value_full.index(slot), ((count - 1) // STAGES) & 1)
        acc = warpgroup_mma(weights, values.index(slot).reshape([BN, D]), acc, is_async=True)
        acc = warpgroup_mma_wait(0, [acc])
        mbarrier.arrive(value_empty.index(slot), count=1)
        row_sum = gl.where(inside, row_sum, 1.0)
        acc = acc * gl.convert_layout(1.0 / row_sum, gl.SliceLayout(1, ACC))[:, None]
        stored = gl.convert_layout(acc.to(dtype), STORED)
        out_rows = row + HALF * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, STORED))
        dims = gl.arange(0, D, gl.SliceLayout(0, STORED))
        pointers = output_ptr + batch.to(gl.int64) * output_batch + head.to(gl.int64) * output_head
        pointers = pointers + out_rows.to(gl.int64)[:, None] * output_row + dims[None, :]
        gl.store(pointers, stored, mask=(out_rows < num_queries)[:, None])
        sums = log_sum_ptr + (batch.to(gl.int64) * HEADS + head) * log_sum_row
        gl.store(sums + rows, row_max + gl.log2(row_sum), mask=inside)
        turn += 1


@gluon.jit
def forward(
    query_desc,
    key_desc,
    value_desc,
    output_ptr,
    log_sum_ptr,
    starts_ptr,
    output_batch,
    output_head,
    output_row,
    log_sum_row,
    num_queries,
    num_keys,
    window,
    scale,
    num_items,
    HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    UNITS: gl.constexpr,
    D: gl.constexpr,
    BM: gl.constexpr,
    BN: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_STARTS: gl.constexpr,
    num_warps: gl.constexpr,
):
    """As `forward` of tiles_forward.py, persistent: program p computes the work items p,
    p + number of programs, ... (see `_forward_work_item`).
    """
    dtype: gl.constexpr = query_desc.dtype
    queries = gl.allocate_shared_memory(dtype, [2] + query_desc.block_shape, query_desc.layout)
    keys = gl.allocate_shared_memory(dtype, [STAGES] + key_desc.block_shape, key_desc.layout)
    values = gl.allocate_shared_memory(dtype, [STAGES] + value_desc.block_shape, value_desc.layout)
    query_full = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    query_empty = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    key_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    key_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    # `full` is signalled once, by the producer's loads; `empty` twice, by each consumer.
    mbarrier.init(query_full.index(0), count=1)
    mbarrier.init(query_empty.index(0), count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(key_full.index(i), count=1)
        mbarrier.init(key_empty.index(i), count=2)
        mbarrier.init(value_full.index(i), count=1)
        mbarrier.init(value_empty.index(i), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _forward_consumer,
                (
                    0,
                    output_ptr,
                    log_sum_ptr,
                    starts_ptr,
                    queries,
                    keys,
                    values,
                    query_full,
                    query_empty,
                    key_full,
                    key_empty,
                    value_full,
                    value_empty,
                    output_batch,
                    output_head,
                    output_row,
                    log_sum_row,
                    num_queries,
                    num_keys,
                    window,
                    scale,
                    num_items,
                    HEADS,
                    GROUP,
                    UNITS,
                    D,
                    BM,
                    BN,
                    STAGES,
                    HAS_WINDOW,
                    HAS_STARTS,
                    dtype,
                ),
            ),
            (
                _forward_consumer,
                (
                    1,
                    output_ptr,
                    log_sum_ptr,
                    starts_ptr,
                    queries,
                    keys,
                    values,
                    query_full,
                    query_empty,
                    key_full,
                    key_empty,
                    value_full,
                    value_empty,
                    output_batch,
                    output_head,
                    output_row,
                    log_sum_row,
                    num_queries,
                    num_keys,
                    window,
                    scale,
                    num_items,
                    HEADS,
                    GROUP,
                    UNITS,
                    D,
                    BM,
                    BN,
                    STAGES,
                    HAS_WINDOW,
                    HAS_STARTS,
                    dtype,
                ),
            ),
            (
                _forward_producer,
                (
                    query_desc,
                    key_desc,
                    value_desc,
                    starts_ptr,
                    queries,
                    keys,
                    values,
                    query_full,
                    query_empty,
                    key_full,
                    key_empty,
                    value_full,
                    value_empty,
                    num_queries,
                    num_keys,
                    window,
                    num_items,
                    HEADS,
                    GROUP,
                    UNITS,
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
