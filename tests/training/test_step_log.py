"""The log of a training: skipped steps, seconds of all attempts, rows in a file."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch import nn

from moxin_lab.training import fit, schedules, step_log
from moxin_lab.training.optimizer import decay_matrices

SETTINGS = {
    "learning_rate": 1e-2,
    "warmup_ratio": 0.0,
    "weight_decay": 0.1,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_eps": 1e-8,
    "gradient_clip_norm": 1.0,
    "precision": "32-true",
    "micro_batch_examples": 2,
    "checkpoint_every_steps": 2,
}


@pytest.fixture(autouse=True)
def float16_on_the_cpu(monkeypatch):
    """Lightning replaces 16-mixed by bfloat16 on a CPU, where PyTorch has float16 and a scaler."""
    choose = _AcceleratorConnector._check_and_init_precision

    def with_float16(self):
        if self._precision_flag == "16-mixed":
            return MixedPrecision("16-mixed", "cpu")
        return choose(self)

    monkeypatch.setattr(_AcceleratorConnector, "_check_and_init_precision", with_float16)


class Values:
    """Steps of one batch each; those in `bad` hold an infinity."""

    examples_per_step = 2

    def __init__(self, num_steps, bad=()):
        self.num_steps, self.bad = num_steps, bad

    def fingerprint(self):
        return f"{self.num_steps} {self.bad}"

    def describe(self, step):
        return f"documents {step}a and {step}b"

    def batch(self, step, *, part=0, parts=1):
        generator = torch.Generator().manual_seed(step)
        values = torch.randn(2, 3, generator=generator)
        return {"values": values * math.inf if step in self.bad else values}


def square(model, batch):
    # Small, so that 65,536, the first scale of 16-mixed, does not make it overflow.
    return {"loss": model(batch["values"]).float().square().mean() / 1000}


def train(folder, stream, loss=square, model=None, progress=None, log_file=None, **changes):
    torch.manual_seed(3)
    model = model or nn.Linear(3, 1)
    log = fit.fit(
        model,
        stream,
        SimpleNamespace(**{**SETTINGS, **changes}),
        loss,
        optimizer=decay_matrices,
        rate=schedules.cosine,
        resume_folder=folder,
        text="values",
        progress=progress,
        trainer_options={"accelerator": "cpu"},
        log_file=log_file,
    )
    return model, log


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_step_without_a_finite_gradient_is_skipped_and_marked_with_what_it_read(
    tmp_path, precision
):
    kept = []

    def loss(model, batch):
        kept.append(model.weight.detach().clone())
        return square(model, batch)

    stream = Values(7, bad=(2, 4, 5))
    model, log = train(tmp_path, stream, loss, precision=precision, log_file=tmp_path / "log.jsonl")
    assert log["skipped"].tolist() == [0, 0, 1, 0, 1, 1, 0]
    assert log["step"].tolist() == list(range(7))
    assert log.loc[log["skipped"] == 1, "reads"].tolist() == [
        f"documents {step}a and {step}b" for step in (2, 4, 5)
    ]
    unchanged = [torch.equal(kept[step], kept[step + 1]) for step in range(6)]
    assert unchanged == [step in (2, 4, 5) for step in range(6)]
    assert torch.isfinite(model.weight).all()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["gradient_norm"] is None for line in lines] == [bool(s) for s in log["skipped"]]
    # The schedule goes on as if nothing had been skipped.
    rates = [schedules.cosine(step, 7, 0.0) * 1e-2 for step in range(7)]
    assert log["learning_rate"].tolist() == pytest.approx(rates)


def test_the_optimizer_does_not_count_a_skipped_step(tmp_path):
    class Without(Values):
        """The steps of `Values` without step 2."""

        def batch(self, step, **options):
            return super().batch(step + (step >= 2), **options)

    kept, _ = train(tmp_path / "skipped", Values(5, bad=(2,)), gradient_clip_norm=None)
    plain, _ = train(tmp_path / "plain", Without(4), gradient_clip_norm=None)
    state = torch.load(tmp_path / "skipped" / "resume-00000004.ckpt", weights_only=True)
    assert state["optimizer_states"][0]["state"][0]["step"] == 3
    # The same batches at rates that differ, so the weights are close and not equal.
    assert not torch.equal(kept.weight, plain.weight)
    torch.testing.assert_close(kept.weight, plain.weight, rtol=0, atol=2e-2)


def test_overflows_that_the_scaler_absorbs_are_counted_and_the_training_goes_on(tmp_path):
    def large(model, batch):
        return {"loss": model(torch.ones(2, 3)).float().square().mean() * 64}

    model, log = train(tmp_path, Values(30), large, precision="16-mixed")
    skipped = log["skipped"].sum()
    assert 1 < skipped < step_log.LIMIT_SCALED
    assert log["skipped"].iloc[:3].all() and not log["skipped"].iloc[-10:].any()
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    assert torch.isfinite(model.weight).all()


@pytest.mark.parametrize(("precision", "limit"), [("32-true", 3), ("16-mixed", 20)])
def test_too_many_skipped_steps_in_a_row_end_the_training_by_one_rule(tmp_path, precision, limit):
    bad = tuple(range(1, 40))
    with pytest.raises(
        ArithmeticError,
        match=f"values: the gradients of {limit} steps in a row, up to step {limit}, .*documents",
    ):
        train(tmp_path, Values(40, bad=bad), precision=precision)


def test_a_training_that_skips_every_step_is_an_error(tmp_path):
    with pytest.raises(ArithmeticError, match="the gradients of 2 steps in a row"):
        train(tmp_path, Values(2, bad=(0, 1)))


def test_seconds_add_up_over_attempts(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(step_log.time, "monotonic", lambda: now[0])

    def tick(stop_at):
        def progress(step, total, text):
            now[0] += 10
            if step == stop_at:
                raise KeyboardInterrupt

        return progress

    stream = Values(6)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path, stream, progress=tick(5))
    now[0] += 1000  # between the attempts
    _, log = train(tmp_path, stream, progress=tick(None))
    assert log.attrs == {"seconds": 60.0, "attempts": 2}
    _, alone = train(tmp_path / "alone", stream, progress=tick(None))
    assert alone.attrs == {"seconds": 60.0, "attempts": 1}


def test_a_log_file_that_cannot_be_written_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        train(tmp_path, Values(2), log_file=tmp_path / "file" / "log.jsonl")


def spike(module, values, log, sigmas=6.0):
    """One optimizer step of `log` with gradients of this norm; whether the step is left out."""
    log._sigmas = sigmas
    module.weight.grad = torch.full_like(module.weight, values / module.weight.numel() ** 0.5)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    log.on_before_optimizer_step(None, module, optimizer)
    return bool(optimizer.found_inf)


def test_a_spike_is_left_out_and_is_not_what_later_steps_are_compared_with():
    module = nn.Linear(4, 4, bias=False)
    log = step_log.StepLog(Values(300), None, "values", lambda step, sums: sums)
    generator = torch.Generator().manual_seed(0)
    usual = (1 + 0.05 * torch.randn(step_log.WINDOW, generator=generator)).tolist()
    assert not any(spike(module, value, log) for value in usual)
    assert not spike(module, 1.2, log)  # four sigmas
    assert spike(module, 1.5, log) and spike(module, 1.5, log) and spike(module, math.inf, log)
    assert not spike(module, 1.0, log)
    assert not spike(module, 1.5, log, sigmas=None)
    again = step_log.StepLog(Values(300), None, "values", lambda step, sums: sums)
    log._sigmas = 6.0
    again.load_state_dict(log.state_dict())
    assert torch.equal(again._norms, log._norms) and spike(module, 1.5, again)


def test_before_the_window_is_full_no_step_is_a_spike():
    module, log = nn.Linear(4, 4), step_log.StepLog(Values(9), None, "", lambda step, sums: sums)
    module.bias = None
    assert not any(spike(module, 10.0**power, log) for power in range(9))


def test_an_error_in_reading_names_the_step_and_what_it_reads(tmp_path):
    class Broken(Values):
        def batch(self, step, **options):
            if step == 3:
                raise ValueError("a shard is damaged")
            return super().batch(step, **options)

    with pytest.raises(ValueError, match="a shard is damaged") as raised:
        train(tmp_path, Broken(6))
    assert raised.value.__notes__ == ["in step 3 of the training, which reads documents 3a and 3b"]


def test_an_optimizer_that_cannot_leave_out_a_step_is_refused_before_its_first(tmp_path):
    model = nn.Linear(3, 1)
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match=r"SGD cannot leave out a step .*build_adamw"):
        fit.fit(
            model,
            Values(2),
            SimpleNamespace(**SETTINGS),
            square,
            optimizer=lambda model, settings: torch.optim.SGD(model.parameters(), lr=0.1),
            rate=schedules.cosine,
            resume_folder=tmp_path,
            text="values",
            trainer_options={"accelerator": "cpu"},
        )
    assert torch.equal(model.weight, before)
