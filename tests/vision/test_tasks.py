"""`moxin_lab.vision.tasks`: answers are true of the pictures, uniformly drawn, and repeatable."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moxin_lab.vision import data, scoring, tasks
from moxin_lab.vision.images import ImageError

EDGE = 64


@pytest.fixture(scope="module")
def concepts(repository):
    return data.read_concepts(repository / "data_cards" / "emoji", "test")


@pytest.fixture(scope="module")
def items(concepts):
    return {
        name: tasks.make_items(name, 120, concepts, edge=EDGE, seed=0, split="test")
        for name in tasks.TASKS
    }


@pytest.mark.parametrize("name", tasks.TASKS)
def test_items_repeat_with_their_seed_and_differ_with_another(name, concepts, items):
    again = tasks.make_items(name, 5, concepts, edge=EDGE, seed=0, split="test")
    for one, other in zip(items[name], again, strict=False):
        assert one[:6] == other[:6] and np.array_equal(one.picture, other.picture)
    other = tasks.make_items(name, 5, concepts, edge=EDGE, seed=1, split="test")
    assert any(not np.array_equal(a.picture, b.picture) for a, b in zip(again, other, strict=True))


@pytest.mark.parametrize("name", tasks.TASKS)
def test_an_answer_is_among_its_choices_and_a_picture_has_the_size_asked_for(name, items):
    for item in items[name]:
        assert item.picture.shape == (EDGE, EDGE, 3) and item.picture.dtype == np.uint8
        assert not item.choices or item.answer in item.choices
        assert len(set(item.choices)) == len(item.choices)
    assert len({item.id for item in items[name]}) == 120


@pytest.mark.parametrize("name", ["category", "count", "same", "side", "presence"])
def test_answers_are_drawn_uniformly(name, items):
    counts = Counter(item.answer for item in items[name])
    assert set(counts) == set(items[name][0].choices)
    assert max(counts.values()) < 3 * len(items[name]) / len(counts)


@pytest.mark.parametrize("answer", tasks.SIDES)
def test_the_disc_is_on_the_side_that_the_answer_names(answer, items):
    checked = 0
    for item in (item for item in items["side"] if item.answer == answer):
        colour = next(word for word in item.question.split() if word in tasks.MARK_COLOURS)
        rows, columns = np.nonzero((item.picture == tasks.COLOURS[colour]).all(axis=2))
        centre = {"left": columns, "right": columns, "above": rows, "below": rows}[answer].mean()
        assert (centre < EDGE / 2) == (answer in ("left", "above"))
        checked += 1
    assert checked > 10


def test_a_rounded_box_still_overlaps_the_square_it_names(items):
    for item in items["box"]:
        box = scoring.parse_box(item.answer)
        assert box is not None
        colour = next((word for word in item.question.split() if word in tasks.MARK_COLOURS), None)
        if colour:
            rows, columns = np.nonzero((item.picture == tasks.COLOURS[colour]).all(axis=2))
            tight = tuple(
                v / EDGE for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            )
            assert scoring.iou(box, tight) >= scoring.CORRECT_IOU, item.id


def test_the_answer_of_count_is_the_number_of_copies(concepts, monkeypatch):
    pasted = []
    monkeypatch.setattr(
        tasks, "paste", lambda canvas, drawing, top, left: pasted.append((top, left))
    )
    for seed in range(30):
        _, _, answer, _, _ = tasks.TASKS["count"](
            np.random.default_rng(seed), concepts, EDGE, "google"
        )
        assert len(pasted) == int(answer) == len(set(pasted))
        pasted.clear()


def test_negatives_of_presence_are_random_popular_or_adversarial(concepts, monkeypatch):
    shown = []
    monkeypatch.setattr(
        tasks, "resize_square", lambda drawing, edge: shown.append(drawing) or drawing[:edge, :edge]
    )
    known = tasks.presence_concepts(concepts)
    label = {one.label(): one for one in known}
    seen = Counter()
    for _ in range(150):
        shown.clear()
        draft = tasks.TASKS["presence"](
            np.random.default_rng(len(seen) + sum(seen.values())), concepts, EDGE, "google"
        )
        seen["drawn"] += 1
        if draft is None:
            continue
        kind, question, answer, _, _ = draft
        target = label[question.split(": ")[1].removesuffix("?")]
        present = [
            one for one in known if any(one.drawings["google"] is drawing for drawing in shown)
        ]
        assert len(present) == 3 and (target in present) == (answer == "yes")
        if answer == "no":
            seen[kind] += 1
            assert kind != "popular" or target in known[: tasks.POPULAR_CONCEPTS]
            assert kind != "adversarial" or target.subcategory in {
                one.subcategory for one in present
            }
    assert all(seen[kind] > 5 for kind in tasks.NEGATIVES)


def test_the_colour_of_a_drawing_is_that_of_half_its_pixels():
    drawing = np.zeros((64, 64, 4), dtype=np.uint8)
    drawing[:40] = (200, 30, 30, 255)
    drawing[40:60] = (30, 120, 230, 255)
    assert tasks.main_colour(drawing) == "red"
    drawing[:20] = (255, 255, 255, 255)
    assert tasks.main_colour(drawing) is None, "no colour has half of the pixels"
    assert tasks.main_colour(np.zeros((64, 64, 4), dtype=np.uint8)) is None


def test_a_small_chart_gets_only_the_questions_that_are_legible(repository):
    card = repository / "data_cards" / "charts"
    small, large = (tasks.chart_items(card, "test_tables", edge) for edge in (64, 192))
    assert {item.kind for item in large} - {item.kind for item in small} == {
        "chart label",
        "chart value",
    }
    assert all(item.choices for item in small) and small[0].picture.shape == (64, 64, 3)
    assert len({item.id for item in large}) == len(large)


def test_too_few_concepts_are_refused(concepts):
    with pytest.raises(ValueError, match="1 concepts"):
        tasks.make_items("caption", 3, concepts[:1], edge=EDGE, seed=0, split="test")


def test_there_is_one_caption_per_concept_and_language(concepts):
    captions = tasks.caption_examples(concepts[:4], ("en", "ko"))
    assert len(captions) == 8 and {one.image for one in captions} == {
        f"{one.id}.png" for one in concepts[:4]
    }


@pytest.mark.parametrize("content", [b"no image", b"", None])
def test_a_chart_that_is_no_image_is_refused_with_file_and_chart(repository, tmp_path, content):
    name = "data/test_tables.parquet"
    table = pq.read_table(repository / "data_cards" / "charts" / name)
    rows = table.slice(0, 2).to_pylist()
    rows[1]["png"] = content
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / name)
    with pytest.raises(ImageError, match=rf"test_tables\.parquet, chart {rows[1]['id']}"):
        tasks.chart_items(tmp_path, "test_tables", 64)


@pytest.mark.parametrize("damage", ["no column", "null", "null in a question"])
def test_a_chart_card_that_is_not_as_described_is_refused_with_its_file(
    repository, tmp_path, damage
):
    name = "data/test_tables.parquet"
    table = pq.read_table(repository / "data_cards" / "charts" / name).slice(0, 2)
    rows = table.to_pylist()
    if damage == "null":
        rows[1]["questions"] = None
    else:
        rows[1]["questions"][0]["task"] = None
    (tmp_path / "data").mkdir()
    changed = pa.Table.from_pylist(rows, schema=table.schema)
    pq.write_table(table.drop(["png"]) if damage == "no column" else changed, tmp_path / name)
    reason = "lacks the column 'png'" if damage == "no column" else "row 1 .*a question lacks task"
    with pytest.raises(data.DataError, match=rf"test_tables\.parquet.*{reason}"):
        tasks.chart_items(tmp_path, "test_tables", 192)
