"""What `moxin-lab bench pretraining` trains on: stage 01's documents, a tokenizer and the tokens.

    documents/                           stage 01's recipe on the scale's sources
      -> curated/train-00000.parquet ... languages that the phases draw from
         curated/train-NAME.parquet      a source that they draw from by name
         curated/heldout.parquet         stage 01's held-out text in these languages
      -> tokenizer/                      stage 02's, at the scale's size
      -> packed/                         `data/corpus_pack.py`

Each step is skipped if its result is there, so the steps can run on different machines.

Guarantees: the documents and their split are stage 01's (`data/split.py`): the finished
`runs/SCALE/01_data_curation/documents` can take the place of documents/; the same documents, seed
and settings give the same ids and files.
Out of scope: stage 01's steps. `repeated` looks again whether a held-out document repeats training
text, now by tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from moxin_lab.data import corpus_pack
from moxin_lab.data.ngrams import NGRAM_TOKENS
from moxin_lab.lab import curated
from moxin_lab.pretraining.pools import pool_of_documents
from moxin_lab.scales import Scale
from moxin_lab.scales.sections import Phase, TokenizerSettings
from moxin_lab.tokenizer import files as tokenizer_files
from moxin_lab.tokenizer import routed

COLUMNS = ("id", "language", "source", "page", "text")
PART_BYTES = 22 * 2**20
"""Of a compressed training file: what a machine without a network can be sent at once."""


def curate(scale: Scale, root: Path, documents: Path, seed: int) -> None:
    """Stage 01's recipe into `documents`; nothing if it is there, as a run or as the artifact.

    Raises what `data.curation.curate` raises.
    """
    from moxin_lab.data import curation  # loads the readers of all formats

    if not (documents / "funnel.json").is_file():  # the last file of a run but for its record
        curation.curate("slimpajama", scale, root, documents, seed=seed)


def take(documents: Path, phases: Sequence[Phase], out: Path) -> None:
    """Writes the documents of the pools that the phases draw from to `out`, the pool as their
    `language`; heldout.parquet, of the languages alone, comes last.

    The project of a document is its `source`, so that samples are spread over projects. Raises
    ValueError for a pool that the documents do not have.
    """
    drawn = {name for phase in phases for name in phase.mixture}
    labels = curated.read(documents, "train", ["source", "language"]).to_pandas()
    pool_of_documents(labels, phases)  # refuses a pool without documents
    of_languages = _Parts(out)
    of_sources: dict[str, list[pa.Table]] = {}
    for shard in curated.shards(documents, "train"):
        for source, table in _pools(shard, drawn).items():
            if source:
                of_sources.setdefault(source, []).append(table)
            else:
                of_languages.add(table)
    of_languages.close()
    for source, tables in of_sources.items():
        path = out / f"train-{source}.parquet"
        pq.write_table(pa.concat_tables(tables), path, compression="zstd")
    heldout = [_pools(shard, drawn)[""] for shard in curated.shards(documents, "heldout")]
    pq.write_table(pa.concat_tables(heldout), out / "heldout.parquet", compression="zstd")


def _pools(shard: pa.Table, drawn: set[str]) -> dict[str, pa.Table]:
    """The rows of each source that is drawn from by name; under "" those of the languages."""
    source, project = shard["source"], shard["project"]
    by_name = pc.is_in(source, pa.array(sorted(drawn), pa.string()))
    shown = pc.if_else(pc.equal(project, ""), source, project)
    columns = {name: shard[name] for name in COLUMNS} | {"source": shown}
    found = {
        name: pa.table(columns | {"language": source}).filter(pc.equal(source, name))
        for name in pc.unique(source.filter(by_name)).to_pylist()
    }
    wanted = pc.is_in(shard["language"], pa.array(sorted(drawn), pa.string()))
    found[""] = pa.table(columns).filter(pc.and_(wanted, pc.invert(by_name)))
    return found


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
