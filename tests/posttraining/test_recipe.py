"""Both trainings of stage 05 as calls: a seed repeats them, and judging uses the ratio of the loss that was trained."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from posttraining_examples import make_conversations, make_model, make_sides, make_tokenizer

from moxin_lab.model import convert
from moxin_lab.posttraining import chat, dpo, recipe, tables

OPTIMIZER = {
    "learning_rate": 1e-2, "warmup_ratio": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_eps": 1e-8, "weight_decay": 0.0,
    "gradient_clip_norm": 1.0, "label_smoothing": 0.0, "precision": "32-true", "checkpoint_every_steps": 100,
    "micro_batch_examples": 4, "examples_per_step": 4, "epochs": 1, "max_tokens": 256,
}  # fmt: skip


def make_settings():
    sft = SimpleNamespace(**OPTIMIZER, layout="packed", reduction="mean", dropout=0.1)
    preferences = SimpleNamespace(
        **OPTIMIZER, loss="dpo_norm", beta=5.0, sampled_prompts=4, samples=2, temperature=1.0, constructed_pairs=8
    )
    return SimpleNamespace(
        sft=sft, dpo=preferences, max_new_tokens=4, answer_batch=4, batch_tokens=2048, max_refused_share=0.5
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
    sides = {name: [[side[-1]] for side in part] for name, part in (("chosen", chosen), ("rejected", rejected))}
    pairs = pd.DataFrame({"prompt": [side[:-1] for side in chosen], **sides, "task": "count", "language": "en"})
    encoded, _ = chat.encode_all(tables.conversations(rows), tokenizer, max_tokens=256, max_refused_share=0.5)
    held_out, _ = dpo.encode_pairs(chosen, rejected, tokenizer=tokenizer, max_tokens=256, max_refused_share=0.5)
    return SimpleNamespace(
        folder=folder, tokenizer=tokenizer, rows=rows, pairs=pairs, encoded=encoded,
        tests=recipe.Tests(rows, encoded, held_out),
    )  # fmt: skip


def run(world, seed, folder):
    return recipe.repeat(
        world.folder, world.encoded, world.rows, world.pairs, world.tests, world.tokenizer, make_settings(), seed=seed,
        folder=folder,
    )  # fmt: skip


def test_a_seed_repeats_both_trainings_and_another_seed_is_another_training(world, tmp_path):
    once, again = (
        recipe.fine_tune(world.folder, world.encoded, make_settings(), seed=seed, pad_id=0, folder=tmp_path / name)[0]
        for seed, name in ((3, "a"), (3, "b"))
    )
    other, _ = recipe.fine_tune(world.folder, world.encoded, make_settings(), seed=4, pad_id=0, folder=tmp_path / "c")
    assert dpo.weights_hash(once) == dpo.weights_hash(again) != dpo.weights_hash(other)
    first, second = run(world, 3, tmp_path / "d"), run(world, 3, tmp_path / "e")
    assert first == second and set(first) == {"SFT", "DPO", "preference accuracy"}
    assert all(0 <= share <= 1 for share in first.values())


def test_preference_accuracy_uses_the_ratio_that_its_loss_uses():
    class Side:
        def __init__(self, tokens):
            self.num_targets = tokens

    pairs = [dpo.Pair(Side(10), Side(1), 0)]
    reference, scored = np.zeros((1, 2)), np.array([[5.0, 1.0]])
    assert recipe.preference_hits(scored, reference, pairs, "sigmoid").tolist() == [True]
    assert recipe.preference_hits(scored, reference, pairs, "dpo_norm").tolist() == [False], "0.5 a token against 1"
