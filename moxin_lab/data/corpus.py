"""The corpus of the small scale: packages of three registries to shards of raw pages.

    corpus_packages.yml -> downloads/ -> raw/PACKAGE-00000.parquet, raw/PACKAGE.json
                                      -> text/...  (`corpus_text.py`) -> build.json

`sources(scale)` gives the shards that curation reads. The cache folder is outside the tree:
`MOXIN_CORPUS`, or `moxin-lab/corpus` in the user's cache folder.

Guarantees: the same archives give the same bytes (with the locked pyarrow); a package is done when
its `.json` is there, which is written last, so a build that was killed goes on with the package
where it stopped; a package whose archive or rules changed is built again; memory is bounded by one
shard, not by the corpus; no script of a package is run.
Out of scope: decoding and extraction (`corpus_text.py`); cleaning and duplicates (stage 01).
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from moxin_lab.data.archive_stream import stream_files
from moxin_lab.data.archives import Archive
from moxin_lab.data.corpus_packages import fetch_package, read_packages
from moxin_lab.data.corpus_rules import Package, describe, is_wanted
from moxin_lab.data.sources import write_table
from moxin_lab.lab import cache
from moxin_lab.lab.artifacts import sha256_file

SCALES = ("small",)
SHARD_BYTES = 48 * 2**20
"""Bytes of content from which a shard is written."""

LABELS = ("id", "package", "project", "page", "language", "code_language", "format", "licence")
"""Columns that raw rows and documents share."""
RAW = pa.schema([(name, pa.string()) for name in (*LABELS, "path")] + [("content", pa.binary())])
"""`id` is package/path. `page` is equal for all translations of a page. `language` is ISO 639 or
`code`; `code_language` is Pygments' name, empty for text. `content` is the file as packaged."""

Say = Callable[[str], object]


class CorpusError(RuntimeError):
    """The corpus is not there, is not whole, or cannot be built."""


cache_folder = cache.cache_folder


def sources(scale: str, kind: str = "text") -> list[Path]:
    """The parquet shards of the corpus of `scale`, sorted by name.

    kind: "raw" has the columns `RAW`, "text" those of `corpus_text.TEXT`. Raises CorpusError if the
    scale has no corpus, or if it was not built to the end.
    """
    if scale not in SCALES:
        raise CorpusError(f"scale {scale!r} has no corpus; there are {', '.join(SCALES)}")
    folder = cache_folder()
    if not (folder / "build.json").is_file():
        raise CorpusError(
            f"no corpus in {folder}: build it with `moxin-lab corpus build --scale {scale}`, or "
            "name the folder of one in MOXIN_CORPUS"
        )
    shards = json.loads((folder / "build.json").read_text(encoding="utf-8"))["shards"]
    if absent := [name for name in shards if not (folder / "text" / name).is_file()]:
        raise CorpusError(
            f"{folder / 'text'} lacks {len(absent)} shards of the build, such as {absent[0]}; "
            f"`moxin-lab corpus build --scale {scale}` makes them again"
        )
    return [folder / kind / name for name in shards]


def build_raw(
    folder: Path,
    packages: list[Package] | None = None,
    *,
    archives: Path | None = None,
    allow_newer: bool = False,
    say: Say = print,
) -> list[dict[str, Any]]:
    """Fetches every package and writes its shards below `folder`/raw; returns their records.

    archives: where downloads are looked for and kept (default `folder`/downloads). Raises
    ArchiveError for a package that cannot be had or read; what was done before stays.
    """
    packages = read_packages() if packages is None else packages
    records = []
    total, done = sum(package.bytes for package in packages), 0
    for number, package in enumerate(packages, start=1):
        done += package.bytes
        record = _raw_package(package, folder, archives or folder / "downloads", allow_newer)
        say(
            f"[{number}/{len(packages)}] {record['package']} {record['version']}: "
            f"{record['files']:,} files, {record['raw_bytes'] / 1e6:,.1f} MB "
            f"({done / 1e6:,.0f} of {total / 1e6:,.0f} MB of archives)"
        )
        records.append(record)
    _remove_others(folder / "raw", records)
    return records


def _raw_package(
    package: Package, folder: Path, downloads: Path, allow_newer: bool
) -> dict[str, Any]:
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    name = package.archive.package
    record_file = raw / f"{name}.json"
    rules = _rules(package)
    if record_file.is_file():
        record = json.loads(record_file.read_text(encoding="utf-8"))
        same = record["rules"] == rules and (
            allow_newer or record["sha256"] == package.archive.sha256
        )
        if same and all((raw / shard).is_file() for shard in record["shards"]):
            return record
    archive, path = fetch_package(package, downloads, allow_newer)
    record_file.unlink(missing_ok=True)
    shards: list[dict[str, Any]] = []
    files = size = 0
    for rows in _rows(package, archive, path):
        shard = raw / f"{name}-{len(shards):05d}.parquet"
        write_shard(pa.Table.from_pylist(rows, schema=RAW), shard)
        shards.append({"name": shard.name, "sha256": sha256_file(shard), "rows": len(rows)})
        files += len(rows)
        size += sum(len(row["content"]) for row in rows)
    if not files:
        raise CorpusError(f"{archive}: no file matches {', '.join(package.include)}")
    record = {
        "package": name,
        "kind": archive.kind,
        "version": f"{archive.epoch}:{archive.version}" if archive.epoch else archive.version,
        "sha256": archive.sha256,
        "recorded": archive.sha256 == package.archive.sha256,
        "licence": archive.licence,
        "project": package.project,
        "archive_bytes": path.stat().st_size,
        "files": files,
        "raw_bytes": size,
        "rules": rules,
        "shards": {shard["name"]: shard for shard in shards},
    }
    write_json(record, record_file)
    return record


def _rows(package: Package, archive: Archive, path: Path) -> Iterator[list[dict[str, Any]]]:
    """The package's rows in shards, each sorted by id."""
    rows: list[dict[str, Any]] = []
    size = 0
    for name, content in stream_files(path, archive.kind, lambda name: is_wanted(package, name)):
        file = describe(package, name)
        row = {
            "id": f"{archive.package}/{name}",
            "package": archive.package,
            "project": package.project,
            "path": name,
            "page": file.page,
            "language": file.language,
            "code_language": file.code_language,
            "format": file.format,
            "licence": archive.licence,
            "content": content,
        }
        rows.append(row)
        size += len(content)
        if size >= SHARD_BYTES:
            yield sorted(rows, key=lambda row: row["id"])
            rows, size = [], 0
    if rows:
        yield sorted(rows, key=lambda row: row["id"])


def _rules(package: Package) -> str:
    """Hash of everything beside the archive that decides the rows."""
    fields = asdict(package) | {"archive": None, "licence": package.archive.licence}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _remove_others(raw: Path, records: list[dict[str, Any]]) -> None:
    """Removes shards of packages that the list no longer names."""
    kept = {shard for record in records for shard in record["shards"]}
    kept |= {f"{record['package']}.json" for record in records}
    for path in raw.iterdir():
        if path.name not in kept:
            path.unlink()


def write_shard(table: pa.Table, path: Path) -> None:
    """Writes a shard, at once or not at all; the same table gives the same bytes."""
    labels = ["package", "project", "language", "code_language", "format", "licence"]
    write_table(table, path, compression_level=3, row_group_size=1024, use_dictionary=labels)


def write_json(value: Any, path: Path) -> None:
    """Writes JSON, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
