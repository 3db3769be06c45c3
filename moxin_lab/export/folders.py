"""`moxin-lab export`: a model folder in another program's format.

    report = export(Path("runs/tiny/04_pretraining/pretrained"), "gguf", Path("exported"))

The source is a checkpoint folder of a Mistral or LLaMA with its tokenizer, or a GGUF file. Targets:

    hf              config.json, safetensors and the tokenizer; loads with transformers alone
    gguf            model.gguf, for llama.cpp (gguf_file.py)
    torchao-int8    like hf, weights of the blocks in 8 bits, for transformers with torchao
    torchao-int4    likewise in 4 bits (quantised.py)

Guarantees: what is wrong is refused before the model is read, with the remedy; the output folder
appears only when it is whole; `export.json` in it says what was made of which files, with their
sizes and what was compared.
Out of scope: vision-language models, resume points, uploading, converting conversations.
"""

import importlib.util
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from moxin_lab.export import TARGETS
from moxin_lab.lab.artifacts import LabError, sha256_file
from moxin_lab.model import convert, gguf_reader, hf_config
from moxin_lab.model.config import ConfigError
from moxin_lab.model.convert import CheckpointError
from moxin_lab.model.decoder import MoxinForCausalLM

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BLOCKWISE = ("q8_0", "q4_0")
"""Quantisations of llama.cpp that `gguf` can write."""
EXTRAS = {"gguf": "gguf", "torchao-int8": "torchao", "torchao-int4": "torchao"}
"""Package, and extra of ours, that a target needs."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
OTHER_FILES = ("generation_config.json", "README.md", "LICENSE", "LICENSE.txt", "NOTICE")
"""Taken along where they are: how texts end, and the licence of the weights."""
SPARE = 1.1
"""Free disk space that is asked for, in sizes of the source's weights as they will be stored."""


@dataclass(frozen=True)
class Source:
    """A model and its tokenizer, read from `path`."""

    path: Path
    model: MoxinForCausalLM
    tokenizer: PreTrainedTokenizerBase


def export(
    source: Path,
    target: str,
    out: Path,
    *,
    dtype: str | None = None,
    group_size: int | None = None,
    texts: list[str] | None = None,
) -> dict[str, Any]:
    """Writes `source` as `target` into the new folder `out`; the content of its `export.json`.

    dtype: of `FLOATS`, or for gguf of `BLOCKWISE` too (default: as stored). group_size: numbers
    that share a scale, for torchao-int4 (default: see quantised.py). texts: on which bits per byte
    are measured before and after (scores.py). Raises LabError.
    """
    check(source, target, out, dtype, group_size)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
        folder = Path(work) / "made"
        folder.mkdir()
        report: dict[str, Any] = {
            "target": target,
            "source": source.resolve().name,
            "source_sha256": {path.name: sha256_file(path) for path in _weight_files(source)},
            "bytes_before": sum(path.stat().st_size for path in _weight_files(source)),
        }
        try:
            opened = read(source, FLOATS.get(dtype or ""))
            report |= _write(opened, target, folder, dtype, group_size)
            if texts is not None:
                from moxin_lab.export import scores

                report |= scores.before_and_after(
                    opened.model, opened.tokenizer, folder, target, texts
                )
        except (CheckpointError, ConfigError, FileNotFoundError) as error:
            raise LabError(str(error)) from error
        report["bytes_after"] = sum(path.stat().st_size for path in _weight_files(folder))
        text = json.dumps(report, indent=1) + "\n"
        (folder / "export.json").write_text(text, encoding="utf-8")
        folder.rename(out)
    return report


def check(
    source: Path,
    target: str,
    out: Path,
    dtype: str | None = None,
    group_size: int | None = None,
) -> None:
    """Raises LabError for what can be seen to be wrong without reading the weights."""
    if target not in TARGETS:
        raise LabError(f"no target {target!r}: --to is one of {', '.join(TARGETS)}")
    known = (*FLOATS, *(BLOCKWISE if target == "gguf" else ()))
    if dtype is not None and dtype not in known:
        raise LabError(f"no dtype {dtype!r} for {target}: --dtype is one of {', '.join(known)}")
    if group_size is not None and target != "torchao-int4":
        raise LabError(f"--group-size is for torchao-int4; {target} has none: leave it out")
    if group_size is not None and group_size < 2:
        raise LabError(f"--group-size is {group_size}: it must be at least 2")
    need("gguf" if source.suffix == ".gguf" else None)
    need(EXTRAS.get(target))
    if not source.exists():
        raise LabError(f"{source} is missing: --model is a model's folder, or a GGUF file")
    if source.is_file() and source.suffix != ".gguf":
        raise LabError(f"{source} is a file: --model is the folder it lies in, or a GGUF file")
    if out.exists() or out.is_symlink():
        raise LabError(f"{out} is there already: name a new folder, or remove it first")
    if source.is_dir():
        try:
            hf_config.read(source)
        except (ConfigError, FileNotFoundError) as error:
            raise LabError(f"{source} is no language model's folder: {error}") from error
        if not any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            raise LabError(
                f"{source} has no tokenizer.json (or tokenizer.model), without which nobody can "
                "use the export: copy the tokenizer's files into it"
            )
    needed = SPARE * sum(path.stat().st_size for path in _weight_files(source))
    if dtype == "float32" or source.is_file():  # from 4 bits to 32, at most
        needed *= 8 if source.is_file() else 2
    above = next(
        folder for folder in (out.parent, *out.parent.absolute().parents) if folder.is_dir()
    )
    free = shutil.disk_usage(above).free
    if free < needed:
        raise LabError(
            f"{above} has {free / 1e9:.2f} GB free, the export may need {needed / 1e9:.2f} GB: "
            "name another place with --out"
        )


def need(package: str | None) -> None:
    """Raises LabError unless a package that is an extra of ours is installed."""
    if package is not None and importlib.util.find_spec(package) is None:
        raise LabError(
            f"this needs the package {package}: pip install {package}, or the extra, "
            f"pip install 'moxin-lab[{package}]'"
        )


def read(source: Path, dtype: torch.dtype | None = None) -> Source:
    """The model and the tokenizer of a folder or of a GGUF file.

    Raises CheckpointError, ConfigError and FileNotFoundError of their readers, and LabError for a
    tokenizer that cannot be read or that has ids which the model lacks.
    """
    if source.is_file():
        from moxin_lab.model.gguf_tokenizer import tokenizer_of

        model = gguf_reader.from_gguf(source)
        model, tokenizer = model if dtype is None else model.to(dtype), tokenizer_of(source)
    else:
        model = convert.from_pretrained(source, dtype=dtype)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
        # Whatever the libraries let out for files that others wrote; the message keeps it.
        except Exception as error:
            raise LabError(f"the tokenizer of {source} cannot be read: {error}") from error
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= model.config.vocab_size:
        raise LabError(
            f"{source}: the tokenizer has the id {highest}, the model {model.config.vocab_size} "
            "rows of embeddings: these files do not belong together"
        )
    return Source(source, model, tokenizer)


def _write(
    source: Source, target: str, folder: Path, dtype: str | None, group_size: int | None
) -> dict[str, Any]:
    """Writes the model's files; what is to be told of them."""
    if target == "gguf":
        from moxin_lab.export import gguf_file

        file = folder / "model.gguf"
        return gguf_file.write(source.model, source.tokenizer, source.path, file, kind=dtype)
    if source.path.is_file():
        source.tokenizer.save_pretrained(folder)
    else:
        for name in (*TOKENIZER_FILES, *OTHER_FILES):
            if (source.path / name).is_file():
                shutil.copyfile(source.path / name, folder / name)
    if target == "hf":
        convert.save_pretrained(source.model, folder)
        again = convert.from_pretrained(folder).state_dict()
        for name, tensor in source.model.state_dict().items():
            if not torch.equal(again[name], tensor):
                raise LabError(f"{name} was not read back as it was written: try another disk")
        return {"dtype": _dtype(source.model), "tensors_compared": len(again), "notes": []}
    from moxin_lab.export import quantised

    return quantised.write(source.model, folder, target, group_size=group_size)


def _dtype(model: MoxinForCausalLM) -> str:
    return str(model.lm_head.weight.dtype).removeprefix("torch.")


def _weight_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    return sorted([*source.glob("*.safetensors"), *source.glob("*.gguf")])
