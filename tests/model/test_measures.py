"""Measurements of notebook 03: sizes by depth, attention's time, and committed measurements."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from moxin_lab.bench import released
from moxin_lab.lab.artifacts import find_root
from moxin_lab.model import costs, figures, initialisation
from moxin_lab.model.attention import BACKENDS
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.expansion import RECIPES, layer_plan
from moxin_lab.model.mask import AttentionMask

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


# ---- the initialisation along the depth


def test_the_stream_at_the_top_grows_with_depth_without_depth_scaling_and_not_with_it():
    table = initialisation.by_number_of_blocks(CONFIG, [4, 16, 64], seeds=[0, 1])
    assert table["depth-scaled"].max() / table["depth-scaled"].min() < 1.1
    grown = table["plain"].loc[64] / table["plain"].loc[4]
    assert grown == pytest.approx((64 / 4) ** 0.5, rel=0.15), "the variance adds up block by block"
    assert table["embedding"].tolist() == pytest.approx([0.2] * 3, rel=0.05)


def test_schemes_differ_only_by_the_factor_of_the_residual_matrices():
    scaled, plain = (
        dict(initialisation.initialised(CONFIG, scheme, 3).named_parameters())
        for scheme in initialisation.SCHEMES
    )
    for name, parameter in scaled.items():
        factor = 8**0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
        torch.testing.assert_close(plain[name], parameter * factor)
    with pytest.raises(ValueError, match="unknown scheme 'custom'"):
        initialisation.initialised(CONFIG, "custom", 0)


def test_the_gradient_by_depth_is_that_of_the_loss():
    frame = initialisation.residual_by_depth(CONFIG, seeds=[5], rows=2, length=12)
    part = frame[frame["scheme"] == "depth-scaled"]
    assert part["block"].tolist() == list(range(5))
    model = initialisation.initialised(CONFIG, "depth-scaled", 5)
    tokens, labels = (initialisation.random_tokens(CONFIG, 2, 12, seed) for seed in (5, 1_000_005))
    states = []
    model.model.layers[1].register_forward_hook(
        lambda module, inputs, output: states.append(output)
    )
    loss = torch.nn.functional.cross_entropy(
        model(tokens).flatten(0, 1), labels.flatten(), reduction="sum"
    )
    (gradient,) = torch.autograd.grad(loss, states)
    row = part[part["block"] == 2].iloc[0]
    assert row["rms"] == pytest.approx(states[0].pow(2).mean().sqrt().item(), rel=1e-5)
    assert row["gradient"] == pytest.approx(gradient.pow(2).mean().sqrt().item(), rel=1e-5)


# ---- attention's time


def test_every_backend_is_timed_or_gives_its_reason():
    # A head size that every kernel supports, so that reasons are about the machine.
    shape = dataclasses.replace(CONFIG, head_dim=16)
    times, reasons = costs.attention_times(shape, [8, 16, 32], repeats=1)
    assert set(times["backend"]) | set(reasons) == set(BACKENDS)
    assert not set(times["backend"]) & set(reasons)
    assert {"reference", "sdpa"} <= set(times["backend"])
    assert (times["milliseconds"] > 0).all() and all(reasons.values())
    exponents = costs.slopes(times.assign(milliseconds=times["tokens"] ** 2.0))
    assert exponents["exponent"].tolist() == pytest.approx([2.0] * len(exponents))
    figure = figures.attention_times(times, 16)
    assert len(figure.axes[0].get_legend().get_texts()) == times["backend"].nunique()


@pytest.mark.parametrize("window", [None, 1, 5, 40])
def test_counted_pairs_are_those_of_the_mask(window):
    mask = AttentionMask.build(23, sliding_window=window).dense
    assert costs.count_pairs(23, window) == int(mask.sum())


# ---- committed measurements


def record(bench, rows):
    machine = {
        "gpu": "Chip",
        "cpu": "Core",
        "cores": 2,
        "threads": 1,
        "versions": {"torch": "2"},
        "date": "2026-01-02",
    }
    return {
        "bench": bench,
        "device": "cuda",
        "command": "moxin-lab bench",
        "machine": machine,
        "rows": rows,
    }


def test_ratios_are_to_the_best_peer_of_the_same_shape_in_the_same_run(tmp_path):
    rows = [
        {
            "implementation": "auto",
            "tokens": 8,
            "rows": 1,
            "forward_tflops": 6.0,
            "backward_tflops": 4.0,
        },
        {
            "implementation": "flex (Triton)",
            "tokens": 8,
            "rows": 1,
            "forward_tflops": 3.0,
            "backward_tflops": 8.0,
        },
        {
            "implementation": "sdpa",
            "tokens": 8,
            "rows": 1,
            "forward_tflops": 2.0,
            "backward_tflops": 1.0,
        },
        {
            "implementation": "cuDNN, full triangle",
            "tokens": 8,
            "rows": 1,
            "forward_tflops": 99.0,
            "backward_tflops": 99.0,
        },
        {
            "implementation": "auto",
            "tokens": 16,
            "rows": 1,
            "forward_tflops": 5.0,
            "backward_tflops": 5.0,
        },
        {"implementation": "flex (Triton)", "tokens": 16, "rows": 1, "reason": "out of memory"},
    ]
    (tmp_path / "attention.json").write_text(json.dumps(record("attention", rows)))
    table = released.comparison(released.read(tmp_path, "attention"))
    forward, backward = (
        table[f"{way}_tflops against the best peer"] for way in ("forward", "backward")
    )
    assert forward[:4].tolist() == [2.0, 1.0, pytest.approx(2 / 3), 33.0]
    assert backward[0] == 0.5
    assert forward[4:].isna().all(), "no peer ran in that shape"
    assert table["could not run because"].tolist() == ["", "", "", "", "", "out of memory"]


def test_for_times_smaller_is_better():
    rows = [
        {
            "implementation": "ours, kernels",
            "rows": 1,
            "tokens": 8,
            "ms_per_token": 5.0,
            "floor_ms": 4.0,
        },
        {
            "implementation": "transformers",
            "rows": 1,
            "tokens": 8,
            "ms_per_token": 50.0,
            "floor_ms": 4.0,
        },
    ]
    table = released.comparison(record("decode", rows))
    assert table["ms_per_token against the best peer"].tolist() == [10.0, 1.0]
    assert table["floor_ms"].tolist() == [4.0, 4.0]
    rows = [
        {"implementation": "ours, eager", "median_ms": 9.0},
        {"implementation": "transformers", "median_ms": 10.0},
    ]
    assert released.comparison(record("train-step", rows)).iloc[0, 2] == pytest.approx(10 / 9)


def test_a_missing_file_is_none_and_a_wrong_file_raises_an_error(tmp_path):
    assert released.read(tmp_path, "decode") is None
    for content, message in (
        ("{", "not a record"),
        ("[]", "not a record"),
        (json.dumps({"bench": "decode", "rows": []}), "lacks command, device, machine"),
        (json.dumps(record("prefill", [])), "it says 'prefill'"),
    ):
        (tmp_path / "decode.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            released.read(tmp_path, "decode")
    with pytest.raises(ValueError, match="no comparison is defined for bench 'other'"):
        released.comparison(record("other", []))


def test_the_origin_names_chip_date_versions_and_command():
    assert (
        released.origin(record("decode", []))
        == "Measured on Chip on 2026-01-02 with torch 2: `moxin-lab bench`."
    )


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_every_committed_gpu_measurement_can_be_read_and_is_on_its_page(gpu: str) -> None:
    folder = find_root(Path(__file__).parent) / "reports/released" / gpu
    for path in sorted(set(folder.glob("*.json")) - {folder / "manifest.json"}):
        name = path.stem.replace("_", "-")
        record = released.read(folder, name)
        peers = name in released.COMPARED  # the others are shown without a peer
        assert len(released.comparison(record) if peers else record["rows"]) > 0
    assert (folder / "README.md").read_text(encoding="utf-8") == released.page(folder)


def test_differences_of_the_committed_expansion_run_follow_from_its_rows():
    from moxin_lab.bench.expansion import ARMS, paired_differences

    root = find_root(Path(__file__).parent)
    stored = released.read(root / "reports/released/expansion-tiny-cpu", "expansion")
    assert paired_differences(stored["rows"]) == stored["differences"]
    assert {(row["seed"], row["arm"]) for row in stored["rows"]} == {
        (seed, arm) for seed in range(3) for arm in ARMS
    }
    budgets = [row["flops"] for row in stored["compute"]]
    assert max(budgets) / min(budgets) < 1.02


# ---- figures


def test_expansion_figures_show_each_block_and_arm():
    figure = figures.expansion_plans({recipe: layer_plan(32, 36, recipe) for recipe in RECIPES})
    assert len(figure.axes[0].patches) == 3 * 36
    frame = initialisation.residual_by_depth(
        dataclasses.replace(CONFIG, num_hidden_layers=2), seeds=[0], rows=1, length=4
    )
    assert [len(axes.lines) for axes in figures.residual_by_depth(frame).axes] == [2, 2]
    differences = [{"arm": "a", "mean": 0.1, "interval": None, "by_seed": [0.1]}]
    assert len(figures.expansion_differences(differences).axes[0].get_yticklabels()) == 1
