"""Choosing the held-out documents to measure, and comparing models on them.

Guarantees: the choice depends on the seed and the documents' ids, not on the order of the rows; all
models are compared on the same documents.
Out of scope: what is held out, which stage 01 decides.
"""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from moxin_lab.evaluation.bits_per_byte import (
    bits_per_byte_by_group,
    document_losses,
    encode_documents,
    head,
)
from moxin_lab.evaluation.ngrams import NGram
from moxin_lab.evaluation.scoring import CausalLM
from moxin_lab.lab.progress import Progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


def choose(documents: pd.DataFrame, *, bytes_per_language: int, seed: int) -> pd.DataFrame:
    """About `bytes_per_language` UTF-8 bytes of documents of each language.

    Documents are taken in an order hashed from seed and id, until the bytes are reached. A language
    with less text contributes all of it.

    documents: columns id, language, num_bytes.
    """
    order = [hashlib.sha256(f"{seed}:{name}".encode()).hexdigest() for name in documents["id"]]
    shuffled = documents.assign(order=order).sort_values("order").drop(columns="order")
    before = shuffled.groupby("language")["num_bytes"].cumsum() - shuffled["num_bytes"]
    return (
        shuffled[before < bytes_per_language]
        .sort_values("language", kind="stable")
        .reset_index(drop=True)
    )


def beginnings(documents: pd.DataFrame, *, max_bytes: int) -> pd.DataFrame:
    """The documents cut to their first `max_bytes` UTF-8 bytes (`bits_per_byte.head`).

    documents: columns text and num_bytes, which the result has in their new values.
    """
    texts = [head(text, max_bytes) for text in documents["text"]]
    return documents.assign(text=texts, num_bytes=[len(text.encode()) for text in texts])


def compare(
    models: Mapping[str, CausalLM | NGram],
    texts: pd.DataFrame,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    context: int,
    seed: int,
    device: "torch.device | str" = "cpu",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Bits per byte of each model on the same documents: one row per model and language.

    texts: columns text, num_bytes, language.
    Columns: model, group (the language), bits_per_byte, low, high, documents, bytes; intervals are
    over documents.
    """
    tokens = encode_documents(tokenizer, texts["text"].tolist())
    tables = []
    for name, model in models.items():
        if isinstance(model, NGram):
            nats = model.document_losses(tokens)
        else:

            def report(done: int, total: int, name: str = name) -> None:
                if progress is not None:
                    progress(done, total, f"held-out text, {name}")

            nats = document_losses(model, tokens, context=context, device=device, progress=report)
        table = bits_per_byte_by_group(nats, texts["num_bytes"], texts["language"], seed=seed)
        tables.append(table.assign(model=name))
    return pd.concat(tables, ignore_index=True)
