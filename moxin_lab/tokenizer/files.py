"""The files of a routed tokenizer: written, read back and checked, exported to other encoders.

    tokenizer.json, tokenizer_config.json, special_tokens_map.json   for Hugging Face libraries
    experts.json                                                     router, blocks, training
    tokenizer.tiktoken                                               ranks, for tiktoken and its kin

Guarantees: all files give the same ids. What `load` reads is whole, of this version's router, and
lossless; anything else is refused with the file's name.
Out of scope: files of other tokenizers, which `transformers.AutoTokenizer` reads.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from moxin_lab import untrusted
from moxin_lab.tokenizer import router
from moxin_lab.tokenizer.routed import (
    BOS,
    BYTES_START,
    EOS,
    IMAGE,
    PAD,
    SHARED_START,
    SPECIAL_TOKENS,
    Block,
    RoutedTokenizer,
    token_bytes,
)
from moxin_lab.tokenizer.router import EXPERTS

if TYPE_CHECKING:
    import tiktoken

FORMAT = 3
"""Of `experts.json`. 1 had the experts `han` and `kana`, and a rule for runs in tokenizer.json; 2
had `<unk>` where `<image>` is now.
"""


def save(tokenizer: RoutedTokenizer, folder: Path) -> None:
    """Writes a tokenizer into a folder, which is created if needed.

    The files are those that this module's docstring lists.
    """
    folder.mkdir(parents=True, exist_ok=True)
    exported = Tokenizer.from_str(tokenizer.union.to_str())
    exported.encode_special_tokens = False
    exported.save(str(folder / "tokenizer.json"), pretty=False)  # half the size
    write_ranks(tokenizer, folder / "tokenizer.tiktoken")
    names = {
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [IMAGE],
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **names,
    }
    experts = {
        "format": FORMAT,
        "vocab_size": tokenizer.vocab_size,
        "router": _router_record(),
        "blocks": [
            {"name": block.name, "start": block.start, "stop": block.stop}
            for block in tokenizer.blocks
        ],
        "training": tokenizer.record,
    }
    for name, value in (
        ("tokenizer_config", config),
        ("special_tokens_map", names),
        ("experts", experts),
    ):
        (folder / f"{name}.json").write_text(
            json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )


def _router_record() -> dict[str, Any]:
    """The router as `experts.json` states it."""
    return {
        "description": router.DESCRIPTION,
        "piece_pattern": router.PIECE_PATTERN,
        "experts": list(EXPERTS),
        "ranges": {
            expert: [[f"{a:04X}", f"{b:04X}"] for a, b in ranges]
            for expert, ranges in router.RANGES.items()
        },
    }


def load(folder: Path) -> RoutedTokenizer:
    """Reads a folder written by `save`.

    Raises FileNotFoundError naming a file that is missing, and ValueError naming one that is
    damaged, of another format or router, or that does not fit the other.
    """
    for name in ("tokenizer.json", "experts.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing: {folder} is not a folder written by routed.save"
            )
    described = _read_json(folder / "tokenizer.json")
    experts = _read_json(folder / "experts.json")
    _check_format(experts, folder / "experts.json")
    if described.get("normalizer") is not None:
        raise ValueError(
            f"{folder / 'tokenizer.json'} has a normalizer, {described['normalizer']}: decoding "
            "would not give the text back. A routed tokenizer has none."
        )
    try:
        union = Tokenizer.from_str(json.dumps(described))
        union.encode_special_tokens = True
        blocks = tuple(Block(**block) for block in experts["blocks"])
        record = experts["training"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} was not written by routed.save: {error!r}") from error
    except Exception as error:  # the library raises bare Exception for a vocabulary it cannot read
        raise ValueError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
    _check_blocks(blocks, union, folder)
    return RoutedTokenizer(union, blocks, record)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = untrusted.read_bytes(file, untrusted.MAX_JSON_BYTES)
        value = untrusted.load_json(content)
    except untrusted.UntrustedError as error:  # not UTF-8, not JSON, or cut
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a {type(value).__name__} where an object belongs")
    return value


def _check_format(experts: Mapping[str, Any], file: Path) -> None:
    if experts.get("format") != FORMAT:
        raise ValueError(
            f"{file} has format {experts.get('format')!r}; this version reads {FORMAT}. Train the "
            "tokenizer again: moxin-lab run --only 02."
        )
    if experts.get("router") != _router_record():
        raise ValueError(
            f"{file} was written with another router (other experts, ranges or piece pattern) than "
            "this version has, so its blocks mean something else. Train the tokenizer again."
        )


def _check_blocks(blocks: Sequence[Block], union: Tokenizer, folder: Path) -> None:
    """Raises ValueError unless the blocks are those of `_union`, side by side from 0 to the end."""
    file = folder / "experts.json"
    names = ["special", "byte", "shared", *EXPERTS]
    if [block.name for block in blocks] != names:
        raise ValueError(
            f"{file} has the blocks {', '.join(block.name for block in blocks)}; they must be "
            f"{', '.join(names)}, in this order"
        )
    starts = [0, BYTES_START, SHARED_START]
    for number, block in enumerate(blocks):
        start = starts[number] if number < len(starts) else blocks[number - 1].stop
        if block.start != start or block.stop < block.start:
            raise ValueError(
                f"{file}: block {block.name} has ids {block.start} to {block.stop}; it must begin "
                f"at {start} and not end before"
            )
    ids = sorted(union.get_vocab().values())
    if ids != list(range(blocks[-1].stop)):
        raise ValueError(
            f"{folder}: experts.json ends at id {blocks[-1].stop}, "
            f"tokenizer.json has {len(ids)} ids up to {ids[-1]}"
        )
    for index, token in enumerate(SPECIAL_TOKENS):
        if union.token_to_id(token) != index:
            raise ValueError(
                f"{folder / 'tokenizer.json'}: {token} has id {union.token_to_id(token)}; it must "
                f"be {index}"
            )


def write_ranks(tokenizer: RoutedTokenizer, file: Path) -> None:
    """Writes the ranks of a tokenizer as tiktoken reads them: a line per token, its bytes in base64
    and its id. The special tokens and the pattern are not in such a file; `as_tiktoken` adds them.
    """
    lines = (
        base64.b64encode(token) + b" " + str(index).encode() + b"\n"
        for token, index in token_bytes(tokenizer).items()
    )
    file.write_bytes(b"".join(lines))


def as_tiktoken(folder: Path) -> "tiktoken.Encoding":
    """The tokenizer of a folder as an encoding of tiktoken, with the same ids.

    `encode_ordinary` reads special tokens in text as text, as `RoutedTokenizer.encode` does.
    """
    import tiktoken

    # Not tiktoken.load: it keeps a copy of what it read by path, and a run writes a path anew.
    lines = (folder / "tokenizer.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    return tiktoken.Encoding(
        folder.name,
        pat_str=router.PIECE_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={token: index for index, token in enumerate(SPECIAL_TOKENS)},
    )
