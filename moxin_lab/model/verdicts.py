"""What notebook 03 concludes: the measures that it records and its verdicts on published claims.

Each `judge` function takes what was measured and returns (verdict, evidence). The rules are stated
in their docstrings and follow from numbers alone.

Guarantees: no verdict without a number in its evidence, but for claims that were not attempted.
Out of scope: measuring (`measures`, `experiments`), and what a verdict may be (`lab.claims`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from moxin_lab.lab.recording import Judged, Number, reproduced_if
from moxin_lab.model.config import MoxinConfig, count_parameters, training_flops_per_token
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.initialisation import SCHEMES
from moxin_lab.model.tables import TABLE_1

PARAMETERS = 8_114_180_096
"""Of the released weights: half the bytes of the f16 file, without its header (model card)."""
PARITY_TOLERANCE = 1e-5
"""Logit, float32, at the published standard deviation of the weights. Our choice, as litgpt's."""


class Parity(NamedTuple):
    """Largest differences of logits, from the table of `experiments.parity_by_deviation`."""

    worst: float
    """At the published deviation of the weights."""
    without_window: float
    """Smallest difference there if the window is removed, over texts longer than the window."""
    worst_wide: float
    """At this scale's deviation."""
    rounding: float
    """What float32 does to our own logits at this scale's deviation, at most."""
    ratio: float
    """`worst_wide` over the rounding of the same text, at most."""


def parity_summary(parity: pd.DataFrame, published: float, wide: float, window: int) -> Parity:
    """The numbers that decide, from a row per deviation, length and backend."""
    at_published = parity[parity["deviation"] == published]
    at_wide = parity[parity["deviation"] == wide]
    longer = at_published["tokens"] > window + 1
    return Parity(
        worst=at_published["largest_difference"].max(),
        without_window=at_published.loc[longer, "without_window"].min(),
        worst_wide=at_wide["largest_difference"].max(),
        rounding=at_wide["rounding"].max(),
        ratio=(at_wide["largest_difference"] / at_wide["rounding"]).max(),
    )


def numbers(
    full: MoxinConfig,
    here: MoxinConfig,
    scale: str,
    *,
    exponents: pd.Series,
    device: str,
    parity: Parity,
    ring_difference: float,
    memory: pd.DataFrame,
    spans: pd.DataFrame,
    narrow: int,
    tops: pd.DataFrame,
) -> list[Number]:
    """The measures of the stage, from the tables that the notebook shows. narrow: the window of
    `spans`; tops: root mean squares by number of blocks and scheme.
    """
    last, deepest = memory.iloc[-1], spans.iloc[-1]
    context = here.sliding_window or here.max_position_embeddings
    window = {"model": scale, "context": context}
    flops = training_flops_per_token(here, context)
    reach = {"window": narrow, "blocks": int(deepest["blocks"]), "weights": "untrained"}
    peer = {"peer": "transformers MistralForCausalLM"}
    longest = {"tokens": int(last["tokens"]), "model": "full"}
    return [
        Number(
            "parameters", count_parameters(full)["total"], "parameters", None, {"model": "full"}
        ),
        Number("parameters", count_parameters(here)["total"], "parameters", None, {"model": scale}),
        Number("training_flops_per_token", flops, "FLOP/token", None, window),
        *(
            Number(
                "attention_time_exponent",
                value,
                "exponent of the length",
                None,
                {"backend": name, "device": device},
            )
            for name, value in exponents.items()
        ),
        Number("parity_largest_difference", parity.worst, "logit", None, peer),
        Number("cache_largest_difference", ring_difference, "logit", None, {"cache": "rolling"}),
        Number("cache_ratio", last["ratio"], "ratio of bytes", None, longest),
        Number("span_99_percent", int(deepest["99 % within"]), "tokens", None, reach),
        *(
            Number(
                "residual_rms_at_top",
                tops.loc[36, name],
                "rms",
                None,
                {"scheme": name, "blocks": 36},
            )
            for name in SCHEMES
        ),
    ]


def judge_blocks(full: MoxinForCausalLM, here: MoxinForCausalLM) -> Judged:
    """Reproduced if the decoder of both configurations has 36 blocks."""
    num_full, num_here = len(full.model.layers), len(here.model.layers)
    return reproduced_if(
        num_full == num_here == 36,
        f"The decoder built from the full configuration has {num_full} blocks, and that of this "
        f"scale {num_here}.",
    )


def judge_parameters(counted: int, gguf_bytes: int, mistral: int) -> Judged:
    """Reproduced if the count is that of the released file. mistral: the count with 32 blocks."""
    rest = (gguf_bytes - 2 * counted) / gguf_bytes
    return reproduced_if(
        counted == PARAMETERS,
        f"Counted on the meta device: {counted:,} parameters, which agrees with the released f16 "
        f"file to {rest:.4%} of its bytes. The name 7B fits the 32-block Mistral ({mistral:,}).",
    )


def judge_table_1(full: MoxinConfig) -> Judged:
    """Reproduced if the full configuration has the six values of the report's table 1."""
    same = sum(getattr(full, name) == value for name, value in TABLE_1.items())
    return reproduced_if(
        same == len(TABLE_1),
        f"{same} of the {len(TABLE_1)} values of table 1 are those of the full configuration, "
        "whose model has the size of the released file.",
    )


def judge_window(edge: pd.DataFrame, window: int) -> Judged:
    """Reproduced if every key nearer than 4,096 tokens changes the output and no other does."""
    changes = edge.set_index("distance")["largest_change"]
    inside = changes[changes.index < window].min()
    outside = changes[changes.index >= window].max()
    return reproduced_if(
        bool(outside == 0 < inside and window == 4096),
        f"With W = {window:,}, replacing a key 0 to {window - 1:,} tokens back changes the output "
        f"by at least {inside:.1e}, replacing the one {window:,} back by {outside:g}: a token sees "
        f"{window:,} positions, including its own.",
    )


def judge_parity(parity: Parity, shape: str) -> Judged:
    """Reproduced if logits differ by at most 1e-5 at the published deviation, removing the window
    would be seen, and at this scale's deviation they differ by less than four roundings.
    """
    return reproduced_if(
        parity.worst <= PARITY_TOLERANCE < parity.without_window and parity.ratio < 4,
        f"{shape}: logits differ by at most {parity.worst:.1e} in float32, and by "
        f"{parity.without_window:.1e} without the window. With this scale's larger weights it is "
        f"{parity.worst_wide:.1e}, of the size of float32's own rounding ({parity.rounding:.1e}).",
    )


def judge_pre_norm(parity: Judged) -> Judged:
    """As parity: Mistral's norms stand before both sub-layers."""
    verdict, evidence = parity
    return verdict, f"RMSNorm before both sub-layers; its effect is not tested. {evidence}"


def judge_grouped_queries(parity: Judged, full: MoxinConfig, here: MoxinConfig) -> Judged:
    """As parity, if the full model has eight key/value heads."""
    verdict, evidence = parity
    return (
        verdict if full.num_key_value_heads == 8 else "contradicted",
        f"{full.num_attention_heads} query heads share {full.num_key_value_heads} key/value heads "
        f"in the full model, {here.num_attention_heads} share {here.num_key_value_heads} here. "
        f"{evidence}",
    )


def judge_same_output(decoding: pd.DataFrame, length: int, window: int) -> Judged:
    """Reproduced if the ring changes no logit by more than 1e-4 in float64."""
    difference = decoding.loc[decoding["cache"] == "RollingCache", "largest_difference"].max()
    return reproduced_if(
        difference <= 1e-4,
        f"Over {length:,} tokens ({length / window:.2f} windows), in chunks and one by one, logits "
        f"with the ring differ from those without a cache by at most {difference:.1e} in float64.",
    )


def judge_cache_size(memory: pd.DataFrame, window: int) -> Judged:
    """Reproduced if the full cache is eight times as large as the ring at the longest text."""
    last = memory.iloc[-1]
    longest = int(last["tokens"])
    return reproduced_if(
        last["ratio"] == 8.0,
        f"At {longest:,} tokens the full cache holds {int(last['full']):,} bytes and the ring "
        f"{int(last['rolling']):,}: a factor of {last['ratio']:.1f}, which is "
        f"{longest:,} / {window:,}.",
    )


def judge_memory(memory: pd.DataFrame, weight_bytes: int) -> Judged:
    """Reproduced if weights and full cache together take eight times (within 0.5) what weights and
    ring take, at the longest text. weight_bytes: of the weights in the cache's numbers of 16 bits.
    """
    last = memory.iloc[-1]
    ratio = (weight_bytes + last["full"]) / (weight_bytes + last["rolling"])
    return reproduced_if(
        abs(ratio - 8.0) <= 0.5,
        f"At {int(last['tokens']):,} tokens the weights take {weight_bytes:,} bytes whatever the "
        f"cache. With them the full cache needs {ratio:.2f} times the memory of the ring; the "
        f"factor of {last['ratio']:.1f} is of the cache alone.",
    )


def judge_checkpointing(held: pd.DataFrame) -> Judged:
    """Reproduced if a step with full checkpointing holds fewer bytes and has the same gradients.
    held: the table of `held.by_checkpointing`.
    """
    none, full = held.loc["none"], held.loc["full"]
    return reproduced_if(
        bool(full["bytes held"] < none["bytes held"] and full["same gradients"]),
        f"Between forward and backward pass autograd holds {int(none['bytes held']):,} bytes of "
        f"activations without checkpointing and {int(full['bytes held']):,} with that of whole "
        f"blocks, {full['times fewer']:.1f} times fewer; the gradients are "
        f"{'the same to the bit' if full['same gradients'] else 'not the same'}.",
    )


def held_numbers(held: pd.DataFrame) -> list[Number]:
    """Bytes held by way of checkpointing."""
    return [
        Number("held_for_backward", int(row["bytes held"]), "bytes", None, {"checkpointing": name})
        for name, row in held.iterrows()
    ]


def judge_span(spans: pd.DataFrame, narrow: int, theory: int) -> Judged:
    """Reproduced if the reach by gradient is L (W - 1) at each depth, and this exceeds 14,000 at
    the published sizes. narrow: window of the models measured.
    """
    deepest = spans.iloc[-1]
    reach, span, end = deepest[["reach measured", "99 % within", "influence at the end"]]
    return reproduced_if(
        bool((spans["reach by theory"] == spans["reach measured"]).all() and theory > 14_000),
        f"Reach by gradient equals L (W - 1) at every depth tried (36 blocks, window {narrow}: "
        f"{reach:.0f} tokens); for W = 4,096 that is {theory:,}, which exceeds 14,000 and is ten "
        f"times as much. With untrained weights the influence at the end is {end:.0e}, and 99 % of "
        f"all influence comes from {span:.0f} tokens ({span / narrow:.1f} windows).",
    )


def not_attempted_ablations(run: Mapping[str, Any], tokens: int) -> Judged:
    """Not attempted, with what the committed run of `bench expansion` at tiny scale says."""
    return (
        "not attempted",
        f"A run at tiny scale compares 32 with 36 blocks over three seeds at equal compute and "
        f"{tokens:,} tokens (bits per byte above 32 continued: {differences_in_words(run)}). The "
        "claim is about full scale, of which this says nothing.",
    )


NO_INITIALISATION: Judged = (
    "not attempted",
    "The report gives no formula and the code contains no initialisation, so there is nothing to "
    "run; ours is GPT-2's depth scaling, our choice.",
)


def differences_in_words(run: Mapping[str, Any]) -> str:
    """`identity +0.010 (+0.003 to +0.017); ...`, bits per byte above 32 blocks continued."""
    return "; ".join(
        f"{arm['arm']} {arm['mean']:+.3f} ({arm['interval'][0]:+.3f} to {arm['interval'][1]:+.3f})"
        for arm in run["differences"]
    )
