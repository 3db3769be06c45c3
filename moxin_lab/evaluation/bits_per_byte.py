"""Held-out bits per byte: the loss of a model on text, in a unit that does not depend on the
tokenizer.

    tokens = encode_documents(tokenizer, texts)                       # lossless, checked
    nats = document_losses(model, tokens, context=1024)               # one number a document
    table = bits_per_byte_by_group(nats, num_bytes, languages, seed=0)

Guarantees: bos stands in front of each document; every token, so every byte, of a document is
scored exactly once; padding is never scored and, standing on the right of a causal model, never
attended to; the result does not depend on batching.
Does not: score bos or eos, which stand for no byte.

Long documents are read in overlapping windows of `context` input tokens that advance by `stride`: a
token after the first window sees at least `context - stride` tokens of its document, and such a
window starts inside the document, without bos.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from moxin_lab.evaluation.scoring import Request, score
from moxin_lab.evaluation.statistics import bootstrap_interval

Window = tuple[int, int, int]
"""Start and end of a window's input tokens in [bos] + document, and the number of its last
predictions that are scored.
"""


def encode_documents(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text without special tokens. Raises ValueError for a text that does not
    decode to itself.

    Bits per byte counts bytes of the text, so a tokenizer that loses some would report too little.
    """
    if not len(texts):
        return []
    token_lists = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    for i, (tokens, text) in enumerate(zip(token_lists, texts, strict=True)):
        decoded = tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        if decoded != text:
            raise ValueError(
                f"document {i} changes in tokenization: {decoded[:40]!r} for {text[:40]!r}"
            )
    return token_lists


def head(text: str, max_bytes: int) -> str:
    """The beginning of a text: as many whole characters as fit `max_bytes` of UTF-8."""
    return text.encode()[:max_bytes].decode(
        errors="ignore"
    )  # what is ignored is the character cut in two


def windows(num_tokens: int, context: int, stride: int) -> list[Window]:
    """Windows that predict each of `num_tokens` tokens behind bos exactly once; see the module's
    text.
    """
    if not 1 <= stride <= context:
        raise ValueError(
            f"stride {stride} must be at least 1 and at most the context of {context} tokens"
        )
    done = end = min(num_tokens, context)
    result = [(0, end, end)] if num_tokens else []
    while done < num_tokens:
        end = min(done + stride, num_tokens)
        result.append((end - context, end, end - done))
        done = end
    return result


def document_losses(
    model: Any,
    token_lists: Sequence[Sequence[int]],
    *,
    context: int,
    stride: int | None = None,
    batch_tokens: int = 4096,
    bos_id: int = 1,
    device: Any = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Negative log-likelihood of each document in nats, float64 `[documents]`.

    Args:
        model: causal model: `model(input_ids[B, T])` gives logits `[B, T, V]`, or an object with
        them as `.logits`.
        token_lists: token ids of the documents without bos or eos.
        context: input tokens of a window, bos included. stride: advance of later windows, half the
        context if not given.
        batch_tokens: most tokens of one forward pass, padding included (at least one window).
        progress: called with windows done and windows in all.
    """
    stride = max(1, context // 2) if stride is None else stride
    owners, requests = [], []
    for number, tokens in enumerate(token_lists):
        sequence = [bos_id, *tokens]
        for start, end, num_scored in windows(len(tokens), context, stride):
            owners.append(number)
            requests.append(Request(sequence[start : end + 1], num_scored))
    scores = score(
        model, requests, batch_tokens=batch_tokens, pad_id=bos_id, device=device, progress=progress
    )
    losses = np.zeros(len(token_lists))
    np.add.at(losses, np.array(owners, dtype=np.int64), [found.nats for found in scores])
    return losses


def bits_per_byte(nats: ArrayLike, num_bytes: ArrayLike) -> float:
    """Sum of losses in nats over sum of bytes, in bits per byte."""
    return float(
        np.sum(np.asarray(nats, dtype=np.float64)) / np.sum(np.asarray(num_bytes)) / math.log(2)
    )


def bits_per_byte_by_group(
    nats: ArrayLike,
    num_bytes: ArrayLike,
    groups: Sequence[str],
    *,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Bits per byte of each group (language), in order of first appearance, with a bootstrap
    interval over documents.

    Columns: group, bits_per_byte, low, high, documents, bytes.
    """
    bits = np.asarray(nats, dtype=np.float64) / math.log(2)
    frame = pd.DataFrame({"bits": bits, "bytes": np.asarray(num_bytes), "group": list(groups)})
    rows = []
    for group, part in frame.groupby("group", sort=False):
        estimate = bootstrap_interval(part["bits"], part["bytes"], level=level, seed=seed)
        rows.append((group, *estimate, len(part), int(part["bytes"].sum())))
    return pd.DataFrame(
        rows, columns=["group", "bits_per_byte", "low", "high", "documents", "bytes"]
    )
