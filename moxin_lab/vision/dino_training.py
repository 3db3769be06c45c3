"""Training of the DINO tower from scratch, at tiny and small scale.

DINO (Caron et al. 2021, arXiv 2104.14294): a student predicts the centred and sharpened output of a
teacher, the moving average of its own weights, on two views of a picture.

Guarantees: a step's loss does not depend on how it is cut into micro-batches; a killed run
continues bitwise on the CPU.
Out of scope: the quality of the released tower, which full scale loads; DINOv2's further losses.
"""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from moxin_lab.lab.progress import Progress
from moxin_lab.scales.sections import DinoTrainingSettings
from moxin_lab.training import schedules
from moxin_lab.training.fit import fit
from moxin_lab.training.optimizer import decay_matrices
from moxin_lab.vision.data import Pixels
from moxin_lab.vision.towers import Tower, Towers
from moxin_lab.vision.views import ViewStream


def _head(width: int, prototypes: int) -> nn.Module:
    """Three layers to a normalised bottleneck, then prototypes whose lengths are trained (Caron et
    al. fix them at 1).
    """
    return nn.Sequential(
        nn.Linear(width, 2 * width),
        nn.GELU(),
        nn.Linear(2 * width, 2 * width),
        nn.GELU(),
        nn.Linear(2 * width, width),
        _Normalise(),
        nn.utils.parametrizations.weight_norm(nn.Linear(width, prototypes, bias=False)),
    )


class _Normalise(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return F.normalize(values, dim=-1)


class DinoPair(nn.Module):
    """Student, teacher, and the centre: the moving average of the teacher's mean output."""

    center: Tensor
    step_output: Tensor

    def __init__(self, tower: Tower, settings: DinoTrainingSettings, *, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = _head(tower.embed_dim, settings.prototypes)
        self.student = nn.ModuleDict({"tower": tower, "head": head})
        self.teacher = nn.ModuleDict(
            {"tower": copy.deepcopy(tower), "head": copy.deepcopy(head)}
        ).requires_grad_(False)
        self.register_buffer("center", torch.zeros(settings.prototypes))
        # The teacher's mean output [prototypes] over the current step, summed up part by part.
        self.register_buffer("step_output", torch.zeros(settings.prototypes))

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Move the teacher towards the student and the centre towards the step's mean output."""
        for teacher, student in zip(
            self.teacher.parameters(), self.student.parameters(), strict=True
        ):
            teacher.lerp_(student, 1 - self.settings.teacher_momentum)
        self.center.lerp_(self.step_output, 1 - self.settings.center_momentum)
        self.step_output.zero_()


def dino_loss(pair: DinoPair, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cross-entropy of the student on each view with the teacher on the other view: the part's
    share of the step's mean.

    Also logs `teacher_entropy`, the part's share of the entropy of the teacher's mean distribution
    in nats: 0 is collapse to one prototype, log(prototypes) is even use of all.
    """
    settings = pair.settings
    views = (batch["view0"], batch["view1"])  # each [B, 3, S, S]
    share = len(views[0]) / settings.examples_per_step
    student = [  # each [B, prototypes]
        pair.student["head"](pair.student["tower"](view)) / settings.student_temperature
        for view in views
    ]
    with torch.no_grad():
        outputs = [pair.teacher["head"](pair.teacher["tower"](view)) for view in views]
        pair.step_output += share * torch.cat(outputs).mean(dim=0)
        teacher = [
            ((output - pair.center) / settings.teacher_temperature).softmax(dim=-1)
            for output in outputs
        ]
        mean = torch.cat(teacher).mean(dim=0)  # [prototypes]
        entropy = -(mean * mean.clamp_min(1e-12).log()).sum()
    losses = [-(teacher[1 - i] * student[i].log_softmax(dim=-1)).sum(dim=-1).mean() for i in (0, 1)]
    return {"loss": share * (losses[0] + losses[1]) / 2, "teacher_entropy": share * entropy}


def has_collapsed(
    log: pd.DataFrame, prototypes: int, *, last: int = 10, within: float = 0.01
) -> bool:
    """Whether a training ended with a student that predicts the uniform distribution for every
    picture, which is a loss of log(prototypes).

    log: of `train_dino`. True if the mean loss of the `last` steps is within the share `within` of
    log(prototypes).
    """
    uniform = math.log(prototypes)
    return abs(float(log["loss"].tail(last).mean()) - uniform) <= within * uniform


def training_in_words(logs: Mapping[str, pd.DataFrame], prototypes: int) -> str:
    """What the logs of both towers say (`SigLIP` and `DINO`), with a warning if DINO collapsed;
    without logs, that the towers were published ones.
    """
    if not logs:
        return "Published towers were loaded."
    siglip, dino = logs["SigLIP"]["loss"], logs["DINO"]["loss"]
    said = (
        f"SigLIP's loss goes from {siglip.iloc[0]:.2f} to {siglip.tail(10).mean():.2f}. DINO's "
        f"ends at {dino.tail(10).mean():.2f}; that of a collapsed tower is ln({prototypes}) = "
        f"{math.log(prototypes):.2f}."
    )
    return f"{said} {collapse_warning(logs['DINO'], prototypes)}".strip()


def collapse_warning(log: pd.DataFrame, prototypes: int) -> str:
    """A sentence for the reader if a training has collapsed (`has_collapsed`), otherwise empty."""
    if not has_collapsed(log, prototypes):
        return ""
    return (
        f"DINO's training collapsed: its loss ends at {log['loss'].tail(10).mean():.2f}, within "
        f"1 % of ln({prototypes}) = {math.log(prototypes):.2f}. The student predicts the uniform "
        "distribution for every picture, and its tower learned nothing: no score below shows what "
        "a DINO tower adds."
    )


class _UpdateTeacher(Callback):
    """The teacher's update after each optimizer step. A callback, so that it runs before Lightning
    writes its checkpoint.
    """

    def __init__(self) -> None:
        self._step_before = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step > self._step_before:
            pl_module.model.update_teacher()


def train_dino(
    towers: Towers,
    images: Pixels,
    *,
    settings: DinoTrainingSettings,
    folder: Path,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Train `towers.dino` in place and give it the teacher's weights, as DINO does. Returns the
    log, one row per step: loss, teacher_entropy.

    images: uint8 [N, H, W, 3 or 4]; transparent ones get a random background each time.
    """
    tower = towers.tower("dino")
    tower.requires_grad_(True)
    pair = DinoPair(tower, settings, seed=seed)
    stream = ViewStream(
        images,
        settings,
        seed,
        size=towers.settings.image_size,
        name="dino",
        views=2,
        device=device,
        strength=settings.view_strength,
    )
    pair.train()
    log = fit(
        pair,
        stream,
        settings,
        dino_loss,
        optimizer=decay_matrices,
        rate=schedules.cosine,
        resume_folder=folder,
        text="DINO",
        progress=progress,
        trainer_options=trainer_options,
        callbacks=[_UpdateTeacher()],
    )
    tower.load_state_dict(pair.teacher["tower"].state_dict())
    towers.eval()
    return log
