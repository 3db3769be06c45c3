"""Key/value caches: a rolling buffer that keeps one window, and a full one to compare it with.

    cache = RollingCache(config, batch_size=1)
    logits = model(prompt, cache=cache)             # any number of tokens at a time
    logits = model(next_token, cache=cache)

The rolling buffer is a true ring (report v6, section 3.2; Mistral 7B, arXiv 2310.06825): token i
lives in slot i mod W, and a new token writes one slot a layer and moves nothing. Keys are stored
after rotation by their absolute position, so the order of slots does not matter to attention.

Guarantees: memory is allocated once; a row of a chunk sees exactly its window, whatever the chunk's
size and however often the ring has turned (tests/model/test_cache.py); a slot that was not written,
or whose token has left the window, never reaches the output, even if it holds NaN. If a forward
pass fails half-way, the cache must be thrown away.
Does not: go back (crop), or hold more than one document a row.
"""

from typing import Any

import torch
from torch import Tensor

from moxin_lab.model.attention import AttentionMask
from moxin_lab.model.config import MoxinConfig


class KeyValueCache:
    """What both caches share; see the module's text. `num_slots` tokens a layer are kept.

    padding: int64 [B], left padding of each row: so many first tokens are never attended to and
    positions count from behind them. device "meta" allocates nothing; `nbytes` is right all the
    same.
    """

    def __init__(
        self,
        config: MoxinConfig,
        batch_size: int,
        num_slots: int,
        *,
        padding: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
        if padding is not None and padding.shape != (batch_size,):
            raise ValueError(f"padding has shape {tuple(padding.shape)}, not [{batch_size}]")
        shape = (
            config.num_hidden_layers,
            batch_size,
            config.num_key_value_heads,
            num_slots,
            config.head_dim,
        )
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.num_slots = num_slots
        self.length = 0
        """Tokens seen so far, padding included."""
        self.padding = padding if padding is not None and bool(padding.any()) else None

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, written or not."""
        return self.keys.nbytes + self.values.nbytes

    def positions(self, places: Tensor) -> Tensor:
        """Rotary positions [B or 1, T] of places [1, T]: counted from behind the padding (0 within
        it).
        """
        return places if self.padding is None else (places - self.padding[:, None]).clamp(min=0)

    def begin(self, num_tokens: int, sliding_window: int | None) -> AttentionMask:
        """The mask of a forward pass over `num_tokens` new tokens."""
        raise NotImplementedError

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values [B, H_kv, T, D] of a layer; returns all that the new tokens may
        look at.
        """
        raise NotImplementedError

    def commit(self, num_tokens: int) -> None:
        """End of a forward pass: all layers have stored their `num_tokens`."""
        self.length += num_tokens

    def _mask(
        self,
        num_tokens: int,
        key_places: Tensor,
        sliding_window: int | None,
        sees_all: bool,
        first_key: int | None,
    ) -> AttentionMask:
        places = torch.arange(self.length, self.length + num_tokens, device=self.keys.device)
        fits = sliding_window is None or num_tokens <= sliding_window
        # A padding token stands alone: its document begins with itself.
        starts = (
            None
            if self.padding is None
            else torch.minimum(self.padding[:, None], places[None]).int()
        )
        return AttentionMask(
            places,
            key_places,
            sliding_window,
            is_causal=self.length == 0 and fits and self.padding is None,
            sees_all=sees_all and self.padding is None,
            starts=starts,
            first_key=first_key,
        )


class RollingCache(KeyValueCache):
    """A ring of `sliding_window` slots a layer (of `max_position_embeddings` where there is no
    window).
    """

    def __init__(self, config: MoxinConfig, batch_size: int = 1, **options: Any) -> None:
        slots = min(
            config.sliding_window or config.max_position_embeddings, config.max_position_embeddings
        )
        super().__init__(config, batch_size, slots, **options)

    def begin(self, num_tokens: int, sliding_window: int | None) -> AttentionMask:
        end, device = self.length + num_tokens, self.keys.device
        if num_tokens == 1:
            # Slot s holds the latest place p with p mod W == s, the new one included.
            slots = torch.arange(min(end, self.num_slots), device=device)
            key_places = self.length - (self.length - slots) % self.num_slots
            return self._mask(1, key_places, sliding_window, sees_all=True, first_key=None)
        first = max(0, self.length - self.num_slots + 1)
        return self._mask(
            num_tokens,
            torch.arange(first, end, device=device),
            sliding_window,
            sees_all=False,
            first_key=first,
        )

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        num_tokens = keys.shape[2]
        slot = self.length % self.num_slots
        ring_keys, ring_values = self.keys[layer], self.values[layer]
        if num_tokens == 1:
            ring_keys[:, :, slot] = keys[:, :, 0]
            ring_values[:, :, slot] = values[:, :, 0]
            held = min(self.length + 1, self.num_slots)
            return ring_keys[:, :, :held], ring_values[:, :, :held]
        # Early tokens of a chunk still need keys that its late tokens will overwrite: read the ring
        # before writing.
        seen = self._in_order(ring_keys, keys), self._in_order(ring_values, values)
        kept = min(num_tokens, self.num_slots)
        slots = (
            torch.arange(
                self.length + num_tokens - kept, self.length + num_tokens, device=keys.device
            )
            % self.num_slots
        )
        ring_keys[:, :, slots] = keys[:, :, -kept:]
        ring_values[:, :, slots] = values[:, :, -kept:]
        return seen

    def _in_order(self, ring: Tensor, new: Tensor) -> Tensor:
        """The last W - 1 stored tokens, oldest first, then the new ones; the slot next to be
        written is in nobody's window.
        """
        slot = self.length % self.num_slots
        if self.length < self.num_slots:
            return torch.cat((ring[:, :, :slot], new), dim=2) if slot else new
        return torch.cat((ring[:, :, slot + 1 :], ring[:, :, :slot], new), dim=2)


class FullCache(KeyValueCache):
    """Every token is kept, up to `num_tokens`; the window is cut by a banded mask. What the ring is
    measured against.
    """

    def __init__(
        self,
        config: MoxinConfig,
        batch_size: int = 1,
        *,
        num_tokens: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            config, batch_size, num_tokens or config.max_position_embeddings, **options
        )

    def begin(self, num_tokens: int, sliding_window: int | None) -> AttentionMask:
        end = self.length + num_tokens
        if end > self.num_slots:
            raise ValueError(
                f"{end} tokens do not fit into a cache of {self.num_slots}: make it larger"
            )
        inside = sliding_window is None or end <= sliding_window
        return self._mask(
            num_tokens,
            torch.arange(end, device=self.keys.device),
            sliding_window,
            sees_all=num_tokens == 1 and inside,
            first_key=0,
        )

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
