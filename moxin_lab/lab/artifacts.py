"""Files that stages leave: hashes, atomic writes, and where things lie under the repository root.

Layout, for a scale and a stage:

    runs/<scale>/<stage>/stage.json        the record; written last, so that it exists only for a finished stage
                         notebook.ipynb    the executed notebook
                         <artifact>        a file or folder a name, as the table in moxin_lab/stages.py lists them
                         .new/<artifact>   being written; becomes <artifact> when the stage finishes
                         .scratch/         resume points of long work; kept until the stage finishes

A folder's SHA-256 is that of its sorted list of (relative path, SHA-256) lines, so it does not
depend on times, owners or the order in which a file system lists names. Names that begin with a dot
and `__pycache__` inside it are working state (editors, Python's cache) and do not count.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


class LabError(RuntimeError):
    """Something a person can mend; the message says what is wrong, where, and what to do. Shown
    without a traceback.
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
        f"{here} is not inside a Moxin Lab repository (no folder with notebooks/, moxin_lab/ and data_cards/ at or above it); "
        "run from the clone or pass its path with --root"
    )


def stage_folder(root: Path, scale: str, stage: str) -> Path:
    return root / "runs" / scale / stage


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()


def describe(path: Path) -> dict[str, Any]:
    """SHA-256 and size in bytes of a file, or of a folder with each of its files that counts (see
    the module's text).

    Raises LabError if there is no such file or folder, or no file in it that counts.
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
        and not any(_is_working_state(part) for part in file.relative_to(path).parts)
    }
    if not files:
        raise LabError(f"{path} is an empty folder")
    listing = "".join(f"{name} {files[name]['sha256']}\n" for name in sorted(files))
    return {
        "sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "size": sum(file["size"] for file in files.values()),
        "files": files,
    }


def _is_working_state(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def write_atomically(path: Path, text: str) -> None:
    """Write so that a reader, or a kill at any moment, sees the old file or the new one and never a
    part.
    """
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


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=False) + "\n")


def read_record(root: Path, scale: str, stage: str) -> dict[str, Any] | None:
    """The record of a finished stage, None if it never finished. Raises LabError for a file that is
    not a record.
    """
    path = stage_folder(root, scale, stage) / "stage.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["outputs"], record["key"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise LabError(
            f"{path} is not a stage record ({error}); delete it and run the stage again"
        ) from error
    return record
