"""Checkpoint folders in Hugging Face's format, both ways: config.json and safetensors, one file or
sharded.

Guarantees: `save_pretrained` writes a folder that `AutoModelForCausalLM.from_pretrained` loads with
nothing of ours installed; `from_pretrained` loads such a folder bit for bit, whoever wrote it, and
before it builds anything refuses one whose files are cut, of another kind, or do not fit
config.json, with the file, the tensor and what to do. What transformers loads and writes inside
`without_bars` draws no progress bar.
Out of scope: pickled weights (.bin, .pt), which may run code on loading; quantised weights.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open

from moxin_lab import untrusted
from moxin_lab.model import hf_config
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
FLOATS = ("F16", "BF16", "F32", "F64")  # safetensors' names
# Old LLaMA checkpoints hold the frequencies that follow from rope_theta; transformers skips them.
SKIPPED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
MAX_INDEX_BYTES = 2**26  # of an index: a line per tensor
# What a file that is no safetensors file begins with, and what it then is.
DISGUISES = {
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with `git lfs pull`",
    b"<": "a web page: the download answered with an error or a login page; fetch it again",
    b"PK": "a pickled checkpoint (.bin): convert it to safetensors with transformers",
    b"GGUF": "a GGUF file: convert it to safetensors",
}


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
        name: tensor.detach().contiguous().cpu()
        for name, tensor in model.state_dict().items()
        if not (model.config.tie_word_embeddings and name == HEAD)
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
    """Load a checkpoint folder of a Mistral, or of a LLaMA that `hf_config` reads, in evaluation
    mode (call `model.train()` to train it).

    dtype: dtype of the weights in memory; default: as stored, where all matrices must have the
    same. Raises ConfigError, CheckpointError,
    FileNotFoundError.
    """
    folder = Path(folder)
    config = hf_config.read(folder)
    places = _tensor_places(folder)
    check_tensors(folder, config, {name: place[1:] for name, place in places.items()})
    if dtype is None:
        _check_one_dtype(folder, places)
    with torch.device("meta"):
        model = MoxinForCausalLM(config, attention_backend=attention_backend)
    weights: dict[str, torch.Tensor] = {}
    for path in sorted({place[0] for place in places.values()}):
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118 - a handle, not a dict
                if name in places and not SKIPPED.fullmatch(name):
                    tensor = file.get_tensor(name)
                    weights[name] = tensor if dtype is None else tensor.to(dtype)
    if config.tie_word_embeddings:
        head = weights.setdefault(HEAD, weights[EMBEDDING])
        if not torch.equal(head, weights[EMBEDDING]):
            raise CheckpointError(
                f"{folder}: {HEAD} differs from {EMBEDDING}, but tie_word_embeddings is true: set "
                "it to false in config.json, or remove the head"
            )
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.requires_grad_(True)
    return model.eval()


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Around transformers' own `from_pretrained` and `save_pretrained`: their progress bars are off
    inside, and afterwards as they were.

    In a notebook such a bar is a widget with an id drawn at random: two equal runs would differ in
    it, and a page without a kernel shows its name alone. Warnings still show.
    """
    from transformers.utils import logging

    were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            logging.enable_progress_bar()


def best_device() -> str:
    """Where a model is loaded to if nothing else is said: the GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """The safetensors files of a folder, each with the tensors that the index expects in it. As in
    transformers a single file comes before an index, which an earlier save may have left.
    """
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    index = folder / INDEX
    if not index.is_file():
        raise CheckpointError(
            f"{folder} lacks {SINGLE}: weights are read from safetensors files only"
        )
    try:
        content = untrusted.read_bytes(index, MAX_INDEX_BYTES)
        values = untrusted.load_json(content, max_bytes=MAX_INDEX_BYTES)
    except untrusted.UntrustedError as error:
        raise CheckpointError(f"{index} cannot be read as JSON: {error}") from error
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map from tensors to files: fetch it again")
    files: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or not file.isprintable():
            raise CheckpointError(
                f"{index}: {name} is in {str(file)[:80]!r}, which is not a file of this folder"
            )
        path = folder / file
        files[path] = (files.get(path) or set()) | {name}
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise CheckpointError(f"{folder} lacks {', '.join(absent[:4])}, which its index names")
    return files


def _tensor_places(folder: Path) -> dict[str, tuple[Path, str, tuple[int, ...]]]:
    """File, dtype (safetensors' name) and shape of each tensor of a folder, from the headers."""
    places: dict[str, tuple[Path, str, tuple[int, ...]]] = {}
    for path, promised in _weight_files(folder).items():
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                shapes = {
                    name: (path, str(part.get_dtype()), tuple(part.get_shape()))
                    for name, part in found.items()
                }
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is not a safetensors file: {_why(path, error)}"
            ) from error
        lost = sorted((promised or set()) - shapes.keys())
        if lost:
            raise CheckpointError(f"{path} lacks {lost[0]}, which the index places there")
        twice = sorted(shapes.keys() & places.keys())
        if twice:
            raise CheckpointError(f"{twice[0]} is in {places[twice[0]][0]} and in {path}")
        places |= shapes
    return places


def _why(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        begin = file.read(512).lstrip()
    for mark, meaning in DISGUISES.items():
        if begin.startswith(mark):
            return f"it is {meaning}"
    return f"{error}; it has {path.stat().st_size:,} bytes: it may be cut, fetch it again"


def check_tensors(
    folder: Path, config: MoxinConfig, found: dict[str, tuple[str, tuple[int, ...]]]
) -> None:
    """Raises CheckpointError unless the tensors are those of `config`."""
    names = {name for name in found if not SKIPPED.fullmatch(name)}
    numbers = [re.match(r"model\.layers\.(\d{1,9})\.", name) for name in names]
    blocks = 1 + max((int(match[1]) for match in numbers if match), default=-1)
    if blocks != config.num_hidden_layers:
        raise CheckpointError(
            f"{folder}: the weights have {blocks} blocks, num_hidden_layers in config.json is "
            f"{config.num_hidden_layers}"
        )
    expected = _expected_shapes(config, blocks, len(names))
    if config.tie_word_embeddings and HEAD not in names:
        del expected[HEAD]
    missing = sorted(expected.keys() - names)
    unknown = sorted(names - expected.keys())
    if missing or unknown:
        hint = "; is the embedding the head? Then set tie_word_embeddings in config.json"
        raise CheckpointError(
            f"{folder}: weights do not fit config.json: {len(missing)} missing {missing[:4]}, "
            f"{len(unknown)} unknown {unknown[:4]}" + (hint if missing == [HEAD] else "")
        )
    for name, shape in expected.items():
        kind, found_shape = found[name]
        if found_shape != shape:
            raise CheckpointError(
                f"{folder}: {name} has shape {found_shape}, config.json requires {shape}"
            )
        if kind not in FLOATS:
            raise CheckpointError(
                f"{folder}: {name} is {kind}, not {', '.join(FLOATS)}: quantised weights are not "
                "read; use the checkpoint that they were made from"
            )


def _check_one_dtype(folder: Path, places: dict[str, tuple[Path, str, tuple[int, ...]]]) -> None:
    """Raises CheckpointError for matrices of several dtypes, which cannot be multiplied."""
    first: dict[str, str] = {}  # dtype -> a matrix of it
    for name, (_, kind, shape) in places.items():
        if len(shape) > 1:
            first.setdefault(kind, name)
    if len(first) > 1:
        found = ", ".join(f"{name} is {kind}" for kind, name in first.items())
        raise CheckpointError(
            f"{folder}: the matrices have several dtypes: {found}. Give the dtype to load them in"
        )


def _expected_shapes(
    config: MoxinConfig, blocks: int, num_found: int
) -> dict[str, tuple[int, ...]]:
    """Shapes by name, of as many blocks as the tensors that were found can fill, and one more."""
    with torch.device("meta"):
        model = MoxinForCausalLM(
            dataclasses.replace(config, num_hidden_layers=min(blocks, num_found + 1))
        )
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
