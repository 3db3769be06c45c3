"""Steps of recipes that look at all documents: boilerplate, duplicates, quality.

Guarantees: what they decide depends on the set of documents, not on their order, partitions or
engine (of equal documents the smallest id stays); the driver holds ids, bucket keys, pairs and
repeated lines, not texts.
Out of scope: the measures themselves (`boilerplate`, `dedup`, `quality`).
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import daft
import numpy as np
import pyarrow as pa
from daft import DataType, col
from daft.functions import get

from moxin_lab.data import boilerplate as boilerplate_lines
from moxin_lab.data import dedup, minhash, quality
from moxin_lab.data.dedup import Buckets
from moxin_lab.data.extract import CurationError
from moxin_lab.data.findings import Finding
from moxin_lab.data.ngrams import NGRAM_TOKENS, hashes_of, tokens
from moxin_lab.data.split import MAX_OVERLAP, REASONS, Documents, hold_out
from moxin_lab.data.steps import CODE, Across, Held, Labels, Learned, Split, Work, check_unique


def boilerplate() -> Learned:
    """Lines that the pages of a site share at their edges go; the pages of a project in one
    language are a site. Prose only.
    """

    def learn(frame: daft.DataFrame) -> dict[str, frozenset[int]]:
        prose = frame.where((col("language") != CODE) & (col("project") != ""))
        columns = prose.select("project", "language", "text").to_arrow_iter()
        return boilerplate_lines.shared_lines(
            (f"{project} {language}", text)
            for batch in columns
            for project, language, text in zip(*batch.to_pydict().values(), strict=True)
        )

    def work(shared: dict[str, frozenset[int]]) -> Work:
        def strip(text: str, labels: Labels) -> str:
            lines = shared.get(f"{labels.project} {labels.language}")
            return boilerplate_lines.strip(text, lines) if lines else text

        return strip

    return Learned("boilerplate", learn, work)


# ---- paragraphs

PARAGRAPH_SHARE = 0.8
"""Share of bytes in repeated paragraphs from which a document is dropped (bff's threshold)."""


def paragraph_duplicates() -> Learned:
    """Paragraphs (lines) of at least 13 tokens that a document with a smaller id has too go, and
    documents that consist of them.

    DCLM's bff asks a Bloom filter for each 13-gram, in the order of reading, and drops a paragraph
    with 0.8 of them known. Here equal tokens decide, so the order does not.
    """

    def learn(frame: daft.DataFrame) -> dict[int, str]:
        @daft.func.batch(return_dtype=DataType.list(DataType.int64()))
        def keys(text: daft.Series) -> list[list[int]]:
            found = (_paragraphs(each) for each in text.to_pylist())
            return [sorted({key for _, key in parts if key}) for parts in found]

        each = frame.select("id", keys(col("text")).alias("key")).explode("key")
        owners = each.where(col("key").not_null()).groupby("key")
        counted = owners.agg(col("id").min().alias("owner"), col("id").count().alias("documents"))
        found = counted.where(col("documents") > 1).select("key", "owner").to_pydict()
        return dict(zip(found["key"], found["owner"], strict=True))

    def work(owners: dict[int, str]) -> Work:
        def drop(text: str, labels: Labels) -> str | Finding:
            parts = list(_paragraphs(text))
            kept = [line for line, key in parts if owners.get(key, labels.id) == labels.id]
            if len(kept) == len(parts):
                return text
            left = "".join(kept)
            share = 1 - len(left.encode()) / max(1, len(text.encode()))
            if share >= PARAGRAPH_SHARE:
                return Finding("duplicate paragraphs", f"{share:.0%} of the text")
            return left

        return drop

    return Learned("paragraph duplicates", learn, work)


def _paragraphs(text: str) -> Iterator[tuple[str, int]]:
    """Each line, and a key of its tokens; 0 where it has fewer than 13."""
    for line in text.splitlines(keepends=True):
        words = tokens(line)
        if len(words) < NGRAM_TOKENS:
            yield line, 0
        else:
            digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
            yield line, int.from_bytes(digest, "big") >> 1 or 1


# ---- quality

LABELLED_CHARACTERS = 5_000
"""Beginning of a page that the classifier is trained on."""
MAX_LABELLED = 20_000
"""Pages of a kind; of more, those whose ids have the smallest hashes."""


def top_quality(classifier: str, share: float, seed: int) -> Across:
    """The best `share` of each language's documents, at least one, by a classifier trained on weak
    labels (`quality.weak_label`); the detail has the score and the cut.

    DCLM has one language. Scores of different languages cannot be compared: a classifier that has
    seen lists in English and guides in all languages tells languages apart. The driver trains and
    scores, a batch of texts at a time. Raises CurationError where the documents have not both kinds
    of labels.
    """

    def removals(frame: daft.DataFrame) -> pa.Table:
        texts, labels = _labelled(frame)
        score = quality.CLASSIFIERS[classifier](texts, labels, seed)
        ids: list[str] = []
        languages: list[str] = []
        found = [np.zeros(0)]
        for batch in frame.select("id", "language", "text").to_arrow_iter():
            ids += batch.column("id").to_pylist()
            languages += batch.column("language").to_pylist()
            found.append(score(batch.column("text").to_pylist()))
        scores, spoken = np.concatenate(found), np.array(languages, dtype=object)
        gone: list[str] = []
        details: list[str] = []
        for language in sorted(set(languages)):
            rows = np.flatnonzero(spoken == language)
            best = quality.top_share(
                scores[rows], [ids[row] for row in rows], max(share, 1 / len(rows))
            )
            cut = scores[rows[best]].min()
            for row in rows[~best].tolist():
                gone.append(ids[row])
                details.append(f"score {scores[row]:.4f}, {cut:.4f} needed in {language}")
        return _removals(gone, f"not in the top {share:.0%}", details)

    return Across("quality", removals)


def _labelled(frame: daft.DataFrame) -> tuple[list[str], list[int]]:
    """Texts and labels of the pages whose names say what they are, sorted by a hash of the id."""

    @daft.func.batch(return_dtype=DataType.int8())
    def named(page: daft.Series) -> list[int | None]:
        return [quality.weak_label(name) for name in page.to_pylist()]

    beginning = col("text").substr(0, LABELLED_CHARACTERS)
    pages = frame.with_column("label", named(col("page"))).where(col("label").not_null())
    rows = pages.select("id", "label", beginning.alias("text")).to_pylist()
    rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
    kinds = [[row for row in rows if row["label"] == label][:MAX_LABELLED] for label in (0, 1)]
    if not all(kinds):
        raise CurationError(
            f"the quality classifier needs pages of both kinds; there are {len(kinds[1])} good and "
            f"{len(kinds[0])} bad ones by their names (quality.weak_label)"
        )
    chosen = [row for kind in kinds for row in kind]
    # Mixed, or the classifier would see one kind after the other.
    chosen.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
    return [row["text"] for row in chosen], [row["label"] for row in chosen]


# ---- documents


def exact_duplicates() -> Across:
    """Of equal texts the one with the smallest id stays."""

    def removals(frame: daft.DataFrame) -> pa.Table:
        keyed = frame.select("id", "digest")
        first = keyed.groupby("digest").agg(col("id").min().alias("kept"))
        copies = keyed.join(first, on="digest").where(col("id") != col("kept"))
        table = dedup.collect(copies.select("id", "kept"), ["id"])
        details = [f"copy of {kept}" for kept in table["kept"].to_pylist()]
        return _removals(table["id"].to_pylist(), "exact duplicate", details)

    return Across("exact duplicates", removals)


def near_duplicates(settings: dedup.Settings, verify: bool = True) -> Across:
    """Of a connected component of similar documents the one with the smallest id stays."""

    def removals(frame: daft.DataFrame) -> pa.Table:
        found = _buckets(frame, settings.bands, settings.rows)
        texts, size = _texts(frame), settings.ngram_size
        # Without verification whatever shares a bucket is joined; what is told stays true.
        threshold = settings.threshold if verify else 0.0
        pairs = dedup.verified_pairs(found, texts, size, threshold)
        table = dedup.near_duplicates(pairs, texts, size, threshold)
        columns = (table[name].to_pylist() for name in ("duplicate_of", "jaccard"))
        details = [
            f"{kept} stays (Jaccard {similarity:.3f})"
            for kept, similarity in zip(*columns, strict=True)
        ]
        return _removals(table["id"].to_pylist(), "near-duplicate", details)

    return Across("near-duplicates", removals)


def held_out(settings: dedup.Settings, share: float, seed: int, *, bands: int, rows: int) -> Split:
    """Holds out about `share` of the bytes by `split.hold_out`, then drops documents of held-out
    pages that training text repeats, and training documents that are in one group of
    near-duplicates with a held-out one, by bands that miss little.
    """
    wide = settings._replace(bands=bands, rows=rows)

    def choose(frame: daft.DataFrame) -> Held:
        ids, documents = _documents(frame)
        found = hold_out(documents, share, seed)
        return Held(found.pages, frozenset(np.array(ids, object)[found.repeated].tolist()))

    def removals(frame: daft.DataFrame, held: Held) -> pa.Table:
        found = _buckets(frame, wide.bands, wide.rows)
        pairs = dedup.verified_pairs(found, _texts(frame), wide.ngram_size, wide.threshold)
        groups = dedup.groups(pairs, wide.threshold)
        joined = frame.join(daft.from_arrow(groups), on="id").select("id", "page", "kept")
        rows = dedup.collect(joined, ["id"]).to_pylist()
        first: dict[str, str] = {}  # the smallest held-out id of each group; ids ascend
        for row in rows:
            if row["page"] in held.pages and row["id"] not in held.repeated:
                first.setdefault(row["kept"], row["id"])
        out = [
            (row["id"], f"near-duplicate of {first[row['kept']]}")
            for row in rows
            if row["kept"] in first and row["page"] not in held.pages
        ]
        ids, details = ([pair[side] for pair in out] for side in (0, 1))
        repeated = sorted(held.repeated)
        told = f"more than {MAX_OVERLAP:.0%} of its tokens are in 13-grams of training text"
        return pa.concat_tables(
            [
                _removals(ids, REASONS[0], details),
                _removals(repeated, REASONS[1], [told] * len(repeated)),
            ]
        )

    return Split("split", share, seed, choose, removals)


GRAMS_AT_ONCE = 256
"""Documents whose 13-grams are in memory as one array; without it, those of a whole file."""


def _documents(frame: daft.DataFrame) -> tuple[list[str], Documents]:
    """The ids, and what the split asks of the documents; the workers make the 13-grams."""

    @daft.func.batch(return_dtype=DataType.list(DataType.uint64()), batch_size=GRAMS_AT_ONCE)
    def grams(text: daft.Series) -> pa.Array:
        found = [hashes_of(each) for each in text.to_pylist()]
        offsets = np.cumsum([0, *map(len, found)])
        values = np.concatenate([np.zeros(0, np.uint64), *found])
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))

    labels = ("page", "source", "language")
    size = _SIZE.alias("size")
    table = dedup.collect(frame.select("id", *labels, "project", size), ["id"])
    ids = table["id"].to_pylist()
    check_unique(ids)
    row_of = {key: row for row, key in enumerate(ids)}
    page, source, language = (np.array(table[name].to_pylist(), object) for name in labels)
    # A document without a project is a project of its own.
    named = zip(ids, table["project"].to_pylist(), strict=True)
    project = np.array([name or key for key, name in named], object)

    def of_rows(wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        asked = frame
        if not wanted.all():
            some = pa.table({"id": pa.array(ids).filter(pa.array(wanted))})
            asked = frame.join(daft.from_arrow(some), on="id", how="semi")
        for batch in asked.select("id", grams(col("text")).alias("grams")).to_arrow_iter():
            lists = batch.column("grams")
            ends = lists.offsets.to_numpy()
            values = lists.values.to_numpy(zero_copy_only=False)
            for at, key in enumerate(batch.column("id").to_pylist()):
                yield row_of[key], values[ends[at] : ends[at + 1]]

    sizes = table["size"].to_numpy().astype(np.int64)
    return ids, Documents(page, source, language, project, sizes, of_rows)


_SIZE = get(col("sizes"), -1)


def _texts(frame: daft.DataFrame) -> daft.DataFrame:
    """What `dedup` reads: the size is known, so only what is compared is read as text."""
    return frame.select("id", "text", _SIZE.alias("bytes"))


def _buckets(frame: daft.DataFrame, bands: int, rows: int) -> Buckets:
    """The buckets of the signatures; the workers make the keys, 8 bytes a band, and the sketches, a
    byte a permutation.
    """

    def made(kind: DataType, width: int, make: Callable[[np.ndarray], np.ndarray]) -> Any:
        @daft.func.batch(return_dtype=DataType.fixed_size_list(kind, width))
        def column(signature: daft.Series) -> pa.Array:
            size = signature.datatype().size
            listed = pa.array(signature.to_arrow()).cast(pa.list_(pa.uint32(), size))
            minima = listed.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
            return pa.FixedSizeListArray.from_arrays(pa.array(make(minima).reshape(-1)), width)

        return column(col("signature"))

    signed = frame.where(col("signature").not_null())
    permutations = frame.schema()["signature"].dtype.size
    columns = {
        "keys": made(DataType.uint64(), bands, lambda m: minhash.band_keys(m, bands, rows)),
        "sketches": made(DataType.uint8(), permutations + 1, minhash.sketches),
    }
    named = [expression.alias(name) for name, expression in columns.items()]
    table = dedup.collect(signed.select("id", *named), ["id"])
    keys, sketches = (
        table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in columns
    )
    return Buckets(
        table["id"].to_pylist(),
        keys.astype(np.uint64).reshape(-1, bands),
        sketches.astype(np.uint8).reshape(-1, permutations + 1),
    )


def _removals(ids: list[str], reason: str, details: list[str]) -> pa.Table:
    columns = (ids, [reason] * len(ids), details)
    names = ["id", "reason", "detail"]
    return pa.table([pa.array(column, pa.string()) for column in columns], names=names)
