"""The manifest: SHA-256 and size of every file that a report rests on, and the check that none of
them has changed.

    write_manifest(root, "tiny")     # last step of a run: reports/tiny/manifest.json
    verify(root, "tiny")             # missing, changed and surplus files; empty: nothing changed
    verify_folder(Path("report"))    # the same for a clone, its copy, or a report's folder alone

The manifest binds the report's pages, the artifacts under `runs/<scale>/`, the data cards, the
notebooks, `papers/`, the MOF entry and the lock file. Names that begin with a dot, `scratch` and
`__pycache__` are working state and are not bound. The file is an unsigned in-toto Statement v1, so
that a signer such as model-signing can wrap it.

Guarantees: the same files give the same bytes; a run killed while writing leaves the old manifest
or the new one; no other tree is checked than the one given.
Out of scope: who made the files (the manifest is unsigned), empty folders, times and permissions.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from moxin_lab.lab.artifacts import LabError, find_root, read_json, sha256_file, write_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:moxin-lab:report-manifest:v1"
COVERED = ("data_cards", "notebooks", "papers", "MOF.yml", "MOF.evidence.yml", "requirements.lock")
"""What a report rests on in the repository, beside its own pages and the runs of its scale."""

SKIPPED = ("scratch", "__pycache__")
"""Folders of working state, beside all names that begin with a dot."""


@dataclass(frozen=True, order=True)
class Problem:
    """One file that is not as the manifest says.

    kind: `missing`, `changed`, `surplus` or `not a plain file`.
    """

    path: str
    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.path}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Checked:
    """What `verify_folder` checked, and what differs."""

    folder: Path
    """The repository, or the report's folder alone."""
    scale: str
    files: int
    """Bound files that were looked for."""
    elsewhere: int
    """Bound files outside a report's folder that was given alone; not looked for."""
    problems: tuple[Problem, ...]

    def summary(self) -> str:
        """One sentence that names the tree."""
        found = f"{len(self.problems)} problem(s)" if self.problems else "as the manifest says"
        if not self.elsewhere:
            return f"{self.folder}, {self.scale} scale, {self.files} files: {found}"
        return (
            f"{self.folder}, the report at {self.scale} scale alone, {self.files} files: {found}; "
            f"not here and not checked: {self.elsewhere} files that it rests on (runs, data cards, "
            "notebooks, papers)"
        )


def manifest_path(root: Path, scale: str) -> Path:
    return root / "reports" / scale / "manifest.json"


def write_manifest(root: Path, scale: str) -> Path:
    """Bind every covered file of a scale. Raises LabError if there is no report or a covered name
    is no plain file.
    """
    path = manifest_path(root, scale)
    files = sorted(_covered(root, scale))
    if not any(name.startswith(f"reports/{scale}/") for name, _ in files):
        raise LabError(
            f"{path.parent} holds no report; make one with: moxin-lab run --scale {scale}"
        )
    if strange := [name for name, file in files if not _is_plain(file)]:
        raise LabError(
            f"{strange[0]} is a link or not a plain file; a manifest binds contents, so put the "
            "file itself there"
        )
    sizes = [file.stat().st_size for _, file in files]
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": sha256_file(file)}, "annotations": {"size": size}}
            for (name, file), size in zip(files, sizes, strict=True)
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"scale": scale, "files": len(files), "bytes": sum(sizes)},
    }
    write_json(path, statement)
    return path


def verify(root: Path, scale: str) -> list[Problem]:
    """Recompute every hash of the manifest; sorted problems. Raises LabError if the manifest is
    missing or malformed.
    """
    return _compare(read_manifest(root, scale), dict(_covered(root, scale)))


def verify_folder(folder: Path, scale: str | None = None) -> Checked:
    """Check the tree that `folder` is or lies in, or the report's folder that it is.

    A folder with a manifest.json that is not in its place under a repository is a report alone: its
    pages are checked, and how many files it rests on are not there. scale: which report of a
    repository (default tiny). Raises LabError if there is no manifest, or it is malformed or of
    another scale.
    """
    folder = folder.resolve()
    if scale is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", scale := Path(scale).stem):
        raise LabError(f"--scale {scale}: not the name of a scale")
    if not folder.is_dir():
        raise LabError(f"{folder} is not a folder; give a clone or a report's folder")
    if (folder / "manifest.json").is_file():
        root = folder.parent.parent
        if manifest_path(root, folder.name) != folder / "manifest.json":
            return _verify_report_alone(folder, scale)
        if scale not in (None, folder.name):
            raise LabError(f"{folder} is the report at {folder.name} scale, not {scale}")
        scale = folder.name
        if not (root / "notebooks").is_dir():
            return _verify_report_alone(folder, scale)
    elif any((folder / "reports").glob("*/manifest.json")):
        root = folder
    else:
        root = _repository_around(folder)
    scale = scale or "tiny"
    recorded = read_manifest(root, scale)
    problems = _compare(recorded, dict(_covered(root, scale)))
    return Checked(root, scale, len(recorded), 0, tuple(problems))


def _repository_around(folder: Path) -> Path:
    """The repository around a folder without a manifest. Raises LabError if there is none, and for
    a folder below its reports/, which must have its own manifest.
    """
    try:
        root = find_root(folder)
    except LabError:
        raise LabError(
            f"{folder} has neither manifest.json nor reports/<scale>/manifest.json and is not "
            "inside a repository, so there is nothing to verify"
        ) from None
    if (root / "reports") in folder.parents:
        raise LabError(f"{folder} has no manifest.json, so there is nothing to verify")
    return root


def _verify_report_alone(folder: Path, scale: str | None) -> Checked:
    written, recorded = _read(folder / "manifest.json", "copy the report again")
    if scale not in (None, written):
        raise LabError(f"{folder} is the report at {written} scale, not {scale}")
    start = f"reports/{written}/"
    pages = {name: facts for name, facts in recorded.items() if name.startswith(start)}
    present = {
        start + file.relative_to(folder).as_posix(): file
        for file in _files(folder)
        if file != folder / "manifest.json"
    }
    problems = _compare(pages, present)
    return Checked(folder, written, len(pages), len(recorded) - len(pages), tuple(problems))


def _compare(recorded: dict[str, tuple[str, int]], present: dict[str, Path]) -> list[Problem]:
    problems = [Problem(name, "missing") for name in recorded.keys() - present.keys()]
    for name, file in present.items():
        if not _is_plain(file):
            problems.append(Problem(name, "not a plain file", "a link or a special file"))
        elif name not in recorded:
            problems.append(Problem(name, "surplus", "not in the manifest"))
        else:
            sha256, size = recorded[name]
            if (bytes_now := file.stat().st_size) != size:
                problems.append(Problem(name, "changed", f"{bytes_now} bytes, recorded {size}"))
            elif (digest := sha256_file(file)) != sha256:
                problems.append(
                    Problem(name, "changed", f"SHA-256 {digest[:12]}, recorded {sha256[:12]}")
                )
    return sorted(problems)


def read_manifest(root: Path, scale: str) -> dict[str, tuple[str, int]]:
    """Name -> (SHA-256, size in bytes). Raises LabError saying what is wrong with the manifest and
    how to make it again.
    """
    path = manifest_path(root, scale)
    remedy = f"make it again with: moxin-lab run --scale {scale}"
    if not path.exists():
        raise LabError(f"{path} does not exist, so there is nothing to verify against; {remedy}")
    written, recorded = _read(path, remedy)
    if written != scale:
        raise LabError(f"{path} is not a manifest: it belongs to scale {written!r}; {remedy}")
    return recorded


def _read(path: Path, remedy: str) -> tuple[str, dict[str, tuple[str, int]]]:
    """The scale and the files of a manifest. Raises LabError, ending in `remedy`."""
    statement = read_json(path, remedy)
    try:
        if (statement["_type"], statement["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError(f"it is not a statement of type {PREDICATE_TYPE}")
        entries = [_read_subject(entry) for entry in statement["subject"]]
        recorded = {name: (sha256, size) for name, sha256, size in entries}
        count = statement["predicate"]["files"]
        if not recorded or not len(recorded) == len(entries) == count:
            raise ValueError("its list of files is empty, incomplete or names a file twice")
        scale = statement["predicate"]["scale"]
        if not isinstance(scale, str) or not re.fullmatch(r"[\w-]+", scale):
            raise ValueError("it names no scale")
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]!r} is absent" if isinstance(error, KeyError) else str(error)
        raise LabError(f"{path} is not a manifest: {reason}; {remedy}") from error
    return scale, recorded


def _read_subject(entry: dict[str, Any]) -> tuple[str, str, int]:
    name, sha256, size = entry["name"], entry["digest"]["sha256"], entry["annotations"]["size"]
    name.encode()  # a lone surrogate is no name, and could not be printed
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise ValueError(f"{name!r} lies outside the repository")
    if (
        not re.fullmatch(r"[0-9a-f]{64}", sha256)
        or isinstance(size, bool)
        or not isinstance(size, int)
        or size < 0
    ):
        raise ValueError(f"the hash or size of {name!r} is not one")
    return name, sha256, size


def _covered(root: Path, scale: str) -> Iterator[tuple[str, Path]]:
    """(name relative to the root, path) of every file and link that the manifest has to list."""
    manifest = manifest_path(root, scale)
    for start in (f"reports/{scale}", f"runs/{scale}", *COVERED):
        for file in _files(root / start):
            if file != manifest:
                yield file.relative_to(root).as_posix(), file


def _files(start: Path) -> Iterator[Path]:
    if start.is_symlink() or start.is_file():
        yield start
        return
    for folder, subfolders, names in os.walk(start):
        links = [name for name in subfolders if (Path(folder) / name).is_symlink()]
        subfolders[:] = sorted(
            {name for name in subfolders if not name.startswith(".")} - {*SKIPPED, *links}
        )
        for name in sorted([*names, *links]):
            if not name.startswith("."):
                yield Path(folder) / name


def _is_plain(file: Path) -> bool:
    return stat.S_ISREG(file.lstat().st_mode)
