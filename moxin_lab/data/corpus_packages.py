"""The list of packages of the corpus of the small scale, and how one is fetched.

Guarantees: an archive is read only if its SHA-256 is the recorded one, or, with `allow_newer`, if
the Debian client itself has checked a newer version, whose version and hash are then in the build's
manifest; an archive that is there is not fetched again.
Out of scope: reading archives (`archive_stream.py`); registry addresses, which the user's clients
know.
"""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from moxin_lab.data import archives
from moxin_lab.data.archives import Archive, ArchiveError
from moxin_lab.data.corpus_rules import Package
from moxin_lab.lab.artifacts import sha256_file

PACKAGES_FILE = Path(__file__).with_name("corpus_packages.yml")
_OPTIONAL = ("exclude", "language", "locale", "code")


def read_packages(file: Path = PACKAGES_FILE) -> list[Package]:
    """The packages of a list. Raises ArchiveError, naming the entry, for one that is not whole."""
    entries = yaml.safe_load(file.read_text(encoding="utf-8"))["packages"]
    packages = [_package(entry, file) for entry in entries]
    names = [package.archive.package for package in packages]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ArchiveError(f"{file} lists {', '.join(twice)} twice")
    return packages


def read_replaced(file: Path = PACKAGES_FILE) -> list[dict[str, Any]]:
    """Packages that are not used: `package`, `by` (what stands for it) and `reason`."""
    return yaml.safe_load(file.read_text(encoding="utf-8")).get("replaced") or []


def _package(entry: dict[str, Any], file: Path) -> Package:
    try:
        epoch, colon, version = str(entry["version"]).partition(":")
        archive = Archive(
            entry["kind"],
            entry["package"],
            version if colon else epoch,
            entry["file"],
            entry["sha256"],
            entry["licence"],
            epoch=epoch if colon else "",
            architecture=entry.get("architecture", ""),
        )
        options = {name: entry[name] for name in _OPTIONAL if name in entry}
        options["exclude"] = tuple(options.get("exclude", ()))
        return Package(
            archive, entry["bytes"], entry["project"], tuple(entry["include"]), **options
        )
    except KeyError as error:
        name = entry.get("package", "an entry")
        raise ArchiveError(f"{file}: {name} has no field {error}") from error


def fetch_package(
    package: Package, folder: Path, allow_newer: bool = False
) -> tuple[Archive, Path]:
    """The archive that was fetched, and its file, in a folder of its own below `folder`.

    allow_newer: a Debian package whose recorded version is no longer served is taken in the version
    that is. npm and PyPI keep every version. Raises ArchiveError, with the remedy.
    """
    archive = package.archive
    own = folder / f"{archive.kind}-{archive.package}"
    try:
        return archive, archives.fetch(archive, own)
    except ArchiveError as error:
        if archive.kind != "deb":
            raise
        if not allow_newer:
            raise ArchiveError(
                f"{error}\nIf a newer version is served instead, `--allow-newer` takes it and "
                "records it in the built manifest; the corpus is then not the recorded one."
            ) from error
    return _fetch_newer(archive, own)


def _fetch_newer(archive: Archive, own: Path) -> tuple[Archive, Path]:
    newer = own / "newer"
    newer.mkdir(parents=True, exist_ok=True)
    if not (files := sorted(newer.glob("*.deb"))):
        command = ["apt-get", "download", archive.package]
        done = subprocess.run(command, cwd=newer, capture_output=True, text=True, timeout=1800)
        files = sorted(newer.glob("*.deb"))
        if done.returncode != 0 or not files:
            raise ArchiveError(
                f"no version of {archive.package} is served: `{' '.join(command)}` exited with "
                f"status {done.returncode}: {done.stderr.strip()[-500:]}. Name a replacement in "
                f"{PACKAGES_FILE.name}."
            )
    version = files[0].name.split("_")[1]
    epoch, colon, rest = version.replace("%3a", ":").partition(":")
    found = replace(
        archive,
        version=rest if colon else epoch,
        epoch=epoch if colon else "",
        file_name=files[0].name,
        sha256=sha256_file(files[0]),
    )
    return found, files[0]
