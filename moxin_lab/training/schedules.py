"""Learning-rate schedules: pure functions of the optimizer step.

`linear`, `constant` and `cosine` map (step, total steps, warm-up ratio) to a share of the peak in
[0, 1]: post-training and vision use them. `pretraining_learning_rate` spans the three phases of
stage 04 with one curve and ends above zero.

Guarantees: functions of their arguments alone, so a resumed training continues on the same curve.
Out of scope: stepping an optimizer (fit.py, pretraining/trainer.py).
"""

import math
from typing import Protocol


def linear(step: int, total_steps: int, warmup_ratio: float) -> float:
    """Linear warm-up from 0 in int(total x ratio) steps, then linear decay to 0 after the last.

    The same numbers as `transformers.get_linear_schedule_with_warmup`, which both of Moxin's
    scripts use.
    """
    warmup = int(total_steps * warmup_ratio)
    if step < warmup:
        return step / warmup
    return (total_steps - step) / max(1, total_steps - warmup)


def constant(step: int, total_steps: int, warmup_ratio: float) -> float:
    """Linear warm-up in int(total x ratio) steps, then 1. It starts at 1 / warm-up steps, so that
    no rollout is spent on a learning rate of 0.
    """
    warmup = int(total_steps * warmup_ratio)
    return min(1.0, (step + 1) / max(1, warmup))


def cosine(step: int, total_steps: int, warmup_ratio: float) -> float:
    """Linear to 1 over the warm-up, then half a cosine to 0, as in Prismatic's trainings."""
    warmup = int(total_steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))


def pretraining_learning_rate(
    step: int, total_steps: int, *, peak: float, warmup_steps: int, final_ratio: float
) -> float:
    """Learning rate of optimizer step `step`, 0 <= step < total_steps: linear warm-up to `peak`,
    cosine to `final_ratio` of it.

    Source: technical report v6, section 3.4 (cosine, to 10 % of the maximum); the warm-up is the
    released code's (`train/pretrain.py`). One curve spans the three phases, because the report
    names no restart.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return peak * (
        final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    )


class PretrainingRates(Protocol):
    """What `pretraining_learning_rates` needs of a scale's `pretraining` section."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def final_learning_rate_ratio(self) -> float: ...


def pretraining_learning_rates(settings: PretrainingRates, total_steps: int) -> list[float]:
    """The learning rate of every step of a `pretraining` section."""
    return [
        pretraining_learning_rate(
            step,
            total_steps,
            peak=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            final_ratio=settings.final_learning_rate_ratio,
        )
        for step in range(total_steps)
    ]
