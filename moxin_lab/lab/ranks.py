"""Several processes that run one stage together, as torchrun starts them: who writes, when they
begin, how they end.

    torchrun --nproc-per-node 2 -m moxin_lab.cli run --scale S --only 04

    rank 0                                        every other rank
    ------------------------------------------    ------------------------------------------------
    takes the lock and decides what runs    ->    waits for that
    papermill: the whole notebook                 papermill: the cells up to the one that is tagged
                                                  `all-ranks`, on the same weights
    record, artifacts, executed notebook,         its log, .ranks/rank-00001.ipynb in the stage's
    report, locks                                 folder, and its shards of resume points

Guarantees: a rank that fails ends all others, and each of them names it; SIGTERM is handed to the
kernels, which save and end, and then the ranks end.
Out of scope: starting the processes (torchrun), the training (`pretraining/parallel.py`), a stage
whose notebook has no such cell.
"""

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil

from moxin_lab.lab.artifacts import LabError, read_json

ALL_RANKS = "all-ranks"
"""Tag of the last cell that every rank runs."""
RANK_VARIABLE = "MOXIN_LAB_RANK"
"""Set by the runner for the kernels of the ranks that leave nothing."""
LATE_SECONDS = 10.0
"""How long a rank whose connection broke waits to hear which other rank failed."""
TERMINATED = "SystemExit: 143"
"""How a cell ends whose training SIGTERM ended (training/resume.py)."""
OF_CONNECTION = re.compile(
    r"DistBackendError|DistNetworkError|DistStoreError|[Cc]onnection (closed|reset|refused)|"
    r"gloo/transport|Gloo connect|NCCL|[Bb]roken pipe"
)
"""Errors that a rank may have only because another one failed."""
DIED = "the kernel died"


class Store(Protocol):
    """What the ranks share, such as the store of torchrun's agent (training/launched.py)."""

    def set(self, key: str, value: str) -> Any: ...
    def get(self, key: str) -> bytes: ...
    def add(self, key: str, amount: int) -> int: ...
    def check(self, keys: list[str]) -> bool: ...


def of_environment(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """(rank, ranks) of a process that torchrun started, None for any other."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    return int(environment["RANK"]), int(environment["WORLD_SIZE"])


class Ranks:
    """This process among the ranks of one run. Raises LabError from every method, instead of
    waiting, when another rank has failed.
    """

    def __init__(self, rank: int, size: int, store: Store) -> None:
        self.rank, self.size = rank, size
        self.terminated = False
        self._store, self._lock, self._told = store, threading.Lock(), False

    @property
    def name(self) -> str:
        return f"rank {self.rank} of {self.size}"

    def tell(self, decision: str) -> None:
        """Rank 0 says what the others do."""
        with self._lock:
            self._store.set("decision", decision)

    def told(self, seconds: float = 0.1) -> str:
        """What rank 0 said; waits for it. Raises KeyboardInterrupt after SIGTERM."""
        while True:
            if self.terminated:
                raise KeyboardInterrupt
            if failures := self._of_others():
                raise LabError(_in_words(failures[0], self.size))
            with self._lock:
                if self._store.check(["decision"]):
                    return self._store.get("decision").decode()
            time.sleep(seconds)

    def report(self, message: str) -> None:
        """Say, once, that this rank has failed. Until then no other rank knows."""
        if self._told or self.terminated or TERMINATED in message:
            return
        self._told = True
        failure = json.dumps({"rank": self.rank, "message": message})
        with self._lock:
            self._store.set(f"failure {self._store.add('failures', 1)}", failure)

    def cause(self, message: str) -> str:
        """The message of this rank's failure, with the rank that failed first: this one, or another
        whose end broke this one's connection. Raises KeyboardInterrupt if SIGTERM ended all.
        """
        if TERMINATED in message or (self.terminated and not self._failures()):
            self.terminated = True
            raise KeyboardInterrupt
        self.report(message)
        deadline = time.monotonic() + (LATE_SECONDS if self.size > 1 else 0)
        while True:
            first = min(self._failures(), key=_weight)
            if not _weight(first) or time.monotonic() > deadline:
                return _in_words(first, self.size)
            time.sleep(0.1)

    def _failures(self) -> list[dict[str, Any]]:
        """Those that were reported, in order."""
        with self._lock:
            count = self._store.add("failures", 0)
            keys = [f"failure {number}" for number in range(1, count + 1)]
            there = [key for key in keys if self._store.check([key])]
            return [json.loads(self._store.get(key)) for key in there]

    def _of_others(self) -> list[dict[str, Any]]:
        return [one for one in self._failures() if one["rank"] != self.rank]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """While a notebook runs: hand SIGTERM to its kernel, and kill the kernel when another rank
        has failed or torchrun has gone, for its training would wait for ever.
        """
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.5):
                try:
                    ended = bool(self._of_others())
                except RuntimeError:  # of the store, with torchrun
                    ended = True
                if ended:
                    _signal_kernels(signal.SIGKILL)

        def note(number: int, frame: Any) -> None:
            self.terminated = True
            _signal_kernels(signal.SIGTERM)

        is_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, note) if is_main else None
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            if is_main:
                signal.signal(signal.SIGTERM, before)


def _signal_kernels(number: signal.Signals) -> None:
    """Send a signal to this process's children; they are kernels."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(number)


def _weight(failure: Mapping[str, Any]) -> int:
    """0 for an error of the rank's own, 1 for a kernel that died, 2 for a lost connection."""
    if OF_CONNECTION.search(failure["message"]):
        return 2
    return int(DIED in failure["message"])


def _in_words(failure: Mapping[str, Any], size: int) -> str:
    return f"rank {failure['rank']} of {size} failed, which ends all: {failure['message']}"


def log_file(folder: Path, rank: int) -> Path:
    """Where a rank other than 0 leaves its executed notebook. folder: of the stage."""
    return folder / ".ranks" / f"rank-{rank:05d}.ipynb"


def cells_of_all(notebook: Path) -> Any:
    """The notebook up to the cell with the tag ALL_RANKS, as nbformat's. Raises LabError without
    such a cell.
    """
    import nbformat

    whole = nbformat.from_dict(read_json(notebook))
    for number, cell in enumerate(whole.cells, start=1):
        if ALL_RANKS in cell.metadata.get("tags", []):
            whole.cells = whole.cells[:number]
            return whole
    raise LabError(
        f"{notebook.name} has no cell with the tag {ALL_RANKS}, so several ranks cannot run it: "
        "start one process"
    )


@contextlib.contextmanager
def leaving_nothing(rank: int) -> Iterator[None]:
    """The environment of the kernels of a rank that leaves nothing."""
    os.environ[RANK_VARIABLE] = str(rank)
    try:
        yield
    finally:
        del os.environ[RANK_VARIABLE]
