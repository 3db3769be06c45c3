"""Emoji and their card: families are in one split, drawings are intact, names in 28 languages."""

import io
import re
from collections import defaultdict

import pytest
from PIL import Image

from moxin_lab.data import emoji
from moxin_lab.data.card_files import read_card

SPLITS = ("train", "validation", "test", "flags")


@pytest.fixture(scope="module")
def splits(repository):
    folder = repository / "data_cards" / "emoji" / "data"
    return {split: read_card(folder / f"{split}.parquet").to_pylist() for split in SPLITS}


@pytest.fixture(scope="module")
def rows(splits):
    return [{**row, "split": split} for split, part in splits.items() for row in part]


def english(row):
    return next(text["label"] for text in row["texts"] if text["language"] == "en")


def test_no_family_is_in_two_splits_and_no_concept_occurs_twice(rows):
    where = defaultdict(set)
    for row in rows:
        where[row["family"]].add(row["split"])
    assert all(len(in_splits) == 1 for in_splits in where.values())
    assert len({row["concept"] for row in rows}) == len(rows) == 1906


@pytest.mark.parametrize(
    "siblings",
    [
        [
            "man running",
            "woman running",
            "person running",
            "person running: facing right",
            "man running: facing right",
        ],
        ["man astronaut", "woman astronaut", "astronaut"],
        ["cat", "black cat"],
        ["backhand index pointing left", "backhand index pointing right", "index pointing up"],
        ["three o’clock", "nine-thirty"],
        ["left arrow", "right arrow", "down-right arrow"],
        ["girl", "family: man, woman, girl"],
        ["polar bear", "bear"],
        ["old man", "baby", "girl"],
        ["Santa Claus", "Mrs. Claus", "Mx Claus"],
        ["left-facing fist", "right-facing fist"],
    ],
)
def test_versions_by_gender_age_direction_and_joiner_are_one_family(rows, siblings):
    family = {english(row): row["family"] for row in rows}
    assert len({family[name] for name in siblings}) == 1


def test_different_things_are_different_families(rows):
    family = {english(row): row["family"] for row in rows}
    others = [
        "locomotive",
        "train",
        "cat",
        "dog",
        "astronaut",
        "person running",
        "three o’clock",
        "left arrow",
        "girl",
    ]
    assert len({family[name] for name in others}) == len(others)


def test_a_joined_sequence_is_in_the_family_of_its_first_part_that_is_no_person(rows):
    family = {row["concept"]: row["family"] for row in rows}
    joined = [concept for concept in family if "200D" in concept]
    assert len(joined) > 200
    for concept in joined:
        first = concept.split("-200D-")[0]
        for simple in (first, first.removesuffix("-FE0F")):
            if simple in family and simple not in emoji._PERSONS:
                assert family[concept] == family[simple], concept


def test_flags_are_in_a_separate_file_and_large_families_in_train(rows):
    assert all((row["category"] == "Flags") <= (row["split"] == "flags") for row in rows)
    members = defaultdict(list)
    for row in rows:
        members[row["family"]].append(row["split"])
    large = [in_splits for in_splits in members.values() if len(in_splits) > emoji.LARGE_FAMILY]
    assert {in_splits[0] for in_splits in large} == {"train"}


def test_every_drawing_is_a_png_of_64_pixels_that_decodes(rows):
    for row in rows:
        for style in emoji.STYLES:
            image = Image.open(io.BytesIO(row[style]))
            image.load()
            assert image.format == "PNG" and max(image.size) <= 66, (
                row["concept"],
                style,
                image.size,
            )


def test_every_concept_has_a_name_in_every_language_and_nearly_all_are_in_its_script(rows):
    scripts = {
        "zh": "[\u4e00-\u9fff]",
        "ja": "[\u3041-\u30ff\u4e00-\u9fff]",
        "ko": "[\uac00-\ud7a3]",
    }
    for language, script in scripts.items():
        labels = [
            text["label"] for row in rows for text in row["texts"] if text["language"] == language
        ]
        assert len(labels) == len(rows)
        assert sum(bool(re.search(script, label)) for label in labels) > 0.95 * len(labels)
    assert all([text["language"] for text in row["texts"]] == list(emoji.LANGUAGES) for row in rows)


def test_the_split_of_a_family_does_not_depend_on_the_other_families():
    labels = {
        "1F600": "grinning face",
        "1F981": "lion",
        "1F468-200D-1F680": "man astronaut",
        "1F680": "rocket",
    }
    alone = {name: emoji.families({name: label})[name] for name, label in labels.items()}
    together = emoji.families(labels)
    assert together["1F981"] == alone["1F981"] == "1F981"
    assert together["1F680"] == together["1F468-200D-1F680"] == "1F468-200D-1F680"
    assert emoji.split_of("1F981", 1) == emoji.split_of("1F981", 2)
    assert emoji.split_of("1F981", emoji.LARGE_FAMILY + 1) == "train"
