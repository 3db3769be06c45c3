"""Ids of many documents, as fast as the tokenizer's files allow.

    encode = many_texts.encoder(tokenizer, texts, names)
    for ids in encode(texts): ...      # int32 [tokens] each, without bos and eos

A tokenizer of stage 02 has a file of ranks beside its `tokenizer.json`, and is read by tiktoken:
the same ids at 24 MB/s a core where transformers gives 1.4, and on all cores. Any other, such as a
hub's, is read by transformers (`plain_text`).

Guarantees: the ids are those of `plain_text.encode`; text that spells a control token stays text; a
file of ranks that is not whole, or not that of the `tokenizer.json` beside it, is refused; a
tokenizer to which tokens were added that are in the file, or are white space, is read by
transformers.
Out of scope: bos and eos; texts with lone surrogates, which no UTF-8 file holds.
"""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedTokenizerFast

from moxin_lab.model import plain_text
from moxin_lab.threads import usable_cores

if TYPE_CHECKING:
    import tiktoken

RANKS = "tokenizer.tiktoken"
"""Written by `tokenizer.files.save` beside `tokenizer.json`."""

COMPARED_DOCUMENTS = 32
COMPARED_CHARACTERS = 10_000
"""So many documents, up to so many characters of each, are read by both encoders at first."""


def encoder(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], names: Sequence[str]
) -> Callable[[Sequence[str]], Iterable[np.ndarray]]:
    """What gives the ids of each of some texts, in their order: int32 [tokens] each.

    texts, names: documents that are compared first, and their ids for the message. Raises
    ValueError if the file of ranks gives other ids than the tokenizer.
    """

    def by_transformers(some: Sequence[str]) -> list[np.ndarray]:
        return [np.array(ids, dtype=np.int32) for ids in plain_text.encode(tokenizer, list(some))]

    # Of a tokenizer without a folder the name is empty or None, and of a hub's no path.
    file = Path(tokenizer.name_or_path or "no folder") / RANKS
    if not file.is_file():
        return by_transformers
    ranks = _read_ranks(file)
    added = tokenizer.added_tokens_decoder
    in_ranks = set(ranks.values())
    if any(index in in_ranks or not token.content.strip() for index, token in added.items()):
        return by_transformers
    fast = _encoding(file, ranks, tokenizer)

    def by_ranks(text: str) -> np.ndarray:
        try:
            ids = fast.encode_to_numpy(text, disallowed_special=())
        except ValueError:  # white space of some 100,000 characters is beyond its stack
            return by_transformers([text])[0]
        return ids.astype(np.int32)

    beginnings = [text[:COMPARED_CHARACTERS] for text in texts[:COMPARED_DOCUMENTS]]
    for name, text, ids in zip(names, beginnings, by_transformers(beginnings), strict=False):
        if not np.array_equal(ids, by_ranks(text)):
            raise ValueError(
                f"{file} gives other ids than tokenizer.json beside it, for example for the "
                f"document {name}: remove the file, or let stage 02 write both anew"
            )
    # tiktoken lets other threads run while it encodes.
    threads = ThreadPoolExecutor(usable_cores())
    return lambda some: threads.map(by_ranks, some)


def _read_ranks(file: Path) -> dict[bytes, int]:
    """Token to id. Raises ValueError that names the line which is not one of a file of ranks."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise ValueError(
                f"{file}, line {number} is not a token in base64 and its id ({error}): the file is "
                "damaged; remove it, or let stage 02 write it anew"
            ) from None
    return ranks


def _encoding(
    file: Path, ranks: dict[bytes, int], tokenizer: PreTrainedTokenizerFast
) -> "tiktoken.Encoding":
    """The ranks with the pattern that `tokenizer` splits text by. Raises ValueError if they are not
    those of its vocabulary.
    """
    import tiktoken
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    saved = json.loads(tokenizer.backend_tokenizer.to_str())
    match saved["pre_tokenizer"]:
        case {"pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}}, *_]}:
            pass
        case other:
            raise ValueError(
                f"{file} stands beside a tokenizer.json that does not begin with a split by a "
                f"pattern ({str(other)[:80]}): it belongs to another tokenizer; remove it"
            )
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    added = tokenizer.added_tokens_decoder
    expected = {
        bytes(byte_of[letter] for letter in token): index
        for token, index in saved["model"]["vocab"].items()
        if index not in added
    }
    if ranks != expected:
        differ = len(ranks.items() ^ expected.items())
        raise ValueError(
            f"{file} is not of the tokenizer.json beside it ({differ:,} tokens are in one alone or "
            "have another id): remove the file, or let stage 02 write both anew"
        )
    return tiktoken.Encoding(
        file.parent.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
    )
