"""What `moxin-lab bench pretraining` trains on: the corpus as training and held-out text, its
tokenizer and its tokens.

    shards of `moxin-lab corpus build`
      -> curated/train-00000.parquet ...   no exact copies, no held-out page
         curated/heldout.parquet
      -> tokenizer/                        stage 02's, at the scale's size
      -> packed/                           `data/corpus_pack.py`

Each step is skipped if its result is there, so the steps can run on different machines.

Guarantees: a page and its translations are on one side (`data.split.is_heldout`); the same shards,
seed and settings give the same documents, ids and files.
Out of scope: stage 01's filters and near-duplicates: a held-out document that repeats training text
is told and left out by `repeated`, which reads tokens.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from moxin_lab.data import corpus_pack
from moxin_lab.data.ngrams import NGRAM_TOKENS
from moxin_lab.data.split import is_heldout
from moxin_lab.scales.sections import TokenizerSettings
from moxin_lab.tokenizer import files as tokenizer_files
from moxin_lab.tokenizer import routed

HELDOUT_SHARE = 0.03
COLUMNS = ("id", "language", "source", "page", "text")
PART_BYTES = 22 * 2**20
"""Of a compressed training file: what a machine without a network can be sent at once."""


def curate(shards: Sequence[Path], languages: Sequence[str], out: Path, seed: int) -> None:
    """Writes the documents of `languages` to `out`, each text once; heldout.parquet comes last.

    The project of a document is its `source`, so that samples are spread over projects.
    """
    seen: set[bytes] = set()
    heldout: list[pa.Table] = []
    writer = _Parts(out)
    for shard in shards:
        table = pq.read_table(shard)
        table = table.filter(pc.is_in(table["language"], pa.array(list(languages))))
        table = table.set_column(
            table.schema.get_field_index("source"), "source", table["project"]
        ).select(COLUMNS)
        table = table.filter(pa.array(list(_are_new(table["text"], seen)), pa.bool_()))
        sides = [is_heldout(page, HELDOUT_SHARE, seed) for page in table["page"].to_pylist()]
        mask = pa.array(sides, pa.bool_())
        heldout.append(table.filter(mask))
        writer.add(table.filter(pc.invert(mask)))
    writer.close()
    pq.write_table(pa.concat_tables(heldout), out / "heldout.parquet", compression="zstd")


def add_source(card: Path, out: Path) -> None:
    """Writes the documents of a data card as a pool of its own, named after the card."""
    from moxin_lab.data.extract import extract_card  # loads the readers of all formats

    out.mkdir(parents=True, exist_ok=True)
    documents, _ = extract_card(card)
    name = pa.array([card.name] * documents.num_rows, pa.string())
    table = documents.set_column(documents.schema.get_field_index("language"), "language", name)
    pq.write_table(table.select(COLUMNS), out / f"train-{card.name}.parquet", compression="zstd")


def _are_new(texts: pa.ChunkedArray, seen: set[bytes]) -> Iterator[bool]:
    for text in texts.to_pylist():
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
        yield digest not in seen
        seen.add(digest)


class _Parts:
    """Writes tables to files of about PART_BYTES each."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._out, self._number = out, 0
        self._writer: pq.ParquetWriter | None = None
        self._path = out

    def add(self, table: pa.Table) -> None:
        if self._writer is None:
            self._path = self._out / f"train-{self._number:05d}.parquet"
            self._writer = pq.ParquetWriter(
                self._path, table.schema, compression="zstd", compression_level=9
            )
        self._writer.write_table(table)
        if self._path.stat().st_size >= PART_BYTES:
            self.close()
            self._number += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def learn_tokenizer(
    files: Sequence[Path], settings: TokenizerSettings, out: Path
) -> dict[str, Any]:
    """Stage 02's tokenizer on the sample that the settings name; returns its record."""
    work = out.with_name(f"{out.name}.partial")
    table = pa.concat_tables(pq.read_table(file, columns=["language", "text"]) for file in files)
    texts: dict[str, list[str]] = {}
    for language in sorted(set(table["language"].to_pylist())):
        chosen = table.filter(pc.equal(table["language"], language))
        texts[language] = chosen["text"].to_pylist()
    tokenizer = routed.train(
        texts,
        settings.vocab_size,
        min_frequency=settings.min_frequency,
        max_token_length=settings.max_token_length,
        min_tokens_per_expert=settings.min_tokens_per_expert,
        max_bytes_per_language=settings.training_bytes_per_language,
        progress=lambda step, total, text: print(f"[{step}/{total}] {text}", flush=True),
    )
    tokenizer_files.save(tokenizer, work)
    work.rename(out)
    return dict(tokenizer.record)


def pack(files: Sequence[Path], tokenizer: Path, out: Path) -> dict[str, Any]:
    """`corpus_pack.pack`, kept once it is whole; returns the manifest."""
    if (out / "pack.json").is_file():
        return corpus_pack.read_manifest(out)
    return corpus_pack.pack(files, tokenizer, out, say=lambda text: print(text, flush=True))


def repeated(
    heldout: Sequence[Sequence[int]], training: Sequence[np.ndarray], device: torch.device | str
) -> np.ndarray:
    """The share of each held-out document's tokens in 13-grams that training text has, float64
    [documents].

    heldout: tokens of each document. training: token streams with their bos and eos.
    """
    documents = [torch.as_tensor(np.asarray(ids, dtype=np.int64)) for ids in heldout]
    own = [_ngram_hashes(ids) for ids in documents]
    wanted = torch.unique(torch.cat(own)).to(device)
    found = torch.zeros(len(wanted), dtype=torch.bool, device=device)
    for stream in training:
        for start in range(0, len(stream), 2**25):
            piece = torch.as_tensor(
                stream[start : start + 2**25 + NGRAM_TOKENS - 1].astype(np.int64)
            )
            hashes = _ngram_hashes(piece.to(device))
            at = torch.searchsorted(wanted, hashes).clamp(max=len(wanted) - 1)
            found[at[wanted[at] == hashes]] = True
    known, wanted = found.cpu(), wanted.cpu()
    shares = []
    for ids, hashes in zip(documents, own, strict=True):
        covered = torch.zeros(len(ids), dtype=torch.bool)
        for at in known[torch.searchsorted(wanted, hashes)].nonzero()[:, 0].tolist():
            covered[at : at + NGRAM_TOKENS] = True
        shares.append(float(covered.double().mean()) if len(ids) else 0.0)
    return np.array(shares)


def _ngram_hashes(ids: torch.Tensor) -> torch.Tensor:
    """int64 [tokens - 12], a polynomial of each 13 tokens modulo 2^64."""
    count = max(0, len(ids) - NGRAM_TOKENS + 1)
    total = torch.zeros(count, dtype=torch.int64, device=ids.device)
    for offset in range(NGRAM_TOKENS):
        total = total * 0x9E3779B97F4A7C1 + ids[offset : offset + count] + 1
    return total
