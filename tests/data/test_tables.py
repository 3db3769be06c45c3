"""Tables of notebook 01: excerpts show the pair that was removed, and counts keep their order."""

import pandas as pd
import pyarrow as pa
import pytest

from moxin_lab.data import dedup, measures, tables


def pairs(*rows):
    return pa.Table.from_pylist(
        [dict(zip("ab", row[:2], strict=True), jaccard=row[2]) for row in rows]
    )


def test_the_closest_pair_is_the_most_similar_one_that_is_no_copy_and_has_the_prefix():
    table = pairs(("x/1", "x/2", 0.99), ("en/1", "en/2", 0.8), ("en/3", "en/4", 1.0))
    assert tables.closest_pair(table, 0.8, "en/")["b"] == "en/2"
    assert tables.closest_pair(table, 0.9, "en/")["b"] == "en/4"
    assert tables.closest_pair(table, 0.9, "ko/")["b"] == "x/2"
    assert tables.closest_pair(table.slice(0, 0), 0.9, "en/") is None


def test_different_lines_are_marked_by_the_document_that_has_them_and_cut():
    documents = pa.table({"id": ["a", "b"], "text": ["same\n\nnew", "same\n" + "o" * 200]})
    removed, kept = tables.lines(documents, "b"), tables.lines(documents, "a")
    assert kept == ["same", "new"]
    assert tables.different_lines(removed, kept) == ["-" + "o" * 149, "+new"]


def test_documents_after_each_step_come_in_the_order_of_the_steps():
    counts = pd.DataFrame(
        {
            "step": ["NFC", "NFC", "extraction", "extraction"],
            "source": ["s", "t", "s", "t"],
            "language": ["en", "en", "en", "zh"],
            "documents": [1, 2, 4, 5],
        }
    )
    table = tables.left_after_each_step(counts, "documents")
    assert table.index.tolist() == ["extraction", "NFC"]
    assert table["en"].tolist() == [4, 3]


def test_overlap_is_the_mean_share_and_the_share_of_half_covered_documents():
    overlap = pd.DataFrame({"language": ["en", "en", "ko"], "covered": [0.5, 0.1, 0.0]})
    table = tables.overlap_by_language(overlap)
    assert table.loc["en"].tolist() == pytest.approx([30, 50])
    assert table.loc["ko"].tolist() == [0, 0]


def test_rejected_languages_are_counted_by_the_one_stated():
    foreign = pa.table(
        {"language": ["ko", "ja", "ko", "ko"], "detail": ["en 9", "zh 8", "ja", "en"]}
    )
    rows = tables.other_languages(foreign).to_numpy().tolist()
    assert rows == [["ja", "zh", 1], ["ko", "en", 2], ["ko", "ja", 1]]


def test_similar_pairs_stay_within_a_language_and_the_first_documents():
    text = "the same words of one and the same page"
    documents = pa.table(
        {"id": ["a", "b", "c", "d"], "language": ["en", "en", "en", "zh"], "text": [text] * 4}
    )
    found = dedup.similar_pairs_by_language(documents, 5, 0.5, max_documents=2)
    assert found.to_pylist() == [{"a": "a", "b": "b", "jaccard": 1.0}]


def test_recall_above_a_threshold_has_the_theory_beside_it():
    everything = pairs(("a", "b", 1.0), ("c", "d", 0.9), ("e", "f", 0.5))
    table = measures.recall_above(
        everything, {"x": everything.slice(0, 1)}, {"x": (1, 1)}, threshold=0.8
    )
    row = table.loc["x"]
    assert (row["pairs"], row["found"], row["share"]) == (2, 1, 0.5)
    assert row["expected"] == pytest.approx(1.9) and row["deviation"] == pytest.approx(0.3)
