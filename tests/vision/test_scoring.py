"""`moxin_lab.vision.scoring`: what counts as correct, baselines that answer every item, and
verdicts that follow from intervals.
"""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.evaluation.statistics import bootstrap_interval, paired_bootstrap
from moxin_lab.vision import scoring
from moxin_lab.vision.tasks import Item


def item(
    number,
    answer,
    *,
    task="count",
    kind="count",
    choices=("1", "2", "3"),
    shade=0,
    question="How many are there?",
):
    picture = np.zeros((16, 16, 3), dtype=np.uint8)
    picture[:, : shade + 1] = 255
    return Item(f"{task}-{number}", task, kind, question, answer, choices, picture)


BOXES = st.tuples(*[st.floats(0, 1, width=16)] * 4).map(
    lambda v: (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
)


@given(BOXES, BOXES)
def test_iou_is_symmetric_bounded_and_one_for_the_same_box(a, b):
    for box in (a, b):
        if box[0] == box[2] or box[1] == box[3]:
            return
    assert scoring.iou(a, a) == pytest.approx(1)
    assert 0 <= scoring.iou(a, b) <= 1 + 1e-9
    assert math.isclose(scoring.iou(a, b), scoring.iou(b, a))


def test_iou_of_known_boxes():
    assert scoring.iou((0, 0, 1, 1), (0, 0, 1, 0.5)) == pytest.approx(0.5)
    assert scoring.iou((0, 0, 0.5, 1), (0.5, 0, 1, 1)) == 0


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.1, 0.2, 0.5, 0.9]", (0.1, 0.2, 0.5, 0.9)),
        ("It is at [.1,.2,.5,1.0].", (0.1, 0.2, 0.5, 1.0)),
        ("[0.5, 0.2, 0.1, 0.9]", None),
        ("[0.1, 0.2, 0.5]", None),
        ("left", None),
        ("", None),
    ],
)
def test_a_box_is_parsed_or_the_answer_is_wrong(text, box):
    assert scoring.parse_box(text) == box
    reference = item(0, "[0.1, 0.2, 0.5, 0.9]", task="box", kind="box", choices=())
    assert scoring.is_correct(reference, text) == (box is not None)


def test_the_likeliest_choice_is_the_answer_and_scores_must_match_choices():
    assert scoring.most_likely([item(0, "2")], [[-3.0, -1.0, -2.0]]) == ["2"]
    with pytest.raises(ValueError, match="3 choices and 2 scores"):
        scoring.most_likely([item(0, "2")], [[-3.0, -1.0]])


def test_majority_is_taken_within_a_kind():
    train = [
        item(i, answer, kind=kind)
        for i, (kind, answer) in enumerate([("a", "1")] * 3 + [("b", "2")] * 2)
    ]
    assert scoring.majority(train, [item(0, "2", kind="b"), item(1, "2", kind="a")]) == ["2", "1"]
    assert scoring.majority(train, [item(0, "2", kind="new")]) == ["1"], (
        "an unknown kind gets the first choice"
    )


def test_majority_of_boxes_is_the_constant_box_that_is_right_most_often():
    corner, middle, wide = "[0.0, 0.0, 0.4, 0.4]", "[0.3, 0.3, 0.7, 0.7]", "[0.2, 0.3, 0.7, 0.7]"
    train = [
        item(i, text, task="box", kind="box", choices=())
        for i, text in enumerate([corner, middle, wide, middle])
    ]
    asked_otherwise = item(9, corner, task="box", kind="box", choices=(), question="The square?")
    assert scoring.majority(train, train[:1]) == [
        wide
    ]  # right for itself and for both in the middle
    assert scoring.majority([*train, asked_otherwise], [asked_otherwise]) == [corner]
    assert scoring.constant_box([]) == ""
    with pytest.raises(ValueError, match="not a box"):
        scoring.constant_box([corner, "left"])


def test_nearest_answers_as_the_nearest_picture_and_prefers_the_same_question():
    train = [
        item(0, "1", shade=1),
        item(1, "2", shade=8),
        item(2, "3", shade=8, question="How many bars are there?"),
    ]
    assert scoring.nearest(train, [item(0, "2", shade=7)]) == ["2"]
    assert scoring.nearest(train, [item(0, "2", shade=1, question="How many bars are there?")]) == [
        "3"
    ]
    assert scoring.nearest(train, [item(0, "2", shade=8, question="New?")]) == ["2"]


@given(st.integers(2, 30), st.integers(0, 5))
def test_every_item_is_shown_the_picture_of_another_item_of_its_task(count, seed):
    items = [item(i, "1", task=("a", "b")[i % 2]) for i in range(2 * count)]
    indices = scoring.shuffled_indices(items, seed)
    assert sorted(indices) == list(range(2 * count))
    assert all(
        index != shown and items[index].task == items[shown].task
        for index, shown in enumerate(indices)
    )


def test_a_task_of_one_item_cannot_be_shuffled():
    with pytest.raises(ValueError, match="one item"):
        scoring.shuffled_indices([item(0, "1")], 0)


def test_pixel_features_do_not_see_brightness_or_contrast():
    picture = np.random.default_rng(0).integers(0, 100, (16, 16, 3)).astype(np.uint8)
    first, brighter = scoring.pixel_features([picture, picture + 50])
    assert np.allclose(first, brighter, atol=1e-6) and np.linalg.norm(first) == pytest.approx(
        1, abs=1e-5
    )


@pytest.mark.parametrize("against", ["blind", "shuffled"])
@pytest.mark.parametrize(
    ("share", "verdict"), [(1.0, "above"), (0.5, "no difference seen"), (0.0, "below")]
)
def test_a_task_is_said_to_beat_a_baseline_only_if_the_interval_does(share, verdict, against):
    items = [item(i, "1") for i in range(100)]
    blind = np.arange(100) % 2 == 0
    model = np.roll(blind, 1) if share == 0.5 else np.full(100, share == 1.0)
    right = {"model": model, "blind": blind, "shuffled": blind}
    right |= {
        "shuffled" if against == "blind" else "blind": model
    }  # the other one tells nothing apart
    row = scoring.gains(items, right, paired_bootstrap, model="model", seed=0, against=against).loc[
        "count"
    ]
    assert row["verdict"].startswith(verdict) and row[f"minus {against}"] == model.mean() - 0.5
    right["blind"] = blind
    rows = scoring.scores(items, right, bootstrap_interval)
    assert rows.loc[rows["answerer"] == "blind", "value"].item() == 0.5 and set(rows["items"]) == {
        100
    }


def test_a_question_counts_by_the_share_of_seeds_that_answer_it_correctly():
    items = [item(i, "1") for i in range(4)]
    answers = [
        {"model": ["1", "1", "2", "2"], "blind": ["2"] * 4},
        {"model": ["1", "2", "2", "2"], "blind": ["1"] * 4},
    ]
    right = scoring.correct_over_seeds(items, answers)
    assert right["model"].tolist() == [1.0, 0.5, 0.0, 0.0] and right["blind"].tolist() == [0.5] * 4
    assert (
        scoring.gains(items, right, paired_bootstrap, model="model", seed=0).loc[
            "count", "minus blind"
        ]
        == -0.125
    )


def test_popes_measures_distinguish_a_constant_yes_from_correct_answers():
    items = [
        item(i, "yes" if i % 2 else "no", task="presence", kind="random", choices=("yes", "no"))
        for i in range(10)
    ]
    constant = scoring.presence_table(items, ["yes"] * 10).loc["random"]
    assert (constant["accuracy"], constant["recall"], constant["answered yes"]) == (0.5, 1.0, 1.0)
    perfect = scoring.presence_table(items, [one.answer for one in items]).loc["random"]
    assert perfect["F1"] == perfect["accuracy"] == 1.0
    assert constant["F1 of always yes"] == constant["F1"] == pytest.approx(2 / 3)
    never = scoring.presence_table(items, ["no"] * 10).loc["random"]
    assert never["F1"] == 0.0


def test_a_rule_that_wins_is_said_with_the_tasks_on_which_it_does():
    compared = pd.DataFrame(
        {"model": [0.8, 0.3, 0.4], "nearest": [0.5, 0.9, 0.45]},
        index=["colour", "side", "count"],
    ).assign(verdict=["above nearest", "below nearest", "no difference seen"])
    said = scoring.rule_summary(compared, "nearest")
    assert "higher than the model on 2 of 3 tasks (side, count; beyond the interval: side)" in said
    assert said.endswith("interval included, on 1: colour.")
    table = pd.DataFrame({"F1": [0.5, 0.8], "F1 of always yes": [0.67, 0.6]}, index=["a", "b"])
    assert "for 1 of 2 kinds of negatives: a." in scoring.presence_summary(table)


def test_a_gap_around_zero_is_not_called_use_of_the_picture():
    assert "uses it." in scoring.caption_gap_in_words((0.01, 0.003, 0.02))
    assert "is not seen to use it." in scoring.caption_gap_in_words((0.01, -0.003, 0.02))


def test_the_summary_names_the_tasks_that_need_their_own_picture():
    none = scoring.picture_summary([], [], num_tasks=9)
    assert none == "0 of 9 tasks are answered better with the picture than without."
    some = scoring.picture_summary(["side", "count"], ["side"], num_tasks=9)
    assert some.startswith("2 of 9 tasks") and "another question's picture: side." in some
    assert "picture: none." in scoring.picture_summary(["side"], [], num_tasks=9)
