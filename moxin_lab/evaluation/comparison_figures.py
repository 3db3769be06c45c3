"""Figures of the checkpoints' table, of long texts, and of what published tables rank.

Guarantees: a figure's text alternative and its finding are made from the values that it draws.
Out of scope: computing a number (stage_scores.py, long_context.py, rankings.py).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from moxin_lab.evaluation.long_context import NUM_CHOICES
from moxin_lab.evaluation.stage_scores import CHANCE, QUESTIONS
from moxin_lab.lab.show import PHONE_WIDTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moxin_lab.evaluation.published import Lead

MARKERS = ("o", "s", "D", "^", "v")


def checkpoints(shares: pd.DataFrame, majority: float) -> "Figure":
    """Share right by checkpoint, one panel per benchmark, with Wilson's intervals; a dashed line at
    chance, of the questions at `majority`, the share that the most frequent answer gets right.
    shares: of `stage_scores.shares`.
    """
    import matplotlib.pyplot as plt

    benchmarks = list(dict.fromkeys(shares["benchmark"]))
    names = list(dict.fromkeys(shares["checkpoint"]))
    height = 0.9 + 0.24 * len(names)
    figure, panels = plt.subplots(
        len(benchmarks), 1, figsize=(PHONE_WIDTH, height * len(benchmarks)), sharex=True
    )
    for axes, benchmark in zip(np.atleast_1d(panels), benchmarks, strict=True):
        mine = shares[shares["benchmark"] == benchmark].set_index("checkpoint")
        part = 100 * mine[["share", "low", "high"]]
        places = [names[::-1].index(name) for name in part.index]
        ends = np.abs(part[["low", "high"]].to_numpy().T - part["share"].to_numpy())
        axes.errorbar(part["share"], places, xerr=ends, fmt="o", markersize=5, capsize=2.5)
        line = 100 * CHANCE.get(benchmark, majority)
        axes.axvline(line, color="black", linewidth=1.2, linestyle="--")
        axes.set_title(f"{benchmark} ({'majority' if benchmark == QUESTIONS else 'chance'} dashed)")
        axes.set_yticks(range(len(names)), names[::-1])
        axes.set_xlim(0, 100)
        axes.grid(axis="y", visible=False)
    np.atleast_1d(panels)[-1].set_xlabel("right answers, %")
    return figure


def checkpoints_alt(shares: pd.DataFrame) -> str:
    """The figure of `checkpoints` in words."""
    parts = []
    for benchmark, part in shares.groupby("benchmark", sort=False):
        values = ", ".join(f"{row.checkpoint} {100 * row.share:.0f}" for row in part.itertuples())
        parts.append(f"{benchmark}: {values}")
    return f"Right answers in % by checkpoint. {'. '.join(parts)}."


def positions(table: pd.DataFrame, window: int) -> "Figure":
    """Perplexity by position in the text, one line per reader, whiskers for the intervals, a dotted
    line at the window. table: of `long_context.by_position`.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 3.6))
    names = list(dict.fromkeys(table["reader"]))
    for index, (name, marker) in enumerate(zip(names, MARKERS, strict=False)):
        part = table[table["reader"] == name]
        middles = (part["first"] + part["last"]) / 2
        shift = 0.012 * (index - (len(names) - 1) / 2) * table["last"].max()
        ends = np.abs(part[["low", "high"]].to_numpy().T - part["perplexity"].to_numpy())
        axes.errorbar(
            middles + shift, part["perplexity"], yerr=ends, fmt=f"{marker}-", capsize=2, label=name
        )
    axes.axvline(window, color="black", linewidth=1.2, linestyle=":", label="one window")
    axes.set_xlabel("position in the text, tokens")
    axes.set_ylabel("perplexity per token")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def positions_alt(table: pd.DataFrame) -> str:
    """The figure of `positions` in words."""
    wide = table.pivot(index=["first", "last"], columns="reader", values="perplexity")
    rows = [
        f"tokens {first} to {last}: "
        + ", ".join(f"{name} {wide.at[(first, last), name]:.0f}" for name in wide.columns)
        for first, last in wide.index
    ]
    return f"Perplexity by position. {'; '.join(rows)}."


def needles(tables: Mapping[str, tuple[pd.DataFrame, int]]) -> "Figure":
    """Share of needles found by their distance in windows: one panel per model, one line per
    reader, whiskers for the intervals, chance dashed, the window dotted. tables: by model, the
    table of `long_context.needle_table` and the window in tokens.
    """
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        len(tables), 1, figsize=(PHONE_WIDTH, 2.6 * len(tables) + 0.5), sharex=True
    )
    every = np.atleast_1d(panels)
    for axes, (model, (table, window)) in zip(every, tables.items(), strict=True):
        names = list(dict.fromkeys(table["reader"]))
        for index, (name, marker) in enumerate(zip(names, MARKERS, strict=False)):
            part = table[table["reader"] == name]
            ends = np.abs(part[["low", "high"]].to_numpy().T - part["share"].to_numpy())
            shift = 0.02 * (index - (len(names) - 1) / 2)
            axes.errorbar(
                part["distance"] / window + shift,
                100 * part["share"],
                yerr=100 * ends,
                fmt=f"{marker}-",
                capsize=2,
                label=name,
            )
        axes.axhline(100 / NUM_CHOICES, color="black", linewidth=1.2, linestyle="--")
        axes.axvline(1, color="black", linewidth=1.2, linestyle=":")
        axes.set_title(f"{model}, window of {window} tokens")
        axes.set_ylabel("found, %")
        axes.set_ylim(0, 105)
        axes.legend(loc="lower left")
    every[-1].set_xlabel("distance of the needle, in windows (chance dashed)")
    return figure


def needles_alt(tables: Mapping[str, tuple[pd.DataFrame, int]]) -> str:
    """The figure of `needles` in words."""
    parts = []
    for model, (table, window) in tables.items():
        for reader, part in table.groupby("reader", sort=False):
            values = ", ".join(
                f"{100 * row.share:.0f} at {row.distance} tokens" for row in part.itertuples()
            )
            parts.append(f"{model}, window {window}, {reader}: {values}")
    return f"Needles found in %, chance {100 // NUM_CHOICES}. {'. '.join(parts)}."


def rankings(compared: pd.DataFrame) -> "Figure":
    """Every two models of a table: a filled square where the interval says that the row's model is
    above the column's, a small cross where it does not. compared: of `rankings.pairs`.
    """
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys([*compared["first"], *compared["second"]]))
    place = {name: index for index, name in enumerate(names)}
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 1.9 + 0.29 * len(names)))
    for seen, marker, label in ((True, "s", "above"), (False, "x", "no difference seen")):
        part = compared[compared["seen"] == seen]
        axes.plot(
            part["second"].map(place),
            part["first"].map(place),
            marker,
            markersize=9 if seen else 5,
            color="#0072B2" if seen else "#555555",
            label=f"row is {label}" if seen else label,
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.legend(loc="lower left")
    return figure


def rankings_alt(compared: pd.DataFrame) -> str:
    """The figure of `rankings` in words."""
    parts = []
    for first, part in compared.groupby("first", sort=False):
        above = part.loc[part["seen"], "second"].tolist()
        parts.append(f"{first} is above {', '.join(above) or 'none of those below it'}")
    return f"Models in the order of their averages. {'; '.join(parts)}."


def leads(found: Sequence["Lead"]) -> "Figure":
    """Points by which Moxin's best row is above (right) or below the best other row, one panel per
    table, one bar per benchmark. found: of `published.lead`.
    """
    import matplotlib.pyplot as plt

    heights = [1.0 + 0.3 * len(each.points) for each in found]
    figure, panels = plt.subplots(
        len(found), 1, figsize=(PHONE_WIDTH, sum(heights)), height_ratios=heights
    )
    for axes, each in zip(np.atleast_1d(panels), found, strict=True):
        places = np.arange(len(each.points))[::-1]
        axes.barh(places, each.points, color="#0072B2", height=0.62)
        axes.axvline(0, color="black", linewidth=1)
        reach = max(1.0, each.points.abs().max())
        for place, value in zip(places, each.points, strict=True):
            axes.annotate(
                f"{value:+.1f}".replace("-", "\N{MINUS SIGN}"),
                (value, place),
                xytext=(4 if value >= 0 else -4, 0),
                textcoords="offset points",
                va="center",
                ha="left" if value >= 0 else "right",
                fontsize=10,
            )
        axes.set_yticks(places, each.points.index)
        axes.set_xlim(
            min(0, each.points.min()) - 0.3 * reach, max(0, each.points.max()) + 0.3 * reach
        )
        axes.set_ylim(-0.7, len(each.points) - 0.3)
        axes.set_title(f"{each.title}: {each.moxin}\nminus {each.other}", fontsize=11)
        axes.grid(axis="y", visible=False)
    np.atleast_1d(panels)[-1].set_xlabel("points, as printed")
    return figure


def leads_alt(found: Sequence["Lead"]) -> str:
    """The figure of `leads` in words."""
    parts = []
    for each in found:
        values = ", ".join(f"{name} {value:+.1f}" for name, value in each.points.items())
        parts.append(f"{each.title}, {each.moxin} minus {each.other}: {values}")
    return f"Bars of points by benchmark. {'. '.join(parts)}."
