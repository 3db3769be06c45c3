"""The command `moxin-lab export`: its arguments, and what it prints.

Out of scope: the export itself (`folders.py`). Nothing heavy is imported before the command runs.
"""

import argparse
from pathlib import Path
from typing import Any

from moxin_lab.export import TARGETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", required=True, choices=TARGETS, help="the format")
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="a language model's folder with its tokenizer, or a GGUF file",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--dtype",
        metavar="NAME",
        help="float32, bfloat16 or float16; for gguf also q8_0 or q4_0 (default: as stored)",
    )
    parser.add_argument(
        "--group-size",
        type=int,
        metavar="N",
        help="for torchao-int4: numbers that share a scale (default: the largest of 128, 64, 32 "
        "that fits)",
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="held-out text (parquet with a column text, or UTF-8) on which bits per byte are "
        "measured before and after",
    )
    parser.add_argument(
        "--text-bytes", type=int, default=20_000, metavar="N", help="of it (default 20,000)"
    )


def export(options: argparse.Namespace) -> int:
    """Exports, and prints what `export.json` says. Raises LabError."""
    from moxin_lab.export import folders, scores

    texts = (
        None if options.text is None else scores.read_texts(Path(options.text), options.text_bytes)
    )
    report = folders.export(
        Path(options.model),
        options.to,
        Path(options.out),
        dtype=options.dtype,
        group_size=options.group_size,
        texts=texts,
    )
    print(in_text(report, options.out))
    return 0


def in_text(report: dict[str, Any], out: str) -> str:
    """A report as lines."""
    before, after = report["bytes_before"], report["bytes_after"]
    lines = [
        f"written: {out} ({report['target']}, {report['dtype']})",
        f"bytes of the weights: {before:,} before, {after:,} after ({after / before:.1%})",
    ]
    if report.get("bytes_packed", after) != after:
        lines.append(f"bytes with two numbers of 4 bits in a byte: {report['bytes_packed']:,}")
    if "tensors_compared" in report:
        lines.append(f"tensors read back and found equal: {report['tensors_compared']}")
    for when in ("before", "after", "difference"):
        if f"bits_per_byte_{when}" in report:
            found = report[f"bits_per_byte_{when}"]
            lines.append(
                f"bits per byte, {when}: {found['value']:.4f} "
                f"({found['low']:.4f} to {found['high']:.4f})"
            )
    return "\n".join([*lines, *(f"note: {note}" for note in report["notes"])])
