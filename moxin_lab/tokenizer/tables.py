"""Tables of the tokenizer notebook, and the record of their measures.

Guarantees: tables and measures hold the numbers of the frames that `measures` computed, unrounded;
`stage.show_table` rounds when it displays them.
Out of scope: counting tokens and computing intervals, which `measures` does.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from moxin_lab.lab import Stage
from moxin_lab.tokenizer import learn
from moxin_lab.tokenizer.measures import renyi_efficiency, with_interval

COMPARISONS = {
    "over Mistral v0.1": ("routed", "Mistral v0.1"),
    "over joint BPE": ("routed", "joint BPE"),
    "equal weights, over joint BPE": ("routed, equal weights", "joint BPE"),
}
"""Gains that notebook 02 shows: name to (tokenizer, peer)."""


def merges_example(words: Mapping[str, int], shown: str, count: int) -> pd.DataFrame:
    """BPE by hand: the first merges of a few words, and how `shown` is cut after each.

    words: word to how often it occurs. Columns: merge, joins, and the pieces of `shown`.
    """
    pieces = list(shown)
    rows = [(0, "nothing yet", " ".join(pieces))]
    for number, (left, right) in enumerate(learn.merges(words, count), start=1):
        at = 0
        while at < len(pieces) - 1:
            if (pieces[at], pieces[at + 1]) == (left, right):
                pieces[at : at + 2] = [left + right]
            at += 1
        rows.append((number, f"{left} + {right}", " ".join(pieces)))
    return pd.DataFrame(rows, columns=["merge", "joins", f"{shown!r} in pieces"]).set_index("merge")


def worth_example(
    formed: Mapping[str, Sequence[float]], num_bytes: Mapping[str, int], favoured: str
) -> pd.DataFrame:
    """`Pool.by_worth` on a few candidates: how often each is formed in the text of each language,
    its worth with equal weights and with `favoured` weighing twice, and its place in the order in
    which ids are given out. One row per candidate.

    formed: token to numbers in the order of num_bytes.
    """
    candidates = tuple(
        learn.Candidate(token.encode(), (), None, tuple(counts)) for token, counts in formed.items()
    )
    pool = learn.Pool(candidates, dict(num_bytes), 1, 16)
    table = pd.DataFrame(
        {f"formed, {name}": [c[i] for c in formed.values()] for i, name in enumerate(num_bytes)},
        index=pd.Index(formed, name="candidate"),
    )
    for title, factor in (("equal weights", 1.0), (f"{favoured} twice", 2.0)):
        weights = dict.fromkeys(num_bytes, 1.0) | {favoured: factor}
        ordered = pool.by_worth(weights)
        worth = {candidate.token.decode(): value for value, candidate in ordered}
        table[f"worth, {title}"] = [worth[token] for token in formed]
        table[f"taken, {title}"] = [list(worth).index(token) + 1 for token in formed]
    return table


def evenness_example(uses: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """`renyi_efficiency` of a few small vocabularies: how often each id is used, and the efficiency
    of order 2.5.

    uses: a few words on a vocabulary to the numbers of its ids.
    """
    return pd.DataFrame(
        {
            "each id is used": [", ".join(map(str, counts)) for counts in uses.values()],
            "efficiency": [
                renyi_efficiency(np.array(counts), len(counts)) for counts in uses.values()
            ],
        },
        index=pd.Index(uses, name="vocabulary"),
    )


def record(
    stage: Stage,
    frame: pd.DataFrame,
    name: str,
    unit: str,
    *,
    headlines: Collection[tuple[str, str]] = (),
    **labels: Any,
) -> None:
    """Record a column of a table of measures in the stage: one measure per row.

    Args:
        frame: columns `language`, `tokenizer` and the one that `name` names. With columns `low` and
            `high`, rows in which they are not NaN are recorded with that interval.
        headlines: (tokenizer, language) of the rows for the report's first page.
        labels: labels of every row beside its language and its tokenizer.
    """
    for row in frame.to_dict("records"):
        stage.measure(
            name,
            row[name],
            unit=unit,
            interval=(row["low"], row["high"]) if pd.notna(row.get("low")) else None,
            headline=(row["tokenizer"], row["language"]) in headlines,
            language=row["language"],
            tokenizer=row["tokenizer"],
            **labels,
        )


def trade_off_in_words(curve: pd.DataFrame) -> str:
    """The lines of `figures.trade_off_figure` in words. curve: the table of `budget.trade_off`."""
    lines = []
    for factor, rows in curve.groupby("factor"):
        percents = zip(rows["language"], 100 * (rows["relative"] - 1), strict=True)
        gains = ", ".join(f"{language} {percent:+.1f} %" for language, percent in percents)
        lines.append(f"weight {factor:g}: {gains}")
    return "; ".join(lines) + "."


def heights(compression: pd.DataFrame) -> str:
    """The bars of `figures.bars_figure` in words. compression: the table of
    `measures.compression`.
    """
    return (
        "; ".join(
            f"{row.language}, {row.tokenizer}: {row.bytes_per_token:.2f}"
            for row in compression.itertuples()
        )
        + "."
    )


def gains_in_words(gains: pd.DataFrame, comparison: str, languages: Sequence[str]) -> str:
    """The gains of one comparison with their intervals, such as `zh +2.1 [+1.8, +2.4] %`.

    gains: the table of `measures.gain`.
    """
    rows = gains[gains["tokenizer"] == comparison].set_index("language").loc[list(languages)]
    texts = with_interval(rows, "gain", 1, signed=True)
    return ", ".join(
        f"{language} {text} %" for language, text in zip(rows.index, texts, strict=True)
    )


def gains_over_peers(gains: pd.DataFrame, languages: Sequence[str]) -> str:
    """What the gains over Mistral v0.1 and over the joint BPE are in these languages, in sentences.

    gains: the table of `measures.gain` with both comparisons. languages: some or none of zh, ja
    and ko.
    """
    if not languages:
        return "The text of this scale has no Chinese, Japanese or Korean to see a gain in."
    rows = gains[gains["language"].isin(list(languages))].set_index("language")
    over_mistral = rows.loc[rows["tokenizer"] == "over Mistral v0.1", "gain"]
    over_joint = rows[rows["tokenizer"] == "over joint BPE"]
    better = ", ".join(over_joint.index[over_joint["low"] > 0]) or "none of them"
    worse = ", ".join(over_joint.index[over_joint["high"] < 0]) or "none of them"
    return (
        f"Over Mistral's tokenizer the routed one gains {over_mistral.min():.0f} to "
        f"{over_mistral.max():.0f} % in Chinese, Japanese and Korean. Over the joint BPE it gains "
        f"in {better} and loses in {worse}."
    )


def spread_of_premiums(premiums: pd.DataFrame) -> str:
    """The largest premium over the smallest for each tokenizer, in a sentence.

    premiums: the table of `measures.premium`, or an empty one if no page is translated.
    """
    if premiums.empty:
        return "The sets of this scale hold no translations of one page."
    by_tokenizer = premiums.groupby("tokenizer", sort=False)["premium"]
    spread = by_tokenizer.max() / by_tokenizer.min()
    words = ", ".join(
        f"{value:.2f} times the cheapest with {name}" for name, value in spread.items()
    )
    return f"The most expensive of the languages costs {words}."


def tokens_and_premiums(
    counts: pd.DataFrame, premiums: pd.DataFrame, tokenizers: Sequence[str]
) -> pd.DataFrame:
    """Tokens and premium of one text in several languages: one row per language, two columns per
    tokenizer.

    counts: the table of `measures.token_counts`, one document per language.
    premiums: the table of `measures.premium` on these counts.
    """
    table = counts.set_index("language")[list(tokenizers)].add_prefix("tokens, ")
    by_language = premiums.pivot(index="language", columns="tokenizer", values="premium")
    return table.join(by_language[list(tokenizers)].add_prefix("premium, "))


def block_use(usage: pd.DataFrame) -> pd.DataFrame:
    """The table of `measures.unused_share` to display: shares in percent, no special tokens."""
    table = usage[usage["ids"] > 0].set_index("block").drop(index="special")
    return pd.DataFrame(
        {
            "ids": table["ids"],
            "unused, %": 100 * table["unused"],
            "share of all tokens, %": 100 * table["tokens"],
        }
    )
