"""Attention backward in Gluon for Hopper, second part: dQ = dS K from the stored dS^T.

    producer warp    TMA loads of tiles of dS^T and of keys
    consumer 0, 1    four warps each, for 64 of a tile's 128 queries: one product per tile

It computes what `backward_queries_stored` of tiles_backward.py does, faster; guarantees and scope
are those of hopper_forward.py.
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
def _queries_work_item(
    index,
    workspace_heads,
    first_unit,
    num_queries,
    window,
    starts_ptr,
    HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    BM: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_STARTS: gl.constexpr,
):
    """Head of the workspace, batch, key/value head, query head, first row and range of key tiles of
    work item `index`. Late rows come first, because they see the most keys.
    """
    local_head = index % workspace_heads
    tile = (num_queries + BM - 1) // BM - 1 - index // workspace_heads
    unit = first_unit + local_head // GROUP
    batch = unit // (HEADS // GROUP)
    kv_head = unit % (HEADS // GROUP)
    head = kv_head * GROUP + local_head % GROUP
    row = tile * BM
    low_key = 0
    if HAS_STARTS:
        low_key = gl.load(starts_ptr + batch * num_queries + row)
    if HAS_WINDOW:
        low_key = gl.maximum(low_key, row - window + 1)
    return local_head, batch, kv_head, head, row, low_key // BM, tile + 1


@gluon.jit
def _queries_producer(
    scores_desc,
    key_desc,
    starts_ptr,
    scores,
    keys,
    full,
    empty,
    num_queries,
    window,
    num_items,
    first_unit,
    workspace_heads,
    head_rows,
    HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    D: gl.constexpr,
    BM: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_STARTS: gl.constexpr,
):
    """Load the tiles of dS^T and of keys of all work items of this program."""
    count = 0  # tiles loaded so far: slot and phase of the rings
    for index in range(gl.program_id(0), num_items, gl.num_programs(0)):
        local_head, batch, kv_head, head, row, low, end = _queries_work_item(
            index,
            workspace_heads,
            first_unit,
            num_queries,
            window,
            starts_ptr,
            HEADS,
            GROUP,
            BM,
            HAS_WINDOW,
            HAS_STARTS,
        )
        for tile in range(low, end):
            slot = count % STAGES
            first = tile * BM
            mbarrier.wait(empty.index(slot), ((count // STAGES) & 1) ^ 1)
            mbarrier.expect(full.index(slot), BM * (BM + D) * 2)
            for half in gl.static_range(2):
                tma.async_copy_global_to_shared(
                    scores_desc,
                    [local_head * head_rows + first, row - first + half * (BM // 2)],
                    full.index(slot),
                    scores.index(slot * 2 + half),
                )
            tma.async_copy_global_to_shared(
                key_desc, [batch, kv_head, first, 0], full.index(slot), keys.index(slot)
            )
            count += 1


@gluon.jit
def _queries_consumer(
    HALF: gl.constexpr,
    dq_ptr,
    starts_ptr,
    scores,
    keys,
    full,
    empty,
    dq_batch,
    dq_head,
    dq_row,
    num_queries,
    window,
    natural_scale,
    num_items,
    first_unit,
    workspace_heads,
    HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    D: gl.constexpr,
    BM: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_STARTS: gl.constexpr,
    dtype: gl.constexpr,
):
    """dQ of half HALF of the rows of each work item."""
    ROWS: gl.constexpr = BM // 2
    ACC: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16]
    )
    STORED: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    count = 0
    for index in range(gl.program_id(0), num_items, gl.num_programs(0)):
        local_head, batch, kv_head, head, row, low, end = _queries_work_item(
            index,
            workspace_heads,
            first_unit,
            num_queries,
            window,
            starts_ptr,
            HEADS,
            GROUP,
            BM,
            HAS_WINDOW,
            HAS_STARTS,
        )
        acc = gl.zeros([ROWS, D], gl.float32, ACC)  # dQ
        for _ in range(low, end):
            slot = count % STAGES
            mbarrier.wait(full.index(slot), (count // STAGES) & 1)
            # [keys, ROWS]^T x [keys, D]
            acc = warpgroup_mma(
                scores.index(slot * 2 + HALF).permute((1, 0)),
                keys.index(slot).reshape([BM, D]),
                acc,
                is_async=True,
            )
            acc = warpgroup_mma_wait(0, [acc])
            mbarrier.arrive(empty.index(slot), count=1)
            count += 1
        rows = row + HALF * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, STORED))
        pointers = dq_ptr + batch.to(gl.int64) * dq_batch + head.to(gl.int64) * dq_head
        pointers = (
            pointers
            + rows.to(gl.int64)[:, None] * dq_row
            + gl.arange(0, D, gl.SliceLayout(0, STORED))[None, :]
        )
        stored = gl.convert_layout((acc * natural_scale).to(dtype), STORED)
        gl.store(pointers, stored, mask=(rows < num_queries)[:, None])


@gluon.jit
def backward_queries(
    scores_desc,
    key_desc,
    dq_ptr,
    starts_ptr,
    dq_batch,
    dq_head,
    dq_row,
    num_queries,
    window,
    natural_scale,
    num_items,
    first_unit,
    workspace_heads,
    head_rows,
    HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    D: gl.constexpr,
    BM: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_STARTS: gl.constexpr,
    num_warps: gl.constexpr,
):
    """dQ from the stored dS^T: a banded matrix product without a mask, limited by the bandwidth of
    reading dS^T. Persistent.

    `workspace_heads`: query heads of this launch, from those of `first_unit` on.
    """
    dtype: gl.constexpr = key_desc.dtype
    scores = gl.allocate_shared_memory(
        dtype, [STAGES * 2] + scores_desc.block_shape, scores_desc.layout
    )
    keys = gl.allocate_shared_memory(dtype, [STAGES] + key_desc.block_shape, key_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _queries_consumer,
                (
                    0,
                    dq_ptr,
                    starts_ptr,
                    scores,
                    keys,
                    full,
                    empty,
                    dq_batch,
                    dq_head,
                    dq_row,
                    num_queries,
                    window,
                    natural_scale,
                    num_items,
                    first_unit,
                    workspace_heads,
                    HEADS,
                    GROUP,
                    D,
                    BM,
                    STAGES,
                    HAS_WINDOW,
                    HAS_STARTS,
                    dtype,
                ),
            ),
            (
                _queries_consumer,
                (
                    1,
                    dq_ptr,
                    starts_ptr,
                    scores,
                    keys,
                    full,
                    empty,
                    dq_batch,
                    dq_head,
                    dq_row,
                    num_queries,
                    window,
                    natural_scale,
                    num_items,
                    first_unit,
                    workspace_heads,
                    HEADS,
                    GROUP,
                    D,
                    BM,
                    STAGES,
                    HAS_WINDOW,
                    HAS_STARTS,
                    dtype,
                ),
            ),
            (
                _queries_producer,
                (
                    scores_desc,
                    key_desc,
                    starts_ptr,
                    scores,
                    keys,
                    full,
                    empty,
                    num_queries,
                    window,
                    num_items,
                    first_unit,
                    workspace_heads,
                    head_rows,
                    HEADS,
                    GROUP,
                    D,
                    BM,
                    STAGES,
                    HAS_WINDOW,
                    HAS_STARTS,
                ),
            ),
        ],
        [4, 1],
        [168, 24],
    )
