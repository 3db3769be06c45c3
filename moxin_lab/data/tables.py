"""Tables and excerpts of notebook 01.

Guarantees: numbers are counted from the tables that are passed in; no document is changed.
Out of scope: displaying (`stage.show_table`); captions.
"""

import difflib
from typing import Any

import pandas as pd
import pyarrow as pa

from moxin_lab.data.curate import STEPS
from moxin_lab.data.measures import only

MAX_LINE_CHARACTERS = 150
"""Longest line of an excerpt; longer ones are cut."""


def other_languages(foreign: pa.Table) -> pd.DataFrame:
    """Number of documents rejected by `clean.drop_foreign`, by stated and identified language."""
    frame = pd.DataFrame(
        {
            "stated": foreign["language"].to_pylist(),
            "mostly": [text[:2] for text in foreign["detail"].to_pylist()],
        }
    )
    counted = frame.value_counts().reset_index(name="documents")
    return counted.sort_values(["stated", "documents"], ascending=[True, False])


def closest_pair(pairs: pa.Table, threshold: float, prefix: str) -> dict[str, Any] | None:
    """The most similar pair with at least the threshold, or None.

    Pairs below a similarity of 1, and pairs whose `a` begins with `prefix`, come first.
    pairs: columns a, b, jaccard.
    """
    close = [row for row in pairs.to_pylist() if row["jaccard"] >= threshold]
    close = [row for row in close if row["a"].startswith(prefix)] or close
    return max(close, key=lambda row: (row["jaccard"] < 1.0, row["jaccard"]), default=None)


def lines(documents: pa.Table, document_id: str) -> list[str]:
    """The lines of a document, given by its id, that are not empty."""
    text = only(documents, id=document_id)["text"][0].as_py()
    return [line for line in text.splitlines() if line.strip()]


def different_lines(removed: list[str], kept: list[str]) -> list[str]:
    """The lines in which two documents differ: `-` of the removed one, `+` of the kept one."""
    return [
        line[:MAX_LINE_CHARACTERS]
        for line in difflib.unified_diff(removed, kept, lineterm="", n=0)
        if line[:2] not in ("--", "++", "@@")
    ]


def left_after_each_step(counts: pd.DataFrame, value: str) -> pd.DataFrame:
    """`documents` or `bytes` after each step, steps in order: one column per language.

    counts: the table of `Funnel.counts`.
    """
    steps = [step for step in STEPS if step in set(counts["step"])]
    table = counts.pivot_table(index="step", columns="language", values=value, aggfunc="sum")
    return table.loc[steps]


def overlap_by_language(overlap: pd.DataFrame) -> pd.DataFrame:
    """Mean share of held-out tokens that training text has too, and the share of documents of which
    at least half is covered, both in percent.

    overlap: the table of `split.overlap`.
    """
    groups = overlap["covered"].groupby(overlap["language"])
    return pd.DataFrame(
        {
            "tokens seen, mean %": 100 * groups.mean(),
            "documents with half seen, %": 100 * groups.agg(lambda part: (part >= 0.5).mean()),
        }
    )
