"""The tables that Moxin printed (`papers/tables/`): reads them, and recomputes their averages.

Guarantees: values come from the CSV files, which hold the printed digits; everything said about a table comes from `index.yml`.
Does not: compare with any model of this lab.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

HALF_A_DIGIT = 0.005
"""Averages are printed to two decimals."""


def index(root: Path) -> list[dict[str, Any]]:
    """Entries of `papers/tables/index.yml`, in its order."""
    return yaml.safe_load((root / "papers" / "tables" / "index.yml").read_text(encoding="utf-8"))["tables"]


def table(root: Path, file: str) -> pd.DataFrame:
    """One table; the first column is its index, the others are numbers."""
    return pd.read_csv(root / "papers" / "tables" / file, index_col=0).astype(float)


def averages(root: Path) -> pd.DataFrame:
    """Each printed average beside the mean of its row: table, model, printed, mean, agrees (to the printed digits)."""
    rows = []
    for entry in index(root):
        values = table(root, entry["file"])
        if "Ave" not in values:
            continue
        for model, row in values.iterrows():
            mean, printed = row.drop("Ave").mean(), row["Ave"]
            agrees = abs(mean - printed) <= HALF_A_DIGIT + 1e-9
            rows.append({"table": entry["title"], "model": model, "printed": printed, "mean": mean, "agrees": agrees})
    return pd.DataFrame(rows)
