"""The files of a package archive, one after another, without unpacking it.

    .deb: ar -> data.tar.{xz,gz,bz2,zst} -> members        .tgz, .tar.gz: members

Guarantees: nothing is written to disk and no script of a package is run; memory is bounded by the
largest wanted member, not by the archive; a member name that is absolute or contains `..` refuses
the whole archive; links and devices are never followed; a member or an archive that unpacks to more
than its limit is refused, so that a bomb cannot fill the memory or the disk.
Out of scope: fetching and hashes (`archives.py`); what the files mean (`corpus_rules.py`).
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa

from moxin_lab.data.archives import AR_HEADER, AR_MAGIC, ArchiveError, member_name

MAX_MEMBER_BYTES = 64 * 2**20
"""Most bytes of one wanted file, after the file's own `.gz` is undone."""
MAX_ARCHIVE_BYTES = 2 * 2**30
"""Most bytes of all files of an archive. The largest of the corpus unpacks to 0.55 GiB."""

_DAMAGE = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError)


def _zstd(file: IO[bytes]) -> IO[bytes]:
    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")


_STREAMS: dict[str, Callable[[IO[bytes]], Any]] = {
    "data.tar": lambda file: file,
    "data.tar.xz": lzma.LZMAFile,
    "data.tar.gz": lambda file: gzip.GzipFile(fileobj=file),
    "data.tar.bz2": bz2.BZ2File,
    "data.tar.zst": _zstd,
}


class _Part(io.RawIOBase):
    """Bytes `start` to `start + size` of a file, read in order."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        super().__init__()
        self.file, self.left = file, size
        file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(min(len(buffer), self.left))
        buffer[: len(data)] = data
        self.left -= len(data)
        return len(data)


def stream_files(
    path: Path,
    kind: Literal["deb", "npm", "pypi"],
    wanted: Callable[[str], bool],
    *,
    max_member: int = MAX_MEMBER_BYTES,
    max_archive: int = MAX_ARCHIVE_BYTES,
) -> Iterator[tuple[str, bytes]]:
    """Name and content of each regular file that is `wanted`, in the archive's order.

    A file whose name ends in `.gz` is given unpacked and without that ending; of a file that is
    there with and without it, the first is given. `wanted` is asked about the name as it is given.
    Raises `ArchiveError` for a damaged archive, an unsafe or repeated name, and a file or archive
    over its limit.
    """
    seen: set[str] = set()
    names: set[str] = set()
    total = 0
    try:
        with path.open("rb") as file, _open_tar(file, path, kind) as tar:
            for member in tar:
                name = member_name(member.name, path)
                total += member.size
                if total > max_archive:
                    raise ArchiveError(
                        f"{path} unpacks to more than {max_archive:,} bytes; it is refused"
                    )
                if not member.isfile():
                    continue
                shown = name.removesuffix(".gz")
                if not wanted(shown):
                    continue
                if name in names:
                    raise ArchiveError(f"{path} has {name} twice; the whole archive is refused")
                names.add(name)
                if shown in seen:  # the same file once more, compressed or not
                    continue
                seen.add(shown)
                content = tar.extractfile(member)
                assert content is not None, "a regular member has content"
                yield shown, _read(content, name, path, max_member)
    except _DAMAGE as error:
        raise ArchiveError(f"{path} is not a readable archive: {error}") from error


def _read(file: IO[bytes], name: str, path: Path, limit: int) -> bytes:
    # The limit is on what comes out: a few kilobytes of gzip can hold gigabytes.
    stream: Any = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file
    content = stream.read(limit + 1)
    if len(content) > limit:
        raise ArchiveError(f"{path}: {name} unpacks to more than {limit:,} bytes; it is refused")
    return content


@contextmanager
def _open_tar(file: IO[bytes], path: Path, kind: str) -> Iterator[tarfile.TarFile]:
    if kind != "deb":
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            yield tar
        return
    name, start, size = _data_part(file, path)
    part = io.BufferedReader(_Part(file, start, size), 2**20)
    with tarfile.open(fileobj=_STREAMS[name](part), mode="r|") as tar:
        yield tar


def _data_part(file: IO[bytes], path: Path) -> tuple[str, int, int]:
    """Name, offset and size of the data tar of a Debian package."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(len(AR_MAGIC)) != AR_MAGIC:
        raise ArchiveError(f"{path} is not a Debian package: it does not begin with ar's magic")
    offset = len(AR_MAGIC)
    while offset + AR_HEADER <= end:
        file.seek(offset)
        header = file.read(AR_HEADER)
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        digits = header[48:58].strip()
        if header[58:60] != b"`\n" or not digits.isdigit():
            raise ArchiveError(f"{path} is damaged: no ar header at byte {offset}")
        start, size = offset + AR_HEADER, int(digits)
        if start + size > end:
            raise ArchiveError(f"{path} is cut short: {name} should have {size:,} bytes")
        if name.startswith("data.tar"):
            if name not in _STREAMS:
                raise ArchiveError(f"{path} has {name}; only {', '.join(_STREAMS)} can be read")
            return name, start, size
        offset = start + size + size % 2
    raise ArchiveError(f"{path} is not a Debian package: it has no data.tar part")
