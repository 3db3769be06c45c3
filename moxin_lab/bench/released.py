"""Reader of committed measurements (`moxin-lab bench ... --json`): tables, machine, and ratios to
the peers.

    record = read(root / "reports/released/h100", "decode")    # None if nothing was committed
    comparison(record)      # one row per implementation, with ratios to the best peer
    origin(record)          # GPU, versions, date and command in one sentence

    python -m moxin_lab.bench.released reports/released/h100   # writes the folder's README.md

Guarantees: only ratios within one file are computed, thus within one run on one machine; a row that
could not run keeps its reason; a file that no bench wrote, or whose run did not finish, raises an
error with its name.
Out of scope: verdicts, and the charts of the report (`lab/measured.py`).
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from moxin_lab.lab import measured


class Comparison(NamedTuple):
    """How the rows of a bench are compared."""

    keys: tuple[str, ...]
    """Columns that must be equal for rows to be comparable."""
    columns: tuple[str, ...]
    """Columns that are compared."""
    larger_is_better: bool


COMPARED = {
    "attention": Comparison(
        ("run", "tokens", "rows", "document_tokens"), ("forward_tflops", "backward_tflops"), True
    ),
    "decode": Comparison(("rows", "tokens"), ("ms_per_token",), False),
    "prefill": Comparison(("tokens",), ("ms",), False),
    "train-step": Comparison(("run",), ("median_ms",), False),
    "sft": Comparison((), ("tokens_per_second",), True),
    "rollout": Comparison(("rows", "new_tokens"), ("tokens_per_second",), True),
    "overlap": Comparison((), ("seconds_per_step",), False),
    "towers": Comparison((), ("images_per_second",), True),
}
ALSO_SHOWN = {
    "overlap": ("staleness", "modelled_times_synchronous"),
    "sft": ("median_step_seconds", "first_loss", "peak_bytes"),
    "decode": ("floor_ms",),
    "prefill": ("chunk", "floor_ms"),
    "train-step": ("model_flops_utilisation", "tokens_per_second"),
}
"""Further columns of the table."""
BAR_WIDTH = 30
"""Characters of the longest bar on the page of a folder. Our choice."""


def read(folder: Path, bench: str) -> dict[str, Any] | None:
    """The record of a bench, or None if there is no file. Raises ValueError for a file that is not
    a record of this bench, or of a run that did not finish.
    """
    path = folder / f"{bench.replace('-', '_')}.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        missing = {"bench", "device", "command", "machine", "rows"} - record.keys()
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{path} is not a record of `moxin-lab bench {bench}`: {error}") from error
    if missing or record["bench"] != bench:
        raise ValueError(
            f"{path} is not a record of `moxin-lab bench {bench}`: it says {record.get('bench')!r}"
            + (f" and lacks {', '.join(sorted(missing))}" if missing else "")
        )
    if cut := measured.unfinished(record):
        raise ValueError(f"{path} {cut}")
    return record


def records(folder: Path, bench: str) -> list[dict[str, Any]]:
    """Every record of a bench in a folder, whatever the files' names. Raises ValueError if there is
    none, or one of a run that did not finish.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict) and record.get("bench") == bench:
            if cut := measured.unfinished(record):
                raise ValueError(f"{path} {cut}")
            found.append(record)
    if not found:
        raise ValueError(f"{folder} has no JSON file of `moxin-lab bench {bench}`")
    return found


def origin(record: dict[str, Any]) -> str:
    """Machine, versions, date and command of a record in one sentence, followed by its note if it
    has one.
    """
    machine = record["machine"]
    chip = (
        machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    )
    versions = machine["versions"]
    packages = ("torch", "triton", "transformers", "flash-attn-4")
    installed = ", ".join(f"{name} {versions[name]}" for name in packages if name in versions)
    note = f" {record['note']}" if "note" in record else ""
    return f"Measured on {chip} on {machine['date']} with {installed}: `{record['command']}`.{note}"


def is_ours(implementation: str) -> bool:
    """Whether a row is ours and not a peer. In `bench overlap` the peer is the synchronous
    arrangement, "one after the other".
    """
    return implementation.startswith(measured.OURS)


def comparison(record: dict[str, Any]) -> pd.DataFrame:
    """The rows of a record with `<column> against the best peer`: above 1 is faster than every peer
    in the same run with the same shape.

    Columns: implementation, the keys of the comparison, the compared columns and their ratios, the
    columns of ALSO_SHOWN, and `could not run because` if a row has a reason. Raises ValueError for
    a bench that is not in COMPARED.
    """
    bench = record["bench"]
    if bench not in COMPARED:
        raise ValueError(
            f"no comparison is defined for bench {bench!r}: known are {', '.join(COMPARED)}"
        )
    keys, compared, larger_is_better = COMPARED[bench]
    frame = pd.DataFrame(record["rows"])
    named_by = next(each.named_by for each in measured.QUESTIONS if each.bench == bench)
    frame["implementation"] = frame[list(named_by)].agg(", ".join, axis=1)
    keys = tuple(key for key in keys if key in frame)
    for column in (*compared, "reason"):
        if column not in frame:
            frame[column] = None
    peers = ~frame["implementation"].map(is_ours) & ~frame["implementation"].str.contains(
        measured.OTHER_WORK
    )
    shown = frame[["implementation", *keys]].copy()
    for column in compared:
        values = pd.to_numeric(frame[column])
        shapes = [frame[key] for key in keys] or [pd.Series(0, index=frame.index)]
        best = values.where(peers).groupby(shapes).transform("max" if larger_is_better else "min")
        shown[column] = values
        shown[f"{column} against the best peer"] = (
            values / best if larger_is_better else best / values
        )
    for column in ALSO_SHOWN.get(bench, ()):
        if column in frame:
            shown[column] = frame[column]
    if frame["reason"].notna().any():
        shown["could not run because"] = frame["reason"].fillna("")
    return shown


def page(folder: Path) -> str:
    """Markdown of a folder of `reports/released`: one chart per question, then what the runs were.
    It is deterministic, so a test can compare it with the committed page.
    """
    parts = [
        "# Measurements on one GPU",
        "Made from the JSON files of this folder, which hold every row, by "
        f"`python -m moxin_lab.bench.released`. {measured.RULE}",
    ]
    for chart in measured.charts(folder.parents[2], folder.name):
        parts += [f"## {chart.question.title}", chart.finding, _chart_table(chart)]
    parts.append("## What the runs were")
    asked = dict.fromkeys([*COMPARED, *(question.bench for question in measured.QUESTIONS)])
    records = (read(folder, bench) for bench in asked)
    parts += [f"**{record['bench']}.** {origin(record)}" for record in records if record]
    return "\n\n".join(part for part in parts if part) + "\n"


def _chart_table(chart: measured.Chart) -> str:
    """A Markdown table with a bar per row; the limit of the hardware is a row of its own."""
    digits = chart.question.digits
    better = "higher" if chart.question.larger_is_better else "lower"
    lines = [("implementation", f"{chart.question.unit} ({better} is better)", ""), ("---",) * 3]
    if chart.floor is not None:
        lines.append((f"*{chart.floor_name}*", f"{chart.floor:,.{digits}f}", _bar(chart, None)))
    lines += [(bar.name, bar.in_words(digits), _bar(chart, bar)) for bar in chart.bars]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _bar(chart: measured.Chart, bar: measured.Bar | None) -> str:
    value = chart.floor if bar is None else bar.value
    if value is None:
        return ""
    return ("▒" if bar is None else "█") * max(1, round(chart.share(value) / 100 * BAR_WIDTH))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    (target / "README.md").write_text(page(target), encoding="utf-8")
