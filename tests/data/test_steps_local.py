"""Steps on single documents: NFC, SlimPajama's length rule, language identification."""

import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.data import steps, steps_local
from moxin_lab.data.findings import Finding


def after(step, *rows: tuple[str, str]) -> list[str | Finding]:
    """What a step makes of (language, text) rows, in their order."""
    labels = steps.Labels("s/0", "s", "", "p", "", "", "")
    return [step.work(text, labels._replace(language=language)) for language, text in rows]


@given(st.text())
def test_nfc_is_idempotent_on_prose_and_leaves_code_unchanged(text: str) -> None:
    once = after(steps_local.nfc(), ("en", text), ("code", text))
    assert once == [unicodedata.normalize("NFC", text), text]
    assert after(steps_local.nfc(), ("en", once[0]))[0] == once[0]


def test_nfd_vietnamese_is_composed() -> None:
    rows = (("vi", unicodedata.normalize("NFD", "Việt Nam")), ("en", "plain"))
    assert after(steps_local.nfc(), *rows) == ["Việt Nam", "plain"]


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
    assert steps_local.counted_characters(text) == count


def test_the_short_filter_keeps_200_and_drops_199_with_the_reason() -> None:
    long, short = "ab, " * 100, "ab, " * 99 + "a !"
    kept, removed = after(steps_local.short(200), ("en", long), ("en", short))
    assert kept == long
    assert removed == Finding("short document", "199 characters, 200 needed")


ENGLISH = (
    "To sort rows by the content of a column, choose the menu entry and confirm the dialog "
    "with the button below. "
)
JAPANESE = (
    "列の内容で行を並べ替えるには、メニューの項目を選び、下のボタンでダイアログを確定します。"
)
CHINESE = "若要按列的内容对行进行排序，请选择菜单项，然后用下面的按钮确认对话框。"
BOKMAAL = "Velg et program fra menyen og trykk på knappen for å åpne dialogvinduet. "
NYNORSK = "Eg veit ikkje kvifor dei ikkje kjem, men me får sjå kva som skjer seinare i kveld. "
HINDI = "सरकार ने कल एक प्रस्ताव रखा कि नगरपालिकाएँ अपना पैसा कैसे खर्च करें। "
THAI = "เมื่อวานนี้รัฐบาลเสนอแนวทางว่าเทศบาลควรใช้เงินอย่างไร "
KOREAN = (
    "열의 내용에 따라 행을 정렬하려면 메뉴 항목을 선택하고 아래 단추로 대화 상자를 확인하십시오. "
)


def test_untranslated_pages_are_removed_with_the_identified_language() -> None:
    rows = [("en", ENGLISH), ("ja", JAPANESE), ("zh", CHINESE), ("ko", KOREAN)]
    wrong = [("ja", ENGLISH), ("zh", KOREAN)]
    found = after(
        steps_local.language(0.5), *((label, text * 5) for label, text in [*rows, *wrong])
    )
    assert found[:4] == [text * 5 for _, text in rows]
    assert [each.reason for each in found[4:]] == ["language mismatch"] * 2
    assert [each.detail[:2] for each in found[4:]] == ["en", "ko"]


def test_code_is_never_identified_and_text_without_letters_is_removed() -> None:
    code, *others = after(
        steps_local.language(0.5), ("code", "x = 1"), ("en", "123 456 !!"), ("en", "")
    )
    assert code == "x = 1"
    assert others == [Finding("language mismatch", "no letters")] * 2


def test_any_code_of_a_language_is_compared_with_the_identifiers() -> None:
    labels = ["zh-Hans", "zh_CN", "cmn-Hant", "jpn", "en-US", "nb", "nno", "hin", "th-TH"]
    texts = [CHINESE] * 3 + [JAPANESE, ENGLISH, BOKMAAL, NYNORSK, HINDI, THAI]
    rows = [(label, text * 5) for label, text in zip(labels, texts, strict=True)]
    assert after(steps_local.language(0.5), *rows) == [text for _, text in rows]


def test_a_page_mostly_chinese_by_bytes_is_kept_as_chinese() -> None:
    # about 1,500 letters of English, 700 of Chinese in 2,100 bytes
    text = ENGLISH * (1_500 // len(ENGLISH)) + "\n" + CHINESE * (800 // len(CHINESE))
    assert after(steps_local.language(0.5), ("zh", text)) == [text]
