"""Figures of notebook 10, and the same figures in words.

Guarantees: a figure's text alternative is made from the same values as the figure.
Out of scope: tables (report.py), verdicts.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from moxin_lab.lab import claims
from moxin_lab.lab.show import OKABE_ITO, PHONE_WIDTH
from moxin_lab.openness import mof
from moxin_lab.openness.report import NUMERALS, verdict_counts

BLUE, VERMILION = OKABE_ITO[:2]
LOOKS = {
    "counts": {"marker": "o", "color": BLUE, "s": 95},
    "counts, with a warning": {
        "marker": "o",
        "facecolor": "white",
        "edgecolor": BLUE,
        "linewidth": 1.8,
        "s": 80,
    },
    "not included": {"marker": "x", "color": "#777777", "linewidth": 1.5, "s": 45},
}
"""Three marks of different shape, so that the figure can be read without colour."""
VERDICT_LOOKS = {
    "reproduced": {"color": BLUE, "hatch": ""},
    "contradicted": {"color": VERMILION, "hatch": "//"},
    "no difference seen": {"color": "#56B4E9", "hatch": ".."},
    "undecided": {"color": "#E69F00", "hatch": "xx"},
    "not attempted": {"color": "#d5d5d5", "hatch": ""},
    "not testable as stated": {"color": "#f2f2f2", "hatch": "\\\\"},
}


def component_figure(evaluations: Mapping[str, mof.Evaluation]) -> Figure:
    """One mark per component (rows, by class) and reading (columns)."""
    components = next(iter(evaluations.values())).components
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 7.2), layout="constrained")
    drawn: set[str] = set()
    for x, evaluation in enumerate(evaluations.values()):
        for y, component in enumerate(evaluation.components):
            look = _look(component)
            axes.scatter(x, y, label=None if look in drawn else look, **LOOKS[look])
            drawn.add(look)
    names = [
        component.name + ("" if component.required else " (optional)") for component in components
    ]
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(
        range(len(evaluations)), evaluations, rotation=50, ha="left", rotation_mode="anchor"
    )
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(axis="x", visible=False)
    axes.set(xlim=(-0.5, len(evaluations) - 0.1), ylim=(len(names) - 0.5, -0.5))
    for y in range(1, len(components)):
        if components[y].mof_class != components[y - 1].mof_class:
            axes.axhline(y - 0.5, color="#555555", linewidth=0.9)
    for number in (3, 2, 1):
        rows = [y for y, component in enumerate(components) if component.mof_class == number]
        axes.text(
            len(evaluations) - 0.55,
            sum(rows) / len(rows),
            f"class {NUMERALS[number]}",
            rotation=270,
            va="center",
        )
    axes.spines[["left", "bottom"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    order = [labels.index(name) for name in LOOKS if name in labels]
    figure.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="outside lower center", ncols=3
    )
    return figure


def component_alt(evaluations: Mapping[str, mof.Evaluation]) -> str:
    """The figure of `component_figure` in words."""
    parts = []
    for name, evaluation in evaluations.items():
        absent = [
            component.name for component in evaluation.components if component.status != "included"
        ]
        parts.append(f"{name}: {17 - len(absent)} of 17 count; not {', '.join(absent)}.")
    return "Grid of 17 components by four readings. " + " ".join(parts)


def verdict_figure(verdicts: Sequence[claims.Verdict]) -> Figure:
    """Claims by topic: one stacked bar per topic of the verdicts that occur, with counts."""
    counts = verdict_counts(verdicts)
    figure, axes = plt.subplots(
        figsize=(PHONE_WIDTH, 0.42 * len(counts) + 1.5), layout="constrained"
    )
    left = pd.Series(0, index=counts.index)
    for verdict, look in VERDICT_LOOKS.items():
        if not counts[verdict].any():
            continue
        axes.barh(
            counts.index, counts[verdict], left=left, label=verdict, edgecolor="white", **look
        )
        for topic, count in counts[verdict].items():
            if count:
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.9}
                axes.text(
                    left[topic] + count / 2,
                    topic,
                    str(count),
                    ha="center",
                    va="center",
                    fontsize=10,
                    bbox=box,
                )
        left += counts[verdict]
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="published claims", ylabel="")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def verdict_alt(verdicts: Sequence[claims.Verdict]) -> str:
    """The figure of `verdict_figure` in words."""
    rows = [
        f"{topic}: " + ", ".join(f"{count} {verdict}" for verdict, count in row.items() if count)
        for topic, row in verdict_counts(verdicts).iterrows()
    ]
    return "Stacked bars of claims by topic. " + "; ".join(rows) + "."


def _look(component: mof.Component) -> str:
    if component.status != "included":
        return "not included"
    return "counts" if component.type_appropriate else "counts, with a warning"
