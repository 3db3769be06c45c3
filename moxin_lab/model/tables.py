"""Tables of notebook 03, built from configurations, measurements and committed records.

Guarantees: the numbers are those of the inputs, unrounded.
Out of scope: running a model (see `experiments` and `measures`); captions.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from moxin_lab.model import measures
from moxin_lab.model.config import MoxinConfig, count_parameters
from moxin_lab.model.decoder import rotary_angles, rotate
from moxin_lab.scales.sections import ModelSettings, Phase

if TYPE_CHECKING:
    from moxin_lab.lab.measured import Chart

PARTS_OF_A_BLOCK = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "norms",
    "block",
)
OTHER_PARTS = ("embed_tokens", "lm_head", "final_norm", "total")
TABLE_1 = {
    "num_hidden_layers": 36,
    "hidden_size": 4096,
    "head_dim": 128,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
"""Table 1 of the technical report, in the names of `MistralConfig`."""


SPEEDS = {
    ("decode", "ms_per_token"): "One token after a long text, full model, milliseconds",
    ("prefill", "ms"): "Reading a prompt, full model, milliseconds",
    ("attention", "forward_tflops"): "Attention forward, one layer of full width, TFLOP/s of the "
    "window's pairs",
    ("attention", "backward_tflops"): "Attention backward, one layer of full width, TFLOP/s of the "
    "window's pairs",
    ("train-step", "median_ms"): "A training step, eight blocks of full width, milliseconds",
}
"""Benchmark and column of the speed tables of notebook 03, in their order, and their captions."""


def in_words(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with spaces instead of underscores in the names of its columns."""
    return frame.rename(columns=lambda name: str(name).replace("_", " "))


def parameters_by_part(configs: dict[str, MoxinConfig]) -> pd.DataFrame:
    """Parameters of each part: one row per part, one column per configuration, named by its key.

    Further columns: part, and how many times it occurs. All configurations must have the same
    number of blocks; otherwise ValueError.
    """
    depths = {config.num_hidden_layers for config in configs.values()}
    if len(depths) != 1:
        raise ValueError(f"the configurations have different numbers of blocks: {sorted(depths)}")
    names = [*PARTS_OF_A_BLOCK, *OTHER_PARTS]
    table: dict[str, list[Any]] = {
        "part": [
            "one block" if name == "block" else f"one block: {name}" for name in PARTS_OF_A_BLOCK
        ]
        + list(OTHER_PARTS),
        "times": [*depths] * len(PARTS_OF_A_BLOCK) + [1] * len(OTHER_PARTS),
    }
    for title, config in configs.items():
        counts = count_parameters(config)
        table[title] = [counts[name] for name in names]
    return pd.DataFrame(table)


def configurations(configs: dict[str, MoxinConfig]) -> pd.DataFrame:
    """Sizes by field, with the vocabulary first: one column per configuration."""
    names = ["vocab_size", *ModelSettings.model_fields]
    return pd.DataFrame(
        {
            "field": names,
            **{
                title: [f"{getattr(config, name):,g}" for name in names]
                for title, config in configs.items()
            },
        }
    )


def slopes_in_words(exponents: pd.Series) -> str:
    """`S to the power 1.9 with sdpa, ...`."""
    return ", ".join(f"S to the power {value:.1f} with {name}" for name, value in exponents.items())


def rotary_products(config: MoxinConfig, seed: int) -> pd.DataFrame:
    """The product of one query and one key after RoPE, both drawn at random: one row per pair of
    positions, three distances in two places each, and the first without rotation beside it.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = torch.randn(2, config.head_dim, generator=generator)  # a query, a key
    rows = []
    for query_at, key_at in ((3, 2), (1003, 1002), (3, 0), (1003, 1000), (40, 0), (1040, 1000)):
        places = torch.tensor([[query_at, key_at]])
        turned = rotate(heads[None, :, None], *rotary_angles(places, config))[0, :, 0]
        product = float(turned[0] @ turned[1])
        rows.append((query_at, key_at, query_at - key_at, float(heads[0] @ heads[1]), product))
    columns = ["query at", "key at", "distance", "product before", "product after"]
    return pd.DataFrame(rows, columns=columns)


def reach_and_span(frames: dict[int, pd.DataFrame], window: int) -> pd.DataFrame:
    """Theoretical and measured reach, and spans, in tokens: one row per number of blocks.

    frames: number of blocks -> the frame of `measures.influence`.
    """
    return pd.DataFrame(
        {
            "blocks": depth,
            "reach by theory": depth * (window - 1),
            "reach measured": measures.reach(frame),
            "half of the influence within": measures.span(frame, 0.5),
            "99 % within": measures.span(frame, 0.99),
            "influence at the end": frame["influence"][measures.reach(frame)],
        }
        for depth, frame in frames.items()
    )


def speed_tables(charts: Sequence["Chart"]) -> dict[str, list["Chart"]]:
    """The charts of `lab.measured.charts` that belong to each table of SPEEDS, by its caption; an
    empty list where nothing was measured.
    """
    return {
        caption: [c for c in charts if (c.question.bench, c.question.column) == key]
        for key, caption in SPEEDS.items()
    }


def speeds(charts: Sequence["Chart"]) -> pd.DataFrame:
    """One row per implementation, one column per chart (all of one table); the limit of the
    hardware comes first.

    A cell is the median of its runs, with the lowest, the highest and the number of runs in
    brackets if there are several, or why there is none; empty for what was not tried.
    """
    columns = {}
    for chart in charts:
        digits, cells = chart.question.digits, {}
        if chart.floor is not None:
            cells[chart.floor_name.partition(":")[0]] = f"{chart.floor:,.{digits}f}"
        cells |= {bar.name: bar.in_words(digits) for bar in chart.bars}
        columns[_shape_in_words(chart)] = cells
    names = dict.fromkeys(name for cells in columns.values() for name in cells)
    return pd.DataFrame(
        {title: [cells.get(name) for name in names] for title, cells in columns.items()},
        index=pd.Index(names, name="implementation"),
    )


def _shape_in_words(chart: "Chart") -> str:
    """`1 × 16,384 tokens, documents of 2,048`: what a chart's question holds fixed."""
    shape = chart.question.shape
    if "tokens" not in shape:
        return "one step"
    rows = f"{shape['rows']} × " if "rows" in shape else ""
    packed = shape.get("document_tokens")
    return f"{rows}{shape['tokens']:,} tokens" + (f", documents of {packed:,}" if packed else "")


def expansion_results(record: dict[str, Any]) -> pd.DataFrame:
    """Steps and tokens of each arm of `bench expansion`, and its held-out bits per byte: the median
    of its seeds, the lowest and the highest.
    """
    bits = pd.DataFrame(record["rows"]).groupby("arm")["bits_per_byte"]
    compute = pd.DataFrame(record["compute"]).set_index("arm")[["steps", "tokens"]]
    return compute.join(bits.agg(median="median", lowest="min", highest="max"))


def compiling_in_words(
    record: dict[str, Any], median_ms: pd.Series, phases: Sequence[Phase]
) -> str:
    """What compiled blocks would save and cost over these phases, from `bench train-step`.

    median_ms: of a step, by implementation.
    """
    saved = median_ms["ours, eager, fused loss"] - median_ms["ours, compiled blocks, fused loss"]
    first = {row["implementation"]: row.get("first_step_seconds") for row in record["rows"]}
    steps = sum(phase.steps for phase in phases)
    return (
        f"Compiled blocks save {saved:.0f} ms per step, {saved * steps / 1000:.0f} s over the "
        f"{steps} steps of the tiny training, and cost {first['ours, compiled blocks']:.0f} s for "
        f"each of its {len({phase.sequence_length for phase in phases})} context lengths. Stage 04 "
        "trains uncompiled, with the fused loss."
    )


def first_loss_spread(record: dict[str, Any]) -> float:
    """Largest difference between the rows of `bench train-step` in any of their first losses."""
    losses = pd.DataFrame(row["first_losses"] for row in record["rows"] if "first_losses" in row)
    return float((losses.max() - losses.min()).max())
