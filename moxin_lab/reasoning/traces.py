r"""Chains of thought that solvers write for reasoning-gym's questions: short steps, one per line,
and the answer in a box.

    "... problem: 4 - 1 - 7 ="   ->   4-1=3
                                      3-7=-4
                                      \boxed{-4}

A solver works from the question's operands and computes the answer itself; the family's answer is
not read. So a trace that ends in that answer is a check of both (tests/reasoning/test_tasks.py
holds every trace against the family's own scorer).

Guarantees: pure functions of an entry; a line follows from the question and the lines above it.
Out of scope: families that are not in `SOLVERS`; varied wording.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moxin_lab.reasoning import gym

Entry = Mapping[str, Any]
"""`question`, `answer` and `metadata` of a reasoning-gym data set."""


def trace(family: str, entry: Entry) -> str:
    """The chain of thought for one question. Raises ValueError for a family without a solver."""
    if family not in SOLVERS:
        raise ValueError(
            f"no solver writes traces for {family!r}; there are {', '.join(sorted(SOLVERS))}"
        )
    *steps, answer = SOLVERS[family](entry)
    return "\n".join((*steps, rf"\boxed{{{answer}}}"))


def _chain_sum(entry: Entry) -> Iterator[str]:
    """Running sums from the left."""
    first, *rest = re.findall(r"(?:^|[-+] )-?\d+", entry["metadata"]["expression"])
    total = int(first)
    for term in rest:
        sign, number = term.split()
        before, total = total, total + int(number) if sign == "+" else total - int(number)
        yield f"{before}{sign}{number}={total}"
    yield str(total)


def _products(entry: Entry) -> Iterator[str]:
    """The first factor times each digit of the second, with its power of ten, then running sums."""
    first, *rest = (int(number) for number in entry["metadata"]["expression"].split(" * "))
    total = first
    for factor in rest:
        parts = [
            int(digit) * 10**power
            for power, digit in enumerate(reversed(str(abs(factor))))
            if digit != "0"
        ]
        parts = [part if factor > 0 else -part for part in parts] or [0]
        products = [total * part for part in parts]
        yield from (
            f"{total}*{part}={product}" for part, product in zip(parts, products, strict=True)
        )
        total = products[0]
        for product in products[1:]:
            yield f"{total}+{product}={total + product}"
            total += product
    yield str(total)


def _gcd(entry: Entry) -> Iterator[str]:
    """Euclid's remainders, one number after the other."""
    divisor, *rest = entry["metadata"]["numbers"]
    for other in rest:
        larger, smaller = max(divisor, other), min(divisor, other)
        while smaller:
            yield f"{larger}%{smaller}={larger % smaller}"
            larger, smaller = smaller, larger % smaller
        divisor = larger
    yield str(divisor)


def _simple_equations(entry: Entry) -> Iterator[str]:
    """The constant to the right, then divided by the coefficient."""
    left, right = entry["metadata"]["equation"].split(" = ")
    variable = entry["metadata"]["variable"]
    coefficient, constant = 0, 0
    for term in re.findall(r"[-+]? ?[^-+ ]+", left):
        term = term.replace(" ", "")
        if variable in term:
            number = term.replace(variable, "").rstrip("*")
            coefficient += int(number + "1" if number in ("", "+", "-") else number)
        else:
            constant += int(term)
    value = int(right)
    if constant:
        operator = "-" if constant > 0 else "+"
        yield f"{value}{operator}{abs(constant)}={value - constant}"
        value -= constant
    if coefficient != 1:
        yield f"{value}/{coefficient}={value // coefficient}"
    yield str(value // coefficient)


def _base_conversion(entry: Entry) -> Iterator[str]:
    """To a decimal number digit by digit, then remainders of divisions by the target base."""
    metadata = entry["metadata"]
    source, target = metadata["source_base"], metadata["target_base"]
    value = 0
    for digit in metadata["source_repr"]:
        number = int(digit, 36)
        before, value = value, value * source + number
        yield f"{before}*{source}+{number}={value}"
    digits = ""
    while True:
        remainder = "0123456789abcdefghijklmnopqrstuvwxyz"[value % target]
        yield f"{value}={value // target}*{target}+{remainder}"
        digits, value = remainder + digits, value // target
        if not value:
            break
    yield digits


def _letter_counting(entry: Entry) -> Iterator[str]:
    """Each word with its count, and the running sum."""
    letter, total = entry["metadata"]["target_letter"].lower(), 0
    for word in entry["metadata"]["span"]:
        total += word.lower().count(letter)
        yield f"{word} {word.lower().count(letter)} {total}"
    yield str(total)


def _count_bits(entry: Entry) -> Iterator[str]:
    """Halving: the number, its last bit, the bits so far."""
    number, total = entry["metadata"]["number"], 0
    while number:
        total += number % 2
        yield f"{number} {number % 2} {total}"
        number //= 2
    yield str(total)


def _leg_counting(entry: Entry) -> Iterator[str]:
    """Legs of each kind, and the running sum."""
    animals = gym.load().arithmetic.leg_counting.ANIMALS
    total = 0
    for name, count in entry["metadata"]["animals"].items():
        total += count * animals[name]
        yield f"{count}*{animals[name]}={count * animals[name]} {total}"
    yield str(total)


def _number_sorting(entry: Entry) -> Iterator[str]:
    """Selection sort: the number taken out, then those that are left."""
    left = list(entry["metadata"]["original_numbers"])
    pick = min if entry["metadata"]["direction"] == "ascending" else max
    taken = []
    while left:
        taken.append(pick(left, key=float))
        left.remove(taken[-1])
        yield f"{taken[-1]} | {' '.join(left)}".rstrip(" |")
    yield str(taken)


def _prime_factorization(entry: Entry) -> Iterator[str]:
    """Division by the smallest factor."""
    number, factors = entry["metadata"]["number"], []
    while number > 1:
        factor = next((f for f in range(2, math.isqrt(number) + 1) if number % f == 0), number)
        factors.append(factor)
        yield f"{number}/{factor}={number // factor}"
        number //= factor
    yield " × ".join(map(str, factors))


SOLVERS: dict[str, Callable[[Entry], Iterator[str]]] = {
    "base_conversion": _base_conversion,
    "chain_sum": _chain_sum,
    "count_bits": _count_bits,
    "gcd": _gcd,
    "leg_counting": _leg_counting,
    "letter_counting": _letter_counting,
    "number_sorting": _number_sorting,
    "prime_factorization": _prime_factorization,
    "products": _products,
    "simple_equations": _simple_equations,
}
