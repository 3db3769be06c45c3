r"""The final answer of a completion: the last box, the last answer tag, what follows "the answer
is", or the last expression or number.

Guarantees: `extract` is pure, takes time linear in the text, whatever the text is, and
`extract(text + r"\boxed{x}")` is `x` for every `x` with balanced braces and no box in it.
Out of scope: a draft before `</think>`, several boxes as one answer, and the meaning of the answer
(`reading`).
"""

import re
from dataclasses import dataclass
from typing import Literal

How = Literal["boxed", "tagged", "bare", "math", "number"]

TAIL = 4_000
"""Characters at the end where mathematics without a box is looked for: a bound on opening brackets
that are never closed."""
_BRACES = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{|\\\\(?!f?box)|\\[{}]|[{}]")
_BOX_OF_ONE = re.compile(r"\\f?boxed\s+([^\s{}\\$.,;]+)")
_TAG = re.compile(r"<answer>", re.IGNORECASE)
_TAG_END = re.compile(r"</answer>", re.IGNORECASE)
_MATH = re.compile(
    r"\$\$([^$]{1,2000})\$\$|\$([^$\n]{1,2000})\$|\\\(([^\n]{1,2000}?)\\\)|\\\[(.{1,2000}?)\\\]",
    re.DOTALL,
)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_LAST_NUMBER = re.compile(
    rf"(?:(?<![\w)}}\]])[-+\u2212]\s?)?\$?(?:\\[dt]?frac\s*\{{[-+]?{_DIGITS}\}}\s*\{{[-+]?{_DIGITS}\}}"
    rf"|{_DIGITS}(?:\s?/\s?{_DIGITS})?(?:\s?\\?%)?)"
)
_WORD_THEN_NUMBER = re.compile(
    r"\s*(?!sqrt|sin|cos|tan|sec|csc|cot|log|ln|exp|pi)[A-Za-z]{2,}\s+[-+$]?\.?\d"
)  # about 5
_PROSE = re.compile(r"[A-Za-z]{2,}")
_MARKED = re.compile(
    r"\\(?:text|mbox|mathrm|textbf|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+"
)
_FUNCTION_WORDS = "sqrt|sin|cos|tan|sec|csc|cot|log|ln|lg|exp|pi|max|min|gcd|lcm|all|no|any|every"
# A word or two, then mathematics: Answer $ 9 $, Hence \(9\), So \frac{1}{2}, Thus x = 5.
_LEADING_WORDS = re.compile(
    rf"\s*(?!(?:{_FUNCTION_WORDS})\b)(?:[A-Za-z]{{2,12}}[,:]?\s+){{1,2}}(?=\$|\\|[-+(\[|.\d]|[A-Za-z](?![A-Za-z])\s*[=<>^+*/(-])"
)
# An answer of words alone, a time of day or a ratio.
_PHRASE = re.compile(
    r"\s*(?:there (?:is|are) )?(?:no|infinitely many)(?: \w+)? (?:solutions?|roots?|values?)\s*\.?\s*"
    r"|\s*(?:the (?:limit|value|answer) )?(?:does not exist|is undefined)\s*\.?\s*"
    r"|\s*all (?:reals|real numbers)\s*\.?\s*"
    r"|\s*\d+\s*:\s*\d+(?:\s*:\s*\d+)?(?:\s*[ap]\.?m\.?)?\s*",
    re.IGNORECASE,
)
_SUBJECT = re.compile(r"\s*the (?:limit|value|answer) (?:is )?", re.IGNORECASE)
_LABEL = re.compile(r"\s*\\text\s*\{[^{}\d]{0,40}?(?:answer|result)[^{}\d]{0,20}\}", re.IGNORECASE)
_TUPLE_AT_END = re.compile(r"(?<![\w)}])[(\[]([^()\[\]\n$]{1,80},[^()\[\]\n$]{1,80})[)\]][.\s]*$")
_CONCLUSION = r"\s*(?:so|hence|thus|therefore|then|finally|answer|result|solution)\b"
_SAYS = re.compile(
    r"(?:final answer|answer|choice|option|result)\**\s*(?:is|are|:|=|would be|must be)[\s:*]*",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"\**(?:option |choice |\\text(?:bf)?\{)?\(?([A-J])\)?\}?\**(?=[.,:]|\s*$|\s+[\d$\\(])"
)


def _nested(depth: int) -> str:
    """A pattern of text with balanced braces, `depth` levels of them."""
    inner = r"[^{}\\]|\\."
    for _ in range(depth):
        inner = rf"[^{{}}\\]|\\.|\{{(?:{inner})*\}}"
    return rf"(?:{inner})*"


BOX_AT_END = (
    rf".*(?:\\f?boxed|\\fbox)\s*(?:\{{{_nested(6)}\}}|(?<=\s)[^\s{{}}\\$.,;]+)"
    r"(?:[\s.,;:!$*_`]|\\[\])!,;. ]|\\(?:quad|qquad|blacksquare|square)(?![A-Za-z])"
    r"|\\end\{[a-z]+\*?\}"
    r"|</answer>)*"
)
"""A regular expression for a completion that ends in a box (use with `re.fullmatch` and
`re.DOTALL`): braces in it up to six deep, and behind it only what closes mathematics, a sentence or
emphasis. `extract` reads every such box."""


@dataclass(frozen=True)
class Extracted:
    """An answer as it stands in the completion, and which rule found it."""

    text: str
    how: How


def extract(completion: str) -> Extracted | None:
    r"""The final answer of a completion, or None.

    What precedes the last `</think>` is a draft and is not read. Then, in this order: the last
    balanced `\boxed{...}` or the last `<answer>...</answer>`, whichever ends later (a box inside
    the tag is the answer); a completion that is nothing but one expression, perhaps behind a word
    such as `Hence`; an expression or the letter of a choice that ends the text behind "the answer
    is"; the last piece of mathematics between dollars or the last number, whichever ends later. An
    empty box or tag is no answer, and does not fall back to an earlier one.
    """
    text = (
        completion[completion.rfind("</think>") + len("</think>") :]
        if "</think>" in completion
        else completion
    )
    box, tag = _last_box(text), _last_tag(text)
    if tag is not None and (box is None or tag[1] > box[1]):
        inner = text[tag[0] : tag[1]]
        boxed = _last_box(inner)
        return _found(inner[boxed[0] : boxed[1]] if boxed else inner, "tagged")
    if box is not None:
        return _found(text[box[0] : box[1]], "boxed")
    if (leading := _LEADING_WORDS.match(text)) is not None:
        rest = text[leading.end() :]
        conclusion = re.match(_CONCLUSION, leading.group(), re.IGNORECASE) or not rest[:1].isdigit()
        if conclusion and _is_bare(rest) and not _PROSE.search(_MARKED.sub(" ", rest)):
            return _found(_undressed(rest), "bare")
    if len(text) <= 200 and _PHRASE.fullmatch(text):
        return _found(_SUBJECT.sub("", text), "bare")
    if (label := _LABEL.match(text)) is not None and _is_bare(text[label.end() :]):
        return _found(_undressed(text[label.end() :]), "bare")
    if _is_bare(text):
        return _found(text, "bare")
    return _said(text) or _last_expression(text)


def _undressed(text: str) -> str:
    r"""Without the `$...$` or `\(...\)` around all of it and the full stop behind."""
    text = text.strip().rstrip(".").strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        inner = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and "$" not in inner and inner:
            return inner.strip()
    return text


def _said(text: str) -> Extracted | None:
    """What follows the last `the answer is`, where it ends the text and is one expression."""
    tail = text[-TAIL:].rstrip()
    ends = [says.end() for says in _SAYS.finditer(tail)]
    if not ends:
        return None
    rest = tail[ends[-1] :]
    if (letter := _LETTER.match(rest)) is not None and not re.match(
        r"\s*[=<>+*/^-]", rest[letter.end() :]
    ):
        return Extracted(letter.group(1), "bare")
    plain = _undressed(rest)
    if "\n" in plain or "$" in plain or re.fullmatch(r"[\s*]*", plain) or not _is_bare(plain):
        return None
    if re.match(r"[A-Za-z]{2,}$", plain.strip("* .")) and " " in plain:
        return None
    return (
        _found(plain.strip("*").rstrip(" ."), "bare") if re.search(r"[\d\\^=()]", plain) else None
    )


def _found(text: str, how: How) -> Extracted | None:
    return Extracted(text.strip(), how) if text.strip(" \t\r\n$") else None


def _last_box(text: str) -> tuple[int, int] | None:
    """Start and end of what the last balanced box holds: one pass, whatever is left open."""
    if "box" not in text:
        return None
    open_braces: list[tuple[int, bool]] = []
    best: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token[-1] == "{" and token != r"\{":
            open_braces.append((match.end(), len(token) > 1))
        elif token == "}" and open_braces:
            start, is_box = open_braces.pop()
            if is_box and (best is None or start > best[0]):
                best = (start, match.start())
    for match in _BOX_OF_ONE.finditer(text):  # \boxed 5
        if best is None or match.start() > best[1]:
            best = match.span(1)
    return best


def _last_tag(text: str) -> tuple[int, int] | None:
    ends = [match.start() for match in _TAG_END.finditer(text)]
    if not ends:
        return None
    starts = [match.end() for match in _TAG.finditer(text, 0, ends[-1])]
    return (starts[-1], ends[-1]) if starts else None


def _is_bare(text: str) -> bool:
    """One line that reads as an expression or one word, not as a sentence."""
    if len(text) > 20_000 or "\n" in text.strip():
        return False
    without = _MARKED.sub(" ", text)
    words = _PROSE.findall(without)
    if len(words) > 1 or "####" in text or ":" in text:
        return False
    return not words or _WORD_THEN_NUMBER.match(without) is None


def _is_denied(before: str, after: str) -> bool:
    """`not 9`, `9 is wrong`."""
    return bool(
        re.search(r"(?:\bnot|n't)(?: be| equal(?: to)?)?\s+(?:\$|\\\(\s*)?$", before)
        or re.match(r"(?:\$|\s*\\\))?\s+is (?:wrong|false|incorrect|not)\b", after)
    )


def _last_expression(text: str) -> Extracted | None:
    math = number = None
    for match in _MATH.finditer(text, max(0, len(text) - TAIL)):
        content = next(group for group in match.groups() if group is not None)
        if _is_denied(text[max(0, match.start() - 20) : match.start()], text[match.end() :][:20]):
            continue
        if _is_bare(content) and content.strip():
            math = (match.end(), content)
    ending = _TUPLE_AT_END.search(text, max(0, len(text) - 200))
    if (
        ending is not None
        and not _PROSE.search(_MARKED.sub(" ", ending.group()))
        and not re.search(r"(?:\b(?:not|and|or)|,)\s*$", text[: ending.start()][-20:])
    ):  # the vertex is (1, 2)
        return _found(ending.group().rstrip(". \n"), "math")
    for match in _LAST_NUMBER.finditer(text):
        number = (match.end(), match.group())
    if number is not None:
        start = number[0] - len(number[1])
        if _is_denied(text[max(0, start - 20) : start], text[number[0] :][:20]):
            number = None
    if math is not None and (number is None or math[0] >= number[0]):
        return _found(math[1], "math")
    return _found(number[1], "number") if number is not None else None
