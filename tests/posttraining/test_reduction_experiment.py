"""Guarantees of the reduction experiment: what the cut of a step changes, and that runs differ in
nothing else.
"""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from moxin_lab.posttraining import chat, reduction_experiment
from moxin_lab.posttraining.batches import ConversationStream
from tests.posttraining.examples import (
    make_conversations,
    make_model,
    make_settings,
    make_tokenizer,
)

ENCODED, _ = chat.encode_all(
    make_conversations(), make_tokenizer(), max_tokens=256, max_refused_share=0.0
)


class Settings(SimpleNamespace):
    """With the one method of a pydantic model that the experiment uses."""

    def model_copy(self, update):
        return Settings(**{**vars(self), **update})


def stream_of(reduction):
    return ConversationStream(
        ENCODED,
        examples_per_step=8,
        epochs=1,
        row_tokens=255,
        seed=0,
        pad_id=0,
        reduction=reduction,
    )


def test_the_cut_turns_the_gradient_of_part_mean_but_not_that_of_mean_and_sequence():
    found = reduction_experiment.gradients_of_a_step(make_model(), stream_of, parts=(1, 8))
    table = found.pivot(index="reduction", columns="micro-batches", values=["norm", "cosine"])
    norm, cosine = table["norm"], table["cosine"]
    assert norm.loc["mean", 1] == pytest.approx(norm.loc["mean", 8], rel=1e-5)
    assert norm.loc["sequence", 1] == pytest.approx(norm.loc["sequence", 8], rel=1e-5)
    assert (
        cosine.loc["sequence", 1] == pytest.approx(cosine.loc["sequence", 8], abs=1e-6)
        and cosine.loc["sequence", 1] < 0.999
    )
    np.testing.assert_allclose(cosine.loc[["mean", "sum"]], 1.0, atol=1e-6)
    assert norm.loc["sum", 1] == pytest.approx(8 * norm.loc["sum", 8], rel=1e-5)
    assert (
        cosine.loc["part_mean", 1] == pytest.approx(1, abs=1e-6)
        and cosine.loc["part_mean", 8] < 0.999
    )


def test_runs_of_a_seed_differ_in_reduction_clipping_and_cut_alone():
    experiment = SimpleNamespace(
        steps=4, examples_per_step=8, micro_batches=(8, 2), learning_rate=3e-3, seeds=2
    )
    tuning = Settings(**vars(make_settings(gradient_clip_norm=0.05)), layout="packed")
    runs = reduction_experiment.train_all(
        make_model,
        ENCODED,
        ENCODED,
        experiment,
        tuning,
        row_tokens=255,
        pad_id=0,
        batch_tokens=4096,
    )
    assert len(runs) == 2 * len(reduction_experiment.VARIANTS) * 2
    runs["variant"] = reduction_experiment.variant_names(runs)
    loss = runs.pivot(index=["seed", "micro_batch"], columns="variant", values="answer_loss")
    for seed in (0, 1):
        for variant in ("mean", "mean, not clipped"):
            assert loss.loc[(seed, 8), variant] == pytest.approx(
                loss.loc[(seed, 2), variant], rel=1e-4
            )
    # Every gradient here is longer than the clipping norm, so clipped sum and clipped mean are the
    # same steps.
    np.testing.assert_allclose(loss["sum"], loss["mean"], rtol=1e-4)
    # Adam does not see a factor that all steps share: unclipped, sum differs from mean by the
    # tokens of a step alone.
    np.testing.assert_allclose(loss["sum, not clipped"], loss["mean, not clipped"], rtol=0.02)
    cut = runs.query("micro_batch == 2").set_index(["variant", "seed"])["answer_loss"]
    assert abs(cut["part_mean"] - cut["mean"]).min() > 1e-4


def test_differences_are_paired_by_seed():
    runs = pd.DataFrame(
        [
            {
                "reduction": name,
                "clipped": clipped,
                "micro_batch": size,
                "seed": seed,
                "answer_loss": loss,
                "gradient_norm": 1.0,
            }
            for seed, start in ((0, 5.0), (1, 7.0))
            for name, clipped, size, loss in (
                ("mean", True, 8, start),
                ("mean", False, 8, start + 9),
                ("mean", True, 2, start),
                ("part_mean", True, 2, start + 0.1 + seed / 10),
            )
        ]
    )
    found = reduction_experiment.differences(
        runs, lambda each: (each.mean(), each.min(), each.max())
    )
    found = found.set_index(["variant", "micro_batch"])
    assert found.loc[("mean", 8), ["difference", "low", "high"]].tolist() == [0, 0, 0]
    assert found.loc[("part_mean", 2), ["difference", "low", "high"]].tolist() == pytest.approx(
        [0.15, 0.1, 0.2]
    )
    assert found.loc[("mean, not clipped", 8), "difference"] == pytest.approx(9)


def test_the_summaries_name_what_the_intervals_show():
    runs = pd.DataFrame(
        [
            {"variant": variant, "micro_batch": size, "seed": seed, "answer_loss": loss + seed}
            for variant, size, loss in (
                ("mean", 8, 1.0),
                ("mean", 1, 1.0),
                ("mean, not clipped", 8, 1.5),
                ("sum", 8, 1.0),
                ("part_mean", 1, 1.25),
            )
            for seed in range(3)
        ]
    )
    ways = reduction_experiment.ways_to_fail(runs, lambda values: values.mean())
    assert list(ways.values()) == pytest.approx([-0.5, 0.25])
    row = {"variant": "sum", "micro_batch": 8, "difference": 0.1, "low": 0.05, "high": 0.2}
    compared = pd.DataFrame([row, {**row, "variant": "sequence", "low": -0.1}])
    sentence = reduction_experiment.differences_sentence(compared)
    assert "sum with micro-batches of 8: +0.100" in sentence and "sequence" not in sentence
    assert "no difference seen" in reduction_experiment.differences_sentence(compared[1:])


def test_models_of_a_seed_have_the_same_weights_and_the_layers_that_were_set():
    config = make_model().config
    new_model = reduction_experiment.model_maker(config, 1)
    first, again, other = new_model(3), new_model(3), new_model(4)
    assert first.config.num_hidden_layers == 1 and config.num_hidden_layers > 1
    weights = [model.model.embed_tokens.weight for model in (first, again, other)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
