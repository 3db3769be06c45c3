"""Diagnosis of a GRPO training: from its log, one paragraph that says whether reward rises, and if
not, why and what to change first.

    log (one row per step, the field's names) -> trend of the reward -> checks, from cause to
    consequence -> Diagnosis.paragraph

Guarantees: reads numbers only, so any trainer's log will do; every finding states the number it
rests on; what the log lacks is named, not guessed (tests/reasoning/test_diagnose.py provokes each
cause).
Out of scope: proving a cause. The bounds are rules of thumb, each with its reason; a finding says
where to look first.

Names read: `reward`, `reward_std`, `frac_reward_zero_std`, `kl`, `entropy`, `clip_ratio` (or
`clip_ratio/region_mean`), `completions/mean_length`, `completions/clipped_ratio`,
`verifier/<reason>` (a step's count of each of the verifier's reasons), `staleness` (optimizer steps
between the weights that sampled and those that learn), and
`sampling/sampling_logp_difference/mean`. Only `reward` is required.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from moxin_lab.reasoning.diagnose_checks import CHECKS, Cause, Run, drift, thirds

Trend = Literal["rising", "flat", "falling"]
NAMES = (
    "reward_std",
    "frac_reward_zero_std",
    "kl",
    "entropy",
    "clip_ratio",
    "completions/mean_length",
    "completions/clipped_ratio",
    "staleness",
)


@dataclass(frozen=True)
class Diagnosis:
    """causes: the most likely root first. missing: columns that a check would have needed."""

    trend: Trend
    causes: tuple[Cause, ...]
    missing: tuple[str, ...]
    paragraph: str


def diagnose(
    log: pd.DataFrame | Sequence[Mapping[str, Any]],
    *,
    reward_range: tuple[float, float] = (0.0, 1.0),
    num_generations: int | None = None,
    prompts_per_step: int | None = None,
) -> Diagnosis:
    """Why reward does not rise, from a log with one row per step (a DataFrame, or mappings of name
    to number; None and NaN: not logged in that step).

    reward_range: the lowest and highest reward of one completion, such as (-5, 5). num_generations:
    needed for the check `drift`, and with prompts_per_step for `wrong_grouping`, which also needs a
    reward of two values. Raises ValueError for an empty log, one without
    `reward` or with a reward that is missing or not finite, or an empty range.
    """
    table = pd.DataFrame(log if isinstance(log, pd.DataFrame) else list(log))
    if not len(table):
        raise ValueError("the log is empty: log at least one step before asking why reward is flat")
    if "reward" not in table:
        raise ValueError(
            f"the log has no column `reward`, only {', '.join(map(str, table.columns))}"
        )
    if "clip_ratio" not in table and "clip_ratio/region_mean" in table:
        table = table.rename(columns={"clip_ratio/region_mean": "clip_ratio"})
    table = table.select_dtypes(exclude="object").join(
        table.select_dtypes("object").apply(pd.to_numeric, errors="coerce")
    )
    bad = np.flatnonzero(~np.isfinite(table["reward"].to_numpy(dtype=np.float64)))
    if len(bad):
        raise ValueError(
            f"`reward` is missing or not finite in {len(bad)} of {len(table)} rows, the first is "
            f"row {bad[0]}: fix the reward first, its NaN is the cause"
        )
    low, high = map(float, reward_range)
    if not low < high:
        raise ValueError(
            f"reward_range is {reward_range}: give the lowest, then the highest reward of a "
            "completion"
        )
    run = Run(table, low, high, num_generations, prompts_per_step)
    trend, sentence = _trend(table["reward"].to_numpy(dtype=np.float64), high - low)
    checks = [drift] if trend == "rising" else CHECKS.values()
    causes = [cause for check in checks if (cause := check(run)) is not None]
    missing = tuple(name for name in NAMES if name not in table)
    missing += () if run.verdicts() else ("verifier/<reason>",)
    return Diagnosis(trend, tuple(causes), missing, _paragraph(sentence, trend, causes, missing))


def _trend(reward: np.ndarray, width: float) -> tuple[Trend, str]:
    """The trend and a sentence on it. Rising or falling: the slope of the least-squares line
    differs from 0 by more than two standard errors, and the change by more than 1 % of the range.
    """
    steps = np.arange(len(reward), dtype=np.float64)
    first, last = thirds(reward)
    text = f"from {first:.3g} (first third of {len(reward)} steps) to {last:.3g} (last third)"
    if len(reward) < 4:
        return (
            "flat",
            f"Reward went {text}; {len(reward)} step(s) are too few to call it flat, the causes "
            "below are early signs",
        )
    slope, offset = np.polyfit(steps, reward, 1)
    residuals = reward - (slope * steps + offset)
    error = math.sqrt(
        float(residuals @ residuals)
        / (len(reward) - 2)
        / float(((steps - steps.mean()) ** 2).sum())
    )
    if abs(slope) > 2 * error and abs(slope) * len(reward) > 0.01 * width:
        return (
            ("rising", f"Reward rises {text}") if slope > 0 else ("falling", f"Reward falls {text}")
        )
    smallest_visible = max(2 * error * len(reward), 0.01 * width)
    return (
        "flat",
        f"Reward is flat, {text}; a change of less than {smallest_visible:.2g} over them would not "
        "show above their own spread",
    )


def _paragraph(sentence: str, trend: Trend, causes: list[Cause], missing: tuple[str, ...]) -> str:
    parts = [sentence + "."]
    if trend == "rising" and not causes:
        parts.append("There is nothing to explain.")
    first = "Yet" if trend == "rising" else "Look first at this:"
    for index, cause in enumerate(causes):
        lead = first if index == 0 else "Also, perhaps as a consequence:"
        parts.append(f"{lead} {cause.seen}. {cause.advice}.")
    if trend != "rising" and not causes:
        parts.append(
            "None of the known causes shows in the log: compare start and end on the same "
            "questions, which sees smaller changes; then raise the learning rate or the number of "
            "steps."
        )
    if trend != "rising" and missing:
        parts.append(f"Not checked, because the log lacks it: {', '.join(missing)}.")
    return " ".join(parts)
