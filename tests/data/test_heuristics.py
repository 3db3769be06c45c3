"""Each heuristic finds what it is for and leaves ordinary text alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.data import heuristics

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
PROSE = str(heuristics.__doc__)  # real prose of about 150 words
JAPANESE = "".join(f"第{a}章では設定と{b}の関係を説明します。\n" for a in NUMBERS for b in "甲乙丙")


@pytest.mark.parametrize(("text", "language"), [(PROSE, "en"), (JAPANESE, "ja")])
def test_ordinary_text_passes(text: str, language: str) -> None:
    assert heuristics.check(text, language) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("too short", "number of words"),
        ("", "number of words"),
        ("word " * 100_001, "number of words"),
        ("a b c d e " * 20, "mean word length"),
        ("internationalisation " * 60, "mean word length"),
        (PROSE + " # # " * 60, "symbols a word"),
        ("\n".join(f"- {a} {b} item" for a in NUMBERS for b in NUMBERS), "bullet lines"),
        ("\n".join(f"{a} {b} {a} goes on……"[:-1] for a in NUMBERS[:4] for b in NUMBERS) + PROSE,
         "ellipsis lines"),
        (PROSE + " 12345" * 100, "words without a letter"),
        ("\n".join([PROSE[:80]] * 9), "duplicate lines"),
        (PROSE + " buy now" * 100, "most frequent 2-gram"),
        (" ".join(a + b for a in NUMBERS for b in NUMBERS), "stop words"),
    ],
)  # fmt: skip
def test_each_fault_is_found(text: str, reason: str) -> None:
    found = [rule(text) for rule in (*heuristics.RULES, heuristics.stop_words)]
    assert reason in {finding.reason for finding in found if finding is not None}
    assert heuristics.check(text, "en") is not None


def test_letters_without_spaces_count_half_a_word() -> None:
    assert heuristics.word_count("設定を開く Shift") == 5 / 2 + 1


@given(st.text())
def test_no_rule_fails(text: str) -> None:
    assert all(rule(text) is None or rule(text).detail for rule in heuristics.RULES)  # type: ignore[union-attr]


def test_numbers_between_chinese_sentences_are_no_words_without_a_letter_too_many() -> None:
    text = "\n".join(f"{n} 打开对话框并选择要插入的图像文件。" for n in range(40))
    assert heuristics.alphabetic(text) is None
    assert heuristics.alphabetic("1 2 3 中文 4 5") is not None
