"""Tables and excerpts of notebook 01.

Guarantees: numbers are counted from the frames and shards that are passed in; no document is
changed.
Out of scope: displaying (`stage.show_table`); captions.
"""

import difflib
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from moxin_lab.data import artifact, funnel
from moxin_lab.data.extract import HUB_SETS
from moxin_lab.data.figures import LANGUAGES
from moxin_lab.data.sources import SOURCES, source
from moxin_lab.lab import show
from moxin_lab.scales.sections import DataSettings

MAX_LINE_CHARACTERS = 150
"""Longest line of an excerpt; longer ones are cut."""
MOST_SHOWN = 12
"""Columns or rows of a table; what has less text is one of them, `others`."""
_NEAR = re.compile(r"(.*) stays \(Jaccard ([\d.]+)\)", re.DOTALL)


def other_languages(removed: pd.DataFrame) -> pd.DataFrame:
    """Documents that the step `language` removed, by stated and identified language; the largest.

    removed: of `artifact.removed`.
    """
    foreign = removed[removed["step"] == "language"]
    mostly = foreign["detail"].str.replace(r" \d+%.*", "", regex=True)
    frame = pd.DataFrame({"stated": foreign["language"], "mostly": mostly})
    counted = frame.value_counts().reset_index(name="documents").head(MOST_SHOWN)
    return counted.sort_values(["stated", "documents"], ascending=[True, False])


# ---- duplicates


def near_pairs(removed: pd.DataFrame) -> pd.DataFrame:
    """id, kept, jaccard: the removed near-duplicates and what each was removed for."""
    near = removed[removed["step"] == "near-duplicates"]
    found = [_NEAR.fullmatch(detail) for detail in near["detail"]]
    rows = [(key, *match.groups()) for key, match in zip(near["id"], found, strict=True) if match]
    assert len(rows) == len(near), "a near-duplicate's detail says what stays"
    frame = pd.DataFrame(rows, columns=["id", "kept", "jaccard"])
    return frame.astype({"jaccard": float})


def clusters(removed: pd.DataFrame) -> pd.DataFrame:
    """Clusters of exact and near-duplicates by number of documents: one row a range of sizes.

    A copy of a document that a later step removed counts for the one that stays.
    """
    copies = removed[removed["step"] == "exact duplicates"]
    kept_of = dict(zip(copies["id"], copies["detail"].str.removeprefix("copy of "), strict=True))
    near = near_pairs(removed)
    kept_of |= dict(zip(near["id"], near["kept"], strict=True))
    last = []
    for kept in kept_of.values():
        while kept in kept_of:
            kept = kept_of[kept]
        last.append(kept)
    sizes = pd.Series(last, dtype=object).value_counts() + 1
    edges = [1, 2, 3, 5, 10, 100, float("inf")]
    names = ["2", "3", "4 to 5", "6 to 10", "11 to 100", "more than 100"]
    ranges = pd.cut(sizes, edges, labels=names)
    table = pd.DataFrame({"documents in the cluster": ranges, "removed": sizes - 1})
    counted = table.groupby("documents in the cluster", observed=True)["removed"]
    counted = counted.agg(clusters="size", **{"documents removed": "sum"})
    return counted.reset_index().astype({"documents in the cluster": str})


def closest_pair(pairs: pd.DataFrame, prefix: str) -> dict[str, Any] | None:
    """The most similar pair below a similarity of 1, or None without pairs; pairs whose kept
    document begins with `prefix` come first.

    pairs: of `near_pairs`.
    """
    rows = pairs.to_dict("records")
    rows = [row for row in rows if row["kept"].startswith(prefix)] or rows
    return max(rows, key=lambda row: (row["jaccard"] < 1.0, row["jaccard"]), default=None)


def different_lines(removed: list[str], kept: list[str]) -> list[str]:
    """The lines in which two documents differ: `-` of the removed one, `+` of the kept one."""
    return [
        line[:MAX_LINE_CHARACTERS]
        for line in difflib.unified_diff(removed, kept, lineterm="", n=0)
        if line[:2] not in ("--", "++", "@@")
    ]


def difference_of_closest(folder: Path, removed: pd.DataFrame, prefix: str) -> str:
    """The pair of `closest_pair` as a diff in Markdown, or that there is none."""
    pair = closest_pair(near_pairs(removed), prefix)
    if pair is None:
        return "No near-duplicate was removed."
    texts = artifact.texts(folder, (pair["id"], pair["kept"]))
    gone, kept = (
        [line for line in texts[pair[key]].splitlines() if line.strip()] for key in ("id", "kept")
    )
    changed = "\n".join(different_lines(gone, kept)[:12]).replace("```", "'''")
    return (
        f"`{pair['id']}` against `{pair['kept']}`, Jaccard {pair['jaccard']:.3f}, {len(gone)} and "
        f"{len(kept)} lines:\n\n```diff\n{changed}\n```"
    )


# ---- sources, languages, licences


def sources(settings: DataSettings, counts: pd.DataFrame) -> pd.DataFrame:
    """Documents, megabytes and licence of each source that was read: one row per source.

    counts: of `artifact.make`.
    """
    read = counts[counts["step"] == "reading"].groupby("source")[["documents", "bytes"]].sum()
    table = pd.DataFrame({"documents": read["documents"], "MB of text": read["bytes"] / 1e6})
    table["licence"] = [source_licence(settings, name) for name in table.index]
    return table.reset_index()


def source_licence(settings: DataSettings, name: str) -> str:
    """The licence of a source as its entry or its card states it."""
    own = {corpus.name: corpus.licence for corpus in settings.corpora}
    if name in own:
        return own[name]
    if name in SOURCES:
        fields = source(name).licence
        return fields.get("license_name") or fields["license"]
    return "as the hub's card states" if name in HUB_SETS else "of each document its own"


def licences(settings: DataSettings, train: pd.DataFrame) -> pd.DataFrame:
    """Documents and megabytes of training text by licence: the document's own, or its source's.

    train: of `artifact.kept`.
    """
    of_source = train["source"].map(lambda name: source_licence(settings, name))
    return _largest(train, train["licence"].where(train["licence"] != "", of_source), "licence")


def programming_languages(train: pd.DataFrame) -> pd.DataFrame:
    """Documents and megabytes of code by programming language, where the source names it."""
    code = train[train["code_language"] != ""]
    return _largest(code, code["code_language"], "programming language")


def _largest(documents: pd.DataFrame, labels: pd.Series, name: str) -> pd.DataFrame:
    groups = documents.groupby(labels.rename(name))["num_bytes"].agg(["size", "sum"])
    groups = groups.sort_values(["sum", "size"], ascending=False)
    top, rest = groups.head(MOST_SHOWN), groups.iloc[MOST_SHOWN:]
    if len(rest):
        top = pd.concat([top, rest.sum().to_frame(f"{len(rest)} others").T])
    table = pd.DataFrame({"documents": top["size"], "MB of text": top["sum"] / 1e6})
    return table.rename_axis(name).reset_index()


def split_sizes(sides: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Documents and bytes of each side by language: columns `train documents`, `train bytes`, ...

    sides: name to the frame of `artifact.kept`.
    """
    parts = []
    for name, documents in sides.items():
        sizes = documents.groupby("language")["num_bytes"].agg(documents="size", bytes="sum")
        parts.append(sizes.add_prefix(f"{name} "))
    return pd.concat(parts, axis=1).fillna(0).astype(int).sort_index()


# ---- the funnel


def left_after_each_step(counts: pd.DataFrame, value: str, by: str = "language") -> pd.DataFrame:
    """`documents`, `bytes` or `megabytes` after each step, steps in order: one column for each
    `language` or `source`, by `by`; the smaller ones in one.

    counts: of `artifact.make`.
    """
    numbers = counts.assign(megabytes=counts["bytes"] / 1e6)
    totals = numbers.groupby(by)["bytes"].sum().sort_values(ascending=False)
    if len(totals) > MOST_SHOWN:
        shown = set(totals.index[: MOST_SHOWN - 1])
        numbers[by] = numbers[by].where(numbers[by].isin(shown), "others")
    steps = counts["step"].drop_duplicates()
    return numbers.pivot_table(index="step", columns=by, values=value, aggfunc="sum").loc[steps]


def steepest_fall(left: pd.DataFrame, unit: str) -> str:
    """What to look at in a table of `left_after_each_step`: the step that takes the largest share
    of a column, and the steps that take nothing of any.

    unit: of its numbers, in words.
    """
    share = (1 - left / left.shift().where(left.shift() > 0)).iloc[1:]
    idle = [f"*{step}*" for step in share.index[(share.fillna(0) == 0).all(axis=1)]]
    nothing = f" Nothing of any column goes at {', '.join(idle)}." if idle else ""
    if share.max(axis=None) <= 0 or share.isna().all(axis=None):
        return f"No step takes any {unit}."
    step, column = share.stack().idxmax()
    before, after = left[column].shift()[step], left[column][step]
    digits = 0 if pd.api.types.is_integer_dtype(left[column]) else 1
    name = f" ({LANGUAGES[column]})" if column in LANGUAGES else ""
    return (
        f"Look at *{step}* in the column `{column}`{name}, the steepest fall: "
        f"{before - after:,.{digits}f} of {before:,.{digits}f} {unit} go there "
        f"({100 * share[column][step]:.0f} %).{nothing}"
    )


def short_share(settings: DataSettings, counts: pd.DataFrame) -> float:
    """Percent of the documents that reached the short filter that it removed."""
    steps = counts["step"].drop_duplicates().tolist()
    before = steps[steps.index("short filter") - 1]
    seen = counts[~counts["source"].isin(settings.benchmark_sources)]
    sums = seen.groupby("step")["documents"].sum()
    return float(100 * (1 - sums["short filter"] / sums[before]))


def removed_share(counts: pd.DataFrame, removed: pd.DataFrame) -> float:
    """Percent of the bytes read that the short filter and both deduplications remove."""
    steps = ("short filter", "exact duplicates", "near-duplicates")
    gone = removed.loc[removed["step"].isin(steps), "num_bytes"].sum()
    return float(100 * gone / counts.loc[counts["step"] == "reading", "bytes"].sum())


def short_sentence(share: float, shares: pd.DataFrame) -> str:
    """What the short filter removes, and what counting characters costs a dense script. share: in
    percent; shares: of `measures.short_shares`.
    """
    worst = shares.loc[shares.iloc[:, -1].idxmax()]
    return (
        f"The rule removes {share:.1f} % of this corpus. Published for RedPajama: 1.86 %. Counting "
        "characters does not treat languages alike: of the pages long enough in English, "
        f"{worst.iloc[-1]:.0f} % fall under the limit in {LANGUAGES[worst['language']]}."
    )


NARROW = "overflow-wrap:anywhere"
"""Ids and lines of documents break where a narrow page ends."""


def show_dropped_examples(folder: Path) -> None:
    """Display `dropped_examples` in the notebook. As Markdown, a line of a document that begins
    with a hash would become a heading.
    """
    show.html_output(dropped_examples(folder), "(documents that each step dropped)")


def dropped_examples(folder: Path, characters: int = 400) -> str:
    """For each step the first document that it dropped, by id, and the longest, as folded HTML."""
    parts = []
    for step, count, examples in funnel.examples(folder):
        for which, row in examples.items():
            text = escape(row["text"][:characters], quote=False)
            about = f"{row['reason']}: {row['detail']}" if row["detail"] else row["reason"]
            title = f"{step}, the {which} of {count:,}: {row['id']}"
            body = f'<pre style="white-space:pre-wrap;{NARROW}">{text}</pre>' if text else ""
            parts.append(
                f'<details style="{NARROW}"><summary>{escape(title)}</summary>'
                f"<p>{escape(about[:200])}</p>{body}</details>"
            )
    return "".join(parts)


def cost_of_two_trillion(megabytes: float, cpu_seconds: float | None) -> str:
    """Core-days of the whole pipeline for 2 trillion tokens of 4 bytes, in a sentence."""
    if cpu_seconds is None:
        return "This run went on where another was killed, so its seconds say nothing of its rate."
    rate = megabytes / cpu_seconds
    days = 2e12 * 4 / 1e6 / rate / 86_400
    return (
        f"{megabytes:,.1f} MB of text in {cpu_seconds:,.0f} s of processor time, {rate:.2f} MB/s a "
        f"core of this machine, from raw pages to shards: about {days:,.0f} core-days for 8 TB of "
        "text. SlimPajama reports 2.5 days on 64 cores, 160 core-days, for 1.2 trillion tokens, "
        "which were text when it began."
    )


def overlap_by_language(overlap: pd.DataFrame) -> pd.DataFrame:
    """Mean share of held-out tokens that training text has too, and the largest of a document, both
    in percent.

    overlap: the table of `split.overlap`.
    """
    groups = (100 * overlap["covered"]).groupby(overlap["language"])
    columns = {"tokens seen, mean %": groups.mean(), "most of a document, %": groups.max()}
    return pd.DataFrame(columns)
