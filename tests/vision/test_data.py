"""`moxin_lab.vision.data`: LLaVA files are read and written unchanged, faults are named, and
drawings are rendered without dark edges.
"""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.vision import data
from moxin_lab.vision.data import DataError, Example

TEXTS = (
    st.text(min_size=1, max_size=30)
    .map(str.strip)
    .filter(lambda text: text and data.IMAGE_MARK not in text)
)
EXAMPLES = st.lists(
    st.builds(
        Example,
        id=TEXTS,
        image=st.none() | st.sampled_from(["a.png", "coco/train2017/b.jpg"]),
        turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=5,
)


@given(EXAMPLES)
def test_written_examples_are_read_back(tmp_path_factory, examples):
    path = tmp_path_factory.mktemp("llava") / "data.json"
    path.write_text(json.dumps([data.to_llava(example) for example in examples]), encoding="utf-8")
    assert data.load_llava(path) == examples


def write(folder, *records):
    path = folder / "records.json"
    path.write_text(json.dumps(list(records)))
    return path


def say(*turns):
    return [
        {"from": who, "value": text}
        for who, text in zip(("human", "gpt") * len(turns), turns, strict=False)
    ]


def test_every_form_of_the_published_records_is_read(tmp_path):
    caption = {
        "id": "004539375",
        "image": "00453/004539375.jpg",
        "conversations": say("Render a summary.\n<image>", "a bed"),
    }
    instruct = {
        "id": "000000033471",
        "image": "coco/train2017/000000033471.jpg",
        "conversations": say(
            "<image>\nWhat are the colors?", "White and red.", "What feature?", "An advertisement."
        ),
    }
    text = {
        "id": "wgByO4Y_0",
        "model": "",
        "conversations": say("<image> is a tag of HTML?", "No, img is."),
    }
    opening = {
        "id": "x_1",
        "conversations": [{"from": "gpt", "value": "earlier"}, *say("Go on", "Done", "unanswered")],
    }
    assert data.load_llava(write(tmp_path, caption, instruct, text, opening)) == [
        Example("004539375", "00453/004539375.jpg", (("Render a summary.", "a bed"),)),
        Example(
            "000000033471",
            "coco/train2017/000000033471.jpg",
            (("What are the colors?", "White and red."), ("What feature?", "An advertisement.")),
        ),
        Example("wgByO4Y_0", None, (("<image> is a tag of HTML?", "No, img is."),)),
        Example("x_1", None, (("Go on", "Done"),)),
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "a"}, "record 0 lacks 'conversations'"),
        ({"id": "a", "conversations": []}, r"id a\).*do not take turns"),
        ({"id": "a", "conversations": say("only a question")}, "do not take turns"),
        ({"id": "a", "conversations": [{"from": "human", "value": "x"}] * 2}, "do not take turns"),
        ({"id": "a", "conversations": say("q", " ")}, "empty answer"),
        (
            {"id": "a", "image": "b.png", "conversations": say("<image> <image>", "x")},
            "marks 2 images",
        ),
        (
            {"id": "a", "image": "../b.png", "conversations": say("<image>", "x")},
            "not a name below",
        ),
        ({"id": "a", "image": "/b.png", "conversations": say("<image>", "x")}, "not a name below"),
    ],
)
def test_a_record_without_anything_to_learn_is_refused_by_its_id(tmp_path, record, message):
    with pytest.raises(DataError, match=message):
        data.load_llava(write(tmp_path, record))


def test_a_missing_image_is_named_before_training(tmp_path):
    path = write(tmp_path, {"id": "a", "image": "gone.png", "conversations": say("<image>", "x")})
    with pytest.raises(DataError, match=r"1 of 1 records.*gone\.png of record a"):
        data.load_llava(path, tmp_path)


def test_saved_images_have_the_same_pixels(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    path = data.save_llava([Example("a", "a.png", (("q", "r"),))], {"a.png": pixels}, tmp_path)
    (example,) = data.load_llava(path, tmp_path / "images")
    assert np.array_equal(np.asarray(data.Image.open(tmp_path / "images" / example.image)), pixels)


def test_pasting_keeps_opaque_pixels_and_shows_the_canvas_through_transparent_ones():
    drawing = np.zeros((8, 8, 4), dtype=np.uint8)
    drawing[:4] = (10, 20, 30, 255)
    picture = data.render(drawing, 8, (200, 100, 50))
    assert (picture[:4] == (10, 20, 30)).all() and (picture[4:] == (200, 100, 50)).all()
    half = np.full((8, 8, 4), 128, dtype=np.uint8)
    assert abs(int(data.render(half, 8, (0, 0, 0))[0, 0, 0]) - 64) <= 1


def test_transparent_pixels_do_not_darken_edges_when_resized():
    drawing = np.zeros((64, 64, 4), dtype=np.uint8)  # transparent black
    drawing[16:48, 16:48] = (255, 255, 255, 255)
    assert data.render(drawing, 24, (255, 255, 255)).min() >= 254


@pytest.fixture(scope="module")
def concepts(repository):
    return data.read_concepts(repository / "data_cards" / "emoji", "test")


def test_concepts_carry_names_and_two_drawings(concepts):
    assert len(concepts) > 100
    for one in concepts:
        assert set(one.names) == {"en", "zh", "ja", "ko"} and one.caption().startswith(one.label())
        assert {drawing.shape for drawing in one.drawings.values()} == {(64, 64, 4)}
    assert data.render_concepts(concepts[:3], "twitter", 32).shape == (3, 32, 32, 3)


def test_a_caption_does_not_repeat_its_label(concepts):
    for one in concepts:
        assert one.label() not in one.caption(tags=99).partition(": ")[2].split(", ")
