"""The script router: which expert's vocabulary a stretch of text belongs to.

A text is cut twice, by its characters alone.

1. `PIECE_PATTERN` cuts it into pieces: a word with the one sign or space before it, a digit,
   a stretch of signs, a stretch of white space.
2. Each piece is cut into runs. A letter or mark belongs to the expert of its script, by the Unicode
   blocks in `RANGES`. Everything else (digits, punctuation, white space, emoji) is `common`, with
   one exception: if a piece begins with one character that is neither letter nor mark, and a letter
   follows, that character belongs to the letter's expert. So words keep the leading space that
   byte-level BPE gives them, and "(word" or "\u201c\u8bcd" can be one token.

Han and Kana share the expert `cjk`. Apart, they cost Japanese 6 % of its bytes per token, as most
Japanese words mix both (8,192 ids, the held-out pages of `help_pages`).

Guarantees:
- The runs partition the text: joined, they give the text back.
- The exported `tokenizer.json` needs no rule for runs. It cuts pieces and nothing else; merges of
  two experts cannot meet in a piece, because a merge joins characters of one run.
- A text that ends where a piece of a longer text ends, and not in white space, has the runs that
  the longer text has there. Between two runs of one piece this need not hold: in "E\u0301A\u6587"
  the word is one run, and without the last character it is two.
- One engine: pieces and runs are cut by the regular expressions of Hugging Face `tokenizers`
  (Oniguruma), here as in the exported file, so that no two tables of Unicode can disagree.
Out of scope: languages (Japanese and Chinese share an expert, Vietnamese and program code the Latin
one), and learning the rule. Upstream describes "MoE at the tokenizer level" in one sentence and
publishes no rule, so this one is ours.
"""

from collections.abc import Iterator
from functools import cache
from itertools import groupby

from tokenizers import Regex
from tokenizers.pre_tokenizers import PreTokenizer, Sequence, Split

EXPERTS = (
    "common",
    "latin",
    "cjk",
    "hangul",
    "cyrillic",
    "arabic",
    "devanagari",
    "thai",
    "other",
)

PIECE_PATTERN = (
    # a word, cut before the capitals inside it, with one sign or space before it
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}"  # single digits
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"  # punctuation and code operators
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"  # line ends, indentation
)
"""Cuts a text into pieces; merges happen inside a piece only.

It is, letter for letter, the pattern of Mistral's Tekken tokenizer (mistral-common,
`tekken_240718.json`), because fast encoders know that one by heart and refuse any other
(`peers.FAST_ENCODERS`). Of the patterns they know it is the only one with single digits and with
combining marks inside words.
"""

RANGES: dict[str, tuple[tuple[int, int], ...]] = {
    "latin": (
        (0x0000, 0x02E9),  # ASCII to modifier letters (02EA and 02EB are Bopomofo)
        (0x02EC, 0x036F),  # modifier letters, combining diacritical marks
        (0x1AB0, 0x1AFF),  # combining diacritical marks, extended
        (0x1D00, 0x1D25),  # phonetic extensions, without their Greek and Cyrillic letters
        (0x1D2C, 0x1D5C),
        (0x1D62, 0x1D65),
        (0x1D6B, 0x1D77),
        (0x1D79, 0x1DBE),
        (0x1DC0, 0x1EFF),  # combining marks supplement, Latin Extended Additional
        (0x2000, 0x2125),  # punctuation to letterlike symbols (2126 is the Greek ohm)
        (0x2127, 0x27FF),  # number forms, arrows, mathematics, technical, box drawing, dingbats
        (0x2900, 0x2BFF),  # arrows and mathematics, supplements (2800-28FF is Braille)
        (0x2C60, 0x2C7F),  # Latin Extended C
        (0x2E00, 0x2E7F),  # supplemental punctuation
        (0xA700, 0xA7FF),  # tone letters, Latin Extended D
        (0xAB30, 0xAB64),  # Latin Extended E (AB65 is Greek)
        (0xAB66, 0xAB6F),
        (0xFB00, 0xFB06),  # ligatures
        (0xFE00, 0xFE0F),  # variation selectors
        (0xFE20, 0xFE2D),  # combining half marks (FE2E, FE2F are Cyrillic)
        (0xFEFF, 0xFEFF),  # byte order mark
        (0xFF21, 0xFF3A),  # full-width Latin letters
        (0xFF41, 0xFF5A),
        (0xFFF0, 0xFFFF),  # specials
        (0x10780, 0x107BF),  # Latin Extended F
        (0x1CC00, 0x1D1FF),  # legacy computing, musical notation
        (0x1D300, 0x1D7FF),  # mathematical alphanumerics (1D200-1D24F is Greek musical notation)
        (0x1DF00, 0x1DFF2),  # Latin Extended G
        (0x1DFF5, 0x1DFFF),
        (0x1F000, 0x1F1FF),  # game pieces, enclosed letters
        (0x1F300, 0x1FBFF),  # emoji, symbols, legacy computing
        (0xE0000, 0xE0FFF),  # tags, variation selectors supplement
    ),
    "cjk": (
        (0x2E80, 0x302D),  # radicals, ideographic description, CJK symbols and punctuation
        (0x3030, 0x303F),
        (0x3040, 0x30FF),  # Hiragana, Katakana, voicing marks, prolonged sound mark, middle dot
        (0x3190, 0x319F),  # kanbun
        (0x31C0, 0x31EF),  # strokes
        (0x31F0, 0x31FF),  # Katakana phonetic extensions
        (0x321F, 0x325F),  # enclosed and compatibility forms that are neither Hangul nor kana
        (0x327F, 0x32CF),
        (0x32D0, 0x32FE),  # circled Katakana
        (0x32FF, 0x32FF),
        (0x3300, 0x3357),  # squared Katakana words
        (0x3358, 0x9FFF),  # compatibility, Extension A, Yijing symbols, unified ideographs
        (0xF900, 0xFAFF),  # compatibility ideographs
        (0xFE10, 0xFE1F),  # vertical forms
        (0xFE30, 0xFE6F),  # compatibility and small forms
        (0xFF00, 0xFF20),  # full-width punctuation and digits
        (0xFF3B, 0xFF40),
        (0xFF5B, 0xFF64),
        (0xFF65, 0xFF9F),  # half-width Katakana
        (0xFFE0, 0xFFEF),
        (0x16FE2, 0x16FE3),  # old Chinese marks
        (0x16FF0, 0x16FF6),
        (0x1AFF0, 0x1B16F),  # extensions and supplement
        (0x1F200, 0x1F200),
        (0x1F201, 0x1F2FF),  # enclosed ideographs
        (0x20000, 0x3CFFF),  # planes 2 and 3, kept for ideographs (the seal script begins at 3D000)
    ),
    "hangul": (
        (0x1100, 0x11FF),  # jamo
        (0x302E, 0x302F),  # tone marks
        (0x3130, 0x318F),  # compatibility jamo
        (0x3200, 0x321E),  # parenthesised
        (0x3260, 0x327E),  # circled
        (0xA960, 0xA97F),  # jamo extended A
        (0xAC00, 0xD7FF),  # syllables, jamo extended B
        (0xFFA0, 0xFFDF),  # half-width
    ),
    "cyrillic": (
        (0x0400, 0x052F),  # Cyrillic and its supplement
        (0x1C80, 0x1C8F),  # extended C
        (0x1D2B, 0x1D2B),
        (0x1D78, 0x1D78),
        (0x2DE0, 0x2DFF),  # extended A
        (0xA640, 0xA69F),  # extended B
        (0xFE2E, 0xFE2F),  # half marks
        (0x1E030, 0x1E08F),  # extended D
    ),
    "arabic": (
        (0x0600, 0x06FF),
        (0x0750, 0x077F),  # supplement
        (0x0870, 0x08FF),  # extended A and B
        (0xFB50, 0xFDFF),  # presentation forms
        (0xFE70, 0xFEFE),
        (0x10E60, 0x10E7F),  # numerals
        (0x10EC0, 0x10EFF),  # extended C
        (0x1EE00, 0x1EEFF),  # mathematical letters
    ),
    "devanagari": (
        (0x0900, 0x097F),
        (0x1CD0, 0x1CFF),  # Vedic extensions
        (0xA8E0, 0xA8FF),  # extended
        (0x11B00, 0x11B5F),  # extended A
    ),
    "thai": ((0x0E00, 0x0E7F),),
}
"""Code points of the letters and marks of each expert, both ends included; a letter or mark of any
other block belongs to `other`.

A test compares the table with the Unicode Script property.
"""

_LETTER = r"[\p{L}\p{M}]"
_BEFORE = r"\A[^\p{L}\p{M}]"
"""A piece begins with one character that is neither letter nor mark."""


def _characters(expert: str) -> str:
    """A regular expression for one character of an expert."""
    if expert == "common":
        return r"[^\p{L}\p{M}]"
    # Literal characters, except for control characters. No range begins or ends in a character that
    # is special inside a class.
    bodies = {
        name: "".join(f"{_literal(low)}-{_literal(high)}" for low, high in RANGES[name])
        for name in RANGES
    }
    if expert == "other":
        # Not an intersection with a negated class: Oniguruma matches too much there.
        return f"(?:(?![{''.join(bodies.values())}]){_LETTER})"
    return f"[[{bodies[expert]}]&&{_LETTER}]"


def _literal(code_point: int) -> str:
    return f"\\x{code_point:02x}" if code_point < 0x20 else chr(code_point)


def _run_pattern(expert: str) -> str:
    """A regular expression for a run of an expert within a piece."""
    characters = _characters(expert)
    if expert == "common":
        return rf"(?!{_BEFORE}\p{{L}}){characters}+"
    return rf"(?:{_BEFORE}(?=\p{{L}}))?{characters}+"


RUN_PATTERNS = {expert: _run_pattern(expert) for expert in EXPERTS}
"""By expert, a regular expression whose matches in a piece are the expert's runs."""

DESCRIPTION = (
    "Text is cut into pieces by `piece_pattern`, and a piece into runs. A letter or mark belongs "
    "to the expert of its script (ranges below; any other is 'other'), anything else to 'common'. "
    "One character at the beginning of a piece that is neither letter nor mark belongs to the "
    "expert of the letter after it."
)
"""Recorded in `experts.json`; a changed word would change the bytes of the artifact."""


@cache
def piece_splitter() -> PreTokenizer:
    """The pre-tokenizer that cuts a text into pieces."""
    return Split(Regex(PIECE_PATTERN), behavior="isolated")


@cache
def runs_of(expert: str) -> PreTokenizer:
    """The pre-tokenizer that cuts a text into pieces and keeps the runs of one expert."""
    keep = Split(Regex(RUN_PATTERNS[expert]), behavior="removed", invert=True)
    return Sequence([piece_splitter(), keep])


@cache
def run_splitter() -> PreTokenizer:
    """The pre-tokenizer that cuts a text into pieces and these into runs."""
    every = Split(Regex("|".join(RUN_PATTERNS.values())), behavior="isolated")
    return Sequence([piece_splitter(), every])


@cache
def expert_of_character(character: str) -> str:
    """The expert of one character that stands alone."""
    # Asked of the engine that cuts the runs: Python's own tables may be of another Unicode version.
    if not runs_of("common").pre_tokenize_str(character):
        code_point = ord(character)
        for expert, ranges in RANGES.items():
            if any(low <= code_point <= high for low, high in ranges):
                return expert
        return "other"
    return "common"


def runs_in_pieces(text: str) -> Iterator[tuple[str, str]]:
    """(expert, run) pairs, at most one piece each; joined, the runs give the text."""
    for run, _ in run_splitter().pre_tokenize_str(text):
        yield expert_of_character(run[-1]), run


def route(text: str) -> list[tuple[str, str]]:
    """Splits a text into (expert, run) pairs, neighbours of one expert joined across pieces."""
    return [
        (expert, "".join(run for _, run in group))
        for expert, group in groupby(runs_in_pieces(text), key=lambda pair: pair[0])
    ]
