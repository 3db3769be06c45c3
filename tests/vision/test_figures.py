"""`moxin_lab.vision.figures`: titles keep their words, and an example is drawn as it is read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from moxin_lab.lab import show
from moxin_lab.vision import figures
from moxin_lab.vision.tasks import Item


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@given(st.lists(st.text("abc-&", min_size=1, max_size=20), min_size=1, max_size=8))
def test_a_title_is_broken_between_words_and_none_is_cut(words):
    assert figures.wrapped(" ".join(words), 12).split() == words


def title(axes):
    """The title of a panel, left of it (the lab's style) or centred (matplotlib's)."""
    return axes.get_title(loc="left") or axes.get_title()


@pytest.fixture(params=["as matplotlib draws", "as a notebook draws"])
def drawn(request):
    if request.param == "as a notebook draws":
        show.style()


def test_a_gallery_shows_every_title_whole(drawn):
    names = ["woman wearing turban", "octopus", "man in motorized wheelchair"]
    figure = figures.gallery([np.zeros((4, 4, 3), np.uint8)] * 3, names, columns=3)
    shown = [title(axes).replace("\n", " ") for axes in figure.axes]
    assert shown == names


def test_patches_stand_right_after_the_first_token_in_reading_order():
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    tokens = [("<s>", False), ("In", False), ("red", True)]
    _, row = figures.picture_to_tokens(picture, 2, tokens, columns=12).axes
    patches = {
        round((image.get_extent()[0] + image.get_extent()[1]) / 2): image for image in row.images
    }
    assert sorted(patches) == [1, 2, 3, 4]
    assert np.array_equal(patches[2].get_array(), picture[:2, 2:])
    assert np.array_equal(patches[3].get_array(), picture[2:, :2])
    texts = {text.get_text(): round(text.get_position()[0]) for text in row.texts}
    assert texts == {"<s>": 0, "In": 5, "red": 6}
    filled = {box.get_facecolor() for box in row.patches}
    assert len(filled) == 2  # with loss and without


def test_every_question_is_shown_with_its_answer(drawn):
    picture = np.zeros((8, 8, 3), np.uint8)
    examples = {task: Item("0", task, "", "?", f"answer {task}", (), picture) for task in "abcd"}
    figure = figures.question_gallery(examples)
    titles = [title(axes) for axes in figure.axes if title(axes)]
    assert titles == [f"{task}: ?\n→ answer {task}" for task in "abcd"]
