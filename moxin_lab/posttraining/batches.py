"""Encoded conversations to training batches: order, packed or padded rows, and the weight of each
token in the step's loss.

    step 0           step 1         examples in a seeded order, a new one each epoch
    [ 7  2 | 9  4 ]  [ 0  5 | ...   a step is cut into parts (micro-batches x ranks)
    packed   A A A B B B C C C .    document_ids keep attention inside a conversation, -1: padding
    padded   A A A . . . | B B B . . . | ...

Guarantees: a part is a pure function of (seed, step, part, parts), so a resumed run sees the same
parts; every reduction of the loss is a weight per token, so the parts' losses add up to the step's
loss however the step is cut; no token predicts another conversation's.
Out of scope: a partial step at the end (`Order.left_over` counts the examples that no step reads).
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from moxin_lab.posttraining.chat import Encoded
from moxin_lab.training.fit import Order
from moxin_lab.training.identity import digest
from moxin_lab.training.loss import IGNORE_INDEX

Layout = Literal["packed", "padded"]
Reduction = Literal["mean", "sum", "sequence", "part_mean"]
REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum", "sequence", "part_mean")


def lay_out(
    sequences: Sequence[Encoded], *, row_tokens: int, layout: Layout, pad_id: int
) -> dict[str, torch.Tensor]:
    """Sequences as rows: `input_ids`, `labels` (IGNORE_INDEX without loss), `sequences` (index of
    the sequence that a label belongs to), all int64 [B, T]; packed rows also have `document_ids`
    int64 [B, T], the position of the sequence in its row. T is the length of the fullest row.

    Packing is first fit, longest first. Padding is on the right, where a causal model does not
    see it. Raises ValueError for a sequence of more than `row_tokens` inputs.
    """
    lengths = [len(sequence) - 1 for sequence in sequences]
    if max(lengths) > row_tokens:
        raise ValueError(
            f"a sequence has {max(lengths)} inputs, more than the {row_tokens} of a row: raise the "
            "context"
        )
    one_per_row = [[index] for index in range(len(sequences))]
    rows = _first_fit(lengths, row_tokens) if layout == "packed" else one_per_row
    width = max(sum(lengths[index] for index in row) for row in rows)
    shape = (len(rows), width)
    arrays = {
        "input_ids": np.full(shape, pad_id, dtype=np.int64),
        "labels": np.full(shape, IGNORE_INDEX, dtype=np.int64),
        "sequences": np.zeros(shape, dtype=np.int64),
        "document_ids": np.full(shape, -1, dtype=np.int64),
    }
    for row, indices in enumerate(rows):
        start = 0
        for document, index in enumerate(indices):
            sequence, end = sequences[index], start + lengths[index]
            # Position t predicts token t + 1.
            arrays["input_ids"][row, start:end] = sequence.input_ids[:-1]
            arrays["labels"][row, start:end] = np.where(
                sequence.answer[1:], sequence.input_ids[1:], IGNORE_INDEX
            )
            arrays["sequences"][row, start:end] = index
            arrays["document_ids"][row, start:end] = document
            start = end
    if layout == "padded":
        del arrays["document_ids"]
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _first_fit(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Indices of the sequences in each row: longest first, each into the first row with room."""
    rows: list[list[int]] = []
    free: list[int] = []  # tokens, one number per row
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = (row for row, tokens in enumerate(free) if tokens >= lengths[index])
        row = next(fitting, len(rows))
        if row == len(rows):
            rows.append([])
            free.append(row_tokens)
        rows[row].append(index)
        free[row] -= lengths[index]
    return rows


def label_weights(
    reduction: Reduction, counts: torch.Tensor, tokens_in_step: int, examples: int, parts: int
) -> torch.Tensor:
    """Weight of every label of each conversation of one part of a step, float32 [N].

    counts: labels of each conversation of the part, float32 [N]. tokens_in_step, examples: labels
    and conversations of the whole step, which is computed in `parts` parts.
    """
    if reduction == "mean":
        return torch.full_like(counts, 1 / tokens_in_step)
    if reduction == "sequence":
        return 1 / (counts * examples)
    if reduction == "sum":
        return torch.full_like(counts, 1 / parts)
    return torch.full_like(counts, 1 / (parts * float(counts.sum())))  # part_mean


class ConversationStream:
    """Batches of supervised fine-tuning: what `lay_out` gives, and `weights` float32 [B, T].

    The loss of a part is sum(weights x negative log-likelihood), and the parts' losses add up to
    the step's:

    - `mean`: 1 / tokens with loss in the whole step. Independent of how the step is cut.
    - `sequence`: each conversation's mean, averaged over the step's conversations. Independent too.
    - `sum`: 1 / parts. What Moxin's script sets (`--reduce_loss sum`): sums over a micro-batch,
      averaged over micro-batches and ranks by the trainer, so the scale of a step's loss depends on
      the cut and on the number of its tokens.
    - `part_mean`: the mean over a micro-batch, averaged over micro-batches, as most trainers did
      before late 2024. A token in a micro-batch with few others weighs more, so the cut decides
      what is learned.
    """

    in_other_processes = True

    def __init__(
        self,
        encoded: Sequence[Encoded],
        *,
        examples_per_step: int,
        epochs: int,
        row_tokens: int,
        seed: int,
        pad_id: int,
        layout: Layout = "packed",
        reduction: Reduction = "mean",
    ) -> None:
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"unknown reduction {reduction!r}: available are {', '.join(REDUCTIONS)}"
            )
        self.order = Order(
            len(encoded), examples_per_step=examples_per_step, epochs=epochs, seed=seed
        )
        self.num_steps, self.examples_per_step = self.order.num_steps, examples_per_step
        self._encoded, self._row_tokens, self._pad_id = encoded, row_tokens, pad_id
        self._layout, self._reduction = layout, reduction

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, torch.Tensor]:
        chosen = [self._encoded[index] for index in self.order.part(step, part, parts)]
        batch = lay_out(
            chosen, row_tokens=self._row_tokens, layout=self._layout, pad_id=self._pad_id
        )
        counts = torch.tensor([sequence.num_targets for sequence in chosen], dtype=torch.float32)
        in_step = [self._encoded[index].num_targets for index in self.order.step(step)]
        weight = label_weights(self._reduction, counts, sum(in_step), len(in_step), parts)
        # One weight per sequence [N] -> one per label [B, T].
        batch["weights"] = weight[batch["sequences"]] * (batch["labels"] != IGNORE_INDEX)
        return batch

    def fingerprint(self) -> str:
        """Digest of the conversations, their order, and how they are laid out and weighed."""
        layout = (self._row_tokens, self._pad_id, self._layout, self._reduction)
        return digest(self._encoded, self.order.fingerprint(), layout)

    def describe(self, step: int) -> str:
        """Which examples a step reads, for messages."""
        chosen = [self._encoded[i].index for i in self.order.step(step)]
        return f"conversations {chosen[:5]} and more"


def rows_used(encoded: Sequence[Encoded], *, row_tokens: int, layout: Layout) -> dict[str, Any]:
    """Tokens, rows and the share of padding in the rows, with all sequences laid out at once."""
    lengths = np.array([len(sequence) - 1 for sequence in encoded])
    input_ids = lay_out(encoded, row_tokens=row_tokens, layout=layout, pad_id=0)["input_ids"]
    return {
        "tokens": int(lengths.sum()),
        "rows": len(input_ids),
        "padding": 1 - lengths.sum() / input_ids.numel(),
    }
