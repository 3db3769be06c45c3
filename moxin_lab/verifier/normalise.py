r"""Answers as text: brought to one spelling, read as exact numbers, compared without SymPy.

Guarantees: every function is pure; numbers are exact (`fractions.Fraction`), never floats; nothing
here evaluates a power, a factorial or any other operation whose result can be larger than the text.
Callers bound the length: some patterns here are quadratic in it.
Does not: know algebra. `compare` answers None where only symbols can decide; the verifier then asks
a worker.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

_SUPERSCRIPTS = {ord(c): d for c, d in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True)}
_SUPERSCRIPT_RUN = re.compile(f"[{''.join(map(chr, _SUPERSCRIPTS))}]+")
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_UNICODE = {
    "−": "-",
    "–": "-",
    "—": "-",
    "×": r"\times ",
    "÷": "/",
    "·": r"\cdot ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "±": r"\pm ",
    "°": r"^\circ ",
    "θ": r"\theta ",
    "∅": r"\emptyset ",
    "⁄": "/",
    "∕": "/",
    "’": "'",
    "％": "%",
    "£": "",
    "€": "",
    "¥": "",
}
_SPACES = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~|\s")
_DROPPED = re.compile(
    r"\\(?:left|right|middle|bigl|bigr|Bigl|Bigr|biggl|biggr|Biggl|Biggr|big|Big|bigg|Bigg|displaystyle|textstyle|limits"
    r"|nolimits|boldsymbol|phantom\{[^{}]*\})(?![A-Za-z])\.?|(?<!\\)\\!\s*|\\?\$"
)
_TEXT = re.compile(
    r"\\(?:mbox|mathrm|mathbf|mathit|mathsf|textrm|textbf|textit|textsf|textnormal|hbox|rm)\s*\{"
)
_FRAC = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_FRAC_SHORT = re.compile(r"\\frac\s*(?:([0-9A-Za-z])|(\{[^{}]*\}))\s*(?:([0-9A-Za-z])|(\{))")
_SQRT_SHORT = re.compile(r"\\sqrt\s*([0-9A-Za-z])")
_DEGREE = re.compile(r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degree(?:s)?(?![A-Za-z])")
_SYNONYMS = [
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])"), r"\\ge"),
    (re.compile(r"\\neq(?![A-Za-z])"), r"\\ne"),
    (re.compile(r"\\(?:lbrace)(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:varnothing)(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"(?<![A-Za-z\\])sqrt\s*\{"), r"\\sqrt{"),
    (re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])"), r"\\pi"),
    (re.compile(r"\\text\s*\{\s*(?:percent|pct|percentage)\s*\}"), "%"),
    (re.compile(r"\s*(?<![A-Za-z\\])(?:percent|pct)(?![A-Za-z])"), "%"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\{\s*,\s*\}"), ","),
    (re.compile(r"\\text\s*\{\s*(?:and|or)\s*\}"), ","),
    (re.compile(r"(?<=[\d})\]])\s+(?:and|or)\s+(?=[-\d\\(\[])"), ","),
]
_ESCAPED_TWICE = re.compile(r"\\\\(?=[A-Za-z])")
_SPACE_RUN = re.compile(r" {2,}")


def normalise(answer: str) -> str:
    r"""One spelling of an answer that is still LaTeX with the same meaning.

    Unicode mathematics becomes commands, spacing and sizing commands go, `\dfrac`, `\frac12`,
    `\sqrt2`, `**` and `^(...)` get the one form, degree signs and currency go, `\mbox` and its like
    become `\text`. Idempotence is not promised.
    """
    text = answer.strip()
    if not text.isascii():
        text = _VULGAR.sub(_vulgar_fraction, text)
        text = _SUPERSCRIPT_RUN.sub(
            lambda run: "^{" + run.group().translate(_SUPERSCRIPTS) + "}", text
        )
        text = "".join(_UNICODE.get(character, character) for character in text)
        text = re.sub(
            r"√\s*\(([^()]*)\)|√\s*(\w+)",
            lambda root: rf"\sqrt{{{root.group(1) or root.group(2)}}}",
            text,
        )
        text = unicodedata.normalize("NFKC", text)
        text = text.replace("\u2044", "/").replace("\u2212", "-")
    if text.startswith("**") and text.endswith("**") and len(text) > 4:  # Markdown's bold
        text = text[2:-2]
    if not any(
        character in text for character in "\\^*$%{~"
    ):  # plain numbers and words: most answers
        return _finish(_plain(text))
    text = text.replace("**", "^")
    text = _DROPPED.sub("", text)
    text = _SPACES.sub(" ", text)
    text = _TEXT.sub(r"\\text{", text)
    text = _FRAC.sub(r"\\frac", text)
    text = _plain(text)
    text = _FRAC_SHORT.sub(_braced_fraction, text)
    text = _SQRT_SHORT.sub(r"\\sqrt{\1}", text)
    text = _DEGREE.sub("", text)
    for opener, opening in (("^", "^{"), (r"\sqrt", r"\sqrt{")):
        text = _parenthesised(text, opener, opening)
    return _finish(text)


def _plain(text: str) -> str:
    if (
        r"\begin" not in text
    ):  # a double backslash ends a row of a matrix; elsewhere it was escaped once too often
        text = _ESCAPED_TWICE.sub(r"\\", text)
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    return re.sub(r"(?<![A-Za-z\\])sqrt(?=\s*\()", r"\\sqrt", text)


def _finish(text: str) -> str:
    text = _SPACE_RUN.sub(" ", _SPACES.sub(" ", text)).strip()
    text = text.rstrip(".;, ") if not text.endswith("\\") else text
    while text.startswith("{") and _closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    if r"\sqrt(" in text or r"\sqrt (" in text:
        text = _parenthesised(text, r"\sqrt", r"\sqrt{")
    return text


def _vulgar_fraction(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match.group()).partition("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _braced_fraction(match: re.Match[str]) -> str:
    top = match.group(2) or "{" + match.group(1) + "}"
    return r"\frac" + top + (match.group(4) or "{" + match.group(3) + "}")


def _parenthesised(text: str, opener: str, opening: str) -> str:
    """`^(x)` and `\\sqrt(x)` as `^{x}` and `\\sqrt{x}`: one pass over the parentheses, whatever
    their nesting.
    """
    if opener not in text:
        return text
    out, stack, i = [], [], 0
    while i < len(text):
        if text.startswith(opener, i):
            after = i + len(opener)
            while after < len(text) and text[after] == " ":
                after += 1
            if after < len(text) and text[after] == "(":
                out.append(opening)
                stack.append(True)
                i = after + 1
                continue
        if text[i] == "(":
            stack.append(False)
        elif text[i] == ")" and stack:
            out.append("}" if stack.pop() else ")")
            i += 1
            continue
        out.append(text[i])
        i += 1
    return "".join(out) if not any(stack) else text


def _closing(text: str, start: int) -> int:
    """Index of the brace or parenthesis that closes the one at `start`, or -1."""
    opening, closing = text[start], {"{": "}", "(": ")"}[text[start]]
    depth, i = 0, start
    while i < len(text):
        if text[i] == "\\":
            i += 2
            continue
        depth += (text[i] == opening) - (text[i] == closing)
        if depth == 0:
            return i
        i += 1
    return -1


_INNER_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_BRACED_ONE = re.compile(r"([_^])\{(\w)\}")


def key(normalised: str) -> str:
    """What two spellings of one string share: no spaces, no `\\text`, words of two letters and more
    in lower case.
    """
    text = _INNER_TEXT.sub(lambda m: m.group(1), normalised)
    text = re.sub(r"(?<!\d) +| +(?!\d)", "", text)  # but 1 2 is not 12
    text = _BRACED_ONE.sub(r"\1\2", text)
    text = re.sub(r"(?<![\\A-Za-z])[A-Za-z]{2,}", lambda word: word.group().lower(), text)
    choice = re.fullmatch(r"\(?([A-Za-z])\)?\.?", text)
    return choice.group(1) if choice else text


_PREFIX = re.compile(
    r"\s*(\\?[A-Za-z]+(?:_\{?\w+\}?)?'?(?:\s?\([A-Za-z, ]{1,20}\))?)\s*(?:=|\\in(?![A-Za-z])|\\approx)\s*(?![=<>])"
)


def split_prefix(normalised: str) -> tuple[str, str]:
    """`x = 5` as (`x`, `5`), `x \\in [0, 1)` too; (``, text) where there is no such prefix."""
    match = _PREFIX.match(normalised)
    if match is None or match.end() == len(normalised):
        return "", normalised
    return match.group(1).strip(), normalised[match.end() :]


# -------------------------------------------------------------------------------------------------------------
# numbers

_UNITS: dict[str, str] = {}
for _name, _spellings in {
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "m": "meter metre",
    "km": "km kilometer kilometre",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard",
    "mi": "mi mile",
    "mg": "mg milligram",
    "g": "gram gm",
    "kg": "kg kilogram",
    "oz": "oz ounce",
    "lb": "lb lbs pound",
    "ml": "ml milliliter millilitre",
    "l": "liter litre",
    "gal": "gal gallon",
    "s": "sec second",
    "min": "min minute",
    "h": "hr hour",
    "day": "day",
    "week": "week wk",
    "month": "month",
    "year": "year yr",
    "cent": "cent",
    "dollar": "dollar usd buck",
    "degree": "degree deg",
    "radian": "radian rad",
    "mph": "mph",
    "kmh": "kmh kph",
    "unit": "unit",
    "am": "am a.m.",
    "pm": "pm p.m.",
    "percent": "percentage",
    "people": "people",
    "student": "student",
    "way": "way",
    "point": "point",
    "hectare": "hectare",
    "acre": "acre",
    "mole": "mol mole",
}.items():
    for _word in _spellings.split():
        _UNITS[_word] = _UNITS[_word + "s"] = _name
_UNIT_TEXT = re.compile(
    r"^(.*\S)\s*\\text\s*\{([^{}]*)\}\s*(?:\^\s*(?:\{\s*(\d)\s*\}|(\d)))?$", re.DOTALL
)
_UNIT_WORDS = re.compile(
    r"^(.*[\d})%])\s*(?<![A-Za-z\\])((?:sq(?:uare)?\.?|cu(?:bic)?\.?)?\s*[A-Za-z][A-Za-z.]+s?)(?:\s*\^\s*\{?(\d)\}?)?$",
    re.DOTALL,
)
_COUNTED = re.compile(
    r"^([-+\d.,/]+) ([A-Za-z]{3,}(?: [A-Za-z]{2,}){0,3})$"
)  # 5 apples, 12 square feet
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(rf"([-+]?)({_NUMBER})(%?)")
_GROUPED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_RATIO = re.compile(rf"([-+]?)\(?([-+]?{_NUMBER})\)?/\(?([-+]?{_NUMBER})\)?(%?)")
_FRACTION = re.compile(
    rf"([-+]?)\(?\\frac\{{\(?([-+]?{_NUMBER})\)?\}}\{{\(?([-+]?{_NUMBER})\)?\}}\)?(%?)"
)
_MIXED = re.compile(r"([-+]?)(\d+)(?: ?\\frac\{ ?(\d+) ?\}\{ ?(\d+) ?\}| (\d+) ?/ ?(\d+))")
_SCIENTIFIC = re.compile(
    rf"([-+]?{_NUMBER})(?:(?:\\times|\\cdot|\*)10\^(?:\{{([-+]?\d{{1,3}})\}}|(\d))|[eE]([-+]?\d{{1,3}}))"
)


@dataclass(frozen=True)
class Number:
    """An exact rational, with what its spelling said beside the value."""

    value: Fraction
    decimals: int | None = None  # digits written after the point, None for integers and fractions
    percent: bool = False
    unit: str = ""


def number(normalised: str) -> Number | None:
    r"""The number that an answer spells: integer, decimal, `a/b`, `\frac{a}{b}`, mixed, scientific;
    None for the rest.
    """
    text, unit = _without_unit(normalised)
    while text.startswith("(") and _closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    mixed = _MIXED.fullmatch(text)
    if mixed is not None:
        sign, whole, *pair = mixed.groups()
        top, bottom = (part for part in pair if part is not None)
        return (
            _signed(sign, int(whole) + Fraction(int(top), int(bottom)), unit=unit)
            if int(bottom)
            else None
        )
    text = re.sub(r"(?<!\d) +| +(?!\d)", "", text)
    if _GROUPED.fullmatch(text):
        text = text.replace(" ", "")
    if (match := _PLAIN.fullmatch(text)) is not None:
        sign, digits, percent = match.groups()
        decimals = len(digits.partition(".")[2]) if "." in digits else None
        return _signed(sign, _exact(digits), decimals=decimals, percent=bool(percent), unit=unit)
    if (match := _RATIO.fullmatch(text) or _FRACTION.fullmatch(text)) is not None:
        sign, top, bottom, percent = match.groups()
        if not _exact(bottom):
            return None
        return _signed(sign, _exact(top) / _exact(bottom), percent=bool(percent), unit=unit)
    if (match := _SCIENTIFIC.fullmatch(text)) is not None:
        digits, *powers = match.groups()
        exponent = int(next(power for power in powers if power is not None))
        return Number(_exact(digits) * Fraction(10) ** exponent, unit=unit)
    return None


def _signed(sign: str, value: Fraction, **said: object) -> Number:
    return Number(-value if sign == "-" else value, **said)  # type: ignore[arg-type]


def _exact(digits: str) -> Fraction:
    return Fraction(
        digits.replace(",", "").rstrip(".") if not digits.startswith(".") else "0" + digits
    )


def _without_unit(text: str) -> tuple[str, str]:
    """Text without a unit at its end, and the unit's common name with its power (or its own
    spelling where it is not known).
    """
    match = _UNIT_TEXT.match(text)
    if match is None:
        counted = _COUNTED.match(text)
        if counted is not None and _unit_name(counted.group(2)) is None:
            return counted.group(1), counted.group(2).lower()
        words = _UNIT_WORDS.match(text)
        if words is None or _unit_name(words.group(2)) is None:
            return text, ""
        match, powers = words, words.group(3)
    else:
        powers = match.group(3) or match.group(4)
    power = powers or ""
    spelled = match.group(2).strip().lower()
    if re.match(r"(?:sq(?:uare)?|cu(?:bic)?)\b\.?\s*\w", spelled):
        power = "2" if spelled.startswith("sq") else "3"
    return match.group(1).rstrip(), (_unit_name(spelled) or spelled) + power


def _unit_name(words: str) -> str | None:
    word = re.sub(r"^(?:sq(?:uare)?|cu(?:bic)?)\b\.?\s*", "", words.strip().lower())
    if words.strip().lower() in ("square", "squares"):
        return None
    return _UNITS.get(word) or _UNITS.get(word.rstrip("."))


def numbers_equal(gold: Number, answer: Number) -> bool:
    """Exact equality, with three liberties: a percent sign may be missing or worked out (50% = 50 =
    0.5), a unit may be missing (but not be another one), a decimal with six digits after the point
    or more may be rounded.
    """
    if gold.unit and answer.unit and gold.unit != answer.unit:
        known = set(_UNITS.values())
        if gold.unit.rstrip("23") in known and answer.unit.rstrip("23") in known:
            return False
    values = [answer.value]
    if gold.percent != answer.percent:
        values.append(answer.value / 100 if answer.percent else answer.value * 100)
    return any(_close(gold, Number(value, answer.decimals)) for value in values)


def _close(gold: Number, answer: Number) -> bool:
    if gold.value == answer.value:
        return True
    written = [n.decimals for n in (gold, answer) if n.decimals is not None]
    if not written:
        return False
    difference = abs(gold.value - answer.value)
    return difference * 10**12 <= abs(gold.value) or (
        min(written) >= 6 and difference * 10 ** min(written) < 1
    )


# ----------------------------------------------------------------------------------------------------------
# comparison


def _items(text: str) -> tuple[str, list[str]] | None:
    """A tuple, interval or list of expressions, cut at its outer commas: (brackets, items). None if
    there is only one item.
    """
    brackets = ""
    for opening, closing in ((r"\{", r"\}"), ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")")):
        if (
            text.startswith(opening)
            and text.endswith(closing)
            and len(text) > len(opening) + len(closing)
        ):
            brackets, text = opening[-1] + closing[-1], text[len(opening) : -len(closing)]
            break
    items, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return None
        if character in ",;" and depth == 0:
            items.append(text[start:i].strip())
            start = i + 1
    items.append(text[start:].strip())
    return (brackets, items) if depth == 0 and len(items) > 1 and all(items) else None


def variants(normalised: str) -> Iterator[str]:
    """The answer, then the answer without one `x =` in front, then without two."""
    text = normalised
    for _ in range(3):
        yield text
        prefix, rest = split_prefix(text)
        if not prefix:
            return
        text = rest


def compare(gold: str, answer: str) -> tuple[bool, Literal["string", "number"]] | None:
    """Two normalised answers without algebra: (equal, by what) where text or exact numbers decide,
    None where they cannot.
    """
    gold_key = key(gold)
    if any(key(text) == gold_key for text in variants(answer)) or any(
        key(text) == key(answer) for text in variants(gold)
    ):
        return True, "string"
    (gold_name, gold), (answer_name, answer) = split_prefix(gold), split_prefix(answer)
    if gold_name and answer_name and key(gold_name) != key(answer_name):
        return None
    based = [_BASED.fullmatch(side.replace(" ", "")) for side in (gold, answer)]
    if based[0] and (
        based[1] or answer.isdecimal()
    ):  # the subscript may be left out, not be another one
        return based[0].group(1) == (based[1].group(1) if based[1] else answer) and not based[
            1
        ], "number"
    gold_number, answer_number = number(gold), number(answer)
    if gold_number is not None and answer_number is not None:
        return numbers_equal(gold_number, answer_number), "number"
    gold_items, answer_items = _items(gold), _items(answer)
    if gold_items is not None and answer_items is not None:
        return _compare_items(gold_items, answer_items)
    if r"\text" in gold and _is_word(gold) and _is_word(answer):
        return False, "string"
    return None


_BASED = re.compile(r"(\d+)_(?:\{(?:\d+)\}|\d+)")


def _is_word(text: str) -> bool:
    return (
        re.fullmatch(r"\(?[A-Za-z][A-Za-z' -]+\)?", _INNER_TEXT.sub(lambda m: m.group(1), text))
        is not None
    )


def _compare_items(
    gold: tuple[str, list[str]], answer: tuple[str, list[str]]
) -> tuple[bool, Literal["string", "number"]] | None:
    """Tuples and intervals in order, sets and bare lists in any order; only where every item is a
    number.
    """
    numbers = [[number(item) for item in items] for _, items in (gold, answer)]
    if any(n is None for side in numbers for n in side):
        return None
    ordered = [brackets not in ("", "{}") for brackets, _ in (gold, answer)]
    if ordered[0] != ordered[1] or (gold[0] != answer[0] and all(ordered)):
        return None
    if len(numbers[0]) != len(numbers[1]):
        return False, "number"
    if ordered[0]:
        return all(numbers_equal(g, a) for g, a in zip(*numbers, strict=True) if g and a), "number"
    values = [Counter(n.value for n in side if n) for side in numbers]
    return (True, "number") if values[0] == values[1] else None
