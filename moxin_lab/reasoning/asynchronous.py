"""What asynchronous rollouts cost in reward and give in time: AReaL's claim (arXiv 2505.24298),
repeated small.

    staleness k, simulated: rollout n is sampled with the weights that learn from rollout n - k;
                            nothing runs at the same time
    overlapped, for real:   a thread samples rollouts 1 .. k ahead, on another GPU or a stream of
                            its own, while this thread trains

Two objectives read stale rollouts: `naive` PPO, whose ratio starts from the weights that sampled,
and `decoupled`, whose ratio starts from the weights that read and whose tokens are weighted by the
one over the other. `staleness_grid` trains every pair of both for every seed, on the same number of
samples; `modelled_seconds` says from the stages' measured seconds what overlapping would have
taken; `train_overlapped` takes it.

Guarantees: the simulated grid is deterministic (bitwise on the CPU) and its runs resume; overlapped
rollouts are at most `staleness` rollouts old, whatever the threads do
(tests/reasoning/test_asynchronous.py).
Out of scope: repeating an overlapped run bitwise, because which weights a rollout sees depends on
the clock; interrupting a rollout to load weights, as AReaL does; overlapping on several ranks.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from moxin_lab.lab.progress import Progress
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.reasoning.advantages import Reward
from moxin_lab.reasoning.grpo_trainer import Correction, train_grpo
from moxin_lab.reasoning.ring_engine import RingEngine, engine_options
from moxin_lab.reasoning.rollout import (
    Decoding,
    Rollout,
    RolloutEngine,
    SamplingSettings,
)
from moxin_lab.reasoning.rollout_stream import requests
from moxin_lab.scales.sections import GRPOSettings
from moxin_lab.training.resume import with_defaults, world_size

STALENESS = (0, 1, 2, 4, 8)
OBJECTIVES: tuple[Correction, ...] = ("naive", "decoupled")
COLUMNS = (
    "staleness",
    "objective",
    "seed",
    "step",
    "completions",
    "reward",
    "judged",
    "seconds",
    "seconds_synchronous",
)


# --------------------------------------------------------------------------------------------------
# simulated


def staleness_grid(
    make_model: Callable[[], MoxinForCausalLM],
    tokenizer: Any,
    problems: Sequence[Any],
    reward: Reward,
    settings: GRPOSettings,
    *,
    judge: Callable[[MoxinForCausalLM], float],
    seeds: Sequence[int],
    folder: Path,
    staleness: Sequence[int] = STALENESS,
    objectives: Sequence[Correction] = OBJECTIVES,
    decoding: Decoding = "graph",
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """One training for each staleness, objective and seed, all on as many samples; one row per
    rollout, columns `COLUMNS`.

    make_model: a fresh copy of the start model, on the device of the training. settings: its
    staleness and correction are replaced. folder: each run has a folder of its own in it, where a
    killed run continues. decoding: see `ring_engine.engine_options`.
    completions: how many were read up to and with the step. reward: of the rollout that the step
    reads, so of weights that are `staleness` rollouts older than those that learn; the result of a
    run is `judged`, which is `judge` of its last weights, in evaluation mode, and the same in all
    of its rows. seconds: since the start, had rollouts overlapped with training as in
    `modelled_seconds`; seconds_synchronous: one after the other, as measured. Raises ValueError
    before the first run for an unknown objective, a negative staleness, or less than one seed.
    """
    if not seeds or not staleness or not objectives:
        raise ValueError("give at least one seed, one staleness and one objective")
    for objective in objectives:
        if objective not in OBJECTIVES:
            raise ValueError(
                f"unknown objective {objective!r}: available are {', '.join(OBJECTIVES)}"
            )
    if min(staleness) < 0:
        raise ValueError(
            f"staleness {min(staleness)} is negative: rollouts cannot come from later weights"
        )
    plans = [
        (steps, objective, seed)
        for steps in staleness
        for objective in objectives
        for seed in seeds
    ]
    runs = []
    for number, (steps, objective, seed) in enumerate(plans):
        name = f"staleness {steps}, {objective}, seed {seed}"
        if progress is not None:
            progress(number, len(plans), name)
        chosen = settings.model_copy(update={"staleness": steps, "correction": objective})
        model = make_model()
        device = next(model.parameters()).device
        log = train_grpo(
            model,
            tokenizer,
            problems,
            reward,
            chosen,
            seed=seed,
            trainer_options=trainer_options,
            decoding=decoding,
            resume_folder=folder / f"{steps}-{objective}-{seed}",
        )
        rows = grid_rows(log, chosen, objective, seed)
        runs.append(rows.assign(judged=float(judge(model.eval().to(device))))[list(COLUMNS)])
    if progress is not None:
        progress(len(plans), len(plans), "done")
    return pd.concat(runs, ignore_index=True)


def grid_rows(log: pd.DataFrame, settings: GRPOSettings, objective: str, seed: int) -> pd.DataFrame:
    """A run's log as rows of the grid, one per rollout, without `judged`."""
    updates = settings.updates_per_rollout
    rollouts = log.iloc[::updates].reset_index(drop=True)
    seconds = stage_seconds(log, updates)
    table = pd.DataFrame({"step": range(len(rollouts)), "reward": rollouts["reward"]})
    table["completions"] = (
        (table["step"] + 1) * settings.prompts_per_step * settings.num_generations
    )
    table["seconds"] = modelled_seconds(seconds["made"], seconds["read"], settings.staleness)
    table["seconds_synchronous"] = (seconds["made"] + seconds["read"]).cumsum()
    return table.assign(staleness=settings.staleness, objective=objective, seed=seed)


def stage_seconds(log: pd.DataFrame, updates_per_rollout: int = 1) -> pd.DataFrame:
    """Seconds per rollout from a training's log: `made` (weights, sampling, reward) and `read`
    (log-probabilities and updates).
    """
    number = log.index // updates_per_rollout
    made = (
        log[["seconds/weights", "seconds/rollout", "seconds/reward"]]
        .sum(axis=1)
        .groupby(number)
        .mean()
        * updates_per_rollout
    )
    read = log[["seconds/log_probs", "seconds/update"]].sum(axis=1).groupby(number).sum()
    return pd.DataFrame({"made": made, "read": read})


def modelled_seconds(made: Sequence[float], read: Sequence[float], staleness: int) -> list[float]:
    """When each rollout has been learned from, if one device samples and another trains, from the
    seconds of both.

    Rollout n may be begun when the trainer has read rollout n - 1 - staleness (its weights are then
    not too old) and the sampler is free; it is read when it is made and the trainer is free.
    Staleness 0 is one after the other.
    """
    sampler, learned = 0.0, list[float]()
    for number, (making, reading) in enumerate(zip(made, read, strict=True)):
        newest = learned[number - 1 - staleness] if number > staleness else 0.0
        sampler = max(sampler, newest) + float(making)
        learned.append(max(sampler, learned[-1] if learned else 0.0) + float(reading))
    return learned


# --------------------------------------------------------------------------------------------------
# overlapped


class OverlappedEngine:
    """A RolloutEngine that samples ahead in a thread; `generate` takes what is ready, or waits.

    engine: does the sampling, on its own copy of the weights; only the thread touches it. requests:
    the (prompts, sampling, seed) of each rollout in the order in which they will be asked for.
    staleness: rollouts ahead at most. devices: GPUs that the thread works on, the engine's last; on
    each it has a stream of its own, so that it does not queue behind the training. Errors in the
    thread are raised by the next `generate`. Use as a context manager: leaving it ends the thread.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        requests: Iterator[tuple[list[Sequence[int]], SamplingSettings, int]],
        staleness: int,
        devices: Sequence[torch.device] = (),
    ) -> None:
        if staleness < 1:
            raise ValueError(
                f"staleness is {staleness}: overlapping needs 1 or more, 0 is the synchronous "
                "training"
            )
        self._engine, self._requests, self._staleness = engine, requests, staleness
        self._streams = [torch.cuda.Stream(device) for device in devices]
        self._change = threading.Condition()
        self._ready: list[Rollout] = []
        self._weights: tuple[dict[str, Tensor], int] | None = None
        self._asked = 0  # rollouts the trainer has asked weights for, the one it waits for included
        self._begun = 0
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="rollout", daemon=True)
        self.busy_seconds = 0.0

    def __enter__(self) -> "OverlappedEngine":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join()

    def update_weights(self, state_dict: Mapping[str, Tensor], version: int) -> None:
        """Leave a copy for the thread, which takes the newest before each rollout; a rollout under
        way is not disturbed.
        """
        copied = {name: tensor.detach().clone() for name, tensor in state_dict.items()}
        for device in {tensor.device for tensor in copied.values() if tensor.is_cuda}:
            torch.cuda.current_stream(
                device
            ).synchronize()  # the thread's stream does not wait for this one
        with self._change:
            self._weights = copied, version
            self._asked += 1
            self._change.notify_all()

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingSettings, seed: int
    ) -> Rollout:
        """The next rollout. Raises RuntimeError if it is not the one that was requested, and what
        the thread raised.
        """
        with self._change:
            self._change.wait_for(lambda: self._ready or self._error is not None)
            if self._error is not None:
                raise self._error
            rollout = self._ready.pop(0)
            self._change.notify_all()
        asked = [list(prompt) for prompt in prompts for _ in range(sampling.num_generations)]
        if rollout.prompt_ids != asked:
            raise RuntimeError(
                "the rollout made ahead answers other prompts than those asked for: requests are "
                "out of step"
            )
        return rollout

    def _may_begin(self) -> bool:
        # Rollout n is read after n updates at the earliest, and the newest weights here know asked
        # - 1 of them.
        return self._weights is not None and self._begun <= self._asked - 1 + self._staleness

    def _work(self) -> None:
        try:
            with ExitStack() as own:
                for stream in self._streams:
                    own.enter_context(torch.cuda.stream(stream))
                for prompts, sampling, seed in self._requests:
                    with self._change:
                        self._change.wait_for(lambda: self._closed or self._may_begin())
                        if self._closed:
                            return
                        assert self._weights is not None
                        weights, version = self._weights
                        self._begun += 1
                    begin = time.perf_counter()
                    self._engine.update_weights(weights, version)
                    rollout = self._engine.generate(prompts, sampling, seed)
                    with self._change:
                        self.busy_seconds += time.perf_counter() - begin
                        self._ready.append(rollout)
                        self._change.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            with self._change:
                self._error = error
                self._change.notify_all()


def train_overlapped(
    model: MoxinForCausalLM,
    tokenizer: Any,
    problems: Sequence[Any],
    reward: Reward,
    settings: GRPOSettings,
    *,
    seed: int,
    folder: Path,
    device: torch.device | str | None = None,
    engine: RolloutEngine | None = None,
    decoding: Decoding = "graph",
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """`train_grpo` with rollouts sampled meanwhile, `settings.staleness` ahead; the log, whose
    `staleness` is what happened.

    device: of the sampling (default: a second GPU where there is one, else the training's, on a
    stream of its own). folder: must not hold a run, since what a thread was doing cannot be
    resumed. `seconds/rollout` is the time that the trainer waited, `seconds/step` the clock. Raises
    ValueError as `train_grpo`, for staleness 0, and for resampled groups, which cannot be asked for
    ahead.
    """
    if settings.resample_rounds:
        raise ValueError(
            "resample_rounds must be 0: which groups are replaced is known only when they have "
            "been judged"
        )
    if world_size(with_defaults(trainer_options)) > 1:
        raise ValueError("rollouts overlap with a training on one rank only: set devices to 1")
    if (folder / "resume.ckpt").exists():
        raise ValueError(
            f"{folder} holds a run: an overlapped training cannot be resumed, give it an empty "
            "folder"
        )
    training = _training_device(trainer_options)
    sampling = torch.device(device) if device is not None else _sampling_device(training)
    if engine is None:
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        engine = RingEngine(model, device=sampling, **ids, **engine_options(decoding))
    gpus = [place for place in dict.fromkeys((training, sampling)) if place.type == "cuda"]
    ahead = OverlappedEngine(engine, requests(problems, settings, seed), settings.staleness, gpus)
    with ahead:
        # For the trainer the rollouts come when they are asked for; the log takes their age from
        # their version.
        return train_grpo(
            model,
            tokenizer,
            problems,
            reward,
            settings.model_copy(update={"staleness": 0}),
            seed=seed,
            resume_folder=folder,
            engine=ahead,
            check_weights=False,  # the thread takes over weights later, and samples no probe
            progress=progress,
            trainer_options=trainer_options,
        )


def _training_device(trainer_options: dict[str, Any] | None) -> torch.device:
    """Where Lightning will train, by the rule of `resume.with_defaults`: the first GPU, unless the
    options say CPU.
    """
    on_cpu = (trainer_options or {}).get("accelerator") == "cpu" or not torch.cuda.is_available()
    return torch.device("cpu") if on_cpu else torch.device("cuda", 0)


def _sampling_device(training: torch.device) -> torch.device:
    return (
        torch.device("cuda", 1)
        if training.type == "cuda" and torch.cuda.device_count() > 1
        else training
    )
