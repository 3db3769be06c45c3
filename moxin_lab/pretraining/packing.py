"""Documents to training batches: tokenise, mix pools, pack into full rows. A batch is a pure
function of (seed, step, rank).

Each pool (a source or a language) is an endless stream: its documents in a seeded order, each as
`<s> tokens </s>`, epoch after epoch with a new order. A phase draws rows from the pools in exact
proportion to its mixture, in a seeded order, and a pool's stream continues where the earlier phase
left it, so text repeats only when a pool is used up. Rows are cut from the stream without gaps: row
r reads tokens [rT, rT + T] and predicts the last T of them.

    stream   <s> a a a </s> <s> b b </s> <s> c ...
    inputs   <s> a a a  </s> <s> b b
    labels    a  a a </s> -100 b b </s>            nothing predicts the next document's <s>
    document  0  0 0 0   0    1 1 1                attention stays inside equal numbers

Guarantees: every token but `<s>` is a target exactly once per epoch; no label crosses documents; no
state is kept between batches, so a resumed run sees the same batches whatever the loader does; the
same rows at any number of ranks; a mixture that names a pool without documents is refused. There is
no padding.
Out of scope: earlier context for a document that a row's end cuts (targets near a row's start have
less context); shuffling below the document; token files on disk (`Tokens.ids` may be a memory map).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerFast

from moxin_lab.lab.progress import Progress
from moxin_lab.scales.sections import Phase
from moxin_lab.training.loss import IGNORE_INDEX


@dataclass(frozen=True)
class Tokens:
    """Tokenised documents as one flat array.

    ids: int32 [tokens]. offsets: int64 [documents + 1]; document d is
    `ids[offsets[d] : offsets[d + 1]]`, bos and eos included. num_bytes: int64 [documents], UTF-8
    bytes of each document's text.
    """

    ids: np.ndarray
    offsets: np.ndarray
    num_bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


def tokenize(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    *,
    progress: Progress | None = None,
    batch_size: int = 256,
) -> Tokens:
    """Tokenise with a `PreTrainedTokenizerFast`; text that spells a special token stays text
    (`split_special_tokens`).

    Raises ValueError if there is no document or the tokenizer lacks bos or eos.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None or eos is None:
        raise ValueError(
            "the tokenizer has no bos or eos token; packing needs both to mark documents"
        )
    if not len(texts):
        raise ValueError("no documents to tokenise")
    pieces: list[np.ndarray] = []
    lengths: list[int] = []
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        for ids in tokenizer(batch, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]:
            pieces.append(np.array([bos, *ids, eos], dtype=np.int32))
            lengths.append(len(ids) + 2)
        if progress is not None:
            progress(min(start + batch_size, len(texts)), len(texts), "tokenising")
    return Tokens(
        np.concatenate(pieces),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array([len(text.encode()) for text in texts], dtype=np.int64),
    )


def pool_of_documents(documents: pd.DataFrame, phases: Iterable[Phase]) -> pd.Series:
    """The pool of each document of a table with the columns source and language.

    A document belongs to its source if a phase's mixture names that source, else to its language:
    every document is in one pool, and a mixture may name both kinds. Raises ValueError for a name
    in a mixture that is neither, before anything is tokenised.
    """
    drawn = {name for phase in phases for name in phase.mixture}
    pools = documents["source"].where(documents["source"].isin(drawn), documents["language"])
    absent = sorted(drawn - set(pools))
    if absent:
        languages = sorted(set(pools) - set(documents["source"]))
        raise ValueError(
            f"the mixtures draw from {', '.join(absent)}, which the documents do not have; there "
            f"are the sources {', '.join(sorted(set(documents['source'])))} and, outside the "
            f"sources drawn from, the languages {', '.join(languages) or 'none'}"
        )
    return pools


def tokenize_pools(
    documents: pd.DataFrame,
    tokenizer: PreTrainedTokenizerFast,
    phases: Iterable[Phase],
    *,
    progress: Progress | None = None,
) -> dict[str, Tokens]:
    """Tokenise a `documents` table (columns source, language, text) into the pools that the phases'
    mixtures draw from (`pool_of_documents`), and a pool for each language that none draws from.
    """
    names = pool_of_documents(documents, phases)
    return {
        str(name): tokenize(group["text"].tolist(), tokenizer, progress=progress)
        for name, group in documents.groupby(names, sort=True)
    }


class Pool:
    """The endless stream of one pool's documents; `read` is a pure function of (tokens, seed, name,
    position).
    """

    def __init__(self, tokens: Tokens, seed: int, name: str) -> None:
        self.tokens = tokens
        self.length = int(tokens.offsets[-1])
        self._seed = [seed, *name.encode()]
        self._order = lru_cache(maxsize=4)(self._epoch_order)

    def _epoch_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng([*self._seed, epoch]).permutation(len(self.tokens))
        lengths = np.diff(self.tokens.offsets)[order]
        return order, np.concatenate([[0], np.cumsum(lengths)])

    def read(self, position: int, count: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """`count` tokens from `position`: ids int32 [count], number of the document within the row
        int32 [count], indices of these documents in `Tokens`.
        """
        ids: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        indices: list[int] = []
        while count:
            epoch, within = divmod(position, self.length)
            order, starts = self._order(epoch)
            # the last document that starts at or before the position
            rank = int(np.searchsorted(starts, within, side="right")) - 1
            document = self.tokens.document(order[rank])
            piece = document[within - starts[rank] :][:count]
            ids.append(piece)
            numbers.append(np.full(len(piece), len(indices), dtype=np.int32))
            indices.append(int(order[rank]))
            position += len(piece)
            count -= len(piece)
        return np.concatenate(ids), np.concatenate(numbers), indices


@dataclass(frozen=True)
class PhasePlan:
    """What one phase draws: `pool_of_row` int16 [rows] indexes `pools`, `row_of_pool` int64 [rows]
    counts rows of that pool.
    """

    name: str
    first_step: int
    steps: int
    sequence_length: int
    rows_per_step: int
    pools: tuple[str, ...]
    pool_of_row: np.ndarray
    row_of_pool: np.ndarray
    stream_starts: Mapping[str, int]


class TrainingStream:
    """All batches of all phases, addressed by step. See the module's text for the guarantees.

    `phases` have `.name .steps .sequence_length .mixture` (pool name -> share), as in a scale file.
    Raises ValueError for a pool that is missing or a step size that does not divide into rows.
    """

    def __init__(
        self,
        pools: Mapping[str, Tokens],
        phases: Iterable[Phase],
        *,
        tokens_per_step: int,
        seed: int,
    ) -> None:
        self.seed = seed
        self.tokens_per_step = tokens_per_step
        self._pools = {name: Pool(tokens, seed, name) for name, tokens in pools.items()}
        self.phases: list[PhasePlan] = []
        consumed = dict.fromkeys(pools, 0)
        first_step = 0
        for phase_index, phase in enumerate(phases):
            missing = sorted(set(phase.mixture) - set(pools))
            if missing:
                raise ValueError(
                    f"phase {phase.name!r} draws from {', '.join(missing)}; there are "
                    f"{', '.join(sorted(pools))}"
                )
            if tokens_per_step % phase.sequence_length:
                raise ValueError(
                    f"phase {phase.name!r}: {tokens_per_step} tokens per step are not whole rows "
                    f"of {phase.sequence_length}"
                )
            rows_per_step = tokens_per_step // phase.sequence_length
            names = tuple(sorted(phase.mixture))
            pool_of_row = _draw_order(
                [phase.mixture[name] for name in names],
                phase.steps * rows_per_step,
                np.random.default_rng([seed, phase_index]),
            )
            row_of_pool = np.zeros(len(pool_of_row), dtype=np.int64)
            for index in range(len(names)):
                of_pool = pool_of_row == index
                row_of_pool[of_pool] = np.arange(of_pool.sum())
            self.phases.append(
                PhasePlan(
                    phase.name,
                    first_step,
                    phase.steps,
                    phase.sequence_length,
                    rows_per_step,
                    names,
                    pool_of_row,
                    row_of_pool,
                    {name: consumed[name] for name in names},
                )
            )
            for index, name in enumerate(names):
                consumed[name] += int((pool_of_row == index).sum()) * phase.sequence_length
            first_step += phase.steps
        self.num_steps = first_step
        self.consumed = consumed
        """Tokens drawn from each pool over the whole training."""

    def phase_of(self, step: int) -> int:
        """Index of the phase that a step belongs to. Raises IndexError beyond the last step."""
        for index, phase in enumerate(self.phases):
            if phase.first_step <= step < phase.first_step + phase.steps:
                return index
        raise IndexError(f"step {step} is outside the {self.num_steps} steps of the training")

    def _row(self, phase: PhasePlan, row: int) -> tuple[np.ndarray, np.ndarray, list[int], str]:
        pool = phase.pools[phase.pool_of_row[row]]
        start = phase.stream_starts[pool] + int(phase.row_of_pool[row]) * phase.sequence_length
        return *self._pools[pool].read(start, phase.sequence_length + 1), pool

    def batch(self, step: int, *, part: int = 0, parts: int = 1) -> dict[str, np.ndarray]:
        """One step's rows, or its `part`-th share of `parts` (ranks times micro-batches).

        Returns input_ids int64 [rows, T], labels int64 [rows, T] (`IGNORE_INDEX` where nothing is
        predicted), document_ids int64 [rows, T], and `num_targets` int64 []: the labels of the
        *whole* step, by which the loss is divided.
        """
        phase = self.phases[self.phase_of(step)]
        if phase.rows_per_step % parts:
            raise ValueError(
                f"{phase.rows_per_step} rows per step do not divide into {parts} parts"
            )
        first = (step - phase.first_step) * phase.rows_per_step
        rows = [self._row(phase, row) for row in range(first, first + phase.rows_per_step)]
        inputs = np.stack([ids[:-1] for ids, _, _, _ in rows]).astype(np.int64)
        documents = np.stack([numbers[:-1] for _, numbers, _, _ in rows]).astype(np.int64)
        labels = np.stack(
            [
                np.where(numbers[1:] == numbers[:-1], ids[1:], IGNORE_INDEX)
                for ids, numbers, _, _ in rows
            ]
        ).astype(np.int64)
        share = slice(
            part * phase.rows_per_step // parts, (part + 1) * phase.rows_per_step // parts
        )
        return {
            "input_ids": inputs[share],
            "labels": labels[share],
            "document_ids": documents[share],
            "num_targets": np.array((labels != IGNORE_INDEX).sum(), dtype=np.int64),
        }

    def documents_of_step(self, step: int) -> list[tuple[str, int]]:
        """(pool, document index) of everything a step reads, in row order: the text behind a spike
        of the loss.
        """
        phase = self.phases[self.phase_of(step)]
        first = (step - phase.first_step) * phase.rows_per_step
        read = []
        for row in range(first, first + phase.rows_per_step):
            _, _, indices, pool = self._row(phase, row)
            read += [(pool, index) for index in indices]
        return read

    def tokens_read(self, pool: str) -> list[np.ndarray]:
        """The text that the training reads of a pool, one array per document (the last one may be
        cut), without bos and eos.

        A second epoch's text comes again, as in training: a baseline fitted on this learns from the
        same text.
        """
        tokens = self._pools[pool].tokens
        bos, eos = tokens.ids[0], tokens.ids[tokens.offsets[1] - 1]
        ids, numbers, _ = self._pools[pool].read(0, self.consumed[pool])
        pieces = np.split(ids, np.flatnonzero(np.diff(numbers)) + 1)
        return [piece[(piece != bos) & (piece != eos)] for piece in pieces]


def _draw_order(shares: Sequence[float], rows: int, generator: np.random.Generator) -> np.ndarray:
    """Pool index of each row, int16 [rows]: exact proportions (largest remainders), seeded."""
    exact = np.array(shares, dtype=np.float64) / sum(shares) * rows
    counts = np.floor(exact).astype(np.int64)
    for index in np.argsort(-(exact - counts), kind="stable")[: rows - int(counts.sum())]:
        counts[index] += 1
    return generator.permutation(np.repeat(np.arange(len(shares), dtype=np.int16), counts))
