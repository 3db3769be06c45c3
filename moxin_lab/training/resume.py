"""What every Lightning training of the lab shares so that a killed run continues bitwise: loader,
random states, trainer.

    class Pretraining(ExactResume): ...    # with its own training_step, configure_optimizers
    run_to_end(Pretraining(model, stream), [log], settings, num_steps=stream.num_steps, ...)

Guarantees: a batch is a function of (step, part of the step), so a resumed run reads what the
killed one would have read; random states are in the checkpoint; a run found in `resume_folder` is
continued.
Out of scope: models, losses, schedules.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, Sampler


class Stream(Protocol):
    """Optimizer steps by number, each in equal parts: arrays or tensors by name."""

    num_steps: int

    def batch(self, step: int, *, part: int = 0, parts: int = 1) -> dict[str, Any]: ...


class RunSettings(Protocol):
    """What `run_to_end` needs of a training's settings. gradient_clip_norm: None for no
    clipping.
    """

    @property
    def gradient_clip_norm(self) -> float | None: ...
    @property
    def precision(self) -> Any: ...  # a name of Lightning's
    @property
    def checkpoint_every_steps(self) -> int: ...


class StepParts(Dataset):
    """Micro-batch i of a rank as tensors: part `(i % accumulate) x ranks + rank` of step `i //
    accumulate`.
    """

    def __init__(self, stream: Stream, accumulate: int, rank: int, world_size: int) -> None:
        self._stream, self._accumulate, self._rank, self._world_size = (
            stream,
            accumulate,
            rank,
            world_size,
        )

    def __len__(self) -> int:
        return self._stream.num_steps * self._accumulate

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        step, micro = divmod(index, self._accumulate)
        part = micro * self._world_size + self._rank
        batch = self._stream.batch(step, part=part, parts=self._accumulate * self._world_size)
        return {name: torch.as_tensor(values) for name, values in batch.items()}


class FromStep(Sampler[int]):
    """Indices `first .. length - 1`, while `len()` stays `length`: Lightning counts a
    resumed epoch from where it was.
    """

    def __init__(self, first: int, length: int) -> None:
        self._first, self._length = first, length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._first, self._length))

    def __len__(self) -> int:
        return self._length


class ExactResume(L.LightningModule):
    """Reads `stream` from the trainer's step onwards and saves random states in checkpoints."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream
        self._random_states: dict[str, torch.Tensor] = {}

    def train_dataloader(self) -> DataLoader:
        accumulate = self.trainer.accumulate_grad_batches
        parts = StepParts(
            self._stream, accumulate, self.trainer.global_rank, self.trainer.world_size
        )
        sampler = FromStep(self.trainer.global_step * accumulate, len(parts))
        return DataLoader(parts, batch_size=None, sampler=sampler, num_workers=0)

    # Lightning's checkpoints hold no random state; with dropout a resumed run would differ without
    # it.
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = torch.get_rng_state()
        if torch.cuda.is_available():
            checkpoint["cuda_random_state"] = torch.cuda.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        names = ("random_state", "cuda_random_state")
        self._random_states = {name: checkpoint[name] for name in names if name in checkpoint}

    # Not restored earlier, because creating the loader's iterator draws a number, which the run
    # that was not killed drew at its start.
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if "random_state" in self._random_states:
            torch.set_rng_state(self._random_states["random_state"].cpu())
        if "cuda_random_state" in self._random_states:
            torch.cuda.set_rng_state(self._random_states["cuda_random_state"].cpu())
        self._random_states = {}


def with_defaults(trainer_options: dict[str, Any] | None) -> dict[str, Any]:
    """Trainer options of a run: any accelerator and one device, unless the caller sets others."""
    return {"accelerator": "auto", "devices": 1, **(trainer_options or {})}


def world_size(options: dict[str, Any]) -> int:
    """Ranks that these options start. Raises ValueError unless `devices` is a number."""
    devices = options["devices"]
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(
            f"devices is {devices!r}: give the number of devices, so that a step can be divided "
            "before training starts"
        )
    return devices * int(options.get("num_nodes", 1))


def run_to_end(
    module: ExactResume,
    callbacks: list[Callback],
    settings: RunSettings,
    *,
    num_steps: int,
    accumulate: int,
    resume_folder: Path,
    options: dict[str, Any],
) -> None:
    """Train over `num_steps` optimizer steps, from the resume point in `resume_folder` if there is
    one.
    """
    resume = ModelCheckpoint(
        resume_folder,
        filename="resume",
        every_n_train_steps=settings.checkpoint_every_steps,
        save_top_k=1,
        enable_version_counter=False,
    )
    with warnings.catch_warnings(), quiet_lightning():
        # The loader is cheap and its order is the step's own: advice on workers and on resuming
        # mid-epoch does not apply.
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")
        trainer = L.Trainer(
            max_steps=num_steps,
            max_epochs=1,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=settings.gradient_clip_norm,
            precision=settings.precision,
            callbacks=[*callbacks, resume],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=resume_folder,
            **options,
        )
        checkpoint = resume_folder / "resume.ckpt"
        with without_cudnn_attention():
            trainer.fit(
                module, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True
            )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Let Lightning log warnings and errors only: in a notebook of many trainings its other
    messages would hide the results.
    """
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Keep PyTorch's attention from using cuDNN's kernel, whose backward pass gives NaN gradients
    for some lengths where scores are strongly negative (pytorch/pytorch issue 196678,
    NVIDIA/cudnn-frontend issue 1072). SigLIP's training on an H100 (torch 2.11, bf16, 64 patches)
    always failed at step 368 with it, and never without.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
