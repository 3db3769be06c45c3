"""Stage 01, last step: which pages are held out, and how much of their text is also in the training
text.

Guarantees: all documents of a page (its translations) are on one side; the side of a page depends
on its name and the seed alone, so adding or removing other pages moves nothing; no training
document is an exact copy of a held-out one, or has a Jaccard similarity at or above the threshold
with one in a pair that `drop_straddling` was given.
Out of scope: removal of shared passages. `overlap` measures them, in tokens of 13-grams that also
occur in training.
"""

import hashlib
import re

import numpy as np
import pandas as pd
import pyarrow as pa

from moxin_lab.data.clean import reject

NGRAM_TOKENS = 13
"""Length of the n-grams that contamination studies of language models look for (Brown et al. 2020,
appendix C).
"""

_TOKEN = re.compile(r"[぀-ヿ㐀-䶿一-鿿가-힯]|[^\W぀-ヿ㐀-䶿一-鿿가-힯]+")


def is_heldout(page: str, share: float, seed: int) -> bool:
    """Whether a page is held out: the first 8 bytes of SHA-256(seed, page), read as a number in [0,
    1), lie below `share`.
    """
    digest = hashlib.sha256(f"{seed}\n{page}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split(documents: pa.Table, share: float, seed: int) -> tuple[pa.Table, pa.Table]:
    """(train, heldout): about `share` of the pages held out, each with all its documents."""
    side = pa.array(
        [is_heldout(page, share, seed) for page in documents["page"].to_pylist()], pa.bool_()
    )
    return documents.filter(pa.compute.invert(side)), documents.filter(side)


def drop_straddling(
    train: pa.Table, heldout: pa.Table, pairs: pa.Table, threshold: float
) -> tuple[pa.Table, pa.Table]:
    """Train without exact copies of held-out texts and without documents that `pairs` (a, b,
    jaccard) ties to a held-out one.

    Returns train and the rejected rows. SlimPajama's step 6 removes exact copies from train in the
    same way.
    """
    inside = set(heldout["id"].to_pylist())
    digests = {hashlib.sha256(text.encode()).digest() for text in heldout["text"].to_pylist()}
    near: dict[str, str] = {}
    for row in pairs.to_pylist():
        for one, other in ((row["a"], row["b"]), (row["b"], row["a"])):
            if row["jaccard"] >= threshold and one not in inside and other in inside:
                near[one] = f"{other} (Jaccard {row['jaccard']:.3f})"
    details = [
        near.get(key)
        or ("exact copy" if hashlib.sha256(text.encode()).digest() in digests else None)
        for key, text in zip(train["id"].to_pylist(), train["text"].to_pylist(), strict=True)
    ]
    return reject(train, "split", "duplicate of a held-out document", details)


def tokens(text: str) -> list[str]:
    """Lower-cased words; each Han, Kana or Hangul character by itself, because words are not
    delimited there alike.
    """
    return _TOKEN.findall(text.lower())


def overlap(train: pa.Table, heldout: pa.Table) -> pd.DataFrame:
    """For each held-out document: id, language, tokens, and `covered`, the share of its tokens
    inside a 13-gram seen in train.

    Documents of fewer than 13 tokens have `covered` 0.
    """
    vocabulary: dict[str, int] = {}
    seen = np.unique(
        np.concatenate(
            [
                np.zeros(0, np.uint64),
                *(_ngram_hashes(text, vocabulary) for text in train["text"].to_pylist()),
            ]
        )
    )
    rows = []
    columns = (heldout[name].to_pylist() for name in ("id", "language", "text"))
    for key, language, text in zip(*columns, strict=True):
        hashes = _ngram_hashes(text, vocabulary)
        count = len(tokens(text))
        covered = np.zeros(count, dtype=bool)
        # np.isin would sort all of `seen` again for each document
        position = np.searchsorted(seen, hashes)
        if len(seen):
            for start in np.flatnonzero(seen[np.minimum(position, len(seen) - 1)] == hashes):
                covered[start : start + NGRAM_TOKENS] = True
        rows.append((key, language, count, float(covered.mean()) if count else 0.0))
    return pd.DataFrame(rows, columns=["id", "language", "tokens", "covered"])


def _ngram_hashes(text: str, vocabulary: dict[str, int]) -> np.ndarray:
    """One 64-bit hash for each 13-gram of tokens, in order; `vocabulary` numbers the tokens and
    grows.
    """
    ids = np.array(
        [vocabulary.setdefault(token, len(vocabulary) + 1) for token in tokens(text)],
        dtype=np.uint64,
    )
    count = len(ids) - NGRAM_TOKENS + 1
    hashes = np.zeros(max(count, 0), dtype=np.uint64)
    for offset in range(NGRAM_TOKENS if count > 0 else 0):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + ids[offset : offset + count]
    return hashes
