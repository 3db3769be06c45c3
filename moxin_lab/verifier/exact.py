r"""Exact rational values of expressions.

Guarantees: `exact` gives the value or None, never a float; a value of more than 140,000 bits, or a
sum of more than 2,000 terms, is None.
Out of scope: roots and logarithms that are irrational (`evaluate`).
"""

import math
from collections.abc import Callable
from fractions import Fraction

from moxin_lab.verifier.expression import Tree

_BITS = 140_000
TERMS = 2_000  # of a sum or product


class Undefined(ArithmeticError):
    """The expression has no value here."""


class NeedsWorker(Exception):
    """Not decided by exact rationals: only a worker may evaluate it."""


def exact(tree: Tree, bits: int = _BITS) -> Fraction | None:
    """The rational value of a tree, or None where it has none or exact arithmetic does not give
    it.
    """
    try:
        return _exact(tree, bits, {})
    except (Undefined, ZeroDivisionError, OverflowError, RecursionError):
        return None


def _exact(tree: Tree, bits: int, bound: dict[str, Fraction]) -> Fraction:
    kind = tree[0]
    if kind == "num":
        return tree[1]
    if kind == "sym" and tree[1] in bound:
        return bound[tree[1]]
    if kind in ("sum", "prod"):
        return _exact_repeated(tree, bits, bound)
    if kind not in _RATIONAL:
        raise Undefined(kind)
    values = [_exact(part, bits, bound) for part in tree[1:]]
    value = _RATIONAL[kind](values, bits)
    if value.numerator.bit_length() + value.denominator.bit_length() > bits:
        raise Undefined("too large")
    return value


def _exact_repeated(tree: Tree, bits: int, bound: dict[str, Fraction]) -> Fraction:
    low, high = _exact(tree[2], bits, bound), _exact(tree[3], bits, bound)
    if low.denominator != 1 or high.denominator != 1 or high - low > TERMS:
        raise Undefined("bounds")
    total = Fraction(tree[0] == "prod")
    for k in range(int(low), int(high) + 1):
        term = _exact(tree[4], bits, bound | {tree[1]: Fraction(k)})
        total = total + term if tree[0] == "sum" else total * term
        if total.denominator.bit_length() + total.numerator.bit_length() > bits:
            raise Undefined("too large")
    return total


def _power(values: list[Fraction], bits: int) -> Fraction:
    base, exponent = values
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if exponent.denominator == 1:
        if abs(exponent) * size > bits and base not in (0, 1, -1):
            raise Undefined("too large")
        if base == 0 and exponent <= 0:
            raise Undefined("0^0")
        if base in (1, -1):
            return base ** (int(exponent) % 2 or 2)
        return base ** int(exponent)
    if exponent.denominator > 64:
        raise Undefined("root")
    root = _root([base, Fraction(exponent.denominator)], bits)
    return _power([root, Fraction(exponent.numerator)], bits)


def _root(values: list[Fraction], _bits: int) -> Fraction:
    base, index = values
    if index.denominator != 1 or not 1 <= index <= 64 or (base < 0 and index % 2 == 0):
        raise Undefined("root")
    n, sign = int(index), -1 if base < 0 else 1
    parts = []
    for part in (abs(base.numerator), base.denominator):
        if part.bit_length() > 8_192:
            raise Undefined("too large")
        root = math.isqrt(part) if n == 2 else _integer_root(part, n)
        if root**n != part:
            raise Undefined("irrational")
        parts.append(root)
    return Fraction(sign * parts[0], parts[1])


def _integer_root(value: int, n: int) -> int:
    if value < 2:
        return value
    guess = 1 << -(-value.bit_length() // n)
    while True:
        better = ((n - 1) * guess + value // guess ** (n - 1)) // n
        if better >= guess:
            return guess
        guess = better


def natural(value: Fraction, most: int) -> int:
    if value.denominator != 1 or not 0 <= value <= most:
        raise Undefined("no small whole number")
    return int(value)


_RATIONAL: dict[str, Callable[[list[Fraction], int], Fraction]] = {
    "add": lambda v, _: v[0] + v[1],
    "mul": lambda v, _: v[0] * v[1],
    "div": lambda v, _: v[0] / v[1],
    "mixed": lambda v, _: v[0] + v[1],
    "neg": lambda v, _: -v[0],
    "pct": lambda v, _: v[0] / 100,
    "abs": lambda v, _: abs(v[0]),
    "floor": lambda v, _: Fraction(math.floor(v[0])),
    "ceil": lambda v, _: Fraction(math.ceil(v[0])),
    "fact": lambda v, _: Fraction(math.factorial(natural(v[0], 10_000))),
    "fact2": lambda v, _: Fraction(math.prod(range(natural(v[0], 10_000), 0, -2))),
    "binom": lambda v, _: Fraction(math.comb(natural(v[0], 20_000), natural(v[1], 20_000))),
    "mod": lambda v, _: v[0] % v[1],
    "gcd": lambda v, _: Fraction(math.gcd(*(natural(abs(x), 1 << 70_000) for x in v))),
    "lcm": lambda v, _: Fraction(math.lcm(*(natural(abs(x), 1 << 2_000) for x in v[:64]))),
    "max": lambda v, _: max(v),
    "min": lambda v, _: min(v),
    "pow": _power,
    "root": _root,
}
