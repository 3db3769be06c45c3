r"""Refuse an answer by its looks: length, depth, and an upper bound of what it would evaluate to,
before SymPy sees it.

`screen` reads a normalised answer with its own small recursive descent and carries three numbers up
the tree: how many bits the exact value may need, how large its magnitude may be, and how small (for
what it divides). Powers, factorials, binomials, sums, products, roots and exponentials multiply
them; the first step above the limits is the reason of refusal.

Guarantees: time linear in the text after its length is checked, no big integers (bounds are floats,
infinity included), never raises on any text. Bounds err upwards: a harmless answer with an enormous
intermediate value is refused too.
Out of scope: a promise that what passes is cheap. A worker with a deadline and a memory
limit is behind it.
"""

import math
import re
from dataclasses import dataclass

LETTER_BITS = 2.0  # an unknown counts as a number below four: x^{10^9} is as large as 4^{10^9}


@dataclass(frozen=True)
class Limits:
    """What may reach a worker. bits: 65,536 holds 5000! and 3^{40000}; no answer of a public
    benchmark needs 4,000.
    """

    length: int = 1_200  # characters of the normalised answer
    tokens: int = 500
    depth: int = 24  # nested braces and brackets
    parentheses: int = 9  # nested parentheses: the parser's time grows fast with them
    radicals: int = 6  # nested roots: denesting them is exponential
    bits: float = 65_536.0
    # Exponent of anything with a letter in it: expanding is what simplification tries first.
    power: float = 2_048.0
    terms: float = 2_000.0  # of a sum or product with numbers as bounds


class Refused(Exception):
    """Why an answer is not evaluated."""


@dataclass(frozen=True)
class _Bound:
    bits: float = 1.0  # of numerator and denominator together
    top: float = 1.0  # |value| at most
    low: float = 0.0  # |value| at least; 0 where unknown
    constant: bool = True


_TOKEN = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+|\\[A-Za-z]+|\\.|\S", re.DOTALL)
_LETTER = _Bound(LETTER_BITS, 2.0**LETTER_BITS, 0.0, False)
_OPENING = {
    "(": ")",
    "[": "]",
    "{": "}",
    r"\{": r"\}",
    r"\lfloor": r"\rfloor",
    r"\lceil": r"\rceil",
    r"\langle": r"\rangle",
}
_CLOSING = frozenset(_OPENING.values()) | {"&", r"\\", ",", ";", ""}
_RELATIONS = frozenset(
    [
        "=",
        "<",
        ">",
        r"\le",
        r"\ge",
        r"\ne",
        r"\in",
        r"\cup",
        r"\cap",
        r"\approx",
        r"\to",
        ":",
        r"\mid",
    ]
)
_TIMES = frozenset(["*", r"\cdot", r"\times"])
_OVER = frozenset(["/", r"\div"])
_COMPUTATIONS = re.compile(
    r"\\operatorname\s*\{?\s*(?:eye|zeros|ones|diag|hstack|vstack|rank|rref|nullspace|norm|cols|rows|eig\w*|diagonalize|svd|orth\w*)"
    r"|\\xrightarrow",
    re.IGNORECASE,
)


def screen(text: str, limits: Limits = Limits()) -> str | None:
    """Why the answer must not be evaluated, in one sentence; None where nothing speaks against it."""
    if len(text) > limits.length:
        return f"{len(text):,} characters, at most {limits.length:,}"
    tokens = _TOKEN.findall(text)
    if len(tokens) > limits.tokens:
        return f"{len(tokens):,} tokens, at most {limits.tokens:,}"
    depths = _depths(tokens)
    if depths["all"] > limits.depth:
        return f"{depths['all']} levels of brackets, at most {limits.depth}"
    if depths["("] > limits.parentheses:
        return f"{depths['(']} levels of parentheses, at most {limits.parentheses}"
    if (match := _COMPUTATIONS.search(text)) is not None:
        return f"asks for a computation ({match.group().strip()}) instead of stating a value"
    try:
        reader = _Reader(tokens, limits)
        while reader.i < len(tokens):
            before = reader.i
            reader.additive()
            reader.i += (
                reader.i == before or reader.peek() in _CLOSING or reader.peek() in _RELATIONS
            )
    except Refused as refusal:
        return str(refusal)
    except RecursionError:
        return "nested too deeply to be read"
    return None


def _depths(tokens: list[str]) -> dict[str, int]:
    now, most = {"all": 0, "(": 0}, {"all": 0, "(": 0}
    for token in tokens:
        step = (token in _OPENING) - (token in _CLOSING and token not in ("&", r"\\", ",", ";"))
        for kind in ("all", "(") if token in "()" else ("all",):
            now[kind] = max(0, now[kind] + step)
            most[kind] = max(most[kind], now[kind])
    bars = tokens.count("|") // 2 + tokens.count(r"\|") // 2
    return {"all": most["all"], "(": max(most["("], bars)}


class _Reader:
    """Additive, multiplicative, postfix and atom, over tokens; what it does not know it reads as an
    unknown.
    """

    def __init__(self, tokens: list[str], limits: Limits):
        self.tokens, self.limits, self.i, self.level, self.radicals = tokens, limits, 0, 0, 0

    def peek(self) -> str:
        return self.tokens[self.i] if self.i < len(self.tokens) else ""

    def checked(self, bound: _Bound, what: str) -> _Bound:
        if not bound.bits <= self.limits.bits:
            raise Refused(
                f"{what} may need 2^{math.log2(bound.bits):.0f} bits or more, "
                f"at most {self.limits.bits:,.0f}"
                if bound.bits < math.inf
                else f"{what} is larger than any number that could be written out"
            )
        return bound

    def additive(self) -> _Bound:
        total: _Bound | None = None
        while True:
            while self.peek() in ("+", "-", r"\pm", r"\mp"):
                self.i += 1
            if self.peek() in _CLOSING or self.peek() in _RELATIONS:
                return total or _Bound()
            term = self.product()
            if total is None:
                total = term
            else:
                bits = total.bits + term.bits + 1
                total = self.checked(
                    _Bound(bits, total.top + term.top, 0.0, total.constant and term.constant),
                    "a sum",
                )
            if self.peek() not in ("+", "-", r"\pm", r"\mp"):
                return total

    def product(self) -> _Bound:
        value = self.postfix()
        while (
            (token := self.peek()) not in _CLOSING
            and token not in _RELATIONS
            and token not in ("+", "-", r"\pm", r"\mp")
        ):
            divide = token in _OVER
            if divide or token in _TIMES:
                self.i += 1
                while self.peek() in ("+", "-"):
                    self.i += 1
                if self.peek() in _CLOSING or self.peek() in _RELATIONS:
                    return value
            before = self.i
            other = self.postfix()
            self.i += self.i == before
            value = self.checked(
                _over(value, other) if divide else _times(value, other), "a product"
            )
        return value

    def postfix(self) -> _Bound:
        value = self.atom()
        while (token := self.peek()) in ("!", "^", "_", "'", "%"):
            self.i += 1
            if token == "!":
                value = self.checked(_factorial(value), "a factorial")
            elif token == "^":
                value = self.power(value, self.exponent())
            elif token == "_":
                self.exponent()
        return value

    def exponent(self) -> _Bound:
        """What a power or an index applies to: one atom with its sign, and in a ^ b ^ c all that
        follows.
        """
        while self.peek() in ("+", "-"):
            self.i += 1
        value = self.atom()
        while (token := self.peek()) in ("^", "!"):
            self.i += 1
            value = (
                self.power(value, self.exponent())
                if token == "^"
                else self.checked(_factorial(value), "a factorial")
            )
        return value

    def power(self, base: _Bound, exponent: _Bound) -> _Bound:
        most = exponent.top
        if not base.constant and most > self.limits.power:
            raise Refused(
                f"an exponent of {most:.3g} on an expression with unknowns, "
                f"at most {self.limits.power:,.0f}"
            )
        bits = base.bits * max(1.0, most)
        return self.checked(
            _Bound(
                bits,
                _exp2(_log2(max(base.top, 1.0)) * most) if base.low >= 1 else _exp2(bits),
                0.0,
                base.constant and exponent.constant,
            ),
            "a power",
        )

    def atom(self) -> _Bound:
        token = self.peek()
        if token in _CLOSING:
            return _Bound()
        self.i += 1
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            digits = token.replace(",", "")
            size = len(digits.replace(".", "")) * 3.33
            most = float(digits) if len(digits) < 300 else math.inf
            bits = max(1.0, math.log2(most + 1)) if "." not in digits and most < math.inf else size
            return self.checked(_Bound(bits, most, most if most < math.inf else 1.0), "a number")
        if token in _OPENING:
            return self.group(_OPENING[token])
        if token == "|":
            value = self.additive() if self.peek() != "|" else _Bound()
            self.i += self.peek() == "|"
            return _Bound(value.bits, value.top, 0.0, value.constant)
        if token.startswith("\\"):
            return self.command(token)
        return _Bound(LETTER_BITS, 3.0, 2.0) if token == "e" else _LETTER

    def group(self, closing: str) -> _Bound:
        bits, top, low, constant, items = 0.0, 0.0, 0.0, True, 0
        while self.i < len(self.tokens):
            before = self.i
            value = self.additive()
            bits, top, low, constant = (
                bits + value.bits,
                max(top, value.top),
                value.low,
                constant and value.constant,
            )
            items += 1
            token = self.peek()
            if token == closing or (token in (")", "]") and closing in (")", "]")):
                self.i += 1
                break
            self.i += self.i == before or token in _CLOSING or token in _RELATIONS
        return _Bound(max(bits, 1.0), top, low if items == 1 else 0.0, constant)

    def argument(self) -> _Bound:
        """The argument of a command: a group, or one token."""
        return self.atom()

    def command(self, name: str) -> _Bound:
        if name == r"\frac":
            return self.checked(_over(self.argument(), self.argument()), "a fraction")
        if name in (r"\binom", r"\dbinom", r"\tbinom"):
            upper, lower = self.argument(), self.argument()
            chosen = min(upper.top, lower.top)
            if not upper.constant:
                return _LETTER
            return self.checked(
                _Bound(max(1.0, min(upper.top, chosen * (_log2(upper.top) + 1))), math.inf),
                "a binomial",
            )
        if name == r"\sqrt":
            return self.root()
        if name in (r"\sum", r"\prod"):
            return self.repeated(name)
        if name in (r"\bigcup", r"\bigcap", r"\lim", r"\int", r"\oint"):
            return self.bounded()
        if name in (r"\exp", r"\sinh", r"\cosh", r"\tanh"):
            return self.power(_Bound(LETTER_BITS, 3.0, 2.0), self.argument_of_function())
        if name in (r"\Gamma", r"\gamma") and self.peek() in ("(", "{"):
            return self.checked(_factorial(self.argument()), "a gamma function")
        if name == r"\pi":
            return _Bound(LETTER_BITS, 4.0, 3.0)
        if name == r"\infty":
            return _Bound(1.0, math.inf, 1.0, False)
        if name in (r"\text", r"\operatorname", r"\begin", r"\end") and self.peek() == "{":
            while self.peek() not in ("}", ""):
                self.i += 1
            self.i += 1
            return _LETTER
        return _LETTER

    def argument_of_function(self) -> _Bound:
        return (
            self.power(_Bound(LETTER_BITS, 3.0, 2.0), self.exponent())
            if self._skip("^")
            else self.postfix()
        )

    def _skip(self, token: str) -> bool:
        found = self.peek() == token
        self.i += found
        return found

    def root(self) -> _Bound:
        self.radicals += 1
        try:
            if self.radicals > self.limits.radicals:
                raise Refused(f"{self.radicals} nested roots, at most {self.limits.radicals}")
            index = self.group("]") if self._skip("[") else _Bound(2.0, 2.0, 2.0)
            value = self.argument()
        finally:
            self.radicals -= 1
        if index.low < 1:  # a root of index 1/n is a power of n
            return self.power(value, _over(_Bound(), index))
        return _Bound(value.bits, max(1.0, value.top), 0.0, value.constant)

    def bounded(self) -> _Bound:
        """Unions, limits and integrals: their bounds are no powers."""
        while self._skip("_") or self._skip("^"):
            while self.peek() in ("+", "-"):
                self.i += 1
            self.atom()
        return _LETTER

    def repeated(self, name: str) -> _Bound:
        start = end = _LETTER
        for _ in range(2):
            if self._skip("_"):
                if self.peek() == "{":
                    while self.peek() not in ("=", "}", ""):
                        self.i += 1
                    if self._skip("="):
                        start = self.group("}")
                    else:
                        self.i += 1
                else:
                    self.atom()
            elif self._skip("^"):
                end = self.atom()
        endless = end.top == math.inf
        terms = 1.0 if endless or not (start.constant and end.constant) else start.top + end.top + 1
        if terms > self.limits.terms:
            raise Refused(f"{name} over {terms:.3g} terms, at most {self.limits.terms:,.0f}")
        body = self.product()
        return self.checked(
            _Bound(body.bits * terms + 1, math.inf, 0.0, body.constant and not endless),
            "a sum or product",
        )


def _times(a: _Bound, b: _Bound) -> _Bound:
    return _Bound(a.bits + b.bits, _product(a.top, b.top), a.low * b.low, a.constant and b.constant)


def _over(a: _Bound, b: _Bound) -> _Bound:
    top = a.top / b.low if b.low > 0 else _product(a.top, _exp2(b.bits))
    return _Bound(
        a.bits + b.bits,
        top,
        a.low / b.top if 0 < b.top < math.inf else 0.0,
        a.constant and b.constant,
    )


def _factorial(value: _Bound) -> _Bound:
    if not value.constant:
        return _LETTER
    bits = value.top * max(1.0, _log2(value.top))
    return _Bound(max(1.0, bits), _exp2(bits), 1.0)


def _product(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _exp2(x: float) -> float:
    return 2.0**x if x < 1_000 else math.inf


def _log2(x: float) -> float:
    return math.log2(x) if 0 < x < math.inf else (0.0 if x <= 0 else math.inf)
