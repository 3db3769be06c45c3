"""The learning rate as a function of the step: linear warm-up, then cosine to a share of the peak, over all phases together.

Source of the shape: Moxin technical report v6, section 3.4 (cosine, to 10 % of the maximum); the warm-up is the released
code's (`train/pretrain.py`). One curve spans the three phases: the report names no restart.
"""

import math
from typing import Any


def learning_rate(step: int, total_steps: int, *, peak: float, warmup_steps: int, final_ratio: float) -> float:
    """Rate of optimizer step `step` (0 <= step < total_steps): `peak` at `warmup_steps`, `final_ratio` of it at the last."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return peak * (final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def curve(settings: Any, total_steps: int) -> list[float]:
    """The learning rate of every step of a `pretraining` section."""
    return [
        learning_rate(
            step,
            total_steps,
            peak=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            final_ratio=settings.final_learning_rate_ratio,
        )
        for step in range(total_steps)
    ]
