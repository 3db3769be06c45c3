"""A dry run tells what the trainer would do, without weights or text."""

import json

import pytest

from moxin_lab import cli, scales
from moxin_lab.pretraining import dry_run


def test_the_full_scale_is_planned_for_8_16_and_64_devices():
    plan = dry_run.plan(scales.load("full"), [8, 16, 64], utilisation=0.5)
    assert plan.parameters == 8_114_180_096
    assert plan.phases["steps"].sum() == 482_000
    assert plan.phases["tokens"].sum() == 482_000 * 4_194_304
    assert plan.phases["first_rate"][0] < plan.phases["first_rate"][1] <= 2e-6
    assert plan.phases["last_rate"][2] == pytest.approx(2e-7)
    # 6 for each of 8.0e9 weights in products and 2.0e12 tokens, and attention
    assert 9.7e22 < plan.phases["flops"].sum() < 1.15e23
    devices = plan.devices.set_index(["devices", "checkpointing"])
    assert devices["micro_batches"].tolist() == [64, 64, 32, 32, 8, 8]
    assert devices.loc[(8, "none"), "days"] == pytest.approx(8 * devices.loc[(64, "none"), "days"])
    assert devices.loc[(8, "full"), "memory_bytes"] < devices.loc[(8, "none"), "memory_bytes"]
    assert devices.loc[(8, "full"), "memory_bytes"] > 16 * plan.parameters / 8


@pytest.mark.parametrize(("count", "tensor"), [(3, 1), (9, 2)])
def test_devices_that_do_not_divide_a_step_or_a_group_are_refused(count, tensor):
    with pytest.raises(ValueError, match=r"not a multiple|do not divide"):
        dry_run.plan(scales.load("full"), [count], utilisation=0.5, tensor=tensor)


def test_a_dry_run_of_the_full_scale_says_pools_steps_memory_and_days(capsys):
    assert cli.main(["run", "--scale", "full", "--only", "04", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "350,000 steps of 2,048 tokens a row" in said
    assert "slimpajama 60, dclm-baseline 30, the-stack-dedup 10" in said
    assert "64 devices: 50 and 11 GB each, 38 days" in said


def test_a_dry_run_names_only_devices_into_which_a_step_divides():
    assert "8 devices" not in dry_run.text(scales.load("tiny"))


def test_a_step_that_divides_for_no_device_is_refused_with_the_reason():
    scale = scales.load("tiny")
    settings = scale.pretraining.model_copy(update={"micro_batch_tokens": 1000})
    with pytest.raises(ValueError, match="is not a multiple of micro_batch_tokens"):
        dry_run.text(scale.model_copy(update={"pretraining": settings}))


def test_the_utilisation_of_a_dry_run_is_the_measured_one(repository):
    record = json.loads((repository / "reports/released/scaling/scaling.json").read_text("utf-8"))
    rows = [row["model_flops_utilisation"] for row in record["rows"] if "median_ms" in row]
    assert max(rows) == pytest.approx(dry_run.MEASURED_UTILISATION, abs=5e-4)
