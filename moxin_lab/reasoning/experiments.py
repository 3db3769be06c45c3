"""Stage 06 as functions: questions, chain-of-thought fine-tuning, GRPO, sampled answers, pass@k and
its tables.

    instruct model ─ fine_tune (traces) ─► CoT model ─ train_grpo (answers alone) ─► reasoning model
                                               └─ fine_tune (same compute) ─► SFT for as long
    every model: `answer` samples n completions per test question, the verifier judges each

Guarantees: no test question is in either training part, and the two parts share none
(`tasks.part_of`); sampled answers depend on weights, question and seed alone.
Out of scope: choosing settings, training by reinforcement (grpo_trainer.py), computing intervals
(the caller passes them in).
"""

import copy
import math
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
from moxin_lab.posttraining import chat, experiments, tables
from moxin_lab.reasoning import asynchronous, datasets
from moxin_lab.reasoning.grpo_trainer import Problem, train_grpo
from moxin_lab.reasoning.rewards import WeightedReward
from moxin_lab.reasoning.ring_engine import RingEngine, engine_options
from moxin_lab.reasoning.rollout import SamplingSettings
from moxin_lab.reasoning.tasks import GROUPS, Task, draw_all, judge, part_of, shown_question
from moxin_lab.scales.sections import GRPOSettings, ReasoningSettings
from moxin_lab.verifier.extraction import BOX_AT_END
from moxin_lab.verifier.verifier import REASONS, Verifier

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
        _problems(tasks, tokenizer),
        WeightedReward(chosen.rewards, verifier),
        chosen,
        seed=seed,
        resume_folder=folder,
        log_file=folder / "log.jsonl",
        decoding=settings.decoding,
        progress=progress,
    )
    return trained.eval().to(device), log


def areal(settings: ReasoningSettings) -> ReasoningSettings:
    """The settings with the values of their `areal` section in GRPO's place: AReaL's variant for
    `reinforce`.
    """
    if settings.areal is None:
        raise ValueError("the scale has no `areal` section, so there is no variant to train")
    return settings.model_copy(
        update={"grpo": settings.grpo.model_copy(update=settings.areal.model_dump())}
    )


def staleness_runs(
    model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: Questions,
    verifier: Verifier,
    settings: ReasoningSettings,
    *,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The grid of the scale's `staleness_experiment`, each run from a copy of the model: columns as
    `asynchronous.COLUMNS`. `judged` is pass@1 on the test questions of the trained families, the
    same completions' seed for all runs.
    """
    experiment = settings.staleness_experiment
    if experiment is None:
        raise ValueError("the scale has no `staleness_experiment` section, so there is no grid")
    own = {
        name: getattr(experiment, name) for name in ("steps", "prompts_per_step", "learning_rate")
    }
    chosen = GRPOSettings(**(settings.grpo.model_dump() | own | {"format_pattern": BOX_AT_END}))
    tests = {"in-family": asked.tests["in-family"]}
    return asynchronous.staleness_grid(
        lambda: copy.deepcopy(model),
        tokenizer,
        _problems(asked.problems, tokenizer),
        WeightedReward(chosen.rewards, verifier),
        chosen,
        seeds=range(seed, seed + experiment.seeds),
        judge=lambda trained: answer(
            trained, tokenizer, tests, verifier, settings=settings, seed=seed
        )["right"].mean(),
        staleness=experiment.levels,
        decoding=settings.decoding,
        folder=folder,
        progress=progress,
    )


def staleness_ends(grid: pd.DataFrame) -> pd.DataFrame:
    """One row per run of the grid: `pass_at_1` of its last weights, and how many times faster than
    synchronous it would have been.
    """
    ends = grid.groupby(["staleness", "objective", "seed"], sort=False).last().reset_index()
    ends["times_faster"] = ends["seconds_synchronous"] / ends["seconds"]
    return ends.rename(columns={"judged": "pass_at_1"})[
        ["staleness", "objective", "seed", "pass_at_1", "times_faster"]
    ]


def staleness_table(ends: pd.DataFrame, interval: Callable[[Any], Any]) -> pd.DataFrame:
    """`staleness_ends` over seeds, one row per objective and staleness: columns `pass_at_1`, `low`,
    `high` by `interval(values)`, `times_faster` (mean). Then differences of equal seeds, which have
    no `times_faster`: `decoupled - naive` at each staleness, and each objective against its own
    staleness 0.
    """
    by_seed = ends.pivot(index=["objective", "staleness"], columns="seed", values="pass_at_1")
    names = list(by_seed.index.unique("objective"))
    gaps = {}
    if {"naive", "decoupled"} <= set(names):
        gaps["decoupled - naive"] = by_seed.loc["decoupled"] - by_seed.loc["naive"]
    for name in names:
        if 0 in by_seed.loc[name].index:
            gaps[f"{name} - {name} at 0"] = by_seed.loc[name].drop(0) - by_seed.loc[(name, 0)]
    by_seed = pd.concat([by_seed, pd.concat(gaps, names=["objective"])]) if gaps else by_seed
    found = [interval(values) for values in by_seed.to_numpy()]
    columns = {"pass_at_1": "value", "low": "low", "high": "high"}
    table = pd.DataFrame(
        {name: [getattr(estimate, part) for estimate in found] for name, part in columns.items()},
        index=by_seed.index,
    )
    faster = ends.groupby(["objective", "staleness"])["times_faster"].mean()
    return table.assign(times_faster=faster.reindex(table.index))


def _problems(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerFast) -> list[Problem]:
    return [
        Problem(chat.encode_prompt(task.prompt(), tokenizer), task.answer, task.family, task=task)
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
    lengths = [len(chat.encode_prompt(task.prompt(), tokenizer)) for task in problems]
    return forward_tokens(log, sum(lengths) / len(lengths), settings)


def step_seconds(log: pd.DataFrame) -> pd.DataFrame:
    """Seconds of all steps by part of a step, and their share: columns seconds and share."""
    names = [name for name in log if name.startswith("seconds/") and name != "seconds/step"]
    seconds = log[names].sum().rename("seconds").rename_axis("part of a step")
    seconds.index = seconds.index.str.removeprefix("seconds/")
    return seconds.to_frame().assign(share=seconds / log["seconds/step"].sum())


# --------------------------------------------------------------------------------------------------
# evaluation


def answer(
    model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tests: Mapping[str, Sequence[Task]],
    verifier: Verifier,
    *,
    settings: ReasoningSettings,
    seed: int,
) -> pd.DataFrame:
    """`settings.num_generations_eval` sampled completions of each test question, judged. One row
    per completion: `group`, `family`, `item` (index among all tests), `sample`, `text`, `answer`
    (as extracted), `reason`, `right`, `tokens`, `ended`.
    """
    tasks = [task for group in tests.values() for task in group]
    sampling = SamplingSettings(
        num_generations=settings.num_generations_eval,
        max_completion_length=settings.grpo.max_completion_length,
        temperature=settings.grpo.temperature,
    )
    engine = RingEngine(
        model,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_rows=settings.answer_rows,
        **engine_options(settings.decoding),
    )
    rollout = engine.generate(
        [chat.encode_prompt(task.prompt(), tokenizer) for task in tasks], sampling, seed
    )
    ended = [reason == "eos" for reason in rollout.finish_reasons]
    return judged(
        rollout.texts(tokenizer), tests, verifier, num_generations=settings.num_generations_eval
    ).assign(tokens=rollout.lengths.numpy(), ended=ended)


def judged(
    texts: Sequence[str],
    tests: Mapping[str, Sequence[Task]],
    verifier: Verifier,
    *,
    num_generations: int,
) -> pd.DataFrame:
    """`answer`'s columns without lengths for given texts, `num_generations` in a row for
    each test question.
    """
    places = [
        (group, task)
        for group, tasks in tests.items()
        for task in tasks
        for _ in range(num_generations)
    ]
    verdicts = judge(verifier, texts, [task for _, task in places])
    return pd.DataFrame(
        {
            "group": [group for group, _ in places],
            "family": [task.family for _, task in places],
            "item": np.arange(len(places)) // num_generations,
            "sample": np.arange(len(places)) % num_generations,
            "text": list(texts),
            "answer": [verdict.answer for verdict in verdicts],
            "reason": [verdict.reason for verdict in verdicts],
            "right": [verdict.correct for verdict in verdicts],
        }
    )


def pass_at_k(right: Any, samples: Any, k: int) -> np.ndarray:
    """Chance that at least one of k completions is right, an item, from `right` of `samples`
    sampled ones; float64.

    1 - C(n - c, k) / C(n, k), unbiased for k <= n (Chen et al. 2021, arXiv 2107.03374, section
    2.1). Raises ValueError for k > n.
    """
    counts, totals = np.broadcast_arrays(
        np.asarray(right, dtype=np.int64), np.asarray(samples, dtype=np.int64)
    )
    if k < 1 or (totals < k).any() or (counts < 0).any() or (counts > totals).any():
        raise ValueError(
            f"pass@{k} needs 1 <= k <= samples and 0 <= right <= samples; there are {totals.min()} "
            "samples"
        )
    return np.array(
        [
            1 - math.comb(n - c, k) / math.comb(n, k)
            for c, n in zip(counts.flat, totals.flat, strict=True)
        ]
    )


def items(found: pd.DataFrame, k: int) -> pd.Series:
    """pass@k of each item, in the order of the tests, indexed by (group, item)."""
    grouped = found.groupby(["group", "item"], sort=False)["right"]
    counts = grouped.agg(["sum", "size"])
    return pd.Series(pass_at_k(counts["sum"], counts["size"], k), index=counts.index)


def pass_table(
    found: Mapping[str, pd.DataFrame], ks: Sequence[int], interval: Callable[[Any], Any]
) -> pd.DataFrame:
    """pass@k by model, group and k with `interval(values of items)`: columns model, group, k,
    value, low, high, items. A model with fewer than k samples an item (the majority answer has one)
    has no row for k.
    """
    rows = []
    for model, frame in found.items():
        for k in ks:
            if frame["sample"].max() + 1 < k:
                continue
            values = items(frame, k)
            for group in values.index.unique("group"):
                chosen = values[group]
                rows.append(
                    {
                        "model": model,
                        "group": group,
                        "k": k,
                        **interval(chosen.to_numpy())._asdict(),
                        "items": len(chosen),
                    }
                )
    return pd.DataFrame(rows)


def difference_table(
    found: Mapping[str, pd.DataFrame],
    pairs: Sequence[tuple[str, str]],
    ks: Sequence[int],
    paired: Callable[[Any, Any], Any],
) -> pd.DataFrame:
    """First minus second of each pair on the same items with `paired(first, second)`: columns
    first, second, group, k, value, low, high.
    """
    rows = []
    for first, second in pairs:
        for k in ks:
            if min(found[name]["sample"].max() + 1 for name in (first, second)) < k:
                continue
            a, b = items(found[first], k), items(found[second], k)
            for group in a.index.unique("group"):
                estimate = paired(a[group].to_numpy(), b[group].to_numpy())
                rows.append(
                    {"first": first, "second": second, "group": group, "k": k, **estimate._asdict()}
                )
    return pd.DataFrame(rows)


def seed_table(
    by_seed: Mapping[int, Mapping[str, pd.DataFrame]], paired: Callable[[Any, Any], Any]
) -> pd.DataFrame:
    """pass@1 of `CoT-SFT` and `GRPO` by seed and group, the gain, and `paired`'s interval of it
    over questions.
    """
    rows = []
    for seed, found in by_seed.items():
        before, after = items(found["CoT-SFT"], 1), items(found["GRPO"], 1)
        for group in before.index.unique("group"):
            estimate = paired(after[group].to_numpy(), before[group].to_numpy())
            shares = {"CoT-SFT": before[group].mean(), "GRPO": after[group].mean()}
            gain = {"gain": estimate.value, "low": estimate.low, "high": estimate.high}
            rows.append({"seed": seed, "group": group, **shares, **gain})
    return pd.DataFrame(rows).set_index("seed")


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """`pass_table` for readers: one row per model and k, one column per group, as text with the
    interval.
    """
    text = [f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})" for row in table.itertuples()]
    shown = table.assign(
        text=text, label=[f"{row.model}, pass@{row.k}" for row in table.itertuples()]
    )
    rows = shown.pivot(index="label", columns="group", values="text")
    groups = [group for group in GROUPS if group in rows]
    return rows.loc[list(dict.fromkeys(shown["label"])), groups].rename_axis("model")


def reasons(found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How many of each model's completions got each of the verifier's reasons."""
    counts = {name: frame["reason"].value_counts() for name, frame in found.items()}
    return pd.DataFrame(counts).reindex(list(REASONS)).fillna(0).astype(int).rename_axis("reason")


def samples(
    tests: Mapping[str, Sequence[Task]], found: Mapping[str, pd.DataFrame], *, each: int
) -> pd.DataFrame:
    """The first `each` questions of each group, unselected, the reference answer, and each model's
    first sample on one line.
    """
    rows, start = [], 0
    for group, tasks in tests.items():
        for place, task in enumerate(tasks[:each]):
            texts = {
                name: frame[(frame["item"] == start + place) & (frame["sample"] == 0)]["text"].iloc[
                    0
                ]
                for name, frame in found.items()
            }
            shown = {
                name: tables.short(text.replace("\n", " ⏎ "), 70) for name, text in texts.items()
            }
            question = shown_question(task, 60)
            rows.append(
                {
                    "group": group,
                    "question": question,
                    "reference": tables.short(task.answer, 24),
                    **shown,
                }
            )
        start += len(tasks)
    return pd.DataFrame(rows).set_index("group")


def repeat(
    start: Path,
    encoded: Sequence[chat.Encoded],
    asked: Questions,
    tokenizer: PreTrainedTokenizerFast,
    verifier: Verifier,
    settings: ReasoningSettings,
    *,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
) -> dict[str, pd.DataFrame]:
    """Chain-of-thought fine-tuning and GRPO with another seed: what `answer` gives for both
    models.
    """
    options: dict[str, Any] = {"seed": seed, "progress": progress}
    pad_id = tokenizer.pad_token_id
    tuned, _ = experiments.fine_tune(
        start, encoded, settings, pad_id=pad_id, folder=folder / "cot", **options
    )
    trained, _ = reinforce(
        tuned, tokenizer, asked.problems, verifier, settings, folder=folder / "grpo", **options
    )
    return {
        name: answer(model, tokenizer, asked.tests, verifier, settings=settings, seed=seed)
        for name, model in (("CoT-SFT", tuned), ("GRPO", trained))
    }
