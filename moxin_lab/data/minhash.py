"""MinHash signatures in one pass: one permutation, one minimum per bin.

    signatures(texts, 128, 13)        # uint32 [documents, 128]
    band_keys(minima, 9, 13)          # uint64 [documents, 9], equal keys share a bucket

The classical signature hashes every n-gram 128 times. Here each n-gram is hashed once; the hash
chooses one of 128 bins and is compared within it (Li, Owen and Zhang 2012, "One permutation
hashing"). A bin that gets no n-gram copies that of another bin, in an order that is the same for
all documents (Shrivastava 2017, arXiv 1703.04664, "Optimal densification"). The probability that
two documents agree in a bin is their Jaccard similarity, as with 128 permutations.

Guarantees: the signature of a document depends on its features and the two numbers alone, not on
the batch that it is in. Out of scope: finding pairs (`dedup`).
"""

import string
import sys
from collections.abc import Sequence
from functools import cache

import numpy as np

# An odd constant for the polynomial, then splitmix64's.
BASE = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = 2**64 - 1
_PUNCTUATION = string.punctuation.encode()
# Of each byte of ASCII the small letter, or a space where `str.split` splits.
_SMALL = bytes(32 if chr(code).isspace() else ord(chr(code).lower()) for code in range(128)) * 2
EMPTY = np.uint32(2**32 - 1)
"""A bin without an n-gram, before it copies another."""
BATCH_CHARACTERS = 1 << 16
"""Characters hashed at once: arrays of 512 KiB, which stay in a core's own cache. Our choice."""


def features(text: str) -> str:
    """The text whose n-grams are compared: lower case, no ASCII punctuation, single spaces.

    As in SlimPajama's code (dedup/to_hash.py).
    """
    # Bytes of ASCII occur in UTF-8 as themselves alone, and deleting bytes is many times as fast.
    raw = text.lower().encode("utf-8", "surrogatepass").translate(None, _PUNCTUATION)
    return " ".join(raw.decode("utf-8", "surrogatepass").split())


def _feature_codes(text: str) -> np.ndarray:
    """Code points of `features(text)`, uint8 or uint32 [n], without its words as strings."""
    if text.isascii():
        raw = np.frombuffer(text.encode().translate(_SMALL, _PUNCTUATION), np.uint8)
    elif any(letter in text for letter in _BY_CONTEXT):
        return np.frombuffer(features(text).encode("utf-32-le", "surrogatepass"), np.uint32)
    else:
        raw = _small_codes()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)]
        raw = raw[raw != _NONE]
    kept = raw != ord(" ")
    kept[1:] |= kept[:-1].copy()  # of several spaces the first
    found = raw[kept]
    return found[:-1] if len(found) and found[-1] == ord(" ") else found


_BY_CONTEXT = "\u0130\u03a3"
"""Capitals whose small letter is not one or not always the same: dotted I, sigma."""
_NONE = 2**32 - 1


@cache
def _small_codes() -> np.ndarray:
    """Of each code point the small letter, a space for white space, or `_NONE` for punctuation."""
    codes = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    for code, character in enumerate(map(chr, range(0x20000))):  # no letter above has two cases
        if character.isspace():
            codes[code] = ord(" ")
        elif character in string.punctuation:
            codes[code] = _NONE
        elif character not in _BY_CONTEXT and character.lower() != character:
            codes[code] = ord(character.lower())
    return codes


def shingles(text: str, ngram_size: int) -> np.ndarray:
    """Hashes of the distinct character n-grams of `features(text)`: uint64 [n], sorted.

    A text shorter than `ngram_size` has one n-gram, the whole text; an empty one has none.
    """
    return np.sort(mixed(distinct_hashes(text, ngram_size)))


def distinct_hashes(text: str, ngram_size: int) -> np.ndarray:
    """`shingles` before they are mixed, which is one to one: as many, and as many in common."""
    codes = _codes(text)
    if not len(codes):
        return codes
    return distinct(ngram_hashes(codes, min(ngram_size, len(codes))))


def distinct(values: np.ndarray) -> np.ndarray:
    """The distinct values, sorted. `np.unique` has a hash table for it, ten times as slow here."""
    ordered = np.sort(values)
    new = np.ones(len(ordered), dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return ordered[new]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of two sorted arrays of distinct hashes; 0 if both are empty."""
    both = np.concatenate([a, b])
    both.sort(kind="stable")  # which merges two sorted runs
    common = int(np.count_nonzero(both[1:] == both[:-1]))
    union = len(a) + len(b) - common
    return common / union if union else 0.0


def signatures(texts: Sequence[str], num_bins: int, ngram_size: int) -> np.ndarray:
    """uint32 [documents, num_bins]; the row of a document without features is all `EMPTY`."""
    minima = np.full((len(texts), num_bins), EMPTY, dtype=np.uint32)
    start = 0
    while start < len(texts):
        batch: list[np.ndarray] = []
        size, stop = 0, start
        while stop < len(texts) and (size < BATCH_CHARACTERS or stop == start):
            batch.append(_codes(texts[stop]))
            size += len(batch[-1])
            stop += 1
        _fill(minima[start:stop], batch, ngram_size)
        start = stop
    return _densified(minima)


def band_keys(minima: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """uint64 [documents, bands]: documents with equal keys agree in all `rows` minima of a band.

    Raises ValueError for more minima than a signature has.
    """
    if minima.shape[1] < bands * rows:
        raise ValueError(
            f"{bands} bands of {rows} rows need {bands * rows} permutations, not {minima.shape[1]}"
        )
    cut = minima[:, : bands * rows].reshape(len(minima), bands, rows)
    keys = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), (len(minima), bands)).copy()
    for row in range(rows):
        keys = mixed(keys * np.uint64(BASE) + cut[:, :, row])
    return keys


def sketches(minima: np.ndarray) -> np.ndarray:
    """uint8 [documents, num_bins + 1]: the low byte of each minimum, then how many of the minima
    are different, at most 255. A quarter of a signature's memory.
    """
    ordered = np.sort(minima, axis=1)
    different = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)
    low = (minima & np.uint32(255)).astype(np.uint8)
    return np.column_stack([low, np.minimum(different, 255).astype(np.uint8)])


def may_be_similar(a: np.ndarray, b: np.ndarray, threshold: float) -> np.ndarray:
    """bool [pairs]: whether a pair of similarity `threshold` would have sketches so different at
    most once in 30,000 (four standard deviations).

    a, b: rows of `sketches`, uint8 [pairs, num_bins + 1]. Bytes of different minima agree once in
    256 (Li and Koenig 2010, "b-bit minwise hashing"). In a short text bins copy each other, so only
    its different minima are evidence.
    """
    agree = (a[:, :-1] == b[:, :-1]).mean(axis=1)
    estimate = np.maximum(0, (agree - 1 / 256) / (1 - 1 / 256))
    evidence = np.minimum(a[:, -1], b[:, -1]).astype(float)
    deviation = np.sqrt(threshold * (1 - threshold) / evidence)
    return estimate >= threshold - 4 * deviation


def has_features(minima: np.ndarray) -> np.ndarray:
    """bool [documents]: whether a document has an n-gram at all."""
    return (minima != EMPTY).any(axis=1)


def _fill(minima: np.ndarray, batch: list[np.ndarray], ngram_size: int) -> None:
    """The least hash of each bin, in place."""
    num_bins = minima.shape[1]
    lengths = np.array([len(codes) for codes in batch], dtype=np.int64)
    for row in np.flatnonzero((lengths > 0) & (lengths < ngram_size)):
        _bin_minima(minima, ngram_hashes(batch[row], len(batch[row])), np.array([row]), num_bins)
    long = np.flatnonzero(lengths >= ngram_size)
    if not len(long):
        return
    codes = np.concatenate([batch[row] for row in long])
    hashes = ngram_hashes(codes, ngram_size)
    ends = np.cumsum(lengths[long])
    # An n-gram that runs over the end of its document is none.
    inside = np.ones(len(hashes), dtype=bool)
    for end in ends[:-1]:
        inside[end - ngram_size + 1 : end] = False
    rows = np.repeat(long, lengths[long])[: len(hashes)]
    _bin_minima(minima, hashes[inside], rows[inside], num_bins)


def _bin_minima(minima: np.ndarray, hashes: np.ndarray, rows: np.ndarray, num_bins: int) -> None:
    spread = mixed(hashes)
    bins = ((spread >> np.uint64(32)) * np.uint64(num_bins)) >> np.uint64(32)
    values = np.minimum(spread & np.uint64(2**32 - 1), np.uint64(EMPTY - 1)).astype(np.uint32)
    np.minimum.at(minima.reshape(-1), rows * num_bins + bins.astype(np.int64), values)


def _densified(minima: np.ndarray) -> np.ndarray:
    """Every empty bin copies the first bin with an n-gram in its own order of the bins."""
    num_bins = minima.shape[1]
    filled = minima != EMPTY
    partly = filled.any(axis=1) & ~filled.all(axis=1)
    if not partly.any():
        return minima
    part, has = minima[partly], filled[partly]
    order = np.random.default_rng(num_bins)  # the same for all documents and runs
    still = ~has
    for probe in (order.permutation(num_bins) for _ in range(64)):
        take = still & has[:, probe]
        part = np.where(take, part[:, probe], part)
        still &= ~take
        if not still.any():
            break
    # after 64 probes: the next filled bin to the right
    if still.any():
        index = np.where(has, np.arange(num_bins), num_bins)
        following = np.minimum.accumulate(index[:, ::-1], axis=1)[:, ::-1]
        first = index.min(axis=1, keepdims=True)
        following = np.where(following == num_bins, first, following)
        part = np.where(still, np.take_along_axis(part, following, axis=1), part)
    minima[partly] = part
    return minima


def _codes(text: str) -> np.ndarray:
    """Code points of `features(text)`, uint64 [n]."""
    return _feature_codes(text).astype(np.uint64)


def ngram_hashes(codes: np.ndarray, width: int) -> np.ndarray:
    """A polynomial modulo 2^64 over each `width` neighbours of codes, uint64 [n]: uint64
    [n - width + 1], for 1 <= width <= n.

    Hashes of 1, 2, 4, ... neighbours are joined to those of the width, so the number of passes over
    the array grows with its logarithm.
    """
    power, hashes = 1, codes + np.uint64(1)  # of `power` neighbours
    joined: np.ndarray | None = None
    covered = 0
    while True:
        if width & power:
            if joined is None:
                joined = hashes
            else:
                count = len(codes) - covered - power + 1
                factor = np.uint64(pow(BASE, power, 2**64))
                joined = joined[:count] * factor + hashes[covered : covered + count]
            covered += power
        if covered == width:
            assert joined is not None
            return joined[: len(codes) - width + 1]
        factor = np.uint64(pow(BASE, power, 2**64))
        hashes = hashes[: len(hashes) - power] * factor + hashes[power:]
        power *= 2


def mixed(hashes: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser, of uint64 of any shape."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(_MIX[0])
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(_MIX[1])
    return hashes ^ (hashes >> np.uint64(31))
