"""`moxin-lab bench prefill`: seconds to read a long text into the cache, by our model in several
chunk sizes and by transformers.

    moxin-lab bench prefill --device cuda --json FILE

Guarantees: the same random weights and text; `floor_ms` is the text's operations (weights twice,
attention's pairs in the window) at the rate of a large matrix product measured in the same run;
`same_token`: the greedy next token agrees with the first row's.
Does not: include loading, tokenising or the first decoding step.
"""

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", default="full", help="whose shape: tiny, small, full (default)")
    parser.add_argument("--tokens", type=int, default=32_000)
    parser.add_argument(
        "--chunks", default="32000,8192,4096", help="tokens read at once, several with commas"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Rows: implementation, tokens, chunk, ms, tokens_per_second, floor_ms, same_token, peak_bytes,
    reason.
    """
    import torch

    from moxin_lab.bench import free_memory, median_seconds, peak_bytes
    from moxin_lab.bench.attention import ceilings
    from moxin_lab.bench.generation import make_model, make_peer, random_text, read
    from moxin_lab.model.cache import RollingCache
    from moxin_lab.model.config import training_flops_per_token

    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    limits = ceilings(options.device)
    model = make_model(options, dtype)
    ids = random_text(model, 1, options.tokens)
    head = 6 * model.lm_head.weight.numel()  # applied to one token only
    operations = (
        (training_flops_per_token(model.config, options.tokens) - head) * options.tokens / 3
    )
    rows: list[dict[str, Any]] = []

    def ours(chunk: int) -> Any:
        cache = RollingCache(model.config, 1, dtype=dtype, device=options.device)
        return read(model, ids, cache, chunk)

    def theirs() -> Any:
        from transformers import DynamicCache

        cache = DynamicCache(config=peer.config)
        return peer(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    jobs: list[tuple[str, int, Any]] = [
        ("ours", int(chunk), lambda chunk=int(chunk): ours(chunk))
        for chunk in options.chunks.split(",")
    ]
    if not options.no_peer:
        peer = make_peer(model)
        jobs.append(("transformers, DynamicCache, SDPA", options.tokens, theirs))
    first = None
    for name, chunk, call in jobs:
        row: dict[str, Any] = {"implementation": name, "tokens": options.tokens, "chunk": chunk}
        free_memory(options.device)
        try:
            with torch.inference_mode():
                token = call()[:, -1].argmax(dim=-1)
                first = token if first is None else first
                seconds = median_seconds(
                    call, device=options.device, warmup=1, repeats=options.repeats
                )
            row |= {
                "ms": seconds * 1000,
                "tokens_per_second": options.tokens / seconds,
                "floor_ms": operations / limits["matrix_product_tflops"] / 1e9,
                "same_token": bool((token == first).all()),
                "peak_bytes": peak_bytes(options.device),
            }
        except (RuntimeError, ValueError, ImportError) as error:
            row["reason"] = f"{type(error).__name__}: {error}"[:300]
        rows.append(row)
    return {"width": options.width, "dtype": str(dtype), "ceilings": limits, "rows": rows}
