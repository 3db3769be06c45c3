"""Filters on single documents: NFC, SlimPajama's length rule, language identification."""

import string
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.data import clean
from moxin_lab.data.extract import DOCUMENTS


def documents(*rows: tuple[str, str]) -> pa.Table:
    """(language, text) rows as a documents table."""
    return pa.Table.from_pylist(
        [
            {"id": f"s/{i:03d}", "source": "s", "language": language, "page": f"p{i}", "text": text}
            for i, (language, text) in enumerate(rows)
        ],
        schema=DOCUMENTS,
    )


@given(st.text())
def test_nfc_is_idempotent_on_prose_and_leaves_code_unchanged(text: str) -> None:
    once, _ = clean.normalise(documents(("en", text), ("code", text)))
    twice, changed = clean.normalise(once)
    assert once["text"].to_pylist() == [unicodedata.normalize("NFC", text), text]
    assert twice.equals(once) and changed == 0


def test_nfd_vietnamese_is_composed_and_counted() -> None:
    composed, changed = clean.normalise(
        documents(("vi", unicodedata.normalize("NFD", "Việt Nam")), ("en", "plain"))
    )
    assert composed["text"][0].as_py() == "Việt Nam" and changed == 1


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" \t\n\r", 0),
        (string.punctuation, 0),
        ("Hello, World!\n", 10),
        ("a-b c_d", 4),
        ("你好，世界。", 6),  # CJK punctuation is not ASCII and counts
        ("a\u00a0b", 3),  # and so does the no-break space
    ],
)
def test_counted_characters_follow_slimpajamas_rule(text: str, count: int) -> None:
    assert clean.counted_characters(text) == count


def test_the_short_filter_keeps_200_and_drops_199_with_text_and_reason() -> None:
    kept, rejected = clean.drop_short(
        documents(("en", "ab, " * 100), ("en", "ab, " * 99 + "a !")), 200
    )
    assert kept["id"].to_pylist() == ["s/000"]
    (row,) = rejected.to_pylist()
    assert row["reason"] == "short document" and row["detail"] == "199 characters, 200 needed"
    assert row["content"].decode() == "ab, " * 99 + "a !"


ENGLISH = (
    "To sort rows by the content of a column, choose the menu entry and confirm the dialog "
    "with the button below. "
)
JAPANESE = (
    "列の内容で行を並べ替えるには、メニューの項目を選び、下のボタンでダイアログを確定します。"
)
CHINESE = "若要按列的内容对行进行排序，请选择菜单项，然后用下面的按钮确认对话框。"
KOREAN = (
    "열의 내용에 따라 행을 정렬하려면 메뉴 항목을 선택하고 아래 단추로 대화 상자를 확인하십시오. "
)


def test_untranslated_pages_are_rejected_with_the_identified_language() -> None:
    table = documents(
        ("en", ENGLISH * 5),
        ("ja", JAPANESE * 5),
        ("zh", CHINESE * 5),
        ("ko", KOREAN * 5),
        ("ja", ENGLISH * 5),
        ("zh", KOREAN * 5),
    )
    kept, rejected = clean.drop_foreign(table, 0.5)
    assert kept["id"].to_pylist() == ["s/000", "s/001", "s/002", "s/003"]
    assert [row["reason"] for row in rejected.to_pylist()] == ["language mismatch"] * 2
    assert [row["detail"][:2] for row in rejected.to_pylist()] == ["en", "ko"]


def test_code_is_never_identified_and_text_without_letters_is_rejected() -> None:
    kept, rejected = clean.drop_foreign(
        documents(("code", "x = 1"), ("en", "123 456 !!"), ("en", "")), 0.5
    )
    assert kept["language"].to_pylist() == ["code"]
    assert rejected["detail"].to_pylist() == ["no letters", "no letters"]


@given(st.text(), st.integers(1, 50))
def test_chunks_hold_all_letters_in_order_and_none_is_longer_than_the_limit(
    text: str, size: int
) -> None:
    pieces = clean.chunks(text, size)
    assert all(0 < len(piece) <= size for piece in pieces)
    letters = clean._NOT_LETTERS.sub("", " ".join(text.splitlines()))
    assert "".join(pieces).replace(" ", "") == letters


def test_empty_tables_pass_every_filter() -> None:
    empty = DOCUMENTS.empty_table()
    assert clean.normalise(empty)[0].num_rows == 0
    for kept, rejected in (clean.drop_short(empty, 200), clean.drop_foreign(empty, 0.5)):
        assert kept.num_rows == rejected.num_rows == 0
