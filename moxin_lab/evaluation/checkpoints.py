"""A checkpoint folder, checked and then loaded as lm-evaluation-harness's `LM`.

    check(folder)                                  # in milliseconds, before anything is loaded
    lm = load(folder, engine="lab")                # our decoder; "hf": lm-eval's own adapter

Read are: what the stages of the lab write (of a vision-language model, its language half), any
Hugging Face folder of the Mistral or LLaMA architecture (a GGUF file, or a folder with one, too),
and with the engine `hf` whatever transformers loads. The byte-level tokenizer of a GGUF file is
read by the rule that the file names, which transformers does not heed.

Guarantees: `check` refuses, by name, a folder without a configuration, weights or a tokenizer, an
architecture that our decoder does not compute, and a tokenizer with more tokens than the model.
Out of scope: fetching weights; chat templates; image towers.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from moxin_lab.evaluation.bits_per_byte import prefix_token_id
from moxin_lab.evaluation.language_models import MoxinLM
from moxin_lab.lab.artifacts import LabError, read_json, sha256_file
from moxin_lab.model import convert, gguf_reader, gguf_tokenizer, hf_config
from moxin_lab.model.config import ConfigError, MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM

Engine = Literal["lab", "hf"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer.tiktoken", "vocab.json")
VLM_TYPE, LANGUAGE_HALF = "moxin_vl", "vlm.decoder."
"""`model_type` of a vision-language model of stage 07, and how its decoder's tensors begin."""
HASHED = ("*.safetensors", "*.bin", "*.gguf", "*.json", "tokenizer.*")


def check(folder: Path, engine: Engine = "lab") -> Path:
    """The checkpoint that a path means: a folder, or a GGUF file. Reads no weight.

    Raises LabError with what is wrong, where and what to do.
    """
    if not folder.exists():
        raise LabError(f"there is no checkpoint {folder}: --model takes a folder or a GGUF file")
    files = [folder] if folder.is_file() else sorted(folder.glob("*.gguf"))
    if folder.is_file() or (files and not (folder / "config.json").is_file()):
        if len(files) != 1 or files[0].suffix != ".gguf":
            raise LabError(f"{folder}: --model takes a folder, or one GGUF file")
        if engine == "hf":
            raise LabError(f"{files[0]} is a GGUF file, which --engine lab reads, not hf")
        return files[0]
    if not (folder / "config.json").is_file():
        raise LabError(f"{folder} has no config.json, so it is not a checkpoint folder")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise LabError(
            f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES)}): copy the files of the "
            "tokenizer that the model was trained with into it"
        )
    if not any(folder.glob("*.safetensors")) and not (engine == "hf" and any(folder.glob("*.bin"))):
        raise LabError(f"{folder} has no *.safetensors file, and no other weights are read")
    if engine == "lab":
        try:
            config = _config(folder)
        except ConfigError as error:
            raise LabError(
                f"{error}\nOur decoder does not compute this model; --engine hf does, if "
                "transformers knows it"
            ) from error
        _check_tokenizer(_tokenizer(folder), config.vocab_size, folder)
    else:
        read_json(folder / "config.json")
        _check_tokenizer(_tokenizer(folder), None, folder)
    return folder


def load_decoder(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> MoxinForCausalLM:
    """Our decoder with a folder's weights, of a vision-language model with its language half; in
    evaluation mode. Raises what `convert.from_pretrained` raises, CheckpointError for a
    vision-language model that lacks tensors.
    """
    if not _is_vlm(folder):
        return convert.from_pretrained(folder, dtype=dtype, device=device)
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118 - a handle, not a dict
                if name.startswith(LANGUAGE_HALF):
                    tensor = file.get_tensor(name)
                    weights[name.removeprefix(LANGUAGE_HALF)] = (
                        tensor if dtype is None else tensor.to(dtype)
                    )
    with torch.device("meta"):
        model = MoxinForCausalLM(_config(folder))
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    try:
        found = model.load_state_dict(weights, assign=True, strict=False)
    except RuntimeError as error:
        raise convert.CheckpointError(f"{folder}: {error}") from error
    if wrong := {*found.missing_keys, *found.unexpected_keys} - tied:
        raise convert.CheckpointError(
            f"{folder}: {len(wrong)} tensors of the decoder are missing or unknown: "
            f"{', '.join(sorted(wrong)[:4])}"
        )
    model.tie_weights()
    return model.eval()


def load(
    path: Path,
    engine: Engine = "lab",
    *,
    max_length: int | None = None,
    dtype: str = "float32",
    batch_tokens: int = 4096,
    batch_size: int = 8,
) -> Any:
    """The `LM` of a checkpoint that `check` has passed.

    max_length: most input tokens; default: all that the configuration allows. batch_tokens: most
    tokens in one pass of our decoder; batch_size: rows in one pass of lm-eval's adapter.
    Raises LabError for a folder that cannot be loaded.
    """
    device = convert.best_device()
    kind: torch.dtype = getattr(torch, dtype)
    if engine == "hf":
        from lm_eval.models.huggingface import HFLM

        return HFLM(
            pretrained=str(path),
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            max_length=max_length,
        )
    try:
        if path.suffix == ".gguf":
            model = gguf_reader.from_gguf(path, device=device).to(kind)
        else:
            model = load_decoder(path, dtype=kind, device=device)
    except (convert.CheckpointError, ConfigError, ImportError, OSError) as error:
        raise LabError(str(error)) from error
    tokenizer = _tokenizer(path)
    _check_tokenizer(tokenizer, model.config.vocab_size, path)
    longest = model.config.max_position_embeddings
    if max_length is not None and max_length > longest:
        raise LabError(f"--max-length {max_length}: {path} is made for at most {longest} tokens")
    return MoxinLM(
        model,
        tokenizer,
        max_length=max_length or longest,
        batch_tokens=batch_tokens,
        device=device,
        folder=path if path.is_dir() else path.parent,
    )


def describe(path: Path) -> dict[str, Any]:
    """Name and SHA-256 of a checkpoint's files: {"name": ..., "files": {file: sha256}}."""
    folder = path if path.is_dir() else path.parent
    names = (
        {file for pattern in HASHED for file in folder.glob(pattern) if file.is_file()}
        if path.is_dir()
        else {path}
    )
    return {
        "name": path.resolve().name,
        "files": {file.name: sha256_file(file) for file in sorted(names)},
    }


def _is_vlm(folder: Path) -> bool:
    config = read_json(folder / "config.json")
    return isinstance(config, dict) and config.get("model_type") == VLM_TYPE


def _config(folder: Path) -> MoxinConfig:
    """The decoder's configuration. Raises ConfigError."""
    if _is_vlm(folder):
        return hf_config.from_dict(read_json(folder / "config.json").get("language_model"))
    return hf_config.read(folder)


def _tokenizer(path: Path) -> Any:
    if path.suffix == ".gguf":
        values = gguf_tokenizer.read(path)
        if values.get("model") == gguf_tokenizer.BYTE_LEVEL:
            return gguf_tokenizer.make(values, path)
    try:
        if path.suffix == ".gguf":
            return AutoTokenizer.from_pretrained(
                str(path.parent), gguf_file=path.name, local_files_only=True
            )
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # transformers lets out whatever the file makes it meet
        raise LabError(
            f"the tokenizer of {path} cannot be read: {type(error).__name__}: {error}"
        ) from error


def _check_tokenizer(tokenizer: Any, vocabulary: int | None, path: Path) -> None:
    try:
        prefix_token_id(tokenizer)
    except ValueError as error:
        raise LabError(f"{path}: {error}") from error
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if vocabulary is not None and largest >= vocabulary:
        raise LabError(
            f"{path}: the tokenizer has a token {largest}, but the model knows {vocabulary:,} "
            "tokens; this is the tokenizer of another model"
        )
