"""One Lightning training over all phases: module, loader, callbacks, and `fit`.

Guarantees: the loss of a step is the mean over the step's targets, however the step is split into micro-batches and ranks;
a run killed and started again continues from its last resume point with bitwise the same weights and losses on the CPU
(batches are a function of the step, random states are in the checkpoint); weights at the end of each phase are saved as a
Hugging Face folder in one lineage. Does not: shard the model (later: ModelParallelStrategy), skip loss spikes, compile.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from moxin_lab.training.loss import IGNORE, linear_cross_entropy
from moxin_lab.training.schedule import learning_rate

# Tokens whose logits are held at once. A GPU wants large products; on a processor 512 x 8,192 logits stay in its cache, which
# takes a tenth off the tiny model's step (`moxin-lab bench train-step`, reports/released/train-step-tiny-cpu).
LOSS_CHUNK = {"cuda": 4096, "cpu": 512}
Progress = Callable[[int, int, str], None]


class StepBatches(Dataset):
    """Micro-batch i as tensors: part `i % accumulate` (and this rank's share of it) of step `i // accumulate`."""

    def __init__(self, stream: Any, accumulate: int, rank: int, world_size: int) -> None:
        self._stream, self._accumulate, self._rank, self._world_size = stream, accumulate, rank, world_size

    def __len__(self) -> int:
        return self._stream.num_steps * self._accumulate

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        step, micro = divmod(index, self._accumulate)
        part = micro * self._world_size + self._rank
        batch = self._stream.batch(step, part=part, parts=self._accumulate * self._world_size)
        return {name: torch.from_numpy(array) for name, array in batch.items()}


class FromStep(Sampler[int]):
    """Indices `first .. length - 1`, while `len()` stays the whole: Lightning counts a resumed epoch from where it was."""

    def __init__(self, first: int, length: int) -> None:
        self._first, self._length = first, length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._first, self._length))

    def __len__(self) -> int:
        return self._length


class Pretraining(L.LightningModule):
    """A causal language model (`hidden_states(input_ids, document_ids=...) -> [B, T, C]`, `lm_head`) under AdamW and a cosine."""

    def __init__(self, model: nn.Module, stream: Any, settings: Any) -> None:
        super().__init__()
        self.model = model
        self._stream = stream
        self._settings = settings
        self._random_states: dict[str, torch.Tensor] = {}

    def accumulate(self) -> int:
        """Micro-batches a step, from `tokens_per_step`, `micro_batch_tokens` and the number of ranks."""
        return accumulation(self._settings, self.trainer.world_size)

    def training_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> dict[str, torch.Tensor]:
        total = token_loss(self.model, batch)
        # Lightning divides by the micro-batches and averages gradients over ranks; undo both, then divide by the step's targets.
        loss = total * (self.accumulate() * self.trainer.world_size) / batch["num_targets"]
        return {"loss": loss, "nats": total.detach(), "targets": (batch["labels"] != IGNORE).sum()}

    def configure_optimizers(self) -> Any:
        settings = self._settings
        optimizer = adamw(self.model, settings)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: learning_rate(
                step,
                self._stream.num_steps,
                peak=1.0,
                warmup_steps=settings.warmup_steps,
                final_ratio=settings.final_learning_rate_ratio,
            ),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> DataLoader:
        accumulate = self.accumulate()
        batches = StepBatches(self._stream, accumulate, self.trainer.global_rank, self.trainer.world_size)
        first = self.trainer.global_step * accumulate
        return DataLoader(batches, batch_size=None, sampler=FromStep(first, len(batches)), num_workers=0)

    # Lightning's checkpoints hold no random state; with dropout a resumed run would differ without it.
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = torch.get_rng_state()
        if torch.cuda.is_available():
            checkpoint["cuda_random_state"] = torch.cuda.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._random_states = {
            name: checkpoint[name] for name in ("random_state", "cuda_random_state") if name in checkpoint
        }

    # Set only now: making the loader's iterator draws a number, which the run that was not killed drew at its beginning.
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if "random_state" in self._random_states:
            torch.set_rng_state(self._random_states["random_state"].cpu())
        if "cuda_random_state" in self._random_states:
            torch.cuda.set_rng_state(self._random_states["cuda_random_state"].cpu())
        self._random_states = {}


class StepLog(Callback):
    """Loss, learning rate and gradient norm of every step; part of the checkpoint, so a resumed run's log has no hole.

    Stops the training with ArithmeticError at the first loss that is not finite, naming the step.
    """

    def __init__(self, stream: Any, progress: Progress | None) -> None:
        self.rows: list[dict[str, float]] = []
        self._stream, self._progress = stream, progress
        self._nats, self._targets, self._norm, self._learning_rate = 0.0, 0, 0.0, 0.0

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self._norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))  # before clipping
        self._learning_rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._nats += float(outputs["nats"])
        self._targets += int(outputs["targets"])
        step = trainer.global_step
        if len(self.rows) == step:  # within an accumulated step
            return
        loss = self._nats / self._targets
        if not math.isfinite(loss):
            raise ArithmeticError(
                f"the loss of step {step - 1} is {loss}: lower the learning rate, or look at the documents of that step: "
                f"{self._stream.documents_of_step(step - 1)[:5]} and more"
            )
        phase = self._stream.phase_of(step - 1)
        self.rows.append(
            {
                "step": step - 1,
                "phase": phase,
                "loss": loss,
                "targets": self._targets,
                "gradient_norm": self._norm,
                "learning_rate": self._learning_rate,
            }
        )
        self._nats, self._targets = 0.0, 0
        if self._progress is not None:
            self._progress(step, self._stream.num_steps, f"{self._stream.phases[phase].name}, loss {loss:.3f}")

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]


class PhaseEnds(Callback):
    """Calls `save(phase index)` after the last step of every phase."""

    def __init__(self, stream: Any, save: Callable[[int], None]) -> None:
        self._last_steps = {phase.first_step + phase.steps: index for index, phase in enumerate(stream.phases)}
        self._save = save
        self._saved: set[int] = set()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        index = self._last_steps.get(trainer.global_step)
        if index is not None and index not in self._saved:
            self._saved.add(index)
            self._save(index)


def token_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the cross-entropy over the targets of a (micro-)batch, in nats."""
    states = model.hidden_states(batch["input_ids"], document_ids=batch["document_ids"])
    chunk = LOSS_CHUNK.get(states.device.type, LOSS_CHUNK["cuda"])
    return linear_cross_entropy(states, model.lm_head.weight, batch["labels"], chunk_tokens=chunk, reduction="sum")


def adamw(model: nn.Module, settings: Any) -> torch.optim.AdamW:
    """AdamW with a `pretraining` section's constants. Weight decay acts on the matrices of the blocks and on the head, not on
    norms and the embedding table (our choice)."""
    decayed = [p for name, p in model.named_parameters() if p.ndim >= 2 and "embed_tokens" not in name]
    chosen = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_eps,
        fused=True,
    )


def accumulation(settings: Any, world_size: int) -> int:
    """Micro-batches a step. Raises ValueError if the step does not divide evenly."""
    micro, step = settings.micro_batch_tokens * world_size, settings.tokens_per_step
    if step % micro:
        raise ValueError(
            f"tokens_per_step {step} is not a multiple of micro_batch_tokens x ranks = {micro}; change one of them"
        )
    return step // micro


def fit(
    model: nn.Module,
    stream: Any,
    settings: Any,
    *,
    resume_folder: Path,
    save_phase: Callable[[int], None],
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Train `model` in place over the whole stream; the log, one row a step.

    stream: `moxin_lab.data.packing.TrainingStream`; settings: a scale's `pretraining` section; resume_folder: where resume points
    are kept and looked for (a run found there is continued); save_phase: called with 0, 1, 2 when that phase has ended.
    """
    log = StepLog(stream, progress)
    resume = ModelCheckpoint(
        resume_folder,
        filename="resume",
        every_n_train_steps=settings.checkpoint_every_steps,
        save_top_k=1,
        enable_version_counter=False,
    )
    module = Pretraining(model, stream, settings)
    options: dict[str, Any] = {"accelerator": "auto", "devices": 1, **(trainer_options or {})}
    with warnings.catch_warnings():
        # The loader is cheap and its order is the step's own: advice on workers and on resuming mid-epoch does not apply.
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")
        trainer = L.Trainer(
            max_steps=stream.num_steps,
            max_epochs=1,
            accumulate_grad_batches=accumulation(settings, _world_size(options)),
            gradient_clip_val=settings.gradient_clip_norm,
            precision=settings.precision,
            callbacks=[log, PhaseEnds(stream, save_phase), resume],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=resume_folder,
            **options,
        )
        found = resume_folder / "resume.ckpt"
        trainer.fit(module, ckpt_path=found if found.exists() else None, weights_only=True)
    if len(log.rows) != stream.num_steps:
        raise RuntimeError(f"the training ended after {len(log.rows)} of {stream.num_steps} steps")
    return pd.DataFrame(log.rows)


def _world_size(options: dict[str, Any]) -> int:
    devices = options["devices"]
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(
            f"devices is {devices!r}: give the number of devices, so that a step can be divided before training starts"
        )
    return devices * int(options.get("num_nodes", 1))
