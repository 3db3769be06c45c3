"""Figures of the tokenizer notebook: a sentence's script runs, the vocabulary's blocks, and bars.

Guarantees: a figure's labels state everything that its colours state. Colours are the
colour-blind-safe palette of Okabe and Ito.
Out of scope: displaying a figure and writing its text alternative, which the notebook does.
"""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from moxin_lab.lab import show
from moxin_lab.tokenizer.routed import Block

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "special": "#777777",
    "byte": "#000000",
    "shared": "#56B4E9",
    "common": "#999999",
    "latin": "#0072B2",
    "cjk": "#D55E00",
    "hangul": "#CC79A7",
    "cyrillic": "#009E73",
    "arabic": "#F0E442",
    "devanagari": "#56B4E9",
    "thai": "#777777",
    "other": "#E69F00",
}
PALE = {"shared", "common", "hangul", "arabic", "devanagari", "other"}
"""Blocks whose colour needs black letters; the others carry white ones."""
HATCHES = ("", "///", "...", "xx")


def runs_html(runs: Sequence[tuple[str, str]], caption: str, scale: str) -> str:
    """HTML of a text as a row of boxes, one per run, each labelled with its expert.

    Spaces are shown as ␣ and line ends as ⏎.
    """
    items = "".join(_run_box(expert, run) for expert, run in runs)
    return (
        f'<figure class="moxin-figure"><ol style="list-style:none;padding:0;margin:0">{items}</ol>'
        f"<figcaption>{escape(caption)} "
        f'<span class="scale">{escape(scale)} scale</span></figcaption></figure>'
    )


def show_runs(runs: Sequence[tuple[str, str]], caption: str, scale: str) -> None:
    """Display `runs_html` in the notebook."""
    show.html_output(runs_html(runs, caption, scale), caption)


def _run_box(expert: str, run: str) -> str:
    visible = run.replace(" ", "␣").replace("\n", "⏎")
    return (
        '<li style="display:inline-block;margin:0 .25rem .5rem 0;padding:.15rem .4rem;'
        "color:#111;background:#f4f4f4;"
        f'border-bottom:.25rem solid {COLOURS[expert]};text-align:center">'
        f'<span style="white-space:pre-wrap">{escape(visible)}</span>'
        f'<br><span style="font-size:.75em">{expert}</span></li>'
    )


def blocks_figure(blocks: Sequence[Block]) -> "Figure":
    """The vocabulary as one bar of ids, one segment per block that has ids.

    A block too narrow to hold its name is named below the bar, at the end of a line.
    """
    import matplotlib.pyplot as plt

    total = blocks[-1].stop
    blocks = [block for block in blocks if len(block)]
    narrow = [block for block in blocks if len(block) <= 0.09 * total]
    # On the left edge, the leftmost label hangs lowest, clear of the next block's line.
    first = [block for block in narrow if block.stop < 0.2 * total]
    lanes = {
        block: lane
        for group in (first[::-1], narrow[len(first) :])
        for lane, block in enumerate(group)
    }
    lowest = -0.85 - 0.5 * max(lanes.values(), default=0)
    figure, axes = plt.subplots(figsize=(show.PHONE_WIDTH, 1.0 - 0.55 * lowest))
    for block in blocks:
        axes.barh(
            0,
            len(block),
            left=block.start,
            height=0.6,
            color=COLOURS[block.name],
            edgecolor="white",
            linewidth=1,
        )
        middle = (block.start + block.stop) / 2
        if block in lanes:
            depth = -0.55 - 0.5 * lanes[block]
            side = "right" if middle > 0.9 * total else "left"
            axes.plot([middle, middle], [-0.3, depth], color="#555555", linewidth=0.8)
            clear = middle + (-0.006 if side == "right" else 0.006) * total  # of its line
            label = f"{block.name} {len(block):,}"
            axes.text(clear, depth, label, ha=side, va="center", fontsize=10)
        else:
            ink = "black" if block.name in PALE else "white"
            label = f"{block.name}\n{len(block):,}"
            axes.text(
                middle,
                0,
                label,
                ha="center",
                va="center",
                color=ink,
                fontsize=10,
                fontweight="bold",
            )
    axes.set(xlim=(0, total), ylim=(lowest, 0.4), yticks=[], xlabel="token id")
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    return figure


def trade_off_figure(curve: pd.DataFrame, chosen: float, floor: float) -> "Figure":
    """What the favoured languages gain over the joint BPE and what the others pay, by factor.

    curve: the table of `budget.trade_off`. chosen: its factor has a line. floor: of English.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(show.PHONE_WIDTH, 3.6))
    for (language, rows), marker in zip(curve.groupby("language"), "osD^vPX", strict=False):
        percent = 100 * (rows["relative"] - 1)
        axes.plot(rows["factor"], percent, marker=marker, label=language)
    axes.axvline(chosen, color="#333333", linewidth=1, linestyle="--")
    axes.text(chosen, axes.get_ylim()[1], f" chosen: {chosen:g}", va="top", fontsize=10)
    axes.axhline(0, color="#333333", linewidth=1)
    axes.axhline(100 * (floor - 1), color="#0072B2", linewidth=1, linestyle=":")
    axes.set(
        xlabel="weight of Chinese, Japanese and Korean (others: 1)",
        ylabel="bytes per token over\nthe joint BPE, %",
    )
    axes.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.2))
    return figure


def bars_figure(frame: pd.DataFrame, value: str, ylabel: str) -> "Figure":
    """Grouped bars with intervals: one group per language, one bar per tokenizer.

    frame: columns `language`, `tokenizer`, `low`, `high` and the one that `value` names.
    """
    import matplotlib.pyplot as plt

    tokenizers = list(dict.fromkeys(frame["tokenizer"]))
    languages = list(dict.fromkeys(frame["language"]))
    width = 0.8 / len(tokenizers)
    figure, axes = plt.subplots(figsize=(show.PHONE_WIDTH, 3.6))
    for index, name in enumerate(tokenizers):
        rows = frame[frame["tokenizer"] == name].set_index("language").loc[languages]
        offset = (index - (len(tokenizers) - 1) / 2) * width
        x = [position + offset for position in range(len(languages))]
        errors = [rows[value] - rows["low"], rows["high"] - rows[value]]
        axes.bar(
            x,
            rows[value],
            width * 0.94,
            yerr=errors,
            label=name,
            hatch=HATCHES[index % len(HATCHES)],
            edgecolor="white",
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
        )
    axes.set(ylabel=ylabel, xticks=range(len(languages)), xticklabels=languages)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=len(tokenizers))
    return figure
