"""Which text a tokenizer is trained on: documents by language, up to a limit of bytes for each.

Guarantees: no language that has text is lost to the limit, nor a source of one; the same documents
in any order give the same text. Of a table, one language at a time is held as Python strings.
Out of scope: cleaning and splitting, which stage 01 does.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moxin_lab.lab import curated, sampling


def read_curated(
    documents: Path,
    max_bytes_per_language: int | None = None,
    languages: Sequence[str] | None = None,
) -> dict[str, list[str]]:
    """`read_documents` of the training side of stage 01's artifact; the same arguments and errors.

    One shard at a time is held whole, then the rows of the languages wanted.
    """
    kept = []
    for shard in curated.shards(documents, "train", ("source", "language", "text")):
        if languages is not None:
            wanted = pa.array(languages, shard.schema.field("language").type)
            shard = shard.filter(pc.is_in(shard["language"], wanted))
        kept.append(shard)
    texts = read_documents(pa.concat_tables(kept), max_bytes_per_language, languages)
    kept.clear()
    pa.default_memory_pool().release_unused()  # or the process keeps what it no longer needs
    return texts


def read_documents(
    texts: Path | pa.Table | Iterable[str] | Mapping[str, Sequence[str]],
    max_bytes_per_language: int | None = None,
    languages: Sequence[str] | None = None,
) -> dict[str, list[str]]:
    """Documents by language, languages in alphabetical order.

    texts: a table or a parquet file with the columns language and text and, where documents come
    from several places, source; or documents by language, or documents of one language.
    max_bytes_per_language: each language has at most so many UTF-8 bytes, shared out among its
    sources, in an order hashed from the texts (`lab.sampling`), with the last document of each
    source cut: the same bytes on every run and for any order of the documents. languages: those to
    read; None for all.
    Raises ValueError if all documents are empty or a language has none, TypeError for a single
    string.
    """
    found = _by_language(texts)
    present = sorted(
        found["language"].unique().to_pylist() if isinstance(found, pa.Table) else found
    )
    if absent := sorted(set(languages or ()) - set(present)):
        raise ValueError(f"no document in {', '.join(absent)}; there are {', '.join(present)}")
    kept = {}
    for language in present if languages is None else sorted(set(languages)):
        documents = _up_to(found, language, max_bytes_per_language)
        if any(documents):
            kept[language] = documents
    if not kept:
        where = f" in {texts}" if isinstance(texts, Path) else ""
        raise ValueError(f"no text to train on{where}: every document is empty")
    return kept


def _by_language(
    texts: Path | pa.Table | Iterable[str] | Mapping[str, Sequence[str]],
) -> pa.Table | Mapping[str, Sequence[str]]:
    """A table with the column language, or documents by language."""
    if isinstance(texts, Mapping):
        return texts
    if isinstance(texts, str):
        raise TypeError(
            "texts is one string; give a list of documents, or a pathlib.Path to a parquet file"
        )
    if isinstance(texts, Path):
        present = {"source"} & set(pq.read_schema(texts).names)
        texts = pq.read_table(texts, columns=[*present, "language", "text"])
    return texts if isinstance(texts, pa.Table) else {"und": list(texts)}


def _up_to(
    found: pa.Table | Mapping[str, Sequence[str]], language: str, max_bytes: int | None
) -> list[str]:
    """The texts of a language, at most so many bytes of them, spread over their sources."""
    texts: Sequence[str] | pa.ChunkedArray
    if isinstance(found, pa.Table):
        rows = found.filter(pc.equal(found["language"], language))
        if max_bytes is None:
            return rows["text"].to_pylist()
        # Texts stay in Arrow's memory until they are chosen: most are not.
        texts, sizes = rows["text"], pc.binary_length(rows["text"]).to_pylist()
        known = "source" in rows.column_names
        sources = rows["source"].to_pylist() if known else [""] * len(texts)
    else:
        texts = list(found[language])
        if max_bytes is None:
            return texts
        sizes, sources = [len(text.encode()) for text in texts], [""] * len(texts)
    chosen = sampling.spread(texts, sources, sizes, max_bytes)
    return [sampling.beginning(str(texts[index]), size) for index, size in chosen]
