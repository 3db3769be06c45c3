"""The log of a training: one row per optimizer step, over all ranks, saved in checkpoints; and the
rules for steps that are left out.

    sums of the loss function over the parts of a step
        -> row(step, sums) -> {"step", "loss", "gradient_norm", "learning_rate", "skipped", ...}

A step whose gradient is not finite is skipped: weights, moments and the optimizer's own step count
stay as they were, on the device, without a wait for it. So is a spike, where `spike_sigmas` is
given: a norm more than that many standard deviations above the mean of the last WINDOW steps that
were taken. The training's step, and with it the batch and the learning rate, goes on. Its row has
`skipped` 1 and `reads`, what the step read. With the loss scaling of 16-mixed this is how the
scaler finds its scale; LIMIT_SCALED skipped steps in a row end the training, LIMIT without scaling,
where nothing changes from one step to the next but the batch, LIMIT_SPIKES if the last is a spike.

Guarantees: a resumed run's log has every step exactly once and the seconds of all attempts; sums
are added in float64.
Out of scope: drawing (figures.py of each stage), interpreting the numbers.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor

from moxin_lab.lab.progress import Progress
from moxin_lab.training.resume_points import check_writable

LIMIT, LIMIT_SPIKES = 3, 16
WINDOW = 128  # steps that a spike is compared with, as in OLMo-core's SkipStepAdamW
LIMIT_SCALED = 20  # the scaler halves its scale each time: from 65,536 to below 1 in 17 steps

Row = Callable[[int, dict[str, float]], dict[str, float]]
"""(optimizer step, sums over it) to the values of its row; `loss` must be among them."""


class StepLog(Callback):
    """Loss, learning rate, gradient norm (before clipping) and the values that `row` computes.

    The sums are those of the outputs of `training_step` except `loss`. text: the name of the
    training in messages and progress, or a function of the step. stream: `num_steps`; if it has
    `describe(step)`, skipped steps and errors say what the step reads. file: where to write the
    rows as JSON lines, None for nowhere. late: on a GPU, read a step's numbers one step later, so
    that the next step is queued before this one has ended; `row` must not need the present.
    spike_sigmas: None for no rule against spikes.

    Raises ArithmeticError after too many skipped steps in a row, or for a training that skipped
    every one; OSError at once for a file that cannot be written.
    """

    def __init__(
        self,
        stream: Any,
        progress: Progress | None,
        text: str | Callable[[int], str],
        row: Row,
        *,
        file: Path | None = None,
        late: bool = False,
        spike_sigmas: float | None = None,
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self._text = text if callable(text) else lambda step: text
        self._row, self._file, self._late = row, file, late
        self._stream, self._progress = stream, progress
        self._sums: dict[str, Tensor] = {}
        self._norm, self._learning_rate = torch.zeros(()), 0.0
        self._sigmas, self._spike = spike_sigmas, torch.zeros(())
        self._norms = torch.zeros(WINDOW, dtype=torch.float64)  # of steps that were taken, a ring
        self._taken = torch.zeros((), dtype=torch.int64)
        self._waiting: list[tuple[int, list[str], Tensor, float, Any]] = []
        self._writes = self._scaled = False
        self._num_steps = 0
        self._in_a_row = 0
        self._began, self._seconds_before, self.attempts = time.monotonic(), 0.0, 1
        if file is not None:
            check_writable(file.parent)

    @property
    def seconds(self) -> float:
        """Seconds of the steps in the log, over all attempts. Steps that a killed attempt did after
        its last resume point count once.
        """
        return self._seconds_before + time.monotonic() - self._began

    def table(self) -> pd.DataFrame:
        """The rows; `attrs` has `seconds` and `attempts`. Raises RuntimeError if the training ended
        early.
        """
        if len(self.rows) != self._stream.num_steps:
            raise RuntimeError(
                f"{self._text(len(self.rows))} ended after {len(self.rows)} of "
                f"{self._stream.num_steps} steps"
            )
        table = pd.DataFrame(self.rows)
        table.attrs.update(seconds=self.seconds, attempts=self.attempts)
        return table

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._writes, self._scaled = trainer.is_global_zero, _scaler(trainer) is not None
        if self._scaled and self._sigmas is not None:
            raise ValueError(
                "spike_sigmas with precision 16-mixed: its loss scaler alone decides which steps "
                "are left out; use bf16-mixed or set spike_sigmas to null"
            )
        self._norms, self._taken, self._spike = (
            tensor.to(pl_module.device) for tensor in (self._norms, self._taken, self._spike)
        )

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self._norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self._learning_rate = optimizer.param_groups[0]["lr"]
        if not optimizer.defaults.get("fused"):
            raise ValueError(
                f"{type(optimizer).__name__} cannot leave out a step whose gradient is not finite: "
                "build it with training.optimizer.build_adamw"
            )
        if not self._scaled:
            # The name by which PyTorch's fused optimizers and ours know that a step is to be left
            # out. With a scaler, the scaler leaves it out.
            left_out = ~torch.isfinite(self._norm)
            if self._sigmas is not None:
                left_out = left_out | self._is_spike(self._sigmas)
            optimizer.found_inf = left_out.float()

    def _is_spike(self, sigmas: float) -> Tensor:
        """Whether the norm is a spike, on its device; it enters the window if the step is taken."""
        norm = self._norm.to(self._norms)
        limit = self._norms.mean() + sigmas * self._norms.std()
        spike = (self._taken >= WINDOW) & (norm > limit)
        taken = torch.isfinite(norm) & ~spike
        place = (self._taken % WINDOW)[None]
        kept = torch.where(taken, norm, self._norms.gather(0, place)[0])
        self._norms = self._norms.scatter(0, place, kept[None])
        self._taken = self._taken + taken
        self._spike = spike
        return spike

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
        if self._num_steps == trainer.global_step:  # within an accumulated step
            return
        self._num_steps = trainer.global_step
        sums = torch.stack(list(self._sums.values()))
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        numbers = torch.cat((sums, self._norm.to(sums)[None], self._spike.to(sums)[None]))
        late = self._late and numbers.is_cuda
        event = None
        if late:
            numbers = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(
                numbers, non_blocking=True
            )
            event = torch.cuda.Event()
            event.record()
        self._waiting.append(
            (self._num_steps - 1, list(self._sums), numbers, self._learning_rate, event)
        )
        self._sums = {}
        last = self._num_steps == self._stream.num_steps
        self._add_rows(but=1 if late and not last else 0)

    def _add_rows(self, but: int = 0) -> None:
        """Read the steps that wait, but for the last `but` of them."""
        while len(self._waiting) > but:
            self._add_row(*self._waiting.pop(0))

    def _add_row(
        self, step: int, names: list[str], numbers: Tensor, learning_rate: float, event: Any
    ) -> None:
        if event is not None:
            event.synchronize()
        *sums, norm, spike = numbers.tolist()
        values = self._row(step, dict(zip(names, sums, strict=True)))
        row = {
            "step": step,
            "loss": values["loss"],
            "gradient_norm": norm,
            "learning_rate": learning_rate,
            "skipped": int(not math.isfinite(norm) or spike > 0),
            **values,
        }
        if row["skipped"]:
            row["reads"] = self._reads(step)
        self.rows.append(row)
        if self._file is not None and self._writes:
            write_lines(self._file, [row], "w" if step == 0 else "a")
        self._check(step, row, LIMIT_SPIKES if spike > 0 else LIMIT)
        if self._progress is not None:
            text = f"{self._text(step)}, loss {row['loss']:.3f}"
            self._progress(step + 1, self._stream.num_steps, text)

    def _check(self, step: int, row: dict[str, Any], limit: int) -> None:
        """Raises ArithmeticError where skipping does not help."""
        self._in_a_row = self._in_a_row + 1 if row["skipped"] else 0
        limit = min(LIMIT_SCALED if self._scaled else limit, self._stream.num_steps)
        if self._in_a_row >= limit:
            raise ArithmeticError(
                f"{self._text(step)}: the gradients of {self._in_a_row} steps in a row, up to step "
                f"{step}, are not finite or spikes (norm {row['gradient_norm']}, loss "
                f"{row['loss']}): lower the learning rate, or look at what the step reads: "
                f"{self._reads(step)[:300]}"
            )
        if not row["skipped"] and not math.isfinite(row["loss"]):
            raise ArithmeticError(
                f"{self._text(step)}: the loss of step {step} is {row['loss']} and its gradient is "
                f"finite, so the step was taken; look at what it reads: {self._reads(step)[:300]}"
            )

    def _reads(self, step: int) -> str:
        describe = getattr(self._stream, "describe", None)
        return f"step {step} of the stream" if describe is None else str(describe(step))

    def state_dict(self) -> dict[str, Any]:
        self._add_rows()
        compared = {"norms": self._norms.cpu(), "taken": self._taken.cpu()}
        return {
            **({} if self._sigmas is None else compared),
            "rows": self.rows,
            "in_a_row": self._in_a_row,
            "seconds": self.seconds,
            "attempts": self.attempts,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self._in_a_row = state_dict["rows"], state_dict["in_a_row"]
        if "norms" in state_dict:
            self._norms, self._taken = state_dict["norms"], state_dict["taken"]
        self._num_steps = len(self.rows)
        self._seconds_before, self._began = state_dict["seconds"], time.monotonic()
        self.attempts = state_dict["attempts"] + 1
        if self._file is not None:  # steps after the resume point will be repeated
            write_lines(self._file, self.rows, "w")


def _scaler(trainer: L.Trainer) -> Any:
    """The loss scaler of 16-mixed, None for other precisions."""
    return getattr(trainer.precision_plugin, "scaler", None)


def write_lines(file: Path, rows: Sequence[dict[str, Any]], mode: str) -> None:
    """Write rows as JSON lines, with null for what is not finite; creates the folder if it is
    missing.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open(mode, encoding="utf-8") as lines:
        for row in rows:
            finite = {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in row.items()
            }
            lines.write(json.dumps(finite, allow_nan=False) + "\n")
