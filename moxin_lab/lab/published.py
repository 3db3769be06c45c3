"""The tables that Moxin's authors printed (`papers/tables/`), and their averages recomputed.

    entries = index(root / "papers" / "tables")
    frame = table(root / "papers" / "tables", entries[0]["file"])
    every = cells(root / "papers" / "tables")                # one row per printed cell

Guarantees: values come from the CSV files, which hold the printed digits; titles, sources and notes
come from `index.yml`; a file that is not a table, or is not in the index, is refused by name, with
the row: cells too many or too few, an empty cell, a name twice, a value that is no finite number.
Out of scope: comparing with a model of this lab, and how a table could be attempted
(evaluation/published.py).
"""

import csv
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd

from moxin_lab.lab.artifacts import read_yaml

HALF_A_DIGIT = 0.005
"""Largest rounding error of an average printed to two decimals."""


def index(folder: Path) -> list[dict[str, Any]]:
    """Entries of `index.yml` in its order. folder: `papers/tables`.

    Raises ValueError if the index and the CSV files beside it do not name the same tables, LabError
    if the index cannot be read.
    """
    path = folder / "index.yml"
    try:
        entries = read_yaml(path)["tables"]
        listed = {entry["file"] for entry in entries}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} has no list `tables` of entries with a file") from error
    present = {file.name for file in folder.glob("*.csv")}
    if listed != present:
        raise ValueError(
            f"{path} and the CSV files beside it differ in {', '.join(sorted(listed ^ present))}"
        )
    return entries


def table(folder: Path, file: str) -> pd.DataFrame:
    """One table: row names are the index; cells are floats, or strings where words are printed.

    Raises ValueError naming a file that is not text in UTF-8 without a byte order mark, and the row
    that is not as the module's docstring says.
    """
    path = folder / file
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            header, *rows = list(csv.reader(lines, strict=True))
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise ValueError(f"{path} is not a table: {error or 'it is empty'}") from error
    if header and header[0].startswith("\ufeff"):
        raise ValueError(f"{path} begins with a byte order mark: save it as UTF-8 without one")
    if not rows:
        raise ValueError(f"{path} is not a table: it needs a header and rows")
    for number, row in enumerate([header, *rows], 1):
        if len(row) != len(header):
            raise ValueError(
                f"{path} is not a table: row {number} has {len(row)} cells and the header "
                f"{len(header)}"
            )
        if any(not cell or cell != cell.strip() for cell in row):
            raise ValueError(f"{path}, row {number}: a cell is empty or begins or ends in a blank")
    for what, found in (("column", header), ("row", [row[0] for row in rows])):
        if twice := sorted({name for name in found if found.count(name) > 1}):
            raise ValueError(f"{path} has {what} {', '.join(twice)} twice")
    names = pd.Index([row[0] for row in rows], name=header[0])
    columns = {
        name: [_number(row[i], f"{path}, row {row[0]}, {name}") for row in rows]
        for i, name in enumerate(header[1:], start=1)
    }
    return pd.DataFrame(columns, index=names)


def items(folder: Path) -> dict[str, int]:
    """Questions behind a cell, by column (`items` of `index.yml`). Raises ValueError for a number
    that is none.
    """
    found = read_yaml(folder / "index.yml").get("items") or {}
    if wrong := [name for name, count in found.items() if type(count) is not int or count < 1]:
        raise ValueError(f"{folder / 'index.yml'}: items of {', '.join(map(str, wrong))}")
    return dict(found)


def cells(folder: Path) -> pd.DataFrame:
    """Every printed cell of every table as a row: table, model, benchmark, value (a float, or the
    printed word), metric, shots, n (questions, missing where they are not known), source, note.
    """
    counts = items(folder)
    rows = []
    for entry in index(folder):
        notes = " ".join(entry.get("notes", ()))
        for model, row in table(folder, entry["file"]).iterrows():
            for benchmark, value in row.items():
                rows.append(
                    {
                        "table": entry["file"].removesuffix(".csv"),
                        "model": model,
                        "benchmark": benchmark,
                        "value": value,
                        "metric": str(entry.get("metric", "not stated")),
                        "shots": str(entry.get("shots", "not stated")),
                        "n": counts.get(str(benchmark)),
                        "source": entry["source"],
                        "note": notes,
                    }
                )
    return pd.DataFrame(rows).astype({"n": "Int64"})


def averages(folder: Path) -> pd.DataFrame:
    """Each printed average and the mean of its row; one row per average.

    Columns: table, model, printed, mean, agrees (to the printed digits).
    """
    rows = []
    for entry in index(folder):
        values = table(folder, entry["file"])
        if "Ave" not in values:
            continue
        for model, row in values.iterrows():
            mean, printed = row.drop("Ave").mean(), row["Ave"]
            agrees = abs(mean - printed) <= HALF_A_DIGIT + 1e-9
            rows.append(
                {
                    "table": entry["title"],
                    "model": model,
                    "printed": printed,
                    "mean": mean,
                    "agrees": agrees,
                }
            )
    return pd.DataFrame(rows)


_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def _number(text: str, where: str) -> float | str:
    """A printed number; words stay words. Raises ValueError for what Python would read as a number
    and no table prints: nan, inf, 1_000, digits of other scripts.
    """
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value) or not _NUMBER.fullmatch(text) or not text.isascii():
        raise ValueError(f"{where}: {text!r} is no printed number")
    return value
