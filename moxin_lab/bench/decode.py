"""`moxin-lab bench decode`: milliseconds a token after a long text, by our decoding step and by
transformers, greedy.

    moxin-lab bench decode --device cuda --json FILE

Rows: the step on kernels in a CUDA graph, the same kernels without the graph, our plain forward
pass, and transformers with its `DynamicCache` (sliding layers) and SDPA. Guarantees: the same
random weights and text for all; `floor_ms` is the weights and the ring read once at the speed of a
device copy measured in the same run; `first_logits_error` is |logits - plain| / |plain| of the
first timed step, before 16-bit rounding of random weights' near ties can turn a token. Does not:
sample or stop.
"""

import argparse
from functools import partial
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", default="full", help="whose shape: tiny, small, full (default)")
    parser.add_argument(
        "--shapes", default="1x32000,8x8192", help="rows x tokens of the text, several with commas"
    )
    parser.add_argument("--new-tokens", type=int, default=64, help="timed tokens (default 64)")
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of the text read at once")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")


def run(options: argparse.Namespace) -> dict[str, Any]:
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
    rows = []
    for text in options.shapes.split(","):
        batch, length = (int(number) for number in text.split("x"))
        ring = RollingCache(model.config, batch, dtype=dtype, device="meta").nbytes
        full = FullCache(model.config, batch, num_tokens=32_768, dtype=dtype, device="meta").nbytes
        floor = (weight_bytes(model) + ring) / machine_limits["copy_bytes_per_second"]
        expected: list[Any] = []
        for name, decode in implementations(options).items():
            row: dict[str, Any] = {"implementation": name, "rows": batch, "tokens": length}
            try:
                logits, milliseconds = decode(model, batch, length, options)
                expected = expected or [logits]
                error = ((logits - expected[0]).norm() / expected[0].norm()).item()
                row |= {
                    "ms_per_token": milliseconds,
                    "tokens_per_second": batch * 1000 / milliseconds,
                }
                row["first_logits_error"] = error
            except (RuntimeError, ValueError, ImportError) as error:
                row["reason"] = f"{type(error).__name__}: {error}"[:300]
            rows.append(
                row
                | {"floor_ms": floor * 1000, "ring_bytes": ring, "full_cache_bytes_at_32768": full}
            )
            free_memory(options.device)
    return {"width": options.width, "dtype": str(dtype), "ceilings": machine_limits, "rows": rows}


def implementations(options: argparse.Namespace) -> dict[str, Any]:
    """Name -> function (model, batch, length, options) -> (the first step's logits [B, V],
    milliseconds a token).
    """
    found = {"ours, plain forward pass": plain, "ours, kernels": kernels}
    if options.device == "cuda":
        found["ours, kernels in a CUDA graph"] = partial(kernels, in_graph=True)
    if not options.no_peer:
        found["transformers, DynamicCache, SDPA"] = transformers_peer
    return found


def timed(step: Any, first: Any, options: argparse.Namespace) -> tuple[Any, float]:
    """First logits of `step(token [B]) -> logits [B, V]`, float32, and the time of greedy tokens
    after eight to warm up.
    """
    import time

    import torch

    token, kept = first, None
    for place in range(options.new_tokens + 8):
        if place == 8:
            if options.device == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
        logits = step(token)
        kept = logits.float() if kept is None else kept
        token = logits.argmax(dim=-1)
    if options.device == "cuda":
        torch.cuda.synchronize()
    return kept, (time.perf_counter() - begin) * 1000 / options.new_tokens


def _ours(
    model: Any, batch: int, length: int, options: argparse.Namespace, make_step: Any
) -> tuple[Any, float]:
    import torch

    from moxin_lab.bench.generation import random_text, read
    from moxin_lab.model.cache import RollingCache

    weight = model.lm_head.weight
    with torch.inference_mode():
        cache = RollingCache(model.config, batch, dtype=weight.dtype, device=weight.device)
        ids = random_text(model, batch, length)
        read(model, ids, cache, options.chunk)
        return timed(make_step(model, cache), ids[:, 0], options)


def plain(model: Any, batch: int, length: int, options: argparse.Namespace) -> tuple[Any, float]:
    def make(model: Any, cache: Any) -> Any:
        return lambda token: model(token[:, None], cache=cache)[:, -1]

    return _ours(model, batch, length, options, make)


def kernels(
    model: Any, batch: int, length: int, options: argparse.Namespace, in_graph: bool = False
) -> tuple[Any, float]:
    from moxin_lab.model.decode import DecodeStep

    return _ours(
        model, batch, length, options, lambda model, cache: DecodeStep(model, cache, graph=in_graph)
    )


def transformers_peer(
    model: Any, batch: int, length: int, options: argparse.Namespace
) -> tuple[Any, float]:
    import torch
    from transformers import DynamicCache

    from moxin_lab.bench.generation import make_peer, random_text

    peer = make_peer(model)
    cache = DynamicCache(config=peer.config)
    with torch.inference_mode():
        ids = random_text(model, batch, length)
        for part in ids.split(options.chunk, dim=1):
            peer(part, past_key_values=cache, use_cache=True, logits_to_keep=1)

        def step(token: Any) -> Any:
            return peer(token[:, None], past_key_values=cache, use_cache=True).logits[:, -1]

        return timed(step, ids[:, 0], options)
