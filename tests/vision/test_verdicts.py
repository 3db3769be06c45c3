"""`moxin_lab.vision.verdicts`: measures are the numbers of the tables, and a task needs its own
picture only if it beats both.
"""

import numpy as np
import pandas as pd

from moxin_lab.evaluation.statistics import paired_bootstrap, wilson_interval
from moxin_lab.vision import retrieval, scoring, verdicts
from moxin_lab.vision.tasks import Item

PICTURE = np.zeros((4, 4, 3), np.uint8)


def compared():
    items = [Item(f"{t}{i}", t, t, "?", "a", ("a",), PICTURE) for t in "xy" for i in range(40)]
    right = {name: np.zeros(80) for name in ("model", *scoring.BASELINES)}
    right["model"][:] = 1.0
    right["shuffled"][40:] = 1.0  # on y another's picture does as well
    right["nearest"][40:] = 1.0
    return {
        name: scoring.gains(items, right, paired_bootstrap, model="model", seed=0, against=name)
        for name in scoring.BASELINES
    }


def test_a_task_needs_its_own_picture_if_the_model_is_above_blind_and_shuffled():
    tables = compared()
    assert verdicts.needs_its_own_picture(tables["blind"], tables["shuffled"]) == ["x"]


def test_every_baseline_is_measured_and_counted():
    numbers = {
        (one.name, one.labels.get("task")): one.value for one in verdicts.of_scores(compared())
    }
    assert numbers["task_accuracy", "x"] == 1 and numbers["minus_nearest", "x"] == 1
    assert numbers["minus_nearest", "y"] == 0
    assert numbers["tasks_above_blind", None] == 2 and numbers["tasks_above_nearest", None] == 1
    assert numbers["tasks_below_majority", None] == 0
    assert numbers["tasks_above_blind_and_shuffled", None] == 1


def test_recall_is_measured_with_one_headline_and_nothing_without_a_text_encoder():
    vectors = np.eye(8)
    table = retrieval.recall_table(vectors, {"en": vectors, "zh": vectors}, wilson_interval)
    numbers = verdicts.of_recall(table)
    assert [one.labels for one in numbers if one.labels.get("headline")] == [
        {"language": "en", "direction": "image to text", "k": 5, "headline": True}
    ]
    assert numbers[-1].name == "recall_over_chance" and numbers[-1].value == 8 / 5
    assert verdicts.of_recall(pd.DataFrame()) == []


def test_the_claims_about_the_published_model_are_not_attempted_and_say_what_is_missing():
    said = verdicts.not_attempted(2400, published_data=False)
    assert {verdict for verdict, _ in said.values()} == {"not attempted"}
    assert "2,400 instructions about drawings" in said["vlm.prismatic"][1]
    assert (
        "drawings" not in verdicts.not_attempted(665_000, published_data=True)["vlm.prismatic"][1]
    )
