r"""Expressions: from the tokens of a normalised answer to a tree of tuples.

    \frac{1}{2}x^2 - 3  ->  ("add", ("mul", ("div", 1, 2), ("pow", x, 2)), ("neg", 3))

Nodes: `("num", value, step, figures)`, where step is the unit of the last digit of a decimal (None
for an integer) and figures its significant digits; `("sym", name)`; `("const", name)`; `("add" |
"mul" | "pow" | "div" | ..., ...)`; `("fn", name, argument)`; `("call", name, arguments)`.

Guarantees: symbols keep their case, index and primes; `2(13)` is a product and `2\frac{1}{3}` a
mixed number; `i` is the imaginary unit unless it is the index of a sum; time linear in the tokens.
Out of scope: integrals, limits and derivatives (`NotAnExpression`; Math-Verify's parser is asked),
and relations, sets and units (`reading`).
"""

import re
from fractions import Fraction
from typing import Any

from moxin_lab.verifier.tokens import OPENING, Token

Tree = tuple[Any, ...]


class NotAnExpression(ValueError):
    """The tokens are no expression of this grammar."""


FUNCTIONS = frozenset(
    str.split(
        "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth"
        " sech csch"
        " arcsinh arccosh arctanh ln exp lg"
    )
)
_ALIASES = {
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "arsinh": "arcsinh",
    "arcosh": "arccosh",
    "artanh": "arctanh",
    "tg": "tan",
    "ctg": "cot",
    "cosec": "csc",
    "arctg": "arctan",
}
_MANY = frozenset(str.split("gcd lcm max min"))
_NAMES = sorted(
    [
        *FUNCTIONS,
        *_ALIASES,
        *_MANY,
        "log",
        "sqrt",
        "cbrt",
        "abs",
        "floor",
        "ceil",
        "pi",
        "theta",
        "alpha",
        "beta",
        "gamma",
        "lambda",
        "omega",
        "sigma",
        "phi",
        "infinity",
        "infty",
        "inf",
        "binom",
    ],
    key=len,
    reverse=True,
)
_SPELLED = re.compile("|".join(_NAMES))
GREEK = frozenset(
    str.split(
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma"
        " tau upsilon"
        " phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar uniti unitj"
        " unitk imath jmath nabla partial triangle angle square"
    )
)
CALLED = frozenset(["f", "g", "F", "G"])
"""Letters that are functions before a parenthesis; any other letter is a factor there."""
_STOPS = frozenset(
    [
        "+",
        "-",
        r"\pm",
        r"\mp",
        ")",
        "]",
        "}",
        r"\}",
        r"\rangle",
        r"\rfloor",
        r"\rceil",
        ",",
        ";",
        "=",
        "<",
        ">",
        r"\le",
        r"\ge",
        r"\ne",
        r"\approx",
        r"\in",
        ":",
        "&",
        r"\\",
        "",
    ]
)


def split_word(word: str) -> list[Token]:
    """Letters as a product: `xsin` is x, sin; `pir` is pi, r; `ab` is a, b."""
    tokens, i = [], 0
    while i < len(word):
        match = _SPELLED.match(word, i)
        if match is not None and (
            len(match.group()) > 2 or match.group() in ("pi", "ln", "lg", "tg")
        ):
            tokens.append(Token("cmd", "\\" + match.group()))
            i = match.end()
        else:
            tokens.append(Token("word", word[i]))
            i += 1
    return tokens


def parse(tokens: list[Token]) -> Tree:
    """The tree of an expression that takes up all the tokens. Raises NotAnExpression."""
    flat: list[Token] = []
    for token in tokens:
        if token.kind == "word" and len(token.text) > 1:
            parts = split_word(token.text)
            flat += [Token(parts[0].kind, parts[0].text, token.spaced), *parts[1:]]
        else:
            flat.append(token)
    if not flat:
        raise NotAnExpression("nothing")
    try:
        parser = _Parser(flat)
        tree = parser.sum()
    except RecursionError as deep:
        raise NotAnExpression("nested too deeply") from deep
    if parser.i != len(flat):
        raise NotAnExpression(f"{parser.peek()!r} cannot follow")
    return tree


def literal(token: str) -> Tree:
    """The node of a number's digits."""
    whole, point, decimals = token.partition(".")
    value = Fraction(int(whole + decimals or "0"), 10 ** len(decimals))
    step = Fraction(1, 10 ** len(decimals)) if point and decimals else None
    return ("num", value, step, len((whole + decimals).lstrip("0")))


def _period(decimals: str) -> str:
    """The digits that repeat at the end of decimals written out: 3 of 333, 36 of 3636."""
    for length in range(1, 7):
        times = 3 if length == 1 else 2
        period = decimals[-length:]
        if len(decimals) >= length * times and decimals.endswith(period * times):
            return period
    return ""


class _Parser:
    """Recursive descent: sum, product, signed, power, atom."""

    def __init__(self, tokens: list[Token]):
        self.tokens, self.i, self.bars = tokens, 0, 0
        self.bound: list[str] = []  # indices of the sums around this place

    def peek(self, ahead: int = 0) -> str:
        i = self.i + ahead
        return self.tokens[i].text if i < len(self.tokens) else ""

    def kind(self, ahead: int = 0) -> str:
        i = self.i + ahead
        return self.tokens[i].kind if i < len(self.tokens) else "end"

    def take(self, text: str) -> bool:
        if self.peek() == text and self.kind() != "text":
            self.i += 1
            return True
        return False

    def need(self, text: str) -> None:
        if not self.take(text):
            raise NotAnExpression(f"{text} is missing before {self.peek()!r}")

    # ------------------------------------------------------------------ operators

    def sum(self) -> Tree:
        total = self.product()
        while (sign := self.peek()) in ("+", "-", r"\pm", r"\mp") and self.kind() != "text":
            self.i += 1
            term = self.product()
            if sign == "+":
                total = ("add", total, term)
            elif sign == "-":
                total = ("add", total, ("neg", term))
            else:
                total = ("pm" if sign == r"\pm" else "mp", total, term)
        return total

    def product(self) -> Tree:
        value = self.signed()
        while True:
            token = self.peek()
            if self.kind() == "end":
                return value
            if token in ("*", r"\cdot", r"\times"):
                self.i += 1
                value = ("mul", value, self.signed())
            elif token == "/":
                self.i += 1
                value = ("div", value, self.signed())
            elif token in (r"\bmod", r"\mod"):
                self.i += 1
                value = ("mod", value, self.signed())
            elif token in _STOPS or (token == "|" and self.bars):
                return value
            else:
                value = self.juxtaposed(value)

    def juxtaposed(self, left: Tree) -> Tree:
        """A product without a sign, or a mixed number."""
        spaced_integer = (
            self.kind() == "num" and self.kind(-1) == "num" and self.tokens[self.i].spaced
        )
        if spaced_integer:  # 1 2/3
            if not (self.peek(1) == "/" and self.kind(2) == "num"):
                raise NotAnExpression("two numbers side by side")
            top, bottom = literal(self.peek()), literal(self.peek(2))
            if left[0] == "neg" and _is_natural(left[1]) and 0 < top[1] < bottom[1]:
                self.i += 3
                return ("neg", ("mixed", left[1], ("div", top, bottom)))
            if (
                _is_natural(left)
                and top[2] is None
                and bottom[2] is None
                and 0 < top[1] < bottom[1]
            ):
                self.i += 3
                return ("mixed", left, ("div", top, bottom))
            raise NotAnExpression("two numbers side by side")
        if self.kind() == "num" and self.tokens[self.i - 1].text not in (")", "}"):
            raise NotAnExpression("a number after a factor")
        fraction = self.peek() == r"\frac"
        adjacent = self.kind(-1) == "num"
        right = self.power()
        if fraction and adjacent and _is_proper(right):
            if _is_natural(left):
                return ("mixed", left, right)
            if left[0] == "neg" and _is_natural(left[1]):
                return ("neg", ("mixed", left[1], right))
        return ("mul", left, right)

    def signed(self) -> Tree:
        if self.kind() != "text":
            if self.take("-"):
                return ("neg", self.signed())
            if self.take("+"):
                return self.signed()
            if self.take(r"\pm"):
                return ("pm", ZERO, self.signed())
            if self.take(r"\mp"):
                return ("mp", ZERO, self.signed())
        return self.power()

    def power(self) -> Tree:
        base = self.atom()
        while self.kind() not in ("text", "end"):
            if self.take("^"):
                base = ("pow", base, self.exponent())
            elif self.peek() == "!" and self.peek(1) == "!":
                self.i += 2
                base = ("fact2", base)
            elif self.take("!"):
                base = ("fact", base)
            elif self.take("%"):
                base = ("pct", base)
            elif self.take(r"\degree"):
                base = self.degrees(base)
            else:
                return base
        return base

    def degrees(self, value: Tree) -> Tree:
        """`30^\\circ 15' 20''`, or degrees alone."""
        for scale, mark in ((60, "'"), (3600, "''")):
            if self.kind() == "num" and self.peek(1) == mark:
                arc = literal(self.peek())
                self.i += 2
                value = ("add", value, ("div", arc, _integer(scale)))
        return ("deg", value)

    def exponent(self) -> Tree:
        if self.take("-"):
            return ("neg", self.exponent())
        if self.take("+"):
            return self.exponent()
        base = self.atom()
        if self.take("^"):
            return ("pow", base, self.exponent())
        while self.take("!"):
            base = ("fact", base)
        return base

    # ------------------------------------------------------------------ atoms

    def atom(self) -> Tree:
        kind, token = self.kind(), self.peek()
        if kind == "end" or (token in _STOPS and kind != "text"):
            raise NotAnExpression(f"a value is missing before {token!r}")
        if kind == "num":
            return self.number()
        if kind == "word":
            return self.letter()
        if kind == "text":
            raise NotAnExpression("text")
        self.i += 1
        if token in ("(", "[", "{"):
            bars, self.bars = self.bars, 0
            value = self.sum()
            self.bars = bars
            self.need(OPENING[token])
            return value
        if token in (r"\lfloor", r"\lceil"):
            value = self.sum()
            self.need(OPENING[token])
            return ("floor" if token == r"\lfloor" else "ceil", value)
        if token == "|":
            self.bars += 1
            value = self.sum()
            self.bars -= 1
            self.need("|")
            return ("abs", value)
        if kind == "cmd":
            return self.command(token[1:])
        raise NotAnExpression(f"{token!r} is no value")

    def number(self) -> Tree:
        token = self.peek()
        self.i += 1
        if self.peek() == "_" and "." not in token:
            self.i += 1
            base = self.argument()
            if base[0] == "num" and base[1].denominator == 1 and 2 <= base[1] <= 36:
                try:
                    return _integer(int(token, int(base[1])))
                except ValueError:
                    raise NotAnExpression(f"no digits of base {base[1]}") from None
            raise NotAnExpression("an index at a number")
        if self.peek() in (r"\overline", r"\dot", r"\bar") and "." in token:
            self.i += 1
            return self.repeating(token)
        if self.peek() == r"\ldots" and (period := _period(token.partition(".")[2])):
            self.i += 1
            return self.repeated_digits(token[: len(token) - len(period)], period)
        return literal(token)

    def repeating(self, start: str) -> Tree:
        braced = self.take("{")
        if self.kind() != "num" or "." in self.peek():
            raise NotAnExpression("no digits under the bar")
        digits = self.peek()
        self.i += 1
        if braced:
            self.need("}")
        return self.repeated_digits(start, digits)

    def repeated_digits(self, start: str, digits: str) -> Tree:
        decimals = len(start.partition(".")[2])
        tail = Fraction(int(digits), (10 ** len(digits) - 1) * 10**decimals)
        return ("num", literal(start)[1] + tail, None, 0)

    def letter(self) -> Tree:
        name = self.peek()
        self.i += 1
        return self.symbol(name)

    def symbol(self, name: str) -> Tree:
        marks = ""
        while self.peek() in ("'", "''") or (self.peek() == "_" and self.kind() == "op"):
            if self.take("_"):
                marks += "_" + self.index()
            else:
                marks += self.peek()
                self.i += 1
        if name in CALLED and self.peek() == "(":
            return ("call", name + marks, self.arguments())
        if not marks and name not in self.bound:
            if name == "i":
                return ("const", "i")
            if name == "e":
                return ("const", "e")
        return ("sym", name + marks)

    def index(self) -> str:
        """What stands in an index, as part of the name."""
        if not self.take("{"):
            text = self.peek()
            self.i += 1
            return text.lstrip("\\")
        parts: list[str] = []
        depth = 1
        while self.kind() != "end":
            token = self.peek()
            depth += (token == "{") - (token == "}")
            self.i += 1
            if depth == 0:
                return "".join(parts)
            parts.append(token.strip().lstrip("\\"))
        raise NotAnExpression("} is missing")

    def arguments(self) -> tuple[Tree, ...]:
        closing = OPENING[self.peek()]
        self.i += 1
        bars, self.bars = self.bars, 0
        values = [self.sum()]
        while self.take(",") or self.take(";"):
            values.append(self.sum())
        self.need(closing)
        self.bars = bars
        return tuple(values)

    def argument(self) -> Tree:
        """The argument of a command as TeX takes it: a group or one token, of a number one digit."""
        if self.take("{"):
            value = self.sum()
            self.need("}")
            return value
        if self.kind() == "num":
            token = self.peek()
            if len(token) > 1 and "." not in token:
                self.tokens[self.i] = Token("num", token[1:])
                return literal(token[0])
            self.i += 1
            return literal(token)
        return self.atom()

    def command(self, name: str) -> Tree:
        name = _ALIASES.get(name, name)
        if name == "frac":
            return ("div", self.argument(), self.argument())
        if name == "binom":
            if self.peek() == "(":
                pair = self.arguments()
                if len(pair) == 2:
                    return ("binom", *pair)
                raise NotAnExpression("a binomial of two")
            return ("binom", self.argument(), self.argument())
        if name in ("sqrt", "cbrt"):
            index: Tree = _integer(3 if name == "cbrt" else 2)
            if name == "sqrt" and self.take("["):
                index = self.sum()
                self.need("]")
            return ("root", self.argument(), index)
        if name in FUNCTIONS or name == "log":
            return self.function(name)
        if name in _MANY:
            if self.peek() not in ("(", "{"):
                raise NotAnExpression(f"no arguments of {name}")
            return (name, *self.arguments())
        if name in ("abs", "floor", "ceil"):
            return (name, self.argument())
        if name in ("sum", "prod"):
            return self.repeated(name)
        if name == "pi":
            return ("const", "pi")
        if name in ("infty", "infinity", "inf"):
            return ("const", "inf")
        if name == "overline" or name == "bar":
            argument = self.argument()
            if contains(argument, {"i"}):
                return _conjugate(argument)
            return ("call", name, (argument,))
        if name == "cis":
            angle = self.function_argument()
            return ("add", ("fn", "cos", angle), ("mul", ("const", "i"), ("fn", "sin", angle)))
        if name in ("triangle", "angle", "square") and self.kind() == "word":
            letters = []
            while self.kind() == "word":
                letters.append(self.peek())
                self.i += 1
            return ("sym", name + "".join(letters))
        if name == "dollar":
            return self.power()
        if name in ("Re", "Im"):
            return ("fn", name, self.function_argument())
        if name in GREEK:
            return self.symbol("\\" + name)
        raise NotAnExpression(f"\\{name}")

    def function(self, name: str) -> Tree:
        power: Tree | None = None
        base: Tree | None = None
        while True:
            if self.take("^"):
                power = self.exponent()
            elif name == "log" and self.take("_"):
                base = self.argument()
            else:
                break
        argument = self.function_argument()
        if (
            power is not None
            and power[0] == "neg"
            and power[1][:2] == ("num", 1)
            and name not in ("ln", "log", "lg", "exp")
        ):
            name, power = {"arc": name[3:]}.get(name[:3], "arc" + name), None
        value: Tree
        if name == "log":
            value = ("log", base, argument)
        elif name == "lg":
            value = ("log", _integer(10), argument)
        elif name == "exp":
            value = ("pow", ("const", "e"), argument)
        else:
            value = ("fn", name, argument)
        return value if power is None else ("pow", value, power)

    def function_argument(self) -> Tree:
        if self.peek() in ("(", "[", "{"):
            return self.power() if self.peek() == "{" else self.atom()
        if self.take("-"):
            return ("neg", self.function_argument())
        value = self.power()
        while not self._argument_ends():
            value = self.juxtaposed(value)
        return value

    def _argument_ends(self) -> bool:
        token = self.peek()
        if (
            self.kind() in ("end", "text")
            or token in _STOPS
            or token in ("*", "/", r"\cdot", r"\times")
        ):
            return True
        if token in ("(", "[", "|", r"\bmod", r"\mod"):
            return True
        name = _ALIASES.get(token[1:], token[1:]) if self.kind() == "cmd" else ""
        return name in FUNCTIONS or name in ("log", "sum", "prod")

    def repeated(self, name: str) -> Tree:
        variable, low, high = "", None, None
        for _ in range(2):
            if self.take("_"):
                self.need("{")
                variable = self.peek().strip()
                if self.kind() not in ("word", "cmd"):
                    raise NotAnExpression("a sum without an index")
                self.i += 1
                self.need("=")
                low = self.sum()
                self.need("}")
            elif self.take("^"):
                high = self.exponent()
        if low is None or high is None or contains(low, {"inf"}) or contains(high, {"inf"}):
            raise NotAnExpression("a sum without finite bounds")
        self.bound.append(variable)
        body = self.product()
        self.bound.pop()
        return (name, variable, low, high, body)


ZERO: Tree = ("num", Fraction(0), None, 0)


def _integer(value: int) -> Tree:
    return ("num", Fraction(value), None, 0)


def _is_natural(tree: Tree) -> bool:
    return tree[0] == "num" and tree[2] is None and tree[1].denominator == 1


def _is_proper(tree: Tree) -> bool:
    return (
        tree[0] == "div"
        and all(_is_natural(part) for part in tree[1:])
        and 0 <= tree[1][1] < tree[2][1]
    )


def symbols(tree: Tree) -> frozenset[str]:
    """Names of the free symbols; a function's letter counts, with `()` behind it."""
    if tree[0] == "sym":
        return frozenset([tree[1]])
    found: set[str] = set()
    if tree[0] in ("sum", "prod"):
        inner = symbols(tree[2]) | symbols(tree[3]) | (symbols(tree[4]) - {tree[1]})
        return frozenset(inner)
    if tree[0] == "call":
        found.add(tree[1] + "()")
        for part in tree[2]:
            found |= symbols(part)
        return frozenset(found)
    for part in tree[1:]:
        if isinstance(part, tuple):
            found |= symbols(part)
    return frozenset(found)


def _conjugate(tree: Tree) -> Tree:
    """The complex conjugate, with every symbol real."""
    if tree == ("const", "i"):
        return ("neg", tree)
    return tuple(_conjugate(part) if isinstance(part, tuple) else part for part in tree)


def contains(tree: Tree, kinds: frozenset[str] | set[str]) -> bool:
    """Whether a node of one of these kinds is in the tree; `i` stands for the imaginary unit."""
    if tree[0] in kinds or (tree[0] == "const" and tree[1] in kinds):
        return True
    return any(
        contains(part, kinds)
        for piece in tree[1:]
        for part in (
            piece
            if piece and isinstance(piece, tuple) and isinstance(piece[0], tuple)
            else (piece,)
        )
        if isinstance(part, tuple) and part
    )


def expand_signs(tree: Tree, upper: bool) -> Tree:
    """The tree with every plus-or-minus as a plus (`upper`) or a minus; minus-or-plus opposite."""
    if tree[0] in ("pm", "mp"):
        left, right = (expand_signs(part, upper) for part in tree[1:])
        plus = upper == (tree[0] == "pm")
        return ("add", left, right if plus else ("neg", right))
    return tuple(
        expand_signs(part, upper)
        if isinstance(part, tuple) and part and isinstance(part[0], str)
        else tuple(expand_signs(one, upper) for one in part)
        if isinstance(part, tuple)
        else part
        for part in tree
    )
