"""The record of a bench while it measures: written to the file of `--json` after every row, so that
a run that is cut keeps what it has.

    @keeping("decode")
    def run(options, keep):
        for ...:
            result["rows"].append(row)
            keep(result)             # what `run` returns, as far as it is

What `keep` writes is the record of the whole run as far as it is, with `"finished": false`, which
its readers refuse (`measured.unfinished`). At Ctrl-C, SIGTERM or an exception it also has
`stopped`, which says why, and the run ends as it would have: with the exception, or at SIGTERM with
code 143. A finished record has neither mark: `moxin-lab bench` writes it when `run` has returned.

Guarantees: the file is whole at every moment, of this run or, before its first row, what it was; a
run that stops without a file prints its rows.
Out of scope: going on where a run was cut. Benches that can do that say how.
"""

import argparse
import contextlib
import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

TERMINATED = 128 + signal.SIGTERM
"""The exit code of a process that SIGTERM ended."""


Result = dict[str, Any]
Keep = Callable[[Mapping[str, Any]], None]
Run = Callable[[argparse.Namespace, Keep], Result]


def keeping(name: str) -> Callable[[Run], Callable[[argparse.Namespace], Result]]:
    """Of the `run` of the bench `name`: gives it the function that writes its result so far."""

    def decorate(run: Run) -> Callable[[argparse.Namespace], Result]:
        @functools.wraps(run)
        def kept(options: argparse.Namespace) -> Result:
            with _keeping(name, options) as keep:
                return run(options, keep)

        return kept

    return decorate


@contextlib.contextmanager
def _keeping(name: str, options: argparse.Namespace) -> Iterator[Keep]:
    """Raises LabError if `--json` is a folder."""
    from moxin_lab.lab.artifacts import LabError

    path = None if options.json in (None, "-") else Path(options.json)
    if path is not None and path.is_dir():
        raise LabError(f"--json {path} is a folder: name a file in it")
    last: dict[str, Any] = {}

    def keep(result: Mapping[str, Any]) -> None:
        last.update(result)
        if path is not None:
            write(path, _unfinished(name, options, last))

    with _ended_by_sigterm():
        try:
            yield keep
        except BaseException as error:
            if last:
                content = _unfinished(name, options, last, stopped=_in_words(error))
                _leave(content, path, prints_json=options.json == "-")
            raise


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all."""
    from moxin_lab.lab.artifacts import write_atomically

    write_atomically(path, json.dumps(record, indent=1) + "\n")


@contextlib.contextmanager
def sigterm_left_to_the_training() -> Iterator[None]:
    """Within `keeping`, around a training with resume points: at SIGTERM it ends after the step
    that it saves (`training/resume.py`), not at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _unfinished(
    name: str, options: argparse.Namespace, result: Mapping[str, Any], **more: str
) -> dict[str, Any]:
    from moxin_lab.bench import record

    marks = {"finished": False, **more}
    return record(name, options.device, {**marks, **result, **marks})  # the marks come first


def _leave(content: dict[str, Any], path: Path | None, *, prints_json: bool) -> None:
    """Write or print what a stopped run has."""
    from moxin_lab.bench import print_table

    if path is not None:
        write(path, content)
    elif prints_json:
        print(json.dumps(content, indent=1))
    else:
        print_table(content["rows"])
    where = f"{path} has" if path is not None else "above are"
    count = len(content["rows"])
    print(
        f"moxin-lab bench {content['bench']}: not finished ({content['stopped']}); {where} "
        f"{count} row{'s' if count != 1 else ''}",
        file=sys.stderr,
    )


def _in_words(error: BaseException) -> str:
    """Why a run stopped. Lightning turns Ctrl-C in a training into SystemExit."""
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    if isinstance(error, SystemExit) and error.code == TERMINATED:
        return "stopped by SIGTERM"
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit with its code; in the main thread, where signals are handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = os.getpid()

    def stop(number: int, frame: object) -> None:
        if os.getpid() != own:  # a forked worker has this handler too, and ends without it
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        signal.signal(number, signal.SIG_IGN)  # one is enough while the rows are written
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
