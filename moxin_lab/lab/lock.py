"""One run at a time in a scale's folder.

    acquire_lock(root, "tiny", "moxin-lab run")
    ...
    release_lock(root, "tiny")

A kernel that a run has started outlives a killed run, by about a second if it is idle. It holds a
second lock (`hold_as_kernel`), for whose end the next run waits.

Guarantees: the locks end with their process, however that ends; who is refused learns who holds it
and how to end that; a run never works beside the kernel of an earlier one.
Out of scope: locks between machines.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Any

import psutil

from moxin_lab.lab.artifacts import LabError

BY_RUNNER = "moxin-lab run"
KERNEL_SECONDS = 60.0
"""How long a run waits for a kernel of an earlier run to end; our choice."""
_held_locks: dict[Path, Any] = {}


def acquire_lock(root: Path, scale: str, holder: str) -> bool:
    """Hold `runs/<scale>/.lock` until `release_lock` or the end of this process; False if this
    process held it already.

    holder: `BY_RUNNER`, or the name of the notebook that is run by hand. Raises LabError if another
    process holds the lock.
    """
    path = root / "runs" / scale / ".lock"
    if path in _held_locks:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise LabError(
            f"cannot write under {path.parent}: {error.strerror}; "
            "results go there, so make it writable"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        process, _, other = file.read().strip().partition(" ")
        file.close()
        raise LabError(_refusal(path.parent, process or "unknown", other)) from None
    _sign(file, holder)
    try:
        _hold(path.with_name(".kernel"), KERNEL_SECONDS).close()
    except BaseException:
        file.close()
        raise
    _held_locks[path] = file
    return True


def hold_as_kernel(root: Path, scale: str, stage: str) -> None:
    """Hold `runs/<scale>/.kernel` until this process ends, or for its next stage. Raises LabError
    if another kernel does not let go of it.
    """
    path = root / "runs" / scale / ".kernel"
    if path not in _held_locks:
        _held_locks[path] = _hold(path, KERNEL_SECONDS)
    _sign(_held_locks[path], stage)


def refuse_without_runner(stage: str, process: int) -> None:
    """Raises LabError if the run that started this kernel has ended: results must not be replaced
    behind the next run.
    """
    try:
        gone = psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        gone = True
    if gone:
        raise LabError(
            f"{stage}: the run that started this kernel (process {process}) has ended; run again: "
            "it resumes at this stage"
        )


def _hold(path: Path, seconds: float) -> Any:
    """The file, locked, once nobody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
        file.seek(0)
        process, _, stage = file.read().strip().partition(" ")
        file.close()
        raise LabError(
            f"a kernel of an earlier run still works on {stage or 'a stage'} in {path.parent} "
            f"(process {process or 'unknown'}) although its run has ended: end it (kill {process}) "
            "and run again"
        )


def _sign(file: Any, holder: str) -> None:
    file.truncate(0)
    file.write(f"{os.getpid()} {holder}")
    file.flush()


def _forget() -> None:
    """A child that was forked must not keep a lock that its parent held."""
    for file in _held_locks.values():
        file.close()
    _held_locks.clear()


os.register_at_fork(after_in_child=_forget)


def release_lock(root: Path, scale: str) -> None:
    """Let go of the lock that this process may hold."""
    file = _held_locks.pop(root / "runs" / scale / ".lock", None)
    if file is not None:
        file.close()


def _refusal(folder: Path, process: str, holder: str) -> str:
    if holder in ("", BY_RUNNER):
        return (
            f"another run is at work in {folder} (process {process}): wait for it to end or "
            "stop it; two runs in one folder would overwrite each other"
        )
    return (
        f"the notebook {holder} is open in another kernel (process {process}) and has not reached "
        f"stage.finish(), so it holds {folder}: run it to its end, or shut that kernel down (in "
        "JupyterLab: Kernel, Shut Down Kernel); two runs in one folder would overwrite each other"
    )
