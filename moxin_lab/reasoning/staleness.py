"""The experiment on stale rollouts of stage 06: the grid of the scale file, judged by the last
weights of each run.

Guarantees: every run starts from a copy of the same model and is asked the same questions.
Out of scope: training asynchronously (`asynchronous`).
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerFast

from moxin_lab.lab.progress import Progress
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.reasoning import answers, asynchronous
from moxin_lab.reasoning.experiments import Questions, problems_of
from moxin_lab.reasoning.rewards import WeightedReward
from moxin_lab.scales.sections import GRPOSettings, ReasoningSettings
from moxin_lab.verifier.extraction import BOX_AT_END
from moxin_lab.verifier.verifier import Verifier


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
        problems_of(asked.problems, tokenizer),
        WeightedReward(chosen.rewards, verifier),
        chosen,
        seeds=range(seed, seed + experiment.seeds),
        judge=lambda trained: answers.answer(
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
