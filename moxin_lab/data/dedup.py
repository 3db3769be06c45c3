"""Stage 01, duplicates: exact copies, then near-duplicates by MinHash and LSH, in Daft.

    documents -> SHA-256 -> one document per text
    documents -> 128 minima over character 13-grams (`minhash`) -> bands -> buckets
              -> (first of the bucket, member) -> true Jaccard similarity -> components

Recipe: SlimPajama's (Cerebras modelzoo, data_preparation/nlp/slimpajama: dedup/to_hash.py and
main.py). Lower case, ASCII punctuation deleted, white space collapsed, 13-grams of CHARACTERS, 128
permutations, 9 bands of 13 rows, Jaccard 0.8, connected components over all sources and languages
at once, one document kept per component. Our additions: a pair counts only if its true Jaccard
similarity reaches the threshold, and a component keeps its smallest id.

In a bucket every member is compared with its first, by id. Those that are not similar to it form a
bucket again with a first of their own, up to MAX_FIRSTS times. So work grows with the number of
documents, not with its square, however many are copies of one.

Daft runs the texts through the same expressions on its embedded engine and, after
`daft.set_runner_ray()`, on a Ray cluster. Only ids, bucket keys and pairs come to the driver, as
columns.

Guarantees: the result depends on the set of documents alone, not on row order, partitions or
engine; a document is removed only if a chain of verified pairs connects it with one that is kept,
and what is told of it is its similarity to that one.
Out of scope: finding every pair. A pair of similarity s shares a bucket with probability
1 - (1 - s^rows)^bands, which is 0.40 at s = 0.8 with the recipe's bands; notebook 01 measures it.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Before the import: otherwise Daft reports its use over the network.
os.environ["DAFT_ANALYTICS_ENABLED"] = "0"
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")

import daft
import numpy as np
import pandas as pd
import pyarrow as pa
from daft import DataType, col
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from moxin_lab.data import minhash
from moxin_lab.data.minhash import distinct_hashes, jaccard
from moxin_lab.lab.progress import Progress
from moxin_lab.scales.sections import DataSettings

log = logging.getLogger(__name__)

MAX_FIRSTS = 16
"""Firsts of one bucket. Documents that share all minima of a band are rarely of more kinds."""


class Settings(NamedTuple):
    """How near-duplicates are looked for."""

    ngram_size: int
    """Characters."""
    permutations: int
    bands: int
    rows: int
    threshold: float
    """Jaccard."""


RECIPE = Settings(13, 128, 9, 13, 0.8)
"""SlimPajama's code. It finds 40 % of the pairs at the threshold."""
RECIPE_WIDE = RECIPE._replace(bands=21, rows=6)
"""The same with bands that find 99.8 % of them. Our choice."""
STRICT = Settings(5, 128, 42, 3, 0.45)
"""For texts of which every tenth word was changed. Our choice, on planted copies of other pages
than those that `moxin-lab bench curation` reports on.
"""

PAIR_BYTES = 1 << 28
"""Bytes of text that are compared at a time: 256 MiB, our choice."""


def collision_probability(similarity: Any, bands: int, rows: int) -> Any:
    """Probability that a pair of this Jaccard similarity (a number or an array) shares a bucket.

    Source: Mining of Massive Datasets, section 3.4.2.
    """
    return 1.0 - (1.0 - similarity**rows) ** bands


# ---- Daft steps: every function takes and returns lazy DataFrames


def frame(*documents: pa.Table) -> daft.DataFrame:
    """The columns `id` and `text` as a Daft DataFrame, with one partition per table."""
    return daft.from_arrow([table.select(["id", "text"]) for table in documents])


def signatures(documents: daft.DataFrame, permutations: int, ngram_size: int) -> daft.DataFrame:
    """[id, signature]: `permutations` minima, uint32, over the character n-grams of each document.

    Documents without features are omitted.
    """
    hashed = minima(permutations, ngram_size)
    signed = documents.select("id", hashed(col("text")).alias("signature"))
    return signed.where(col("signature").not_null())


def minima(permutations: int, ngram_size: int) -> Callable[[daft.Expression], daft.Expression]:
    """From a column of texts to one of signatures, uint32 [permutations]; null for a text without
    features and for null.
    """

    @daft.func.batch(return_dtype=DataType.fixed_size_list(DataType.uint32(), permutations))
    def hashed(text: daft.Series) -> pa.Array:
        texts = [value or "" for value in text.to_pylist()]
        found = minhash.signatures(texts, permutations, ngram_size)
        known = minhash.has_features(found)
        return pa.FixedSizeListArray.from_arrays(
            pa.array(found.reshape(-1)), permutations, mask=pa.array(~known)
        )

    return hashed


class Buckets(NamedTuple):
    """ids: sorted. keys: uint64 [documents, bands]; equal keys of two documents are one bucket.
    sketches: of `minhash.sketches`, by which pairs are left out that cannot be similar; or None.
    """

    ids: list[str]
    keys: np.ndarray
    sketches: np.ndarray | None = None


def buckets(signed: daft.DataFrame, bands: int, rows: int) -> Buckets:
    """The buckets of the frame of `signatures`.

    Raises ValueError where a signature is shorter than the bands need.
    """
    table = collect(signed, ["id"])
    column = table["signature"].combine_chunks()
    width = column.type.list_size
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.uint32)
    signature = flat.reshape(-1, width)
    keys = minhash.band_keys(signature, bands, rows)
    return Buckets(table["id"].to_pylist(), keys, minhash.sketches(signature))


def sharing(pairs: pa.Table, found: Buckets) -> pa.Table:
    """The pairs (columns a, b) whose documents share a bucket."""
    place = {name: index for index, name in enumerate(found.ids)}
    absent = -1
    a = np.array([place.get(name, absent) for name in pairs["a"].to_pylist()], dtype=np.int64)
    b = np.array([place.get(name, absent) for name in pairs["b"].to_pylist()], dtype=np.int64)
    if not len(a) or not len(found.ids):
        return pairs.slice(0, 0)
    shared = (found.keys[a] == found.keys[b]).any(axis=1) & (a != absent) & (b != absent)
    return pairs.filter(pa.array(shared))


def similarities(
    pairs: daft.DataFrame, documents: daft.DataFrame, ngram_size: int
) -> daft.DataFrame:
    """[a, b, jaccard]: the true Jaccard similarity of each pair, from the texts. Pairs whose
    column `place` is near are compared one after the other.
    """

    @daft.func.batch(return_dtype=DataType.float64())
    def compare(place: daft.Series, *columns: daft.Series) -> np.ndarray:
        return _compared(np.array(place.to_pylist()), [c.to_arrow() for c in columns], ngram_size)

    left = documents.select(col("id").alias("a"), col("text").alias("text_a"))
    right = documents.select(col("id").alias("b"), col("text").alias("text_b"))
    both = pairs.join(left, on="a").join(right, on="b")
    read = compare(col("place"), col("a"), col("b"), col("text_a"), col("text_b"))
    return both.select("a", "b", read.alias("jaccard"))


MAX_SHINGLES = 1 << 23
"""N-grams that are kept for the pairs that follow: 64 MiB, our choice."""


def _compared(place: np.ndarray, columns: Sequence[pa.Array], ngram_size: int) -> np.ndarray:
    """Similarity of each row of the columns a, b, text_a, text_b; of a document that occurs in many
    rows near each other the n-grams are made once.
    """
    a, b, text_a, text_b = columns
    kept: dict[str, np.ndarray] = {}  # the last used at the end
    held = 0
    values = np.zeros(len(place))
    for row in np.argsort(place, kind="stable").tolist():
        both = []
        for ids, texts in ((a, text_a), (b, text_b)):
            name = ids[row].as_py()
            found = kept.pop(name, None)
            if found is None:
                found = distinct_hashes(texts[row].as_py(), ngram_size)
                held += len(found)
            kept[name] = found
            both.append(found)
        values[row] = jaccard(*both)
        while held > MAX_SHINGLES and len(kept) > 2:
            held -= len(kept.pop(next(iter(kept))))
    return values


# ---- on the driver


def verified_pairs(
    found: Buckets, documents: daft.DataFrame, ngram_size: int, threshold: float
) -> pa.Table:
    """[a, b, jaccard], sorted: each member of a bucket with a first of it, a < b.

    Two members that are similar to one first are not compared with each other: the first connects
    them. Pairs below the threshold are in the table, too, but for those whose sketches tell that
    they cannot reach it: their texts are not read.

    documents: columns id, text, and bytes if that is known. A round reads the texts of all
    documents to find a few of them; what later rounds can ask for is kept once it fits.
    """
    members = _members(found.keys)
    compared = np.zeros(0, dtype=np.int64)  # pair codes, sorted
    similarity = np.zeros(0)
    count = len(found.ids)
    lengths: pa.Table | None = None
    kept = False
    for _ in range(MAX_FIRSTS):
        bucket, document = members
        starts = np.flatnonzero(np.r_[True, bucket[1:] != bucket[:-1]]) if len(bucket) else bucket
        sizes = np.diff(np.r_[starts, len(bucket)])
        first = np.repeat(document[starts], sizes)
        is_member = first != document
        codes = first[is_member] * count + document[is_member]
        new = minhash.distinct(codes)
        new = new[~_among(new, compared)]
        if len(new):
            values = np.full(len(new), np.nan)
            likely = _likely(new, found, threshold)
            if likely.any():
                if lengths is None:
                    lengths = _sizes_of(documents)
                if not kept:
                    names = pa.array(found.ids, pa.string()).take(
                        pa.array(minhash.distinct(document))
                    )
                    each = lengths["bytes"].take(pa.compute.index_in(names, lengths["id"]))
                    kept = (pa.compute.sum(each).as_py() or 0) <= PAIR_BYTES
                    if kept:
                        documents = _of(documents, names).collect()
                table = _pairs_table(new[likely], found.ids)
                values[likely] = _similarities_of(table, documents, lengths, ngram_size)
            compared = np.concatenate([compared, new])
            similarity = np.concatenate([similarity, values])
            order = np.argsort(compared, kind="stable")
            compared, similarity = compared[order], similarity[order]
        if not len(codes):
            break
        apart = ~(similarity[np.searchsorted(compared, codes)] >= threshold)
        members = bucket[is_member][apart], document[is_member][apart]
        members = _of_several(*members)
    if len(members[0]):
        log.warning(
            "%d documents in buckets with more than %d groups were not compared further",
            len(members[0]),
            MAX_FIRSTS,
        )
    read = ~np.isnan(similarity)
    table = _pairs_table(compared[read], found.ids)
    table = table.append_column("jaccard", pa.array(similarity[read]))
    return table.sort_by([("a", "ascending"), ("b", "ascending")])


def _among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """bool [values]: whether each is in `known`, which is sorted."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return known[place] == values


def _likely(codes: np.ndarray, found: Buckets, threshold: float) -> np.ndarray:
    """bool [pairs]: those that may reach the threshold, by their sketches; all without sketches."""
    likely = np.ones(len(codes), dtype=bool)
    if found.sketches is not None:
        # Some at a time: 129 bytes twice for each pair.
        for start in range(0, len(codes), 1 << 18):
            some = slice(start, start + (1 << 18))
            a, b = (found.sketches[side] for side in np.divmod(codes[some], len(found.ids)))
            likely[some] = minhash.may_be_similar(a, b, threshold)
    return likely


def _members(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bucket, document) of every document in a bucket of two or more, both int64, sorted."""
    num_documents, bands = keys.shape
    document = np.repeat(np.arange(num_documents, dtype=np.int64), bands)
    _, bucket = np.unique(keys.reshape(-1), return_inverse=True)
    order = np.lexsort((document, bucket))
    return _of_several(bucket.reshape(-1)[order].astype(np.int64), document[order])


def _of_several(bucket: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without buckets of one document."""
    if not len(bucket):
        return bucket, document
    same = bucket[1:] == bucket[:-1]
    several = np.r_[same, False] | np.r_[False, same]
    return bucket[several], document[several]


def _pairs_table(codes: np.ndarray, ids: Sequence[str]) -> pa.Table:
    """[a, b] of pair codes, first * count + member. Ids are sorted and so are buckets: a < b."""
    names = pa.array(ids, pa.string())
    first, member = np.divmod(codes, max(len(ids), 1))
    return pa.table({"a": names.take(pa.array(first)), "b": names.take(pa.array(member))})


def _of(documents: daft.DataFrame, ids: pa.Array) -> daft.DataFrame:
    """The documents with these ids."""
    return documents.join(daft.from_arrow(pa.table({"id": ids})), on="id", how="semi")


def _sizes_of(documents: daft.DataFrame) -> pa.Table:
    """[id, bytes] of the documents, sorted by id, each in one chunk."""
    known = "bytes" in documents.column_names
    size = col("bytes") if known else col("text").length_bytes()
    table = collect(documents.select("id", size.cast(DataType.int64()).alias("bytes")), ["id"])
    return table.cast(pa.schema([("id", pa.string()), ("bytes", pa.int64())])).combine_chunks()


def _similarities_of(
    pairs: pa.Table, documents: daft.DataFrame, sizes: pa.Table, ngram_size: int
) -> np.ndarray:
    """True similarities in the order of the pairs, which are sorted by a and b.

    The texts of the pairs are joined PAIR_BYTES at a time: a document of many pairs is copied for
    each of them. Pairs that are connected come together, so that a document's n-grams are made
    about once. sizes: of `_sizes_of`.
    """
    a, b = (
        pa.compute.index_in(pairs[name].combine_chunks().cast(pa.string()), sizes["id"]).to_numpy()
        for name in ("a", "b")
    )
    each = sizes["bytes"].to_numpy()
    order = np.lexsort((b, a, _components(a, b, len(sizes))[a]))
    part = np.cumsum((each[a] + each[b])[order]) // PAIR_BYTES
    values = np.zeros(len(pairs))
    for start, stop in _runs(part):
        rows = order[start:stop]
        some = pairs.take(pa.array(rows))
        wanted = pa.compute.unique(pa.chunked_array([*some["a"].chunks, *some["b"].chunks]))
        asked = daft.from_arrow(some.append_column("place", pa.array(np.arange(len(rows)))))
        table = collect(similarities(asked, _of(documents, wanted), ngram_size), ["a", "b"])
        values[np.sort(rows)] = table["jaccard"].to_numpy()
    return values


def _components(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """The number of the connected component of each of `count` places that the pairs a, b join."""
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    found: np.ndarray = connected_components(graph, directed=False)[1]
    return found


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of each run of equal values."""
    if not len(values):
        return []
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    stops = np.r_[starts[1:], len(values)]
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


class Search(NamedTuple):
    """Result of `search`: verified pairs by the recipe's bands and by the wide ones, the buckets of
    both by name, and what it took.
    """

    pairs: pa.Table
    wide_pairs: pa.Table
    buckets: dict[str, Buckets]
    megabytes: float
    hashing_seconds: float
    seconds: float
    """Of signatures, recipe's bands and verification."""


def bandings(settings: DataSettings) -> dict[str, tuple[int, int]]:
    """Bands and rows of the recipe and of the wider search, by a name to show."""
    chosen = (
        (settings.minhash_bands, settings.minhash_rows),
        (settings.heldout_bands, settings.heldout_rows),
    )
    return {f"{bands} bands of {rows}": (bands, rows) for bands, rows in chosen}


def search(documents: pa.Table, settings: DataSettings, progress: Progress) -> Search:
    """Near-duplicates by the recipe's bands and by the wider ones, from one set of signatures."""
    progress(0, 3, "MinHash signatures")
    texts, size, threshold = (
        frame(documents),
        settings.minhash_ngram_size,
        settings.jaccard_threshold,
    )
    began = time.perf_counter()
    signed = signatures(texts, settings.minhash_permutations, size).collect()
    hashing = time.perf_counter() - began
    progress(1, 3, "near-duplicate pairs")
    recipe, wide = bandings(settings).items()
    found = {recipe[0]: buckets(signed, *recipe[1])}
    pairs = verified_pairs(found[recipe[0]], texts, size, threshold)
    seconds = time.perf_counter() - began
    progress(2, 3, "near-duplicate pairs, wider bands")
    found[wide[0]] = buckets(signed, *wide[1])
    wide_pairs = verified_pairs(found[wide[0]], texts, size, threshold)
    megabytes = sum(len(text.encode()) for text in documents["text"].to_pylist()) / 1e6
    return Search(pairs, wide_pairs, found, megabytes, hashing, seconds)


def by_width(documents: pa.Table, settings: DataSettings, widths: Sequence[int]) -> pd.DataFrame:
    """Near-duplicates by width of the character n-grams, recipe's bands and threshold: groups, and
    documents that would be removed. One row per width.
    """
    texts, rows = frame(documents), []
    for width in widths:
        signed = signatures(texts, settings.minhash_permutations, width)
        found = buckets(signed, settings.minhash_bands, settings.minhash_rows)
        pairs = verified_pairs(found, texts, width, settings.jaccard_threshold)
        grouped = groups(pairs, settings.jaccard_threshold)
        kept = len(set(grouped["kept"].to_pylist()))
        rows.append((width, kept, grouped.num_rows - kept))
    columns = ["characters", "groups", "documents removed"]
    return pd.DataFrame(rows, columns=columns)


def groups(pairs: pa.Table, threshold: float) -> pa.Table:
    """[id, kept]: the documents that pairs of at least the threshold connect, sorted by id, and the
    smallest id of each one's connected component.

    pairs: columns a, b, jaccard.
    """
    edges = pairs.filter(pa.compute.greater_equal(pairs["jaccard"], threshold))
    ends = pa.concat_arrays([edges[name].combine_chunks().cast(pa.string()) for name in ("a", "b")])
    names = pa.compute.unique(ends)
    names = names.take(pa.compute.array_sort_indices(names))
    index = pa.compute.index_in(ends, names).to_numpy(zero_copy_only=False).astype(np.int64)
    a, b = index[: len(edges)], index[len(edges) :]
    size = len(names)
    component = _components(a, b, size)
    # Names ascend, so the first one of a component is its smallest.
    _, first = np.unique(component, return_index=True)
    kept = names.take(pa.array(first[component] if size else np.zeros(0, np.int64)))
    return pa.table({"id": names, "kept": kept})


def near_duplicates(
    pairs: pa.Table,
    documents: daft.DataFrame,
    ngram_size: int,
    threshold: float,
    *,
    only_similar_to_kept: bool = False,
) -> pa.Table:
    """[id, duplicate_of, jaccard] of the documents to remove, sorted by id.

    Each group keeps its smallest id; `jaccard` is the similarity to that one, which is below the
    threshold where a chain of pairs leads to it. only_similar_to_kept: such a document stays.
    """
    removed = groups(pairs, threshold)
    removed = removed.filter(pa.compute.not_equal(removed["id"], removed["kept"]))
    ends = pa.table({"a": removed["kept"], "b": removed["id"]})
    # Most were compared with the kept document already; the ends of chains were not.
    known = ends.join(pairs.select(["a", "b", "jaccard"]), ["a", "b"], join_type="left outer")
    missing = known.filter(known["jaccard"].is_null()).select(["a", "b"])
    missing = missing.sort_by([("a", "ascending"), ("b", "ascending")])
    if len(missing):
        values = _similarities_of(missing, documents, _sizes_of(documents), ngram_size)
        missing = missing.append_column("jaccard", pa.array(values, pa.float64()))
        known = pa.concat_tables([known.drop_null(), missing])
    table = known.select(["b", "a", "jaccard"]).rename_columns(["id", "duplicate_of", "jaccard"])
    table = table.sort_by("id")
    if only_similar_to_kept:
        table = table.filter(pa.compute.greater_equal(table["jaccard"], threshold))
    return table


def collect(lazy: daft.DataFrame, sort_by: Sequence[str]) -> pa.Table:
    """Runs a plan; returns its rows, sorted, as an arrow table."""
    return lazy.sort(list(sort_by)).to_arrow()
