"""Features of frozen towers, computed once for all trainings of a stage.

    compute_features(towers, pictures)        name -> [patches, channels], on the towers' device
    item_features(features, items)            [n, patches, channels] of the items' pictures
    select_towers(towers, which, features)    one of two fused towers, with its own channels
    pooled_by_style(towers, views)            one vector per drawing, by tower and style
    similarity_to_middle(towers, pixels)      similarity of every patch to the middle patch

Guarantees: features of fused towers are joined by channel in the order of `towers.names`, so the
channels of one tower are a slice.
Out of scope: features of towers that are being trained; each training step computes those.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from moxin_lab.vision.data import Concept, Pixels, render_concepts
from moxin_lab.vision.pixels import prepare_images
from moxin_lab.vision.tasks import Item
from moxin_lab.vision.towers import Towers, patch_features, pooled_features

Features = Mapping[str, Tensor]
"""Name of a picture to its features `[patches, channels]`."""


def compute_features(
    towers: Towers, pictures: Mapping[str, Pixels], *, device: str, batch_images: int = 256
) -> dict[str, Tensor]:
    """Features of every picture, float32 on `device`, to which the towers are moved."""
    names, batches = list(pictures), []
    towers.to(device).eval()
    with torch.no_grad():
        for start in range(0, len(names), batch_images):
            pixels = prepare_images(
                [pictures[name] for name in names[start : start + batch_images]], towers.settings
            )
            batches.append(
                towers.features({name: values.to(device) for name, values in pixels.items()})
            )
    return dict(zip(names, torch.cat(batches), strict=True))


def item_features(features: Features, items: Sequence[Item]) -> Tensor:
    """`[n, patches, channels]` of the pictures of items. Raises KeyError for a picture without
    features.
    """
    return torch.stack([features[item.example().image or ""] for item in items])


def select_towers(
    towers: Towers, which: tuple[str, ...], features: Features
) -> tuple[Towers, Features]:
    """The towers named in `which`, sharing their weights, and the channels of `features` that are
    theirs.
    """
    if which == towers.names:
        return towers, features
    settings = towers.settings.model_copy(update={"which": which})
    widths = [towers.tower(name).embed_dim for name in towers.names]
    indices = [index for index, name in enumerate(towers.names) if name in which]
    selected = {}
    for name, values in features.items():
        parts = values.split(widths, dim=1)  # one [patches, channels of the tower] per tower
        chosen = [parts[index] for index in indices]
        selected[name] = chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=1)
    return Towers(settings, {name: towers.tower(name) for name in which}), selected


def prepare_styles(
    concepts: Sequence[Concept], towers: Towers, styles: Sequence[str] = ("google", "twitter")
) -> dict[str, dict[str, Tensor]]:
    """Normalised pixels `[n, 3, edge, edge]` of the concepts' drawings, by style and tower."""
    settings = towers.settings
    return {
        style: prepare_images(list(render_concepts(concepts, style, settings.image_size)), settings)
        for style in styles
    }


def pooled_by_style(
    towers: Towers, views: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, dict[str, NDArray[np.float32]]]:
    """One vector per drawing, `[n, C]`, by tower and style. views: of `prepare_styles`."""
    return {
        name: {
            style: pooled_features(towers.tower(name), view[name]) for style, view in views.items()
        }
        for name in towers.names
    }


def similarity_to_middle(
    towers: Towers, pixels: Mapping[str, Tensor]
) -> dict[str, NDArray[np.float32]]:
    """Cosine similarity of every patch to the patch in the middle, by tower: `[n, side, side]`.

    Patches are those that the language model reads (`patch_features`), minus the mean of their
    picture. pixels: by tower, `[n, 3, edge, edge]`.
    """
    side = int(towers.num_patches**0.5)
    maps = {}
    for name in towers.names:
        tower = towers.tower(name)
        device = next(tower.parameters()).device
        with torch.no_grad():
            patches = patch_features(tower, pixels[name].to(device)).float().cpu()
        unit = F.normalize(patches - patches.mean(dim=1, keepdim=True), dim=-1)
        middle = unit[:, side // 2 * side + side // 2]  # [n, C]
        similarity = torch.einsum("npc,nc->np", unit, middle)
        maps[name] = similarity.reshape(-1, side, side).numpy()
    return maps
