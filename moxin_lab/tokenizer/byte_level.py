"""How a byte-level BPE spells its tokens, and which pairs of tokens it merges.

Out of scope: which tokens there are (`learn`), and their ids (`routed`).
"""

from collections.abc import Iterator, Mapping


def byte_names() -> list[str]:
    """The printable character that represents each byte in `tokenizer.json`.

    Printable Latin-1 bytes represent themselves; the others are mapped to U+0100 and up.
    Source: `bytes_to_unicode` of GPT-2 (OpenAI gpt-2, `src/encoder.py`), which ByteLevel follows.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def pairs_in_order(ids: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every pair of tokens that spells a token, in the order of that token's id.

    An encoder that knows ids alone merges any such pair; this is the same rule as a list. Among the
    pairs of one token the order only matters where they overlap: by their ids, as in transformers'
    conversion of tiktoken files.
    """
    for token in sorted(ids, key=ids.__getitem__):
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [(left, right) for left, right in halves if left in ids and right in ids]
        yield from sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def is_piece(token: bytes) -> bool:
    """True for the first bytes of a character without its last."""
    try:
        token.decode()
    except UnicodeDecodeError:
        return True
    return False
