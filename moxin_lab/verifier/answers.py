r"""The types of answers, as the grammar of `reading` gives them.

Guarantees: plain frozen values; equal readings are equal.
Out of scope: reading (`reading`) and comparing (`compare`).
"""

from dataclasses import dataclass

from moxin_lab.verifier import units
from moxin_lab.verifier.expression import Tree


class Reading:
    """Base of all kinds of answers."""


Readings = tuple[Reading, ...]


@dataclass(frozen=True)
class Expression(Reading):
    tree: Tree


@dataclass(frozen=True)
class Quantity(Reading):
    """weak: the unit may as well be letters of a product, so that it must not be missing."""

    tree: Tree
    unit: units.Unit
    weak: bool = False


@dataclass(frozen=True)
class Items(Reading):
    """brackets: `()`, `[]`, `(]`, `[)`, `<>`, `{}`, or nothing for a bare list."""

    brackets: str
    items: tuple[Readings, ...]


@dataclass(frozen=True)
class Matrix(Reading):
    rows: tuple[tuple[Readings, ...], ...]


@dataclass(frozen=True)
class SetOperation(Reading):
    op: str  # cup, cap, setminus
    left: Readings
    right: Readings


@dataclass(frozen=True)
class IndexedUnion(Reading):
    variable: str
    low: Tree
    high: Tree
    body: Readings


@dataclass(frozen=True)
class NamedSet(Reading):
    name: str  # Reals, Integers, Naturals, Rationals, Complexes, empty


@dataclass(frozen=True)
class Relation(Reading):
    sides: tuple[Tree, ...]
    ops: tuple[str, ...]


@dataclass(frozen=True)
class Congruence(Reading):
    left: Tree
    right: Tree
    modulus: Tree


@dataclass(frozen=True)
class Named(Reading):
    """`name = value` where the value is no expression, or the name is text."""

    name: Tree | None
    value: Readings


@dataclass(frozen=True)
class Function(Reading):
    name: str
    parameters: tuple[str, ...]
    body: Readings


@dataclass(frozen=True)
class Member(Reading):
    name: Tree
    group: Readings


@dataclass(frozen=True)
class SetBuilder(Reading):
    variable: str
    conditions: tuple[Readings, ...]
    tree: Tree | None = None  # what is collected, where it is no bare variable


@dataclass(frozen=True)
class Approximate(Reading):
    r"""`x = 2\sqrt2 \approx 2.83`. exact: what precedes the sign, value: its last side."""

    exact: Readings
    value: Tree
    decimal: Tree


@dataclass(frozen=True)
class Logic(Reading):
    op: str  # or, and
    parts: tuple[Readings, ...]


@dataclass(frozen=True)
class Based(Reading):
    digits: str
    base: int


@dataclass(frozen=True)
class Ratio(Reading):
    parts: tuple[Tree, ...]


@dataclass(frozen=True)
class Choice(Reading):
    """bare: a letter alone, which may be a symbol. rest: what is written behind the letter."""

    letter: str
    bare: bool
    rest: Readings = ()


@dataclass(frozen=True)
class Text(Reading):
    words: str


@dataclass(frozen=True)
class Unread(Reading):
    """Mathematics that this grammar does not know, such as an integral: left to Math-Verify."""

    text: str
