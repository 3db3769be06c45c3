"""Stage 01, measures behind its claims: quality of extraction, the length filter, and MinHash.

Guarantees: no function changes a document.
Out of scope: figures (`figures.py`) and verdicts, which the notebook gives.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from moxin_lab.data.clean import counted_characters
from moxin_lab.data.dedup import collision_probability
from moxin_lab.data.split import tokens

MAIN_AREA = "DisplayArea"
"""The id of the element with the content of a LibreOffice help page.

The publisher marks the content with it; the extractor does not know it.
"""


def extraction_agreement(pages: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Compares the tokens that two methods extract with those of the publisher's main area.

    pages: pairs of language and HTML. Pages without a main area are skipped.
    One row per method and language. Columns: method, language, pages, precision (share of the
    extracted tokens that belong to the main area), recall (share of the main area's tokens that are
    extracted), pages halved (pages with a recall below one half). Tokens count with repetition.
    """
    counts: dict[tuple[str, str], np.ndarray] = {}
    for language, html in pages:
        document = HTMLTree.parse(html).document
        area = document.get_element_by_id(MAIN_AREA) if document is not None else None
        if area is None:
            continue
        reference = Counter(tokens(extract_plain_text(area.html, main_content=False)))
        for method, main_content in (("tags stripped", False), ("main content", True)):
            extracted = Counter(tokens(extract_plain_text(html, main_content=main_content)))
            both = (extracted & reference).total()
            total = reference.total()
            row = counts.setdefault((method, language), np.zeros(5))
            row += (1, both, extracted.total(), total, both < total / 2)
    rows = [
        (method, language, int(pages_), both / max(kept, 1), both / max(total, 1), int(halved))
        for (method, language), (pages_, both, kept, total, halved) in counts.items()
    ]
    return pd.DataFrame(
        rows, columns=["method", "language", "pages", "precision", "recall", "pages halved"]
    )


def lengths(documents: pa.Table) -> pd.DataFrame:
    """Length of each document. Columns: page, language, characters, bytes.

    characters: as the length filter counts them.
    """
    frame = documents.select(["page", "language"]).to_pandas()
    texts = documents["text"].to_pylist()
    frame["characters"] = [counted_characters(text) for text in texts]
    frame["bytes"] = [len(text.encode()) for text in texts]
    return frame


def short_shares(measured: pd.DataFrame, minimum: int) -> pd.DataFrame:
    """Share of documents below `minimum` characters: one row per language.

    The last column has the share among documents whose English page is long enough. It is the cost
    of counting characters in a script that says more with each of them.
    """
    passing = set(
        measured.loc[(measured.language == "en") & (measured.characters >= minimum), "page"]
    )
    rows = []
    for language, part in measured.groupby("language", sort=False):
        aligned = part[part.page.isin(passing)]
        rows.append(
            (
                language,
                len(part),
                100 * (part.characters < minimum).mean(),
                100 * (aligned.characters < minimum).mean(),
            )
        )
    return pd.DataFrame(
        rows,
        columns=["language", "documents", "short, %", "short although the English page is not, %"],
    )


def recall_by_similarity(
    all_pairs: pa.Table, found: dict[str, pa.Table], edges: list[float]
) -> pd.DataFrame:
    """Recall by true similarity: one row per table of `found` and interval of similarity.

    Args:
        all_pairs: columns a, b, jaccard.
        found: name of a banding to the pairs that it found, columns a, b.
        edges: of the intervals. The last interval includes its end; pairs outside are not counted.
    Columns: bands, low, high, similarity (mean in the interval), pairs, found, share, share_low,
    share_high (Wilson's 95 % interval).
    """
    frame = all_pairs.to_pandas()
    frame = frame[(frame["jaccard"] >= edges[0]) & (frame["jaccard"] <= edges[-1])]
    frame["bin"] = np.minimum(np.digitize(frame["jaccard"], edges) - 1, len(edges) - 2)
    rows = []
    for name, table in found.items():
        known = set(zip(table["a"].to_pylist(), table["b"].to_pylist(), strict=True))
        hit = pd.Series(
            [pair in known for pair in zip(frame["a"], frame["b"], strict=True)], dtype=bool
        )
        for index in range(len(edges) - 1):
            inside = (frame["bin"] == index).to_numpy()
            hits, total = int(hit[inside].sum()), int(inside.sum())
            where = (name, edges[index], edges[index + 1], frame["jaccard"][inside].mean())
            rows.append(
                (*where, total, hits, hits / total if total else np.nan, *wilson(hits, total))
            )
    columns = [
        "bands",
        "low",
        "high",
        "similarity",
        "pairs",
        "found",
        "share",
        "share_low",
        "share_high",
    ]
    return pd.DataFrame(rows, columns=columns)


def expected_found(
    all_pairs: pa.Table, threshold: float, bands: int, rows: int
) -> tuple[float, float]:
    """Theoretical mean and standard deviation of the number of pairs that share a bucket.

    Only pairs with at least the similarity `threshold` count.
    """
    similarity = np.asarray(all_pairs["jaccard"].to_pylist(), dtype=np.float64)
    probability = collision_probability(similarity[similarity >= threshold], bands, rows)
    return float(probability.sum()), float(np.sqrt((probability * (1 - probability)).sum()))


def recall_above(
    all_pairs: pa.Table,
    found: dict[str, pa.Table],
    bandings: dict[str, tuple[int, int]],
    threshold: float,
) -> pd.DataFrame:
    """Recall of the pairs with at least the similarity `threshold`: one row per banding.

    The columns of `recall_by_similarity`, then the theoretical mean and standard deviation of the
    number of pairs found: expected, deviation.
    """
    table = recall_by_similarity(all_pairs, found, [threshold, 1.0]).set_index("bands")
    theory = [expected_found(all_pairs, threshold, *bandings[name]) for name in table.index]
    table["expected"], table["deviation"] = zip(*theory, strict=True)
    return table


def recall_verdict(above: pd.DataFrame, source: str, threshold: float) -> tuple[str, str]:
    """Verdict and evidence on the recipe's near-duplicate search, from `recall_above`.

    Reproduced if the recipe (the first row) finds more than half of the pairs at the lower end of
    its 95 % interval; not attempted where the source has no such pair.
    """
    if not above["pairs"].any():
        return "not attempted", f"No pair of {source} has a true similarity of {threshold} or more."
    sentences = "; ".join(
        f"{row.Index} find {row.found:.0f} ({row.share:.0%}; theory expects {row.expected:.1f}, "
        f"standard deviation {row.deviation:.1f})"
        for row in above.itertuples()
    )
    recipe = above.iloc[0]
    evidence = (
        f"Of {recipe['pairs']:.0f} pairs of {source} with a true similarity of {threshold} or "
        f"more, {sentences}. Every pair that removes a document was checked by its true similarity."
    )
    return ("reproduced" if recipe["share_low"] > 0.5 else "contradicted"), evidence


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's score interval at 95 %; (0, 1) if `total` is 0."""
    if total == 0:
        return 0.0, 1.0
    z, share = 1.959964, hits / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def without(documents: pa.Table, **values: str) -> pa.Table:
    """The rows in which none of the named columns has its value."""
    for name, value in values.items():
        documents = documents.filter(pc.not_equal(documents[name], value))
    return documents


def only(documents: pa.Table, **values: str) -> pa.Table:
    """The rows in which all of the named columns have their values."""
    for name, value in values.items():
        documents = documents.filter(pc.equal(documents[name], value))
    return documents
