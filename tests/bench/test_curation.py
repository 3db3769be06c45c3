"""The bench of curation: copies are edited as told, pairs are scored right, every part has rows."""

import argparse
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab import bench
from moxin_lab.bench import curation, curation_scale, planted
from moxin_lab.data import dedup, minhash


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_common_arguments(parser)
    curation.add_arguments(parser)
    return parser.parse_args(list(words))


@given(st.text("ab 漢字かな\nก", max_size=60))
def test_words_joined_are_the_text_and_unspaced_ones_have_two_characters(text: str) -> None:
    pieces = planted.words(text)
    assert "".join(pieces) == text
    assert all(piece.isspace() or not any(map(str.isspace, piece)) for piece in pieces)
    assert all(len(piece) <= 2 for piece in pieces if piece[0] in "漢字かなก")


@pytest.mark.parametrize("share", [0.02, 0.05, 0.10])
def test_so_many_words_are_replaced(share: float) -> None:
    text = " ".join(f"word{n}" for n in range(200))
    copy = planted.edited(text, share, ["other"], random.Random(0))
    assert copy.split().count("other") == 200 * share
    assert len(copy.split()) == 200


def test_pairs_are_scored_by_what_was_planted() -> None:
    case = planted.Planted(None, {("a", "a-copy"): 0.9, ("b", "b-copy"): 0.5})
    found = [("a-copy", "a"), ("a", "b"), ("a", "a-copy")]
    assert planted.score(case, found) == {
        "planted": 2, "recall": 0.5, "found": 2, "precision": 0.5,
    }  # fmt: skip
    assert planted.score(case, [], least=0.95) == {
        "planted": 0, "recall": None, "found": 0, "precision": None,
    }  # fmt: skip


def test_natural_near_duplicates_are_left_out_before() -> None:
    pages = [" ".join(f"{n}w{i}" for i in range(100)) for n in "abc"]
    case = planted.plant([*pages, pages[0] + " end"], 0.05, dedup.STRICT, seed=0)
    assert sorted(case.similarity) == [(f"0000{n}", f"0000{n}-copy") for n in range(3)]


def test_peers_get_the_ngrams_that_ours_hashes() -> None:
    for text in (
        "The same text, twice: the same text.",
        "短い文",
        "",
        "日本語のテキストです。同じ",
    ):
        assert len(planted.shingle_sets(text, 5)) == len(minhash.shingles(text, 5))


def test_ours_and_the_peers_find_copies_in_four_languages(monkeypatch) -> None:
    pages = [
        (language, " ".join(f"{language}{n}語{i}" for i in range(120)))
        for language in curation.LANGUAGES
        for n in range(8)
    ]
    monkeypatch.setattr(curation, "help_pages", lambda cards: iter(pages))
    rows = curation.planted_rows(options("--pages", "3"))
    assert {row["method"] for row in rows} == {"ours", "datasketch", "rensa", "datatrove"}
    assert len(rows) == 3 * 4 * 3 * 3 + 4 * 3
    strict = [row for row in rows if row["setting"] == "strict" and row["method"] == "ours"]
    assert all((row["recall"], row["precision"]) == (1.0, 1.0) for row in strict)


def test_speed_is_told_for_every_method_on_the_same_kind_of_text(monkeypatch) -> None:
    texts = [f"The window opens at place {n}. " * 20 for n in range(40)]
    monkeypatch.setattr(curation, "corpus_texts", lambda *a, **k: iter(texts))
    rows = curation.run(options("--parts", "minhash", "filters"))["rows"]
    by_method = {row["method"]: row for row in rows}
    assert by_method["ours"]["MB"] == pytest.approx(10 * by_method["rensa"]["MB"], rel=0.05)
    assert all(row["MB/s"] > 0 for name, row in by_method.items() if "MB" in row)
    assert "--datatrove" in by_method["datatrove"]["reason"]
    both = by_method["heuristics and language"]["CPU seconds"]
    parts = by_method["heuristics"]["CPU seconds"] + by_method["language"]["CPU seconds"]
    assert both == pytest.approx(parts)


def test_cost_tops_a_small_corpus_up_with_edited_copies_and_its_exponent_is_drawn(
    monkeypatch, tmp_path
) -> None:
    # enough of a text that a shingle is not shared by chance
    texts = [" ".join(f"{n}w{i}" for i in range(200)) for n in range(50)]
    monkeypatch.setattr(curation_scale, "corpus_texts", lambda *a, **k: iter(texts))
    monkeypatch.setattr(curation_scale, "_apart", lambda work, *arguments: work(*arguments))
    size = sum(map(len, texts)) / 1e6
    words = ["--parts", "cost", "--sizes", str(size), str(1.5 * size)]
    result = curation.run(options(*words, "--picture", str(tmp_path / "cost.svg")))
    small, large = result["rows"]
    assert (small["documents"], small["edited copies"], small["in groups"]) == (50, 0, 0)
    assert 20 < large["edited copies"] < 30
    assert large["MB"] >= 1.5 * size
    assert (tmp_path / "cost.svg").read_text("utf-8").startswith("<?xml")


def test_the_exponent_is_that_of_a_power() -> None:
    assert curation.exponent([(10, 3), (100, 30), (1000, 300)]) == pytest.approx(1)
    assert curation.exponent([(1, 5), (4, 80)]) == pytest.approx(2)


def test_a_peer_in_another_environment_answers_or_its_last_line_is_the_reason(tmp_path) -> None:
    def asked(body: str) -> dict:
        peer = tmp_path / "python"
        peer.write_text(f"#!/bin/sh\n{body}\n")
        peer.chmod(0o755)
        return curation._datatrove(options("--datatrove", str(peer)), "ja", ["a"])

    assert asked("""echo '{"seconds": 2, "pairs": [[0, 1]]}'""") == {
        "seconds": 2,
        "pairs": [[0, 1]],
    }
    assert asked("echo first >&2; echo no module >&2; exit 1") == {"reason": "no module"}
    # this environment has no datatrove: the script itself says so
    assert (
        "datatrove"
        in curation._datatrove(options("--datatrove", sys.executable), "en", ["a"])["reason"]
    )
