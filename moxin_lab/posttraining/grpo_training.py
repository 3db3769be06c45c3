"""GRPO as a training: problems -> rollout -> reward -> advantages -> optimizer step, on the trainer of `fitting.py`.

    step s:  prompts of (seed, s) -> engine.generate -> texts -> reward -> group_advantages
                    ^                                                           |  parts (micro-batches)
             weights, after each update <------------ policy_loss  <------------+

`train_grpo` is the whole of it. A rollout is made when the step that reads it begins, or `staleness` rollouts earlier
(asynchronous.py). Log: one row an optimizer step under the names that TRL and `doctor.py` use, as a table and as JSON lines.

Guarantees: a step does not depend on how it is cut into micro-batches; equal seeds give equal bytes on the CPU (all columns but
`seconds/*` and `tokens_per_second`); a killed run goes on as if it had not been, rollouts that wait to be read included; what
cannot work is refused before the first rollout (tests/posttraining/test_grpo_training.py).
Does not: judge answers (a reward does), evaluate (the notebook does), or run on several ranks.
"""

import copy
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moxin_lab.lab.exact_resume import with_defaults, world_size
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.posttraining import fitting, grpo
from moxin_lab.posttraining.rollout import RingEngine, Rollout, RolloutEngine, SamplingSettings
from moxin_lab.posttraining.verifier import REASONS, Verdict, Verifier

Correction = Literal["none", "naive", "decoupled"]
CORRECTIONS: tuple[Correction, ...] = ("none", "naive", "decoupled")
HEAD_TOKENS = 8192  # tokens whose logits are held at once: 1 GB in float32 at 32,000 ids


@dataclass(frozen=True)
class Problem:
    """A prompt's token ids and the answer that is right. family, difficulty: for tables. More fields are the reward's own."""

    prompt_ids: Sequence[int]
    answer: str
    family: str = ""
    difficulty: int = 0
    task: Any = None


class HasPrompt(Protocol):
    @property
    def prompt_ids(self) -> Sequence[int]: ...


# ------------------------------------------------------------------------------------------------------------------ reward

Judge = Callable[[Sequence[Any], Sequence[str]], Sequence[Verdict]]
"""(problems, their completions) to verdicts."""


class VerifierReward:
    """1 for a correct answer and 0 for any other, by a judge that gives verdicts; `reasons` counts those of the last call.

    judge: default is the verifier itself, on `problem.answer`.
    """

    def __init__(self, verifier: Verifier | None = None, *, judge: Judge | None = None) -> None:
        if (verifier is None) == (judge is None):
            raise ValueError("give either a verifier or a judge: who says what is right?")
        self._verifier, self._judge = verifier, judge
        self.reasons: Counter[str] = Counter()

    def __call__(self, problems: Sequence[Any], completions: Sequence[str]) -> list[float]:
        if self._judge is not None:
            verdicts = list(self._judge(problems, completions))
        else:
            assert self._verifier is not None
            verdicts = self._verifier.verify_batch(completions, [problem.answer for problem in problems])
        self.reasons = Counter(verdict.reason for verdict in verdicts)
        return [verdict.reward for verdict in verdicts]


# ---------------------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True, kw_only=True)
class GRPOSettings:
    """What a run does. Defaults are Moxin's script where it has a value (64 prompts x 8, temperature 0.6, rate 1e-6, k3 with
    0.001, clip 0.2, one update a rollout, response 16,384) and our choice elsewhere.

    steps: rollouts. updates_per_rollout: optimizer steps that read one rollout, a share each.
    loss, importance_level, clip_low, clip_high, kl_coefficient, kl_estimator: see `grpo.Objective`; loss "gspo" is `grpo` at
    sequence level. log_kl: measure the KL where its coefficient is 0, too (a reference forward pass a rollout).
    scale, baseline: see `grpo.group_advantages`; AReaL without a critic is scale and baseline `batch` with rewards (-5, 5).
    reward_values: what a reward of 0 and of 1 becomes. format_pattern: a regular expression that a completion must match as a
    whole to be paid at all (a gate, not a bonus: a bonus lets long wrong answers in the right form rise).
    length_stages: (from which step, max_new_tokens), first (0, ..), such as DeepScaleR's 8K, 16K, 24K; overrides max_new_tokens.
    resample_rounds: how often groups without variance are replaced by other prompts' (DAPO's dynamic sampling), 0 for not.
    mask_truncated: completions cut by the budget carry no loss.
    staleness: rollouts are made so many rollouts before they are read. correction: `none`, the ratio starts from the weights
    that read; `naive`, from those that sampled; `decoupled`, as `none`, each token weighted by reading over sampling
    probability, tokens above behaviour_cap left out (AReaL, arXiv 2505.24298, section 5.2).
    """

    steps: int
    prompts_per_step: int = 64
    samples: int = 8
    max_new_tokens: int = 16_384
    length_stages: tuple[tuple[int, int], ...] = ()
    temperature: float = 0.6
    top_p: float = 1.0
    updates_per_rollout: int = 1
    loss: str = "grpo"
    importance_level: grpo.Level = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coefficient: float = 0.001
    kl_estimator: grpo.Estimator = "k3"
    log_kl: bool = True
    scale: grpo.Scale = "group"
    baseline: grpo.Baseline = "group"
    reward_values: tuple[float, float] = (0.0, 1.0)
    format_pattern: str | None = None
    resample_rounds: int = 0
    mask_truncated: bool = False
    staleness: int = 0
    correction: Correction = "none"
    behaviour_cap: float = 5.0
    learning_rate: float = 1e-6
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    gradient_clip_norm: float | None = 1.0
    precision: str = "bf16-mixed"
    micro_batch_examples: int = 8
    checkpoint_every_steps: int = 20

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("updates_per_rollout", 1), ("resample_rounds", 0), ("staleness", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give {least} or more")
        if self.correction not in CORRECTIONS:
            raise ValueError(f"unknown correction {self.correction!r}: available are {', '.join(CORRECTIONS)}")
        if self.length_stages and (
            self.length_stages[0][0] != 0
            or [s for s, _ in self.length_stages] != sorted({s for s, _ in self.length_stages})
        ):
            raise ValueError(
                f"length_stages {self.length_stages} must begin at step 0 and rise: ((0, 8192), (500, 16384))"
            )
        low, high = self.reward_values
        if not low < high:
            raise ValueError(f"reward_values are {self.reward_values}: give the wrong answer's, then the right one's")
        if self.format_pattern is not None:
            re.compile(self.format_pattern)
        if self.prompts_per_step * self.samples % self.updates_per_rollout:
            raise ValueError(
                f"{self.prompts_per_step} prompts x {self.samples} samples do not divide into {self.updates_per_rollout} "
                "equal updates (updates_per_rollout)"
            )
        for step in (0, *(step for step, _ in self.length_stages)):
            self.objective(self.budget(step))
            self.sampling(step)

    def budget(self, step: int) -> int:
        """Response budget of a rollout in tokens."""
        found = [budget for first, budget in self.length_stages if first <= step]
        return found[-1] if found else self.max_new_tokens

    def sampling(self, step: int) -> SamplingSettings:
        return SamplingSettings(self.samples, self.budget(step), self.temperature, self.top_p)

    def objective(self, budget: int) -> grpo.Objective:
        gspo = self.loss == "gspo"
        return grpo.Objective(
            budget, "grpo" if gspo else self.loss, "sequence" if gspo else self.importance_level, self.clip_low, self.clip_high,  # type: ignore[arg-type]
            self.kl_coefficient, self.kl_estimator,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- log-probabilities


def completion_log_probs(
    model: nn.Module, input_ids: Tensor, mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token with its mask on, and the entropy (without gradient) of what it was drawn from, float32
    [B, L - 1], 0 elsewhere. input_ids: int64 [B, L], padded on the right; mask [B, L - 1] belongs to input_ids[:, 1:].

    Of the softmax of logits / temperature, as `rollout` has it. Only tokens with loss go through the head, some at a time.
    """
    hidden = model.hidden_states(input_ids[:, :-1])[mask]
    targets = input_ids[:, 1:][mask]

    def head(states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = (model.lm_head(states).float() / temperature).log_softmax(dim=-1)
        with torch.no_grad():
            entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
        return log_probs.gather(-1, wanted[:, None])[:, 0], entropy

    parts = list(zip(hidden.split(HEAD_TOKENS), targets.split(HEAD_TOKENS), strict=True))
    if len(parts) > 1 and torch.is_grad_enabled():
        found = [checkpoint(head, states, wanted, use_reentrant=False) for states, wanted in parts]
    else:
        found = [head(states, wanted) for states, wanted in parts]
    empty = torch.zeros(mask.shape, device=mask.device)
    log_probs, entropy = (torch.cat([part[i] for part in found]) for i in range(2))
    return empty.masked_scatter(mask, log_probs), empty.masked_scatter(mask, entropy)


# ------------------------------------------------------------------------------------------------------------------ stream


@dataclass(eq=False)
class Experience:
    """A rollout with its rewards, laid out for the trainer: tensors of N rows, prompt and completion joined [N, L], what belongs
    to a target [N, L - 1]. Everything in it can be saved in a checkpoint."""

    number: int
    version: int
    budget: int
    tensors: dict[str, Tensor]
    metrics: dict[str, float]


class RolloutStream:
    """Optimizer steps as `fitting.fit` reads them; makes rollouts with the model's weights of the moment."""

    def __init__(
        self, model: MoxinForCausalLM, reference: nn.Module | None, tokenizer: Any, problems: Sequence[Any], reward: grpo.Reward,
        engine: RolloutEngine, settings: GRPOSettings, seed: int,
    ) -> None:  # fmt: skip
        self._model, self._reference, self._tokenizer = model, reference, tokenizer
        self._problems, self._reward, self._engine, self._settings = problems, reward, engine, settings
        self._seed = seed
        self.num_steps = settings.steps * settings.updates_per_rollout
        self.examples_per_step = settings.prompts_per_step * settings.samples // settings.updates_per_rollout
        self._made = 0  # rollouts so far
        self._waiting: list[Experience] = []
        self._current: Experience | None = None
        self._mark = 0.0

    # What `fitting.fit` asks for.

    def batch(self, step: int, *, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        number, update = divmod(step, self._settings.updates_per_rollout)
        if self._current is None or self._current.number != number:
            self._current = self._next(number, step)
            self._mark = time.perf_counter()
        rows = self._rows_of(self._current)[update].reshape(parts, -1)[part]
        found = self._part(self._current.tensors, rows)
        own = self._totals(self._current)[update]
        shared = {
            "step_sequences": own.sequences, "step_tokens": own.tokens, "rollout_tokens": own.rollout_tokens,
            "budget": self._current.budget,
        }  # fmt: skip
        return found | {name: torch.tensor(float(value), dtype=torch.float64) for name, value in shared.items()}

    def describe(self, step: int) -> str:
        return f"rollout {step // self._settings.updates_per_rollout}"

    def finish(self, step: int, sums: dict[str, float]) -> dict[str, float]:
        """A step's row of the log, from the loss function's sums over it."""
        assert self._current is not None
        tokens = max(1.0, sums["tokens"])
        row = {**self._current.metrics, **grpo.metrics(sums), "staleness": float(step - self._current.version)}
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
                f"rollout {found.number} is next, step {step} reads {number}: was the resume folder mixed up?"
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
        seconds = {"seconds/weights": time.perf_counter() - begin, "seconds/rollout": 0.0, "seconds/reward": 0.0}
        chosen = self._draw(number)
        rollout, rewards, reasons, passed = self._judged(chosen, number, 0, seconds)
        first = self._advantages(rewards, len(chosen))
        ends = [self._tokenizer.eos_token_id]
        lengths = grpo.completion_mask(rollout.completion_ids, rollout.lengths, eos_ids=ends).metrics
        generated = int(rollout.completion_mask.sum())
        groups, replaced = first, 0
        for attempt in range(1, settings.resample_rounds + 1):
            flat = np.flatnonzero(groups.zero_variance)
            if not len(flat):
                break
            others = np.random.default_rng([self._seed, number, attempt]).permutation(len(self._problems))[: len(flat)]
            again, their_rewards, _, _ = self._judged(others.tolist(), number, attempt, seconds)
            generated += int(again.completion_mask.sum())
            useful = np.flatnonzero(~self._advantages(their_rewards, len(others)).zero_variance)
            replaced += len(useful)
            rollout, rewards = _replace(rollout, rewards, again, their_rewards, dict(zip(flat, useful, strict=False)))
            groups = self._advantages(rewards, len(chosen))
        metrics = {
            **first.metrics, **lengths, "tokens_per_second": generated / max(seconds["seconds/rollout"], 1e-9),
            "num_tokens": float(generated), **{f"verifier/{name}": float(reasons[name]) for name in REASONS if reasons},
            **seconds,
        }  # fmt: skip
        if settings.format_pattern is not None:
            metrics["format/passed_ratio"] = passed
        if settings.resample_rounds:
            metrics["resampled_groups"] = float(replaced)
            metrics["frac_groups_used"] = 1 - float(groups.zero_variance.mean())
        tensors = _lay_out(rollout, ends, settings.mask_truncated, self._tokenizer.pad_token_id)
        tensors["advantages"] = torch.from_numpy(groups.advantages)
        return Experience(number, rollout.version, settings.budget(number), tensors, metrics)

    def _judged(
        self, chosen: Sequence[int], number: int, attempt: int, seconds: dict[str, float]
    ) -> tuple[Rollout, np.ndarray, Counter[str], float]:
        """Completions of the chosen problems, their rewards, the verifier's reasons, and the share in the right format."""
        settings = self._settings
        problems = [self._problems[index] for index in chosen]
        seed = int(np.random.SeedSequence([self._seed, number, attempt]).generate_state(1)[0])
        begin = time.perf_counter()
        rollout = self._engine.generate([problem.prompt_ids for problem in problems], settings.sampling(number), seed)
        texts = rollout.texts(self._tokenizer)
        middle = time.perf_counter()
        rows = [problem for problem in problems for _ in range(settings.samples)]
        rewards = grpo.check_rewards(self._reward(rows, texts), len(rows))
        passed = np.ones(len(rows), dtype=bool)
        if settings.format_pattern is not None:
            passed = np.array([re.fullmatch(settings.format_pattern, text, re.DOTALL) is not None for text in texts])
        low, high = settings.reward_values
        rewards = low + (high - low) * np.where(passed, rewards, 0.0)
        seconds["seconds/rollout"] += middle - begin
        seconds["seconds/reward"] += time.perf_counter() - middle
        return rollout, rewards, Counter(getattr(self._reward, "reasons", {})), float(passed.mean())

    def _advantages(self, rewards: np.ndarray, count: int) -> grpo.Groups:
        keys = np.repeat(np.arange(count), self._settings.samples).tolist()
        settings = self._settings
        return grpo.group_advantages(
            rewards, keys, group_size=settings.samples, scale=settings.scale, baseline=settings.baseline
        )

    def _draw(self, number: int) -> list[int]:
        """The problems of a rollout: the set in a seeded order, a new one each time it is used up."""
        count, first = len(self._problems), number * self._settings.prompts_per_step
        places = range(first, first + self._settings.prompts_per_step)
        orders = {
            p // count: np.random.default_rng([self._seed, p // count]).permutation(count)
            for p in (places[0], places[-1])
        }
        return [int(orders[place // count][place % count]) for place in places]

    # Parts of a rollout.

    def _rows_of(self, experience: Experience) -> np.ndarray:
        """Rows of each update, [updates, rows]: seeded; within an update sorted by length, so that parts are padded little."""
        settings, lengths = self._settings, experience.tensors["lengths"].numpy()
        order = np.arange(len(lengths))
        if settings.updates_per_rollout > 1:
            order = np.random.default_rng([self._seed, experience.number, 1 << 20]).permutation(len(lengths))
        rows = order.reshape(settings.updates_per_rollout, -1)
        return np.stack([update[np.argsort(-lengths[update], kind="stable")] for update in rows])

    def _totals(self, experience: Experience) -> list[grpo.Totals]:
        return grpo.totals([experience.tensors["mask"][rows] for rows in self._rows_of(experience)])

    def _part(self, tensors: dict[str, Tensor], rows: np.ndarray) -> dict[str, Tensor]:
        width = int(tensors["lengths"][rows].max())
        cut = {"advantages": None, "lengths": None, "input_ids": width}
        return {name: tensor[rows][..., slice(cut.get(name, width - 1))] for name, tensor in tensors.items()}

    @torch.no_grad()
    def _log_probs(self, model: nn.Module, experience: Experience) -> Tensor:
        """Log-probabilities under `model`, [N, L - 1], in micro-batches."""
        tensors, device = experience.tensors, self._model.lm_head.weight.device
        found = torch.zeros(tensors["mask"].shape)
        order = np.argsort(-tensors["lengths"].numpy(), kind="stable")
        for start in range(0, len(order), self._settings.micro_batch_examples):
            rows = order[start : start + self._settings.micro_batch_examples]
            part = {name: value.to(device) for name, value in self._part(tensors, rows).items()}
            if bool(part["mask"].any()):
                with autocast(self._settings.precision, device):
                    values, _ = completion_log_probs(model, part["input_ids"], part["mask"], self._settings.temperature)
                found[rows, : values.shape[1]] = values.cpu()
        return found

    # What a checkpoint keeps.

    def state_dict(self) -> dict[str, Any]:
        kept = [vars(experience) for experience in self._waiting]
        return {"made": self._made, "waiting": kept, "current": self._current and vars(self._current)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._made = state["made"]
        self._waiting = [Experience(**values) for values in state["waiting"]]
        self._current = state["current"] and Experience(**state["current"])


class _Kept(Callback):
    """The stream's rollouts in Lightning's checkpoint."""

    def __init__(self, stream: RolloutStream) -> None:
        self._stream = stream

    def state_dict(self) -> dict[str, Any]:
        return self._stream.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._stream.load_state_dict(state_dict)


def _lay_out(rollout: Rollout, ends: Sequence[int], mask_truncated: bool, pad_id: int) -> dict[str, Tensor]:
    """input_ids int64 [N, L], mask and sampling_log_probs [N, L - 1], lengths [N] (prompt and completion)."""
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
    mask = generated & ~truncated[:, None] if mask_truncated else generated
    return {"input_ids": input_ids, "mask": mask[:, 1:], "sampling_log_probs": sampling[:, 1:], "lengths": lengths}


def _replace(
    rollout: Rollout, rewards: np.ndarray, other: Rollout, other_rewards: np.ndarray, groups: dict[Any, Any]
) -> tuple[Rollout, np.ndarray]:
    """`rollout` with group `old` replaced by `other`'s group `new`, for each old: new of `groups`."""
    samples, width = rollout.samples, max(rollout.completion_ids.shape[1], other.completion_ids.shape[1])

    def wider(tensor: Tensor) -> Tensor:
        return nn.functional.pad(tensor, (0, width - tensor.shape[1]))

    names = ("completion_ids", "completion_mask", "log_probs")
    mine, theirs = ({name: wider(getattr(r, name)) for name in names} for r in (rollout, other))
    prompts, finish, rewards = list(rollout.prompt_ids), list(rollout.finish_reasons), rewards.copy()
    for old, new in groups.items():
        for sample in range(samples):
            here, there = int(old) * samples + sample, int(new) * samples + sample
            prompts[here], finish[here] = other.prompt_ids[there], other.finish_reasons[there]
            rewards[here] = other_rewards[there]
            for name in names:
                mine[name][here] = theirs[name][there]
    seconds = rollout.seconds + other.seconds
    return Rollout(
        prompts, **mine, finish_reasons=finish, samples=samples, version=rollout.version, seconds=seconds
    ), rewards


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """What Lightning does to a training step, for forward passes beside it."""
    dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else nullcontext()


# ---------------------------------------------------------------------------------------------------------------- training


def grpo_loss(settings: GRPOSettings) -> fitting.LossFunction:
    """The loss function for `fitting.fit` over a `RolloutStream`."""

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        mask, sampling = batch["mask"], batch["sampling_log_probs"]
        log_probs, entropies = completion_log_probs(model, batch["input_ids"], mask, settings.temperature)
        old = batch.get("old_log_probs")
        if settings.correction == "naive":
            old = sampling
        start = log_probs.detach() if old is None else old
        weights, logged = None, {}
        if settings.correction == "decoupled":
            raw = (start - sampling).exp()
            weights = raw * (raw <= settings.behaviour_cap)
            logged = {"behaviour_weight": (raw * mask).sum(), "left_out": ((raw > settings.behaviour_cap) & mask).sum()}
        step = grpo.Totals(int(batch["step_sequences"]), int(batch["step_tokens"]), float(batch["rollout_tokens"]))
        sums = grpo.policy_loss(
            log_probs, batch["advantages"].float(), mask, step, settings.objective(int(batch["budget"])),
            old_log_probs=old, reference_log_probs=batch.get("reference_log_probs"), entropies=entropies,
            behaviour_weights=weights,
        )  # fmt: skip
        difference = ((log_probs.detach() - sampling).abs() * mask).double().sum()
        return {**sums, **logged, "logp_difference": difference}

    return loss


def train_grpo(
    model: MoxinForCausalLM,
    tokenizer: Any,
    problems: Sequence[Any],
    reward: grpo.Reward,
    settings: GRPOSettings,
    *,
    seed: int,
    resume_folder: Path,
    engine: RolloutEngine | None = None,
    log_file: Path | None = None,
    progress: fitting.Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Train `model` in place; the log, one row an optimizer step. The model as given is the KL's reference, so a run that goes on
    from `resume_folder` must be given the same.

    problems: `Problem`s, or what has `prompt_ids` (how an answer is judged is the reward's business). tokenizer: `eos_token_id`,
    `pad_token_id` and `batch_decode`. engine: default a `RingEngine` of this model on the device of the training.
    log_file: JSON lines (default: `log.jsonl` in resume_folder).
    Raises ValueError before the first rollout for an empty or too small prompt set, an empty prompt, a group of one, no budget, a
    reward that returns NaN or the wrong number of values, prompts that do not fit the positions, dropout, or several ranks.
    """
    budgets = [settings.budget(step) for step in (0, *(step for step, _ in settings.length_stages))]
    _check_problems(model, problems, max(budgets))
    grpo.check_run(
        problems, reward, group_size=settings.samples, max_completion_length=min(budgets),
        prompts_per_step=settings.prompts_per_step,
    )  # fmt: skip
    if world_size(with_defaults(trainer_options)) > 1:
        raise ValueError(
            "GRPO runs on one device here: set devices to 1 (rollouts of several ranks are not joined yet)"
        )
    wants_reference = settings.kl_coefficient > 0 or settings.log_kl
    reference = copy.deepcopy(model).eval().requires_grad_(False) if wants_reference else None
    stream = RolloutStream(
        model, reference, tokenizer, problems, reward, engine or _LazyRing(model, tokenizer), settings, seed
    )
    torch.manual_seed(seed)
    return fitting.fit(
        model, stream, settings, grpo_loss(settings), resume_folder=resume_folder, text="GRPO", progress=progress,
        trainer_options=trainer_options, rate=fitting.constant_rate, finish=stream.finish, callbacks=[_Kept(stream)],
        log_file=log_file or resume_folder / "log.jsonl",
    )  # fmt: skip


class _LazyRing:
    """A RingEngine made at the first rollout, when Lightning has moved the model to its device."""

    def __init__(self, model: MoxinForCausalLM, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._engine: RingEngine | None = None

    def update_weights(self, state_dict: Any, version: int) -> None:
        if self._engine is None:
            ids = {"eos_token_id": self._tokenizer.eos_token_id, "pad_token_id": self._tokenizer.pad_token_id}
            self._engine = RingEngine(self._model, **ids)
        self._engine.update_weights(state_dict, version)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingSettings, seed: int) -> Rollout:
        assert self._engine is not None
        return self._engine.generate(prompts, sampling, seed)


def _check_problems(model: MoxinForCausalLM, problems: Sequence[HasPrompt], budget: int) -> None:
    config = model.config
    if config.attention_dropout or config.mlp_dropout:
        raise ValueError(
            "the model has dropout, so sampler and trainer would not agree: use `sft.with_dropout(model, 0.0)`"
        )
    for place, problem in enumerate(problems):
        tokens = len(problem.prompt_ids)
        if not tokens:
            raise ValueError(f"problem {place} has an empty prompt: encode its question first")
        if tokens + budget > config.max_position_embeddings:
            raise ValueError(
                f"problem {place} has {tokens} tokens; with a response budget of {budget} it exceeds the "
                f"{config.max_position_embeddings} positions: shorten it or lower max_new_tokens"
            )
