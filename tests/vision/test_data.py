"""`moxin_lab.vision.data`: LLaVA files are read and written unchanged, faults are named, and
drawings are rendered without dark edges.
"""

import io
import json

import numpy as np
import pyarrow as pa
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


Q, A = {"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "That."}


@pytest.mark.parametrize(
    "record",
    [
        None,
        7,
        "text",
        [],
        True,
        [{"id": "a"}],
        {},
        {"conversations": [Q, A]},
        {"id": None, "conversations": [Q, A]},
        {"id": ["a"], "conversations": [Q, A]},
        {"id": 1.5, "conversations": [Q, A]},
        {"id": True, "conversations": [Q, A]},
        {"id": "a", "conversations": None},
        {"id": "a", "conversations": 7},
        {"id": "a", "conversations": "Q: A"},
        {"id": "a", "conversations": {"from": "human", "value": "x"}},
        {"id": "a", "conversations": [None, None]},
        {"id": "a", "conversations": ["x", "y"]},
        {"id": "a", "conversations": [["human", "x"], ["gpt", "y"]]},
        {"id": "a", "conversations": [{"from": "human"}, A]},
        {"id": "a", "conversations": [{"value": "x"}, A]},
        {"id": "a", "conversations": [{"from": None, "value": "x"}, A]},
        {"id": "a", "conversations": [{"from": ["human"], "value": "x"}, A]},
        {"id": "a", "conversations": [{"from": "user", "value": "x"}, A]},
        {"id": "a", "conversations": [{"from": "human", "value": None}, A]},
        {"id": "a", "conversations": [{"from": "human", "value": 3}, A]},
        {"id": "a", "conversations": [{"from": "human", "value": ["x"]}, A]},
        {"id": "a", "conversations": [Q, {"from": "gpt", "value": 3}]},
        {"id": "a", "conversations": [Q, {"from": "gpt", "value": ""}]},
        {"id": "a", "conversations": [{"from": "human", "value": "\ud800"}, A]},
        {"id": "\udc00", "conversations": [Q, A]},
        {"id": "a", "image": "", "conversations": [Q, A]},
        {"id": "a", "image": " ", "conversations": [Q, A]},
        {"id": "a", "image": ".", "conversations": [Q, A]},
        {"id": "a", "image": 7, "conversations": [Q, A]},
        {"id": "a", "image": False, "conversations": [Q, A]},
        {"id": "a", "image": ["b.png"], "conversations": [Q, A]},
        {"id": "a", "image": {"path": "b.png"}, "conversations": [Q, A]},
        {"id": "a", "image": "b\0.png", "conversations": [Q, A]},
        {"id": "a", "image": "\ud800.png", "conversations": [Q, A]},
        {"id": "a", "image": "x" * 5000, "conversations": [Q, A]},
        {"id": "a", "image": "a/../../b.png", "conversations": [Q, A]},
        {"id": "a", "image": "ab/" * 3000 + "b.png", "conversations": [Q, A]},
        {"id": "a", "images": ["b.png"], "conversations": say("What?", "x")},
        {"id": "a", "video": "b.mp4", "conversations": say("What?", "x")},
        {"id": "a", "audio": "b.wav", "conversations": say("What?", "x")},
        {"id": "a", "conversations": say("<image>\nWhat?", "x")},
        {"id": "a", "image": None, "conversations": say("What?\n<image>", "x")},
        {"id": "a", "conversations": say("Go", "x", " <image> \nWhat?", "x")},
    ],
    ids=lambda record: json.dumps(record)[:50],
)
def test_an_odd_record_is_refused_with_file_and_row(tmp_path, record):
    good = {"id": "g", "conversations": [{"from": "human", "value": "Go"}, A]}
    with pytest.raises(DataError, match=r"records\.json, record 1"):
        data.load_llava(write(tmp_path, good, record), tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b"[",
        b"\xff\xfe[]",
        b"\xef\xbb\xbf[]",
        b"[" * 100_000,
        b'{"id": "a"}\n{"id": "b"}',
        b'[{"id": "a", "id": "b", "conversations": []}]',
        b"[" + b"9" * 5000 + b"]",
        b"<html>404</html>",
    ],
    ids=lambda content: repr(content[:20]),
)
def test_a_file_that_is_no_list_of_records_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "records.json").write_bytes(content)
    with pytest.raises(DataError, match=r"records\.json"):
        data.load_llava(tmp_path / "records.json")
    with pytest.raises(DataError, match=r"absent\.json"):
        data.load_llava(tmp_path / "absent.json")


def test_an_image_that_cannot_be_decoded_is_refused_with_its_row_before_training(tmp_path):
    (tmp_path / "folder.png").mkdir()
    whole = data.Image.effect_noise((64, 64), 60)
    whole.save(tmp_path / "good.png")
    good = (tmp_path / "good.png").read_bytes()
    bad = {"empty.png": b"", "page.jpg": b"<html>404</html>", "cut.png": good[: len(good) // 2]}
    shown = {"id": "g", "image": "good.png", "conversations": [Q, A]}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        record = {"id": "b", "image": name, "conversations": [Q, A]}
        path = write(tmp_path, shown, shown, record, record)
        with pytest.raises(DataError, match=rf"records\.json, record 2 \(id b\): image '{name}'"):
            data.load_llava(path, tmp_path)
    folder = {"id": "f", "image": "folder.png", "conversations": [Q, A]}
    with pytest.raises(DataError, match=r"1 of 2 records .*folder\.png of record f \(row 1\)"):
        data.load_llava(write(tmp_path, shown, folder), tmp_path)


def test_a_drawing_that_is_no_image_or_too_large_is_refused_with_file_and_concept(
    repository, tmp_path
):
    table = data.pq.read_table(repository / "data_cards" / "emoji" / "data" / "test.parquet")
    rows = table.slice(0, 2).to_pylist()
    large = io.BytesIO()
    data.Image.new("RGB", (4000, 3000)).save(large, format="PNG")
    (tmp_path / "data").mkdir()
    for content, reason in ((b"no image", "not an image"), (large.getvalue(), "4000 x 3000")):
        rows[1]["twitter"] = content
        changed = pa.Table.from_pylist(rows, schema=table.schema)
        data.pq.write_table(changed, tmp_path / "data" / "test.parquet")
        with pytest.raises(DataError, match=rf"test\.parquet: {rows[1]['concept']}.*{reason}"):
            data.read_concepts(tmp_path, "test")


def test_other_media_that_are_null_and_a_literal_tag_are_text(tmp_path):
    empty = {"id": "a", "image": None, "images": None, "video": None, "audio": None}
    text = "In RSS:\n<image>\n<url>x</url>\nWhat is it?"
    (example,) = data.load_llava(write(tmp_path, {**empty, "conversations": say(text, "x")}))
    assert example == Example("a", None, ((text, "x"),))


@pytest.mark.parametrize("damage", ["no column", "no language", "null", "no parquet", "no file"])
def test_a_card_that_is_not_as_described_is_refused_with_its_file(repository, tmp_path, damage):
    table = data.pq.read_table(repository / "data_cards" / "emoji" / "data" / "test.parquet")
    table = table.slice(0, 2)
    rows = table.to_pylist()
    rows[1]["texts"] = None if damage == "null" else rows[1]["texts"][:1]
    changed = pa.Table.from_pylist(rows, schema=table.schema)
    file = tmp_path / "data" / "test.parquet"
    file.parent.mkdir()
    data.pq.write_table(table.drop(["family"]) if damage == "no column" else changed, file)
    if damage == "no parquet":
        file.write_bytes(b"<html>")
    elif damage == "no file":
        file.unlink()
    reason = {
        "no column": "lacks the column 'family'",
        "no language": "row 1 .*its texts are not",
        "null": "row 1 .*its texts are not",
    }.get(damage, "cannot be read as Parquet")
    with pytest.raises(DataError, match=rf"test\.parquet.*{reason}"):
        data.read_concepts(tmp_path, "test")


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
