"""Tables and experiments of notebook 03: counts are those of the parts, masks those of the rule,
and expansion by identity changes nothing.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from moxin_lab.lab import measured
from moxin_lab.model import experiments, figures, tables
from moxin_lab.model.config import MoxinConfig, count_parameters

CONFIG = MoxinConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=112,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=16,
    max_position_embeddings=128,
    initializer_range=0.2,
)


def test_parts_times_their_occurrences_add_up_to_the_total():
    table = tables.parameters_by_part({"here": CONFIG}).set_index("part")
    parts = table.drop(index=["one block", "total"])
    total = count_parameters(CONFIG)["total"]
    assert (parts["times"] * parts["here"]).sum() == table.loc["total", "here"] == total
    with pytest.raises(ValueError, match="different numbers of blocks"):
        deeper = dataclasses.replace(CONFIG, num_hidden_layers=5)
        tables.parameters_by_part({"a": CONFIG, "b": deeper})


def test_reach_by_theory_is_measured_in_the_models_that_are_built():
    steps = []
    frames = experiments.influence_by_depth(
        CONFIG, (1, 3), 4, 0, lambda step, total, text: steps.append((step, total))
    )
    spans = tables.reach_and_span(frames, 4)
    assert spans["reach measured"].tolist() == spans["reach by theory"].tolist() == [3, 9]
    assert steps == [(1, 4), (3, 4)]


def test_example_masks_show_window_and_documents():
    causal, window, packed = experiments.example_masks().values()
    query, key = np.indices((48, 48))
    assert (causal == (key <= query)).all()
    assert (window == (causal & (key > query - 12))).all()
    assert not packed[20:42, :20].any() and packed[25, 20] and not packed[43, 42]


def test_parity_is_measured_at_every_deviation():
    table = experiments.parity_by_deviation(CONFIG, [0.02, 0.2], [8, 40], 0)
    assert table.groupby("deviation").size().to_dict() == {0.02: 4, 0.2: 4}
    assert table["largest_difference"].max() < 1e-4


def test_expansion_by_identity_changes_no_logit_and_copies_do():
    changes = experiments.changes_by_expansion(CONFIG, 2, 4, 0, num_tokens=40)
    assert changes["identity"] == 0 and min(changes["interleaved"], changes["top"]) > 0


def test_committed_records_are_tabulated_by_arm_and_compared_by_loss():
    record = {
        "rows": [
            {"arm": "a", "seed": 0, "bits_per_byte": 2.0},
            {"arm": "a", "seed": 1, "bits_per_byte": 3.0},
        ],
        "compute": [{"arm": "a", "steps": 5, "tokens": 10, "flops": 1.0}],
    }
    expected = {"steps": 5, "tokens": 10, "median": 2.5, "lowest": 2.0, "highest": 3.0}
    assert tables.expansion_results(record).loc["a"].to_dict() == expected
    losses = {"rows": [{"first_losses": [3.0, 2.0]}, {"first_losses": [3.0, 2.5]}, {"reason": "x"}]}
    assert tables.first_loss_spread(losses) == 0.5


def test_a_speed_table_has_one_row_per_implementation_and_no_column_per_run():
    first, second = (
        {"implementation": "auto", "ms_per_token": value, "floor_ms": 1.0, "rows": rows}
        for value, rows in ((4.0, 1), (9.0, 8))
    )
    peer = {"implementation": "peer", "reason": "out of memory", "tokens": 32_000, "rows": 1}
    rows = [
        {**first, "tokens": 32_000, "run": 1},
        {**first, "tokens": 32_000, "run": 2, "ms_per_token": 8.0},
        {**second, "tokens": 8_192},
        {**peer, "ms_per_token": None},
    ]
    record = {"bench": "decode", "machine": {"gpu": "Chip", "date": "2026-01-02"}, "rows": rows}
    questions = [each for each in measured.QUESTIONS if each.bench == "decode"]
    charts = [measured.chart(record, question, "decode.json") for question in questions]
    found = tables.speed_tables(charts)
    filled = [caption for caption, answers in found.items() if answers]
    assert list(found) == list(tables.SPEEDS.values()) and filled == list(found)[:1]
    table = tables.speeds(found[filled[0]])
    assert table["1 × 32,000 tokens"].to_dict() == {
        "floor": "1.0",
        "auto": "6.0 (4.0 to 8.0, 2 runs)",
        "peer": "not measured: out of memory",
    }
    assert table["8 × 8,192 tokens"].fillna("not tried").tolist() == ["1.0", "9.0", "not tried"]


def test_the_speed_tables_of_notebook_03_hold_every_chart_of_the_committed_gpu(repository):
    charts = measured.charts(repository, "h100")
    kinds = {bench for bench, _ in tables.SPEEDS}
    shown = [chart for answers in tables.speed_tables(charts).values() for chart in answers]
    assert {id(c) for c in shown} == {id(c) for c in charts if c.question.bench in kinds}
    for answers in tables.speed_tables(charts).values():
        table = tables.speeds(answers)
        assert table.index.is_unique and table.shape[1] == len(answers) <= 4


def test_underscores_of_columns_become_spaces():
    assert tables.in_words(pd.DataFrame({"largest_difference": [1]})).columns.tolist() == [
        "largest difference"
    ]


def test_a_rotated_product_depends_on_the_distance_alone():
    table = tables.rotary_products(CONFIG, 0)
    by_distance = table.groupby("distance")["product after"]
    assert (by_distance.max() - by_distance.min()).max() < 1e-3
    assert by_distance.first().nunique() == table["distance"].nunique() == 3
    assert table["product before"].nunique() == 1


def test_the_words_of_the_ring_and_of_influence_follow_their_numbers():
    assert "Token 8 overwrites token 0" in figures.ring_in_words(8, 9)
    assert "overwrites" not in figures.ring_in_words(8, 8)
    frame = pd.DataFrame({"distance": [0, 3, 4], "influence": [1.0, 2e-9, 0.0]})
    assert "1 block at 3 tokens, where it is 2e-09" in figures.influence_in_words({1: frame})


def test_the_speed_chart_has_a_bar_per_measured_row_and_its_floor(repository):
    charts = measured.charts(repository, "h100")
    decode = next(chart for chart in charts if chart.question.bench == "decode")
    axes = figures.speeds(decode).axes[0]
    assert len(axes.patches) == sum(bar.value is not None for bar in decode.bars)
    assert axes.lines[0].get_xdata()[0] == decode.floor
    assert all(bar.name in figures.speeds_in_words(decode) for bar in decode.bars)
