"""Package archives: fetched by name, checked by SHA-256, and read without unpacking.

An archive is identified by package, version, kind and SHA-256. It is fetched with the package
manager's ordinary client (`apt-get`, `npm`, `pip`), so the user's configuration chooses the mirror,
or found in a folder of archives that the user has downloaded. The regular files of a `.deb` or a
tar archive are read as bytes.

Guarantees: no byte of an archive is parsed before its SHA-256 has been checked; reading writes
nothing to disk; an archive with a member name that is absolute or contains `..` is refused as a
whole; links and devices are never followed.
Out of scope: the meaning of the files (`packaged.py`); registry hosts, none of which is named here.
"""

import bz2
import gzip
import importlib.util
import io
import lzma
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from moxin_lab.lab.artifacts import sha256_file

Files = dict[str, bytes]
"""The regular files of an archive: name, without a leading `./`, to content."""

AR_MAGIC = b"!<arch>\n"
AR_HEADER = 60
_DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "data.tar": bytes,
    "data.tar.xz": lzma.decompress,
    "data.tar.gz": gzip.decompress,
    "data.tar.bz2": bz2.decompress,
}


class ArchiveError(RuntimeError):
    """An archive is missing, is not the recorded one, or is not safe to read."""


@dataclass(frozen=True)
class Archive:
    """A package archive, exactly as the package manager delivers it."""

    kind: Literal["deb", "npm", "pypi"]
    package: str
    version: str
    """Without Debian's epoch; see `epoch`."""
    file_name: str
    """The name under which the client saves it, without Debian's epoch.

    `apt-get` percent-encodes the epoch; see `_without_epoch`.
    """
    sha256: str
    licence: str
    """SPDX expression for the files that the data set uses."""
    epoch: str = ""
    architecture: str = ""
    """Debian architecture, if the package depends on it."""

    def __str__(self) -> str:
        return f"{self.kind} package {self.package} {self.version}"

    def command(self, folder: Path, requirements: Path | None = None) -> list[str]:
        """The client's command line that saves this archive into `folder`.

        requirements: a file that names the archive and its hash; used by `pip` only. `apt-get`
        ignores `folder` and saves into the working directory.
        Raises `ArchiveError` if the client is not installed.
        """
        if self.kind == "deb":
            epoch = f"{self.epoch}:" if self.epoch else ""
            architecture = f":{self.architecture}" if self.architecture else ""
            return [
                _client("apt-get", self),
                "download",
                f"{self.package}{architecture}={epoch}{self.version}",
            ]
        if self.kind == "npm":
            spec = f"{self.package}@{self.version}"
            return [
                _client("npm", self),
                "pack",
                spec,
                "--ignore-scripts",
                "--pack-destination",
                str(folder),
            ]
        pip = (
            [sys.executable, "-m", "pip"]
            if importlib.util.find_spec("pip")
            else [_client("pip", self)]
        )
        # The source distribution, because wheels lack the licence file and the tests. pip checks
        # the hash as well: to read an sdist's metadata it runs the build backend, and that must not
        # be unchecked code.
        options = [
            "--no-deps",
            "--no-binary",
            self.package,
            "--require-hashes",
            "--dest",
            str(folder),
        ]
        return [*pip, "download", *options, "--requirement", str(requirements)]


def fetch(archive: Archive, folder: Path) -> Path:
    """Saves `archive` in `folder` with its package manager's client; returns its path.

    An archive that is already there is not fetched again.
    Raises `ArchiveError` if the client is missing or fails, or if it delivers another SHA-256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (existing := _by_hash(archive, folder)) is not None:
        return existing
    requirements = folder / f".{archive.package}.requirements.txt"
    command = archive.command(folder.resolve(), requirements.resolve())
    if archive.kind == "pypi":
        requirements.write_text(
            f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n"
        )
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired as error:
        raise ArchiveError(
            f"{command[0]} did not deliver the {archive} within 600 s. {_by_hand(archive)}"
        ) from error
    finally:
        requirements.unlink(missing_ok=True)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise ArchiveError(
            f"could not fetch the {archive}: `{' '.join(command)}` exited with status "
            f"{done.returncode}:\n{tail}\n"
            f"Mirrors drop old versions after an update. {_by_hand(archive)}"
        )
    return find(archive, folder)


def find(archive: Archive, folder: Path) -> Path:
    """The file in `folder` that is `archive`, whatever its name.

    Raises `ArchiveError` if there is none.
    """
    if not folder.is_dir():
        raise ArchiveError(f"{folder} is not a folder of archives. {_by_hand(archive)}")
    if (existing := _by_hash(archive, folder)) is not None:
        return existing
    named = [path for path in _files(folder) if _without_epoch(path.name) == archive.file_name]
    if named:
        raise ArchiveError(
            f"{named[0]} is not the recorded {archive}: its SHA-256 is {sha256_file(named[0])}, "
            f"expected {archive.sha256}. Nothing was read from it. Get it again from a source that "
            "you trust; if upstream republished it, make a new version of the data set on purpose."
        )
    raise ArchiveError(f"the {archive} is not in {folder}. {_by_hand(archive)}")


def read_files(path: Path, kind: Literal["deb", "npm", "pypi"]) -> Files:
    """The regular files of an archive, sorted by name.

    kind: "deb" reads the data part of a Debian package; "npm" and "pypi" read a tar archive, which
    may be compressed.
    Raises `ArchiveError` for a damaged archive and for an unsafe or repeated member name.
    """
    content = path.read_bytes()
    if kind == "deb":
        content = _deb_data(content, path)
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:*") as tar:
            files = dict(_tar_files(tar, path))
    except (tarfile.TarError, EOFError, lzma.LZMAError, OSError) as error:
        raise ArchiveError(f"{path} is not a readable archive: {error}") from error
    return dict(sorted(files.items()))


def member_name(name: str, path: Path) -> str:
    """A member's name without a leading `./`. Raises `ArchiveError` if it leads out of a folder."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
        raise ArchiveError(
            f"{path} has the unsafe member name {name!r}; the whole archive is refused"
        )
    return str(parts)


def _tar_files(tar: tarfile.TarFile, path: Path) -> Iterator[tuple[str, bytes]]:
    seen: set[str] = set()
    for member in tar:
        name = member_name(member.name, path)
        if not member.isfile():  # folders, symbolic and hard links, devices
            continue
        if name in seen:
            raise ArchiveError(f"{path} has {name} twice; the whole archive is refused")
        seen.add(name)
        file = tar.extractfile(member)
        assert file is not None, "a regular member has content"
        yield name, file.read()


def _deb_data(content: bytes, path: Path) -> bytes:
    """The decompressed data tar of a Debian package.

    A Debian package is an `ar` archive: an 8-byte magic number, then members with 60-byte headers
    at even offsets.
    """
    if not content.startswith(AR_MAGIC):
        raise ArchiveError(
            f"{path} is not a Debian package: it does not begin with the ar magic number"
        )
    offset = len(AR_MAGIC)
    while offset + AR_HEADER <= len(content):
        header = content[offset : offset + AR_HEADER]
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size_text = header[48:58].strip()
        if header[58:60] != b"`\n" or not size_text.isdigit():
            raise ArchiveError(f"{path} is damaged: no ar header at byte {offset}")
        size = int(size_text)
        start = offset + AR_HEADER
        if start + size > len(content):
            raise ArchiveError(f"{path} is cut short: {name} should have {size:,} bytes")
        if name.startswith("data.tar"):
            if name not in _DECOMPRESS:
                raise ArchiveError(f"{path} has {name}; only {', '.join(_DECOMPRESS)} can be read")
            try:
                return _DECOMPRESS[name](content[start : start + size])
            except (lzma.LZMAError, EOFError, OSError) as error:
                raise ArchiveError(
                    f"{path} is damaged: {name} does not decompress: {error}"
                ) from error
        offset = start + size + size % 2
    raise ArchiveError(f"{path} is not a Debian package: it has no data.tar part")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _by_hash(archive: Archive, folder: Path) -> Path | None:
    # The expected name first: hashing every file of a downloads folder would be slow.
    files = sorted(_files(folder), key=lambda path: _without_epoch(path.name) != archive.file_name)
    suffix = Path(archive.file_name).suffix
    return next(
        (path for path in files if path.suffix == suffix and sha256_file(path) == archive.sha256),
        None,
    )


def _without_epoch(file_name: str) -> str:
    """A Debian file name without the epoch: `name_7.4.7_all.deb` for `name_4%3a7.4.7_all.deb`."""
    package, separator, rest = file_name.partition("_")
    epoch, colon, version = rest.partition("%3a")
    return f"{package}{separator}{version}" if colon and epoch.isdigit() else file_name


def _client(name: str, archive: Archive) -> str:
    path = shutil.which(name)
    if path is None:
        raise ArchiveError(
            f"`{name}` is not installed, but is needed to fetch the {archive}. {_by_hand(archive)}"
        )
    return path


def _by_hand(archive: Archive) -> str:
    return (
        f"Get {archive.file_name} (SHA-256 {archive.sha256}) by hand, put it in a folder, and pass "
        "that folder with `--archives DIR`."
    )
