"""`moxin-lab bench prefill`: time to read a long text into the cache, for our model with several
chunk sizes and for transformers.

    moxin-lab bench prefill --device cuda --json FILE

Guarantees: all rows use the same random weights and text; `floor_ms` is the time of the text's
FLOPs (two per weight and the pairs of attention in the window) at the rate of a large matrix
product measured in the same run; `same_token` says whether the greedy next token equals that of the
first row.
Out of scope: loading, tokenisation, the first decoding step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    from torch import Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--width", default="full", help="scale of the shape: tiny, small or full (default)"
    )
    parser.add_argument("--tokens", type=int, default=32_000)
    parser.add_argument(
        "--chunks", default="32000,8192,4096", help="tokens per forward pass, separated by commas"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true", help="omit transformers")


@keeping("prefill")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: implementation, tokens, chunk, ms, tokens_per_second, floor_ms, same_token, peak_bytes,
    reason.
    """
    import torch

    from moxin_lab.bench import free_memory, median_seconds, peak_bytes
    from moxin_lab.bench.attention import ceilings
    from moxin_lab.bench.generation import make_model, make_peer, prefill, random_text
    from moxin_lab.model.cache import RollingCache
    from moxin_lab.model.config import training_flops_per_token

    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    limits = ceilings(options.device)
    model = make_model(options, dtype)
    ids = random_text(model, 1, options.tokens)
    # Forward is a third of training. The head is applied to the last token only.
    head_flops = 6 * model.lm_head.weight.numel()
    flops_per_token = (training_flops_per_token(model.config, options.tokens) - head_flops) / 3
    floor_seconds = flops_per_token * options.tokens / limits["matrix_product_tflops"] / 1e12
    rows: list[dict[str, Any]] = []
    result = {"width": options.width, "dtype": str(dtype), "ceilings": limits, "rows": rows}

    def ours(chunk: int) -> Tensor:
        cache = RollingCache(model.config, 1, dtype=dtype, device=options.device)
        return prefill(model, ids, cache, chunk)

    def theirs() -> Tensor:
        from transformers import DynamicCache

        cache = DynamicCache(config=peer.config)
        return peer(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    jobs: list[tuple[str, int, Callable[[], Tensor]]] = [
        ("ours", int(chunk), partial(ours, int(chunk))) for chunk in options.chunks.split(",")
    ]
    if not options.no_peer:
        peer = make_peer(model)
        jobs.append(("transformers, DynamicCache, SDPA", options.tokens, theirs))
    first_token = None
    for name, chunk, call in jobs:
        row: dict[str, Any] = {"implementation": name, "tokens": options.tokens, "chunk": chunk}
        free_memory(options.device)
        try:
            with torch.inference_mode():
                token = call()[:, -1].argmax(dim=-1)
                first_token = token if first_token is None else first_token
                seconds = median_seconds(
                    call, device=options.device, warmup=1, repeats=options.repeats
                )
            row |= {
                "ms": seconds * 1000,
                "tokens_per_second": options.tokens / seconds,
                "floor_ms": floor_seconds * 1000,
                "same_token": bool((token == first_token).all()),
                "peak_bytes": peak_bytes(options.device),
            }
        except (RuntimeError, ValueError, ImportError) as error:
            row["reason"] = f"{type(error).__name__}: {error}"[:300]
        rows.append(row)
        keep(result)
    return result
