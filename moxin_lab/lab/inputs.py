"""An earlier stage's artifact as an input: what its stage recorded, and whether it is still that.

    checked(root, "tiny", "02_tokenizer", "documents")         # when the stage is opened
    refuse_if_changed(root, "tiny", "02_tokenizer", "documents", sha256)   # when it finishes

Guarantees: a result is kept only if its inputs were the same bytes before and after.
Out of scope: which artifacts a stage may take (`stages.py`).
"""

from pathlib import Path
from typing import Any

from moxin_lab.lab.artifacts import LabError, describe, read_record, stage_folder
from moxin_lab.stages import producer


def checked(root: Path, scale: str, stage: str, artifact: str) -> dict[str, Any]:
    """Producer, SHA-256 and size of an artifact. Raises LabError if it was not made, is gone, or is
    not what its stage recorded.
    """
    maker = producer(artifact)
    command = f"moxin-lab run --scale {scale} --only {maker.name[:2]}"
    record = read_record(root, scale, maker.name)
    if record is None or artifact not in record["outputs"]:
        raise LabError(
            f"{stage} needs {artifact!r} of stage {maker.name}, which has not run at this "
            f"scale; make it with: {command}"
        )
    path = stage_folder(root, scale, maker.name) / artifact
    recorded = record["outputs"][artifact]["sha256"]
    if not path.exists():
        raise LabError(
            f"{path} is gone although {maker.name} recorded it; "
            f"make it again with: {command} --force"
        )
    actual = describe(path)
    if actual["sha256"] != recorded:
        raise LabError(
            f"{path} has changed since {maker.name} wrote it (SHA-256 {actual['sha256'][:12]}, "
            f"recorded {recorded[:12]}); make it again with: {command} --force"
        )
    return {"stage": maker.name, "sha256": recorded, "size": actual["size"]}


def refuse_if_changed(root: Path, scale: str, stage: str, artifact: str, sha256: str) -> None:
    """Raises LabError if an artifact is no longer what `checked` found."""
    maker = producer(artifact).name
    path = stage_folder(root, scale, maker) / artifact
    try:
        same = describe(path)["sha256"] == sha256
    except (LabError, OSError):  # nothing there, or an empty folder
        same = False
    if not same:
        done = "changed" if path.exists() else "deleted"
        raise LabError(
            f"{stage}: its input {path} was {done} while it ran, by a cell of "
            f"notebooks/{stage}.ipynb or by another program, so its result is not kept; correct "
            f"that, then make the input again with: moxin-lab run --scale {scale} --only "
            f"{maker[:2]} --force"
        )
