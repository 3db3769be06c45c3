"""Figures of stage 01, data curation.

Guarantees: each figure shows measured numbers that are passed in.
Out of scope: displaying a figure (`stage.show_figure`).
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from moxin_lab.data.dedup import collision_probability

LANGUAGES = {"en": "English", "zh": "Chinese", "ja": "Japanese", "ko": "Korean", "code": "code"}
OUTCOMES = ("train", "held out", "duplicate", "other language", "too short", "unreadable")
_SHADES = ("#0072B2", "#56B4E9", "#E69F00", "#CC79A7", "#999999", "#000000")
_STEP_OF = {
    "extraction": "unreadable",
    "short filter": "too short",
    "language": "other language",
    "exact duplicates": "duplicate",
    "near-duplicates": "duplicate",
    "split": "duplicate",
}


def outcomes(reasons: pd.DataFrame, train: pd.Series, heldout: pd.Series) -> pd.DataFrame:
    """Number of documents by language (rows) and outcome (columns of `OUTCOMES`).

    reasons: the table of `Funnel.reasons()`, without evaluation sets. train, heldout: number of
    documents by language.
    """
    lost = (
        reasons.assign(outcome=reasons["step"].map(_STEP_OF))
        .groupby(["language", "outcome"])["documents"]
        .sum()
    )
    table = lost.unstack(fill_value=0).reindex(columns=list(OUTCOMES), fill_value=0)
    table = table.reindex(sorted(set(table.index) | set(train.index), key=_order), fill_value=0)
    table["train"] = train.reindex(table.index, fill_value=0)
    table["held out"] = heldout.reindex(table.index, fill_value=0)
    return table.astype(int)


def outcome_figure(table: pd.DataFrame) -> Figure:
    """Outcomes of each language's documents, as shares of all; wide segments show their counts."""
    figure, axes = plt.subplots(figsize=(7.0, 0.55 * len(table) + 1.5))
    names = [f"{LANGUAGES.get(key, key)}\n({total:,})" for key, total in table.sum(axis=1).items()]
    left = np.zeros(len(table))
    for outcome, shade in zip(OUTCOMES, _SHADES, strict=True):
        share = (table[outcome] / table.sum(axis=1)).to_numpy()
        axes.barh(
            names, share, left=left, color=shade, label=outcome, edgecolor="white", linewidth=0.8
        )
        for row, (value, count) in enumerate(zip(share, table[outcome], strict=True)):
            if value >= 0.06:
                ink = "white" if shade in ("#0072B2", "#000000") else "black"
                axes.text(
                    left[row] + value / 2,
                    row,
                    f"{count:,}",
                    ha="center",
                    va="center",
                    color=ink,
                    fontsize=9,
                )
        left += share
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("share of the documents that entered")
    axes.grid(False, axis="y")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def length_figure(measured: pd.DataFrame, minimum: int) -> Figure:
    """Cumulative distribution of the pages' counted characters: one curve per language.

    minimum: the limit of the length filter, which is marked.
    """
    figure, axes = plt.subplots()
    languages = [key for key in LANGUAGES if key in set(measured["language"])]
    for language, style in zip(languages, ("-", "--", "-.", ":", "-"), strict=False):
        values = np.sort(measured.loc[measured["language"] == language, "characters"].clip(lower=1))
        axes.plot(
            values,
            np.arange(1, len(values) + 1) / len(values),
            linestyle=style,
            label=LANGUAGES[language],
        )
    axes.axvline(minimum, color="#555555", linewidth=1.2)
    axes.annotate(
        f"filter: {minimum}",
        (minimum, 0.97),
        xytext=(-5, 0),
        textcoords="offset points",
        ha="right",
        va="top",
    )
    axes.set_xscale("log")
    axes.set_xlim(20, None)
    axes.set_xlabel("characters without ASCII punctuation and white space")
    axes.set_ylabel("share of pages at or below")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="lower right")
    return figure


def recall_figure(
    recall: pd.DataFrame, bands: dict[str, tuple[int, int]], threshold: float
) -> Figure:
    """Measured share of pairs found, with 95 % intervals, and the theoretical curve.

    recall: the table of `measures.recall_by_similarity`. bands: name to (bands, rows); each banding
    has its own colour.
    """
    figure, axes = plt.subplots()
    grid = np.linspace(0.3, 1.0, 200)
    for offset, (name, (num_bands, num_rows)), marker in zip(
        (-0.004, 0.004), bands.items(), ("o", "s"), strict=True
    ):
        (line,) = axes.plot(
            grid, collision_probability(grid, num_bands, num_rows), label=f"{name}, theory"
        )
        part = recall[(recall["bands"] == name) & (recall["pairs"] > 0)]
        spread = [part["share"] - part["share_low"], part["share_high"] - part["share"]]
        axes.errorbar(
            part["similarity"] + offset,
            part["share"],
            yerr=np.abs(spread),
            fmt=marker,
            color=line.get_color(),
            capsize=3,
            label=f"{name}, measured",
        )
    axes.axvline(threshold, color="#555555", linewidth=1.2)
    axes.annotate(
        f"threshold {threshold}", (threshold, 0.02), xytext=(4, 0), textcoords="offset points"
    )
    axes.set_xlabel("true Jaccard similarity of the pair")
    axes.set_ylabel("share of pairs found")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(-0.03, 1.05)
    axes.legend(loc="upper left")
    return figure


def _order(language: str) -> int:
    return list(LANGUAGES).index(language) if language in LANGUAGES else len(LANGUAGES)
