"""A training whose parts of a step each return their share of the step's loss: order, Lightning
module, step log and loop.

    stream.batch(step, part) -> loss(model, batch) = {"loss": share with gradient, further sums}   shares add up to the step's
    fit(model, stream, settings, loss, optimizer=decay_all, rate=linear, ...) -> one row a step

Guarantees: a step's loss and gradient do not depend on micro-batches or ranks beyond what the
shares say; a killed run started again continues from its last resume point with bitwise the same
weights and log on the CPU, dropout included.
Does not: know what is being learned, put the model in training or evaluation mode, evaluate, or
shard a model.
"""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from moxin_lab.lab.progress import Progress
from moxin_lab.training import resume, schedules
from moxin_lab.training.optimizer import decay_all
from moxin_lab.training.resume import ExactResume, run_to_end, with_defaults, world_size

LossFunction = Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]
"""(model, part of a step) to `loss`, the part's share with gradient, and further sums without (they
end in the log).
"""

Rate = Callable[[int, int, float], float]
"""(optimizer step, steps in all, warm-up's share) to the share of the peak learning rate
(schedules.py).
"""

MakeOptimizer = Callable[[nn.Module, Any], torch.optim.Optimizer]
"""(model on its device, settings) to the optimizer of what is trained (`decay_all`,
`decay_matrices` of training/optimizer.py).
"""

Finish = Callable[[int, dict[str, float]], dict[str, float]]
"""(optimizer step, the loss function's sums over it) to what the log says of them."""


class Stream(resume.Stream, Protocol):
    """Optimizer steps of `examples_per_step` examples."""

    examples_per_step: int


class Order:
    """Which examples a step takes: `epochs` passes over `count` examples, joined, cut into steps of
    `examples_per_step`.
    """

    def __init__(self, count: int, *, examples_per_step: int, epochs: int, seed: int) -> None:
        self.num_steps, self.left_over = divmod(count * epochs, examples_per_step)
        if not self.num_steps:
            raise ValueError(
                f"{count} examples in {epochs} epoch(s) do not fill one step of {examples_per_step}: "
                "lower examples_per_step or add data"
            )
        self._size = examples_per_step
        shuffled = [
            np.random.default_rng([seed, epoch]).permutation(count) for epoch in range(epochs)
        ]
        self._order = np.concatenate(shuffled)

    def step(self, step: int) -> np.ndarray:
        return self._order[step * self._size : (step + 1) * self._size]

    def part(self, step: int, part: int, parts: int) -> np.ndarray:
        """Part `part` of a step. Raises ValueError if the step does not divide evenly."""
        if self._size % parts:
            raise ValueError(
                f"a step of {self._size} examples does not divide into {parts} parts; change one of them"
            )
        return self.step(step).reshape(parts, -1)[part]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """What Lightning runs a training step of `precision` in, for forward passes beside it: autocast
    for the mixed ones.
    """
    dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else nullcontext()


class StepTraining(ExactResume):
    """`model` under a loss of shares, an optimizer and a schedule."""

    def __init__(
        self,
        model: nn.Module,
        stream: Stream,
        settings: Any,
        loss: LossFunction,
        optimizer: MakeOptimizer,
        rate: Rate,
    ) -> None:
        super().__init__(stream)
        self.model, self._settings = model, settings
        self._loss, self._optimizer, self._rate = loss, optimizer, rate

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        sums = self._loss(self.model, batch)
        # Lightning divides by the micro-batches and averages gradients over ranks; a share of the
        # step needs neither.
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size
        logged = {name: value.detach() for name, value in sums.items() if name != "loss"}
        return {"loss": sums["loss"] * scale, "share": sums["loss"].detach(), **logged}

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(self.model, self._settings)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: self._rate(step, self._stream.num_steps, self._settings.warmup_ratio),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class StepLog(Callback):
    """Loss, learning rate, gradient norm and the loss function's sums of every step, over all
    ranks; part of the checkpoint.

    Stops the training with ArithmeticError at the first gradient that is not finite, before the
    weights take it; `describe`, if the stream has it, says what the step reads. file: the rows as
    JSON lines, too.
    """

    def __init__(
        self,
        stream: Any,
        progress: Progress | None,
        text: str,
        finish: Finish | None = None,
        file: Path | None = None,
    ) -> None:
        self.rows: list[dict[str, float]] = []
        self.text = text
        self._finish, self._file = finish, file
        self._stream, self._progress = stream, progress
        self._sums: dict[str, Tensor] = {}
        self._norm, self._learning_rate = 0.0, 0.0

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self._norm = float(
            torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        )  # before clipping
        self._learning_rate = optimizer.param_groups[0]["lr"]
        if not math.isfinite(self._norm):
            step, describe = trainer.global_step, getattr(self._stream, "describe", None)
            reads = (
                "" if describe is None else f", or look at what the step reads: {describe(step)}"
            )
            raise ArithmeticError(
                f"{self.text}: the gradient of step {step} has the norm {self._norm}: lower the learning rate{reads}"
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
                self._sums[name] = self._sums.get(name, 0) + value.detach().to(
                    pl_module.device, torch.float64
                )
        step = trainer.global_step
        if len(self.rows) == step:  # within an accumulated step
            return
        sums = torch.stack(list(self._sums.values()))
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        found = dict(zip(self._sums, sums.tolist(), strict=True))
        loss = found.pop("share")
        own = {
            "step": step - 1,
            "loss": loss,
            "gradient_norm": self._norm,
            "learning_rate": self._learning_rate,
        }
        row = {**own, **(found if self._finish is None else self._finish(step - 1, found))}
        self.rows.append(row)
        if self._file is not None and trainer.is_global_zero:
            _write_lines(self._file, [row] if step > 1 else self.rows, "a" if step > 1 else "w")
        self._sums = {}
        if self._progress is not None:
            self._progress(step, self._stream.num_steps, f"{self.text}, loss {loss:.3f}")

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        if self._file is not None:  # steps behind the resume point are made again
            _write_lines(self._file, self.rows, "w")


def _write_lines(file: Path, rows: Sequence[dict[str, float]], mode: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open(mode, encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def accumulation(stream: Stream, settings: Any, ranks: int) -> int:
    """Micro-batches of a step on each rank. Raises ValueError if the step does not divide evenly."""
    together = settings.micro_batch_examples * ranks
    if stream.examples_per_step % together:
        raise ValueError(
            f"a step of {stream.examples_per_step} examples is not a multiple of micro_batch_examples x ranks = {together}; "
            "change one of them"
        )
    return stream.examples_per_step // together


def fit(
    model: nn.Module,
    stream: Stream,
    settings: Any,
    loss: LossFunction,
    *,
    optimizer: MakeOptimizer,
    rate: Rate,
    resume_folder: Path,
    text: str,
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
    finish: Finish | None = None,
    callbacks: Sequence[Callback] = (),
    log_file: Path | None = None,
) -> pd.DataFrame:
    """Train `model` in place over the whole stream; the log, one row a step, also as JSON lines in
    `log_file`.

    settings: learning_rate, warmup_ratio, weight_decay, adam_beta1, adam_beta2, adam_eps,
    gradient_clip_norm (None: no clipping), precision, micro_batch_examples, checkpoint_every_steps.
    resume_folder: of this training alone; a run found there goes on. Raises ValueError before the
    first step for a step that does not divide into micro-batches and ranks.
    """
    options = with_defaults(trainer_options)
    accumulate = accumulation(stream, settings, world_size(options))
    log = StepLog(stream, progress, text, finish, log_file)
    run_to_end(
        StepTraining(model, stream, settings, loss, optimizer, rate),
        [log, *callbacks],
        settings,
        num_steps=stream.num_steps,
        accumulate=accumulate,
        resume_folder=resume_folder,
        options=options,
    )
    if len(log.rows) != stream.num_steps:
        raise RuntimeError(f"{text} ended after {len(log.rows)} of {stream.num_steps} steps")
    return pd.DataFrame(log.rows)


def fit_language_model(
    model: nn.Module,
    stream: Stream,
    settings: Any,
    loss: LossFunction,
    *,
    resume_folder: Path,
    text: str,
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
    rate: Rate = schedules.linear,
    **log_options: Any,
) -> pd.DataFrame:
    """`fit` for a whole language model, in place: weight decay on all of it, linear schedule by
    default.

    The model trains in training mode and is in evaluation mode afterwards.
    log_options: `finish`, `callbacks` and `log_file` of `fit`.
    """
    model.train()
    log = fit(
        model,
        stream,
        settings,
        loss,
        optimizer=decay_all,
        rate=rate,
        resume_folder=resume_folder,
        text=text,
        progress=progress,
        trainer_options=trainer_options,
        **log_options,
    )
    model.eval()
    return log
