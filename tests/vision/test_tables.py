"""`moxin_lab.vision.tables`: counts and answers are those of the questions, in their order."""

import numpy as np

from moxin_lab.vision import tables
from moxin_lab.vision.data import Concept
from moxin_lab.vision.experiments import Questions
from moxin_lab.vision.tasks import Item

PICTURE = np.zeros((8, 8, 3), dtype=np.uint8)


def item(name, task, answer="yes"):
    return Item(name, task, "", f"{task}?", answer, ("yes", "no"), PICTURE)


def test_split_sizes_count_each_family_once():
    concepts = [Concept(str(i), family, "", "", {}, {}) for i, family in enumerate("aab")]
    table = tables.split_sizes({"train": concepts, "test": concepts[:1]})
    assert table.loc["train"].to_dict() == {"concepts": 3, "families": 2}
    assert table.loc["test"].to_dict() == {"concepts": 1, "families": 1}


def test_question_counts_have_one_row_per_task_with_its_first_test_question():
    train = [item("t0", "side")]
    test = [item("a", "side"), item("b", "count", "2"), item("c", "side", "no")]
    table = tables.question_counts(Questions(train, test))
    assert table.index.tolist() == ["side", "count"]
    assert table["train"].tolist() == [1, 0] and table["test"].tolist() == [2, 1]
    assert tables.example_of_each_task(test)["side"].id == "a"


def test_answers_have_one_row_per_seed_and_question():
    items = [item("a", "side"), item("b", "side", "no")]
    frame = tables.answers(
        items, [{"model": ["yes", "yes"]}, {"model": ["no", "no"]}], first_seed=5
    )
    assert frame.loc[6, "model"].tolist() == ["no", "no"]
    assert frame.loc[5, "truth"].tolist() == ["yes", "no"]
    assert frame.index.get_level_values("seed").tolist() == [5, 5, 6, 6]
