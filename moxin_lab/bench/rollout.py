"""`moxin-lab bench rollout`: generated tokens per second of GRPO's rollout, for our ring engine and
for transformers' `generate`.

    moxin-lab bench rollout --device cuda --json FILE
    moxin-lab bench rollout --device cpu --width tiny --prompts 8 --new-tokens 24

All rows sample from the same random weights at temperature 1 over the whole vocabulary, with the
end token disabled, so that each generates the same number of tokens. The time includes the prompt's
forward pass, sampling, and copying the tokens to the host.

Rows: the ring engine (on a GPU with a CUDA graph per token, and without its parts), transformers
with its default `DynamicCache`, and with `--static` its static cache, which on a GPU takes minutes
to compile. The first call warms up (compilation, graph capture): it is not counted, and its time is
in `first_seconds`. `log_prob_error` is the largest difference between the log-probabilities that
our engine recorded and those of transformers' forward pass over the same tokens, in the dtype of
the weights.

Guarantees: the median of the calls after the first; a row that cannot run holds its reason.
Out of scope: stopping at an end token; sampling in another process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from moxin_lab.bench import free_memory, peak_bytes
from moxin_lab.bench.generation import add_rollout_arguments, make_model, make_peer, random_text
from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    from moxin_lab.model.decoder import MoxinForCausalLM
    from moxin_lab.reasoning.rollout import Rollout

Call = Callable[[], dict[str, Callable[[], float]]]
"""Generates once; returns functions that compute further columns of the row."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rollout_arguments(parser, prompts=64, prompt_tokens=64, new_tokens=128)
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed calls; a row is their median (default 3)"
    )
    parser.add_argument(
        "--static",
        action="store_true",
        help="also measure transformers' static cache, which is slow to compile on a GPU",
    )


@keeping("rollout")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: implementation, rows, new_tokens, seconds, tokens_per_second, times_transformers,
    first_seconds, log_prob_error, peak_bytes, reason.
    """
    import torch

    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    model = make_model(options, dtype)
    num_rows = options.prompts * options.num_generations
    rows: list[dict[str, Any]] = []
    result = {
        "width": options.width,
        "dtype": str(dtype),
        "prompt_tokens": options.prompt_tokens,
        "rows": rows,
    }
    for name, make in implementations(options).items():
        row: dict[str, Any] = {
            "implementation": name,
            "rows": num_rows,
            "new_tokens": options.new_tokens,
        }
        free_memory(options.device)
        try:
            call = make(model, options)
            first_seconds, _ = _time_call(call, options.device)
            timed = [_time_call(call, options.device) for _ in range(options.repeats)]
            seconds = statistics.median(second for second, _ in timed)
            row |= {
                "seconds": seconds,
                "tokens_per_second": num_rows * options.new_tokens / seconds,
                "first_seconds": first_seconds,
            }
            row |= timed[-1][1] | {"peak_bytes": peak_bytes(options.device)}
        except (RuntimeError, ValueError, ImportError) as error:
            row["reason"] = f"{type(error).__name__}: {error}"[:300]
        rows.append(row)
        keep(result)
        print(", ".join(f"{key} {value}" for key, value in row.items()), file=sys.stderr)
        call = _nothing  # frees the engine before the next row
    peers = [
        row["tokens_per_second"]
        for row in rows
        if "transformers" in row["implementation"] and "reason" not in row
    ]
    for row in rows:
        if peers and "reason" not in row:
            row["times_transformers"] = row["tokens_per_second"] / max(peers)
    return result


def implementations(options: argparse.Namespace) -> dict[str, Callable[..., Call]]:
    """Functions (model, options) that prepare a call, by the name of the implementation."""
    makers: dict[str, Callable[..., Call]] = {"ours, RingEngine": ours}
    if options.device == "cuda":
        makers["ours, without the graph"] = partial(ours, graph=False)
        makers["ours, without graph and kernels"] = partial(ours, graph=False, kernels=False)
    makers["transformers generate, DynamicCache"] = partial(transformers_generate, cache=None)
    if options.static:
        makers["transformers generate, static cache"] = partial(
            transformers_generate, cache="static"
        )
    return makers


def _nothing() -> dict[str, Callable[[], float]]:
    return {}


def _time_call(call: Call, device: str) -> tuple[float, dict[str, float]]:
    """Seconds of `call`, and its other measures, which are computed after the clock has stopped."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    measures = call()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    return seconds, {name: compute() for name, compute in measures.items()}


def ours(model: MoxinForCausalLM, options: argparse.Namespace, **choices: Any) -> Call:
    """Our ring engine; `choices` are options of `RingEngine`."""
    from moxin_lab.reasoning.ring_engine import RingEngine
    from moxin_lab.reasoning.rollout import SamplingSettings

    num_rows = options.prompts * options.num_generations
    engine = RingEngine(model, eos_token_id=-1, pad_token_id=0, max_rows=num_rows, **choices)
    prompts = random_text(model, options.prompts, options.prompt_tokens).tolist()
    sampling = SamplingSettings(options.num_generations, options.new_tokens)

    def call() -> dict[str, Callable[[], float]]:
        rollout = engine.generate(prompts, sampling, seed=0)
        return {"log_prob_error": partial(_log_prob_error, model, rollout)}

    return call


def _log_prob_error(model: MoxinForCausalLM, rollout: Rollout) -> float:
    """Largest difference of log-probabilities to transformers' in the first four rows."""
    import torch

    peer, worst = make_peer(model), 0.0
    for row, prompt in enumerate(rollout.prompt_ids[:4]):
        tokens = torch.tensor(rollout.tokens(row), device=peer.device)
        ids = torch.cat((torch.tensor(prompt, device=peer.device), tokens))
        with torch.inference_mode():
            logits = peer(ids[None]).logits[0, len(prompt) - 1 : -1].float()
        # [T, V] -> [T], the log-probabilities of the sampled tokens
        expected = logits.log_softmax(dim=-1).gather(-1, tokens[:, None])[:, 0].cpu()
        difference = expected - rollout.log_probs[row, : len(expected)]
        worst = max(worst, difference.abs().max().item())
    return worst


def transformers_generate(
    model: MoxinForCausalLM, options: argparse.Namespace, cache: str | None
) -> Call:
    """transformers' `generate` on the same weights; cache: its `cache_implementation`."""
    import torch
    from transformers import GenerationConfig

    peer = make_peer(model)
    ids = random_text(model, options.prompts, options.prompt_tokens).repeat_interleave(
        options.num_generations, dim=0
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

    def call() -> dict[str, Callable[[], float]]:
        # Compiled code cannot run on inference tensors.
        with torch.inference_mode(cache is None), torch.no_grad():
            output = peer.generate(ids, attention_mask=mask).cpu()
        num_generated = output.shape[1] - ids.shape[1]
        if num_generated != options.new_tokens:
            raise RuntimeError(
                f"{num_generated} tokens were generated instead of {options.new_tokens}"
            )
        return {}

    return call
