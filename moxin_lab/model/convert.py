"""Checkpoint folders in Hugging Face's format, both ways: config.json and safetensors, one file or
sharded.

Guarantees: `save_pretrained` writes a folder that `AutoModelForCausalLM.from_pretrained` loads with
nothing of ours installed; `from_pretrained` loads such a folder bit for bit, whoever wrote it, and
raises an error that names missing, unknown or misshapen tensors.
Out of scope: pickled weights (.bin, .pt), which may run code on loading.
"""

import json
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open

from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM


class CheckpointError(ValueError):
    """A folder that is not a complete Mistral checkpoint; the message names file and tensor."""


def save_pretrained(
    model: MoxinForCausalLM, folder: str | Path, *, max_shard_size: int | str = "5GB"
) -> Path:
    """Write `config.json` and `model.safetensors` (above `max_shard_size` several files and an
    index); returns the folder.
    """
    folder = Path(folder)
    model.config.save(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = str(model.lm_head.weight.dtype).removeprefix("torch.")
    (folder / "config.json").write_text(
        json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    weights = {
        name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()
    }
    save_torch_state_dict(weights, folder, max_shard_size=max_shard_size)
    return folder


def from_pretrained(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    attention_backend: str = "auto",
) -> MoxinForCausalLM:
    """Load a Mistral checkpoint folder, in evaluation mode (call `model.train()` to train it).

    dtype: dtype of the weights in memory; default: as stored. Raises ConfigError, CheckpointError,
    FileNotFoundError.
    """
    folder = Path(folder)
    config = MoxinConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = MoxinForCausalLM(config, attention_backend=attention_backend)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    weights: dict[str, torch.Tensor] = {}
    for path in _weight_files(folder):
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118 - a handle, not a dict
                weights[name] = file.get_tensor(name)
                if dtype is not None:
                    weights[name] = weights[name].to(dtype)
    missing = sorted(expected.keys() - weights.keys())
    unknown = sorted(weights.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{folder}: weights do not fit config.json: {len(missing)} missing {missing[:4]}, "
            f"{len(unknown)} unknown {unknown[:4]}"
        )
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise CheckpointError(
                f"{folder}: {name} has shape {tuple(weights[name].shape)}, "
                f"config.json requires {tuple(shape)}"
            )
    model.load_state_dict(weights, assign=True)
    model.requires_grad_(True)
    return model.eval()


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those of its index, or else the single file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        files = [folder / "model.safetensors"]
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise CheckpointError(
            f"{folder} lacks {', '.join(absent)}: weights are read from safetensors files only"
        )
    return files
