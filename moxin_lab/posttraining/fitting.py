"""One Lightning training for both stages of post-training: linear schedule, micro-batches, ranks, exact resume, log.

A stream gives a part of a step as tensors, a loss function the part's share of the step's loss; shares add up to the step's.

Guarantees: a step's loss and gradient do not depend on micro-batches or ranks beyond what the stream's weights say; a killed run
started again continues from its last resume point with bitwise the same weights and log on the CPU, dropout included.
Does not: shard the model, evaluate, or know what is being learned.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from moxin_lab.lab.exact_resume import ExactResume, run_to_end, with_defaults, world_size
from moxin_lab.model.optimizer import build_adamw

Progress = Callable[[int, int, str], None]


class Stream(Protocol):
    num_steps: int
    examples_per_step: int

    def batch(self, step: int, *, part: int = 0, parts: int = 1) -> dict[str, Tensor]: ...

    def describe(self, step: int) -> str: ...


LossFunction = Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]
"""(model, part of a step) to `loss`, the part's share with gradient, and further sums without (they end in the log)."""


Rate = Callable[[int, int, float], float]
"""(optimizer step, steps in all, warm-up's share) to the share of the peak learning rate."""


def linear_rate(step: int, total_steps: int, warmup_ratio: float) -> float:
    """Share of the peak at optimizer step `step`: up in int(total x ratio) steps from 0, then down to 0 behind the last.

    The same numbers as `transformers.get_linear_schedule_with_warmup`, which both of Moxin's scripts use.
    """
    warmup = int(total_steps * warmup_ratio)
    if step < warmup:
        return step / warmup
    return (total_steps - step) / max(1, total_steps - warmup)


def constant_rate(step: int, total_steps: int, warmup_ratio: float) -> float:
    """Share of the peak: up in int(total x ratio) steps, from 1 / steps so that no rollout is spent on a rate of 0, then 1."""
    warmup = int(total_steps * warmup_ratio)
    return min(1.0, (step + 1) / max(1, warmup))


class PostTraining(ExactResume):
    """A causal language model under AdamW and a schedule of the learning rate."""

    def __init__(
        self, model: nn.Module, stream: Stream, settings: Any, loss: LossFunction, rate: Rate = linear_rate
    ) -> None:
        super().__init__(stream)
        self.model = model
        self._settings, self._loss, self._rate = settings, loss, rate

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        sums = self._loss(self.model, batch)
        # Lightning divides by the micro-batches and averages gradients over ranks; a share of the step needs neither.
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size
        logged = {name: value.detach() for name, value in sums.items() if name != "loss"}
        return {"loss": sums["loss"] * scale, "share": sums["loss"].detach(), **logged}

    def configure_optimizers(self) -> Any:
        settings = self._settings
        optimizer = build_adamw(
            [{"params": list(self.model.parameters())}],
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_eps,
            weight_decay=settings.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self._rate(step, self._stream.num_steps, settings.warmup_ratio)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


Finish = Callable[[int, dict[str, float]], dict[str, float]]
"""(optimizer step, the loss function's sums over it) to what the log says of them."""


class StepLog(Callback):
    """Loss, learning rate, gradient norm and the loss function's sums of every step, over all ranks; part of the checkpoint.

    Stops the training with ArithmeticError at the first loss or gradient that is not finite, before the weights take it.
    """

    def __init__(
        self,
        stream: Stream,
        progress: Progress | None,
        text: str,
        finish: Finish | None = None,
        file: Path | None = None,
    ) -> None:
        self.rows: list[dict[str, float]] = []
        self._finish, self._file = finish, file
        self._stream, self._progress, self._text = stream, progress, text
        self._sums: dict[str, Tensor] = {}
        self._norm, self._learning_rate = 0.0, 0.0

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self._norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))  # before clipping
        self._learning_rate = optimizer.param_groups[0]["lr"]
        if not math.isfinite(self._norm):
            step = trainer.global_step
            raise ArithmeticError(
                f"the gradient of step {step} has the norm {self._norm}: lower the learning rate, or look at what the step "
                f"reads: {self._stream.describe(step)}"
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, value in outputs.items():
            if name != "loss":
                self._sums[name] = self._sums.get(name, 0) + value.detach().to(pl_module.device, torch.float64)
        step = trainer.global_step
        if len(self.rows) == step:  # within an accumulated step
            return
        sums = torch.stack(list(self._sums.values()))
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        found = dict(zip(self._sums, sums.tolist(), strict=True))
        loss = found.pop("share")
        own = {"step": step - 1, "loss": loss, "gradient_norm": self._norm, "learning_rate": self._learning_rate}
        row = {**own, **(found if self._finish is None else self._finish(step - 1, found))}
        self.rows.append(row)
        if self._file is not None and trainer.is_global_zero:
            _write_lines(self._file, [row] if step > 1 else self.rows, "a" if step > 1 else "w")
        self._sums = {}
        if self._progress is not None:
            self._progress(step, self._stream.num_steps, f"{self._text}, loss {loss:.3f}")

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


def accumulation(stream: Stream, settings: Any, world_size: int) -> int:
    """Micro-batches a step. Raises ValueError if the step does not divide evenly."""
    together = settings.micro_batch_examples * world_size
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
    resume_folder: Path,
    text: str,
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
    rate: Rate = linear_rate,
    finish: Finish | None = None,
    callbacks: Sequence[Callback] = (),
    log_file: Path | None = None,
) -> pd.DataFrame:
    """Train `model` in place over the whole stream; the log, one row a step, also as JSON lines in `log_file`.

    settings: learning_rate, warmup_ratio, weight_decay, adam_beta1, adam_beta2, adam_eps, gradient_clip_norm (None: no clipping),
    precision, micro_batch_examples, checkpoint_every_steps. resume_folder: of this training alone; a run found there goes on.
    """
    options = with_defaults(trainer_options)
    accumulate = accumulation(stream, settings, world_size(options))
    log = StepLog(stream, progress, text, finish, log_file)
    model.train()
    # Four lines a training on what this machine has and how it ended would hide, in a notebook of many, what matters.
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        run_to_end(
            PostTraining(model, stream, settings, loss, rate),
            [log, *callbacks],
            settings,
            num_steps=stream.num_steps,
            accumulate=accumulate,
            resume_folder=resume_folder,
            options=options,
        )
    finally:
        logger.setLevel(level)
    if len(log.rows) != stream.num_steps:
        raise RuntimeError(f"the training ended after {len(log.rows)} of {stream.num_steps} steps")
    model.eval()
    return pd.DataFrame(log.rows)
