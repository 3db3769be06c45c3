"""The weights of the languages: decided on text held back from training, by a stated rule."""

import pandas as pd
import pytest

from moxin_lab.tokenizer import budget, learn, peers


def test_every_document_is_on_one_side_and_the_same_one_in_any_order():
    texts = {"en": [f"page {number}" for number in range(100)], "ko": ["하나"], "zh": ["一", "二"]}
    training, validation = budget.hold_back(texts, 20)
    for language, documents in texts.items():
        assert sorted(training[language] + validation.get(language, [])) == sorted(documents)
    assert {name: len(kept) for name, kept in validation.items()} == {"en": 5, "zh": 1}
    backwards = {name: documents[::-1] for name, documents in texts.items()}
    assert {name: set(kept) for name, kept in budget.hold_back(backwards, 20)[1].items()} == {
        name: set(kept) for name, kept in validation.items()
    }


def test_a_larger_weight_gives_the_favoured_language_more_bytes_per_token(texts):
    pool = learn.learn(texts, max_candidates=700, min_frequency=2, max_token_length=16)
    joint = peers.token_counter(peers.joint_bpe(texts, 700))
    curve = budget.trade_off(
        *(pool, 700, 0, ()),
        favoured=["ko"],
        factors=(0.5, 1.0, 3.0),
        validation=texts,
        baseline=joint,
    )
    korean = curve[curve["language"] == "ko"]["relative"].tolist()
    assert korean == sorted(korean) and korean[0] < korean[-1]
    assert set(curve["language"]) == set(texts)


def test_the_largest_weight_at_which_the_guarded_language_keeps_the_floor_is_chosen():
    curve = pd.DataFrame(
        {
            "factor": [1.0, 2.0, 3.0] * 2,
            "language": ["en"] * 3 + ["zh"] * 3,
            "relative": [1.0, 0.975, 0.95, 1.0, 1.1, 1.2],
        }
    )
    assert budget.best_factor(curve, "en", 0.97) == 2.0
    with pytest.raises(ValueError, match=r"no factor keeps en at 1\.1"):
        budget.best_factor(curve, "en", 1.1)
