"""Linear layers of few rows in Triton, with RMSNorm, SwiGLU or a residual sum in the same kernel.

    qkv = few_rows_linear(hidden, [q, k, v], norm=weight)             # [B, (H + 2 H_kv) D]
    hidden = few_rows_linear(attended, [o], residual=hidden)          # [B, C]
    inner = few_rows_linear(hidden, [gate, up], norm=weight, gated=True)

A decoding step reads every weight once and computes little, so its time is at least bytes over
bandwidth: the kernel streams the weights and includes the operations around the product, which
would otherwise be launches of their own.

Guarantees: every sum is float32 and has a fixed order (tests/model/test_decode.py, in Triton's
interpreter on the CPU).
Measured and not used: programmatic dependent launch with the first weights loaded before the wait.
It took 6.32 instead of 6.18 ms per token for one row and 9.88 instead of 8.43 ms for eight, because
programs that start early take resources from those that still run.
Out of scope: more than 16 rows; gradients.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_ROWS = 16


@triton.jit
def _weights(weight_ptr, columns, features, in_features, num_columns):
    """A tile [BN, BK] of a matrix. No other program reads it in this step, so it need not stay in
    cache.
    """
    return tl.load(
        weight_ptr + columns[:, None].to(tl.int64) * in_features + features[None, :],
        mask=(columns < num_columns)[:, None] & (features < in_features)[None, :],
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
    features,
    in_features,
    x_row,
    num_rows,
    HAS_NORM: tl.constexpr,
    DOT: tl.constexpr,
):
    """acc [BN, ROWS] (with DOT) or [BN] += weight x^T. squares: sum of squares of each row of x,
    for the norm.
    """
    inside = features < in_features
    if DOT:
        x = tl.load(
            x_ptr + rows[None, :] * x_row + features[:, None],
            mask=(rows < num_rows)[None, :] & inside[:, None],
            other=0.0,
        )
        if HAS_NORM:
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, 0)
            x = (
                wide * tl.load(norm_ptr + features, mask=inside, other=0.0).to(tl.float32)[:, None]
            ).to(x.dtype)
        acc = tl.dot(weight, x, acc, input_precision="ieee")
    else:
        x = tl.load(x_ptr + features, mask=inside, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += tl.sum(x * x, 0)
            x = x * tl.load(norm_ptr + features, mask=inside, other=0.0).to(tl.float32)
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
    """A tile of columns, summed over all in_features. `weight` is its first part, loaded before."""
    features = tl.arange(0, BK)
    acc, squares = _accumulate(
        acc,
        squares,
        weight,
        x_ptr,
        norm_ptr,
        rows,
        features,
        in_features,
        x_row,
        num_rows,
        HAS_NORM,
        DOT,
    )
    for start in tl.range(BK, in_features, BK):
        features = start + tl.arange(0, BK)
        weight = _weights(weight_ptr, columns, features, in_features, num_columns)
        acc, squares = _accumulate(
            acc,
            squares,
            weight,
            x_ptr,
            norm_ptr,
            rows,
            features,
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
    """One tile of output columns. With GATED: silu(x first^T) * (x second^T); else up to three
    matrices side by side.

    DOT: use the tensor cores, for several rows; else multiply and add for one row.
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
    # First loads of both matrices, before anything waits for them.
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
    # The norm divides a row by one number, so it is applied to the product.
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
    out_columns = out_column + tl.arange(0, BN)
    inside = columns < width
    if DOT:
        stored = inside[:, None] & (rows < num_rows)[None, :]
        if HAS_RESIDUAL:
            acc += tl.load(
                residual_ptr + rows[None, :] * residual_row + out_columns[:, None],
                mask=stored,
                other=0.0,
            ).to(tl.float32)
        tl.store(
            output_ptr + rows[None, :] * output_row + out_columns[:, None],
            acc.to(output_ptr.dtype.element_ty),
            mask=stored,
        )
    else:
        if HAS_RESIDUAL:
            acc += tl.load(residual_ptr + out_columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(output_ptr + out_columns, acc.to(output_ptr.dtype.element_ty), mask=inside)


def tile_sizes(
    batch: int, in_features: int, gated: bool, norm: bool, item_bytes: int
) -> tuple[bool, int, int, int, int]:
    """Whether to use the tensor cores, output columns per tile, input features per step, warps,
    stages.

    Chosen by measurements on an H100 at full width in bfloat16. item_bytes: bytes of one number on
    a GPU, 0 in Triton's interpreter.
    """
    if not item_bytes:
        return batch > 1, 16, 32, 4, 2
    if batch > 1 and item_bytes > 2:
        return True, 32, 32, 4, 3
    if batch > 1:  # every tile reads all of x for a norm: fewer and larger tiles
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
    """Product of x [B, C], B at most 16, and one to three matrices [N_i, C] side by side; returns
    [B, sum of N_i].

    norm: weight [C] of an RMSNorm that is applied to x first.
    gated: two matrices of one shape; returns silu(x first^T) * (x second^T), [B, N].
    residual: [B, N], added to the product.
    dtype: dtype of the output; default: that of x. Sums are float32.

    Raises ValueError for too many rows or a wrong number of matrices.
    """
    batch, in_features = x.shape
    if batch > MAX_ROWS:
        raise ValueError(f"{batch} rows are more than {MAX_ROWS}: use a matrix product")
    if not 1 <= len(weights) <= 3 or (gated and len(weights) != 2):
        raise ValueError(f"{len(weights)} matrices: give one to three, and two with gated=True")
    widths = [len(weight) for weight in weights] + [0, 0]
    out_features = widths[0] if gated else sum(widths)
    output = x.new_empty(batch, out_features, dtype=dtype or x.dtype)
    dot, columns_per_program, depth, warps, stages = tile_sizes(
        batch, in_features, gated, norm is not None, x.element_size() if x.is_cuda else 0
    )
    blocks = [triton.cdiv(width, columns_per_program) for width in widths]
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
        BN=columns_per_program,
        BK=depth,
        HAS_NORM=norm is not None,
        HAS_RESIDUAL=residual is not None,
        GATED=gated,
        DOT=dot,
        num_warps=warps,
        num_stages=stages,
    )
    return output
