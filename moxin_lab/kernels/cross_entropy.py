"""Cross-entropy and its gradient in one pass over the logits, in their own memory.

    losses = cross_entropy_(logits, labels, label_smoothing)        # logits now hold d sum(losses) / d logits

Plain operations read and write a chunk's logits some ten times, in float32. Here a row is read
twice, the second time from cache, and written once; sums run in float32.

Guarantees: losses and gradient equal `F.cross_entropy`'s on `logits.float()` to rounding of the
logits' type; rows of label -100 give loss 0 and gradient 0 (tests/kernels/test_cross_entropy.py, in
Triton's interpreter on the CPU).
Does not: weights of classes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

IGNORE = -100


@triton.jit
def _rows(
    logits_ptr,
    labels_ptr,
    losses_ptr,
    vocabulary,
    row_stride,
    smoothing,
    IGNORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    label = tl.load(labels_ptr + row)
    columns = tl.arange(0, BLOCK)
    if label == IGNORE:
        tl.store(losses_ptr + row, 0.0)
        for start in tl.range(0, vocabulary, BLOCK):
            zeros = tl.zeros((BLOCK,), logits_ptr.dtype.element_ty)
            tl.store(logits_ptr + start + columns, zeros, mask=start + columns < vocabulary)
    else:
        largest = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        summed = tl.zeros((BLOCK,), tl.float32)
        for start in tl.range(
            0, vocabulary, BLOCK
        ):  # one running maximum and sum a lane: nothing to exchange until the end
            inside = start + columns < vocabulary
            logits = tl.load(logits_ptr + start + columns, mask=inside, other=float("-inf")).to(
                tl.float32
            )
            new = tl.maximum(largest, logits)
            anchor = tl.where(new == float("-inf"), 0.0, new)
            total = total * tl.exp(largest - anchor) + tl.exp(logits - anchor)
            summed += tl.where(inside, logits, 0.0)
            largest = new
        top = tl.max(largest, 0)
        normaliser = top + tl.log(tl.sum(total * tl.exp(largest - top), 0))
        target = tl.load(logits_ptr + label).to(tl.float32)
        loss = normaliser - (1 - smoothing) * target
        if smoothing > 0:
            loss -= smoothing * tl.sum(summed, 0) / vocabulary
        tl.store(losses_ptr + row, loss)
        for start in tl.range(0, vocabulary, BLOCK):
            places = start + columns
            inside = places < vocabulary
            logits = tl.load(logits_ptr + places, mask=inside, other=0.0).to(tl.float32)
            gradient = tl.exp(logits - normaliser) - smoothing / vocabulary
            gradient -= tl.where(places == label, 1 - smoothing, 0.0)
            tl.store(logits_ptr + places, gradient.to(logits_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("moxin_lab::cross_entropy_", mutates_args=("logits",))
def cross_entropy_(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Losses float32 [N] of logits [N, V] against labels int64 [N] (-100 is skipped); `logits`
    become the sum's gradient.
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
            IGNORE=IGNORE,
            BLOCK=block,
            num_warps=8,
        )
    return losses


@cross_entropy_.register_fake
def _(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    return logits.new_empty(len(labels), dtype=torch.float32)
