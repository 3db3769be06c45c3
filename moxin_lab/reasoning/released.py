"""The committed experiment on what keeps pass@k (`moxin-lab bench grpo-variants`), as notebook 06
and its page show it.

    record = read(root / "reports/released/grpo-variants/grpo-variants.json")
    variants(record)             # pass@1 and pass@k by variant, points with intervals

Guarantees: every number in a picture, table or sentence is the record's; a file that is not such a
record raises an error with its name.
Out of scope: measuring and verdicts (`bench/grpo_variants.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from moxin_lab.lab import measured
from moxin_lab.lab.show import PHONE_WIDTH

BENCH = "grpo-variants"
NEEDED = ("settings", "scores", "differences", "verdicts", "choice", "not_run", "rule")
START = "start"
MARKS = {"validation": ("o", "#0072B2"), "in-family": ("s", "#D55E00")}
"""Groups of questions that the picture shows, with mark and colour."""


def read(path: Path) -> dict[str, Any]:
    """The record in a file, of this bench; errors as `measured.read_record`."""
    return measured.read_record(path, {BENCH: NEEDED})


def names(record: Mapping[str, Any]) -> list[str]:
    """The start and the variants that have run, in the order of the record."""
    return list(dict.fromkeys(row["variant"] for row in record["scores"]))


def variants(record: Mapping[str, Any]) -> Figure:
    """A panel for each k: a row for each variant, with the mean of pass@k over its trainings on
    validation and test questions of the trained families, and its interval. Dotted: the start, on
    validation questions.
    """
    ks, rows = record["settings"]["pass_at"], names(record)
    size = (PHONE_WIDTH, 1.5 + 0.36 * len(rows))
    figure, axes = plt.subplots(
        1, len(ks), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, k in zip(axes[0], ks, strict=True):
        for place, (group, (mark, colour)) in enumerate(MARKS.items()):
            own = [row for row in record["scores"] if (row["k"], row["group"]) == (k, group)]
            values = np.array([row["value"] for row in own])
            ends = np.array([[row["low"], row["high"]] for row in own]).T
            heights = [len(rows) - 1 - rows.index(row["variant"]) for row in own]
            axis.errorbar(
                values,
                np.array(heights) + 0.13 * (1 - 2 * place),
                xerr=np.abs(ends - values),
                fmt=mark,
                color=colour,
                capsize=2,
                markersize=5,
                label=group if group == "validation" else f"test, {group}",
            )
            start = [row["value"] for row in own if row["variant"] == START]
            if start and group == "validation":
                axis.axvline(start[0], color="#000000", linewidth=0.8, linestyle=":")
        axis.set_title(f"pass@{k}", fontsize=11)
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.locator_params(axis="x", nbins=4)
        axis.set_xlabel("share of questions")
    axes[0, 0].set_yticks(range(len(rows)), rows[::-1])
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(MARKS)
    )
    return figure


def variants_alt(record: Mapping[str, Any]) -> str:
    """The picture of `variants` in words, on validation questions."""
    parts = []
    for name in names(record):
        values = ", ".join(
            f"pass@{row['k']} {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
            for row in record["scores"]
            if (row["variant"], row["group"]) == (name, "validation")
        )
        parts.append(f"{name}: {values}")
    return f"Validation questions. {'; '.join(parts)}."


def variants_caption(record: Mapping[str, Any]) -> str:
    """What the picture shows and how many verdicts there are of each kind."""
    found = [one["verdict"] for one in record["verdicts"] if one["against"] != START]
    counts = "; ".join(f"{kind}: {found.count(kind)}" for kind in dict.fromkeys(found))
    settings = record["settings"]
    kinds = sorted({row["over"] for row in record["scores"] if row["variant"] != START})
    return (
        f"GRPO from one model (dotted), {settings['steps']} steps of "
        f"{settings['prompts_per_step']} prompts x {settings['num_generations']}, one change at a "
        "time. 95 % intervals over "
        f"{' or '.join(kinds)}. Changes by the rule, in pass@{max(settings['pass_at'])}: {counts}."
    )


def differences(record: Mapping[str, Any]) -> pd.DataFrame:
    """pass@k of each variant minus the one it is compared with, as text with its interval: one row
    for each variant and k, a column for each group of questions.
    """
    against = {one["variant"]: one["against"] for one in record["verdicts"]}
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in record["differences"]:
        if against.get(row["variant"]) == row["against"]:
            place = (f"{row['variant']} - {row['against']}", f"pass@{row['k']}")
            text = f"{row['value']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
            cells.setdefault(place, {})[row["group"]] = text
    table = pd.DataFrame.from_dict(cells, orient="index")
    table.index = pd.MultiIndex.from_tuples(cells, names=["difference", "measure"])
    return table


def in_words(record: Mapping[str, Any]) -> str:
    """The verdict lines that were decided as a Markdown list, then the choice and what did not
    run.
    """
    lines = [f"- {one['line']}" for one in record["verdicts"] if one["verdict"] != "undecided"]
    return "\n".join([*lines, "", choice_in_words(record), not_run_in_words(record)])


def choice_in_words(record: Mapping[str, Any]) -> str:
    """What the validation questions choose, and that the test columns choose nothing."""
    return (
        f"Chosen on validation questions alone: {record['choice']}. The test columns are reported "
        "and choose nothing."
    )


def not_run_in_words(record: Mapping[str, Any]) -> str:
    """Trainings of the plan that are missing, by variant."""
    missing: dict[str, list[str]] = {}
    for one in record["not_run"]:
        missing.setdefault(one["variant"], []).append(str(one["seed"]))
    if not missing:
        return "Every training of the plan was run."
    listed = "; ".join(f"{name} (seeds {', '.join(seeds)})" for name, seeds in missing.items())
    return f"Planned and not run: {listed}."
