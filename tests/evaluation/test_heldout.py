"""Choosing held-out documents: cut by bytes, up to a language's bytes, in any order."""

import pandas as pd

from moxin_lab.evaluation import heldout

DOCUMENTS = pd.DataFrame(
    {
        "id": ["a", "b", "c", "d"],
        "language": ["en", "en", "en", "zh"],
        "text": ["x" * 10, "y" * 10, "z" * 3, "\u5b57" * 4],
        "num_bytes": [10, 10, 3, 12],
    }
)


def test_beginnings_are_cut_at_a_character_and_count_their_own_bytes():
    cut = heldout.beginnings(DOCUMENTS, max_bytes=8)
    assert cut["text"].tolist() == ["x" * 8, "y" * 8, "z" * 3, "\u5b57" * 2]
    assert cut["num_bytes"].tolist() == [8, 8, 3, 6]
    assert DOCUMENTS["num_bytes"].tolist() == [10, 10, 3, 12]  # the caller's table is unchanged


def test_the_choice_depends_on_seed_and_ids_and_not_on_the_order_of_rows():
    chosen = heldout.choose(DOCUMENTS, bytes_per_language=11, seed=0)
    again = heldout.choose(DOCUMENTS[::-1], bytes_per_language=11, seed=0)
    assert chosen.equals(again)
    assert chosen["language"].tolist()[-1] == "zh"
    assert 11 <= chosen[chosen["language"] == "en"]["num_bytes"].sum() < 11 + 10
