"""Exact and near-duplicates: found in every script, verified, and independent of order and
partitions.
"""

import random

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.data import all_pairs, dedup, minhash, steps_across
from moxin_lab.data.extract import DOCUMENTS
from moxin_lab.data.steps import Marks

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


def pairs_of(*tables: pa.Table, bands: int = 21, rows: int = 6, threshold: float = 0.8) -> pa.Table:
    frame = dedup.frame(*tables)
    found = dedup.buckets(dedup.signatures(frame, 128, 13), bands, rows)
    return dedup.verified_pairs(found, frame, 13, threshold)


def deduplicated(table: pa.Table, **options) -> list[str]:
    """The ids that the recipe's two steps leave."""
    copies = without_copies(table)
    removed = dedup.near_duplicates(pairs_of(copies), dedup.frame(copies), 13, 0.8, **options)
    return sorted(set(copies["id"].to_pylist()) - set(removed["id"].to_pylist()))


def without_copies(*tables: pa.Table) -> pa.Table:
    """One document per text, by the step of the recipes."""
    marked = Marks(128, 13)(dedup.frame(*tables).with_column("step", daft.lit(None).cast("string")))
    copies = steps_across.exact_duplicates().removals(marked)
    whole = pa.concat_tables(tables).sort_by("id")
    return whole.filter(pc.invert(pc.is_in(whole["id"], copies["id"].cast(pa.string()))))


def test_features_are_those_of_slimpajamas_code() -> None:
    assert minhash.features("  Hello,\n\tWORLD!  a-b  你好。 ") == "hello world ab 你好。"


def test_shingles_are_the_distinct_character_13_grams() -> None:
    text = "the quick brown fox jumps over the quick brown fox"
    expected = {text[i : i + 13] for i in range(len(text) - 12)}
    assert len(minhash.shingles(text, 13)) == len(expected)


@given(st.text("ab 你", max_size=40), st.text("ab 你", max_size=40), st.integers(1, 5))
def test_jaccard_of_hashed_shingles_equals_that_of_the_strings(
    one: str, other: str, size: int
) -> None:
    def strings(text: str) -> set[str]:
        text = minhash.features(text)
        return {text[i : i + size] for i in range(max(len(text) - size + 1, 1))} if text else set()

    a, b = strings(one), strings(other)
    expected = len(a & b) / len(a | b) if a | b else 0.0
    assert minhash.jaccard(
        minhash.shingles(one, size), minhash.shingles(other, size)
    ) == pytest.approx(expected)


def test_minhash_estimates_the_true_similarity() -> None:
    rng = random.Random(0)
    base = random_text(rng, 3000)
    table = documents({"a": base} | {f"b{n}": altered(base, rng, n) for n in (2, 10, 40, 80)})
    columns = dedup.collect(dedup.signatures(dedup.frame(table), 128, 13), ["id"]).to_pydict()
    signed = dict(zip(*columns.values(), strict=True))
    texts = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    for key, text in texts.items():
        true = minhash.jaccard(minhash.shingles(base, 13), minhash.shingles(text, 13))
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
        minhash.jaccard(
            minhash.shingles(texts[f"a{i:03d}"], 13), minhash.shingles(texts[f"b{i:03d}"], 13)
        )
        for i in range(200)
    ]
    expected = dedup.collision_probability(np.array(every), 9, 13)
    frame = dedup.frame(table)
    signed = dedup.signatures(frame, 128, 13)
    planted = pa.table(
        {"a": [f"a{i:03d}" for i in range(200)], "b": [f"b{i:03d}" for i in range(200)]}
    )
    found = dedup.sharing(planted, dedup.buckets(signed, 9, 13)).num_rows
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
    sets = {key: minhash.shingles(text, 13) for key, text in texts.items()}
    slow = {(a, b): minhash.jaccard(sets[a], sets[b]) for a in texts for b in texts if a < b}
    fast = all_pairs.similar_pairs(documents(texts), 13, 0.3).to_pylist()
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
        minhash.features(text) == ""
    )  # without features there is nothing to compare


def test_an_empty_table_stays_empty() -> None:
    assert deduplicated(DOCUMENTS.empty_table()) == []


def test_a_chain_of_pairs_is_one_group_and_pairs_below_the_threshold_are_none() -> None:
    rows = [("b", "c", 0.9), ("a", "b", 0.81), ("d", "e", 0.79)]
    pairs = pa.Table.from_pylist([{"a": a, "b": b, "jaccard": s} for a, b, s in rows])
    assert dedup.groups(pairs, 0.8).to_pydict() == {"id": ["a", "b", "c"], "kept": ["a"] * 3}
    assert dedup.groups(pairs, 0.95).num_rows == 0


def sliding(count: int = 12, length: int = 1200) -> pa.Table:
    """Texts that each drop a tenth of the one before and add as much: neighbours are similar, the
    ends are not.
    """
    whole = random_text(random.Random(11), 3 * length)
    step = length // 12
    return documents({f"s{i:02d}": whole[i * step : i * step + length] for i in range(count)})


def test_what_is_told_of_a_removal_is_its_similarity_to_the_kept_document() -> None:
    table = sliding()
    texts = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    pairs = pairs_of(table, bands=42, rows=3)
    removed = dedup.near_duplicates(pairs, dedup.frame(table), 13, 0.8).to_pylist()
    assert len(removed) >= 10 and {row["duplicate_of"] for row in removed} == {"s00"}
    for row in removed:
        sides = (minhash.shingles(texts[key], 13) for key in (row["id"], "s00"))
        assert row["jaccard"] == pytest.approx(minhash.jaccard(*sides))
    assert min(row["jaccard"] for row in removed) < 0.2
    similar = dedup.near_duplicates(
        pairs, dedup.frame(table), 13, 0.8, only_similar_to_kept=True
    ).to_pylist()
    assert 1 <= len(similar) < len(removed) and all(row["jaccard"] >= 0.8 for row in similar)


def test_copies_that_differ_in_a_number_cost_time_and_memory_in_proportion_to_their_number() -> (
    None
):
    text = random_text(random.Random(12), 700)
    table = documents({f"n{i:05d}": f"{text} {i} of many" for i in range(3000)})
    frame = dedup.frame(table)
    found = dedup.buckets(dedup.signatures(frame, 128, 13), 9, 13)
    pairs = dedup.verified_pairs(found, frame, 13, 0.8)
    assert pairs.num_rows <= 3 * table.num_rows  # all pairs would be 4.5 million
    removed = dedup.near_duplicates(pairs, frame, 13, 0.8)
    assert removed["id"].to_pylist() == table["id"].to_pylist()[1:]


def test_a_bucket_of_several_kinds_gives_each_its_first() -> None:
    rng = random.Random(13)
    kinds = [random_text(rng, 600) for _ in range(3)]
    texts = {f"k{i:02d}": altered(kinds[i % 3], rng, 1) for i in range(12)}
    table = documents(texts)
    found = dedup.Buckets(sorted(texts), np.ones((12, 1), dtype=np.uint64))  # all in one bucket
    pairs = dedup.verified_pairs(found, dedup.frame(table), 13, 0.8)
    assert deduplicated(table) == ["k00", "k01", "k02"]
    assert set(dedup.groups(pairs, 0.8)["kept"].to_pylist()) == {"k00", "k01", "k02"}


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
    assert without_copies(*parts).equals(without_copies(table))
    assert without_copies(table).num_rows == table.num_rows - 1
    assert deduplicated(table.take(order)) == deduplicated(table)
    assert 15 <= len(deduplicated(table)) < 20


def test_too_few_permutations_for_the_bands_are_refused() -> None:
    table = documents({"a": "x" * 50, "b": "y" * 50})
    signed = dedup.signatures(dedup.frame(table), 16, 13)
    with pytest.raises(ValueError, match="need 117 permutations, not 16"):
        dedup.buckets(signed, 9, 13)


def test_the_usage_reports_of_daft_are_off() -> None:
    import os

    assert os.environ["DAFT_ANALYTICS_ENABLED"] == "0"


def test_pairs_left_out_by_sketches_change_no_group_and_are_not_read(monkeypatch) -> None:
    draw = random.Random(0)
    pool = [f"word{n}" for n in range(400)]
    texts = {}
    for group in range(12):
        # one half of a page is the same everywhere: many share a bucket, few are similar
        own = draw.sample(pool, 60)
        for copy in range(3):
            own[draw.randrange(60)] = "changed"
            texts[f"{group:02}-{copy}"] = " ".join(pool[:60] + own)
    table = pa.table({"id": list(texts), "text": list(texts.values())})
    documents = dedup.frame(table)
    signed = dedup.signatures(documents, 128, 5)
    found = dedup.buckets(signed, 42, 3)
    read: list[int] = []
    similarities_of = dedup._similarities_of

    def counted(pairs: pa.Table, *rest: object) -> np.ndarray:
        read.append(len(pairs))
        return similarities_of(pairs, *rest)

    monkeypatch.setattr(dedup, "_similarities_of", counted)
    with_sketches = dedup.groups(dedup.verified_pairs(found, documents, 5, 0.8), 0.8)
    number, read[:] = sum(read), []
    without = found._replace(sketches=None)
    assert with_sketches.equals(dedup.groups(dedup.verified_pairs(without, documents, 5, 0.8), 0.8))
    assert len(set(with_sketches["kept"].to_pylist())) == 12
    assert number < sum(read) / 3


def test_what_is_kept_for_later_pairs_changes_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    pool = [f"word{number}" for number in range(300)]
    # Half of each text is the same: buckets take several rounds.
    texts = [" ".join(pool[:60] + draw.sample(pool, 40)) for _ in range(30)]
    texts += [f"{text} more" for text in texts[:10]]
    table = pa.table({"id": [f"{number:02}" for number in range(len(texts))], "text": texts})
    documents = dedup.frame(table)
    found = dedup.buckets(dedup.signatures(documents, 128, 5), 42, 3)
    sizes = documents.with_column("bytes", daft.col("text").length_bytes())
    pairs = [dedup.verified_pairs(found, given, 5, 0.8) for given in (documents, sizes)]
    monkeypatch.setattr(dedup, "PAIR_BYTES", 1000)
    pairs.append(dedup.verified_pairs(found, documents, 5, 0.8))
    monkeypatch.setattr(dedup, "MAX_SHINGLES", 1)
    pairs.append(dedup.verified_pairs(found, documents, 5, 0.8))
    assert pairs[0].equals(pairs[3])
    sets = {
        key: minhash.shingles(text, 5)
        for key, text in zip(*table.to_pydict().values(), strict=True)
    }
    for a, b, value in zip(*pairs[0].to_pydict().values(), strict=True):
        assert value == minhash.jaccard(sets[a], sets[b])
    assert len(pairs[0]) > 40
    assert pairs[0].equals(pairs[1])
    assert pairs[0].equals(pairs[2])
