"""`moxin_lab.vision.experiments`: captions of a concept, and which concepts a question is about."""

from types import SimpleNamespace
from typing import get_args

import pytest

from moxin_lab import scales
from moxin_lab.vision import data, experiments, tasks


@pytest.fixture(scope="module")
def concepts(repository):
    return data.read_concepts(repository / "data_cards" / "emoji", "test")


def test_tower_captions_have_only_the_concepts_tags_and_half_omit_the_label(concepts):
    for one in concepts[:20]:
        captions = experiments.tower_captions(one, ("en", "ko"), seed=0, nameless=True)
        again = experiments.tower_captions(one, ("en", "ko"), seed=0, nameless=True)
        assert len(captions) == 12 and captions == again
        assert all(text.startswith(one.label()) for text in captions[:6:2])
        for text in captions[:6]:
            rest = text.removeprefix(one.label()).removeprefix(", ")
            assert (
                not rest
                or rest in ", ".join(one.names["en"][1])
                or set(rest.split(", ")) <= set(one.names["en"][1])
            )
    every_second = [
        text
        for one in concepts
        for text in experiments.tower_captions(one, ("en",), seed=0, nameless=True)[1::2]
    ]
    nameless = sum(
        not text.startswith(one.label())
        for one in concepts
        for text in experiments.tower_captions(one, ("en",), seed=0, nameless=True)
    )
    assert len(every_second) * 0.5 < nameless <= len(every_second)
    plain = [
        text for one in concepts for text in experiments.tower_captions(one, ("en", "en"), seed=0)
    ]
    assert len(plain) == 12 * len(concepts)
    assert all(
        text.startswith(one.label())
        for one in concepts
        for text in experiments.tower_captions(one, ("en",), seed=0)
    )


def test_test_questions_are_about_other_concepts_except_presence(repository, concepts):
    train = data.read_concepts(repository / "data_cards" / "emoji", "validation")
    settings = SimpleNamespace(
        tasks=(*tasks.TASKS, "chart"),
        train_items=4,
        test_items=4,
        towers=SimpleNamespace(image_size=32),
    )
    questions = experiments.questions(
        train, concepts, repository / "data_cards" / "charts", settings, seed=0
    )
    assert {item.task for item in questions.train} == {item.task for item in questions.test}
    labels = {one.label() for one in train} & {one.label() for one in concepts}
    captions = {item.answer for item in questions.train if item.task == "caption"}
    assert (
        not captions & {item.answer for item in questions.test if item.task == "caption"} - labels
    )


def test_questions_are_of_the_tasks_that_the_scale_names(repository, concepts):
    settings = scales.load("tiny").vision.model_copy(
        update={"tasks": ("count", "chart"), "train_items": 4, "test_items": 4}
    )
    charts = repository / "data_cards" / "charts"
    made = experiments.questions(concepts, concepts, charts, settings, seed=0)
    for part in made:
        assert [item.task for item in part] == ["count"] * 4 + ["chart"] * 4


def test_a_scale_may_name_every_task_and_no_other():
    named = get_args(get_args(scales.VisionSettings.model_fields["tasks"].annotation)[0])
    assert set(named) == {*tasks.TASKS, "chart"}
