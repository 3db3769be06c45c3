r"""Pairs of a gold answer and a model's answer, by kind, generated from the gold answers of
public sets.

For each kind of fault that answer checkers have (issue 19) there is a generator: from one gold
answer it makes rewrites, which must be accepted, and near-misses, which must be refused. What is
right follows from how a pair is built, never from a checker.

Guarantees: pure and seeded; a pair is labelled by arithmetic on Python integers and fractions or by
its construction.
Out of scope: running graders (`bench.verifier`).
"""

import csv
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Item:
    """gold and answer without a box; raw: the whole completion, if the answer is in no box."""

    gold: str
    answer: str
    raw: str | None = None


Pairs = Iterator[tuple[Item, bool]]

# --------------------------------------------------------------------------------- gold answers

_FIELDS = ("answer", "final_answer", "expected_answer", "solution", "target", "Correct Answer")


def golds(folder: Path) -> dict[str, list[str]]:
    """Gold answers of every set in a folder (or its `math` folder), by file name.

    A set is a .json list or .jsonl file of rows, or a .csv file, with the answer in the first of
    the fields `answer`, `final_answer`, `expected_answer`, `solution` (what follows `####`),
    `target`. Raises ValueError for a folder without any.
    """
    root = folder / "math" if (folder / "math").is_dir() else folder
    found: dict[str, list[str]] = {}
    for path in sorted(root.iterdir()):
        answers = [a for a in map(_answer, _rows(path)) if a]
        if answers:
            found[_TITLES.get(path.stem, path.stem)] = answers
    if not found:
        raise ValueError(f"no set of gold answers (.json, .jsonl, .csv) in {root}")
    return found


_TITLES = {"math500": "MATH-500", "gsm8k_test": "GSM8K", "amc": "AMC"}


def _rows(path: Path) -> list[Any]:
    if path.suffix == ".json":
        rows = json.loads(path.read_text(encoding="utf-8"))
        return rows if isinstance(rows, list) else []
    if path.suffix == ".jsonl":
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as lines:
            return list(csv.DictReader(lines))
    return []


def _answer(row: Any) -> str | None:
    if not isinstance(row, dict):
        return None
    value = next((row[name] for name in _FIELDS if row.get(name) not in (None, "")), None)
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    if isinstance(value, float):
        return str(Fraction(str(value)))
    if value is None:
        return None
    return str(value).rpartition("####")[2].strip().strip("$")


# --------------------------------------------------------------------------------- generators


def _integer(gold: str) -> int | None:
    return int(gold) if re.fullmatch(r"-?\d{1,15}", gold) else None


def _fraction(gold: str) -> Fraction | None:
    match = re.fullmatch(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}", gold)
    if match is None or int(match[3]) == 0:
        return None
    return Fraction(int(match[1] + match[2]), int(match[3]))


def _is_value(gold: str) -> bool:
    """One expression without relation, list, unit, words or chemistry."""
    if re.search(r"(?<![\\A-Za-z])[A-Za-z]{3,}| and |\d [A-Za-z]|[.\[] ?[A-Z]|[A-Z][a-z]?\d", gold):
        return False
    return (
        re.search(r"[=<>,;:%$]|\\(?:le|ge|ne|in|text|mbox|cup|pm|circ|begin)(?![A-Za-z])|_", gold)
        is None
    )


def _equation(gold: str) -> Pairs:
    if _is_value(gold):
        name = "w" if "w" not in gold else "u"
        yield Item(f"{name}={gold}", f"{gold}={name}"), True
        yield Item(f"{name}={gold}", f"{name}-({gold})=0"), True
        yield Item(f"{name}={gold}", f"2{name}=2({gold})"), True
        yield Item(f"{name}={gold}", gold), True
        yield Item(f"{name}={gold}", f"{name}={gold}+1"), False
        yield Item(f"{name}={gold}", f"v={gold}"), False
        yield Item(f"{name}={gold}", f"2{name}=2({gold})+3"), False
    n = _integer(gold)
    if n is not None:
        yield Item(f"y={n}x-4", f"{n}x-4=y"), True
        yield Item(f"y=x^2+{abs(n)}", f"x^2-y+{abs(n)}=0"), True
        yield Item(f"y=x^2+{abs(n)}", f"x^2+y+{abs(n)}=0"), False
        yield Item(f"y={n}x-4", f"y={n}x+4"), False
        yield Item(f"y={n}x-4", f"x={n}y+5"), False


def _product(gold: str) -> Pairs:
    n = _integer(gold)
    if n is None or not 1 < abs(n) < 10**6:
        return
    size = abs(n)
    divisor = next((d for d in range(2, 60) if size % d == 0 and size > d), None)
    if divisor:
        yield Item(gold, f"{n // divisor}({divisor})"), True
        yield Item(gold, f"({n // divisor})({divisor})"), True
        yield Item(gold, rf"{n // divisor}\left({divisor}\right)"), True
    yield Item(str(size + 13), f"{size}(13)"), False
    yield Item(rf"{size}\frac{{2}}{{3}}", f"{3 * size + 2}/3"), True
    yield Item(rf"{size}\frac{{2}}{{3}}", f"{2 * size}/3"), False


def _imaginary(gold: str) -> Pairs:
    n = _integer(gold)
    if n is None or n == 0 or abs(n) > 10**6:
        return
    yield Item(str(-n), f"{n}e^{{i\\pi}}"), True
    yield Item(f"{2 * n}i", f"{n}(1+i)^2"), True
    yield Item(str(5 * abs(n)), f"|{3 * n}+{4 * abs(n)}i|"), True
    yield Item(f"{n}+4i", f"4i+({n})"), True
    yield Item(str(n), f"{n}e^{{i\\pi}}"), False
    yield Item(str(7 * abs(n)), f"|{3 * n}+{4 * abs(n)}i|"), False
    yield Item(f"{n}+4i", f"{n}-4i"), False


def _roots(gold: str) -> Pairs:
    n = _integer(gold)
    if n is None or not 1 < n < 10**6:
        return
    yield Item(rf"\sqrt{{{n}gh}}", rf"\sqrt{{{n}g}}\sqrt{{h}}"), True
    yield Item(rf"\ln\frac{{{n}x}}{{y}}", rf"\ln({n}x)-\ln y"), True
    yield Item(rf"\ln({n}xy)", rf"\ln {n}+\ln x+\ln y"), True
    yield Item(rf"\sqrt{{\frac{{{n}a}}{{b}}}}", rf"\frac{{\sqrt{{{n}a}}}}{{\sqrt{{b}}}}"), True
    yield Item(rf"\sqrt{{{n}gh}}", rf"\sqrt{{{n}g}}+\sqrt{{h}}"), False
    yield Item(rf"\ln\frac{{{n}x}}{{y}}", rf"\ln y-\ln({n}x)"), False
    yield Item(rf"{n}|x|", f"{n}x"), False


def _degrees(gold: str) -> Pairs:
    n = _integer(gold)
    if n is None or not 0 < n < 10**6:
        return
    yield Item(rf"{n}^\circ", rf"{n}\text{{ degrees}}"), True
    yield Item(rf"{n}^\circ 30'", rf"{n}.5^\circ"), True
    yield Item(rf"\sin {n}^\circ", rf"\sin\frac{{{n}\pi}}{{180}}"), True
    yield Item(rf"{n}^\circ", str(n)), True
    yield Item(rf"{n}^\circ", rf"{n}\text{{ radians}}"), False
    yield Item(rf"{n}^\circ 30'", rf"{n}^\circ"), False
    yield Item(rf"\sin {n}^\circ", rf"\sin {n}"), False


def _words_before(gold: str) -> Pairs:
    if _is_value(gold) and "\\" not in gold[:1]:
        for raw in (f"Answer $ {gold} $", rf"Hence \({gold}\)", f"So ${gold}$."):
            yield Item(gold, gold, raw), True
        yield Item(gold, f"{gold}+1", f"Hence ${gold}+1$"), False
    if _fraction(gold) is not None:
        yield Item(gold, gold, f"So {gold}"), True


def _lists(gold: str) -> Pairs:
    n = _integer(gold)
    if n is None or not 100 <= n < 1000:
        return
    other = 1099 - n if n != 1099 - n and 1099 - n >= 100 else 777
    if other == n:
        return
    yield Item(f"{n},{other}", f"{other},{n}"), True
    yield Item(f"{n},{other}", f"{n}, {other}"), True
    yield Item(f"{n}{other}", f"{n},{other}"), True
    yield Item(f"({n},{other})", f"{n}{other}"), False
    yield Item(f"({n},{other})", f"({other},{n})"), False
    yield Item(f"{n},{other}", f"{n},{other + 1}"), False


def _scientific(gold: str) -> Pairs:
    n = _integer(gold)
    if n is None or not 0 < n < 10**6:
        return
    mantissa = f"{n % 9 + 1}.{n % 10}{n % 7 + 1}"
    power = n % 23 + 2
    yield Item(rf"{mantissa} \times 10^{{{power}}}", f"{mantissa} x 10^{power}"), True
    yield Item(f"{mantissa} × 10^-{power}", rf"{mantissa}\times 10^{{-{power}}}"), True
    yield Item(rf"{mantissa} \times 10^{{{power}}}", f"{mantissa}e{power}"), True
    yield Item(f"{mantissa} × 10^-{power}", f"{mantissa} × 10^{power}"), False
    yield Item(f"{mantissa} x 10^{power}", f"{mantissa} x 10^{power + 1}"), False
    yield Item(f"{mantissa} × 10^-{power}", f"{mantissa}1 × 10^-{power}"), False


def _forms(gold: str) -> Pairs:
    if not _is_value(gold):
        return
    for form in (
        r"\color{{red}}{{{}}}",
        r"\underline{{{}}}",
        r"\mathbf{{{}}}",
        r"\boldsymbol{{{}}}",
        r"\approx {}",
        r"${}$",
        r"\({}\)",
        r"\displaystyle {}",
        r"\textcolor{{blue}}{{{}}}",
    ):
        yield Item(gold, form.format(gold)), True
        yield Item(gold, form.format(f"{gold}+1")), False
    if (value := _fraction(gold)) is not None:
        for name in ("nicefrac", "dfrac", "tfrac", "cfrac"):
            yield Item(gold, gold.replace("dfrac", "frac").replace("frac", name)), True
        swapped = rf"\nicefrac{{{value.denominator}}}{{{value.numerator}}}"
        yield Item(gold, swapped), value in (1, -1)
    if (n := _integer(gold)) is not None:
        yield Item(gold, rf"\text{{{n}}}"), True
        yield Item(rf"{n}\text{{ cm}}", rf"\text{{{n} cm}}"), True
        yield Item(rf"{n}\text{{ cm}}", rf"\text{{{n} km}}"), n == 0
        if 0 < n < 300:
            yield Item(gold, rf"\lg 10^{{{n}}}"), True
            yield Item(gold, rf"\ln 10^{{{n}}}"), False


def _sets(gold: str) -> Pairs:
    n = _integer(gold)
    if n is None or not 0 <= n < 10**9:
        return
    union = rf"(-\infty,-{n})\cup({n + 3},\infty)"
    yield Item(union, rf"x<-{n} \text{{ or }} x>{n + 3}"), True
    yield Item(union, rf"({n + 3},\infty)\cup(-\infty,-{n})"), True
    yield Item(rf"\{{x \mid x>{n}\}}", f"x>{n}"), True
    yield Item(rf"t\ge {n}", rf"{n}\le t"), True
    yield Item(rf"[{n},\infty)", rf"t\geq {n}"), True
    yield Item(rf"{n}<x\le {n + 2}", rf"({n},{n + 2}]"), True
    yield Item(rf"x\ne {n}", rf"\mathbb{{R}}\setminus\{{{n}\}}"), True
    yield Item(union, rf"x\le -{n} \text{{ or }} x>{n + 3}"), False
    yield Item(rf"t\ge {n}", rf"{n}\ge t"), False
    yield Item(rf"t\ge {n}", rf"t>{n}"), False
    yield Item(rf"{n}<x\le {n + 2}", rf"[{n},{n + 2})"), False
    yield Item(rf"\{{x \mid x>{n}\}}", rf"x\ge {n}"), False


def _vectors(gold: str) -> Pairs:
    n = _integer(gold)
    if n is None:
        return
    yield Item(rf"\langle {n},2,3\rangle", f"({n},2,3)"), True
    yield Item(f"({n},{n + 1})", rf"\begin{{pmatrix}} {n} \\ {n + 1} \end{{pmatrix}}"), True
    yield Item(rf"\langle {n},2,3\rangle", f"({n},3,2)"), False
    yield Item(f"({n},{n + 1})", rf"\begin{{pmatrix}} {n + 1} \\ {n} \end{{pmatrix}}"), False
    if n > 0:
        yield Item(f"({n},200)", f"{n}200"), False
        yield Item(f"({n},200]", f"{n}200"), False


def _choices(gold: str) -> Pairs:
    n = _integer(gold)
    if n is None:
        return
    letter, other = "ABCDE"[n % 5], "ABCDE"[(n + 1) % 5]
    yield Item(letter, rf"\textbf{{({letter})}}\ {n}"), True
    yield Item(gold, rf"\textbf{{({letter})}}\ {n}"), True
    yield Item(rf"\text{{({letter})}}", letter), True
    yield Item(letter, letter, f"The answer is ({letter})."), True
    yield Item(letter, rf"\textbf{{({other})}}\ {n}"), False
    yield Item(gold, rf"\textbf{{({letter})}}\ {n + 1}"), False
    yield Item(letter, other, f"The answer is ({other})."), False


def _case(gold: str) -> Pairs:
    bare = re.sub(r"\\[A-Za-z]+(?:\{[a-z]*matrix\})?", lambda m: " " * len(m.group()), gold)
    places = [i for i, c in enumerate(bare) if c.isalpha() and c not in "eixX"]
    if (
        places
        and not re.search(r"\\(?:text|mbox)|[A-Za-z]{3}", gold.replace("\\", " \\"))
        and "_" not in gold
    ):
        for i in places[:2]:
            yield Item(gold, gold[:i] + gold[i].swapcase() + gold[i + 1 :]), False
    n = _integer(gold)
    if n is not None and n not in (0, 1):
        yield Item(f"y={n}Ax+B", f"y=B+{n}Ax"), True
        yield Item(f"{n}R-r", f"-r+{n}R"), True
        yield Item(f"y={n}Ax+B", f"y={n}ax+b"), False
        yield Item(rf"\frac{{{n}M}}{{m}}", str(n)), False
        yield Item(rf"{n}\sigma", rf"{n}\Sigma"), False


def _letters(gold: str) -> Pairs:
    n = _integer(gold)
    if n is None or n == 0:
        return
    for letter in "cdghlmost":
        yield Item(gold, f"{n}{letter}"), False
    yield Item(f"v={n}+3t", f"v={n + 3}"), False
    yield Item(f"{n}t", f"t\\cdot {n}" if n > 0 else f"t({n})"), True
    yield Item(rf"{n}\text{{ m}}", f"{n} m"), True
    yield Item(f"v={n}+3t", f"v=3t+({n})"), True


def _relations(gold: str) -> Pairs:
    n = _integer(gold)
    if n is None or not 0 <= n < 10**9:
        return
    yield Item(f"f({n})=7", f"f({n})=8"), False
    yield Item(f"f({n})=7", f"f({n + 1})=7"), False
    yield Item(f"2+{n}={n + 2}", f"2+{n}={n + 3}"), False
    yield Item(f"x^2=-{n + 1}", f"x^2=-{n + 4}"), False
    yield Item(gold, f"{n + 1}={n}"), False
    yield Item(gold, f"{n}={n + 1}"), False
    yield Item(f"d={n}, M=(1,-4)", f"d={n + 1}, M=(1,-4)"), False
    yield Item(f"f({n})=7", "7"), True
    yield Item(gold, f"{n + 2}-2={n}"), True
    yield Item(f"d={n}, M=(1,-4)", f"M=(1,-4), d={n}"), True


def _decimals(gold: str) -> Pairs:
    value = _fraction(gold)
    n = _integer(gold)
    if n is not None and n not in (0,):
        value = Fraction(n, 3) if n % 3 else Fraction(n, 7) if n % 7 else None
        yield Item(f"{abs(n)}.5", f"{abs(n)}.50"), True
        yield Item(f"0.00000{abs(n)}", f"0.00000{abs(n)}9"), False
    if value is None or value.denominator in (1, 2, 4, 5, 8, 10, 20, 25, 40, 50):
        return
    if any(value.denominator % p == 0 for p in (3, 7, 11, 13)):
        size = abs(value)
        digits = 7 - len(str(int(size))) + 4
        if digits < 5 or size < Fraction(1, 10):
            return
        scaled = round(size * 10**digits)
        sign = "-" if value < 0 else ""
        spelled = rf"{sign}\frac{{{size.numerator}}}{{{size.denominator}}}"

        def decimal(scaled: int) -> str:
            return f"{sign}{scaled // 10**digits}.{scaled % 10**digits:0{digits}d}"

        yield Item(spelled, decimal(scaled)), True
        yield Item(spelled, decimal(scaled + 1)), False
        yield Item(spelled, decimal(scaled - 1)), False
        if size < 1000:
            yield Item(spelled, f"{sign}{float(size):.2f}"), False


def _units(gold: str) -> Pairs:
    n = _integer(gold)
    if n is None or n == 0:
        return
    yield Item(rf"{n}\text{{ m/s}}", rf"{n}\text{{ meters per second}}"), True
    yield Item(rf"{n}\text{{ apples}}", gold), True
    yield Item(gold, rf"{n}\text{{ apples}}"), True
    yield Item(rf"{n}\text{{ cm}}^2", rf"{n}\text{{ square centimeters}}"), True
    yield Item(rf"\$ {n}", f"{n} dollars"), True
    yield Item(rf"{n}\text{{ m/s}}", rf"{n}\text{{ km/h}}"), False
    yield Item(rf"{n}\text{{ apples}}", rf"{n}\text{{ oranges}}"), False
    yield Item(rf"{n}\text{{ cm}}", rf"{n}\text{{ foo}}"), False
    yield Item(gold, rf"{n}\text{{ is wrong, the answer is }}{n + 1}"), False
    yield Item(rf"{n}\text{{ cm}}^2", rf"{n}\text{{ cm}}^3"), False
    yield Item(gold, rf"{n}\text{{ million}}"), False


def _boxed_gold(gold: str) -> Pairs:
    text = rf"So it is \boxed{{{gold}}}."
    yield Item(text, gold, text), True
    yield Item(text, gold), True
    if _is_value(gold):
        yield Item(text, f"{gold}+1"), False


GENERATORS: dict[str, Callable[[str], Pairs]] = {
    "gold in a box": _boxed_gold,
    "equation, sides and forms": _equation,
    "product, not mixed number": _product,
    "imaginary unit": _imaginary,
    "roots and logarithms": _roots,
    "degrees and radians": _degrees,
    "words before mathematics": _words_before,
    "thousands and lists": _lists,
    "scientific notation": _scientific,
    "fonts, colours, spellings": _forms,
    "inequalities and sets": _sets,
    "vectors, points, intervals": _vectors,
    "choices": _choices,
    "case of letters": _case,
    "letters are not units": _letters,
    "false relations and chains": _relations,
    "decimals": _decimals,
    "units": _units,
}


def pairs(
    sets: dict[str, list[str]], most: int, seed: int = 0
) -> dict[tuple[str, bool], list[Item]]:
    """Pairs by kind and by equality: at most `most` of each, taken from all sets by turns."""
    found: dict[tuple[str, bool], list[Item]] = {}
    for kind, generate in GENERATORS.items():
        for equal in (True, False):
            by_set = []
            for name, answers in sets.items():
                draw = random.Random(f"{seed}/{kind}/{equal}/{name}")
                distinct = sorted(set(answers))
                draw.shuffle(distinct)
                one = [
                    item
                    for gold in distinct[:400]
                    for item, label in generate(gold)
                    if label == equal
                ]
                draw.shuffle(one)
                by_set.append(one)
            chosen: list[Item] = []
            for turn in range(max(map(len, by_set), default=0)):
                chosen += [one[turn] for one in by_set if turn < len(one)]
            found[kind, equal] = list(dict.fromkeys(chosen))[:most]
    return found
