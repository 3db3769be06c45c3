"""Other designs of a vocabulary, trained on the same text: peers of the routed tokenizer.

- `script_split_bpe`: one byte-level BPE whose pieces are cut into runs of one script. Its merges
  never mix scripts, as the routed tokenizer's do not; there is one list of merges and no budget.
- `parity_aware_bpe`: each merge is the best of the language that is worst off at that moment
  (Foroutan et al., arXiv 2508.04796, the hybrid form: half of the merges by all languages first).
- `super_bpe`: a second pass over the tokens of a BPE, in which merges cross pieces (Liu et al.,
  arXiv 2503.13423).

Guarantees: every design reads the whole text of all languages, in an order that does not matter,
fills exactly `vocab_size` ids (special tokens included) and is lossless.
Out of scope: speed; these are rulers, not tokenizers to ship. The papers' own rules for what a
superword may hold (at most four words, no colon inside) are not followed: a token of the second
pass has at most four tokens of the first.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from moxin_lab.tokenizer.byte_level import byte_names
from moxin_lab.tokenizer.peers import joint_bpe
from moxin_lab.tokenizer.routed import SHARED_START, SPECIAL_TOKENS, assemble
from moxin_lab.tokenizer.router import piece_splitter, run_splitter

FIRST_PRIVATE = 0xF0000
"""Tokens of a first pass are written as characters of planes 15 and 16 for the second."""
FIRST_PASS_SHARE = 0.9
"""Of the ids; the share that did best in the paper (180,000 of 200,000)."""
SUPERWORD_TOKENS = 4


def script_split_bpe(
    texts: Mapping[str, Sequence[str]], vocab_size: int, *, min_frequency: int = 2
) -> Tokenizer:
    """A joint BPE within runs of one script. Raises ValueError if the text does not fill it."""
    return joint_bpe(texts, vocab_size, min_frequency=min_frequency, splitter=run_splitter())


def parity_aware_bpe(
    texts: Mapping[str, Sequence[str]],
    parallel: Mapping[str, Sequence[str]],
    vocab_size: int,
    *,
    min_frequency: int = 2,
    max_token_bytes: int = 48,
) -> Tokenizer:
    """A byte-level BPE whose second half of merges is chosen by the language that is worst off.

    The first half of the merges is the most frequent pair over all languages, each weighing the
    same. Then each merge is the most frequent pair of the language whose parallel text takes most
    tokens at that moment.

    Args:
        texts: documents by language.
        parallel: the same content in several of these languages; others choose no merge alone.
    Raises ValueError if a language of `parallel` has no text, or the text does not fill the ids.
    """
    if unknown := sorted(parallel.keys() - texts.keys()):
        raise ValueError(f"the parallel text has {', '.join(unknown)}, which the text has not")
    words = _Words(texts, parallel)
    num_merges = vocab_size - SHARED_START
    tokens = [bytes([byte]) for byte in range(256)]
    merges: list[tuple[int, int]] = []
    while len(merges) < num_merges:
        chooser = None if len(merges) < num_merges // 2 else words.worst_off()
        pair = words.best(chooser, min_frequency, tokens, max_token_bytes)
        if pair is None and chooser is not None:  # the language has no pair left
            pair = words.best(None, min_frequency, tokens, max_token_bytes)
        if pair is None:
            raise ValueError(
                f"the text fills only {SHARED_START + len(merges)} of {vocab_size} ids; give more "
                "text"
            )
        words.merge(pair, len(tokens))
        merges.append(pair)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
    names = byte_names()
    spelled = ["".join(names[byte] for byte in token) for token in tokens]
    vocab = {token: i for i, token in enumerate(dict.fromkeys((*SPECIAL_TOKENS, *spelled)))}
    return assemble(
        vocab, [(spelled[left], spelled[right]) for left, right in merges], piece_splitter()
    )


class _Words:
    """The distinct pieces of a text as lists of tokens, and how often each pair occurs in each
    language. Columns: the languages of the text, then those of the parallel text.
    """

    def __init__(
        self, texts: Mapping[str, Sequence[str]], parallel: Mapping[str, Sequence[str]]
    ) -> None:
        self.languages = list(texts)
        self.parallel = list(parallel)
        columns = [_pieces(texts[name]) for name in texts]
        columns += [_pieces(parallel[name]) for name in parallel]
        pieces = dict.fromkeys(itertools.chain.from_iterable(columns))
        self.words = [list(piece.encode()) for piece in pieces]
        self.counts = [tuple(column[piece] for column in columns) for piece in pieces]
        sizes = [sum(len(text.encode()) for text in texts[name]) for name in texts]
        # Every language weighs the same, as in the routed tokenizer.
        self.weights = [max(sizes) / size for size in sizes]
        self.num_tokens = {
            name: sum(
                count[len(texts) + i] * len(word)
                for count, word in zip(self.counts, self.words, strict=True)
            )
            for i, name in enumerate(parallel)
        }
        self.pairs: dict[tuple[int, int], list[float]] = {}
        self.places: dict[tuple[int, int], set[int]] = defaultdict(set)
        for number, word in enumerate(self.words):
            for pair in itertools.pairwise(word):
                self._add(pair, number, 1)
        # One heap for all languages together and one for each; entries may be out of date.
        self.heaps = {
            name: [(-self._worth(pair, name), pair) for pair in self.pairs]
            for name in (None, *self.parallel)
        }
        for heap in self.heaps.values():
            heapq.heapify(heap)

    def _add(self, pair: tuple[int, int], number: int, sign: int) -> None:
        sums = self.pairs.setdefault(pair, [0] * len(self.languages))
        for column in range(len(sums)):
            sums[column] += sign * self.counts[number][column]
        if sign > 0:
            self.places[pair].add(number)

    def _worth(self, pair: tuple[int, int], language: str | None) -> float:
        sums = self.pairs[pair]
        if language is not None:
            return sums[self.languages.index(language)]
        return sum(count * weight for count, weight in zip(sums, self.weights, strict=True))

    def worst_off(self) -> str:
        """The language whose parallel text has most tokens."""
        return max(self.num_tokens, key=self.num_tokens.__getitem__)

    def best(
        self,
        language: str | None,
        min_frequency: int,
        tokens: Sequence[bytes],
        max_token_bytes: int,
    ) -> tuple[int, int] | None:
        """The pair that occurs most in a language, or over all; None if none is frequent enough."""
        heap = self.heaps[language]
        while heap:
            worth, pair = heapq.heappop(heap)
            now = self._worth(pair, language)
            if len(tokens[pair[0]]) + len(tokens[pair[1]]) > max_token_bytes:
                continue
            if -worth != now:
                heapq.heappush(heap, (-now, pair))
            elif sum(self.pairs[pair]) >= min_frequency and now > 0:
                return pair
        return None

    def merge(self, pair: tuple[int, int], token: int) -> None:
        """Replaces the pair by a token in every word."""
        changed: set[tuple[int, int]] = set()
        for number in self.places.pop(pair):
            word, merged = self.words[number], []
            position = 0
            while position < len(word):
                if tuple(word[position : position + 2]) == pair:
                    merged.append(token)
                    position += 2
                else:
                    merged.append(word[position])
                    position += 1
            if len(merged) == len(word):
                continue
            for old in itertools.pairwise(word):
                self._add(old, number, -1)
            for new in itertools.pairwise(merged):
                self._add(new, number, 1)
                if token in new:
                    changed.add(new)
            self.words[number] = merged
            for i, name in enumerate(self.parallel):
                saved = len(word) - len(merged)
                self.num_tokens[name] -= saved * self.counts[number][len(self.languages) + i]
        for new in changed:
            for chooser, heap in self.heaps.items():
                if worth := self._worth(new, chooser):
                    heapq.heappush(heap, (-worth, new))


def _pieces(texts: Sequence[str]) -> Counter[str]:
    splitter = piece_splitter()
    return Counter(piece for text in texts for piece, _ in splitter.pre_tokenize_str(text))


@dataclass(frozen=True)
class TwoPasses:
    """A tokenizer whose tokens a second one merges further, within lines."""

    first: Tokenizer
    second: Tokenizer
    """Over one private character for each id of the first."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens."""
        first = self.first.encode_batch_fast(list(texts), add_special_tokens=False)
        return [
            one.ids for one in self.second.encode_batch_fast([_private(one.ids) for one in first])
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids."""
        spelled = "".join(self.second.id_to_token(index) or "" for index in ids)
        return self.first.decode(
            [ord(character) - FIRST_PRIVATE for character in spelled], skip_special_tokens=False
        )


def super_bpe(
    texts: Mapping[str, Sequence[str]], vocab_size: int, *, min_frequency: int = 2
) -> TwoPasses:
    """A joint BPE of nine tenths of the ids, and tokens of several of its tokens for the rest.

    Both passes read all text. Raises ValueError if it does not fill the ids.
    """
    num_first = round(FIRST_PASS_SHARE * vocab_size)
    first = joint_bpe(texts, num_first, min_frequency=min_frequency)
    line_end = byte_names()[ord("\n")]
    ends = _private([index for token, index in first.get_vocab().items() if line_end in token])
    second = Tokenizer(BPE())
    second.pre_tokenizer = pre_tokenizers.Split(
        Regex(f"[^{ends}]*[{ends}]|[^{ends}]+"), behavior="isolated"
    )
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        max_token_length=SUPERWORD_TOKENS,
        initial_alphabet=[_private([index]) for index in range(num_first)],
        special_tokens=[],
        show_progress=False,
    )
    documents = (
        [
            _private(one.ids)
            for one in first.encode_batch_fast(list(batch), add_special_tokens=False)
        ]
        for batch in texts.values()
    )
    second.train_from_iterator(documents, trainer=trainer)
    if second.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the text fills only {second.get_vocab_size()} of the {vocab_size} ids; give more text"
        )
    return TwoPasses(first, second)


def _private(ids: Sequence[int]) -> str:
    return "".join(chr(FIRST_PRIVATE + index) for index in ids)
