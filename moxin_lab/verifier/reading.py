r"""A typed reading of an answer: what kind of thing it is, and its parts.

    3\text{ cm}        Quantity        (1, 2)             Items, brackets "()"
    x^2 + 1            Expression      (-\infty, 2] \cup \{5\}     SetOperation
    y = 2x             Relation        x < 1 \text{ or } x > 3     Logic
    f(x) = 2x          Function        \text{(C)}         Choice

Some spellings mean two things: `100,200` is a number or a list, `(1,2)` a pair or an interval, `5
m` a product or a length. `read` gives all readings, the likeliest first; `compare` takes the pair
of readings that fit each other.

Guarantees: pure, time linear in the text for bounded nesting, at most `MOST` readings of a part.
Out of scope: values. Nothing is evaluated here.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from moxin_lab.verifier import units
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
from moxin_lab.verifier.expression import (
    GREEK,
    NotAnExpression,
    Tree,
    parse,
    symbols,
)
from moxin_lab.verifier.normalise import normalise, without_lead_in
from moxin_lab.verifier.tokens import CLOSING, OPENING, Token, tokenise

NO_NAME: Tree = ("sym", "")
"""What is congruent in `3 \\pmod 7`: not said."""
MOST = 4  # readings of one part


# ---------------------------------------------------------------------- whole answers

_RELATIONS = frozenset(
    [
        "=",
        "<",
        ">",
        r"\le",
        r"\ge",
        r"\ne",
        r"\approx",
        r"\in",
        r"\equiv",
        r"\notin",
        r"\mapsto",
        r"\to",
        r"\ll",
        r"\gg",
        r"\sim",
        r"\subset",
        r"\subseteq",
        r"\propto",
    ]
)
_SET_OPS = {r"\cup": "cup", r"\cap": "cap", r"\setminus": "setminus"}
_SETS = {
    r"\Reals": "Reals",
    r"\Integers": "Integers",
    r"\Naturals": "Naturals",
    r"\Rationals": "Rationals",
    r"\Complexes": "Complexes",
    r"\emptyset": "empty",
}
_EMPTY = re.compile(
    r"(?:there (?:is|are) )?no (?:real |such |integer |possible |valid )?"
    r"(?:solutions?|roots?|values?|numbers?|answers?)(?: exists?)?"
    r"|none|(?:the )?empty set|no such \w+(?: exists?)?"
)
_ALL_REAL = re.compile(
    r"(?:x is )?(?:all|any|every)(?: the)? "
    r"(?:real numbers?|reals?|real values?(?: of \w)?|real \w)"
    r"|(?:the )?real numbers|(?:the )?reals"
)
_EXCEPT = re.compile(
    r"^(?P<all>.*?)(?:,)?\s*(?:except(?: for)?|excluding|other than|but not)\s+(?P<rest>.+)$"
)
_TIME = re.compile(
    r"(\d{1,2})(?::(\d{2}))?\s*(?:\\text\s*\{)?\s*([ap])\.?\s*m\.?\s*\}?", re.IGNORECASE
)
_CLOCK = re.compile(r"(\d{1,2})\s*:\s*(0\d)")
"""A time of day: no ratio is written 3:00 or 3:05."""
_ARC = re.compile(r"(-?\d+(?:\.\d+)?)\s*('{1,2})")
_SAME_WORDS = {
    "dne": "undefined",
    "does not exist": "undefined",
    "doesn't exist": "undefined",
    "not defined": "undefined",
    "infinitely many": "infinitely many solutions",
    "infinite solutions": "infinitely many solutions",
    "infinitely many solutions": "infinitely many solutions",
    "an infinite number of solutions": "infinitely many solutions",
    "yes it is": "yes",
    "no it is not": "no",
}
_WORDS = frozenset(
    str.split(
        "yes no true false odd even none east west north south left right red blue green black"
        " white"
        " yellow orange brown both neither never always sometimes zero one two three four five"
        " six seven"
        " eight nine ten eleven twelve mon tue wed thu fri sat sun heads tails"
    )
)
_COUNT_WORDS = {
    w: n
    for n, w in enumerate(
        str.split("zero one two three four five six seven eight nine ten eleven twelve")
    )
}
_CHOICE = re.compile(
    r"^(?:\\text\s*\{\s*\(?\s*([A-Ja-j])\s*\)?\s*[.:)]?\s*\}\s*[.:)]?|\(\s*(?:\\text\s*\{)?\s*([A-Ja-j])\s*\}?\s*\)|([A-J])\s*[.:](?![\d.])|([A-Ja-j])\s*\))\s*(.*)$",
    re.DOTALL,
)
_NOT_BEHIND_A_CHOICE = re.compile(
    r"^,|^\\(?:lor|land)|\b(?:or|and|is|not|isn't|wrong|incorrect|nor)\b"
)
_TEXT_ONLY = re.compile(r"^(?:\\text\s*\{([^{}]*)\}[\s,.]*)+$")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")


def read(text: str) -> Readings:
    """All readings of a normalised answer, the likeliest first; never empty."""
    text = without_lead_in(text) or text
    found: list[Reading] = []
    if (choice := _CHOICE.match(text)) is not None:
        letter = next(group for group in choice.groups()[:4] if group)
        raw = (choice.group(5) or "").strip()
        rest = raw.strip(" .,;:")
        in_text = choice.group(1) is not None
        if _NOT_BEHIND_A_CHOICE.search(raw):
            pass
        elif (
            not rest
            or in_text
            or not re.match(r"[\^_!=<>*/+-]|\\(?:le|ge|ne|cdot|times|cup|cap|in)\b", rest)
        ):
            found.append(Choice(letter, False, read(rest) if rest else ()))
    elif re.fullmatch(r"[A-J]", text):
        found.append(Choice(text, True))
    if (inner := re.fullmatch(r"\\text\s*\{([^{}]*\d[^{}]*)\}", text)) is not None:
        return (*found, *read(normalise(inner.group(1))))
    if (time := _TIME.fullmatch(text)) is not None:
        return (Text(f"{int(time.group(1))}:{time.group(2) or '00'} {time.group(3).lower()}m"),)
    if (clock := _CLOCK.fullmatch(text)) is not None:
        return (Text(f"{int(clock.group(1))}:{clock.group(2)}"),)
    if (arc := _ARC.fullmatch(text)) is not None:
        return _arc(Fraction(arc.group(1)), arc.group(2))
    if (beside := _EXCEPT.match(_bare(text))) and _ALL_REAL.fullmatch(_canonical(beside["all"])):
        points = read(beside["rest"])
        if isinstance(points[0], Expression):
            points = (Items("{}", (points,)),)
        return (SetOperation("setminus", (NamedSet("Reals"),), points),)
    words = _words(text)
    if words is not None and (reading := _phrase(words)) is not None:
        return (*found, reading)
    for variant in _thousands(text) + _powers_of_ten(text):
        tokens = tokenise(variant)
        if len(tokens) <= 2_000 and _balanced(tokens):
            found += [one for one in _read(tokens) if one not in found]
    if words is not None and (not found or _is_sentence(words)):
        found.append(Text(_canonical(words)))
        if words.lower() in _COUNT_WORDS:
            found.append(Expression(("num", Fraction(_COUNT_WORDS[words.lower()]), None, 1)))
    if not found:
        found.append(Text(_canonical(_bare(text))) if _is_prose(text) else Unread(text))
    return tuple(found[: 2 * MOST])


def _arc(value: Fraction, mark: str) -> Readings:
    """`30'` is minutes of arc or feet, `30''` seconds of arc or inches."""
    scale, length = (60, "ft") if mark == "'" else (3600, "in")
    found: list[Reading] = []
    for number, name in ((value / scale, "degree"), (value, length)):
        unit = units.parse(name, marked=True)
        if unit is not None:
            found.append(Quantity(("num", number, None, 0), unit[0]))
    return tuple(found)


def _thousands(text: str) -> list[str]:
    """The text with commas of thousands dropped and as it stands, where both are possible.

    In brackets a comma stays a separator where dropping it would leave a single number.
    """
    if not _THOUSANDS.search(text):
        return [text]
    joined = _THOUSANDS.sub(lambda m: m.group().replace(",", ""), text)
    if re.search(r"[(\[]\s*-?\d{1,3}(?:,\d{3})+(?:\.\d+)?\s*[)\]]", text) or re.search(
        r"\\\{\s*\d{1,3}(?:,\d{3})+\s*\\\}", text
    ):
        return [text]
    if ", " in text or re.search(r"\\dollar|\.\d|%|\\text", text):
        separated = _THOUSANDS.sub("1", text)
        if ", " not in separated or re.search(r",\S", separated) is None:
            return (
                [joined]
                if (", " in text and "," in separated)
                or ("," not in separated and not re.fullmatch(r"[\d, ]+", text))
                else [joined, text]
            )
    return [joined, text]


def _powers_of_ten(text: str) -> list[str]:
    """`2e-1` is a fifth as well as twice e less one."""
    power = re.compile(r"(?<![\dA-Za-z.])(\d+)e([-+][0-4])(?![\d.])")
    return [power.sub(r"\1\\times 10^{\2}", text)] if power.search(text) else []


def _words(text: str) -> str | None:
    """The words of an answer that is nothing but words, marked as text or not."""
    if _TEXT_ONLY.match(text):
        return " ".join(re.sub(r"\\text\s*\{([^{}]*)\}", r"\1 ", text).split())
    if re.fullmatch(r"[A-Za-z][A-Za-z' ,.;:-]*", text) and re.search(r"[A-Za-z]{2}", text):
        return " ".join(text.split())
    return None


def _bare(text: str) -> str:
    return " ".join(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).split())


def _canonical(words: str) -> str:
    plain = re.sub(r"[.,;:!?\"()]", " ", words.lower())
    plain = " ".join(plain.split())
    plain = re.sub(r"^(?:the|a|an|it is|in) (?=\w)", "", plain)
    return _SAME_WORDS.get(plain, plain)


def _is_sentence(words: str) -> bool:
    """Words that are likelier a word or a sentence than a product of letters."""
    return " " in words or len(words) >= 5 or words.lower() in _WORDS or words.endswith(".")


def _is_prose(text: str) -> bool:
    return bool(re.search(r"\\text|[A-Za-z]{3,} [A-Za-z]{2,}", text))


def _phrase(words: str) -> Reading | None:
    lower = _canonical(words)
    if _EMPTY.fullmatch(lower):
        return NamedSet("empty")
    if _ALL_REAL.fullmatch(lower):
        return NamedSet("Reals")
    named = {"all integers": "Integers", "integers": "Integers", "natural numbers": "Naturals"}
    if lower in named:
        return NamedSet(named[lower])
    if lower in ("infinity", "negative infinity", "positive infinity"):
        tree: Tree = ("const", "inf")
        return Expression(("neg", tree) if lower.startswith("neg") else tree)
    if lower in _SAME_WORDS.values():
        return Text(lower)
    return None


def _balanced(tokens: list[Token]) -> bool:
    depth = 0
    for token in tokens:
        if token.kind != "text":
            depth += (token.text in OPENING) - (token.text in CLOSING)
            if depth < 0:
                return False
    return depth == 0


# ---------------------------------------------------------------------- parts


def _cut(tokens: list[Token], at: Callable[[Token], bool]) -> tuple[list[list[Token]], list[str]]:
    """Pieces between the separators outside all brackets, and the separators."""
    pieces: list[list[Token]] = [[]]
    separators: list[str] = []
    depth = 0
    environment = 0
    for token in tokens:
        if token.kind == "cmd" and token.text in (r"\begin", r"\end"):
            environment += 1 if token.text == r"\begin" else -1
        if token.kind != "text":
            depth += (token.text in OPENING) - (token.text in CLOSING)
        if depth == 0 and environment == 0 and at(token):
            separators.append(token.text)
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces, separators


def _is_or(token: Token) -> bool:
    return (token.kind == "cmd" and token.text == r"\lor") or (
        token.kind == "word" and token.text == "or"
    )


def _is_and(token: Token) -> bool:
    return (token.kind == "cmd" and token.text == r"\land") or (
        token.kind == "word" and token.text == "and"
    )


def _is_comma(token: Token) -> bool:
    return token.kind == "op" and token.text in (",", ";")


def _read(tokens: list[Token]) -> Readings:
    """The readings of tokens; none where the grammar does not fit."""
    while tokens and tokens[-1].kind == "op" and tokens[-1].text in (",", ";", "."):
        tokens = tokens[:-1]
    if not tokens:
        return ()
    for is_separator, op in ((_is_or, "or"), (_is_and, "and")):
        pieces, separators = _cut(tokens, is_separator)
        if separators:
            return _joined(pieces, op)
    pieces, separators = _cut(tokens, _is_comma)
    if separators and (family := _family(pieces)):
        return family
    if separators:
        return _joined(pieces, "," if "," in separators else ";")
    for reader in (_relation, _set_operation, _bracketed, _special):
        if readings := reader(tokens):
            return readings[:MOST]
    return _value(tokens)[:MOST]


def _family(pieces: list[list[Token]]) -> Readings:
    """`n\\pi, n \\in \\mathbb{Z}` with the whole number under one name, k."""
    *values, last = pieces
    if len(last) != 3 or [t.text for t in last[1:]] != [r"\in", r"\Integers"]:
        return ()
    name = last[0].text
    renamed: list[Token] = []
    for value in values:
        sides, ops = _cut(value, lambda t: t.kind != "text" and t.text in _RELATIONS)
        letters = [token.text for token in value]
        if set(ops) - {"="} or (ops and name in [t.text for t in sides[0]]) or letters == [name]:
            return ()
        if name != "k" and "k" in letters:
            return ()
        comma = [Token("op", ",")] if renamed else []
        renamed += comma + [
            Token(t.kind, "k", t.spaced) if t.kind == "word" and t.text == name else t
            for t in value
        ]
    return _read(renamed) if any(t.text == "k" for t in renamed) else ()


def _joined(pieces: list[list[Token]], op: str) -> Readings:
    pieces = [p for p in pieces if p]
    parts = [_read(piece) for piece in pieces]
    if not all(parts) or not parts:
        return ()
    if len(parts) == 1:
        return parts[0]
    if op in ("or", "and"):  # 1, 2 and 3
        flat: list[Readings] = []
        for part in parts:
            inner = part[0]
            flat += inner.items if isinstance(inner, Items) and not inner.brackets else [part]
        parts = flat
        if any(isinstance(p[0], Relation | Member | Logic) for p in parts) and not all(
            _is_named_value(p[0]) for p in parts
        ):
            return (Logic(op, tuple(parts)),)
    first = parts[0][0]
    if op == "," and all(_is_inequality(part[0]) for part in parts):
        return (Logic("and", tuple(parts)), Items("", tuple(parts)))
    if isinstance(first, Relation) and first.ops == ("=",) and first.sides[0][0] in ("sym", "call"):
        others = [p[0] for p in parts[1:]]
        if all(isinstance(other, Expression) for other in others):  # x = 1, 2
            values = ((Expression(first.sides[1]),), *parts[1:])
            return (Named(first.sides[0], (Items("", values),)),)
    return (Items("", tuple(parts)),)


def _is_inequality(reading: Reading) -> bool:
    return isinstance(reading, Relation) and not {"=", r"\ne"} & set(reading.ops)


def _is_named_value(reading: Reading) -> bool:
    return (isinstance(reading, Relation) and set(reading.ops) == {"="}) or isinstance(
        reading, Named
    )


def _relation(tokens: list[Token]) -> Readings:
    pieces, ops = _cut(tokens, lambda t: t.kind != "text" and t.text in _RELATIONS)
    if not ops:
        return ()
    if not pieces[0] and ops[0] in ("=", r"\approx"):
        return _read(pieces[1]) if len(ops) == 1 else ()
    if not all(pieces):
        return ()
    if ops[-1] == r"\approx" and (rounded := _approximate(tokens, pieces[-2], pieces[-1])):
        return (rounded,)
    ops = ["=" if op == r"\approx" else op for op in ops]
    if ops == [r"\equiv"]:
        return _congruence(pieces[0], pieces[1])
    if ops in ([r"\mapsto"], [r"\to"]):
        return _mapping(pieces[0], pieces[1])
    if ops == [r"\in"] or ops == [r"\notin"]:
        name, group = _tree(pieces[0]), _read(pieces[1])
        if name is None or not group:
            return ()
        member = Member(name, group)
        return (
            (member,)
            if ops == [r"\in"]
            else (Member(name, (SetOperation("setminus", (NamedSet("Reals"),), group),)),)
        )
    if ops == ["="] and (function := _definition(pieces[0], pieces[1])) is not None:
        return (function,)
    sides = [_tree(piece) for piece in pieces]
    if all(side is not None for side in sides):
        relation = Relation(tuple(s for s in sides if s is not None), tuple(ops))
        last = _read(pieces[-1])
        if set(ops) == {"="} and last and isinstance(last[0], Quantity | Ratio):
            return (Named(sides[-2], last), relation)
        return (relation,)
    if set(ops) == {"="}:
        value = _read(pieces[-1])
        if not value:
            return ()
        name = sides[-2]
        if (
            name is None
            and [t.kind for t in pieces[-2][:2]] == ["word", "op"]
            and pieces[-2][1].text == "("
        ):
            name = ("sym", "".join(t.text for t in pieces[-2]))  # P(A|B)
        if name is None and not (_is_text(pieces[-2]) or _read(pieces[-2])):
            return ()
        if name is None and isinstance((left := (_read(pieces[-2]) or (None,))[0]), Items):
            return _tuple_of_names(left, value)
        return (Named(name, value),)
    if all(side is not None for side in sides[:-1]):  # an inequality with a unit at its end
        value = _read(pieces[-1])
        if value and isinstance(value[0], Quantity):
            return (
                Relation((*[s for s in sides[:-1] if s is not None], value[0].tree), tuple(ops)),
            )
    return ()


def _approximate(tokens: list[Token], left: list[Token], right: list[Token]) -> Reading | None:
    """An exact value and its decimal: `\\frac{1}{3} \\approx 0.33`."""
    value, decimal = _tree(left), _tree(right)
    if value is None or decimal is None or symbols(value) or symbols(decimal):
        return None
    given = _read(tokens[: -len(right) - 1])
    return Approximate(given, value, decimal) if given else None


def _is_text(tokens: list[Token]) -> bool:
    return any(token.kind == "text" for token in tokens)


def _tuple_of_names(left: Items, value: Readings) -> Readings:
    """`(x, y) = (1, 2)`."""
    names = [item[0].tree for item in left.items if isinstance(item[0], Expression)]
    ordered = value[0]
    if len(names) == len(left.items) and not any(symbols(name) for name in names):
        return ()  # (1, 3) = (1, 2)
    if (
        isinstance(ordered, Items)
        and ordered.brackets == "()"
        and len(names) == len(left.items) == len(ordered.items)
        and all(name[0] == "sym" for name in names)
        and sorted(names, key=str) != names
    ):  # (y, x) = (1, 2) says (x, y) = (2, 1)
        pairs = sorted(zip(names, ordered.items, strict=True), key=lambda pair: str(pair[0]))
        named = Items("", tuple((Named(name, item),) for name, item in pairs))
        return (named,)
    return (Named(None, value),)


def _definition(left: list[Token], right: list[Token]) -> Reading | None:
    """`f(x) = ...`: a letter, perhaps with an index, before letters in parentheses."""
    texts = [token.text for token in left]
    match = re.fullmatch(
        r"(\\?[A-Za-z]+(?: ?')*(?:_ ?(?:\{ [^{}]* \}|\S))?(?: \^ (?:\{ - 1 \}|- 1))?(?: ?')*)"
        r" \( (\\?[A-Za-z]+(?: , \\?[A-Za-z]+)*) \)",
        " ".join(texts),
    )
    if match is None:
        return None
    parameters = tuple(match.group(2).split(" , "))
    if any(len(p.lstrip("\\")) > 1 and p.lstrip("\\") not in GREEK for p in parameters):
        return None
    events = match.group(1)[:1].isupper() and all(p.isupper() for p in parameters)
    if events and not any(token.text in parameters for token in right):
        return None  # P(A) = 0.3 and E(X) = 2 define nothing
    body = _read(right)
    return Function(match.group(1).replace(" ", ""), parameters, body) if body else None


def _mapping(left: list[Token], right: list[Token]) -> Readings:
    pieces, _ = _cut(left, lambda t: t.text == ":")
    variable = pieces[-1]
    body = _read(right)
    if len(variable) != 1 or variable[0].kind not in ("word", "cmd") or not body:
        return ()
    name = "".join(t.text for t in pieces[0]) if len(pieces) == 2 else ""
    return (Function(name, (variable[0].text,), body),)


def _congruence(left: list[Token], right: list[Token]) -> Readings:
    marks = [i for i, t in enumerate(right) if t.text in (r"\pmod", r"\bmod", r"\mod", "mod")]
    if not marks:
        return ()
    end = marks[0]
    opened = end > 0 and right[end - 1].text == "("
    modulus = right[end + 1 : -1] if opened else right[end + 1 :]
    trees = _tree(left) if left else NO_NAME, _tree(right[: end - opened]), _tree(modulus)
    if any(tree is None for tree in trees):
        return ()
    return (Congruence(*[tree for tree in trees if tree is not None]),)


def _set_operation(tokens: list[Token]) -> Readings:
    if tokens[0].text in (r"\bigcup", r"\cup") and len(tokens) > 1 and tokens[1].text in ("_", "^"):
        return _indexed_union(tokens[1:])
    pieces, ops = _cut(tokens, lambda t: t.kind == "cmd" and t.text in _SET_OPS)
    if not ops and len(tokens) > 2:  # \mathbb{R} - \{0\}
        minus, signs = _cut(tokens, lambda t: t.text == "-")
        if (
            len(signs) == 1
            and minus[0]
            and minus[0][0].text in _SETS
            and minus[1]
            and minus[1][0].text == r"\{"
        ):
            pieces, ops = minus, [r"\setminus"]
    if not ops or not all(pieces):
        return ()
    result = _read(pieces[0])
    for op, piece in zip(ops, pieces[1:], strict=True):
        right = _read(piece)
        if not result or not right:
            return ()
        result = (SetOperation(_SET_OPS[op], result, right),)
    return result


def _indexed_union(tokens: list[Token]) -> Readings:
    bounds: dict[str, list[Token]] = {}
    i = 0
    while i < len(tokens) and tokens[i].text in ("_", "^"):
        mark = tokens[i].text
        if i + 1 < len(tokens) and tokens[i + 1].text == "{":
            end = _match(tokens, i + 1)
            bounds[mark], i = tokens[i + 2 : end], end + 1
        else:
            bounds[mark], i = tokens[i + 1 : i + 2], i + 2
    body = _read(tokens[i:])
    low = bounds.get("_", [])
    if not body or len(low) < 3 or low[0].kind not in ("word", "cmd"):
        return ()
    infinite: Tree = ("const", "inf")
    if low[1].text == r"\in" and low[2].text == r"\Integers":
        return (IndexedUnion(low[0].text, ("neg", infinite), infinite, body),)
    start, end_tree = _tree(low[2:]), _tree(bounds.get("^", []))
    if low[1].text != "=" or start is None or end_tree is None:
        return ()
    return (IndexedUnion(low[0].text, start, end_tree, body),)


def _match(tokens: list[Token], start: int) -> int:
    depth = 0
    for i in range(start, len(tokens)):
        if tokens[i].kind != "text":
            depth += (tokens[i].text in OPENING) - (tokens[i].text in CLOSING)
        if depth == 0:
            return i
    return len(tokens) - 1


_ENVIRONMENT = re.compile(r"^[pbBv]?matrix|smallmatrix|array|cases|aligned|align\*?|gathered$")


def _bracketed(tokens: list[Token]) -> Readings:
    first, last = tokens[0].text, tokens[-1].text
    begins = first in (r"\begin", "(", "[") and any(t.text == r"\begin" for t in tokens[:2])
    if begins and (readings := _environment(tokens)):
        return readings
    if tokens[0].kind == "text" or first not in OPENING or _match(tokens, 0) != len(tokens) - 1:
        return ()
    inner = tokens[1:-1]
    if first == r"\{":
        return _braces(inner)
    if first in ("(", "[", r"\langle"):
        pieces, commas = _cut(inner, _is_comma)
        if commas:
            items = [_read(piece) for piece in pieces]
            if not all(items):
                return ()
            brackets = {"(": "(", "[": "[", r"\langle": "<"}[first] + {r"\rangle": ">"}.get(
                last, last
            )
            return (Items(brackets, tuple(items)),)
        inside = _read(inner) if first == "(" and len(inner) > 1 else ()
        if inside and not isinstance(inside[0], Expression):
            return inside
    if first == "{":
        return _read(inner)
    return ()


def _braces(inner: list[Token]) -> Readings:
    bar, separators = _cut(inner, lambda t: t.text in ("|", ":"))
    if len(separators) >= 1 and len(bar[0]) >= 1 and separators[0] in ("|", ":"):
        head, rest = bar[0], inner[len(bar[0]) + 1 :]
        if (builder := _set_builder(head, rest)) is not None:
            return (builder,)
    pieces, _ = _cut(inner, _is_comma)
    items = [_read(piece) for piece in pieces]
    if not all(items):
        return ()
    return (Items("{}", tuple(items)),)


def _set_builder(head: list[Token], rest: list[Token]) -> Reading | None:
    conditions = _read(rest)
    if not conditions:
        return None
    parts: list[Readings] = [conditions]
    if isinstance(conditions[0], Items) and not conditions[0].brackets:
        parts = list(conditions[0].items)
    names, ops = _cut(head, lambda t: t.text == r"\in")
    if ops:
        group = _read(names[1])
        if not group or len(names[0]) != 1:
            return None
        parts.insert(0, (Member(("sym", names[0][0].text), group),))
        return SetBuilder(names[0][0].text, tuple(parts))
    if len(head) == 1 and head[0].kind in ("word", "cmd"):
        return SetBuilder(head[0].text, tuple(parts))
    tree = _tree(head)
    return SetBuilder("", tuple(parts), tree) if tree is not None else None


def _environment(tokens: list[Token]) -> Readings:
    """A matrix, a determinant's rows, or the lines of a system."""
    wrapped = tokens[0].text in ("(", "[")
    inner = tokens[1:-1] if wrapped else tokens
    words = [token.text for token in inner]
    if words[0] != r"\begin" or words[1] != "{" or r"\end" not in words:
        return ()
    opened = words.index("}")
    name = "".join(words[2:opened])
    end = len(words) - 1 - words[::-1].index(r"\end")
    if words[end + 1 :] != words[1 : opened + 1] or not _ENVIRONMENT.match(name):
        return ()
    body = inner[opened + 1 : end]
    if name == "array" and body and body[0].text == "{":
        body = body[_match(body, 0) + 1 :]
    lines, _ = _cut(body, lambda t: t.text == r"\\")
    lines = [line for line in lines if [t for t in line if t.text != r"\hline"]]
    if "matrix" in name or name == "array":
        rows = [[_read(cell) for cell in _cut(line, lambda t: t.text == "&")[0]] for line in lines]
        if not rows or not all(all(row) for row in rows) or name == "vmatrix":
            return ()
        return (Matrix(tuple(tuple(row) for row in rows)),)
    parts: list[Readings] = []
    for line in lines:
        cells = [cell for cell in _cut(line, lambda t: t.text == "&")[0] if cell]
        if name == "cases" and len(cells) == 2:
            pair = tuple(_read(_without_if(cell)) for cell in cells)
            if not all(pair):
                return ()
            parts.append((Items("<>", pair),))
        else:
            parts.append(_read([t for t in line if t.text != "&"]))
    return (Items("", tuple(parts)),) if parts and all(parts) else ()


def _without_if(tokens: list[Token]) -> list[Token]:
    return [
        t
        for t in tokens
        if not (
            t.kind in ("text", "word")
            and t.text.strip() in ("if", "for", "when", "otherwise", "where")
        )
    ] or tokens


def _special(tokens: list[Token]) -> Readings:
    """Named sets, numbers in a base, ratios, half-open intervals."""
    if len(tokens) == 1 and tokens[0].text in _SETS:
        return (NamedSet(_SETS[tokens[0].text]),)
    spelled = "".join(f"{{{t.text}}}" if t.kind == "text" else t.text for t in tokens)
    if based := re.fullmatch(
        r"\(?([0-9A-Fa-f]*\d[0-9A-Fa-f]*|[A-Fa-f]+(?=\)?_\{?16))\)?_\{?\{?(\d+|two|three|four|five|six|seven|eight|nine|ten|twelve|sixteen)\}?\}?",
        spelled,
    ):
        name = based.group(2)
        names = {
            "two": 2,
            "three": 3,
            "four": 4,
            "five": 5,
            "six": 6,
            "seven": 7,
            "eight": 8,
            "nine": 9,
            "ten": 10,
            "twelve": 12,
            "sixteen": 16,
        }
        return (Based(based.group(1).upper(), int(names.get(name, name))),)
    if any(t.text == r"\pmod" for t in tokens):  # 3 \pmod 7
        return _congruence([], tokens)
    pieces, colons = _cut(tokens, lambda t: t.text == ":")
    if colons and all(pieces):
        parts = [_tree(piece) for piece in pieces]
        if all(part is not None for part in parts):
            return (Ratio(tuple(part for part in parts if part is not None)),)
    return ()


# ---------------------------------------------------------------------- values


def _tree(tokens: list[Token]) -> Tree | None:
    try:
        return parse(tokens) if tokens else None
    except NotAnExpression:
        return None


_UNIT_OPS = frozenset(
    ["/", "^", "{", "}", "-", r"\cdot", r"\times", "*", "(", ")", ".", r"\mu", r"\Omega", r"\ohm"]
)


def _value(tokens: list[Token]) -> Readings:
    """An expression, a quantity, or both."""
    found: list[Reading] = []
    if (money := _money(tokens)) is not None:
        return money
    quantity = _quantity(tokens)
    tree = _tree(tokens)
    if tree is not None:
        if tree[0] == "deg":
            found.append(Quantity(tree[1], units.parse("degree", marked=True)[0]))  # type: ignore[index]
        elif tree[0] == "neg" and tree[1][0] == "deg":
            found.append(Quantity(("neg", tree[1][1]), units.parse("degree", marked=True)[0]))  # type: ignore[index]
        else:
            found.append(Expression(tree))
    if quantity is not None:
        found.insert(len(found) if quantity.weak else 0, quantity)
    if not found and (scaled := _scaled_matrix(tokens)) is not None:
        found.append(scaled)
    return tuple(found)


_MONEY = {r"\dollar": "dollar", r"\pounds": "gbp", r"\euro": "euro", r"\yen": "yen"}


def _money(tokens: list[Token]) -> Readings | None:
    sign = tokens[0].text == "-" and len(tokens) > 1
    position = 1 if sign else 0
    for i in (position, len(tokens) - 1):
        if tokens[i].kind == "cmd" and tokens[i].text in _MONEY:
            rest = tokens[:i] + tokens[i + 1 :]
            unit = units.parse(_MONEY[tokens[i].text], marked=True)
            if not rest or unit is None:
                return None
            value = _value(rest)
            trees = [v.tree for v in value if isinstance(v, Expression)]
            if trees:
                return (Quantity(trees[0], unit[0]),)
            if value and isinstance(value[0], Quantity):
                inner = value[0].unit
                if inner.counted or not inner.dimensions or inner.dimensions == (("dollar", 1),):
                    return (Quantity(value[0].tree, unit[0]),)
                over = tuple(sorted((*inner.dimensions, *unit[0].dimensions)))
                return (Quantity(value[0].tree, units.Unit(inner.factor, over)),)
    return None


def _quantity(tokens: list[Token]) -> Quantity | None:
    """The longest end of the tokens that is a unit, behind an expression."""
    for i in range(1, len(tokens)):
        token = tokens[i]
        if token.kind not in ("text", "word") and token.text not in (r"\mu", r"\Omega"):
            continue
        tail = tokens[i:]
        if not all(t.kind in ("text", "word", "num") or t.text in _UNIT_OPS for t in tail):
            continue
        if len(tail) > 16:
            continue
        marked = any(t.kind == "text" for t in tail)
        spelled = "".join((" " if t.spaced or t.kind == "text" else "") + t.text for t in tail)
        head = _tree(tokens[:i])
        if head is None:
            continue
        spaced_word = token.kind == "word" and token.spaced and len(token.text) >= 4
        parsed = units.parse(spelled, marked=marked or (spaced_word and _all_words(tail)))
        if parsed is None:
            continue
        unit, multiplier = parsed
        if multiplier != 1:
            head = ("mul", head, ("num", Fraction(multiplier), None, 0))
            if not unit.dimensions:
                return Quantity(head, unit)
        if unit.dimensions == () and unit.factor != 1:
            return Quantity(
                ("mul", head, ("num", unit.factor, None, 0)), units.Unit(Fraction(1), ())
            )
        weak = not marked and not (spaced_word or _unambiguous(tail))
        return Quantity(head, unit, weak)
    return None


def _all_words(tail: list[Token]) -> bool:
    return all(t.kind == "word" and len(t.text) >= 2 for t in tail)


def _unambiguous(tail: list[Token]) -> bool:
    words = [t.text for t in tail if t.kind == "word"]
    return any(
        w in units.UNAMBIGUOUS or (len(w) >= 4 and units.parse(w, marked=False) is not None)
        for w in words
    ) or (len(words) >= 1 and all(len(w) >= 3 for w in words))


def _scaled_matrix(tokens: list[Token]) -> Reading | None:
    """A number before a matrix or a tuple."""
    for i in range(1, len(tokens)):
        if tokens[i].text == r"\begin" or (
            tokens[i].text == "(" and _match(tokens, i) == len(tokens) - 1
        ):
            factor = _tree([t for t in tokens[:i] if t.text not in (r"\cdot", r"\times", "*")])
            inner = _bracketed(tokens[i:])
            if factor is None or not inner:
                return None
            if factor[0] == "sym" and re.fullmatch("[A-MO-TV-Z]", factor[1]):  # P(3, 4)
                return Named(factor, inner)
            return _times(factor, inner[0])
    return None


def _times(factor: Tree, reading: Reading) -> Reading | None:
    def scaled(item: Readings) -> Readings:
        return tuple(
            Expression(("mul", factor, one.tree)) for one in item if isinstance(one, Expression)
        )

    if isinstance(reading, Matrix):
        rows = tuple(tuple(scaled(cell) for cell in row) for row in reading.rows)
        return Matrix(rows) if all(all(row) for row in rows) else None
    if isinstance(reading, Items) and reading.brackets in ("()", "<>"):
        items = tuple(scaled(item) for item in reading.items)
        return Items(reading.brackets, items) if all(items) else None
    return None
