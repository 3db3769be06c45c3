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
from moxin_lab.data.scores import Scores
from moxin_lab.lab.show import PHONE_WIDTH

LANGUAGES = {"en": "English", "zh": "Chinese", "ja": "Japanese", "ko": "Korean", "code": "code"}
OUTCOMES = (
    "train",
    "held out",
    "duplicate",
    "evaluation item",
    "other language",
    "too short",
    "unreadable",
)
_SHADES = ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#999999", "#000000")
_STEP_OF = {
    "reading": "unreadable",
    "short filter": "too short",
    "language": "other language",
    "decontamination": "evaluation item",
    "exact duplicates": "duplicate",
    "near-duplicates": "duplicate",
    "split": "duplicate",
}
MOST_LANGUAGES = 10
"""Bars of their own; the languages with fewer documents share one."""


def outcomes(reasons: pd.DataFrame, train: pd.Series, heldout: pd.Series) -> pd.DataFrame:
    """Number of documents by language (rows) and outcome (columns of `OUTCOMES`).

    reasons: of `artifact.make`. train, heldout: number of documents by language.
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
    small = table.sum(axis=1).sort_values().index[: max(0, len(table) - MOST_LANGUAGES)]
    if len(small):
        others = table.loc[small].sum().to_frame(f"{len(small)} others").T
        table = pd.concat([table.drop(small), others])
    return table.astype(int)


def outcome_figure(table: pd.DataFrame) -> Figure:
    """Outcomes of each language's documents, as shares of all; wide segments show their counts."""
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 0.55 * len(table) + 1.8))
    names = [f"{LANGUAGES.get(key, key)}\n({total:,})" for key, total in table.sum(axis=1).items()]
    left = np.zeros(len(table))
    for outcome, shade in zip(OUTCOMES, _SHADES, strict=True):
        share = (table[outcome] / table.sum(axis=1)).to_numpy()
        axes.barh(
            names, share, left=left, color=shade, label=outcome, edgecolor="white", linewidth=0.8
        )
        for row, (value, count) in enumerate(zip(share, table[outcome], strict=True)):
            if value >= 0.09:
                ink = "white" if shade in ("#0072B2", "#000000") else "black"
                axes.text(
                    left[row] + value / 2,
                    row,
                    f"{count:,}",
                    ha="center",
                    va="center",
                    color=ink,
                    fontsize=10,
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
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 3.6))
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


def length_alt(shares: pd.DataFrame, minimum: int) -> str:
    """The figure of `length_figure` in words. shares: of `measures.short_shares`."""
    percent = shares.set_index("language")["short, %"].rename(LANGUAGES)
    crossing = ", ".join(f"{name} {value:.0f} %" for name, value in percent.items())
    return (
        f"Four rising curves, one per language. Share of pages below {minimum} characters: "
        f"{crossing}."
    )


def length_caption(shares: pd.DataFrame, minimum: int) -> str:
    """What `length_figure` shows: the languages that lose most and least. shares: as there."""
    percent = shares.set_index("language")["short, %"].rename(LANGUAGES)
    most, least = percent.idxmax(), percent.idxmin()
    return (
        f"Length of the same help pages in four languages, untranslated pages included: the limit "
        f"of {minimum} characters drops {percent[most]:.0f} % of the {most} pages and "
        f"{percent[least]:.0f} % of the {least} ones."
    )


def outcome_caption(table: pd.DataFrame) -> str:
    """What `outcome_figure` shows: the languages that keep least and most for training."""
    kept = (100 * table["train"] / table.sum(axis=1)).rename(LANGUAGES)
    least, most = kept.idxmin(), kept.idxmax()
    return (
        "Outcome of the documents of each language (in brackets: documents that entered). Training "
        f"keeps {kept[most]:.0f} % of {most} and {kept[least]:.0f} % of {least}."
    )


def outcome_alt(table: pd.DataFrame) -> str:
    """The figure of `outcome_figure` in words."""
    bars = ". ".join(
        f"{language}: " + ", ".join(f"{count} {name}" for name, count in row.items())
        for language, row in table.iterrows()
    )
    return f"One bar per language. {bars}."


def collision_figure(bands: dict[str, tuple[int, int]], threshold: float) -> Figure:
    """The theoretical curve of each banding, and where it crosses the threshold."""
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 3.2))
    grid = np.linspace(0.3, 1.0, 200)
    for (name, (num_bands, num_rows)), style in zip(bands.items(), ("-", "-."), strict=True):
        (line,) = axes.plot(
            grid, collision_probability(grid, num_bands, num_rows), style, label=name
        )
        value = collision_probability(threshold, num_bands, num_rows)
        axes.plot([threshold], [value], "o", color=line.get_color())
        axes.annotate(
            f"{value:.0%}",
            (threshold, value),
            xytext=(-8, 4),
            textcoords="offset points",
            ha="right",
        )
    axes.axvline(threshold, color="#555555", linewidth=1.2, linestyle="--")
    axes.set_xlabel("true Jaccard similarity of the pair")
    axes.set_ylabel("chance to be found")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="upper left")
    return figure


def collision_in_words(bands: dict[str, tuple[int, int]], threshold: float) -> str:
    """What each banding finds at the threshold, in theory."""
    values = " and ".join(
        f"{100 * collision_probability(threshold, *shape):.0f} % with {name}"
        for name, shape in bands.items()
    )
    return f"At a similarity of exactly {threshold} it is {values}."


def collision_alt(bands: dict[str, tuple[int, int]], threshold: float) -> str:
    """The figure of `collision_figure` in words."""
    return (
        "Two S-shaped curves: the chance that a pair is found, by its similarity. "
        f"{collision_in_words(bands, threshold)}"
    )


def recall_in_words(recall: pd.DataFrame, bands: dict[str, tuple[int, int]]) -> str:
    """How many measured shares have the theory of their mean similarity in their interval.
    recall, bands: as `recall_figure` takes them.
    """
    shown = recall[recall["pairs"] > 0]
    theory = [
        collision_probability(row.similarity, *bands[row.bands]) for row in shown.itertuples()
    ]
    hits = int(((shown["share_low"] <= theory) & (theory <= shown["share_high"])).sum())
    return f"{hits} of {len(shown)} intervals contain the chance that theory gives."


def recall_alt(recall: pd.DataFrame) -> str:
    """The figure of `recall_figure` in words."""
    points = "; ".join(
        f"{row.bands}, similarity {row.low} to {row.high}: {row.found} of {row.pairs}"
        for row in recall.itertuples()
    )
    return f"Two S-shaped curves with measured points near them. Pairs found: {points}."


def recall_figure(
    recall: pd.DataFrame, bands: dict[str, tuple[int, int]], threshold: float
) -> Figure:
    """Measured share of pairs found, with 95 % intervals, and the theoretical curve.

    recall: the table of `measures.recall_by_similarity`. bands: name to (bands, rows); each banding
    has its own colour.
    """
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 3.6))
    grid = np.linspace(0.3, 1.0, 200)
    for offset, (name, (num_bands, num_rows)), marker, style in zip(
        (-0.004, 0.004), bands.items(), ("o", "s"), ("-", "-."), strict=True
    ):
        (line,) = axes.plot(
            grid, collision_probability(grid, num_bands, num_rows), style, label=f"{name}, theory"
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
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def quality_figure(found: Scores) -> Figure:
    """The score's distribution for three kinds of pages, and the cut."""
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 4.0))
    edges = np.linspace(0, 1, 21)
    kinds = _kinds(found)
    for (name, values), style in zip(kinds.items(), ("-", "--", ":"), strict=True):
        heights = np.histogram(values, edges)[0] / max(1, len(values))
        label = f"{name} ({len(values):,})"
        axes.stairs(heights, edges, linestyle=style, linewidth=1.8, label=label)
    axes.axvline(found.cut, color="#555555", linewidth=1.2)
    axes.annotate(
        f"cut: {found.cut:.2f}",
        (found.cut, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-5, 0),
        textcoords="offset points",
        ha="right",
        va="top",
    )
    axes.set_xlim(0, 1)
    axes.set_xlabel("score: probability of a page written to be read")
    axes.set_ylabel("share of pages")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.legend(loc="outside upper center")
    return figure


def quality_alt(found: Scores) -> str:
    """The figure of `quality_figure` in words."""
    above = ", ".join(
        f"{name} {np.mean(values >= found.cut):.0%}" for name, values in _kinds(found).items()
    )
    return f"Three distributions of the score. At or above the cut of {found.cut:.2f}: {above}."


def _kinds(found: Scores) -> dict[str, np.ndarray]:
    return {
        "pages without a label": found.unlabelled,
        "guides and tutorials, not learnt from": found.good,
        "lists and generated pages, not learnt from": found.bad,
    }


def _order(language: str) -> int:
    return list(LANGUAGES).index(language) if language in LANGUAGES else len(LANGUAGES)
