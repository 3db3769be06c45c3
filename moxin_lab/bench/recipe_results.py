"""What the trainings of `bench recipe` show: rates chosen, differences with intervals, verdicts by
rule, the ladder's fit, and the plan with what was not run.

    records   {id: {"training", "measures" or "failed", "flops", "seconds", ...}}, one per training
    jobs      each training in its place in an experiment (`recipe_arms.jobs`)

Guarantees: pure functions of jobs and records; a training that diverged or was not run is said,
never left out; an experiment gets a verdict from paired seeds alone.
Out of scope: running, drawing.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moxin_lab.bench import recipe_arms as arms
from moxin_lab.bench.recipe_arms import Experiment, Job, Measure
from moxin_lab.evaluation.statistics import seed_interval
from moxin_lab.model.config import MoxinConfig, training_flops_per_token
from moxin_lab.pretraining import power_law

Records = Mapping[str, dict[str, Any]]
FULL_TOKENS = 2e12


def rows(jobs: Sequence[Job], records: Records, digest: str) -> list[dict[str, Any]]:
    """One row for each job that has run. A training that two experiments share has a row in both,
    with one `training`.
    """
    found = []
    for job in jobs:
        record = records.get(job.training.id(digest))
        # Before its rate is chosen a job has the rule's, with which another one may have run.
        if record is None or not job.ready:
            continue
        one = job.training
        row = {
            "experiment": job.experiment,
            "arm": job.arm,
            "seed_weights": one.seed_weights,
            "seed_data": one.seed_data,
            "learning_rate": one.learning_rate,
            "steps": one.steps,
            "tokens": one.tokens,
            "training": one.id(digest),
        }
        kept = ("parameters", "flops", "seconds", "tokens_per_second", "loss", "failed")
        row |= {name: record[name] for name in kept if name in record}
        found.append(row | record.get("measures", {}))
    return found


def chosen_rates(
    sizes: arms.Sizes, scale: Any, records: Records, digest: str
) -> dict[str, dict[str, Any]]:
    """By optimizer: the learning rate that the validation half chooses, where the whole grid has
    run: `rate`, `at_edge`, and `validation` by rate (None: diverged).
    """
    found = {}
    for optimizer in ("adamw", "muon"):
        name = f"{optimizer}-rate"
        grid = [job for job in arms.jobs([name], sizes, scale, 1024, {}) if job.experiment == name]
        scored = {
            job.training.learning_rate: records[job.training.id(digest)].get("measures", {})
            for job in grid
            if job.training.id(digest) in records
        }
        good = {rate: one["validation"] for rate, one in scored.items() if one}
        if len(scored) < len(grid) or not good:
            continue
        rate = min(good, key=lambda one: good[one])
        found[optimizer] = {
            "rate": rate,
            "at_edge": rate in (min(scored), max(scored)),
            "validation": {f"{one:.3g}": good.get(one) for one in sorted(scored)},
        }
    return found


def differences(jobs: Sequence[Job], records: Records, digest: str) -> list[dict[str, Any]]:
    """One row for each pair experiment and measure: changed minus recipe over the seeds that both
    arms have, with its interval, beside the recipe's own mean and spread.
    """
    found = []
    for experiment in arms.PAIRS:
        sides = _sides(experiment, jobs, records, digest)
        if sides is None:
            continue
        recipe, changed = (
            {seed: record["measures"] for seed, record in side.items() if "measures" in record}
            for side in sides
        )
        both = sorted(set(recipe) & set(changed))
        for measure in list(recipe[both[0]]) if both else []:
            if measure == "validation":
                continue
            before, after = ([side[seed][measure] for seed in both] for side in (recipe, changed))
            each = [b - a for a, b in zip(before, after, strict=True)]
            interval = seed_interval(each)
            found.append(
                {
                    "experiment": experiment.name,
                    "measure": measure,
                    "recipe": statistics.fmean(before),
                    "recipe_spread": _finite(statistics.stdev(before) if both[1:] else math.nan),
                    "changed": statistics.fmean(after),
                    "difference": interval.value,
                    "low": _finite(interval.low),
                    "high": _finite(interval.high),
                    "seeds": len(both),
                    "by_seed": each,
                }
            )
    return found


def verdicts(
    jobs: Sequence[Job], records: Records, digest: str, differences: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """One row for each pair experiment and measure of its rule: `verdict` (better, worse, no
    difference seen, undecided) and `line`.
    """
    found = []
    for experiment in arms.PAIRS:
        if not any(job.experiment == experiment.name for job in jobs):
            continue
        failed = _failures(experiment, jobs, records, digest)
        for measure in experiment.measures:
            row = next(
                (
                    one
                    for one in differences
                    if (one["experiment"], one["measure"]) == (experiment.name, measure.name)
                ),
                None,
            )
            verdict, line = verdict_of(experiment, measure, row, failed)
            found.append(
                {
                    "experiment": experiment.name,
                    "measure": measure.name,
                    "verdict": verdict,
                    "line": line,
                    "claims": list(experiment.claims),
                }
            )
    return found


def verdict_of(
    experiment: Experiment, measure: Measure, row: Mapping[str, Any] | None, failed: Sequence[str]
) -> tuple[str, str]:
    """The rule of `recipe_arms.RULE` on one row of `differences`."""
    where = f"{experiment.changed} against {experiment.recipe}, {measure.words}"
    if failed:
        return "undecided", f"{where}: undecided, {'; '.join(failed)}."
    if row is None or row["low"] is None:
        return "undecided", f"{where}: undecided, fewer than two seeds have both arms."
    numbers = (
        f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f}; {row['seeds']} seeds; "
        f"spread of the recipe {row['recipe_spread']:.4f})"
    )
    if row["low"] <= 0 <= row["high"]:
        return "no difference seen", f"{where}: no difference seen, {numbers}."
    verdict = "better" if (row["low"] > 0) == measure.higher else "worse"
    return verdict, f"{where}: {verdict}, {numbers}."


def _sides(
    experiment: Experiment, jobs: Sequence[Job], records: Records, digest: str
) -> tuple[dict[int, Any], dict[int, Any]] | None:
    """Records of both arms by seed, None where neither has run."""
    sides: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
    for job in jobs:
        record = records.get(job.training.id(digest))
        if job.experiment == experiment.name and record is not None and job.ready:
            sides[job.arm != experiment.recipe][job.training.seed_weights] = record
    return sides if any(sides) else None


def _failures(
    experiment: Experiment, jobs: Sequence[Job], records: Records, digest: str
) -> list[str]:
    """Arms that diverged, with their seed."""
    sides = _sides(experiment, jobs, records, digest) or ({}, {})
    return [
        f"{arm} diverged with seed {seed}"
        for arm, side in zip((experiment.recipe, experiment.changed), sides, strict=True)
        for seed, record in side.items()
        if "failed" in record
    ]


def spreads(jobs: Sequence[Job], records: Records, digest: str) -> list[dict[str, Any]]:
    """Standard deviations of both arms of the pair of `seeds` and of their difference, where only
    the weights' seed, only the data's, or both change. Left out with fewer than two runs.
    """
    by_seeds: dict[str, dict[tuple[int, int], float]] = {}
    pair = arms.SEEDS_PAIR
    for job in jobs:
        record = records.get(job.training.id(digest), {})
        if job.experiment in ("seeds", pair.name) and job.ready and "measures" in record:
            seeds = (job.training.seed_weights, job.training.seed_data)
            by_seeds.setdefault(job.arm, {})[seeds] = record["measures"][arms.MEAN.name]
    first, second = (by_seeds.get(arm, {}) for arm in (pair.recipe, pair.changed))
    by_seeds["difference"] = {
        seeds: second[seeds] - first[seeds] for seeds in first if seeds in second
    }
    kinds = {
        "weights": lambda seeds: seeds[1] == 0,
        "data": lambda seeds: seeds[0] == 0,
        "both": lambda seeds: seeds[0] == seeds[1],
    }
    found = []
    for what, values in by_seeds.items():
        for kind, belongs in kinds.items():
            own = [value for seeds, value in sorted(values.items()) if belongs(seeds)]
            if len(own) > 1:
                found.append(
                    {
                        "what": what,
                        "changes": kind,
                        "runs": len(own),
                        "mean": statistics.fmean(own),
                        "spread": statistics.stdev(own),
                    }
                )
    return found


# ---- the ladder


def rungs(jobs: Sequence[Job], records: Records, digest: str) -> list[dict[str, Any]]:
    """One row for each rung with a run: means over its seeds and the spread between them."""
    by_width: dict[int, list[dict[str, Any]]] = {}
    for job in jobs:
        record = records.get(job.training.id(digest), {})
        if job.experiment == "ladder" and "measures" in record:
            by_width.setdefault(job.training.width, []).append(record)
    found = []
    for width, runs in sorted(by_width.items()):
        row = {
            "width": width,
            "parameters": runs[0]["inner_parameters"],
            "tokens": runs[0]["tokens"],
            "flops": statistics.fmean(run["flops"] for run in runs),
            "epochs": runs[0]["epochs"],
            "seeds": len(runs),
        }
        for measure in ("mean", "nats_per_token"):
            values = [run["measures"][measure] for run in runs]
            row[measure] = statistics.fmean(values)
            row[f"{measure}_runs"] = values
        found.append(row)
    return found


def ladder(rungs: Sequence[dict[str, Any]], full: MoxinConfig, context: int) -> dict[str, Any]:
    """The fit of each measure: what all rungs but the last say of the last one, beside a law
    without a floor; and all rungs' law on the way to the full scale. Empty with fewer than five
    rungs.
    """
    if len(rungs) < 5:
        return {}
    full_flops = training_flops_per_token(full, context) * FULL_TOKENS
    compute = [row["flops"] for row in rungs]
    band = {f"band {i}": float(c) for i, c in enumerate(np.geomspace(compute[0], full_flops, 25))}
    seeds = [row["seeds"] for row in rungs]
    found: dict[str, Any] = {"rungs": list(rungs), "full_flops": full_flops, "fits": {}}
    for measure in ("mean", "nats_per_token"):
        losses = [row[measure] for row in rungs]
        spread = _pooled([row[f"{measure}_runs"] for row in rungs])
        common: dict[str, Any] = {"seed_spread": spread}
        first = power_law.assess(
            compute[:-1], losses[:-1], seeds=seeds[:-1], at={"last rung": compute[-1]}, **common
        )
        line = power_law.fit(compute[:-1], losses[:-1], seeds[:-1], floor=False)
        predicted = first["predictions"]["last rung"]
        holds = predicted["low"] <= losses[-1] <= predicted["high"]
        found["fits"][measure] = {
            "all_but_last": first,
            "measured_last": losses[-1],
            "without_floor": line.at(compute[-1]),
            "holds": holds,
            "all": power_law.assess(
                compute, losses, seeds=seeds, at={"full scale": full_flops, **band}, **common
            ),
            "line": (
                f"The first {len(rungs) - 1} rungs predict {predicted['value']:.3f} "
                f"({predicted['low']:.3f} to {predicted['high']:.3f}) for the last one, which has "
                f"{losses[-1]:.3f}: the prediction {'holds' if holds else 'does not hold'}."
            ),
        }
    return found


def _pooled(runs: Sequence[Sequence[float]]) -> float:
    """Standard deviation between runs of one rung, pooled over rungs; 0 where none has two."""
    squares = sum((len(own) - 1) * statistics.variance(own) for own in runs if len(own) > 1)
    freedom = sum(len(own) - 1 for own in runs)
    return math.sqrt(squares / freedom) if freedom else 0.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
