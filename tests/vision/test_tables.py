"""`moxin_lab.vision.tables`: counts and answers are those of the questions, in their order."""

import numpy as np

from moxin_lab.vision import tables
from moxin_lab.vision.data import Concept
from moxin_lab.vision.experiments import Questions
from moxin_lab.vision.prompts import encode_example
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


def test_samples_are_questions_of_the_first_seed_spread_over_all():
    items = [item(str(i), "side") for i in range(8)]
    frame = tables.answers(items, [{"model": list("abcdefgh")}, {"model": ["z"] * 8}], first_seed=3)
    sample = tables.sample_answers(items, frame, count=2)
    assert sample.index.tolist() == ["2", "6"] and sample["model"].tolist() == ["c", "g"]
    assert sample["question"].tolist() == ["side?", "side?"]


def test_tokens_say_which_carry_loss(byte_tokenizer):
    example = Item("0", "side", "", "a b", "left", (), PICTURE).example()
    encoded = encode_example(byte_tokenizer, example, stage="finetune", max_tokens=64)
    tokens = tables.tokens_with_loss(encoded, byte_tokenizer)
    assert tokens[0] == ("<s>", False)
    assert "".join(text for text, _ in tokens) == "<s>In:·a·b↵Out:·left</s>"
    assert [text for text, loss in tokens if loss] == [*"left", "</s>"]
