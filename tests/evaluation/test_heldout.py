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
    assert chosen[chosen["language"] == "en"]["num_bytes"].sum() == 11
    assert chosen[chosen["language"] == "zh"]["text"].item() == "\u5b57" * 3  # whole characters


def test_no_source_vanishes_from_the_choice_and_every_byte_count_is_that_of_its_text():
    sources = ["manual"] * 200 + ["talk"] * 2
    documents = pd.DataFrame(
        {
            "id": [f"d{index}" for index in range(len(sources))],
            "source": sources,
            "language": "en",
            "text": [str(index) * 200 for index in range(len(sources))],
        }
    ).assign(num_bytes=lambda table: table["text"].str.len())
    chosen = heldout.choose(documents, bytes_per_language=5000, seed=1)
    by_source = chosen.groupby("source")["num_bytes"].sum()
    assert by_source["talk"] >= 49 and 4998 <= by_source.sum() <= 5000
    assert chosen["num_bytes"].tolist() == [len(text) for text in chosen["text"]]
