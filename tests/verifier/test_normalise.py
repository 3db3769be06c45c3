"""What the verifier does without a worker: finding an answer, one spelling, exact numbers, refusing
bombs.
"""

import contextlib
import json
import math
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moxin_lab.verifier.answers import Expression, Quantity
from moxin_lab.verifier.compare import compare
from moxin_lab.verifier.exact import NeedsWorker, exact
from moxin_lab.verifier.extraction import extract
from moxin_lab.verifier.normalise import normalise
from moxin_lab.verifier.reading import read
from moxin_lab.verifier.screen import Limits, screen

CORPUS = json.loads((Path(__file__).parent / "verifier_corpus.json").read_text(encoding="utf-8"))
LATEX = st.sampled_from(
    [
        "\\boxed{",
        "\\frac{",
        "{",
        "}",
        "\\",
        "\\\\",
        "$",
        "<answer>",
        "</answer>",
        "</think>",
        "\\left(",
        ")",
        "^",
        "_",
        "!",
        "9",
    ]
    + [
        "\\sqrt",
        "\\sum",
        "\\binom",
        "\\text{",
        "(",
        "[",
        "|",
        "&",
        "\\%",
        ",",
        "=",
        "x",
        "\\infty",
        " ",
        ".",
        "1e",
        "\\operatorname",
    ]
)
SOUP = st.lists(st.one_of(LATEX, st.text(max_size=4)), max_size=40).map("".join)
PLAIN = st.text(st.characters(exclude_characters="{}\\", exclude_categories=["Cs"]), max_size=12)
BALANCED = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.builds("\\frac{{{}}}{{{}}}".format, inner, inner),
        st.builds("{{{}}}".format, inner),
        st.builds("{}+\\{{{}\\}}".format, inner, inner),
        st.builds("\\left\\{{ {} \\right.".format, inner),
    ),
    max_leaves=5,
).filter(lambda x: x.strip(" \t\r\n$") != "" and x == x.strip())


@settings(max_examples=300, deadline=None)
@given(SOUP, BALANCED)
@example("\\", "x")
@example("\\\\\\", "{1}")
@example("\\boxed{ <answer>3</answer> \\boxed", "5")
def test_any_text_then_a_box_gives_what_is_in_the_box(text, x):
    found = extract(text + "\\boxed{" + x + "}")
    assert found is not None
    assert (found.text, found.how) == (x.strip(), "boxed")


@settings(max_examples=100, deadline=None)
@given(SOUP, BALANCED)
def test_a_tag_around_a_box_changes_nothing_and_a_tag_alone_gives_its_content(text, x):
    boxed = extract(text + "<answer>so \\boxed{" + x + "}</answer>")
    assert boxed is not None and boxed.text == x.strip()
    if "<answer>" not in x and "</" not in x:
        tagged = extract("<answer>" + x + "</answer>")
        assert tagged is not None and (tagged.text, tagged.how) == (x.strip(), "tagged")


@pytest.mark.parametrize(("completion", "answer"), CORPUS["extraction"])
def test_the_final_answer_of_the_corpus_is_found(completion, answer):
    found = extract(completion)
    assert (found.text if found else None) == answer


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "\\boxed ",
        "\\[",
        "\\(",
        "$a\n",
        "<answer>",
        "</answer>",
        "{",
        "}",
        "1",
        "1,111",
        "\\frac{1}{",
        "\\",
        "\\text{",
        "- ",
    ],
)
def test_extraction_takes_linear_time_on_openings_never_closed(piece):
    text = piece * (400_000 // len(piece))
    started = time.process_time()  # of this process alone, however busy the machine is
    extract(text)
    assert time.process_time() - started < 1.5  # 0.1 s; a quadratic pass takes minutes


def number(text):
    """The exact value of an answer that is a number or a quantity, or None."""
    for reading in read(normalise(text)):
        if isinstance(reading, Expression | Quantity):
            return exact(reading.tree)
    return None


def same(gold, answer):
    """Equal by text and exact rationals alone."""
    return compare(normalise(gold), normalise(answer), in_worker=False).equal


@settings(max_examples=300, deadline=None)
@given(SOUP)
def test_no_text_raises_in_normalisation_reading_or_screen(text):
    normalised = normalise(text)
    reason = screen(normalised)
    assert reason is None or reason
    if reason is None and normalised:
        assert read(normalised)
        with contextlib.suppress(NeedsWorker):
            compare(normalised, normalised, in_worker=False)


INTEGERS = st.integers(-(10**12), 10**12)
DENOMINATORS = st.integers(1, 10**6)


@settings(max_examples=200, deadline=None)
@given(INTEGERS, DENOMINATORS, st.integers(1, 99))
def test_every_spelling_of_a_rational_is_that_rational(top, bottom, scale):
    value = Fraction(top, bottom)
    sign = "-" if top < 0 else ""
    spellings = [
        f"{top}/{bottom}",
        f"{top * scale}/{bottom * scale}",
        rf"\frac{{{top}}}{{{bottom}}}",
        rf"{sign}\dfrac{{{abs(top)}}}{{{bottom}}}",
        rf"  \tfrac{{{top * scale}}}{{{bottom * scale}}} ",
        rf"$\frac{{{-top}}}{{{-bottom}}}$",
        rf"\left(\frac{{{top}}}{{{bottom}}}\right)",
        rf"\frac{{{top}}}{{{bottom}}}\text{{ metres}}^2",
    ]
    if value >= 0:
        whole, rest = divmod(value.numerator, value.denominator)
        spellings.append(rf"{whole}\frac{{{rest}}}{{{value.denominator}}}")
    if bottom == 1:
        spellings += [
            f"{top:,}",
            f"{top}.000",
            rf"{top}^\circ",
            f"${top}$",
            rf"\${top}",
            f"{top}.",
            f"{top}\\text{{ apples}}",
        ]
    for spelling in spellings:
        assert number(spelling) == value, spelling
    for spelling in spellings:
        assert same(spellings[0], f"x = {spelling}"), spelling
        assert same(f"x = {spelling}", spellings[0]), spelling


@settings(max_examples=200, deadline=None)
@given(INTEGERS, DENOMINATORS, INTEGERS, DENOMINATORS)
def test_two_different_rationals_are_never_equal(a, b, c, d):
    assert same(rf"\frac{{{a}}}{{{b}}}", f"{c}/{d}") == (Fraction(a, b) == Fraction(c, d))


@settings(max_examples=100, deadline=None)
@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=5, min_value=-(10**9), max_value=10**9
    )
)
def test_decimals_are_read_exactly(decimal):
    assert number(f"{decimal:f}") == Fraction(decimal)


def test_superscripts_and_vulgar_fractions_are_not_digits():
    assert normalise("2²") == "2^{2}" and not same("22", "2²")
    assert number("1½") == Fraction(3, 2)
    assert not same("1 2", "12")


def test_a_missing_unit_is_forgiven_and_another_unit_is_not():
    assert same(r"5\text{ cm}", "5")
    assert same(r"5\text{ cm}", "5 centimeters")
    assert not same(r"5\text{ cm}", "5 km")
    assert same(r"5\text{ cm}^2", "5 square centimeters")


@pytest.mark.parametrize(
    "answer",
    [
        "9**9**9**9",
        "9^{9^9}",
        "(10^9)!",
        "9!!!",
        r"\binom{10^9}{5\cdot10^8}",
        r"\Gamma(10^{12})",
        "x^{10^9}",
        "2^{10^9 n}",
        r"\sum_{k=1}^{10^8} k",
        r"\prod_{k=1}^{99999} k",
        r"e^{e^{e^{10}}}",
        r"\sqrt[0.0000001]{2}",
        "10^{-10^{10}}",
        "1.5\\times10^{99999999}",
        r"(2^{2^{15}})^{2^{15}}",
        r"\operatorname{eye}(100000)",
        "9" * 2000,
        "(" * 10 + "1" + ")" * 10,
        r"\sqrt{1+" * 7 + "1" + "}" * 7,
        "x" * 600,
        "|" * 40 + "x" + "|" * 40,
        "{" * 30 + "1" + "}" * 29 + "+x}",
        r"(1/10^{-9})^{1/10^{-9}}",
    ],
)
def test_the_screen_refuses(answer):
    assert screen(normalise(answer)) is not None


@pytest.mark.parametrize(
    "answer",
    [
        "2^{2010}-1",
        "100!",
        r"\binom{2020}{1010}",
        r"\sum_{k=1}^{\infty} \frac{1}{k^2}",
        r"\frac{(2n)!}{n!}",
        "x^{2019}",
        r"3^{2005}",
        r"\sqrt{2+\sqrt{2+\sqrt{2}}}",
        r"e^{1000}",
        r"\frac{\sqrt[3]{7}}{2^{n+1}}",
        r"\log_2(3^{100})",
        "10^{-20}",
        r"6.02\times10^{23}",
        r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}",
        r"(-\infty, 2) \cup (3, \infty)",
        "||x|-3|",
        r"\frac{1}{1+\frac{1}{1+\frac{1}{x}}}",
    ],
)
def test_the_screen_lets_honest_answers_pass(answer):
    assert screen(normalise(answer)) is None


EXPRESSIONS = st.recursive(
    st.integers(0, 60).map(lambda n: (str(n), n)),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(
            lambda ab: (f"({ab[0][0]})+({ab[1][0]})", ("+", ab[0][1], ab[1][1]))
        ),
        st.tuples(inner, inner).map(
            lambda ab: (f"({ab[0][0]})\\cdot({ab[1][0]})", ("*", ab[0][1], ab[1][1]))
        ),
        st.tuples(inner, inner).map(
            lambda ab: (f"({ab[0][0]})^{{{ab[1][0]}}}", ("^", ab[0][1], ab[1][1]))
        ),
        inner.map(lambda a: (f"({a[0]})!", ("!", a[1]))),
        st.tuples(inner, inner).map(
            lambda ab: (f"\\binom{{{ab[0][0]}}}{{{ab[1][0]}}}", ("C", ab[0][1], ab[1][1]))
        ),
    ),
    max_leaves=6,
)


def bits(tree):
    """Value of a tree, or infinity once a value anywhere in it has more than 200,000 bits."""
    if isinstance(tree, int):
        return tree
    values = [bits(part) for part in tree[1:]]
    if math.inf in values:
        return math.inf
    operation, a, b = tree[0], values[0], values[-1]
    if operation == "+":
        return a + b
    if operation == "*":
        return a * b
    if operation == "^":
        return math.inf if max(a.bit_length(), 1) * b > 200_000 and a > 1 else a**b
    if operation == "!":
        return math.inf if a > 20_000 else math.factorial(a)
    return (
        math.inf
        if min(b, max(a - b, 0)) > 200_000 or (a.bit_length() > 64 and b > 3_000)
        else math.comb(a, b)
    )


@settings(max_examples=300, deadline=None)
@given(EXPRESSIONS)
def test_what_passes_the_screen_fits_its_bits(expression):
    text, tree = expression
    limits = Limits(parentheses=99, depth=99)
    if screen(text, limits) is None:
        value = bits(tree)
        assert value is not math.inf and value.bit_length() <= limits.bits
