"""The routed tokenizer: one byte-level BPE whose vocabulary has one contiguous block per expert.

Layout of the ids:

    [4 special][256 bytes][shared: pieces of characters, signs][common][latin][cjk] ... [other]

A text is cut into pieces and each piece into runs of one expert (`router`). In a run, the merges of
its expert apply. A merge joins only whole characters of one run, so merges of two experts never
meet, and one BPE over the union of the vocabularies gives the same ids as sending each run to its
own expert: `encode` uses the union, `encode_by_expert` the experts, and a property test compares
them. The union is exported, so users need only `PreTrainedTokenizerFast.from_pretrained(folder)`.

Guarantees:
- Lossless: there is no normalizer and no prefix space, and every byte has a token, so decoding the
  ids of any text gives the text.
- An id of an expert's block occurs only in runs of that expert; bytes and shared ids may occur in
  any run.
- Ids are ranks: a merge with a smaller id goes first, every pair of tokens that spells a token may
  merge into it, and a token that merges cannot reach has no id. So encoders that know ids alone
  (tiktoken and its faster kin) give the same ids as those that read the list of merges.
- `encode` never produces a special token from text: "<s>" in a corpus is three characters. This
  survives pickle, deepcopy and worker processes. The exported folder does parse special tokens
  written in text, as chat templates need. For text from an untrusted source pass
  `split_special_tokens=True` there.
- The same texts give the same bytes of `tokenizer.json`.
Out of scope: Unicode normalisation (the NFC and NFD spellings of a word have different ids).
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from moxin_lab.lab.progress import Progress
from moxin_lab.tokenizer.byte_level import byte_names, is_piece, pairs_in_order
from moxin_lab.tokenizer.learn import Candidate, Pool, choose, learn
from moxin_lab.tokenizer.router import EXPERTS, piece_splitter, runs_of
from moxin_lab.tokenizer.training_text import read_documents

IMAGE, BOS, EOS, PAD = SPECIAL_TOKENS = ("<image>", "<s>", "</s>", "<pad>")
"""In the order of ids. No token means "unknown": every byte has an id. `<image>` stands where other
tokenizers of this family have `<unk>`, and is the place of an image in a prompt (stage 07).
"""
BYTES_START = len(SPECIAL_TOKENS)
SHARED_START = BYTES_START + 256
ANSWERS = tuple(
    space + word
    for word in ("Yes", "No", "True", "False", *(chr(code) for code in range(0x41, 0x5B)))
    for space in ("", " ")
)
"""Words by which choices are answered; each is one token, so that evaluation can compare them."""
BUDGET_RULE = (
    "The tokens that save most tokens on the training text, languages weighted as given; a block "
    "is as large as the number of its tokens among them, and no smaller than the floor as far as "
    "its script has tokens."
)
"""Recorded in `experts.json`; a changed word would change the bytes of the artifact."""


SEGMENT_CHARACTERS = 1_000_000
"""A longer text is encoded in parts of about this size: 16 MB take 1 GB of memory instead of 3."""
BATCH_CHARACTERS = 4_000_000
"""Of texts that are encoded at once, for the same reason: more than 100 bytes are held a token."""
_CUT = re.compile(r"(?<=\n)(?=[^\s/])")


@dataclass(frozen=True)
class Block:
    """A contiguous range of ids: start <= id < stop."""

    name: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class RoutedTokenizer:
    """The union tokenizer, its blocks and the record of its training."""

    union: Tokenizer
    blocks: tuple[Block, ...]
    """In the order of ids, covering the whole vocabulary."""
    record: dict[str, Any]
    """Settings of the training and bytes of its text, as written to `experts.json`."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self.blocks[-1].stop

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens are neither added nor parsed, so any text is safe.

        Raises ValueError for a lone surrogate, which no UTF-8 text contains.
        """
        # In segments: the library keeps more than 100 bytes for each token of one call.
        return [
            token
            for segment in segments(text, SEGMENT_CHARACTERS)
            for token in self.encode_batch([segment])[0]
        ]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, on all cores; the same errors."""
        texts = list(texts)
        try:
            return [
                encoding.ids
                for batch in batches(texts)
                for encoding in self.union.encode_batch_fast(batch, add_special_tokens=False)
            ]
        except (TypeError, UnicodeEncodeError):
            _refuse_surrogates(texts)
            raise

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids, with special tokens spelled out.

        Raises ValueError for an id outside the vocabulary.
        """
        ids = _known(ids, self.vocab_size)
        return self.union.decode(ids.tolist(), skip_special_tokens=False)

    def expert_of(self, token_id: int) -> str:
        """The name of the block that an id belongs to: an expert, `shared`, `byte` or `special`.

        Raises ValueError for an id outside the vocabulary.
        """
        return self.blocks[int(self.block_of([token_id])[0])].name

    def __reduce__(self) -> tuple[Any, ...]:
        # The library's own pickling forgets that special tokens in text are text.
        return with_plain_special_tokens, (self.union.to_str(), self.blocks, self.record)

    def block_of(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """The index into `blocks` of each id: int64 [n].

        Raises ValueError for an id outside the vocabulary.
        """
        ids = _known(ids, self.vocab_size)
        return np.searchsorted([block.stop for block in self.blocks], ids, side="right")

    @cached_property
    def experts(self) -> dict[str, Tokenizer]:
        """Each expert as a separate tokenizer, which encodes the runs of its own and skips others.

        Its local ids are the shared ids, then those of its own tokens, counted from the end of the
        shared block.
        """
        model = json.loads(self.union.to_str())["model"]
        blocks = {block.name: block for block in self.blocks}
        shared_stop = blocks["shared"].stop
        tokenizers = {}
        for expert in EXPERTS:
            block = blocks[expert]
            vocab = {
                token: index if index < shared_stop else index - block.start + shared_stop
                for token, index in model["vocab"].items()
                if index < shared_stop or block.start <= index < block.stop
            }
            merges = [pair for pair in map(tuple, model["merges"]) if "".join(pair) in vocab]
            tokenizers[expert] = assemble(vocab, merges, runs_of(expert))
        return tokenizers

    def encode_by_expert(self, text: str) -> list[int]:
        """Ids from sending each run to its expert and shifting local ids to the expert's block.

        They equal those of `encode`.
        """
        blocks = {block.name: block for block in self.blocks}
        shared_stop = blocks["shared"].stop
        placed: list[tuple[int, int]] = []  # where in the text a token begins, and its id
        for expert, member in self.experts.items():
            encoding = member.encode(text, add_special_tokens=False)
            shift = blocks[expert].start - shared_stop
            placed += [
                (start, token if token < shared_stop else token + shift)
                for (start, _), token in zip(encoding.offsets, encoding.ids, strict=True)
            ]
        # Stable: the bytes of one character share a place and come from one expert, in order.
        return [token for _, token in sorted(placed, key=lambda item: item[0])]


def segments(text: str, num_characters: int) -> Iterator[str]:
    """A text in parts of at least so many characters, cut only where two pieces meet; joined, they
    give the text.

    That is after a line end, before anything but white space and `/`, which may belong to the piece
    that holds the line end (`router.PIECE_PATTERN`). A text without such a place is one part.
    """
    start = 0
    while len(text) - start > num_characters:
        place = _CUT.search(text, start + num_characters)
        if place is None:
            break
        yield text[start : place.start()]
        start = place.start()
    yield text[start:]


def batches(texts: Iterable[str], num_characters: int = BATCH_CHARACTERS) -> Iterator[list[str]]:
    """The texts in lists, each of which ends as soon as it has so many characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= num_characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def with_plain_special_tokens(
    union: str, blocks: tuple[Block, ...], record: dict[str, Any]
) -> RoutedTokenizer:
    """A tokenizer from the text of its tokenizer.json, with special tokens in text read as text."""
    tokenizer = Tokenizer.from_str(union)
    tokenizer.encode_special_tokens = True
    return RoutedTokenizer(tokenizer, blocks, record)


def token_bytes(tokenizer: RoutedTokenizer) -> dict[bytes, int]:
    """The bytes of every token but the special ones, with its id, in the order of ids."""
    byte_of = {name: byte for byte, name in enumerate(byte_names())}
    ordered = sorted(tokenizer.union.get_vocab().items(), key=lambda item: item[1])
    return {
        bytes(byte_of[name] for name in token): index
        for token, index in ordered
        if index >= len(SPECIAL_TOKENS)
    }


def _known(ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """The ids as int64 [n]; raises ValueError if one is outside the vocabulary."""
    array = np.asarray(ids, dtype=np.int64)
    if array.size and (array.min() < 0 or array.max() >= vocab_size):
        raise ValueError(f"ids must lie in 0..{vocab_size - 1}; got {array.min()}..{array.max()}")
    return array


def _refuse_surrogates(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts):
        found = isinstance(text, str) and re.search("[\ud800-\udfff]", text)
        if found:
            raise ValueError(
                f"text {number} has a lone surrogate, U+{ord(found.group()):04X}, at character "
                f"{found.start()}: it is no Unicode text. Decode its source with the right "
                "encoding, or replace it."
            )


def train(
    texts: Path | Iterable[str] | Mapping[str, Sequence[str]],
    vocab_size: int,
    *,
    min_frequency: int = 2,
    max_token_length: int = 16,
    min_tokens_per_expert: int = 0,
    max_bytes_per_language: int | None = None,
    required: Sequence[str] = (),
    progress: Progress = lambda step, total, label: None,
) -> RoutedTokenizer:
    """Learns the experts from text and joins them into one vocabulary of exactly `vocab_size` ids,
    every language weighing the same.

    texts: a parquet file with columns `language` and `text`, documents by language, or documents of
    one language.
    Calls `training_text.read_documents`, `learn.learn` and `build` in turn; see there for the other
    arguments and the errors raised.
    """
    pool = learn(
        read_documents(texts, max_bytes_per_language),
        max_candidates=vocab_size,
        min_frequency=min_frequency,
        max_token_length=max_token_length,
        progress=progress,
    )
    return build(
        pool,
        vocab_size,
        weights=dict.fromkeys(pool.num_bytes, 1.0),
        min_tokens_per_expert=min_tokens_per_expert,
        required=required,
    )


def build(
    pool: Pool,
    vocab_size: int,
    *,
    weights: Mapping[str, float] | None,
    min_tokens_per_expert: int = 0,
    required: Sequence[str] = (),
) -> RoutedTokenizer:
    """Fills a vocabulary with learned candidates by the budget rule of `learn`.

    Args:
        weights: of the languages, on any scale; None weighs a language by its text.
        min_tokens_per_expert, required: the floor of `learn.choose`, and words that are tokens.
    Raises ValueError if the pool is too small for the vocabulary, or the vocabulary for the floors.
    """
    ranked = pool.by_worth(weights)
    budget = vocab_size - SHARED_START
    if not 0 <= budget <= len(ranked):
        raise ValueError(
            f"vocab_size {vocab_size} cannot be filled: there are {SHARED_START} special tokens "
            f"and bytes, plus {len(ranked)} tokens that occur {pool.min_frequency} times or more; "
            f"choose {SHARED_START} to {SHARED_START + len(ranked)}, or give more text"
        )
    record = {
        "budget_rule": BUDGET_RULE,
        "weights": "bytes of text" if weights is None else dict(weights),
        "min_tokens_per_expert": min_tokens_per_expert,
        "min_frequency": pool.min_frequency,
        "max_token_length": pool.max_token_length,
        "training_bytes": pool.num_bytes,
    }
    # In the order learned, so that a token's parts are there when it is to be merged. Required
    # words that were not learned go first, with all that they are built from.
    known = dict.fromkeys(candidate.token for candidate in pool.candidates)
    spelled = dict.fromkeys(
        word[:end].encode()
        for word in required
        if word.encode() not in known
        for end in range(2, len(word) + 1)
    )
    place = {token: number for number, token in enumerate(spelled | known)}
    candidates = [candidate for _, candidate in ranked]
    while True:
        chosen = choose(candidates, budget, min_tokens_per_expert, required)
        chosen.sort(key=lambda candidate: place[candidate.token])
        tokenizer = _union(chosen, record)
        unreached = _unreached(tokenizer)
        if not unreached:
            return tokenizer
        # Its parts are taken by merges of smaller ids wherever it stands: others use the id better.
        candidates = [candidate for candidate in candidates if candidate.token not in unreached]


def _union(chosen: Sequence[Candidate], record: dict[str, Any]) -> RoutedTokenizer:
    """Assigns ids to the chosen tokens, block by block, and joins them in one BPE."""
    names = byte_names()
    spelling = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    ids = {bytes([byte]): BYTES_START + byte for byte in range(256)}
    blocks = [Block("special", 0, BYTES_START), Block("byte", BYTES_START, SHARED_START)]
    for expert in (None, *EXPERTS):
        start = len(SPECIAL_TOKENS) + len(ids)
        members = [candidate.token for candidate in chosen if candidate.expert == expert]
        # Characters before merges, so that merges see whole characters. `sorted` is stable:
        # otherwise the order learned stays.
        for token in sorted(members, key=lambda token: not _builds_character(token)):
            if token in ids or "".join(names[byte] for byte in token) in SPECIAL_TOKENS:
                raise ValueError(
                    f"the token {token!r} was learned twice, or spells a special token; "
                    "the pieces must prevent it"
                )
            ids[token] = len(SPECIAL_TOKENS) + len(ids)
        blocks.append(Block(expert or "shared", start, len(SPECIAL_TOKENS) + len(ids)))
    spelling |= {"".join(names[byte] for byte in token): index for token, index in ids.items()}
    merges = [
        ("".join(names[byte] for byte in left), "".join(names[byte] for byte in right))
        for left, right in pairs_in_order(ids)
    ]
    return RoutedTokenizer(assemble(spelling, merges, piece_splitter()), tuple(blocks), record)


def _unreached(tokenizer: RoutedTokenizer) -> set[bytes]:
    """Tokens whose own bytes are not merged into them."""
    bare = Tokenizer.from_str(tokenizer.union.to_str())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole = {
        token: index
        for token, index in token_bytes(tokenizer).items()
        if index >= SHARED_START and not is_piece(token)
    }
    encodings = bare.encode_batch([token.decode() for token in whole], add_special_tokens=False)
    return {
        token
        for (token, index), encoding in zip(whole.items(), encodings, strict=True)
        if encoding.ids != [index]
    }


def _builds_character(token: bytes) -> bool:
    """True for a whole character or a piece of one, built from single bytes."""
    return is_piece(token) or len(token.decode()) == 1


def assemble(
    vocab: dict[str, int], merges: list[tuple[str, str]], splitter: pre_tokenizers.PreTokenizer
) -> Tokenizer:
    """A byte-level BPE over what the splitter cuts; special tokens in text are text."""
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splitter, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B:1", special_tokens=[(BOS, vocab[BOS])]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.encode_special_tokens = True
    return tokenizer
