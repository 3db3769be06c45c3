"""Figures of the experiments on the pretraining recipe, from the JSON of `moxin-lab bench recipe`
and `bench smollm2-expansion`, and the same figures in words.

Guarantees: a figure's text alternative is made from the same values as the figure; arms and kinds
of line can be distinguished without colour.
Out of scope: computing a number (`bench/recipe_results.py`, `power_law.py`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from moxin_lab.lab.show import PHONE_WIDTH
from moxin_lab.pretraining.power_law import PowerLaw

BLUE, RED, GREY = "#0072B2", "#D55E00", "#555555"
UNITS = {"mean": "bits per byte", "nats_per_token": "nats per token"}
MEASURED = {"mean": "all text", "text": "all but code"}
"""Names of measures in a figure; others are called by their own."""
CHANGED = {
    "benchmark": "benchmark in phase 3",
    "dropout": "dropout 0.1",
    "initialisation": "0.02 for all weights",
    "label-smoothing": "label smoothing 0.1",
}
"""Changed arms in a figure whose own names say too little beside those of other experiments."""


def ladder(found: Mapping[str, Any], measure: str = "mean") -> Figure:
    """Held-out loss against compute: rungs, the law of all but the last, the law of all with its
    interval at the full scale. found: `ladder` of the JSON.
    """
    rungs, fits = found["rungs"], found["fits"][measure]
    compute = np.array([rung["flops"] for rung in rungs])
    losses = np.array([rung[measure] for rung in rungs])
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 4.2), layout="constrained")
    far = np.geomspace(compute[0] / 2, found["full_flops"], 200)
    near = far[far <= 4 * compute[-1]]
    first, last = _law(fits["all_but_last"]), _law(fits["all"])
    band = [one for name, one in fits["all"]["predictions"].items() if name.startswith("band")]
    axes.fill_between(
        [one["compute"] for one in band],
        [one["low"] for one in band],
        [one["high"] for one in band],
        color=BLUE,
        alpha=0.15,
        linewidth=0,
        label="95 % if the law goes on",
    )
    axes.plot(near, [first.at(c) for c in near], color=GREY, linestyle="--", label=_of(rungs[:-1]))
    axes.plot(far, [last.at(c) for c in far], color=BLUE, label=f"law of all {len(rungs)} rungs")
    _point(axes, fits["all_but_last"]["predictions"]["last rung"], GREY, "s", "predicted last rung")
    _point(axes, fits["all"]["predictions"]["full scale"], BLUE, "D", "8.1 B, 2 T tokens")
    axes.plot(compute, losses, "o", color=RED, markersize=7, label="measured", zorder=3)
    for rung, c, loss in zip(rungs, compute, losses, strict=True):
        axes.annotate(
            f"{rung['parameters'] / 1e6:.3g} M",
            (c, loss),
            xytext=(-4, -4),  # below and left: the laws and the prediction lie above and right
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=10,
        )
    axes.set_xscale("log")
    axes.set(xlabel="training compute (FLOPs)", ylabel=f"held-out {UNITS[measure]}", ylim=(0, None))
    axes.set_xlim(left=compute[0] / 20)  # room for the first rung's label
    axes.legend(frameon=False, loc="upper right")
    return figure


def ladder_alt(found: Mapping[str, Any], measure: str = "mean") -> str:
    """The figure of `ladder` in words."""
    rungs, fits = found["rungs"], found["fits"][measure]
    values = ", ".join(
        f"{rung['parameters'] / 1e6:.3g} M parameters, {rung['flops']:.1e} FLOPs: "
        f"{rung[measure]:.3f}"
        for rung in rungs
    )
    full = fits["all"]["predictions"]["full scale"]
    return (
        f"Held-out {UNITS[measure]} against compute: {values}. {fits['line']} All rungs' law gives "
        f"{full['value']:.2f} ({full['low']:.2f} to {full['high']:.2f}) at the "
        f"{full['compute']:.1e} FLOPs of 8.1 B parameters and 2 T tokens."
    )


def forest(
    verdicts: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]]
) -> Figure:
    """Each ablation's difference in bits per byte with its interval, changed minus recipe, and the
    spread of the recipe between seeds as a band. Differences of shares are not drawn.
    """
    rows = _drawn(verdicts, differences)
    figure, axes = plt.subplots(
        figsize=(PHONE_WIDTH, 1.9 + 0.42 * max(1, len(rows))), layout="constrained"
    )
    spreads = [row["recipe_spread"] for _, row in rows if row["recipe_spread"] is not None]
    if spreads:
        band = float(np.median(spreads))
        axes.axvspan(
            -band, band, color="#EDEDED", linewidth=0, label="spread of the recipe's seeds"
        )
    axes.axvline(0, color="#000000", linewidth=0.8)
    marks = {"better": "v", "worse": "^", "no difference seen": "o", "undecided": "x"}
    shown: set[str] = set()
    for place, (verdict, row) in enumerate(rows):
        said = verdict["verdict"]
        colour = {"better": BLUE, "worse": RED}.get(said, GREY)
        error = None
        if row["low"] is not None:
            error = [[row["difference"] - row["low"]], [row["high"] - row["difference"]]]
        axes.errorbar(
            row["difference"],
            place,
            xerr=error,
            fmt=marks[said],
            color=colour,
            capsize=3,
            markersize=7,
            label=None if said in shown else said,
        )
        shown.add(said)
    axes.set_yticks(range(len(rows)), [_label(verdict).replace(": ", ":\n") for verdict, _ in rows])
    axes.invert_yaxis()
    # One interval over the whole page would hide all others.
    reach = sorted(abs(row["difference"]) + (row["recipe_spread"] or 0) for _, row in rows)
    if reach and reach[-1] > 0:
        linear = max(reach[len(reach) // 2], 1e-6)
        axes.set_xscale("symlog", linthresh=linear)
        decades = range(math.floor(math.log10(linear)), math.ceil(math.log10(reach[-1])) + 1)
        ticks = [sign * digit * 10.0**n for n in decades for digit in (1, 3) for sign in (-1, 1)]
        axes.set_xticks([0, *ticks], ["0", *(f"{tick:+g}" for tick in ticks)])
        widest = max(max(abs(r["low"] or 0), abs(r["high"] or 0)) for _, r in rows)
        axes.set_xlim(-1.1 * max(widest, reach[-1]), 1.1 * max(widest, reach[-1]))
    axes.set_xlabel("bits per byte, changed minus recipe\n(left is better)")
    figure.legend(
        *axes.get_legend_handles_labels(),
        frameon=False,
        loc="outside lower center",
        ncols=2,
    )
    return figure


def forest_alt(
    verdicts: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]]
) -> str:
    """The figure of `forest` in words."""
    said = [
        f"{_label(verdict)} {row['difference']:+.3f}, {verdict['verdict']}"
        for verdict, row in _drawn(verdicts, differences)
    ]
    return "Bits per byte of the changed arm minus the recipe's: " + "; ".join(said) + "."


def expansion(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Each way to add blocks: its difference in bits per byte to the model continued as it is, a
    point for each seed and the interval. rows: `differences` of the JSON.
    """
    figure, axes = plt.subplots(
        figsize=(PHONE_WIDTH, 1.2 + 0.5 * max(1, len(rows))), layout="constrained"
    )
    axes.axvline(0, color="#000000", linewidth=0.8)
    for place, row in enumerate(rows):
        if row["interval"] is not None:
            low, high = row["interval"]
            error = [[row["mean"] - low], [high - row["mean"]]]
            axes.errorbar(row["mean"], place, xerr=error, fmt="none", color=BLUE, capsize=4)
        places = [place] * len(row["by_seed"])
        axes.plot(row["by_seed"], places, "o", color=RED, markersize=5, zorder=3)
    axes.set_yticks(range(len(rows)), [row["arm"].replace(", ", ",\n") for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("bits per byte, more blocks minus as it is\n(left is better)")
    return figure


def _drawn(
    verdicts: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    by_key = {(row["experiment"], row["measure"]): row for row in differences}
    keys = [(verdict, (verdict["experiment"], verdict["measure"])) for verdict in verdicts]
    return [
        (verdict, by_key[key])
        for verdict, key in keys
        if key in by_key and not key[1].endswith("_right")
    ]


def _label(verdict: Mapping[str, Any]) -> str:
    """The changed arm and the text that is measured, such as `32 blocks: all text`. A verdict's
    line begins with the arm.
    """
    arm = CHANGED.get(verdict["experiment"], verdict["line"].split(" against ")[0])
    return f"{arm}: {MEASURED.get(verdict['measure'], verdict['measure'].replace('_', ' '))}"


def _law(fit: Mapping[str, Any]) -> PowerLaw:
    return PowerLaw(fit["floor"], fit["scale"], fit["exponent"], fit["unit"])


def _of(rungs: Sequence[Any]) -> str:
    return f"law of the first {len(rungs)} rungs"


def _point(axes: Any, one: Mapping[str, float], colour: str, mark: str, label: str) -> None:
    axes.errorbar(
        one["compute"],
        one["value"],
        yerr=[[one["value"] - one["low"]], [one["high"] - one["value"]]],
        fmt=mark,
        color=colour,
        capsize=4,
        markerfacecolor="white",
        label=label,
    )
