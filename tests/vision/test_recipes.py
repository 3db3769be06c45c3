"""`moxin_lab.vision.recipes`: recipes name their claims, and verdicts follow from the seeds."""

from types import SimpleNamespace

import pandas as pd
import pytest

from moxin_lab import scales
from moxin_lab.evaluation.statistics import seed_interval
from moxin_lab.stages import stage_info
from moxin_lab.vision import recipes


def table(**gaps):
    rows = [{"arm": "no-align", "seed": seed, "accuracy": 0.5} for seed in range(3)]
    for arm, values in gaps.items():
        rows += [
            {"arm": arm.replace("_", "-"), "seed": s, "accuracy": 0.5 + gap}
            for s, gap in enumerate(values)
        ]
    return recipes.compare(pd.DataFrame(rows), seed_interval)


@pytest.mark.parametrize(
    ("gaps", "claim", "verdict"),
    [
        ({"align": (0.1, 0.11, 0.12)}, "vlm.single-stage", "contradicted"),
        (
            {"align": (0.1, 0.01, 0.4)},
            "vlm.single-stage",
            "reproduced",
        ),  # above in all seeds, but the interval includes zero
        ({"align": (-0.1, -0.11, -0.12)}, "vlm.single-stage", "reproduced"),
        (
            {"siglip_only": (-0.1, -0.11, -0.1), "dino_only": (-0.2,) * 3},
            "vlm.fused-towers",
            "reproduced",
        ),
        (
            {"siglip_only": (-0.1, 0.1, 0), "dino_only": (-0.2,) * 3},
            "vlm.fused-towers",
            "not attempted",
        ),
        (
            {"siglip_only": (0.1, 0.11, 0.1), "dino_only": (-0.2,) * 3},
            "vlm.fused-towers",
            "contradicted",
        ),
        ({"tuned_towers": (-0.1,) * 3}, "vlm.frozen-towers", "reproduced"),
        ({"tuned_towers": (-0.1, 0.1, 0.0)}, "vlm.frozen-towers", "not attempted"),
        (
            {"one_epoch": (-0.1,) * 3, "three_epochs": (0.1, 0, -0.1)},
            "vlm.two-epochs",
            "reproduced",
        ),
        ({"one_epoch": (-0.1,) * 3, "three_epochs": (0.1,) * 3}, "vlm.two-epochs", "contradicted"),
        ({"instruct": (0.1,) * 3}, "vlm.base-backbone", "contradicted"),
    ],
)
def test_verdicts_follow_from_the_intervals_over_seeds(gaps, claim, verdict):
    assert recipes.verdicts(table(**gaps))[claim][0] == verdict


def test_a_claim_without_all_its_recipes_gets_no_verdict():
    assert "vlm.fused-towers" not in recipes.verdicts(table(siglip_only=(-0.1,) * 3))


def test_every_claim_gets_a_verdict_and_two_seeds_decide_none():
    compared = table(align=(0.1, 0.11, 0.12))
    decided = recipes.all_verdicts(compared, seeds=3)
    assert set(decided) == {recipe.claim for recipe in recipes.RECIPES.values()} - {None}
    assert decided["vlm.single-stage"][0] == "contradicted"
    assert decided["vlm.two-epochs"] == (
        "not attempted",
        "This scale does not run the recipes that it compares.",
    )
    undecided = recipes.all_verdicts(compared, seeds=2)
    assert {verdict for verdict, _ in undecided.values()} == {"not attempted"}
    assert "One seed decides nothing" in undecided["vlm.single-stage"][1]
    assert "One seed decides nothing" not in undecided["vlm.two-epochs"][1]


def test_one_seed_decides_nothing():
    rows = [
        {"arm": arm, "seed": 0, "accuracy": value}
        for arm, value in (("no-align", 0.5), ("align", 0.9))
    ]
    assert (
        recipes.compare(pd.DataFrame(rows), seed_interval).loc["align", "difference"]
        == "1 seed(s): not decided"
    )


def test_every_recipe_but_the_base_names_a_claim_of_the_list(repository):
    known = (repository / "papers" / "claims.yml").read_text(encoding="utf-8")
    for name, recipe in recipes.RECIPES.items():
        assert (recipe.claim is None) == (name == "no-align")
        assert recipe.claim is None or f"- id: {recipe.claim}\n" in known


@pytest.mark.parametrize("backbone", ["pretrained", "instruct", "reasoning"])
def test_only_the_language_models_of_the_arms_are_needed(backbone):
    def needed(*arms):
        return recipes.backbones_needed(SimpleNamespace(backbone=backbone, arms=arms))

    assert needed("align", "no-align", "one-epoch") == [backbone]
    assert needed("no-align", "instruct") == list(dict.fromkeys((backbone, "instruct")))
    with pytest.raises(KeyError, match="mystery"):
        needed("mystery")


def changed(**values):
    return scales.VisionSettings.model_validate(
        {**scales.load("small").vision.model_dump(), **values}
    )


def test_every_backbone_of_a_scale_file_is_an_artifact_that_the_stage_may_take():
    for backbone in ("pretrained", "instruct", "reasoning"):
        assert changed(backbone=backbone, arms=("align", "no-align")).backbone == backbone
        assert backbone in stage_info("07_vision_language").may_take
    with pytest.raises(ValueError, match="Input should be 'pretrained', 'instruct' or 'reasoning'"):
        changed(backbone="sft")


def test_the_instruct_arm_is_refused_unless_the_base_starts_from_the_pretrained_model():
    with pytest.raises(ValueError, match="needs backbone pretrained, not reasoning"):
        changed(backbone="reasoning", arms=("no-align", "instruct"))


def test_the_small_scale_runs_every_recipe():
    assert set(scales.load("small").vision.arms) == set(recipes.RECIPES)
