"""A training in which each part of a step returns its share of the step's loss: order of examples,
Lightning module, loop.

    stream.batch(step, part)  -> the tensors of one part (micro-batch of one rank)
    loss(model, batch)        -> {"loss": share with gradient, further sums}; shares add up
    fit(model, stream, settings, loss, optimizer=decay_all, rate=linear, ...) -> log

Guarantees: a step's loss and gradient do not depend on micro-batches or ranks beyond what the
shares say; a killed run started again continues from its last resume point with bitwise the same
weights and log on the CPU, dropout included.
Out of scope: losses, training and evaluation mode (`fit_language_model` sets them), evaluating,
sharding a model.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from moxin_lab.lab.progress import Progress
from moxin_lab.training import resume, schedules
from moxin_lab.training.identity import digest, function_name
from moxin_lab.training.optimizer import AdamWSettings, decay_all
from moxin_lab.training.resume import ExactResume, run_to_end, with_defaults, world_size
from moxin_lab.training.step_log import StepLog

LossFunction = Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]
"""(model, part of a step) to `loss`, the part's share with gradient, and further sums without
gradient, which go to the log.
"""

Rate = Callable[[int, int, float], float]
"""(optimizer step, number of steps, warm-up ratio) to the share of the peak learning rate
(schedules.py).
"""

MakeOptimizer = Callable[[nn.Module, Any], torch.optim.Optimizer]
"""(model on its device, settings) to the optimizer (`decay_all` or `decay_matrices` of
optimizer.py).
"""

Finish = Callable[[int, dict[str, float]], dict[str, float]]
"""(optimizer step, the loss function's sums over it) to further values of its row in the log."""


class Stream(resume.Stream, Protocol):
    """Optimizer steps of `examples_per_step` examples."""

    examples_per_step: int


class FitSettings(resume.RunSettings, AdamWSettings, Protocol):
    """Settings of a training, such as the sections of a scale."""

    @property
    def warmup_ratio(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def micro_batch_examples(self) -> int: ...


class Order:
    """Which examples a step reads: `epochs` passes over `count` examples, each shuffled by its own
    seed, concatenated and cut into steps of `examples_per_step`. `left_over`: number of examples at
    the end that fill no step.

    Raises ValueError if there are too few examples for one step.
    """

    def __init__(self, count: int, *, examples_per_step: int, epochs: int, seed: int) -> None:
        self.num_steps, self.left_over = divmod(count * epochs, examples_per_step)
        if not self.num_steps:
            raise ValueError(
                f"{count} examples in {epochs} epoch(s) do not fill one step of "
                f"{examples_per_step}: lower examples_per_step or add data"
            )
        self._size = examples_per_step
        shuffled = [
            np.random.default_rng([seed, epoch]).permutation(count) for epoch in range(epochs)
        ]
        self._order = np.concatenate(shuffled)

    def step(self, step: int) -> np.ndarray:
        """Indices of a step's examples, int64 [examples_per_step]."""
        return self._order[step * self._size : (step + 1) * self._size]

    def fingerprint(self) -> str:
        """Digest of the whole order."""
        return digest(self._order, self._size)

    def part(self, step: int, part: int, parts: int) -> np.ndarray:
        """Indices of part `part` of a step, int64 [examples_per_step / parts]. Raises ValueError if
        the step does not divide evenly.
        """
        if self._size % parts:
            raise ValueError(
                f"a step of {self._size} examples does not divide into {parts} parts; change one "
                "of them"
            )
        return self.step(step).reshape(parts, -1)[part]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which Lightning runs a training step of this precision, for forward passes
    outside one: autocast for mixed precisions.
    """
    dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else nullcontext()


class StepTraining(ExactResume):
    """The Lightning module: `model`, a loss of shares, an optimizer and a schedule."""

    def __init__(
        self,
        model: nn.Module,
        stream: Stream,
        settings: FitSettings,
        loss: LossFunction,
        optimizer: MakeOptimizer,
        rate: Rate,
    ) -> None:
        super().__init__(stream)
        self.model, self._settings = model, settings
        self._loss, self._optimizer, self._rate = loss, optimizer, rate

    def functions(self) -> dict[str, str]:
        """Names of loss, optimizer and schedule."""
        return {
            "loss_function": function_name(self._loss),
            "optimizer_function": function_name(self._optimizer),
            "rate_function": function_name(self._rate),
        }

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        sums = self._loss(self.model, batch)
        # Undo Lightning's mean over micro-batches and over ranks: shares of a step are summed.
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


def accumulation(stream: Stream, settings: FitSettings, ranks: int) -> int:
    """Micro-batches per step on each rank. Raises ValueError if the step does not divide evenly."""
    examples_at_once = settings.micro_batch_examples * ranks
    if stream.examples_per_step % examples_at_once:
        raise ValueError(
            f"a step of {stream.examples_per_step} examples is not a multiple of "
            f"micro_batch_examples x ranks = {examples_at_once}; change one of them"
        )
    return stream.examples_per_step // examples_at_once


def fit(
    model: nn.Module,
    stream: Stream,
    settings: FitSettings,
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
    """Train `model` in place over the whole stream; returns the log, one row per step, and also
    writes it to `log_file` as JSON lines. `log.attrs` has `seconds` and `attempts`, over restarts.

    resume_folder: of this training alone; a run found there is continued. text: the training's name
    in messages. Before the first step raises ValueError for a step that does not divide into
    micro-batches and ranks and for resume points of another training, OSError for a folder without
    room; later ArithmeticError if too many steps in a row are skipped (step_log.py).
    """
    options = with_defaults(trainer_options)
    accumulate = accumulation(stream, settings, world_size(options))

    def row(step: int, sums: dict[str, float]) -> dict[str, float]:
        loss = sums.pop("share")
        return {"loss": loss, **(sums if finish is None else finish(step, sums))}

    log = StepLog(stream, progress, text, row, file=log_file)
    run_to_end(
        StepTraining(model, stream, settings, loss, optimizer, rate),
        [log, *callbacks],
        settings,
        num_steps=stream.num_steps,
        accumulate=accumulate,
        resume_folder=resume_folder,
        options=options,
        text=lambda step: text,
    )
    return log.table()


def fit_language_model(
    model: nn.Module,
    stream: Stream,
    settings: FitSettings,
    loss: LossFunction,
    *,
    resume_folder: Path,
    text: str,
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
    rate: Rate = schedules.linear,
    **log_options: Any,
) -> pd.DataFrame:
    """`fit` as SFT, DPO and GRPO use it: weight decay on all parameters, a linear schedule by
    default, training mode before and evaluation mode after.

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
