"""One Lightning training for all of stage 07: cosine schedule, decay on matrices alone, exact resume, a log row a step.

Guarantees: a step's loss and gradient do not depend on micro-batches or ranks (each part's loss is its share of the step's); a
killed run started again continues bitwise on the CPU. Does not: know what is being learned (the loss function does).
"""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from moxin_lab.lab.exact_resume import ExactResume, run_to_end, with_defaults, world_size
from moxin_lab.model.optimizer import build_adamw

Progress = Callable[[int, int, str], None]
LossFunction = Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]
"""(model, part of a step) to `loss`, the part's share with gradient, and further shares that end in the log."""


class Order:
    """Which examples a step takes: `epochs` shuffled passes, joined, cut into steps. Raises ValueError if none is filled."""

    def __init__(self, count: int, settings: Any, seed: int) -> None:
        self.size = settings.examples_per_step
        self.num_steps = count * settings.epochs // self.size
        if not self.num_steps:
            raise ValueError(
                f"{count} examples in {settings.epochs} epoch(s) do not fill one step of {self.size}: lower examples_per_step"
            )
        self._order = np.concatenate(
            [np.random.default_rng([seed, epoch]).permutation(count) for epoch in range(settings.epochs)]
        )

    def step(self, step: int) -> np.ndarray:
        return self._order[step * self.size : (step + 1) * self.size]


def cosine_rate(step: int, total: int, warmup_ratio: float) -> float:
    """Share of the peak at optimizer step `step`: linear to 1 over the warm-up, then half a cosine to 0."""
    warmup = int(total * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class VisionTraining(ExactResume):
    """Whatever of `model` requires gradients, under AdamW."""

    def __init__(self, model: nn.Module, stream: Any, settings: Any, loss: LossFunction) -> None:
        super().__init__(stream)
        self.model = model
        self._settings, self._loss = settings, loss

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        shares = self._loss(self.model, batch)
        # Lightning divides by the micro-batches and averages over ranks; a share of the step needs neither.
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size
        logged = {name: value.detach() for name, value in shares.items() if name != "loss"}
        return {"loss": shares["loss"] * scale, "share": shares["loss"].detach(), **logged}

    def configure_optimizers(self) -> Any:
        settings = self._settings
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = build_adamw(
            [group for group in groups if group["params"]],
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_eps,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: cosine_rate(step, self._stream.num_steps, settings.warmup_ratio)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class StepLog(Callback):
    """Loss, gradient norm, learning rate and further shares of each step, over all ranks; part of the checkpoint.

    Stops with ArithmeticError at a gradient that is not finite, before the weights take it.
    """

    def __init__(self, num_steps: int, text: str, progress: Progress | None) -> None:
        self.rows: list[dict[str, float]] = []
        self._num_steps, self._text, self._progress = num_steps, text, progress
        self._sums: dict[str, Tensor] = {}
        self._norm, self._rate = 0.0, 0.0

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self._norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
        self._rate = optimizer.param_groups[0]["lr"]
        if not math.isfinite(self._norm):
            raise ArithmeticError(
                f"{self._text}: the gradient of step {trainer.global_step} has the norm {self._norm}; lower the learning rate"
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, value in outputs.items():
            if name != "loss":
                self._sums[name] = self._sums.get(name, 0) + value.detach().to(pl_module.device, torch.float64)
        step = trainer.global_step
        if len(self.rows) == step:
            return
        sums = torch.stack(list(self._sums.values()))
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        found = dict(zip(self._sums, sums.tolist(), strict=True))
        row = {"step": step - 1, "loss": found.pop("share"), "gradient_norm": self._norm, "learning_rate": self._rate}
        self.rows.append({**row, **found})
        self._sums = {}
        if self._progress is not None:
            self._progress(step, self._num_steps, f"{self._text}, loss {row['loss']:.3f}")

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]


def fit(
    model: nn.Module, stream: Any, settings: Any, loss: LossFunction, *, folder: Path, text: str, accumulate: int = 1,
    progress: Progress | None = None, trainer_options: dict[str, Any] | None = None, callbacks: Sequence[Callback] = (),
) -> pd.DataFrame:  # fmt: skip
    """Train in place over the whole stream; the log, one row a step. folder: of this training alone; a run found there goes
    on."""
    options = with_defaults(trainer_options)
    if accumulate % world_size(options):
        raise ValueError(f"{accumulate} parts of a step do not divide over {world_size(options)} ranks")
    log = StepLog(stream.num_steps, text, progress)
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        run_to_end(
            VisionTraining(model, stream, settings, loss),
            [log, *callbacks],
            settings,
            num_steps=stream.num_steps,
            accumulate=accumulate // world_size(options),
            resume_folder=Path(folder),
            options=options,
        )
    finally:
        logger.setLevel(level)
    if len(log.rows) != stream.num_steps:
        raise RuntimeError(f"{text} ended after {len(log.rows)} of {stream.num_steps} steps")
    return pd.DataFrame(log.rows)


def parts_of(settings: Any) -> int:
    """Micro-batches of a step. Raises ValueError if it does not divide evenly."""
    if settings.examples_per_step % settings.micro_batch_examples:
        raise ValueError(
            f"a step of {settings.examples_per_step} examples is no multiple of micro_batch_examples "
            f"{settings.micro_batch_examples}; change one of them"
        )
    return settings.examples_per_step // settings.micro_batch_examples
