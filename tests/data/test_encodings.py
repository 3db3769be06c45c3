"""Bytes become the text that was meant, or are set aside with the reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.data.encodings import check_replaced, codec_of, decode
from moxin_lab.data.unreadable import Unreadable

TEXTS = {
    "ja": ("表の行を並べ替えるには、メニューから「データ」を選び、次に「並べ替え」を選びます。")
    * 3,
    "zh": ("要对表格中的行进行排序,请在菜单中选择“数据”,然后选择“排序”。这个功能也可以用于列。")
    * 3,
    "zh-Hant": (
        "人人生而自由,在尊嚴和權利上一律平等。他們富有理性和良心,並應以兄弟關係的精神相對待。"
    )
    * 3,
    "ko": (
        "표의 행을 정렬하려면 메뉴에서 데이터를 선택한 다음 정렬을 선택합"
        "니다. 열에도 사용할 수 있습니다."
    )
    * 3,
    "fr": (
        "Pour trier les lignes, choisissez « Données » puis « Trier » : le tri es"
        "t immédiat, même à côté. "
    )
    * 3,
    "de": (
        "Die Zeilen können über das Menü „Daten“ sortiert werden; größere Tabelle"
        "n brauchen länger. "
    )
    * 3,
    "ru": ("Чтобы упорядочить строки, выберите в меню «Данные», затем «Сортировка». ") * 3,
    "pl": (
        "Aby posortować wiersze, należy wybrać z menu „Dane”, a następnie „Sortuj"
        "”. Później można też. "
    )
    * 3,
    "el": ("Για να ταξινομήσετε τις γραμμές, επιλέξτε από το μενού «Δεδομένα» και «Ταξινόμηση». ")
    * 3,
}
ENCODINGS = [
    ("ja", "Shift_JIS", "cp932"),
    ("ja", "EUC-JP", "euc_jp"),
    ("ja", "ISO-2022-JP", "iso2022_jp"),
    ("zh", "GBK", "gbk"),
    ("zh", "gb2312", "gbk"),
    ("zh", "GB18030", "gb18030"),
    ("zh-Hant", "Big5", "big5"),
    ("ko", "EUC-KR", "cp949"),
    ("fr", "ISO-8859-1", "cp1252"),
    ("fr", "windows-1252", "cp1252"),
    ("de", "latin1", "cp1252"),
    ("ru", "windows-1251", "cp1251"),
    ("ru", "KOI8-R", "koi8-r"),
    ("pl", "ISO-8859-2", "cp1250"),
    ("el", "ISO-8859-7", "iso8859-7"),
    *((language, "UTF-8", "utf-8") for language in TEXTS),
]
DECLARATIONS = (
    '<html><head><meta charset="{}"></head><p>{}',
    "<meta charset={}><p>{}",
    '<meta http-equiv="Content-Type" content="text/html; charset={}"><p>{}',
    '<?xml version="1.0" encoding="{}"?><p>{}',
    "# -*- coding: {} -*-\n{}",
    "#!/usr/bin/python\n# vim: set fileencoding={} :\n{}",
)


def encoded(language: str, codec: str) -> bytes:
    return TEXTS[language].encode(codec, "ignore")


@pytest.mark.parametrize(("language", "label", "codec"), ENCODINGS)
@pytest.mark.parametrize("form", DECLARATIONS)
def test_a_declared_encoding_is_read(language: str, label: str, codec: str, form: str) -> None:
    if label == "ISO-8859-2":
        codec = "iso8859-2"
    text = form.format(label, encoded(language, codec).decode(codec))
    decoded = decode(text.encode(codec))
    assert decoded.text == text
    assert decoded.evidence in ("declared", "UTF-8")


@pytest.mark.parametrize(("language", "label", "codec"), ENCODINGS)
@pytest.mark.parametrize("declaration", ["", "<meta charset=utf-8>", "<meta charset=no-such-set>"])
def test_an_encoding_that_is_not_declared_is_detected(
    language: str, label: str, codec: str, declaration: str
) -> None:
    text = declaration + "<p>" + encoded(language, codec).decode(codec)
    assert decode(text.encode(codec)).text == text


WRONG = ("Shift_JIS", "EUC-JP", "EUC-KR", "GBK", "Big5", "windows-1252", "windows-1251", "UTF-16")


@pytest.mark.parametrize(("language", "label", "codec"), ENCODINGS)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_declaration_is_not_believed(
    language: str, label: str, codec: str, wrong: str
) -> None:
    text = f"<meta charset={wrong}><p>" + encoded(language, codec).decode(codec)
    try:
        decoded = decode(text.encode(codec))
    except Unreadable as error:
        assert error.args[0] == "wrong encoding" and wrong in error.args[1]
    else:
        assert decoded.text == text


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-8"])
def test_a_byte_order_mark_decides_and_never_stays(language: str, codec: str) -> None:
    text = TEXTS[language]
    decoded = decode(("\ufeff" + text).encode(codec))
    assert (decoded.text, decoded.evidence) == (text, "byte-order mark")
    wrong = "<meta charset=Shift_JIS>" + text
    assert decode(("\ufeff" + wrong).encode(codec)).text == wrong


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_detected(language: str, codec: str) -> None:
    page = f"<html><body><p>{TEXTS[language]}</p></body></html>"
    assert decode(page.encode(codec)).text == page


def test_utf8_that_is_damaged_is_set_aside() -> None:
    for content in (
        TEXTS["ja"].encode()[:-1],
        TEXTS["zh"].encode()[:50] + b"\xff" + TEXTS["zh"].encode()[51:],
        b"<p>Ch\xff\xfeose Data</p>",
        b"\xef\xbb\xbfabc\xff",
    ):
        with pytest.raises(Unreadable) as error:
            decode(content)
        assert error.value.args[0] in ("invalid UTF-8", "wrong encoding")


def test_an_encoding_that_no_one_knows_is_named() -> None:
    with pytest.raises(Unreadable, match="no-such-set"):
        decode(b"<meta charset=no-such-set><p>\xff\xfe\xfd\x81")


def test_iso_2022_jp_never_passes_as_ascii() -> None:
    assert decode("日本語".encode("iso2022_jp")).text == "日本語"
    assert decode("日本語".encode("iso2022_jp")).encoding.startswith("iso2022_jp")


def test_text_full_of_replacement_characters_is_set_aside() -> None:
    with pytest.raises(Unreadable) as error:
        check_replaced("caf\ufffd " * 20)
    assert error.value.args[0] == "damaged text"
    check_replaced("U+FFFD is \ufffd, the replacement character. " * 1)
    check_replaced("A long text. " * 1000 + "\ufffd" * 9)


def test_labels_are_those_of_browsers() -> None:
    assert codec_of(" ISO-8859-1 ") == codec_of("us-ascii") == "cp1252"
    assert codec_of("x-sjis") == codec_of("windows-31j") == "cp932"
    assert codec_of("gb2312") == codec_of("GBK") == "gb18030"
    assert codec_of("ks_c_5601-1987") == codec_of("cp949") == "cp949"
    assert codec_of("rot13") is codec_of("idna") is codec_of("base64") is codec_of("") is None


@given(st.binary(max_size=400))
def test_any_bytes_decode_or_are_set_aside(content: bytes) -> None:
    try:
        decoded = decode(content)
    except Unreadable as error:
        assert len(error.args) == 2 and all(error.args)
    else:
        assert "\ufeff" not in decoded.text[:1]


@given(st.text(st.characters(exclude_characters="\0\x1b", exclude_categories=["Cs"]), max_size=400))
def test_utf8_is_kept_to_the_byte(text: str) -> None:
    assert decode(text.removeprefix("\ufeff").encode()).text == text.removeprefix("\ufeff")
