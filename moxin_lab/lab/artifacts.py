"""Files that stages leave: where they lie, hashes, atomic writes, and reading them back.

Layout of `runs/<scale>/<stage>/`:

    stage.json        the record; written last, so it exists only for a finished stage
    notebook.ipynb    the executed notebook
    <artifact>        one file or folder per name that moxin_lab/stages.py lists
    .new/<artifact>   being written; becomes <artifact> when the stage finishes
    .scratch/         resume points of long work; kept until the stage finishes

A folder's SHA-256 is that of its sorted list of (relative path, SHA-256) lines, so it does not
depend on times, owners or the order in which a file system lists names. What editors, file managers
and Python's cache leave is working state and does not count; `is_working_state` has the rule.

Guarantees: a reader never sees half a file; whatever a JSON or YAML file holds, reading it gives a
value or a LabError that names the file.
Out of scope: what a record means (`stage.py` writes it, `keys.py` and `claims.py` read it).
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moxin_lab import untrusted

MAX_NOTEBOOK_BYTES = 2**28
"""Largest notebook that is read, with its outputs."""
LEFT_BY_PROGRAMS = ("__pycache__", "Thumbs.db", "ehthumbs.db", "desktop.ini")
"""Names of working state that no pattern covers."""


class LabError(RuntimeError):
    """Something that a person can put right; the message says what is wrong, where, and what to
    do. It is shown without a traceback.
    """


def find_root(start: str | Path = ".") -> Path:
    """The repository root at or above `start`. Raises LabError when there is none."""
    here = Path(start).resolve()
    for folder in (here, *here.parents):
        if (
            (folder / "notebooks").is_dir()
            and (folder / "moxin_lab").is_dir()
            and (folder / "data_cards").is_dir()
        ):
            return folder
    raise LabError(
        f"{here} is not inside a Moxin Lab repository (no folder with notebooks/, moxin_lab/ and "
        "data_cards/ at or above it); run from the clone or pass its path with --root"
    )


def stage_folder(root: Path, scale: str, stage: str) -> Path:
    return root / "runs" / scale / stage


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()


def describe(path: Path) -> dict[str, Any]:
    """SHA-256 and size in bytes of a file, or of a folder and of each file in it but for working
    state.

    Raises LabError if there is no such file or folder, or the folder has no file but working state.
    """
    if path.is_file():
        return {"sha256": sha256_file(path), "size": path.stat().st_size}
    if not path.is_dir():
        raise LabError(f"{path} does not exist")
    files = {
        file.relative_to(path).as_posix(): {
            "sha256": sha256_file(file),
            "size": file.stat().st_size,
        }
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and not any(is_working_state(part) for part in file.relative_to(path).parts)
    }
    if not files:
        raise LabError(f"{path} is an empty folder")
    listing = "".join(f"{name} {files[name]['sha256']}\n" for name in sorted(files))
    return {
        "sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "size": sum(file["size"] for file in files.values()),
        "files": files,
    }


def is_working_state(name: str) -> bool:
    """Whether a file or folder of this name is left by an editor (`x~`, `#x#`, `x.swp`), a file
    manager (`Thumbs.db`, `desktop.ini`), Python (`__pycache__`), or hidden (`.x`). Such names count
    nowhere: not in an artifact's hash, not in a manifest, not in the key of a stage.
    """
    return (
        name.startswith(".")
        or name.endswith(("~", ".swp"))
        or name in LEFT_BY_PROGRAMS
        or (len(name) > 1 and name.startswith("#") and name.endswith("#"))
    )


def write_atomically(path: Path, text: str) -> None:
    """Write so that a reader, and a kill at any moment, finds the old file or the new one, never a
    part of one. A link stays one: the file that it leads to is replaced. Raises LabError for what
    is no file, such as /dev/null, which would be replaced by one.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise LabError(f"{path} is no file: a result is put in its place at once; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def json_text(value: Any) -> str:
    """A value as the lab writes JSON: the same value gives the same text."""
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json_text(value))


def read_text(path: Path) -> str:
    """A file's text, UTF-8. Raises LabError if it cannot be read."""
    return _parse(lambda: path.read_text(encoding="utf-8"), path, "text", "")


def read_json(path: Path, remedy: str = "", *, max_bytes: int = untrusted.MAX_JSON_BYTES) -> Any:
    """The value in a JSON file.

    Raises LabError, which ends with `remedy`, for a file that cannot be read, is larger than
    `max_bytes`, is not JSON or is beyond the limits of `untrusted.load_json`.
    """

    def parse() -> Any:
        return untrusted.load_json(untrusted.read_bytes(path, max_bytes), max_bytes=max_bytes)

    return _parse(parse, path, "JSON", remedy)


def read_yaml(path: Path, remedy: str = "") -> Any:
    """The value in a YAML file. Raises LabError, as `read_json` does, by `untrusted.load_yaml`."""

    def parse() -> Any:
        return untrusted.load_yaml(untrusted.read_bytes(path, untrusted.MAX_YAML_BYTES))

    return _parse(parse, path, "YAML", remedy)


def parse_yaml(text: str, where: Path) -> Any:
    """The value of YAML text from the file `where`. Raises LabError as `read_yaml` does."""
    return _parse(lambda: untrusted.load_yaml(text), where, "YAML", "")


def _parse(parse: Callable[[], Any], where: Path, kind: str, remedy: str) -> Any:
    try:
        return parse()
    except (OSError, ValueError) as error:
        reason = str(error)
    raise LabError(f"{where} cannot be read as {kind}: {reason}" + (remedy and f"; {remedy}"))


def read_record(root: Path, scale: str, stage: str) -> dict[str, Any] | None:
    """The record of a finished stage, None if it never finished. Raises LabError for a file that is
    not a record.
    """
    remedy = f"delete it and run the stage again: moxin-lab run --scale {scale} --only {stage[:2]}"
    return read_record_of(stage_folder(root, scale, stage), remedy)


def read_record_of(folder: Path, remedy: str = "copy it again") -> dict[str, Any] | None:
    """As `read_record`, of the stage whose folder is given, in any tree."""
    path = folder / "stage.json"
    if not path.exists():
        return None
    record = read_json(path, remedy)
    if (problem := _record_problem(record)) is not None:
        raise LabError(f"{path} is not a stage record: {problem}; {remedy}")
    return record


def _record_problem(record: Any) -> str | None:
    """What in the fields that the lab reads is not as `Stage.finish` and the runner write it."""
    if not isinstance(record, dict):
        return "it is not an object"
    for name in ("outputs", "key"):
        if name not in record:
            return f"it has no {name!r}"
    expected: dict[str, tuple[type, ...]] = {
        "stage": (str,),
        "scale": (str,),
        "key": (str, type(None)),
        "key_parts": (dict, type(None)),
        "inputs": (dict,),
        "outputs": (dict,),
        "measures": (list,),
        "claims": (list,),
        "environment": (dict,),
        "seconds": (int, float),
        "peak_memory_bytes": (int, float),
    }
    for name, types in expected.items():
        if name in record and not isinstance(record[name], types):
            return f"{name!r} is of the wrong type"
    for name, output in record["outputs"].items():
        if not isinstance(output, dict) or not isinstance(output.get("sha256"), str):
            return f"output {name!r} has no SHA-256"
    return None
