"""Figures of stage 07.

Guarantees: each function takes plain values or a table and returns a matplotlib figure.
Out of scope: computing the values.
"""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from moxin_lab.lab.show import PHONE_WIDTH
from moxin_lab.lab.smoothing import centred_mean
from moxin_lab.vision.data import Concept, Pixels, render
from moxin_lab.vision.tasks import Item

SMALL = 9.6
"""Points of the smallest letters: a telephone shows them with nine pixels."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MODEL_AND_BASELINES = {"model": "o", "majority": "|", "blind": "s", "shuffled": "^", "nearest": "D"}


def gallery(pictures: Sequence[Pixels], titles: Sequence[str], *, columns: int = 6) -> Figure:
    """Pictures with their titles, row by row; long titles are wrapped between words."""
    rows = -(-len(pictures) // columns)
    titles = [wrapped(title, 68 // columns) for title in titles]
    height = PHONE_WIDTH / columns + 0.19 * max(title.count("\n") + 1 for title in titles)
    figure, axes = plt.subplots(rows, columns, figsize=(PHONE_WIDTH, height * rows), squeeze=False)
    for index, panel in enumerate(axes.flat):
        panel.axis("off")
        panel.set_anchor("S")  # room that is left belongs to the titles
        if index < len(pictures):
            panel.imshow(pictures[index], interpolation="nearest")
            panel.set_title(titles[index], fontsize=SMALL, fontweight="normal", pad=2)
    return figure


def two_styles(concepts: Sequence[Concept], edge: int = 64) -> Figure:
    """Each concept as drawn by both groups of artists, one row per style, with its name."""
    drawings = [
        render(one.drawings[style], edge) for style in ("google", "twitter") for one in concepts
    ]
    names = [one.label() for one in concepts]
    return gallery(drawings, [*names, *[""] * len(names)], columns=len(concepts))


def two_styles_alt(concepts: Sequence[Concept]) -> str:
    """The figure of `two_styles` in words."""
    names = ", ".join(one.label() for one in concepts)
    return f"{len(concepts)} emoji, above in Google's style and below in Twitter's: {names}"


def question_gallery(examples: Mapping[str, Item]) -> Figure:
    """One picture per task with the task's name, the question and the right answer."""
    return gallery(
        [one.picture for one in examples.values()],
        [f"{task}: {one.question}\n→ {one.answer}" for task, one in examples.items()],
        columns=3,
    )


def answer_gallery(items: Sequence[Item], sample: pd.DataFrame) -> Figure:
    """Pictures of questions with the right answer and what the model said with this picture, with
    another one and with none. sample: of `tables.sample_answers`, for these items.
    """
    pictures = {item.id: item.picture for item in items}
    titles = [
        f"{row['question']}\n→ {row['truth']}\nthis: {row['model']}\n"
        f"another: {row['shuffled']}\nnone: {row['blind']}"
        for _, row in sample.iterrows()
    ]
    return gallery([pictures[name] for name in sample.index], titles, columns=4)


def answer_gallery_alt(sample: pd.DataFrame) -> str:
    """The figure of `answer_gallery` in words."""
    return " ".join(
        f"{row['question']} {row['truth']}; the model says {row['model']}, with another picture "
        f"{row['shuffled']}, with none {row['blind']}."
        for _, row in sample.iterrows()
    )


def wrapped(title: str, width: int) -> str:
    """A title in lines of at most `width` characters, broken between words and never inside one."""
    lines = [
        part
        for line in title.split("\n")
        for part in textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
    ]
    return "\n".join(lines)


def picture_to_tokens(
    picture: Pixels, side: int, tokens: Sequence[tuple[str, bool]], *, columns: int = 10
) -> Figure:
    """One example as the model reads it: the picture cut into `side` x `side` patches above, the
    joined sequence below, in reading order. Patches are small pictures, tokens are boxes; those
    with loss are filled.

    picture: `[edge, edge, 3]`. tokens: (text, has loss) of each token, `<s>` first; the patches are
    put right after it.
    """
    edge = picture.shape[0] // side
    cells: list[tuple[str, bool] | Pixels] = [
        picture[row * edge : (row + 1) * edge, column * edge : (column + 1) * edge]
        for row in range(side)
        for column in range(side)
    ]
    cells = [tokens[0], *cells, *tokens[1:]]
    rows = -(-len(cells) // columns)
    heights = (1.4, rows * PHONE_WIDTH / columns)
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(PHONE_WIDTH, sum(heights)), height_ratios=heights, layout="constrained"
    )
    above.imshow(picture, interpolation="nearest")
    for line in range(1, side):
        above.axhline(line * edge - 0.5, color="#555555", linewidth=0.7)
        above.axvline(line * edge - 0.5, color="#555555", linewidth=0.7)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        if isinstance(cell, tuple):
            _token_box(below, column, row, *cell)
        else:
            below.imshow(cell, extent=(column - 0.42, column + 0.42, row + 0.42, row - 0.42))
    below.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal")
    for panel in (above, below):
        panel.axis("off")
    return figure


def picture_to_tokens_finding(side: int, tokens: Sequence[tuple[str, bool]]) -> str:
    """What `picture_to_tokens` shows, in a sentence for its caption."""
    learned = sum(has_loss for _, has_loss in tokens)
    return (
        f"{side * side} patches stand between <s> and {len(tokens) - 1} tokens of text, of which "
        f"{learned} are learned."
    )


def _token_box(axes: Axes, column: int, row: int, text: str, has_loss: bool) -> None:
    colour = "#F5C28B" if has_loss else "#F0F0F0"
    axes.add_patch(
        Rectangle((column - 0.44, row - 0.34), 0.88, 0.68, facecolor=colour, edgecolor="#555555")
    )
    # a token longer than its box is written in two lines
    half = -(-len(text) // 2)
    shown = text if len(text) <= 5 else f"{text[:half]}\n{text[half:]}"
    axes.text(
        column,
        row,
        shown,
        ha="center",
        va="center",
        fontsize=SMALL,
        color="#111111",
        linespacing=0.9,
    )


def losses(logs: Mapping[str, pd.DataFrame], *, step: str = "step", value: str = "loss") -> Figure:
    """One panel per training, two in a row: loss of each step and its centred running mean."""
    columns = min(2, len(logs))
    rows = -(-len(logs) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(PHONE_WIDTH, 0.4 + 2.3 * rows), squeeze=False
    )
    for panel in axes.flat[len(logs) :]:
        panel.axis("off")
    for panel, (name, log), colour in zip(axes.flat, logs.items(), COLOURS * 2, strict=False):
        panel.plot(log[step], log[value], color="#999999", linewidth=0.7)
        panel.plot(log[step], centred_mean(log[value], max(1, len(log) // 20)), color=colour)
        panel.set_title(name, fontsize=10)
        panel.set(xlabel="step")
    for panel in axes[:, 0]:
        panel.set_ylabel(f"{value}, nats")
    return figure


def losses_alt(logs: Mapping[str, pd.DataFrame]) -> str:
    """The figure of `losses` in words: first loss and mean of the last ten, by training."""
    return "; ".join(
        f"{name}: loss from {log['loss'].iloc[0]:.2f} to {log['loss'].tail(10).mean():.2f}"
        for name, log in logs.items()
    )


def recalls(table: pd.DataFrame, *, at: int = 5) -> Figure:
    """Recall of `retrieval.recall_table`, one point with its interval per row; chance as a dotted
    line.
    """
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 0.9 + 0.36 * len(table)))
    heights = np.arange(len(table))[::-1]
    value = table[f"R@{at}"].to_numpy()
    spread = np.abs(table[[f"R@{at} low", f"R@{at} high"]].to_numpy().T - value)
    axes.errorbar(value, heights, xerr=spread, fmt="o", capsize=3, color=COLOURS[0])
    axes.axvline(table[f"chance R@{at}"].iloc[0], color="#000000", linestyle=":", linewidth=1)
    axes.annotate(
        " chance", (table[f"chance R@{at}"].iloc[0], len(table) - 0.45), fontsize=SMALL, ha="left"
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


def recalls_alt(table: pd.DataFrame, *, at: int = 5) -> str:
    """The figure of `recalls` in words."""
    values = "; ".join(
        f"{' '.join(name) if isinstance(name, tuple) else name} {row[f'R@{at}']:.2f}"
        for name, row in table.iterrows()
    )
    return f"Recall at {at} with chance {table[f'chance R@{at}'].iloc[0]:.3f}: {values}."


def task_scores(scores: pd.DataFrame) -> Figure:
    """Scores of `scoring.scores`, one row per task: the model as a filled point with its interval,
    baselines as open markers.
    """
    tasks = list(dict.fromkeys(scores["task"]))
    size = (PHONE_WIDTH, 1.4 + 0.55 * len(tasks))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
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
                markersize=9 if marker == "|" else 6,
                markeredgewidth=1.8 if marker == "|" else 1.2,
            )
    axes.set_yticks(np.arange(len(tasks))[::-1], tasks)
    axes.set(xlabel="share of right answers", xlim=(-0.02, 1.02), ylim=(-0.7, len(tasks) - 0.3))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    first = sorted(range(len(labels)), key=lambda place: labels[place] != "model")
    figure.legend(
        [handles[place] for place in first],
        [labels[place] for place in first],
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    return figure


def task_scores_alt(gains: pd.DataFrame) -> str:
    """The figure of `task_scores` in words. gains: of `scoring.gains`."""
    return "; ".join(
        f"{task}: model {row['model']:.2f}, blind {row['blind']:.2f}, nearest {row['nearest']:.2f}"
        for task, row in gains.iterrows()
    )


def arms(runs: pd.DataFrame, *, value: str, label: str) -> Figure:
    """One row per arm of an experiment, one point per seed and a bar at their mean.

    runs: columns arm, seed and `value`. label: of the horizontal axis.
    """
    names = list(dict.fromkeys(runs["arm"]))
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 0.9 + 0.42 * len(names)))
    for row, name in enumerate(names):
        part = runs[runs["arm"] == name]
        shifts = np.linspace(-0.12, 0.12, len(part)) if len(part) > 1 else np.zeros(1)
        axes.plot(part[value], row + shifts, "o", color=COLOURS[0], alpha=0.7)
        axes.vlines(part[value].mean(), row - 0.3, row + 0.3, color=COLOURS[1])
    axes.set_yticks(range(len(names)), names)
    axes.locator_params(axis="x", nbins=5)
    axes.set(xlabel=label, ylim=(len(names) - 0.4, -0.6))
    return figure


def arms_alt(runs: pd.DataFrame, *, value: str) -> str:
    """The figure of `arms` in words: the mean of each arm."""
    means = runs.groupby("arm", sort=False)[value].mean()
    return "; ".join(f"{arm} {mean:.3f}" for arm, mean in means.items())


def similarity_maps(
    pictures: Sequence[Pixels], maps: Mapping[str, NDArray[np.floating]], titles: Sequence[str]
) -> Figure:
    """Each picture above its maps, one row per tower: similarity of every patch to the patch in the
    middle, which has a frame; bright is similar.

    maps: name of the tower to [pictures, side, side] in -1 to 1.
    """
    count = len(pictures)
    figure, axes = plt.subplots(
        1 + len(maps), count, figsize=(PHONE_WIDTH, 0.3 + 0.95 * (1 + len(maps))), squeeze=False
    )
    for column in range(count):
        axes[0, column].imshow(pictures[column], interpolation="nearest")
        title = wrapped(titles[column], 66 // count)
        axes[0, column].set_title(title, fontsize=SMALL, fontweight="normal", pad=2)
        for row, values in enumerate(maps.values(), 1):
            axes[row, column].imshow(
                values[column], cmap="cividis", interpolation="nearest", vmin=-1, vmax=1
            )
            place = values.shape[-1] // 2 - 0.5
            frame = Rectangle((place, place), 1, 1, fill=False, edgecolor="#D55E00", linewidth=1.5)
            axes[row, column].add_patch(frame)
    for panel in axes.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    for row, name in enumerate(("picture", *maps)):
        axes[row, 0].set_ylabel(name, fontsize=SMALL)
    return figure
