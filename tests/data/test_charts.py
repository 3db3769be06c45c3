"""Charts and their card: answers follow from the numbers, images from the series, and tables and
styles of the tests are held out.
"""

import io
import warnings

import matplotlib
import numpy as np
import PIL
import pytest
from PIL import Image

from moxin_lab.data import charts
from moxin_lab.data.card_files import read_card

DRAWN_WITH = ("3.11", "13.")
"""Prefixes of the versions of matplotlib and Pillow that drew the card, as in requirements.lock."""


@pytest.fixture(scope="module")
def splits(repository):
    folder = repository / "data_cards" / "charts" / "data"
    return {
        name: read_card(folder / f"{name}.parquet").to_pylist()
        for name in ("train", "test_tables", "test_styles")
    }


@pytest.fixture(scope="module")
def rows(splits):
    return [row for split_rows in splits.values() for row in split_rows]


def test_tables_and_styles_of_the_tests_are_not_in_train(splits):
    assert {row["table"] for row in splits["test_tables"]} == set(charts.HELD_OUT_TABLES)
    assert not {row["table"] for row in splits["train"]} & set(charts.HELD_OUT_TABLES)
    assert {row["style"] for row in splits["test_styles"]} == set(charts.HELD_OUT_STYLES)
    assert not {row["style"] for row in splits["train"] + splits["test_tables"]} & set(
        charts.HELD_OUT_STYLES
    )
    drawn = {
        name: {(row["title"], *row["values"]) for row in split_rows}
        for name, split_rows in splits.items()
    }
    assert not drawn["train"] & drawn["test_styles"], "train has the series in another style"


def test_every_answer_follows_from_the_numbers(rows):
    for row in rows:
        values, colours = row["values"], row["colours"]
        for question in row["questions"]:
            expected = {
                "chart kind": lambda row=row: row["kind"],
                "chart count": lambda values=values: str(len(values)),
                "chart trend": lambda values=values: "yes" if values[-1] > values[0] else "no",
                "chart colour": lambda colours=colours: colours[0],
                "chart highest": lambda v=values, c=colours: c[v.index(max(v))],
                "chart lowest": lambda v=values, c=colours: c[v.index(min(v))],
                "chart label": lambda row=row, v=values: row["labels"][v.index(max(v))],
            }.get(question["task"])
            if expected:
                assert question["answer"] == expected(), (row["id"], question)
            elif question["task"] == "chart compare":
                first, second = (
                    values[colours.index(word)]
                    for word in question["question"].split()
                    if word in colours
                )
                assert question["answer"] == ("yes" if first > second else "no")
                assert abs(first - second) >= charts.LEAST_GAP * max(values)
            else:
                assert question["task"] == "chart value"
                assert float(question["answer"]) in values
            assert not question["choices"] or question["answer"] in question["choices"]


def test_bars_have_their_colours_and_the_bar_of_the_highest_value_is_highest(rows):
    seen = 0
    for row in rows:
        if row["kind"] != "bar":
            continue
        pixels = np.asarray(Image.open(io.BytesIO(row["png"])).convert("RGB")).astype(int)
        heights = []
        for name in row["colours"]:
            colour = np.array([int(charts.COLOURS[name][i : i + 2], 16) for i in (1, 3, 5)])
            lines = np.flatnonzero((np.abs(pixels - colour).sum(axis=2) < 40).any(axis=1))
            heights.append(lines.max() - lines.min() if len(lines) else 0)
        assert int(np.argmax(heights)) == int(np.argmax(row["values"])), row["id"]
        seen += 1
    assert seen > 200


def test_ids_are_unique_and_pixels_have_the_recorded_hash(rows):
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows[::20]:
        image = Image.open(io.BytesIO(row["png"]))
        assert image.size == (charts.PIXELS, charts.PIXELS) and not image.info.keys() & {
            "Software",
            "Creation Time",
        }
        shown = np.asarray(image.convert("RGB"))
        assert charts.hashlib.sha256(shown.tobytes()).hexdigest() == row["pixels_sha256"]


def test_a_chart_drawn_again_has_the_same_pixels(rows):
    if not (
        matplotlib.__version__.startswith(DRAWN_WITH[0])
        and PIL.__version__.startswith(DRAWN_WITH[1])
    ):
        pytest.skip(
            f"the card was drawn with matplotlib {DRAWN_WITH[0]} and Pillow {DRAWN_WITH[1]}, "
            "the versions of requirements.lock"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for row in rows[::64]:
            series = charts.Series(
                row["table"],
                row["title"],
                tuple(row["labels"]),
                tuple(row["values"]),
                ordered=False,
            )
            pixels = charts.draw(series, row["kind"], row["style"], row["colours"])
            assert charts.pixels_sha256(pixels) == row["pixels_sha256"]


def test_a_series_too_short_negative_or_with_a_tie_is_not_drawn():
    def drawn(*values):
        return list(charts._series_if_clear("table", "title", charts.pd.Series(values), False))

    assert (
        not drawn(5.0)
        and not drawn(-1.0, 5.0)
        and not drawn(5.0, 5.01, 2.0)
        and not drawn(0.0, 0.0)
    )
    (series,) = drawn(1.0, 5.0, 2.0)
    assert series.values == (1.0, 5.0, 2.0) and series.labels == ("0", "1", "2")
