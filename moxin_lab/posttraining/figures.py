"""Figures of stage 05, from plain values to a matplotlib figure; a function `x_alt` describes the
figure of `x` in words.

Guarantees: a function draws the numbers that it is given; it writes no file.
Out of scope: computing the numbers (tables.py, experiments.py).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from moxin_lab.lab.show import PHONE_WIDTH
from moxin_lab.lab.smoothing import centred_mean

MARKERS = ("o", "s", "^", "D", "v", "P")


TUNING_PATH = (
    "Boxes from top to bottom: pretrained, SFT, preference pairs, DPO, instruct. A dashed arrow "
    "from SFT to DPO: the reference's log-probabilities."
)


def tuning_path() -> Figure:
    """The two trainings as boxes: model, data and loss of each, from top to bottom."""
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 4.6))
    boxes = (
        ("pretrained\n(stage 04)", "#E8E8E8", ""),
        ("SFT\nloss on answers", "#CFE3F3", "conversations of\nusers and assistants"),
        ("pairs\ncard + sampled", "#FBE3CF", "two answers\nto one prompt"),
        ("DPO\nper token, beta 5", "#CFE3F3", ""),
        ("instruct", "#E8E8E8", ""),
    )
    for place, (text, colour, data) in enumerate(boxes):
        axes.text(
            0,
            -place,
            text,
            ha="center",
            va="center",
            color="#111111",
            fontsize=11,
            bbox={"boxstyle": "round,pad=0.5", "facecolor": colour, "edgecolor": "#555555"},
        )
        axes.text(-0.95, -place, data, ha="right", va="center", fontsize=10)
    for place in range(4):
        axes.annotate("", (0, -place - 0.63), (0, -place - 0.37), arrowprops={"arrowstyle": "->"})
    axes.plot([0.8, 1.05, 1.05], [-1, -1, -3], color="#555555", linestyle="--", linewidth=1)
    axes.annotate(
        "",
        (0.85, -3),
        (1.06, -3),
        arrowprops={"arrowstyle": "->", "linestyle": "--", "color": "#555555"},
    )
    axes.text(
        1.15, -2, "log-probabilities\nof the reference,\ncomputed once", va="center", fontsize=10
    )
    axes.set(xlim=(-2.5, 2.4), ylim=(-4.4, 0.45))
    axes.axis("off")
    return figure


def sft_curve(log: pd.DataFrame) -> Figure:
    """Loss per token of every step with a running mean, and the gradient norm before clipping
    (dotted: 1).
    """
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(PHONE_WIDTH, 4.6), sharex=True, height_ratios=(3, 1)
    )
    each = log["nats"] / log["targets"]
    top.plot(log["step"], each, color="#999999", linewidth=0.8, label="each step")
    top.plot(
        log["step"],
        centred_mean(each, 15),
        color="#0072B2",
        label="mean of 15 steps",
    )
    top.set(ylabel="answer loss (nats per token)", ylim=(0, None))
    top.legend()
    bottom.semilogy(log["step"], log["gradient_norm"], color="#D55E00", linewidth=0.9)
    bottom.axhline(1.0, color="#000000", linewidth=0.8, linestyle=":")
    bottom.yaxis.set_minor_formatter(NullFormatter())
    bottom.set(xlabel="optimizer step", ylabel="gradient norm")
    return figure


def sft_curve_alt(log: pd.DataFrame) -> str:
    """The figure of `sft_curve` in words: the first loss, and the mean of the last 15 steps."""
    loss = log["nats"] / log["targets"]
    return (
        f"Loss from {loss.iloc[0]:.2f} nats per token to {loss.tail(15).mean():.2f} over "
        f"{len(loss)} steps."
    )


def preference_push(table: pd.DataFrame) -> Figure:
    """How hard a pair is pulled apart by its margin, one curve for each beta. table: of
    `tables.preference_push`.
    """
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 3.2))
    for beta, style in zip(table.columns, ("-", "--", "-."), strict=False):
        axes.plot(table.index, table[beta], style, label=f"beta = {beta:g}")
    axes.axvline(0, color="#555555", linewidth=0.8)
    for side, text in ((-1, "wrong order"), (1, "right order")):
        axes.annotate(
            text,
            (0, 1.04),
            xytext=(6 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            fontsize=10,
        )
    axes.set(
        xlabel="margin of the chosen over the rejected answer (nats)",
        ylabel="pull of the pair\n(share of the largest)",
        ylim=(-0.03, 1.12),
    )
    axes.legend(loc="lower left")
    return figure


def preference_push_alt(table: pd.DataFrame) -> str:
    """The figure of `preference_push` in words: the pull at the ends and where it is a half."""
    ends = "; ".join(
        f"beta {beta:g}: {column.iloc[0]:.2f} at {table.index[0]:g} nats, "
        f"{column.iloc[-1]:.2f} at {table.index[-1]:g}"
        for beta, column in table.items()
    )
    return f"Falling S-shaped curves, all at one half where the margin is 0. {ends}."


def dpo_curves(logs: Mapping[str, pd.DataFrame]) -> Figure:
    """Share of a step's pairs whose margin is above zero, and the mean log-ratio per token of both
    answers; one column per loss.
    """
    figure, axes = plt.subplots(
        2, len(logs), figsize=(PHONE_WIDTH, 4.6), sharex=True, sharey="row", squeeze=False
    )
    for column, (name, log) in enumerate(logs.items()):
        top, bottom = axes[:, column]
        top.plot(
            log["step"], log["correct"] / log["pairs"], color="#009E73", marker="o", markersize=3
        )
        top.axhline(0.5, color="#000000", linewidth=0.8, linestyle=":")
        top.set_title(name.replace(", ", ",\n"), fontsize=11)
        top.set(ylim=(0, 1.02))
        for field, color, style in (("chosen", "#0072B2", "-"), ("rejected", "#D55E00", "--")):
            bottom.plot(
                log["step"],
                log[f"{field}_ratio"] / log["pairs"],
                color=color,
                linestyle=style,
                label=field,
            )
        bottom.axhline(0, color="#000000", linewidth=0.8, linestyle=":")
        bottom.set(xlabel="optimizer step")
    axes[0, 0].set(ylabel="pairs in the\nright order")
    axes[1, 0].set(ylabel="log-ratio to the\nreference\n(nats per token)")
    axes[1, 0].legend()
    return figure


def dpo_finding(logs: Mapping[str, pd.DataFrame]) -> str:
    """Pairs in the correct order at the first and at the last step of each training."""
    shares_of = {name: log["correct"] / log["pairs"] for name, log in logs.items()}
    listed = "; ".join(
        f"{name} {share.iloc[0]:.0%} to {share.iloc[-1]:.0%}" for name, share in shares_of.items()
    )
    return f"Pairs in the correct order, first step to last: {listed}."


def dpo_curves_alt(logs: Mapping[str, pd.DataFrame]) -> str:
    """The figure of `dpo_curves` in words."""
    shares_at_end = {name: (log["correct"] / log["pairs"]).iloc[-1] for name, log in logs.items()}
    ends = "; ".join(
        f"{name}: {end:.0%} of the last step's pairs in the correct order"
        for name, end in shares_at_end.items()
    )
    return (
        f"Two columns, one per loss. {ends}. Below, log-ratios of chosen and rejected answers to "
        "the reference."
    )


def shares(table: pd.DataFrame, *, label: str) -> Figure:
    """Points with intervals, one per row of `table` (columns value, low, high; the index has the
    names).
    """
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 0.5 + 0.45 * len(table)))
    heights = np.arange(len(table))[::-1]
    spread = np.abs(table[["low", "high"]].to_numpy().T - table["value"].to_numpy())
    axes.errorbar(table["value"], heights, xerr=spread, fmt="o", capsize=3, color="#0072B2")
    for height, value in zip(heights, table["value"], strict=True):
        axes.annotate(
            f"{value:.2f}",
            (value, height),
            xytext=(0, 7),
            textcoords="offset points",
            ha="left" if value < 0.03 else "center",  # clear of the axis
            fontsize=10,
        )
    axes.set_yticks(heights, [name.replace(", ", ",\n") for name in table.index])
    axes.set(xlabel=label, xlim=(-0.03, 1.03), ylim=(-0.6, len(table) - 0.3))
    return figure


def shares_alt(table: pd.DataFrame) -> str:
    """The figure of `shares` in words."""
    return "; ".join(
        f"{name} {row.value:.2f} ({row.low:.2f} to {row.high:.2f})"
        for name, row in table.iterrows()
    )


def reduction_runs(runs: pd.DataFrame, variants: Sequence[str]) -> Figure:
    """Held-out answer loss of every run: one row per variant, one mark per micro-batch size, one
    point per seed.
    """
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 1.3 + 0.5 * len(variants)))
    sizes = sorted(runs["micro_batch"].unique(), reverse=True)
    for i, size in enumerate(sizes):
        part = runs[runs["micro_batch"] == size]
        y = part["variant"].map({name: row for row, name in enumerate(variants)})
        shift = (i - (len(sizes) - 1) / 2) * 0.18
        axes.plot(
            part["answer_loss"],
            y + shift,
            MARKERS[i],
            label=f"micro-batches of {size}",
            alpha=0.8,
        )
    axes.set_yticks(range(len(variants)), [name.replace(", ", ",\n") for name in variants])
    axes.set(
        ylabel="reduction of the loss",
        xlabel="held-out answer loss (nats per token)",
        ylim=(len(variants) - 0.5, -0.5),
    )
    figure.legend(loc="outside upper center", ncols=len(sizes))  # inside it would hide points
    return figure
