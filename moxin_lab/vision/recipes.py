"""The recipes that stage 07 compares, and what the comparison says of each claim.

    RECIPES                 name -> how it differs from Moxin's single stage
    compare(runs, ...)      accuracy of each recipe minus the base's, over seeds
    verdicts(compared)      claim -> verdict and evidence
    all_verdicts(...)       the same for every claim of `RECIPES`, including those not run

Guarantees: a recipe is compared with the base on the same seeds; fewer than three seeds decide
nothing; a claim gets a verdict only where all its recipes were run.
Out of scope: training a recipe (`experiments.py`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

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


RECIPES: dict[str, Recipe] = {
    "no-align": Recipe(None),
    "align": Recipe("vlm.single-stage", align=True),
    "siglip-only": Recipe("vlm.fused-towers", which=("siglip",)),
    "dino-only": Recipe("vlm.fused-towers", which=("dino",)),
    "tuned-towers": Recipe("vlm.frozen-towers", tuned_towers=True),
    "one-epoch": Recipe("vlm.two-epochs", epochs=1),
    "three-epochs": Recipe("vlm.two-epochs", epochs=3),
    "instruct": Recipe("vlm.base-backbone", backbone="instruct"),
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


def verdicts(compared: pd.DataFrame, base: str = "no-align") -> dict[str, tuple[str, str]]:
    """Claim to verdict and evidence, from `compare`'s table; only claims whose recipes were all
    run.

    A claim that the base loses nothing is contradicted if a rival is above it. A claim that the
    base is better is reproduced if every rival is below and contradicted if one is above; anything
    between is undecided, which counts as not attempted.
    """
    recipes_of: dict[str, list[str]] = {}
    for name, recipe in RECIPES.items():
        if recipe.claim:
            recipes_of.setdefault(recipe.claim, []).append(name)
    result = {}
    for claim, names in recipes_of.items():
        if not set(names) <= set(compared.index):
            continue
        verdict = _verdict(claim, compared.loc[names, "difference"])
        evidence = "; ".join(
            f"{name} minus {base} {row[f'minus {base}']:+.3f}"
            + (f" ({row['low']:+.3f} to {row['high']:+.3f})" if row["low"] <= row["high"] else "")
            for name, row in compared.loc[names].iterrows()
        )
        undecided = (
            "Run, but undecided: these seeds do not show which recipe is better. "
            if verdict == "not attempted"
            else ""
        )
        result[claim] = (
            verdict,
            f"{undecided}Accuracy over all tasks (Student's 95 % interval over seeds): {evidence}.",
        )
    return result


def all_verdicts(compared: pd.DataFrame, *, seeds: int) -> dict[str, tuple[str, str]]:
    """Verdict and evidence for every claim that a recipe decides, from `compare`'s table.

    Fewer than three seeds, or a recipe that was not run, leave a claim `not attempted`.
    """
    decided = verdicts(compared)
    missing = ("not attempted", "This scale does not run the recipes that it compares.")
    result = {}
    for claim in dict.fromkeys(recipe.claim for recipe in RECIPES.values() if recipe.claim):
        verdict, evidence = decided.get(claim, missing)
        if seeds < 3:
            verdict = "not attempted"
            evidence += " One seed decides nothing." if claim in decided else ""
            evidence += (
                " To decide it: moxin-lab run --scale small --only 07, with its recipes in "
                "vision: arms."
            )
        result[claim] = (verdict, evidence)
    return result


def _verdict(claim: str, differences: pd.Series) -> str:
    if (differences == "above").any():
        return "contradicted"
    if claim in ("vlm.single-stage", "vlm.base-backbone"):
        return "reproduced"
    # A third epoch may add nothing; it must only not be better.
    rivals = differences.drop("three-epochs", errors="ignore")
    return "reproduced" if bool((rivals == "below").all()) else "not attempted"
