"""The two vision towers and what the language model sees of them.

    pixels {"dino": [B,3,S,S], "siglip": [B,3,S,S]}      each normalised its own way (images.py)
       |                         |
    DINOv2 with registers     SigLIP                     timm's classes and names at every scale; narrow at tiny scale
       |  block -2, no norm      |  block -2, no norm
    patches, no prefix tokens  patches
       +----------- channels ----+
                    |
         [B, patches, 1024 + 1152 = 2176]

Guarantees: the features are timm's `get_intermediate_layers(x, n={blocks - 2})` of both towers,
concatenated; blocks behind are not run. Does not: normalise pixels, or train (tower_training.py).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moxin_lab.vision.settings import TowerSettings


class Towers(nn.Module):
    """The towers that `settings.which` names, as attributes `dino` and `siglip`."""

    def __init__(self, settings: Any, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.settings = settings
        self.names = tuple(settings.which)
        for name in self.names:
            self.add_module(name, models[name])
        counts = {name: self.tower(name).patch_embed.num_patches for name in self.names}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"towers see different numbers of patches {counts}: they cannot be joined by channel"
            )
        self.num_patches = next(iter(counts.values()))
        self.channels = sum(self.tower(name).embed_dim for name in self.names)

    def tower(self, name: str) -> Any:
        return getattr(self, name)

    def features(self, pixel_values: Mapping[str, Tensor]) -> Tensor:
        """[B, patches, channels] of pixels [B, 3, S, S] a tower. Raises ValueError for a tower
        without pixels.
        """
        missing = [name for name in self.names if name not in pixel_values]
        if missing:
            raise ValueError(
                f"pixel_values lacks {', '.join(missing)}: each tower has its own normalised pixels"
            )
        return torch.cat(
            [patches(self.tower(name), pixel_values[name]) for name in self.names], dim=2
        )

    def used_parameters(self) -> list[nn.Parameter]:
        """Parameters that the features depend on: not the last block, the last norm or a pooling
        head.
        """
        found = []
        for name in self.names:
            tower = self.tower(name)
            last = f"blocks.{len(tower.blocks) - 1}."
            found += [
                p
                for key, p in tower.named_parameters()
                if not key.startswith((last, "norm.", "attn_pool", "fc_norm"))
            ]
        return found


def patches(tower: Any, pixels: Tensor) -> Tensor:
    """Patch tokens [B, N, C] of the second-to-last block, without prefix tokens and without the
    final norm.
    """
    return tower.forward_intermediates(
        pixels,
        indices=[len(tower.blocks) - 2],
        norm=False,
        stop_early=True,
        output_fmt="NLC",
        intermediates_only=True,
    )[0]


@torch.no_grad()
def pooled(tower: Any, pixels: Tensor, *, batch_images: int = 256) -> NDArray[np.float32]:
    """What a tower says of whole pictures, [N, C], of its normalised pixels [N, 3, S, S]; where the
    tower is.
    """
    device = next(tower.parameters()).device
    return torch.cat(
        [tower(part.to(device)).float().cpu() for part in pixels.split(batch_images)]
    ).numpy()


def build_towers(
    settings: Any, *, seed: int = 0, checkpoints: Mapping[str, Path] | None = None
) -> Towers:
    """Towers with weights drawn from `seed`, or read from files by the libraries' own loading.

    checkpoints: tower to file. `dino` in any format that timm reads for that name (Meta's too;
    positions are resampled to the image size). `siglip` likewise if timm knows the name, else an
    open_clip model's whole checkpoint, of which the visual trunk is kept (name then is open_clip's,
    e.g. `ViT-SO400M-14-SigLIP`). Raises FileNotFoundError, and the libraries' errors if weights do
    not fit.
    """
    checkpoints = checkpoints or {}
    for name, file in checkpoints.items():
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}, the checkpoint of the tower {name}, is not there")
    models = {}
    with torch.random.fork_rng(devices=[]):
        for number, name in enumerate(settings.which):
            torch.manual_seed(seed * 2 + number)
            models[name] = _build(settings, name, checkpoints.get(name))
    return Towers(settings, models).eval()


def _build(settings: Any, name: str, checkpoint: Path | None) -> Any:
    model_name, shape = getattr(settings, name), dict(getattr(settings, f"{name}_shape"))
    if not timm.is_model(model_name.partition(".")[0]):
        if name != "siglip":
            raise ValueError(f"timm has no model {model_name!r}")
        if shape:
            raise ValueError(
                f"{model_name} is open_clip's: its shape is fixed by its name, {shape} cannot be set"
            )
        source = {} if checkpoint is None else {"pretrained": str(checkpoint)}
        return open_clip.create_model(model_name, force_image_size=None, **source).visual.trunk
    options: dict[str, Any] = {"img_size": settings.image_size, "num_classes": 0, **shape}
    if checkpoint is not None:
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(checkpoint)}}
    return timm.create_model(model_name, **options)


def save_towers(towers: Towers, folder: Path) -> Path:
    """`towers.json` and `towers.safetensors` in a folder, which is made; returns it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = settings_dict(towers.settings)
    (folder / "towers.json").write_text(
        json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in towers.state_dict().items()},
        folder / "towers.safetensors",
    )
    return folder


def load_towers(folder: Path) -> Towers:
    """What `save_towers` wrote. Raises FileNotFoundError, or RuntimeError naming tensors that do
    not fit.
    """
    folder = Path(folder)
    values = json.loads((folder / "towers.json").read_text(encoding="utf-8"))
    settings = TowerSettings(**{**values, "which": tuple(values["which"])})
    towers = build_towers(settings)
    towers.load_state_dict(load_file(folder / "towers.safetensors"))
    return towers


def settings_dict(settings: Any) -> dict[str, Any]:
    """Tower settings as plain JSON values."""
    return {name: _plain(getattr(settings, name)) for name in TowerSettings.__dataclass_fields__}


def _plain(value: Any) -> Any:
    return (
        dict(value)
        if isinstance(value, Mapping)
        else list(value)
        if isinstance(value, tuple)
        else value
    )
