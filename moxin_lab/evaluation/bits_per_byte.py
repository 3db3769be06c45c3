"""Held-out bits per byte: the loss of a model on text, in a unit independent of the tokenizer.

    tokens = encode_documents(tokenizer, texts)                         # checked to be lossless
    bos = prefix_token_id(tokenizer)
    nats = document_losses(model, tokens, context=1024, bos_id=bos)     # one number per document
    table = bits_per_byte_by_group(nats, num_bytes, languages, seed=0)

Long documents are read in overlapping windows of `context` input tokens that advance by `stride`.
Every window after the first starts inside the document, without bos; a token scored in it sees at
least `context - stride` tokens of the document.

Guarantees: each document is preceded by bos; each of its tokens, hence each of its bytes, is scored
exactly once; padding is on the right, so that a causal model never attends to it, and is not
scored; the result does not depend on batching.
Out of scope: scoring bos or eos, which correspond to no byte.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from moxin_lab.evaluation.scoring import CausalLM, Request, score
from moxin_lab.evaluation.statistics import bootstrap_interval
from moxin_lab.model import plain_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


class Window(NamedTuple):
    """A part of [bos] + document that the model reads at once."""

    start: int
    """First input token."""
    end: int
    """Position after the last input token, which is also the last token to predict."""
    num_scored: int
    """Number of predictions that are scored, the last ones of the window."""


def encode_documents(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without control tokens: one that a text spells is text, as in
    training.

    Raises ValueError for a text that does not decode to itself: bits per byte counts the bytes of
    the text, so a tokenizer that loses some would yield too low a number.
    """
    if not len(texts):
        return []
    token_lists = plain_text.encode(tokenizer, list(texts))
    for i, (tokens, text) in enumerate(zip(token_lists, texts, strict=True)):
        decoded = tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        if decoded != text:
            raise ValueError(
                f"document {i} changes in tokenization: it decodes to {decoded[:40]!r}, "
                f"its text is {text[:40]!r}"
            )
    return token_lists


def prefix_token_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """What precedes a text's first token: bos, or eos where the tokenizer names no bos, as in
    lm-eval. Raises ValueError for a tokenizer that names neither.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None and eos is None:
        raise ValueError(
            "the tokenizer names neither bos nor eos, so nothing can precede the first token of a "
            "text: set tokenizer.bos_token"
        )
    return eos if bos is None else bos


def windows(num_tokens: int, context: int, stride: int) -> list[Window]:
    """Windows that predict each of the `num_tokens` tokens after bos exactly once.

    See the module's docstring. Raises ValueError for a stride below 1 or above the context.
    """
    if not 1 <= stride <= context:
        raise ValueError(
            f"stride {stride} must be at least 1 and at most the context of {context} tokens"
        )
    done = end = min(num_tokens, context)
    result = [Window(0, end, end)] if num_tokens else []
    while done < num_tokens:
        end = min(done + stride, num_tokens)
        result.append(Window(end - context, end, end - done))
        done = end
    return result


def document_losses(
    model: CausalLM,
    token_lists: Sequence[Sequence[int]],
    *,
    context: int,
    bos_id: int,
    stride: int | None = None,
    batch_tokens: int = 4096,
    device: "torch.device | str" = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Negative log-likelihood of each document in nats: float64 [documents].

    Args:
        token_lists: token ids of the documents, without bos or eos.
        context: input tokens of a window, bos included.
        bos_id: what precedes each document, see `prefix_token_id`.
        stride: advance of each window after the first; by default half the context.
        batch_tokens: most tokens in one forward pass, padding included (at least one window).
        progress: called with (windows done, windows in all).
    """
    stride = max(1, context // 2) if stride is None else stride
    document_of, requests = [], []
    for index, tokens in enumerate(token_lists):
        sequence = [bos_id, *tokens]
        for start, end, num_scored in windows(len(tokens), context, stride):
            document_of.append(index)
            requests.append(Request(sequence[start : end + 1], num_scored))
    scores = score(
        model, requests, batch_tokens=batch_tokens, pad_id=bos_id, device=device, progress=progress
    )
    losses = np.zeros(len(token_lists))
    np.add.at(losses, np.array(document_of, dtype=np.int64), [one.nats for one in scores])
    return losses


def bits_per_byte(nats: ArrayLike, num_bytes: ArrayLike) -> float:
    """Sum of the losses, in nats, over sum of the bytes, as bits per byte."""
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
    """Bits per byte of each group (language) with a bootstrap interval over documents.

    One row per group, in order of first appearance. Columns: group, bits_per_byte, low, high,
    documents, bytes.
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
