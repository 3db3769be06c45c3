"""What asynchronous rollouts cost in reward and save in time: AReaL's claim (arXiv 2505.24298),
repeated at a small scale.

    simulated staleness k: rollout n is sampled with the weights that learn from rollout n - k;
                           nothing runs at the same time
    overlapped:            a thread samples rollouts 1 .. k ahead, on another GPU or a stream of
                           its own, while this thread trains

Two objectives use stale rollouts: `naive` PPO, whose ratio is to the weights that sampled, and
`decoupled`, whose ratio is to the weights at the start of the update and whose tokens are weighted
by the ratio of those to the weights that sampled. `staleness_grid` trains every combination of
staleness, objective and seed on the same number of samples; `modelled_seconds` computes from
measured seconds how long overlapped training would have taken; `train_overlapped` does overlap.

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
from transformers import PreTrainedTokenizerFast

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
from moxin_lab.reasoning.rollout_requests import HasPrompt, requests
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
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[HasPrompt],
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
    """One training for each staleness, objective and seed, all on the same number of samples; one
    row per rollout, columns `COLUMNS`.

    make_model: a new copy of the start model, on the device of the training. settings: its
    staleness and correction are replaced. folder: each run has a subfolder of its own, from which
    a killed run continues. decoding: see `ring_engine.engine_options`.
    Columns. completions: used for training up to and including the step. reward: of the rollout
    that the step trains on, so of weights that are `staleness` rollouts older than those that
    learn. judged: the result of a run, `judge` of its last weights in evaluation mode, the same in
    all of its rows. seconds: since the start, had rollouts overlapped with training as in
    `modelled_seconds`; seconds_synchronous: one after the other, as measured.

    Raises ValueError before the first run for an unknown objective, a negative staleness, or no
    seed.
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
    for index, (steps, objective, seed) in enumerate(plans):
        name = f"staleness {steps}, {objective}, seed {seed}"
        if progress is not None:
            progress(index, len(plans), name)
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
    """Seconds per rollout from a training's log: columns `made` (weights, sampling, reward) and
    `read` (log-probabilities and updates).
    """
    rollout_index = log.index // updates_per_rollout
    made = (
        log[["seconds/weights", "seconds/rollout", "seconds/reward"]]
        .sum(axis=1)
        .groupby(rollout_index)
        .mean()
        * updates_per_rollout
    )
    read = log[["seconds/log_probs", "seconds/update"]].sum(axis=1).groupby(rollout_index).sum()
    return pd.DataFrame({"made": made, "read": read})


def modelled_seconds(made: Sequence[float], read: Sequence[float], staleness: int) -> list[float]:
    """Seconds from the start until training on each rollout is done, if one device samples and
    another trains. made, read: seconds of sampling and of training, one per rollout.

    Sampling of rollout n begins when training on rollout n - 1 - staleness is done (its weights are
    then not too old) and the sampler is free; training on it begins when it is sampled and the
    trainer is free. With staleness 0 the two alternate.
    """
    sampled, trained = 0.0, list[float]()
    for n, (sampling, training) in enumerate(zip(made, read, strict=True)):
        weights_ready = trained[n - 1 - staleness] if n > staleness else 0.0
        sampled = max(sampled, weights_ready) + float(sampling)
        trained.append(max(sampled, trained[-1] if trained else 0.0) + float(training))
    return trained


# --------------------------------------------------------------------------------------------------
# overlapped


class OverlappedEngine:
    """A RolloutEngine that samples ahead in a thread; `generate` returns the next rollout, when it
    is sampled.

    engine: does the sampling, on its own copy of the weights; only the thread touches it. requests:
    the arguments of `generate` (prompts, sampling, seed) of each rollout, in order. staleness:
    rollouts to be ahead at most. devices: GPUs that the thread works on, the engine's last; on each
    it has a stream of its own, so that it does not queue behind the training. Errors in the
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
        self._updates = 0  # calls of update_weights, one before each rollout that is read
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
        """Leave a copy for the thread, which takes the newest before each rollout; a rollout in
        progress is not affected.
        """
        copied = {name: tensor.detach().clone() for name, tensor in state_dict.items()}
        for device in {tensor.device for tensor in copied.values() if tensor.is_cuda}:
            # The thread's stream does not wait for this one.
            torch.cuda.current_stream(device).synchronize()
        with self._change:
            self._weights = copied, version
            self._updates += 1
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
        expected = [list(prompt) for prompt in prompts for _ in range(sampling.num_generations)]
        if rollout.prompt_ids != expected:
            raise RuntimeError(
                "the rollout made ahead answers other prompts than those asked for: requests are "
                "out of step"
            )
        return rollout

    def _may_begin(self) -> bool:
        # Rollout n is trained on after n rollouts, and the newest weights have seen updates - 1.
        return self._weights is not None and self._begun <= self._updates - 1 + self._staleness

    def _work(self) -> None:
        try:
            with ExitStack() as stack:
                for stream in self._streams:
                    stack.enter_context(torch.cuda.stream(stream))
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
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[HasPrompt],
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
    """`train_grpo` with rollouts sampled at the same time, at most `settings.staleness` ahead;
    returns the log, whose column `staleness` is the measured one.

    device: of the sampling (default: a second GPU where there is one, else the training's, on a
    stream of its own). folder: must not hold a run, since what a thread was doing cannot be
    resumed. `seconds/rollout` is the time that the trainer waited, `seconds/step` the wall clock.
    Raises ValueError as `train_grpo`, for staleness 0, and for resampled groups, which cannot be
    requested ahead.
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
    gpus = [each for each in dict.fromkeys((training, sampling)) if each.type == "cuda"]
    ahead = OverlappedEngine(engine, requests(problems, settings, seed), settings.staleness, gpus)
    with ahead:
        # To the trainer these are fresh rollouts; the log computes their age from their version.
        return train_grpo(
            model,
            tokenizer,
            problems,
            reward,
            settings.model_copy(update={"staleness": 0}),
            seed=seed,
            resume_folder=folder,
            engine=ahead,
            check_weights=False,  # the thread loads weights later, and samples no probe
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
