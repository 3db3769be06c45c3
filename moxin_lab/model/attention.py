"""Causal, windowed, document-wise attention behind one function, with a choice of backends.

    mask = AttentionMask.build(T, sliding_window=W, document_ids=ids, device=device)  # once
    output = attention(query, key, value, mask)                                  # in every block

    backend     what it is                     where it runs
    ---------   ----------------------------   -------------------------------------------------
    reference   the definition, in plain       any device and dtype; slow, holds all scores
                operations
    sdpa        PyTorch's fused attention      any device; reads a dense mask if a window or a
                                               document takes a pair away
    flex        torch's FlexAttention, its     GPU, compiled: on flash-attn-4 if that can run,
                block mask built once          else by Triton; CPU, uncompiled: slow
    triton      our kernels                    GPU, or Triton's interpreter; deterministic
                (moxin_lab/kernels)            backward, no dropout
    flash       flash-attn-4, if installed     GPU of compute capability 9.0; no dropout

Guarantees: every backend computes the same function as `reference`, forward and backward
(tests/model/test_attention.py, tests/kernels); keys and values of grouped heads are never copied
here. A backend given by name runs or raises ValueError with the reason; "auto" chooses the fastest
one that can run (`choose_backend`).
Out of scope: attention between documents, bias terms, bidirectional attention.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moxin_lab.model.mask import AttentionMask


def reference_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, dropout_p: float = 0.0
) -> Tensor:
    """The definition: softmax(q k^T / sqrt(D) + mask) v, with the softmax in float32 (float64 for
    float64 input).
    """
    batch, heads, num_queries, head_dim = query.shape
    kv_heads = key.shape[1]
    # [B, H_kv, G, T, D] against [B, H_kv, 1, S, D]: the G query heads of a group share their keys.
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, num_queries, head_dim)
    scores = (grouped @ key[:, :, None].transpose(-1, -2)) * head_dim**-0.5  # [.., T, S]
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
    """torch's FlexAttention over the mask's blocks. On a GPU it is compiled: uncompiled it would
    hold all scores.
    """
    from torch.nn.attention.flex_attention import flex_attention as flex

    _require_no_dropout("flex", dropout_p)
    reason = None if torch.compiler.is_compiling() else backend_unsupported_reason("flex", query)
    if reason is not None:
        raise ValueError(f"the flex backend cannot run: {reason}")
    call = _compiled_flex() if query.is_cuda and not torch.compiler.is_compiling() else flex
    return call(
        query,
        key,
        value,
        block_mask=mask.blocks,
        enable_gqa=key.shape[1] != query.shape[1],
        kernel_options=_flex_options(query),
    )


def _flex_options(query: Tensor) -> dict[str, str] | None:
    """FlexAttention uses flash-attn-4 only if its options say so, and fails if that cannot run."""
    if query.is_cuda and backend_unsupported_reason("flash", query) is None:
        return {"BACKEND": "FLASH"}
    return None


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    """FlexAttention compiled on first use, once per process."""
    from torch.nn.attention.flex_attention import flex_attention as flex

    return torch.compile(flex, dynamic=False)


def triton_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, dropout_p: float = 0.0
) -> Tensor:
    """Our Triton kernels (moxin_lab/kernels/window_attention.py)."""
    from moxin_lab.kernels.window_attention import window_attention

    _require_no_dropout("triton", dropout_p)
    _require_keys_in_order("triton", mask)
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
    """The package flash-attn-4 (moxin_lab/kernels/flash.py)."""
    from moxin_lab.kernels import flash

    _require_no_dropout("flash", dropout_p)
    _require_keys_in_order("flash", mask)
    return flash.flash_attention(query, key, value, mask.sliding_window, mask.document_runs)


def _require_no_dropout(backend: str, dropout_p: float) -> None:
    if dropout_p:
        raise ValueError(
            f"the {backend} backend has no dropout, and attention_dropout is {dropout_p}: "
            "use sdpa or reference"
        )


def _require_keys_in_order(backend: str, mask: AttentionMask) -> None:
    if mask.first_key is None:
        raise ValueError(
            f"the {backend} backend needs keys in order up to the last query; "
            "use sdpa for a ring read in the order of its slots"
        )


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": reference_attention,
    "sdpa": sdpa_attention,
    "flex": flex_attention,
    "triton": triton_attention,
    "flash": flash_attention,
}


def resolve_backend(backend: str) -> str:
    """`backend` itself if it is a known name or "auto". Raises ValueError for an unknown name."""
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(
            f"unknown attention backend {backend!r}: available are auto, {', '.join(BACKENDS)}"
        )
    return backend


def backend_unsupported_reason(backend: str, query: Tensor) -> str | None:
    """Why a backend cannot run on tensors like `query` [B, H, T, D]; None if it can."""
    if backend == "flex" and not query.is_cuda and query.requires_grad:
        return "FlexAttention has no backward on the CPU: use sdpa, reference or triton there"
    if backend == "triton":
        try:
            from moxin_lab.kernels import window_attention
        except ImportError as error:
            return f"Triton cannot be imported: {error}"
        return window_attention.unsupported_reason(query)
    if backend == "flash":
        from moxin_lab.kernels import flash

        return flash.unsupported_reason(query)
    return None


SHORT_ROW_TOKENS = 256
"""Rows up to this length use PyTorch's own fused attention. Our choice: rows of 35 tokens were
measured to be faster there and rows of 4,096 slower, lengths between them were not measured.
"""


def choose_backend(query: Tensor, mask: AttentionMask, dropout_p: float = 0.0) -> str:
    """The backend that "auto" selects: on a GPU flash or else triton, if they can run; else sdpa.

    With documents or padding, triton's forward is 5 % faster than flash's, and its backward is 1.1
    to 1.5 times slower and takes six times the memory (reports/released/h100, documents of 2,048
    tokens): flash is used if gradients are recorded, triton if not.

    Short rows within the window use sdpa: launching a kernel is what takes the time there (SFT
    steps of short conversations are 16 % faster than with triton, reports/released/h100). One new
    token over a cache uses sdpa as well: there is only one row of scores, and a ring's keys can be
    in any order.
    """
    if mask.is_causal and query.shape[2] <= SHORT_ROW_TOKENS:
        return "sdpa"
    if query.is_cuda and not dropout_p and mask.first_key is not None and query.shape[2] > 1:
        prefers_flash = mask.starts is None or torch.is_grad_enabled()
        if prefers_flash and backend_unsupported_reason("flash", query) is None:
            return "flash"
        if backend_unsupported_reason("triton", query) is None:
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
    not fit, for an unknown backend and for one that cannot run here.
    """
    if (
        query.ndim != 4
        or key.shape != value.shape
        or query.shape[0] != key.shape[0]
        or query.shape[3] != key.shape[3]
    ):
        raise ValueError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}: "
            "expected [B, H, T, D] for the query and [B, H_kv, S, D] for key and value"
        )
    if query.shape[1] % key.shape[1]:
        raise ValueError(
            f"{query.shape[1]} query heads are not a multiple of {key.shape[1]} key/value heads"
        )
    mask_queries, mask_keys = len(mask.query_positions), len(mask.key_positions)
    if (mask_queries, mask_keys) != (query.shape[2], key.shape[2]):
        raise ValueError(
            f"the mask is for {mask_queries} queries and {mask_keys} keys, "
            f"not {query.shape[2]} and {key.shape[2]}"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            f"query, key and value have dtypes {query.dtype}, {key.dtype}, {value.dtype}: "
            "they must be equal"
        )
    chosen = (
        choose_backend(query, mask, dropout_p) if backend == "auto" else resolve_backend(backend)
    )
    return BACKENDS[chosen](query, key, value, mask, dropout_p)
