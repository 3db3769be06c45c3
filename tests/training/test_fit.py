"""What a training by shares of a step does to PyTorch around it."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from moxin_lab.posttraining.batches import ConversationStream
from moxin_lab.pretraining.packing import TrainingStream
from moxin_lab.reasoning.rollout_stream import RolloutStream
from moxin_lab.training import fit, resume, schedules
from moxin_lab.training.optimizer import decay_all, decay_matrices
from moxin_lab.vision.views import ViewStream

SETTINGS = SimpleNamespace(
    learning_rate=1e-2,
    warmup_ratio=0.0,
    weight_decay=0.1,
    adam_beta1=0.9,
    adam_beta2=0.999,
    adam_eps=1e-8,
    gradient_clip_norm=1.0,
    precision="32-true",
    micro_batch_examples=2,
    checkpoint_every_steps=1000,
)

CPU = {"accelerator": "cpu"}


class Ones:
    num_steps, examples_per_step = 2, 2

    def fingerprint(self):
        return "ones"

    def batch(self, step, *, part=0, parts=1):
        return {"values": torch.ones(2, 3)}


@pytest.fixture(params=[True, False])
def allowed(request):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(request.param)
    yield request.param
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize("fails", [False, True])
def test_a_training_runs_without_cudnns_attention_and_restores_the_setting(
    allowed, fails, tmp_path
):
    seen = []

    def loss(model, batch):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        if fails and len(seen) == 2:
            raise ArithmeticError("enough")
        return {"loss": model(batch["values"]).square().mean()}

    def train():
        return fit.fit(
            nn.Linear(3, 1),
            Ones(),
            SETTINGS,
            loss,
            optimizer=decay_matrices,
            rate=schedules.cosine,
            resume_folder=tmp_path,
            text="ones",
            trainer_options={"accelerator": "cpu"},
        )

    if fails:
        with pytest.raises(ArithmeticError, match="enough"):
            train()
    else:
        assert len(train()) == 2
    assert seen == [False, False]
    assert torch.backends.cuda.cudnn_sdp_enabled() is allowed


@pytest.mark.parametrize(
    ("device", "beside", "expected"), [("cuda:0", True, "cuda"), ("cuda:0", False, "cpu")]
)
def test_batches_are_made_in_other_processes_only_where_they_read_memory(
    monkeypatch, device, beside, expected
):
    class Memory(Ones):
        in_other_processes = beside

    module = fit.StepTraining(
        nn.Linear(3, 1), Memory(), SETTINGS, None, decay_matrices, schedules.cosine
    )
    module._device, devices = torch.device(device), []
    module._trainer = SimpleNamespace(
        accumulate_grad_batches=1, global_rank=0, world_size=1, global_step=0
    )
    monkeypatch.setattr(resume, "loader", lambda parts, sampler, device: devices.append(device))
    module.train_dataloader()
    assert [one.type for one in devices] == [expected]


def test_streams_that_sample_or_hold_a_gpus_tensors_stay_in_this_process():
    assert TrainingStream.in_other_processes and ConversationStream.in_other_processes
    assert not any(hasattr(one, "in_other_processes") for one in (RolloutStream, ViewStream))


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_train_end", "on_fit_end", "teardown"])
def test_a_signal_after_the_last_step_ends_the_process_too(hook, tmp_path):
    late = Callback()
    setattr(late, hook, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        fit.fit(
            nn.Linear(3, 1),
            Ones(),
            SETTINGS,
            lambda model, batch: {"loss": model(batch["values"]).square().mean()},
            optimizer=decay_matrices,
            rate=schedules.cosine,
            resume_folder=tmp_path,
            text="ones",
            trainer_options={"accelerator": "cpu"},
            callbacks=[late],
        )
    assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("changed", ["loss", "optimizer", "rate"])
def test_another_loss_optimizer_or_schedule_does_not_continue_a_training(changed, tmp_path):
    def loss(model, batch):
        return {"loss": model(batch["values"]).square().mean()}

    def other_loss(model, batch):
        return {"loss": model(batch["values"]).abs().mean()}

    functions = {"loss": loss, "optimizer": decay_matrices, "rate": schedules.cosine}
    others = {"loss": other_loss, "optimizer": decay_all, "rate": schedules.linear}

    def train(loss, **options):
        torch.manual_seed(0)
        settings = SimpleNamespace(**{**vars(SETTINGS), "checkpoint_every_steps": 1})
        options |= {"resume_folder": tmp_path, "text": "ones"}
        return fit.fit(nn.Linear(3, 1), Ones(), settings, loss, **options, trainer_options=CPU)

    log = train(**functions)
    assert train(**functions).equals(log)
    with pytest.raises(ValueError, match=f"{changed}_function was .*, is "):
        train(**{**functions, changed: others[changed]})
