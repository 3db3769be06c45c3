"""Runs a pipeline on files of any number and size, and goes on where a killed run stopped.

    input files -> pass 0: a folder per file -> removals of `Across` -> pass 1 ... -> shards by id

    OUT/run.json                       what was run on what, seconds, memory, files that failed
        funnel.json                    documents and bytes after each step, removals by reason
        train/00000.parquet ...        `KEPT`, sorted by id within a shard
        heldout/, removed/             likewise; removed rows have step, reason, detail
        work/                          while the run is under way

A document's shard is a hash of its id, so every shard, and every beginning of one, is a sample of
all sources and languages. Daft does the work: on its native engine, or on a Ray cluster that sees
the same files after `use_ray()`.

Guarantees: the output's bytes depend on the documents, the steps and the seed, not on how the
documents are spread over files, on the engine, or on a kill in between (with the locked Daft and
pyarrow); a file, a removal list and a shard appear whole or not at all; every document that was
read is in one of the three folders, under an id that no other has; memory holds a few parts of a
file, and of each document its id, buckets and pairs, not its text.
Out of scope: what the steps do (`steps.py`); reading a format (`readers.py`).
"""

import hashlib
import json
import resource
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import daft
import pyarrow as pa
import pyarrow.parquet as pq
from daft import DataType, col
from daft.functions import get

from moxin_lab.data import funnel
from moxin_lab.data.extract import CurationError
from moxin_lab.data.readers import READING, File, Readable
from moxin_lab.data.sources import write_table
from moxin_lab.data.steps import (
    COLUMNS,
    LABELS,
    REMOVALS,
    Across,
    Held,
    Learned,
    Local,
    Marks,
    Naming,
    Split,
    Step,
    check_unique,
    decided,
    mark,
    still_there,
    walk,
)

KEPT = pa.schema([(name, pa.string()) for name in (*LABELS, "text")] + [("num_bytes", pa.int64())])
REMOVED = pa.schema(
    [(name, pa.string()) for name in (*LABELS, "step", "reason", "detail", "text")]
    + [("num_bytes", pa.int64())]
)
SIDES = {"train": KEPT, "heldout": KEPT, "removed": REMOVED}
SHARD_BYTES = 64 << 20
"""Text of a shard, about; of more than MAX_SHARDS shards each has more."""
MAX_SHARDS = 1024

Say = Callable[[str], object]


def use_ray() -> None:
    """Lets Daft run on Ray from here on: the cluster of RAY_ADDRESS, else one on this machine.

    Raises CurationError if Ray is not installed.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise CurationError("the runner ray needs Ray: pip install 'moxin-lab[cluster]'") from error
    daft.set_runner_ray()


def run(
    name: str,
    steps: Sequence[Step],
    inputs: Sequence[Readable],
    out: Path,
    *,
    settings: Mapping[str, Any] = MappingProxyType({}),
    keep_going: bool = False,
    threads: int = 1,
    say: Say = print,
) -> dict[str, Any]:
    """Runs the steps on all inputs and writes `out`; returns the content of run.json.

    Without a step `Split` all pages are for training. settings: what the steps were made with, of
    JSON's types; another run's work is not continued with others. keep_going: files that cannot be
    read are named in run.json under `failed`, the others run. threads: files at a time; more than
    one is for a cluster. Raises CurationError, naming the file, for one that cannot be read; for
    two documents of one id; and if `out` has the work of another run.
    """
    began = time.monotonic()
    files = [(each, file) for each in inputs for file in each.files]
    if not files:
        raise CurationError(f"pipeline {name}: no file to read")
    splits = [step for step in steps if isinstance(step, Split)]
    asked = {
        "pipeline": name,
        "steps": [READING, *(step.name for step in steps)],
        "inputs": [[each.name, file.name, file.size] for each, file in files],
        "heldout_share": splits[0].share if splits else 0.0,
        "seed": splits[0].seed if splits else 0,
        "settings": dict(settings),
        "code": _code(),
    }
    done = _begin(out, asked)
    if done is not None:
        say(f"{out}: done before, nothing to do")
        return done
    job = _Job(out / "work", threads, say)
    failed = job.first_pass(files, _leading(steps), keep_going)
    if len(failed) == len(files):
        raise CurationError(f"no input file could be read; the first: {failed[0]['error']}")
    removed = _empty()
    held = Held(frozenset(), frozenset())
    number = 0
    for part in _parts(steps)[1:]:
        if isinstance(part, Split):
            held = job.heldout(number, part, removed)
            removed = pa.concat_tables([removed, job.across(number, part.leaving(held), removed)])
        elif isinstance(part, Across):
            removed = pa.concat_tables([removed, job.across(number, part, removed)])
        else:
            number += 1
            job.next_pass(number, part, removed)
            removed = _empty()
    shards = job.shuffle(number, removed)
    frame = daft.read_parquet(str(job.work / "shuffled" / "*" / "**" / "*.parquet"))
    counted = funnel.counts(frame, steps)
    job.write_shards(shards, held.pages, out)
    record = asked | {
        "done": True,
        "failed": failed,
        "seconds": job.seconds | {"all": round(time.monotonic() - began, 1)},
        "cpu_seconds": round(time.process_time(), 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    _write_json(counted, out / "funnel.json")
    _write_json(record, out / "run.json")
    shutil.rmtree(job.work)
    return record


class _Job:
    """The folder `work` of a run and what has been done in it."""

    def __init__(self, work: Path, threads: int, say: Say) -> None:
        self.work = work
        self.threads = threads
        self.say = say
        self.seconds: dict[str, float] = {}

    def first_pass(
        self,
        files: Sequence[tuple[Readable, File]],
        steps: Sequence[Local | Marks | Naming],
        keep_going: bool,
    ) -> list[dict[str, str]]:
        """Reads each file and takes it through the steps; the files that failed."""
        failed: list[dict[str, str]] = []

        def one(number: int) -> None:
            source, file = files[number]
            target = self.work / "pass-0" / f"{number:06d}"
            if target.is_dir():
                return
            try:
                _write(_after(source.read(file), steps), target)
            except (CurationError, daft.exceptions.DaftCoreException, OSError) as error:
                told = f"{file.path}: {_first_line(error)}"
                if not keep_going:
                    raise CurationError(f"{told}. With --keep-going the other files run") from error
                failed.append({"file": file.path, "error": told})

        self._each(len(files), one, ", ".join([READING, *(step.name for step in steps)]))
        return sorted(failed, key=lambda row: row["file"])

    def across(self, number: int, step: Across, removed: pa.Table) -> pa.Table:
        """What the step removes from the documents of pass `number` without `removed`."""
        path = self.work / f"removals-{number}-{step.name.replace(' ', '-')}.parquet"
        if not path.is_file():
            with self._timed(step.name):
                frame = _without(self._frame(number), removed)
                write_table(decided(step.name, step.removals(still_there(frame))), path)
        table = pq.read_table(path)
        self.say(f"{step.name}: {table.num_rows:,} documents removed")
        return table

    def heldout(self, number: int, step: Split, removed: pa.Table) -> Held:
        """What the step holds out of the documents of pass `number` but `removed`."""
        path = self.work / "heldout.json"
        if not path.is_file():
            with self._timed(f"{step.name}, choosing"):
                held = step.choose(still_there(_without(self._frame(number), removed)))
                _write_json([sorted(names) for names in held], path)
        return Held(*map(frozenset, json.loads(path.read_text(encoding="utf-8"))))

    def next_pass(
        self, number: int, steps: Sequence[Local | Marks | Naming | Learned], removed: pa.Table
    ) -> None:
        """Takes the parts of the pass before through the steps."""
        parts = sorted(path.name for path in (self.work / f"pass-{number - 1}").iterdir())
        if all((self.work / f"pass-{number}" / part).is_dir() for part in parts):
            return
        names = ", ".join(step.name for step in steps)
        first, *rest = steps
        if isinstance(first, Learned):
            with self._timed(f"{first.name}, learning"):
                everything = still_there(_without(self._frame(number - 1), removed))
                first = first.local(first.learn(everything))
        local = [first, *rest]

        def one(index: int) -> None:
            target = self.work / f"pass-{number}" / parts[index]
            if not target.is_dir():
                frame = mark(self._frame(number - 1, parts[index]), removed)
                _write(_after(frame, local), target)  # type: ignore[arg-type]

        self._each(len(parts), one, names)

    def shuffle(self, number: int, removed: pa.Table) -> int:
        """Puts each row into the folder of its shard and side; the number of shards."""
        frame = self._frame(number)
        sizes = frame.select(get(col("sizes"), -1).alias("bytes")).agg(col("bytes").sum())
        total = sizes.to_pydict()["bytes"][0] or 0
        shards = min(MAX_SHARDS, max(1, -(-total // SHARD_BYTES)))
        parts = sorted(path.name for path in (self.work / f"pass-{number}").iterdir())
        shard = _shard(shards)

        def one(index: int) -> None:
            target = self.work / "shuffled" / parts[index]
            if not target.is_dir():
                rows = mark(self._frame(number, parts[index]), removed).select(*COLUMNS)
                _write(rows.with_column("shard", shard(col("id"))), target, by="shard")

        self._each(len(parts), one, "shuffle")
        return shards

    def write_shards(self, shards: int, held: frozenset[str], out: Path) -> None:
        """Sorts and writes each shard, on the workers."""
        work = str(self.work / "shuffled")

        @daft.func.batch(return_dtype=DataType.int64(), batch_size=1)
        def write(number: daft.Series) -> list[int]:
            return [_write_shard(Path(work), one, held, out) for one in number.to_pylist()]

        with self._timed("shards"):
            numbers = daft.from_pydict({"shard": list(range(shards))})
            if daft.get_or_infer_runner_type() == "ray":
                numbers = numbers.into_partitions(shards)
            numbers.select(write(col("shard")).alias("rows")).collect()

    def _frame(self, number: int, part: str = "*") -> daft.DataFrame:
        return daft.read_parquet(str(self.work / f"pass-{number}" / part / "*.parquet"))

    def _each(self, count: int, one: Callable[[int], None], what: str) -> None:
        told = time.monotonic()
        with self._timed(what), ThreadPoolExecutor(self.threads) as pool:
            # In this thread where there is one, so that Ctrl-C ends the work at once.
            mapped = pool.map if self.threads > 1 else map
            for done, _ in enumerate(mapped(one, range(count)), start=1):
                if time.monotonic() - told > 10 or done == count:
                    told = time.monotonic()
                    self.say(f"[{done}/{count}] {what}")

    def _timed(self, what: str) -> "_Timer":
        return _Timer(self.seconds, what)


class _Timer:
    """Adds the seconds of its block to a row of a table."""

    def __init__(self, seconds: dict[str, float], what: str) -> None:
        self.seconds, self.what = seconds, what

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        spent = self.seconds.get(self.what, 0.0) + time.monotonic() - self.began
        self.seconds[self.what] = round(spent, 2)


# ---- the plan


def _parts(steps: Sequence[Step]) -> list[Across | Split | list[Any]]:
    """`Across` and `Split` steps alone, runs of the others together; the first part is such a run,
    perhaps empty, because reading belongs to it. A `Learned` begins a run.
    """
    parts: list[Across | Split | list[Any]] = [[]]
    for step in steps:
        if isinstance(step, Across | Split):
            parts.append(step)
        elif isinstance(step, Learned) or not isinstance(parts[-1], list):
            parts.append([step])
        else:
            parts[-1].append(step)
    return parts


def _leading(steps: Sequence[Step]) -> list[Any]:
    first = _parts(steps)[0]
    assert isinstance(first, list)
    return first


def _after(frame: daft.DataFrame, steps: Sequence[Local | Marks | Naming]) -> daft.DataFrame:
    """The frame after the steps; neighbours of kind `Local` take one pass over the texts."""
    waiting: list[Local] = []
    for step in steps:
        if isinstance(step, Local):
            waiting.append(step)
            continue
        frame = step(walk(frame, waiting) if waiting else frame)
        waiting = []
    return walk(frame, waiting) if waiting else frame


def _without(frame: daft.DataFrame, removed: pa.Table) -> daft.DataFrame:
    if not removed.num_rows:
        return frame
    return frame.join(daft.from_arrow(removed.select(["id"])), on="id", how="anti")


def _empty() -> pa.Table:
    return REMOVALS.empty_table()


# ---- files


def _write(frame: daft.DataFrame, target: Path, by: str | None = None) -> None:
    """Writes a frame as a folder of parquet files, whole or not at all."""
    # Not beside the target, where a reader of all parts would find it.
    partial = target.parents[1] / "partial" / f"{target.parent.name}-{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    frame.write_parquet(str(partial), compression="zstd", partition_cols=[by] if by else None)
    target.parent.mkdir(exist_ok=True)
    partial.rename(target)


def _shard(shards: int) -> Callable[[daft.Expression], daft.Expression]:
    @daft.func.batch(return_dtype=DataType.int32())
    def shard(key: daft.Series) -> list[int]:
        return [
            int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "big") % shards
            for value in key.to_pylist()
        ]

    return shard


def _write_shard(work: Path, number: int, heldout: frozenset[str], out: Path) -> int:
    """The rows of a shard, sorted, into the three folders; their number."""
    paths = [out / side / f"{number:05d}.parquet" for side in SIDES]
    if all(path.is_file() for path in paths):
        return 0
    files = sorted(work.glob(f"*/shard={number}/*.parquet"))
    tables = [pq.read_table(file, partitioning=None) for file in files]
    if tables:
        rows = pa.concat_tables([table.select(COLUMNS) for table in tables]).sort_by("id")
    else:
        names = pa.schema([(name, pa.string()) for name in COLUMNS[:-1]])
        rows = names.append(pa.field("sizes", pa.list_(pa.int64()))).empty_table()
    check_unique(rows["id"].to_pylist())
    rows = rows.append_column("num_bytes", _last(rows["sizes"]))
    gone = pa.compute.is_valid(rows["step"])
    held = pa.array([page in heldout for page in rows["page"].to_pylist()], pa.bool_())
    for path, (side, schema) in zip(paths, SIDES.items(), strict=True):
        mine = (
            gone
            if side == "removed"
            else pa.compute.and_(
                pa.compute.invert(gone), held if side == "heldout" else pa.compute.invert(held)
            )
        )
        table = rows.filter(mine).select(schema.names).cast(schema)
        write_table(table, path, compression_level=6, use_dictionary=[*LABELS[1:3]])
    return rows.num_rows


def _last(sizes: pa.ChunkedArray) -> pa.Array:
    return pa.array([row[-1] for row in sizes.to_pylist()], pa.int64())


def _begin(out: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Notes what is run; the record of the run if it was finished before."""
    path = out / "run.json"
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise CurationError(f"{out} is not empty and has no run.json: name another folder")
        _write_json(asked, path)
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    other = [key for key, value in asked.items() if found.get(key) != value]
    if other:
        raise CurationError(
            f"{out} has the work of another run (other {', '.join(other)}): "
            "remove it, or name another folder"
        )
    if not found.get("done"):
        return None
    if not found["failed"]:
        return found
    for side in SIDES:
        shutil.rmtree(out / side)
    _write_json(asked, path)
    return None


@cache
def _code() -> str:
    """SHA-256 of the modules of this package, as they were first run, and of Daft's version."""
    digest = hashlib.sha256(daft.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _write_json(value: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
