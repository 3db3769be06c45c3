"""The attention mask: causal, windowed, document-wise, in the form that each backend reads.

    mask = AttentionMask.build(T, sliding_window=W, document_ids=ids, device=device)
    mask.prepare("flash")            # once per forward pass, before the blocks run

Guarantees: every query sees at least itself, so no row of the mask is empty and padding makes no
NaN; a mask is built once per forward pass and each backend's form of it at most once.
Out of scope: attention between documents, bidirectional attention, bias terms.
"""

from typing import Any

import torch
from torch import Tensor


class AttentionMask:
    """Which keys a query sees: those at positions j with i - sliding_window < j <= i, in its own
    document.

    Positions count the tokens of a row from its first one, across document borders. They are not
    the rotary `position_ids`.

    query_positions: int64 [T], position of each query in its row.
    key_positions: int64 [S], position of each key, in any order (a ring's slots), each once.
    is_causal: the mask is the plain causal triangle (T == S, the same positions, and neither a
        window nor a document takes a pair away).
    sees_all: every query sees every key (one new token over a cache).
    starts: int32 [B, T], position of the first token of each query's document.
    ends: int32 [B, S], position of the last token of each key's document (T == S only).
    first_key: the position of the first key if keys are in order and the last query is the last
        key, which is what the kernels need; else None.
    """

    def __init__(
        self,
        query_positions: Tensor,
        key_positions: Tensor,
        sliding_window: int | None,
        is_causal: bool,
        sees_all: bool,
        starts: Tensor | None = None,
        ends: Tensor | None = None,
        first_key: int | None = None,
    ) -> None:
        self.query_positions = query_positions
        self.key_positions = key_positions
        self.sliding_window = sliding_window
        self.is_causal, self.sees_all = is_causal, sees_all
        self.starts, self.ends, self.first_key = starts, ends, first_key
        # Filled once, by `prepare`, before the blocks run: compiled blocks then only read them.
        self._dense: Tensor | None = None
        self._blocks: Any = None
        self._runs: tuple[Tensor, Tensor] | None = None

    @classmethod
    def build(
        cls,
        num_tokens: int,
        *,
        sliding_window: int | None,
        document_ids: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> "AttentionMask":
        """The mask of full rows of `num_tokens` tokens: queries and keys are the same tokens.

        document_ids: int [B, T]. A document is a run of equal ids, so an id that appears again
        later begins another document. Tokens of id -1 are padding: each sees only itself. Raises
        ValueError for a window below 1 and for a wrong shape.
        """
        if sliding_window is not None and sliding_window < 1:
            raise ValueError(
                f"sliding_window is {sliding_window}: a token sees at least itself, "
                "so it must be at least 1"
            )
        if document_ids is not None and (
            document_ids.ndim != 2 or document_ids.shape[1] != num_tokens
        ):
            raise ValueError(
                f"document_ids has shape {tuple(document_ids.shape)}, not [B, {num_tokens}]"
            )
        positions = torch.arange(num_tokens, device=device)
        fits = sliding_window is None or num_tokens <= sliding_window
        starts, ends = (None, None) if document_ids is None else _document_borders(document_ids)
        return cls(
            positions,
            positions,
            sliding_window,
            is_causal=fits and starts is None,
            sees_all=False,
            starts=starts,
            ends=ends,
            first_key=0,
        )

    @property
    def dense(self) -> Tensor | None:
        """bool [B or 1, 1, T, S], True where a query sees a key; None if every query sees every
        key.
        """
        if self.sees_all:
            return None
        if self._dense is None:
            distance = self.query_positions[:, None] - self.key_positions[None, :]  # [T, S]
            allowed = distance >= 0
            if self.sliding_window is not None:
                allowed = allowed & (distance < self.sliding_window)
            allowed = allowed[None]  # [1, T, S]
            if self.starts is not None:  # [B, T, S]
                allowed = allowed & (self.key_positions[None, None, :] >= self.starts[:, :, None])
            self._dense = allowed[:, None]  # one mask for all heads
        return self._dense

    @property
    def blocks(self) -> Any:
        """FlexAttention's `BlockMask` of the same pairs."""
        if self._blocks is None:
            from torch.nn.attention.flex_attention import create_block_mask

            # Local names: the closure must not hold the mask that holds it.
            query_positions, key_positions = self.query_positions, self.key_positions
            window, starts = self.sliding_window, self.starts

            def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                query_position, key_position = query_positions[query], key_positions[key]
                allowed = key_position <= query_position
                if window is not None:
                    allowed = allowed & (key_position > query_position - window)
                if starts is not None:
                    allowed = allowed & (key_position >= starts[batch, query])
                return allowed

            self._blocks = create_block_mask(
                sees,
                None if starts is None else len(starts),
                None,
                len(query_positions),
                len(key_positions),
                device=query_positions.device,
                _compile=query_positions.is_cuda,
            )
        return self._blocks

    @property
    def document_runs(self) -> tuple[Tensor, Tensor] | None:
        """Borders of documents for kernels that read the rows of a batch laid end to end; None
        without documents.

        int32 [R + 1] for the B * T queries and int32 [R + 1] for the B * S keys. Run r holds
        queries [r] to [r + 1] and keys [r] to [r + 1], and its last query is at its last key. Keys
        that no query sees (padding before a chunk) form a run without queries.

        The number of runs depends on the data, so computing it waits for the GPU: `prepare` does
        so once per mask.
        """
        if self._runs is None and self.starts is not None:
            first_keys = self.key_starts()  # [B, T], index of the first key that each query sees
            assert first_keys is not None
            batch, num_queries = first_keys.shape
            num_keys = len(self.key_positions)
            begins = torch.ones_like(first_keys, dtype=torch.bool)
            begins[:, 1:] = first_keys[:, 1:] != first_keys[:, :-1]
            queries = begins.flatten().nonzero()[:, 0]  # [R], first query of each run
            rows = queries // num_queries
            keys = rows * num_keys + first_keys.flatten()[queries]  # [R], first key of each run
            # With as many keys as queries every key has its query, and the runs of keys meet.
            if num_keys != num_queries:
                next_queries = torch.cat((queries[1:], queries.new_tensor([batch * num_queries])))
                key_ends = (
                    rows * num_keys + (num_keys - num_queries) + (next_queries - rows * num_queries)
                )
                # [2 R]: each run comes after the run of the keys before it that no query sees.
                queries = torch.stack((queries, queries), 1).flatten()
                unseen = torch.cat((key_ends.new_zeros(1), key_ends[:-1]))
                keys = torch.stack((unseen, keys), 1).flatten()
            self._runs = (
                torch.cat((queries, queries.new_tensor([batch * num_queries]))).int(),
                torch.cat((keys, keys.new_tensor([batch * num_keys]))).int(),
            )
        return self._runs

    def prepare(self, backend: str) -> "AttentionMask":
        """Compute now what `backend` reads of this mask; returns the mask."""
        if backend == "reference" or (backend == "sdpa" and not self.is_causal):
            _ = self.dense
        if backend == "flex":
            _ = self.blocks
        if backend == "flash":
            _ = self.document_runs
        return self

    def key_starts(self) -> Tensor | None:
        """`starts` counted from the first key of the mask instead of from the row's first token."""
        if self.starts is None or not self.first_key:
            return self.starts
        return (self.starts - self.first_key).clamp(min=0)


def _document_borders(document_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the first and of the last token of each token's document, int32 [B, T]."""
    positions = torch.arange(document_ids.shape[1], device=document_ids.device)
    positions = positions.expand_as(document_ids)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = (document_ids[:, 1:] != document_ids[:, :-1]) | (document_ids[:, 1:] < 0)
    starts = torch.where(begins, positions, 0).cummax(dim=1).values
    is_last = torch.ones_like(begins)
    is_last[:, :-1] = begins[:, 1:]
    # The running minimum from the right: the nearest last token at or after each token.
    ends = torch.where(is_last, positions, positions.shape[1])
    ends = ends.flip(1).cummin(dim=1).values.flip(1)
    return starts.int(), ends.int()
