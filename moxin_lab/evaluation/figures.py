"""Figures of notebook 08 from the tables of results.py, and the same figures in words.

Guarantees: a figure's text alternative is made from the same values as the figure.
Out of scope: computing a number (results.py).
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from moxin_lab.evaluation.cloze import NUM_CHOICES
from moxin_lab.evaluation.results import METRICS, bits_wide, cloze_pooled
from moxin_lab.lab.show import PHONE_WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "D", "^")


def averages(printed: pd.Series) -> "Figure":
    """Printed averages by model as points in order, Moxin's filled; one row per model."""
    import matplotlib.pyplot as plt

    ordered = printed.sort_values()
    moxin = ordered.index.str.contains("Moxin")
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 0.9 + 0.3 * len(ordered)))
    places = np.arange(len(ordered))
    for filled, label in ((False, "other models"), (True, "Moxin's models")):
        chosen = moxin == filled
        axes.plot(
            ordered[chosen],
            places[chosen],
            "D" if filled else "o",
            color="#0072B2",
            markerfacecolor="#0072B2" if filled else "white",
            label=label,
        )
    for place, value in zip(places, ordered, strict=True):
        axes.annotate(
            f"{value:g}",
            (value, place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
        )
    axes.set_yticks(places, ordered.index)
    axes.set_xlabel("printed average, %")
    axes.set_xlim(ordered.min() - 1, ordered.max() + 2.5)
    axes.legend(loc="lower right")
    return figure


def averages_alt(printed: pd.Series) -> str:
    """The figure of `averages` in words."""
    ordered = printed.sort_values(ascending=False)
    return "Printed averages: " + ", ".join(f"{name} {value:g}" for name, value in ordered.items())


def averages_finding(printed: pd.Series) -> str:
    """What `averages` shows, in a sentence for its caption."""
    near = sum(
        any(abs(value - other) < 1 for other in printed.drop(name))
        for name, value in printed.items()
    )
    return (
        f"The highest printed average is {printed.max():g} % ({printed.idxmax()}); {near} of "
        f"{len(printed)} rows lie within one point of another."
    )


def bits_figure(table: pd.DataFrame) -> "Figure":
    """Bits per byte by language: one marker per model, whiskers for the intervals."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 3.6))
    _points(axes, table, "bits_per_byte")
    axes.set_ylabel("bits per byte (lower is better)")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("language of the held-out text")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


def bits_alt(table: pd.DataFrame) -> str:
    """The figure of `bits_figure` in words."""
    rows = [
        f"{language}: " + ", ".join(f"{model} {value:.2f}" for model, value in row.items())
        for language, row in bits_wide(table).iterrows()
    ]
    return f"Held-out bits per byte by language. {'. '.join(rows)}."


def cloze_figure(table: pd.DataFrame) -> "Figure":
    """Cloze accuracy by language: one panel per metric, with a line at chance."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 1, figsize=(PHONE_WIDTH, 5.8), sharex=True, sharey=True)
    for axes, (metric, title) in zip(panels, METRICS.items(), strict=True):
        part = table[table["metric"] == metric]
        percent = part.assign(**{name: 100 * part[name] for name in ("accuracy", "low", "high")})
        axes.axhline(
            100 / NUM_CHOICES, color="black", linewidth=1.2, linestyle="--", label="chance, 25 %"
        )
        _points(axes, percent, "accuracy")
        axes.set_title(f"{metric}: choice {title}", pad=4, fontsize=10)
        axes.set_ylabel("correct answers, %")
        top = max(100 / NUM_CHOICES, 100 * table["high"].max())
        axes.set_ylim(0, min(100, 1.1 * top))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        [*handles[1:], handles[0]], [*labels[1:], labels[0]], loc="outside upper center", ncols=2
    )
    panels[-1].set_xlabel("language of the held-out text")
    return figure


def cloze_alt(table: pd.DataFrame) -> str:
    """The figure of `cloze_figure` in words."""
    values = "; ".join(
        f"{model} {metric} {text}" for (model, metric), text in cloze_pooled(table)["text"].items()
    )
    return (
        "Share of correct answers by language and model, chance 25 %. All languages together: "
        f"{values}."
    )


def _points(axes: "Axes", table: pd.DataFrame, column: str) -> None:
    languages = list(dict.fromkeys(table["language"]))
    models = list(dict.fromkeys(table["model"]))
    for index, (model, marker) in enumerate(zip(models, MARKERS, strict=False)):
        part = table[table["model"] == model].set_index("language").loc[languages]
        positions = np.arange(len(languages)) + 0.18 * (index - (len(models) - 1) / 2)
        whiskers = np.abs(part[["low", "high"]].to_numpy().T - part[column].to_numpy())
        axes.errorbar(
            positions,
            part[column],
            yerr=whiskers,
            fmt=marker,
            markersize=6,
            linewidth=1.4,
            capsize=2.5,
            label=model,
        )
    axes.set_xticks(np.arange(len(languages)), languages)
    axes.grid(axis="x", visible=False)
