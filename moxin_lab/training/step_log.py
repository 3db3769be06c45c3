"""The log of a training: one row per optimizer step, over all ranks, saved in checkpoints.

    sums of the loss function over the parts of a step
        -> row(step, sums) -> {"step", "loss", "gradient_norm", "learning_rate", ...}

Guarantees: a resumed run's log has every step exactly once; sums are added in float64.
Out of scope: drawing (figures.py of each stage), interpreting the numbers.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from moxin_lab.lab.progress import Progress

Row = Callable[[int, dict[str, float]], dict[str, float]]
"""(optimizer step, sums over it) to the values of its row; `loss` must be among them."""


class StepLog(Callback):
    """Loss, learning rate, gradient norm (before clipping) and the values that `row` computes.

    The sums are those of the outputs of `training_step` except `loss`. text: the name of the
    training in messages and progress, or a function of the step. stream: `num_steps`; if it has
    `describe(step)`, errors say what the step reads. file: where to write the rows as JSON lines,
    None for nowhere. check_gradient: raise ArithmeticError at the first gradient that is not
    finite, before the weights are updated.
    """

    def __init__(
        self,
        stream: Any,
        progress: Progress | None,
        text: str | Callable[[int], str],
        row: Row,
        *,
        file: Path | None = None,
        check_gradient: bool = True,
    ) -> None:
        self.rows: list[dict[str, float]] = []
        self._text = text if callable(text) else lambda step: text
        self._row, self._file, self._check_gradient = row, file, check_gradient
        self._stream, self._progress = stream, progress
        self._sums: dict[str, Tensor] = {}
        self._norm, self._learning_rate = 0.0, 0.0

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self._norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
        self._learning_rate = optimizer.param_groups[0]["lr"]
        if self._check_gradient and not math.isfinite(self._norm):
            step, describe = trainer.global_step, getattr(self._stream, "describe", None)
            reads = (
                "" if describe is None else f", or look at what the step reads: {describe(step)}"
            )
            raise ArithmeticError(
                f"{self._text(step)}: the gradient of step {step} has the norm {self._norm}: lower "
                f"the learning rate{reads}"
            )

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        for name, value in outputs.items():
            if name != "loss":
                value = value.detach().to(pl_module.device, torch.float64)
                self._sums[name] = self._sums.get(name, 0) + value
        step = trainer.global_step
        if len(self.rows) == step:  # within an accumulated step
            return
        sums = torch.stack(list(self._sums.values()))
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        values = self._row(step - 1, dict(zip(self._sums, sums.tolist(), strict=True)))
        self._sums = {}
        row = {
            "step": step - 1,
            "loss": values["loss"],
            "gradient_norm": self._norm,
            "learning_rate": self._learning_rate,
            **values,
        }
        self.rows.append(row)
        if self._file is not None and trainer.is_global_zero:
            first = step == 1
            write_lines(self._file, self.rows if first else [row], "w" if first else "a")
        if self._progress is not None:
            text = f"{self._text(step - 1)}, loss {row['loss']:.3f}"
            self._progress(step, self._stream.num_steps, text)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        if self._file is not None:  # steps after the resume point will be repeated
            write_lines(self._file, self.rows, "w")


def write_lines(file: Path, rows: Sequence[dict[str, float]], mode: str) -> None:
    """Write rows as JSON lines; creates the folder if it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open(mode, encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
