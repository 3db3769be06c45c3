"""Tables of notebook 01: counts add up and keep their order, excerpts show what was removed."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moxin_lab import scales
from moxin_lab.data import all_pairs, engine, measures, tables


def pairs(*rows):
    return pa.Table.from_pylist(
        [dict(zip("ab", row[:2], strict=True), jaccard=row[2]) for row in rows]
    )


def removed(*rows):
    """(id, step, detail) rows as `artifact.removed` has them."""
    frame = pd.DataFrame(rows, columns=["id", "step", "detail"])
    return frame.assign(source="s", language="ko", reason="r", num_bytes=10)


def near(key, kept, jaccard):
    return (key, "near-duplicates", f"{kept} stays (Jaccard {jaccard:.3f})")


def test_the_closest_pair_is_the_most_similar_one_that_is_no_copy_and_has_the_prefix():
    found = tables.near_pairs(
        removed(near("x/2", "x/1", 0.99), near("en/2", "en/1", 0.8), near("en/4", "en/3", 1.0))
    )
    assert tables.closest_pair(found, "en/")["id"] == "en/2"
    assert tables.closest_pair(found, "ko/")["id"] == "x/2"
    assert tables.closest_pair(found.iloc[:0], "en/") is None


def test_a_cluster_counts_the_copies_of_copies_and_the_document_that_stays():
    rows = [near(f"a{n}", "a0", 0.9) for n in range(1, 4)]  # a0 to a3
    rows += [("a4", "exact duplicates", "copy of a3"), ("b1", "exact duplicates", "copy of b0")]
    rows += [near("c stays (Jaccard 1", "c", 0.85)]
    table = tables.clusters(removed(*rows))
    assert table.to_numpy().tolist() == [["2", 2, 2], ["4 to 5", 1, 4]]
    assert tables.clusters(removed()).empty


def test_a_pair_is_shown_by_the_lines_in_which_it_differs_which_are_cut(tmp_path):
    sides = {
        "train": [("a", "same\n\nnew")],
        "heldout": [],
        "removed": [("b", "same\n" + "o" * 200)],
    }
    for side, rows in sides.items():
        (tmp_path / side).mkdir()
        schema = pa.schema([("id", pa.string()), ("text", pa.string())])
        table = pa.Table.from_pylist([{"id": i, "text": text} for i, text in rows], schema=schema)
        pq.write_table(table, tmp_path / side / "00000.parquet")
    told = tables.difference_of_closest(tmp_path, removed(near("b", "a", 0.9)), "x/")
    assert told.startswith("`b` against `a`, Jaccard 0.900, 2 and 2 lines")
    assert told.endswith("```diff\n-" + "o" * 149 + "\n+new\n```")


COUNTS = pd.DataFrame(
    {
        "step": ["reading", "reading", "short filter", "short filter"],
        "source": ["s", "t", "s", "t"],
        "language": ["en", "zh", "en", "zh"],
        "documents": [4, 5, 1, 2],
        "bytes": [40, 5_000_000, 10, 20],
    }
)


def test_documents_after_each_step_come_in_the_order_of_the_steps():
    table = tables.left_after_each_step(COUNTS, "documents")
    assert table.index.tolist() == ["reading", "short filter"]
    assert table["en"].tolist() == [4, 1]
    table = tables.left_after_each_step(COUNTS, "megabytes", "source")
    assert table.loc["reading"].tolist() == [40e-6, 5.0]


def test_the_steepest_fall_is_the_largest_share_of_a_column_and_idle_steps_are_named():
    steps = pd.Index(["reading", "NFC", "short filter", "language"], name="step")
    left = pd.DataFrame({"en": [100, 100, 60, 60], "ko": [10, 10, 9, 3]}, index=steps)
    told = tables.steepest_fall(left, "documents")
    assert "*language* in the column `ko` (Korean)" in told and "6 of 9 documents" in told
    assert "(67 %)" in told and told.endswith("Nothing of any column goes at *NFC*.")
    assert "6.0 of 9.0 megabytes" in tables.steepest_fall(left.astype(float), "megabytes")
    gone = pd.DataFrame({"en": [5, 0, 0, 0], "code": [0, 0, 0, 0]}, index=steps)
    assert "*NFC* in the column `en` (English)" in tables.steepest_fall(gone, "documents")
    assert tables.steepest_fall(left.iloc[:2], "documents") == "No step takes any documents."


def test_languages_beyond_a_dozen_are_one_column_and_none_is_lost():
    many = pd.concat([COUNTS.assign(language=f"l{n}", bytes=n) for n in range(20)])
    table = tables.left_after_each_step(many, "documents")
    assert len(table.columns) == tables.MOST_SHOWN and "others" in table
    assert table.loc["reading"].sum() == 9 * 20


def test_shares_are_of_what_reached_the_short_filter_and_of_the_bytes_read():
    data = scales.load("tiny").data
    assert tables.short_share(data, COUNTS) == pytest.approx(100 * 6 / 9)
    questions = data.model_copy(update={"benchmark_sources": ("t",)})
    assert tables.short_share(questions, COUNTS) == pytest.approx(75)
    gone = removed(("a", "short filter", "9"), near("b", "a", 1), ("c", "language", "en 90%"))
    assert tables.removed_share(COUNTS, gone) == pytest.approx(100 * 20 / 5_000_040)


def test_a_licence_is_the_documents_own_or_its_sources():
    train = pd.DataFrame(
        {
            "source": ["help_pages", "small_corpus", "small_corpus"],
            "licence": ["", "MIT", ""],
            "code_language": ["", "C", ""],
            "num_bytes": [10, 30, 20],
        }
    )
    data = scales.load("tiny").data
    found = tables.licences(data, train).set_index("licence")["documents"].to_dict()
    assert found == {"mpl-2.0": 1, "MIT": 1, "of each document its own": 1}
    assert tables.programming_languages(train).to_numpy().tolist() == [["C", 1, 30e-6]]


def test_what_is_most_is_shown_and_the_rest_is_one_row():
    train = pd.DataFrame(
        {"code_language": [f"l{n:02}" for n in range(15)], "num_bytes": range(15, 0, -1)}
    )
    table = tables.programming_languages(train)
    assert table["programming language"].tolist() == [*(f"l{n:02}" for n in range(12)), "3 others"]
    assert table["documents"].sum() == 15


def test_overlap_is_the_mean_share_and_the_most_of_a_document():
    overlap = pd.DataFrame({"language": ["en", "en", "ko"], "covered": [0.5, 0.1, 0.0]})
    table = tables.overlap_by_language(overlap)
    assert table.loc["en"].tolist() == pytest.approx([30, 50])
    assert table.loc["ko"].tolist() == [0, 0]


def test_removed_languages_are_counted_by_the_one_stated():
    rows = [("a", "language", "en 90%, ja 9%"), ("b", "language", "en 100%"), ("e", "NFC", "x")]
    rows += [("c", "language", "ja 51%"), ("d", "language", "no letters")]
    found = tables.other_languages(removed(*rows)).to_numpy().tolist()
    assert found[0] == ["ko", "en", 2]
    assert sorted(found[1:]) == [["ko", "ja", 1], ["ko", "no letters", 1]]


def test_similar_pairs_stay_within_a_language_and_the_first_documents():
    text = "the same words of one and the same page"
    documents = pa.table(
        {"id": ["a", "b", "c", "d"], "language": ["en", "en", "en", "zh"], "text": [text] * 4}
    )
    found = all_pairs.similar_pairs_by_language(documents, 5, 0.5, max_documents=2)
    assert found.to_pylist() == [{"a": "a", "b": "b", "jaccard": 1.0}]


def test_recall_above_a_threshold_has_the_theory_beside_it():
    everything = pairs(("a", "b", 1.0), ("c", "d", 0.9), ("e", "f", 0.5))
    table = measures.recall_above(
        everything, {"x": everything.slice(0, 1)}, {"x": (1, 1)}, threshold=0.8
    )
    row = table.loc["x"]
    assert (row["pairs"], row["found"], row["share"]) == (2, 1, 0.5)
    assert row["expected"] == pytest.approx(1.9) and row["deviation"] == pytest.approx(0.3)


def test_examples_of_dropped_documents_are_the_first_and_the_longest_and_stay_text(tmp_path):
    rows = [
        dict.fromkeys(engine.REMOVED.names, "x")
        | {"id": f"d{n}", "step": step, "reason": "short", "detail": "9"}
        | {"text": text, "num_bytes": len(text)}
        for n, (step, text) in enumerate(
            [("short", "# a heading"), ("short", "<b>x</b>" * 9), ("short", "y"), ("late", "z")]
        )
    ]
    (tmp_path / "removed").mkdir()
    for number, part in enumerate((rows[1:], rows[:1])):
        table = pa.Table.from_pylist(part, schema=engine.REMOVED)
        pq.write_table(table, tmp_path / "removed" / f"{number}.parquet")
    (tmp_path / "run.json").write_text(json.dumps({"steps": ["reading", "short", "late"]}))
    found = tables.dropped_examples(tmp_path)
    assert found.count("<details ") == 3 and "the first of 3: d0" in found
    assert "the longest of 3: d1" in found and "<b>" not in found
    assert found.index("short, the first") < found.index("late, the first of 1: d3")
