"""The page of a finished run of a pipeline, as Markdown: what went in and out, and examples.

    OUT/README.md     written by `moxin-lab curate`

Guarantees: every number is read from run.json, funnel.json or the shards; of a document's text at
most EXCERPT characters are shown.
Out of scope: the documents themselves, which are not for a repository.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from moxin_lab.data import funnel

EXCERPT = 160
LANGUAGES = 12
"""Languages with a column of their own; the others are one."""


def page(folder: Path, command: str) -> str:
    """Markdown. command: what made the run."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    counted = json.loads((folder / "funnel.json").read_text(encoding="utf-8"))
    steps = pd.DataFrame(counted["steps"])
    return (
        "\n\n".join(
            [
                f"# The recipe `{record['pipeline']}`: what it kept and dropped",
                f"Made by `{command}`.",
                _run(record),
                "## After each step",
                _after_each_step(steps, record["steps"]),
                "## Megabytes of text by language",
                _by_language(steps, record["steps"]),
                "## Removed documents by reason",
                _reasons(counted["removed"], record["steps"]),
                "## For each step the first document that it dropped, and the longest",
                _examples(folder),
            ]
        )
        + "\n"
    )


def _run(record: dict[str, Any]) -> str:
    size = sum(max(0, file[2]) for file in record["inputs"])
    lines = [
        f"- {len(record['inputs'])} files of {size / 1e6:,.1f} MB (compressed), "
        f"{len(record['failed'])} of them could not be read",
        f"- {record['seconds']['all']:,.0f} s of wall time, {record['cpu_seconds']:,.0f} s of "
        f"processor time, {record['peak_bytes'] / 2**30:.2f} GiB of memory at most",
        f"- held out: {record['heldout_share']:.1%} of the bytes asked for, seed {record['seed']}",
    ]
    rows = [[name, f"{value:,.1f}"] for name, value in record["seconds"].items()]
    return "\n".join(lines) + "\n\n" + _table(["part", "seconds"], rows)


def _after_each_step(steps: pd.DataFrame, names: list[str]) -> str:
    totals = steps.groupby("step")[["documents", "bytes"]].sum().loc[names]
    first = totals.iloc[0]
    rows = [
        [name, f"{row.documents:,}", f"{row.bytes / 1e6:,.1f}", f"{row.bytes / first.bytes:.1%}"]
        for name, row in zip(totals.index, totals.itertuples(), strict=True)
    ]
    return _table(["step", "documents", "MB", "of the bytes read"], rows)


def _by_language(steps: pd.DataFrame, names: list[str]) -> str:
    read = steps[steps["step"] == names[0]].groupby("language")["bytes"].sum()
    largest = list(read.sort_values(ascending=False).index[:LANGUAGES])
    named = steps["language"].where(steps["language"].isin(largest), "others")
    table = steps.assign(language=named).pivot_table(
        index="step", columns="language", values="bytes", aggfunc="sum", fill_value=0
    )
    columns = [name for name in (*largest, "others") if name in table.columns]
    rows = [[name, *(f"{table.loc[name, key] / 1e6:,.1f}" for key in columns)] for name in names]
    return _table(["step", *columns], rows)


def _reasons(removed: list[dict[str, Any]], names: list[str]) -> str:
    if not removed:
        return "None."
    counts = pd.DataFrame(removed).groupby(["step", "reason"])["documents"].sum().reset_index()
    counts["place"] = counts["step"].map(names.index)
    counts = counts.sort_values(["place", "documents"], ascending=[True, False])
    rows = [[row.step, row.reason, f"{row.documents:,}"] for row in counts.itertuples()]
    return _table(["step", "reason", "documents"], rows)


def _examples(folder: Path) -> str:
    parts = []
    for step, _, examples in funnel.examples(folder):
        parts.append(f"**{step}**")
        for which, row in examples.items():
            text = " ".join(row["text"][: 4 * EXCERPT].split())[:EXCERPT].replace("`", "'")
            parts.append(
                f"- the {which}: `{row['id']}`, {row['num_bytes']:,} bytes; {row['reason']}: "
                f"{row['detail'][:EXCERPT]}" + (f"\n  `{text}`" if text else "")
            )
    return "\n".join(parts)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
