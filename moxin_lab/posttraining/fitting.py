"""The training of post-training: a language model in training mode, weight decay on all of it, linear schedule by default.

Guarantees: those of lab/step_training.py; the model is in evaluation mode afterwards. Does not: know what is being learned.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from moxin_lab.lab import rates, step_training
from moxin_lab.lab.step_training import LossFunction, Progress, Rate, Stream
from moxin_lab.model.optimizer import decay_all


def fit(
    model: nn.Module, stream: Stream, settings: Any, loss: LossFunction, *, resume_folder: Path, text: str,
    progress: Progress | None = None, trainer_options: dict[str, Any] | None = None, rate: Rate = rates.linear,
    **log_options: Any,
) -> pd.DataFrame:  # fmt: skip
    """`step_training.fit` of a whole language model, in place; log_options: its finish, callbacks, log_file."""
    model.train()
    log = step_training.fit(
        model, stream, settings, loss, optimizer=decay_all, rate=rate, resume_folder=resume_folder, text=text,
        progress=progress, trainer_options=trainer_options, **log_options,
    )  # fmt: skip
    model.eval()
    return log
