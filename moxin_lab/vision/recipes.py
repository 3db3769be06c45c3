"""The recipes that stage 07 compares, and what the comparison says of each claim.

    RECIPES                       name -> how it differs from Moxin's single stage
    compare(runs, ...)            accuracy of each recipe minus the base's, over seeds
    verdicts(compared, margins)   claim -> verdict and evidence
    all_verdicts(...)             the same for every claim of `RECIPES`, including those not run

Guarantees: a recipe is compared with the base on the same seeds; fewer than three seeds decide
nothing; a claim gets a verdict only where all its recipes were run.
Out of scope: training a recipe (`experiments.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import pandas as pd

from moxin_lab.lab import rules
from moxin_lab.scales.sections import VisionSettings

SeedInterval = Callable[[Sequence[float]], tuple[float, float, float]]
"""Differences, one per seed, to (mean, low, high): `evaluation.statistics.seed_interval`."""


class Recipe(NamedTuple):
    """How a training differs from Moxin's: both towers frozen, a single stage, the scale's number
    of epochs and the scale's language model.
    """

    claim: str | None
    """The claim that the comparison with `no-align` decides."""
    align: bool = False
    which: tuple[str, ...] = ("dino", "siglip")
    tuned_towers: bool = False
    epochs: int | None = None
    backbone: str | None = None
    """Language model of this recipe; None: the scale's."""
    said_to_be: Literal["worse", "no better", "equal"] = "worse"
    """What the claim says of this recipe, compared with `no-align`."""


RECIPES: dict[str, Recipe] = {
    "no-align": Recipe(None),
    "align": Recipe("vlm.single-stage", align=True, said_to_be="no better"),
    "siglip-only": Recipe("vlm.fused-towers", which=("siglip",)),
    "dino-only": Recipe("vlm.fused-towers", which=("dino",)),
    "tuned-towers": Recipe("vlm.frozen-towers", tuned_towers=True),
    "one-epoch": Recipe("vlm.two-epochs", epochs=1),
    "three-epochs": Recipe("vlm.two-epochs", epochs=3, said_to_be="no better"),
    "instruct": Recipe("vlm.base-backbone", backbone="instruct", said_to_be="equal"),
}


def backbones_needed(settings: VisionSettings) -> list[str]:
    """Names of the language models that the recipes of `settings.arms` start from, without
    repeats. Raises KeyError for an unknown recipe.
    """
    return list(dict.fromkeys(RECIPES[arm].backbone or settings.backbone for arm in settings.arms))


def compare(runs: pd.DataFrame, interval: SeedInterval, base: str = "no-align") -> pd.DataFrame:
    """Each recipe's accuracy minus that of `base` with the same seed, mean and interval over seeds.

    runs: columns arm, seed, accuracy. The column `difference` says: above, below, or no difference
    seen; with fewer than three seeds: not decided.
    """
    accuracy = runs.pivot(index="seed", columns="arm", values="accuracy")  # [seeds, recipes]
    rows = {}
    for arm in [name for name in dict.fromkeys(runs["arm"]) if name != base]:
        gap, low, high = interval(accuracy[arm] - accuracy[base])
        difference = "above" if low > 0 else "below" if high < 0 else "no difference seen"
        rows[arm] = {
            "accuracy": accuracy[arm].mean(),
            f"minus {base}": gap,
            "low": low,
            "high": high,
            "difference": difference
            if len(accuracy) > 2
            else f"{len(accuracy)} seed(s): not decided",
        }
    return pd.DataFrame(rows).T.rename_axis("recipe")


def verdicts(
    compared: pd.DataFrame, margins: Mapping[str, float], base: str = "no-align"
) -> dict[str, tuple[str, str]]:
    """Claim to verdict and evidence, from `compare`'s table of at least three seeds; only claims
    whose recipes were all run.

    margins: by claim, of those that say that a rival is equal or no better (`claims.margins`);
    `rules.judge_null` decides them. Where a rival is said to be worse, `rules.judge_gain` does.
    Raises ValueError for a claim of no difference without a margin.
    """
    result = {}
    for claim, names in recipes_by_claim().items():
        if not set(names) <= set(compared.index):
            continue
        rows = compared.loc[names]
        parts = [
            _judge(
                RECIPES[str(name)].said_to_be,
                row[f"minus {base}"],
                row["low"],
                row["high"],
                margins.get(claim),
            )
            for name, row in rows.iterrows()
        ]
        evidence = (
            f"Accuracy over all tasks (Student's 95 % interval over seeds): {_words(rows, base)}."
        )
        if claim in margins:
            evidence += f" Margin of no difference: {margins[claim]:g}."
        result[claim] = (rules.all_of(parts), evidence)
    return result


def all_verdicts(
    compared: pd.DataFrame, margins: Mapping[str, float], *, seeds: int
) -> dict[str, tuple[str, str]]:
    """Verdict and evidence for every claim that a recipe decides, from `compare`'s table.

    Fewer than three seeds, or a recipe that was not run, leave a claim `not attempted`.
    """
    decided = verdicts(compared, margins) if seeds > 2 else {}
    result = {}
    for claim, names in recipes_by_claim().items():
        run = [name for name in names if name in compared.index]
        seen = f"{_words(compared.loc[run], 'no-align')}; " if run else ""
        count = f"{seeds} seed{'s' if seeds > 1 else ''}"
        why = f"{seen}{count} and {len(run)} of the {len(names)} recipes that it compares"
        result[claim] = decided.get(claim, ("not attempted", f"This scale decides nothing: {why}."))
    return result


def recipes_by_claim() -> dict[str, list[str]]:
    """Claim to the recipes whose comparison with `no-align` decides it."""
    by_claim: dict[str, list[str]] = {}
    for name, recipe in RECIPES.items():
        if recipe.claim:
            by_claim.setdefault(recipe.claim, []).append(name)
    return by_claim


def _judge(said_to_be: str, value: float, low: float, high: float, margin: float | None) -> str:
    if said_to_be == "worse":
        return rules.judge_gain(-high, -low)
    if margin is None:
        raise ValueError("a claim of no difference needs a margin in papers/claims.yml")
    # A recipe that is worse than the single stage is not against a claim that it adds nothing.
    return rules.judge_null(value, low, high, margin, one_sided=said_to_be == "no better")


def _words(rows: pd.DataFrame, base: str) -> str:
    return "; ".join(
        f"{name} minus {base} {row[f'minus {base}']:+.3f}"
        + (f" ({row['low']:+.3f} to {row['high']:+.3f})" if row["low"] <= row["high"] else "")
        for name, row in rows.iterrows()
    )
