"""Stage 01, measures behind its claims: quality of extraction, the length filter, and MinHash.

Guarantees: no function changes a document.
Out of scope: figures (`figures.py`) and verdicts, which the notebook gives.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from moxin_lab.data import minhash
from moxin_lab.data.card_files import read_card
from moxin_lab.data.dedup import collision_probability
from moxin_lab.data.html_text import html_to_text, show_one_alternative
from moxin_lab.data.ngrams import tokens
from moxin_lab.data.steps_local import counted_characters
from moxin_lab.data.unreadable import Unreadable

MAIN_AREA = "#DisplayArea"
"""Selects the element with the content of a LibreOffice help page.

The publisher marks the content with it; the extractor does not know it.
"""
METHODS: dict[str, Callable[[str], str]] = {
    "tags stripped": lambda html: extract_plain_text(html, main_content=False),
    "resiliparse": lambda html: extract_plain_text(html, main_content=True),
    "main content": html_to_text,
}
"""Extractors by name: no choice at all, resiliparse's own choice of main content, and ours."""
SCRIPTS = {
    "Latin": r"[a-zA-Z\u00aa\u00ba\u00c0-\u024f]",
    "Greek": r"[\u0370-\u03ff\u1f00-\u1fff]",
    "Cyrillic": r"[\u0400-\u052f]",
    "Arabic": r"[\u0600-\u06ff]",
    "Devanagari": r"[\u0900-\u097f]",
    "Thai": r"[\u0e00-\u0e7f]",
    "Kana": r"[\u3040-\u30ff\uff66-\uff9f]",
    "Han": r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002fa1f]",
    "Hangul": r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]",
    "East Asian signs": r"[\u3000-\u303f\uff00-\uff65\u2018-\u201d\u2014\u2026]",
}
"""By script, a character of it. The last row holds quotation marks, dashes and full stops."""


def extraction_agreement(
    pages: Iterable[tuple[str, str]],
    mark: str = MAIN_AREA,
    methods: Mapping[str, Callable[[str], str]] = METHODS,
) -> pd.DataFrame:
    """Compares the tokens that methods extract with those of the publisher's main area.

    pages: pairs of language and HTML. mark: CSS selector of the main area; pages without one are
    skipped. One row per method and language. Columns: method, language, pages, precision (share of
    the extracted tokens that belong to the main area), recall (share of the main area's tokens that
    are extracted), pages halved (pages with a recall below one half). Tokens count with repetition.
    A page that a method refuses counts as no text.
    """
    counts: dict[tuple[str, str], np.ndarray] = {}
    for language, html in pages:
        area = marked_text(html, mark)
        if area is None:
            continue
        reference = Counter(tokens(area))
        for method, extractor in methods.items():
            extracted = Counter(tokens(_extracted(extractor, html)))
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


def lost_characters(
    pages: Iterable[tuple[str, str]],
    mark: str = MAIN_AREA,
    methods: Mapping[str, Callable[[str], str]] = METHODS,
) -> pd.DataFrame:
    """Characters of the publisher's main area that a method does not extract: one row per script.

    pages, mark: as for `extraction_agreement`. Columns: script, characters (in the main areas), and
    one per method with the number lost. Characters count with repetition, whatever their order.
    """
    totals, lost = Counter[str](), {method: Counter[str]() for method in methods}
    for _, html in pages:
        area = marked_text(html, mark)
        if area is None:
            continue
        reference = Counter(area)
        totals += reference
        for method, extractor in methods.items():
            lost[method] += reference - Counter(_extracted(extractor, html))
    rows = []
    for script, characters in SCRIPTS.items():
        counters = (totals, *lost.values())
        found = [
            sum(n for char, n in counter.items() if re.match(characters, char))
            for counter in counters
        ]
        rows.append((script, *found))
    frame = pd.DataFrame(rows, columns=["script", "characters", *methods])
    return frame[frame["characters"] > 0].reset_index(drop=True)


def extraction_speed(
    pages: Iterable[tuple[str, bytes]], methods: Mapping[str, Callable[[str], str]] = METHODS
) -> pd.DataFrame:
    """Processor time of methods on pages, pairs of id and UTF-8 HTML: one row per method.

    Columns: method, pages, MB (of HTML), MB/s, slowest page (its id), its bytes, its seconds.
    """
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    names, sizes = [], []
    for name, content in pages:
        names.append(name)
        sizes.append(len(content))
        html = content.decode("utf-8")
        for method, extractor in methods.items():
            started = time.process_time()
            _extracted(extractor, html)
            seconds[method].append(time.process_time() - started)
    rows = []
    for method, spent in seconds.items():
        worst = int(np.argmax(spent))
        size = sum(sizes) / 1e6
        rows.append(
            (method, len(names), size, size / sum(spent), names[worst], sizes[worst], spent[worst])
        )
    columns = ["method", "pages", "MB", "MB/s", "slowest page", "its bytes", "its seconds"]
    return pd.DataFrame(rows, columns=columns)


EXAMPLE = "swriter/guide/insert_graphic_fromchart"
"""A short page of `help_pages` that has a list, a link and a menu around it."""


def example(card: Path, language: str = "en") -> tuple[str, str]:
    """The page EXAMPLE of `help_pages` in a language: its HTML, and the document it becomes."""
    raw = read_card(card)
    mine = pc.and_(pc.equal(raw["page"], EXAMPLE), pc.equal(raw["language"], language))
    html: str = raw.filter(mine)["html"][0].as_py().decode()
    return html, html_to_text(html)


def minhash_example(
    text: str, changes: Mapping[str, int], bands: Mapping[str, tuple[int, int]], ngram_size: int
) -> pd.DataFrame:
    """A text against copies of itself in which every n-th word is another: one row per copy.

    changes: name of the copy to n. bands: name to (bands, rows). Columns: the copy, its Jaccard
    similarity to the text, equal minima of 128, and per banding the bands whose minima are all
    equal; one is enough for a pair to be compared.
    """
    words = text.split(" ")
    copies = [
        " ".join("word" if at % every == every - 1 else word for at, word in enumerate(words))
        for every in changes.values()
    ]
    shingles = [minhash.shingles(one, ngram_size) for one in (text, *copies)]
    minima = minhash.signatures([text, *copies], 128, ngram_size)
    table = {
        "copy": list(changes),
        "similarity": [minhash.jaccard(shingles[0], other) for other in shingles[1:]],
        "equal minima of 128": (minima[1:] == minima[0]).sum(axis=1),
    }
    for name, (num_bands, num_rows) in bands.items():
        keys = minhash.band_keys(minima, num_bands, num_rows)
        table[f"equal, {name}"] = (keys[1:] == keys[0]).sum(axis=1)
    return pd.DataFrame(table)


def agreement_on_card(card: Path, pages: int = 400) -> pd.DataFrame:
    """`extraction_agreement` on a regular sample of the pages of a card."""
    raw = read_card(card)
    sample = raw.take(list(range(0, raw.num_rows, max(raw.num_rows // pages, 1))))
    return extraction_agreement(
        (row["language"], row["html"].decode()) for row in sample.to_pylist()
    )


def marked_text(html: str, mark: str) -> str | None:
    """All text of the elements that `mark` selects; None if there are none.

    Of hidden alternatives (an operating system each) one counts, as on the page.
    """
    body = HTMLTree.parse(html).body
    areas = body.query_selector_all(mark).values() if body is not None else []
    if body is None or not areas:
        return None
    show_one_alternative(body)
    return "\n".join(extract_plain_text(area.html, main_content=False) for area in areas)


def _extracted(extractor: Callable[[str], str], html: str) -> str:
    try:
        return extractor(html)
    except Unreadable:
        return ""


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
    its 95 % interval, contradicted if fewer than half at the upper end, else undecided; not
    attempted where the source has no such pair.
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
    low, high = recipe["share_low"], recipe["share_high"]
    verdict = "reproduced" if low > 0.5 else "contradicted" if high < 0.5 else "undecided"
    return verdict, evidence


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's score interval at 95 %; (0, 1) if `total` is 0."""
    if total == 0:
        return 0.0, 1.0
    z, share = 1.959964, hits / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    # Where all or none are hits one end is the share itself, which rounding would miss by 1e-18.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    return low, 1.0 if hits == total else min(1.0, centre + half)
