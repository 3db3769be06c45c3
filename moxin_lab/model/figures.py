"""Figures of notebook 03, drawn with matplotlib: the block, masks, bytes, times, sizes by depth,
and the expansion.

Guarantees: each function takes numbers or a configuration and returns a figure; only the layout is
computed here. matplotlib is imported when the first figure is drawn.
Out of scope: measuring, captions, and text alternatives, which are the notebook's.
"""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moxin_lab.lab.show import PHONE_WIDTH
from moxin_lab.model.config import MoxinConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moxin_lab.lab.measured import Chart

INK, FRAME, BLUE, ORANGE, GREY = "#222222", "#555555", "#0072B2", "#D55E00", "#999999"
FILLS = {"norm": "#F3E9C6", "attention": "#CFE3F2", "ffn": "#D3EBDF", "plain": "#EEEEEE"}


def block(config: MoxinConfig) -> "Figure":
    """The decoder from token ids to logits, bottom to top, with one block opened."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 7.0))
    axes.set(xlim=(0, 10), ylim=(-0.1, 14.1))
    axes.axis("off")
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    window = f"window {config.sliding_window:,}" if config.sliding_window else "no window"

    def box(
        y: float, text: str, kind: str, x: float = 3.0, width: float = 5.0, height: float = 0.7
    ) -> None:
        axes.add_patch(
            plt.matplotlib.patches.FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle="round,pad=0.02,rounding_size=0.12",
                facecolor=FILLS[kind],
                edgecolor=FRAME,
                linewidth=1.0,
                zorder=2,
            )
        )
        axes.text(
            x + width / 2,
            y + height / 2,
            text,
            ha="center",
            va="center",
            fontsize=10,
            color=INK,
            zorder=3,
        )

    def arrow(points: list[tuple[float, float]]) -> None:
        xs, ys = zip(*points[:-1], strict=True)
        if len(xs) > 1:
            axes.plot(xs, ys, color=FRAME, linewidth=1.3, zorder=1)
        style = {"arrowstyle": "-|>", "color": FRAME, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=points[-1], xytext=points[-2], arrowprops=style, zorder=1)

    def plus(y: float) -> None:
        axes.add_patch(
            plt.Circle((5.5, y), 0.22, facecolor="white", edgecolor=FRAME, linewidth=1.2, zorder=3)
        )
        axes.text(5.5, y - 0.01, "+", ha="center", va="center", fontsize=13, color=INK, zorder=4)

    axes.add_patch(
        plt.Rectangle(
            (1.0, 1.95),
            8.6,
            8.95,
            facecolor="none",
            edgecolor=FRAME,
            linestyle=(0, (4, 3)),
            linewidth=1.0,
        )
    )
    axes.text(
        9.45,
        10.68,
        f"block, {config.num_hidden_layers} times",
        ha="right",
        va="top",
        fontsize=10,
        weight="bold",
        color=INK,
    )
    box(0.0, "token ids", "plain", x=4.2, width=2.6, height=0.6)
    box(1.05, f"embedding {config.vocab_size:,} × {config.hidden_size:,}", "plain")
    box(2.7, "RMSNorm", "norm")
    box(3.7, f"q: {heads} heads; k and v: {kv_heads}; each of {dim}", "attention")
    box(4.65, "rotate q and k by position (RoPE)", "attention")
    box(5.6, f"causal attention, {window}", "attention")
    box(6.55, "output projection", "attention")
    plus(7.65)
    box(8.25, "RMSNorm", "norm")
    box(
        9.2,
        f"SwiGLU {config.hidden_size:,} → {config.intermediate_size:,} → {config.hidden_size:,}",
        "ffn",
    )
    plus(10.3)
    box(11.3, "RMSNorm", "norm")
    box(12.25, f"head {config.hidden_size:,} × {config.vocab_size:,}", "plain")
    axes.text(
        5.5, 13.75, "logits of the next token", ha="center", va="center", fontsize=10, color=INK
    )
    for low, high in (
        (0.6, 1.05),
        (1.75, 2.7),
        (3.4, 3.7),
        (4.4, 4.65),
        (5.35, 5.6),
        (6.3, 6.55),
        (7.25, 7.43),
        (7.87, 8.25),
        (8.95, 9.2),
        (9.9, 10.08),
        (10.52, 11.3),
        (12.0, 12.25),
        (12.95, 13.5),
    ):
        arrow([(5.5, low), (5.5, high)])
    arrow([(5.5, 2.25), (2.1, 2.25), (2.1, 7.65), (5.28, 7.65)])
    arrow([(5.5, 8.05), (2.1, 8.05), (2.1, 10.3), (5.28, 10.3)])
    axes.text(
        1.75, 5.0, "residual stream", rotation=90, ha="center", va="center", fontsize=10, color=INK
    )
    return figure


def block_in_words(config: MoxinConfig) -> str:
    """The text alternative of `block`."""
    return (
        f"Diagram of the decoder: token ids, embedding, then {config.num_hidden_layers} blocks of "
        f"width {config.hidden_size}. Each block has RMSNorm, attention with rotary positions and "
        "residual addition, then RMSNorm, SwiGLU and residual addition. A last RMSNorm, the head "
        "and the logits follow."
    )


def ring(num_slots: int, num_tokens: int) -> "Figure":
    """What each slot of a ring holds after each token: one row per token, the new one filled."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.6, 0.34 * num_tokens + 0.9))
    for row in range(num_tokens):
        for slot in range(num_slots):
            token = row - (row - slot) % num_slots  # the latest with token mod W == slot
            new = token == row
            axes.add_patch(
                plt.Rectangle((slot, row), 1, 1, facecolor=BLUE if new else "#F4F4F4", ec="white")
            )
            if token >= 0:
                colour = "white" if new else "#333333"
                axes.text(slot + 0.5, row + 0.5, str(token), ha="center", va="center", color=colour)
    axes.set(xlim=(0, num_slots), ylim=(num_tokens, 0), xlabel="slot", ylabel="after token")
    axes.set_xticks([slot + 0.5 for slot in range(num_slots)], map(str, range(num_slots)))
    axes.set_yticks([row + 0.5 for row in range(num_tokens)], map(str, range(num_tokens)))
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


def ring_in_words(num_slots: int, num_tokens: int) -> str:
    """The text alternative of `ring`."""
    filled = min(num_slots, num_tokens)
    text = (
        f"A grid of {num_tokens} rows and {num_slots} slots. Row i shows which token each slot "
        f"holds after token i was written: tokens 0 to {filled - 1} fill slots 0 to {filled - 1}."
    )
    if num_tokens > num_slots:
        text += f" Token {num_slots} overwrites token 0 in slot 0, and so on."
    return f"{text} The slot just written is marked in each row."


def masks(panels: dict[str, np.ndarray]) -> "Figure":
    """Bool matrices [queries, keys] side by side, with True painted. The keys are the titles."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    figure, all_axes = plt.subplots(1, len(panels), figsize=(PHONE_WIDTH, 2.6), sharey=True)
    for axes, (title, matrix) in zip(all_axes, panels.items(), strict=True):
        size = len(matrix)
        axes.imshow(
            matrix,
            cmap=ListedColormap(["#F4F4F4", BLUE]),
            vmin=0,
            vmax=1,
            extent=(0, size, size, 0),
        )
        axes.set_title(textwrap.fill(title, 14), fontsize=10)
        axes.set_xlabel("key position")
        axes.grid(False)
    all_axes[0].set_ylabel("query position")
    return figure


def cache_bytes(frame: pd.DataFrame, window: int) -> "Figure":
    """Bytes of both caches against the length of the text, from `measures.cache_bytes`."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 3.6))
    axes.plot(
        frame["tokens"] / 1024, frame["full"] / 2**30, marker="o", markersize=4, label="full cache"
    )
    axes.plot(
        frame["tokens"] / 1024,
        frame["rolling"] / 2**30,
        marker="s",
        markersize=4,
        linestyle="--",
        label=f"ring of {window:,} slots",
    )
    last = frame.iloc[-1]
    axes.annotate(
        "",
        xy=(last["tokens"] / 1024, last["rolling"] / 2**30),
        xytext=(last["tokens"] / 1024, last["full"] / 2**30),
        arrowprops={"arrowstyle": "<->", "color": INK, "shrinkA": 5, "shrinkB": 5},
    )
    middle = (last["full"] + last["rolling"]) / 2**31
    axes.text(
        last["tokens"] / 1024 - 0.6,
        middle,
        f"{last['ratio']:.1f} times",
        ha="right",
        va="center",
        color=INK,
    )
    axes.set(
        xlabel="tokens of the text (thousands of 1,024)",
        ylabel="GiB of keys and values (fp16)",
        ylim=(0, None),
    )
    axes.legend(loc="upper left")
    return figure


def influence(frames: dict[int, pd.DataFrame], window: int) -> "Figure":
    """Influence by distance on a logarithmic axis, from `measures.influence`, one curve for each
    depth; the keys are the depths.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 4.0))
    for (depth, frame), dashes in zip(
        frames.items(), ((), (6, 2), (2, 1.5), (6, 2, 1.5, 2)), strict=False
    ):
        shown = frame[(frame["influence"] > 0) & (frame["distance"] > 0)]
        (line,) = axes.plot(
            shown["distance"],
            shown["influence"],
            dashes=dashes,
            label=f"{depth} block{'s' * (depth > 1)}",
        )
        end = shown.iloc[-1]
        axes.plot(
            [end["distance"]], [end["influence"]], marker="o", markersize=6, color=line.get_color()
        )
    axes.set_yscale("log")
    axes.set(
        xlabel=f"distance to the earlier token (tokens; the window is {window})",
        ylabel="influence (1 = the token itself)",
    )
    axes.legend(loc="upper right", title="depth")
    return figure


def influence_in_words(frames: dict[int, pd.DataFrame]) -> str:
    """The text alternative of `influence`: where each curve ends, and how high."""
    ends = []
    for depth, frame in frames.items():
        end = frame[frame["influence"] > 0].iloc[-1]
        ends.append(
            f"{depth} block{'s' * (depth > 1)} at {end['distance']:,.0f} tokens, where it is "
            f"{end['influence']:.0e}"
        )
    return (
        "Influence of an earlier token against its distance, logarithmic, one falling curve for "
        f"each depth. It ends with {'; '.join(ends)}."
    )


def residual_by_depth(frame: pd.DataFrame) -> "Figure":
    """Size of the residual stream and of its gradient after each block, from
    `initialisation.residual_by_depth`, one thin line per seed.
    """
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 1, figsize=(PHONE_WIDTH, 5.4), sharex=True)
    for axes, column, title in zip(
        panels, ("rms", "gradient"), ("the stream", "its gradient"), strict=True
    ):
        for scheme, color, dashes in (
            ("depth-scaled", BLUE, ()),
            ("plain", ORANGE, (5, 2)),
        ):
            part = frame[frame["scheme"] == scheme]
            for index, (_, one_seed) in enumerate(part.groupby("seed")):
                # Only the first line of a scheme has an entry in the legend.
                label = (
                    {"depth-scaled": "divided by √(2L)", "plain": "not divided"}[scheme]
                    if index == 0
                    else None
                )
                axes.plot(
                    one_seed["block"],
                    one_seed[column],
                    color=color,
                    dashes=dashes,
                    linewidth=1.2,
                    label=label,
                )
        axes.set(yscale="log", ylabel="root mean square")
        axes.set_title(title, fontsize=10)
    panels[1].set_xlabel("after block (0: embedding)")
    panels[1].legend(loc="upper right", title="o_proj, down_proj")
    return figure


def attention_times(times: pd.DataFrame, window: int) -> "Figure":
    """Milliseconds against tokens on logarithmic axes, from `costs.attention_times`, beside lines
    of the work in the window and in the full triangle.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 4.0))
    styles = zip(("o", "s", "^", "D", "v"), ("-", "--", "-.", ":", "-"), strict=True)
    for (backend, part), (marker, line) in zip(
        times.groupby("backend", sort=False), styles, strict=False
    ):
        axes.plot(
            part["tokens"],
            part["milliseconds"],
            marker=marker,
            linestyle=line,
            markersize=5,
            label=backend,
        )
    lengths = sorted(times["tokens"].unique())
    pairs = times.groupby("tokens")["pairs"].first()
    low = times["milliseconds"].min() * 0.6
    for text, work in (
        ("S × W", pairs),
        ("S × S", pairs.index.to_series() * (pairs.index.to_series() + 1) / 2),
    ):
        curve = low * work / work.iloc[0]
        axes.plot(curve.index, curve, color=GREY, linewidth=1.0, zorder=0)
        axes.annotate(
            text,
            (lengths[-1], curve.iloc[-1]),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            color=FRAME,
        )
    axes.axvline(window, color=GREY, linewidth=0.8, linestyle=":")
    axes.annotate(
        f"window {window:,}",
        (window, 0.99),
        xycoords=("data", "axes fraction"),
        xytext=(3, 0),
        textcoords="offset points",
        va="top",
        fontsize=10,
        color=FRAME,
    )
    axes.set(
        xscale="log", yscale="log", xlabel="tokens S of the text", ylabel="milliseconds, forward"
    )
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 0.93))
    return figure


def speeds(chart: "Chart") -> "Figure":
    """One bar per implementation, best on top, and the limit of the hardware as a line.

    chart: of `lab.measured.charts`; bars without a value are left out.
    """
    import matplotlib.pyplot as plt

    bars = [bar for bar in chart.bars if bar.value is not None]
    digits, unit = chart.question.digits, chart.question.unit
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 0.55 * len(bars) + 1.1))
    for row, bar in enumerate(bars):
        axes.barh(row, bar.value, color=BLUE if bar.is_ours else GREY, height=0.65)
        axes.annotate(
            f"{bar.value:,.{digits}f}",
            (bar.value, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
        )
    if chart.floor is not None:
        axes.axvline(chart.floor, color=INK, linewidth=1.2, linestyle="--")
        axes.annotate(
            f"floor {chart.floor:.{digits}f}",
            (chart.floor, -0.55),
            xytext=(4, 0),
            textcoords="offset points",
            va="bottom",
            fontsize=10,
        )
    names = [textwrap.fill(bar.name, 18) for bar in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=10)
    axes.set(xlabel=f"{unit} per token", ylim=(len(bars) - 0.4, -1.0))
    axes.set_xlim(0, 1.12 * max(bar.value for bar in bars if bar.value is not None))
    axes.grid(False, axis="y")
    return figure


def speeds_in_words(chart: "Chart") -> str:
    """The text alternative of `speeds`."""
    bars = "; ".join(f"{bar.name}: {bar.in_words(chart.question.digits)}" for bar in chart.bars)
    floor = "" if chart.floor is None else f" The floor is {chart.floor:.1f}."
    return f"Bars of {chart.question.unit} per token. {bars}.{floor}"


def expansion_plans(
    plans: dict[str, list[tuple[int, bool]]], silent: tuple[str, ...] = ("identity",)
) -> "Figure":
    """The blocks of each recipe from bottom (left) to top, each with the index of the old block
    whose weights it has.

    New blocks are coloured; those of the recipes in `silent`, which add nothing at first, are
    hatched.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 0.8 * len(plans) + 0.5))
    for row, (recipe, plan) in enumerate(plans.items()):
        for index, (source, is_new) in enumerate(plan):
            is_silent = is_new and recipe in silent
            fill = "#EEEEEE" if not is_new else "white" if is_silent else ORANGE
            axes.add_patch(
                plt.Rectangle(
                    (index + 0.05, -row - 0.32),
                    0.9,
                    0.64,
                    facecolor=fill,
                    edgecolor=ORANGE if is_new else FRAME,
                    linewidth=1.4 if is_silent else 0.6,
                    hatch="////" if is_silent else None,
                )
            )
            color = "white" if is_new and not is_silent else INK
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6} if is_silent else None
            axes.text(
                index + 0.5,
                -row,
                str(source),
                ha="center",
                va="center",
                fontsize=9.5,
                rotation=90,  # two digits are wider than a box
                color=color,
                bbox=box,
                weight="bold" if is_new else "normal",
            )
        axes.text(0, -row + 0.37, recipe, va="bottom", fontsize=10, color=INK)
    longest = max(len(plan) for plan in plans.values())
    axes.set(xlim=(-0.2, longest + 0.2), ylim=(-len(plans) + 0.6, 0.7), xticks=[], yticks=[])
    axes.set_xlabel(f"the {longest} blocks from bottom (left) to top;\nnumber: the old block")
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)
    return figure


def expansion_differences(differences: list[dict[str, Any]]) -> "Figure":
    """Held-out bits per byte of each arm minus those of `32 continued` with the same seed: dots are
    seeds, bars are 95 % intervals.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 2.8))
    for row, arm in enumerate(differences):
        if arm["interval"] is not None:
            axes.plot(
                arm["interval"],
                [-row, -row],
                color=BLUE,
                linewidth=5,
                alpha=0.35,
                solid_capstyle="butt",
            )
        axes.plot(arm["by_seed"], [-row] * len(arm["by_seed"]), "o", color=BLUE, markersize=5)
        axes.plot([arm["mean"]], [-row], "|", color=INK, markersize=16, markeredgewidth=2)
    axes.axvline(0, color=INK, linewidth=1.0)
    axes.set_yticks([-row for row in range(len(differences))], [arm["arm"] for arm in differences])
    axes.set(
        xlabel="bits per byte above 32 blocks continued\n(right is worse)",
        ylim=(-len(differences) + 0.4, 0.6),
    )
    return figure
