"""Figures of notebook 09 from its tables, and the same figures in words.

Guarantees: a figure's text alternative is made from the same values as the figure.
Out of scope: computing a number (`knowledge.py`, `experiments.py`).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from moxin_lab.lab.show import PHONE_WIDTH
from moxin_lab.serving.documents import Document
from moxin_lab.serving.knowledge import AT, NAMES, Threshold
from moxin_lab.serving.passages import MAX_BYTES, Passage

COLOURS = {"BM25": "#0072B2", "vectors": "#E69F00", "both": "#009E73"}
MARKERS = {"BM25": "o", "vectors": "s", "both": "D"}
KINDS = {"text": "#56B4E9", "list": "#009E73", "table": "#E69F00", "code": "#CC79A7"}


def page(document: Document, cut: Sequence[Passage]) -> Figure:
    """A page as bars: one per paragraph, as long as it is, coloured by kind; every second passage
    is shaded, and a line marks how long a passage may be.
    """
    sizes = [len(paragraph.text.encode()) for paragraph in document.paragraphs]
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 1.4 + 0.16 * len(sizes)))
    for kind, colour in KINDS.items():
        rows = [row for row, one in enumerate(document.paragraphs) if one.kind == kind]
        if rows:
            axes.barh(rows, [sizes[row] for row in rows], color=colour, label=kind)
    for number, passage in enumerate(cut):
        if number % 2 == 0:
            axes.axhspan(
                passage.first - 1.5,
                passage.last - 0.5,
                color="black",
                alpha=0.07,
                label="every second passage" if number == 0 else None,
            )
    axes.axvline(MAX_BYTES, color="black", linewidth=1, linestyle="--", label="longest passage")
    axes.invert_yaxis()
    axes.set_xlabel("bytes of the paragraph")
    axes.set_ylabel("paragraph of the page")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def page_alt(document: Document, cut: Sequence[Passage]) -> str:
    """The figure of `page` in words."""
    kinds = pd.Series([paragraph.kind for paragraph in document.paragraphs]).value_counts()
    counted = ", ".join(f"{count} of kind {kind}" for kind, count in kinds.items())
    return (
        f"The page “{document.title}”: {len(document.paragraphs)} paragraphs ({counted}), cut into "
        f"{len(cut)} passages, which alternate between white and grey."
    )


def page_finding(document: Document, cut: Sequence[Passage]) -> str:
    """What `page` shows, in a sentence for its caption."""
    long = sum(len(one.text.encode()) > MAX_BYTES for one in document.paragraphs)
    return (
        f"“{document.title}”: {len(document.paragraphs)} paragraphs become {len(cut)} passages; "
        f"paragraphs that are cut because they are longer than {MAX_BYTES} bytes: {long}."
    )


def recall(table: pd.DataFrame) -> Figure:
    """Recall of pages in the question's own language: one marker per half, whiskers for
    intervals. table: of `knowledge.recall_table`.
    """
    part = _own(table)
    languages = list(dict.fromkeys(part.index.get_level_values("question")))
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 3.4))
    for place, (name, colour) in enumerate(COLOURS.items()):
        rows = part.xs(name, level="retrieval").reset_index("pages", drop=True).loc[languages]
        axes.errorbar(
            np.arange(len(languages)) + 0.18 * (place - 1),
            rows["recall"],
            yerr=np.abs(rows[["low", "high"]].to_numpy().T - rows["recall"].to_numpy()),
            fmt=MARKERS[name],
            color=colour,
            capsize=2.5,
            label=name,
        )
    axes.axhline(0.9, color="black", linewidth=1, linestyle="--", label="aim, 0.9")
    axes.set_xticks(np.arange(len(languages)), languages)
    lowest = np.floor(10 * min(part["low"].min(), 0.9)) / 10
    axes.set_ylim(max(0.0, lowest - 0.1), 1.02)
    axes.set_xlabel("language of question and pages")
    axes.set_ylabel(f"recall at {AT}")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    return figure


def recall_alt(table: pd.DataFrame) -> str:
    """The figure of `recall` in words."""
    wide = _own(table)["recall"].reset_index("pages", drop=True).unstack()
    rows = [
        f"{language}: " + ", ".join(f"{name} {wide.loc[language, name]:.2f}" for name in COLOURS)
        for language in wide.index
    ]
    return f"Recall at {AT} by language. {'. '.join(rows)}. A dashed line at 0.9."


def across(table: pd.DataFrame) -> pd.DataFrame:
    """Recall of both halves together, by language of the question and of the pages."""
    wide = table.xs(NAMES["hybrid"], level="retrieval")["recall"].unstack()
    languages = list(dict.fromkeys(table.index.get_level_values("question")))
    return wide.loc[languages, languages].rename_axis(columns=None)


def coverage(
    answerable: Sequence[float], unanswerable: Sequence[float], limit: Threshold
) -> Figure:
    """How much of a question the best passage covers, for questions with and without an answer."""
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 3.0))
    bins = np.linspace(0, 1, 21)
    for values, colour, line, label in (
        (answerable, "#0072B2", "-", "its page is in the index"),
        (unanswerable, "#D55E00", ":", "its page is not"),
    ):
        weights = np.full(len(values), 1 / len(values))
        axes.hist(
            values,
            bins,
            weights=weights,
            histtype="step",
            linewidth=1.8,
            linestyle=line,
            color=colour,
            label=label,
        )
    axes.axvline(limit.coverage, color="black", linewidth=1, linestyle="--", label="threshold")
    axes.set_xlabel("share of the question's weight that one passage holds")
    axes.set_ylabel("share of questions")
    axes.legend(loc="upper left")
    return figure


def coverage_alt(
    answerable: Sequence[float], unanswerable: Sequence[float], limit: Threshold
) -> str:
    """The figure of `coverage` in words."""
    return (
        f"Histograms of coverage. Questions whose page is in the index: median "
        f"{np.median(answerable):.2f}. Questions whose page is not: {np.median(unanswerable):.2f}. "
        f"Threshold at {limit.coverage:.2f}."
    )


def adaptation(table: pd.DataFrame) -> Figure:
    """Bits per byte of held-out text of the product and of other text, by number of training
    rows and rank; a dashed line at the model before. table: of `Adaptations`.
    """
    figure, panels = plt.subplots(1, 2, figsize=(PHONE_WIDTH, 3.2), sharex=True)
    before, runs = table.iloc[0], table.iloc[1:]
    for axes, kind in zip(panels, ("product text", "general text"), strict=True):
        axes.axhline(before[kind], color="black", linewidth=1, linestyle="--", label="before")
        for place, (rank, part) in enumerate(runs.groupby(level="adapters", sort=False)):
            rows = part.index.get_level_values("rows").astype(str)
            axes.plot(rows, part[kind], marker="osD^"[place % 4], label=rank)
        axes.set_title(kind, pad=4)
        axes.set_xlabel("training rows")
    panels[0].set_ylabel("bits per byte (lower is better)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure


def adaptation_alt(table: pd.DataFrame) -> str:
    """The figure of `adaptation` in words."""
    rows = [
        f"{name}, {count} rows: product {row['product text']:.3f}, "
        f"general {row['general text']:.3f}"
        for (name, count), row in table.iterrows()
    ]
    return f"Held-out bits per byte. {'; '.join(rows)}."


def _own(table: pd.DataFrame) -> pd.DataFrame:
    asked = table.index.get_level_values("question")
    return table[asked == table.index.get_level_values("pages")]
