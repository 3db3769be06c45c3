"""A folder to run in, for a checkout that cannot be written: `moxin-lab --root EMPTY-FOLDER run`.

    fill(folder, checkout)      # an empty folder becomes a root: copies, and a link to the package

Guarantees: only a folder that exists and is empty is filled, so a mistyped path makes nothing; the
checkout is only read; runs and reports are written in the folder alone; the commit that records
name is the checkout's.
Out of scope: keeping the copy up to date: for newer notebooks take another empty folder.
"""

import shutil
from pathlib import Path

from moxin_lab.lab.artifacts import LabError

LINKED = "moxin_lab"
"""The package that runs is the package that the copy has."""
COPIED = (
    "notebooks",
    "papers",
    "data_cards",
    "release",
    "reports/released",
    "MOF.yml",
    "MOF.evidence.yml",
    "CITATION.cff",
    "LICENSE",
    "README.md",
    "requirements.lock",
)
"""What a run reads besides, as far as the checkout has it."""


def is_empty(folder: Path) -> bool:
    """Whether there is such a folder with nothing in it."""
    return folder.is_dir() and next(folder.iterdir(), None) is None


def fill(folder: Path, checkout: Path) -> None:
    """Make an empty folder a root beside a checkout. Raises LabError if it cannot be written."""
    try:
        for name in COPIED:
            source, copy = checkout / name, folder / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, copy, copy_function=shutil.copyfile)
                for path in (copy, *copy.rglob("*")):
                    if path.is_dir():  # made with the permissions of a folder that is read only
                        path.chmod(0o755)
            elif source.is_file():
                shutil.copyfile(source, copy)
        (folder / LINKED).symlink_to((checkout / LINKED).resolve())
    except OSError as error:
        raise LabError(
            f"{folder} cannot be filled with a copy of {checkout}: {error.strerror or error}"
        ) from error
