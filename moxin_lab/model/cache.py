"""Key/value caches: a rolling buffer of one window, and a full cache to compare it with.

    cache = RollingCache(config, batch_size=1)
    logits = model(prompt, cache=cache)             # any number of tokens at a time
    logits = model(next_token, cache=cache)

The rolling buffer is a true ring (report v6, section 3.2; Mistral 7B, arXiv 2310.06825): token i
is stored in slot i mod W, and a new token writes one slot per layer and moves nothing. Keys are
stored after rotation by their absolute position, so attention does not depend on the order of the
slots.

Guarantees: memory is allocated once; each token of a chunk sees exactly its window, whatever the
chunk's size and however often the ring has wrapped around (tests/model/test_cache.py); a slot that
was not written, or whose token has left the window, never reaches the output, even if it holds NaN.
A cache must be thrown away if a forward pass over it fails half-way.
Out of scope: removing tokens again (cropping); more than one document per row.
"""

from typing import Any

import torch
from torch import Tensor

from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.mask import AttentionMask


class KeyValueCache:
    """Base of both caches (see the module's docstring): keys and values of `num_slots` tokens per
    layer.

    padding: int64 [B], number of padding tokens at the left of each row. They are never attended
    to, and rotary positions start at 0 after them. On the device "meta" nothing is allocated, and
    `nbytes` is still right.
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
        shape = (  # [L, B, H_kv, W, D]
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
        self.oldest = 0
        """Position of the first token of the longest row: `length - oldest` tokens are in it."""
        self.padding = padding if padding is not None and bool(padding.any()) else None

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, written or not."""
        return self.keys.nbytes + self.values.nbytes

    def position_ids(self, positions: Tensor) -> Tensor:
        """Rotary position ids [B or 1, T] of row positions [1, T]: counted from the first token
        after the padding, and 0 within the padding.
        """
        if self.padding is None:
            return positions
        return (positions - self.padding[:, None]).clamp(min=0)

    def begin(self, num_tokens: int, sliding_window: int | None) -> AttentionMask:
        """The mask of a forward pass over `num_tokens` new tokens; call it before `update`."""
        raise NotImplementedError

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values [B, H_kv, T, D] of a layer; returns the keys and values
        [B, H_kv, S, D] that the new tokens attend to, in the order of the mask of `begin`.
        """
        raise NotImplementedError

    def commit(self, num_tokens: int) -> None:
        """End a forward pass: all layers have stored their `num_tokens`."""
        self.length += num_tokens

    def _mask(
        self,
        num_tokens: int,
        key_positions: Tensor,
        sliding_window: int | None,
        sees_all: bool,
        first_key: int | None,
    ) -> AttentionMask:
        positions = torch.arange(self.length, self.length + num_tokens, device=self.keys.device)
        fits = sliding_window is None or num_tokens <= sliding_window
        starts = None
        if self.padding is not None:
            # [B, T]. A padding token sees only itself: its document begins at its own position.
            starts = torch.minimum(self.padding[:, None], positions[None]).int()
        return AttentionMask(
            positions,
            key_positions,
            sliding_window,
            is_causal=self.length == 0 and fits and self.padding is None,
            sees_all=sees_all and self.padding is None,
            starts=starts,
            first_key=first_key,
        )


class RollingCache(KeyValueCache):
    """A ring of `sliding_window` slots per layer, or of `max_position_embeddings` slots without a
    window.
    """

    def __init__(self, config: MoxinConfig, batch_size: int = 1, **options: Any) -> None:
        limit = config.max_position_embeddings
        num_slots = min(config.sliding_window or limit, limit)
        super().__init__(config, batch_size, num_slots, **options)

    def begin(self, num_tokens: int, sliding_window: int | None) -> AttentionMask:
        end, device = self.length + num_tokens, self.keys.device
        if num_tokens == 1:
            # Slot s holds the latest position p with p mod W == s, the new one included.
            slots = torch.arange(min(end, self.num_slots), device=device)
            key_positions = self.length - (self.length - slots) % self.num_slots
            return self._mask(1, key_positions, sliding_window, sees_all=True, first_key=None)
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
            num_written = min(self.length + 1, self.num_slots)
            return ring_keys[:, :, :num_written], ring_values[:, :, :num_written]
        # Read the ring before writing it: early tokens of a chunk still need keys that its late
        # tokens overwrite.
        visible = self._in_order(ring_keys, keys), self._in_order(ring_values, values)
        num_stored = min(num_tokens, self.num_slots)
        end = self.length + num_tokens
        slots = torch.arange(end - num_stored, end, device=keys.device) % self.num_slots
        ring_keys[:, :, slots] = keys[:, :, -num_stored:]
        ring_values[:, :, slots] = values[:, :, -num_stored:]
        return visible

    def _in_order(self, ring: Tensor, new: Tensor) -> Tensor:
        """The last W - 1 stored tokens, oldest first, then the new ones [B, H_kv, S, D].

        The slot that is written next is omitted: its token is in no new token's window.
        """
        slot = self.length % self.num_slots
        if self.length < self.num_slots:
            return torch.cat((ring[:, :, :slot], new), dim=2) if slot else new
        return torch.cat((ring[:, :, slot + 1 :], ring[:, :, :slot], new), dim=2)


class FullCache(KeyValueCache):
    """Keeps every token, up to `num_tokens`, and applies the window by a banded mask: the baseline
    of the ring.
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
        all_in_window = sliding_window is None or end <= sliding_window
        return self._mask(
            num_tokens,
            torch.arange(end, device=self.keys.device),
            sliding_window,
            sees_all=num_tokens == 1 and all_in_window,
            first_key=0,
        )

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
