"""Which held-out documents are measured, and several models side by side on them."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from moxin_lab.evaluation.bits_per_byte import (
    bits_per_byte_by_group,
    document_losses,
    encode_documents,
)
from moxin_lab.evaluation.ngrams import NGram


def choose(documents: pd.DataFrame, *, bytes_per_language: int, seed: int) -> pd.DataFrame:
    """Documents of each language, in an order hashed from seed and id, until `bytes_per_language`
    UTF-8 bytes are reached.

    `documents` has the columns id, language, num_bytes. A language with less text gives all it has.
    """
    order = [hashlib.sha256(f"{seed}:{name}".encode()).hexdigest() for name in documents["id"]]
    shuffled = documents.assign(order=order).sort_values("order").drop(columns="order")
    before = shuffled.groupby("language")["num_bytes"].cumsum() - shuffled["num_bytes"]
    return (
        shuffled[before < bytes_per_language]
        .sort_values("language", kind="stable")
        .reset_index(drop=True)
    )


def compare(
    models: Mapping[str, Any],
    texts: pd.DataFrame,
    tokenizer: Any,
    *,
    context: int,
    seed: int,
    device: Any = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> pd.DataFrame:
    """Bits per byte by language of each model (a causal language model or an `NGram`) on the same
    documents.

    Columns: model, group (language), bits_per_byte, low, high, documents, bytes; intervals are over
    documents.
    """
    tokens = encode_documents(tokenizer, texts["text"].tolist())
    tables = []
    for name, model in models.items():
        if isinstance(model, NGram):
            nats = model.document_losses(tokens)
        else:

            def tell(done: int, total: int, name: str = name) -> None:
                if progress is not None:
                    progress(done, total, f"held-out text, {name}")

            nats = document_losses(model, tokens, context=context, device=device, progress=tell)
        table = bits_per_byte_by_group(nats, texts["num_bytes"], texts["language"], seed=seed)
        tables.append(table.assign(model=name))
    return pd.concat(tables, ignore_index=True)
