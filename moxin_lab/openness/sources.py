"""Claims that the authors' own documents and printed tables decide, at any scale.

    judge_all(root)        # {"grpo.pure-rl": ("contradicted", "report v6, section 7.4: ..."), ...}

Guarantees: a verdict follows from the entries of `papers/claims.yml` and from the printed digits of
`papers/tables` by the rule in its function's docstring; whoever changes an entry changes the
verdict.
Out of scope: whether a document is right. `reproduced` here means that the documents agree, or that
printed numbers bear the sentence out; nothing was run.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from moxin_lab.lab import claims, published
from moxin_lab.lab.recording import Judged, reproduced_if
from moxin_lab.lab.rules import all_of

DOCUMENTED = (
    "data.uncontaminated",
    "pretraining.phase-3-content",
    "pretraining.phase-3-science",
    "pretraining.framework-2x",
    "grpo.pure-rl",
    "grpo.data-r1",
    "mof.reproducible",
)
"""Claims whose entry lists what documents say (`documents`)."""
ZERO_SHOT = "table_2_zero_shot_base.csv"
REASONING = "table_7_reasoning.csv"
RELEASED = "Moxin-7B-Enhanced"
"""Row of table 2 whose weights were released as the base model."""
NORMAL_95 = 1.959964
"""Half width of a 95 % interval in standard errors."""


def judge_all(root: Path) -> dict[str, Judged]:
    """Every claim of this module, by id. Raises LabError for a claims file that is malformed,
    ValueError for a table that is.
    """
    tables = root / "papers" / "tables"
    entries = {entry["file"]: entry for entry in published.index(tables)}
    said = claims.documents(root)
    items = next(c for c in claims.load(root) if c["id"] == "eval.above-similar-7b")["items"]
    best = judge_best(
        published.table(tables, REASONING),
        list(entries[REASONING]["ours"]),
        entries[REASONING]["left_out"],
        entries[REASONING]["copied_from"].split(",")[0],
    )
    return {
        **{claim: judge_documents(said[claim]) for claim in DOCUMENTED},
        "eval.above-similar-7b": judge_above(published.table(tables, ZERO_SHOT), RELEASED, items),
        "eval.sota-7b": best,
        "eval.only-larger": best,
    }


def judge_documents(entries: Sequence[Mapping[str, Any]]) -> Judged:
    """Reproduced if every document agrees with the sentence, contradicted if one does not."""
    against = [entry for entry in entries if not entry["agrees"]]
    words = "; ".join(f"{entry['source']}: {entry['says'].rstrip('.')}" for entry in entries)
    return reproduced_if(
        not against,
        f"{len(entries) - len(against)} of {len(entries)} documents agree. {words}.",
    )


def judge_above(table: pd.DataFrame, row: str, items: Mapping[str, int]) -> Judged:
    """Whether `row` is above each other 7B row on each benchmark of `items` (number of questions).

    On one benchmark: contradicted if a peer's printed value is higher; reproduced if the 95 %
    interval of the difference to each peer is above zero (two independent binomial shares, normal
    approximation); else no difference seen. Of all benchmarks, the least favourable. Peers are the
    rows with 7B in their name that are not Moxin's.
    """
    peers = [name for name in table.index if _is_7b(name) and "Moxin" not in name]
    parts, words = [], []
    for benchmark, count in items.items():
        mine, others = table.loc[row, benchmark], table.loc[peers, benchmark].astype(float)
        best = others.idxmax()
        half = NORMAL_95 * math.sqrt(
            sum(value * (100 - value) / count for value in (mine, others[best]))
        )
        ahead = list(others.index[others > mine])
        difference = mine - others[best]
        parts.append(
            "contradicted"
            if ahead
            else "reproduced"
            if difference - half > 0
            else "no difference seen"
        )
        words.append(
            f"{benchmark} {mine:g}: {len(ahead)} of {len(peers)} peers print more, {best} most "
            f"({others[best]:g}); the difference is {difference:+.2f} points, its 95 % interval "
            f"{difference - half:+.2f} to {difference + half:+.2f} ({count:,} questions)"
        )
    return all_of(parts), f"By the printed numbers of table 2: {'; '.join(words)}."


def judge_best(
    table: pd.DataFrame, ours: Sequence[str], left_out: Mapping[str, Sequence[float]], origin: str
) -> Judged:
    """Reproduced if no 7B row that the table leaves out has a higher mean than the best of `ours`.

    left_out: values of each such row in the order of the table's columns, without "Ave". origin:
    where they are printed. Raises ValueError for a row of another length.
    """
    columns = [name for name in table.columns if name != "Ave"]
    if wrong := [name for name, values in left_out.items() if len(values) != len(columns)]:
        raise ValueError(f"left_out row {wrong[0]} has not {len(columns)} values")
    means = table.loc[list(ours), columns].astype(float).mean(axis=1)
    others = {name: sum(values) / len(columns) for name, values in left_out.items() if _is_7b(name)}
    higher = {name: mean for name, mean in others.items() if mean > means.max()}
    listed = ", ".join(f"{name} {mean:.2f}" for name, mean in higher.items())
    return reproduced_if(
        not higher,
        f"Mean of {', '.join(columns)}: {means.idxmax()} {means.max():.2f}. Of {len(others)} "
        f"further 7B rows of {origin}, {len(higher)} are higher"
        + (f": {listed}." if higher else "."),
    )


def _is_7b(row: str) -> bool:
    return re.search(r"\b7b\b", row, re.IGNORECASE) is not None
