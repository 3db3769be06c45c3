"""The rollouts of a GRPO training, made when they are needed, judged, and cut into the parts of
optimizer steps.

    problems -> engine -> reward -> advantages -> Experience -> [update 0 | update 1 ..] -> parts,
    padded little
                                                     |  waits `staleness` rollouts, in checkpoints
                                                     too

Guarantees: what rollout n asks is a function of (seed, n); parts of a step hold each completion
once, and its whole group's advantage was computed before it was cut; rollouts that wait survive a
kill; several ranks share the sampling and hold the same rollouts.
Out of scope: computing a loss or stepping (grpo_trainer.py); sampling the same completions on
another number of ranks.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.reasoning import grpo
from moxin_lab.reasoning.advantages import Groups, Reward, check_rewards, group_advantages
from moxin_lab.reasoning.log_probs import completion_log_probs
from moxin_lab.reasoning.rollout import Rollout, RolloutEngine, SamplingSettings, end_token_ids
from moxin_lab.reasoning.weight_probe import WeightProbe
from moxin_lab.scales.sections import GRPOSettings
from moxin_lab.training.fit import autocast
from moxin_lab.verifier.verifier import REASONS

# --------------------------------------------------------------------------------------------------
# what a rollout asks


def drawn_problems(count: int, together: int, seed: int, number: int) -> list[int]:
    """Which of `count` problems rollout `number` answers: the set in a seeded order, a new one each
    time it is used up.
    """
    places = range(number * together, (number + 1) * together)
    passes = {place // count for place in (places[0], places[-1])}
    orders = {each: np.random.default_rng([seed, each]).permutation(count) for each in passes}
    return [int(orders[place // count][place % count]) for place in places]


def sampling_seed(seed: int, number: int, attempt: int = 0, rank: int = 0) -> int:
    """The engine's seed for rollout `number`; attempt: of replacing groups without variance; rank:
    of whose engine.
    """
    names = [seed, number, attempt, *([rank] if rank else [])]
    return int(np.random.SeedSequence(names).generate_state(1)[0])


def max_completion_length_of(settings: GRPOSettings, number: int) -> int:
    """Response budget of rollout `number` in tokens, by `length_stages` where there are some."""
    reached = [length for first, length in settings.length_stages if first <= number]
    return reached[-1] if reached else settings.max_completion_length


def sampling_settings(settings: GRPOSettings, number: int) -> SamplingSettings:
    """How rollout `number` is sampled."""
    return SamplingSettings(
        settings.num_generations,
        max_completion_length_of(settings, number),
        settings.temperature,
        settings.top_p,
    )


def requests(
    problems: Sequence[Any], settings: GRPOSettings, seed: int
) -> Iterator[tuple[list[Sequence[int]], SamplingSettings, int]]:
    """What a `RolloutStream` will ask its engine for, rollout after rollout (without replacement of
    groups).
    """
    for number in range(settings.steps):
        chosen = drawn_problems(len(problems), settings.prompts_per_step, seed, number)
        yield (
            [problems[index].prompt_ids for index in chosen],
            sampling_settings(settings, number),
            sampling_seed(seed, number),
        )


# --------------------------------------------------------------------------------------------------
# stream


@dataclass(eq=False)
class Experience:
    """A rollout with its rewards, laid out for the trainer: tensors of N rows, prompt and
    completion joined [N, L], what belongs to a target [N, L - 1]. Everything in it can be saved in
    a checkpoint.
    """

    number: int
    version: int
    max_completion_length: int
    tensors: dict[str, Tensor]
    metrics: dict[str, float]


class RolloutStream:
    """Optimizer steps as `fit_language_model` reads them; makes rollouts with the model's weights
    of the moment.
    """

    def __init__(
        self,
        model: MoxinForCausalLM,
        reference: nn.Module | None,
        tokenizer: Any,
        problems: Sequence[Any],
        reward: Reward,
        engine: RolloutEngine,
        settings: GRPOSettings,
        seed: int,
        *,
        eos_token_id: int | Sequence[int] | None = None,
        probe: WeightProbe | None = None,
    ) -> None:
        self._model, self._reference, self._tokenizer = model, reference, tokenizer
        self._problems, self._reward, self._engine, self._settings = (
            problems,
            reward,
            engine,
            settings,
        )
        self._seed, self._probe = seed, probe
        self._eos_token_ids = end_token_ids(
            tokenizer.eos_token_id if eos_token_id is None else eos_token_id
        )
        self.num_steps = settings.steps * settings.updates_per_rollout
        self.examples_per_step = (
            settings.prompts_per_step * settings.num_generations // settings.updates_per_rollout
        )
        self._made = 0  # rollouts so far
        self._waiting: list[Experience] = []
        self._current: Experience | None = None
        self._mark = 0.0

    # What `fit_language_model` asks for.

    def batch(self, step: int, *, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        number, update = divmod(step, self._settings.updates_per_rollout)
        if self._current is None or self._current.number != number:
            self._current = self._next(number, step)
            self._mark = time.perf_counter()
        rows = self._rows_of(self._current)[update].reshape(parts, -1)[part]
        found = self._part(self._current.tensors, rows)
        own = self._totals(self._current)[update]
        shared = {
            "step_sequences": own.sequences,
            "step_tokens": own.tokens,
            "rollout_tokens": own.rollout_tokens,
            "max_completion_length": self._current.max_completion_length,
        }
        return found | {
            name: torch.tensor(float(value), dtype=torch.float64) for name, value in shared.items()
        }

    def describe(self, step: int) -> str:
        return f"rollout {step // self._settings.updates_per_rollout}"

    def finish(self, step: int, sums: dict[str, float]) -> dict[str, float]:
        """A step's row of the log, from the loss function's sums over it."""
        assert self._current is not None
        tokens = max(1.0, sums["tokens"])
        row = {
            **self._current.metrics,
            **grpo.metrics(sums),
            "staleness": float(step - self._current.version),
        }
        row["clip_ratio"] = row["clip_ratio/region_mean"]
        row["sampling/sampling_logp_difference/mean"] = sums["logp_difference"] / tokens
        if "behaviour_weight" in sums:
            row["sampling/importance_sampling_ratio/mean"] = sums["behaviour_weight"] / tokens
            row["sampling/left_out_ratio"] = sums["left_out"] / tokens
        now = time.perf_counter()
        row["seconds/update"], self._mark = now - self._mark, now
        made_now = step % self._settings.updates_per_rollout == 0
        others = [name for name in row if name.startswith("seconds/") and name != "seconds/update"]
        row.update({name: row[name] if made_now else 0.0 for name in others})
        row["seconds/step"] = row["seconds/update"] + sum(row[name] for name in others)
        return row

    # Rollouts.

    def _next(self, number: int, step: int) -> Experience:
        settings = self._settings
        while self._made <= min(number + settings.staleness, settings.steps - 1):
            self._waiting.append(self._collect(self._made, step))
            self._made += 1
        found = self._waiting.pop(0)
        if found.number != number:
            raise RuntimeError(
                f"rollout {found.number} is next, step {step} reads {number}: was the resume "
                "folder mixed up?"
            )
        begin = time.perf_counter()
        if settings.updates_per_rollout > 1 and settings.correction != "naive":
            found.tensors["old_log_probs"] = self._log_probs(self._model, found)
        if self._reference is not None:
            self._reference.to(self._model.lm_head.weight.device)
            found.tensors["reference_log_probs"] = self._log_probs(self._reference, found)
        found.metrics["seconds/log_probs"] = time.perf_counter() - begin
        return found

    def _collect(self, number: int, version: int) -> Experience:
        """Sample and judge rollout `number` with the model's present weights."""
        settings = self._settings
        begin = time.perf_counter()
        self._engine.update_weights(self._model.state_dict(), version)
        if self._probe is not None:
            self._probe.check(self._engine, self._model)
        seconds = {
            "seconds/weights": time.perf_counter() - begin,
            "seconds/rollout": 0.0,
            "seconds/reward": 0.0,
        }
        chosen = drawn_problems(len(self._problems), settings.prompts_per_step, self._seed, number)
        rollout, rewards, reasons, means = self._judged(chosen, number, 0, seconds)
        first = self._advantages(rewards, len(chosen))
        ends = self._eos_token_ids
        lengths = grpo.completion_mask(
            rollout.completion_ids, rollout.lengths, eos_ids=ends
        ).metrics
        generated = int(rollout.completion_mask.sum())
        groups, replaced = first, 0
        for attempt in range(1, settings.resample_rounds + 1):
            flat = np.flatnonzero(groups.zero_variance)
            if not len(flat):
                break
            others = np.random.default_rng([self._seed, number, attempt]).permutation(
                len(self._problems)
            )[: len(flat)]
            again, their_rewards, _, _ = self._judged(others.tolist(), number, attempt, seconds)
            generated += int(again.completion_mask.sum())
            useful = np.flatnonzero(~self._advantages(their_rewards, len(others)).zero_variance)
            replaced += len(useful)
            rollout, rewards = _replace(
                rollout, rewards, again, their_rewards, dict(zip(flat, useful, strict=False))
            )
            groups = self._advantages(rewards, len(chosen))
        metrics = {
            **first.metrics,
            **lengths,
            "tokens_per_second": generated / max(seconds["seconds/rollout"], 1e-9),
            "num_tokens": float(generated),
            **{f"verifier/{name}": float(reasons[name]) for name in REASONS if reasons},
            **seconds,
            **means,
        }
        if settings.resample_rounds:
            metrics["resampled_groups"] = float(replaced)
            metrics["frac_groups_used"] = 1 - float(groups.zero_variance.mean())
        tensors = _lay_out(
            rollout, ends, settings.mask_truncated_completions, self._tokenizer.pad_token_id
        )
        tensors["advantages"] = torch.from_numpy(groups.advantages)
        return Experience(
            number, rollout.version, max_completion_length_of(settings, number), tensors, metrics
        )

    def _judged(
        self, chosen: Sequence[int], number: int, attempt: int, seconds: dict[str, float]
    ) -> tuple[Rollout, np.ndarray, Counter[str], dict[str, float]]:
        """Completions of the chosen problems, their rewards, the verifier's reasons, and the means
        of each reward and of the format's gate by their names in the log. Each rank samples and
        judges its part of the problems and receives the other parts, so all ranks continue with
        the same.
        """
        rank, ranks = _rank()
        mine = np.array_split(np.asarray(chosen, dtype=np.int64), ranks)[rank].tolist()
        own = (
            self._judged_here(
                mine, sampling_seed(self._seed, number, attempt, rank), number, seconds
            )
            if mine
            else None
        )
        parts = [part for part in _gathered(own) if part is not None]
        rollouts, rewards, reasons, values = zip(*parts, strict=True)
        return (
            joined(rollouts),
            np.concatenate(rewards),
            sum(reasons, Counter()),
            {
                name: float(np.concatenate([part[name] for part in values]).mean())
                for name in values[0]
            },
        )

    def _judged_here(
        self, chosen: Sequence[int], seed: int, number: int, seconds: dict[str, float]
    ) -> tuple[Rollout, np.ndarray, Counter[str], dict[str, np.ndarray]]:
        settings = self._settings
        problems = [self._problems[index] for index in chosen]
        begin = time.perf_counter()
        rollout = self._engine.generate(
            [problem.prompt_ids for problem in problems], sampling_settings(settings, number), seed
        )
        texts = rollout.texts(self._tokenizer)
        middle = time.perf_counter()
        rows = [problem for problem in problems for _ in range(settings.num_generations)]
        rewards = check_rewards(self._reward(rows, texts), len(rows))
        by_name: dict[str, np.ndarray] = getattr(self._reward, "values", {})
        values = {f"rewards/{name}/mean": value for name, value in by_name.items()}
        if settings.format_pattern is not None:
            passed = np.array(
                [
                    re.fullmatch(settings.format_pattern, text, re.DOTALL) is not None
                    for text in texts
                ]
            )
            values["format/passed_ratio"] = passed
            rewards = np.where(passed, rewards, 0.0)
        low, high = settings.reward_values
        rewards = low + (high - low) * rewards
        seconds["seconds/rollout"] += middle - begin
        seconds["seconds/reward"] += time.perf_counter() - middle
        return rollout, rewards, Counter(getattr(self._reward, "reasons", {})), values

    def _advantages(self, rewards: np.ndarray, count: int) -> Groups:
        keys = np.repeat(np.arange(count), self._settings.num_generations).tolist()
        settings = self._settings
        return group_advantages(
            rewards,
            keys,
            num_generations=settings.num_generations,
            scale_rewards=settings.scale_rewards,
            baseline=settings.baseline,
        )

    # Parts of a rollout.

    def _rows_of(self, experience: Experience) -> np.ndarray:
        """Rows of each update, [updates, rows]: seeded; within an update sorted by length, so that
        parts are padded little.
        """
        settings, lengths = self._settings, experience.tensors["lengths"].numpy()
        order = np.arange(len(lengths))
        if settings.updates_per_rollout > 1:
            order = np.random.default_rng([self._seed, experience.number, 1 << 20]).permutation(
                len(lengths)
            )
        rows = order.reshape(settings.updates_per_rollout, -1)
        return np.stack([update[np.argsort(-lengths[update], kind="stable")] for update in rows])

    def _totals(self, experience: Experience) -> list[grpo.Totals]:
        return grpo.totals([experience.tensors["mask"][rows] for rows in self._rows_of(experience)])

    def _part(self, tensors: dict[str, Tensor], rows: np.ndarray) -> dict[str, Tensor]:
        width = int(tensors["lengths"][rows].max())
        cut = {"advantages": None, "lengths": None, "input_ids": width}
        return {
            name: tensor[rows][..., slice(cut.get(name, width - 1))]
            for name, tensor in tensors.items()
        }

    @torch.no_grad()
    def _log_probs(self, model: nn.Module, experience: Experience) -> Tensor:
        """Log-probabilities under `model`, [N, L - 1], in micro-batches."""
        tensors, device = experience.tensors, self._model.lm_head.weight.device
        found = torch.zeros(tensors["mask"].shape, device=device)
        order = np.argsort(-tensors["lengths"].numpy(), kind="stable")
        rank, ranks = _rank()
        size = self._settings.micro_batch_examples
        for start in range(rank * size, len(order), ranks * size):
            rows = order[start : start + size]
            part = {name: value.to(device) for name, value in self._part(tensors, rows).items()}
            if bool(part["mask"].any()):
                with autocast(self._settings.precision, device):
                    values, _ = completion_log_probs(
                        model, part["input_ids"], part["mask"], self._settings.temperature
                    )
                found[torch.from_numpy(rows).to(device), : values.shape[1]] = values
        if ranks > 1:
            torch.distributed.all_reduce(found)  # each row is one rank's, and 0 on the others
        return found.cpu()

    # What a checkpoint keeps.

    def state_dict(self) -> dict[str, Any]:
        kept = [vars(experience) for experience in self._waiting]
        return {
            "made": self._made,
            "waiting": kept,
            "current": self._current and vars(self._current),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._made = state["made"]
        self._waiting = [Experience(**values) for values in state["waiting"]]
        self._current = state["current"] and Experience(**state["current"])


class KeptRollouts(Callback):
    """The stream's rollouts in Lightning's checkpoint."""

    def __init__(self, stream: RolloutStream) -> None:
        self._stream = stream

    def state_dict(self) -> dict[str, Any]:
        return self._stream.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._stream.load_state_dict(state_dict)


def _lay_out(
    rollout: Rollout, ends: Sequence[int], mask_truncated_completions: bool, pad_id: int
) -> dict[str, Tensor]:
    """input_ids int64 [N, L], mask and sampling_log_probs [N, L - 1], lengths [N] (prompt and
    completion).
    """
    counts = rollout.lengths
    starts = torch.tensor([len(prompt) for prompt in rollout.prompt_ids])
    lengths = starts + counts
    input_ids = torch.full((len(starts), int(lengths.max())), pad_id)
    for row, prompt in enumerate(rollout.prompt_ids):
        input_ids[row, : len(prompt)] = torch.as_tensor(prompt)
    places = torch.arange(input_ids.shape[1])
    generated = (places >= starts[:, None]) & (places < lengths[:, None])
    input_ids[generated] = rollout.completion_ids[rollout.completion_mask]
    sampling = torch.zeros(input_ids.shape)
    sampling[generated] = rollout.log_probs[rollout.completion_mask]
    truncated = grpo.completion_mask(rollout.completion_ids, counts, eos_ids=ends).truncated
    mask = generated & ~truncated[:, None] if mask_truncated_completions else generated
    return {
        "input_ids": input_ids,
        "mask": mask[:, 1:],
        "sampling_log_probs": sampling[:, 1:],
        "lengths": lengths,
    }


def joined(rollouts: Sequence[Rollout]) -> Rollout:
    """One rollout of the rows of several with the same number of samples, in their order; as wide
    as the widest.
    """
    first, width = rollouts[0], max(rollout.completion_ids.shape[1] for rollout in rollouts)
    tensors = {
        name: torch.cat(
            [
                nn.functional.pad(getattr(each, name), (0, width - getattr(each, name).shape[1]))
                for each in rollouts
            ]
        )
        for name in ("completion_ids", "completion_mask", "log_probs")
    }
    prompts = [prompt for each in rollouts for prompt in each.prompt_ids]
    finish = [reason for each in rollouts for reason in each.finish_reasons]
    seconds = max(each.seconds for each in rollouts)
    return Rollout(
        prompts,
        **tensors,
        finish_reasons=finish,
        num_generations=first.num_generations,
        version=first.version,
        seconds=seconds,
    )


def _rank() -> tuple[int, int]:
    """This process's rank and how many there are."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _gathered(own: Any) -> list[Any]:
    """What each rank has, in the order of ranks."""
    ranks = _rank()[1]
    if ranks == 1:
        return [own]
    found: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(found, own)
    return found


def _replace(
    rollout: Rollout,
    rewards: np.ndarray,
    other: Rollout,
    other_rewards: np.ndarray,
    groups: dict[Any, Any],
) -> tuple[Rollout, np.ndarray]:
    """`rollout` with group `old` replaced by `other`'s group `new`, for each old: new of
    `groups`.
    """
    num_generations, width = (
        rollout.num_generations,
        max(rollout.completion_ids.shape[1], other.completion_ids.shape[1]),
    )

    def wider(tensor: Tensor) -> Tensor:
        return nn.functional.pad(tensor, (0, width - tensor.shape[1]))

    names = ("completion_ids", "completion_mask", "log_probs")
    mine, theirs = ({name: wider(getattr(r, name)) for name in names} for r in (rollout, other))
    prompts, finish, rewards = (
        list(rollout.prompt_ids),
        list(rollout.finish_reasons),
        rewards.copy(),
    )
    for old, new in groups.items():
        for sample in range(num_generations):
            here, there = int(old) * num_generations + sample, int(new) * num_generations + sample
            prompts[here], finish[here] = other.prompt_ids[there], other.finish_reasons[there]
            rewards[here] = other_rewards[there]
            for name in names:
                mine[name][here] = theirs[name][there]
    seconds = rollout.seconds + other.seconds
    return Rollout(
        prompts,
        **mine,
        finish_reasons=finish,
        num_generations=num_generations,
        version=rollout.version,
        seconds=seconds,
    ), rewards
