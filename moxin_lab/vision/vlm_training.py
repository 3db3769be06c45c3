"""Trainings of the VLM: which parts are trained, and on which tokens.

    stage           trained                      loss on    Prismatic
    align           projector                    captions   558K captions, projector only
    finetune        projector, decoder           answers    665K instructions, towers frozen
    full-finetune   projector, decoder, towers   answers    found to be worse

Moxin-VLM used a single stage: `finetune` with a fresh projector (the recipe `no-align`). While the
towers are frozen, their features can be computed once and passed in. Otherwise each step opens its
images, as in published trainings, whose features would fill terabytes.

Guarantees: a step's loss is the mean over all its labelled tokens, however the step is cut into
micro-batches: 1 x 8 equals 8 x 1 (in Prismatic it does not, its users report); a killed run
continues bitwise on the CPU; an example without a labelled token is refused before training starts.
Out of scope: choosing examples (`training_data.py`).
"""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from moxin_lab.lab.progress import Progress
from moxin_lab.scales.sections import TowerSettings, VlmTrainingSettings
from moxin_lab.training import schedules
from moxin_lab.training.fit import Order, accumulation, fit
from moxin_lab.training.identity import digest, flat
from moxin_lab.training.loss import IGNORE_INDEX
from moxin_lab.training.optimizer import decay_matrices
from moxin_lab.vision.data import Example
from moxin_lab.vision.images import Source
from moxin_lab.vision.pixels import prepare_images
from moxin_lab.vision.prompts import EncodedExample, encode_example
from moxin_lab.vision.vlm import MoxinVLM, pad_examples

STAGES = ("align", "finetune", "full-finetune")

Images = Mapping[str, Source] | Callable[[str], Source]
"""Name of an example's image to a file, a PIL image or uint8 [H, W, 3]."""

Load = Callable[[list[str]], dict[str, Tensor]]
"""Names of images to `features` [images, patches, channels], or to `pixels.<tower>`
[images, 3, S, S].
"""


class ExampleStream:
    """Training steps of encoded examples.

    A batch has `input_ids`, `labels`, `attention_mask` int64 [B, T], `has_image` bool [B],
    `step_targets` (labelled tokens of the whole step), and the tensors that `load` returns for its
    images.

    source: digest of what `load` reads.
    """

    def __init__(
        self,
        encoded: Sequence[EncodedExample],
        settings: VlmTrainingSettings,
        seed: int,
        load: Load,
        source: str,
    ) -> None:
        self._encoded, self._load, self._source = encoded, load, source
        self.examples_per_step = settings.examples_per_step
        self._order = Order(
            len(encoded),
            examples_per_step=self.examples_per_step,
            epochs=settings.epochs,
            seed=seed,
        )
        self.num_steps = self._order.num_steps

    def fingerprint(self) -> str:
        """Digest of the examples, their order, and the source of their images."""
        return digest(self._encoded, self._order.fingerprint(), self._source)

    def describe(self, step: int) -> str:
        """Which examples a step reads, for messages."""
        return f"examples {[self._encoded[i].id for i in self._order.step(step)][:5]} and more"

    def batch(self, step: int, *, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        """Part `part` of a step cut into `parts`."""
        whole_step = [self._encoded[index] for index in self._order.step(step)]
        targets = sum(int((example.labels != IGNORE_INDEX).sum()) for example in whole_step)
        examples = [self._encoded[index] for index in self._order.part(step, part, parts)]
        batch = pad_examples([(example.input_ids, example.labels) for example in examples])
        batch["has_image"] = torch.tensor([example.image is not None for example in examples])
        batch["step_targets"] = torch.tensor(targets)
        names = [example.image for example in examples if example.image is not None]
        return batch | (self._load(names) if names else {})


def vlm_loss(model: MoxinVLM, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch's share of the step's mean over labelled tokens in nats; logs `targets`, its number
    of labelled tokens.
    """
    pixels = {
        name.removeprefix("pixels."): value
        for name, value in batch.items()
        if name.startswith("pixels.")
    }
    output = model(
        pixels or None,
        batch["input_ids"],
        batch["labels"],
        features=batch.get("features"),
        attention_mask=batch["attention_mask"],
        has_image=batch["has_image"],
    )
    assert output.nats is not None
    loss = output.nats.sum() / batch["step_targets"]
    if not bool(batch["has_image"].any()):
        loss = loss + _unused(model)
    return {
        "loss": loss,
        "targets": torch.tensor(output.nats.numel()),
    }


def _unused(model: MoxinVLM) -> Tensor:
    """0, with a gradient of 0 for the projector and for towers that are trained: a batch of text
    alone does not reach them, but a backward pass and a reduction over ranks expect the gradient of
    each trained parameter.
    """
    towers, weight = model.towers, next(model.towers.parameters())
    if any(parameter.requires_grad for parameter in towers.parameters()):
        edge = towers.settings.image_size
        features = model.image_features(
            dict.fromkeys(towers.names, weight.new_zeros(1, 3, edge, edge))
        )
    else:
        features = weight.new_zeros(1, towers.num_patches, towers.channels)
    return 0 * model.projector(features.to(model.projector.fc1.weight.dtype)).sum()


def set_trainable(model: MoxinVLM, stage: str) -> None:
    """Set `requires_grad` for one stage. Raises ValueError for an unknown stage."""
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}: available are {', '.join(STAGES)}")
    model.requires_grad_(False)
    model.projector.requires_grad_(True)
    if stage != "align":
        model.decoder.requires_grad_(True)
    if stage == "full-finetune":
        for parameter in model.towers.used_parameters():
            parameter.requires_grad_(True)


def train_vlm(
    model: MoxinVLM,
    examples: Sequence[Example],
    images: Images,
    tokenizer: PreTrainedTokenizerBase,
    *,
    stage: str,
    settings: VlmTrainingSettings,
    folder: Path,
    seed: int = 0,
    features: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Train in place. Returns the log, one row per step: loss (nats per token), gradient_norm,
    learning_rate, targets.

    stage: one of `STAGES`. features: image name to [patches, channels] of all images, where they
    were computed beforehand; None: every step opens its images. Raises PromptError for an example
    without a token to learn from, ImageError for an image, ValueError for features of towers that
    are trained, or for an image without features.
    """
    set_trainable(model, stage)
    # A step that cannot be cut into micro-batches is refused before anything is encoded.
    accumulation(settings, settings, 1)  # type: ignore[arg-type]  # reads examples_per_step only
    encoded = [
        encode_example(tokenizer, example, stage=stage, max_tokens=settings.max_tokens)
        for example in examples
    ]
    if features is None:
        load = _load_pixels(images, model.towers.settings)
        source = _pixel_source(images, model.towers.settings, encoded)
    elif stage == "full-finetune":
        raise ValueError(
            "full-finetune changes the towers, so features computed before it would be stale: pass "
            "features=None"
        )
    else:
        load = _load_features(features, encoded)
        source = digest("features", [features[name] for name in _image_names(encoded)])
    model.train()
    model.towers.train(stage == "full-finetune")
    model.decoder.activation_checkpointing = settings.activation_checkpointing
    try:
        return fit(
            model,
            ExampleStream(encoded, settings, seed, load, source),
            settings,
            vlm_loss,
            optimizer=decay_matrices,
            rate=schedules.cosine,
            resume_folder=folder,
            text=stage,
            progress=progress,
            trainer_options=trainer_options,
        )
    finally:
        model.decoder.activation_checkpointing = "none"
        model.eval()


def _load_pixels(images: Images, settings: TowerSettings) -> Load:
    """A function that opens images."""
    get_image = images if callable(images) else images.__getitem__

    def load(names: list[str]) -> dict[str, Tensor]:
        pixels = prepare_images([get_image(name) for name in names], settings)
        return {f"pixels.{name}": values for name, values in pixels.items()}

    return load


def _image_names(encoded: Sequence[EncodedExample]) -> list[str]:
    return sorted({example.image for example in encoded if example.image is not None})


def _pixel_source(
    images: Images, settings: TowerSettings, encoded: Sequence[EncodedExample]
) -> str:
    """Digest of the towers' settings and of every image's source: of a file its path, of an image
    in memory its pixels.
    """
    get_image = images if callable(images) else images.__getitem__
    sources = (_source(get_image(name)) for name in _image_names(encoded))
    return digest("pixels", flat(settings), [digest(source) for source in sources])


def _source(image: Source) -> Any:
    """What tells an image from another without opening a file."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        return getattr(image, "filename", "") or (image.mode, image.getpalette(), np.asarray(image))
    if isinstance(image, io.BytesIO):
        return image.getvalue()
    return image if isinstance(image, np.ndarray | Tensor) else str(getattr(image, "name", image))


def _load_features(features: Mapping[str, Tensor], encoded: Sequence[EncodedExample]) -> Load:
    """A function that looks up features. Raises ValueError for an image without."""
    missing = [name for name in _image_names(encoded) if name not in features]
    if missing:
        raise ValueError(f"{len(missing)} images have no features, the first is {missing[0]}")

    def load(names: list[str]) -> dict[str, Tensor]:
        return {"features": torch.stack([features[name] for name in names])}

    return load


# ---- caption losses


@torch.no_grad()
def caption_nats(
    model: MoxinVLM,
    encoded: Sequence[EncodedExample],
    features: Tensor | None,
    *,
    batch_rows: int = 64,
) -> np.ndarray:
    """Mean loss of each example in nats per labelled token, float64 [N].

    features: [N, patches, channels] of the image that each example is shown, its own or another's;
    None: blind.
    """
    means = np.zeros(len(encoded))
    for start in range(0, len(encoded), batch_rows):
        rows = encoded[start : start + batch_rows]
        batch = {
            name: value.to(model.device)
            for name, value in pad_examples([(r.input_ids, r.labels) for r in rows]).items()
        }
        shown = None if features is None else features[start : start + len(rows)].to(model.device)
        output = model(
            None,
            batch["input_ids"],
            batch["labels"],
            features=shown,
            attention_mask=batch["attention_mask"],
        )
        assert output.nats is not None and output.rows is not None
        sums = torch.zeros(len(rows), dtype=torch.float64, device=output.nats.device)
        counts = torch.zeros_like(sums)
        sums.index_add_(0, output.rows, output.nats.double())
        counts.index_add_(0, output.rows, torch.ones_like(output.nats, dtype=torch.float64))
        means[start : start + len(rows)] = (sums / counts).cpu().numpy()
    return means


def mismatched_caption_nats(
    model: MoxinVLM,
    encoded: Sequence[EncodedExample],
    features: Tensor,
    *,
    others: int,
    batch_rows: int = 64,
) -> np.ndarray:
    """`caption_nats` of each example with the image of another example, float64 [N]: the mean over
    `others` other images, taken at even distances in the order of the examples.

    Raises ValueError for too few examples to have that many other images.
    """
    count = len(encoded)
    if count <= others:
        raise ValueError(f"{count} examples do not have {others} other images each")
    shifts = [count * (index + 1) // (others + 1) for index in range(others)]
    nats = [
        caption_nats(model, encoded, features.roll(shift, dims=0), batch_rows=batch_rows)
        for shift in shifts
    ]
    return np.mean(nats, axis=0)


def caption_losses(
    model: MoxinVLM, encoded: Sequence[EncodedExample], styles: Sequence[Tensor], *, others: int
) -> dict[str, np.ndarray]:
    """Loss of each example (`caption_nats`) with its own picture, with other examples' pictures
    (`mismatched_caption_nats`), and without a picture; the first two are means over `styles`.

    styles: for each style of drawing, the features [N, patches, channels] of the examples' images.
    """
    matched = [caption_nats(model, encoded, features) for features in styles]
    mismatched = [
        mismatched_caption_nats(model, encoded, features, others=others) for features in styles
    ]
    return {
        "its own picture": np.mean(matched, axis=0),
        f"another's picture, mean of {others}": np.mean(mismatched, axis=0),
        "no picture": caption_nats(model, encoded, None),
    }
