"""One Lightning training for both stages of post-training: linear schedule, micro-batches, ranks, exact resume, log.

A stream gives a part of a step as tensors, a loss function the part's share of the step's loss; shares add up to the step's.

Guarantees: a step's loss and gradient do not depend on micro-batches or ranks beyond what the stream's weights say; a killed run
started again continues from its last resume point with bitwise the same weights and log on the CPU, dropout included.
Does not: shard the model, evaluate, or know what is being learned.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

Progress = Callable[[int, int, str], None]


class Stream(Protocol):
    num_steps: int
    examples_per_step: int

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]: ...

    def describe(self, step: int) -> str: ...


LossFunction = Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]
"""(model, part of a step) to `loss`, the part's share with gradient, and further sums without (they end in the log)."""


def linear_rate(step: int, total_steps: int, warmup_ratio: float) -> float:
    """Share of the peak at optimizer step `step`: up in int(total x ratio) steps from 0, then down to 0 behind the last.

    The same numbers as `transformers.get_linear_schedule_with_warmup`, which both of Moxin's scripts use.
    """
    warmup = int(total_steps * warmup_ratio)
    if step < warmup:
        return step / warmup
    return (total_steps - step) / max(1, total_steps - warmup)


class Parts(Dataset):
    """Micro-batch i of a rank: part `(i % accumulate) x ranks + rank` of step `i // accumulate`."""

    def __init__(self, stream: Stream, accumulate: int, rank: int, world_size: int) -> None:
        self._stream, self._accumulate, self._rank, self._world_size = stream, accumulate, rank, world_size

    def __len__(self) -> int:
        return self._stream.num_steps * self._accumulate

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        step, micro = divmod(index, self._accumulate)
        return self._stream.batch(step, micro * self._world_size + self._rank, self._accumulate * self._world_size)


class FromStep(Sampler[int]):
    """Indices `first .. length - 1`, while `len()` stays the whole: Lightning counts a resumed epoch from where it was."""

    def __init__(self, first: int, length: int) -> None:
        self._first, self._length = first, length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._first, self._length))

    def __len__(self) -> int:
        return self._length


class PostTraining(L.LightningModule):
    """A causal language model under AdamW and the linear schedule."""

    def __init__(self, model: nn.Module, stream: Stream, settings: Any, loss: LossFunction) -> None:
        super().__init__()
        self.model = model
        self._stream, self._settings, self._loss = stream, settings, loss
        self._random_states: dict[str, Tensor] = {}

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        sums = self._loss(self.model, batch)
        # Lightning divides by the micro-batches and averages gradients over ranks; a share of the step needs neither.
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size
        logged = {name: value.detach() for name, value in sums.items() if name != "loss"}
        return {"loss": sums["loss"] * scale, "share": sums["loss"].detach(), **logged}

    def configure_optimizers(self) -> Any:
        settings = self._settings
        optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: linear_rate(step, self._stream.num_steps, settings.warmup_ratio)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> DataLoader:
        accumulate = self.trainer.accumulate_grad_batches
        parts = Parts(self._stream, accumulate, self.trainer.global_rank, self.trainer.world_size)
        sampler = FromStep(self.trainer.global_step * accumulate, len(parts))
        return DataLoader(parts, batch_size=None, sampler=sampler, num_workers=0)

    # Lightning's checkpoints hold no random state; with dropout a resumed run would differ without it.
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = torch.get_rng_state()
        if torch.cuda.is_available():
            checkpoint["cuda_random_state"] = torch.cuda.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        names = ("random_state", "cuda_random_state")
        self._random_states = {name: checkpoint[name] for name in names if name in checkpoint}

    # Set only now: making the loader's iterator draws a number, which the run that was not killed drew at its beginning.
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if "random_state" in self._random_states:
            torch.set_rng_state(self._random_states["random_state"].cpu())
        if "cuda_random_state" in self._random_states:
            torch.cuda.set_rng_state(self._random_states["cuda_random_state"].cpu())
        self._random_states = {}


class StepLog(Callback):
    """Loss, learning rate, gradient norm and the loss function's sums of every step, over all ranks; part of the checkpoint.

    Stops the training with ArithmeticError at the first loss or gradient that is not finite, before the weights take it.
    """

    def __init__(self, stream: Stream, progress: Progress | None, text: str) -> None:
        self.rows: list[dict[str, float]] = []
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
        self.rows.append(
            {
                "step": step - 1,
                "loss": loss,
                "gradient_norm": self._norm,
                "learning_rate": self._learning_rate,
                **found,
            }
        )
        self._sums = {}
        if self._progress is not None:
            self._progress(step, self._stream.num_steps, f"{self._text}, loss {loss:.3f}")

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]


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
) -> pd.DataFrame:
    """Train `model` in place over the whole stream; the log, one row a step.

    settings: learning_rate, warmup_ratio, weight_decay, adam_beta1, adam_beta2, adam_eps, gradient_clip_norm (None: no clipping),
    precision, micro_batch_examples, checkpoint_every_steps. resume_folder: of this training alone; a run found there goes on.
    """
    options: dict[str, Any] = {"accelerator": "auto", "devices": 1, **(trainer_options or {})}
    world_size = int(options["devices"]) * int(options.get("num_nodes", 1))
    accumulate = accumulation(stream, settings, world_size)
    log = StepLog(stream, progress, text)
    resume = ModelCheckpoint(
        resume_folder,
        filename="resume",
        every_n_train_steps=settings.checkpoint_every_steps,
        save_top_k=1,
        enable_version_counter=False,
    )
    model.train()
    # Four lines a training on what this machine has and how it ended would hide, in a notebook of many, what matters.
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # The loader is cheap and its order is the step's own: advice on workers and on resuming mid-epoch does not apply.
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")
        trainer = L.Trainer(
            max_steps=stream.num_steps,
            max_epochs=1,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=settings.gradient_clip_norm,
            precision=settings.precision,
            callbacks=[log, resume],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=resume_folder,
            **options,
        )
        found = resume_folder / "resume.ckpt"
        module = PostTraining(model, stream, settings, loss)
        try:
            trainer.fit(module, ckpt_path=found if found.exists() else None, weights_only=True)
        finally:
            logger.setLevel(level)
    if len(log.rows) != stream.num_steps:
        raise RuntimeError(f"the training ended after {len(log.rows)} of {stream.num_steps} steps")
    model.eval()
    return pd.DataFrame(log.rows)
