"""Figures of stage 04. Each function takes plain values and returns a matplotlib figure.

Guarantees: phases and models can be distinguished without colour. Out of scope: computing what is
shown, beyond a running mean.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moxin_lab.lab.show import PHONE_WIDTH
from moxin_lab.lab.smoothing import centred_mean
from moxin_lab.pretraining import results
from moxin_lab.scales.sections import PretrainingSettings

PHASE_SHADES = ("#FFFFFF", "#EDEDED", "#DADADA")


def _shade_phases(axes: Axes, phases: Sequence["Span"], label: bool) -> None:
    """One grey band per phase, and with `label` its number and context above it."""
    for number, (phase, shade) in enumerate(zip(phases, PHASE_SHADES, strict=False), 1):
        axes.axvspan(
            phase.first_step, phase.first_step + phase.steps, color=shade, zorder=0, linewidth=0
        )
        if label:
            middle = phase.first_step + phase.steps / 2
            axes.annotate(
                f"phase {number}\n{phase.sequence_length:,}\ntokens",
                (middle, 1.02),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
                fontsize=10,
            )
    axes.set_xlim(0, phases[-1].first_step + phases[-1].steps)


class Span(Protocol):
    """What a phase needs to be drawn: `packing.PhasePlan`, or `results.PhaseSpan` before it."""

    @property
    def name(self) -> str: ...
    @property
    def first_step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def sequence_length(self) -> int: ...


def schedule_alt(rates: Sequence[float], settings: PretrainingSettings) -> str:
    """The figure of `schedule` in words."""
    drawn = "; ".join(
        f"{phase.name}: {', '.join(sorted(phase.mixture))}" for phase in settings.phases
    )
    return (
        f"Line: learning rate rises to {max(rates):.1e} in {settings.warmup_steps} steps, falls as "
        f"a cosine to {rates[-1]:.1e}. Bars below, the pools that each phase draws on: {drawn}."
    )


def losses_alt(log: pd.DataFrame) -> str:
    """The figure of `losses` in words."""
    ends = ", ".join(
        f"{value:.2f} at the end of phase {phase}"
        for phase, value in results.phase_ends(log).items()
    )
    return (
        f"Training loss falls from {log['loss'].iloc[0]:.2f} nats per token at the first step to "
        f"{ends}. Below, the gradient norm."
    )


def bits_alt(final: pd.Series) -> str:
    """The figure of `bits_per_byte` in words. final: of the last model, by language."""
    numbers = ", ".join(f"{language} {value:.2f}" for language, value in final.items())
    return (
        f"Held-out bits per byte by language. After phase 3: {numbers}. The table below gives "
        "every number."
    )


def schedule(
    rates: Sequence[float], phases: Sequence[Span], mixtures: Sequence[Mapping[str, float]]
) -> Figure:
    """Learning rate by step, and below it the mixture of each phase as shares of rows.

    rates: one per step. mixtures: share by pool, one mapping per phase.
    """
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(PHONE_WIDTH, 5.4), height_ratios=(3, 2), layout="constrained"
    )
    _shade_phases(top, phases, label=True)
    top.plot(rates)
    top.set(xlabel="optimizer step", ylabel="learning rate", ylim=(0, None))
    names = sorted({name for mixture in mixtures for name in mixture})
    hatches = ("", "//", "..", "xx", "\\\\", "++", "oo")
    left = np.zeros(len(mixtures))
    for index, name in enumerate(names):
        shares = np.array([mixture.get(name, 0) / sum(mixture.values()) for mixture in mixtures])
        bottom.barh(
            range(len(mixtures)),
            shares,
            left=left,
            label=name,
            hatch=hatches[index % len(hatches)],
            edgecolor="white",
        )
        left += shares
    names_of_phases = [
        f"{number} {phase.name.replace(' ', chr(10), 1)}" for number, phase in enumerate(phases, 1)
    ]
    bottom.set_yticks(range(len(mixtures)), names_of_phases)
    bottom.invert_yaxis()
    bottom.set(xlabel="share of rows", xlim=(0, 1))
    bottom.legend(
        ncols=3,
        loc="upper center",
        bbox_to_anchor=(0.4, -0.32),
        frameon=False,
    )
    return figure


def losses(log: pd.DataFrame, phases: Sequence[Span]) -> Figure:
    """Training loss by step with a centred mean inside each phase, and the gradient norm before
    clipping. log: as `trainer.fit` returns it.
    """
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(PHONE_WIDTH, 5.4), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    for axes, label in ((top, True), (bottom, False)):
        _shade_phases(axes, phases, label)
    top.plot(log["step"], log["loss"], color="#999999", linewidth=0.8, label="each step")
    smooth = log.groupby("phase")["loss"].transform(lambda part: centred_mean(part, 15))
    for index, (_, part) in enumerate(log.assign(smooth=smooth).groupby("phase")):
        top.plot(
            part["step"],
            part["smooth"],
            color="#0072B2",
            linewidth=2,
            label="mean of 15 steps" if index == 0 else None,
        )
    top.set(ylabel="loss (nats per token)")
    top.legend(frameon=False)
    bottom.semilogy(log["step"], log["gradient_norm"], color="#D55E00", linewidth=0.9)
    bottom.axhline(1.0, color="#000000", linewidth=0.8, linestyle=":")
    bottom.set(xlabel="optimizer step", ylabel="gradient norm")
    return figure


def bits_per_byte(table: pd.DataFrame) -> Figure:
    """Held-out bits per byte by language for several models; columns model, group, bits_per_byte,
    low, high.
    """
    models, groups = list(dict.fromkeys(table["model"])), list(dict.fromkeys(table["group"]))
    figure, axes = plt.subplots(figsize=(PHONE_WIDTH, 4.4), layout="constrained")
    markers = ("s", "v", "^", "o", "D", "P", "X")
    width = 0.75 / len(models)
    for index, model in enumerate(models):
        part = table[table["model"] == model].set_index("group").loc[groups]
        # models side by side around the tick of their language
        positions = np.arange(len(groups)) + (index - (len(models) - 1) / 2) * width
        spread = np.abs(part[["low", "high"]].to_numpy().T - part["bits_per_byte"].to_numpy())
        axes.errorbar(
            positions,
            part["bits_per_byte"],
            yerr=spread,
            fmt=markers[index % len(markers)],
            capsize=2,
            label=model,
            markersize=5,
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.set(
        xlabel="language of the held-out text",
        ylabel="bits per byte (lower is better)",
        ylim=(0, None),
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
