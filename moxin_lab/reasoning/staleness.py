"""The experiment on stale rollouts of stage 06: the grid of the scale file, judged by the last
weights of each run.

    running = start_runs(...)           # at once where there is a GPU
    grid = joined(running.results())    # one row per rollout of every run

Guarantees: every run starts from a copy of the same model and is asked the same questions.
Out of scope: training asynchronously (`asynchronous`).
"""

import copy
from collections.abc import Callable, Mapping
from itertools import product
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
from moxin_lab.training import side_by_side
from moxin_lab.verifier.extraction import BOX_AT_END
from moxin_lab.verifier.verifier import Verifier


def start_runs(
    model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: Questions,
    settings: ReasoningSettings,
    *,
    seed: int,
    folder: Path,
) -> side_by_side.Running[str]:
    """Begin the grid of the scale's `staleness_experiment`: a call of `one_run` for each level,
    objective and seed. Raises ValueError if the scale has no such section.
    """
    experiment = settings.staleness_experiment
    if experiment is None:
        raise ValueError("the scale has no `staleness_experiment` section, so there is no grid")
    plans = product(experiment.levels, asynchronous.OBJECTIVES, range(experiment.seeds))
    calls = {
        f"staleness {level}, {objective}, seed {seed + other}": {
            "level": level,
            "objective": objective,
            "seed": seed + other,
        }
        for level, objective, other in plans
    }
    shared = {"model": model, "tokenizer": tokenizer, "asked": asked, "settings": settings}
    shared |= {"judged_with": seed, "folder": folder}
    return side_by_side.start(one_run, calls, shared=shared)


def one_run(
    model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: Questions,
    settings: ReasoningSettings,
    *,
    level: int,
    objective: asynchronous.Correction,
    seed: int,
    judged_with: int,
    folder: Path,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """One training of the grid, from a copy of the model: columns as `asynchronous.COLUMNS`.
    `judged` is pass@1 on the test questions of the trained families, whose completions have the
    seed `judged_with`, the same for all runs.
    """
    experiment = settings.staleness_experiment
    assert experiment is not None  # `start_runs` has seen to it
    own = {
        name: getattr(experiment, name) for name in ("steps", "prompts_per_step", "learning_rate")
    }
    chosen = GRPOSettings(**(settings.grpo.model_dump() | own | {"format_pattern": BOX_AT_END}))
    tests = {"in-family": asked.tests["in-family"]}
    with Verifier(lazy=True) as verifier:
        return asynchronous.staleness_grid(
            lambda: copy.deepcopy(model),
            tokenizer,
            problems_of(asked.problems, tokenizer),
            WeightedReward(chosen.rewards, verifier),
            chosen,
            seeds=(seed,),
            judge=lambda trained: answers.answer(
                trained, tokenizer, tests, verifier, settings=settings, seed=judged_with
            )["right"].mean(),
            staleness=(level,),
            objectives=(objective,),
            decoding=settings.decoding,
            folder=folder,
            progress=progress,
        )


def joined(runs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What `one_run` returned for each call, as one table."""
    return pd.concat(runs.values(), ignore_index=True)


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
