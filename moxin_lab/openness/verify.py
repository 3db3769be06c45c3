"""The manifest: SHA-256 and size of every file that a report rests on, and the check that nothing
of it changed.

    write_manifest(root, "tiny")     # last step of a run: reports/tiny/manifest.json
    problems = verify(root, "tiny")  # missing, changed and surplus files; an empty list means that all is as it was

Bound together: the report's pages, what the stages left under `runs/<scale>/`, the data cards, the
notebooks, `papers/`, the MOF entry and the lock file. Names that begin with a dot, `scratch` and
`__pycache__` are working state and stay out. The file is an unsigned in-toto Statement v1, so that
a signer such as model-signing can wrap it.

Guarantees: the same files give the same bytes; a run killed while writing leaves the old manifest
or the new one.
Does not: prove who made the files (it is unsigned), or bind empty folders, times and permissions.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from moxin_lab.lab.artifacts import LabError, sha256_file, write_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:moxin-lab:report-manifest:v1"
COVERED = ("data_cards", "notebooks", "papers", "MOF.yml", "MOF.evidence.yml", "requirements.lock")
"""Files and folders of the repository that a report rests on, beside its own pages and the runs of
its scale.
"""

SKIPPED = ("scratch", "__pycache__")
"""Folders of working state, beside all names that begin with a dot."""


@dataclass(frozen=True, order=True)
class Problem:
    """One file that is not as the manifest says: kind is `missing`, `changed`, `surplus` or `not a
    plain file`.
    """

    path: str
    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.path}" + (f" ({self.detail})" if self.detail else "")


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
            f"{strange[0]} is a link or no plain file; a manifest binds contents, so put the file itself there"
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
    recorded = read_manifest(root, scale)
    present = dict(_covered(root, scale))
    problems = [Problem(name, "missing") for name in recorded.keys() - present.keys()]
    for name, file in present.items():
        if not _is_plain(file):
            problems.append(Problem(name, "not a plain file", "a link or a special file"))
        elif name not in recorded:
            problems.append(Problem(name, "surplus", "not in the manifest"))
        else:
            sha256, size = recorded[name]
            if (found := file.stat().st_size) != size:
                problems.append(Problem(name, "changed", f"{found} bytes, recorded {size}"))
            elif (digest := sha256_file(file)) != sha256:
                problems.append(
                    Problem(name, "changed", f"SHA-256 {digest[:12]}, recorded {sha256[:12]}")
                )
    return sorted(problems)


def read_manifest(root: Path, scale: str) -> dict[str, tuple[str, int]]:
    """Name -> (SHA-256, size in bytes). Raises LabError saying what is wrong with the manifest and
    how to make it anew.
    """
    path = manifest_path(root, scale)
    remedy = f"make it again with: moxin-lab run --scale {scale}"
    try:
        statement = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LabError(
            f"{path} does not exist, so there is nothing to verify against; {remedy}"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LabError(f"{path} cannot be read as JSON ({error}); {remedy}") from error
    try:
        if (statement["_type"], statement["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError(f"it is not a statement of type {PREDICATE_TYPE}")
        if statement["predicate"]["scale"] != scale:
            raise ValueError(f"it belongs to scale {statement['predicate']['scale']!r}")
        entries = [_read_subject(entry) for entry in statement["subject"]]
        recorded = {name: (sha256, size) for name, sha256, size in entries}
        if (
            not recorded
            or len(recorded) != len(entries)
            or len(entries) != statement["predicate"]["files"]
        ):
            raise ValueError("its list of files is empty, incomplete or names a file twice")
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]!r} is absent" if isinstance(error, KeyError) else str(error)
        raise LabError(f"{path} is not a manifest: {reason}; {remedy}") from error
    return recorded


def _read_subject(entry: dict[str, Any]) -> tuple[str, str, int]:
    name, sha256, size = entry["name"], entry["digest"]["sha256"], entry["annotations"]["size"]
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
    """(name relative to the root, path) of every file and link that the manifest of this scale has
    to account for.
    """
    own = manifest_path(root, scale)
    for start in (f"reports/{scale}", f"runs/{scale}", *COVERED):
        for file in _files(root / start):
            if file != own:
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
