"""Learns the expert vocabularies: candidate tokens of each expert, and which of them get an id.

    text of each language
      --router-->      runs of each expert
      --BpeTrainer-->  candidate tokens, in the order learned
      --encode-->      occurrences of each candidate in each language
    candidates of all experts
      --sorted by worth, cut at the vocabulary size-->  the blocks

Budget rule. The worth of a token is the number of tokens that it saves on the training text.
Occurrences are divided by the bytes of the language, so that every language counts the same
whatever its size, and may be weighted. The candidates of all experts compete in one list, and the
best fill the vocabulary. The size of a block follows from that; a script with little text still has
a small floor, or all the tokens it has. Pieces of multi-byte characters, whole characters and
merges are all candidates, since each saves one token per occurrence.

Guarantees: the same texts in the same order give the same result, whatever the number of threads;
ties go to the earlier expert, then to the token learned earlier. The parts of a chosen token are
chosen too, since no part is worth less than its token. A merge never joins characters of two runs.
Out of scope: which weights are best (`budget` finds them on validation text).
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from moxin_lab.lab.progress import Progress
from moxin_lab.tokenizer.router import (
    EXPERTS,
    expert_of_character,
    piece_splitter,
    runs_in_pieces,
)


@dataclass(frozen=True)
class Candidate:
    """A token that could get an id."""

    token: bytes
    pairs: tuple[tuple[bytes, bytes], ...]
    """The merges that make it, each a left and a right part; usually one."""
    expert: str | None
    """None for a piece of a character and for a sign, which all experts share."""
    occurrences: tuple[float, ...]
    """Tokens it saves in the training text of each language, in the order of `Pool.num_bytes`."""


@dataclass(frozen=True)
class Pool:
    """The candidates of all experts."""

    candidates: tuple[Candidate, ...]
    """Pieces of characters, then characters, then each expert's merges in the order learned."""
    num_bytes: dict[str, int]
    """UTF-8 bytes of training text, by language."""
    min_frequency: int
    max_token_length: int

    def by_worth(self, weights: Mapping[str, float] | None) -> list[tuple[float, Candidate]]:
        """Pairs of worth and candidate, in descending order of worth.

        The worth is the number of tokens saved per megabyte of text: the mean over languages with
        the given weights, else over all text together. Sorting is stable: candidates of equal worth
        keep the order of the pool, so the parts of a token stay before it.
        Raises KeyError naming a language without a weight.
        """
        num_bytes = np.array(list(self.num_bytes.values()), dtype=np.float64)
        shares = (
            num_bytes
            if weights is None
            else np.array([weights[language] for language in self.num_bytes])
        )
        scale = 1e6 * shares / shares.sum() / num_bytes
        worths = (
            np.array([candidate.occurrences for candidate in self.candidates]).reshape(
                -1, len(scale)
            )
            @ scale
        )
        return sorted(zip(worths.tolist(), self.candidates, strict=True), key=lambda item: -item[0])


def runs_by_expert(texts: Iterable[str]) -> dict[str, Counter[str]]:
    """How often each run occurs, by expert, in order of first appearance."""
    splitter = piece_splitter()
    pieces = Counter(piece for text in texts for piece, _ in splitter.pre_tokenize_str(text))
    runs: dict[str, Counter[str]] = {expert: Counter() for expert in EXPERTS}
    for piece, count in pieces.items():  # each distinct piece is cut once
        for expert, run in runs_in_pieces(piece):
            runs[expert][run] += count
    return runs


def learn(
    texts: Mapping[str, Sequence[str]],
    *,
    max_candidates: int,
    min_frequency: int,
    max_token_length: int,
    progress: Progress = lambda step, total, label: None,
) -> Pool:
    """Learns the candidate tokens of all experts.

    Args:
        texts: documents by language.
        max_candidates: most tokens to learn for one expert; at least the size of the vocabulary
            to fill, so that no expert runs out of candidates.
        min_frequency: a pair that occurs less often is not merged, and a candidate is dropped.
        max_token_length: in characters.
        progress: called with (step, steps, what was done).
    """
    languages = list(texts)
    runs = {language: runs_by_expert(texts[language]) for language in languages}
    progress(1, len(EXPERTS) + 1, "routed the training text")

    merged: list[Candidate] = []
    # Occurrences of each character, [languages].
    characters: dict[str, np.ndarray] = {}
    for step, expert in enumerate(EXPERTS, start=2):
        counters = [runs[language][expert] for language in languages]
        if any(counters):
            learned = _train(_repeat(counters), max_candidates, min_frequency, max_token_length)
            occurrences = _occurrences(learned, counters)
            order, pairs = _learned_order(learned)
            for token, counts in occurrences.items():
                if len(token) == 1:  # a sign occurs in runs of several experts
                    characters[token] = characters.get(token, 0) + counts
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


def merges(words: Mapping[str, int], count: int) -> list[tuple[str, str]]:
    """The first `count` merges that BPE learns from these words and how often each occurs, in
    order; fewer if all words are whole before.
    """
    letters = len(set("".join(words)))
    learned = _train(_repeat([Counter(words)]), letters + count, 1, max(map(len, words)))
    return [pair for pairs in _learned_order(learned)[1].values() for pair in pairs]


def _repeat(counters: Sequence[Counter[str]]) -> Iterator[list[str]]:
    """The runs of all languages, each repeated as often as it occurs.

    They come in lists of several thousand, which the trainer reads in parallel.
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
    """A character-level BPE of one expert's runs, so that merges join whole characters only."""
    learned = Tokenizer(BPE())  # no pre-tokenizer: a run is never cut
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
    """Merged tokens in the order learned, and the pairs that make each of them."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    for left, right in json.loads(learned.to_str())["model"]["merges"]:
        pairs.setdefault(left + right, []).append((left, right))
    return list(pairs), pairs


def _occurrences(learned: Tokenizer, counters: Sequence[Counter[str]]) -> dict[str, np.ndarray]:
    """How often each token is made while the text is encoded: float64 [languages] for each token.

    A token counts where it ends up in the text and where a longer token absorbs it. If two pairs
    make the same token, all its occurrences are attributed to the pair learned first.
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
    # From the last merge to the first: a token's count is final before its parts receive it.
    for token in reversed(order):
        for part in pairs[token][0]:
            counts[vocab[part]] += counts[vocab[token]]
    return {token: counts[index] for token, index in vocab.items()}


def _from_bytes(characters: Mapping[str, np.ndarray], min_frequency: int) -> list[Candidate]:
    """The merges that build characters from bytes, left to right.

    What the experts share, pieces of characters and whole signs, comes first.
    """
    pieces: dict[bytes, np.ndarray] = {}
    complete: list[Candidate] = []
    for character in sorted(characters):
        data, counts = character.encode(), characters[character]
        for end in range(2, len(data)):
            pieces[data[:end]] = pieces.get(data[:end], 0) + counts
        if len(data) > 1 and counts.sum() >= min_frequency:
            owner = expert_of_character(character)
            expert = None if owner == "common" else owner
            complete.append(
                Candidate(data, ((data[:-1], data[-1:]),), expert, tuple(counts.tolist()))
            )
    shared = [
        Candidate(data, ((data[:-1], data[-1:]),), None, tuple(counts.tolist()))
        for data, counts in sorted(pieces.items(), key=lambda item: (len(item[0]), item[0]))
        if counts.sum() >= min_frequency
    ]
    return shared + complete


def spelled(word: str, num_languages: int) -> Iterator[Candidate]:
    """Candidates of no worth that build a word, letter by letter from its beginning.

    For words that must be tokens whatever the text. The word is one run of ASCII letters.
    """
    expert = next(runs_in_pieces(word))[0]
    for end in range(2, len(word) + 1):
        pair = (word[: end - 1].encode(), word[end - 1 : end].encode())
        yield Candidate(word[:end].encode(), (pair,), expert, (0.0,) * num_languages)


def choose(
    ranked: Sequence[Candidate], budget: int, floor: int, required: Sequence[str] = ()
) -> list[Candidate]:
    """The `budget` best candidates, among them the required words and the `floor` best of each
    expert.

    An expert with fewer candidates contributes all it has. The floor keeps a block for a script
    that hardly occurs in the training text. The parts of a chosen token are chosen with it.

    Args:
        ranked: candidates in descending order of worth.
        required: words of ASCII letters, with or without a space before them.
    Raises ValueError if the floors and the required words alone exceed the budget.
    """
    by_token = {candidate.token: candidate for candidate in ranked}
    num_languages = len(ranked[0].occurrences) if ranked else 0
    missing = [
        by_token.setdefault(candidate.token, candidate)
        for word in required
        for candidate in spelled(word, num_languages)
        if candidate.token not in by_token
    ]
    ranked = [*ranked, *missing]
    chosen: set[bytes] = set()

    def take(token: bytes) -> None:
        if token not in chosen and token in by_token:  # single bytes have their ids already
            for part in by_token[token].pairs[0]:
                take(part)
            chosen.add(token)

    for word in required:
        take(word.encode())
    for expert in EXPERTS:
        for candidate in [candidate for candidate in ranked if candidate.expert == expert][:floor]:
            take(candidate.token)
    if len(chosen) > budget:
        raise ValueError(
            f"a floor of {floor} tokens per expert and {len(required)} required words need "
            f"{len(chosen)} ids, but only {budget} are free"
        )
    for candidate in ranked:
        if len(chosen) == budget:
            break
        chosen.add(candidate.token)
    return [candidate for candidate in ranked if candidate.token in chosen]
