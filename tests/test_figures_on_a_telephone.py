"""Every figure of stages 04 to 08 and 10 can be read on a telephone: its letters are measured in
the very SVG that a page shows. (`tests/browser` looks at whole pages.)
"""

import ast
import math
import re

import matplotlib
import pytest
from matplotlib import pyplot as plt

from moxin_lab.lab import pictures, show
from tests import figure_examples

TELEPHONE = 380
"""Pixels; a picture uses the whole width of a telephone's window (style.css)."""
SMALLEST_LETTERS = 9.0
"""Pixels; our choice. The text of a page has 17."""
EXAMPLES = figure_examples.examples()


@pytest.fixture(autouse=True)
def as_a_notebook_draws():
    with matplotlib.rc_context():
        show.style()
        yield
    plt.close("all")


def letters_on_a_telephone(svg: str) -> dict[str, float]:
    """Pixels of the smallest letters of each text, by the text, without powers of ten (mathematics
    has its own sizes). A matplotlib SVG is as wide as it says in points, and so are its letters.
    """
    width = float(re.search(r' width="([\d.]+)pt"', svg)[1]) * 4 / 3
    shrunk = min(1.0, TELEPHONE / width)
    found = re.findall(r'<text style="[^"]*?font(?:-size)?: *([\d.]+)px[^>]*>([^<]*)', svg)
    letters: dict[str, float] = {}
    for size, text in found:
        letters[text] = min(letters.get(text, math.inf), float(size) * 4 / 3 * shrunk)
    return letters


def test_every_figure_of_these_modules_has_an_example():
    drawing = {
        (module, function.name)
        for module in figure_examples.MODULES
        for function in ast.parse(
            (figure_examples.REPOSITORY / "moxin_lab" / f"{module.replace('.', '/')}.py").read_text(
                encoding="utf-8"
            )
        ).body
        if isinstance(function, ast.FunctionDef)
        and function.returns is not None
        and "Figure" in ast.unparse(function.returns)
    }
    assert drawing == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES, ids=".".join)
def test_a_telephone_shows_letters_that_can_be_read(name):
    svg = pictures.figure_svg(EXAMPLES[name](), "example")
    letters = letters_on_a_telephone(svg)
    assert len(letters) > 2
    assert {text: size for text, size in letters.items() if size < SMALLEST_LETTERS} == {}
