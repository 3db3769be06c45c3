"""The learning rate's course, as a share of its peak: (optimizer step, steps in all, warm-up's share of them) -> [0, 1].

Guarantees: functions of their arguments alone. Does not: pretraining's curve, which spans phases and ends above 0
(training/schedule.py).
"""

import math


def linear(step: int, total_steps: int, warmup_ratio: float) -> float:
    """Up in int(total x ratio) steps from 0, then down to 0 behind the last.

    The same numbers as `transformers.get_linear_schedule_with_warmup`, which both of Moxin's scripts use.
    """
    warmup = int(total_steps * warmup_ratio)
    if step < warmup:
        return step / warmup
    return (total_steps - step) / max(1, total_steps - warmup)


def constant(step: int, total_steps: int, warmup_ratio: float) -> float:
    """Up in int(total x ratio) steps, from 1 / steps so that no rollout is spent on a rate of 0, then 1."""
    warmup = int(total_steps * warmup_ratio)
    return min(1.0, (step + 1) / max(1, warmup))


def cosine(step: int, total_steps: int, warmup_ratio: float) -> float:
    """Linear to 1 over the warm-up, then half a cosine to 0, as Prismatic's trainings."""
    warmup = int(total_steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))
