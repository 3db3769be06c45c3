"""What a training took is summed over its attempts, and energy says how it was found."""

import json
import math

import pytest

from moxin_lab import scales
from moxin_lab.model.config import training_flops_per_token
from moxin_lab.pretraining import costs, trainer
from tests.pretraining.test_trainer import make_model, make_settings, make_stream


class Clock:
    """A second passes at each look."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


class Driver:
    """NVML with a counter, with a power limit alone, or with neither."""

    def __init__(self, millijoules=None, milliwatts=None):
        self._millijoules, self._milliwatts = millijoules, milliwatts

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, place):
        return self._fill(place, self._millijoules)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle, place):
        return self._fill(place, self._milliwatts)

    @staticmethod
    def _fill(place, value):
        if value is None:
            return 3  # not supported
        place._obj.value = value
        return 0


def train(folder, energy, stop=None):
    settings = make_settings(checkpoint_every_steps=3)
    stream, model = make_stream(settings), make_model()

    def end(step, total, text):
        if step == stop:
            raise KeyError("ended")

    trainer.fit(
        model,
        stream,
        settings,
        resume_folder=folder,
        save_phase=lambda index: None,
        trainer_options={"accelerator": "cpu"},
        progress=end,
        callbacks=[costs.Meter(stream, folder / "spent.json", energy, Clock())],
    )
    return stream, model


def test_a_step_that_is_repeated_after_a_kill_is_paid_twice_and_its_tokens_count_once(tmp_path):
    joules = Clock()
    energy = costs.EnergyMeter(costs.COUNTER, lambda: 36e5 * joules())
    with pytest.raises(KeyError):
        train(tmp_path, energy, stop=6)  # the step after the point at 3; 6 is not metered
    stream, model = train(tmp_path, energy)
    attempts = costs.read(tmp_path / "spent.json")
    assert len(attempts) == 2
    table = costs.table(attempts, stream, model.config, ranks=2, device="NVIDIA H100", ceiling=1e12)
    assert table.loc["all phases", "steps paid"] == 5 + 7
    assert table["tokens"].tolist() == [4 * 64, 3 * 64, 3 * 64, 10 * 64]
    assert table.loc["short", "FLOPs"] == 256 * training_flops_per_token(model.config, 16)
    total = table.loc["all phases"]
    assert total["seconds"] == 12 and total["device hours"] == pytest.approx(24 / 3600)
    assert total["dollars"] == pytest.approx(24 / 3600 * costs.DOLLARS_PER_HOUR)
    assert total["kWh"] == pytest.approx(24)  # a kilowatt hour a step and device
    assert total["% of peak"] == pytest.approx(100 * total["FLOPs"] / 12 / 2 / 989e12)
    assert total["% of matmul"] == pytest.approx(100 * total["FLOPs"] / 12 / 2 / 1e12)
    assert "2 attempt(s) on 2 x NVIDIA H100" in costs.in_words(
        attempts, ranks=2, device="NVIDIA H100", ceiling=1e12
    )


def test_energy_of_a_processor_is_not_measured_and_stays_empty(tmp_path):
    stream, model = train(tmp_path, costs.energy_meter())
    attempts = costs.read(tmp_path / "spent.json")
    table = costs.table(attempts, stream, model.config)
    assert table["kWh"].isna().all() and table["dollars"].isna().all()
    said = costs.in_words(attempts, ranks=1, device=None, ceiling=1e9)
    assert "Energy: not measured" in said and "no price stated" in said


def test_the_counter_is_preferred_then_the_power_limit_then_nothing():
    counter = costs.energy_meter(0, Driver(millijoules=5_000, milliwatts=700_000))
    assert counter.method == costs.COUNTER and counter.joules() == 5.0
    limit = costs.energy_meter(0, Driver(milliwatts=700_000), Clock())
    assert limit.method == costs.POWER_LIMIT and "upper bound" in limit.method
    assert limit.joules() == 700.0 and limit.joules() == 1400.0
    neither = costs.energy_meter(0, Driver())
    assert neither == (costs.NOT_MEASURED, neither.joules) and neither.joules() is None


def test_phases_whose_energy_was_found_in_two_ways_are_not_added(tmp_path):
    stream, model = train(tmp_path, costs.EnergyMeter(costs.COUNTER, Clock()))
    attempts = costs.read(tmp_path / "spent.json")
    both = [*attempts, {**json.loads(json.dumps(attempts[0])), "energy": costs.POWER_LIMIT}]
    assert costs.table(attempts, stream, model.config)["kWh"].notna().all()
    assert costs.table(both, stream, model.config)["kWh"].isna().all()


def test_the_ceiling_is_a_speed_that_products_reach():
    assert math.isfinite(costs.matmul_ceiling("cpu", size=64)) and costs.peak_of("NVIDIA H100 80GB")
    assert costs.peak_of("a processor") is None


def test_the_full_scale_crosses_the_line_of_1e23_flops_with_attention_alone():
    full = scales.load("full")
    compute = costs.training_compute(full.tokenizer.vocab_size, full.model, full.pretraining)
    shares = compute["% of the line"]
    assert shares["6ND, every parameter"] == pytest.approx(97.37, abs=0.01)
    assert shares["weights in products"] < shares["6ND, every parameter"]
    assert 100 < shares["weights in products, and attention"] < 115


def test_a_bill_on_a_processor_has_no_column_without_a_number(tmp_path):
    stream, model = train(tmp_path, costs.energy_meter())
    bill, said = costs.bill(tmp_path / "spent.json", stream, model.config, 1)
    assert bill.notna().all(axis=None) and "% of matmul" in bill and "kWh" not in bill
    assert "1 attempt(s) on 1 x this processor" in said
