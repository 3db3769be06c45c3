"""Figures of the tokenizer notebook: the runs of a sentence, the blocks of the vocabulary, bars by
language.

Returns HTML or a matplotlib figure; showing it with its text alternative is the notebook's. Colours
are Okabe and Ito's, and no figure says by colour alone what its labels do not say too.
"""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from moxin_lab.tokenizer.routed import Block

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "special": "#777777",
    "byte": "#000000",
    "shared": "#56B4E9",
    "latin": "#0072B2",
    "han": "#D55E00",
    "kana": "#009E73",
    "hangul": "#CC79A7",
    "other": "#E69F00",
}
PALE = {"shared", "hangul", "other"}  # colours that carry black letters better than white
HATCHES = ("", "///", "...", "xx")


def runs_html(runs: Sequence[tuple[str, str]], caption: str, scale: str) -> str:
    """A text as a row of labelled boxes, one a run: its colour and, in words under it, its expert.
    Spaces show as ␣.
    """
    items = "".join(
        f'<li style="display:inline-block;margin:0 .25rem .5rem 0;padding:.15rem .4rem;color:#111;background:#f4f4f4;'
        f'border-bottom:.25rem solid {COLOURS[expert]};text-align:center">'
        f'<span style="white-space:pre-wrap">{escape(run.replace(" ", "␣").replace(chr(10), "⏎"))}</span>'
        f'<br><span style="font-size:.75em">{expert}</span></li>'
        for expert, run in runs
    )
    return (
        f'<figure class="moxin-figure"><ol style="list-style:none;padding:0;margin:0">{items}</ol>'
        f'<figcaption>{escape(caption)} <span class="scale">{escape(scale)} scale</span></figcaption></figure>'
    )


def blocks_figure(blocks: Sequence[Block]) -> "Figure":
    """The vocabulary as one bar of ids from 0, a segment a block; blocks too narrow for a name are
    named below with a line.
    """
    import matplotlib.pyplot as plt

    total = blocks[-1].stop
    figure, axes = plt.subplots(figsize=(7.0, 2.1))
    narrow = [block for block in blocks if len(block) <= 0.09 * total]
    first = [
        block for block in narrow if block.stop < 0.2 * total
    ]  # the leftmost hangs lowest, clear of the next line
    lanes = {
        block: lane
        for group in (first[::-1], narrow[len(first) :])
        for lane, block in enumerate(group)
    }
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
            axes.text(
                middle, depth, f" {block.name} {len(block):,} ", ha=side, va="center", fontsize=10
            )
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
    axes.set(xlim=(0, total), ylim=(-1.85, 0.4), yticks=[], xlabel="id (number of the token)")
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    return figure


def bars_figure(frame: pd.DataFrame, value: str, ylabel: str) -> "Figure":
    """Grouped bars: a group a language, a bar a tokenizer with its interval.

    frame: columns `language`, `tokenizer`, `low`, `high` and the one named by `value`.
    """
    import matplotlib.pyplot as plt

    tokenizers, languages = (
        list(dict.fromkeys(frame["tokenizer"])),
        list(dict.fromkeys(frame["language"])),
    )
    width = 0.8 / len(tokenizers)
    figure, axes = plt.subplots(figsize=(7.0, 3.6))
    for number, name in enumerate(tokenizers):
        rows = frame[frame["tokenizer"] == name].set_index("language").loc[languages]
        x = [
            position + (number - (len(tokenizers) - 1) / 2) * width
            for position in range(len(languages))
        ]
        errors = [rows[value] - rows["low"], rows["high"] - rows[value]]
        axes.bar(
            x,
            rows[value],
            width * 0.94,
            yerr=errors,
            label=name,
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor="white",
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
        )
    axes.set(ylabel=ylabel, xticks=range(len(languages)), xticklabels=languages)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=len(tokenizers))
    return figure
