"""The table of several seeds: one row per measure, its mean and interval, and every seed."""

import math

import pandas as pd

from moxin_lab.evaluation.statistics import seed_interval
from moxin_lab.lab.seeds import over_seeds


def test_a_row_has_the_mean_the_interval_and_the_value_of_every_seed():
    found = {seed: {"wins": wins, "tokens": 4.0} for seed, wins in ((0, 0.5), (5, 1.0), (7, 0.75))}
    table = over_seeds(found, lambda each: (each.mean(), each.min(), each.max()))
    assert table.index.name == "what"
    assert [*table.columns] == ["mean", "low", "high", "seed 0", "seed 5", "seed 7"]
    assert table.loc["wins"].tolist() == [0.75, 0.5, 1.0, 0.5, 1.0, 0.75]
    assert table.loc["tokens"].tolist() == [4.0] * 6


def test_columns_of_tables_count_as_mappings_do_by_the_name_of_the_row():
    first = pd.Series({"en": 1.0, "zh": 2.0})
    table = over_seeds({0: first, 1: {"zh": 4.0, "en": 3.0}}, seed_interval)
    assert table["mean"].to_dict() == {"en": 2.0, "zh": 3.0}
    assert (table["low"] < 2).all()


def test_one_seed_has_a_mean_and_no_interval():
    row = over_seeds({3: {"wins": 0.5}}, seed_interval).loc["wins"]
    assert (row["mean"], row["seed 3"]) == (0.5, 0.5)
    assert math.isnan(row["low"]) and math.isnan(row["high"])
