"""A line at chance, at a baseline or at a window's edge is on the picture that speaks of it."""

import matplotlib
import pytest
from matplotlib import pyplot as plt

from moxin_lab.lab import show
from tests import figure_examples

EXAMPLES = figure_examples.examples()


@pytest.mark.parametrize("name", EXAMPLES, ids=".".join)
def test_a_line_across_the_axes_lies_within_them(name):
    with matplotlib.rc_context():
        show.style()
        figure = EXAMPLES[name]()
        try:
            for axes in figure.axes:
                beyond = [
                    line.get_label() for line in axes.get_lines() if not _is_within(axes, line)
                ]
                assert beyond == [], axes.get_title()
        finally:
            plt.close(figure)


def _is_within(axes, line) -> bool:
    """Whether a line of `axvline` or `axhline` is between the ends of its axis; others are."""
    across = (
        (axes.get_xaxis_transform(), line.get_xdata(), axes.get_xlim()),
        (axes.get_yaxis_transform(), line.get_ydata(), axes.get_ylim()),
    )
    for transform, values, ends in across:
        if line.get_transform() == transform and len(set(values)) == 1:
            return min(ends) <= values[0] <= max(ends)
    return True


def test_a_line_beyond_the_axes_is_found():
    figure, axes = plt.subplots()
    axes.set(xlim=(0, 100), ylim=(0, 1))
    assert _is_within(axes, axes.axvline(30)) and _is_within(axes, axes.axhline(1))
    assert not _is_within(axes, axes.axvline(3000))
    assert not _is_within(axes, axes.axhline(-0.5))
    plt.close(figure)
