"""What notebook 04 concludes: measures, two verdicts about mechanism, and what it says of claims
that need the paper's sizes.

Guarantees: a verdict follows from the settings and the log by the rule in its docstring.
Out of scope: training and scoring.
"""

import pandas as pd

from moxin_lab.lab.recording import Judged, Number
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.pretraining import results
from moxin_lab.scales.sections import PretrainingSettings


def numbers(
    model: MoxinForCausalLM,
    log: pd.DataFrame,
    settings: PretrainingSettings,
    scores: pd.DataFrame,
    seconds: float,
) -> list[Number]:
    """Losses, sizes, speed, and held-out scores of every model."""
    tokens = len(log) * settings.tokens_per_step
    rows = [
        Number("training_loss", value, "nats/token", None, {"phase": phase})
        for phase, value in results.phase_ends(log).items()
    ]
    parameters = sum(p.numel() for p in model.parameters())
    rows += [
        Number("parameters", parameters, "parameters", None, {}),
        Number("training_tokens", tokens, "tokens", None, {}),
        Number("tokens_per_second", tokens / seconds, "tokens/s", None, {}),
    ]
    for row in scores.itertuples():
        headline = row.model == "after phase 3" and row.group == "en"
        labels = {"headline": headline, "language": row.group, "model": row.model}
        interval = (row.low, row.high)
        rows.append(
            Number("heldout_bits_per_byte", row.bits_per_byte, "bits/byte", interval, labels)
        )
    return rows


def of_seeds(over_seeds: pd.DataFrame) -> list[Number]:
    """Held-out bits per byte over trainings, with Student's interval where there are several.
    over_seeds: of `results.over_seeds`.
    """
    count = over_seeds.filter(like="seed ").shape[1]
    several = "low" in over_seeds
    return [
        Number(
            "heldout_bits_per_byte",
            row["mean"],
            "bits/byte",
            (row["low"], row["high"]) if several else None,
            {"language": language, "model": results.LAST, "trainings": count},
        )
        for language, row in over_seeds.iterrows()
    ]


def judge_phases(settings: PretrainingSettings, num_steps: int) -> Judged:
    """Reproduced if the second context is twice the first and the third phase has another mixture,
    in one training.
    """
    contexts = [phase.sequence_length for phase in settings.phases]
    mixtures = [phase.mixture for phase in settings.phases]
    doubled = contexts[1] == 2 * contexts[0] and mixtures[2] != mixtures[1]
    return (
        "reproduced" if doubled else "contradicted",
        f"One training of {num_steps} steps with contexts {contexts[0]}, {contexts[1]} and "
        f"{contexts[2]}, another mixture in phase 3, one lineage of checkpoints. The mechanism "
        "runs; the split of tokens and the mixture are our choice, because none is published.",
    )


def judge_optimizer(settings: PretrainingSettings, log: pd.DataFrame, rates: list[float]) -> Judged:
    """Reproduced if the settings have every stated constant and the rates that were used follow the
    schedule to 1e-9 of the peak.
    """
    difference = results.learning_rate_difference(log, rates)
    followed = results.has_stated_optimizer(settings) and difference < 1e-9
    return (
        "reproduced" if followed else "contradicted",
        "AdamW with betas 0.9 and 0.95, epsilon 1e-8 and weight decay 0.1 trains all 36 blocks; "
        f"the learning rates that it used in {len(log)} steps follow the cosine to 10 % (largest "
        f"relative difference {difference:.0e}).",
    )


def not_attempted(settings: PretrainingSettings, model: MoxinForCausalLM) -> dict[str, str]:
    """Why each of the other claims stays open."""
    parameters = sum(p.numel() for p in model.parameters())
    tokens = sum(phase.steps for phase in settings.phases) * settings.tokens_per_step
    reasons = {
        "pretraining.framework": "This lab trains with Lightning on one device; Moxin's "
        "Colossal-AI run would need its cluster.",
        "pretraining.learning-rate-2e-6": f"This run's peak is {settings.learning_rate:g}, for "
        f"{parameters:,} parameters.",
        "pretraining.phase-3-gain": "Needs the paper's benchmarks and checkpoints from before and "
        "after its phase 3.",
        "pretraining.tokens-2t": f"This run read {tokens:,} tokens.",
        "pretraining.cost-160k": "Arithmetic only: on H100s at 40 % utilisation it would mean at "
        "most $2.34 per hour.",
        "pretraining.fp16-doubles-throughput": f"This run is {settings.precision}; the claim needs "
        "two precisions on one GPU, and no stage trains in both.",
    }
    return {
        claim: f"{reason} No stage records a verdict on it." for claim, reason in reasons.items()
    }
