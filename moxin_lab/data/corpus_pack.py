"""Documents as token files small enough to be carried to a machine without a network.

    pack(documents, tokenizer, out):   en-00000.bin ...   the pool's tokens, cut every PART_BYTES
                                       en-00000.parquet   its documents: id, language, tokens, bytes
                                       pack.json          tokenizer, pools, SHA-256 of every file
    read_pool(folder, "en") -> the same documents again

A pool is a language. Each document is `<s> tokens </s>`; its text cannot spell a control token.

Guarantees: no file is larger than PART_BYTES; reading refuses a file that is missing, cut or
changed, and a folder that is not whole; the same documents give the same bytes; `pack.json` is
written last; memory is bounded by one batch of documents while packing.
Out of scope: mixing pools into batches (`pretraining/`); carrying the files.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from moxin_lab.data.corpus import CorpusError, Say, write_json
from moxin_lab.lab.artifacts import sha256_file
from moxin_lab.model import many_texts

PART_BYTES = 24 * 2**20
BATCH = 256
INDEX_ROWS = 50_000
"""Documents per index file: at 200 bytes an id, 10 MB before compression."""
INDEX = pa.schema(
    [("id", pa.string()), ("language", pa.string()), ("tokens", pa.int64()), ("bytes", pa.int64())]
)


class PackedPool(NamedTuple):
    """A pool as it was packed; the fields are those of `pretraining.pools.Tokens`, in its order.

    ids: int32 [tokens]. offsets: int64 [documents + 1]. num_bytes: int64 [documents], UTF-8 bytes
    of each text. names: ids of the documents.
    """

    ids: np.ndarray
    offsets: np.ndarray
    num_bytes: np.ndarray
    names: list[str]
    vocab_size: int


def pack(
    files: Sequence[Path], tokenizer_folder: Path, out: Path, say: Say = print
) -> dict[str, Any]:
    """Tokenises parquet files with columns id, language and text into `out`; returns the manifest.

    Raises CorpusError if `out` has files already, if there is no document, or if the tokenizer has
    no bos or eos token.
    """
    if out.is_dir() and any(out.iterdir()):
        raise CorpusError(f"{out} is not empty: name a folder that is, or remove it")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None or eos is None:
        raise CorpusError(f"the tokenizer in {tokenizer_folder} has no bos or eos token")
    # Not by the number of tokens: ids may have holes.
    dtype = "<u2" if max(tokenizer.get_vocab().values()) < 2**16 else "<u4"
    pools: dict[str, _Pool] = {}
    encode = None
    for number, file in enumerate(files, start=1):
        for rows in _batches(file):
            texts = [row["text"] for row in rows]
            encode = encode or many_texts.encoder(tokenizer, texts, [row["id"] for row in rows])
            for row, ids in zip(rows, encode(texts), strict=True):
                pool = pools.setdefault(row["language"], _Pool(out, row["language"], dtype))
                pool.add(row, np.concatenate([[bos], ids, [eos]]).astype(dtype))
        say(f"[{number}/{len(files)}] {file.name}")
    if not pools:
        raise CorpusError(f"no document in {len(files)} files")
    for pool in pools.values():
        pool.close()
    manifest = {
        "tokenizer_sha256": sha256_file(tokenizer_folder / "tokenizer.json"),
        "vocab_size": len(tokenizer),
        "dtype": dtype,
        "pools": {name: pools[name].counts for name in sorted(pools)},
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(out.iterdir())
        },
    }
    write_json(manifest, out / "pack.json")
    return manifest


def read_pool(folder: Path, pool: str) -> PackedPool:
    """One pool of a packed folder.

    Raises CorpusError for a pool that is not there and for a file that is not as packed.
    """
    manifest = read_manifest(folder)
    if pool not in manifest["pools"]:
        raise CorpusError(f"{folder} has no pool {pool!r}; it has {', '.join(manifest['pools'])}")
    names = [name for name in manifest["files"] if name.rpartition("-")[0] == pool]
    index = pa.concat_tables(
        pq.read_table(_checked(folder, name, manifest), schema=INDEX)
        for name in names
        if name.endswith(".parquet")
    )
    ids = np.concatenate(
        [
            np.fromfile(_checked(folder, name, manifest), dtype=manifest["dtype"]).astype(np.int32)
            for name in names
            if name.endswith(".bin")
        ]
    )
    offsets = np.concatenate([[0], np.cumsum(index["tokens"].to_numpy())]).astype(np.int64)
    if offsets[-1] != len(ids):
        raise CorpusError(f"{folder}: pool {pool} has {len(ids):,} tokens, not {offsets[-1]:,}")
    return PackedPool(
        ids, offsets, index["bytes"].to_numpy(), index["id"].to_pylist(), manifest["vocab_size"]
    )


def read_pools(folder: Path, names: Iterable[str], tokenizer: Path) -> dict[str, PackedPool]:
    """Several pools of a packed folder, by name; `Tokens(*pool)` is what the training reads.

    tokenizer: the folder of the tokenizer that the model is trained for. Raises CorpusError if the
    corpus was packed with another, and as `read_pool` does.
    """
    if read_manifest(folder)["tokenizer_sha256"] != sha256_file(tokenizer / "tokenizer.json"):
        raise CorpusError(
            f"{folder} was packed with another tokenizer than {tokenizer}: pack it again with "
            f"`moxin-lab corpus pack --tokenizer {tokenizer}`"
        )
    return {name: read_pool(folder, name) for name in sorted(set(names))}


def read_manifest(folder: Path) -> dict[str, Any]:
    """`pack.json` of a packed folder. Raises CorpusError if there is none."""
    file = folder / "pack.json"
    if not file.is_file():
        raise CorpusError(f"{file} is missing: {folder} is no packed corpus, or packing was killed")
    return json.loads(file.read_text(encoding="utf-8"))


def _checked(folder: Path, name: str, manifest: dict[str, Any]) -> Path:
    path = folder / name
    if not path.is_file():
        raise CorpusError(f"{path} is missing; copy it again")
    if sha256_file(path) != manifest["files"][name]["sha256"]:
        raise CorpusError(f"{path} is not as it was packed (SHA-256); copy it again")
    return path


def _batches(file: Path) -> Iterator[list[dict[str, Any]]]:
    parquet = pq.ParquetFile(file)
    for batch in parquet.iter_batches(BATCH, columns=["id", "language", "text"]):
        yield batch.to_pylist()


class _Pool:
    """Writes one pool's parts; at most a part of tokens and an index file of rows is in memory."""

    def __init__(self, out: Path, name: str, dtype: str) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.name, self.dtype = out, name, dtype
        self.waiting = bytearray()
        self.rows: list[dict[str, Any]] = []
        self.parts = self.indexes = 0
        self.counts = {"documents": 0, "tokens": 0, "bytes": 0}

    def add(self, row: dict[str, Any], ids: np.ndarray) -> None:
        size = len(row["text"].encode("utf-8", "surrogatepass"))
        self.rows.append(
            {"id": row["id"], "language": row["language"], "tokens": len(ids), "bytes": size}
        )
        for unit, number in (("documents", 1), ("tokens", len(ids)), ("bytes", size)):
            self.counts[unit] += number
        self.waiting += ids.tobytes()
        while len(self.waiting) >= PART_BYTES:  # a multiple of every token's size
            self._write(self.waiting[:PART_BYTES])
            del self.waiting[:PART_BYTES]
        if len(self.rows) >= INDEX_ROWS:
            self._write_index()

    def close(self) -> None:
        if self.waiting:
            self._write(self.waiting)
        if self.rows:
            self._write_index()

    def _write(self, content: bytes | bytearray) -> None:
        (self.out / f"{self.name}-{self.parts:05d}.bin").write_bytes(content)
        self.parts += 1

    def _write_index(self) -> None:
        table = pa.Table.from_pylist(self.rows, schema=INDEX)
        path = self.out / f"{self.name}-{self.indexes:05d}.parquet"
        pq.write_table(table, path, compression="zstd", write_statistics=False, store_schema=False)
        if path.stat().st_size > PART_BYTES:
            raise CorpusError(f"{path} has {path.stat().st_size:,} bytes: its ids are too long")
        self.indexes += 1
        self.rows = []


def pack_sha256(manifest: dict[str, Any]) -> str:
    """One hash for a whole packed corpus: of its files' hashes, by name."""
    lines = (f"{file['sha256']}  {name}\n" for name, file in sorted(manifest["files"].items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
