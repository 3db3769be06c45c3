"""Cross-entropy and its gradient, written over the logits.

    losses = cross_entropy_(logits, labels, label_smoothing, ignore_index)
    # `logits` now hold d sum(losses) / d logits

Plain operations read and write the logits of a chunk about ten times, in float32. Here each row is
read twice, the second time from cache, and written once; sums are float32.

Guarantees: losses and gradient equal those of `F.cross_entropy` on `logits.float()` up to rounding
of the dtype of the logits; rows with the label `ignore_index` have loss 0 and gradient 0
(tests/kernels/test_cross_entropy.py, in Triton's interpreter on the CPU).
Out of scope: class weights.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rows(
    logits_ptr,
    labels_ptr,
    losses_ptr,
    vocabulary,
    row_stride,
    smoothing,
    IGNORE_INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Loss and gradient of one row of the logits."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    label = tl.load(labels_ptr + row)
    columns = tl.arange(0, BLOCK)
    if label == IGNORE_INDEX:
        tl.store(losses_ptr + row, 0.0)
        for start in tl.range(0, vocabulary, BLOCK):
            zeros = tl.zeros((BLOCK,), logits_ptr.dtype.element_ty)
            tl.store(logits_ptr + start + columns, zeros, mask=start + columns < vocabulary)
    else:
        # One running maximum and sum per lane, so that lanes exchange nothing until the end.
        largest = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        logit_sum = tl.zeros((BLOCK,), tl.float32)
        for start in tl.range(0, vocabulary, BLOCK):
            inside = start + columns < vocabulary
            logits = tl.load(logits_ptr + start + columns, mask=inside, other=float("-inf")).to(
                tl.float32
            )
            new = tl.maximum(largest, logits)
            anchor = tl.where(new == float("-inf"), 0.0, new)  # -inf - -inf would be NaN
            total = total * tl.exp(largest - anchor) + tl.exp(logits - anchor)
            logit_sum += tl.where(inside, logits, 0.0)
            largest = new
        top = tl.max(largest, 0)
        normaliser = top + tl.log(tl.sum(total * tl.exp(largest - top), 0))
        target = tl.load(logits_ptr + label).to(tl.float32)
        loss = normaliser - (1 - smoothing) * target
        if smoothing > 0:
            loss -= smoothing * tl.sum(logit_sum, 0) / vocabulary
        tl.store(losses_ptr + row, loss)
        for start in tl.range(0, vocabulary, BLOCK):
            token_ids = start + columns
            inside = token_ids < vocabulary
            logits = tl.load(logits_ptr + token_ids, mask=inside, other=0.0).to(tl.float32)
            gradient = tl.exp(logits - normaliser) - smoothing / vocabulary
            gradient -= tl.where(token_ids == label, 1 - smoothing, 0.0)
            tl.store(logits_ptr + token_ids, gradient.to(logits_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("moxin_lab::cross_entropy_", mutates_args=("logits",))
def cross_entropy_(
    logits: Tensor, labels: Tensor, label_smoothing: float, ignore_index: int
) -> Tensor:
    """Losses, float32 [N], of logits [N, V] against labels, int64 [N]; `logits` are overwritten
    with the gradient of the sum of the losses.

    ignore_index: the label of rows that do not count. label_smoothing: share of the target spread
    evenly over the vocabulary.
    """
    losses = logits.new_empty(len(labels), dtype=torch.float32)
    if len(labels):
        block = 32 if not logits.is_cuda else 4096
        _rows[(len(labels),)](
            logits,
            labels,
            losses,
            logits.shape[1],
            logits.stride(0),
            label_smoothing,
            IGNORE_INDEX=ignore_index,
            BLOCK=block,
            num_warps=8,
        )
    return losses


@cross_entropy_.register_fake
def _(logits: Tensor, labels: Tensor, label_smoothing: float, ignore_index: int) -> Tensor:
    return logits.new_empty(len(labels), dtype=torch.float32)
