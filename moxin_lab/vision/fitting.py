"""The training of stage 07: cosine schedule, decay on matrices alone, exact resume, a log row a step.

Guarantees: those of lab/step_training.py. Does not: know what is being learned (the loss function does).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.callbacks import Callback
from torch import nn

from moxin_lab.lab.exact_resume import Stream, with_defaults, world_size
from moxin_lab.lab.step_training import LossFunction, Order, Progress, StepLog, StepTraining, run_steps
from moxin_lab.model.optimizer import adamw_of


def order_of(count: int, settings: Any, seed: int) -> Order:
    """The order of a training's examples by its settings."""
    return Order(count, examples_per_step=settings.examples_per_step, epochs=settings.epochs, seed=seed)


def cosine_rate(step: int, total: int, warmup_ratio: float) -> float:
    """Share of the peak at optimizer step `step`: linear to 1 over the warm-up, then half a cosine to 0."""
    warmup = int(total * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class VisionTraining(StepTraining):
    """Whatever of `model` requires gradients."""

    def make_optimizer(self) -> Any:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.settings.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return adamw_of([group for group in groups if group["params"]], self.settings)


def fit(
    model: nn.Module, stream: Stream, settings: Any, loss: LossFunction, *, folder: Path, text: str, accumulate: int = 1,
    progress: Progress | None = None, trainer_options: dict[str, Any] | None = None, callbacks: Sequence[Callback] = (),
) -> pd.DataFrame:  # fmt: skip
    """Train in place over the whole stream; the log, one row a step. folder: of this training alone; a run found there goes
    on."""
    options = with_defaults(trainer_options)
    if accumulate % world_size(options):
        raise ValueError(f"{accumulate} parts of a step do not divide over {world_size(options)} ranks")
    return run_steps(
        VisionTraining(model, stream, settings, loss, cosine_rate), StepLog(stream, progress, text),
        accumulate=accumulate // world_size(options), resume_folder=Path(folder), options=options, callbacks=callbacks,
    )  # fmt: skip


def parts_of(settings: Any) -> int:
    """Micro-batches of a step. Raises ValueError if it does not divide evenly."""
    if settings.examples_per_step % settings.micro_batch_examples:
        raise ValueError(
            f"a step of {settings.examples_per_step} examples is no multiple of micro_batch_examples "
            f"{settings.micro_batch_examples}; change one of them"
        )
    return settings.examples_per_step // settings.micro_batch_examples
