"""What the trainings of `bench grpo-variants` show: pass@k with intervals, differences and verdicts
by the rule.

    rows     one per training: `variant`, `seed` and measures
    right    {"variant/seed": {group: "8 0 3 .."}}: right samples of each question

Guarantees: pure functions of rows and counts, so that the page repeats them; training pairs by
seed, questions pair by question; the verdict reads validation questions alone.
Out of scope: running (`grpo_variants_training.py`), drawing (`reasoning.figures`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moxin_lab.evaluation.statistics import (
    Estimate,
    bootstrap_interval,
    paired_bootstrap,
    seed_interval,
)
from moxin_lab.reasoning.answers import pass_at_k

RECIPE = "recipe"
START = "start"
"""The fine-tuned model that every training starts from."""
VALIDATION = "validation"
KEEPS, PRICE = "keeps more", "keeps more, at the price of pass@1"
LOSES, NONE, UNDECIDED = "loses more", "no difference seen", "undecided"
RISES, FALLS = "rises", "falls"

RULE = (
    "Changed minus recipe (clip-higher: minus four-updates) on the validation questions, paired by "
    "seed, with Student's 95 % interval over seeds; with one seed in common, the paired bootstrap "
    "over questions, and it says so. A change keeps more of pass@k if the interval of pass@k lies "
    "above zero; at the price of pass@1 if that of pass@1 then lies below zero. It loses more if "
    "the interval of pass@k lies below zero. Else no difference is seen. Intervals are not widened "
    "for the number of variants."
)
CHOICE = (
    "A setting is chosen on the validation questions alone: the highest pass@k among the changes "
    "of the recipe that keep more of it at no price; where there is none, the recipe stays. The "
    "test columns are reported and choose nothing."
)


def summarise(
    rows: Sequence[Mapping[str, Any]],
    right: Mapping[str, Mapping[str, str]],
    settings: Mapping[str, Any],
    against: Mapping[str, str | None],
) -> dict[str, Any]:
    """`scores`, `differences`, `verdicts` and `choice`. settings: `pass_at`, `samples` a question.
    against: each variant's reference, None for the recipe.
    """
    ks = settings["pass_at"]
    seeds: dict[str, list[int]] = {}
    for row in rows:
        seeds.setdefault(row["variant"], []).append(row["seed"])
    groups = list(right[next(iter(right))]) if right else []

    def passed(variant: str, seed: int, group: str, k: int) -> np.ndarray:
        counts = right[f"{variant}/{seed}"][group].split()
        return pass_at_k(list(map(int, counts)), settings["samples"], k)

    trained = {name: [(name, seed) for seed in each] for name, each in seeds.items()}
    scores = [
        {"variant": name, "group": group, "k": k, **_score(own, group, k, passed)}
        for name, own in trained.items()
        for group in groups
        for k in ks
    ]
    differences = []
    for variant in against:
        for other in (against[variant], START):
            pairs = _pairs(variant, other, seeds)
            differences += [
                {
                    "variant": variant,
                    "against": other,
                    "group": group,
                    "k": k,
                    **_difference(pairs, group, k, passed),
                }
                for group in groups
                for k in ks
                if pairs
            ]
    verdicts = [
        verdict_of(variant, other or START, differences, max(ks))
        for variant, other in against.items()
    ]
    return {
        "scores": scores,
        "differences": differences,
        "verdicts": verdicts,
        "choice": choice(verdicts, scores, max(ks)),
    }


Passed = Callable[[str, int, str, int], np.ndarray]


def _pairs(
    variant: str, other: str | None, seeds: Mapping[str, Sequence[int]]
) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """Trainings of both with equal seeds; the start is one model, which pairs with every seed."""
    if other is None or other not in seeds:
        return []
    return [
        ((variant, seed), (other, seeds[START][0] if other == START else seed))
        for seed in seeds.get(variant, ())
        if other == START or seed in seeds[other]
    ]


def _score(own: Sequence[tuple[str, int]], group: str, k: int, passed: Passed) -> dict[str, Any]:
    values = [passed(*one, group, k) for one in own]
    means = [float(each.mean()) for each in values]
    found = seed_interval(means) if means[1:] else bootstrap_interval(values[0])
    return _row(found, means)


def _difference(
    pairs: Sequence[tuple[tuple[str, int], tuple[str, int]]], group: str, k: int, passed: Passed
) -> dict[str, Any]:
    both = [tuple(passed(*one, group, k) for one in pair) for pair in pairs]
    means = [float(first.mean() - second.mean()) for first, second in both]
    found = seed_interval(means) if means[1:] else paired_bootstrap(*both[0])
    return _row(found, means)


def _row(found: Estimate, means: Sequence[float]) -> dict[str, Any]:
    over = "seeds" if means[1:] else "questions"
    return {**found._asdict(), "seeds": len(means), "over": over, "by_seed": list(means)}


def verdict_of(
    variant: str, other: str, differences: Sequence[Mapping[str, Any]], most: int
) -> dict[str, Any]:
    """`verdict` and `line` of one variant by `RULE`. Against the start, which is the recipe's
    reference, pass@k rises or falls.
    """
    by_place = {
        (row["against"], row["k"]): row
        for row in differences
        if (row["variant"], row["group"]) == (variant, VALIDATION)
    }
    first, wide = by_place.get((other, 1)), by_place.get((other, most))
    found = {"variant": variant, "against": other}
    if first is None or wide is None:
        line = f"{variant} against {other}: undecided, no seed has both."
        return found | {"verdict": UNDECIDED, "line": line}
    numbers = f"pass@{most} {words(wide)}, pass@1 {words(first)}, {over(wide)}."
    if other == START:
        verdict = RISES if wide["low"] > 0 else FALLS if wide["high"] < 0 else NONE
        line = f"{variant} against its start: pass@{most}: {verdict}; {numbers}"
        return found | {"verdict": verdict, "line": line}
    if wide["low"] > 0:
        verdict = PRICE if first["high"] < 0 else KEEPS
    else:
        verdict = LOSES if wide["high"] < 0 else NONE
    line = f"{variant} against {other}: pass@{most}: {verdict}; {numbers}"
    begun = by_place.get((START, 1)), by_place.get((START, most))
    if begun[0] is not None and begun[1] is not None:
        line += f" Against its start: pass@{most} {words(begun[1])}, pass@1 {words(begun[0])}."
    return found | {"verdict": verdict, "line": line}


def words(row: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    return f"{row['value']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"


def over(row: Mapping[str, Any]) -> str:
    """What an interval is over."""
    if row["over"] == "seeds":
        return f"{row['seeds']} seeds"
    return "one seed, interval over questions"


def choice(
    verdicts: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]], most: int
) -> str:
    """The variant that `CHOICE` names, or the recipe."""
    keep = {
        one["variant"] for one in verdicts if (one["verdict"], one["against"]) == (KEEPS, RECIPE)
    }
    values = {
        row["variant"]: row["value"]
        for row in scores
        if (row["group"], row["k"]) == (VALIDATION, most) and row["variant"] in keep
    }
    return max(values, key=lambda name: values[name], default=RECIPE)
