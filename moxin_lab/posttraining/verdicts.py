"""What notebook 05 concludes: the measures that it records, and what it says of five claims that
only the full scale can decide.

Guarantees: `numbers` holds the values of the tables that the notebook shows, unrounded.
Out of scope: training and judging answers (`experiments`, `tables`).
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from moxin_lab.lab.recording import Judged, Number
from moxin_lab.scales.sections import InstructionTuningSettings

NO_VERDICT = "Full scale trains by this recipe; no stage compares it with the published rows."


def of_training(
    encoded_tokens: int, least_cosine: pd.Series, sft_log: pd.DataFrame
) -> list[Number]:
    """Tokens with loss, the least cosine of each reduction, and the loss of the last 15 steps."""
    loss = (sft_log["nats"] / sft_log["targets"]).tail(15).mean()
    return [
        Number("tokens_with_loss", encoded_tokens, "tokens", None, {}),
        *(
            Number("least_cosine_with_mean", value, "cosine", None, {"reduction": name})
            for name, value in least_cosine.items()
        ),
        Number("sft_loss", loss, "nats/token", None, {}),
    ]


def of_reductions(compared: pd.DataFrame, ways: Mapping[str, Any]) -> list[Number]:
    """Differences between reductions over seeds, and the ways in which a copy may fail."""
    rows = [
        Number(
            "answer_loss_difference",
            row.difference,
            "nats/token",
            (row.low, row.high),
            {"reduction": row.variant, "micro_batch": row.micro_batch},
        )
        for row in compared.itertuples()
    ]
    return rows + [
        Number("way_to_fail", effect.value, "nats/token", (effect.low, effect.high), {"way": way})
        for way, effect in ways.items()
    ]


def of_answers(
    exact: pd.DataFrame, answers: pd.DataFrame, contrast: pd.DataFrame, headline: str
) -> list[Number]:
    """Exact match, loss and length of each model, and differences between models.

    contrast: one row per pair, named `first against second`. headline: the model of the first page.
    """
    rows = [
        Number(
            "exact_match",
            row["value"],
            "share",
            (row["low"], row["high"]),
            {"headline": name == headline, "model": name},
        )
        for name, row in exact.iterrows()
    ]
    for name, row in answers.iterrows():
        nats, tokens = row["answer loss, nats per token"], row["answer length, tokens"]
        rows.append(Number("answer_loss", nats, "nats/token", None, {"model": name}))
        rows.append(Number("answer_length", tokens, "tokens", None, {"model": name}))
    for name, row in contrast.iterrows():
        first, second = str(name).split(" against ")
        labels, interval = {"first": first, "second": second}, (row["low"], row["high"])
        rows.append(Number("exact_match_difference", row["difference"], "share", interval, labels))
        rows.append(Number("win_rate", row["win rate"], "share", None, labels))
    return rows


def of_preferences(preferred: pd.DataFrame, over_seeds: pd.DataFrame, seeds: int) -> list[Number]:
    """Preference accuracy by model, and the means over seeds."""
    rows = [
        Number(
            "preference_accuracy", row["value"], "share", (row["low"], row["high"]), {"model": name}
        )
        for name, row in preferred.iterrows()
    ]
    for what, row in over_seeds.iterrows():
        unit = "tokens" if str(what).startswith("tokens") else "share"
        interval = (row["low"], row["high"]) if seeds > 1 else None
        labels = {"what": what, "seeds": seeds}
        rows.append(Number("over_seeds", row["mean"], unit, interval, labels))
    return rows


def not_attempted(
    settings: InstructionTuningSettings,
    conversations: int,
    pairs: int,
    exact: pd.DataFrame,
    preference_effect: str,
) -> dict[str, Judged]:
    """Why each claim stays open at this scale, and what was seen of it."""
    before, after = exact.loc["pretrained", "value"], exact.loc["SFT", "value"]
    reasons = {
        "sft.tulu3": f"{conversations:,} conversations of this lab's card instead of 939,344; "
        f"exact match {before:.2f} before and {after:.2f} after. {NO_VERDICT}",
        "dpo.tulu3": f"{pairs} pairs, beta {settings.dpo.beta:g}; {preference_effect}. "
        f"{NO_VERDICT}",
        "sft.infinity-instruct": "The set is on the hub, its hyperparameters are unpublished, and "
        "no stage runs it.",
        "sft.chat-tulu2": "Needs the released base model and Tülu 2; the loss on assistant tokens "
        "alone is what this notebook uses. No stage runs it.",
        "regularisation.label-smoothing": f"An option of the loss, "
        f"{settings.sft.label_smoothing:g} in this run; no value is published, and no stage "
        "compares two.",
    }
    return {claim: ("not attempted", reason) for claim, reason in reasons.items()}
