"""Figures of notebook 03, drawn with matplotlib: the block, masks, bytes, times, sizes by depth,
the expansion.

Each function takes numbers or a configuration and returns a figure; nothing is computed here but
positions on paper.
"""

from typing import Any

import pandas as pd

from moxin_lab.model.config import MoxinConfig

INK, FRAME = "#222222", "#555555"
FILLS = {"norm": "#F3E9C6", "attention": "#CFE3F2", "ffn": "#D3EBDF", "plain": "#EEEEEE"}


def block(config: MoxinConfig) -> Any:
    """The decoder from token ids to logits, bottom to top, with one block opened."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 7.4))
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

    def arrow(points: list[tuple[float, float]], head: bool = True) -> None:
        xs, ys = zip(*(points[:-1] if head else points), strict=True)
        if len(xs) > 1:
            axes.plot(xs, ys, color=FRAME, linewidth=1.3, zorder=1)
        if head:
            style = {
                "arrowstyle": "-|>",
                "color": FRAME,
                "linewidth": 1.3,
                "shrinkA": 0,
                "shrinkB": 0,
            }
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


def masks(panels: dict[str, Any]) -> Any:
    """Bool matrices [queries, keys] side by side, True painted; the dictionary's keys are the
    titles.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    figure, all_axes = plt.subplots(1, len(panels), figsize=(7.0, 2.9), sharey=True)
    for axes, (title, matrix) in zip(all_axes, panels.items(), strict=True):
        size = len(matrix)
        axes.imshow(
            matrix,
            cmap=ListedColormap(["#F4F4F4", "#0072B2"]),
            vmin=0,
            vmax=1,
            extent=(0, size, size, 0),
        )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("key place")
        axes.grid(False)
    all_axes[0].set_ylabel("query place")
    return figure


def cache_bytes(frame: pd.DataFrame, window: int) -> Any:
    """Bytes of both caches against the length of the text, from `measures.cache_bytes`."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 3.6))
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


def influence(frames: dict[int, pd.DataFrame], window: int) -> Any:
    """Influence by distance for several depths on a logarithmic axis, from `measures.influence`;
    keys are depths.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 4.0))
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


def residual_by_depth(frame: pd.DataFrame) -> Any:
    """Size of the residual stream and of its gradient behind each block, from
    `initialisation.residual_by_depth`.

    Each seed is a thin line.
    """
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(7.0, 3.4), sharex=True)
    for axes, column, title in zip(
        panels, ("rms", "gradient"), ("the stream", "its gradient"), strict=True
    ):
        for scheme, color, dashes in (
            ("depth-scaled", "#0072B2", ()),
            ("plain", "#D55E00", (5, 2)),
        ):
            part = frame[frame["scheme"] == scheme]
            for number, (_, one) in enumerate(part.groupby("seed")):
                label = (
                    {"depth-scaled": "divided by √(2L)", "plain": "not divided"}[scheme]
                    if number == 0
                    else None
                )
                axes.plot(
                    one["block"],
                    one[column],
                    color=color,
                    dashes=dashes,
                    linewidth=1.2,
                    label=label,
                )
        axes.set(yscale="log", xlabel="behind block (0: embedding)")
        axes.set_title(title, fontsize=10)
    panels[0].set_ylabel("root mean square")
    panels[1].legend(loc="upper right", title="o_proj, down_proj")
    return figure


def attention_times(times: pd.DataFrame, window: int) -> Any:
    """Milliseconds against tokens on logarithmic axes, from `costs.attention_times`, beside the
    work of window and triangle.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 4.0))
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
    for words, work in (
        ("S × W", pairs),
        ("S × S", pairs.index.to_series() * (pairs.index.to_series() + 1) / 2),
    ):
        line = low * work / work.iloc[0]
        axes.plot(line.index, line, color="#999999", linewidth=1.0, zorder=0)
        axes.annotate(
            words,
            (lengths[-1], line.iloc[-1]),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            color="#555555",
        )
    axes.axvline(window, color="#999999", linewidth=0.8, linestyle=":")
    axes.annotate(
        f"window {window:,}",
        (window, 0.99),
        xycoords=("data", "axes fraction"),
        xytext=(3, 0),
        textcoords="offset points",
        va="top",
        fontsize=9,
        color="#555555",
    )
    axes.set(
        xscale="log", yscale="log", xlabel="tokens S of the text", ylabel="milliseconds, forward"
    )
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 0.93))
    return figure


def expansion_plans(
    plans: dict[str, list[tuple[int, bool]]], silent: tuple[str, ...] = ("identity",)
) -> Any:
    """The blocks of each recipe from bottom (left) to top, numbered by the old block whose weights
    they have.

    New ones are filled; those of the recipes in `silent`, which add nothing at first, are hatched.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 0.75 * len(plans) + 0.9))
    for row, (recipe, plan) in enumerate(plans.items()):
        for place, (source, is_new) in enumerate(plan):
            quiet = is_new and recipe in silent
            fill = "#EEEEEE" if not is_new else "white" if quiet else "#D55E00"
            axes.add_patch(
                plt.Rectangle(
                    (place + 0.05, -row - 0.32),
                    0.9,
                    0.64,
                    facecolor=fill,
                    edgecolor="#D55E00" if is_new else FRAME,
                    linewidth=1.4 if quiet else 0.6,
                    hatch="////" if quiet else None,
                )
            )
            color = "white" if is_new and not quiet else INK
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6} if quiet else None
            axes.text(
                place + 0.5,
                -row,
                str(source),
                ha="center",
                va="center",
                fontsize=7,
                color=color,
                bbox=box,
                weight="bold" if is_new else "normal",
            )
    axes.set_yticks([-row for row in range(len(plans))], list(plans))
    longest = max(len(plan) for plan in plans.values())
    axes.set(xlim=(-0.2, longest + 0.2), ylim=(-len(plans) + 0.5, 0.5))
    axes.set_xlabel(f"bottom (left) to top of the {longest} blocks; number: old block copied")
    axes.set_xticks([])
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)
    return figure


def expansion_differences(differences: list[dict[str, Any]]) -> Any:
    """Held-out bits a byte of each arm minus `32 continued` of the same seed: dots are seeds, bars
    95 % intervals.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 2.6))
    for row, one in enumerate(differences):
        if one["interval"] is not None:
            axes.plot(
                one["interval"],
                [-row, -row],
                color="#0072B2",
                linewidth=5,
                alpha=0.35,
                solid_capstyle="butt",
            )
        axes.plot(one["by_seed"], [-row] * len(one["by_seed"]), "o", color="#0072B2", markersize=5)
        axes.plot([one["mean"]], [-row], "|", color=INK, markersize=16, markeredgewidth=2)
    axes.axvline(0, color=INK, linewidth=1.0)
    axes.set_yticks([-row for row in range(len(differences))], [one["arm"] for one in differences])
    axes.set(
        xlabel="bits a byte above 32 blocks continued (right is worse)",
        ylim=(-len(differences) + 0.4, 0.6),
    )
    return figure
