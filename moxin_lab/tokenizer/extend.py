"""Extension of a tokenizer that a model already has, by experts of the routed one.

    mistral = extend.from_sentencepiece(peers.mistral())        # expert 0: all its ids stay
    longer = extend.extend(mistral, routed_tokenizer, ("cjk", "hangul"))
    rows = extend.initial_rows(model.get_input_embeddings().weight, longer.pieces)

Of an expert's tokens those are added that hold letters of its script alone, with or without a space
before them; tokens that the base has already keep their id there. New merges stand before those of
the base, so that a stretch of these letters is merged as the expert merges it; what the base can
still join after that, it joins.

Guarantees: every id of the base stands for the same token as before; text without a letter of these
experts has the ids that the base gives it, signs in `Extension.changed` excepted; the new ids of an
expert lie side by side. The row of a new token begins as the mean of the rows of the base's tokens
that it replaces.
Out of scope: bases that are no BPE, and what the rows become (`bench/extension.py` trains them).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from moxin_lab.tokenizer.byte_level import byte_names, is_piece, pairs_in_order
from moxin_lab.tokenizer.routed import Block, RoutedTokenizer, token_bytes
from moxin_lab.tokenizer.router import EXPERTS, expert_of_character

if TYPE_CHECKING:
    import torch

SPACE = "\u2581"
"""SentencePiece's."""


@dataclass(frozen=True)
class Extension:
    """A tokenizer with new ids behind those of its base, which reads special tokens in text as that
    does.
    """

    tokenizer: Tokenizer
    blocks: tuple[Block, ...]
    """`base`, `shared` (first bytes of characters, none for SentencePiece), then the experts."""
    pieces: tuple[tuple[int, ...], ...]
    """For each new id, in order, the ids with which the base spells its token."""
    changed: tuple[str, ...]
    """Signs that have other ids now; `extend` says which can."""


def from_sentencepiece(model: SentencePieceProcessor) -> Tokenizer:
    """A SentencePiece BPE with byte fallback, such as Mistral's, as a Hugging Face tokenizer of the
    same ids; special tokens are neither added nor read in text.
    """
    ids = range(model.vocab_size())
    pieces = {model.id_to_piece(index): index for index in ids}
    learned = [
        piece
        for piece, index in pieces.items()
        if not (model.is_byte(index) or model.is_control(index) or model.is_unknown(index))
    ]
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(learned, key=lambda piece: -model.get_score(pieces[piece]))
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    unknown = model.id_to_piece(model.unk_id())
    tokenizer = Tokenizer(
        BPE(vocab=pieces, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return tokenizer


def extend(base: Tokenizer, source: RoutedTokenizer, experts: Sequence[str]) -> Extension:
    """The base with the tokens of some experts behind its own.

    Args:
        base: a byte-level BPE, or one over characters with byte fallback; it stays as it is.
        experts: such as `("cjk", "hangul")`.
    A byte-level base that spells a sign byte by byte may spell it with a new token of two bytes, if
    a new letter begins with the same two, as the Japanese middle dot does: see
    `Extension.changed`. Raises ValueError for a base of another kind, and for an expert that does
    not exist.
    """
    if wrong := [name for name in experts if name not in EXPERTS[1:]]:
        raise ValueError(f"no expert {', '.join(wrong)}; there are {', '.join(EXPERTS[1:])}")
    described = json.loads(base.to_str())
    model = described["model"]
    if model["type"] != "BPE" or not (model["byte_fallback"] or _is_byte_level(described)):
        raise ValueError(
            f"the base is a {model['type']} tokenizer that is neither byte-level nor falls back to "
            "bytes; only a BPE can be extended"
        )
    by_character = model["byte_fallback"]
    added = _tokens(source, experts)
    if by_character:
        added = {token: name for token, name in added.items() if name != "shared"}
    spelled = {token: _spell(token, by_character) for token in added}
    first = 1 + max(*model["vocab"].values(), *(one["id"] for one in described["added_tokens"]), 0)
    vocab, blocks = dict(model["vocab"]), [Block("base", 0, first)]
    new: list[str] = []
    for name in ("shared", *experts):
        start = first + len(new)
        for token, text in spelled.items():
            if added[token] == name and text not in vocab:
                vocab[text] = first + len(new)
                new.append(text)
        blocks.append(Block(name, start, first + len(new)))
    # In the order of the source's ids, from the parts that a text is first cut into.
    atoms = (b" ",) if by_character else tuple(bytes([byte]) for byte in range(256))
    order = {token: rank for rank, token in enumerate((*atoms, *added))}
    merges = [
        (_spell(left, by_character), _spell(right, by_character))
        for left, right in pairs_in_order(order)
    ]
    known = set(merges)
    merges += [pair for pair in map(tuple, model["merges"]) if pair not in known]
    longer = described | {"model": model | {"vocab": vocab, "merges": merges}}
    tokenizer = Tokenizer.from_str(json.dumps(longer))
    tokenizer.encode_special_tokens = base.encode_special_tokens  # not in the description
    changed = tuple(_changed_signs(base, tokenizer, added))
    bare = Tokenizer.from_str(json.dumps(described | {"normalizer": None, "pre_tokenizer": None}))
    pieces = bare.encode_batch(new, add_special_tokens=False)
    return Extension(tokenizer, tuple(blocks), tuple(tuple(one.ids) for one in pieces), changed)


def _is_byte_level(described: Mapping[str, Any]) -> bool:
    """Whether a decoder, alone or in a sequence, is ByteLevel."""
    decoder = described["decoder"] or {}
    return any(one["type"] == "ByteLevel" for one in (decoder, *decoder.get("decoders", ())))


def _spell(token: bytes, by_character: bool) -> str:
    """A token as the vocabulary of a base spells it."""
    if by_character:
        return token.decode().replace(" ", SPACE)
    names = byte_names()
    return "".join(names[byte] for byte in token)


def _tokens(source: RoutedTokenizer, experts: Sequence[str]) -> dict[bytes, str]:
    """The tokens to add, in the order of the source's ids, each with its block."""
    every = token_bytes(source)
    kept: dict[bytes, str] = {}
    for token, index in every.items():
        name = source.expert_of(index)
        if name in experts:
            text = token.decode()
            letters = text[1:] if text[0] == " " and len(text) > 1 else text
            if all(expert_of_character(letter) == name for letter in letters):
                kept[token] = name
    beginnings = {
        token[:end] for token in kept if len(token.decode()) == 1 for end in range(2, len(token))
    }
    return {
        token: kept.get(token, "shared")
        for token in every
        if token in kept or (is_piece(token) and token in beginnings)
    }


def _changed_signs(base: Tokenizer, longer: Tokenizer, added: Mapping[bytes, str]) -> Iterator[str]:
    """Signs whose ids changed, alone or before another sign.

    Only those can that begin with the bytes of a new letter: merges of new tokens reach no other.
    """
    beginnings = {token for token, name in added.items() if name == "shared"}
    signs = [
        text
        for text in map(chr, (*range(0x80, 0xD800), *range(0xE000, 0x20000)))
        if text.encode()[:2] in beginnings and expert_of_character(text) == "common"
    ]

    def differ(texts: Sequence[str]) -> list[bool]:
        before, after = (
            tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            for tokenizer in (base, longer)
        )
        return [old.ids != new.ids for old, new in zip(before, after, strict=True)]

    alone = dict(zip(signs, differ(signs), strict=True))
    # Where two signs meet, only the first bytes of the second matter.
    seconds = {sign.encode()[:2]: sign for sign in signs if not alone[sign]}.values()
    for sign in signs:
        if alone[sign] or any(differ([sign + second for second in seconds])):
            yield sign


def initial_rows(embedding: "torch.Tensor", pieces: Sequence[Sequence[int]]) -> "torch.Tensor":
    """Rows for new tokens: the mean of the rows of each one's pieces, in `embedding`'s dtype.

    embedding: [V, d]. pieces: of `Extension`. Returns [len(pieces), d].
    """
    import torch

    return torch.stack([embedding[list(ids)].float().mean(dim=0) for ids in pieces]).to(
        embedding.dtype
    )
