"""The script router: which expert's vocabulary a stretch of text belongs to.

The expert of a character depends on its code point alone; `RANGES` lists the Unicode blocks of each
expert. Characters of the scripts Common and Inherited belong to the expert of their block: ASCII,
general punctuation, symbols, emoji and combining diacritics to `latin` (Latin and code), CJK
punctuation and full-width forms to `han`, the prolonged sound mark and the combining voicing marks
to `kana`, the danda and the Arabic comma to `other`. One rule looks at a neighbour: a single U+0020
before a character that is not `latin` belongs to that character's run, so that words of a script
written with spaces keep the leading space that byte-level BPE gives to words.

Guarantees:
- The runs partition the text: joined, they give the text back. Adjacent runs have different
  experts.
- Left context never matters: `route(a + b)` is `route(a)` followed by `route(b)`, with neighbours
  of one expert joined, unless `a` ends in U+0020. A stream may be cut anywhere except after a
  space.
- The same pattern is the first pre-tokenizer of the exported `tokenizer.json`. It uses character
  classes and look-ahead only, which mean the same to Python's `re` and to the Oniguruma engine of
  Hugging Face `tokenizers`.
Out of scope: languages (Japanese and Chinese share the Han expert, Vietnamese and program code the
Latin one), and learning the rule. Upstream describes "MoE at the tokenizer level" in one sentence
and publishes no rule, so this one is ours.
"""

import re

EXPERTS = ("latin", "han", "kana", "hangul", "other")

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
    "han": (
        (0x2E80, 0x302D),  # radicals, ideographic description, CJK symbols and punctuation
        (0x3030, 0x303F),
        (0x3190, 0x319F),  # kanbun
        (0x31C0, 0x31EF),  # strokes
        (0x321F, 0x325F),  # enclosed and compatibility forms that are neither Hangul nor kana
        (0x327F, 0x32CF),
        (0x32FF, 0x32FF),
        (0x3358, 0x9FFF),  # compatibility, Extension A, Yijing symbols, unified ideographs
        (0xF900, 0xFAFF),  # compatibility ideographs
        (0xFE10, 0xFE1F),  # vertical forms
        (0xFE30, 0xFE6F),  # compatibility and small forms
        (0xFF00, 0xFF20),  # full-width punctuation and digits
        (0xFF3B, 0xFF40),
        (0xFF5B, 0xFF64),
        (0xFFE0, 0xFFEF),
        (0x16FE2, 0x16FE3),  # old Chinese marks
        (0x16FF0, 0x16FF6),
        (0x1F201, 0x1F2FF),  # enclosed ideographs
        (0x20000, 0x3CFFF),  # planes 2 and 3, kept for ideographs (the seal script begins at 3D000)
    ),
    "kana": (
        (0x3040, 0x30FF),  # Hiragana, Katakana, voicing marks, prolonged sound mark, middle dot
        (0x31F0, 0x31FF),  # Katakana phonetic extensions
        (0x32D0, 0x32FE),  # circled Katakana
        (0x3300, 0x3357),  # squared Katakana words
        (0xFF65, 0xFF9F),  # half-width Katakana
        (0x1AFF0, 0x1B16F),  # extensions and supplement
        (0x1F200, 0x1F200),
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
}
"""Code points of each expert, both ends included; every other code point belongs to `other`.

A test compares the table with the Unicode Script property.
"""


def _class_body(expert: str) -> str:
    """The inside of a regular expression's character class for one expert."""
    # Literal characters, except for control characters. No range begins or ends in a character that
    # is special inside a class.
    return "".join(f"{_literal(low)}-{_literal(high)}" for low, high in RANGES[expert])


def _literal(code_point: int) -> str:
    return f"\\x{code_point:02x}" if code_point < 0x20 else chr(code_point)


def _run_patterns() -> dict[str, str]:
    bodies = {expert: _class_body(expert) for expert in RANGES}
    latin = bodies["latin"]
    # `latin` without the space. A run of spaces is Latin, except for the last one if a character
    # that is not Latin follows.
    latin_no_space = latin.replace("\\x00-", "\\x00-\\x1f!-", 1)
    patterns = {"latin": f"(?:[{latin_no_space}]+| +(?![^{latin}]))+"}
    for expert in EXPERTS[1:-1]:
        patterns[expert] = f"(?: ?[{bodies[expert]}])+"
    patterns["other"] = f"(?: ?[^{''.join(bodies.values())}])+"
    return patterns


RUN_PATTERNS = _run_patterns()
"""By expert, a regular expression that matches a run of the expert."""
RUN_PATTERN = "|".join(RUN_PATTERNS[expert] for expert in EXPERTS)
"""A regular expression whose matches are the runs of a text, in order, covering all of it."""

_NAMED_RUNS = re.compile("|".join(f"(?P<{expert}>{RUN_PATTERNS[expert]})" for expert in EXPERTS))

DESCRIPTION = (
    "The expert of a character is given by its code point (ranges below; everything else is "
    "'other'). Common and Inherited characters go with their block. A single U+0020 before a "
    "character that is not 'latin' belongs to that character's run."
)
"""Recorded in `experts.json`; a changed word would change the bytes of the artifact."""


def route(text: str) -> list[tuple[str, str]]:
    """Splits a text into (expert, run) pairs; joined, the runs give the text."""
    return [(match.lastgroup or "", match.group()) for match in _NAMED_RUNS.finditer(text)]


def expert_of_character(character: str) -> str:
    """The expert of one character by `RANGES`, whatever its neighbours."""
    code_point = ord(character)
    for expert, ranges in RANGES.items():
        if any(low <= code_point <= high for low, high in ranges):
            return expert
    return "other"
