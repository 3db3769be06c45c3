"""Ids of many documents, as fast as the tokenizer's files allow.

    encode = many_texts.encoder(tokenizer, texts, names)
    for ids in encode(texts): ...      # int32 [tokens] each, without bos and eos

A tokenizer of stage 02 has a file of ranks beside its `tokenizer.json`, and is read by tiktoken:
the same ids at 24 MB/s a core where transformers gives 1.4, and on all cores. Any other, such as a
hub's, is read by transformers (`plain_text`).

Guarantees: the ids are those of `plain_text.encode`; text that spells a control token stays text; a
file of ranks that gives other ids than its `tokenizer.json` is refused by the document that shows
it.
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

    file = Path(tokenizer.name_or_path) / RANKS
    if not file.is_file():
        return by_transformers
    ranks = _read_ranks(file, tokenizer)

    def by_ranks(text: str) -> np.ndarray:
        try:
            ids = ranks.encode_to_numpy(text, disallowed_special=())
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


def _read_ranks(file: Path, tokenizer: PreTrainedTokenizerFast) -> "tiktoken.Encoding":
    """The ranks of a file with the pattern that `tokenizer` splits text by."""
    import tiktoken

    lines = (line.split() for line in file.read_bytes().splitlines())
    match json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]:
        case {"pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}}, *_]}:
            pass
        case other:
            raise ValueError(
                f"{file} stands beside a tokenizer.json that does not begin with a split by a "
                f"pattern ({str(other)[:80]}): it belongs to another tokenizer; remove it"
            )
    return tiktoken.Encoding(
        file.parent.name,
        pat_str=pattern,
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in lines},
        special_tokens={},
    )
