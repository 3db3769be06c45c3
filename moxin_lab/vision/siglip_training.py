"""Training of the SigLIP tower from scratch, at tiny and small scale.

SigLIP (Zhai et al. 2023, arXiv 2303.15343): open_clip's `SigLipLoss` between the tower's pooled
image and a text encoder, where every pair of a step is a yes/no question. The text encoder is a
small open_clip transformer, or one that is computed and frozen (as LiT freezes its pretrained one,
Zhai et al. 2022). The bias starts at -log(batch - 1), where the loss of that many negatives is
balanced; the published -10 suits batches of 22,000.

Guarantees: a killed run continues bitwise on the CPU.
Out of scope: the quality of the released tower, which full scale loads.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.loss import SigLipLoss
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from moxin_lab.lab.progress import Progress
from moxin_lab.scales.sections import SiglipTrainingSettings
from moxin_lab.training import schedules
from moxin_lab.training.fit import fit
from moxin_lab.training.identity import digest
from moxin_lab.training.optimizer import decay_matrices
from moxin_lab.vision.data import Pixels
from moxin_lab.vision.latent_semantics import LatentSemantics
from moxin_lab.vision.prompts import tokenize
from moxin_lab.vision.towers import Tower, Towers
from moxin_lab.vision.views import ViewStream


class SiglipPair(nn.Module):
    """The SigLIP tower with its pooling head, a text encoder of the same width, scale and bias.

    captions: all captions of each picture; only the encoder `lsa`, which is computed from them,
    reads them.
    """

    def __init__(
        self,
        tower: Tower,
        tokenizer: PreTrainedTokenizerBase,
        settings: SiglipTrainingSettings,
        *,
        captions: Sequence[Sequence[str]] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tower, self._tokenizer, self._length = tower, tokenizer, settings.text_tokens
        self.pad = tokenizer.pad_token_id or 0
        is_lsa = settings.text_encoder == "lsa"
        # In a bag of words a word must be the same token at every position; byte-level tokenizers
        # mark the space before all words but the first.
        self._prefix = " " if is_lsa else ""
        self.text = (
            self._computed_encoder(settings, captions, seed)
            if is_lsa
            else self._trained_encoder(settings, seed)
        )
        negatives = max(1, settings.examples_per_step - 1)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-math.log(negatives)))

    def _trained_encoder(self, settings: SiglipTrainingSettings, seed: int) -> nn.Module:
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

    def _computed_encoder(
        self, settings: SiglipTrainingSettings, captions: Sequence[Sequence[str]], seed: int
    ) -> nn.Module:
        return LatentSemantics(
            [self.encode_texts(texts).flatten().tolist() for texts in captions],
            vocabulary=len(self._tokenizer),
            components=settings.text_width,
            output=self.tower.embed_dim,
            pad=self.pad,
            seed=seed,
        )

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 [B, text_tokens]. Shorter texts are padded and longer ones cut, since the
        transformer pools the last position.
        """
        rows = torch.full((len(texts), self._length), self.pad)
        for row, text in enumerate(texts):
            ids = tokenize(self._tokenizer, self._prefix + text)[: self._length]
            rows[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return rows

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors [B, width] of images [B, 3, S, S] and of texts [B, text_tokens]."""
        return F.normalize(self.tower(pixels), dim=-1), F.normalize(self.text(ids), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], *, batch_texts: int = 256) -> NDArray[np.float32]:
        """Embeddings of texts, [N, width], not normalised."""
        device = self.logit_scale.device
        parts = self.encode_texts(texts).split(batch_texts)
        return torch.cat([self.text(part.to(device)).cpu() for part in parts]).numpy()


class CaptionedViews(ViewStream):
    """Views with one caption each, `ids` int64 [B, text_tokens]: drawn every step from the
    picture's captions, with a share of its tokens replaced by padding.

    ids: of each picture, the token ids of its captions, int64 [captions, text_tokens].
    """

    def __init__(
        self,
        pictures: Pixels,
        ids: list[Tensor],
        settings: SiglipTrainingSettings,
        seed: int,
        *,
        pad: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            pictures, settings, seed, views=1, strength=settings.view_strength, **options
        )
        self._ids, self._pad, self._dropout = ids, pad, settings.token_dropout

    def fingerprint(self) -> str:
        """Digest of what `ViewStream`'s is of, and of the captions."""
        return digest(super().fingerprint(), self._ids, self._pad, self._dropout)

    def batch(self, step: int, *, part: int = 0, parts: int = 1) -> dict[str, Any]:
        batch = super().batch(step, part=part, parts=parts)
        rng = np.random.default_rng([self._seed, step, part])
        captions = [self._ids[index] for index in batch["indices"].tolist()]
        batch["ids"] = torch.stack([ids[int(rng.integers(len(ids)))] for ids in captions])
        if self._dropout:
            dropped = torch.as_tensor(rng.random(batch["ids"].shape) < self._dropout)
            batch["ids"] = batch["ids"].masked_fill(dropped, self._pad)
        return batch


def siglip_loss(pair: SiglipPair, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's loss of one step, in float32 even under autocast; logs scale and bias."""
    images, texts = pair(batch["view0"], batch["ids"])
    scale = pair.logit_scale.exp()
    with torch.autocast(images.device.type, enabled=False):
        loss = SigLipLoss()(images.float(), texts.float(), scale, pair.logit_bias)
    return {"loss": loss, "scale": scale, "bias": pair.logit_bias.clone()}


def train_siglip(
    towers: Towers,
    images: Pixels,
    captions: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    settings: SiglipTrainingSettings,
    folder: Path,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
) -> tuple[SiglipPair, pd.DataFrame]:
    """Train `towers.siglip` in place. Returns the pair, for retrieval, and the log, one row per
    step: loss, scale, bias.

    images: uint8 [N, H, W, 3 or 4]; transparent ones get a random background each time. captions:
    for each image all texts that are true of it, in any language. device: where views are computed.

    The loss compares every pair of the step, so a step is one batch on one device. Raises
    ValueError for settings that would cut it, and for an image without caption.
    """
    if settings.micro_batch_examples != settings.examples_per_step:
        raise ValueError(
            f"micro_batch_examples is {settings.micro_batch_examples} and examples_per_step "
            f"{settings.examples_per_step}: SigLIP's loss compares every pair of a step, which is "
            "never cut, so set both to the same number"
        )
    if len(images) != len(captions) or not all(captions):
        raise ValueError(
            f"{len(images)} images and {len(captions)} lists of captions: each image needs a list "
            "of at least one text"
        )
    pair = SiglipPair(towers.tower("siglip"), tokenizer, settings, captions=captions, seed=seed)
    pair.tower.requires_grad_(True)
    stream = CaptionedViews(
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
