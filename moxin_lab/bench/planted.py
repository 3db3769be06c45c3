"""Near-duplicates planted in real pages, for `moxin-lab bench curation`.

    pages -> without natural near-duplicates -> each with a copy in which a share of the words is
    replaced by words of other pages

Guarantees: the copies depend on the pages and the seed alone; a word of a script without spaces is
two of its characters; white space stays as it is.
Out of scope: other edits (passages moved, added or cut).
"""

import random
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pyarrow as pa

from moxin_lab.data import all_pairs, dedup, minhash
from moxin_lab.data.dedup import Settings
from moxin_lab.data.ngrams import is_unspaced

Pair = tuple[str, str]


class Planted(NamedTuple):
    """documents: columns id, text. similarity: of each planted pair (page, copy) the true one."""

    documents: pa.Table
    similarity: dict[Pair, float]


def words(text: str) -> list[str]:
    """White space, words, and pieces of two characters of unspaced scripts; joined, the text."""
    pieces = []
    for piece in re.findall(r"\s+|\S+", text):
        run = ""
        for character in piece:
            if run and (is_unspaced(character) != is_unspaced(run[-1])):
                pieces.append(run)
                run = ""
            run += character
            if len(run) == 2 and is_unspaced(run[0]):
                pieces.append(run)
                run = ""
        if run:
            pieces.append(run)
    return pieces


def edited(text: str, share: float, pool: list[str], draw: random.Random) -> str:
    """The text with `share` of its words replaced by words of `pool`, at least one."""
    pieces = words(text)
    places = [place for place, piece in enumerate(pieces) if not piece.isspace()]
    for place in draw.sample(places, max(1, round(share * len(places)))):
        pieces[place] = draw.choice(pool)
    return "".join(pieces)


def plant(pages: list[str], share: float, settings: Settings, seed: int) -> Planted:
    """Each page and its edited copy. Pages that are near-duplicates of another by themselves are
    left out before, so that whatever else is found is false.
    """
    draw = random.Random(seed)
    pool = [word for page in pages for word in words(page) if not word.isspace()]
    table = pa.table({"id": [f"{n:05}" for n in range(len(pages))], "text": pages})
    natural = all_pairs.similar_pairs(table, settings.ngram_size, settings.threshold)
    left_out = set(natural["b"].to_pylist())
    rows: list[Pair] = []
    similarity = {}
    for key, page in zip(table["id"].to_pylist(), pages, strict=True):
        if key in left_out:
            continue
        copy = edited(page, share, pool, draw)
        rows += [(key, page), (f"{key}-copy", copy)]
        sides = (minhash.shingles(text, settings.ngram_size) for text in (page, copy))
        similarity[key, f"{key}-copy"] = minhash.jaccard(*sides)
    ids, texts = zip(*rows, strict=True)
    return Planted(pa.table({"id": pa.array(ids), "text": pa.array(texts)}), similarity)


def score(planted: Planted, found: Iterable[Pair], least: float = 0.0) -> dict[str, Any]:
    """Recall of the planted pairs with a true similarity of at least `least`, and precision of all
    pairs found; None where there is nothing to divide by.
    """
    wanted = {pair for pair, value in planted.similarity.items() if value >= least}
    pairs = {(min(pair), max(pair)) for pair in found}
    right = len(pairs & planted.similarity.keys())
    return {
        "planted": len(wanted),
        "recall": len(pairs & wanted) / len(wanted) if wanted else None,
        "found": len(pairs),
        "precision": right / len(pairs) if pairs else None,
    }


# ---- methods: documents and settings to pairs


def ours(documents: pa.Table, settings: Settings) -> list[Pair]:
    """Pairs of one bucket whose true similarity reaches the threshold."""
    texts = dedup.frame(documents)
    signed = dedup.signatures(texts, settings.permutations, settings.ngram_size)
    found = dedup.buckets(signed, settings.bands, settings.rows)
    pairs = dedup.verified_pairs(found, texts, settings.ngram_size, settings.threshold)
    rows = zip(*(pairs[name].to_pylist() for name in ("a", "b", "jaccard")), strict=True)
    return [(a, b) for a, b, similarity in rows if similarity >= settings.threshold]


def shingle_sets(text: str, ngram_size: int) -> set[str]:
    """The distinct character n-grams that `minhash.shingles` hashes."""
    folded = minhash.features(text)
    size = min(ngram_size, len(folded))
    return {folded[at : at + size] for at in range(len(folded) - size + 1)} if size else set()


def by_datasketch(documents: pa.Table, settings: Settings) -> list[Pair]:
    """Its MinHashLSH with its own bands for the threshold, on the same n-grams."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(settings.threshold, settings.permutations)
    pairs = []
    for key, text in zip(documents["id"].to_pylist(), documents["text"].to_pylist(), strict=True):
        sketch = MinHash(settings.permutations)
        sketch.update_batch([gram.encode() for gram in shingle_sets(text, settings.ngram_size)])
        pairs += [(other, key) for other in index.query(sketch)]
        index.insert(key, sketch)
    return pairs


def by_rensa(documents: pa.Table, settings: Settings) -> list[Pair]:
    """Its RMinHashLSH with our bands, on the same n-grams; a pair is one whose similarity it
    estimates at the threshold or more, as its documentation does it.
    """
    from rensa import RMinHash, RMinHashLSH

    permutations = settings.bands * settings.rows
    index = RMinHashLSH(settings.threshold, permutations, settings.bands)
    sketches: dict[int, Any] = {}
    keys, pairs = documents["id"].to_pylist(), []
    for number, text in enumerate(documents["text"].to_pylist()):
        sketch = RMinHash(permutations, 42)
        sketch.update(list(shingle_sets(text, settings.ngram_size)))
        pairs += [
            (keys[other], keys[number])
            for other in index.query(sketch)
            if sketch.jaccard(sketches[other]) >= settings.threshold
        ]
        index.insert(number, sketch)
        sketches[number] = sketch
    return pairs


METHODS: dict[str, Callable[[pa.Table, Settings], list[Pair]]] = {
    "ours": ours,
    "datasketch": by_datasketch,
    "rensa": by_rensa,
}
