"""The one AdamW of every training: it goes with mixed precision and clipping, as each scale but
tiny asks for both.
"""

import lightning as L
import pytest
import torch

from moxin_lab.training.optimizer import build_adamw


class OneStep(L.LightningModule):
    """A linear layer whose gradient has a norm far above 1; keeps what the optimizer was given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 4)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(4, 4), batch_size=2)

    def training_step(self, batch, batch_index):
        return 1000 * self.layer(batch).square().sum()

    def on_before_zero_grad(self, optimizer):
        gradients = [p.grad.flatten() for p in self.parameters() if p.grad is not None]
        if gradients:
            self.norm = float(torch.cat(gradients).norm())

    def configure_optimizers(self):
        return build_adamw(
            [{"params": list(self.parameters())}],
            lr=0.01,
            betas=(0.9, 0.95),
            eps=1e-8,
            weight_decay=0.1,
        )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_under_every_precision_of_a_scale(tmp_path, precision):
    module = OneStep()
    L.Trainer(
        max_steps=2,
        precision=precision,
        gradient_clip_val=1.0,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    ).fit(module)
    assert module.norm == pytest.approx(1, abs=1e-3)


def test_a_float16_scaler_divides_before_the_step_where_clipping_sees_it():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = build_adamw(
        [{"params": [weight]}], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(weight.grad.clone()))
    scaler.scale((2 * weight).sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(seen[0], torch.full((3,), 2.0))
