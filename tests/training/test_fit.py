"""What a training by shares of a step does to PyTorch around it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from moxin_lab.training import fit, schedules
from moxin_lab.training.optimizer import decay_matrices

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


class Ones:
    num_steps, examples_per_step = 2, 2

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
