r"""One spelling of an answer: Unicode, spacing, sizing and font commands, synonyms.

Guarantees: every function is pure and takes time linear in the text but for a few bounded patterns;
nothing is evaluated and no meaning is chosen: `2(13)` stays what it is. What comes out is LaTeX.
Out of scope: the types of answers (`reading` does that) and their comparison (`compare`).
"""

import re
import unicodedata

_SUPERSCRIPTS = {ord(c): d for c, d in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿˣ", "0123456789+-()nx", strict=True)}
_SUPERSCRIPT_RUN = re.compile(f"[{''.join(map(chr, _SUPERSCRIPTS))}]+")
_SUBSCRIPTS = {ord(c): d for c, d in zip("₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789n", strict=True)}
_SUBSCRIPT_RUN = re.compile(f"[{''.join(map(chr, _SUBSCRIPTS))}]+")
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_GREEK = dict(
    zip(
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩϕ",
        str.split(
            "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma"
            " tau"
            " upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega phi"
        ),
        strict=True,
    )
)
_UNICODE = {
    **{letter: f"\\{name} " for letter, name in _GREEK.items()},
    **dict.fromkeys("−–—‒‐‑", "-"),
    **dict.fromkeys("⋅·∙•", r"\cdot "),
    **dict.fromkeys("⁄∕÷", "/"),
    **dict.fromkeys("′’‘", "'"),
    **dict.fromkeys("″”“", "''"),
    **dict.fromkeys("\u200b\u2061\u2062\u2063\u2064\ufeff", ""),
    "×": r"\times ",
    "✕": r"\times ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "≡": r"\equiv ",
    "∴": "",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∖": r"\setminus ",
    "∈": r"\in ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "°": r"\degree ",
    "º": r"\degree ",
    "∅": r"\emptyset ",
    "ø": r"\emptyset ",
    "ℝ": r"\Reals ",
    "ℤ": r"\Integers ",
    "ℕ": r"\Naturals ",
    "ℚ": r"\Rationals ",
    "ℂ": r"\Complexes ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "→": r"\to ",
    "↦": r"\mapsto ",
    "∨": r"\lor ",
    "∧": r"\land ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "…": r"\ldots ",
    "％": "%",
    "£": r"\pounds ",
    "€": r"\euro ",
    "¥": r"\yen ",
    "¢": r"\text{ cents}",
    "Ω": r"\Omega ",
    "µ": r"\mu ",
}
_ROOT = re.compile(r"([√∛∜])\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]))")
_ROOT_INDEX = {"√": "", "∛": "[3]", "∜": "[4]"}

_OPERATORS = (
    "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|arccot|arcsec|arccsc|sinh|cosh|tanh|coth|sech|csch"
    "|arcsinh|arccosh|arctanh|arsinh|arcosh|artanh|ln|log|lg|exp|lcm|gcd|max|min|Re|Im|tg|ctg|cis"
)
_SUBSTITUTIONS = [
    # Thousands that LaTeX holds together: never a list.
    (re.compile(r"(?<=\d)(?:\{,\}|,\s*\\!|\\,|\\!)\s*(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=\d) (?=\d{3}(?: \d{3})*(?![\d,./]| \d))(?<!\d{4} )"), ""),
    # Spacing.
    (
        re.compile(
            r"(?<!\\)\\[,;: >]|\\(?:q?quad|thinspace|medspace|thickspace|enspace|hfill|newline"
            r"|displaystyle|textstyle|scriptstyle|limits|nolimits|left|right|middle|[bB]igg?[lrm]?"
            r"|rm|bf|it|tt|sf|mathstrut|strut|par)(?![A-Za-z])|(?<!\\)\\!|~|\s"
        ),
        " ",
    ),
    (re.compile(r"\\(?:[hv]space\*?|phantom|label|tag)\s*\{[^{}]*\}"), " "),
    # A colour or a rule under the answer is no part of it.
    (
        re.compile(r"\\(?:color|textcolor|colorbox)\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}|\\color\s+\w+"),
        "",
    ),
    (
        re.compile(
            r"\\(?:underline|uline|boldsymbol|bm|pmb|emph|mathit|mathsf|mathtt|mathcal|mathnormal"
            r"|ensuremath|mathop|mathbin|mathrel|smash|fbox|f?boxed|cancel|displaylines)"
            r"(?![A-Za-z])\s*(?=\{)"
        ),
        "",
    ),
    (
        re.compile(r"\\(?:vec|hat|mathbf|overrightarrow|bf)\s*\{?\s*\\?([ijk])(?:math)?\s*\}?"),
        r"\\unit\1 ",
    ),
    (re.compile(r"\\(?:mathbf|vec)(?![A-Za-z])\s*(?=\{\s*\d)"), ""),
    (re.compile(r"\\(?:mathbb|Bbb|mathds)\s*\{?\s*R\s*\}?|\\R(?:eals)?(?![A-Za-z])"), r"\\Reals "),
    (re.compile(r"\\(?:mathbb|Bbb)\s*\{?\s*Z\s*\}?|\\Z(?![A-Za-z])"), r"\\Integers "),
    (re.compile(r"\\(?:mathbb|Bbb)\s*\{?\s*N\s*\}?|\\N(?![A-Za-z])"), r"\\Naturals "),
    (re.compile(r"\\(?:mathbb|Bbb)\s*\{?\s*Q\s*\}?|\\Q(?![A-Za-z])"), r"\\Rationals "),
    (re.compile(r"\\(?:mathbb|Bbb)\s*\{?\s*C\s*\}?"), r"\\Complexes "),
    # Degrees before fonts: ^{\circ}\mathrm{C}.
    (
        re.compile(
            r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\(?:degrees?|textdegree)(?![A-Za-z])"
        ),
        r"\\degree ",
    ),
    (
        re.compile(r"\\degree\s*(?:\\(?:text|mathrm|rm)\s*\{\s*([CF])\s*\}|([CF])(?![A-Za-z]))"),
        r"\\text{ deg\1\2}",
    ),
    (re.compile(r"\^\s*\{?\s*\\(?:text|mathrm)\s*\{\s*o\s*\}\s*\}?"), r"\\degree "),
    (re.compile(r"(?<=\d)\s*(?:\\text\s*\{\s*to\s*\}|(?<= )to )\s*(?=\d)"), ":"),
    (re.compile(r"\^\s*\{\s*(?:\\prime\s*\\prime|'\s*')\s*\}"), "''"),
    (re.compile(r"\^\s*(?:\\prime(?![A-Za-z])|\{\s*((?:\\prime\s*)+)\})"), "'"),
    (re.compile(r"\\(?:therefore|because)(?![A-Za-z])"), " "),
    # Minutes, not a minimum: a number before, no bracket behind.
    (
        re.compile(r"(?<=[\d}])\s*\\(?:text|mathrm)\s*\{\s*min\s*\}(?!\s*[({\\])"),
        r"\\text{ minutes}",
    ),
    (re.compile(r"\\(?:mathrm|text|mathup)\s*\{\s*([eid])\s*\}"), r" \1"),
    (
        re.compile(rf"\\(?:operatorname|mathrm|text|mathop)\*?\s*\{{\s*({_OPERATORS})\s*\}}"),
        r"\\\1 ",
    ),
    (
        re.compile(
            r"\\(?:mbox|mathrm|textrm|textbf|textit|textsf|texttt|textnormal|textup|hbox|mathup|textsc|textsl)\s*(?=\{)"
        ),
        r"\\text",
    ),
    (re.compile(r"^\\text\s*\{\s*(?:negative|minus)\s*\}"), "-"),
    # A power in a unit: \text{m s^{-1}}.
    (re.compile(r"(?<=[A-Za-z])\^\{(-?\d)\}(?=[^{}\d]{0,40}\})"), r"^\1"),
    (re.compile(r"\\(?:mathbf|mathfrak|mathscr|vec)\s*(?=\{|\s*[A-Za-z\\])"), ""),
    (re.compile(r"\\(?:[dtc]?frac|nicefrac|sfrac|flatfrac|xfrac)(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:d|t)binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    # A power of ten as computers print it.
    (
        re.compile(
            r"(?<![\dA-Za-z.])(?!\d+e[-+][0-4](?![\d.]))(\d+(?:\.\d+)?|\.\d+)[eE]([-+]?\d{1,4})(?![\d._A-Za-z])"
        ),
        r"\1\\times 10^{\2}",
    ),
    (re.compile(r"\\(?:surd|sqrt)(?![A-Za-z])"), r"\\sqrt"),
    # Relations and sets.
    (re.compile(r"<=|=<|\\(?:leqslant|leqq|leq|le)(?![A-Za-z])"), r"\\le "),
    (re.compile(r">=|\\(?:geqslant|geqq|geq|ge)(?![A-Za-z])"), r"\\ge "),
    (re.compile(r"!=(?!=)|\\(?:neq|ne|not\s*=)(?![A-Za-z])|\\not="), r"\\ne "),
    (re.compile(r"&lt;|\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"&gt;|\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:approx|simeq|thickapprox|doteq|cong)(?![A-Za-z])"), r"\\approx "),
    (re.compile(r"\\(?:lbrace)(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:lbrack)(?![A-Za-z])"), "["),
    (re.compile(r"\\(?:rbrack)(?![A-Za-z])"), "]"),
    (re.compile(r"\\(?:varnothing|O)(?![A-Za-z])|\\\{\s*\\\}"), r"\\emptyset "),
    (re.compile(r"\\(?:lvert|rvert|vert|lVert|rVert|Vert|mid|\|)(?![A-Za-z])"), "|"),
    (re.compile(r"\\(?:smallsetminus|backslash|setminus)(?![A-Za-z])"), r"\\setminus "),
    (re.compile(r"\\(?:colon)(?![A-Za-z])"), ":"),
    (re.compile(r"\\(?:varphi)(?![A-Za-z])"), r"\\phi"),
    (re.compile(r"\\(?:varepsilon)(?![A-Za-z])"), r"\\epsilon"),
    (re.compile(r"\\(?:vartheta)(?![A-Za-z])"), r"\\theta"),
    (re.compile(r"\\(?:lor|vee)(?![A-Za-z])|\\text\s*\{\s*,?\s*or\s*,?\s*\}"), r"\\lor "),
    (
        re.compile(r"\\(?:land|wedge)(?![A-Za-z])|\\text\s*\{\s*,?\s*(?:and|&)\s*,?\s*\}|\\&"),
        r"\\land ",
    ),
    (re.compile(r"\\(?:ast|star|centerdot|bullet)(?![A-Za-z])"), r"\\cdot "),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\.\.\.+|\\(?:dots|cdots|ldots|dotsc|dotsb|dotso)(?![A-Za-z])"), r"\\ldots "),
    (
        re.compile(
            r"(?<=[\d}])\s+(?:percent|pct)(?![A-Za-z])|\\(?:%|percent)|\\text\s*\{\s*(?:percent|pct)\s*\}"
        ),
        "%",
    ),
    (re.compile(r"\{\s*,\s*\}"), ","),
    (re.compile(r"\*\*"), "^"),
    # A letter x between digits and a power of ten is a multiplication sign.
    (re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)"), r"\\times "),
]
_WITHOUT_COMMANDS = [
    (pattern, replacement)
    for pattern, replacement in _SUBSTITUTIONS
    if not pattern.pattern.startswith("\\\\")
]
"""What can match in a text without a backslash."""
_ESCAPED_TWICE = re.compile(r"\\\\(?=[A-Za-z])")
_DOLLARS_AROUND = re.compile(r"\$\$?([^$]*)\$\$?")
_LEAD_IN = re.compile(
    r"^(?:\\text\s*\{)?\s*(?:(?:so|thus|hence|therefore|finally|then)\b[,:]?\s*)?"
    r"(?:(?:the|our|my|final|correct|answer|answers|result|value|solution|solutions|choice|option"
    r"|equals?|total|ans)\b\.?\s*)*(?:\b(?:is|are)\b|[:=])*\s*:?\s*\}?\s*(?=\S)",
    re.IGNORECASE,
)


def normalise(answer: str) -> str:
    r"""One spelling of an answer that is still LaTeX with the same meaning.

    `\dfrac` and its like become `\frac`, fonts become `\text`, degrees `\degree`, dollars around
    mathematics go and a dollar before a number becomes `\dollar`. Idempotence is not promised.
    """
    text = answer.strip()
    if (
        text.isascii()
        and text.replace(" ", "").isalnum()
        and not re.search(r"\d[eE]\d|\d[xX ]", text)
    ):
        return text
    if not text.isascii():
        text = _ascii(text)
    for mark in ("**", "__", "`"):  # Markdown's bold and code
        if text.startswith(mark) and text.endswith(mark) and len(text) > 2 * len(mark):
            text = text[len(mark) : -len(mark)].strip()
    text = _without_dollars(text)
    if r"\begin" not in text:  # there `\\` ends a row; elsewhere it was escaped once too often
        text = _ESCAPED_TWICE.sub(r"\\", text)
    if (
        any(character in text for character in "\\{}%~*<>!.^\n\t")
        or re.search(r"\d[eE][-+\d]|  ", text)
        or "x" in text
        or " " in text
    ):
        for pattern, replacement in _SUBSTITUTIONS if "\\" in text else _WITHOUT_COMMANDS:
            text = pattern.sub(replacement, text)
    return _trimmed(text)


def without_lead_in(text: str) -> str:
    r"""A normalised answer without `Answer:`, `So the answer is`, `\text{Hence }` in front."""
    match = _LEAD_IN.match(text)
    if match is None or match.end() == 0:
        return text
    rest = text[match.end() :]
    if match.group().count("{") != match.group().count("}"):  # the \text goes on: it holds all
        rest = r"\text{" + rest
    return rest


def _ascii(text: str) -> str:
    text = _VULGAR.sub(_vulgar_fraction, text)
    text = _SUPERSCRIPT_RUN.sub(lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text)
    text = _SUBSCRIPT_RUN.sub(lambda m: "_{" + m.group().translate(_SUBSCRIPTS) + "}", text)
    text = "".join(_UNICODE.get(character, character) for character in text)
    for _ in range(3):
        text, roots = _ROOT.subn(
            lambda m: (
                rf"\sqrt{_ROOT_INDEX[m.group(1)]}{{{m.group(2) or m.group(3) or m.group(4)}}}"
            ),
            text,
        )
        if not roots:
            break
    text = re.sub(r"√\s*(?=\\)", r"\\sqrt ", text)
    return unicodedata.normalize("NFKC", text).replace("\u2044", "/")


def _vulgar_fraction(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match.group()).partition("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _without_dollars(text: str) -> str:
    if "$" not in text:
        for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
            text = text.replace(opening, " ").replace(closing, " ")
        return text
    text = text.replace(r"\$", "\x00")
    text = _DOLLARS_AROUND.sub(r" \1 ", text)
    text = text.replace("$", "\x00")
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        text = text.replace(opening, " ").replace(closing, " ")
    return text.replace("\x00", r"\dollar ")


def _trimmed(text: str) -> str:
    text = re.sub(r" {2,}", " ", text).strip()
    while True:
        before = text
        text = text.strip()
        if not text.endswith("\\"):
            text = text.rstrip(".;, ")
        if text.endswith(r"\\"):
            text = text[:-2]
        if text.startswith("{") and closing(text, 0) == len(text) - 1:
            text = text[1:-1]
        text = re.sub(r"^(?:\{\s*\}|[=:]\s*|\\approx )+", "", text)
        if text == before:
            return text


def closing(text: str, start: int) -> int:
    """Index of the brace or bracket that closes the one at `start`, or -1."""
    opening, end = text[start], {"{": "}", "(": ")", "[": "]"}[text[start]]
    depth, i = 0, start
    while i < len(text):
        if text[i] == "\\":
            i += 2
            continue
        depth += (text[i] == opening) - (text[i] == end)
        if depth == 0:
            return i
        i += 1
    return -1
