"""Tables of stage 04: the recipe beside the full scale's, the documents of a packed row, and the
arithmetic behind the stated cost.

Guarantees: constants carry their source. Out of scope: measurements; everything here is read or
computed from settings.
"""

from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerFast

from moxin_lab.scales.sections import PretrainingSettings
from moxin_lab.training.loss import IGNORE_INDEX

FULL_PARAMETERS = 8_114_180_096  # of the 36-block model; counted in notebook 03
STATED_TOKENS = 2e12  # technical report v6, section 3.4: "over 2 trillion"
STATED_DOLLARS = 160_000  # technical report v6, abstract and section 3.4
# Dense bf16 peaks in FLOP/s without sparsity, from NVIDIA's data sheets of the SXM boards.
PEAKS = {"H100": 989e12, "A100": 312e12}


def recipe(settings: PretrainingSettings, full: PretrainingSettings) -> pd.DataFrame:
    """Two `pretraining` sections side by side, as text."""
    rows: list[tuple[str, Any, Any]] = []
    pairs = zip(settings.phases, full.phases, strict=True)
    for phase, (here, there) in enumerate(pairs, start=1):
        rows.append((f"phase {phase}: steps", here.steps, there.steps))
        rows.append(
            (f"phase {phase}: context, tokens", here.sequence_length, there.sequence_length)
        )
    for field in (
        "tokens_per_step",
        "learning_rate",
        "warmup_steps",
        "final_learning_rate_ratio",
        "adam_beta1",
        "adam_beta2",
        "adam_eps",
        "weight_decay",
        "gradient_clip_norm",
        "precision",
    ):
        rows.append((field.replace("_", " "), getattr(settings, field), getattr(full, field)))
    table = pd.DataFrame(rows, columns=["setting", "this run", "full scale"]).set_index("setting")
    return table.map(lambda value: f"{value:,}" if isinstance(value, int) else str(value))


def packed_row(batch: dict[str, np.ndarray], tokenizer: PreTrainedTokenizerFast) -> pd.DataFrame:
    """The documents of the row that packs most of them, one row per document: tokens, labels, and
    the text that it begins with. batch: one of `TrainingStream.batch`.
    """
    row = int(batch["document_ids"].max(axis=1).argmax())
    columns = {"document": "document_ids", "token": "input_ids", "label": "labels"}
    tokens = pd.DataFrame({name: batch[key][row] for name, key in columns.items()})
    parts = tokens.groupby("document")
    return pd.DataFrame(
        {
            "tokens": parts.size(),
            "labels": parts["label"].apply(lambda labels: int((labels != IGNORE_INDEX).sum())),
            "begins with": parts["token"].apply(lambda ids: tokenizer.decode(ids.tolist()[:12])),
        }
    )


def stated_cost(
    utilisations: tuple[float, ...] = (0.3, 0.4, 0.5), *, measured: float | None = None
) -> pd.DataFrame:
    """Device hours of 6ND operations (Kaplan et al. 2020, arXiv 2001.08361) and the price per hour
    at which they cost what is stated. utilisations: shares of a device's peak. measured: the share
    that was measured on an H200, which becomes the last row.
    """
    operations = 6 * FULL_PARAMETERS * STATED_TOKENS
    cases = [
        (f"{device} at {share:.0%} of {peak / 1e12:.0f} TFLOP/s", peak * share)
        for device, peak in PEAKS.items()
        for share in utilisations
    ]
    if measured is not None:
        peak = PEAKS["H100"]  # an H200 has the same
        name = f"H200 at {measured:.1%} of {peak / 1e12:.0f} TFLOP/s, as measured"
        cases.append((name, peak * measured))
    rows = []
    for name, rate in cases:
        hours = operations / rate / 3600
        rows.append((name, hours, STATED_DOLLARS / hours))
    return pd.DataFrame(
        rows, columns=["device and utilisation", "device hours", "dollars per hour"]
    ).set_index("device and utilisation")
