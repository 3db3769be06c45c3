"""Cloze items: the same for the same seed, and without the shortcuts that the module excludes."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab.evaluation.cloze import (
    CONTEXT_BYTES,
    LENGTH_TOLERANCE,
    PASSAGE_BYTES,
    build_items,
    cue_accuracy,
    cue_table,
    find_passages,
)

ENGLISH = [
    "window",
    "cache",
    "token",
    "layer",
    "weight",
    "page",
    "text",
    "model",
    "query",
    "value",
    "head",
    "block",
    "norm",
]
CHINESE = [
    "窗口",
    "缓存",
    "词元",
    "层",
    "权重",
    "页面",
    "文本",
    "模型",
    "查询",
    "数值",
    "头部",
    "模块",
    "归一",
    "缩放",
]
WORDS = {"en": ENGLISH, "zh": CHINESE, "code": ENGLISH}


def pages(language, count, seed, suffix="", sentences=14, words_each=(7, 16)):
    """Artificial pages whose sentences are all different."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        lines = []
        for _ in range(sentences):
            words = [
                str(rng.choice(WORDS[language])) for _ in range(int(rng.integers(*words_each)))
            ]
            first, size = (0x4E00, 5000) if language == "zh" else (ord("a"), 26)
            unique = "".join(chr(first + int(rng.integers(size))) for _ in range(8))
            words.insert(int(rng.integers(0, len(words))), unique)
            if language == "code":
                lines.append(f"{words[0]} = {' + '.join(words[1:])}")
            else:
                lines.append("".join(words) + "。" if language == "zh" else " ".join(words) + ".")
        text = ("\n" if language == "code" else "" if language == "zh" else " ").join(lines)
        identifier = f"{language}/{seed}/{index:03d}{suffix}"
        rows.append(
            {
                "id": identifier,
                "source": "made_up",
                "language": language,
                "page": identifier,
                "text": text,
            }
        )
    return pd.DataFrame(rows)


def both(language="en", **options):
    return pages(language, 30, seed=1, **options), pages(language, 30, seed=2, **options)


@pytest.fixture(scope="module", params=["en", "zh", "code"])
def case(request):
    heldout, train = both(request.param, suffix=".py" if request.param == "code" else "")
    return heldout, train, build_items(heldout, train, language=request.param, num_items=40, seed=0)


def test_the_right_choice_continues_the_page_and_the_others_are_from_other_pages(case):
    heldout, _, items = case
    texts = dict(zip(heldout["id"], heldout["text"], strict=True))
    assert len(items) == 40
    for item in items:
        assert item["context"] + item["choices"][item["label"]] in texts[item["page"]]
        assert item["choice_pages"][item["label"]] == item["page"]
        assert len(set(item["choice_pages"])) == 4
        for choice, page in zip(item["choices"], item["choice_pages"], strict=True):
            assert choice in texts[page]


def test_no_item_offers_the_same_choice_twice_and_lengths_are_close(case):
    *_, items = case
    for item in items:
        assert len({" ".join(choice.split()) for choice in item["choices"]}) == 4
        sizes = [len(choice.strip().encode()) for choice in item["choices"]]
        assert max(sizes) <= (1 + LENGTH_TOLERANCE) * min(sizes)
        assert all(PASSAGE_BYTES[0] <= size <= PASSAGE_BYTES[1] for size in sizes)
        assert CONTEXT_BYTES[0] <= len(item["context"].encode()) <= CONTEXT_BYTES[1]
        assert (
            len({choice[: len(choice) - len(choice.lstrip())] for choice in item["choices"]}) == 1
        )


def test_each_position_holds_the_right_answer_equally_often(case):
    *_, items = case
    assert Counter(item["label"] for item in items) == {0: 10, 1: 10, 2: 10, 3: 10}
    assert [item["label"] for item in items] != [0, 1, 2, 3] * 10


def test_items_depend_on_the_seed_and_not_on_the_order_of_rows(case):
    heldout, train, items = case
    language = items[0]["language"]
    shuffled = heldout.sample(frac=1, random_state=5)
    assert build_items(shuffled, train, language=language, num_items=40, seed=0) == items
    assert build_items(heldout, train, language=language, num_items=40, seed=1) != items


def test_no_choice_occurs_in_training_text():
    heldout, train = both()
    leaked = heldout.head(15).assign(id=lambda d: "copy/" + d["id"])
    # Case and white space differ, the words do not.
    leaked["text"] = leaked["text"].str.upper().str.replace(" ", "  \n")
    train = pd.concat([train, leaked])
    items = build_items(heldout, train, language="en", num_items=40, seed=0)
    pages_used = {page for item in items for page in item["choice_pages"]}
    assert pages_used and not pages_used & set(heldout["id"].head(15))
    everything = " ".join(" ".join(train["text"]).split()).casefold()
    assert all(
        " ".join(choice.split()).casefold() not in everything
        for item in items
        for choice in item["choices"]
    )


def test_boilerplate_on_two_heldout_pages_is_never_a_choice():
    heldout, train = both()
    boilerplate = (
        "The same sentence of the footer is repeated on each and every page of the manual."
    )
    heldout["text"] = [f"{text[:400]}\n{boilerplate}\n{text[400:]}" for text in heldout["text"]]
    items = build_items(heldout, train, language="en", num_items=60, seed=0)
    assert any(boilerplate in item["context"] for item in items)
    assert not any(boilerplate in choice for item in items for choice in item["choices"])


def test_code_is_compared_within_a_file_type():
    python, other = pages("code", 20, seed=1, suffix=".py"), pages("code", 20, seed=3, suffix=".rb")
    items = build_items(
        pd.concat([python, other]), pages("code", 5, seed=2), language="code", num_items=20, seed=0
    )
    for item in items:
        assert len({page.rsplit(".")[-1] for page in item["choice_pages"]}) == 1


def test_untranslated_english_is_no_passage_of_a_chinese_page():
    latin = "This sentence was never translated and is still on the page in English."
    text = latin + "\n" + "这个句子已经翻译成中文，并且足够长，可以作为一个选项出现在题目中。"
    assert [passage.body for passage in find_passages("p", "s", text, "zh")] == [
        text.split("\n")[1]
    ]


@given(st.text(alphabet="ab 。.!\n\tあ字1", max_size=400))
@settings(max_examples=200, deadline=None)
def test_passages_are_disjoint_pieces_of_the_text(text):
    end = 0
    for passage in find_passages("page", "source", text, "ja"):
        assert passage.start >= end
        assert text[passage.start : passage.end] == passage.body == passage.body.strip()
        assert passage.gap == "" or (
            text[: passage.start].endswith(passage.gap) and passage.gap.isspace()
        )
        end = passage.end


def test_length_and_overlap_rules_are_at_chance_on_random_sentences():
    heldout, train = pages("en", 250, seed=1, words_each=(14, 36)), pages("en", 5, seed=2)
    items = build_items(heldout, train, language="en", num_items=450, seed=0)
    assert len(items) == 450
    for rule, accuracy in cue_accuracy(items).items():
        assert abs(accuracy - 0.25) < 0.065, rule  # three standard errors


def test_cue_accuracy_detects_an_existing_cue():
    items = [
        {
            "context": "about windows",
            "choices": ["xxxx", "about windows", "yyyyy", "zzzz"],
            "label": 1,
        }
    ] * 3
    assert cue_accuracy(items) == {
        "shortest choice": 0.0,
        "longest choice": 1.0,
        "most trigrams shared with the context": 1.0,
    }


def test_the_table_of_rules_has_percent_and_one_row_per_language(case):
    *_, items = case
    table = cue_table({"en": items, "zh": items[:8]})
    assert table["items"].tolist() == [40, 8]
    rules = cue_accuracy(items)
    assert table.loc["en"].drop("items").to_dict() == pytest.approx(
        {rule: 100 * value for rule, value in rules.items()}
    )


def test_too_few_pages_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="no cloze items for 'en'"):
        build_items(
            pages("en", 2, seed=1), pages("en", 2, seed=2), language="en", num_items=10, seed=0
        )
