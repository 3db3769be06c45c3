"""Bytes to text: which encoding, and how that is known.

    byte-order mark -> declaration -> valid UTF-8 -> detector -> aside, with the reason

Declarations are read as browsers read them (WHATWG labels, so `iso-8859-1` means windows-1252 and
`gb2312` means GB18030): `<meta charset>`, `<meta http-equiv>`, the XML declaration, and in code the
lines `-*- coding: x -*-` and `fileencoding=x`. A declaration is believed only if the bytes bear it
out: all of them decode, and the characters are such as occur in text. Otherwise UTF-8 and what
uchardet detects are tried in its place.

Guarantees: never raises anything but Unreadable; no byte is dropped or replaced; the byte-order
mark is not part of the text; line ends and all else stay as they are.
Out of scope: text that was decoded wrongly before it was stored (it is set aside if it is full of
U+FFFD, and else not noticed); telling apart single-byte encodings of one script from a few bytes.
"""

import codecs
import re
from itertools import pairwise
from typing import NamedTuple

from resiliparse.parse.encoding import EncodingDetector, map_encoding_to_html5

from moxin_lab.data.unreadable import Unreadable

DECLARED_WITHIN = 4096
"""Bytes in which a declaration is looked for. WHATWG reads 1,024; pages that put a script first
need more.
"""
ENOUGH = 3
"""Fewest bytes above 127 from which the detector's guess is taken."""
CHARACTERS_PER_REPLACED = 500
"""A text may hold two U+FFFD, and one more for each so many characters."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PYTHON_NAMES = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "shift_jis": "cp932",
    "euc_jis_2004": "euc_jp",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}
"""The codec that reads what WHATWG means by a name: the superset that is in use."""
_CJK = ("cp932", "euc_jp", "cp949", "gb18030", "big5hkscs")
_LATIN = frozenset(
    ("cp1250", "cp1252", "cp1254", "cp1257", "cp437", "cp850", "cp852", "mac-roman")
    + tuple(f"iso8859-{part}" for part in (1, 2, 3, 4, 9, 10, 13, 14, 15, 16))
)
_NO_TEXT = frozenset(
    ("idna", "punycode", "raw_unicode_escape", "undefined", "unicode_escape", "utf-7")
)
_META = re.compile(
    rb"""<meta\s(?:[^>]*?[\s;"'])?charset\s*=\s*["']?\s*([\w.:+-]+)""", re.IGNORECASE
)
_XML = re.compile(rb"""\A\s*<\?xml\s[^>]*?encoding\s*=\s*["']\s*([\w.:+-]+)""", re.IGNORECASE)
_CODING = re.compile(rb"(?:file)?(?:en)?coding\s*[:=]\s*([\w.-]+)")
_ESCAPES = (
    (re.compile(rb"\x1b\$[@B]|\x1b\([JI]"), "iso2022_jp_ext"),
    (re.compile(rb"\x1b\$\)C"), "iso2022_kr"),
)
_HIGH = re.compile(rb"[\x80-\xff]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x80-\x84\x86-\x9f\ufffd]")
_COMMON = frozenset(
    "一三上下不与世並个中串为主义予二于些享人他付以件任会位何作使例価促保信個値值元充免入全公关其"
    "内出击函分切刑列则初利到制刷削前力加动助効動務包区十单単印参及取受变句可号各合同名后含周呼命"
    "和員嚴回囲国图國在型域基場変复大女如婚字存宗定実宣家容實对対将尊對小展工已布帮平年并序应度庭"
    "开式引当形律後得心必性您意應成或戻所打払承択择括指按挿据換支政教数整文新方於无日时是显時普更"
    "書最會月有期本条果标格框條検構標権權次正此民治法活準点為無照率現理生產用由界番發的目相确確示"
    "社程種符第等算範籍类索結經组结编罪置義而聯育能自行表被複要見視视解言計記設認論護计设话该语误"
    "貨身输达过返迫追选這通連進遍過適選部配重量鑑错開間関间降除際集項額願類项题"
    "가각간값개거결경계고과관구권그기나날내는니다단대데도동되된됩드든또라러려력련로른를름리마만매"
    "면명모목문반배번범변보본부분사산상서선설성셀소수숫스습시식아않어에여역연열영예오와용우위유으"
    "은을음의이인일입있자저적전정제조주지진집짜참체출콘크택터텍트파포표프필하한할함합항해행형호화"
    "확환"
)
"""The commonest Han characters and syllables of Hangul in the help pages and the Declaration of
Human Rights. Half of the characters of a text are among them, and few of a wrongly decoded one.
"""


class Decoded(NamedTuple):
    """Text, the Python name of its encoding, and how it is known: `byte-order mark`, `declared`,
    `UTF-8` or `detected`.
    """

    text: str
    encoding: str
    evidence: str


def decode(content: bytes) -> Decoded:
    """The text of `content`.

    Raises Unreadable with the reason `invalid UTF-8` (UTF-8 but for some bytes), `wrong encoding`
    (not what it declares, and not known what else) or `unknown encoding`.
    """
    for mark, name in _MARKS:
        if content.startswith(mark):
            text, fault = _attempt(content[len(mark) :], name)
            if text is None:
                raise Unreadable("wrong encoding", f"byte-order mark of {name}, but {fault}")
            return Decoded(text.removeprefix("\ufeff"), name, "byte-order mark")
    label = _declaration(content)
    declared = codec_of(label) if label else None
    if declared is not None and declared.startswith(("utf-16", "utf-32")):
        declared = "utf-8"  # it was read byte by byte, so it cannot be true
    for escape, name in _ESCAPES:
        if escape.search(content):
            text, _ = _attempt(content, name)
            if text is not None and not text.isascii():
                return Decoded(
                    text, name, "declared" if (declared or "").startswith(name[:10]) else "detected"
                )
    wide = _wide(content)
    if wide is not None:
        return wide
    text, fault = _attempt(content, "utf-8")
    if text is not None and not _prefers_declared(content, declared):
        return Decoded(text, "utf-8", "declared" if declared == "utf-8" else "UTF-8")
    return _legacy(content, label, declared, fault)


def codec_of(label: str) -> str | None:
    """Python's codec for an encoding label, by WHATWG's table and then by Python's own; None if it
    is neither's.
    """
    name = map_encoding_to_html5(label.strip().lower(), False)
    try:
        info = codecs.lookup(name or label.strip())
    except LookupError:
        return None
    if info.name in _NO_TEXT or not getattr(info, "_is_text_encoding", True):
        return None
    return _PYTHON_NAMES.get(info.name, info.name)


def check_replaced(text: str) -> None:
    """Raises Unreadable for a text full of U+FFFD: an earlier decoding has lost what it said."""
    count = text.count("\ufffd")
    if count > 2 + len(text) // CHARACTERS_PER_REPLACED:
        raise Unreadable("damaged text", f"{count} of {len(text)} characters are U+FFFD")


def _declaration(content: bytes) -> str | None:
    head = content[:DECLARED_WITHIN]
    lines = b"\n".join(head.split(b"\n")[:2])
    match = _XML.search(head) or _META.search(head) or _CODING.search(lines)
    return match[1].decode("ascii", "replace") if match else None


def _attempt(content: bytes, codec: str) -> tuple[str | None, str]:
    """(text, "") or (None, what is wrong)."""
    try:
        text = content.decode(codec)
    except UnicodeDecodeError as error:
        return None, f"{error.reason} at byte {error.start} of {len(content)}"
    except UnicodeError as error:
        return None, str(error)
    fault = _implausible(text, codec)
    return (None, fault) if fault else (text, "")


def _implausible(text: str, codec: str) -> str:
    """Why a text is not what the bytes mean, or the empty string."""
    if codec.startswith("utf-8"):
        return ""
    control = _CONTROL.search(text)
    if control:
        return f"U+{ord(control[0]):04X} at character {control.start()}"
    high = [char for char in text if char > "\x7f"]
    if not high:
        return ""
    private = sum("\ue000" <= char <= "\uf8ff" for char in high)
    if private > 0.05 * len(high):
        return f"{private} of {len(high)} characters are private-use characters"
    if codec in _CJK:
        half = sum("\uff61" <= char <= "\uff9f" for char in high)
        if half > 0.5 * len(high):
            return f"{half} of {len(high)} characters are half-width Katakana"
        if len(high) >= 20 and (common := _commonness(text, codec)) < 0.1:
            return f"only {common:.0%} of the characters are common ones"
    elif codec in _LATIN:
        runs = sum(map(len, re.findall(r"[^\x00-\x7f]{4,}", text)))
        if runs > 0.5 * len(high):
            return f"{runs} of {len(high)} accented letters stand in rows of four or more"
        signs = len(
            re.findall(r"(?<=[^\W\d_])[^\x00-\x7f\w’\xb7](?=[^\W\d_])|\w[\xb2\xb3\xb9]\w", text)
        )
        if signs > 0.1 * len(high):
            return f"{signs} of {len(high)} characters are signs inside words"
    elif len(re.findall(r"[^\W\d_]{2}", text)) and not codec.startswith("utf"):
        changes = sum(a.islower() and b.isupper() for a, b in pairwise(text) if b > "\x7f")
        if changes > 0.03 * len(high):
            return f"{changes} capital letters stand inside words"
    if codec not in _LATIN and not codec.startswith("utf"):
        inside = r"[a-zA-Z][^\W\d_a-zA-Z](?![^\x00-\x7f])"
        if codec not in _CJK:  # their neighbours may be Latin words
            inside = rf"{inside}|[^\W\d_a-zA-Z](?=[a-zA-Z])"
        mixed = len(re.findall(inside, text))
        letters = sum(map(str.isalpha, high))
        if mixed > 0.5 * letters:
            return f"{mixed} of {letters} letters stand inside Latin words"
    return ""


def _commonness(text: str, codec: str) -> float:
    """Share of common characters among the letters of East Asian scripts.

    Kana are common in Japanese encodings only: EUC-JP read as GB18030 keeps its Kana.
    """
    letters = re.findall(r"[\u3040-\ud7a3\uff66-\uff9f]", text)
    kana = 0
    if codec in ("cp932", "euc_jp", "utf-8"):
        kana = sum("\u3040" <= char <= "\u30ff" for char in letters)
    return (kana + sum(char in _COMMON for char in letters)) / max(len(letters), 1)


def _capitals(text: str) -> float:
    """Share of capitals among letters above U+007F that have case."""
    cased = [char for char in text if char > "\x7f" and char.lower() != char.upper()]
    return sum(map(str.isupper, cased)) / max(len(cased), 1)


def _wide(content: bytes) -> Decoded | None:
    """UTF-16 without a mark. Text in other encodings has no zero bytes."""
    if len(content) % 2 or 0 not in content[:DECLARED_WITHIN]:
        return None
    shares: dict[str, float] = {}
    for name in ("utf-16-le", "utf-16-be"):
        text = content[:DECLARED_WITHIN].decode(name, "replace")
        usual = len(re.findall(r"[\t\n\r\x20-\x7e\xa0-\u052f\u3000-\u30ff]", text))
        shares[name] = (usual + sum(char in _COMMON for char in text)) / max(len(text), 1)
    name = max(shares, key=shares.__getitem__)
    if shares[name] < 0.3 or shares[name] < 3 * min(shares.values()):
        return None
    decoded, _ = _attempt(content, name)
    return None if decoded is None else Decoded(decoded, name, "detected")


def _prefers_declared(content: bytes, declared: str | None) -> bool:
    """Whether a short text that is valid UTF-8 by chance is rather what it declares."""
    if declared not in _CJK or len(_HIGH.findall(content)) > 8 * ENOUGH:
        return False
    text, _ = _attempt(content, declared)
    if text is None or text.isascii():
        return False
    return _commonness(text, declared) > _commonness(content.decode("utf-8"), "utf-8")


def _legacy(content: bytes, label: str | None, declared: str | None, fault: str) -> Decoded:
    """Text that is not UTF-8: as declared, or as detected, whichever reads as text."""
    text = None
    if declared not in (None, "utf-8"):
        text, fault = _attempt(content, str(declared))
    detected = _detect(content)
    if text is not None and declared == detected:
        return Decoded(text, str(declared), "declared")
    if text is not None and detected is not None and _capitals(text) > 0.5:
        other, _ = _attempt(content, detected)  # KOI8-R and windows-1251 swap small and capital
        if other is not None and _capitals(other) < 0.5:
            return Decoded(other, detected, "detected")
    readable = {name: _attempt(content, name)[0] for name in _CJK}
    scores = {
        name: _commonness(found, name) for name, found in readable.items() if found is not None
    }
    best = max(scores, key=scores.__getitem__, default=None)
    if text is not None:
        rival = best if best is not None and scores[best] >= 0.3 else None
        if rival is None or scores[rival] <= 2 * _commonness(text, str(declared)):
            return Decoded(text, str(declared), "declared")
    if best is not None and (detected in _CJK or scores[best] >= 0.5):
        choice: str | None = best
    else:
        choice = detected
    if choice not in (None, "utf-8") and _is_enough(content):
        found, _ = _attempt(content, str(choice))
        if found is not None:
            return Decoded(found, str(choice), "detected")
    raise _reject(label, declared, fault)


def _is_enough(content: bytes) -> bool:
    """Whether there are enough bytes above 127 for a guess, and they are not mostly UTF-8."""
    text = content.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    good = sum(char > "\x7f" for char in text) - bad
    return len(_HIGH.findall(content)) >= ENOUGH and good <= bad


def _detect(content: bytes) -> str | None:
    """uchardet's guess from the lines that have bytes above 127."""
    lines = [line for line in content.split(b"\n") if not line.isascii()]
    detector = EncodingDetector()
    detector.update(b"\n".join(lines)[:65536])
    name = detector.encoding(html5_compatible=False)
    return codec_of(name) if name else None


def _reject(label: str | None, declared: str | None, fault: str) -> Unreadable:
    if label and declared is None:
        return Unreadable("unknown encoding", f"declares {label}, which is no known encoding")
    if declared not in (None, "utf-8"):
        return Unreadable("wrong encoding", f"declares {label}, but {fault}")
    return Unreadable("invalid UTF-8", fault)
