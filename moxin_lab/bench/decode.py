"""`moxin-lab bench decode`: milliseconds per token after a long text, greedy, for our decoding step
and for transformers.

    moxin-lab bench decode --device cuda --json FILE

Rows: the step on kernels in a CUDA graph, the same kernels without the graph, our plain forward
pass, and transformers with its `DynamicCache` (sliding layers) and SDPA.

Guarantees: all rows use the same random weights and text; `floor_ms` is the time to read the
weights and the ring once at the speed of a device copy measured in the same run;
`first_logits_error` is |logits - plain| / |plain| of the first timed step, before rounding to 16
bits can change a token (the logits of random weights are nearly tied).
Out of scope: sampling; stopping at an end token.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    from torch import Tensor

    from moxin_lab.model.cache import RollingCache
    from moxin_lab.model.decoder import MoxinForCausalLM

Step = Callable[["Tensor"], "Tensor"]
"""One decoding step: token ids int64 [B] -> logits [B, V]."""
Measure = Callable[..., "tuple[Tensor, float]"]
"""(model, batch, length, options) -> logits of the first timed step, milliseconds per token."""
WARMUP_TOKENS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--width", default="full", help="scale of the shape: tiny, small or full (default)"
    )
    parser.add_argument(
        "--shapes", default="1x32000,8x8192", help="rows x tokens of the text, separated by commas"
    )
    parser.add_argument("--new-tokens", type=int, default=64, help="timed tokens (default 64)")
    parser.add_argument(
        "--chunk", type=int, default=8192, help="tokens of the text per forward pass"
    )
    parser.add_argument("--no-peer", action="store_true", help="omit transformers")


@keeping("decode")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: implementation, rows, tokens, ms_per_token, tokens_per_second, floor_ms,
    first_logits_error, ring_bytes, reason.
    """
    import torch

    from moxin_lab.bench import free_memory
    from moxin_lab.bench.attention import ceilings
    from moxin_lab.bench.generation import make_model, weight_bytes
    from moxin_lab.model.cache import FullCache, RollingCache

    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    machine_limits = ceilings(options.device)
    model = make_model(options, dtype)
    rows: list[dict[str, Any]] = []
    result = {"width": options.width, "dtype": str(dtype), "ceilings": machine_limits, "rows": rows}
    for text in options.shapes.split(","):
        batch, length = (int(number) for number in text.split("x"))
        ring = RollingCache(model.config, batch, dtype=dtype, device="meta").nbytes
        full = FullCache(model.config, batch, num_tokens=32_768, dtype=dtype, device="meta").nbytes
        floor = (weight_bytes(model) + ring) / machine_limits["copy_bytes_per_second"]
        expected: Tensor | None = None
        for name, measure in implementations(options).items():
            row: dict[str, Any] = {"implementation": name, "rows": batch, "tokens": length}
            try:
                logits, milliseconds = measure(model, batch, length, options)
                expected = logits if expected is None else expected  # the plain forward pass
                relative_error = ((logits - expected).norm() / expected.norm()).item()
                row |= {
                    "ms_per_token": milliseconds,
                    "tokens_per_second": batch * 1000 / milliseconds,
                }
                row["first_logits_error"] = relative_error
            except (RuntimeError, ValueError, ImportError) as error:
                row["reason"] = f"{type(error).__name__}: {error}"[:300]
            rows.append(
                row
                | {"floor_ms": floor * 1000, "ring_bytes": ring, "full_cache_bytes_at_32768": full}
            )
            keep(result)
            free_memory(options.device)
    return result


def implementations(options: argparse.Namespace) -> dict[str, Measure]:
    """The function that measures each implementation, by name; the plain forward pass is first."""
    rows: dict[str, Measure] = {"ours, plain forward pass": plain, "ours, kernels": kernels}
    if options.device == "cuda":
        rows["ours, kernels in a CUDA graph"] = partial(kernels, in_graph=True)
    if not options.no_peer:
        rows["transformers, DynamicCache, SDPA"] = transformers_peer
    return rows


def time_steps(step: Step, token: Tensor, options: argparse.Namespace) -> tuple[Tensor, float]:
    """Float32 logits [B, V] of the first step after `token` [B], and milliseconds per greedy token
    after the warm-up.
    """
    import torch

    first_logits: Tensor | None = None
    for index in range(options.new_tokens + WARMUP_TOKENS):
        if index == WARMUP_TOKENS:
            if options.device == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
        logits = step(token)
        # In 16 bits `float` copies, as it must: the next step reuses the memory of the logits.
        first_logits = logits.float() if first_logits is None else first_logits
        token = logits.argmax(dim=-1)
    if options.device == "cuda":
        torch.cuda.synchronize()
    assert first_logits is not None
    return first_logits, (time.perf_counter() - begin) * 1000 / options.new_tokens


def _ours(
    model: MoxinForCausalLM,
    batch: int,
    length: int,
    options: argparse.Namespace,
    make_step: Callable[[MoxinForCausalLM, RollingCache], Step],
) -> tuple[Tensor, float]:
    import torch

    from moxin_lab.bench.generation import prefill, random_text
    from moxin_lab.model.cache import RollingCache

    weight = model.lm_head.weight
    with torch.inference_mode():
        cache = RollingCache(model.config, batch, dtype=weight.dtype, device=weight.device)
        ids = random_text(model, batch, length)
        prefill(model, ids, cache, options.chunk)
        return time_steps(make_step(model, cache), ids[:, 0], options)


def plain(
    model: MoxinForCausalLM, batch: int, length: int, options: argparse.Namespace
) -> tuple[Tensor, float]:
    """Our model's own forward pass."""

    def make(model: MoxinForCausalLM, cache: RollingCache) -> Step:
        return lambda token: model(token[:, None], cache=cache)[:, -1]

    return _ours(model, batch, length, options, make)


def kernels(
    model: MoxinForCausalLM,
    batch: int,
    length: int,
    options: argparse.Namespace,
    in_graph: bool = False,
) -> tuple[Tensor, float]:
    """`DecodeStep` on the Triton kernels, with or without a CUDA graph."""
    from moxin_lab.model.decode import DecodeStep

    return _ours(
        model, batch, length, options, lambda model, cache: DecodeStep(model, cache, graph=in_graph)
    )


def transformers_peer(
    model: MoxinForCausalLM, batch: int, length: int, options: argparse.Namespace
) -> tuple[Tensor, float]:
    """transformers' `MistralForCausalLM` on the same weights."""
    import torch
    from transformers import DynamicCache

    from moxin_lab.bench.generation import make_peer, random_text

    peer = make_peer(model)
    cache = DynamicCache(config=peer.config)
    with torch.inference_mode():
        ids = random_text(model, batch, length)
        for part in ids.split(options.chunk, dim=1):
            peer(part, past_key_values=cache, use_cache=True, logits_to_keep=1)

        def step(token: Tensor) -> Tensor:
            return peer(token[:, None], past_key_values=cache, use_cache=True).logits[:, -1]

        return time_steps(step, ids[:, 0], options)
