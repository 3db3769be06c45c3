"""What notebook 01 concludes: measures of the steps and of the split, and its claims.

Guarantees: the verdict on extraction follows from shares on pages by the rule in its docstring;
that on near-duplicates is `measures.recall_verdict`.
Out of scope: measuring (`measures`, `dedup`).
"""

from collections.abc import Mapping

import pandas as pd

from moxin_lab.data.dedup import Search
from moxin_lab.data.scores import Scores
from moxin_lab.lab.recording import Judged, Number
from moxin_lab.scales.sections import DataSettings


def judge_extraction(agreement: pd.DataFrame) -> Judged:
    """`data.html-extraction`: reproduced if resiliparse's own choice of main content keeps more
    than 90 % of the marked tokens, at a precision above that of stripping tags; else contradicted.

    agreement: the table of `measures.extraction_agreement`.
    """
    means = agreement.groupby("method")[["precision", "recall"]].mean()
    main, own, strip = means.loc[["resiliparse", "main content", "tags stripped"]].itertuples()
    pages = agreement["pages"].sum() // agreement["method"].nunique()
    return (
        "reproduced" if main.precision > strip.precision and main.recall > 0.9 else "contradicted",
        f"On {pages} help pages in four languages resiliparse keeps {main.recall:.1%} of the "
        f"marked main content at {main.precision:.1%} precision; stripping tags alone keeps "
        f"{strip.recall:.1%} at {strip.precision:.1%}, and our choice of main content on its "
        f"parser {own.recall:.1%} at {own.precision:.1%}.",
    )


def of_steps(
    agreement: pd.DataFrame,
    short_share: float,
    removed: float,
    search: Search,
    pipeline: tuple[float, float | None],
) -> list[Number]:
    """Extraction, the short filter, deduplication, and the rate of the whole pipeline.

    search: of the help pages alone. pipeline: megabytes of text that were read, and processor
    seconds, None where they are not those of a whole run.
    """
    means = agreement.groupby("method")[["precision", "recall"]].mean()
    extraction = [
        Number(f"extraction_{name}", row[name], "share of tokens", None, {"method": method})
        for method, row in means.iterrows()
        for name in ("precision", "recall")
    ]
    hashing, all_of_it = (
        search.megabytes / seconds for seconds in (search.hashing_seconds, search.seconds)
    )
    steps = "signatures, bands, verification"
    megabytes, seconds = pipeline
    return [
        *extraction,
        Number("short_documents", short_share, "% of documents", None, {}),
        Number("minhash_throughput", hashing, "MB/s", None, {"step": "signatures"}),
        Number("deduplication_throughput", all_of_it, "MB/s", None, {"step": steps}),
        Number("filtered_and_deduplicated", removed, "% of bytes", None, {}),
        *(
            [Number("pipeline_throughput", megabytes / seconds, "MB/s a core", None, {})]
            if seconds is not None
            else []
        ),
    ]


def of_split(
    above: pd.DataFrame, overlap: pd.DataFrame, sides: Mapping[str, pd.DataFrame]
) -> list[Number]:
    """Recall of near-duplicates, overlap of held-out text, documents and bytes of each side.

    sides: name to the frame of `artifact.kept`.
    """
    rows = [
        Number(
            "near_duplicate_recall",
            row["share"],
            "share of pairs",
            (row["share_low"], row["share_high"]),
            {"bands": name},
        )
        for name, row in above[above["pairs"] > 0].iterrows()
    ]
    for language, value in overlap.groupby("language")["covered"].mean().items():
        rows.append(
            Number("heldout_overlap", value, "share of tokens", None, {"language": language})
        )
    for side, documents in sides.items():
        for language, sizes in documents.groupby("language")["num_bytes"]:
            labels = {"split": side, "language": language}
            rows.append(Number("documents", len(sizes), "documents", None, labels))
            rows.append(Number("text_bytes", int(sizes.sum()), "bytes", None, labels))
    return rows


def not_attempted(
    settings: DataSettings, short_share: float, removed: float, found: Scores | None
) -> dict[str, str]:
    """What was seen of the claims that are about other corpora, or why nothing was."""
    if "the-stack-dedup" in settings.sources:
        languages = "The languages of the-stack-dedup are not counted in the part that was read."
        stack = "the-stack-dedup comes deduplicated; the set before that step is not read."
        sources = (
            f"Sets that this run read: {', '.join(settings.sources)}. That Moxin was trained on "
            "them cannot be seen here."
        )
    else:
        languages = "the-stack-dedup is not read at this scale; its code is another collection."
        stack = "The Stack is not read at this scale; code goes through the deduplication of text."
        sources = "The three sets are read from the hub at full scale."
    quality = "No quality filter ran: too few pages have a label by their name."
    if found is not None:
        quality = (
            "A fastText classifier with labels by the names of pages, not DCLM's, which is a hub "
            "download: of pages that it did not learn from, a good one scores above a bad one in "
            f"{found.auc:.0%} of the pairs. The recipe of this run cuts nothing by it."
        )
    return {
        "data.short-documents": f"The same rule removes {short_share:.1f} % of this corpus "
        "(manuals, help pages, code), not of RedPajama.",
        "data.minhash-dedup": f"Short filter and deduplication remove {removed:.1f} % of the bytes "
        "of this corpus, which nobody crawled from the web. Published for RedPajama: 49.6 %.",
        "data.quality-top-10": quality,
        "data.stack-languages-358": languages,
        "data.stack-dedup-40": stack,
        "data.sources": sources,
    }
