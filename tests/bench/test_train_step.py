"""The training-step bench: every row does the same work, or gives the reason why it did not run."""

import argparse

import pytest
import torch

from moxin_lab import bench
from moxin_lab.bench import train_step
from moxin_lab.model.config import training_flops_per_token


def options(*words):
    parser = argparse.ArgumentParser()
    bench.add_common_arguments(parser)
    train_step.add_arguments(parser)
    small = [
        "--device",
        "cpu",
        "--blocks",
        "2",
        "--batch",
        "2",
        "--sequence",
        "24",
        "--repeats",
        "2",
    ]
    return parser.parse_args([*small, *words])


@pytest.fixture(scope="module")
def result():
    return train_step.run(options())


def test_every_row_that_runs_has_the_same_first_three_losses(result):
    rows = [row for row in result["rows"] if "reason" not in row]
    assert [row["implementation"] for row in rows] == [
        "ours, eager",
        "ours, eager, fused loss",
        "transformers, sdpa, eager",
    ]
    for row in rows:
        assert row["first_losses"] == pytest.approx(rows[0]["first_losses"], abs=3e-5)
        assert row["first_losses"][0] > row["first_losses"][1] > row["first_losses"][2]


def test_rates_follow_from_times_and_settings(result):
    settings = result["settings"]
    assert (settings["batch"], settings["sequence"], settings["blocks"], settings["dtype"]) == (
        2,
        24,
        2,
        "float32",
    )
    config, _, _ = train_step.shape(options())
    assert settings["flops_per_step"] == 48 * training_flops_per_token(config, 24)
    for row in result["rows"]:
        if "reason" not in row:
            assert row["tokens_per_second"] == pytest.approx(48 / row["median_ms"] * 1000)
            assert 0 < row["fastest_ms"] <= row["median_ms"]
            assert row["model_flops_utilisation"] is None, "no peak is known for this processor"


def test_a_row_that_does_not_run_gives_its_reason(result):
    reasons = {row["implementation"]: row["reason"] for row in result["rows"] if "reason" in row}
    assert (
        reasons.pop("transformers, flex_attention, compiled")
        == "FlexAttention has no backward on the CPU"
    )
    assert set(reasons.values()) == {"skipped without --compile-on-cpu"} and len(reasons) == 4


def test_a_failure_is_a_row_with_its_message_and_the_next_row_runs(monkeypatch):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore")

    def build(start, tokens, dtype):
        model = torch.nn.Linear(2, 2)
        return model, lambda: model(torch.ones(2)).sum()

    monkeypatch.setattr(
        train_step,
        "implementations",
        lambda config, options: [
            train_step.Job("a", fail, False, train_step.torch_adamw),
            train_step.Job("b", build, False, train_step.torch_adamw),
        ],
    )
    jobs = train_step.implementations(None, None)
    rows = [*train_step.measure_one_by_one(jobs, {}, torch.zeros(1), torch.float32, options())]
    assert rows[0] == {"reason": "OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB"}
    assert rows[1]["median_seconds"] > 0 and len(rows[1]["first_losses"]) == 3


@pytest.mark.parametrize(
    ("scale", "expected"), [("tiny", (36, 64, 16, 128)), ("full", (36, 4096, 2, 4096))]
)
def test_the_shape_is_the_scales_unless_an_option_changes_it(scale, expected):
    chosen = options("--scale", scale)
    chosen.blocks = chosen.batch = chosen.sequence = None
    config, batch, sequence = train_step.shape(chosen)
    assert (config.num_hidden_layers, config.hidden_size, batch, sequence) == expected
