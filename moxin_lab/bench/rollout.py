"""`moxin-lab bench rollout`: generated tokens a second of GRPO's rollout, by our ring engine and by
transformers' `generate`.

    moxin-lab bench rollout --device cuda --json FILE                  # 64 prompts x 8, 64 tokens of prompt, 128 new ones
    moxin-lab bench rollout --device cpu --width tiny --prompts 8 --new-tokens 24

All rows sample from the same random weights at temperature 1 over the whole vocabulary, with the
end token switched off, so that each makes the same number of tokens; the prompt's pass, sampling,
and the way of the tokens to the host are counted. Rows: the ring engine (on a GPU: a CUDA graph a
token, and its parts without), transformers with `DynamicCache`, its default, and with `--static`
its static cache, which on a GPU it compiles for minutes. One call to warm up (compile, capture) is
not counted and stands in `first_seconds`; the median of the others is. `log_prob_error`: largest
difference of a sampled token's recorded log-probability (ours alone record them) to transformers'
forward pass over the same tokens, in the weights' precision.
Does not: stop early, or time another process.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from moxin_lab.bench import free_memory, peak_bytes
from moxin_lab.bench.generation import make_model, make_peer, random_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", default="small", help="whose shape: tiny, small (default), full")
    parser.add_argument("--prompts", type=int, default=64, help="different prompts (default 64)")
    parser.add_argument("--samples", type=int, default=8, help="completions a prompt (default 8)")
    parser.add_argument(
        "--prompt-tokens", type=int, default=64, help="tokens of a prompt (default 64)"
    )
    parser.add_argument(
        "--new-tokens", type=int, default=128, help="generated tokens a row (default 128)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed calls, of which the median counts (default 3)"
    )
    parser.add_argument(
        "--static",
        action="store_true",
        help="transformers' static cache, too: slow to compile on a GPU",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Rows: implementation, rows, new_tokens, seconds, tokens_per_second, times_transformers,
    first_seconds, log_prob_error, peak_bytes, reason.
    """
    import torch

    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    model = make_model(options, dtype)
    number = options.prompts * options.samples
    rows: list[dict[str, Any]] = []
    for name, make in implementations(options).items():
        row: dict[str, Any] = {
            "implementation": name,
            "rows": number,
            "new_tokens": options.new_tokens,
        }
        free_memory(options.device)
        try:
            call = make(model, options)
            first, _ = _seconds(call, options.device)
            timed = [_seconds(call, options.device) for _ in range(options.repeats)]
            seconds = statistics.median(second for second, _ in timed)
            row |= {
                "seconds": seconds,
                "tokens_per_second": number * options.new_tokens / seconds,
                "first_seconds": first,
            }
            row |= timed[-1][1] | {"peak_bytes": peak_bytes(options.device)}
        except (RuntimeError, ValueError, ImportError) as error:
            row["reason"] = f"{type(error).__name__}: {error}"[:300]
        rows.append(row)
        print(
            ", ".join(f"{key} {value}" for key, value in row.items()), file=sys.stderr
        )  # in case a later row never ends
        call = None
    peers = [
        row["tokens_per_second"]
        for row in rows
        if "transformers" in row["implementation"] and "reason" not in row
    ]
    for row in rows:
        if peers and "reason" not in row:
            row["times_transformers"] = row["tokens_per_second"] / max(peers)
    return {
        "width": options.width,
        "dtype": str(dtype),
        "prompt_tokens": options.prompt_tokens,
        "rows": rows,
    }


def implementations(options: argparse.Namespace) -> dict[str, Any]:
    """Name -> function (model, options) -> call () -> what goes into the row."""
    found: dict[str, Any] = {"ours, RingEngine": ours}
    if options.device == "cuda":
        found["ours, without the graph"] = partial(ours, graph=False)
        found["ours, without graph and kernels"] = partial(ours, graph=False, kernels=False)
    found["transformers generate, DynamicCache"] = partial(transformers_generate, cache=None)
    if options.static:
        found["transformers generate, static cache"] = partial(
            transformers_generate, cache="static"
        )
    return found


def _seconds(call: Callable[[], dict[str, Any]], device: str) -> tuple[float, dict[str, Any]]:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    found = call()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    return seconds, {
        name: value() for name, value in found.items()
    }  # what is measured beside time is measured after it


def ours(model: Any, options: argparse.Namespace, **choices: Any) -> Callable[[], dict[str, Any]]:
    from moxin_lab.reasoning.rollout import RingEngine, SamplingSettings

    number = options.prompts * options.samples
    engine = RingEngine(model, eos_token_id=-1, pad_token_id=0, max_rows=number, **choices)
    prompts = random_text(model, options.prompts, options.prompt_tokens).tolist()
    sampling = SamplingSettings(options.samples, options.new_tokens)

    def call() -> dict[str, Any]:
        rollout = engine.generate(prompts, sampling, seed=0)
        return {"log_prob_error": partial(_error, model, rollout)}

    return call


def _error(model: Any, rollout: Any) -> float:
    """Of the first four rows."""
    import torch

    peer, worst = make_peer(model), 0.0
    for row, prompt in enumerate(rollout.prompt_ids[:4]):
        tokens = torch.tensor(rollout.tokens(row), device=peer.device)
        ids = torch.cat((torch.tensor(prompt, device=peer.device), tokens))
        with torch.inference_mode():
            logits = peer(ids[None]).logits[0, len(prompt) - 1 : -1].float()
        wanted = logits.log_softmax(dim=-1).gather(-1, tokens[:, None])[:, 0].cpu()
        worst = max(worst, (wanted - rollout.log_probs[row, : len(wanted)]).abs().max().item())
    return worst


def transformers_generate(
    model: Any, options: argparse.Namespace, cache: str | None
) -> Callable[[], dict[str, Any]]:
    import torch
    from transformers import GenerationConfig

    peer = make_peer(model)
    ids = random_text(model, options.prompts, options.prompt_tokens).repeat_interleave(
        options.samples, dim=0
    )
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=options.new_tokens,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
        cache_implementation=cache,
    )
    peer.generation_config = config
    mask = torch.ones_like(ids)

    def call() -> dict[str, Any]:
        with (
            torch.inference_mode(cache is None),
            torch.no_grad(),
        ):  # compiled code and inference tensors do not go together
            made = peer.generate(ids, attention_mask=mask).cpu()
        if made.shape[1] != ids.shape[1] + options.new_tokens:
            raise RuntimeError(
                f"{made.shape[1] - ids.shape[1]} tokens were made, not {options.new_tokens}"
            )
        return {}

    return call
