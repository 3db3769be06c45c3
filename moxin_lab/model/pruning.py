"""Weights set to zero: by magnitude or by Wanda, as a share of each matrix or as 2 of each 4.

    prune(model, "wanda", 0.5, calibration=ids)       # half of each row of each matrix
    prune(model, "magnitude", TWO_OF_FOUR)            # the pattern that sparse tensor cores run

All matrices of the blocks are pruned, embedding, head and norms are not, as in Sun et al. 2023
("A Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695):

- magnitude: the smallest |W| of each matrix.
- wanda: the smallest |W[i, j]| * ||X[:, j]|| of each output row i, where ||X[:, j]|| is the
  Euclidean norm of input j over all tokens of the calibration. Blocks are pruned from the first to
  the last; each sees what the pruned blocks before it make of the calibration.
- 2 of 4: of each four neighbours of a row the two with the smaller score.

Guarantees: exactly `round(share * numbers)` weights of each matrix (each row, with Wanda) become
zero, ties by position; all other weights stay as they are; no weight is trained afterwards.
Out of scope: retraining, storage or speed of sparse matrices, other patterns.
"""

import torch
from torch import Tensor, nn

from moxin_lab.model.decoder import MoxinForCausalLM

METHODS = ("magnitude", "wanda")
TWO_OF_FOUR = "2:4"


@torch.no_grad()
def prune(
    model: MoxinForCausalLM,
    method: str,
    share: float | str,
    *,
    calibration: Tensor | None = None,
) -> None:
    """Prunes the model in place.

    share: of weights that become zero, at least 0 and below 1, or `TWO_OF_FOUR`. calibration: ids
    int64 [B, T], for Wanda alone. Raises ValueError for an unknown method or share, and for Wanda
    without calibration.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: available are {', '.join(METHODS)}")
    if share != TWO_OF_FOUR and not (isinstance(share, int | float) and 0 <= share < 1):
        raise ValueError(f"share is {share!r}: it must be in [0, 1), or {TWO_OF_FOUR!r}")
    if method == "magnitude":
        for _, linear in matrices(model):
            linear.weight.mul_(_kept(linear.weight.abs(), share, by_row=False))
        return
    if calibration is None or calibration.numel() == 0:
        raise ValueError("wanda needs calibration: token ids of training text, [B, T]")
    _prune_with_inputs(model, share, calibration)


def matrices(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Names and modules of the matrices of the blocks."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in f".{name}"
    ]


def zero_share(model: MoxinForCausalLM) -> float:
    """Share of the numbers of the blocks' matrices that are zero."""
    weights = [linear.weight for _, linear in matrices(model)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)


def _prune_with_inputs(model: MoxinForCausalLM, share: float | str, calibration: Tensor) -> None:
    """Wanda in one forward pass: a block runs, the inputs of its matrices are measured, it is
    pruned, and runs again for the blocks above it.
    """
    squares: dict[nn.Module, Tensor] = {}

    def measure(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        squares[module] = inputs[0].float().square().flatten(0, -2).sum(0)  # [C]

    def prune_block(block: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        for handle in handles[block]:
            handle.remove()
        for linear, square in squares.items():
            weight = linear.weight
            scores = weight.abs().float() * square.sqrt()
            weight.mul_(_kept(scores, share, by_row=True))
        squares.clear()
        return block.forward(*inputs)

    handles: dict[nn.Module, list] = {}
    above = []
    for block in model.model.layers:
        linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
        handles[block] = [linear.register_forward_hook(measure) for linear in linears]
        above.append(block.register_forward_hook(prune_block))
    training = model.training
    try:
        model.eval().hidden_states(calibration)
    finally:
        model.train(training)
        for handle in [*above, *(each for some in handles.values() for each in some)]:
            handle.remove()


def _kept(scores: Tensor, share: float | str, *, by_row: bool) -> Tensor:
    """One where a weight stays, zero where it goes, of the shape of `scores` [R, C]."""
    if share == TWO_OF_FOUR:
        if scores.shape[1] % 4:
            raise ValueError(f"rows of {scores.shape[1]} numbers are no groups of four")
        groups = scores.reshape(-1, 4)
        going = 2
    else:
        groups = scores if by_row else scores.reshape(1, -1)
        going = round(float(share) * groups.shape[1])
    lowest = groups.argsort(dim=1, stable=True)[:, :going]
    return torch.ones_like(groups).scatter_(1, lowest, 0.0).reshape(scores.shape)
