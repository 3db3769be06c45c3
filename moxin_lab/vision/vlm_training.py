"""The VLM's trainings: which parts learn from which tokens.

    stage           trained                      loss on            Prismatic
    align           projector                    captions           558K captions, projector alone
    finetune        projector, decoder           answers            665K instructions, towers frozen
    full-finetune   projector, decoder, towers   answers            the arm that Prismatic found to hurt

`no-align`, which Moxin-VLM really used, is finetune on a fresh projector. While the towers are
frozen their features can be given, looked at once; else each step looks at its images, as published
trainings do, whose features would fill terabytes.

Guarantees: a step's loss is the mean over all its labelled tokens however it is cut, so 1 x 8
equals 8 x 1 (Prismatic's users found that it did not there); kill and resume is bitwise on the CPU;
an example without a labelled token is refused before work begins. Does not: choose examples.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from moxin_lab.lab.progress import Progress
from moxin_lab.training import schedules
from moxin_lab.training.fit import Order, accumulation, fit
from moxin_lab.training.optimizer import decay_matrices
from moxin_lab.vision.images import prepare_images
from moxin_lab.vision.prompts import EncodedExample, encode_example
from moxin_lab.vision.settings import STAGES
from moxin_lab.vision.vlm import MoxinVLM, pad_examples

Images = Mapping[str, Any] | Callable[[str], Any]
"""An example's image name to a file, PIL image or uint8 [H, W, 3]."""


class ExampleStream:
    """Steps of encoded examples: `input_ids, labels, attention_mask, has_image`, `features` or
    pixels, and the step's targets.
    """

    def __init__(
        self,
        encoded: Sequence[EncodedExample],
        settings: Any,
        seed: int,
        look: Callable[[list[str]], Any],
    ) -> None:
        self._encoded, self._look = encoded, look
        self.examples_per_step = settings.examples_per_step
        self._order = Order(
            len(encoded),
            examples_per_step=self.examples_per_step,
            epochs=settings.epochs,
            seed=seed,
        )
        self.num_steps = self._order.num_steps

    def batch(self, step: int, *, part: int = 0, parts: int = 1) -> dict[str, Any]:
        numbers = self._order.step(step)
        targets = sum(int((self._encoded[number].labels != -100).sum()) for number in numbers)
        chosen = [self._encoded[number] for number in self._order.part(step, part, parts)]
        batch: dict[str, Any] = pad_examples([(one.input_ids, one.labels) for one in chosen])
        batch["has_image"] = torch.tensor([one.image is not None for one in chosen])
        batch["step_targets"] = torch.tensor(targets)
        names = [one.image for one in chosen if one.image is not None]
        return batch | (self._look(names) if names else {})


def vlm_loss(model: MoxinVLM, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part's share of the step's mean over labelled tokens."""
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
    return {
        "loss": output.nats.sum() / batch["step_targets"],
        "targets": torch.tensor(output.nats.numel()),
    }


def set_trained(model: MoxinVLM, stage: str) -> None:
    """`requires_grad` for one stage. Raises ValueError for an unknown one."""
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
    examples: Sequence[Any],
    images: Images,
    tokenizer: Any,
    *,
    stage: str,
    settings: Any,
    folder: Path,
    seed: int = 0,
    features: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
    trainer_options: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Train in place; the log, one row a step: loss (nats a token), gradient_norm, learning_rate,
    targets.

    examples: with `id, image, turns` (data.Example). features: image name to [patches, channels] of
    all of them, which frozen towers have seen already; without, every step opens its images. Raises
    PromptError for an example that trains nothing, ImageError for an image, ValueError for features
    where the towers learn or for an image without.
    """
    set_trained(model, stage)
    accumulation(
        settings, settings, 1
    )  # a step that does not divide is refused before anything is encoded
    encoded = [
        encode_example(tokenizer, example, stage=stage, max_tokens=settings.max_tokens)
        for example in examples
    ]
    find = images if callable(images) else images.__getitem__
    if features is None:
        tower_settings = model.towers.settings

        def look(names: list[str]) -> dict[str, Any]:
            pixels = prepare_images([find(name) for name in names], tower_settings)
            return {f"pixels.{name}": values for name, values in pixels.items()}

    else:
        if stage == "full-finetune":
            raise ValueError(
                "full-finetune changes the towers, so features computed before it would be stale: give none"
            )
        lacking = sorted({one.image for one in encoded if one.image is not None} - features.keys())
        if lacking:
            raise ValueError(f"{len(lacking)} images have no features, the first is {lacking[0]}")

        def look(names: list[str]) -> dict[str, Any]:
            return {"features": torch.stack([features[name] for name in names])}

    model.train()
    model.towers.train(stage == "full-finetune")
    model.decoder.activation_checkpointing = settings.activation_checkpointing
    try:
        return fit(
            model,
            ExampleStream(encoded, settings, seed, look),
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


@torch.no_grad()
def caption_nats(
    model: MoxinVLM,
    encoded: Sequence[EncodedExample],
    features: Tensor | None,
    *,
    batch_rows: int = 64,
) -> np.ndarray:
    """Mean nats a labelled token of each example, float64 [N]. features [N, patches, channels]: the
    image each is shown (its own, or another's), or None: blind.
    """
    found = np.zeros(len(encoded))
    for start in range(0, len(encoded), batch_rows):
        rows = encoded[start : start + batch_rows]
        batch = {
            name: value.to(model.device)
            for name, value in pad_examples([(r.input_ids, r.labels) for r in rows]).items()
        }
        seen = None if features is None else features[start : start + len(rows)].to(model.device)
        output = model(
            None,
            batch["input_ids"],
            batch["labels"],
            features=seen,
            attention_mask=batch["attention_mask"],
        )
        assert output.nats is not None and output.rows is not None
        sums = torch.zeros(len(rows), dtype=torch.float64, device=output.nats.device)
        counts = torch.zeros_like(sums)
        sums.index_add_(0, output.rows, output.nats.double())
        counts.index_add_(0, output.rows, torch.ones_like(output.nats, dtype=torch.float64))
        found[start : start + len(rows)] = (sums / counts).cpu().numpy()
    return found


def others_nats(
    model: MoxinVLM,
    encoded: Sequence[EncodedExample],
    features: Tensor,
    *,
    others: int,
    batch_rows: int = 64,
) -> np.ndarray:
    """`caption_nats` of each example with another's image, the mean over `others` rotations at even
    distances, float64 [N].

    Raises ValueError for fewer examples than would give each so many different images.
    """
    count = len(encoded)
    if count <= others:
        raise ValueError(f"{count} examples do not have {others} other images each")
    distances = [count * (number + 1) // (others + 1) for number in range(others)]
    found = [
        caption_nats(model, encoded, features.roll(by, dims=0), batch_rows=batch_rows)
        for by in distances
    ]
    return np.mean(found, axis=0)


def caption_losses(
    model: MoxinVLM, encoded: Sequence[EncodedExample], styles: Sequence[Tensor], *, others: int
) -> dict[str, np.ndarray]:
    """`caption_nats` by what is shown: the example's own image, others' (`others_nats`), each the
    mean over `styles`, and none.
    styles: for each way to draw the images their features [N, patches, channels].
    """
    own = [caption_nats(model, encoded, features) for features in styles]
    wrong = [others_nats(model, encoded, features, others=others) for features in styles]
    return {
        "its own picture": np.mean(own, axis=0),
        f"another's picture, mean of {others}": np.mean(wrong, axis=0),
        "no picture": caption_nats(model, encoded, None),
    }
