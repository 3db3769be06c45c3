"""Charts drawn from real tables, with questions whose answers are computed from the drawn numbers.

    tables of vega_datasets
      --> series: a title, 2 to 6 labels, their values
      --> a chart in one of six styles
      --> questions

Columns of `data_cards/charts` (train, test_tables and test_styles, one file each):

    id         string   unique over the files
    table      string   the table of vega_datasets
    title      string   as printed above the chart
    kind       string   bar, line or pie
    style      string   a key of `STYLES`
    labels     list<string>    from left to right (pie: anticlockwise from the right)
    values     list<float64>   as drawn: rounded to three digits
    colours    list<string>    names from `COLOURS`, one per mark; a line has a single one
    questions  list<struct<task, question, answer, choices: list<string>, pixels: int64>>
    pixels_sha256  string   SHA-256 of the decoded RGB pixels, row by row
    png        binary   192 x 192 pixels

`choices` is empty where the answer is a label or a number to read. `pixels` is the smallest edge of
the image at which a person can read the answer: 64 for colours, counts and trends, 192 for text.

Guarantees: train has no chart of a table in `HELD_OUT_TABLES` or in a style of `HELD_OUT_STYLES`;
test_tables has only those tables, in styles of train; test_styles has only those styles, of tables
of train. Two values that a question compares differ by at least 8 % of the chart's largest. No date
or version is written into an image.
Out of scope: the same PNG bytes under another matplotlib, FreeType, NumPy or Pillow. Compare
`pixels_sha256` and the questions instead.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from moxin_lab.data.archives import Files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.font_manager import FontProperties

PIXELS = 192
COLOURS = {
    "red": "#d62728",
    "orange": "#ff8c00",
    "yellow": "#f2d600",
    "green": "#2ca02c",
    "blue": "#1f5fd6",
    "purple": "#8e44ad",
    "pink": "#ff7fbf",
    "brown": "#7b4a2d",
}
STYLES: dict[str, dict[str, Any]] = {
    "plain": {"background": "#ffffff", "ink": "#000000", "grid": False, "edge": None, "width": 0.7},
    "grid": {"background": "#ffffff", "ink": "#333333", "grid": True, "edge": None, "width": 0.6},
    "grey": {"background": "#e6e6e6", "ink": "#222222", "grid": True, "edge": None, "width": 0.8},
    "outlined": {
        "background": "#fffdf5",
        "ink": "#000000",
        "grid": False,
        "edge": "#000000",
        "width": 0.9,
    },
    "dark": {"background": "#1c1c1c", "ink": "#eeeeee", "grid": False, "edge": None, "width": 0.7},
    "slate": {
        "background": "#2f3b47",
        "ink": "#ffffff",
        "grid": True,
        "edge": "#ffffff",
        "width": 0.5,
    },
}
HELD_OUT_STYLES = ("dark", "slate")
HELD_OUT_TABLES = ("iowa-electricity", "crimea", "driving")
LEAST_GAP = 0.08
"""Smallest difference of two values that are compared, as a share of the largest value."""
_CHARTS = {"train": 420, "test_tables": 110, "test_styles": 110}

_QUESTION = pa.struct(
    [(name, pa.string()) for name in ("task", "question", "answer")]
    + [("choices", pa.list_(pa.string())), ("pixels", pa.int64())]
)
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "table", "title", "kind", "style")]
    + [
        ("labels", pa.list_(pa.string())),
        ("values", pa.list_(pa.float64())),
        ("colours", pa.list_(pa.string())),
    ]
    + [("questions", pa.list_(_QUESTION)), ("pixels_sha256", pa.string()), ("png", pa.binary())]
)


class Series(NamedTuple):
    """What a chart shows.

    A hash of its text form chooses the drawing: a renamed field would change every chart.
    """

    table: str
    title: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    ordered: bool
    """Whether the labels are points in time, so that a line may connect them."""


def tables(contents: list[Files]) -> dict[str, pa.Table]:
    """The three tables, from the files of vega_datasets' source archive.

    Raises KeyError for a table that is not in the archive.
    """
    (files,) = contents
    all_series = sorted(set(series(files)), key=lambda shown: _digest(str(shown)))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _CHARTS}
    for index, shown in enumerate(all_series):
        held_out = shown.table in HELD_OUT_TABLES
        # Of the series of train's tables, a fifth is drawn in the held-out styles only.
        split = "test_tables" if held_out else "train" if index % 5 else "test_styles"
        for repeat in range(4):
            if len(rows[split]) < _CHARTS[split]:
                rows[split].append(_row(shown, split, repeat))
    return {
        f"{split}.parquet": pa.Table.from_pylist(split_rows, schema=SCHEMA)
        for split, split_rows in rows.items()
    }


def _row(shown: Series, split: str, repeat: int) -> dict[str, Any]:
    rng = np.random.default_rng(int.from_bytes(_digest(f"{shown} {repeat}")[:8], "big"))
    style = rng.choice(
        [name for name in STYLES if (name in HELD_OUT_STYLES) == (split == "test_styles")]
    )
    kinds = ["line", "line", "bar"] if shown.ordered else ["bar", "bar"]
    if not shown.ordered and min(shown.values) > 0.05 * sum(shown.values):
        kinds += ["pie"]
    kind = str(rng.choice(kinds))
    count = 1 if kind == "line" else len(shown.labels)
    colours = [str(name) for name in rng.permutation(list(COLOURS))[:count]]
    pixels = draw(shown, kind, str(style), colours)
    return {
        "id": f"{shown.table}-{_digest(f'{shown} {repeat}').hex()[:12]}",
        "table": shown.table,
        "title": shown.title,
        "kind": kind,
        "style": str(style),
        "labels": list(shown.labels),
        "values": list(shown.values),
        "colours": colours,
        "questions": list(questions(shown, kind, colours, rng)),
        "pixels_sha256": pixels_sha256(pixels),
        "png": _png(pixels),
    }


# ---- the numbers


def series(files: Files) -> Iterator[Series]:
    """The series of all ten tables that can be drawn; see `_series_if_clear`."""
    barley = _read(files, "barley.json")
    for (site, year), part in barley.groupby(["site", "year"], sort=True):
        part = part.sort_values("variety").set_index("variety")["yield"]
        for start in (0, 3, 5):
            yield from _series_if_clear(
                "barley", f"Yield, {site} {year}", part.iloc[start : start + 5], False
            )
    weather = _read(files, "seattle-weather.csv")
    weather["date"] = pd.to_datetime(weather["date"])
    for (year, name), part in (
        ((year, name), part[name].groupby(part["date"].dt.month).mean())
        for year, part in weather.groupby(weather["date"].dt.year)
        for name in ("precipitation", "temp_max", "wind")
    ):
        yield from _windows("seattle-weather", f"{name}, Seattle {year}", part.rename(_month), 5)
    stocks = _read(files, "stocks.csv")
    stocks["year"] = pd.to_datetime(stocks["date"], format="%b %d %Y").dt.year
    prices = stocks.pivot_table(index="year", columns="symbol", values="price", aggfunc="mean")
    for symbol in prices:
        yield from _windows("stocks", f"Price, {symbol}", prices[symbol].dropna(), 5)
    for year, part in prices.iterrows():
        yield from _series_if_clear("stocks", f"Price, {year}", part.dropna(), False)
    cars = _read(files, "cars.json")
    cars["year"] = cars["Year"].str[:4]
    for name in ("Miles_per_Gallon", "Horsepower", "Weight_in_lbs", "Acceleration"):
        for key in ("Origin", "Cylinders"):
            for year, part in cars.groupby("year"):
                yield from _series_if_clear(
                    "cars", f"{name}, {year}", part.groupby(key)[name].mean().dropna(), False
                )
    work = _read(files, "us-employment.csv").set_index("month")
    sectors = [
        "construction",
        "manufacturing",
        "retail_trade",
        "information",
        "financial_activities",
        "government",
    ]
    for month in work.index[::6]:
        for start in (0, 1, 2):
            yield from _series_if_clear(
                "us-employment",
                f"Jobs, {month[:7]}",
                work.loc[month, sectors[start : start + 4]],
                False,
            )
    wheat = _read(files, "wheat.json").set_index("year")["wheat"]
    yield from _windows("wheat", "Price of wheat", wheat, 5)
    states = _read(files, "airports.csv")["state"].value_counts().sort_index()
    for start in range(0, len(states) - 4, 2):
        yield from _series_if_clear(
            "airports", "Airports by state", states.iloc[start : start + 2 + start % 5], False
        )
    energy = _read(files, "iowa-electricity.csv")
    energy["year"] = energy["year"].str[:4]
    for source, part in energy.groupby("source"):
        yield from _windows(
            "iowa-electricity", f"{source}, Iowa", part.set_index("year")["net_generation"], 5
        )
    for year, part in energy.groupby("year"):
        yield from _series_if_clear(
            "iowa-electricity",
            f"Electricity, {year}",
            part.set_index("source")["net_generation"],
            False,
        )
    crimea = _read(files, "crimea.json").set_index("date")
    for name in ("wounds", "disease", "other"):
        yield from _windows(
            "crimea", f"Deaths by {name}", crimea[name].rename(lambda date: date[2:7]), 4
        )
    driving = _read(files, "driving.json").set_index("year")
    for name in ("miles", "gas"):
        yield from _windows("driving", f"{name}, United States", driving[name], 5)


def _read(files: Files, name: str) -> pd.DataFrame:
    content = {
        path.rpartition("vega_datasets/_data/")[2]: content for path, content in files.items()
    }[name]
    return (
        pd.DataFrame(json.loads(content))
        if name.endswith(".json")
        else pd.read_csv(io.BytesIO(content))
    )


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _month(number: int) -> str:
    return _MONTHS[number - 1]


def _windows(table: str, title: str, values: pd.Series, size: int) -> Iterator[Series]:
    """Windows of 3 to `size` points in order, each starting two points after the last one."""
    for start in range(0, len(values) - 2, 2):
        yield from _series_if_clear(
            table, title, values.iloc[start : start + 3 + start // 2 % (size - 2)], True
        )


def _series_if_clear(table: str, title: str, values: pd.Series, ordered: bool) -> Iterator[Series]:
    """The series, if a chart of it would be clear.

    It is not if there are fewer than two values, if one is negative, or if the two highest or the
    two lowest are too close to distinguish.
    """
    rounded = tuple(float(f"{value:.3g}") for value in values)
    ranked = sorted(rounded)
    if len(rounded) < 2 or ranked[0] < 0 or ranked[-1] <= 0:
        return
    gaps = (ranked[-1] - ranked[-2], ranked[1] - ranked[0])
    if min(gaps) >= LEAST_GAP * ranked[-1]:
        labels = tuple(str(label).replace("_", " ")[:14] for label in values.index)
        yield Series(table, title.replace("_", " "), labels, rounded, ordered)


# ---- the drawing


def draw(shown: Series, kind: str, style: str, colours: list[str]) -> np.ndarray:
    """The chart as `[PIXELS, PIXELS, 3]` uint8."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    look = STYLES[style]
    # matplotlib's own font file: the system's version of the family may differ.
    font_file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = FontProperties(fname=str(font_file), size=5)
    fill = [COLOURS[name] for name in colours]
    with matplotlib.rc_context(rc=dict(matplotlib.rcParamsDefault) | {"backend": "agg"}):
        figure = Figure(figsize=(2, 2), dpi=PIXELS / 2, facecolor=look["background"])
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0.16, 0.16, 0.8, 0.72), facecolor=look["background"])
        axes.set_title(shown.title, fontproperties=font, color=look["ink"], pad=3)
        if kind == "pie":
            _draw_pie(axes, shown, look, fill, font)
        else:
            _draw_axes(axes, shown, kind, look, fill, font)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_pie(
    axes: "Axes", shown: Series, look: dict[str, Any], fill: list[str], font: "FontProperties"
) -> None:
    names: Any = list(shown.labels)
    edge = {"edgecolor": look["edge"] or look["background"], "linewidth": 0.7}
    _, texts = axes.pie(
        shown.values, colors=fill, labels=names, wedgeprops=edge, labeldistance=1.05, radius=0.7
    )
    for text in texts:
        text.set(fontproperties=font, color=look["ink"])


def _draw_axes(
    axes: "Axes",
    shown: Series,
    kind: str,
    look: dict[str, Any],
    fill: list[str],
    font: "FontProperties",
) -> None:
    """A bar or line chart, with its values written above the marks."""
    positions = np.arange(len(shown.values))
    if kind == "bar":
        axes.bar(
            positions,
            shown.values,
            look["width"],
            color=fill,
            edgecolor=look["edge"],
            linewidth=0.7,
            zorder=2,
        )
    else:
        axes.plot(
            positions, shown.values, color=fill[0], linewidth=3, marker="o", markersize=5, zorder=2
        )
    for position, value in zip(positions, shown.values, strict=True):
        axes.annotate(
            f"{value:g}",
            (position, value),
            (0, 4),
            textcoords="offset points",
            ha="center",
            fontproperties=font,
            color=look["ink"],
        )
    axes.set(ylim=(0, 1.15 * max(shown.values)), xlim=(-0.6, len(positions) - 0.4))
    axes.set_xticks(positions, shown.labels, fontproperties=font, rotation=20, color=look["ink"])
    axes.tick_params(colors=look["ink"], length=2, pad=1)
    for text in axes.get_yticklabels():
        text.set(fontproperties=font, color=look["ink"])
    if look["grid"]:
        axes.grid(True, axis="y", color="#9a9a9a", linewidth=0.5)
    for side, spine in axes.spines.items():
        spine.set(color=look["ink"], visible=side in ("left", "bottom"))


def _png(pixels: np.ndarray) -> bytes:
    """A PNG with a palette of 48 colours, so its pixels may differ slightly from `pixels`."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).quantize(
        48, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
    ).save(out, format="PNG", optimize=True)
    return out.getvalue()


def pixels_sha256(pixels: np.ndarray) -> str:
    """SHA-256 of the RGB pixels in a chart's PNG, which are those of its palette."""
    from PIL import Image

    shown = np.asarray(Image.open(io.BytesIO(_png(pixels))).convert("RGB"))
    return hashlib.sha256(shown.tobytes()).hexdigest()


# ---- the questions


def questions(
    shown: Series, kind: str, colours: list[str], rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """The questions about a chart, each with its exact answer.

    rng: chooses the marks that are compared, and the one whose value is asked for.
    """
    top, bottom = int(np.argmax(shown.values)), int(np.argmin(shown.values))
    marks = {"bar": "bars", "line": "points", "pie": "slices"}[kind]
    yield _ask("chart kind", "What kind of chart is this?", kind, ["bar", "line", "pie"], 64)
    counts = [str(number) for number in range(2, 7)]
    yield _ask("chart count", f"How many {marks} are there?", str(len(shown.values)), counts, 64)
    if kind == "line":
        rises = "yes" if shown.values[-1] > shown.values[0] else "no"
        if abs(shown.values[-1] - shown.values[0]) >= LEAST_GAP * max(shown.values):
            yield _ask(
                "chart trend", "Does the line end higher than it begins?", rises, ["yes", "no"], 64
            )
        yield _ask("chart colour", "Which colour is the line?", colours[0], list(COLOURS), 64)
    else:
        mark, higher, highest, lowest = (
            ("slice", "larger", "largest", "smallest")
            if kind == "pie"
            else ("bar", "higher", "highest", "lowest")
        )
        yield _ask(
            "chart highest",
            f"Which colour is the {highest} {mark}?",
            colours[top],
            list(COLOURS),
            64,
        )
        yield _ask(
            "chart lowest",
            f"Which colour is the {lowest} {mark}?",
            colours[bottom],
            list(COLOURS),
            64,
        )
        a, b = (int(mark_index) for mark_index in rng.permutation(len(shown.values))[:2])
        if abs(shown.values[a] - shown.values[b]) >= LEAST_GAP * max(shown.values):
            answer = "yes" if shown.values[a] > shown.values[b] else "no"
            question = f"Is the {colours[a]} {mark} {higher} than the {colours[b]} {mark}?"
            yield _ask("chart compare", question, answer, ["yes", "no"], 64)
    superlative = "largest" if kind == "pie" else "highest"
    yield _ask(
        "chart label", f"Which label has the {superlative} value?", shown.labels[top], [], PIXELS
    )
    if kind != "pie":
        position = int(rng.integers(len(shown.values)))
        yield _ask(
            "chart value",
            f"What is the value at {shown.labels[position]}?",
            f"{shown.values[position]:g}",
            [],
            PIXELS,
        )


def _ask(task: str, question: str, answer: str, choices: list[str], pixels: int) -> dict[str, Any]:
    return {
        "task": task,
        "question": question,
        "answer": answer,
        "choices": choices,
        "pixels": pixels,
    }


def _digest(text: str) -> bytes:
    return hashlib.sha256(f"charts {text}".encode()).digest()
