"""The owner's ends of the verifier's processes: `Nursery` forks workers, a `Worker` answers one question at a time.

Guarantees: no `multiprocessing` (its start methods import the caller's main module again, which breaks scripts without a guard
and notebooks, and its daemons may have no children), nothing forked from this process, and both ends die with their owner.
Does not: decide what to ask, or how often; `verifier` does.
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

MESSAGE = 16  # bytes of a control message, as in `verifier_worker`, which this process must not import for a number
START_SECONDS = 120.0  # importing SymPy takes two seconds, and many on a loaded machine


@dataclass
class Worker:
    """Our end of one worker: a socket with a line of JSON each way."""

    nursery: "Nursery"
    wire: socket.socket
    pid: int = 0
    spent: bool = False
    rest: bytes = field(default=b"", repr=False)

    def ask(self, job: bytes, deadline: float) -> dict[str, Any]:
        self.wire.settimeout(max(0.001, deadline - time.monotonic()))
        self.wire.sendall(job)
        reply = self.line(deadline)
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
        self.wire.close()
        self.nursery.send(b"K%d" % self.pid)


class Nursery:
    """Our end of the process that forks workers: see `verifier_worker.main`."""

    def __init__(self, memory_bytes: int):
        self.owner, self.lock = os.getpid(), threading.Lock()
        self.control, theirs = socket.socketpair()
        # -c and not -m: the module must not be looked up in a folder that the owner's working directory shadows.
        code = "import sys; sys.path.append(sys.argv[1]); from moxin_lab.posttraining.verifier_worker import main; "
        code += "main(*map(int, sys.argv[2:]))"
        package = str(Path(__file__).resolve().parents[2])
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, package, str(theirs.fileno()), str(self.owner), str(memory_bytes)],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
                env=os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self.control.settimeout(START_SECONDS)
        try:
            ready = self.control.recv(MESSAGE)
        except TimeoutError:
            ready = b""
        if not ready:
            self.close()
            raise RuntimeError(
                f"the verifier's process did not start (exit status {self.process.returncode}): see its traceback above, "
                "and that math-verify is installed for " + sys.executable
            )

    def alive(self) -> bool:
        return self.process.poll() is None and self.control.fileno() >= 0

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        with self.lock, contextlib.suppress(OSError):  # a nursery that is gone has taken its workers with it
            socket.send_fds(self.control, [message.ljust(MESSAGE)], list(descriptors))

    def worker(self) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            self.send(b"F", [theirs.fileno()])
        worker = Worker(self, ours)
        try:
            hello = worker.line(time.monotonic() + START_SECONDS)
        except BaseException:
            ours.close()
            raise
        worker.pid = hello["pid"]
        if not hello["memory_limited"]:
            warnings.warn(
                "this system does not limit a process's memory: only the deadline guards the verifier", stacklevel=4
            )
        return worker

    def close(self) -> None:
        """Close the control socket, at which the nursery kills its workers and ends; kill it if it does not."""
        self.control.close()
        if self.owner != os.getpid():
            return
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
