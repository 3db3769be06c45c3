"""Random views of pictures for training the towers.

A view is rotated, scaled, shifted and recoloured, and laid on another background, so that pixels at
the same position mean nothing: emoji of two vendors share their layout, and raw pixels already
match 47 % of them.

Guarantees: views are a function of (seed, step, position in the step), however the step is cut into
parts and wherever the pictures are.
Out of scope: opening images (`images.py`).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moxin_lab.scales.sections import VisionOptimisation
from moxin_lab.training.fit import Order
from moxin_lab.training.identity import digest
from moxin_lab.vision.data import Pixels
from moxin_lab.vision.pixels import normalise_channels


def augment(
    pictures: Tensor, size: int, generator: torch.Generator, *, strength: float = 1.0
) -> Tensor:
    """Random views float32 [B, 3, size, size] in [0, 1] of uint8 [B, H, W, 3 or 4].

    Half of the views are mirrored. All are rotated by up to 30 degrees, scaled by 0.6 to 1.15,
    shifted by up to 15 % of the edge, and each colour channel is scaled; `strength` multiplies
    these ranges. Transparent pixels and pixels outside the picture show a light background of one
    random colour. The views are computed on the device of `pictures`; random numbers come from the
    CPU, so a GPU computes the same views.
    """
    count = len(pictures)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        values = low + (high - low) * torch.rand((count, *shape), generator=generator)
        return values.to(pictures.device)

    values = pictures.permute(0, 3, 1, 2).float() / 255  # [B, 3 or 4, H, W]
    alpha = values[:, 3:] if values.shape[1] == 4 else torch.ones_like(values[:, :1])
    angle = draw(-0.52, 0.52) * strength
    scale = torch.exp(draw(math.log(0.6), math.log(1.15)) * strength)
    shift = draw(-0.3, 0.3, 2) * strength
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    mirror = draw(-1, 1).sign() if strength else torch.ones_like(cos)
    first_row = torch.stack((mirror * cos, -mirror * sin, shift[:, 0]), dim=1)
    second_row = torch.stack((sin, cos, shift[:, 1]), dim=1)
    matrix = torch.stack((first_row, second_row), dim=1)  # [B, 2, 3]
    grid = F.affine_grid(matrix, [count, 4, size, size], align_corners=False)
    # Colours are multiplied by alpha before they are interpolated, or edges would darken.
    premultiplied = torch.cat((values[:, :3] * alpha, alpha), dim=1)  # [B, 4, H, W]
    moved = F.grid_sample(premultiplied, grid, align_corners=False)  # [B, 4, size, size]
    gain = 1 + draw(-0.25, 0.25, 3, 1, 1) * strength
    background = draw(0.8, 1.0, 3, 1, 1)
    return (moved[:, :3] * gain + background * (1 - moved[:, 3:])).clamp(0, 1)


class ViewStream:
    """Training steps of augmented pictures: `view0`, `view1`, ... float32 [B, 3, size, size] on
    `device`, and `indices` int64 [B] of the pictures.

    name: the tower whose normalisation is applied.
    """

    def __init__(
        self,
        pictures: Pixels,
        settings: VisionOptimisation,
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

    def fingerprint(self) -> str:
        """Digest of the pictures, their order, and how views are drawn."""
        views = (self._seed, self._size, self._name, self._views, self._strength)
        return digest(self.pictures, self._order.fingerprint(), views)

    def describe(self, step: int) -> str:
        """Which pictures a step reads, for messages."""
        return f"pictures {self._order.step(step).tolist()[:5]} and more"

    def batch(self, step: int, *, part: int = 0, parts: int = 1) -> dict[str, Any]:
        """Part `part` of a step cut into `parts`."""
        indices = torch.as_tensor(self._order.step(step))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        cut = slice(part * len(indices) // parts, (part + 1) * len(indices) // parts)
        batch: dict[str, Any] = {"indices": indices[cut]}
        for view in range(self._views):
            # Drawn for the whole step and then cut, so that a part does not depend on `parts`.
            views = augment(self.pictures[indices], self._size, generator, strength=self._strength)
            batch[f"view{view}"] = normalise_channels(views, self._name)[cut]
        return batch
