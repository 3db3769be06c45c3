"""Whole campaigns in several processes at once, and their outcomes as one JSON file.

    python -m tests.fuzz.shards images checkpoints --shards 12 --seconds 540 --out fuzz

Writes fuzz/NAME-I-of-N.json for each shard as it goes, and fuzz/fuzz.json at the end: for each
campaign its seed, calls, seconds, outcomes and faults, each fault with its number, its case and
what happened. `--shard 3` (again and again) runs only that shard of each campaign, on a machine
among several; `python -m tests.fuzz.shards images --shards 12 --out fuzz --merge` joins the files.

Guarantees: the shards of one seed make each call of `pytest -m fuzz` exactly once, so N processes
find what one would; a fault does not end a campaign; what a time limit cuts off is said, and
exit code 0 means that all calls were made and none was at fault.
Out of scope: continuing a shard that was cut off (it starts again), and the limits (`measured.py`).
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import tests.conftest  # noqa: F401 - threads and offline switches, before torch is imported
from tests.fuzz import measured

NAMES = ("images", "checkpoints", "conversations", "llava", "mof")
EVERY = 2.0
"""Seconds between two writes of a shard's file."""


def load(name: str) -> Any:
    """The campaign's module: `campaign`, `CALLS` and `LEAST`."""
    return importlib.import_module(f"tests.fuzz.test_{name}")


def run_shard(name: str, count: int, seed: int, shard: int, of: int, out: Path) -> None:
    """Run one shard of a campaign and keep its file up to date."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the finally blocks end its child
    outcomes: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    began = written = time.monotonic()

    def write() -> None:
        state = {
            **{"campaign": name, "seed": seed, "count": count, "shard": shard, "of": of},
            **{"calls": outcomes.total() + len(faults), "expected": len(range(shard, count, of))},
            **{"seconds": round(time.monotonic() - began, 1)},
            **{"outcomes": dict(sorted(outcomes.items())), "faults": faults},
        }
        path = _file(out, name, shard, of)
        path.with_suffix(".part").write_text(json.dumps(state, indent=1), encoding="utf-8")
        path.with_suffix(".part").replace(path)

    write()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (load(name).campaign, count, seed, Path(folder), shard, of)
        try:
            with contextlib.closing(measured.results(*arguments)) as results:
                for outcome in results:
                    if isinstance(outcome, measured.Fault):
                        faults.append(outcome._asdict())
                    else:
                        outcomes[outcome] += 1
                    if time.monotonic() - written > EVERY:
                        write()
                        written = time.monotonic()
        finally:
            write()


def _file(out: Path, name: str, shard: int, of: int) -> Path:
    return out / f"{name}-{shard}-of-{of}.json"


def merged(name: str, of: int, out: Path) -> dict[str, Any]:
    """One campaign from the files of its shards. Raises ValueError for files of two campaigns."""
    paths = [_file(out, name, shard, of) for shard in range(of)]
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    if len({(part["seed"], part["count"]) for part in parts}) > 1:
        raise ValueError(f"{out} has files of {name} with two seeds or counts: delete the older")
    outcomes: Counter[str] = Counter()
    for part in parts:
        outcomes.update(part["outcomes"])
    whole = {
        "seed": parts[0]["seed"] if parts else None,
        "count": parts[0]["count"] if parts else None,
        "calls": sum(part["calls"] for part in parts),
        "unfinished_shards": [
            shard
            for shard, path in enumerate(paths)
            if not path.is_file() or not _is_whole(json.loads(path.read_text(encoding="utf-8")))
        ],
        "seconds_of_slowest_shard": max((part["seconds"] for part in parts), default=0.0),
        "outcomes": dict(sorted(outcomes.items())),
        "faults": [fault for part in parts for fault in part["faults"]],
    }
    return {**whole, "wrong": _wrong(name, whole)}


def _is_whole(part: dict[str, Any]) -> bool:
    return part["calls"] == part["expected"]


def _wrong(name: str, whole: dict[str, Any]) -> str:
    """What keeps a campaign from being passed; empty if nothing does."""
    if whole["faults"]:
        return f"{len(whole['faults'])} faults"
    try:
        measured.check(whole["outcomes"], whole["count"] or 0, load(name).LEAST)
    except AssertionError as error:
        return str(error)
    return "" if whole["count"] else "no shard has run"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.shards", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("campaigns", nargs="+", choices=NAMES, metavar="|".join(NAMES))
    parser.add_argument("--shards", type=int, default=os.cpu_count() or 1, help="of each campaign")
    parser.add_argument("--shard", type=int, action="append", help="only this one, from 0")
    parser.add_argument("--count", type=int, help="calls of a campaign; default: all of them")
    parser.add_argument("--seed", type=int, help="default: a random one, which is printed")
    parser.add_argument("--seconds", type=float, default=3600.0, help="limit of the clock")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--merge", action="store_true", help="run nothing, only join the files")
    chosen = parser.parse_args(arguments)
    if not chosen.merge:
        _run(chosen)
    results = {name: merged(name, chosen.shards, chosen.out) for name in chosen.campaigns}
    path = chosen.out / "fuzz.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name, whole in results.items():
        print(f"{name}: {whole['calls']} of {whole['count']} calls, seed {whole['seed']}, ", end="")
        print(f"{whole['seconds_of_slowest_shard']} s, {whole['outcomes']}, ", end="")
        print(whole["wrong"] or "none at fault")
    print(path)
    return int(any(whole["wrong"] for whole in results.values()))


def _run(chosen: argparse.Namespace) -> None:
    """All shards at once; those that the time limit finds running are ended."""
    if chosen.shards < 1 or any(not 0 <= i < chosen.shards for i in chosen.shard or ()):
        raise SystemExit(f"--shard {chosen.shard}: the shards are 0 to {chosen.shards - 1}")
    seed = random.randrange(2**32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    modules = {name: load(name) for name in chosen.campaigns}  # imported once, before the forks
    deadline = time.monotonic() + chosen.seconds
    workers = []
    for name, module in modules.items():
        count = module.CALLS if chosen.count is None else chosen.count
        for shard in chosen.shard or range(chosen.shards):
            _file(chosen.out, name, shard, chosen.shards).unlink(missing_ok=True)
            arguments = (name, count, seed, shard, chosen.shards, chosen.out)
            workers.append(measured.CONTEXT.Process(target=run_shard, args=arguments))
            workers[-1].start()
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
        if worker.is_alive():
            worker.terminate()
    for worker in workers:
        worker.join(5)
        while worker.is_alive():  # it was not yet listening: busy cores are slow to start it
            worker.terminate()
            worker.join(5)


if __name__ == "__main__":
    sys.exit(main())
