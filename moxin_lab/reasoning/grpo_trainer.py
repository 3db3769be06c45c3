"""GRPO as a training: problems -> rollout -> reward -> advantages -> optimizer step, on the trainer
of `training/fit.py`.

    step s: prompts of (seed, s) -> engine.generate -> texts -> reward -> group_advantages
                                          ^                                  |  parts
                 weights, after each update <--------- policy_loss <---------+  (micro-batches)

`train_grpo` runs it; rollout_stream.py samples and cuts the rollouts. A rollout is sampled when the
first step that trains on it begins, or `staleness` rollouts earlier (asynchronous.py). Log: one row
per optimizer step under the names that TRL and `diagnose.py` use, as a table and as JSON lines.

Guarantees: a step does not depend on how it is cut into micro-batches; equal seeds give equal bytes
on the CPU (all columns but `seconds/*` and `tokens_per_second`); a killed run continues as if it
had not been killed, waiting rollouts included; what cannot work is refused before the first rollout
(tests/reasoning/test_grpo_trainer.py); several ranks share prompts and gradients and learn what one
would from the same completions (test_grpo_ranks.py).
Out of scope: judging answers (a reward does), evaluating (the notebook does), sharding a model.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from moxin_lab.lab.progress import Progress
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.reasoning import grpo
from moxin_lab.reasoning.advantages import Reward, check_run
from moxin_lab.reasoning.log_probs import completion_log_probs
from moxin_lab.reasoning.ring_engine import RingEngine, engine_options
from moxin_lab.reasoning.rollout import (
    Decoding,
    Rollout,
    RolloutEngine,
    SamplingSettings,
    end_token_ids,
)
from moxin_lab.reasoning.rollout_requests import HasPrompt, max_completion_length_of
from moxin_lab.reasoning.rollout_stream import CheckpointedRollouts, RolloutStream
from moxin_lab.reasoning.weight_probe import WeightProbe
from moxin_lab.scales.sections import GRPOSettings
from moxin_lab.training import schedules
from moxin_lab.training.fit import LossFunction, fit_language_model
from moxin_lab.training.resume import with_defaults, world_size

Correction = Literal["none", "naive", "decoupled"]


@dataclass(frozen=True)
class Problem:
    """A prompt as token ids and the correct answer. family, difficulty: for tables. task: for the
    reward.
    """

    prompt_ids: Sequence[int]
    answer: str
    family: str = ""
    difficulty: int = 0
    task: Any = None


# --------------------------------------------------------------------------------------------------
# settings


def objective_of(settings: GRPOSettings, max_completion_length: int) -> grpo.Objective:
    """The loss of these settings, with the response budget of one rollout."""
    gspo = settings.loss_type == "gspo"
    return grpo.Objective(
        max_completion_length,
        "grpo" if gspo else settings.loss_type,  # type: ignore[arg-type]
        "sequence" if gspo else settings.importance_sampling_level,
        settings.epsilon_low,
        settings.epsilon_high,
        settings.kl_coef,
        settings.kl_estimator,
        settings.entropy_coef,
    )


# --------------------------------------------------------------------------------------------------
# training


def grpo_loss(settings: GRPOSettings) -> LossFunction:
    """The loss function for `fit_language_model` over a `RolloutStream`."""

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        mask, sampling = batch["mask"], batch["sampling_log_probs"]  # [B, L - 1]
        log_probs, entropies = completion_log_probs(
            model,
            batch["input_ids"],
            mask,
            settings.temperature,
            entropy_gradient=settings.entropy_coef > 0,
        )
        old = batch.get("old_log_probs")
        if settings.correction == "naive":
            old = sampling
        start = log_probs.detach() if old is None else old
        weights, logged = None, {}
        if settings.correction == "decoupled":
            # Bounded like every ratio: 0 x infinity would be NaN.
            ratio = grpo.ratios(start, sampling, mask, "token")  # [B, L - 1]
            beyond_cap = ratio > settings.behaviour_cap
            weights = ratio.masked_fill(beyond_cap, 0.0)
            logged = {
                "behaviour_weight": (ratio * mask).sum(),
                "left_out": (beyond_cap & mask).sum(),
            }
        step = grpo.Totals(
            int(batch["step_sequences"]), int(batch["step_tokens"]), float(batch["rollout_tokens"])
        )
        sums = grpo.policy_loss(
            log_probs,
            batch["advantages"].float(),
            mask,
            step,
            objective_of(settings, int(batch["max_completion_length"])),
            old_log_probs=old,
            reference_log_probs=batch.get("reference_log_probs"),
            entropies=entropies,
            behaviour_weights=weights,
        )
        difference = ((log_probs.detach() - sampling).abs() * mask).double().sum()
        return {**sums, **logged, "logp_difference": difference}

    return loss


def train_grpo(
    model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[HasPrompt],
    reward: Reward,
    settings: GRPOSettings,
    *,
    seed: int,
    resume_folder: Path,
    engine: RolloutEngine | None = None,
    decoding: Decoding = "graph",
    eos_token_id: int | Sequence[int] | None = None,
    check_weights: bool = True,
    log_file: Path | None = None,
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Train `model` in place; returns the log, one row per optimizer step.

    The model as given is the KL's reference, so a run that continues from `resume_folder` must be
    given the same start model.

    problems: `Problem`s, or other objects with `prompt_ids`; their other fields are for the reward.
    tokenizer: only `eos_token_id`, `pad_token_id` and `batch_decode` are used. engine: default a
    `RingEngine` of this model on the device of the training, with the options that `decoding` names
    (`ring_engine.engine_options`). eos_token_id: one id or several that end a completion (default:
    the tokenizer's). check_weights: probe the engine after each update of its weights
    (weight_probe.py). log_file: JSON lines (default: `log.jsonl` in resume_folder).

    Raises ValueError before the first rollout for an empty or too small prompt set, an empty
    prompt, a reward that returns NaN or the wrong number of values, prompts that do not fit the
    positions, dropout, or fewer prompts than ranks; StaleWeightsError for an engine that ignores an
    update.
    """
    first_rollouts = (0, *(first for first, _ in settings.length_stages))
    budgets = [max_completion_length_of(settings, index) for index in first_rollouts]
    _check_problems(model, problems, max(budgets))
    check_run(
        problems,
        reward,
        num_generations=settings.num_generations,
        max_completion_length=min(budgets),
        prompts_per_step=settings.prompts_per_step,
    )
    ranks = world_size(with_defaults(trainer_options))
    if settings.prompts_per_step < ranks:
        raise ValueError(
            f"{settings.prompts_per_step} prompts per step are fewer than {ranks} ranks: give each "
            "one or more"
        )
    ends = end_token_ids(tokenizer.eos_token_id if eos_token_id is None else eos_token_id)
    probe = None
    if check_weights:
        probe = WeightProbe(problems[0].prompt_ids, min(budgets), settings.temperature)
    needs_reference = settings.kl_coef > 0 or settings.log_kl
    reference = copy.deepcopy(model).eval().requires_grad_(False) if needs_reference else None
    stream = RolloutStream(
        model,
        reference,
        tokenizer,
        problems,
        reward,
        engine or _LazyRing(model, ends, tokenizer.pad_token_id, decoding),
        settings,
        seed,
        eos_token_id=ends,
        probe=probe,
    )
    torch.manual_seed(seed)
    return fit_language_model(
        model,
        stream,
        settings,
        grpo_loss(settings),
        resume_folder=resume_folder,
        text="GRPO",
        progress=progress,
        trainer_options=trainer_options,
        rate=schedules.constant,
        finish=stream.finish,
        callbacks=[CheckpointedRollouts(stream)],
        log_file=log_file or resume_folder / "log.jsonl",
    )


class _LazyRing:
    """A RingEngine created at the first rollout: by then Lightning has moved the model."""

    def __init__(
        self,
        model: MoxinForCausalLM,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        decoding: Decoding,
    ) -> None:
        self._model, self._options = model, engine_options(decoding)
        self._eos_token_ids, self._pad_token_id = eos_token_ids, pad_token_id
        self._engine: RingEngine | None = None

    def update_weights(self, state_dict: Mapping[str, Tensor], version: int) -> None:
        if self._engine is None:
            self._engine = RingEngine(
                self._model,
                eos_token_id=self._eos_token_ids,
                pad_token_id=self._pad_token_id,
                **self._options,
            )
        self._engine.update_weights(state_dict, version)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingSettings, seed: int
    ) -> Rollout:
        assert self._engine is not None
        return self._engine.generate(prompts, sampling, seed)


def _check_problems(model: MoxinForCausalLM, problems: Sequence[HasPrompt], budget: int) -> None:
    config = model.config
    if config.attention_dropout or config.mlp_dropout:
        raise ValueError(
            "the model has dropout, so sampler and trainer would not agree: use "
            "`sft.with_dropout(model, 0.0)`"
        )
    for index, problem in enumerate(problems):
        tokens = len(problem.prompt_ids)
        if not tokens:
            raise ValueError(f"problem {index} has an empty prompt: encode its question first")
        if tokens + budget > config.max_position_embeddings:
            raise ValueError(
                f"problem {index} has {tokens} tokens; with a response budget of {budget} it "
                f"exceeds the {config.max_position_embeddings} positions: shorten it or lower "
                "max_completion_length"
            )
