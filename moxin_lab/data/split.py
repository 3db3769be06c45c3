"""Stage 01, last step: which pages are held out, and how much of their text is also in the training
text.

    pages -> units (a small project; pages that share passages)
          -> a hash holds units out, of pages whose text other units hardly have, by most bytes
          -> documents of these pages of which training text has more than a twentieth are on
             neither side; pages of which too little would be left go back to training

`split` takes a table. A pipeline gives `hold_out` labels and an iterator over 13-grams, of each
document twice, so no text stays in memory.

Guarantees: no page has documents (its translations) on both sides; nor have the pages of a unit,
but for those whose own text sends them to training; of the tokens of a held-out document at most
`MAX_OVERLAP` lie in 13-grams of the training text; what is left out of both sides is at most as
large as what is held out; the split depends on the set of documents and the seed, not on row order;
where no passage is shared, a page's side depends on its name and the seed alone; no training
document is an exact copy of a held-out one, or in one group of near-duplicates with one. Time is
linear in the text.
Out of scope: a fair sample. Pages that repeat other pages (references made by a program) are never
held out, so held-out text is more varied than training text.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from moxin_lab.data.minhash import distinct
from moxin_lab.data.ngrams import NGRAM_TOKENS, Known, hashes_of, token_hashes_of

MAX_OVERLAP = 0.05
"""Largest share of a held-out document's tokens in 13-grams that training text has too."""
UNIT_SHARE = 0.5
"""A project or cluster with more than this part of `share`, in bytes of one of its languages, is
drawn page by page. Our choice, so that no unit takes a language away from training.
"""
REASONS = ("duplicate of a held-out document", "held-out page, repeated in training")
"""Why a document is removed from training, and one from a held-out page."""
OWN_SHARE = 0.5
"""A page is held out only if at least this part of its bytes is: so at most as much text is lost to
both sides as is held out. With all of it asked for, one of a page's translations that repeats other
pages kept them all in training, and of Korean 0.06 of 9.5 MB were held out.
"""
SAMPLED = 2
"""Units are found with one 13-gram in so many, chosen by its hash: half the memory."""
SAMPLED_BYTES = 160 << 20
"""Bytes of text from which one in twice as many is taken, and so on: about 30 million 13-grams are
held, of any number.
"""


def is_heldout(page: str, share: float, seed: int) -> bool:
    """Whether a page is held out: the first 8 bytes of SHA-256(seed, page), read as a number in [0,
    1), lie below `share`.
    """
    digest = hashlib.sha256(f"{seed}\n{page}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


class Documents(NamedTuple):
    """What is split: labels and bytes of each row, and its 13-grams whenever they are asked for.

    project: None if pages of a project need not stay together. grams: of the rows that are wanted,
    bool [rows], yields the number and `ngrams.hashes` of its tokens, once a row, in any order.
    """

    page: np.ndarray
    source: np.ndarray
    language: np.ndarray
    project: np.ndarray | None
    sizes: np.ndarray
    grams: Callable[[np.ndarray], Iterable[tuple[int, np.ndarray]]]


def of_table(documents: pa.Table) -> Documents:
    """columns page, source, language, text; and project, if there is one."""
    texts = documents["text"]

    def grams(wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for row in np.flatnonzero(wanted).tolist():
            yield row, hashes_of(texts[row].as_py())

    project = _strings(documents["project"]) if "project" in documents.column_names else None
    page, source, language = (_strings(documents[name]) for name in ("page", "source", "language"))
    return Documents(page, source, language, project, _sizes(texts), grams)


class HeldOut(NamedTuple):
    """The pages that are held out, and the rows of those of their documents that training text
    repeats, which belong to neither side: bool [rows].
    """

    pages: frozenset[str]
    repeated: np.ndarray


def split(
    documents: pa.Table, share: float, seed: int, *, max_overlap: float = MAX_OVERLAP
) -> tuple[pa.Table, pa.Table]:
    """(train, heldout); see `hold_out`."""
    found = hold_out(of_table(documents), share, seed, max_overlap=max_overlap)
    side = pa.compute.is_in(documents["page"], pa.array(sorted(found.pages), pa.string()))
    kept = pa.compute.and_(side, pa.array(~found.repeated))
    return documents.filter(pa.compute.invert(side)), documents.filter(kept)


def hold_out(
    documents: Documents, share: float, seed: int, *, max_overlap: float = MAX_OVERLAP
) -> HeldOut:
    """Holds out about `share` of the bytes, less where pages repeat each other.

    `is_heldout` draws units by their first page. The share that it draws makes up for the text
    that cannot be held out, among pages of the same source with the same languages: a small source
    must not be held out for a large one.
    """
    names, page = np.unique(documents.page, return_inverse=True)
    unit, own = units(documents, share * UNIT_SHARE, max_overlap)
    whole = np.bincount(page, documents.sizes, len(names))
    able = np.bincount(page, documents.sizes * own, len(names))
    # An empty page repeats nothing.
    can = np.where(whole > 0, able >= OWN_SHARE * whole, True)
    drawn = _drawn_shares(documents, page, np.where(can, able, 0), share)
    # Names ascend: a unit is called after the first of its pages.
    first = np.full(unit.max(initial=-1) + 1, len(names))
    np.minimum.at(first, unit, page)
    held = can.copy()
    for row, number in enumerate(page.tolist()):
        name = first[unit[row]]
        held[number] &= is_heldout(str(names[name]), drawn[name], seed)
    back, repeated = _sent_back(documents, page, held, max_overlap)
    held &= ~back
    return HeldOut(frozenset(str(name) for name in names[held]), repeated & held[page])


def units(
    documents: Documents, max_share: float, max_overlap: float = MAX_OVERLAP
) -> tuple[np.ndarray, np.ndarray]:
    """The unit of each row, int64 [rows], and whether its text is its unit's own, bool [rows]: at
    most `max_overlap` of its tokens lie in 13-grams of other units, as far as the sample tells.

    A unit joins the documents of a page; the pages of a project; and documents of which one has
    more than `max_overlap` of its 13-grams in the other. A project or cluster that has more than
    `max_share` of the bytes of a language falls apart into pages. Of the owners of a 13-gram each
    is compared with the first, so work is linear.
    """
    sizes, rows = documents.sizes, len(documents.sizes)
    language = np.unique(documents.language, return_inverse=True)[1]
    page = np.unique(documents.page, return_inverse=True)[1]
    joined = [_chain(page)]
    if documents.project is not None:
        project = np.unique(documents.project, return_inverse=True)[1]
        large = _is_large(project, sizes, language, max_share)[project]
        joined.append(_chain(np.where(large, -1, project)))
    lengths, gram, owner, place = _sampled_grams(documents)
    number = np.unique(gram, return_inverse=True)[1]
    del gram
    unit = _components([*joined, _sharing(number, owner, rows, max_overlap)], rows)
    large = _is_large(unit, sizes, language, max_share)[unit]
    unit = np.where(large, unit.max(initial=-1) + 1 + page, unit)
    unit = np.unique(unit, return_inverse=True)[1]
    shared = _in_several(number, unit[owner])
    covered = _covered_tokens(owner[shared], place[shared], lengths)
    return unit, covered <= max_overlap * lengths


def overlap(train: Iterable[pa.Table], heldout: pa.Table) -> pd.DataFrame:
    """For each held-out document: id, language, tokens, and `covered`, the share of its tokens
    inside a 13-gram seen in train, whose tables come one after the other.

    Documents of fewer than 13 tokens have `covered` 0. Memory holds the 13-grams of `heldout`, and
    of `train` those of one document at a time.
    """
    texts = heldout["text"].to_pylist()
    grams = [hashes_of(text) for text in texts]
    known = _known(grams)
    seen = np.zeros(len(known.hashes), dtype=bool)
    for text in (text for table in train for text in table["text"]):
        _mark(seen, known, hashes_of(text.as_py()))
    rows = [
        (key, language, len(token_hashes_of(text)), _covered(seen[_places(known, mine)]))
        for key, language, text, mine in zip(
            heldout["id"].to_pylist(), heldout["language"].to_pylist(), texts, grams, strict=True
        )
    ]
    return pd.DataFrame(rows, columns=["id", "language", "tokens", "covered"])


# ---- 13-grams of held-out text, and which of them training text has


def _known(grams: Sequence[np.ndarray]) -> Known:
    return Known(np.concatenate([np.zeros(0, np.uint64), *grams]))


def _mark(seen: np.ndarray, known: Known, grams: np.ndarray) -> None:
    """Sets `seen` of those of `known.hashes` that are among `grams`."""
    seen[known.find(grams)[1]] = True


def _places(known: Known, grams: np.ndarray) -> np.ndarray:
    """The places in `known.hashes` of 13-grams that are all in it, int64 [13-grams]."""
    return np.searchsorted(known.hashes, grams)


def _covered(seen: np.ndarray) -> float:
    """Share of the tokens of a document inside a 13-gram that is seen; 0 without a 13-gram.

    seen: bool [13-grams] of the document, in order.
    """
    if not len(seen):
        return 0.0
    place = np.flatnonzero(seen)
    length = len(seen) + NGRAM_TOKENS - 1
    return float(_covered_tokens(np.zeros_like(place), place, np.array([length]))[0] / length)


def _covered_tokens(row: np.ndarray, place: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Tokens of each row inside a 13-gram that begins at one of `place`, int64 [rows].

    row, place: int64 [13-grams], sorted by row and place. lengths: tokens of each row.
    """
    # A 13-gram covers 13 tokens, or as many as lie before the next one.
    gap = np.diff(place, append=0)
    gap[np.r_[row[1:] != row[:-1], np.ones(min(1, len(row)), dtype=bool)]] = NGRAM_TOKENS
    return np.bincount(row, np.minimum(gap, NGRAM_TOKENS), len(lengths)).astype(np.int64)


def _sent_back(
    documents: Documents, page: np.ndarray, held: np.ndarray, max_overlap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of held-out pages those of which less than `OWN_SHARE` of the bytes can stay, bool [pages],
    and the documents of which the training text has too much, bool [rows].

    A page that is sent back is training text, too, so this repeats until none moves.
    """
    inside = held[page]
    mine = dict(documents.grams(inside))
    known = _known(list(mine.values()))
    # Looked up once: each round below asks for all of them.
    places = {row: _places(known, grams) for row, grams in mine.items()}
    del mine
    seen = np.zeros(len(known.hashes), dtype=bool)
    for _, found in documents.grams(~inside):
        _mark(seen, known, found)
    back = np.zeros(len(held), dtype=bool)
    repeated = np.zeros(len(page), dtype=bool)
    whole = np.bincount(page, documents.sizes, len(held))
    waiting = sorted(places)
    while waiting:
        repeated[[row for row in waiting if _covered(seen[places[row]]) > max_overlap]] = True
        lost = np.bincount(page, documents.sizes * repeated, len(held))
        back |= held & (whole - lost < OWN_SHARE * whole)
        leaving = [row for row in waiting if back[page[row]]]
        if not leaving:
            break
        for row in leaving:
            seen[places[row]] = True
        waiting = [row for row in waiting if not back[page[row]]]
    return back, repeated


# ---- units


def _sampled_grams(
    documents: Documents,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of each row, int64 [rows], 0 for fewer than 13; and of the sampled 13-grams the hash,
    uint64, the row and the place in it, int32, sorted by row and place.
    """
    rows = len(documents.sizes)
    one_in = _one_in(int(documents.sizes.sum()))
    lengths = np.zeros(rows, dtype=np.int64)
    grams, places = [np.zeros(0, np.uint64)] * rows, [np.zeros(0, np.int32)] * rows
    for row, found in documents.grams(np.ones(rows, dtype=bool)):
        place = np.flatnonzero(found % np.uint64(one_in) == 0)
        lengths[row] = len(found) + NGRAM_TOKENS - 1 if len(found) else 0
        grams[row], places[row] = found[place], place.astype(np.int32)
    owner = np.repeat(np.arange(rows, dtype=np.int32), [len(found) for found in grams])
    empty = np.zeros(0)
    return (
        lengths,
        np.concatenate([empty.astype(np.uint64), *grams]),
        owner,
        np.concatenate([empty.astype(np.int32), *places]),
    )


def _one_in(size: int) -> int:
    """Of how many 13-grams one is sampled in `size` bytes of text: a power of two."""
    return SAMPLED << max(0, (size - 1) // SAMPLED_BYTES).bit_length()


def _sharing(number: np.ndarray, owner: np.ndarray, rows: int, max_overlap: float) -> np.ndarray:
    """Edges between documents that share passages: int64 [edges, 2].

    A document and the first owner of a 13-gram, if these 13-grams are more than `max_overlap` of
    either. number: of each 13-gram, equal for equal ones.
    """
    # A sort of one array of numbers is many times as fast as one by two keys.
    gram, owner = np.divmod(distinct(number * rows + owner), max(1, rows))
    sizes = np.bincount(owner, minlength=rows)
    starts = np.flatnonzero(np.r_[gram[:1] == gram[:1], gram[1:] != gram[:-1]])
    first = np.repeat(owner[starts], np.diff(np.r_[starts, len(gram)]))
    apart = first != owner
    pairs, common = np.unique(
        first[apart].astype(np.int64) * rows + owner[apart], return_counts=True
    )
    ends = np.stack(np.divmod(pairs, max(1, rows)), axis=1)
    return ends[common > max_overlap * sizes[ends].min(axis=1)]


def _in_several(number: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """bool [13-grams]: whether more than one unit has it. number: of each, equal for equal ones."""
    least = np.full(number.max(initial=-1) + 1, unit.max(initial=0))
    most = np.zeros_like(least)
    np.minimum.at(least, number, unit)
    np.maximum.at(most, number, unit)
    return (least != most)[number]


def _drawn_shares(
    documents: Documents, page: np.ndarray, able: np.ndarray, share: float
) -> np.ndarray:
    """The share of its unit's draw for each page, float64 [pages]: `share`, divided by the part of
    the bytes that can be held out among the pages of the same source with the same languages.

    able: bytes of each page that can be, float64 [pages].
    """
    sets: list[set[str]] = [set() for _ in able]
    for row, number in enumerate(page.tolist()):
        sets[number].add(f"{documents.source[row]} {documents.language[row]}")
    group = np.unique([" ".join(sorted(found)) for found in sets], return_inverse=True)[1]
    whole = np.bincount(group, np.bincount(page, documents.sizes, len(able)))
    able = np.bincount(group, able, len(whole))
    return np.minimum(1.0, share * whole / np.maximum(1, able))[group]


def _chain(labels: np.ndarray) -> np.ndarray:
    """Edges that connect the rows of each label, int64 [edges, 2]; of label -1 none."""
    order = np.argsort(labels, kind="stable")
    same = (labels[order][1:] == labels[order][:-1]) & (labels[order][1:] >= 0)
    return np.stack([order[:-1][same], order[1:][same]], axis=1)


def _components(edges: list[np.ndarray], rows: int) -> np.ndarray:
    """The connected component of each row, int64 [rows]."""
    a, b = np.concatenate(edges).T
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(rows, rows))
    return connected_components(graph, directed=False)[1].astype(np.int64) if rows else a


def _sizes(texts: pa.ChunkedArray) -> np.ndarray:
    """Bytes of each text, int64 [rows]."""
    return pa.compute.binary_length(texts.cast(pa.large_binary())).to_numpy().astype(np.int64)


def _is_large(
    label: np.ndarray, sizes: np.ndarray, language: np.ndarray, max_share: float
) -> np.ndarray:
    """bool [labels]: whether a label has more than `max_share` of the bytes of a language."""
    table = np.zeros((label.max(initial=-1) + 1, language.max(initial=-1) + 1), dtype=np.int64)
    np.add.at(table, (label, language), sizes)
    return (table > max_share * table.sum(axis=0)).any(axis=1)


def _strings(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_pylist(), dtype=object)
