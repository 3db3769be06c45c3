"""Pools of documents to training batches: mix them, pack them into full rows. A batch is a pure
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
less context); shuffling below the document.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from moxin_lab.pretraining.pools import Tokens
from moxin_lab.scales.sections import Phase
from moxin_lab.training.identity import digest
from moxin_lab.training.loss import IGNORE_INDEX


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

    def spans(self, position: int, count: int) -> list[tuple[int, int, int]]:
        """What `count` tokens from `position` are: (index in `Tokens`, first token within the
        document, tokens) of each piece.
        """
        pieces = []
        while count:
            epoch, within = divmod(position, self.length)
            order, starts = self._order(epoch)
            # the last document that starts at or before the position
            rank = int(np.searchsorted(starts, within, side="right")) - 1
            first = within - int(starts[rank])
            taken = min(count, int(starts[rank + 1]) - within)
            pieces.append((int(order[rank]), first, taken))
            position += taken
            count -= taken
        return pieces

    def read(self, position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """`count` tokens from `position`: ids int32 [count], number of the document within the row
        int32 [count].
        """
        pieces = self.spans(position, count)
        ids = [self.tokens.document(index)[first : first + n] for index, first, n in pieces]
        lengths = [taken for _, _, taken in pieces]
        return np.concatenate(ids), np.repeat(np.arange(len(pieces), dtype=np.int32), lengths)

    def num_targets(self, position: int, count: int) -> int:
        """Labels of a row of `count` tokens from `position`: all but those that would be the first
        token of the next document.
        """
        return count + 1 - len(self.spans(position, count + 1))


@dataclass(frozen=True)
class Span:
    """A piece of a document in a row. row: number within the phase. first: of its tokens within
    the document, bos being 0.
    """

    row: int
    pool: str
    document: str
    first: int
    tokens: int


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
    Raises ValueError for a pool that is missing or damaged, a mixture without a share above 0, and
    a step size that does not divide into rows.
    """

    in_other_processes = True

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
        self.vocab_size = _one_vocabulary(pools)
        for name, tokens in pools.items():
            _check_tokens(name, tokens)
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
            wrong = {name: share for name, share in phase.mixture.items() if not 0 < share < np.inf}
            if not phase.mixture or wrong:
                raise ValueError(
                    f"phase {phase.name!r}: the mixture is {wrong or 'empty'}; it needs at least "
                    "one pool, each with a share above 0"
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

    @property
    def num_documents(self) -> int:
        """Documents of all pools."""
        return sum(len(pool.tokens) for pool in self._pools.values())

    def fingerprint(self) -> str:
        """Digest of all tokens and ids of documents, and of the plan of rows."""
        pools = {
            name: (pool.tokens.ids, pool.tokens.offsets, "\n".join(pool.tokens.names))
            for name, pool in self._pools.items()
        }
        return digest(pools, self.phases, self.seed, self.tokens_per_step)

    def describe(self, step: int) -> str:
        """Which documents a step reads, for messages and for rows of the log."""
        documents = list(dict.fromkeys(span.document for span in self.spans(step)))
        phase = self.phases[self.phase_of(step)]
        return f"step {step - phase.first_step} of phase {phase.name!r}: {', '.join(documents)}"

    def phase_of(self, step: int) -> int:
        """Index of the phase that a step belongs to. Raises IndexError beyond the last step."""
        for index, phase in enumerate(self.phases):
            if phase.first_step <= step < phase.first_step + phase.steps:
                return index
        raise IndexError(f"step {step} is outside the {self.num_steps} steps of the training")

    def _place(self, phase: PhasePlan, row: int) -> tuple[str, int]:
        """Pool of a row, and where in the pool's stream the row begins."""
        pool = phase.pools[phase.pool_of_row[row]]
        return pool, phase.stream_starts[pool] + int(phase.row_of_pool[row]) * phase.sequence_length

    def _rows(self, phase: PhasePlan, step: int, part: int, parts: int) -> range:
        """Numbers of the rows of a step, or of its `part`-th share of `parts`."""
        count = phase.rows_per_step
        if count % parts:
            raise ValueError(f"{count} rows per step do not divide into {parts} parts")
        first = (step - phase.first_step) * count
        return range(first + part * count // parts, first + (part + 1) * count // parts)

    def batch(self, step: int, *, part: int = 0, parts: int = 1) -> dict[str, np.ndarray]:
        """One step's rows, or its `part`-th share of `parts` (ranks times micro-batches).

        Returns input_ids int64 [rows, T], labels int64 [rows, T] (`IGNORE_INDEX` where nothing is
        predicted), document_ids int64 [rows, T], and `num_targets` int64 []: the labels of the
        *whole* step, by which the loss is divided.
        """
        phase = self.phases[self.phase_of(step)]
        length = phase.sequence_length
        read = []
        for row in self._rows(phase, step, part, parts):
            pool, start = self._place(phase, row)
            read.append(self._pools[pool].read(start, length + 1))
        ids = np.stack([one for one, _ in read]).astype(np.int64)  # [rows, T + 1]
        documents = np.stack([numbers for _, numbers in read]).astype(np.int64)
        inside = documents[:, 1:] == documents[:, :-1]
        # Counting the labels of a whole step is cheaper than finding its documents again.
        num_targets = int(inside.sum()) if parts == 1 else self.num_targets(step)
        return {
            "input_ids": ids[:, :-1],
            "labels": np.where(inside, ids[:, 1:], IGNORE_INDEX),
            "document_ids": documents[:, :-1],
            "num_targets": np.array(num_targets, dtype=np.int64),
        }

    def num_targets(self, step: int) -> int:
        """Labels of a whole step."""
        phase = self.phases[self.phase_of(step)]
        places = (self._place(phase, row) for row in self._rows(phase, step, 0, 1))
        return sum(self._pools[pool].num_targets(at, phase.sequence_length) for pool, at in places)

    def spans(self, step: int, *, part: int = 0, parts: int = 1) -> list[Span]:
        """The pieces of documents that a step's inputs are, or its `part`-th share of `parts`, in
        the order of its rows. No token is read.
        """
        phase = self.phases[self.phase_of(step)]
        pieces = []
        for row in self._rows(phase, step, part, parts):
            pool, start = self._place(phase, row)
            names = self._pools[pool].tokens.names
            for index, first, taken in self._pools[pool].spans(start, phase.sequence_length):
                pieces.append(Span(row, pool, names[index], first, taken))
        return pieces

    def tokens_read(self, pool: str) -> list[np.ndarray]:
        """The text that the training reads of a pool, one array per document (the last one may be
        cut), without bos and eos.

        A second epoch's text comes again, as in training: a baseline fitted on this learns from the
        same text.
        """
        if not self.consumed[pool]:  # its share of so few tokens is below one row
            return []
        tokens = self._pools[pool].tokens
        bos, eos = tokens.document(0)[0], tokens.document(0)[-1]
        ids, numbers = self._pools[pool].read(0, self.consumed[pool])
        pieces = np.split(ids, np.flatnonzero(np.diff(numbers)) + 1)
        return [piece[(piece != bos) & (piece != eos)] for piece in pieces]


def _one_vocabulary(pools: Mapping[str, Tokens]) -> int:
    """The vocabulary of all pools. Raises ValueError if they were not tokenised alike."""
    sizes = {name: tokens.vocab_size for name, tokens in pools.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the pools were tokenised with vocabularies of different sizes: {sizes}")
    return next(iter(sizes.values()), 0)


def _check_tokens(name: str, tokens: Tokens) -> None:
    """Raises ValueError for a pool whose arrays do not fit together, as after a damaged file: read
    on, it would stop the training in the middle of an epoch or feed it wrong tokens.
    """
    lengths = np.diff(tokens.offsets)
    if not len(lengths):
        raise ValueError(f"pool {name!r} has no document")
    if tokens.offsets[0] != 0 or tokens.offsets[-1] != len(tokens.ids) or lengths.min() < 1:
        raise ValueError(
            f"pool {name!r} is damaged: its offsets do not cut {len(tokens.ids)} tokens into "
            f"{len(lengths)} documents; tokenise it again"
        )
    if len(tokens.names) != len(lengths):
        raise ValueError(
            f"pool {name!r} is damaged: {len(lengths)} documents have {len(tokens.names)} ids"
        )
    if tokens.ids.min() < 0 or tokens.ids.max() >= tokens.vocab_size:
        place = int(np.flatnonzero((tokens.ids < 0) | (tokens.ids >= tokens.vocab_size))[0])
        document = int(np.searchsorted(tokens.offsets, place, side="right")) - 1
        raise ValueError(
            f"pool {name!r} is damaged: document {tokens.names[document]} has the token "
            f"{tokens.ids[place]}, the vocabulary has {tokens.vocab_size}; tokenise it again"
        )


def _draw_order(shares: Sequence[float], rows: int, generator: np.random.Generator) -> np.ndarray:
    """Pool index of each row, int16 [rows]: exact proportions (largest remainders), seeded."""
    exact = np.array(shares, dtype=np.float64) / sum(shares) * rows
    counts = np.floor(exact).astype(np.int64)
    for index in np.argsort(-(exact - counts), kind="stable")[: rows - int(counts.sum())]:
        counts[index] += 1
    return generator.permutation(np.repeat(np.arange(len(shares), dtype=np.int16), counts))
