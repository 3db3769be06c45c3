"""Results of notebook 04: shares, gaps and learning rates are those of their tables."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from moxin_lab import scales
from moxin_lab.pretraining import results
from moxin_lab.pretraining.pools import Tokens


def test_the_share_read_of_a_pool_may_exceed_one():
    pool = Tokens(
        np.arange(10, dtype=np.int32),
        np.array([0, 4, 10]),
        np.ones(2, dtype=np.int64),
        ["a", "b"],
        10,
    )
    row = results.pool_use({"en": pool}, {"en": 25}).loc["en"]
    assert row.tolist() == [2, 10, 25, 2.5]


def test_scores_keep_the_order_of_the_models_and_gaps_are_relative_to_the_baseline():
    scores = pd.DataFrame(
        {
            "model": ["z", "z", "a", "a"],
            "group": ["en", "zh", "en", "zh"],
            "bits_per_byte": [2.0, 4.0, 3.0, 3.0],
        }
    )
    table = results.scores_by_language(scores)
    assert table.columns.tolist() == ["z", "a"]
    assert results.gaps_in_words(table, "a", "z") == "50 % above in en, 25 % below in zh"


def test_continuations_are_those_of_the_first_text_of_each_language(monkeypatch):
    class Characters:
        added_tokens_decoder: ClassVar[dict] = {}
        unk_token_id = None

        def __call__(self, texts, split_special_tokens, **_):
            assert split_special_tokens  # a control token that a text spells is text
            ids = [[1, *map(ord, text)] for text in texts]
            masks = [[1] + [0] * (len(row) - 1) for row in ids]
            return {"input_ids": ids, "special_tokens_mask": masks}

        def decode(self, ids):
            return "".join(map(chr, ids))

    prompts = []

    def generate(model, ids, max_new_tokens):
        prompts.append(ids.tolist())
        return np.array([[*ids[0].tolist(), *[ord("x")] * max_new_tokens]])

    monkeypatch.setattr(results.generate, "generate", generate)
    texts = pd.DataFrame({"language": ["en", "en", "zh"], "text": ["abcdef", "no", "文"]})
    table = results.continuations(None, Characters(), texts, prompt_tokens=4, new_tokens=2)
    assert table.loc["en"].tolist() == ["abc", "xx"] and table.loc["zh"].tolist() == ["文", "xx"]
    assert prompts[0] == [[1, 97, 98, 99]]


def test_a_learning_rate_off_the_schedule_is_a_share_of_the_peak():
    log = pd.DataFrame({"learning_rate": [0.1, 0.35]})
    assert results.learning_rate_difference(log, [0.1, 0.4]) == pytest.approx(0.125)


@pytest.mark.parametrize("name", scales.SCALES)
def test_every_scale_has_the_stated_optimizer_and_another_value_is_seen(name):
    settings = scales.load(name).pretraining
    assert results.has_stated_optimizer(settings)
    other = SimpleNamespace(**settings.model_dump() | {"weight_decay": 0.2})
    assert not results.has_stated_optimizer(other)


def test_the_caption_of_the_loss_names_its_first_value_and_the_end_of_each_phase():
    log = pd.DataFrame({"phase": [0] * 30 + [1] * 20, "loss": [9.0] + [7.5] * 29 + [6.25] * 20})
    assert "From 9.00 nats per token to 7.50, 6.25 at the ends" in results.losses_in_words(log)
