"""Which text a tokenizer is trained on: documents by language, up to a limit of bytes for each.

Guarantees: no language that has text is lost to the limit, nor a source of one; the same documents
in any order give the same text.
Out of scope: cleaning and splitting, which stage 01 does.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moxin_lab.lab import sampling


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
    grouped = _by_language(texts)
    if languages is not None:
        if absent := sorted(set(languages) - set(grouped)):
            raise ValueError(
                f"no document in {', '.join(absent)}; there are {', '.join(sorted(grouped))}"
            )
        grouped = {name: grouped[name] for name in languages}
    kept = {}
    for language in sorted(grouped):
        documents = _up_to(grouped[language], max_bytes_per_language)
        if any(documents):
            kept[language] = documents
    if not kept:
        where = f" in {texts}" if isinstance(texts, Path) else ""
        raise ValueError(f"no text to train on{where}: every document is empty")
    return kept


def _by_language(
    texts: Path | pa.Table | Iterable[str] | Mapping[str, Sequence[str]],
) -> dict[str, list[tuple[str, str]]]:
    """(source, text) pairs by language; the source is empty where none is known."""
    if isinstance(texts, Mapping):
        return {name: [("", text) for text in documents] for name, documents in texts.items()}
    if isinstance(texts, str):
        raise TypeError(
            "texts is one string; give a list of documents, or a pathlib.Path to a parquet file"
        )
    if isinstance(texts, Path):
        present = {"source"} & set(pq.read_schema(texts).names)
        texts = pq.read_table(texts, columns=[*present, "language", "text"])
    if not isinstance(texts, pa.Table):
        return {"und": [("", text) for text in texts]}
    names = texts["language"].to_pylist()
    known = "source" in texts.column_names
    sources = texts["source"].to_pylist() if known else [""] * len(names)
    grouped: dict[str, list[tuple[str, str]]] = {}
    for language, source, text in zip(names, sources, texts["text"].to_pylist(), strict=True):
        grouped.setdefault(language, []).append((source, text))
    return grouped


def _up_to(documents: list[tuple[str, str]], max_bytes: int | None) -> list[str]:
    """The texts of (source, text) pairs, at most so many bytes of them, spread over the sources."""
    if max_bytes is None:
        return [text for _, text in documents]
    sources, texts = [source for source, _ in documents], [text for _, text in documents]
    sizes = [len(text.encode()) for text in texts]
    chosen = sampling.spread(texts, sources, sizes, max_bytes)
    return [sampling.beginning(texts[index], size) for index, size in chosen]
