r"""One comparison rule for each type of answer.

`compare(gold, answer)` takes the readings of two normalised answers and gives a `Decision`: equal
or not, the type, and the rule. Rules are symmetric.

Guarantees: every pair of strings gets a decision. Outside a worker (`in_worker=False`) only text
and exact rationals are used, and `NeedsWorker` is raised where that is not enough.
Out of scope: integrals, limits and derivatives; `Decision.unread` says that Math-Verify must be
asked.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from moxin_lab.verifier import equations, evaluate, realset, units
from moxin_lab.verifier.answers import (
    Approximate,
    Based,
    Choice,
    Congruence,
    Expression,
    Function,
    IndexedUnion,
    Items,
    Logic,
    Matrix,
    Member,
    Named,
    NamedSet,
    Quantity,
    Ratio,
    Reading,
    Readings,
    Relation,
    SetBuilder,
    SetOperation,
    Text,
    Unread,
)
from moxin_lab.verifier.exact import NeedsWorker, exact
from moxin_lab.verifier.expression import Tree, contains, expand_signs, symbols
from moxin_lab.verifier.reading import NO_NAME, read

RULES: dict[str, str] = {
    "number": (
        "exactly equal; a decimal of six digits or more may be a rounded value; 50% is 50 and 0.5"
    ),
    "expression": "equal at every sampled point where both are defined; constants to 100 digits",
    "quantity": "equal after conversion; a unit may be missing, not be another one",
    "angle": "as a quantity; degrees against radians by pi/180",
    "interval": "the same set of reals, ends open or closed alike",
    "set": "every item of one has its equal in the other, in any order",
    "list": "as a set; against a pair in parentheses in order",
    "tuple": "item by item, in order; a column or row vector is a tuple",
    "matrix": "cell by cell, of the same shape",
    "equation": "one is a multiple of the other, or both have the same solutions",
    "inequality": "the same solutions; sides may be swapped",
    "function": "the same body after renaming the parameters, the same name where both have one",
    "choice": "the same letter; a value behind the letter counts too",
    "ratio": "proportional",
    "number in a base": "the same digits and base; the base may be missing",
    "congruence": "the same modulus, residues equal modulo it",
    "text": "the same words, whatever their case",
    "unread": "Math-Verify's parser, then the rule of expressions",
}
"""What decides answers of each type, in words."""

EXAMPLES: dict[str, str] = {
    "number": r"\frac{1}{2} | 0.5",
    "expression": r"(a+5)(b+2) | ab+2a+5b+10",
    "quantity": r"5\text{ m/s} | 18\text{ km/h}",
    "angle": r"30^\circ | \frac{\pi}{6}",
    "interval": r"(-\infty,-1)\cup(3,\infty) | x<-1 \text{ or } x>3",
    "set": r"\{1,2\} | 2, 1",
    "list": r"1 \pm \sqrt{2} | 1-\sqrt{2}, 1+\sqrt{2}",
    "tuple": r"\langle 1,2 \rangle | (1, 2)",
    "matrix": r"\begin{pmatrix} 0.5 \\ 1 \end{pmatrix} | \begin{bmatrix} 1/2 \\ 1 \end{bmatrix}",
    "equation": r"y=x^2 | x^2-y=0",
    "inequality": r"t \ge 2 | 2 \le t",
    "function": r"f(x)=2x | f(t)=2t",
    "choice": r"\text{(C)} | C",
    "ratio": r"3:2 | 6:4",
    "number in a base": r"52_8 | 52_{8}",
    "congruence": r"x \equiv 3 \pmod 5 | x \equiv 8 \pmod 5",
    "text": r"\text{Evelyn} | evelyn",
    "unread": r"\int_0^1 x^2\,dx | \frac{1}{3}",
}
"""A gold answer of each type and a right answer in another form."""

_SETS = (SetOperation, IndexedUnion, NamedSet, Logic, Member, SetBuilder)


@dataclass(frozen=True)
class Decision:
    equal: bool
    type: str
    rule: str
    unread: bool = False  # not decided: this grammar does not know the mathematics


def compare(gold: str, answer: str, *, in_worker: bool = True) -> Decision:
    """The decision on two normalised answers. Raises NeedsWorker outside a worker."""
    golds, answers = read(gold), read(answer)
    return Comparison(in_worker).decide(golds, answers)


def kind(reading: Reading) -> str:
    """The type of a reading, as `RULES` names it."""
    match reading:
        case Expression(tree):
            return "expression" if symbols(tree) or exact(tree, 4_096) is None else "number"
        case Approximate(given):
            return kind(given[0])
        case Quantity(_, unit):
            return "angle" if unit.dimensions in _ANGLES else "quantity"
        case Items("{}", _):
            return "set"
        case Items("", _):
            return "list"
        case Items(brackets, _):
            return "interval" if brackets in ("(]", "[)") else "tuple"
        case Relation(_, ops) if set(ops) != {"="}:
            return "inequality"
        case Logic():
            return "inequality"
        case Relation() | Named():
            return "equation"
        case Based():
            return "number in a base"
        case NamedSet() | SetOperation() | IndexedUnion() | Member() | SetBuilder():
            return "interval"
    return type(reading).__name__.lower()


_ANGLES = ((("degree", 1),), (("radian", 1),))
_DEGREE, _RADIAN = _ANGLES
_POUND = (("pound", 1),)
_POUNDS: dict[units.Dimensions, Fraction] = {
    (("pound-sterling", 1),): Fraction(1),
    (("kg", 1),): Fraction("0.45359237"),
}


class Comparison:
    """The rules. in_worker: more than text and exact rationals may be used."""

    def __init__(self, in_worker: bool):
        self.in_worker = in_worker
        self.solver = realset.Solver(in_worker)

    def decide(self, golds: Readings, answers: Readings) -> Decision:
        needs_worker = False
        measured = [
            tuple(r for r in side if isinstance(r, Quantity) and not r.weak)
            for side in (golds, answers)
        ]
        if all(measured):  # two quantities: their units are no letters of a product
            golds, answers = measured
        for gold in golds:
            for answer in answers:
                try:
                    if self.same(gold, answer):
                        return Decision(True, kind(gold), RULES.get(kind(gold), ""))
                except NeedsWorker:
                    needs_worker = True
        if needs_worker:
            raise NeedsWorker
        first = kind(golds[0])
        unread = any(isinstance(r, Unread) for r in (golds[0], answers[0])) and not any(
            isinstance(r, Text | Choice) for r in (golds[0], answers[0])
        )
        return Decision(False, first, RULES.get(first, ""), unread)

    def any_same(self, golds: Readings, answers: Readings) -> bool:
        """Whether some reading of one equals some reading of the other."""
        needs_worker = False
        for gold in golds:
            for answer in answers:
                try:
                    if self.same(gold, answer):
                        return True
                except NeedsWorker:
                    needs_worker = True
        if needs_worker:
            raise NeedsWorker
        return False

    def same(self, a: Reading, b: Reading) -> bool:
        """Whether two readings say the same; symmetric."""
        if a == b and not isinstance(a, Unread):
            return True
        return self._same(a, b) or (type(a) is not type(b) and self._same(b, a))

    def _same(self, a: Reading, b: Reading) -> bool:
        match a, b:
            case Expression(), Expression():
                return self.values(a.tree, b.tree)
            case Quantity(), Quantity():
                return self._quantities(a, b)
            case Quantity(), Expression():
                return self._unit_missing(a, b.tree)
            case Text(), Text():
                return a.words == b.words
            case Choice(), Choice():
                return self._choices(a, b)
            case Choice(), (Text() | Unread()):
                return False
            case Choice(), Expression(("sym", letter)) if (
                len(letter) == 1 and letter in "ABCDEFGHIJ"
            ):
                return False  # (D) C: the letter of the choice decides
            case Choice(_, False, rest), _ if rest:
                return self.any_same(rest, (b,))
            case Based(), Based():
                return (a.digits.lstrip("0"), a.base) == (b.digits.lstrip("0"), b.base)
            case Based(), Expression(("num", value, None, _)):
                return a.digits.isdecimal() and value == int(a.digits)
            case Ratio(), Ratio():
                return self._ratios(a, b)
            case Ratio((top, bottom)), Expression(tree):
                return self.values(("div", top, bottom), tree)
            case Congruence(), Congruence():
                return self._congruences(a, b)
            case Function(), _:
                return self._function(a, b)
            case Matrix(), (Matrix() | Items()):
                return self._matrix(a, b)
            case Named(), _:
                return self._named(a, b)
            case Approximate(), _:
                return self._approximate(a, b)
            case Relation(), (Relation() | Expression() | Quantity() | Items()):
                if (verdict := self._relation(a, b)) is not None:
                    return verdict
            case Items(), Items():
                if (verdict := self._items(a, b)) is not None:
                    return verdict
            case Items(), Expression():
                return self._signs(a, b.tree)
            case IndexedUnion(), IndexedUnion():
                pass
        return self._sets(a, b)

    # ------------------------------------------------------------------ values

    def values(self, a: Tree, b: Tree) -> bool:
        """The rule of numbers and expressions."""
        if a == b:
            return not self._is_nothing(a)
        a, b = _percent_outside(a), _percent_outside(b)
        signs = {"pm", "mp"}
        if contains(a, signs) or contains(b, signs):
            return self._plus_minus(a, b)
        percent = (a[0] == "pct") != (b[0] == "pct")
        if percent:
            marked, plain = (a, b) if a[0] == "pct" else (b, a)
            if marked[1][0] != "pct" and self.values(marked[1], plain):
                return True
        if self.in_worker:
            return evaluate.equal(a, b) or evaluate.rounds_to(a, b) or evaluate.rounds_to(b, a)
        left, right = exact(a, 4_096), exact(b, 4_096)
        if left is None or right is None:
            raise NeedsWorker
        return (
            left == right
            or _float_noise(a, b, left, right)
            or evaluate.rounds_to(a, b)
            or evaluate.rounds_to(b, a)
        )

    def _is_nothing(self, tree: Tree) -> bool:
        """Equal spellings of no value, such as 0/0."""
        return (
            tree[0] == "div"
            and exact(tree, 4_096) is None
            and not symbols(tree)
            and exact(tree[2], 4_096) == 0
        )

    def _plus_minus(self, a: Tree, b: Tree) -> bool:
        both = [[expand_signs(tree, upper) for upper in (True, False)] for tree in (a, b)]
        if not (contains(a, {"pm", "mp"}) and contains(b, {"pm", "mp"})):
            return False
        return self._collections(
            [(Expression(t),) for t in both[0]], [(Expression(t),) for t in both[1]]
        )

    def _signs(self, items: Items, tree: Tree) -> bool:
        """`1 \\pm \\sqrt 2` against its two values; a set of one against the value."""
        if contains(tree, {"pm", "mp"}) and items.brackets in ("", "{}"):
            both: list[Readings] = [
                (Expression(expand_signs(tree, upper)),) for upper in (True, False)
            ]
            return self._collections(list(items.items), both)
        if len(items.items) == 1 and items.brackets == "{}":
            return self.any_same(items.items[0], (Expression(tree),))
        return False

    def _quantities(self, a: Quantity, b: Quantity) -> bool:
        if a.unit.dimensions == b.unit.dimensions:
            return self.values(_scaled(a), _scaled(b)) or (
                a.unit == b.unit and self.values(a.tree, b.tree)
            )
        dims = {a.unit.dimensions, b.unit.dimensions}
        if _POUND in dims and dims & set(_POUNDS):  # of weight or of money
            unit = (b if a.unit.dimensions == _POUND else a).unit
            return unit.factor == _POUNDS[unit.dimensions] and self.values(a.tree, b.tree)
        if dims == {_DEGREE, _RADIAN}:
            degrees, radians = (a, b) if a.unit.dimensions == _DEGREE else (b, a)
            return self.values(("deg", degrees.tree), radians.tree)
        if not a.unit.dimensions or not b.unit.dimensions:  # 5 million, 2 dozen
            return self.values(_scaled(a), _scaled(b))
        if dims == {_DEGREE, (("degC", 1),)} or dims == {_DEGREE, (("degF", 1),)}:
            return self.values(a.tree, b.tree)
        return False

    def _unit_missing(self, a: Quantity, tree: Tree) -> bool:
        if a.weak or tree[0] == "pct":
            return False
        if a.unit.dimensions == _DEGREE and contains(tree, {"pi"}):
            return self.values(("deg", a.tree), tree)
        return self.values(a.tree, tree)

    def _ratios(self, a: Ratio, b: Ratio) -> bool:
        if len(a.parts) != len(b.parts):
            return False
        return all(
            self.values(("mul", a.parts[0], b.parts[i]), ("mul", b.parts[0], a.parts[i]))
            for i in range(1, len(a.parts))
        )

    def _congruences(self, a: Congruence, b: Congruence) -> bool:
        modulus = exact(a.modulus, 4_096)
        if not modulus or modulus != exact(b.modulus, 4_096):
            return False
        residues = [exact(x.right, 4_096) for x in (a, b)]
        if NO_NAME not in (a.left, b.left) and not self.values(a.left, b.left):
            return False
        if residues[0] is None or residues[1] is None:
            return self.values(a.right, b.right)
        return (residues[0] - residues[1]) % modulus == 0

    def _choices(self, a: Choice, b: Choice) -> bool:
        marked = not (a.bare or b.bare)
        same = a.letter.upper() == b.letter.upper() if marked else a.letter == b.letter
        if not same:
            return False
        return not (a.rest and b.rest) or self.any_same(a.rest, b.rest)

    def _approximate(self, a: Approximate, b: Reading) -> bool:
        """Both sides count, where the decimal is the exact value rounded."""
        if not self.in_worker and exact(a.value, 4_096) is None:
            raise NeedsWorker
        return evaluate.rounds_to(a.value, a.decimal, figures=1) and (
            self.any_same(a.exact, (b,)) or self.same(Expression(a.decimal), b)
        )

    # ------------------------------------------------------------------ names and relations

    def _function(self, a: Function, b: Reading) -> bool:
        if isinstance(b, Function):
            if len(a.parameters) != len(b.parameters) or (a.name and b.name and a.name != b.name):
                return False
            body = b.body
            for i, old in enumerate(b.parameters):
                body = _renamed(body, old, f"parameter{i}")
            mine = a.body
            for i, old in enumerate(a.parameters):
                mine = _renamed(mine, old, f"parameter{i}")
            return self.any_same(mine, body)
        if isinstance(b, Relation) and b.ops == ("=",) and b.sides[0] == ("sym", "y"):
            return self.any_same(a.body, (Expression(b.sides[1]),))
        if isinstance(b, Named) and b.name == ("sym", "y"):
            return self.any_same(a.body, b.value)
        if isinstance(b, Relation):
            if a.name + "()" not in {n for s in b.sides for n in symbols(s)}:
                return False
            trees = [r.tree for r in a.body if isinstance(r, Expression)]
            name: Tree = ("call", a.name, tuple(("sym", p) for p in a.parameters))
            return bool(trees) and self._same_solutions(Relation((name, trees[0]), ("=",)), b)
        return self.any_same(a.body, (b,))

    def _same_solutions(self, a: Relation, b: Relation) -> bool:
        if not self.in_worker:
            raise NeedsWorker
        return equations.same_relations(a, b)

    def _named(self, a: Named, b: Reading) -> bool:
        if isinstance(b, Named):
            if a.name is not None and b.name is not None and not self._same_name(a.name, b.name):
                return False
            return self.any_same(a.value, b.value)
        if isinstance(b, Relation) and set(b.ops) == {"="}:
            for name, value in (b.sides[:2], b.sides[1::-1]):
                named = a.name is None or self._same_name(a.name, name)
                if named and self.any_same(a.value, (Expression(value),)):
                    return True
            return self._polynomial_roots(a, b)
        if isinstance(b, Member):
            return (a.name is None or a.name == b.name) and self.any_same(a.value, b.group)
        if isinstance(b, Items) and self._all_named(b):
            if a.name is None:  # (x, y) = (1, 2)
                return self.any_same(a.value, (b,))
            values = self._common_name(b, a.name)
            return values is not None and self.any_same(a.value, (Items("", values),))
        if isinstance(b, Logic | SetOperation | Relation | SetBuilder):
            return self._sets(a, b)
        return self.any_same(a.value, (b,))

    def _polynomial_roots(self, a: Named, b: Relation) -> bool:
        """`x = \\pm 2` against `x^2 = 4`."""
        if (
            a.name is None
            or a.name[0] != "sym"
            or {n for s in b.sides for n in symbols(s)} != {a.name[1]}
        ):
            return False
        if not any(isinstance(r, Items) and r.brackets in ("", "{}") for r in a.value):
            return False
        try:
            return self.solver.same(self.solver.of(a.value), self.solver.of((b,)))
        except realset.NotASet:
            return False

    def _same_name(self, a: Tree, b: Tree) -> bool:
        return a == b or (a[0] == b[0] == "mul" and self.in_worker and evaluate.equal(a, b))

    def _all_named(self, items: Items) -> bool:
        return not items.brackets and all(
            _single_equation(item) is not None for item in items.items
        )

    def _common_name(self, items: Items, name: Tree) -> tuple[Readings, ...] | None:
        values: list[Readings] = []
        for item in items.items:
            equation = _single_equation(item)
            if equation is None or equation[0] != name:
                return None
            values.append(equation[1])
        return tuple(values)

    def _relation(self, a: Relation, b: Reading) -> bool | None:
        if isinstance(b, Relation):
            if set(a.ops) == set(b.ops) == {"="}:
                return self._equations(a, b)
            if "=" in a.ops or "=" in b.ops:
                return None
            return self._inequalities(a, b)
        if set(a.ops) != {"="}:
            return None
        value = self._value_of(a)
        if value is None:
            return False if isinstance(b, Expression | Quantity) else None
        name, tree = value
        if isinstance(b, Items) and name is not None and contains(tree, {"pm", "mp"}):
            return self._signs(b, tree)
        if isinstance(b, Items):
            return None
        if (
            name is not None
            and isinstance(b, Expression)
            and _head(name) in symbols(b.tree)
            and b.tree[0] == "sym"
        ):
            return False
        return self.same(Expression(tree), b)

    def _value_of(self, relation: Relation) -> tuple[Tree | None, Tree] | None:
        """Name and value of `x = 5`, `5 = x`, `x = 2 + 3 = 5`, `2 + 3 = 5`; None for a relation
        that is no value: `7 = 42`, `x + y = 2`.
        """
        sides = relation.sides
        name: Tree | None = None
        if (
            _is_name(sides[0])
            and not (symbols(sides[0]) & symbols(sides[-1]) - {_head(sides[0])})
            and _head(sides[0]) not in symbols(sides[-1])
        ):
            name, rest = sides[0], sides[1:]
        elif len(sides) == 2 and _is_name(sides[1]) and _head(sides[1]) not in symbols(sides[0]):
            name, rest = sides[1], sides[:1]
        else:
            rest = sides
        while len(rest) > 1 and _is_name(rest[0]):  # x = y = 5
            rest = rest[1:]
        if name is None and any(symbols(side) for side in rest):
            return None
        if not all(self.values(one, rest[-1]) for one in rest[:-1]):
            return None
        return name, rest[-1]

    def _equations(self, a: Relation, b: Relation) -> bool:
        names = [{n for s in r.sides for n in symbols(s)} for r in (a, b)]
        if not any(not n.endswith("()") for n in names[0] | names[1]) and not (
            names[0] or names[1]
        ):
            # 2 + 3 = 5: both sides of both
            pairs = [r.sides[:2] for r in (a, b)]
            return any(
                self.values(pairs[0][0], pairs[1][i]) and self.values(pairs[0][1], pairs[1][1 - i])
                for i in (0, 1)
            )
        values = [self._value_of(r) for r in (a, b)]
        if (one := values[0]) is not None and (two := values[1]) is not None:
            (first, left), (second, right) = one, two
            if first is not None and second is not None:
                if self._same_name(first, second):
                    return self.values(left, right)
                if not symbols(left) and not symbols(right):
                    return self._chained_names(a, b) and self.values(left, right)
        if len(a.sides) != 2 or len(b.sides) != 2:
            return (
                values[0] is not None
                and values[1] is not None
                and self._chained_names(a, b)
                and self.values(values[0][1], values[1][1])
            )
        for value, other in ((values[0], b), (values[1], a)):  # x = \\pm 2 against x^2 = 4
            if value is not None and value[0] is not None and contains(value[1], {"pm", "mp"}):
                both = tuple(
                    (Expression(expand_signs(value[1], upper)),) for upper in (True, False)
                )
                return self._polynomial_roots(Named(value[0], (Items("", both),)), other)
        return self._same_solutions(a, b)

    def _chained_names(self, a: Relation, b: Relation) -> bool:
        """`x = y = 5` names x and y: the two relations share a name."""
        found = [{side for side in r.sides if _is_name(side)} for r in (a, b)]
        return bool(found[0] & found[1])

    def _inequalities(self, a: Relation, b: Relation) -> bool | None:
        unknowns = {n for r in (a, b) for s in r.sides for n in symbols(s)}
        if len(unknowns) == 1:
            return None  # as sets of reals
        if len(a.sides) != len(b.sides):
            return False
        if not self.in_worker:
            raise NeedsWorker
        others = [b]
        if all(op in _FLIPPED for op in b.ops):
            ops = tuple(_FLIPPED[op] for op in b.ops[::-1])
            others.append(Relation(b.sides[::-1], ops))
        for other in others:
            if a.ops == other.ops:
                if len(a.sides) > 2 or a.ops[0] not in _ORDERS:
                    if all(self.values(x, y) for x, y in zip(a.sides, other.sides, strict=True)):
                        return True
                elif equations.proportional(
                    _difference(a), _difference(other), positive=a.ops != (r"\ne",)
                ):
                    return True
        return False

    # ------------------------------------------------------------------ collections and sets

    def _matrix(self, a: Matrix, b: Reading) -> bool:
        if isinstance(b, Matrix):
            return len(a.rows) == len(b.rows) and all(
                len(x) == len(y) and all(self.any_same(g, h) for g, h in zip(x, y, strict=True))
                for x, y in zip(a.rows, b.rows, strict=True)
            )
        if not isinstance(b, Items) or b.brackets not in ("()", "[]", "<>"):
            return False
        if all(len(row) == 1 for row in a.rows):
            cells = tuple(row[0] for row in a.rows)
        elif len(a.rows) == 1:
            cells = a.rows[0]
        else:
            return False
        return len(cells) == len(b.items) and self._in_order(cells, b.items)

    def _in_order(self, a: Iterable[Readings], b: Iterable[Readings]) -> bool:
        return all(self.any_same(x, y) for x, y in zip(a, b, strict=True))

    def _items(self, a: Items, b: Items) -> bool | None:
        plain = ("", "{}")
        if a.brackets in plain and b.brackets in plain:
            if self._collections(list(a.items), list(b.items)):
                return True
            return self._named_values(a, b)
        if a.brackets in plain or b.brackets in plain:
            bare, ordered = (a, b) if a.brackets in plain else (b, a)
            if bare.brackets == "{}" or ordered.brackets not in ("()", "<>"):
                return False
            if self._all_named(bare):
                return self._assignments(bare, ordered)
            return len(bare.items) == len(ordered.items) and self._in_order(
                bare.items, ordered.items
            )
        tuples = ("()", "<>")
        if a.brackets == b.brackets or (a.brackets in tuples and b.brackets in tuples):
            return len(a.items) == len(b.items) and self._in_order(a.items, b.items)
        if "<>" in (a.brackets, b.brackets) and "[]" in (a.brackets, b.brackets):
            return len(a.items) == len(b.items) and self._in_order(a.items, b.items)
        return None

    def _named_values(self, a: Items, b: Items) -> bool:
        """`x = 1, x = 2` against `1, 2`."""
        for named, values in ((a, b), (b, a)):
            if self._all_named(named) and not self._all_named(values):
                equations_ = [_single_equation(item) for item in named.items]
                names = {_stem(equation[0]) for equation in equations_ if equation}
                if len(names) == 1 and self._collections(
                    [e[1] for e in equations_ if e], list(values.items)
                ):
                    return True
        return False

    def _assignments(self, named: Items, ordered: Items) -> bool:
        """`x = 1, y = 2` against `(1, 2)`, in the order of the names."""
        found = [e for e in map(_single_equation, named.items) if e is not None]
        if len({e[0] for e in found}) != len(ordered.items) or any(e[0][0] != "sym" for e in found):
            return False
        values = [value for _, value in sorted(found, key=lambda e: str(e[0][1]))]
        return self._in_order(values, ordered.items)

    def _collections(self, a: list[Readings], b: list[Readings]) -> bool:
        """As sets: every item of one has its equal in the other."""
        a, b = self._expanded(a), self._expanded(b)
        if len(a) > 60 or len(b) > 60:
            return len(a) == len(b) and self._in_order(a, b)
        return all(any(self.any_same(x, y) for y in b) for x in a) and all(
            any(self.any_same(x, y) for x in a) for y in b
        )

    def _expanded(self, items: list[Readings]) -> list[Readings]:
        """Items with plus-or-minus as two."""
        result: list[Readings] = []
        for item in items:
            if isinstance(item[0], Expression) and contains(item[0].tree, {"pm", "mp"}):
                tree = item[0].tree
                result += [(Expression(expand_signs(tree, upper)),) for upper in (True, False)]
            else:
                result.append(item)
        return result

    def _sets(self, a: Reading, b: Reading) -> bool:
        """As sets of reals; with unknowns in the ends, part by part."""
        if not (
            isinstance(a, _SETS + (Items, Relation, Named))
            and isinstance(b, _SETS + (Items, Relation, Named))
        ):
            return False
        if isinstance(a, NamedSet) and isinstance(b, NamedSet) and a.name == b.name:
            return True
        if all(isinstance(x, Items) for x in (a, b)):
            return False
        if any(isinstance(x, Items) and x.brackets == "<>" for x in (a, b)):
            return False
        try:
            one, other = self.solver.of((a,)), self.solver.of((b,))
            if isinstance(a, Relation) and isinstance(b, Relation) and not one.pieces:
                return not other.pieces and self._same_insoluble(a, b)
            return self.solver.same(one, other)
        except realset.NotASet:
            return self._parts(a, b)

    def _same_insoluble(self, a: Relation, b: Relation) -> bool:
        """Two inequalities without a solution are the same only as multiples of each other."""
        if len(a.ops) != 1 or len(b.ops) != 1 or a.ops[0] not in _ORDERS:
            return False
        strict = [relation.ops[0] in ("<", ">") for relation in (a, b)]
        return strict[0] == strict[1] and equations.proportional(
            _difference(a), _difference(b), positive=True
        )

    def _parts(self, a: Reading, b: Reading) -> bool:
        if isinstance(a, SetOperation) and isinstance(b, SetOperation) and a.op == b.op:
            straight = self.any_same(a.left, b.left) and self.any_same(a.right, b.right)
            return straight or (
                a.op != "setminus"
                and self.any_same(a.left, b.right)
                and self.any_same(a.right, b.left)
            )
        if isinstance(a, Logic) and isinstance(b, Logic) and a.op == b.op:
            return self._collections(list(a.parts), list(b.parts))
        if isinstance(a, IndexedUnion) and isinstance(b, IndexedUnion):
            return (
                self.any_same(a.body, _renamed(b.body, b.variable, a.variable))
                and self.values(a.low, b.low)
                and self.values(a.high, b.high)
            )
        if isinstance(a, Member) and isinstance(b, Member):
            return a.name == b.name and self.any_same(a.group, b.group)
        if isinstance(a, Member) and isinstance(b, Items | SetOperation | NamedSet):
            return self.any_same(a.group, (b,))
        if isinstance(a, SetBuilder) and isinstance(b, SetBuilder):
            return self._builders(a, b)
        if isinstance(a, Relation) and isinstance(b, Items | Member):
            target = (
                b
                if isinstance(b, Items)
                else next((g for g in b.group if isinstance(g, Items)), None)
            )
            interval = _chain_interval(a)
            return (
                interval is not None
                and target is not None
                and self._items(interval, target) is True
            )
        return False

    def _builders(self, a: SetBuilder, b: SetBuilder) -> bool:
        conditions: list[Readings] = (
            [_renamed(c, b.variable, a.variable) for c in b.conditions]
            if a.variable and b.variable
            else list(b.conditions)
        )
        if (a.tree is None) != (b.tree is None):
            return False
        if a.tree is not None and b.tree is not None and not self.values(a.tree, b.tree):
            return False
        return self._collections(list(a.conditions), conditions)


_ORDERS = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}
_FLIPPED = _ORDERS | {r"\ll": r"\gg", r"\gg": r"\ll", r"\sim": r"\sim", r"\propto": r"\propto"}


def _scaled(quantity: Quantity) -> Tree:
    factor = quantity.unit.factor
    return quantity.tree if factor == 1 else ("mul", quantity.tree, ("num", factor, None, 0))


def _percent_outside(tree: Tree) -> Tree:
    """`-50%` as (-50)%."""
    return ("pct", ("neg", tree[1][1])) if tree[0] == "neg" and tree[1][0] == "pct" else tree


def _is_name(tree: Tree) -> bool:
    """A symbol, `f(3)`, or letters side by side such as AB."""
    if tree[0] in ("sym", "call"):
        return True
    return tree[0] == "mul" and all(_is_name(part) and part[0] != "call" for part in tree[1:])


def _head(tree: Tree) -> str:
    return tree[1] if tree[0] == "sym" else tree[1] + "()" if tree[0] == "call" else ""


def _stem(tree: Tree) -> str:
    return str(tree[1]).partition("_")[0] if tree[0] == "sym" else str(tree)


def _single_equation(item: Readings) -> tuple[Tree, Readings] | None:
    reading = item[0]
    if isinstance(reading, Relation) and reading.ops == ("=",) and _is_name(reading.sides[0]):
        return reading.sides[0], (Expression(reading.sides[1]),)
    if isinstance(reading, Named) and reading.name is not None:
        return reading.name, reading.value
    return None


def _difference(relation: Relation) -> Tree:
    left, right = relation.sides[0], relation.sides[-1]
    return (
        ("add", left, ("neg", right))
        if relation.ops[0] in ("<", r"\le", r"\ne")
        else ("add", right, ("neg", left))
    )


def _chain_interval(relation: Relation) -> Items | None:
    """`a < x \\le b` as (a, b], whatever a and b are."""
    sides, ops = relation.sides, relation.ops
    if len(ops) == 2 and all(op in (">", r"\ge") for op in ops):
        sides, ops = sides[::-1], tuple(_FLIPPED[op] for op in ops[::-1])
    infinite: Tree = ("const", "inf")
    if len(ops) == 1 and ops[0] in ("<", ">", r"\le", r"\ge"):
        if sides[0][0] != "sym":
            sides, ops = sides[::-1], (_FLIPPED[ops[0]],)
        if ops[0] in ("<", r"\le"):
            sides, ops = (("neg", infinite), *sides), ("<", ops[0])
        else:
            sides, ops = (sides[1], sides[0], infinite), (_FLIPPED[ops[0]], "<")
    if len(ops) != 2 or not all(op in ("<", r"\le") for op in ops) or sides[1][0] != "sym":
        return None
    brackets = ("[" if ops[0] == r"\le" else "(") + ("]" if ops[1] == r"\le" else ")")
    return Items(brackets, ((Expression(sides[0]),), (Expression(sides[2]),)))


def _renamed(readings: Readings, old: str, new: str) -> Readings:
    """Readings with a symbol under another name."""
    result: list[Reading] = []
    for reading in readings:
        if isinstance(reading, Expression):
            result.append(Expression(realset.substitute(reading.tree, old, ("sym", new))))
        elif isinstance(reading, Quantity):
            result.append(
                Quantity(
                    realset.substitute(reading.tree, old, ("sym", new)), reading.unit, reading.weak
                )
            )
        elif isinstance(reading, Items):
            result.append(
                Items(reading.brackets, tuple(_renamed(item, old, new) for item in reading.items))
            )
        elif isinstance(reading, Relation):
            result.append(
                Relation(
                    tuple(realset.substitute(s, old, ("sym", new)) for s in reading.sides),
                    reading.ops,
                )
            )
        elif isinstance(reading, Logic):
            result.append(
                Logic(reading.op, tuple(_renamed(part, old, new) for part in reading.parts))
            )
        else:
            result.append(reading)
    return tuple(result)


def _float_noise(a: Tree, b: Tree, left: Fraction, right: Fraction) -> bool:
    """A decimal of 15 digits or more, as a computer prints 0.1 + 0.2, against a shorter one."""
    figures = [
        tree[3]
        if tree[0] == "num"
        else tree[1][3]
        if tree[0] == "neg" and tree[1][0] == "num"
        else 0
        for tree in (a, b)
    ]
    if max(figures) < 16 or min(figures) > 14:
        return False
    if left.denominator == right.denominator == 1:  # whole numbers are printed exactly
        return False
    return abs(left - right) * 10**15 <= max(abs(left), abs(right))
