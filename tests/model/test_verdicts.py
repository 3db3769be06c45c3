"""Guarantees of notebook 03's verdicts: each follows from its numbers, and can go either way."""

import dataclasses

import pandas as pd
import pytest

from moxin_lab import scales
from moxin_lab.model import experiments, verdicts
from moxin_lab.model.config import MoxinConfig, count_parameters

FULL = MoxinConfig(**scales.load("full").model.model_dump())


def verdict(judged):
    assert any(character.isdigit() for character in judged[1])  # evidence has a number
    return judged[0]


def test_sizes_are_contradicted_by_another_depth_width_or_count():
    full, shallow = (experiments.without_storage(experiments.with_blocks(FULL, n)) for n in (36, 3))
    assert verdict(verdicts.judge_blocks(full, full)) == "reproduced"
    assert verdict(verdicts.judge_blocks(full, shallow)) == "contradicted"
    counted, mistral = count_parameters(FULL)["total"], 7_000_000_000
    gguf = 2 * counted + 1_000_000
    assert verdict(verdicts.judge_parameters(counted, gguf, mistral)) == "reproduced"
    assert verdict(verdicts.judge_parameters(counted + 1, gguf, mistral)) == "contradicted"
    assert verdict(verdicts.judge_table_1(FULL)) == "reproduced"
    wide = dataclasses.replace(FULL, intermediate_size=14_337)
    assert verdict(verdicts.judge_table_1(wide)) == "contradicted"


@pytest.mark.parametrize(
    ("changes", "window", "expected"),
    [
        ([1.0, 0.5, 0.0], 4096, "reproduced"),
        ([1.0, 0.0, 0.0], 4096, "contradicted"),  # a key inside does not count
        ([1.0, 0.5, 1e-9], 4096, "contradicted"),  # one outside does
        ([1.0, 0.5, 0.0], 2048, "contradicted"),
    ],
)
def test_the_window_is_judged_at_its_very_edge(changes, window, expected):
    edge = pd.DataFrame({"distance": [0, window - 1, window], "largest_change": changes})
    assert verdict(verdicts.judge_window(edge, window)) == expected


@pytest.mark.parametrize(
    ("worst", "without_window", "ratio", "expected"),
    [
        (1e-6, 1e-2, 2.0, "reproduced"),
        (2e-5, 1e-2, 2.0, "contradicted"),
        (1e-6, 5e-6, 2.0, "contradicted"),  # the comparison would not see a missing window
        (1e-6, 1e-2, 4.0, "contradicted"),
    ],
)
def test_parity_needs_a_control_that_fails(worst, without_window, ratio, expected):
    rounding = 1e-4
    table = pd.DataFrame(
        {
            "deviation": [0.02, 0.02, 0.05],
            "tokens": [64, 300, 300],
            "largest_difference": [worst / 2, worst, ratio * rounding],
            "rounding": [1e-6, 1e-6, rounding],
            "without_window": [0.0, without_window, 1.0],
        }
    )
    agreed = verdicts.parity_summary(table, 0.02, 0.05, window=128)
    judged = verdicts.judge_parity(agreed, "36 blocks")
    assert verdict(judged) == expected == verdict(verdicts.judge_pre_norm(judged))
    fewer = dataclasses.replace(FULL, num_key_value_heads=4)
    assert verdict(verdicts.judge_grouped_queries(judged, FULL, FULL)) == expected
    assert verdict(verdicts.judge_grouped_queries(judged, fewer, FULL)) == "contradicted"


def test_the_cache_is_judged_by_its_output_and_its_bytes():
    decoding = pd.DataFrame({"cache": ["RollingCache", "FullCache"], "largest_difference": [0, 1]})
    assert verdict(verdicts.judge_same_output(decoding, 640, 128)) == "reproduced"
    decoding["cache"] = decoding["cache"][::-1].to_list()
    assert verdict(verdicts.judge_same_output(decoding, 640, 128)) == "contradicted"
    memory = pd.DataFrame({"tokens": [32_768], "full": [800], "rolling": [100], "ratio": [8.0]})
    assert verdict(verdicts.judge_cache_size(memory, 4096)) == "reproduced"
    assert verdict(verdicts.judge_memory(memory, 0)) == "reproduced"
    judged = verdicts.judge_memory(memory, 400)  # (400 + 800) / (400 + 100)
    assert verdict(judged) == "contradicted" and "2.40 times" in judged[1]
    memory["ratio"] = 7.9
    assert verdict(verdicts.judge_cache_size(memory, 4096)) == "contradicted"


@pytest.mark.parametrize(
    ("full", "same", "expected"),
    [(50, True, "reproduced"), (50, False, "contradicted"), (100, True, "contradicted")],
)
def test_checkpointing_must_hold_fewer_bytes_and_change_no_gradient(full, same, expected):
    held = pd.DataFrame(
        {
            "bytes held": [100, full],
            "times fewer": [1.0, 100 / full],
            "same gradients": [True, same],
        },
        index=["none", "full"],
    )
    assert verdict(verdicts.judge_checkpointing(held)) == expected
    assert [number.value for number in verdicts.held_numbers(held)] == [100, full]


@pytest.mark.parametrize(
    ("measured", "theory", "expected"),
    [
        (1116, 147_420, "reproduced"),
        (1115, 147_420, "contradicted"),
        (1116, 14_000, "contradicted"),
    ],
)
def test_the_span_needs_theory_and_measurement_to_agree(measured, theory, expected):
    spans = pd.DataFrame(
        {
            "reach by theory": [31, 1116],
            "reach measured": [31, measured],
            "99 % within": [20, 60],
            "influence at the end": [1e-3, 1e-40],
        }
    )
    assert verdict(verdicts.judge_span(spans, 32, theory)) == expected
