"""`moxin_lab.vision.recipes`: recipes name their claims, and verdicts follow from the seeds."""

from types import SimpleNamespace

import pandas as pd
import pytest

from moxin_lab import scales
from moxin_lab.evaluation.statistics import seed_interval
from moxin_lab.lab import claims
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


MARGINS = {"vlm.single-stage": 0.02, "vlm.two-epochs": 0.02, "vlm.base-backbone": 0.02}


@pytest.mark.parametrize(
    ("gaps", "claim", "verdict"),
    [
        ({"align": (0.1, 0.11, 0.12)}, "vlm.single-stage", "contradicted"),
        ({"align": (0.001, 0.002, 0.003)}, "vlm.single-stage", "reproduced"),
        ({"align": (0.01, -0.03, 0.02)}, "vlm.single-stage", "no difference seen"),
        # Above in every seed, but the interval contains zero: neither of the two.
        ({"align": (0.1, 0.01, 0.4)}, "vlm.single-stage", "undecided"),
        ({"align": (-0.1, -0.11, -0.12)}, "vlm.single-stage", "reproduced"),
        ({"instruct": (0.1,) * 3}, "vlm.base-backbone", "contradicted"),
        ({"instruct": (-0.01, -0.03, 0.02)}, "vlm.base-backbone", "no difference seen"),
        ({"instruct": (0.001, 0.002, -0.003)}, "vlm.base-backbone", "reproduced"),
        ({"instruct": (-0.1, -0.101, -0.102)}, "vlm.base-backbone", "contradicted"),
        # The released run: -0.017 (-0.043 to +0.008), wider than the margin on one side.
        ({"instruct": (-0.017, -0.027, -0.007)}, "vlm.base-backbone", "no difference seen"),
        (
            {"siglip_only": (-0.1, -0.11, -0.1), "dino_only": (-0.2,) * 3},
            "vlm.fused-towers",
            "reproduced",
        ),
        (
            {"siglip_only": (-0.1, 0.1, 0), "dino_only": (-0.2,) * 3},
            "vlm.fused-towers",
            "no difference seen",
        ),
        (
            {"siglip_only": (0.1, 0.11, 0.1), "dino_only": (-0.2,) * 3},
            "vlm.fused-towers",
            "contradicted",
        ),
        ({"tuned_towers": (-0.1,) * 3}, "vlm.frozen-towers", "reproduced"),
        ({"tuned_towers": (-0.1, 0.1, 0.0)}, "vlm.frozen-towers", "no difference seen"),
        (
            {"one_epoch": (-0.1,) * 3, "three_epochs": (0.001, 0.0, -0.001)},
            "vlm.two-epochs",
            "reproduced",
        ),
        # The released run: +0.087 (-0.003 to +0.178), all seeds of three epochs above all of two.
        (
            {"one_epoch": (-0.1,) * 3, "three_epochs": (0.05, 0.09, 0.121)},
            "vlm.two-epochs",
            "undecided",
        ),
        ({"one_epoch": (-0.1,) * 3, "three_epochs": (0.1,) * 3}, "vlm.two-epochs", "contradicted"),
        (
            {"one_epoch": (-0.1, 0.1, 0.0), "three_epochs": (0.001, 0.0, -0.001)},
            "vlm.two-epochs",
            "no difference seen",
        ),
    ],
)
def test_verdicts_follow_from_the_intervals_over_seeds(gaps, claim, verdict):
    assert recipes.verdicts(table(**gaps), MARGINS)[claim][0] == verdict


def test_claims_of_no_difference_have_a_margin_in_the_list_and_the_evidence_says_it(repository):
    margins = claims.margins(repository)
    of_no_difference = [one for one in recipes.RECIPES.values() if one.said_to_be != "worse"]
    null_claims = {recipe.claim for recipe in of_no_difference}
    assert null_claims == {"vlm.single-stage", "vlm.two-epochs", "vlm.base-backbone"}
    assert null_claims <= set(margins)
    evidence = recipes.verdicts(table(align=(0.01, -0.03, 0.02)), margins)["vlm.single-stage"][1]
    with pytest.raises(ValueError, match="needs a margin"):
        recipes.verdicts(table(align=(0.01, -0.03, 0.02)), {})
    assert f"Margin of no difference: {margins['vlm.single-stage']:g}" in evidence


def test_a_claim_without_all_its_recipes_gets_no_verdict():
    assert "vlm.fused-towers" not in recipes.verdicts(table(siglip_only=(-0.1,) * 3), MARGINS)


def test_every_claim_gets_a_verdict_and_two_seeds_decide_none():
    compared = table(align=(0.1, 0.11, 0.12))
    decided = recipes.all_verdicts(compared, MARGINS, seeds=3)
    assert set(decided) == {recipe.claim for recipe in recipes.RECIPES.values()} - {None}
    assert decided["vlm.single-stage"][0] == "contradicted"
    assert decided["vlm.two-epochs"] == (
        "not attempted",
        "This scale decides nothing: 3 seeds and 0 of the 2 recipes that it compares.",
    )
    undecided = recipes.all_verdicts(compared, MARGINS, seeds=2)
    assert {verdict for verdict, _ in undecided.values()} == {"not attempted"}
    assert "align minus no-align +0.110" in undecided["vlm.single-stage"][1]
    assert "2 seeds and 1 of the 1 recipes" in undecided["vlm.single-stage"][1]


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
