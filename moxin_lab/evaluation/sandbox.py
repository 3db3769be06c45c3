"""Run a program that a model wrote, and say whether it passed, failed, or was contained and why.

    outcome = run(prompt + completion + test + "\ncheck(f)")      # one process for each program
    outcome.verdict, outcome.reason        # "contained", "starts a process (os.fork)"

Guarantees: the program runs in a process of its own, with at most `seconds` and `memory_bytes`,
without a network, without other processes, without capabilities, and can change files below a
folder of its own only, which is removed and may not grow beyond `MAX_FOLDER_BYTES`; the kernel
holds this (Landlock, seccomp, resource limits) but for that size, so code that leaves Python is
held as well; standard output goes nowhere and standard input is empty; the environment names
nothing of this machine. Where the kernel cannot hold it, nothing is run and SandboxError says what
is missing.
Out of scope: hiding readable files; see also `sandbox_child`.
"""

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

CHILD = Path(__file__).parent / "sandbox_child.py"
MAX_REPORT_BYTES = 4096
MAX_FILES, MAX_FOLDER_BYTES = 1000, 64 * 2**20
"""What a program may leave in its folder; the kernel limits single files only, so that this is
looked at every `LOOK_SECONDS` while it runs.
"""
LOOK_SECONDS = 0.2
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Threads of numerical libraries take address space by the number of cores."""

Verdict = Literal["passed", "failed", "contained"]


class SandboxError(RuntimeError):
    """This machine cannot hold a program in its place; the message says what is missing."""


class Outcome(NamedTuple):
    """reason: empty for `passed`."""

    verdict: Verdict
    reason: str


def run(program: str, *, seconds: int = 10, memory_bytes: int = 2**30) -> Outcome:
    """The outcome of Python source that raises nothing if it is right.

    seconds: on the clock. memory_bytes: of address space, the interpreter included.
    Raises SandboxError where the machine cannot contain it.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"generated code is run on Linux only, not on {sys.platform}")
    token = secrets.token_hex(16)
    reading, writing = os.pipe()
    order = {
        "program": program,
        "seconds": seconds,
        "memory": memory_bytes,
        "report": writing,
        "token": token,
    }
    with tempfile.TemporaryDirectory(prefix="moxin-sandbox-") as folder:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={**ENVIRONMENT, "HOME": folder, "TMPDIR": folder},
                pass_fds=(writing,),
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(order).encode("utf-8"))
            line = _read(reading, seconds, folder)
        finally:
            os.close(reading)
            process.kill()
            process.wait()
    return _outcome(line, token, process.returncode)


def run_all(
    programs: Sequence[str], *, workers: int | None = None, seconds: int = 10
) -> list[Outcome]:
    """`run` of each, several at once (default: as many as there are cores), in their order."""
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return list(pool.map(lambda program: run(program, seconds=seconds), programs))


def check() -> None:
    """Raises SandboxError if a program cannot be contained here; takes a tenth of a second."""
    outcome = run("assert 1 + 1 == 2")
    if outcome.verdict != "passed":
        raise SandboxError(f"a program of one line did not pass in the sandbox: {outcome.reason}")


def _read(reading: int, seconds: int, folder: str) -> bytes | str:
    """What the child reports; a reason in words if it is still running after `seconds`, or has
    filled its folder.
    """
    end, received = time.monotonic() + seconds, b""
    while b"\n" not in received and len(received) < MAX_REPORT_BYTES:
        left = end - time.monotonic()
        if left <= 0:
            return f"ran longer than {seconds} s"
        if not select.select([reading], [], [], min(left, LOOK_SECONDS))[0]:
            if _is_full(folder):
                return f"left more than {MAX_FILES:,} files or {MAX_FOLDER_BYTES:,} bytes"
            continue
        piece = os.read(reading, MAX_REPORT_BYTES)
        if not piece:
            break
        received += piece
    return received


def _is_full(folder: str) -> bool:
    files = size = 0
    for where, folders, names in os.walk(folder):
        files += len(folders) + len(names)
        for name in names:
            with contextlib.suppress(OSError):  # the program removes files meanwhile
                size += Path(where, name).lstat().st_size
        if files > MAX_FILES or size > MAX_FOLDER_BYTES:
            return True
    return False


def _outcome(line: bytes | str, token: str, status: int) -> Outcome:
    if isinstance(line, str):
        return Outcome("contained", line)
    try:
        report = json.loads(line)
        is_ours = isinstance(report, dict) and report.get("token") == token
    except ValueError:
        is_ours = False
    if not is_ours:
        killed = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return Outcome("failed", f"the process ended without a verdict ({killed})")
    if report["verdict"] == "unprotected":
        raise SandboxError(
            f"this machine cannot contain generated code: {report['detail']}. It needs Linux with "
            "seccomp and the library libseccomp.so.2"
        )
    # A program may put half a character into its error, which no file of results can hold.
    detail = report["detail"].encode("utf-8", "backslashreplace").decode("utf-8")
    return Outcome(report["verdict"], detail)
