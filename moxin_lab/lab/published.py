"""The tables that Moxin's authors printed (`papers/tables/`), and their averages recomputed.

    entries = index(root / "papers" / "tables")
    frame = table(root / "papers" / "tables", entries[0]["file"])

Guarantees: values come from the CSV files, which hold the printed digits; titles, sources and notes
come from `index.yml`; a file that is not a table, or is not in the index, is refused by name.
Out of scope: comparing with a model of this lab, and how a table could be attempted
(evaluation/published.py).
"""

import csv
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

    Raises ValueError naming a file whose rows do not all have the header's cells.
    """
    path = folder / file
    with path.open(encoding="utf-8", newline="") as lines:
        header, *rows = list(csv.reader(lines))
    if not rows or any(len(row) != len(header) for row in rows):
        raise ValueError(
            f"{path} is not a table: it needs a header and rows of {len(header)} cells"
        )
    names = pd.Index([row[0] for row in rows], name=header[0])
    columns = {
        name: [_number(row[i]) for row in rows] for i, name in enumerate(header[1:], start=1)
    }
    return pd.DataFrame(columns, index=names)


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


def _number(text: str) -> float | str:
    """A printed number; words stay words."""
    try:
        return float(text)
    except ValueError:
        return text
