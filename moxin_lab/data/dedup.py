"""Stage 01, duplicates: exact copies, then near-duplicates by MinHash and LSH, in Daft.

    documents -> SHA-256 -> one document per text
    documents -> features -> 128 minima over character 13-grams -> bands
              -> pairs in a shared bucket -> true Jaccard similarity -> components

Recipe: SlimPajama's (Cerebras modelzoo, data_preparation/nlp/slimpajama: dedup/to_hash.py and
main.py). Lower case, ASCII punctuation deleted, white space collapsed, 13-grams of CHARACTERS, 128
permutations, 9 bands of 13 rows, Jaccard 0.8, connected components over all sources and languages
at once, one document kept per component. Our additions: a pair from a shared bucket counts only if
its true Jaccard similarity reaches the threshold, and a component keeps its smallest id.

Daft runs the same expressions on its embedded engine and, after `daft.set_runner_ray()`, on a Ray
cluster. Only the list of pairs, a small table, comes to the driver, for the components.

Guarantees: the result depends on the set of documents alone, not on row order, partitions or
engine; a document is removed only if a chain of verified pairs connects it with one that is kept.
Out of scope: finding every pair. A pair of similarity s shares a bucket with probability
1 - (1 - s^rows)^bands, which is 0.40 at s = 0.8 with the recipe's bands; notebook 01 measures it.
All pairs of a bucket are compared, so work grows with the square of its size.
"""

import hashlib
import os
import re
import string
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

# Before the import: otherwise Daft reports its use over the network.
os.environ["DAFT_ANALYTICS_ENABLED"] = "0"
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")

import daft
import numpy as np
import pyarrow as pa
from daft import DataType, col
from daft.functions import minhash
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from moxin_lab.data.clean import reject

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_PAIRS = DataType.list(DataType.struct({"a": DataType.string(), "b": DataType.string()}))


# ---- similarity of two documents


def features(text: str) -> str:
    """The text whose n-grams are compared: lower case, no ASCII punctuation, single spaces."""
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()


def shingles(text: str, ngram_size: int) -> np.ndarray:
    """Hashes of the distinct character n-grams of `features(text)`: uint64 [n], sorted.

    A text shorter than `ngram_size` has one n-gram, the whole text; an empty one has none.
    """
    codes = np.frombuffer(
        features(text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32
    ).astype(np.uint64)
    if not len(codes):
        return codes
    width = min(ngram_size, len(codes))
    count = len(codes) - width + 1
    hashes = np.zeros(count, dtype=np.uint64)
    # A polynomial in an odd constant modulo 2^64, then mixed; the constants are splitmix64's.
    for offset in range(width):
        hashes = (
            hashes * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + count] + np.uint64(1)
        )
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    return np.unique(hashes ^ (hashes >> np.uint64(27)))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of two sorted arrays of distinct hashes; 0 if both are empty."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - common
    return common / union if union else 0.0


def collision_probability(similarity: Any, bands: int, rows: int) -> Any:
    """Probability that a pair of this Jaccard similarity (a number or an array) shares a bucket.

    Source: Mining of Massive Datasets, section 3.4.2.
    """
    return 1.0 - (1.0 - similarity**rows) ** bands


# ---- Daft steps: every function takes and returns lazy DataFrames


def frame(*documents: pa.Table) -> daft.DataFrame:
    """The columns `id` and `text` as a Daft DataFrame, with one partition per table."""
    return daft.from_arrow([table.select(["id", "text"]) for table in documents])


def exact_duplicates(documents: daft.DataFrame) -> daft.DataFrame:
    """[id, duplicate_of]: documents whose text equals that of a document with a smaller id."""

    @daft.func.batch(return_dtype=DataType.string())
    def digest(text: daft.Series) -> list[str]:
        return [
            hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
            for value in text.to_pylist()
        ]

    keyed = documents.select("id", digest(col("text")).alias("digest"))
    first = keyed.groupby("digest").agg(col("id").min().alias("duplicate_of"))
    joined = keyed.join(first, on="digest").where(col("id") != col("duplicate_of"))
    return joined.select("id", "duplicate_of")


def signatures(documents: daft.DataFrame, permutations: int, ngram_size: int) -> daft.DataFrame:
    """[id, signature]: `permutations` minima, uint32, over the character n-grams of each document.

    Documents without features are omitted.
    """

    @daft.func.batch(return_dtype=DataType.string())
    def spaced(text: daft.Series) -> list[str]:
        # Daft's n-grams are of words between spaces: a space after each character makes every
        # character a word.
        return [" ".join(features(value).replace(" ", "_")) for value in text.to_pylist()]

    words = documents.select("id", spaced(col("text")).alias("characters")).where(
        col("characters") != ""
    )
    hashed = minhash(
        col("characters"),
        num_hashes=permutations,
        ngram_size=ngram_size,
        hash_function="xxhash3_64",
    )
    return words.select("id", hashed.alias("signature"))


def candidate_pairs(signed: daft.DataFrame, bands: int, rows: int) -> daft.DataFrame:
    """[a, b] with a < b: pairs of ids that share a bucket.

    They agree in all `rows` minima of at least one of the `bands` bands.
    """

    @daft.func.batch(return_dtype=DataType.list(DataType.binary()))
    def buckets(signature: daft.Series) -> list[list[bytes]]:
        minima = np.asarray(signature.to_pylist(), dtype=np.uint32)
        if len(minima) and minima.shape[1] < bands * rows:
            raise ValueError(
                f"{bands} bands of {rows} rows need {bands * rows} permutations, "
                f"not {minima.shape[1]}"
            )
        return [
            [
                bytes([band]) + row[band * rows : (band + 1) * rows].tobytes()
                for band in range(bands)
            ]
            for row in minima
        ]

    @daft.func(return_dtype=_PAIRS)
    def pairs(ids: list[str]) -> list[dict[str, str]]:
        ordered = sorted(ids)
        return [{"a": a, "b": b} for i, a in enumerate(ordered) for b in ordered[i + 1 :]]

    members = signed.select("id", buckets(col("signature")).alias("bucket")).explode("bucket")
    shared = (
        members.groupby("bucket")
        .agg(col("id").list_agg().alias("ids"))
        .where(col("ids").list_count() > 1)
    )
    exploded = shared.select(pairs(col("ids")).alias("pair")).explode("pair")
    return exploded.select(
        col("pair").get("a").alias("a"), col("pair").get("b").alias("b")
    ).distinct()


def similarities(
    pairs: daft.DataFrame, documents: daft.DataFrame, ngram_size: int
) -> daft.DataFrame:
    """[a, b, jaccard]: the true Jaccard similarity of each pair, from the texts."""

    @daft.func.batch(return_dtype=DataType.float64())
    def compare(text_a: daft.Series, text_b: daft.Series) -> list[float]:
        # A document occurs in many pairs.
        cached = lru_cache(maxsize=512)(lambda text: shingles(text, ngram_size))
        return [
            jaccard(cached(a), cached(b))
            for a, b in zip(text_a.to_pylist(), text_b.to_pylist(), strict=True)
        ]

    left = documents.select(col("id").alias("a"), col("text").alias("text_a"))
    right = documents.select(col("id").alias("b"), col("text").alias("text_b"))
    both = pairs.join(left, on="a").join(right, on="b").sort(["a", "b"])
    return both.select("a", "b", compare(col("text_a"), col("text_b")).alias("jaccard"))


# ---- on the driver


def verified_pairs(
    signed: daft.DataFrame, documents: daft.DataFrame, bands: tuple[int, int], ngram_size: int
) -> pa.Table:
    """[a, b, jaccard] of the pairs that share a bucket, sorted by a and b.

    signed: the frame of `signatures`. bands: number of bands and rows of each.
    """
    candidates = candidate_pairs(signed, *bands)
    return collect(similarities(candidates, documents, ngram_size), ["a", "b"])


def near_duplicates(pairs: pa.Table, threshold: float) -> pa.Table:
    """[id, duplicate_of, jaccard] of the documents to remove, sorted by id.

    Pairs with at least the threshold connect documents; each connected component keeps its smallest
    id. `jaccard` is the highest similarity of a removed document to another one of its component,
    which may be removed too.

    pairs: columns a, b, jaccard.
    """
    edges = pairs.filter(pa.compute.greater_equal(pairs["jaccard"], threshold))
    names = sorted(set(edges["a"].to_pylist()) | set(edges["b"].to_pylist()))
    index = {name: i for i, name in enumerate(names)}
    a = np.array([index[name] for name in edges["a"].to_pylist()], dtype=np.int64)
    b = np.array([index[name] for name in edges["b"].to_pylist()], dtype=np.int64)
    similarity = np.asarray(edges["jaccard"].to_pylist(), dtype=np.float64)
    best = np.zeros(len(names))
    np.maximum.at(best, a, similarity)
    np.maximum.at(best, b, similarity)
    _, component = connected_components(
        coo_array((np.ones(len(a)), (a, b)), shape=(len(names),) * 2), directed=False
    )
    kept: dict[int, str] = {}
    rows = []
    # Names ascend, so the first one of a component is its smallest.
    for name, label, value in zip(names, component, best, strict=True):
        if kept.setdefault(int(label), name) != name:
            rows.append({"id": name, "duplicate_of": kept[int(label)], "jaccard": float(value)})
    schema = pa.schema(
        [("id", pa.string()), ("duplicate_of", pa.string()), ("jaccard", pa.float64())]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def similar_pairs(documents: pa.Table, ngram_size: int, threshold: float) -> pa.Table:
    """[a, b, jaccard] of ALL pairs with at least this similarity: the reference for MinHash.

    Computed without minima or bands, as a product of the sparse matrix of documents and shingles
    with its transpose. Memory and time grow with the number of pairs that share a shingle, so this
    is for a few thousand documents.
    """
    ids = documents["id"].to_pylist()
    sets = [shingles(text, ngram_size) for text in documents["text"].to_pylist()]
    sizes = np.array([len(hashes) for hashes in sets], dtype=np.int64)
    columns = np.unique(np.concatenate([np.zeros(0, np.uint64), *sets]), return_inverse=True)[1]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    matrix = csr_array(
        (np.ones(len(columns), np.int32), columns, offsets), shape=(len(ids), max(len(columns), 1))
    )
    rows = []
    for start in range(0, len(ids), 256):
        # Number of shared shingles, [rows, documents].
        common = (matrix[start : start + 256] @ matrix.T).tocoo()
        i, j = common.row + start, common.col
        similarity = common.data / (sizes[i] + sizes[j] - common.data)
        for k in np.flatnonzero((similarity >= threshold) & (i != j)):
            if ids[i[k]] < ids[j[k]]:
                rows.append({"a": ids[i[k]], "b": ids[j[k]], "jaccard": float(similarity[k])})
    schema = pa.schema([("a", pa.string()), ("b", pa.string()), ("jaccard", pa.float64())])
    return pa.Table.from_pylist(rows, schema=schema).sort_by(
        [("a", "ascending"), ("b", "ascending")]
    )


def similar_pairs_by_language(
    documents: pa.Table, ngram_size: int, threshold: float, *, max_documents: int
) -> pa.Table:
    """`similar_pairs` within each language, over its first `max_documents` documents."""
    languages = sorted(set(documents["language"].to_pylist()))
    parts = (
        documents.filter(pa.compute.equal(documents["language"], language)).slice(0, max_documents)
        for language in languages
    )
    return pa.concat_tables(similar_pairs(part, ngram_size, threshold) for part in parts)


def drop_exact(documents: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Kept and rejected documents after exact deduplication."""
    copies = collect(exact_duplicates(frame(documents)), ["id"])
    details = {row["id"]: f"copy of {row['duplicate_of']}" for row in copies.to_pylist()}
    return reject(
        documents,
        "exact duplicates",
        "exact duplicate",
        [details.get(key) for key in documents["id"].to_pylist()],
    )


def drop_near(documents: pa.Table, pairs: pa.Table, threshold: float) -> tuple[pa.Table, pa.Table]:
    """Kept and rejected documents after near-deduplication by `pairs` (a, b, jaccard)."""
    details = {
        row["id"]: f"{row['duplicate_of']} stays (Jaccard {row['jaccard']:.3f})"
        for row in near_duplicates(pairs, threshold).to_pylist()
    }
    return reject(
        documents,
        "near-duplicates",
        "near-duplicate",
        [details.get(key) for key in documents["id"].to_pylist()],
    )


def collect(lazy: daft.DataFrame, sort_by: Sequence[str]) -> pa.Table:
    """Runs a plan; returns its rows, sorted, as an arrow table."""
    return lazy.sort(list(sort_by)).to_arrow()
