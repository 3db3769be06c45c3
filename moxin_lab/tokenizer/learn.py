"""Learns the expert vocabularies: candidate tokens of each expert, what each is worth, and which of
them get an id.

    text of each language --route--> runs of each expert --BpeTrainer--> candidate tokens in learned
    order
                                                  \\--encode-----------> occurrences of each
                                                  candidate in each language
    candidates of all experts --sorted by worth, cut at the vocabulary size--> the blocks

Budget rule. The worth of a token is the number of tokens it saves on the training text, the text of
every language counting the same whatever its size (occurrences divided by the bytes of the
language). All candidates of all experts compete in one list; the best fill the vocabulary, and a
block's size is what comes out, but no smaller than a floor. Pieces of multi-byte characters, whole
characters and merges are all candidates, since each saves one token an occurrence.

Guarantees: the same texts in the same order give the same result, whatever the number of threads
(ties go to the earlier expert, then to the earlier learned token); a chosen token's parts are
chosen too, since no part is worth less than the whole. A merge never joins characters of two
experts, other than the leading space that the router lets a run keep.

Does not: look at held-out text, or weigh languages by anything but bytes.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import PreTokenizer, Split
from tokenizers.trainers import BpeTrainer

from moxin_lab.lab.progress import Progress
from moxin_lab.tokenizer.router import EXPERTS, expert_of_character, route

PIECE_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)(?!\p{L})"  # English endings
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"  # a word or a stretch of letters, with one space or sign before it
    r"|\p{N}"  # single digits, as Mistral's tokenizer has them
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # punctuation and code operators
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"  # line ends, indentation
)
"""Cuts a run into the pieces inside which merges happen. After cl100k's pattern (OpenAI tiktoken,
in `tiktoken_ext/openai_public.py`), with combining marks kept in their word, as o200k does, and
digits one by one.
"""


@dataclass(frozen=True)
class Candidate:
    """A token that could get an id. `expert` is None for a piece of a character, which any expert
    may share.
    """

    token: bytes
    pairs: tuple[tuple[bytes, bytes], ...]
    """The merges that make it, left and right part; usually one."""
    expert: str | None
    occurrences: tuple[float, ...]
    """Tokens it saves in the training text of each language, in the order of `Pool.num_bytes`."""


@dataclass(frozen=True)
class Pool:
    """The candidates of all experts: pieces of characters, characters, then each expert's merges in
    the order learned.
    """

    candidates: tuple[Candidate, ...]
    num_bytes: dict[str, int]
    """UTF-8 bytes of training text, by language."""
    min_frequency: int
    max_token_length: int

    def by_worth(self, weigh_languages: bool) -> list[tuple[float, Candidate]]:
        """Worth and candidate, the most worth first: tokens saved a megabyte, the mean over
        languages, or of all text as it is.

        Sorting is stable, so equal worth keeps the order of the pool and parts stay before the
        whole.
        """
        num_bytes = np.array(list(self.num_bytes.values()), dtype=np.float64)
        scale = (
            1e6 / num_bytes / len(num_bytes)
            if weigh_languages
            else np.full(len(num_bytes), 1e6 / num_bytes.sum())
        )
        worths = (
            np.array([candidate.occurrences for candidate in self.candidates]).reshape(
                -1, len(scale)
            )
            @ scale
        )
        return sorted(zip(worths.tolist(), self.candidates, strict=True), key=lambda item: -item[0])


def piece_splitter() -> PreTokenizer:
    """The pre-tokenizer that cuts one run into pieces."""
    return Split(Regex(PIECE_PATTERN), behavior="isolated")


def runs_by_expert(texts: Iterable[str]) -> dict[str, Counter[str]]:
    """How often each run occurs, by expert, in order of first appearance."""
    runs: dict[str, Counter[str]] = {expert: Counter() for expert in EXPERTS}
    for text in texts:
        for expert, run in route(text):
            runs[expert][run] += 1
    return runs


def learn(
    texts: Mapping[str, Sequence[str]],
    *,
    max_candidates: int,
    min_frequency: int,
    max_token_length: int,
    progress: Progress = lambda step, total, label: None,
) -> Pool:
    """Learns all candidate tokens of all experts.

    texts: documents by language. max_candidates: tokens learned for each expert at most; a
    vocabulary larger than this cannot be filled from the pool as it should. min_frequency:
    occurrences below which a pair is not merged and a candidate is dropped. max_token_length:
    characters. progress: called with (step, steps, what was done).
    """
    languages = list(texts)
    runs = {language: runs_by_expert(texts[language]) for language in languages}
    progress(1, len(EXPERTS) + 1, "routed the training text")

    merged: list[Candidate] = []
    characters: dict[str, np.ndarray] = {}  # occurrences of every character in each language
    for step, expert in enumerate(EXPERTS, start=2):
        counters = [runs[language][expert] for language in languages]
        if any(counters):
            learned = _train(_repeat(counters), max_candidates, min_frequency, max_token_length)
            occurrences = _occurrences(learned, counters)
            order, pairs = _learned_order(learned)
            characters.update(
                {token: counts for token, counts in occurrences.items() if len(token) == 1}
            )
            merged += [
                Candidate(
                    token.encode(),
                    tuple((left.encode(), right.encode()) for left, right in pairs[token]),
                    expert,
                    tuple(occurrences[token].tolist()),
                )
                for token in order
                if occurrences[token].sum() >= min_frequency
            ]
        progress(step, len(EXPERTS) + 1, f"learned the candidates of expert {expert}")
    num_bytes = {
        language: sum(len(text.encode()) for text in texts[language]) for language in languages
    }
    return Pool(
        (*_from_bytes(characters, min_frequency), *merged),
        num_bytes,
        min_frequency,
        max_token_length,
    )


def _repeat(counters: Sequence[Counter[str]]) -> Iterator[list[str]]:
    """The runs of all languages, each as often as it occurs, in lists so that the trainer reads
    them in parallel.
    """
    for counter in counters:
        batch: list[str] = []
        for run, count in counter.items():
            batch += [run] * count
            if len(batch) >= 4096:
                yield batch
                batch = []
        yield batch


def _train(
    batches: Iterator[list[str]], max_candidates: int, min_frequency: int, max_token_length: int
) -> Tokenizer:
    """A character-level BPE of one expert's runs: it can merge only whole characters."""
    learned = Tokenizer(BPE())
    learned.pre_tokenizer = piece_splitter()
    trainer = BpeTrainer(
        vocab_size=max_candidates,
        min_frequency=min_frequency,
        max_token_length=max_token_length,
        special_tokens=[],
        show_progress=False,
    )
    learned.train_from_iterator(batches, trainer=trainer)
    return learned


def _learned_order(learned: Tokenizer) -> tuple[list[str], dict[str, list[tuple[str, str]]]]:
    """Merged tokens in the order learned, and for each the pairs that make it."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    for left, right in json.loads(learned.to_str())["model"]["merges"]:
        pairs.setdefault(left + right, []).append((left, right))
    return list(pairs), pairs


def _occurrences(learned: Tokenizer, counters: Sequence[Counter[str]]) -> dict[str, np.ndarray]:
    """How often each token arises, in each language, while the text is encoded: shape (languages,),
    float64.

    A token arises where it ends up in the text and where it is taken up by a longer one. Where two
    pairs make the same token, all its occurrences are laid to the pair learned first.
    """
    vocab = learned.get_vocab()
    counts = np.zeros((len(vocab), len(counters)))
    for column, counter in enumerate(counters):
        items = list(counter.items())
        for start in range(0, len(items), 4096):
            chunk = items[start : start + 4096]
            encodings = learned.encode_batch_fast(
                [run for run, _ in chunk], add_special_tokens=False
            )
            ids = np.concatenate([np.array(encoding.ids, dtype=np.int64) for encoding in encodings])
            times = np.repeat(
                [count for _, count in chunk], [len(encoding) for encoding in encodings]
            )
            counts[:, column] += np.bincount(ids, weights=times, minlength=len(vocab))
    order, pairs = _learned_order(learned)
    for token in reversed(order):
        for part in pairs[token][0]:
            counts[vocab[part]] += counts[vocab[token]]
    return {token: counts[index] for token, index in vocab.items()}


def _from_bytes(characters: Mapping[str, np.ndarray], min_frequency: int) -> list[Candidate]:
    """The merges that make characters out of bytes, left to right: shared pieces first, then whole
    characters.
    """
    pieces: dict[bytes, np.ndarray] = {}
    whole: list[Candidate] = []
    for character in sorted(characters):
        data, counts = character.encode(), characters[character]
        for end in range(2, len(data)):
            pieces[data[:end]] = pieces.get(data[:end], 0) + counts
        if len(data) > 1 and counts.sum() >= min_frequency:
            expert = expert_of_character(character)
            whole.append(Candidate(data, ((data[:-1], data[-1:]),), expert, tuple(counts.tolist())))
    shared = [
        Candidate(data, ((data[:-1], data[-1:]),), None, tuple(counts.tolist()))
        for data, counts in sorted(pieces.items(), key=lambda item: (len(item[0]), item[0]))
        if counts.sum() >= min_frequency
    ]
    return shared + whole


def choose(ranked: Sequence[Candidate], budget: int, floor: int) -> list[Candidate]:
    """The `budget` best candidates, of which each expert has at least its `floor` best as far as it
    has so many.

    The floor keeps a block for a script that the training text hardly holds; parts of a token come
    with it. ranked: most worth first. Raises ValueError if the floors alone exceed the budget.
    """
    by_token = {candidate.token: candidate for candidate in ranked}
    chosen: set[bytes] = set()

    def take(token: bytes) -> None:
        if token not in chosen and token in by_token:  # single bytes have their ids already
            for part in by_token[token].pairs[0]:
                take(part)
            chosen.add(token)

    for expert in EXPERTS:
        for candidate in [candidate for candidate in ranked if candidate.expert == expert][:floor]:
            take(candidate.token)
    if len(chosen) > budget:
        raise ValueError(
            f"a floor of {floor} tokens an expert takes {len(chosen)} ids, but only {budget} are free"
        )
    for candidate in ranked:
        if len(chosen) == budget:
            break
        chosen.add(candidate.token)
    return [candidate for candidate in ranked if candidate.token in chosen]
