"""One ring for rows of different ages: the cache of continuous batching.

    ring = SharedRing(config, rows=16, num_slots=2048)
    ring.admit(0, prompt_cache)              # a prompt that was read into a cache of its own
    logits = model(tokens, cache=ring.first(1))
    ring.advance()

All rows share one clock, `length`, and the token at clock time t is in slot t mod W. Row r began at
time `padding[r]`: what the plain ring calls padding on the left is here the time before the row was
admitted. So a step writes one slot for all rows, one captured graph serves any mixture of ages, and
admitting or ending a request changes nothing for the others.

Guarantees: a row gets the logits that it would get alone, whatever was in its slots before and
however often the clock has gone round (tests/serving/test_ring.py); a step reads only the slots
since the oldest row began.
Out of scope: reading prompts (`RollingCache`), which requests to admit (`scheduler.py`).
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from moxin_lab.model.cache import KeyValueCache, RollingCache
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.mask import AttentionMask

LATEST = 2**30
"""The clock is set back before it leaves int32, in which the decoding kernels read it."""


class SharedRing(RollingCache):
    """Keys and values of `rows` rows over `num_slots` slots, [L, rows, H_kv, num_slots, D].

    num_slots: at least as many as the window, or as the longest row that will be admitted.
    """

    def __init__(
        self,
        config: MoxinConfig,
        rows: int,
        *,
        num_slots: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        KeyValueCache.__init__(self, config, rows, num_slots, dtype=dtype, device=device)
        # From the second turn on: every slot has a position, and `padding` says whose it is.
        self.length = self.oldest = num_slots
        self.padding = torch.full((rows,), num_slots, device=device)  # int64 [rows]
        self.began: dict[int, int] = {}
        """Clock time at which each admitted row began, on the host."""
        self.num_read = num_slots

    def admit(self, row: int, prompt: RollingCache) -> None:
        """Copy a prompt [L, 1, H_kv, W', D] into a row that is free; it continues at the clock."""
        if row in self.began:
            raise ValueError(f"row {row} is taken: release it first")
        num_tokens = prompt.length
        held = min(num_tokens, prompt.num_slots, self.num_slots)
        self._copy(prompt, 0, num_tokens - held, self, row, self.length - held, held)
        self._set(row, self.length - num_tokens)

    def release(self, row: int) -> None:
        """End a row. Its slots keep their content, which no other row reads."""
        del self.began[row]
        self._set_oldest()

    def clear(self, row: int) -> None:
        """Forget what is in a row. Plain attention multiplies hidden values by 0, which leaves NaN
        what it is, so a row that has met one must not keep it for its successor.
        """
        self.keys[:, row].zero_()
        self.values[:, row].zero_()

    def move(self, source: int, target: int) -> None:
        """Continue the row `source` as the row `target`, which is free."""
        if target in self.began:
            raise ValueError(f"row {target} is taken: release it first")
        began = self.began.pop(source)
        held = min(self.length - began, self.num_slots)
        first = self.length - held
        self._copy(self, source, first, self, target, first, held)
        self._set(target, began)

    def first(self, rows: int) -> "SharedRing":
        """The first `rows` rows as a cache of one step, which shares their memory."""
        view = copy.copy(self)
        view.keys, view.values = self.keys[:, :rows], self.values[:, :rows]
        assert self.padding is not None
        view.padding = self.padding[:rows]
        return view

    def follow(self, ring: "SharedRing") -> None:
        """Take over the clock of the ring that this is a view of."""
        self.length, self.oldest = ring.length, ring.oldest

    def advance(self) -> None:
        """One step is done: every row has one token more."""
        self.length += 1
        if self.length > LATEST:
            turns = (self.length // self.num_slots - 1) * self.num_slots
            self.length -= turns
            # In place: the views of `first` hold the same dictionary.
            self.began.update({row: began - turns for row, began in self.began.items()})
            assert self.padding is not None
            self.padding -= turns
            self._set_oldest()

    def begin(self, num_tokens: int, sliding_window: int | None) -> AttentionMask:
        """The mask of one new token per row; raises ValueError for more."""
        if num_tokens != 1:
            raise ValueError(f"{num_tokens} tokens per row: a shared ring takes one at a time")
        assert self.padding is not None
        self.num_read = min(self.length - self.oldest + 1, self.num_slots)
        device = self.keys.device
        now = self.length
        first_read = now - self.num_read + 1
        return AttentionMask(
            torch.arange(now, now + 1, device=device),
            torch.arange(first_read, now + 1, device=device),
            sliding_window,
            is_causal=False,
            # A window never exceeds the slots: what there is to hide is what came before a row.
            sees_all=all(began <= first_read for began in self.began.values()),
            starts=self.padding[:, None].clamp(max=now).int(),
        )

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        slot = self.length % self.num_slots
        result = []
        for ring, new in ((self.keys[layer], keys), (self.values[layer], values)):
            ring[:, :, slot] = new[:, :, 0]
            parts = [
                ring[:, :, start : start + size]
                for start, size in self._runs(self.length - self.num_read + 1, self.num_read)
            ]
            result.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=2))
        return result[0], result[1]

    def _set(self, row: int, began: int) -> None:
        self.began[row] = began
        assert self.padding is not None
        self.padding[row] = began
        self._set_oldest()

    def _set_oldest(self) -> None:
        self.oldest = min(self.began.values(), default=self.length)

    def _runs(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """The slots of `count` times from `first` on, as (first slot, number of slots)."""
        while count > 0:
            slot = first % self.num_slots
            size = min(count, self.num_slots - slot)
            yield slot, size
            first, count = first + size, count - size

    @staticmethod
    def _copy(
        source: RollingCache,
        source_row: int,
        source_first: int,
        target: "SharedRing",
        target_row: int,
        target_first: int,
        count: int,
    ) -> None:
        """Copy `count` tokens of a row, whose times begin at `source_first`, to `target_first`."""
        for slot, size in target._runs(target_first, count):
            done = 0
            while done < size:
                begin = source_first % source.num_slots
                part = min(size - done, source.num_slots - begin)
                for to, of in ((target.keys, source.keys), (target.values, source.values)):
                    to[:, target_row, :, slot + done : slot + done + part] = of[
                        :, source_row, :, begin : begin + part
                    ]
                source_first, done = source_first + part, done + part
