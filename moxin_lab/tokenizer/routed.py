"""The routed tokenizer: one byte-level BPE whose vocabulary has one contiguous block per expert.

Layout of the ids:

    [4 special][256 bytes][shared pieces of characters][latin][han][kana][hangul][other]

A text is cut into runs of one script (`router`) and each run into pieces. In a piece, the merges of
the run's expert apply. A merge joins only whole characters of its expert, so merges of two experts
never meet. One BPE over the union of the vocabularies therefore gives the same ids as routing each
run to its own expert: `encode` uses the union, `encode_by_expert` routes, and a property test
compares them. The union is exported, so users need only
`PreTrainedTokenizerFast.from_pretrained(folder)`.

Guarantees:
- Lossless: there is no normalizer and no prefix space, and every byte has a token, so decoding the
  ids of any text gives the text.
- An id of an expert's block occurs only in runs of that expert; bytes and shared pieces may occur
  in any run.
- `encode` never produces a special token from text: "<s>" in a corpus is three characters. The
  exported folder does parse special tokens written in text, as chat templates need. For text from
  an untrusted source pass `split_special_tokens=True` there.
- The same texts give the same bytes of `tokenizer.json`.
Out of scope: Unicode normalisation (the NFC and NFD spellings of a word have different ids), and
lone surrogates, which no UTF-8 text contains.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from moxin_lab.lab.progress import Progress
from moxin_lab.tokenizer import router
from moxin_lab.tokenizer.learn import Candidate, Pool, choose, learn, piece_splitter
from moxin_lab.tokenizer.router import EXPERTS, route

__all__ = ["Block", "RoutedTokenizer", "build", "load", "read_documents", "route", "save", "train"]

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
BYTES_START = len(SPECIAL_TOKENS)
SHARED_START = BYTES_START + 256
BUDGET_RULE = (
    "The tokens that save most tokens on the training text, {}; a block is as large as the number "
    "of its tokens among them, and no smaller than the floor as far as its script has tokens."
)
"""Recorded in `experts.json`; a changed word would change the bytes of the artifact."""


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
        """Ids of a text; special tokens are neither added nor parsed, so any text is safe."""
        return self.union.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        return [
            encoding.ids
            for encoding in self.union.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, with special tokens spelled out."""
        return self.union.decode(list(ids), skip_special_tokens=False)

    def block_of(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """The index into `blocks` of each id: int64 [n].

        Raises ValueError for an id outside the vocabulary.
        """
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise ValueError(
                f"ids must lie in 0..{self.vocab_size - 1}; got {ids.min()}..{ids.max()}"
            )
        return np.searchsorted([block.stop for block in self.blocks], ids, side="right")

    @cached_property
    def experts(self) -> dict[str, Tokenizer]:
        """Each expert as a separate tokenizer.

        Its local ids are the shared ids, then those of its own tokens, counted from the end of the
        shared block.
        """
        model = json.loads(self.union.to_str())["model"]
        blocks = {block.name: block for block in self.blocks}
        shared_stop = blocks["shared"].stop  # where the first expert's block starts
        tokenizers = {}
        for expert in EXPERTS:
            block = blocks[expert]
            vocab = {
                token: index if index < shared_stop else index - block.start + shared_stop
                for token, index in model["vocab"].items()
                if index < shared_stop or block.start <= index < block.stop
            }
            merges = [(left, right) for left, right in model["merges"] if left + right in vocab]
            tokenizers[expert] = _assemble(vocab, merges, split_runs=False)
        return tokenizers

    def encode_by_expert(self, text: str) -> list[int]:
        """Ids from routing each run to its expert and shifting local ids to the expert's block.

        They equal those of `encode`.
        """
        start = {block.name: block.start for block in self.blocks}
        runs = route(text)
        ids_of_run: list[list[int]] = [[] for _ in runs]
        for expert, member in self.experts.items():
            positions = [i for i, (run_expert, _) in enumerate(runs) if run_expert == expert]
            encodings = member.encode_batch_fast(
                [runs[position][1] for position in positions], add_special_tokens=False
            )
            # Local ids of every expert start where the shared ids end, as `latin` does.
            shift = start[expert] - start["latin"]
            for position, encoding in zip(positions, encodings, strict=True):
                ids_of_run[position] = [
                    token if token < start["latin"] else token + shift for token in encoding.ids
                ]
        return [token for ids in ids_of_run for token in ids]


def train(
    texts: Path | Iterable[str] | Mapping[str, Sequence[str]],
    vocab_size: int,
    *,
    min_frequency: int = 2,
    max_token_length: int = 16,
    min_tokens_per_expert: int = 0,
    max_bytes_per_language: int | None = None,
    weigh_languages: bool = True,
    progress: Progress = lambda step, total, label: None,
) -> RoutedTokenizer:
    """Learns the experts from text and joins them into one vocabulary of exactly `vocab_size` ids.

    texts: a parquet file with columns `language` and `text`, documents by language, or documents of
    one language.
    Calls `read_documents`, `learn.learn` and `build` in turn; see there for the other arguments and
    the errors raised.
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
        min_tokens_per_expert=min_tokens_per_expert,
        weigh_languages=weigh_languages,
    )


def build(
    pool: Pool, vocab_size: int, *, min_tokens_per_expert: int = 0, weigh_languages: bool = True
) -> RoutedTokenizer:
    """Fills a vocabulary with learned candidates by the budget rule of `learn`.

    Args:
        min_tokens_per_expert: the floor of `learn.choose`.
        weigh_languages: with False, a language has as much weight as it has text.
    Raises ValueError if the pool is too small for the vocabulary, or the vocabulary for the floors.
    """
    ranked = pool.by_worth(weigh_languages)
    budget = vocab_size - SHARED_START
    if not 0 <= budget <= len(ranked):
        raise ValueError(
            f"vocab_size {vocab_size} cannot be filled: there are {SHARED_START} special tokens "
            f"and bytes, plus {len(ranked)} tokens that occur {pool.min_frequency} times or more; "
            f"choose {SHARED_START} to {SHARED_START + len(ranked)}, or give more text"
        )
    record = {
        "budget_rule": BUDGET_RULE.format(
            "every language weighing the same" if weigh_languages else "taken as it is"
        ),
        "min_tokens_per_expert": min_tokens_per_expert,
        "min_frequency": pool.min_frequency,
        "max_token_length": pool.max_token_length,
        "training_bytes": pool.num_bytes,
    }
    return _union(
        choose([candidate for _, candidate in ranked], budget, min_tokens_per_expert), record
    )


def read_documents(
    texts: Path | Iterable[str] | Mapping[str, Sequence[str]],
    max_bytes_per_language: int | None = None,
) -> dict[str, list[str]]:
    """Documents by language, languages in alphabetical order.

    max_bytes_per_language: each language has its first documents up to that many UTF-8 bytes. Where
    the first one alone is longer, its beginning is kept, so that no language with text is lost.
    Raises ValueError if all documents are empty, TypeError for a single string.
    """
    if isinstance(texts, Path):
        table = pq.read_table(texts, columns=["language", "text"])
        grouped: dict[str, list[str]] = {}
        for language, text in zip(
            table["language"].to_pylist(), table["text"].to_pylist(), strict=True
        ):
            grouped.setdefault(language, []).append(text)
    elif isinstance(texts, Mapping):
        grouped = {language: list(documents) for language, documents in texts.items()}
    elif isinstance(texts, str):
        raise TypeError(
            "texts is one string; give a list of documents, or a pathlib.Path to a parquet file"
        )
    else:
        grouped = {"und": list(texts)}
    kept = {}
    for language in sorted(grouped):
        documents = _up_to(grouped[language], max_bytes_per_language)
        if any(documents):
            kept[language] = documents
    if not kept:
        where = f" in {texts}" if isinstance(texts, Path) else ""
        raise ValueError(f"no text to train on{where}: every document is empty")
    return kept


def _up_to(documents: list[str], max_bytes: int | None) -> list[str]:
    """The first documents of at most that many bytes, or the beginning of the first with text."""
    if max_bytes is None:
        return documents
    sizes = np.cumsum([len(text.encode()) for text in documents])
    count = int(np.searchsorted(sizes, max_bytes, "right"))
    if any(documents[:count]) or not any(documents):
        return documents[:count]
    first = next(filter(None, documents))
    return [first.encode()[:max_bytes].decode(errors="ignore")]  # never half a character


def save(tokenizer: RoutedTokenizer, folder: Path) -> None:
    """Writes a tokenizer into a folder, which is created if needed.

    The files: `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, `experts.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    exported = Tokenizer.from_str(tokenizer.union.to_str())
    exported.encode_special_tokens = False
    exported.save(str(folder / "tokenizer.json"))
    names = dict(
        zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIAL_TOKENS, strict=True)
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **names,
    }
    experts = {
        "format": 1,
        "vocab_size": tokenizer.vocab_size,
        "router": {
            "description": router.DESCRIPTION,
            "experts": list(EXPERTS),
            "ranges": {
                expert: [[f"{a:04X}", f"{b:04X}"] for a, b in ranges]
                for expert, ranges in router.RANGES.items()
            },
        },
        "blocks": [
            {"name": block.name, "start": block.start, "stop": block.stop}
            for block in tokenizer.blocks
        ],
        "training": tokenizer.record,
    }
    for name, value in (
        ("tokenizer_config", config),
        ("special_tokens_map", names),
        ("experts", experts),
    ):
        (folder / f"{name}.json").write_text(
            json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )


def load(folder: Path) -> RoutedTokenizer:
    """Reads a folder written by `save`.

    Raises FileNotFoundError naming a file that is missing, and ValueError naming one that does not
    fit the others.
    """
    for name in ("tokenizer.json", "experts.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing: {folder} is not a folder written by routed.save"
            )
    union = Tokenizer.from_file(str(folder / "tokenizer.json"))
    union.encode_special_tokens = True
    experts = json.loads((folder / "experts.json").read_text(encoding="utf-8"))
    blocks = tuple(Block(**block) for block in experts["blocks"])
    if blocks[-1].stop != union.get_vocab_size():
        raise ValueError(
            f"{folder}: experts.json ends at id {blocks[-1].stop}, "
            f"tokenizer.json has {union.get_vocab_size()} ids"
        )
    return RoutedTokenizer(union, blocks, experts["training"])


def _union(chosen: Sequence[Candidate], record: dict[str, Any]) -> RoutedTokenizer:
    """Assigns ids to the chosen tokens, block by block, and joins all merges in one BPE."""
    names = _byte_names()
    vocab = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    vocab.update({name: BYTES_START + byte for byte, name in enumerate(names)})
    blocks = [Block("special", 0, BYTES_START), Block("byte", BYTES_START, SHARED_START)]
    char_merges: list[tuple[str, str]] = []
    expert_merges: list[tuple[str, str]] = []
    for expert in (None, *EXPERTS):
        start = len(vocab)
        members = [candidate for candidate in chosen if candidate.expert == expert]
        # Characters before merges, so that a block begins with its alphabet. `sorted` is stable:
        # otherwise the order of worth stays.
        for candidate in sorted(members, key=lambda c: not _builds_character(c)):
            token = "".join(names[byte] for byte in candidate.token)
            if token in vocab:
                raise ValueError(
                    f"the token {token!r} was learned twice, or spells a special token; "
                    "the pieces must prevent it"
                )
            vocab[token] = len(vocab)
            target = char_merges if _builds_character(candidate) else expert_merges
            target += [
                ("".join(names[b] for b in left), "".join(names[b] for b in right))
                for left, right in candidate.pairs
            ]
        blocks.append(Block(expert or "shared", start, len(vocab)))
    # All characters are built before any expert's merge applies, so merges see whole characters.
    merges = [(a, b) for a, b in char_merges + expert_merges if a in vocab and b in vocab]
    return RoutedTokenizer(_assemble(vocab, merges, split_runs=True), tuple(blocks), record)


def _builds_character(candidate: Candidate) -> bool:
    """True for a whole character or a piece of one, built from single bytes."""
    return candidate.expert is None or len(candidate.token.decode()) == 1


def _assemble(
    vocab: dict[str, int], merges: list[tuple[str, str]], *, split_runs: bool
) -> Tokenizer:
    """A byte-level BPE over pieces; with `split_runs`, text is cut into script runs first."""
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    steps = [piece_splitter(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if split_runs:
        steps.insert(0, pre_tokenizers.Split(Regex(router.RUN_PATTERN), behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    bos = SPECIAL_TOKENS[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B:1", special_tokens=[(bos, vocab[bos])]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.encode_special_tokens = True
    return tokenizer


def _byte_names() -> list[str]:
    """The printable character that represents each byte in `tokenizer.json`.

    Printable Latin-1 bytes represent themselves; the others are mapped to U+0100 and up.
    Source: `bytes_to_unicode` of GPT-2 (OpenAI gpt-2, `src/encoder.py`), which ByteLevel follows.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
