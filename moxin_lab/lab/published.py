"""The tables that Moxin printed (`papers/tables/`): the one reader of their digits, and their
averages recomputed.

Guarantees: values come from the CSV files, which hold the printed digits; everything said about a
table comes from `index.yml`; a file that is not a table, or is not in the index, is refused by
name.
Out of scope: comparing with any model of this lab, and how a table could be attempted
(evaluation/published.py).
"""

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

HALF_A_DIGIT = 0.005
"""Averages are printed to two decimals."""


def index(folder: Path) -> list[dict[str, Any]]:
    """Entries of `index.yml` in its order. folder: `papers/tables`.

    Raises ValueError if the index and the CSV files beside it do not name the same tables.
    """
    path = folder / "index.yml"
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["tables"]
    listed, present = (
        {entry["file"] for entry in entries},
        {file.name for file in folder.glob("*.csv")},
    )
    if listed != present:
        raise ValueError(
            f"{path} and the CSV files beside it differ in {', '.join(sorted(listed ^ present))}"
        )
    return entries


def table(folder: Path, file: str) -> pd.DataFrame:
    """One table: row names as the index; cells are floats, or strings where the table prints words.

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
    """Each printed average beside the mean of its row: table, model, printed, mean, agrees (to the
    printed digits).
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
