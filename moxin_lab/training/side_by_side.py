"""Independent trainings side by side: in processes of their own where there are GPUs.

A small model leaves most of a GPU idle: it waits for kernels to start. Other seeds of a training
then cost little more than the first, if they run at the same time. On a machine without a GPU the
same calls run here, one after the other, when their results are asked for.

    running = start(repeat, {1: {"seed": 1}, 2: {"seed": 2}}, shared={"data": data})  # at once
    ...                                                                     # the first seed, here
    found = running.results(progress)                                       # {1: ..., 2: ...}

Guarantees: a result does not depend on where its call ran, as far as the call itself does not; the
order of the results is that of the calls; an error of a call names it; a process ends with the one
that started it, also if that one is killed.
Out of scope: one training over several GPUs (`pretraining/parallel.py`); memory: the calls of a GPU
must fit on it together.
"""

import io
import os
import pickle
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, Generic, TypeVar

from moxin_lab.lab.progress import Progress

Key = TypeVar("Key", bound=Hashable)

PER_DEVICE = 2
"""Processes on each GPU, besides the one that starts them."""


class Running(Generic[Key]):
    """Calls that `start` has begun, or will make when asked."""

    def __init__(
        self,
        function: Callable[..., Any],
        calls: Mapping[Key, Mapping[str, Any]],
        shared: Mapping[str, Any],
        pool: ProcessPoolExecutor | None,
    ) -> None:
        self._function, self._calls, self._shared, self._pool = function, calls, shared, pool
        self._futures: dict[Key, Future[bytes]] = {}
        if pool is not None:
            # Written here, once and by value: the pool would write what is shared for each call,
            # and tensors as handles to memory that this process may free.
            both = _dumps((function, dict(shared)))
            self._futures = {
                key: pool.submit(_call, both, _dumps(dict(arguments)))
                for key, arguments in calls.items()
            }

    def results(self, progress: Progress | None = None) -> dict[Key, Any]:
        """What each call returned, by key. Waits; raises what a call raised, with its key."""
        found: dict[Key, Any] = {}
        try:
            for done, (key, arguments) in enumerate(self._calls.items()):
                try:
                    if self._pool is None:
                        here = {**self._shared, **arguments, "progress": _named(progress, key)}
                        found[key] = self._function(**here)
                        continue
                    if progress is not None:
                        progress(done, len(self._calls), f"waiting for {key}, in another process")
                    found[key] = _loads(self._futures[key].result())
                except Exception as error:
                    error.add_note(f"in the call {key!r} of {self._function.__name__}")
                    raise
        finally:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
        return found


def start(
    function: Callable[..., Any],
    calls: Mapping[Key, Mapping[str, Any]],
    *,
    shared: Mapping[str, Any],
    devices: Sequence[str | None] | None = None,
    own_device: bool = False,
) -> Running[Key]:
    """Begin `function(**shared, **arguments)` for each of `calls` (key to arguments) in other
    processes, or leave it to `Running.results` where there is no GPU.

    function: of an importable module, with an optional keyword `progress`; its arguments and its
    result must be picklable, and it may not change what is shared: here all calls get the same
    objects, elsewhere each a copy. devices: one entry a process, what CUDA_VISIBLE_DEVICES shall be
    there (None: as here); an empty list for no process. By default `PER_DEVICE` processes on each
    GPU, the last GPU first. own_device: one process on each GPU but the first, which is this
    process's; so none on a machine with one GPU.
    """
    if devices is None:
        found = visible_devices()
        each = 1 if own_device else PER_DEVICE
        used = found[1:] if own_device else found
        devices = [one for one in reversed(used) for _ in range(each)]
    if not devices or not calls:
        return Running(function, calls, shared, None)
    context = get_context("spawn")
    slots = context.Queue()
    for device in devices:
        slots.put(device)
    workers = min(len(devices), len(calls))
    settle = partial(_settle, slots, os.getpid())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=settle)
    return Running(function, calls, shared, pool)


def start_other_seeds(
    function: Callable[..., Any],
    count: int,
    *,
    seed: int,
    folder: Path,
    shared: Mapping[str, Any],
    own_device: bool = False,
) -> Running[int]:
    """`start` with the seeds after the first of `count`, each with a folder of its own below
    `folder`; results are by seed. function: takes `seed` and `folder` besides what is shared.
    """
    calls = {
        other: {"seed": other, "folder": folder / f"seed_{other}"}
        for other in range(seed + 1, seed + count)
    }
    return start(function, calls, shared=shared, own_device=own_device)


def visible_devices() -> list[str]:
    """GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


def _settle(slots: "Queue[str | None]", parent: int) -> None:
    """First thing in a new process: take a GPU, and end when the parent does."""
    device = slots.get()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # read when CUDA starts, which it has not
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)  # not sys.exit: this is not the main thread


def _call(both: bytes, written: bytes) -> bytes:
    function, shared = _loads(both)
    return _dumps(function(**shared, **_loads(written)))


def _dumps(value: Any) -> bytes:
    """By torch, which writes the memory of tensors once, however many of them are views of it:
    pickle alone writes all of it for each view.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_protocol=pickle.HIGHEST_PROTOCOL)
    return buffer.getvalue()


def _loads(written: bytes) -> Any:
    """Of `_dumps` in a process of ours, so it may hold any object."""
    import torch

    return torch.load(io.BytesIO(written), weights_only=False)


def _named(progress: Progress | None, key: object) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, text: progress(done, total, f"{key}: {text}")
