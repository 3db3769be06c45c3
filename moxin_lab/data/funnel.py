"""What a finished run of a pipeline left: documents after each step, its shards, a summary.

Guarantees: counts are by source and language, and add up over the steps' removals.
Out of scope: running (`engine.py`); one document's way (`curation.explain`).
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import daft
import pyarrow.compute as pc
from daft import DataType, col
from daft.functions import get, when

from moxin_lab.data.readers import READING
from moxin_lab.data.steps import Learned, Local, Step
from moxin_lab.lab import curated


def counts(frame: daft.DataFrame, steps: Sequence[Step]) -> dict[str, Any]:
    """Documents and bytes left after each step, and removed documents by reason, each by source and
    language.
    """
    names = [READING, *(step.name for step in steps)]
    columns, sums = {}, []
    local = 0
    for number in range(len(names)):
        local += number > 0 and isinstance(steps[number - 1], Local | Learned)
        left = col("step").is_null() | col("step").is_in(names[number + 1 :])
        columns[f"documents {number}"] = left.cast(DataType.int64())
        size = when(left, get(col("sizes"), local)).otherwise(0)
        columns[f"bytes {number}"] = size.fill_null(0)
        sums += [col(f"{unit} {number}").sum() for unit in ("documents", "bytes")]
    keys = ["source", "language"]
    table = frame.with_columns(columns).groupby(*keys).agg(*sums).sort(keys).to_pylist()
    left_after = [
        {"step": name, "source": row["source"], "language": row["language"]}
        | {unit: row[f"{unit} {number}"] for unit in ("documents", "bytes")}
        for number, name in enumerate(names)
        for row in table
    ]
    keys = ["step", "reason", "source", "language"]
    gone = frame.where(col("step").not_null()).groupby(*keys)
    counted = gone.agg(col("id").count().alias("documents")).sort(keys).to_pylist()
    return {"steps": left_after, "removed": counted}


def examples(folder: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """For each step that removed documents, in order: its name, their number, and the `first` by id
    and the `longest`, as rows; the longest is left out where it is the first.
    """
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    counts: Counter[str] = Counter()
    first: dict[str, dict[str, Any]] = {}
    longest: dict[str, dict[str, Any]] = {}
    for table in curated.shards(folder, "removed"):
        for step in pc.unique(table["step"]).to_pylist():
            rows = table.filter(pc.equal(table["step"], step))
            counts[step] += len(rows)
            place = pc.index(rows["num_bytes"], pc.max(rows["num_bytes"])).as_py()
            # Rows of a shard are sorted by id.
            (low,), (big,) = rows.slice(0, 1).to_pylist(), rows.slice(place, 1).to_pylist()
            first[step] = min(first.get(step, low), low, key=lambda row: row["id"])
            longest[step] = max(
                longest.get(step, big), big, key=lambda row: (row["num_bytes"], row["id"])
            )
    for step in (name for name in record["steps"] if name in first):
        found = {"first": first[step]}
        if longest[step]["id"] != first[step]["id"]:
            found["longest"] = longest[step]
        yield step, counts[step], found


def summary(folder: Path) -> str:
    """The funnel of a finished run, its seconds and memory, in a few lines."""
    funnel = json.loads((folder / "funnel.json").read_text(encoding="utf-8"))
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    lines = []
    for step in record["steps"]:
        rows = [row for row in funnel["steps"] if row["step"] == step]
        documents, size = (sum(row[unit] for row in rows) for unit in ("documents", "bytes"))
        lines.append(f"  {step:<20} {documents:>11,} documents {size / 1e6:>11,.1f} MB")
    seconds, memory = record["seconds"]["all"], record["peak_bytes"] / 2**30
    return "\n".join([*lines, f"  {seconds:,.0f} s, {memory:.2f} GiB of memory at most"])
