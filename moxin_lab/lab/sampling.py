"""A part of some documents that stands for all of them: a byte limit shared among their sources.

Text lies in an order: card by card, source by source. Its first bytes are one source. Here every
source gives its share, in an order that is hashed from each document's key:

    share of a source = limit x its bytes / all bytes, at least about a hundredth of the limit

Guarantees: the choice depends on the seed, the keys and the sizes, not on the order of the
documents; the bytes never exceed the limit; a source with text has text in the choice, if the limit
is at least 400 bytes per source (a hundredth is then one character of any script).
Out of scope: the texts (`beginning` cuts the last document of a source at its share).
"""

import hashlib
from collections.abc import Hashable, Sequence

import numpy as np

FLOOR = 0.01  # of the limit: our choice


def spread(
    keys: Sequence[str],
    sources: Sequence[Hashable],
    sizes: Sequence[int],
    limit: int,
    *,
    seed: int = 0,
) -> list[tuple[int, int]]:
    """Which documents, and how many bytes of the beginning of each, in hashed order.

    keys: a name of each document, such as its id; documents with equal keys keep their order.
    sizes: UTF-8 bytes. Returns (index, bytes) pairs; all but the last document of each source are
    whole. Raises ValueError for a limit below 1 or lengths that differ.
    """
    if limit < 1:
        raise ValueError(f"the limit is {limit} bytes: it must be at least 1")
    if not len(keys) == len(sources) == len(sizes):
        raise ValueError(
            f"{len(keys)} keys, {len(sources)} sources and {len(sizes)} sizes: there must be as "
            "many of each"
        )
    left = shares(sources, sizes, limit)
    ranks = [hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys]
    chosen = []
    for index in sorted(range(len(ranks)), key=ranks.__getitem__):
        taken = min(int(sizes[index]), left[sources[index]])
        if taken:
            left[sources[index]] -= taken
            chosen.append((index, taken))
    return chosen


def shares(sources: Sequence[Hashable], sizes: Sequence[int], limit: int) -> dict[Hashable, int]:
    """Bytes of each source, all of them where the limit is not reached."""
    held: dict[Hashable, int] = {}
    for source, size in zip(sources, sizes, strict=True):
        held[source] = held.get(source, 0) + int(size)
    total = sum(held.values())
    if total <= limit:
        return held
    held = dict(sorted(held.items(), key=lambda item: str(item[0])))  # sums in one order
    sizes_held = np.array(list(held.values()), dtype=np.float64)
    wanted = np.maximum(sizes_held / total * limit, np.minimum(sizes_held, FLOOR * limit))
    floored = np.floor(wanted * (limit / wanted.sum())).astype(np.int64)
    if limit >= 400 * len(held):
        # Rounding must not take a small source's last character, which has at most four bytes.
        floored = np.maximum(floored, np.minimum(sizes_held, 4).astype(np.int64))
        floored[floored.argmax()] -= max(0, int(floored.sum()) - limit)
    return dict(zip(held, floored.tolist(), strict=True))


def beginning(text: str, size: int) -> str:
    """As many whole characters of the beginning of a text as fit `size` bytes of UTF-8."""
    # `ignore` drops the last character if the cut falls inside it.
    return text.encode()[:size].decode(errors="ignore")
