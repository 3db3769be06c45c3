"""A Hugging Face tokenizer as the metadata of a GGUF file (`tokenizer.ggml.*`).

    values = describe(folder, tokenizer, num_rows=config.vocab_size)
    add(writer, values)

Two kinds are known. A byte-level BPE, such as the lab's routed tokenizer or SmolLM2's: tokens in
the order of ids, merges, and `pre`, the name of the rule that cuts a text into pieces, for a GGUF
file cannot hold a rule. A SentencePiece BPE with `tokenizer.model`, such as Mistral's, which the
released Moxin models have: pieces, scores and types.

Guarantees: a tokenizer whose rule has no name in `rules()`, or that changes a text before it cuts
it, is refused. Rows of the embedding that no token has get unused tokens.
Out of scope: reading (`model/gguf_tokenizer.py`, where `rules` is); other rules, which llama.cpp's
own `convert_hf_to_gguf.py` names; the ids themselves, which an engine makes by its own expression
for the rule (`tokenizer.gguf_vocabulary` tells where that of `tekken` departs).

Needs the package `gguf`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

from moxin_lab.lab.artifacts import LabError
from moxin_lab.model.gguf_tokenizer import (
    BYTE,
    BYTE_LEVEL,
    CONTROL,
    NORMAL,
    PREFIX,
    TEMPLATE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    rules,
)

SCORELESS = -1000.0
"""Score of a token that no merge makes, as llama.cpp's converter writes it."""


def describe(source: Path, tokenizer: PreTrainedTokenizerBase, num_rows: int) -> dict[str, Any]:
    """Values by key, without the prefix (the chat template has its own key). num_rows: of the
    embedding. Raises LabError for a tokenizer that is of neither kind.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    if described["model"]["type"] == "BPE" and not described["model"].get("byte_fallback"):
        values = _byte_level(source, described)
    elif (source / "tokenizer.model").is_file():
        values = _sentencepiece(source / "tokenizer.model", described)
    else:
        raise LabError(
            f"{source}: the tokenizer is neither a byte-level BPE nor has it a tokenizer.model of "
            "SentencePiece: convert this folder with llama.cpp's convert_hf_to_gguf.py"
        )
    for index in range(len(values["tokens"]), num_rows):
        values["tokens"].append(f"[PAD{index}]")
        values["token_type"].append(UNUSED)
        if "scores" in values:
            values["scores"].append(SCORELESS)
    for name in ("bos", "eos", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            values[f"{'padding' if name == 'pad' else name}_token_id"] = index
    begun = tokenizer("a").input_ids
    values["add_bos_token"] = begun[:1] == [tokenizer.bos_token_id]
    values["add_eos_token"] = begun[-1:] == [tokenizer.eos_token_id]
    if isinstance(tokenizer.chat_template, str):
        values[TEMPLATE] = tokenizer.chat_template
    return values


def add(writer: Any, values: Mapping[str, Any]) -> None:
    """Adds what `describe` found to a `gguf.GGUFWriter`."""
    for name, value in values.items():
        key = name if name == TEMPLATE else PREFIX + name
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def compare(path: Path, values: Mapping[str, Any]) -> None:
    """Raises LabError unless the file says what `describe` found."""
    import gguf

    fields = gguf.GGUFReader(str(path)).fields
    for name, value in values.items():
        key = name if name == TEMPLATE else PREFIX + name
        if key not in fields or fields[key].contents() != value:
            raise LabError(f"{path}: {key} was not read back as it was written: try another disk")


def _byte_level(source: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    if described["normalizer"] is not None:
        raise LabError(
            f"{source}: the tokenizer changes a text first ({described['normalizer']['type']}), "
            "which a byte-level BPE in a GGUF file cannot say: export to hf instead"
        )
    found = _plain(described["pre_tokenizer"])
    rule = next((name for name, one in rules().items() if _plain(one) == found), None)
    if rule is None:
        raise LabError(
            f"{source}: the rule by which the tokenizer cuts a text is none of "
            f"{', '.join(rules())}; convert this folder with llama.cpp's convert_hf_to_gguf.py"
        )
    if not described["model"]["merges"]:
        raise LabError(f"{source}: the tokenizer has no merges, which a GGUF file must have")
    added = {token["id"]: token for token in described["added_tokens"]}
    tokens = {index: token for token, index in described["model"]["vocab"].items()}
    tokens |= {index: token["content"] for index, token in added.items()}
    return {
        "model": BYTE_LEVEL,
        "pre": rule,
        "tokens": [tokens.get(index, f"[PAD{index}]") for index in range(1 + max(tokens))],
        "token_type": [
            (CONTROL if added[index]["special"] else USER_DEFINED)
            if index in added
            else (NORMAL if index in tokens else UNUSED)
            for index in range(1 + max(tokens))
        ],
        # A token never holds a space: byte-level BPE spells it with another character.
        "merges": [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in described["model"]["merges"]
        ],
        "add_space_prefix": False,
    }


def _plain(rule: Any) -> Any:
    """A rule as JSON, without what only changes the offsets that are reported."""
    if isinstance(rule, pre_tokenizers.PreTokenizer):
        rule = json.loads(rule.__getstate__())
    if isinstance(rule, dict):
        return {name: _plain(value) for name, value in rule.items() if name != "trim_offsets"}
    return [_plain(part) for part in rule] if isinstance(rule, list) else rule


def _sentencepiece(path: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise LabError(f"{path} is no SentencePiece model: {error}") from error
    size = model.vocab_size()
    kinds = [
        UNKNOWN
        if model.is_unknown(index)
        else CONTROL
        if model.is_control(index)
        else BYTE
        if model.is_byte(index)
        else UNUSED
        if model.is_unused(index)
        else NORMAL
        for index in range(size)
    ]
    values: dict[str, Any] = {
        "model": "llama",  # llama.cpp's word for a SentencePiece BPE
        "pre": "default",
        "tokens": [model.id_to_piece(index) for index in range(size)],
        "scores": [model.get_score(index) for index in range(size)],
        "token_type": kinds,
        "unknown_token_id": model.unk_id(),
        "add_space_prefix": True,
    }
    for token in sorted(described["added_tokens"], key=lambda token: token["id"]):
        index = token["id"]
        if index < size:
            continue
        for unused in range(len(values["tokens"]), index):
            _append(values, f"[PAD{unused}]", UNUSED)
        _append(values, token["content"], CONTROL if token["special"] else USER_DEFINED)
    return values


def _append(values: dict[str, Any], token: str, kind: int) -> None:
    values["tokens"].append(token)
    values["token_type"].append(kind)
    values["scores"].append(SCORELESS)
