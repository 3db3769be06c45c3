"""Stage 01, what its claims rest on: how well extraction, the length rule and MinHash do what they
are said to do.

Each function returns a pandas DataFrame that the notebook shows. Nothing here changes a document.
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
"""The element in which LibreOffice's help pages hold their content: a mark by the publisher,
unknown to the extractor.
"""


def extraction_agreement(pages: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Tokens kept by two ways of reading (language, html) pages, against the tokens of the
    publisher's main area.

    method, language, pages, precision (share of the kept tokens that belong to the main area),
    recall (share of the main area's tokens that are kept), pages halved (pages of which less than
    half is kept). Tokens are counted with repetition; pages without a main area are left out.
    """
    counts: dict[tuple[str, str], np.ndarray] = {}
    for language, html in pages:
        document = HTMLTree.parse(html).document
        area = document.get_element_by_id(MAIN_AREA) if document is not None else None
        if area is None:
            continue
        wanted = Counter(tokens(extract_plain_text(area.html, main_content=False)))
        for method, main_content in (("tags stripped", False), ("main content", True)):
            kept = Counter(tokens(extract_plain_text(html, main_content=main_content)))
            both = (kept & wanted).total()
            row = counts.setdefault((method, language), np.zeros(5))
            row += (1, both, kept.total(), wanted.total(), both < wanted.total() / 2)
    rows = [
        (method, language, int(pages_), both / max(kept, 1), both / max(wanted, 1), int(halved))
        for (method, language), (pages_, both, kept, wanted, halved) in counts.items()
    ]
    return pd.DataFrame(
        rows, columns=["method", "language", "pages", "precision", "recall", "pages halved"]
    )


def lengths(documents: pa.Table) -> pd.DataFrame:
    """page, language, characters (as the short filter counts them), bytes."""
    frame = documents.select(["page", "language"]).to_pandas()
    texts = documents["text"].to_pylist()
    frame["characters"] = [counted_characters(text) for text in texts]
    frame["bytes"] = [len(text.encode()) for text in texts]
    return frame


def short_shares(measured: pd.DataFrame, minimum: int) -> pd.DataFrame:
    """By language: documents, share below `minimum` characters, and the same for documents whose
    English page is long enough.

    The last column is the cost of counting characters in a script that writes more with each: the
    same page passes in English.
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
    """Of all pairs in each interval of true similarity, how many stand in each table of `found`
    (name -> a, b).

    bands, low, high, similarity (mean in the interval), pairs, found, share, share_low, share_high
    (Wilson's 95 % interval). The last interval includes its end; pairs outside all intervals are
    not counted.
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
    """Mean and standard deviation of the number of pairs at or above `threshold` that share a
    bucket, if theory holds.
    """
    similarity = np.asarray(all_pairs["jaccard"].to_pylist(), dtype=np.float64)
    probability = collision_probability(similarity[similarity >= threshold], bands, rows)
    return float(probability.sum()), float(np.sqrt((probability * (1 - probability)).sum()))


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's score interval at 95 %; (0, 1) of nothing."""
    if total == 0:
        return 0.0, 1.0
    z, share = 1.959964, hits / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def without(documents: pa.Table, **values: str) -> pa.Table:
    """The rows in which no named column has its value."""
    for name, value in values.items():
        documents = documents.filter(pc.not_equal(documents[name], value))
    return documents


def only(documents: pa.Table, **values: str) -> pa.Table:
    """The rows whose columns have these values."""
    for name, value in values.items():
        documents = documents.filter(pc.equal(documents[name], value))
    return documents
