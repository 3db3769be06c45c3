r"""Sets of real numbers: what intervals, unions, inequalities and set-builders describe.

A set is a sorted list of pieces with ends in the reals. It comes from `(a, b]`, `\cup`,
`\setminus`, `x < 2`, `x^2 \le 4`, `x \in [0, 1)`, `\{x \mid x > 0\}`, `\mathbb{R}`, `\bigcup_{k
\in \mathbb{Z}}`.

Guarantees: pure and deterministic; two sets are equal when their merged pieces are, with ends that
agree in 40 digits. Inequalities in one unknown are solved at their roots and tested between them.
Out of scope: ends with unknowns in them (`compare` takes those part by part) and sets of points
that are no union of finitely many pieces within the window of `WINDOW`.
"""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from moxin_lab.verifier.answers import (
    Expression,
    IndexedUnion,
    Items,
    Logic,
    Member,
    Named,
    NamedSet,
    Quantity,
    Reading,
    Readings,
    Relation,
    SetBuilder,
    SetOperation,
)
from moxin_lab.verifier.evaluate import Numbers
from moxin_lab.verifier.exact import NeedsWorker, Undefined, exact
from moxin_lab.verifier.expression import Tree, contains, symbols

WINDOW = 40  # endless unions are compared between -WINDOW and WINDOW
INFINITE = float("inf")


class NotASet(ValueError):
    """The reading describes no set of reals that can be worked out here."""


@dataclass(frozen=True)
class Piece:
    """An interval, or a point where both ends are one number. Ends are Fractions, mpf or infinity."""

    low: Any
    low_closed: bool
    high: Any
    high_closed: bool


@dataclass(frozen=True)
class RealSet:
    pieces: tuple[Piece, ...]
    variable: str | None = None
    endless: bool = False  # cut at the window


class Solver:
    """Sets from readings. in_worker: numbers of many digits may be evaluated."""

    def __init__(self, in_worker: bool):
        self.in_worker = in_worker
        self._numbers: Numbers | None = None

    @property
    def numbers(self) -> Numbers:
        if not self.in_worker:
            raise NeedsWorker
        if self._numbers is None:
            self._numbers = Numbers(False)
        return self._numbers

    def end(self, tree: Tree) -> Any:
        """The number at an end. Raises NotASet where it has unknowns or no real value."""
        if tree == ("const", "inf"):
            return INFINITE
        if tree == ("neg", ("const", "inf")):
            return -INFINITE
        if symbols(tree) or contains(tree, {"pm", "mp", "i"}):
            raise NotASet("an end with unknowns")
        if (value := exact(tree, 4_096)) is not None:
            return value
        try:
            return self.numbers.value(tree, {})
        except (Undefined, ZeroDivisionError, OverflowError, ValueError) as error:
            raise NotASet("an end without value") from error

    def compare(self, a: Any, b: Any) -> int:
        """-1, 0 or 1, with ends that agree in 40 digits as equal."""
        if a in (INFINITE, -INFINITE) or b in (INFINITE, -INFINITE):
            a, b = (x if x in (INFINITE, -INFINITE) else 0 for x in (a, b))
            return (a > b) - (a < b)
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return (a > b) - (a < b)
        mp = self.numbers.mp
        a, b = (
            mp.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x for x in (a, b)
        )
        if abs(a - b) <= mp.mpf(10) ** -40 * (1 + abs(a)):
            return 0
        return 1 if a > b else -1

    # ------------------------------------------------------------------ from readings

    def of(self, readings: Readings) -> RealSet:
        """The set of the first reading that is one. Raises NotASet."""
        for reading in readings:
            try:
                return self._of(reading)
            except NotASet:
                continue
        raise NotASet("no reading is a set")

    def _of(self, reading: Reading) -> RealSet:
        match reading:
            case NamedSet("Reals"):
                return RealSet((Piece(-INFINITE, False, INFINITE, False),))
            case NamedSet("empty"):
                return RealSet(())
            case Items("{}", items) | Items("", items):
                return RealSet(self.merged([self._point(item) for item in items]))
            case Items(brackets, (low, high)) if brackets[0] in "([" and brackets[1] in ")]":
                ends = self._tree(low), self._tree(high)
                piece = Piece(
                    self.end(ends[0]), brackets[0] == "[", self.end(ends[1]), brackets[1] == "]"
                )
                if self.compare(piece.low, piece.high) > 0:
                    raise NotASet("ends in the wrong order")
                return RealSet(self.merged([piece]))
            case SetOperation(op, left, right):
                return self._operation(op, self.of(left), self.of(right))
            case Logic(op, parts):
                sets = [self.of(part) for part in parts]
                result = sets[0]
                for other in sets[1:]:
                    result = self._operation("cup" if op == "or" else "cap", result, other)
                return result
            case Relation():
                return self._relation(reading)
            case Member(("sym", name), group):
                return RealSet(self.of(group).pieces, name)
            case Named(("sym", name), value):
                return RealSet(self.of(value).pieces, name)
            case SetBuilder(variable, conditions, None):
                return self._builder(variable, conditions)
            case IndexedUnion():
                return self._union(reading)
            case Expression() | Quantity():
                return RealSet((self._point((reading,)),))
        raise NotASet(type(reading).__name__)

    def _tree(self, readings: Readings) -> Tree:
        for reading in readings:
            if isinstance(reading, Expression | Quantity):
                return reading.tree
        raise NotASet("no expression")

    def _point(self, readings: Readings) -> Piece:
        value = self.end(self._tree(readings))
        return Piece(value, True, value, True)

    def _builder(self, variable: str, conditions: tuple[Readings, ...]) -> RealSet:
        result = RealSet((Piece(-INFINITE, False, INFINITE, False),), variable)
        for condition in conditions:
            result = self._operation("cap", result, self.of(condition))
        return RealSet(result.pieces, None)

    def _union(self, reading: IndexedUnion) -> RealSet:
        low, high = self.end(reading.low), self.end(reading.high)
        if self.compare(low, -INFINITE) and self.compare(high, INFINITE):
            raise NotASet("a finite union by index")
        pieces = []
        start = -200 if low == -INFINITE else int(low)
        for k in range(start, start + 401):
            body = substitute_readings(reading.body, reading.variable, Fraction(k))
            pieces += list(self.of(body).pieces)
        window = RealSet((Piece(Fraction(-WINDOW), True, Fraction(WINDOW), True),))
        cut = self._operation("cap", RealSet(self.merged(pieces)), window)
        return RealSet(cut.pieces, None, endless=True)

    # ------------------------------------------------------------------ inequalities

    def _relation(self, relation: Relation) -> RealSet:
        names = {name for side in relation.sides for name in symbols(side)}
        if len(names) != 1 or next(iter(names)).endswith("()"):
            raise NotASet("not one unknown")
        (name,) = names
        result: RealSet | None = None
        for op, (left, right) in zip(relation.ops, pairwise(relation.sides), strict=True):
            if op not in ("<", ">", r"\le", r"\ge", r"\ne", "="):
                raise NotASet(op)
            one = self._simple(left, op, right, name) or self._solved(left, op, right, name)
            result = one if result is None else self._operation("cap", result, one)
        if result is None:
            raise NotASet("no relation")
        return RealSet(result.pieces, name)

    def _simple(self, left: Tree, op: str, right: Tree, name: str) -> RealSet | None:
        """`x < 2` and `2 > x`."""
        if right == ("sym", name):
            left, right = right, left
            op = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}.get(op, op)
        if left != ("sym", name) or name in symbols(right):
            return None
        value = self.end(right)
        below = Piece(-INFINITE, False, value, op == r"\le")
        above = Piece(value, op == r"\ge", INFINITE, False)
        pieces = {
            "<": [below],
            r"\le": [below],
            ">": [above],
            r"\ge": [above],
            r"\ne": [below, above],
            "=": [Piece(value, True, value, True)],
        }
        return RealSet(tuple(pieces[op]), name)

    def _solved(self, left: Tree, op: str, right: Tree, name: str) -> RealSet:
        """Roots of the difference, then the sign between them."""
        mp = self.numbers.mp
        difference: Tree = ("add", left, ("neg", right))

        def at(x: Any) -> Any:
            try:
                return self.numbers.value(difference, {name: x})
            except (Undefined, ZeroDivisionError, OverflowError, ValueError):
                return None

        roots = self._roots(at)
        holds = {
            "<": lambda v: v < 0,
            ">": lambda v: v > 0,
            r"\le": lambda v: v <= 0,
            r"\ge": lambda v: v >= 0,
            r"\ne": lambda v: v != 0,
            "=": lambda v: v == 0,
        }[op]
        pieces = []
        marks = [-INFINITE, *roots, INFINITE]
        for i, (low, high) in enumerate(pairwise(marks)):
            if low == -INFINITE and high == INFINITE:
                middle = mp.mpf("0.37")
            elif low == -INFINITE:
                middle = high - 1 - abs(high)
            elif high == INFINITE:
                middle = low + 1 + abs(low)
            else:
                middle = (low + high) / 2
            value = at(middle)
            if value is not None and holds(value):
                pieces.append(Piece(low, False, high, False))
            end = at(high) if i + 1 < len(marks) - 1 and holds(mp.mpf(0)) else None
            if end is not None and abs(end) < mp.mpf(10) ** -30 * (1 + abs(high)):
                pieces.append(Piece(high, True, high, True))
        return RealSet(self.merged(pieces), name)

    def _roots(self, at: Any) -> list[Any]:
        """Where the sign, or being defined, changes: on a grid of steps between -60 and 60, and for
        a polynomial all real roots.
        """
        mp = self.numbers.mp
        polynomial = self._polynomial(at)
        if polynomial is not None:
            if len(polynomial) < 2:
                return []
            found = mp.polyroots(polynomial, maxsteps=200, extraprec=400)
            reals = [
                r.real if isinstance(r, mp.mpc) else r
                for r in found
                if abs(mp.im(r)) < mp.mpf(10) ** -35
            ]
        else:
            grid = [mp.mpf(k) / 8 + mp.mpf(1) / 977 for k in range(-480, 481)]
            values = [at(x) for x in grid]
            reals = []
            for (x, fx), (y, fy) in pairwise(zip(grid, values, strict=True)):
                if (fx is None) != (fy is None) or (
                    fx is not None and fy is not None and (fx > 0) != (fy > 0)
                ):
                    reals.append(self._bisected(at, x, fx, y))
        reals.sort()
        distinct: list[Any] = []
        for root in reals:
            if not distinct or root - distinct[-1] > mp.mpf(10) ** -25:
                distinct.append(root)
        return distinct

    def _bisected(self, at: Any, x: Any, fx: Any, y: Any) -> Any:
        def side(value: Any) -> int:
            return 0 if value is None else (1 if value > 0 else -1)

        start = side(fx)
        for _ in range(170):
            middle = (x + y) / 2
            if side(at(middle)) == start:
                x = middle
            else:
                y = middle
        nearest = self.numbers.mp.nint(y * 5040) / 5040  # an end that is a simple fraction, exactly
        return nearest if abs(nearest - y) < self.numbers.mp.mpf(10) ** -40 else y

    def _polynomial(self, at: Any) -> list[Any] | None:
        """Coefficients, the highest first, of a polynomial of degree 8 at most, or None."""
        mp = self.numbers.mp
        xs = [mp.mpf(k) for k in range(-6, 7)]
        ys = [at(x) for x in xs]
        if any(y is None for y in ys):
            return None
        table = list(ys)  # Newton's divided differences
        coefficients = [table[0]]
        for order in range(1, len(xs)):
            table = [(b - a) / (xs[i + order] - xs[i]) for i, (a, b) in enumerate(pairwise(table))]
            coefficients.append(table[0])
        size = max(abs(c) for c in coefficients)
        while coefficients and abs(coefficients[-1]) <= size * mp.mpf(10) ** -80:
            coefficients.pop()
        if len(coefficients) > 9:
            return None
        polynomial: list[Any] = []
        for k in range(len(coefficients) - 1, -1, -1):  # Horner in Newton's basis
            shifted = [*polynomial, mp.mpf(0)]
            for i, c in enumerate(polynomial):
                shifted[i + 1] -= c * xs[k]
            polynomial = shifted if polynomial else [mp.mpf(0)]
            polynomial[-1] += coefficients[k]
        check = mp.mpf("7.3")
        value = mp.polyval(polynomial, check) if polynomial else mp.mpf(0)
        got = at(check)
        return (
            polynomial
            if got is not None and abs(value - got) <= mp.mpf(10) ** -60 * (1 + abs(got))
            else None
        )

    # ------------------------------------------------------------------ pieces

    def merged(self, pieces: list[Piece]) -> tuple[Piece, ...]:
        """Sorted pieces without overlaps or touching neighbours."""
        from functools import cmp_to_key

        def order(a: Piece, b: Piece) -> int:
            return self.compare(a.low, b.low) or (not a.low_closed) - (not b.low_closed)

        result: list[Piece] = []
        for piece in sorted(pieces, key=cmp_to_key(order)):
            way = self.compare(piece.low, piece.high)
            if way > 0 or (way == 0 and not (piece.low_closed and piece.high_closed)):
                continue
            if result:
                last = result[-1]
                gap = self.compare(piece.low, last.high)
                if gap < 0 or (gap == 0 and (piece.low_closed or last.high_closed)):
                    further = self.compare(piece.high, last.high)
                    high, closed = (
                        (piece.high, piece.high_closed)
                        if further > 0
                        else (last.high, last.high_closed or (further == 0 and piece.high_closed))
                    )
                    result[-1] = Piece(last.low, last.low_closed, high, closed)
                    continue
            result.append(piece)
        return tuple(result)

    def _operation(self, op: str, left: RealSet, right: RealSet) -> RealSet:
        if left.variable and right.variable and left.variable != right.variable:
            raise NotASet("two unknowns")
        variable = left.variable or right.variable
        if op == "cup":
            return RealSet(self.merged([*left.pieces, *right.pieces]), variable)
        other = right.pieces if op == "cap" else self._complement(right.pieces)
        return RealSet(
            self.merged([self._overlap(a, b) for a in left.pieces for b in other]), variable
        )

    def _complement(self, pieces: tuple[Piece, ...]) -> list[Piece]:
        result, low, closed = [], -INFINITE, False
        for piece in self.merged(list(pieces)):
            result.append(Piece(low, closed, piece.low, not piece.low_closed))
            low, closed = piece.high, not piece.high_closed
        result.append(Piece(low, closed and low != INFINITE, INFINITE, False))
        infinite = {INFINITE, -INFINITE}
        return [p for p in result if not (p.low in infinite and p.low == p.high)]

    def _overlap(self, a: Piece, b: Piece) -> Piece:
        low = self.compare(a.low, b.low)
        high = self.compare(a.high, b.high)
        start = (
            (a.low, a.low_closed)
            if low > 0
            else (b.low, b.low_closed)
            if low < 0
            else (a.low, a.low_closed and b.low_closed)
        )
        end = (
            (a.high, a.high_closed)
            if high < 0
            else (b.high, b.high_closed)
            if high > 0
            else (a.high, a.high_closed and b.high_closed)
        )
        return Piece(*start, *end)

    def same(self, left: RealSet, right: RealSet) -> bool:
        """Equal sets, and no two different names of their unknown."""
        if left.endless != right.endless:
            return False
        if left.variable and right.variable and left.variable != right.variable:
            return False
        one, other = self.merged(list(left.pieces)), self.merged(list(right.pieces))
        return len(one) == len(other) and all(
            self.compare(a.low, b.low) == 0
            and self.compare(a.high, b.high) == 0
            and (a.low_closed, a.high_closed) == (b.low_closed, b.high_closed)
            for a, b in zip(one, other, strict=True)
        )


def substitute(tree: Tree, name: str, value: Tree) -> Tree:
    """The tree with a symbol replaced."""
    if tree == ("sym", name):
        return value
    return tuple(
        tuple(substitute(one, name, value) for one in part)
        if isinstance(part, tuple) and part and isinstance(part[0], tuple)
        else substitute(part, name, value)
        if isinstance(part, tuple) and part
        else part
        for part in tree
    )


def substitute_readings(readings: Readings, name: str, value: Fraction) -> Readings:
    """Intervals and sets of expressions with a symbol replaced by a number."""
    number: Tree = ("num", value, None, 0)
    result: list[Reading] = []
    for reading in readings:
        if isinstance(reading, Expression):
            result.append(Expression(substitute(reading.tree, name, number)))
        elif isinstance(reading, Items):
            items = tuple(substitute_readings(item, name, value) for item in reading.items)
            result.append(Items(reading.brackets, items))
        elif isinstance(reading, SetOperation):
            left, right = (
                substitute_readings(part, name, value) for part in (reading.left, reading.right)
            )
            result.append(SetOperation(reading.op, left, right))
    return tuple(result)
