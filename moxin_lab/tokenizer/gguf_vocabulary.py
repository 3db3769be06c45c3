"""The tokenizer as the metadata of a GGUF file, which llama.cpp and its kin read.

    write(tokenizer, Path("moxin.gguf"))      # the vocabulary alone, without weights
    read(Path("moxin.gguf"))                  # the same ids, from what the file says

The keys are those of the GGUF specification (`tokenizer.ggml.*`) for a byte-level BPE: tokens in
the order of ids, their types, the list of merges, the ids of special tokens, and `pre`, which names
the rule that cuts pieces. A GGUF file cannot hold a pattern; `tekken` is the name of ours
(`router.PIECE_PATTERN`).

Guarantees: `read` gives the ids of `RoutedTokenizer.encode` from the file alone. A file of another
model or pieces is refused.
Out of scope: weights (`model.gguf_reader` reads those), other tokenizers (`model.gguf_tokenizer`
reads byte-level ones, SmolLM2's too), and what an engine makes of `tekken`: llama.cpp has an
expression of its own for it. Its ids (cyllama 0.2.18) are ours on 800 help pages in English,
Chinese, Japanese and Korean and on 518 of 532 texts of the Universal Declaration; it departs, for
instance, at a combining mark that stands apart from its letter.

Needs the package `gguf` (`pip install gguf`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from moxin_lab.tokenizer.routed import (
    BOS,
    EOS,
    PAD,
    SPECIAL_TOKENS,
    RoutedTokenizer,
    assemble,
)
from moxin_lab.tokenizer.router import piece_splitter

PREFIX = "tokenizer.ggml."
MODEL = "gpt2"
"""llama.cpp's word for a byte-level BPE."""
PIECES = "tekken"
NORMAL, CONTROL = 1, 3
"""Types of tokens, `enum llama_token_type` of llama.cpp."""


def write(tokenizer: RoutedTokenizer, file: Path) -> None:
    """Writes a GGUF file with the vocabulary and no weights."""
    import gguf

    writer = gguf.GGUFWriter(str(file), "llama")
    model = json.loads(tokenizer.union.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(MODEL)
    writer.add_tokenizer_pre(PIECES)
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in SPECIAL_TOKENS else NORMAL for token in tokens])
    # A token never holds a space: byte-level BPE spells it with another character.
    writer.add_token_merges([f"{left} {right}" for left, right in model["merges"]])
    writer.add_bos_token_id(model["vocab"][BOS])
    writer.add_eos_token_id(model["vocab"][EOS])
    writer.add_pad_token_id(model["vocab"][PAD])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(file: Path) -> Tokenizer:
    """The tokenizer that a GGUF file written by `write` describes; special tokens in text are text.

    Raises FileNotFoundError, and ValueError naming the file and the key for a file that is no GGUF,
    lacks a key, or describes another kind of tokenizer.
    """
    fields = _fields(file)
    for key, expected in (("model", MODEL), ("pre", PIECES)):
        if fields[key] != expected:
            raise ValueError(
                f"{file}: {PREFIX}{key} is {fields[key]!r}, where the routed tokenizer has "
                f"{expected!r}; moxin_lab.model.gguf_tokenizer reads other ones"
            )
    tokens, types = fields["tokens"], fields["token_type"]
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ValueError(
            f"{file}: {len(tokens)} tokens, {len(set(tokens))} of them different, have "
            f"{len(types)} types; each token must stand once and have one type"
        )
    control = tuple(token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL)
    if set(control) != set(SPECIAL_TOKENS):
        raise ValueError(
            f"{file}: the control tokens are {', '.join(control) or 'none'}; a routed tokenizer "
            f"has {', '.join(SPECIAL_TOKENS)}"
        )
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in fields["merges"]]
    try:
        return assemble(vocab, merges, piece_splitter())
    except Exception as error:  # the library raises bare Exception for a merge it cannot place
        raise ValueError(f"{file}: {PREFIX}merges do not fit the tokens: {error}") from error


def _fields(file: Path) -> Mapping[str, Any]:
    """The values under `tokenizer.ggml.`, without that prefix."""
    import gguf

    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    try:
        reader = gguf.GGUFReader(str(file))
        values = {
            name.removeprefix(PREFIX): field.contents()
            for name, field in reader.fields.items()
            if name.startswith(PREFIX)
        }
    # What the package lets out for files that are cut or of another kind.
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise ValueError(f"{file} is not a whole GGUF file: {error}") from error
    missing = [
        key for key in ("model", "pre", "tokens", "token_type", "merges") if key not in values
    ]
    if missing:
        raise ValueError(f"{file} has no {', '.join(PREFIX + key for key in missing)}")
    return values
