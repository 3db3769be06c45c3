"""What every Lightning training of the lab shares so that a killed run continues bitwise: loader,
random states, resume points, signals, trainer.

    class Pretraining(ExactResume): ...    # with its own training_step, configure_optimizers
    run_to_end(Pretraining(model, stream), [log], settings, num_steps=stream.num_steps, ...)

Guarantees: a batch is a function of (step, part of the step), so a resumed run reads what the
killed one would have read; random states of all ranks are in the checkpoint; a run found in
`resume_folder` is continued if settings, data, seed, start and ranks are the same, and refused with
what differs otherwise; SIGTERM saves at the end of the step and ends the process with code 143; a
folder that cannot be written or has too little room fails before the first step. A sharded training
(pretraining/parallel.py) has distributed checkpoints as resume points, folders of shards, and
continues on another number of ranks, unless it draws dropout, whose random states belong to ranks.
Out of scope: models, losses, schedules; the files (resume_points.py); sharding a model.
"""

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, Dataset, Sampler

from moxin_lab.training import resume_points
from moxin_lab.training.compiled import loader
from moxin_lab.training.identity import Scalar, dropouts, identity

TERMINATED = 128 + signal.SIGTERM  # the exit code of a process that SIGTERM ended


class Stream(Protocol):
    """Optimizer steps by number, each in equal parts: arrays or tensors by name. fingerprint: of
    the data and of their order (`identity.digest`); two streams with the same batches have the
    same. `in_other_processes`, if there and true: batches only read memory, so that a GPU's can be
    made in other processes; a stream that samples or holds tensors of a GPU has it not.
    """

    num_steps: int

    def fingerprint(self) -> str: ...

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
    accumulate`. Ranks here are those that read different rows.
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
        try:
            batch = self._stream.batch(step, part=part, parts=self._accumulate * self._world_size)
        except Exception as error:
            describe = getattr(self._stream, "describe", None)
            reads = "" if describe is None else f", which reads {describe(step)[:300]}"
            error.add_note(f"in step {step} of the training{reads}")
            raise
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

    def functions(self) -> dict[str, str]:
        """Names of the functions that a training is made of, for its identity."""
        return {}

    def reader(self) -> tuple[int, int]:
        """Number of this rank among those that read different rows, and how many they are. Ranks
        that split the tensors of one model read the same rows.
        """
        if self.device_mesh is None:
            return self.trainer.global_rank, self.trainer.world_size
        mesh = self.device_mesh["data_parallel"]
        return mesh.get_local_rank(), mesh.size()

    def train_dataloader(self) -> DataLoader:
        accumulate = self.trainer.accumulate_grad_batches
        parts = StepParts(self._stream, accumulate, *self.reader())
        sampler = FromStep(self.trainer.global_step * accumulate, len(parts))
        beside = getattr(self._stream, "in_other_processes", False)
        return loader(parts, sampler, self.device if beside else torch.device("cpu"))

    # Lightning's checkpoints hold no random state; with dropout a resumed run would differ without
    # it. Every rank has its own, and one rank writes the file.
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state()
        of_ranks: list[Any] = [states]
        if self.trainer.world_size > 1:
            of_ranks = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(of_ranks, states)
        checkpoint["random_states"] = of_ranks

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = checkpoint["random_states"]
        if len(states) == self.trainer.world_size:
            self._random_states = states[self.trainer.global_rank]
        # Lightning's loop counts micro-batches, of which another number of ranks has others.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        for counts in (progress["current"], progress["total"]):
            more = done - counts["ready"]
            counts.update({name: count + more for name, count in counts.items()})

    # Not restored earlier, because creating the loader's iterator draws a number, which the run
    # that was not killed drew at its start.
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if "cpu" in self._random_states:
            torch.set_rng_state(self._random_states["cpu"].cpu())
        if "cuda" in self._random_states and torch.cuda.is_available():
            torch.cuda.set_rng_state(self._random_states["cuda"].cpu())
        self._random_states = {}


class Terminated:
    """Whether SIGTERM has arrived. While `watch` is active the signal only sets this, so that the
    step it meets is finished and saved.
    """

    def __init__(self) -> None:
        self.received = False
        self._previous: Any = signal.SIG_DFL

    def install(self) -> None:
        """Take the signal over, also from Lightning, which ends a training within a step."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.received = True
        if callable(self._previous):
            self._previous(number, frame)

    @contextmanager
    def watch(self) -> Iterator[None]:
        self._previous = signal.getsignal(signal.SIGTERM)
        self.install()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, self._previous)


class ResumePoints(Callback):
    """Writes a resume point every so many steps, and after the step in which SIGTERM arrives."""

    def __init__(
        self,
        folder: Path,
        every_steps: int,
        belongs_to: Mapping[str, Scalar],
        text: Callable[[int], str],
        terminated: Terminated,
    ) -> None:
        self._folder, self._every, self._belongs_to = folder, every_steps, belongs_to
        self._text, self._terminated = text, terminated
        self._last_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step
        self._terminated.install()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if step == self._last_step:  # within an accumulated step
            return
        self._last_step = step
        ends = self._terminated.received
        if trainer.world_size > 1:  # one rank's signal ends all of them, at the same step
            ends = trainer.strategy.reduce_boolean_decision(ends, all=False)
        if ends or step % self._every == 0:
            resume_points.write(
                self._folder,
                step,
                trainer.save_checkpoint,
                self._belongs_to,
                phase=self._text(step - 1),
                first=trainer.is_global_zero,
                together=trainer.strategy.barrier,
            )
        if ends:
            raise SystemExit(TERMINATED)


class DirectIO(TorchCheckpointIO):
    """Writes a checkpoint to the path that it is given. Lightning's own makes a copy in memory and
    another in $TMPDIR, which may lie on a smaller disk.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)


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
    resume_folder: Path | None,
    options: dict[str, Any],
    text: Callable[[int], str],
    readers: int | None = None,
) -> None:
    """Train over `num_steps` optimizer steps, from the newest resume point in `resume_folder` if
    there is one.

    text: what a step belongs to, in the record of a resume point. resume_folder: None for a run
    that is not continued: SIGTERM ends it at once. readers: of different rows, for a sharded
    training, whose points any number of ranks continues unless the model draws dropout; None: all
    ranks, and only as many continue. Raises ResumeError for points of another training or without a
    whole one, OSError for a folder without room; SystemExit after SIGTERM.
    """
    terminated, checkpoint, points = Terminated(), None, []
    if resume_folder is not None:
        belongs_to = identity(
            settings,
            module._stream.fingerprint(),
            module,
            steps=num_steps,
            parts=accumulate * (readers or 1),
            **({} if readers and not draws(module) else {"ranks": world_size(options)}),
            **module.functions(),
        )
        checkpoint = resume_points.newest(resume_folder, belongs_to)
        resume_points.check_room(resume_folder, (resume_points.KEPT + 1) * state_bytes(module))
        every = settings.checkpoint_every_steps
        points = [ResumePoints(resume_folder, every, belongs_to, text, terminated)]
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
            callbacks=[*callbacks, *points],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=resume_folder,
            **options,
        )
        if isinstance(trainer.strategy.checkpoint_io, TorchCheckpointIO):
            trainer.strategy.checkpoint_io = DirectIO()
        with without_cudnn_attention(), terminated.watch() if points else nullcontext():
            trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
        if terminated.received:  # after the last step, whose end saves no more
            raise SystemExit(TERMINATED)


def draws(module: torch.nn.Module) -> bool:
    """Whether a model has dropout, whose random states belong to ranks."""
    return bool(dropouts(module))


def state_bytes(module: torch.nn.Module) -> int:
    """Bytes of a resume point: the weights, and AdamW's two moments of those that are trained."""
    return sum(
        parameter.numel() * parameter.element_size() * (3 if parameter.requires_grad else 1)
        for parameter in module.parameters()
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
