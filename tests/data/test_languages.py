"""Codes agree with the identifier, shares count bytes, thresholds are FineWeb2's."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab.data import languages
from moxin_lab.data.languages import (
    SAMPLED_CHUNKS,
    byte_shares,
    chunks,
    code,
    is_mostly,
    score,
    shares,
    threshold,
    thresholds,
    unsure,
)


@pytest.mark.parametrize(
    ("label", "expected"),
    [("nb", "no"), ("nn_NO.UTF-8", "no"), ("no", "no"), ("zh-Hans", "zh"), ("zh_cn", "zh"),
     ("zh-TW", "zh"), ("cmn-Hant", "zh"), ("jpn", "ja"), ("en-US", "en"), ("sr@latin", "sr"),
     ("haw", "haw"), ("swe", "sv"), ("fil-PH", "tl"), ("isl", "is"), ("iw", "he"), ("arb", "ar"),
     ("npi_Deva", "ne"), ("", "")],
)  # fmt: skip
def test_codes_are_brought_to_one_form(label: str, expected: str) -> None:
    assert code(label) == expected


@given(st.text())
def test_a_code_stays_as_it_is(label: str) -> None:
    assert code(code(label)) == code(label)


@settings(deadline=None)  # the first text builds the table of marks
@given(st.text(), st.integers(1, 50))
def test_chunks_hold_all_letters_in_order_and_none_is_longer_than_the_limit(
    text: str, size: int
) -> None:
    pieces = chunks(text, size)
    assert all(0 < len(piece) <= size for piece in pieces)
    letters = [c for c in text if c.isalpha()]
    assert [c for c in "".join(pieces) if c.isalpha()] == letters


def test_marks_stay_inside_words_and_alone_are_no_letters() -> None:
    assert chunks("हिन्दी, भाषा 12 क\u094d\u200dष ที่นี่!") == ["हिन्दी भाषा क\u094d\u200dष ที่นี่"]
    assert chunks("\u2714\ufe0f 1\u20e3 \u0301") == []


def test_shares_of_a_text_name_the_identified_languages() -> None:
    text = "The menu opens below the button. " * 20 + "\n" + "हिन्दी में सहायता यहाँ उपलब्ध है। " * 40
    found = shares(text)
    assert next(iter(found)) == "hi"
    assert set(found) >= {"hi", "en"}


def test_a_page_mostly_chinese_by_bytes_is_chinese() -> None:
    shares = byte_shares(["abcde" * 4, "中" * 15], lambda chunk: "en" if chunk.isascii() else "zh")
    assert list(shares) == ["zh", "en"]
    assert shares["zh"] == 45 / 65


@given(st.lists(st.text()), st.sampled_from(["nb", "en"]))
def test_shares_add_up_to_one(chunks: list[str], label: str) -> None:
    shares = byte_shares(chunks, lambda chunk: label if chunk.isascii() else "zh")
    assert sum(shares.values()) == pytest.approx(1 if any(chunks) else 0)


@pytest.mark.parametrize(
    ("scores", "expected"), [([0.99, 0.99], 0.9), ([0.1, 0.2], 0.3), ([0.5, 0.7, 0.9], 0.53670)]
)
def test_thresholds(scores: list[float], expected: float) -> None:
    assert threshold(scores) == pytest.approx(expected, abs=1e-5)


def test_a_threshold_without_pages_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one page"):
        threshold([])


ENGLISH = "The menu opens below the button and the window is closed with a key. " * 20
JAPANESE = "ボタンの下にメニューが開き、キーを押すとウィンドウが閉じます。" * 20


def test_the_score_is_that_of_the_stated_language_by_bytes() -> None:
    assert score(ENGLISH, "en-GB") > 0.8 > 0.2 > score(ENGLISH, "ja")
    assert score(JAPANESE, "jpn") > 0.8
    both = score(f"{ENGLISH}\n{JAPANESE}", "ja")
    assert 0.3 < both < 0.9
    assert score("12 + 3 = 15", "en") == 0.0


def test_every_language_gets_its_own_limit_and_pages_below_it_are_named() -> None:
    sure = [("en", 0.99), ("eng", 0.97), ("en", 0.98), ("nb", 0.5), ("no", 0.6), ("nn", 0.4)]
    limits = thresholds(sure)
    assert limits["en"] == 0.9
    assert limits["no"] == pytest.approx(0.5 - (0.02 / 3) ** 0.5)
    assert set(limits) == {"en", "no"}
    assert unsure(ENGLISH, "en", limits) is None
    found = unsure(JAPANESE, "en", limits)
    assert found is not None
    assert found.reason == "language not sure"
    assert found.detail.endswith(", 0.900 needed")
    with pytest.raises(KeyError):
        unsure(ENGLISH, "ko", limits)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["the cat sat on the mat ", "der Hund schläft auf dem Sofa ", "猫在窗边睡觉。", "1 "]
        ),
        max_size=2 * SAMPLED_CHUNKS - 8,  # a part is a little more than a chunk
    ),
    st.sampled_from(["en", "de", "zh", "ko"]),
    st.floats(0.01, 1.0),
)
def test_of_a_short_text_is_mostly_gives_the_answer_of_the_shares(parts, language, share):
    text = "\n".join(part * 25 for part in parts)
    expected = shares(text).get(language, 0.0) >= share
    assert is_mostly(text, language, share) == expected


@pytest.mark.parametrize("every", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_long_text_in_which_languages_take_turns_is_not_taken_for_one_of_them(
    every, shift, share
):
    lines = [
        ("the cat sat on the mat " if (line + shift) % every else "猫在窗边睡觉。") * 21
        for line in range(16 * every)
    ]
    text = "\n".join(lines)
    for language in ("en", "zh"):
        expected = shares(text).get(language, 0.0) >= share
        assert is_mostly(text, language, share) == expected


def test_of_a_long_text_sixteen_chunks_are_looked_at(monkeypatch):
    seen = []

    def count(chunk):
        seen.append(chunk)
        return "en"

    monkeypatch.setattr(languages, "identify", count)
    text = "\n".join(f"{chr(97 + line % 26) * 400}" for line in range(1000))
    assert is_mostly(text, "en", 0.5)
    assert len(seen) == SAMPLED_CHUNKS
    assert len(set(seen)) > SAMPLED_CHUNKS / 2  # of all parts of the text
