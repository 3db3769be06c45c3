"""Raw shards of the corpus to shards of documents, each file's bytes made text by its format.

    raw/PACKAGE-00000.parquet -> text/PACKAGE-00000.parquet, rejected/PACKAGE-00000.parquet

HTML by `html_text.py`, manual pages, XML, reStructuredText and catalogues by `manuals.py`, code as
it stands; the charset is found by `encodings.py`.

Guarantees: every raw row is in exactly one of the two files; a row that yields no text is set aside
with the reason and never raises; a shard is done when its text file is there, so a run that was
killed goes on; any number of processes gives the same bytes.
Out of scope: filters, duplicates, language identification (stage 01).
"""

import json
import resource
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moxin_lab.data.corpus import LABELS, Say, build_raw, write_json, write_shard
from moxin_lab.data.corpus_rules import Package
from moxin_lab.data.encodings import decode
from moxin_lab.data.html_text import html_to_text
from moxin_lab.data.manuals import (
    catalogue_to_text,
    docbook_to_text,
    man_to_text,
    rst_to_text,
)
from moxin_lab.data.unreadable import Unreadable
from moxin_lab.lab.artifacts import sha256_file
from moxin_lab.lab.cache import CORPUS

SOURCE = CORPUS
"""`source` of the documents in every table of stage 01."""
TEXT = pa.schema([(name, pa.string()) for name in (*LABELS, "source", "text")])
"""The columns of `corpus.RAW` without path and content, and those of `extract.DOCUMENTS`."""
REJECTED = pa.schema([(name, pa.string()) for name in (*LABELS, "reason", "detail")])
VERSION = 1
"""Raised when the text of a shard changes: shards of another version are made again."""

_FROM_TEXT: dict[str, Callable[[str], str]] = {
    "html": html_to_text,
    "rst": rst_to_text,
    "man": man_to_text,
    "docbook": docbook_to_text,
}


def to_text(content: bytes, format: str) -> str:
    """The text of a file of the corpus. Raises Unreadable."""
    if format == "catalogue":
        return catalogue_to_text(content)
    text = decode(content).text
    if format != "code":
        return _FROM_TEXT[format](text)
    if not text.strip():
        raise Unreadable("no text", "the file is empty")
    return text


def extract_shard(raw: Path, folder: Path) -> dict[str, Any]:
    """Writes the text and the rejected rows of one raw shard below `folder`; returns its record."""
    record_file = folder / "text" / f"{raw.stem}.json"
    text_file = folder / "text" / raw.name
    digest = sha256_file(raw)
    if record_file.is_file() and text_file.is_file():
        record = json.loads(record_file.read_text(encoding="utf-8"))
        if (record["raw_sha256"], record["version"]) == (digest, VERSION):
            return record
    start = time.process_time()
    documents: list[dict[str, str]] = []
    rejected: list[dict[str, str]] = []
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for batch in pq.ParquetFile(raw).iter_batches(256):
        for row in batch.to_pylist():
            kept = {name: row[name] for name in LABELS}
            group = (row["format"], row["language"], row["code_language"])
            counts[(*group, "files")] += 1
            counts[(*group, "raw_bytes")] += len(row["content"])
            try:
                text = to_text(row["content"], row["format"])
            except Unreadable as error:
                rejected.append(kept | {"reason": error.args[0], "detail": error.args[1]})
                continue
            counts[(*group, "documents")] += 1
            counts[(*group, "text_bytes")] += len(text.encode("utf-8", "surrogatepass"))
            documents.append(kept | {"source": SOURCE, "text": text})
    write_shard(pa.Table.from_pylist(rejected, schema=REJECTED), folder / "rejected" / raw.name)
    write_shard(pa.Table.from_pylist(documents, schema=TEXT), text_file)
    record = {
        "raw_sha256": digest,
        "version": VERSION,
        "sha256": sha256_file(text_file),
        "cpu_seconds": round(time.process_time() - start, 2),
        "peak_bytes": peak_bytes(),
        "rejected": dict(Counter(row["reason"] for row in rejected)),
        "counts": [[*group, number] for group, number in sorted(counts.items())],
    }
    write_json(record, record_file)
    return record


def build(
    folder: Path,
    packages: list[Package] | None = None,
    *,
    archives: Path | None = None,
    allow_newer: bool = False,
    processes: int = 1,
    say: Say = print,
) -> dict[str, Any]:
    """Builds raw shards, then text, then `folder`/build.json; returns the latter.

    Raises what `corpus.build_raw` raises. A file that yields no text does not end the build.
    """
    start = time.time()
    (folder / "build.json").unlink(missing_ok=True)
    packages_built = build_raw(
        folder, packages, archives=archives, allow_newer=allow_newer, say=say
    )
    raw_seconds = time.time() - start
    raws = [folder / "raw" / name for record in packages_built for name in record["shards"]]
    start = time.time()
    texts = _extract_all(raws, folder, processes, say)
    built = {
        "scale": "small",
        "packages": [_with_text(record, texts) for record in packages_built],
        "shards": [raw.name for raw in raws],
        "seconds": {"raw": round(raw_seconds, 1), "text": round(time.time() - start, 1)},
        "cpu_seconds_of_extraction": round(sum(r["cpu_seconds"] for r in texts.values()), 1),
        "processes": processes,
        "peak_bytes": max([peak_bytes(), *(record["peak_bytes"] for record in texts.values())]),
        "groups": groups(list(texts.values())),
        "rejected": dict(sum((Counter(r["rejected"]) for r in texts.values()), Counter[str]())),
    }
    write_json(built, folder / "build.json")
    return built


def _extract_all(
    raws: list[Path], folder: Path, processes: int, say: Say
) -> dict[str, dict[str, Any]]:
    done: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(extract_shard, raw, folder): raw.name for raw in raws}
        for future in as_completed(waiting):
            done[waiting[future]] = future.result()
            say(f"[{len(done)}/{len(raws)}] text of {waiting[future]}")
    kept = {Path(name).stem for name in done}
    for part in ("text", "rejected"):
        for path in (folder / part).iterdir():
            if path.stem not in kept:
                path.unlink()
    return {raw.name: done[raw.name] for raw in raws}


def _with_text(record: dict[str, Any], texts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A package's record with the bytes of its text."""
    rows = [row for name in record["shards"] for row in texts[name]["counts"]]
    sums = {
        unit: sum(row[-1] for row in rows if row[3] == unit) for unit in ("documents", "text_bytes")
    }
    shards = {name: shard["sha256"] for name, shard in record["shards"].items()}
    return record | sums | {"shards": shards}


def groups(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Files, documents and bytes by format, language and programming language."""
    sums: Counter[tuple[str, str, str, str]] = Counter()
    for record in records:
        for format, language, code_language, unit, number in record["counts"]:
            sums[format, language, code_language, unit] += number
    return [
        dict(zip(("format", "language", "code_language"), group, strict=True))
        | {unit: sums[(*group, unit)] for unit in ("files", "raw_bytes", "documents", "text_bytes")}
        for group in sorted({key[:3] for key in sums})
    ]


def peak_bytes() -> int:
    """Most memory that this process has used, in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def status(folder: Path) -> str:
    """What is in the cache folder, in a few lines: the totals of the build, or how far it is."""
    if not (folder / "build.json").is_file():
        packages = len(list((folder / "raw").glob("*.json")))
        shards = len(list((folder / "text").glob("*.parquet")))
        return f"{folder}: no finished build; {packages} packages unpacked, {shards} shards of text"
    built = json.loads((folder / "build.json").read_text(encoding="utf-8"))
    rows = built["groups"]
    total = {unit: sum(row[unit] for row in rows) for unit in ("files", "raw_bytes", "text_bytes")}
    lines = [
        f"{folder}: {len(built['packages'])} packages, {total['files']:,} files, "
        f"{total['raw_bytes'] / 2**30:.2f} GiB raw, {total['text_bytes'] / 1e6:,.0f} MB of text"
    ]
    by_language: Counter[str] = Counter()
    for row in rows:
        by_language[row["language"]] += row["text_bytes"]
    lines += [f"  {name}: {size / 1e6:,.1f} MB" for name, size in by_language.most_common(8)]
    languages = {row["code_language"] for row in rows if row["documents"]} - {""}
    lines.append(f"  {len(languages)} programming languages")
    lines += [
        f"  {record['package']}: {record['version']}, not the recorded version"
        for record in built["packages"]
        if not record["recorded"]
    ]
    return "\n".join(lines)
