"""Committed measurements (`moxin-lab bench ... --json`) read back for a page: the table, the
machine, ratios to the peers.

    record = read(root / "reports/released/h100", "decode")        # None where nothing was committed
    comparison(record)                                             # one row an implementation, with `times the best peer`
    origin(record)                                                 # GPU, versions, date, command, in one sentence
    python -m moxin_lab.bench.released reports/released/h100       # writes these tables as the folder's README.md

Guarantees: nothing is computed but ratios within one file, so within one run on one machine; a row
that could not run keeps its reason; a file that is not what a bench writes is refused by name. Does
not: judge.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

# Bench -> columns that make rows comparable, columns that are compared, and whether larger is
# better.
COMPARED: dict[str, tuple[tuple[str, ...], tuple[str, ...], bool]] = {
    "attention": (
        ("run", "tokens", "rows", "document_tokens"),
        ("forward_tflops", "backward_tflops"),
        True,
    ),
    "decode": (("rows", "tokens"), ("ms_per_token",), False),
    "prefill": (("tokens",), ("ms",), False),
    "train-step": (("run",), ("median_ms",), False),
    "sft": ((), ("tokens_per_second",), True),
    "rollout": (("rows", "new_tokens"), ("tokens_per_second",), True),
    "overlap": ((), ("seconds_per_step",), False),
    "towers": ((), ("images_per_second",), True),
}
BESIDE = {
    "overlap": ("staleness", "modelled_times_synchronous"),
    "sft": ("median_step_seconds", "first_loss", "peak_bytes"),
    "decode": ("floor_ms",),
    "prefill": ("chunk", "floor_ms"),
    "train-step": ("model_flops_utilisation", "tokens_per_second"),
}
NAMED_BY = {"sft": ("what", "layout", "attention"), "overlap": ("arrangement", "sampler")}
"""Columns that name a row together, where a bench has no column `implementation`."""
OUR_BACKENDS = ("auto", "triton")
OTHER_WORK = "full triangle"  # more pairs than the window has: a rate to see, not a peer


def read(folder: Path, bench: str) -> dict[str, Any] | None:
    """The record of a bench, or None where its file is not there. Raises ValueError for a file that
    is no such record.
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
    return record


def origin(record: dict[str, Any]) -> str:
    """Machine, versions, date and command of a record as one sentence, and the note of whoever
    committed it.
    """
    machine = record["machine"]
    chip = (
        machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    )
    versions = machine["versions"]
    packages = ("torch", "triton", "transformers", "flash-attn-4")
    named = ", ".join(f"{name} {versions[name]}" for name in packages if name in versions)
    note = f" {record['note']}" if "note" in record else ""
    return f"Measured on {chip} on {machine['date']} with {named}: `{record['command']}`.{note}"


def is_ours(implementation: str) -> bool:
    """Ours, or, of `bench overlap`, what is compared with one after the other."""
    return (
        implementation.startswith(("ours", "moxin-lab", "overlapped"))
        or implementation in OUR_BACKENDS
    )


def comparison(record: dict[str, Any]) -> pd.DataFrame:
    """The rows of a record with `<column> against the best peer`: above 1 is faster than every peer
    in the same run and shape.

    Columns: implementation, those that make rows comparable, those compared and their ratios, what
    stands beside them, and `could not run because` where a row has a reason. Raises ValueError for
    a bench that this table does not know.
    """
    bench = record["bench"]
    if bench not in COMPARED:
        raise ValueError(
            f"no comparison is defined for bench {bench!r}: known are {', '.join(COMPARED)}"
        )
    keys, compared, larger_is_better = COMPARED[bench]
    frame = pd.DataFrame(record["rows"])
    if bench in NAMED_BY:
        frame["implementation"] = frame[list(NAMED_BY[bench])].agg(", ".join, axis=1)
    keys = tuple(key for key in keys if key in frame)
    for column in (*compared, "reason"):
        if column not in frame:
            frame[column] = None
    peers = ~frame["implementation"].map(is_ours) & ~frame["implementation"].str.contains(
        OTHER_WORK
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
    for column in BESIDE.get(bench, ()):
        if column in frame:
            shown[column] = frame[column]
    if frame["reason"].notna().any():
        shown["could not run because"] = frame["reason"].fillna("")
    return shown


def page(folder: Path) -> str:
    """Markdown of every record in a folder: origin, table, note. Deterministic, so a test can hold
    the committed page to it.
    """
    parts = [
        "# Measurements on one GPU",
        "Made from the JSON files of this folder by `python -m moxin_lab.bench.released`; ratios are within one run, above 1 is "
        "faster than the best peer there.",
    ]
    for bench in COMPARED:
        record = read(folder, bench)
        if record is None:
            continue
        frame = comparison(record)
        parts += [f"## {bench}", origin(record)]
        lines = [
            frame.columns.tolist(),
            ["---"] * len(frame.columns),
            *frame.astype(object).to_numpy().tolist(),
        ]
        parts.append(
            "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)
        )
    return "\n\n".join(parts) + "\n"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ""
    return (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 1e4
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


if __name__ == "__main__":
    target = Path(sys.argv[1])
    (target / "README.md").write_text(page(target), encoding="utf-8")
