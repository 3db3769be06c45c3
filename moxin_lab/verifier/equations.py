r"""Equations as sets of points: proportional sides, or the same solutions.

Guarantees: deterministic and symmetric. An equation without a real solution, or one that always
holds, equals another only where the two are multiples of each other.
Out of scope: systems, and equations whose solutions no bisection on the sampled lines finds.
"""

from itertools import pairwise
from typing import Any

from moxin_lab.verifier.answers import (
    Relation,
)
from moxin_lab.verifier.evaluate import Numbers, points
from moxin_lab.verifier.exact import Undefined
from moxin_lab.verifier.expression import Tree, contains, symbols

LINES = 8  # sampled lines for each unknown
SOLUTIONS = 4  # points of one equation that must lie on the other, each way


def _values(numbers: Numbers, tree: Tree, samples: list[dict[str, Any]]) -> list[Any]:
    found = []
    for at in samples:
        try:
            found.append(numbers.value(tree, at))
        except (Undefined, ZeroDivisionError, OverflowError, ValueError):
            found.append(None)
    return found


def _names(*trees: Tree) -> list[str]:
    return sorted({n for tree in trees for n in symbols(tree) if not n.endswith("()")})


def proportional(a: Tree, b: Tree, *, positive: bool = False) -> bool:
    """Whether one is a constant times the other, not zero, at every sampled point where both are
    defined. positive: a constant above zero.
    """
    if symbols(a) != symbols(b) or not _names(a):
        return False
    for complex_values in (False, True):
        numbers = Numbers(complex_values or contains(a, {"i"}) or contains(b, {"i"}))
        samples = points(numbers, _names(a, b))
        pairs = [
            (x, y)
            for x, y in zip(_values(numbers, a, samples), _values(numbers, b, samples), strict=True)
            if x is not None and y is not None
        ]
        if len(pairs) >= 3:
            break
    else:
        return False
    tiny = numbers.mp.mpf(10) ** -100
    ratios = []
    for x, y in pairs:
        if abs(x) < tiny or abs(y) < tiny:
            if abs(x) < tiny and abs(y) < tiny:
                continue
            return False
        ratios.append(x / y)
    if len(ratios) < 2 or all(numbers.agree(pairs[0][0], x) for x, _ in pairs):
        return False  # a constant: the relation is false, or holds always
    if positive and any(numbers.mp.re(r) <= 0 for r in ratios):
        return False
    return all(numbers.agree(ratios[0], r) for r in ratios[1:])


def same_relations(a: Relation, b: Relation) -> bool:
    """Whether two equations of two sides say the same."""
    first, second = (("add", r.sides[0], ("neg", r.sides[1])) for r in (a, b))
    if proportional(first, second):
        return True
    if any(contains(tree, {"i", "pm", "mp"}) for tree in (first, second)):
        return False
    names = _names(first, second)
    if symbols(first) != symbols(second) or len(names) < 2:
        return False
    numbers = Numbers(False)
    return _lies_on(numbers, first, second, names) and _lies_on(numbers, second, first, names)


def _lies_on(numbers: Numbers, first: Tree, second: Tree, names: list[str]) -> bool:
    """Whether solutions of the first, along every unknown, solve the second."""
    total = 0
    samples = points(numbers, names)[:LINES]
    for name in names:
        for at in samples:
            for root in _solutions(numbers, first, at, name):
                try:
                    value = numbers.value(second, at | {name: root})
                except (Undefined, ZeroDivisionError, OverflowError, ValueError):
                    continue
                size = 1 + max((abs(x) for x in (*at.values(), root)), default=0)
                if abs(value) > size**4 * numbers.mp.mpf(10) ** -25:
                    return False
                total += 1
    return total >= SOLUTIONS


def _solutions(numbers: Numbers, tree: Tree, at: dict[str, Any], name: str) -> list[Any]:
    """Roots along one unknown: by sign changes on a grid, then bisection."""
    mp = numbers.mp
    grid = [
        mp.mpf(sign) * size for sign, sizes in ((-1, _SIZES[::-1]), (1, _SIZES)) for size in sizes
    ]
    values = _values(numbers, tree, [at | {name: x} for x in grid])
    roots = []
    for (x, fx), (y, fy) in pairwise(zip(grid, values, strict=True)):
        if fx is None or fy is None or (fx > 0) == (fy > 0):
            continue
        low, high = x, y
        for _ in range(130):
            middle = (low + high) / 2
            (value,) = _values(numbers, tree, [at | {name: middle}])
            if value is None:
                break
            if (value > 0) == (fx > 0):
                low = middle
            else:
                high = middle
        (value,) = _values(numbers, tree, [at | {name: high}])
        if value is not None and abs(value) < mp.mpf(10) ** -30 * (1 + max(abs(fx), abs(fy))):
            roots.append(high)
    return roots


_SIZES = [
    0.0137,
    0.113,
    0.291,
    0.517,
    0.873,
    1.319,
    1.971,
    2.913,
    4.377,
    6.911,
    11.37,
    23.9,
    61.3,
    211.7,
    1307.3,
    20011.7,
    4.1e6,
    1.3e12,
]
