"""Stage 06 as functions: questions, chain-of-thought fine-tuning, GRPO, and what they cost.

    instruct model ─ fine_tune (traces) ─► CoT model ─ train_grpo (answers alone) ─► reasoning model
                                               └─ fine_tune (same compute) ─► SFT for as long
    every model: `answers.answer` samples completions, the verifier judges each

Guarantees: no test question is in either training part, and the two parts share none
(`tasks.part_of`).
Out of scope: choosing settings, training by reinforcement (grpo_trainer.py), pass@k (answers.py).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerFast

from moxin_lab.lab.progress import Progress
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.experiments import new_model
from moxin_lab.posttraining import chat, experiments, inputs
from moxin_lab.posttraining.prompts import encode_prompt
from moxin_lab.reasoning import answers, datasets, diagnose
from moxin_lab.reasoning.grpo_trainer import Problem, train_grpo
from moxin_lab.reasoning.rewards import WeightedReward
from moxin_lab.reasoning.tasks import GROUPS, Task, draw_all, part_of
from moxin_lab.scales.sections import GRPOSettings, ReasoningSettings
from moxin_lab.training import side_by_side
from moxin_lab.verifier.extraction import BOX_AT_END
from moxin_lab.verifier.verifier import Verifier

BACKWARD = 2
"""Forward passes that a backward pass costs (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)."""

SHOWN = {
    "sft": (
        "epochs",
        "examples_per_step",
        "max_tokens",
        "learning_rate",
        "warmup_ratio",
        "reduction",
        "precision",
    ),
    "grpo": (
        "steps",
        "prompts_per_step",
        "num_generations",
        "temperature",
        "max_completion_length",
        "learning_rate",
        "loss_type",
        "scale_rewards",
        "baseline",
        "epsilon_low",
        "epsilon_high",
        "kl_coef",
        "kl_estimator",
        "reward_values",
        "resample_rounds",
        "precision",
    ),
}


@dataclass(frozen=True)
class Questions:
    """cot: conversations with a trace. problems: tasks of GRPO. tests: by group. left_out: rows of
    hub sets, by reason.
    """

    cot: list[list[dict[str, str]]]
    problems: list[Task]
    tests: dict[str, list[Task]]
    left_out: dict[str, int]

    def all_tests(self) -> list[Task]:
        return [task for tasks in self.tests.values() for task in tasks]

    def table(self) -> pd.DataFrame:
        """Questions by family and use."""
        uses = {
            "GRPO problems": self.problems,
            **{f"test, {group}": tasks for group, tasks in self.tests.items()},
        }
        rows = [(use, task.family) for use, tasks in uses.items() for task in tasks]
        frame = pd.DataFrame(rows, columns=["use", "family"])
        return pd.crosstab(frame["family"], frame["use"])[list(uses)]

    def omitted(self) -> pd.DataFrame:
        """Rows of hub sets that are left out, by reason."""
        return pd.Series(self.left_out, name="rows").rename_axis("reason").to_frame()

    def first_problems(self, count: int) -> dict[str, Task]:
        """The first problem of each of the first families."""
        firsts: dict[str, Task] = {}
        for task in self.problems:
            firsts.setdefault(task.family, task)
        return dict(islice(firsts.items(), count))


def questions(
    settings: ReasoningSettings, *, seed: int, hub_path: Callable[[str], str] = str
) -> Questions:
    """Everything that the stage asks, from generators or from the hub sets.

    settings: a scale's `reasoning` section. hub_path: where a hub set is read, by its name there
    (`Stage.hub_path`).
    """
    common: dict[str, Any] = {"seed": seed}
    tests: dict[str, list[Task]] = {
        group: draw_all(families, part="test", count=settings.test_items, **common)
        if families
        else []
        for group, families in (("harder", settings.harder), ("new family", settings.new_families))
    }
    left_out: dict[str, int] = {}
    if settings.source == "hub":
        sources = [
            datasets.open_thoughts(settings.cot_examples, path=hub_path(datasets.OPEN_THOUGHTS)),
            datasets.open_r1(settings.cot_examples, path=hub_path(datasets.OPEN_R1)),
        ]
        problems_of = datasets.deepscaler(settings.problems, path=hub_path(datasets.DEEPSCALER))
        cot = [conversation for source in sources for conversation in source.rows]
        unique = list({task.question: task for task in problems_of.rows}.values())
        tests["in-family"] = [task for task in unique if part_of(task.question) == "test"]
        tests["in-family"] = tests["in-family"][: settings.test_items]
        problems = [task for task in unique if part_of(task.question) != "test"]
        held = {task.question for task in tests["in-family"]}
        apart = [
            conversation
            for conversation in cot
            if not any(turn["content"].strip() in held for turn in conversation)
        ]
        left_out = dict(
            sum(
                (source.left_out for source in (*sources, problems_of)),
                start=type(problems_of.left_out)(),
            )
        )
        left_out["asks a test question"] = len(cot) - len(apart)
        cot = apart
    else:
        # The section refuses generated questions without counts: a generator has no end.
        assert settings.cot_examples is not None and settings.problems is not None
        cot_tasks = draw_all(
            settings.families, part="cot", count=settings.cot_examples, traced=True, **common
        )
        cot = [task.conversation() for task in cot_tasks]
        problems = draw_all(
            settings.families, part="rl", count=settings.problems, traced=True, **common
        )
        tests["in-family"] = draw_all(
            settings.families, part="test", count=settings.test_items, **common
        )
        trained = {task.question for task in (*cot_tasks, *problems, *tests["in-family"])}
        for group in ("harder", "new family"):  # a harder range may hold an easy question
            tests[group] = [task for task in tests[group] if task.question not in trained]
    return Questions(
        cot, problems, {group: tests[group] for group in GROUPS if tests[group]}, left_out
    )


# --------------------------------------------------------------------------------------------------
# training


def encode(
    conversations: Sequence[Any], tokenizer: PreTrainedTokenizerFast, settings: ReasoningSettings
) -> tuple[list[chat.Encoded], pd.DataFrame]:
    """Traces as tokens, and those left out or cut by reason; an answer that is longer than the
    context is left out, never cut.
    """
    return chat.encode_all(
        conversations,
        tokenizer,
        max_tokens=settings.sft.max_tokens,
        max_refused_share=settings.max_refused_share,
    )


def for_as_long(
    encoded: Sequence[chat.Encoded], settings: ReasoningSettings, forward_tokens: float
) -> tuple[list[chat.Encoded], Any, float]:
    """Traces that cost as much fine-tuning as `forward_tokens` forward passes of a token, the
    settings for one pass over them, and what they cost.

    The traces are repeated in turns and cut at a whole step. A trained token counts 1 + BACKWARD.
    """
    size = settings.sft.examples_per_step
    each = float(np.mean([len(one) - 1 for one in encoded])) * (1 + BACKWARD)
    steps = max(1, round(forward_tokens / (each * size)))
    repeated = list(islice(cycle(encoded), steps * size))
    once = settings.model_copy(update={"sft": settings.sft.model_copy(update={"epochs": 1})})
    return repeated, once, float(sum(len(one) - 1 for one in repeated)) * (1 + BACKWARD)


def reinforce(
    model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[Task],
    verifier: Verifier,
    settings: ReasoningSettings,
    *,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
) -> tuple[Any, pd.DataFrame]:
    """A copy of the model after GRPO on the tasks, paid by the rewards of the scale, and its log.
    It is in evaluation mode.
    """
    # A gate and not a bonus, which would reward wrong answers in a box.
    chosen = GRPOSettings(**(settings.grpo.model_dump() | {"format_pattern": BOX_AT_END}))
    device = next(model.parameters()).device
    trained = copy.deepcopy(model)
    log = train_grpo(
        trained,
        tokenizer,
        problems_of(tasks, tokenizer),
        WeightedReward(chosen.rewards, verifier),
        chosen,
        seed=seed,
        resume_folder=folder,
        log_file=folder / "log.jsonl",
        decoding=settings.decoding,
        progress=progress,
    )
    return trained.eval().to(device), log


def reinforce_as_areal(
    model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: Questions,
    verifier: Verifier,
    settings: ReasoningSettings,
    **options: Any,
) -> Any:
    """The model of `reinforce` with AReaL's rewards and baseline. Options are those of
    `reinforce`.
    """
    variant = areal(settings)
    return reinforce(model, tokenizer, asked.problems, verifier, variant, **options)[0]


def before_and_after(
    parent: Path,
    cot_model: MoxinForCausalLM,
    longer_model: MoxinForCausalLM,
    grpo_model: MoxinForCausalLM,
    *,
    seed: int,
) -> dict[str, MoxinForCausalLM]:
    """The models that are compared, by name: one of random weights, the model of stage 05 in the
    folder `parent`, and those of this stage.
    """
    start = inputs.load(parent).eval()
    untrained = new_model(start.config, seed).eval()
    return {
        "untrained": untrained.to(start.lm_head.weight.device),
        "instruct": start,
        "CoT-SFT": cot_model,
        "SFT for as long": longer_model,
        "GRPO": grpo_model,
    }


def areal(settings: ReasoningSettings) -> ReasoningSettings:
    """The settings with the values of their `areal` section in GRPO's place: AReaL's variant for
    `reinforce`.
    """
    if settings.areal is None:
        raise ValueError("the scale has no `areal` section, so there is no variant to train")
    return settings.model_copy(
        update={"grpo": settings.grpo.model_copy(update=settings.areal.model_dump())}
    )


def problems_of(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerFast) -> list[Problem]:
    """The prompts of tasks as GRPO asks them."""
    return [
        Problem(encode_prompt(task.prompt(), tokenizer), task.answer, task.family, task=task)
        for task in tasks
    ]


def forward_tokens(log: pd.DataFrame, prompt_tokens: float, settings: ReasoningSettings) -> float:
    """What a GRPO run cost, in forward passes of one token: sampling 1 per token, the reference 1,
    training 1 + BACKWARD.

    prompt_tokens: mean length of a prompt. Sampling reads a prompt once for its whole group;
    training and reference once per row.
    """
    prompts, generations = settings.grpo.prompts_per_step, settings.grpo.num_generations
    sampled = log["num_tokens"].sum() + len(log) * prompts * prompt_tokens
    trained = (prompts * generations * (log["completions/mean_length"] + prompt_tokens)).sum()
    return float(sampled + (2 + BACKWARD) * trained)


def grpo_cost(
    log: pd.DataFrame,
    problems: Sequence[Task],
    tokenizer: PreTrainedTokenizerFast,
    settings: ReasoningSettings,
) -> float:
    """`forward_tokens` of a GRPO run on `problems`."""
    lengths = [len(encode_prompt(task.prompt(), tokenizer)) for task in problems]
    return forward_tokens(log, sum(lengths) / len(lengths), settings)


def diagnosis(log: pd.DataFrame, settings: ReasoningSettings) -> diagnose.Diagnosis:
    """What `diagnose` says of the log of `reinforce`."""
    chosen = settings.grpo
    return diagnose.diagnose(
        log,
        reward_range=chosen.reward_values,
        num_generations=chosen.num_generations,
        prompts_per_step=chosen.prompts_per_step,
    )


def over_steps(log: pd.DataFrame) -> pd.DataFrame:
    """Least, mean and greatest of lengths, cut completions, clipped tokens and the difference of
    log-probabilities between engine and model.
    """
    logged = [
        "completions/mean_length",
        "completions/clipped_ratio",
        "clip_ratio",
        "sampling/sampling_logp_difference/mean",
    ]
    return log[logged].agg(["min", "mean", "max"]).T.rename_axis("logged")


def save_log(
    folder: Path, steps: Mapping[str, pd.DataFrame | None], found: Mapping[str, pd.DataFrame]
) -> None:
    """The artifact `reasoning_log`: logs of the trainings that ran, and all judged completions."""
    folder.mkdir()
    for name, log in steps.items():
        if log is not None:
            log.to_parquet(folder / f"{name}.parquet")
    pd.concat(found, names=["model"]).to_parquet(folder / "answers.parquet")


def step_seconds(log: pd.DataFrame) -> pd.DataFrame:
    """Seconds of all steps by part of a step, and their share: columns seconds and share."""
    names = [name for name in log if name.startswith("seconds/") and name != "seconds/step"]
    seconds = log[names].sum().rename("seconds").rename_axis("part of a step")
    seconds.index = seconds.index.str.removeprefix("seconds/")
    return seconds.to_frame().assign(share=seconds / log["seconds/step"].sum())


def start_seeds(
    start: Path,
    encoded: Sequence[chat.Encoded],
    asked: Questions,
    tokenizer: PreTrainedTokenizerFast,
    settings: ReasoningSettings,
    *,
    seed: int,
    folder: Path,
) -> side_by_side.Running[int]:
    """Begin `repeat` with the scale's seeds after the first; its results are by seed."""
    shared = {
        "start": start,
        "encoded": encoded,
        "asked": asked,
        "tokenizer": tokenizer,
        "settings": settings,
    }
    return side_by_side.start_other_seeds(
        repeat, settings.seeds, shared=shared, seed=seed, folder=folder
    )


def repeat(
    start: Path,
    encoded: Sequence[chat.Encoded],
    asked: Questions,
    tokenizer: PreTrainedTokenizerFast,
    settings: ReasoningSettings,
    *,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
) -> dict[str, pd.DataFrame]:
    """Chain-of-thought fine-tuning and GRPO with another seed: what `answer` gives for both
    models. Has a verifier of its own, so that it can run in another process (`side_by_side`).
    """
    options: dict[str, Any] = {"seed": seed, "progress": progress}
    pad_id = tokenizer.pad_token_id
    tuned, _ = experiments.fine_tune(
        start, encoded, settings, pad_id=pad_id, folder=folder / "cot", **options
    )
    judging: dict[str, Any] = {"settings": settings, "seed": seed}
    with Verifier(lazy=True) as verifier:
        trained, _ = reinforce(
            tuned, tokenizer, asked.problems, verifier, settings, folder=folder / "grpo", **options
        )
        return {
            name: answers.answer(model, tokenizer, asked.tests, verifier, **judging)
            for name, model in (("CoT-SFT", tuned), ("GRPO", trained))
        }
