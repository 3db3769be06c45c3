"""Tokens and n-grams that decontamination and overlap share."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab.data.ngrams import (
    Known,
    hashes,
    hashes_of,
    ngrams,
    token_hashes,
    token_hashes_of,
    tokens,
)


def test_combining_marks_stay_with_their_letters() -> None:
    assert tokens("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert tokens("ที่นี่") == ["ที่", "นี่"]


def test_unspaced_scripts_give_one_token_a_letter() -> None:
    assert tokens("設定 Shift を押す。") == ["設", "定", "shift", "を", "押", "す"]


def test_letters_without_case_beyond_the_basic_plane_and_ascii_keep_one_rule() -> None:
    assert tokens("x_1 A𠀀B 𐐀") == ["x", "1", "a", "𠀀", "b", "𐐨"]
    assert tokens("x_1 Ab") == ["x", "1", "ab"]


@pytest.mark.parametrize("hidden", ["\xad", "\u200b", "\u200d", "\u2060", "\ufeff"])
def test_invisible_characters_do_not_cut_or_change_a_token(hidden: str) -> None:
    assert tokens(f"co{hidden}op e{hidden}\u0301t क्{hidden}ष") == ["coop", "ét", "क्ष"]


def test_korean_words_are_kept_whole() -> None:
    assert tokens("한국어 문서, 둘") == ["한국어", "문서", "둘"]


@given(st.text())
def test_composed_and_decomposed_text_give_the_same_tokens(text: str) -> None:
    assert tokens(unicodedata.normalize("NFD", text)) == tokens(unicodedata.normalize("NFC", text))


@given(st.lists(st.text("abcdeé漢ก1", min_size=1, max_size=5), max_size=20))
def test_white_space_and_punctuation_do_not_change_tokens(words: list[str]) -> None:
    assert (
        tokens("\n".join(words)) == tokens(" , ".join(words)) == tokens(" _ ".join(words).upper())
    )


@given(st.lists(st.text(), max_size=30), st.integers(1, 15))
def test_number_of_ngrams(words: list[str], size: int) -> None:
    assert len(list(ngrams(words, size))) == max(0, len(words) - size + 1)


def test_a_size_below_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        ngrams(["a"], 0)


@given(
    st.lists(st.text("ab漢", min_size=1, max_size=3), max_size=12),
    st.lists(st.text("ab漢", min_size=1, max_size=3), max_size=12),
    st.integers(1, 4),
)
def test_hashes_are_equal_exactly_where_ngrams_are(
    first: list[str], second: list[str], size: int
) -> None:
    for words in (first, second):
        assert len(hashes(words, size)) == len(list(ngrams(words, size)))
    pairs = [
        (gram, value)
        for words in (first, second)
        for gram, value in zip(ngrams(words, size), hashes(words, size).tolist(), strict=True)
    ]
    assert len(set(pairs)) == len({gram for gram, _ in pairs}) == len({value for _, value in pairs})


def test_a_hash_knows_where_words_end() -> None:
    assert len({*hashes(["ab", "c"], 2).tolist(), *hashes(["a", "bc"], 2).tolist()}) == 2
    # the same on every machine and in every run
    assert hashes(["a"] * 13).tolist() == [2209846512309456000]
    with pytest.raises(ValueError, match="at least one token"):
        hashes(["a"], 0)


@settings(deadline=None)  # the first text makes tables of all characters
@given(
    st.text()
    | st.text("ab1_ -漢ก\u0301\u0e34\u093c\u200d\xadÅﬁ½²\ud800" + "𠀀𐐀", min_size=5)
    | st.lists(st.text("aé漢", min_size=1), min_size=3).map(" ".join)
)
def test_hashes_of_a_text_are_those_of_its_tokens(text: str) -> None:
    assert token_hashes_of(text).tolist() == token_hashes(tokens(text)).tolist()
    assert hashes_of(text, 2).tolist() == hashes(tokens(text), 2).tolist()


def test_hashes_of_a_text_know_every_character_and_any_length() -> None:
    # In texts of their own, too: a mark in a text decides how all of it is folded.
    for step, size in ((3, 0x110000), (1, 64)):
        for start in range(0, 0x30000 if step == 1 else size, size):
            codes = (c for c in range(start, start + size, step) if not 0xD800 <= c < 0xE000)
            text = "".join(f"é{chr(c)}b {chr(c)}1{chr(c)} " for c in codes)
            assert np.array_equal(token_hashes_of(text), token_hashes(tokens(text)))
    for word in ("x" * 300_000, "é" * 300_000):
        long = f"{word} a b{' ' * 200_000}c {word}"
        assert np.array_equal(token_hashes_of(long), token_hashes(tokens(long)))


@given(st.lists(st.integers(0, 2**64 - 1)), st.lists(st.integers(0, 2**64 - 1)))
def test_known_hashes_are_found_with_their_places(own: list[int], other: list[int]) -> None:
    known = Known(np.array(own, np.uint64))
    asked = np.array([*other, *own[::-1], *(value ^ 1 for value in own)], np.uint64)
    at, place = known.find(asked)
    assert at.tolist() == [i for i, value in enumerate(asked.tolist()) if value in own]
    assert known.hashes[place].tolist() == asked[at].tolist()
