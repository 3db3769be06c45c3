"""The manifest: SHA-256 and size of every file that a report rests on, and the check that none of
them has changed.

    write_manifest(root, "tiny")     # last step of a run: reports/tiny/manifest.json
    verify(root, "tiny")             # missing, changed and surplus files; empty: nothing changed
    verify_folder(Path("report"))    # the same for a clone, its copy, or a report's folder alone,
                                     # and what `released.py` finds in it
    verify_file(Path("report/x"))    # one file

    python -m moxin_lab.openness.verify reports/released/h100    # writes the manifest of a release

The manifest binds the report's pages, the artifacts under `runs/<scale>/`, the data cards, the
notebooks, `papers/`, `release/`, the MOF entry and the lock file; that of a folder of
`reports/released` binds the files in it. Working state (`artifacts.is_working_state`) and folders
named `scratch` are not bound. The file is an in-toto Statement v1; `signing.py` signs its folder.

Guarantees: the same files give the same bytes; a run killed while writing leaves the old manifest
or the new one; no other tree is checked than the one given.
Out of scope: who made the files (`signing.py`), empty folders, times and permissions.
"""

import dataclasses
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from moxin_lab.lab.artifacts import (
    LabError,
    find_root,
    is_working_state,
    json_text,
    read_json,
    read_text,
    sha256_file,
    write_json,
)
from moxin_lab.openness import released
from moxin_lab.openness.released import Problem
from moxin_lab.untrusted import printable

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:moxin-lab:report-manifest:v1"
COVERED = (
    "data_cards",
    "notebooks",
    "papers",
    "release",
    "MOF.yml",
    "MOF.evidence.yml",
    "requirements.lock",
)
"""What a report rests on in the repository, beside its own pages and the runs of its scale."""

RELEASED = "released/"
"""Begins what the manifest of a folder of `reports/released` says in place of a scale."""
SKIPPED = "scratch"
"""Folder of a stage's resume points, which is working state too."""
MAX_MANIFEST_BYTES = 2**27
"""Largest manifest that is read: half a million files."""


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
    notes: tuple[str, ...] = ()
    """What could not be looked up."""

    def summary(self) -> str:
        """One sentence that names the tree."""
        found = f"{len(self.problems)} problem(s)" if self.problems else "as the manifest says"
        if not self.scale:
            return f"{self.folder}: {found}"
        if self.scale.startswith(RELEASED):
            return f"{self.folder}, report {self.scale}, {self.files} files: {found}"
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
    write_json(path, _statement(scale, files))
    return path


def write_released_manifest(folder: Path) -> Path:
    """Bind every file of a folder of `reports/released`. Raises LabError for another folder, an
    empty one, and a name that is no plain file.
    """
    folder = folder.resolve()
    if folder.parent.name + "/" != RELEASED or folder.parent.parent.name != "reports":
        raise LabError(f"{folder} is no folder of reports/released")
    path, report = folder / "manifest.json", RELEASED + folder.name
    files = [
        (f"reports/{report}/{file.relative_to(folder).as_posix()}", file)
        for file in _files(folder)
        if file != path
    ]
    if not files:
        raise LabError(f"{folder} holds no report")
    write_json(path, _statement(report, sorted(files)))
    return path


def _statement(scale: str, files: Sequence[tuple[str, Path]]) -> dict[str, Any]:
    if strange := [name for name, file in files if not _is_plain(file)]:
        raise LabError(
            f"{strange[0]} is a link or not a plain file; a manifest binds contents, so put the "
            "file itself there"
        )
    if unwritable := [name for name, _ in files if printable(name) != name]:
        raise LabError(
            f"{printable(unwritable[0])}: a file's name with a control character, or in another "
            "encoding than UTF-8, cannot be listed; rename it"
        )
    return _of_entries(
        scale, [(name, sha256_file(file), file.stat().st_size) for name, file in files]
    )


def _of_entries(scale: str, entries: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
    """The statement over names, hashes and sizes in bytes."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": sha256}, "annotations": {"size": size}}
            for name, sha256, size in entries
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "scale": scale,
            "files": len(entries),
            "bytes": sum(size for _, _, size in entries),
        },
    }


def verify(root: Path, scale: str) -> list[Problem]:
    """Recompute every hash of the manifest; sorted problems. Raises LabError if the manifest is
    missing or malformed.
    """
    return _compare(read_manifest(root, scale), dict(_covered(root, scale)))


def verify_folder(folder: Path, scale: str | None = None) -> Checked:
    """Check the tree that `folder` is or lies in, or the report's folder that it is.

    A folder with a manifest.json that is not in its place under a repository is a report alone, as
    are the folders of `reports/released`: its pages are checked, and how many files it rests on are
    not there. scale: which report of a
    repository (default tiny). Raises LabError if there is no manifest, or it is malformed or of
    another scale.
    """
    folder = folder.resolve()
    if scale is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", scale := Path(scale).stem):
        raise LabError(f"--scale {scale}: not the name of a scale")
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise LabError(f"{folder} {what}; give a clone, a report's folder or a file of one")
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
    present = dict(_covered(root, scale))
    checked = _checked(root, scale, recorded, present, root)
    return checked if folder != root else _with_released(checked)


def _with_released(checked: Checked) -> Checked:
    """A clone's own report and those of its reports/released."""
    folders = sorted((checked.folder / "reports" / "released").glob("*/manifest.json"))
    others = [_verify_report_alone(path.parent, None) for path in folders]
    return dataclasses.replace(
        checked,
        files=checked.files + sum(other.files for other in others),
        problems=(*checked.problems, *(p for other in others for p in other.problems)),
        notes=tuple(dict.fromkeys((*checked.notes, *(n for other in others for n in other.notes)))),
    )


def verify_file(file: Path) -> Checked:
    """Check one file: that a manifest of its report or clone binds it as it is. A manifest.json
    stands for its folder. Raises LabError where no manifest around it names it.
    """
    file = file.absolute()
    if file.name == "manifest.json":
        return verify_folder(file.parent)
    name, recorded = _bound_around(file)
    if name not in recorded:
        raise LabError(f"{file}: no manifest around it names it, so there is nothing to verify")
    problems = _compare({name: recorded[name]}, {name: file} if file.exists() else {})
    return Checked(file, "", 1, 0, tuple(problems))


def _bound_around(file: Path) -> tuple[str, dict[str, tuple[str, int]]]:
    """A file's name in the nearest manifests around it, and what they bind."""
    for folder in file.parents:
        if (folder / "manifest.json").is_file():
            written, recorded = _read(folder / "manifest.json", "copy the report again")
            return f"reports/{written}/{file.relative_to(folder).as_posix()}", recorded
        if manifests := sorted((folder / "reports").glob("*/manifest.json")):
            bound: dict[str, tuple[str, int]] = {}
            for path in manifests:
                bound |= _read(path, f"make it again: moxin-lab run --scale {path.parent.name}")[1]
            return file.relative_to(folder).as_posix(), bound
    return file.name, {}


def _checked(
    folder: Path,
    scale: str,
    recorded: dict[str, tuple[str, int]],
    present: dict[str, Path],
    root: Path | None,
    elsewhere: int = 0,
) -> Checked:
    """Bytes against the manifest, then what hashes alone do not show."""
    hashes = {name: sha256 for name, (sha256, _) in recorded.items()}
    plain = {name: file for name, file in present.items() if _is_plain(file)}
    faults, notes = released.problems(root, plain, hashes)
    problems = (*_compare(recorded, present), *faults)
    return Checked(folder, scale, len(recorded), elsewhere, problems, tuple(notes))


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
    root = next((r for r in folder.parents if r / "reports" / written == folder), None)
    if root is not None and not (root / "data_cards").is_dir():
        root = None  # a report that was copied has no clone around it
    elsewhere = len(recorded) - len(pages)
    return _checked(folder, written, pages, present, root, elsewhere)


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
    statement = read_json(path, remedy, max_bytes=MAX_MANIFEST_BYTES)
    try:
        if (statement["_type"], statement["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError(f"it is not a statement of type {PREDICATE_TYPE}")
        entries = [_read_subject(entry) for entry in statement["subject"]]
        recorded = {name: (sha256, size) for name, sha256, size in entries}
        count = statement["predicate"]["files"]
        if not recorded or not len(recorded) == len(entries) == count:
            raise ValueError("its list of files is empty, incomplete or names a file twice")
        if statement["predicate"]["bytes"] != sum(size for _, _, size in entries):
            raise ValueError("its sum of bytes is not that of its files")
        scale = statement["predicate"]["scale"]
        if not isinstance(scale, str) or not re.fullmatch(rf"({RELEASED})?[\w-]+", scale):
            raise ValueError("it names no scale")
        if json_text(_of_entries(scale, entries)) != read_text(path):
            raise ValueError("it is not written as the lab writes it, so a part of it was changed")
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
            {name for name in subfolders if not is_working_state(name)} - {SKIPPED, *links}
        )
        for name in sorted([*names, *links]):
            if not is_working_state(name):
                yield Path(folder) / name


def _is_plain(file: Path) -> bool:
    return stat.S_ISREG(file.lstat().st_mode)


if __name__ == "__main__":
    for given in sys.argv[1:]:
        print(write_released_manifest(Path(given)))
