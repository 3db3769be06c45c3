"""Exact and near-duplicates: found in every script, verified, and independent of order and
partitions.
"""

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.data import dedup
from moxin_lab.data.extract import DOCUMENTS

LETTERS = {
    "en": "abcdefghijklmnopqrstuvwxyz",
    "zh": "数据清洗与去重排序表格文档打开关闭选择菜单按钮窗口",
    "ko": "가나다라마바사아자차카타파하문서열행단추",
}


def documents(texts: dict[str, str]) -> pa.Table:
    rows = [
        {"id": key, "source": "s", "language": "en", "page": key, "text": text}
        for key, text in texts.items()
    ]
    return pa.Table.from_pylist(rows, schema=DOCUMENTS)


def random_text(rng: random.Random, length: int, language: str = "en") -> str:
    """Words for English, no spaces for Chinese and Korean."""
    letters = "".join(rng.choice(LETTERS[language]) for _ in range(length))
    return (
        " ".join(letters[i : i + 6] for i in range(0, length, 6)) if language == "en" else letters
    )


def altered(text: str, rng: random.Random, changes: int) -> str:
    """The text with `changes` characters replaced, spread evenly so that no two changes share a
    13-gram.
    """
    characters = list(text)
    for i in range(changes):
        position = (2 * i + 1) * len(characters) // (2 * changes)
        characters[position] = rng.choice("XYZ")
    return "".join(characters)


def pairs_of(*tables: pa.Table, bands: int = 21, rows: int = 6) -> pa.Table:
    frame = dedup.frame(*tables)
    signed = dedup.signatures(frame, 128, 13)
    return dedup.collect(
        dedup.similarities(dedup.candidate_pairs(signed, bands, rows), frame, 13), ["a", "b"]
    )


def deduplicated(table: pa.Table) -> list[str]:
    kept, exact = dedup.drop_exact(table)
    kept, near = dedup.drop_near(kept, pairs_of(kept), 0.8)
    assert kept.num_rows + exact.num_rows + near.num_rows == table.num_rows
    return sorted(kept["id"].to_pylist())


def test_features_are_those_of_slimpajamas_code() -> None:
    assert dedup.features("  Hello,\n\tWORLD!  a-b  你好。 ") == "hello world ab 你好。"


def test_shingles_are_the_distinct_character_13_grams() -> None:
    text = "the quick brown fox jumps over the quick brown fox"
    expected = {text[i : i + 13] for i in range(len(text) - 12)}
    assert len(dedup.shingles(text, 13)) == len(expected)


@given(st.text("ab 你", max_size=40), st.text("ab 你", max_size=40), st.integers(1, 5))
def test_jaccard_of_hashed_shingles_equals_that_of_the_strings(
    one: str, other: str, size: int
) -> None:
    def strings(text: str) -> set[str]:
        text = dedup.features(text)
        return {text[i : i + size] for i in range(max(len(text) - size + 1, 1))} if text else set()

    a, b = strings(one), strings(other)
    expected = len(a & b) / len(a | b) if a | b else 0.0
    assert dedup.jaccard(dedup.shingles(one, size), dedup.shingles(other, size)) == pytest.approx(
        expected
    )


def test_minhash_estimates_the_true_similarity() -> None:
    rng = random.Random(0)
    base = random_text(rng, 3000)
    table = documents({"a": base} | {f"b{n}": altered(base, rng, n) for n in (2, 10, 40, 80)})
    signed = dict(
        zip(
            *dedup.collect(dedup.signatures(dedup.frame(table), 128, 13), ["id"])
            .to_pydict()
            .values(),
            strict=True,
        )
    )
    texts = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    for key, text in texts.items():
        true = dedup.jaccard(dedup.shingles(base, 13), dedup.shingles(text, 13))
        estimate = float(np.mean(np.array(signed["a"]) == np.array(signed[key])))
        # Four standard errors of a binomial.
        assert abs(estimate - true) <= 4 * np.sqrt(true * (1 - true) / 128) + 1e-9


@pytest.mark.parametrize("language", LETTERS)
def test_planted_near_duplicates_are_found_in_every_script(language: str) -> None:
    """40 originals, each with a copy of a Jaccard similarity of about 0.87.

    The wide bands find at least 39 of the 40 pairs, and no other pair.
    """
    rng = random.Random(1)
    texts = {}
    for i in range(40):
        texts[f"a{i:02d}"] = random_text(rng, 1200, language)
        texts[f"b{i:02d}"] = altered(texts[f"a{i:02d}"], rng, 6)
    pairs = pairs_of(documents(texts))
    close = [(row["a"], row["b"]) for row in pairs.to_pylist() if row["jaccard"] >= 0.8]
    assert len(close) >= 39 and all(a == "a" + b[1:] for a, b in close)


def test_the_recipes_bands_find_as_many_pairs_as_theory_predicts() -> None:
    """200 planted pairs with similarities near 0.8.

    9 bands of 13 rows find about 40 % of them, within four standard errors; 21 bands of 6 rows find
    nearly all.
    """
    rng = random.Random(2)
    texts = {}
    for i in range(200):
        texts[f"a{i:03d}"] = random_text(rng, 1200)
        texts[f"b{i:03d}"] = altered(texts[f"a{i:03d}"], rng, 11)
    table = documents(texts)
    every = [
        dedup.jaccard(
            dedup.shingles(texts[f"a{i:03d}"], 13), dedup.shingles(texts[f"b{i:03d}"], 13)
        )
        for i in range(200)
    ]
    expected = dedup.collision_probability(np.array(every), 9, 13)
    found = pairs_of(table, bands=9, rows=13).num_rows
    assert 0.7 < np.mean(every) < 0.85
    assert abs(found - expected.sum()) <= 4 * np.sqrt((expected * (1 - expected)).sum())
    assert pairs_of(table).num_rows >= 190


def test_the_matrix_product_finds_the_pairs_of_a_loop_over_all_pairs() -> None:
    rng = random.Random(8)
    texts = {f"a{i}": random_text(rng, 300) for i in range(6)}
    texts |= {f"b{i}": altered(texts[f"a{i}"], rng, i + 1) for i in range(6)} | {
        "empty": "",
        "tiny": "ab",
    }
    sets = {key: dedup.shingles(text, 13) for key, text in texts.items()}
    slow = {(a, b): dedup.jaccard(sets[a], sets[b]) for a in texts for b in texts if a < b}
    fast = dedup.similar_pairs(documents(texts), 13, 0.3).to_pylist()
    assert {(row["a"], row["b"]): row["jaccard"] for row in fast} == {
        k: pytest.approx(v) for k, v in slow.items() if v >= 0.3
    }
    assert len(fast) >= 3


def test_no_duplicates_removes_nothing() -> None:
    rng = random.Random(3)
    table = documents({f"d{i}": random_text(rng, 400) for i in range(20)})
    assert deduplicated(table) == sorted(table["id"].to_pylist())


def test_all_duplicates_leave_the_smallest_id() -> None:
    text = random_text(random.Random(4), 400)
    assert deduplicated(documents({f"d{i:02d}": text for i in range(30)})) == ["d00"]
    # Texts that differ in punctuation have equal features.
    assert deduplicated(documents({f"d{i:02d}": text + "!" * i for i in range(30)})) == ["d00"]


@pytest.mark.parametrize("text", ["", "!!!", " \n", "ab", "你好", "a"])
def test_empty_and_tiny_documents_are_compared_without_a_crash(text: str) -> None:
    table = documents({"a": text, "b": text + " ", "c": random_text(random.Random(5), 300)})
    kept = deduplicated(table)
    assert "a" in kept and "c" in kept
    assert ("b" in kept) == (
        dedup.features(text) == ""
    )  # without features there is nothing to compare


def test_an_empty_table_stays_empty() -> None:
    assert deduplicated(DOCUMENTS.empty_table()) == []


def test_a_chain_of_pairs_is_one_component_and_pairs_below_the_threshold_are_none() -> None:
    rows = [("b", "c", 0.9), ("a", "b", 0.81), ("d", "e", 0.79)]
    pairs = pa.Table.from_pylist([{"a": a, "b": b, "jaccard": s} for a, b, s in rows])
    assert dedup.near_duplicates(pairs, 0.8).to_pylist() == [
        {"id": "b", "duplicate_of": "a", "jaccard": 0.9},
        {"id": "c", "duplicate_of": "a", "jaccard": 0.9},
    ]


def test_a_rejected_duplicate_keeps_its_text_and_names_the_kept_document() -> None:
    text = random_text(random.Random(6), 500)
    kept, rejected = dedup.drop_exact(documents({"a": text, "b": text}))
    assert kept["id"].to_pylist() == ["a"]
    (row,) = rejected.to_pylist()
    assert (
        row["content"].decode() == text
        and row["detail"] == "copy of a"
        and row["reason"] == "exact duplicate"
    )


@pytest.mark.parametrize(("seed", "partitions"), [(0, 1), (1, 3), (2, 10)])
def test_the_result_does_not_depend_on_row_order_and_partitions(seed: int, partitions: int) -> None:
    rng = random.Random(7)
    texts = {f"a{i:02d}": random_text(rng, 600) for i in range(15)}
    texts |= {key.replace("a", "b"): altered(text, rng, 3) for key, text in texts.items()}
    texts |= {"c00": texts["a00"]}
    table = documents(texts)
    order = random.Random(seed).sample(range(table.num_rows), table.num_rows)
    parts = [table.take(order[start::partitions]) for start in range(partitions)]
    assert pairs_of(*parts).equals(pairs_of(table))
    exact = [
        dedup.collect(dedup.exact_duplicates(dedup.frame(*tables)), ["id"])
        for tables in (parts, [table])
    ]
    assert exact[0].equals(exact[1]) and exact[0].num_rows == 1
    assert deduplicated(table.take(order)) == deduplicated(table)
    assert 15 <= len(deduplicated(table)) < 20


def test_too_few_permutations_for_the_bands_are_refused() -> None:
    table = documents({"a": "x" * 50, "b": "y" * 50})
    signed = dedup.signatures(dedup.frame(table), 16, 13)
    with pytest.raises(Exception, match="need 117 permutations, not 16"):
        dedup.collect(dedup.candidate_pairs(signed, 9, 13), ["a", "b"])


def test_the_usage_reports_of_daft_are_off() -> None:
    import os

    assert os.environ["DAFT_ANALYTICS_ENABLED"] == "0"
