"""A Hugging Face tokenizer as the metadata of a GGUF file (`tokenizer.ggml.*`).

    values = describe(folder, tokenizer, num_rows=config.vocab_size)
    add(writer, values)

Two kinds are known. A byte-level BPE, such as the lab's routed tokenizer or SmolLM2's: tokens in
the order of ids, merges, and `pre`, the name of the rule that cuts a text into pieces, for a GGUF
file cannot hold a rule. A SentencePiece BPE with `tokenizer.model`, such as Mistral's, which the
released Moxin models have: pieces, scores and types.

Guarantees: a tokenizer whose rule has no name in `RULES`, or that changes a text before it cuts it,
is refused. Rows of the embedding that no token has get unused tokens.
Out of scope: other rules, which llama.cpp's own `convert_hf_to_gguf.py` names; the ids themselves,
which an engine makes by its own expression for the rule (`tokenizer.gguf_vocabulary` tells where
that of `tekken` departs).

Needs the package `gguf`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from moxin_lab.lab.artifacts import LabError
from moxin_lab.tokenizer.gguf_vocabulary import PREFIX
from moxin_lab.tokenizer.router import piece_splitter

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens, `enum llama_token_type` of llama.cpp."""
SCORELESS = -1000.0
"""Score of a token that no merge makes, as llama.cpp's converter writes it."""
TEMPLATE = "tokenizer.chat_template"


def rules() -> dict[str, pre_tokenizers.PreTokenizer]:
    """llama.cpp's names of rules, with the same rule in `tokenizers`: GPT-2's pattern, the same
    after single digits are cut out (SmolLM), and Mistral's Tekken, which is the lab's.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level]
        ),
        "tekken": pre_tokenizers.Sequence(
            [piece_splitter(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        ),
    }


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


def tokenizer_of(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file: a byte-level BPE with a rule of `rules()`.

    transformers reads one too, but with GPT-2's rule whatever the file names, and with tokens that
    it adds. Raises LabError for a file that is cut or has a tokenizer of another kind.
    """
    import gguf

    keys = ("model", "pre", "tokens", "token_type", "merges")
    try:
        fields = gguf.GGUFReader(str(path)).fields
        values = {
            name.removeprefix(PREFIX): field.contents()
            for name, field in fields.items()
            if name.startswith(PREFIX) or name == TEMPLATE
        }
    # What the package lets out for files that are cut or of another kind.
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise LabError(f"{path} is not a whole GGUF file: {error}") from error
    lacking = [PREFIX + key for key in keys if key not in values]
    if lacking or values["model"] != "gpt2" or values["pre"] not in rules():
        raise LabError(
            f"{path}: the tokenizer is of kind {values.get('model')!r} with the rule "
            f"{values.get('pre')!r}{', and lacks ' * bool(lacking)}{', '.join(lacking)}; read is a "
            f"byte-level BPE ('gpt2') with one of the rules {', '.join(rules())}"
        )
    tokens: list[str] = values["tokens"]
    made = Tokenizer(
        BPE(
            {token: index for index, token in enumerate(tokens)},
            [tuple(merge.split(" ")) for merge in values["merges"]],
        )
    )
    made.pre_tokenizer, made.decoder = rules()[values["pre"]], decoders.ByteLevel()
    kinds = list(zip(tokens, values["token_type"], strict=True))
    made.add_special_tokens([token for token, kind in kinds if kind == CONTROL])
    made.add_tokens(
        [AddedToken(token, normalized=False) for token, kind in kinds if kind == USER_DEFINED]
    )
    named = {
        f"{name}_token": tokens[values[f"{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
        if f"{key}_token_id" in values
    }
    if values.get("add_bos_token") and "bos_token" in named:
        bos = named["bos_token"]
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A $B:1",
            special_tokens=[(bos, values["bos_token_id"])],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, clean_up_tokenization_spaces=False, **named
    )
    tokenizer.chat_template = values.get(TEMPLATE)
    return tokenizer


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
        "model": "gpt2",  # llama.cpp's word for a byte-level BPE
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
