"""The two vision towers and the features that the language model gets from them.

    pixels {"dino": [B, 3, S, S], "siglip": [B, 3, S, S]}   each with its own normalisation
       |                              |
    DINOv2 with registers          SigLIP                 timm's classes at every scale
       |  block -2, no norm           |  block -2, no norm
    patches, no prefix tokens      patches
       +-------- channels ------------+
                    |
         [B, patches, 1024 + 1152 = 2176]

Guarantees: the features are timm's `get_intermediate_layers(x, n={blocks - 2})` of both towers,
concatenated; later blocks are not run.
Out of scope: normalising pixels (`pixels.py`), training (`siglip_training.py`, `dino_training.py`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer as Tower
from torch import Tensor, nn

from moxin_lab import untrusted
from moxin_lab.scales.sections import TowerSettings


class TowerError(RuntimeError):
    """Weights or settings of a tower that cannot be used; the message names the file."""


class Towers(nn.Module):
    """The towers that `settings.which` names, as attributes `dino` and `siglip`. Raises ValueError
    for towers with different numbers of patches.
    """

    def __init__(self, settings: TowerSettings, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.settings = settings
        self.names: tuple[str, ...] = tuple(settings.which)
        for name in self.names:
            self.add_module(name, models[name])
        counts = {name: self.tower(name).patch_embed.num_patches for name in self.names}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"the towers have different numbers of patches {counts}: they cannot be joined by "
                "channel"
            )
        self.num_patches = next(iter(counts.values()))
        self.channels = sum(self.tower(name).embed_dim for name in self.names)

    def tower(self, name: str) -> Tower:
        """`dino` or `siglip`."""
        return getattr(self, name)

    def features(self, pixel_values: Mapping[str, Tensor]) -> Tensor:
        """[B, patches, channels] of pixels [B, 3, S, S] of each tower. Raises ValueError for a
        tower without pixels.
        """
        missing = [name for name in self.names if name not in pixel_values]
        if missing:
            raise ValueError(
                f"pixel_values lacks {', '.join(missing)}: each tower has its own normalised pixels"
            )
        return torch.cat(
            [patch_features(self.tower(name), pixel_values[name]) for name in self.names], dim=2
        )

    def used_parameters(self) -> list[nn.Parameter]:
        """Parameters that the features depend on: all but the last block, the last norm and the
        pooling head.
        """
        parameters = []
        for name in self.names:
            tower = self.tower(name)
            unused = (f"blocks.{len(tower.blocks) - 1}.", "norm.", "attn_pool", "fc_norm")
            parameters += [
                parameter
                for key, parameter in tower.named_parameters()
                if not key.startswith(unused)
            ]
        return parameters


def patch_features(tower: Tower, pixels: Tensor) -> Tensor:
    """Patch tokens [B, patches, C] of the second-to-last block of pixels [B, 3, S, S], without
    prefix tokens and without the final norm.
    """
    intermediates = tower.forward_intermediates(
        pixels,
        indices=[len(tower.blocks) - 2],
        norm=False,
        stop_early=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    return cast(list[Tensor], intermediates)[0]


@torch.no_grad()
def pooled_features(
    tower: Tower, pixels: Tensor, *, batch_images: int = 256
) -> NDArray[np.float32]:
    """One vector per picture, [N, C], of normalised pixels [N, 3, S, S], computed on the tower's
    device.
    """
    device = next(tower.parameters()).device
    return torch.cat(
        [tower(part.to(device)).float().cpu() for part in pixels.split(batch_images)]
    ).numpy()


def build_towers(
    settings: TowerSettings, *, seed: int = 0, checkpoints: Mapping[str, Path] | None = None
) -> Towers:
    """Towers with weights drawn from `seed`, or read from files by the libraries' own loading.

    checkpoints: name of the tower to file. `dino`: any format that timm reads for that model
    (Meta's too); position embeddings are resampled to the image size. `siglip`: likewise if timm
    knows the name; otherwise the name is open_clip's (e.g. `ViT-SO400M-14-SigLIP`), the file is the
    whole open_clip model, and its visual trunk is used. Raises FileNotFoundError, and TowerError
    for a file that is damaged, is no checkpoint, or has weights that do not fit.
    """
    checkpoints = checkpoints or {}
    for name, file in checkpoints.items():
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}, the checkpoint of the tower {name}, is not there")
    models: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        for index, name in enumerate(settings.which):
            torch.manual_seed(seed * 2 + index)
            models[name] = _build(settings, name, checkpoints.get(name))
    return Towers(settings, models).eval()


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}"


def _build(settings: TowerSettings, name: str, checkpoint: Path | None) -> nn.Module:
    model_name, shape = getattr(settings, name), dict(getattr(settings, f"{name}_shape"))
    is_open_clips = not timm.is_model(model_name.partition(".")[0])
    if is_open_clips and name != "siglip":
        raise ValueError(f"timm has no model {model_name!r}")
    if is_open_clips and shape:
        raise ValueError(
            f"{model_name} is a model of open_clip, whose name fixes its shape: {shape} cannot be "
            "set"
        )
    try:
        if is_open_clips:
            source = {} if checkpoint is None else {"pretrained": str(checkpoint)}
            return open_clip.create_model(model_name, force_image_size=None, **source).visual.trunk
        options: dict[str, Any] = {"img_size": settings.image_size, "num_classes": 0, **shape}
        if checkpoint is not None:
            options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(checkpoint)}}
        return timm.create_model(model_name, **options)
    except Exception as error:
        if checkpoint is None:
            raise
        raise TowerError(  # the libraries pass on their readers' errors, which name no file
            f"{checkpoint} is no checkpoint of the tower {name} ({model_name}), or is damaged: "
            f"{_reason(error)}"
        ) from error


def save_towers(towers: Towers, folder: Path) -> Path:
    """Write `towers.json` and `towers.safetensors` into a folder, created if missing; returns
    it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = towers.settings.model_dump(mode="json")
    (folder / "towers.json").write_text(
        json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in towers.state_dict().items()},
        folder / "towers.safetensors",
    )
    return folder


def load_towers(folder: Path) -> Towers:
    """Towers that `save_towers` wrote. Raises FileNotFoundError, or TowerError naming the file that
    is damaged, and the settings or tensors that do not fit.
    """
    folder = Path(folder)
    file, weights = folder / "towers.json", folder / "towers.safetensors"
    try:
        settings = TowerSettings.model_validate(
            untrusted.load_json(untrusted.read_bytes(file, untrusted.MAX_JSON_BYTES))
        )
    except ValueError as error:  # pydantic's too
        raise TowerError(f"{file} is not the settings of towers: {_reason(error)}") from error
    try:
        tensors = load_file(weights)  # before towers of any size are built
        towers = build_towers(settings)
        towers.load_state_dict(tensors)
    except FileNotFoundError:
        raise
    except Exception as error:  # of safetensors, timm and torch
        raise TowerError(
            f"{weights} does not fit {file}, or is damaged: {_reason(error)}"
        ) from error
    return towers
