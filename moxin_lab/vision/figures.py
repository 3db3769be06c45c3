"""Figures of stage 07.

Guarantees: each function takes plain values or a table and returns a matplotlib figure.
Out of scope: computing the values.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moxin_lab.vision.data import Pixels

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MODEL_AND_BASELINES = {"model": "o", "majority": "|", "blind": "s", "shuffled": "^", "nearest": "D"}


def gallery(pictures: Sequence[Pixels], titles: Sequence[str], *, columns: int = 6) -> Figure:
    """Pictures with their titles, row by row."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(7.0, 1.62 * rows), squeeze=False)
    for index, panel in enumerate(axes.flat):
        panel.axis("off")
        if index < len(pictures):
            panel.imshow(pictures[index], interpolation="nearest")
            panel.set_title(titles[index], fontsize=7, pad=2)
    return figure


def losses(logs: Mapping[str, pd.DataFrame], *, step: str = "step", value: str = "loss") -> Figure:
    """One panel per training: loss of each step and its running mean."""
    figure, axes = plt.subplots(1, len(logs), figsize=(7.0, 2.6), squeeze=False)
    for panel, (name, log), colour in zip(axes[0], logs.items(), COLOURS * 2, strict=False):
        panel.plot(log[step], log[value], color="#999999", linewidth=0.7)
        window = max(1, len(log) // 20)
        panel.plot(log[step], log[value].rolling(window, min_periods=1).mean(), color=colour)
        panel.set_title(name, fontsize=9)
        panel.set(xlabel="step")
    axes[0, 0].set_ylabel(value)
    return figure


def losses_alt(logs: Mapping[str, pd.DataFrame]) -> str:
    """The figure of `losses` in words: first loss and mean of the last ten, by training."""
    return "; ".join(
        f"{name}: loss from {log['loss'].iloc[0]:.2f} to {log['loss'].tail(10).mean():.2f}"
        for name, log in logs.items()
    )


def recalls(table: pd.DataFrame, *, at: int) -> Figure:
    """Recall of `retrieval.recall_table`, one point with its interval per row; chance as a dotted
    line.
    """
    figure, axes = plt.subplots(figsize=(7.0, 0.7 + 0.36 * len(table)))
    heights = np.arange(len(table))[::-1]
    value = table[f"R@{at}"].to_numpy()
    spread = np.abs(table[[f"R@{at} low", f"R@{at} high"]].to_numpy().T - value)
    axes.errorbar(value, heights, xerr=spread, fmt="o", capsize=3, color=COLOURS[0])
    axes.axvline(table[f"chance R@{at}"].iloc[0], color="#000000", linestyle=":", linewidth=1)
    axes.annotate(
        "chance", (table[f"chance R@{at}"].iloc[0], len(table) - 0.45), fontsize=8, ha="left"
    )
    axes.set_yticks(
        heights,
        [
            ", ".join(map(str, name)) if isinstance(name, tuple) else str(name)
            for name in table.index
        ],
    )
    axes.set(xlabel=f"recall@{at}, unseen families", xlim=(0, None), ylim=(-0.6, len(table)))
    return figure


def recalls_alt(table: pd.DataFrame, *, at: int) -> str:
    """The figure of `recalls` in words."""
    values = "; ".join(f"{' '.join(name)} {row[f'R@{at}']:.2f}" for name, row in table.iterrows())
    return f"Recall at {at} with chance {table[f'chance R@{at}'].iloc[0]:.3f}: {values}."


def task_scores(scores: pd.DataFrame) -> Figure:
    """Scores of `scoring.scores`, one row per task: the model as a filled point with its interval,
    baselines as open markers.
    """
    tasks = list(dict.fromkeys(scores["task"]))
    figure, axes = plt.subplots(figsize=(7.0, 0.9 + 0.42 * len(tasks)))
    for index, (name, marker) in enumerate(MODEL_AND_BASELINES.items()):
        part = scores[scores["answerer"] == name].set_index("task").reindex(tasks)
        if part["value"].isna().all():
            continue
        offset = 0.18 if name == "model" else -0.02 - 0.09 * index
        heights = np.arange(len(tasks))[::-1] + offset
        if name == "model":
            spread = np.abs(part[["low", "high"]].to_numpy().T - part["value"].to_numpy())
            axes.errorbar(
                part["value"],
                heights,
                xerr=spread,
                fmt=marker,
                capsize=3,
                color=COLOURS[0],
                label=name,
            )
        else:
            axes.plot(
                part["value"],
                heights,
                marker,
                color=COLOURS[index],
                markerfacecolor="none",
                label=name,
                markersize=6,
            )
    axes.set_yticks(np.arange(len(tasks))[::-1], tasks)
    axes.set(xlabel="share of correct answers", xlim=(-0.02, 1.02), ylim=(-0.7, len(tasks) - 0.3))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=5, frameon=False, fontsize=8)
    return figure


def task_scores_alt(gains: pd.DataFrame) -> str:
    """The figure of `task_scores` in words. gains: of `scoring.gains`."""
    return "; ".join(
        f"{task}: model {row['model']:.2f}, blind {row['blind']:.2f}, nearest {row['nearest']:.2f}"
        for task, row in gains.iterrows()
    )


def arms(runs: pd.DataFrame, *, value: str, label: str) -> Figure:
    """One column per arm of an experiment, one point per seed and a bar at their mean.

    runs: columns arm, seed and `value`. label: of the vertical axis.
    """
    names = list(dict.fromkeys(runs["arm"]))
    figure, axes = plt.subplots(figsize=(7.0, 3.2))
    for column, name in enumerate(names):
        part = runs[runs["arm"] == name]
        shifts = np.linspace(-0.1, 0.1, len(part)) if len(part) > 1 else np.zeros(1)
        axes.plot(column + shifts, part[value], "o", color=COLOURS[0], alpha=0.7)
        axes.hlines(part[value].mean(), column - 0.25, column + 0.25, color=COLOURS[1])
    axes.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names], fontsize=8)
    axes.set(ylabel=label, xlim=(-0.6, len(names) - 0.4))
    return figure


def similarity_maps(
    pictures: Sequence[Pixels], maps: Mapping[str, NDArray[np.floating]], titles: Sequence[str]
) -> Figure:
    """Each picture above its maps, one row per tower: similarity of every patch to the patch in the
    middle; bright is similar.

    maps: name of the tower to [pictures, side, side] in -1 to 1.
    """
    count = len(pictures)
    figure, axes = plt.subplots(
        1 + len(maps), count, figsize=(7.0, 1.25 * (1 + len(maps))), squeeze=False
    )
    for column in range(count):
        axes[0, column].imshow(pictures[column], interpolation="nearest")
        axes[0, column].set_title(titles[column], fontsize=7, pad=2)
        for row, values in enumerate(maps.values(), 1):
            axes[row, column].imshow(
                values[column], cmap="cividis", interpolation="nearest", vmin=-1, vmax=1
            )
    for panel in axes.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    for row, name in enumerate(("picture", *maps)):
        axes[row, 0].set_ylabel(name, fontsize=8)
    return figure
