"""The training of post-training: a language model under AdamW, linear or constant schedule, micro-batches, ranks, log.

A stream gives a part of a step as tensors, a loss function the part's share of the step's loss; the rest is lab/step_training.py.

Guarantees: those of lab/step_training.py; the model is in evaluation mode afterwards.
Does not: shard the model, evaluate, or know what is being learned.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from moxin_lab.lab.exact_resume import with_defaults, world_size
from moxin_lab.lab.step_training import Finish, LossFunction, Progress, Rate, StepLog, StepTraining, run_steps
from moxin_lab.model.optimizer import adamw_of


class Stream(Protocol):
    num_steps: int
    examples_per_step: int

    def batch(self, step: int, *, part: int = 0, parts: int = 1) -> dict[str, Tensor]: ...

    def describe(self, step: int) -> str: ...


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


class PostTraining(StepTraining):
    """A causal language model; weight decay acts on all of it, as in Moxin's scripts, where it is 0."""

    def make_optimizer(self) -> Any:
        return adamw_of(
            [{"params": list(self.model.parameters()), "weight_decay": self.settings.weight_decay}], self.settings
        )


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
    model.train()
    log = run_steps(
        PostTraining(model, stream, settings, loss, rate), StepLog(stream, progress, text, finish, log_file),
        accumulate=accumulate, resume_folder=resume_folder, options=options, callbacks=callbacks,
    )  # fmt: skip
    model.eval()
    return log
