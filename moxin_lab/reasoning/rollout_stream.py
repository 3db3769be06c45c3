"""The rollouts of a GRPO training: sampled when they are needed, rewarded, and cut into the parts
of optimizer steps.

    problems -> engine -> reward -> advantages -> Experience -> [update 0 | update 1 ..] -> parts
                                                      |
                           waits for `staleness` rollouts, in checkpoints too

Guarantees: the parts of a step hold each completion once, with an advantage computed over its whole
group; each sampled completion is consumed by a step or counted as discarded; waiting rollouts
survive a kill; several ranks share the sampling and hold the same rollouts.
Out of scope: computing a loss or stepping an optimizer (grpo_trainer.py); sampling the same
completions on another number of ranks.
"""

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.reasoning import grpo
from moxin_lab.reasoning.advantages import Groups, Reward, check_rewards, group_advantages
from moxin_lab.reasoning.log_probs import completion_log_probs
from moxin_lab.reasoning.rollout import (
    Rollout,
    RolloutEngine,
    concatenate,
    end_token_ids,
    replace_groups,
)
from moxin_lab.reasoning.rollout_requests import (
    HasPrompt,
    drawn_problems,
    max_completion_length_of,
    sampling_seed,
    sampling_settings,
)
from moxin_lab.reasoning.weight_probe import WeightProbe
from moxin_lab.scales.sections import GRPOSettings
from moxin_lab.training.fit import autocast
from moxin_lab.training.identity import digest
from moxin_lab.verifier.verifier import REASONS

LEDGER = (
    "completions/generated",
    "completions/discarded",
    "num_tokens",
    "num_tokens/discarded",
)
"""What a rollout sampled and what of it no step reads, as named in the log; the rest is
`completions/consumed` and `num_tokens/consumed`. With several updates each of their rows has the
whole rollout's."""


@dataclass(eq=False)
class Experience:
    """A rollout laid out for the trainer. Everything in it can be saved in a checkpoint.

    version: of the weights that sampled. tensors: `input_ids` int64 [N, L] (prompt and completion,
    padded on the right), `lengths` int64 [N], `advantages` float64 [N]; one value per target,
    [N, L - 1]: `mask` bool, `sampling_log_probs` and, where needed, `old_log_probs` and
    `reference_log_probs` float32.
    """

    rollout_index: int
    version: int
    max_completion_length: int
    tensors: dict[str, Tensor]
    metrics: dict[str, float]


class RolloutStream:
    """Optimizer steps as `fit_language_model` reads them; samples with the model's current weights.

    problems: with `prompt_ids`; what else they have is for the reward. reference: of the KL, None
    for no KL. Raises RuntimeError where a resumed step reads another rollout than the checkpoint's.
    """

    def __init__(
        self,
        model: MoxinForCausalLM,
        reference: nn.Module | None,
        tokenizer: PreTrainedTokenizerFast,
        problems: Sequence[HasPrompt],
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
        self._num_sampled = 0  # rollouts so far, those that wait included
        self._waiting: list[Experience] = []
        self._current: Experience | None = None
        self._step_began = 0.0

    # The interface of `fit_language_model`.

    def batch(self, step: int, *, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        rollout_index, update = divmod(step, self._settings.updates_per_rollout)
        if self._current is None or self._current.rollout_index != rollout_index:
            self._current = self._next(rollout_index, step)
            self._step_began = time.perf_counter()
        rows = self._rows_of(self._current)[update].reshape(parts, -1)[part]
        tensors = self._part(self._current.tensors, rows)
        totals = self._totals(self._current)[update]
        scalars = {
            "step_sequences": totals.sequences,
            "step_tokens": totals.tokens,
            "rollout_tokens": totals.rollout_tokens,
            "max_completion_length": self._current.max_completion_length,
        }
        return tensors | {
            name: torch.tensor(float(value), dtype=torch.float64) for name, value in scalars.items()
        }

    def fingerprint(self) -> str:
        """Digest of the prompts, the seed and the end tokens. Rollouts follow from them and from
        the weights; a reward is code.
        """
        prompts = [list(problem.prompt_ids) for problem in self._problems]
        return digest(prompts, self._seed, self._eos_token_ids)

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
        row["seconds/update"], self._step_began = now - self._step_began, now
        is_first_update = step % self._settings.updates_per_rollout == 0
        # The time of sampling is logged once per rollout, in the row of its first update.
        sampling = [
            name for name in row if name.startswith("seconds/") and name != "seconds/update"
        ]
        row.update({name: row[name] if is_first_update else 0.0 for name in sampling})
        row["seconds/step"] = row["seconds/update"] + sum(row[name] for name in sampling)
        return row

    # Sampling.

    def _next(self, rollout_index: int, step: int) -> Experience:
        settings = self._settings
        while self._num_sampled <= min(rollout_index + settings.staleness, settings.steps - 1):
            self._waiting.append(self._collect(self._num_sampled, step))
            self._num_sampled += 1
        experience = self._waiting.pop(0)
        if experience.rollout_index != rollout_index:
            raise RuntimeError(
                f"rollout {experience.rollout_index} is next, step {step} reads {rollout_index}: "
                "was the resume folder mixed up?"
            )
        begin = time.perf_counter()
        if settings.updates_per_rollout > 1 and settings.correction != "naive":
            experience.tensors["old_log_probs"] = self._log_probs(self._model, experience)
        if self._reference is not None:
            self._reference.to(self._model.lm_head.weight.device)
            experience.tensors["reference_log_probs"] = self._log_probs(self._reference, experience)
        experience.metrics["seconds/log_probs"] = time.perf_counter() - begin
        return experience

    def _collect(self, rollout_index: int, version: int) -> Experience:
        """Sample and reward a rollout with the model's current weights."""
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
        chosen = drawn_problems(
            len(self._problems), settings.prompts_per_step, self._seed, rollout_index
        )
        rollout, rewards, reasons, means = self._judged(chosen, rollout_index, 0, seconds)
        first = self._advantages(rewards, len(chosen))
        ends = self._eos_token_ids
        lengths = grpo.completion_mask(
            rollout.completion_ids, rollout.lengths, eos_ids=ends
        ).metrics
        size = settings.num_generations
        ledger = Counter(
            {"completions/generated": len(rewards), "num_tokens": int(rollout.lengths.sum())}
        )
        groups, replaced = first, 0
        for attempt in range(1, settings.resample_rounds + 1):
            uniform = np.flatnonzero(groups.zero_variance)
            if not len(uniform):
                break
            others = np.random.default_rng([self._seed, rollout_index, attempt]).permutation(
                len(self._problems)
            )[: len(uniform)]
            resampled, new_rewards, _, _ = self._judged(
                others.tolist(), rollout_index, attempt, seconds
            )
            useful = np.flatnonzero(~self._advantages(new_rewards, len(others)).zero_variance)
            replaced += len(useful)
            # Of the new groups those without contrast are discarded, of the old ones as many as
            # the others replace.
            unused = np.setdiff1d(np.arange(len(others)), useful)
            left_out = (
                _of_groups(resampled.lengths, unused, size),
                _of_groups(rollout.lengths, uniform[: len(useful)], size),
            )
            ledger.update(
                {
                    "completions/generated": len(new_rewards),
                    "completions/discarded": sum(map(len, left_out)),
                    "num_tokens": int(resampled.lengths.sum()),
                    "num_tokens/discarded": sum(int(part.sum()) for part in left_out),
                }
            )
            rollout, rewards = replace_groups(
                rollout, rewards, resampled, new_rewards, dict(zip(uniform, useful, strict=False))
            )
            groups = self._advantages(rewards, len(chosen))
        metrics = {
            **first.metrics,
            **lengths,
            "tokens_per_second": ledger["num_tokens"] / max(seconds["seconds/rollout"], 1e-9),
            **{name: float(ledger[name]) for name in LEDGER},
            "completions/consumed": float(len(rewards)),
            "num_tokens/consumed": float(rollout.lengths.sum()),
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
            rollout_index,
            rollout.version,
            max_completion_length_of(settings, rollout_index),
            tensors,
            metrics,
        )

    def _judged(
        self, chosen: Sequence[int], rollout_index: int, attempt: int, seconds: dict[str, float]
    ) -> tuple[Rollout, np.ndarray, Counter[str], dict[str, float]]:
        """Completions of the chosen problems, their rewards, the verifier's reasons, and the means
        of each reward and of the format's gate by their names in the log. Each rank samples and
        judges its part of the problems and receives the other parts, so all ranks return the same.
        """
        rank, ranks = _rank()
        mine = np.array_split(np.asarray(chosen, dtype=np.int64), ranks)[rank].tolist()
        local = (
            self._judged_here(
                mine,
                sampling_seed(self._seed, rollout_index, attempt, rank),
                rollout_index,
                seconds,
            )
            if mine
            else None
        )
        parts = [part for part in _gathered(local) if part is not None]
        rollouts, rewards, reasons, values = zip(*parts, strict=True)
        return (
            concatenate(rollouts),
            np.concatenate(rewards),
            sum(reasons, Counter()),
            {
                name: float(np.concatenate([part[name] for part in values]).mean())
                for name in values[0]
            },
        )

    def _judged_here(
        self, chosen: Sequence[int], seed: int, rollout_index: int, seconds: dict[str, float]
    ) -> tuple[Rollout, np.ndarray, Counter[str], dict[str, np.ndarray]]:
        """`_judged` on this rank alone, with values instead of means; adds to `seconds`."""
        settings = self._settings
        problems = [self._problems[index] for index in chosen]
        began = time.perf_counter()
        rollout = self._engine.generate(
            [problem.prompt_ids for problem in problems],
            sampling_settings(settings, rollout_index),
            seed,
        )
        texts = rollout.texts(self._tokenizer)
        sampled = time.perf_counter()
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
        seconds["seconds/rollout"] += sampled - began
        seconds["seconds/reward"] += time.perf_counter() - sampled
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
        """Rows of each update, [updates, rows]: in a seeded order, within an update sorted by
        length, which keeps padding small.
        """
        settings, lengths = self._settings, experience.tensors["lengths"].numpy()
        order = np.arange(len(lengths))
        if settings.updates_per_rollout > 1:
            order = np.random.default_rng(
                [self._seed, experience.rollout_index, 1 << 20]
            ).permutation(len(lengths))
        rows = order.reshape(settings.updates_per_rollout, -1)
        return np.stack([update[np.argsort(-lengths[update], kind="stable")] for update in rows])

    def _totals(self, experience: Experience) -> list[grpo.Totals]:
        return grpo.totals([experience.tensors["mask"][rows] for rows in self._rows_of(experience)])

    def _part(self, tensors: dict[str, Tensor], rows: np.ndarray) -> dict[str, Tensor]:
        """Some rows, cut to the longest: [N, L] -> [B, width], [N, L - 1] -> [B, width - 1]."""
        width = int(tensors["lengths"][rows].max())
        end_of = {"advantages": None, "lengths": None, "input_ids": width}
        return {
            name: tensor[rows][..., slice(end_of.get(name, width - 1))]
            for name, tensor in tensors.items()
        }

    @torch.no_grad()
    def _log_probs(self, model: nn.Module, experience: Experience) -> Tensor:
        """Log-probabilities under `model`, float32 [N, L - 1] on the CPU, in micro-batches."""
        tensors, device = experience.tensors, self._model.lm_head.weight.device
        log_probs = torch.zeros(tensors["mask"].shape, device=device)
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
                log_probs[torch.from_numpy(rows).to(device), : values.shape[1]] = values
        if ranks > 1:
            torch.distributed.all_reduce(log_probs)  # each row is of one rank, and 0 on the others
        return log_probs.cpu()

    # State in checkpoints.

    def state_dict(self) -> dict[str, Any]:
        waiting = [vars(experience) for experience in self._waiting]
        return {
            "made": self._num_sampled,
            "waiting": waiting,
            "current": self._current and vars(self._current),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._num_sampled = state["made"]
        self._waiting = [Experience(**values) for values in state["waiting"]]
        self._current = state["current"] and Experience(**state["current"])


class CheckpointedRollouts(Callback):
    """Saves the stream's rollouts in Lightning's checkpoints."""

    def __init__(self, stream: RolloutStream) -> None:
        self._stream = stream

    def state_dict(self) -> dict[str, Any]:
        return self._stream.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._stream.load_state_dict(state_dict)


def _lay_out(
    rollout: Rollout, ends: Sequence[int], mask_truncated_completions: bool, pad_id: int
) -> dict[str, Tensor]:
    """The tensors of an `Experience` but `advantages`: prompts and completions as rows [N, L]."""
    counts = rollout.lengths
    starts = torch.tensor([len(prompt) for prompt in rollout.prompt_ids])
    lengths = starts + counts
    input_ids = torch.full((len(starts), int(lengths.max())), pad_id)
    for row, prompt in enumerate(rollout.prompt_ids):
        input_ids[row, : len(prompt)] = torch.as_tensor(prompt)
    positions = torch.arange(input_ids.shape[1])
    generated = (positions >= starts[:, None]) & (positions < lengths[:, None])  # [N, L]
    input_ids[generated] = rollout.completion_ids[rollout.completion_mask]
    sampling = torch.zeros(input_ids.shape)
    sampling[generated] = rollout.log_probs[rollout.completion_mask]
    truncated = grpo.completion_mask(rollout.completion_ids, counts, eos_ids=ends).truncated
    mask = generated & ~truncated[:, None] if mask_truncated_completions else generated
    # Position t predicts token t + 1: what belongs to a target has no first column, [N, L - 1].
    return {
        "input_ids": input_ids,
        "mask": mask[:, 1:],
        "sampling_log_probs": sampling[:, 1:],
        "lengths": lengths,
    }


def _of_groups(values: Tensor, groups: np.ndarray, size: int) -> Tensor:
    """The values [N] of the completions of some groups of `size`, in their order."""
    return values.reshape(-1, size)[torch.from_numpy(groups)].reshape(-1)


def _rank() -> tuple[int, int]:
    """This process's rank and the number of ranks."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _gathered(local: Any) -> list[Any]:
    """The value of each rank, in the order of ranks."""
    ranks = _rank()[1]
    if ranks == 1:
        return [local]
    gathered: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(gathered, local)
    return gathered
