"""Causal, windowed, document-wise attention behind one function, with back ends to choose from.

    mask = AttentionMask.build(T, sliding_window=W, document_ids=ids, device=device)       # once a forward
    output = attention(query, key, value, mask)                                           # in every block

    reference   the definition, in plain operations                   any device and dtype; slow, materialises all scores
    sdpa        PyTorch's fused attention                             any device; a dense mask where there is a window in the way
    flex        torch's FlexAttention, its block mask made once       compiled on a GPU (on flash-attn-4 where that can run, else
                                                                      by Triton), plain (slow) on
                                                                      the CPU
    triton      our kernels (moxin_lab/kernels)                       GPU, or Triton's interpreter; deterministic backward
    flash       flash-attn-4, where installed                         GPU of compute capability 9.0; no dropout

Guarantees: every back end computes the same function as `reference` forward and backward
(tests/model/test_attention.py, tests/kernels); keys and values of grouped heads are never copied by
us; no row of the mask is empty, so padding makes no NaN. A back end asked for by name runs or
raises ValueError with the reason; "auto" takes the fastest that can (`choose_backend`).
Does not: attention between documents, bias terms, or bidirectional attention.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class AttentionMask:
    """Which keys a query sees: those at places j with i - sliding_window < j <= i, of its own
    document.

    Places count tokens of the row from its first one, so they run on over document borders; they
    are not `position_ids`.

    query_places: int64 [T], place of each query in its row. key_places: int64 [S], place of each
    key; any order (a ring's slots), each place once. is_causal: the mask is the plain causal
    triangle (T == S, same places, no window or document in the way).
    sees_all: every query sees every key (one new token over a cache). starts: int32 [B, T], place
    of the first token of each query's document; ends: int32 [B, S], place of the last token of each
    key's document (T == S only). first_key: the place of the first key where keys stand in order
    and the last query is the last key, which is what the kernels need; else None.
    """

    def __init__(
        self,
        query_places: Tensor,
        key_places: Tensor,
        sliding_window: int | None,
        is_causal: bool,
        sees_all: bool,
        starts: Tensor | None = None,
        ends: Tensor | None = None,
        first_key: int | None = None,
    ) -> None:
        self.query_places, self.key_places, self.sliding_window = (
            query_places,
            key_places,
            sliding_window,
        )
        self.is_causal, self.sees_all = is_causal, sees_all
        self.starts, self.ends, self.first_key = starts, ends, first_key
        # Made once, by `prepare`, before blocks run: compiled blocks then only read them.
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
        """The mask of whole rows of `num_tokens` tokens: queries and keys are the same tokens.

        document_ids: int [B, T]; a document is a run of one number, so a number that comes back
        begins another document. Tokens of number -1 are padding: they see themselves alone. Raises
        ValueError for a window below 1 and for a wrong shape.
        """
        if sliding_window is not None and sliding_window < 1:
            raise ValueError(
                f"sliding_window is {sliding_window}: a token sees at least itself, so it must be at least 1"
            )
        if document_ids is not None and (
            document_ids.ndim != 2 or document_ids.shape[1] != num_tokens
        ):
            raise ValueError(
                f"document_ids has shape {tuple(document_ids.shape)}, not [B, {num_tokens}]"
            )
        places = torch.arange(num_tokens, device=device)
        fits = sliding_window is None or num_tokens <= sliding_window
        starts, ends = (None, None) if document_ids is None else _document_ends(document_ids)
        return cls(places, places, sliding_window, fits and starts is None, False, starts, ends, 0)

    @property
    def dense(self) -> Tensor | None:
        """bool [B or 1, 1, T, S], True where a query sees a key; None where every query sees every
        key.
        """
        if self.sees_all:
            return None
        if self._dense is None:
            distance = self.query_places[:, None] - self.key_places[None, :]
            allowed = distance >= 0
            if self.sliding_window is not None:
                allowed = allowed & (distance < self.sliding_window)
            allowed = allowed[None]
            if self.starts is not None:
                allowed = allowed & (self.key_places[None, None, :] >= self.starts[:, :, None])
            self._dense = allowed[:, None]
        return self._dense

    @property
    def blocks(self) -> Any:
        """FlexAttention's block mask of the same pairs."""
        if self._blocks is None:
            from torch.nn.attention.flex_attention import create_block_mask

            query_places, key_places, window, starts = (
                self.query_places,
                self.key_places,
                self.sliding_window,
                self.starts,
            )

            def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                place, other = query_places[query], key_places[key]
                allowed = other <= place
                if window is not None:
                    allowed = allowed & (other > place - window)
                if starts is not None:
                    allowed = allowed & (other >= starts[batch, query])
                return allowed

            batch = None if starts is None else len(starts)
            sizes = len(query_places), len(key_places)
            self._blocks = create_block_mask(
                seen, batch, None, *sizes, device=query_places.device, _compile=query_places.is_cuda
            )
        return self._blocks

    @property
    def document_runs(self) -> tuple[Tensor, Tensor] | None:
        """Borders of documents for kernels that take rows laid end to end: int32 [R + 1] twice, for
        B * T queries and for B * S keys. Run r is queries [r] to [r + 1] and keys [r] to [r + 1],
        the last query at the last key. Keys that no query sees (padding before a chunk) are a run
        without queries. None without documents.

        The number of runs is data, so making it waits for the GPU: once a mask, in `prepare`.
        """
        if self._runs is None and self.starts is not None:
            first_keys = self.key_starts()
            assert first_keys is not None
            batch, num_queries = first_keys.shape
            num_keys = len(self.key_places)
            begins = torch.ones_like(first_keys, dtype=torch.bool)
            begins[:, 1:] = first_keys[:, 1:] != first_keys[:, :-1]
            queries = begins.flatten().nonzero()[:, 0]
            rows = queries // num_queries
            keys = rows * num_keys + first_keys.flatten()[queries]
            if num_keys != num_queries:  # else every key has its query, and runs of keys meet
                beyond = torch.cat((queries[1:], queries.new_tensor([batch * num_queries])))
                key_ends = (
                    rows * num_keys + (num_keys - num_queries) + (beyond - rows * num_queries)
                )
                queries = torch.stack(
                    (queries, queries), 1
                ).flatten()  # each run behind its run of unseen keys
                keys = torch.stack(
                    (torch.cat((key_ends.new_zeros(1), key_ends[:-1])), keys), 1
                ).flatten()
            self._runs = (
                torch.cat((queries, queries.new_tensor([batch * num_queries]))).int(),
                torch.cat((keys, keys.new_tensor([batch * num_keys]))).int(),
            )
        return self._runs

    def prepare(self, backend: str) -> "AttentionMask":
        """Make now what `backend` reads of this mask; returns the mask."""
        if backend == "reference" or (backend == "sdpa" and not self.is_causal):
            _ = self.dense
        if backend == "flex":
            _ = self.blocks
        if backend == "flash":
            _ = self.document_runs
        return self

    def key_starts(self) -> Tensor | None:
        """`starts` counted from the first key at hand instead of from the row's first token."""
        return (
            self.starts
            if self.starts is None or not self.first_key
            else (self.starts - self.first_key).clamp(min=0)
        )


def _document_ends(document_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Place of the first and of the last token of each token's document, int32 [B, T]."""
    places = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = (document_ids[:, 1:] != document_ids[:, :-1]) | (document_ids[:, 1:] < 0)
    starts = torch.where(begins, places, 0).cummax(dim=1).values
    last = torch.ones_like(begins)
    last[:, :-1] = begins[:, 1:]
    ends = torch.where(last, places, places.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    return starts.int(), ends.int()


def reference_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, dropout_p: float = 0.0
) -> Tensor:
    """The definition: softmax(q k^T / sqrt(D) + mask) v, the softmax in float32 (float64 for
    float64 input).
    """
    batch, heads, num_queries, head_dim = query.shape
    kv_heads = key.shape[1]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, num_queries, head_dim)
    scores = (grouped @ key[:, :, None].transpose(-1, -2)) * head_dim**-0.5
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask.dense is not None:
        scores = scores.masked_fill(~mask.dense[:, :, None], float("-inf"))
    weights = F.dropout(scores.softmax(dim=-1).to(value.dtype), dropout_p)
    return (weights @ value[:, :, None]).reshape(batch, heads, num_queries, head_dim)


def sdpa_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, dropout_p: float = 0.0
) -> Tensor:
    """PyTorch's fused attention."""
    allowed = None if mask.is_causal else mask.dense
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=allowed,
        dropout_p=dropout_p,
        is_causal=mask.is_causal,
        enable_gqa=key.shape[1] != query.shape[1],
    )


def flex_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, dropout_p: float = 0.0
) -> Tensor:
    """torch's FlexAttention over the mask's blocks; compiled for a GPU, where plain it would hold
    all scores.
    """
    from torch.nn.attention.flex_attention import flex_attention as flex

    _no_dropout("flex", dropout_p)
    reason = None if torch.compiler.is_compiling() else backend_refusal("flex", query)
    if reason is not None:
        raise ValueError(f"the flex back end cannot run: {reason}")
    call = _compiled_flex() if query.is_cuda and not torch.compiler.is_compiling() else flex
    return call(
        query,
        key,
        value,
        block_mask=mask.blocks,
        enable_gqa=key.shape[1] != query.shape[1],
        kernel_options=_flex_options(query),
    )


def _flex_options(query: Tensor) -> Any:
    """FlexAttention takes flash-attn-4 only where told to, and fails where that cannot run."""
    return (
        {"BACKEND": "FLASH"} if query.is_cuda and backend_refusal("flash", query) is None else None
    )


_compiled: list[Any] = []


def _compiled_flex() -> Any:
    """Compiled on first use, once a process."""
    from torch.nn.attention.flex_attention import flex_attention as flex

    if not _compiled:
        _compiled.append(torch.compile(flex, dynamic=False))
    return _compiled[0]


def triton_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, dropout_p: float = 0.0
) -> Tensor:
    """Our kernels."""
    from moxin_lab.kernels.window_attention import window_attention

    _no_dropout("triton", dropout_p)
    _in_order("triton", mask)
    return window_attention(
        query,
        key,
        value,
        sliding_window=mask.sliding_window,
        starts=mask.key_starts(),
        ends=mask.ends,
    )


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, dropout_p: float = 0.0
) -> Tensor:
    """flash-attn-4."""
    from moxin_lab.kernels import flash

    _no_dropout("flash", dropout_p)
    _in_order("flash", mask)
    return flash.flash_attention(query, key, value, mask.sliding_window, mask.document_runs)


def _no_dropout(backend: str, dropout_p: float) -> None:
    if dropout_p:
        raise ValueError(
            f"the {backend} back end has no dropout, and attention_dropout is {dropout_p}: use sdpa or reference"
        )


def _in_order(backend: str, mask: AttentionMask) -> None:
    if mask.first_key is None:
        raise ValueError(
            f"the {backend} back end needs keys in order up to the last query; a ring read by slots is for sdpa"
        )


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": reference_attention,
    "sdpa": sdpa_attention,
    "flex": flex_attention,
    "triton": triton_attention,
    "flash": flash_attention,
}


def resolve_backend(backend: str) -> str:
    """`backend` itself if it is a name or "auto". Raises ValueError for an unknown name."""
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(
            f"unknown attention back end {backend!r}: available are auto, {', '.join(BACKENDS)}"
        )
    return backend


def backend_refusal(backend: str, query: Tensor) -> str | None:
    """Why a back end cannot run on tensors like `query` [B, H, T, D]; None where it can."""
    if backend == "flex" and not query.is_cuda and query.requires_grad:
        return "FlexAttention has no backward on the CPU: use sdpa, reference or triton there"
    if backend == "triton":
        try:
            from moxin_lab.kernels import window_attention
        except ImportError as error:
            return f"Triton cannot be imported: {error}"
        return window_attention.refusal(query)
    if backend == "flash":
        from moxin_lab.kernels import flash

        return flash.refusal(query)
    return None


SHORT = 256
"""Tokens of a row up to which PyTorch's own fused attention is chosen; our choice between what was
measured, 35 and 4,096.
"""


def choose_backend(query: Tensor, mask: AttentionMask, dropout_p: float = 0.0) -> str:
    """What "auto" stands for: on a GPU flash, else triton, where they can run; else sdpa.

    With documents or padding triton's forward is 5 % faster than flash's and its backward 1.1 to
    1.5 times slower, for six times the memory (reports/released/h100, documents of 2,048 tokens):
    flash where gradients are recorded, triton where not. Short rows within the window go to sdpa,
    where starting a kernel is what costs (SFT steps of short conversations are 16 %
    faster than with triton: reports/released/h100), and one new token over a cache does: there is
    one row of scores, and a ring's keys stand in any order.
    """
    if mask.is_causal and query.shape[2] <= SHORT:
        return "sdpa"
    if query.is_cuda and not dropout_p and mask.first_key is not None and query.shape[2] > 1:
        if (mask.starts is None or torch.is_grad_enabled()) and backend_refusal(
            "flash", query
        ) is None:
            return "flash"
        if backend_refusal("triton", query) is None:
            return "triton"
    return "sdpa"


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask,
    *,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Attention of queries [B, H, T, D] over keys and values [B, H_kv, S, D] under `mask`; returns
    [B, H, T, D].

    Query head h uses key/value head h // (H / H_kv). Raises ValueError for shapes or dtypes that do
    not fit, for an unknown back end and for one that cannot run here.
    """
    if (
        query.ndim != 4
        or key.shape != value.shape
        or query.shape[0] != key.shape[0]
        or query.shape[3] != key.shape[3]
    ):
        raise ValueError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}: expected [B, H, T, D] and twice "
            "[B, H_kv, S, D]"
        )
    if query.shape[1] % key.shape[1]:
        raise ValueError(
            f"{query.shape[1]} query heads are not a multiple of {key.shape[1]} key/value heads"
        )
    if mask.query_places.shape[0] != query.shape[2] or mask.key_places.shape[0] != key.shape[2]:
        raise ValueError(
            f"the mask is for {mask.query_places.shape[0]} queries and {mask.key_places.shape[0]} keys, "
            f"not {query.shape[2]} and {key.shape[2]}"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            f"query, key and value have dtypes {query.dtype}, {key.dtype}, {value.dtype}: they must be equal"
        )
    chosen = (
        choose_backend(query, mask, dropout_p) if backend == "auto" else resolve_backend(backend)
    )
    return BACKENDS[chosen](query, key, value, mask, dropout_p)
