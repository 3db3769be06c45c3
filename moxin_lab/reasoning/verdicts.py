"""What notebook 06 concludes: the measures that it records, one claim about the reward that any
scale decides, and what it says of three that only the full scale can decide.

Guarantees: the numbers are those of the tables that the notebook shows, unrounded.
Out of scope: training, judging answers (`answers`).
"""

import numpy as np
import pandas as pd

from moxin_lab.lab.recording import Judged, Number, reproduced_if
from moxin_lab.scales.sections import GRPOSettings, ReasoningSettings

NO_VERDICT = "Full scale trains by this recipe; no stage compares it with the published rows."


def of_training(log: pd.DataFrame, seconds: pd.DataFrame) -> list[Number]:
    """Reward at the end of GRPO, and the verifier's share of a step."""
    last_fifth = log["reward"].tail(max(1, len(log) // 5)).mean()
    share = seconds.loc["reward", "share"]
    return [
        Number("grpo_reward", last_fifth, "share", None, {"when": "last fifth of the steps"}),
        Number("verifier_share_of_step", share, "share", None, {}),
    ]


def of_answers(
    passed: pd.DataFrame, differences: pd.DataFrame, headline: tuple[str, str, int]
) -> list[Number]:
    """pass@k of each model and group, and the differences. headline: model, group and k of the
    report's first page.
    """
    rows = []
    for row in passed.itertuples():
        first_page = (row.model, row.group, row.k) == headline
        labels = {"model": row.model, "group": row.group, "headline": first_page}
        rows.append(Number(f"pass_at_{row.k}", row.value, "share", (row.low, row.high), labels))
    for row in differences.itertuples():
        labels = {"first": row.first, "second": row.second, "group": row.group, "k": row.k}
        rows.append(Number("pass_difference", row.value, "share", (row.low, row.high), labels))
    return rows


def of_seeds(over_seeds: pd.DataFrame, levels: pd.DataFrame) -> list[Number]:
    """Gains over seeds, and pass@1 by staleness where those trainings ran."""
    rows = []
    for row in over_seeds.itertuples():
        labels = {"group": row.group, "seeds": row.seeds}
        rows.append(Number("gain_over_seeds", row.mean, "share", (row.low, row.high), labels))
    for (objective, level), row in levels.iterrows():
        labels = {"objective": objective, "staleness": level}
        interval = (row["low"], row["high"])
        rows.append(Number("pass_at_1_by_staleness", row["pass_at_1"], "share", interval, labels))
    return rows


def judge_binary(examples: pd.DataFrame, log: pd.DataFrame, settings: GRPOSettings) -> Judged:
    """Reproduced if every judged example is paid 1 where its reason is `correct` and 0 elsewhere,
    both occur, and each rollout of the training was paid a whole number of ones.

    examples: of `answers.judged_examples`. log: of the training, a row per rollout. `not attempted`
    where the scale pays otherwise than by the verified answer alone, 0 or 1.
    """
    paid_for = [(entry.name, entry.weight) for entry in settings.rewards]
    if paid_for != [("verified_answer", 1.0)] or settings.reward_values != (0.0, 1.0):
        return "not attempted", (
            f"This scale pays {paid_for} with the values {settings.reward_values}, not 0 or 1 for "
            "the verified answer alone."
        )
    right = examples["reason"] == "correct"
    binary = (examples["reward"] == right.astype(float)).all() and 0 < right.sum() < len(right)
    completions = settings.prompts_per_step * settings.num_generations
    ones = log["reward"].to_numpy(dtype=np.float64) * completions
    whole = np.isclose(ones, np.round(ones), rtol=0, atol=1e-6)
    whole &= (ones >= 0) & (ones <= completions)
    reasons = ", ".join(dict.fromkeys(examples.loc[~right, "reason"]))
    return reproduced_if(
        bool(binary and whole.all()),
        f"Of {len(examples)} completions of one question {int(right.sum())} are paid 1 and "
        f"{int((~right).sum())} are paid 0 ({reasons}). In training {int(whole.sum())} of "
        f"{len(log)} rollouts of {completions:,} completions were paid a "
        f"whole number of ones, {ones.sum():,.0f} in all.",
    )


def not_attempted(
    settings: ReasoningSettings,
    chains: int,
    steps: int,
    passed: pd.DataFrame,
    by_pair: pd.DataFrame,
) -> dict[str, Judged]:
    """Why each claim stays open at this scale, and what was seen of it."""
    first = passed[passed["k"] == 1].set_index(["model", "group"])["value"]
    base, tuned = first["instruct", "in-family"], first["CoT-SFT", "in-family"]
    gain = by_pair.loc[("GRPO", "CoT-SFT", "in-family", 1)]
    count = f"{settings.seeds} seeds" if settings.seeds > 1 else "one seed"
    trained = "not trained with" if settings.areal is None else "trained with"
    tried = "not tried" if settings.staleness_experiment is None else "tried, above"
    reasons = {
        "cot.sft": f"{chains:,} chains of solvers instead of R1's; pass@1 in the trained families "
        f"{base:.2f} before and {tuned:.2f} after. {NO_VERDICT}",
        "grpo.gain": f"{steps} steps on generated questions instead of DeepScaleR; pass@1 changes "
        f"by {gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}) in the trained "
        f"families, {count}. {NO_VERDICT}",
        "grpo.areal": f"Its rewards (5 and -5) and batch baseline were {trained} in this run; the "
        f"cost and gain of stale rollouts were {tried}. AReaL's own overrides are unpublished. "
        f"{NO_VERDICT}",
    }
    return {claim: ("not attempted", reason) for claim, reason in reasons.items()}
