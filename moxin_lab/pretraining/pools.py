"""Pools of tokenised documents, which the mixtures of the phases draw from.

Guarantees: every document is in one pool, under its id; text that spells a control token stays
text; a name in a mixture without documents is refused with the names there are.
Out of scope: order and rows (`packing`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerFast

from moxin_lab.lab.progress import Progress
from moxin_lab.model import many_texts
from moxin_lab.scales.sections import Phase


@dataclass(frozen=True)
class Tokens:
    """Tokenised documents as one flat array.

    ids: int32 [tokens]. offsets: int64 [documents + 1]; document d is
    `ids[offsets[d] : offsets[d + 1]]`, bos and eos included. num_bytes: int64 [documents], UTF-8
    bytes of each document's text. names: id of each document, as stage 01 gives it. vocab_size: of
    the tokenizer.
    """

    ids: np.ndarray
    offsets: np.ndarray
    num_bytes: np.ndarray
    names: Sequence[str]
    vocab_size: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


def tokenize(
    texts: Sequence[str],
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    *,
    progress: Progress | None = None,
    batch_size: int = 256,
) -> Tokens:
    """Tokenise with a `PreTrainedTokenizerFast`; text that spells a control token stays text.

    names: ids of the documents. batch_size: documents between two calls of `progress`. Raises
    ValueError if there is no document, as many ids as documents are not given, the tokenizer lacks
    bos or eos, or its file of ranks gives other ids than it.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None or eos is None:
        raise ValueError(
            "the tokenizer has no bos or eos token; packing needs both to mark documents"
        )
    if not len(texts):
        raise ValueError("no documents to tokenise")
    if len(names) != len(texts):
        raise ValueError(f"{len(texts)} documents have {len(names)} ids")
    encode = many_texts.encoder(tokenizer, texts, names)
    pieces: list[np.ndarray] = []
    lengths: list[int] = []
    for start in range(0, len(texts), batch_size):
        for ids in encode(texts[start : start + batch_size]):
            pieces += [np.array([bos]), ids, np.array([eos])]
            lengths.append(len(ids) + 2)
        if progress is not None:
            progress(min(start + batch_size, len(texts)), len(texts), "tokenising")
    return Tokens(
        np.concatenate(pieces, dtype=np.int32, casting="same_kind"),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array([len(text.encode()) for text in texts], dtype=np.int64),
        list(names),
        len(tokenizer),
    )


def pool_of_documents(documents: pd.DataFrame, phases: Iterable[Phase]) -> pd.Series:
    """The pool of each document of a table with the columns source and language.

    A document belongs to its source if a phase's mixture names that source, else to its language:
    every document is in one pool, and a mixture may name both kinds. A source that only a
    benchmark_mixture names is a pool, too, so that its documents are in no language's pool of the
    training without them. Raises ValueError for a name in a mixture that is neither, before
    anything is tokenised.
    """
    phases = list(phases)
    drawn, pools = _drawn(phases), _pools(documents, phases)
    absent = sorted(drawn - set(pools))
    if absent:
        languages = sorted(set(pools) - set(documents["source"]))
        raise ValueError(
            f"the mixtures draw from {', '.join(absent)}, which the documents do not have; there "
            f"are the sources {', '.join(sorted(set(documents['source'])))} and, outside the "
            f"sources drawn from, the languages {', '.join(languages) or 'none'}"
        )
    return pools


def _pools(documents: pd.DataFrame, phases: Sequence[Phase]) -> pd.Series:
    """The rule of `pool_of_documents`, also where a mixture names what the documents lack."""
    apart = {name for phase in phases for name in getattr(phase, "benchmark_mixture", None) or ()}
    own = documents["source"].isin(_drawn(phases) | apart)
    return documents["source"].where(own, documents["language"])


def _drawn(phases: Sequence[Phase]) -> set[str]:
    """The pools that steps read."""
    return {name for phase in phases for name in phase.mixture}


def tokenize_pools(
    documents: pd.DataFrame,
    tokenizer: PreTrainedTokenizerFast,
    phases: Iterable[Phase],
    *,
    progress: Progress | None = None,
) -> dict[str, Tokens]:
    """Tokenise a `documents` table (columns id, source, language, text) into the pools that the
    phases' mixtures draw from (`pool_of_documents`). Documents of other pools are left out: no
    step would read them.
    """
    phases = list(phases)
    names = pool_of_documents(documents, phases)
    read = names.isin(_drawn(phases))
    return {
        str(name): tokenize(
            group["text"].tolist(), group["id"].tolist(), tokenizer, progress=progress
        )
        for name, group in documents[read].groupby(names[read], sort=True)
    }


def in_mixtures(documents: pd.DataFrame, phases: Iterable[Phase]) -> pd.DataFrame:
    """The documents of pools that the phases' mixtures draw from. Unlike training text, held-out
    text need not have every pool.
    """
    phases = list(phases)
    return documents[_pools(documents, phases).isin(_drawn(phases))]
