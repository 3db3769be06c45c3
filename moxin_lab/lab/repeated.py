"""Whether one run is the repetition of another on the same machine: the same measures, verdicts,
artifacts, tables, figures and sentences, to the last byte, but for what a clock decides.

    differences(Path("runs/tiny"), Path("../again/runs/tiny"))     # empty: it is

    python -m moxin_lab.lab.repeated runs/tiny ../again/runs/tiny

What may differ is kept apart: measures of the clock (`Pair.of_the_clock`), outputs that a notebook
shows with `clock=True` (`show.CLOCK`), columns of time in a log's tables (`CLOCK_COLUMN`), and in a
record the fields that `comparison` does not read (seconds, memory, machine, time of day).

Guarantees: everything else that differs is named with its stage; a stage that one run alone has
finished is a difference, in one line.
Out of scope: runs on two machines, whose sums of floats differ (`comparison.py` compares those).
"""

import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moxin_lab.lab import comparison, show
from moxin_lab.lab.artifacts import MAX_NOTEBOOK_BYTES, LabError, read_json, sha256_file

CLOCK_COLUMN = re.compile(r"seconds|milliseconds|_ms\b|per_s\b|per_second|finished_at|memory")
"""Column of a table whose values a clock, or the system's memory, decides."""


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two folders `runs/<scale>`, one line each. Raises LabError for a folder
    without a finished stage.
    """
    runs = [comparison.read_run(folder, str(folder)) for folder in (a, b)]
    both = runs[0].records.keys() & runs[1].records.keys()
    run_a, run_b = (
        dataclasses.replace(run, records={n: r for n, r in run.records.items() if n in both})
        for run in runs
    )
    found = comparison.compare(run_a, run_b)
    lines = [
        f"{pair.stage}: measure {pair.name} {dict(pair.labels)} is "
        f"{_said(pair.a, pair.interval_a)} and {_said(pair.b, pair.interval_b)}"
        for pair in found.pairs
        if (pair.a, pair.interval_a) != (pair.b, pair.interval_b) and not pair.of_the_clock
    ]
    lines += [f"{stage}: only {side} has {measure}" for side, stage, measure, _ in found.only]
    lines += [f"claim {claim}: {one} and {other}" for claim, one, other in found.verdicts]
    for stage, artifact, *_ in found.artifacts:
        lines += _artifact_lines(stage, run_a.folder / stage, run_b.folder / stage, artifact)
    for stage in sorted(both):
        notebooks = [run.folder / stage / "notebook.ipynb" for run in (run_a, run_b)]
        if all(path.is_file() for path in notebooks):
            lines += [f"{stage}: {line}" for line in _notebook_lines(*notebooks)]
    alone = sorted((runs[0].records.keys() | runs[1].records.keys()) - both)
    lines += [f"{stage}: only one of the runs has finished it" for stage in alone]
    return lines


def _said(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value!r}" + (f" ({interval[0]!r} to {interval[1]!r})" if interval else "")


def _artifact_lines(stage: str, a: Path, b: Path, artifact: str) -> Iterator[str]:
    """Files that differ; of a log's tables, only if a column does that no clock decides."""
    one, other = _files(a / artifact), _files(b / artifact)
    for name in sorted(one.keys() | other.keys()):
        where = f"{stage}: artifact {artifact}" + (f"/{name}" if name else "")
        if name not in one or name not in other:
            yield f"{where} is in one run only"
        elif sha256_file(one[name]) != sha256_file(other[name]):
            if artifact.endswith("_log") and name.endswith(".parquet"):
                if columns := _columns_that_differ(one[name], other[name]):
                    yield f"{where} differs in {', '.join(columns)}"
            else:
                yield f"{where} differs"


def _files(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {"": path}
    return {f.relative_to(path).as_posix(): f for f in path.rglob("*") if f.is_file()}


def _columns_that_differ(a: Path, b: Path) -> list[str]:
    import pyarrow.parquet as pq

    one, other = pq.read_table(a, partitioning=None), pq.read_table(b, partitioning=None)
    if one.column_names != other.column_names or one.num_rows != other.num_rows:
        return ["its columns or its number of rows"]
    return [
        name
        for name in one.column_names
        if not CLOCK_COLUMN.search(name) and not one[name].equals(other[name])
    ]


def _notebook_lines(a: Path, b: Path) -> Iterator[str]:
    """Cells of two executed notebooks whose outputs differ, but for those of the clock."""
    cells = [_code_cells(path) for path in (a, b)]
    if len(cells[0]) != len(cells[1]):
        yield f"the notebooks have {len(cells[0])} and {len(cells[1])} code cells"
        return
    for number, (one, other) in enumerate(zip(*cells, strict=True), 1):
        if one["source"] != other["source"]:
            yield f"code cell {number} is another"
            continue
        shown = [_outputs(cell) for cell in (one, other)]
        if shown[0] != shown[1]:
            first = "".join(one["source"]).strip().split("\n", 1)[0]
            yield f"code cell {number} ({first}) shows something else"


def _code_cells(path: Path) -> list[dict[str, Any]]:
    notebook = read_json(path, max_bytes=MAX_NOTEBOOK_BYTES)
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise LabError(f"{path} is not a notebook: it has no list `cells`")
    return [cell for cell in notebook["cells"] if cell.get("cell_type") == "code"]


def _outputs(cell: dict[str, Any]) -> list[Any]:
    """What a reader sees: no warnings of libraries, no output that a clock decides. The value of
    `stage.finish()` is the stage's seconds and memory.
    """
    finishes = "".join(cell["source"]).rstrip().endswith("stage.finish()")
    return [
        output.get("data") or output.get("text")
        for output in cell.get("outputs", [])
        if not show.of_the_clock(output)
        and output.get("name") != "stderr"
        and not (finishes and output.get("output_type") == "execute_result")
    ]


if __name__ == "__main__":
    try:
        lines = differences(Path(sys.argv[1]), Path(sys.argv[2]))
    except LabError as error:
        sys.exit(f"{error}")
    print("\n".join(lines) or "the same, but for what a clock decides")
    sys.exit(bool(lines))
