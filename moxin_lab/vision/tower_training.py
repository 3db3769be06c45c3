"""Stage (a): the two towers from nothing, at tiny and small scale, by the losses that made the real
ones.

SigLIP (Zhai et al. 2023, arXiv 2303.15343): open_clip's own `SigLipLoss` between the tower's pooled
image and a small open_clip text transformer, or a computed text encoder that is locked (as LiT
locks its pretrained one, Zhai et al. 2022), every pair of the step a yes/no question; the bias
starts at -log(batch - 1), where the loss of that many negatives is balanced (the published -10
suits batches of 22,000). DINO (Caron et al. 2021, arXiv 2104.14294): a student matches the centred
and sharpened output of its own moving average, on two views of a picture.

Views are turned, scaled, shifted, recoloured and laid on another background, so that pixels at the
same place mean nothing: emoji of two vendors share their layout, and raw pixels already match 47 %
of them.

Guarantees: views are a function of (seed, step, place in the step); kill and resume is bitwise on
the CPU.
Does not: reach the quality of the released towers; full scale loads those.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from open_clip.loss import SigLipLoss
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from moxin_lab.lab.progress import Progress
from moxin_lab.training import schedules
from moxin_lab.training.fit import Order, fit
from moxin_lab.training.optimizer import decay_matrices
from moxin_lab.vision.images import NORMALISATION
from moxin_lab.vision.latent_semantics import LatentSemantics
from moxin_lab.vision.prompts import tokens
from moxin_lab.vision.towers import Towers

# ---- views


def augment(
    pictures: Tensor, size: int, generator: torch.Generator, *, strength: float = 1.0
) -> Tensor:
    """Random views float32 [B, 3, size, size] in [0, 1] of uint8 [B, H, W, 3 or 4].

    Half are mirrored; all are turned by up to 30 degrees, scaled by 0.6 to 1.15, shifted by up to
    15 % of the edge (times `strength`), colours scaled a channel; what is transparent or outside
    shows a background of one light colour, drawn anew. The views are made where the pictures are;
    what is drawn comes from the CPU, so that a GPU makes the same views.
    """
    count = len(pictures)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand((count, *shape), generator=generator)).to(
            pictures.device
        )

    values = pictures.permute(0, 3, 1, 2).float() / 255
    alpha = values[:, 3:] if values.shape[1] == 4 else torch.ones_like(values[:, :1])
    angle, scale = (
        draw(-0.52, 0.52) * strength,
        torch.exp(draw(math.log(0.6), math.log(1.15)) * strength),
    )
    shift = draw(-0.3, 0.3, 2) * strength
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    side = draw(-1, 1).sign() if strength else torch.ones_like(cos)
    matrix = torch.stack(
        (
            torch.stack((side * cos, -side * sin, shift[:, 0]), 1),
            torch.stack((sin, cos, shift[:, 1]), 1),
        ),
        1,
    )
    grid = F.affine_grid(matrix, [count, 4, size, size], align_corners=False)
    moved = F.grid_sample(torch.cat((values[:, :3] * alpha, alpha), 1), grid, align_corners=False)
    gain = 1 + draw(-0.25, 0.25, 3, 1, 1) * strength
    background = draw(0.8, 1.0, 3, 1, 1)
    return (moved[:, :3] * gain + background * (1 - moved[:, 3:])).clamp(0, 1)


def normalised(views: Tensor, name: str) -> Tensor:
    """Views in [0, 1] as a tower wants them."""
    mean, std = (
        torch.tensor(values, device=views.device)[:, None, None] for values in NORMALISATION[name]
    )
    return (views - mean) / std


class Views:
    """Steps of `views` augmented pictures each: `view0`, `view1`, ... float32 on `device`, and
    `numbers` of the pictures.
    """

    def __init__(
        self,
        pictures: NDArray[np.uint8],
        settings: Any,
        seed: int,
        *,
        size: int,
        name: str,
        views: int,
        device: str = "cpu",
        strength: float = 1.0,
    ) -> None:
        self.pictures, self._seed = torch.as_tensor(pictures, device=device), seed
        self._size, self._name, self._views, self._strength = size, name, views, strength
        self.examples_per_step = settings.examples_per_step
        self._order = Order(
            len(pictures),
            examples_per_step=self.examples_per_step,
            epochs=settings.epochs,
            seed=seed,
        )
        self.num_steps = self._order.num_steps

    def batch(self, step: int, *, part: int = 0, parts: int = 1) -> dict[str, Any]:
        numbers = torch.as_tensor(self._order.step(step))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        cut = slice(part * len(numbers) // parts, (part + 1) * len(numbers) // parts)
        batch: dict[str, Any] = {"numbers": numbers[cut]}
        for number in range(self._views):
            # The whole step is drawn and then cut, so that a part does not depend on how many there
            # are.
            drawn = augment(self.pictures[numbers], self._size, generator, strength=self._strength)
            batch[f"view{number}"] = normalised(drawn, self._name)[cut]
        return batch


# ---- SigLIP


class SiglipPair(nn.Module):
    """The SigLIP tower with its pooling head, a text encoder of the same width, scale and bias.

    captions: of each picture, read by the encoder `lsa` alone, which is computed of them.
    """

    def __init__(
        self,
        tower: Any,
        tokenizer: Any,
        settings: Any,
        *,
        captions: Sequence[Sequence[str]] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tower, self._tokenizer, self._length = tower, tokenizer, settings.text_tokens
        self.pad = tokenizer.pad_token_id or 0
        # Words of a bag are the same wherever they stand; byte-level tokenizers mark the space
        # before all but the first.
        self._before = " " if settings.text_encoder == "lsa" else ""
        self.text = (self._lsa if settings.text_encoder == "lsa" else self._transformer)(
            settings, captions, seed
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(
            torch.tensor(-math.log(max(1, settings.examples_per_step - 1)))
        )

    def _transformer(
        self, settings: Any, captions: Sequence[Sequence[str]], seed: int
    ) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return TextTransformer(
                context_length=settings.text_tokens,
                vocab_size=len(self._tokenizer),
                width=settings.text_width,
                heads=settings.text_heads,
                layers=settings.text_layers,
                output_dim=self.tower.embed_dim,
                no_causal_mask=True,
                pool_type="last",
                proj_bias=True,
            )

    def _lsa(self, settings: Any, captions: Sequence[Sequence[str]], seed: int) -> nn.Module:
        return LatentSemantics(
            [self.encode_texts(texts).flatten().tolist() for texts in captions],
            vocabulary=len(self._tokenizer),
            components=settings.text_width,
            output=self.tower.embed_dim,
            pad=self.pad,
            seed=seed,
        )

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 [B, text_tokens]; padded, and longer texts cut, so that the last place,
        which is pooled, is there.
        """
        rows = torch.full((len(texts), self._length), self.pad)
        for row, text in enumerate(texts):
            ids = tokens(self._tokenizer, self._before + text)[: self._length]
            rows[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return rows

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.tower(pixels), dim=-1), F.normalize(self.text(ids), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], *, batch_texts: int = 256) -> NDArray[np.float32]:
        """[N, width] of texts."""
        device = self.logit_scale.device
        parts = self.encode_texts(texts).split(batch_texts)
        return torch.cat([self.text(part.to(device)).cpu() for part in parts]).numpy()


class Captioned(Views):
    """Views and one caption each, drawn anew each step from the picture's own; a share of its
    tokens is padding instead.
    """

    def __init__(
        self,
        pictures: NDArray[np.uint8],
        ids: list[Tensor],
        settings: Any,
        seed: int,
        *,
        pad: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            pictures, settings, seed, views=1, strength=settings.view_strength, **options
        )
        self._ids, self._pad, self._dropout = ids, pad, settings.token_dropout

    def batch(self, step: int, *, part: int = 0, parts: int = 1) -> dict[str, Any]:
        batch = super().batch(step, part=part, parts=parts)
        rng = np.random.default_rng([self._seed, step, part])
        batch["ids"] = torch.stack(
            [self._ids[n][int(rng.integers(len(self._ids[n])))] for n in batch["numbers"].tolist()]
        )
        if self._dropout:
            dropped = torch.as_tensor(rng.random(batch["ids"].shape) < self._dropout)
            batch["ids"] = batch["ids"].masked_fill(dropped, self._pad)
        return batch


def siglip_loss(pair: SiglipPair, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's loss of one step, in float32 under autocast too; logs scale and bias."""
    images, texts = pair(batch["view0"], batch["ids"])
    scale = pair.logit_scale.exp()
    with torch.autocast(images.device.type, enabled=False):
        loss = SigLipLoss()(images.float(), texts.float(), scale, pair.logit_bias)
    return {"loss": loss, "scale": scale, "bias": pair.logit_bias.clone()}


def train_siglip(
    towers: Towers,
    images: NDArray[np.uint8],
    captions: Sequence[Sequence[str]],
    tokenizer: Any,
    *,
    settings: Any,
    folder: Path,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
) -> tuple[SiglipPair, pd.DataFrame]:
    """Train `towers.siglip` in place; the pair, for retrieval, and the log (loss, scale, bias a
    step).

    images: uint8 [N, H, W, 3 or 4], transparent ones get a new background each time. captions: of
    each image all the texts that are true of it, in any language. device: where views are made. The
    loss is of every pair of the step, which therefore is one
    batch on one device: raises ValueError for settings that cut it, and for an image without
    caption.
    """
    if settings.micro_batch_examples != settings.examples_per_step:
        raise ValueError(
            f"micro_batch_examples is {settings.micro_batch_examples} and examples_per_step {settings.examples_per_step}: "
            "SigLIP's loss is of every pair of a step, which is never cut, so set both to the same number"
        )
    if len(images) != len(captions) or not all(captions):
        raise ValueError(
            f"{len(images)} images and {len(captions)} lists of captions, each of which needs at least one text"
        )
    pair = SiglipPair(towers.tower("siglip"), tokenizer, settings, captions=captions, seed=seed)
    pair.tower.requires_grad_(True)
    stream = Captioned(
        images,
        [pair.encode_texts(texts) for texts in captions],
        settings,
        seed,
        size=towers.settings.image_size,
        name="siglip",
        device=device,
        pad=pair.pad,
    )
    pair.train()
    log = fit(
        pair,
        stream,
        settings,
        siglip_loss,
        optimizer=decay_matrices,
        rate=schedules.cosine,
        resume_folder=folder,
        text="SigLIP",
        progress=progress,
        trainer_options=trainer_options,
    )
    return pair.eval(), log


# ---- DINO


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
        _Normalised(),
        nn.utils.parametrizations.weight_norm(nn.Linear(width, prototypes, bias=False)),
    )


class _Normalised(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return F.normalize(values, dim=-1)


class DinoPair(nn.Module):
    """Student and its moving average, and the centre of what the teacher says."""

    def __init__(self, tower: Any, settings: Any, *, seed: int = 0) -> None:
        super().__init__()
        self._settings = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = _head(tower.embed_dim, settings.prototypes)
        self.student = nn.ModuleDict({"tower": tower, "head": head})
        self.teacher = nn.ModuleDict(
            {"tower": copy.deepcopy(tower), "head": copy.deepcopy(head)}
        ).requires_grad_(False)
        self.register_buffer("center", torch.zeros(settings.prototypes))
        self.register_buffer("seen", torch.zeros(settings.prototypes))

    @torch.no_grad()
    def follow(self) -> None:
        """One step of the teacher and its centre; `seen` is the sum of the teacher's outputs of the
        step, over its mean.
        """
        for teacher, student in zip(
            self.teacher.parameters(), self.student.parameters(), strict=True
        ):
            teacher.lerp_(student, 1 - self._settings.teacher_momentum)
        self.center.lerp_(self.seen, 1 - self._settings.center_momentum)
        self.seen.zero_()


def dino_loss(pair: DinoPair, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cross-entropy of each view's student with the other view's teacher, the part's share of the
    step's mean.

    Logs the share of the entropy of the teacher's mean distribution: 0 is collapse to one
    prototype, log(prototypes) is even use.
    """
    settings = pair._settings
    views = (batch["view0"], batch["view1"])
    share = len(views[0]) / settings.examples_per_step
    said = [
        pair.student["head"](pair.student["tower"](view)) / settings.student_temperature
        for view in views
    ]
    with torch.no_grad():
        wanted = [pair.teacher["head"](pair.teacher["tower"](view)) for view in views]
        pair.seen += share * torch.cat(wanted).mean(dim=0)
        sharp = [
            ((values - pair.center) / settings.teacher_temperature).softmax(dim=-1)
            for values in wanted
        ]
        mean = torch.cat(sharp).mean(dim=0)
        entropy = -(mean * mean.clamp_min(1e-12).log()).sum()
    losses = [-(sharp[1 - i] * said[i].log_softmax(dim=-1)).sum(dim=-1).mean() for i in (0, 1)]
    return {"loss": share * (losses[0] + losses[1]) / 2, "teacher_entropy": share * entropy}


def says_uniform(
    log: pd.DataFrame, prototypes: int, *, last: int = 10, within: float = 0.01
) -> bool:
    """Whether a training ended where the student says the uniform distribution, whatever it sees: a
    loss of log(prototypes).

    log: of `train_dino`. The mean loss of the last steps counts as that within a share of
    log(prototypes).
    """
    even = math.log(prototypes)
    return abs(float(log["loss"].tail(last).mean()) - even) <= within * even


class _Follow(Callback):
    """The teacher's step after the student's; a callback, so that it comes before Lightning's
    checkpoint is written.
    """

    def __init__(self) -> None:
        self._before = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._before = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step > self._before:
            pl_module.model.follow()


def train_dino(
    towers: Towers,
    images: NDArray[np.uint8],
    *,
    settings: Any,
    folder: Path,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Train `towers.dino` in place and give it the teacher's weights, as DINO does; the log (loss,
    teacher_entropy a step).
    """
    tower = towers.tower("dino")
    tower.requires_grad_(True)
    pair = DinoPair(tower, settings, seed=seed)
    stream = Views(
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
        callbacks=[_Follow()],
    )
    tower.load_state_dict(pair.teacher["tower"].state_dict())
    towers.eval()
    return log
