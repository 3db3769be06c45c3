"""Choosing the held-out documents to measure, and comparing models on them.

Guarantees: the choice depends on the seed and the documents' ids, not on the order of the rows; no
language and no source vanishes from it; all models are compared on the same documents.
Out of scope: what is held out, which stage 01 decides.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from moxin_lab.evaluation.bits_per_byte import (
    bits_per_byte_by_group,
    document_losses,
    encode_documents,
    prefix_token_id,
)
from moxin_lab.evaluation.ngrams import NGram
from moxin_lab.evaluation.scoring import CausalLM
from moxin_lab.lab import sampling
from moxin_lab.lab.progress import Progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


def choose(documents: pd.DataFrame, *, bytes_per_language: int, seed: int) -> pd.DataFrame:
    """At most `bytes_per_language` UTF-8 bytes of documents of each language, spread over the
    sources of the language (`lab.sampling`).

    Documents are taken in an order hashed from seed and id; the last one of each source is cut at
    the source's share. A language with less text contributes all of it.

    documents: columns id, language, text, num_bytes, and source where there are several. The result
    is in the order of the languages, then the hashed order, text and num_bytes with their new
    values.
    """
    rows, sizes = [], []
    for language in sorted(documents["language"].unique()):
        part = documents[documents["language"] == language]
        chosen = sampling.spread(
            part["id"].tolist(),
            part["source"].tolist() if "source" in part else [""] * len(part),
            part["num_bytes"].tolist(),
            bytes_per_language,
            seed=seed,
        )
        rows.append(part.iloc[[index for index, _ in chosen]])
        sizes += [size for _, size in chosen]
    table = pd.concat(rows, ignore_index=True) if rows else documents
    texts = [sampling.beginning(*pair) for pair in zip(table["text"], sizes, strict=True)]
    return table.assign(text=texts, num_bytes=[len(text.encode()) for text in texts])


def beginnings(documents: pd.DataFrame, *, max_bytes: int) -> pd.DataFrame:
    """The documents cut to their first `max_bytes` UTF-8 bytes (`lab.sampling.beginning`).

    documents: columns text and num_bytes, which the result has in their new values.
    """
    texts = [sampling.beginning(text, max_bytes) for text in documents["text"]]
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

            nats = document_losses(
                model,
                tokens,
                context=context,
                bos_id=prefix_token_id(tokenizer),
                device=device,
                progress=report,
            )
        table = bits_per_byte_by_group(nats, texts["num_bytes"], texts["language"], seed=seed)
        tables.append(table.assign(model=name))
    return pd.concat(tables, ignore_index=True)
