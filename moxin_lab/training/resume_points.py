"""Resume points as files: written whole or not at all, two of them, each with its hash and with
what it belongs to.

    resume-00000120.ckpt     the state of the training
    resume-00000120.json     step, bytes, SHA-256, phase, and the identity of the training

    write(folder, 120, save, identity)       save(path) writes the state
    newest(folder, identity)                 the point to continue from, or None

Guarantees: a process that is killed at any moment leaves the earlier points as they were, because a
point is staged beside its target, synced and renamed, and its record comes last; a damaged point is
named and the one before it is used; a point of another training is refused with what differs.
Out of scope: what is in the state (resume.py); removing the folder of a finished training.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moxin_lab import untrusted
from moxin_lab.lab.artifacts import sha256_file
from moxin_lab.training.identity import Scalar, changes

KEPT = 2
NAME = re.compile(r"resume-(\d{8,})\.ckpt")


class ResumeError(ValueError):
    """Resume points that this training cannot continue from; the message names the file."""


@dataclass(frozen=True)
class Point:
    """A resume point with its record, which may be damaged."""

    file: Path
    step: int

    @property
    def record_file(self) -> Path:
        return self.file.with_suffix(".json")


def points(folder: Path) -> list[Point]:
    """Resume points of a folder, the newest first."""
    found = [(NAME.fullmatch(path.name), path) for path in folder.glob("*.ckpt")]
    return sorted(
        (Point(path, int(match[1])) for match, path in found if match),
        key=lambda point: -point.step,
    )


def write(
    folder: Path,
    step: int,
    save: Callable[[Path], object],
    identity: Mapping[str, Scalar],
    *,
    phase: str = "",
    first: bool = True,
    together: Callable[[], object] = lambda: None,
) -> Path:
    """Write the state after `step` steps and remove all but the two newest points.

    save: writes the state to the path that it gets, as a file or a folder; every rank calls it.
    first: whether this rank names the files. together: waits for the other ranks.
    """
    target = folder / f"resume-{step:08d}.ckpt"
    staged = target.with_suffix(".part")
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        for left in (*folder.glob("*.part"), *(p.file for p in points(folder) if p.step > step)):
            _remove(left)
    together()
    save(staged)
    together()
    if first:
        record = {
            "step": step,
            "phase": phase,
            "bytes": size_of(staged),
            "sha256": sha256_of(staged),
            "identity": dict(identity),
        }
        record["record_sha256"] = _record_sha256(record)
        _sync(*_files(staged), *([staged] if staged.is_dir() else []))
        if target.is_dir():
            _remove(target)
        staged.replace(target)
        record_staged = target.with_suffix(".json.part")
        record_staged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        _sync(record_staged)
        record_staged.replace(target.with_suffix(".json"))
        _sync(folder)
        for point in points(folder)[KEPT:]:
            _remove(point.record_file)
            _remove(point.file)
    together()
    return target


def newest(folder: Path, identity: Mapping[str, Scalar]) -> Path | None:
    """The newest whole point of a folder, None if there is none at all.

    Warns about damaged points with their path. Raises ResumeError if all are damaged, and if the
    newest whole one belongs to another training.
    """
    damaged = []
    for point in points(folder):
        record = _record(point)
        if isinstance(record, str):
            damaged.append(f"{point.file} is damaged: {record}")
            continue
        for message in damaged:
            warnings.warn(f"{message}. {point.file} is used, the one before it", stacklevel=2)
        different = changes(record["identity"], identity)
        said = [f"{name} {values}" for name, values in different.items()]
        more = f" and {len(said) - 6} more" if len(said) > 6 else ""
        if different:
            raise ResumeError(
                f"{point.file} belongs to another training: {'; '.join(said[:6])}{more}. Give this "
                f"training those settings and data, or move {folder} away to start anew"
            )
        return point.file
    if damaged:
        raise ResumeError(
            f"{'; '.join(damaged)}. There is no other point: delete {folder} to start anew"
        )
    return None


def _record(point: Point) -> dict[str, Any] | str:
    """The record of a point that is as it was written, or what is wrong with the point."""
    try:
        return _checked_record(point)
    except OSError as error:
        return f"{Path(error.filename or point.file).name} cannot be read ({error.strerror})"


def _checked_record(point: Point) -> dict[str, Any] | str:
    name = point.record_file.name
    if not point.record_file.is_file():
        return f"{name} is missing"
    try:
        content = untrusted.read_bytes(point.record_file, untrusted.MAX_JSON_BYTES)
        record = untrusted.load_json(content)
    except untrusted.UntrustedError as error:
        return f"{name} is no record ({error})"
    if not isinstance(record, dict):
        return f"{name} is no record (it is not an object)"
    kinds = {"step": int, "bytes": int, "sha256": str, "record_sha256": str, "identity": dict}
    for key, kind in kinds.items():
        if type(record.get(key)) is not kind:
            return f"{name} is no record ({key} is missing or no {kind.__name__})"
    if _record_sha256(record) != record["record_sha256"]:
        return f"{name} is not as it was written (record_sha256 is another)"
    if record["step"] != point.step:
        return f"{name} is of step {record['step']}"
    if size_of(point.file) != record["bytes"]:
        return f"it has {size_of(point.file):,} bytes instead of {record['bytes']:,}"
    if sha256_of(point.file) != record["sha256"]:
        return f"its SHA-256 is not that of {name}"
    return record


def _record_sha256(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record without its own hash, whatever the order of its keys."""
    values = {key: value for key, value in record.items() if key != "record_sha256"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_room(folder: Path, num_bytes: int) -> None:
    """Raises OSError, before any work, if `folder` cannot be written or its disk lacks `num_bytes`
    (what the next write replaces or removes counts as room: points, and parts of a killed write).
    """
    check_writable(folder)
    replaced = (*(point.file for point in points(folder)), *folder.glob("*.part"))
    there = sum(size_of(path) for path in replaced if path.exists())  # not a dangling link
    free = shutil.disk_usage(folder).free + there
    if free < num_bytes:
        raise OSError(
            errno.ENOSPC,
            f"the disk of {folder} has {free / 1e9:.2f} GB free and the training needs "
            f"{num_bytes / 1e9:.2f} GB for its resume points: make room or choose another folder",
        )


def check_writable(folder: Path) -> None:
    """Create `folder` and write a file into it. Raises OSError that names the folder."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        _sync(probe)
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno, f"{folder} cannot be written ({error.strerror}): choose another folder"
        ) from error


def _files(path: Path) -> list[Path]:
    """The file, or the files of a folder."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def size_of(path: Path) -> int:
    """Bytes of a file, or of a folder's files."""
    return sum(file.stat().st_size for file in _files(path))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file; of a folder that of its files' names and hashes."""
    if path.is_dir():
        lines = [f"{sha256_of(file)}  {file.relative_to(path)}\n" for file in _files(path)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    return sha256_file(path)


def _sync(*paths: Path) -> None:
    """Wait until files, and the names in folders, are on the disk."""
    for one in paths:
        handle = os.open(one, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
