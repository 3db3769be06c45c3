"""Both trainings of stage 05 as calls: a seed repeats them, and judging uses the ratio of the loss
that was trained.
"""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from moxin_lab.model import convert
from moxin_lab.posttraining import chat, dpo, experiments, sampling, sft, tables
from tests.posttraining.examples import make_conversations, make_model, make_sides, make_tokenizer

OPTIMIZER = {
    "learning_rate": 1e-2,
    "warmup_ratio": 0.1,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_eps": 1e-8,
    "weight_decay": 0.0,
    "gradient_clip_norm": 1.0,
    "label_smoothing": 0.0,
    "precision": "32-true",
    "checkpoint_every_steps": 100,
    "micro_batch_examples": 4,
    "examples_per_step": 4,
    "epochs": 1,
    "max_tokens": 256,
}

LOSSES = {"normalised": ("dpo_norm", 5.0), "plain": ("sigmoid", 0.1)}


def make_settings():
    sft = SimpleNamespace(**OPTIMIZER, layout="packed", reduction="mean", dropout=0.1)
    preferences = SimpleNamespace(
        **OPTIMIZER,
        loss="dpo_norm",
        beta=5.0,
        sampled_prompts=4,
        num_generations=2,
        temperature=1.0,
        constructed_pairs=8,
    )
    return SimpleNamespace(
        sft=sft,
        dpo=preferences,
        max_new_tokens=4,
        answer_batch=4,
        batch_tokens=2048,
        max_refused_share=0.5,
    )


def as_rows(conversations, **columns):
    return pd.DataFrame({"messages": conversations, "language": "en", "task": "count", **columns})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    tokenizer = make_tokenizer()
    folder = tmp_path_factory.mktemp("pretrained")
    convert.save_pretrained(make_model(), folder)
    rows = as_rows(make_conversations(8), verifier='{"kind": "exact", "answer": "one"}')
    chosen, rejected = make_sides(8)
    sides = {
        name: [[side[-1]] for side in part]
        for name, part in (("chosen", chosen), ("rejected", rejected))
    }
    pairs = pd.DataFrame(
        {"prompt": [side[:-1] for side in chosen], **sides, "task": "count", "language": "en"}
    )
    encoded, _ = chat.encode_all(
        tables.conversations(rows), tokenizer, max_tokens=256, max_refused_share=0.5
    )
    held_out, _ = dpo.encode_pairs(
        chosen, rejected, tokenizer=tokenizer, max_tokens=256, max_refused_share=0.5
    )
    return SimpleNamespace(
        folder=folder,
        tokenizer=tokenizer,
        rows=rows,
        pairs=pairs,
        encoded=encoded,
        tests=experiments.Tests(rows, encoded, held_out),
    )


def run(world, seed, folder):
    return experiments.repeat(
        world.folder,
        world.encoded,
        world.rows,
        world.pairs,
        world.tests,
        world.tokenizer,
        make_settings(),
        LOSSES,
        seed=seed,
        folder=folder,
    )


def test_a_seed_repeats_both_trainings_and_another_seed_is_another_training(world, tmp_path):
    once, again = (
        experiments.fine_tune(
            world.folder,
            world.encoded,
            make_settings(),
            seed=seed,
            pad_id=0,
            folder=tmp_path / name,
        )[0]
        for seed, name in ((3, "a"), (3, "b"))
    )
    other, _ = experiments.fine_tune(
        world.folder, world.encoded, make_settings(), seed=4, pad_id=0, folder=tmp_path / "c"
    )
    assert dpo.weights_hash(once) == dpo.weights_hash(again) != dpo.weights_hash(other)
    first, second = run(world, 3, tmp_path / "d"), run(world, 3, tmp_path / "e")
    assert first == second
    shares = [
        value for name, value in first.items() if "minus" not in name and "tokens" not in name
    ]
    assert len(shares) == 3 + 2 + 1 and all(0 <= share <= 1 for share in shares)


def test_a_sampled_pair_names_the_training_row_that_it_answers(world, monkeypatch):
    asked = []

    def on_policy_pairs(model, tokenizer, rows, **options):
        asked.append(rows)
        return pd.DataFrame(columns=["chosen", "rejected", "row", "construction"]), {}

    monkeypatch.setattr(experiments.sampling, "on_policy_pairs", on_policy_pairs)
    rows = as_rows(
        make_conversations(12), verifier=[None, '{"kind": "exact", "answer": "one"}'] * 6
    )
    found = experiments.collect_pairs(
        None, world.tokenizer, rows, world.pairs, make_settings(), seed=0
    )
    assert (
        list(asked[0].index) == [1, 3, 7, 9] and found.prompts == 4
    )  # at even distances among rows 1, 3, 5, 7, 9, 11
    assert asked[0]["messages"].tolist() == rows.loc[[1, 3, 7, 9], "messages"].tolist()


def test_the_pipeline_answers_as_the_lab_does_and_writes_nothing(world, tmp_path, capfd):
    world.tokenizer.save_pretrained(tmp_path / "tokenizer")
    folder = sft.export(make_model(), tmp_path / "tokenizer", tmp_path / "instruct")
    rows = world.rows.head(2)
    answers = experiments.pipeline_answers(folder, rows, max_new_tokens=6)
    assert capfd.readouterr() == ("", "")  # in a notebook a bar is a widget with a random id
    prompts = [messages[:-1] for messages in tables.conversations(rows)]
    said = sampling.respond(make_model(), world.tokenizer, prompts, max_new_tokens=6, batch_size=1)
    assert answers["pipeline"].str.strip().tolist() == [each.text.strip() for each in said]


def test_outcomes_are_compared_row_by_row():
    def judged(right, tokens):
        return pd.DataFrame({"right": pd.array(right, dtype="Float64"), "tokens": tokens})

    models = {
        "SFT": judged([1, 0, 0, None], [2, 2, 2, 2]),
        "a": judged([1, 1, 0, None], [4, 4, 4, 4]),
        "b": judged([0, 1, 0, None], [1, 1, 1, 5]),
    }
    found = experiments.outcomes(models, {"a": 0.9, "b": 0.6})
    assert found["exact match: a"] == pytest.approx(2 / 3) and found[
        "exact match: a minus SFT"
    ] == pytest.approx(1 / 3)
    assert found["exact match: b minus SFT"] == 0 and found["preference accuracy: b"] == 0.6
    assert found["win rate: a against b"] == pytest.approx((1 + 2 / 2) / 3), (
        "rows without a rule do not count"
    )
    assert found["tokens per answer: a minus b"] == 2


def test_preference_accuracy_uses_the_ratio_that_its_loss_uses():
    class Side:
        def __init__(self, tokens):
            self.num_targets = tokens

    pairs = [dpo.Pair(Side(10), Side(1), 0)]
    reference, scored = np.zeros((1, 2)), np.array([[5.0, 1.0]])
    assert experiments.preference_hits(scored, reference, pairs, "sigmoid").tolist() == [True]
    assert experiments.preference_hits(scored, reference, pairs, "dpo_norm").tolist() == [False], (
        "0.5 a token against 1"
    )
