r"""Values of expressions: exact rationals, numbers of 150 digits, and equality by sampling.

Two expressions are equal when they agree at every sampled point where both are defined. Roots,
logarithms and powers are real: `\sqrt{2g}\sqrt{h}` has no value where g is negative, and such a
point says nothing. Expressions with `i` in them, and those that are nowhere real, are sampled with
complex values (Schwartz-Zippel: different analytic expressions differ almost everywhere).

Guarantees: deterministic (points depend on the names of the symbols alone), symmetric in its two
sides, exact for rationals of up to 140,000 bits.
Out of scope: bounding the time. `screen` refuses what is too large, and a worker can be killed.
"""

import math
from fractions import Fraction
from hashlib import blake2b
from typing import Any

from moxin_lab.verifier.exact import TERMS, Undefined, exact, natural
from moxin_lab.verifier.expression import Tree, contains, symbols

DIGITS = 150  # of evaluation
AGREE = 100  # digits that must agree
FIGURES = 6  # significant digits at which a decimal may stand for what rounds to it


# ---------------------------------------------------------------------- numbers of many digits


class Numbers:
    """Values in mpmath. complex_values: roots and logarithms of negative numbers have a value.
    log_base: of a logarithm without one.
    """

    def __init__(self, complex_values: bool, log_base: int | None = None):
        from mpmath import MPContext

        self.mp = MPContext()
        self.mp.dps = DIGITS
        self.complex_values, self.log_base = complex_values, log_base

    def value(self, tree: Tree, at: dict[str, Any]) -> Any:
        """The value at a point. Raises Undefined."""
        mp = self.mp
        kind = tree[0]
        if kind == "num":
            return mp.mpf(tree[1].numerator) / tree[1].denominator
        if kind == "sym":
            return at[tree[1]]
        if kind == "const":
            return self._constant(tree[1])
        if kind in ("sum", "prod"):
            return self._repeated(tree, at)
        if kind == "call":
            return self._call(tree, at)
        if kind == "fn":
            return self._function(tree[1], self.value(tree[2], at))
        if kind == "log":
            base = tree[1]
            argument = self._logarithm(self.value(tree[2], at))
            if base is None:
                return argument if self.log_base is None else argument / mp.ln(self.log_base)
            divisor = self._logarithm(self.value(base, at))
            return self._quotient(argument, divisor)
        values = [self.value(part, at) for part in tree[1:]]
        return self._checked(self._operation(kind, values))

    def _constant(self, name: str) -> Any:
        if name == "i" and self.complex_values:
            return self.mp.mpc(0, 1)
        if name in ("pi", "e"):
            return +getattr(self.mp, name)
        raise Undefined(name)

    def _operation(self, kind: str, v: list[Any]) -> Any:
        mp = self.mp
        match kind:
            case "add" | "mixed":
                return v[0] + v[1]
            case "neg":
                return -v[0]
            case "mul":
                return v[0] * v[1]
            case "div":
                return self._quotient(v[0], v[1])
            case "pow":
                return self._power(v[0], v[1])
            case "root":
                return self._root(v[0], v[1])
            case "pct":
                return v[0] / 100
            case "deg":
                return v[0] * mp.pi / 180
            case "abs":
                return abs(v[0])
            case "fact":
                return self._factorial(v[0])
            case "floor" | "ceil" | "mod" | "max" | "min" | "gcd" | "lcm" | "fact2":
                return self._of_reals(kind, v)
            case "binom":
                n, k = self._real(v[0]), self._real(v[1])
                if max(abs(n), abs(k)) > 20_000:
                    raise Undefined("too large")
                return mp.binomial(n, k)
        raise Undefined(kind)

    def _of_reals(self, kind: str, v: list[Any]) -> Any:
        reals = [self._real(x) for x in v]
        if kind in ("max", "min"):
            return max(reals) if kind == "max" else min(reals)
        if kind == "mod":
            if reals[1] == 0:
                raise Undefined("modulo 0")
            return reals[0] - reals[1] * self.mp.floor(reals[0] / reals[1])
        if kind in ("floor", "ceil"):
            nearest = self.mp.nint(reals[0])
            if abs(reals[0] - nearest) < self.mp.mpf(10) ** -AGREE:
                return nearest
            return getattr(self.mp, kind)(reals[0])
        whole = [int(x) for x in reals if x == int(x) and abs(x) < 10**9]
        if len(whole) != len(reals):
            raise Undefined("no whole number")
        if kind == "fact2":
            return self.mp.mpf(math.prod(range(natural(Fraction(whole[0]), 5_000), 0, -2)))
        return self.mp.mpf(math.gcd(*whole) if kind == "gcd" else math.lcm(*whole))

    def _real(self, x: Any) -> Any:
        if isinstance(x, self.mp.mpc):
            if abs(x.imag) > self.mp.mpf(10) ** -AGREE * (1 + abs(x.real)):
                raise Undefined("complex")
            return x.real
        return x

    def _quotient(self, a: Any, b: Any) -> Any:
        if abs(b) < self.mp.mpf(10) ** -(DIGITS - 10):
            raise Undefined("division by zero")
        return a / b

    def _power(self, base: Any, exponent: Any) -> Any:
        mp = self.mp
        if base == 0:
            if mp.re(exponent) > 0:
                return mp.mpf(0)
            raise Undefined("0^0")
        if isinstance(exponent, mp.mpf):
            nearest = mp.nint(exponent)
            if abs(exponent - nearest) < mp.mpf(10) ** -AGREE:
                exponent = nearest
            elif not self.complex_values and base < 0:
                return self._odd_root(base, exponent)
        elif not self.complex_values:
            raise Undefined("complex exponent")
        self._small(abs(exponent) * (1 + abs(mp.ln(abs(base)))))
        return base**exponent

    def _odd_root(self, base: Any, exponent: Any) -> Any:
        """A negative number to p/q with q odd and small: the real root."""
        for q in (3, 5, 7, 9, 11, 13, 15):
            p = self.mp.nint(exponent * q)
            if abs(exponent * q - p) < self.mp.mpf(10) ** -AGREE and math.gcd(int(p), q) == 1:
                size = (-base) ** exponent
                return -size if int(p) % 2 else size
        raise Undefined("power of a negative number")

    def _root(self, base: Any, index: Any) -> Any:
        mp = self.mp
        if base == 0:
            return mp.mpf(0)
        index = self._real(index)
        if index == 0 or abs(index) > 10**6:
            raise Undefined("root")
        if self.complex_values:
            if index == 3 and isinstance(base, mp.mpf) and base < 0:
                return -((-base) ** (mp.mpf(1) / 3))
            return base ** (1 / index)
        if base < 0:
            if index == mp.nint(index) and int(index) % 2:
                return -((-base) ** (1 / index))
            raise Undefined("root of a negative number")
        self._small(abs(mp.ln(base) / index))
        return mp.sqrt(base) if index == 2 else base ** (1 / index)

    def _logarithm(self, x: Any) -> Any:
        if x == 0 or (not self.complex_values and x <= 0):
            raise Undefined("logarithm")
        return self.mp.ln(x)

    def _factorial(self, x: Any) -> Any:
        x = self._real(x)
        if x > 20_000 or x <= -1:
            raise Undefined("factorial")
        return self.mp.gamma(x + 1)

    def _function(self, name: str, x: Any) -> Any:
        mp = self.mp
        if name == "ln":
            return self._logarithm(x)
        if abs(x) > mp.mpf(10) ** 40:
            raise Undefined("too large")
        if name in ("Re", "Im"):
            return mp.re(x) if name == "Re" else mp.im(x)
        if name.endswith("h"):
            self._small(abs(x))
        if not self.complex_values:
            if name in ("arcsin", "arccos", "arctanh") and abs(x) > 1:
                raise Undefined(name)
            if (name in ("arcsec", "arccsc", "arccoth") and abs(x) < 1) or (
                name == "arccosh" and x < 1
            ):
                raise Undefined(name)
        function = getattr(mp, name.replace("arc", "a"), None)
        if function is None:
            raise Undefined(name)
        try:
            value = function(x)
        except (ZeroDivisionError, ValueError) as error:
            raise Undefined(name) from error
        if name in ("tan", "sec", "cot", "csc") and abs(value) > mp.mpf(10) ** 100:
            raise Undefined("pole")
        return self._checked(value)

    def _repeated(self, tree: Tree, at: dict[str, Any]) -> Any:
        low, high = (self._real(self.value(part, at)) for part in tree[2:4])
        if not (low == self.mp.nint(low) and high == self.mp.nint(high)) or high - low > TERMS:
            raise Undefined("bounds")
        total = self.mp.mpf(tree[0] == "prod")
        for k in range(int(low), int(high) + 1):
            term = self.value(tree[4], at | {tree[1]: self.mp.mpf(k)})
            total = total + term if tree[0] == "sum" else total * term
        return total

    def _call(self, tree: Tree, at: dict[str, Any]) -> Any:
        """An unknown function: a number that depends on its name and arguments alone."""
        values = [self.mp.nstr(self.value(part, at), 40) for part in tree[2]]
        return self.point(f"{tree[1]}({';'.join(values)})", 0, 0.5, 3.0)

    def point(self, name: str, k: int, low: float, high: float) -> Any:
        """A number between two bounds that depends on a name and a counter alone."""
        digest = blake2b(f"{name}/{k}".encode(), digest_size=8).digest()
        share = self.mp.mpf(int.from_bytes(digest, "big")) / 2**64
        return self.mp.mpf(low) + (self.mp.mpf(high) - self.mp.mpf(low)) * share

    def _small(self, x: Any) -> None:
        if x > 200_000:
            raise Undefined("too large")

    def _checked(self, x: Any) -> Any:
        if not self.mp.isfinite(x):
            raise Undefined("infinite")
        return x

    def agree(self, a: Any, b: Any) -> bool:
        """Equal in `AGREE` digits, or both zero."""
        size = max(abs(a), abs(b))
        return (
            size < self.mp.mpf(10) ** -(DIGITS - 20)
            or abs(a - b) <= size * self.mp.mpf(10) ** -AGREE
        )


# Intervals from which the symbols of a point are drawn; `both` signs, whole numbers.
_RANGES: tuple[tuple[float, float, str], ...] = (
    (0.1, 0.9, "positive"),
    (1.1, 4.0, "positive"),
    (0.3, 5.0, "both"),
    (0.3, 5.0, "negative"),
    (1.0, 9.0, "whole"),
    (0.3, 3.0, "both"),
    (3.0, 40.0, "positive"),
    (0.05, 0.99, "both"),
    (2.0, 60.0, "both"),
    (60.0, 1500.0, "positive"),
    (1.0, 12.0, "whole"),
    (1500.0, 2.0e6, "positive"),
)


def points(numbers: Numbers, names: list[str]) -> list[dict[str, Any]]:
    """The sampled points of some symbols: the same for both sides of a comparison."""
    found = []
    for k, (low, high, kind) in enumerate(_RANGES):
        at = {}
        for name in names:
            value = numbers.point(name, k, low, high)
            if kind == "whole":
                value = numbers.mp.floor(value)
            elif kind == "negative" or (
                kind == "both" and numbers.point(name, k + 100, 0, 1) < 0.5
            ):
                value = -value
            at[name] = value
        found.append(at)
    return found


def equal(a: Tree, b: Tree) -> bool:
    """Whether two expressions have the same value, or the same values wherever both have one."""
    left, right = exact(a), exact(b)
    if left is not None and right is not None:
        return left == right
    if _infinite(a) or _infinite(b):
        return _infinite(a) == _infinite(b)
    bases: tuple[int | None, ...] = (None,)
    if contains(a, {"log"}) or contains(b, {"log"}):
        bases = (None, 10) if _plain_log(a) or _plain_log(b) else (None,)
    return any(_equal_values(a, b, base) for base in bases)


def _plain_log(tree: Tree) -> bool:
    if tree[0] == "log" and tree[1] is None:
        return True
    return any(
        _plain_log(part)
        for part in tree[1:]
        if isinstance(part, tuple) and part and isinstance(part[0], str)
    )


def _infinite(tree: Tree) -> int:
    if tree == ("const", "inf"):
        return 1
    return -_infinite(tree[1]) if tree[0] == "neg" else 0


def _equal_values(a: Tree, b: Tree, log_base: int | None) -> bool:
    names = sorted(name for name in symbols(a) | symbols(b) if not name.endswith("()"))
    imaginary = contains(a, {"i"}) or contains(b, {"i"})
    for complex_values in (True,) if imaginary else (False, True):
        numbers = Numbers(complex_values, log_base)
        verdict = _sampled(numbers, a, b, names)
        if verdict is not None:
            return verdict
    return False


def _sampled(numbers: Numbers, a: Tree, b: Tree, names: list[str]) -> bool | None:
    compared = 0
    for at in points(numbers, names) if names else [{}]:
        try:
            left, right = numbers.value(a, at), numbers.value(b, at)
        except (Undefined, ZeroDivisionError, OverflowError, ValueError):
            continue
        if not numbers.agree(left, right):
            return False
        compared += 1
    return True if compared >= (2 if names else 1) else None


def rounds_to(value: Tree, decimal: Tree, figures: int = FIGURES) -> bool:
    """Whether a value, rounded to the digits that a decimal prints, is that decimal.

    At least `figures` significant digits must be printed. A decimal has no rounding of its own.
    """
    sign, printed = _decimal(decimal)
    if printed is None or printed[2] is None or printed[3] < figures:
        return False
    other = _decimal(value)[1]
    if other is not None and other[2] is not None:  # two decimals: exactly
        return False
    if symbols(value):
        return False
    target, half = sign * printed[1], printed[2] / 2
    rational = exact(value)
    if rational is not None:
        return abs(rational - target) <= half
    numbers = Numbers(False)
    try:
        got = numbers.value(value, {})
    except (Undefined, ZeroDivisionError, OverflowError, ValueError):
        return False
    mp = numbers.mp
    return bool(
        abs(got - mp.mpf(target.numerator) / target.denominator)
        <= mp.mpf(half.numerator) / half.denominator
    )


def _decimal(tree: Tree) -> tuple[int, Tree | None]:
    """Sign and node of a decimal: written out, or times a power of ten."""
    sign = 1
    while tree[0] == "neg":
        sign, tree = -sign, tree[1]
    if tree[0] == "num":
        return sign, tree
    if tree[0] == "mul" and tree[1][0] == "num" and tree[1][2] is not None:
        power = tree[2]
        if power[0] == "pow" and power[1][0] == "num" and power[1][1] == 10:
            scale = exact(power, 4_096)
            if scale is not None:
                return sign, ("num", tree[1][1] * scale, tree[1][2] * scale, tree[1][3])
    return sign, None
