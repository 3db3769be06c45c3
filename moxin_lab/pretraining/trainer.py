"""One Lightning training over all phases: module, callbacks, and `fit`.

Guarantees: the loss of a step is the mean over the step's targets, however the step is split into
micro-batches and ranks; a run killed and started again continues from its last resume point with
bitwise the same weights and losses on the CPU (batches are a function of the step, random states
are in the checkpoint); weights at the end of each phase are saved as a Hugging Face folder in one
lineage.
Out of scope: sharding of the model (later: ModelParallelStrategy), skipping of loss spikes,
compilation.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from moxin_lab.lab.progress import Progress
from moxin_lab.pretraining.packing import TrainingStream
from moxin_lab.scales.sections import PretrainingSettings
from moxin_lab.training.loss import IGNORE_INDEX, linear_cross_entropy
from moxin_lab.training.optimizer import adamw_of
from moxin_lab.training.resume import ExactResume, run_to_end, with_defaults, world_size
from moxin_lab.training.schedules import pretraining_learning_rate
from moxin_lab.training.step_log import StepLog

# Tokens whose logits are held at once. A GPU wants large products; on a processor 512 x 8,192
# logits stay in its cache, which takes a tenth off the tiny model's step (`moxin-lab bench
# train-step`, reports/released/train-step-tiny-cpu).
LOSS_CHUNK = {"cuda": 4096, "cpu": 512}


class Pretraining(ExactResume):
    """A causal language model (`hidden_states(input_ids, document_ids=...) -> [B, T, C]`,
    `lm_head`) under AdamW and a cosine.
    """

    def __init__(
        self, model: nn.Module, stream: TrainingStream, settings: PretrainingSettings
    ) -> None:
        super().__init__(stream)
        self.model = model
        self._settings = settings

    def training_step(
        self, batch: dict[str, torch.Tensor], batch_index: int
    ) -> dict[str, torch.Tensor]:
        total = token_loss(self.model, batch)
        # Lightning divides by the micro-batches and averages gradients over ranks; undo both, then
        # divide by the step's targets.
        loss = (
            total
            * (self.trainer.accumulate_grad_batches * self.trainer.world_size)
            / batch["num_targets"]
        )
        return {
            "loss": loss,
            "nats": total.detach(),
            "targets": (batch["labels"] != IGNORE_INDEX).sum(),
        }

    def configure_optimizers(self) -> Any:
        settings = self._settings
        optimizer = adamw(self.model, settings)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: pretraining_learning_rate(
                step,
                self._stream.num_steps,
                peak=1.0,
                warmup_steps=settings.warmup_steps,
                final_ratio=settings.final_learning_rate_ratio,
            ),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class PhaseEnds(Callback):
    """Calls `save(phase index)` after the last step of every phase."""

    def __init__(self, stream: TrainingStream, save: Callable[[int], None]) -> None:
        self._last_steps = {
            phase.first_step + phase.steps: index for index, phase in enumerate(stream.phases)
        }
        self._save = save
        self._saved: set[int] = set()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        index = self._last_steps.get(trainer.global_step)
        if index is not None and index not in self._saved:
            self._saved.add(index)
            self._save(index)


def token_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the cross-entropy over the targets of a (micro-)batch, in nats."""
    # input_ids [B, T] -> states [B, T, C]
    states = model.hidden_states(batch["input_ids"], document_ids=batch["document_ids"])
    chunk = LOSS_CHUNK.get(states.device.type, LOSS_CHUNK["cuda"])
    return linear_cross_entropy(
        states, model.lm_head.weight, batch["labels"], chunk_tokens=chunk, reduction="sum"
    )


def adamw(model: nn.Module, settings: PretrainingSettings) -> torch.optim.AdamW:
    """AdamW with a `pretraining` section's constants. Weight decay acts on the matrices of the
    blocks and on the head, not on norms and the embedding table (our choice).
    """
    decayed = [
        p for name, p in model.named_parameters() if p.ndim >= 2 and "embed_tokens" not in name
    ]
    decayed_ids = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in decayed_ids]
    return adamw_of(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        settings,
    )


def accumulation(settings: PretrainingSettings, world_size: int) -> int:
    """Micro-batches per step on one rank. Raises ValueError if the step does not divide evenly."""
    micro, step = settings.micro_batch_tokens * world_size, settings.tokens_per_step
    if step % micro:
        raise ValueError(
            f"tokens_per_step {step} is not a multiple of micro_batch_tokens x ranks = {micro}; "
            "change one of them"
        )
    return step // micro


def fit(
    model: nn.Module,
    stream: TrainingStream,
    settings: PretrainingSettings,
    *,
    resume_folder: Path,
    save_phase: Callable[[int], None],
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Train `model` in place over the whole stream; the log, one row per step.

    resume_folder: where resume points are kept and looked for; a run that is there is continued.
    save_phase: called with 0, 1, 2 when that phase has ended. Raises ValueError if a step does not
    divide into micro-batches, ArithmeticError at a loss that is not finite.
    """

    def row(step: int, sums: dict[str, float]) -> dict[str, float]:
        loss = sums["nats"] / sums["targets"]
        if not math.isfinite(loss):
            raise ArithmeticError(
                f"the loss of step {step} is {loss}: lower the learning rate, or look at the "
                f"documents of that step: {stream.documents_of_step(step)[:5]} and more"
            )
        return {"loss": loss, "phase": stream.phase_of(step), "targets": int(sums["targets"])}

    def name(step: int) -> str:
        return stream.phases[stream.phase_of(step)].name

    # A loss that is not finite is reported with the documents of its step, not as a gradient.
    log = StepLog(stream, progress, name, row, check_gradient=False)
    options = with_defaults(trainer_options)
    run_to_end(
        Pretraining(model, stream, settings),
        [log, PhaseEnds(stream, save_phase)],
        settings,
        num_steps=stream.num_steps,
        accumulate=accumulation(settings, world_size(options)),
        resume_folder=resume_folder,
        options=options,
    )
    if len(log.rows) != stream.num_steps:
        raise RuntimeError(f"the training ended after {len(log.rows)} of {stream.num_steps} steps")
    columns = ("step", "phase", "loss", "targets", "gradient_norm", "learning_rate")
    return pd.DataFrame(log.rows)[list(columns)]
