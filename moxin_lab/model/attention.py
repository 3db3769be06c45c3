"""Causal, windowed, document-wise attention behind one function, with back ends to choose from.

    mask = AttentionMask.build(num_queries=T, num_keys=T, sliding_window=W, document_ids=ids, device=device)   # once a forward
    output = attention(query, key, value, mask)                                                      # in every block

Guarantees: every back end computes the same function as `reference` (tests/model/test_attention.py); keys and values of grouped
heads are never copied by us; no row of the mask is empty, so no NaN arises from padding. The mask is described by its window, the
places of queries and keys and the document numbers; the dense form is made once, on first use, and only where the plain causal
triangle is not enough, so that kernels which need no dense mask can join behind the same function.
Does not: attention between documents, bias terms, or bidirectional attention.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttentionMask:
    """Which keys a query sees: those at places j with i - sliding_window < j <= i, of its own document.

    Places count tokens of the row from its first one, so they run on over document borders; they are not `position_ids`.
    """

    query_places: Tensor
    """int64 [T]: place of each query in its row."""
    key_places: Tensor
    """int64 [S]: place of each key; any order (a ring's slots), each place once."""
    sliding_window: int | None
    is_causal: bool
    """True where the mask is the plain causal triangle (T == S, same places, no window or document in the way)."""
    sees_all: bool
    """True where every query sees every key: one new token over a cache."""
    document_ids: Tensor | None = None
    """int [B, T]: document of each token, T == S only. Tokens of number -1 are padding: they see themselves alone."""
    first_places: Tensor | None = None
    """int64 [B]: keys of row b before this place are left padding."""

    @classmethod
    def build(
        cls,
        num_tokens: int,
        *,
        sliding_window: int | None,
        document_ids: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> "AttentionMask":
        """The mask of whole rows of `num_tokens` tokens: queries and keys are the same tokens."""
        if sliding_window is not None and sliding_window < 1:
            raise ValueError(
                f"sliding_window is {sliding_window}: a token sees at least itself, so it must be at least 1"
            )
        if document_ids is not None and (document_ids.ndim != 2 or document_ids.shape[1] != num_tokens):
            raise ValueError(f"document_ids has shape {tuple(document_ids.shape)}, not [B, {num_tokens}]")
        places = torch.arange(num_tokens, device=device)
        fits = sliding_window is None or num_tokens <= sliding_window
        return cls(places, places, sliding_window, fits and document_ids is None, False, document_ids)

    @cached_property
    def dense(self) -> Tensor | None:
        """bool [B or 1, 1, T, S], True where a query sees a key; None where every query sees every key."""
        if self.sees_all:
            return None
        distance = self.query_places[:, None] - self.key_places[None, :]
        allowed = distance >= 0
        if self.sliding_window is not None:
            allowed = allowed & (distance < self.sliding_window)
        allowed = allowed[None]
        if self.document_ids is not None:
            allowed = allowed & (self.document_ids[:, :, None] == self.document_ids[:, None, :])
            allowed = allowed & (self.document_ids[:, :, None] >= 0)
        if self.first_places is not None:
            allowed = allowed & (self.key_places >= self.first_places[:, None])[:, None, :]
        # A padding token would see nothing, and softmax over nothing is NaN.
        return (allowed | (distance == 0))[:, None]


def reference_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, dropout_p: float = 0.0
) -> Tensor:
    """The definition: softmax(q k^T / sqrt(D) + mask) v, the softmax in float32 (float64 for float64 input)."""
    batch, heads, num_queries, head_dim = query.shape
    kv_heads = key.shape[1]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, num_queries, head_dim)
    scores = (grouped @ key[:, :, None].transpose(-1, -2)) * head_dim**-0.5
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask.dense is not None:
        scores = scores.masked_fill(~mask.dense[:, :, None], float("-inf"))
    weights = F.dropout(scores.softmax(dim=-1).to(value.dtype), dropout_p)
    return (weights @ value[:, :, None]).reshape(batch, heads, num_queries, head_dim)


def sdpa_attention(query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, dropout_p: float = 0.0) -> Tensor:
    """PyTorch's fused attention."""
    allowed = None if mask.is_causal else mask.dense
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, dropout_p=dropout_p, is_causal=mask.is_causal,
        enable_gqa=key.shape[1] != query.shape[1],
    )  # fmt: skip


BACKENDS: dict[str, Callable[..., Tensor]] = {"reference": reference_attention, "sdpa": sdpa_attention}


def resolve_backend(backend: str) -> str:
    """The back end that `backend` stands for: "auto" is the fastest of those here. Raises ValueError for an unknown name."""
    if backend == "auto":
        return "sdpa"
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention back end {backend!r}: available are auto, {', '.join(BACKENDS)}")
    return backend


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, *, dropout_p: float = 0.0, backend: str = "auto"
) -> Tensor:
    """Attention of queries [B, H, T, D] over keys and values [B, H_kv, S, D] under `mask`; returns [B, H, T, D].

    Query head h uses key/value head h // (H / H_kv). Raises ValueError for shapes or dtypes that do not fit and for an unknown
    back end.
    """
    if query.ndim != 4 or key.shape != value.shape or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}: expected [B, H, T, D] and twice "
            "[B, H_kv, S, D]"
        )
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads are not a multiple of {key.shape[1]} key/value heads")
    if len(mask.query_places) != query.shape[2] or len(mask.key_places) != key.shape[2]:
        raise ValueError(
            f"the mask is for {len(mask.query_places)} queries and {len(mask.key_places)} keys, "
            f"not {query.shape[2]} and {key.shape[2]}"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            f"query, key and value have dtypes {query.dtype}, {key.dtype}, {value.dtype}: they must be equal"
        )
    return BACKENDS[resolve_backend(backend)](query, key, value, mask, dropout_p)
