"""Tables and records hold the numbers of the frames that they are built from."""

import numpy as np
import pandas as pd
import pytest

from moxin_lab.tokenizer import tables

GAINS = pd.DataFrame(
    {
        "language": ["zh", "zh", "ja"],
        "tokenizer": ["over a", "over b", "over a"],
        "gain": [2.0, 9.0, -1.26],
        "low": [1.0, 8.0, np.nan],
        "high": [3.0, 10.0, np.nan],
    }
)


class Recorder:
    """The one method of a stage that `record` calls."""

    def __init__(self):
        self.measures = []

    def measure(self, name, value, **rest):
        self.measures.append({"name": name, "value": value, **rest})


def test_a_column_is_recorded_row_by_row_with_interval_headline_and_labels():
    stage = Recorder()
    tables.record(stage, GAINS, "gain", "%", headlines=[("over a", "ja")], text="pages")
    first, second, third = stage.measures
    assert first == {
        "name": "gain",
        "value": 2.0,
        "unit": "%",
        "interval": (1.0, 3.0),
        "headline": False,
        "language": "zh",
        "tokenizer": "over a",
        "text": "pages",
    }
    assert (second["value"], second["headline"]) == (9.0, False)
    assert (third["value"], third["interval"], third["headline"]) == (-1.26, None, True)


def test_gains_in_words_are_those_of_one_comparison_in_the_given_order():
    words = tables.gains_in_words(GAINS, "over a", ["ja", "zh"])
    assert words == "ja −1.3 %, zh +2.0 [+1.0, +3.0] %"


def test_tokens_and_premiums_have_a_row_per_language_and_two_columns_per_tokenizer():
    counts = pd.DataFrame({"language": ["en", "zh"], "num_bytes": [9, 9], "a": [4, 8], "b": [5, 5]})
    premiums = pd.DataFrame(
        {
            "language": ["en", "zh", "en", "zh"],
            "tokenizer": ["a", "a", "b", "b"],
            "premium": [1.0, 2.0, 1.0, 1.5],
        }
    )
    table = tables.tokens_and_premiums(counts, premiums, ["a", "b"])
    assert table.loc["zh"].to_dict() == {
        "tokens, a": 8,
        "tokens, b": 5,
        "premium, a": 2.0,
        "premium, b": 1.5,
    }


def test_block_use_is_in_percent_and_omits_special_tokens():
    usage = pd.DataFrame(
        {
            "block": ["special", "cjk"],
            "ids": [4, 10],
            "unused": [1.0, 0.25],
            "tokens": [0.0, 0.5],
        }
    )
    table = tables.block_use(usage)
    assert table.index.tolist() == ["cjk"]
    assert table.loc["cjk"].tolist() == [10, 25.0, 50.0]


def test_gains_over_peers_name_the_languages_whose_interval_is_above_or_below_zero():
    frame = pd.DataFrame(
        {
            "language": ["zh", "ja", "ko", "zh", "ja", "ko"],
            "tokenizer": ["over Mistral v0.1"] * 3 + ["over joint BPE"] * 3,
            "gain": [40.0, 60.0, 50.0, 2.0, -3.0, 0.1],
            "low": [39.0, 59.0, 49.0, 1.0, -4.0, -1.0],
            "high": [41.0, 61.0, 51.0, 3.0, -2.0, 1.0],
        }
    )
    words = tables.gains_over_peers(frame, ["zh", "ja", "ko"])
    assert "gains 40 to 60 %" in words and "gains in zh and loses in ja." in words
    assert "has no Chinese" in tables.gains_over_peers(frame, [])


def test_the_spread_of_premiums_is_the_largest_over_the_smallest():
    premiums = pd.DataFrame({"tokenizer": ["a", "a", "b"], "premium": [1.0, 1.5, 1.0]})
    words = tables.spread_of_premiums(premiums)
    assert "1.50 times the cheapest with a, 1.00 times the cheapest with b" in words
    assert "no translations" in tables.spread_of_premiums(premiums.iloc[:0])


def test_the_worked_example_of_bpe_merges_the_most_frequent_pair_first():
    words = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    table = tables.merges_example(words, "lowest", 4)
    pieces = table["'lowest' in pieces"].tolist()
    assert pieces[0] == "l o w e s t" and pieces[-1] == "low est" and len(table) == 5
    assert table["joins"].tolist()[1:3] == ["e + s", "es + t"]  # 9 times; all other pairs fewer
    assert all("".join(cut.split()) == "lowest" for cut in pieces)


def test_a_candidate_s_worth_is_tokens_saved_per_megabyte_and_the_best_is_taken_first():
    formed = {"the": (3000, 0), "ing": (1500, 0), "ko": (10, 900)}
    table = tables.worth_example(formed, {"English": 2_000_000, "Korean": 500_000}, "Korean")
    # half of 3,000 in two megabytes; half of 10 in two and half of 900 in half a megabyte
    assert table["worth, equal weights"].tolist() == pytest.approx([750, 375, 902.5])
    assert table["taken, equal weights"].tolist() == [2, 3, 1]
    assert table["worth, Korean twice"].tolist() == pytest.approx([500, 250, 1200 + 10 / 6])
    assert table["formed, Korean"].tolist() == [0, 0, 900]


def test_an_even_use_of_all_ids_has_efficiency_one_and_an_unused_half_costs():
    uses = {"even": (2, 2, 2, 2), "one frequent": (5, 1, 1, 1), "half unused": (2,) * 4 + (0,) * 4}
    even, frequent, unused = tables.evenness_example(uses)["efficiency"]
    assert even == pytest.approx(1) and unused == pytest.approx(2 / 3) and frequent < even
