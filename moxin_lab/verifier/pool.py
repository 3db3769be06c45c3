"""The owner's ends of the verifier's processes: a `ForkServer` forks workers, a `Worker` answers
one question at a time.

All verifiers of a process share one fork server: `acquire` starts it for the first, `release` ends
it after the last.

Guarantees: no `multiprocessing` (its start methods import the caller's main module again, which
breaks scripts without a guard and notebooks, and its daemons may have no children), nothing forked
from this process, and both ends die with their owner. A worker's time is its own CPU time where the
system tells it (Linux), so that other processes' work does not count.
Out of scope: what to ask, or how often; `verifier` decides that.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MESSAGE = 16  # bytes of a control message, as in `worker`, which this process must not import
START_SECONDS = 120.0  # importing SymPy takes two seconds, and many on a loaded machine
_CPUCLOCK_SCHED = 2  # Linux: the clock of a process's CPU time is (~pid << 3) | 2


class CPUTimeExceeded(Exception):
    """The worker used up the CPU time of a question."""

    def __init__(self, seconds: float):
        super().__init__(f"{seconds:.3f} s of CPU time")
        self.seconds = seconds


class Unanswered(Exception):
    """The wall-clock backstop passed before the worker had its CPU time: a loaded machine."""


def cpu_seconds(pid: int) -> float | None:
    """CPU time of a process so far, or None where the system does not tell."""
    if sys.platform != "linux":
        return None
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return None


@dataclass(eq=False)  # a worker is itself, not its fields
class Worker:
    """Our end of one worker: a socket with a line of JSON each way."""

    server: "ForkServer"
    wire: socket.socket
    pid: int = 0
    spent: bool = False
    rest: bytes = field(default=b"", repr=False)

    def ask(self, job: bytes, seconds: float, backstop: float) -> dict[str, Any]:
        """The reply to a job within `seconds` of CPU time and `backstop` seconds on the clock.

        Raises CPUTimeExceeded, Unanswered, or ConnectionError where the worker ended.
        """
        started, before = time.monotonic(), cpu_seconds(self.pid)
        self.wire.settimeout(backstop)
        try:
            self.wire.sendall(job)
        except TimeoutError as late:
            raise Unanswered from late
        wait = seconds
        while True:
            left = started + backstop - time.monotonic()
            try:
                reply = self.line(time.monotonic() + max(0.001, min(wait, left)))
            except TimeoutError:
                now = cpu_seconds(self.pid)
                used = None if now is None or before is None else now - before
                if used is not None and used >= seconds:
                    raise CPUTimeExceeded(used) from None
                if time.monotonic() - started >= backstop:
                    raise Unanswered from None
                wait = 0.05 if used is None else max(0.005, seconds - used)
                continue
            self.spent = reply["last"]
            return reply

    def line(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self.rest:
            self.wire.settimeout(max(0.001, deadline - time.monotonic()))
            received = self.wire.recv(65_536)
            if not received:
                raise ConnectionError("the worker ended")
            self.rest += received
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)

    def kill(self) -> None:
        """End the process; a thread that waits for its reply gets ConnectionError."""
        if self.server.owner != os.getpid():
            return  # a fork has copies of these sockets, but they are not its own
        self.server.send(b"K%d" % self.pid)
        with contextlib.suppress(OSError):
            self.wire.shutdown(socket.SHUT_RDWR)


class ForkServer:
    """Our end of the process that forks workers: see `worker.main`."""

    def __init__(self) -> None:
        self.owner, self.lock = os.getpid(), threading.Lock()
        self.control, theirs = socket.socketpair()
        # -c and not -m: the module must not be looked up in a folder that the owner's working
        # directory shadows.
        code = (
            "import sys; sys.path.append(sys.argv[1]); from moxin_lab.verifier.worker import main; "
        )
        code += "main(*map(int, sys.argv[2:]))"
        package = str(Path(__file__).resolve().parents[2])
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, package, str(theirs.fileno()), str(self.owner)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            )
        self.control.settimeout(START_SECONDS)
        try:
            ready = self.control.recv(MESSAGE)
        except TimeoutError:
            ready = b""
        if not ready:
            self.close()
            raise RuntimeError(
                f"the verifier's process did not start (exit status {self.process.returncode}): "
                f"see its traceback above, and that math-verify is installed for {sys.executable}"
            )

    def alive(self) -> bool:
        return self.process.poll() is None and self.control.fileno() >= 0

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        # A fork server that is gone has taken its workers with it.
        with self.lock, contextlib.suppress(OSError):
            socket.send_fds(self.control, [message.ljust(MESSAGE)], list(descriptors))

    def worker(self, memory_bytes: int) -> Worker:
        """A new worker with that much address space. ConnectionError where the server has died."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.send(b"F%d" % memory_bytes, [theirs.fileno()])
        worker = Worker(self, ours)
        try:
            hello = worker.line(time.monotonic() + START_SECONDS)
        except TimeoutError as late:
            raise RuntimeError(
                f"no verifier worker within {START_SECONDS:.0f} s: is this machine out of memory?"
            ) from late
        worker.pid = hello["pid"]
        if not hello["memory_limited"]:
            warnings.warn(
                "this system does not limit a process's memory: "
                "only the deadline guards the verifier",
                stacklevel=4,
            )
        return worker

    def close(self) -> None:
        """Close the control socket, at which the server kills its workers and ends; kill it if it
        does not.
        """
        self.control.close()
        if self.owner != os.getpid():
            return
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# ------------------------------------------------------------------ the fork server of this process

_guard = threading.Lock()
_server: ForkServer | None = None
_users: set[int] = set()


def acquire(user: int) -> ForkServer:
    """The fork server of this process, started if there is none or it has died."""
    global _server
    with _guard:
        if _server is None or not _server.alive():
            _server = ForkServer()
        _users.add(user)
        return _server


def release(user: int) -> None:
    """End the fork server once its last user has gone."""
    global _server
    with _guard:
        _users.discard(user)
        if not _users and _server is not None:
            _server.close()
            _server = None


def _forget() -> None:
    """In a fork of this process: the fork server, and whatever held the lock at that moment, are
    the parent's.
    """
    global _guard, _server
    _guard, _server = threading.Lock(), None
    _users.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
