"""Tokens for n-grams: one definition for decontamination, overlap and rules that count words.

Guarantees: the tokens do not depend on case, line breaks, punctuation, invisible characters (soft
hyphen, joiners, direction marks) or composed against decomposed characters (NFKC); a combining mark
stays with its letter, so Hindi and Thai are not cut inside a syllable; in scripts without spaces
each letter with its marks is one token; Korean, which has spaces, is cut at them.
Out of scope: segmenting Chinese, Japanese or Thai into words, which needs a dictionary.
"""

import re
import string
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import pairwise

import numpy as np

from moxin_lab.data.minhash import BASE, distinct, mixed, ngram_hashes

NGRAM_TOKENS = 13
"""Length of the n-grams that contamination studies of language models look for (Brown et al. 2020,
appendix C).
"""

# Han, Hiragana, Katakana, Bopomofo, Thai, Lao, Myanmar, Khmer: no spaces between words.
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3040, 0x30FF),
    (0x3105, 0x312F),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)


_ASCII_TOKEN = re.compile("[a-z0-9]+")
# Format characters that are not seen: soft hyphen, joiners, direction and byte-order marks.
_INVISIBLE = re.compile("[\xad\u034f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]+")


def tokens(text: str) -> list[str]:
    """The tokens of `text` in order: words and numbers, or single letters of unspaced scripts."""
    if text.isascii():
        return _ASCII_TOKEN.findall(text.lower())
    folded = _folded(text)
    found: list[str] = _pattern(max(folded, default="") <= "\uffff").findall(folded)
    return found


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    return unicodedata.normalize("NFKC", folded)


def _folded_codes(text: str) -> np.ndarray:
    """Code points of `_folded(text)`, uint32 [n]; a run of characters between tokens may be one."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    folded = _folds()[codes]
    if (folded == _TOGETHER).any():
        return np.frombuffer(_folded(text).encode("utf-32-le", "surrogatepass"), np.uint32)
    return folded[folded != _UNSEEN]


_TOGETHER, _UNSEEN = 2**32 - 1, 2**32 - 2
_JAMO = (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))
"""Korean vowels and final consonants, which are composed with what stands before them."""


_LAST_FOLDED = 0x30000
"""No character from here on is folded, or is composed of others."""


@cache
def _folds() -> np.ndarray:
    """What each code point becomes in `_folded`, uint32: one of its own; `_UNSEEN` for nothing; a
    space for several that no token holds; `_TOGETHER` where neighbours decide, or several come.
    """
    folds = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    composed = set(_JAMO)
    for code in range(_LAST_FOLDED):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            composed.add(int(parts[1], 16))
    composed.update(_mark_codes())
    kinds = _kinds()
    for start in range(0, _LAST_FOLDED, 256):
        block = [chr(code) for code in range(start, start + 256)]
        if _folded("".join(block)) == "".join(block):
            continue
        for character in block:
            found = [ord(each) for each in _folded(character)]
            if composed.intersection(found):
                value = _TOGETHER
            elif len(found) == 1:
                value = found[0]
            elif not found:
                value = _UNSEEN
            else:
                value = _TOGETHER if kinds[found].any() else ord(" ")
            folds[ord(character)] = value
    folds[list(composed)] = _TOGETHER
    return folds


def ngrams(words: list[str], size: int = NGRAM_TOKENS) -> Iterator[tuple[str, ...]]:
    """Every run of `size` tokens in order; none if there are fewer. ValueError if `size` < 1."""
    if size < 1:
        raise ValueError(f"an n-gram needs at least one token, not {size}")
    return (tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def hashes(words: list[str], size: int = NGRAM_TOKENS) -> np.ndarray:
    """A 64-bit hash of each of `ngrams(words, size)`, in order: uint64 [n - size + 1], or [0].

    It depends on the n-gram alone, so hashes of two documents or two runs can be compared.
    """
    return run_hashes(token_hashes(words), size)


def run_hashes(each: np.ndarray, size: int) -> np.ndarray:
    """`hashes` from `token_hashes`, for several sizes of the same tokens."""
    if size < 1:
        raise ValueError(f"an n-gram needs at least one token, not {size}")
    return mixed(ngram_hashes(each, size)) if len(each) >= size else np.zeros(0, np.uint64)


def hashes_of(text: str, size: int = NGRAM_TOKENS) -> np.ndarray:
    """`hashes(tokens(text), size)`, without the tokens as strings."""
    return run_hashes(token_hashes_of(text), size)


def token_hashes_of(text: str) -> np.ndarray:
    """`token_hashes(tokens(text))` in a third of its time, without the tokens as strings."""
    if text.isascii():
        codes = _ascii_codes()[np.frombuffer(text.encode(), np.uint8)]
        inside = codes != 0
        starts = np.flatnonzero(inside & ~np.r_[False, inside[:-1]])
    else:
        raw = _folded_codes(text)
        kind = _kinds()[raw]
        mark = kind == _MARK
        if mark.any():
            # A mark is of the kind of what it stands on; before any other character it is nothing.
            kind = kind[np.maximum.accumulate(np.where(mark, 0, np.arange(len(raw))))]
            kind[kind == _MARK] = 0
        inside = kind != 0
        codes = (raw.astype(np.uint64) + np.uint64(1)) * inside
        new = (kind == _UNSPACED_LETTER) & ~mark
        new[1:] |= kind[1:] != kind[:-1]
        new[:1] = True
        starts = np.flatnonzero(inside & new)
    sums = np.zeros(len(starts), np.uint64)
    # Codes between tokens are 0. A token's powers count from the start of its piece of the text.
    first = np.flatnonzero(np.diff(starts // _PIECE, prepend=-1)).tolist()
    for low, high in pairwise([*first, len(starts)]):
        begin = starts[low]
        piece = codes[begin : starts[high] if high < len(starts) else len(codes)]
        powers, inverse = _powers(max(2 * _PIECE, len(piece)))
        own = starts[low:high] - begin
        sums[low:high] = np.add.reduceat(piece * powers[: len(piece)], own) * inverse[own]
    return mixed(sums)


def token_hashes(words: list[str]) -> np.ndarray:
    """A 64-bit hash of each token: uint64 [n]."""
    if not words:
        return np.zeros(0, np.uint64)
    raw = "".join(words).encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(raw, dtype=np.uint32).astype(np.uint64) + np.uint64(1)
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    powers = np.full(lengths.max(), BASE, dtype=np.uint64)
    powers[0] = 1
    powers = np.multiply.accumulate(powers)
    return mixed(np.add.reduceat(codes * powers[place], starts))


class Known:
    """A set of hashes, in which those of a text are looked for.

    A look into a table of their first bits is much cheaper than a search, and answers for nearly
    all of a text that has few of them.
    """

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = distinct(hashes)
        bits = min(MAX_TABLE_BITS, len(self.hashes).bit_length() + 5)
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self.hashes >> self._shift] = True

    def find(self, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The indices of those of `asked` that are in the set, and their places in `hashes`."""
        at = np.flatnonzero(self._table[asked >> self._shift])
        if not len(at):
            return at, at
        place = np.minimum(np.searchsorted(self.hashes, asked[at]), len(self.hashes) - 1)
        same = self.hashes[place] == asked[at]
        return at[same], place[same]


MAX_TABLE_BITS = 26
"""A table of 64 MiB."""


# asked for each character of a document, most of which come again
@lru_cache(maxsize=1 << 16)
def is_unspaced(character: str) -> bool:
    """Whether the character belongs to a script that is written without spaces."""
    return any(first <= ord(character) <= last for first, last in _UNSPACED)


@cache
def marks(last: int = sys.maxunicode) -> str:
    """Combining marks up to code point `last`, as the inside of a character class of `re`.

    `\\w` leaves them out.
    """
    return _ranges([c for c in _mark_codes() if c <= last])


@cache
def _mark_codes() -> list[int]:
    return [c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c))[0] == "M"]


_UNSPACED_LETTER, _MARK = 2, 3
_PIECE = 1 << 16
"""Characters that are hashed at once, and more where a token is longer: in a processor's cache."""


@cache
def _kinds() -> np.ndarray:
    """What each code point is in `_pattern`, uint8; 0 for what no token holds."""
    kinds = np.array([chr(c).isalnum() for c in range(sys.maxunicode + 1)], np.uint8)
    for first, last in _UNSPACED:
        kinds[first : last + 1] *= _UNSPACED_LETTER
    kinds[_mark_codes()] = _MARK
    return kinds


@cache
def _ascii_codes() -> np.ndarray:
    """`token_hashes` adds these of the lower-case letters and digits, uint64 [256]; else 0."""
    codes = np.zeros(256, np.uint64)
    for character in string.ascii_letters + string.digits:
        codes[ord(character)] = ord(character.lower()) + 1
    return codes


@lru_cache(maxsize=1)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of BASE from 0 and of its inverse modulo 2^64, uint64 [count] both."""
    bases = (BASE, pow(BASE, -1, 2**64))
    both = [np.full(count, base, dtype=np.uint64) for base in bases]
    for powers in both:
        powers[0] = 1
        np.multiply.accumulate(powers, out=powers)
    return both[0], both[1]


@cache
def _pattern(basic: bool) -> re.Pattern[str]:
    """The tokens. basic: of text up to U+FFFF; a list of the marks above makes matching slower."""
    last = 0xFFFF if basic else sys.maxunicode
    letters = (c for first, end in _UNSPACED for c in range(first, min(end, last) + 1))
    unspaced = _ranges([c for c in letters if chr(c).isalnum()])
    word = f"[^\\W_{unspaced}]"
    return re.compile(f"[{unspaced}][{marks(last)}]*|{word}+(?:[{marks(last)}]+{word}*)*")


def _ranges(codes: list[int]) -> str:
    """A character class of sorted code points."""
    parts, start = [], codes[0]
    for here, after in zip(codes, [*codes[1:], -1], strict=True):
        if after != here + 1:
            parts.append(f"\\U{start:08x}-\\U{here:08x}")
            start = after
    return "".join(parts)
