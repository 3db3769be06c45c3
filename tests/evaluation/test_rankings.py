"""Printed tables: a cell has the interval of its n, and rankings are as sure as they say."""

import math
from pathlib import Path

import pandas as pd
import pytest

from moxin_lab.evaluation import comparison_figures, rankings
from moxin_lab.evaluation.statistics import wilson_interval
from moxin_lab.lab import claims, published

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "papers" / "tables"


@pytest.fixture(scope="module")
def cells():
    return rankings.with_intervals(published.cells(TABLES))


def test_every_printed_cell_is_one_row_with_its_source(cells):
    assert list(cells.columns[:9]) == (
        ["table", "model", "benchmark", "value", "metric", "shots", "n", "source", "note"]
    )
    expected = sum(published.table(TABLES, entry["file"]).size for entry in published.index(TABLES))
    assert len(cells) == expected
    assert not cells.duplicated(["table", "model", "benchmark"]).any()
    assert cells["source"].str.contains("report|README|website|card", case=False).all()


def test_a_cells_interval_is_wilsons_of_its_questions(cells):
    row = cells.set_index(["table", "model", "benchmark"]).loc[
        ("table_2_zero_shot_base", "Mistral-7B", "WinoGrande")
    ]
    expected = wilson_interval(round(0.734 * 1267), 1267)
    assert (row["low"], row["high"]) == pytest.approx((100 * expected.low, 100 * expected.high))
    known = cells["n"].notna() & cells["value"].map(lambda value: isinstance(value, float))
    assert (cells.loc[known, "low"] <= cells.loc[known, "value"] + 0.05).all()
    assert cells.loc[cells["n"].isna(), "low"].isna().all()
    assert cells.loc[cells["benchmark"] == "Ave", "n"].isna().all()


def test_the_numbers_of_questions_are_those_of_the_claim_that_names_them():
    claim = next(each for each in claims.load(ROOT) if each["id"] == "eval.above-similar-7b")
    counts = published.items(TABLES)
    assert claim["items"].items() <= counts.items()


def test_a_ranking_is_seen_only_where_the_corrected_interval_excludes_zero():
    rows = [
        ("t", model, benchmark, value, 1000)
        for model, values in {"a": (80.0, 70.0), "b": (79.0, 70.0), "c": (60.0, 60.0)}.items()
        for benchmark, value in zip(("x", "y"), values, strict=True)
    ]
    cells = pd.DataFrame(rows, columns=["table", "model", "benchmark", "value", "n"])
    compared = rankings.pairs(cells, "t").set_index(["first", "second"])
    assert compared["seen"].to_dict() == {("a", "b"): False, ("a", "c"): True, ("b", "c"): True}
    row = compared.loc[("a", "c")]
    variance = sum(p * (1 - p) for p in (0.8, 0.7, 0.6, 0.6)) / 1000 / 4
    z = 2.3939798  # of 1 - 0.05 / 3 / 2
    half = 100 * z * math.sqrt(variance)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(
        (15.0, 15.0 - half, 15.0 + half)
    )
    with pytest.raises(ValueError, match="is not known"):
        rankings.pairs(cells.assign(n=None), "t")


def test_the_picture_shows_every_pair_of_the_reports_table(cells):
    compared = rankings.pairs(cells, "table_2_zero_shot_base")
    models = cells.loc[cells["table"] == "table_2_zero_shot_base", "model"].nunique()
    assert len(compared) == models * (models - 1) // 2
    assert 0 < compared["seen"].sum() < len(compared)
    figure = comparison_figures.rankings(compared)
    drawn = sum(len(line.get_xdata()) for line in figure.axes[0].lines)
    assert drawn == len(compared)
    assert "Moxin-7B-Enhanced is above" in comparison_figures.rankings_alt(compared)
    assert rankings.sentence(compared).startswith(
        f"The intervals support {compared['seen'].sum()} of {len(compared)} rankings."
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("m,x\na,nan\n", "'nan' is no printed number"),
        ("m,x\na,inf\n", "'inf' is no printed number"),
        ("m,x\na,1_000\n", "'1_000' is no printed number"),
        ("m,x\na,٣\n", "is no printed number"),
        ("m,x\na,1e5\n", "is no printed number"),
        ("\ufeffm,x\na,1\n", "byte order mark"),
        ("m,x\na,1\na,2\n", "row a twice"),
        ("m,x,x\na,1,2\n", "column x twice"),
        ("m,x\na,1,2\n", "row 2 has 3 cells and the header 2"),
        ("m,x\na\n", "row 2 has 1 cells"),
        ("m,x\na,\n", "row 2: a cell is empty"),
        ("m,x\n a,1\n", "begins or ends in a blank"),
        ("m,x\n\na,1\n", "row 2 has 0 cells"),
        ('m,x\na,"1\n', "is not a table"),
        ("m,x\n", "needs a header and rows"),
        ("", "is not a table"),
        (b"m,x\na,\xff\n", "is not a table"),
    ],
)
def test_a_malformed_row_is_refused_with_the_file_and_the_reason(tmp_path, content, reason):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"t\.csv") as refused:
        published.table(tmp_path, "t.csv")
    assert reason in str(refused.value)


def test_words_of_a_table_stay_words(tmp_path):
    (tmp_path / "t.csv").write_text("m,x,y\na,-1.5,n/a\n", encoding="utf-8")
    assert published.table(tmp_path, "t.csv").to_numpy().tolist() == [[-1.5, "n/a"]]
