"""`moxin-lab bench train-step`: a training step, ours and transformers' `MistralForCausalLM`, same
weights, tokens, optimizer.

A step is forward, mean cross-entropy over the next tokens, backward, AdamW: PyTorch's fused one for
the peers, for ours the one that our trainings take (on a GPU a kernel of our own), and once
PyTorch's, to see what ours saves. `first_losses` are those of the first three steps from the same
weights, so that a reader sees that every row does the same work.

    moxin-lab bench train-step --scale tiny --device cpu --json FILE                      # the tiny model's own step
    moxin-lab bench train-step --width full --blocks 8 --batch 2 --sequence 4096 --device cuda --json FILE

Guarantees: useful operations are `training_flops_per_token` (6 for each weight of a matrix product
plus attention's pairs inside the window, backward twice forward, nothing for recomputation); the
share of peak is printed only for a GPU whose peak is known here. On the CPU rows take turns, one
step each a round, so that a busy moment does not fall on one row alone; on a GPU one row is in
memory at a time.
Does not: packed documents (transformers has no mask for them here), activation checkpointing, or
several devices.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

Step = Callable[[], Any]
Optimizer = Callable[..., Any]
FUSED = "fused loss"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scale", "--width", default="tiny", help="whose shape: tiny (default), small or full"
    )
    parser.add_argument(
        "--blocks", type=int, default=None, help="number of blocks (default: the scale's)"
    )
    parser.add_argument(
        "--batch", type=int, default=None, help="rows (default: the first phase's step; full: 2)"
    )
    parser.add_argument(
        "--sequence",
        type=int,
        default=None,
        help="tokens a row (default: the first phase's; full: 4096)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default=None, help="default: bfloat16 on a GPU"
    )
    parser.add_argument(
        "--loss-chunk", type=int, default=None, help="tokens of a chunk of the fused loss"
    )
    parser.add_argument("--backend", default="auto", help="our attention back end (default auto)")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps a row (default 10)")
    parser.add_argument(
        "--only",
        default="",
        metavar="WORDS",
        help="only rows whose name contains one of these, by commas",
    )
    parser.add_argument(
        "--compile-on-cpu",
        action="store_true",
        help="compiled rows on the CPU too, which take minutes to compile",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Rows: implementation, median_ms, tokens_per_second, model_flops_utilisation, peak_bytes,
    first_step_seconds, first_losses, reason.
    """
    import torch

    from moxin_lab.model.config import training_flops_per_token
    from moxin_lab.model.decoder import MoxinForCausalLM

    config, batch, sequence = shape(options)
    dtype = getattr(torch, options.dtype or ("bfloat16" if options.device == "cuda" else "float32"))
    tokens = torch.randint(
        config.vocab_size, (batch, sequence), generator=torch.Generator().manual_seed(0)
    )
    with torch.device(options.device):
        model = MoxinForCausalLM(config, attention_backend=options.backend)
    model.init_weights(torch.Generator(options.device).manual_seed(0))
    start = {name: tensor.detach().to(dtype).cpu() for name, tensor in model.state_dict().items()}
    del model
    flops = training_flops_per_token(config, sequence) * tokens.numel()
    jobs = [
        job
        for job in implementations(config, options)
        if any(word in job[0] for word in options.only.split(","))
    ]
    measured = (together if options.device == "cpu" else one_by_one)(
        jobs, start, tokens, dtype, options
    )
    peak = device_peak(options.device)
    rows = []
    for (name, *_), values in zip(jobs, measured, strict=True):
        seconds = values.pop("median_seconds", None)
        row: dict[str, Any] = {"implementation": name}
        if seconds is not None:
            row |= {"median_ms": seconds * 1000, "tokens_per_second": tokens.numel() / seconds}
            row["model_flops_utilisation"] = flops / seconds / peak if peak else None
        rows.append(row | values)
    counted = sum(tensor.numel() for tensor in start.values())
    about = {
        "scale": options.scale,
        "blocks": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "parameters": counted,
        "batch": batch,
        "sequence": sequence,
        "dtype": str(dtype).removeprefix("torch."),
        "optimizer": "AdamW",
        "flops_per_step": flops,
        "peak_flops": peak,
    }
    return {"settings": about, "rows": rows}


def shape(options: argparse.Namespace) -> tuple[Any, int, int]:
    """Configuration, rows and tokens a row, from the scale and what the command line changes."""
    from moxin_lab import scales
    from moxin_lab.model.config import MoxinConfig

    scale = scales.load(options.scale)
    values = scale.model.model_dump()
    if options.blocks is not None:
        values["num_hidden_layers"] = options.blocks
    config = MoxinConfig(vocab_size=scale.tokenizer.vocab_size, **values)
    sequence = options.sequence or (
        4096 if options.scale == "full" else scale.pretraining.phases[0].sequence_length
    )
    rows = 2 if options.scale == "full" else max(1, scale.pretraining.tokens_per_step // sequence)
    return config, options.batch or rows, sequence


def device_peak(device: str) -> float | None:
    """Dense bf16 operations a second that the maker states for this GPU; None where none is known."""
    import torch

    from moxin_lab.pretraining.tables import PEAKS

    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    known = {**PEAKS, "H200": PEAKS["H100"]}  # the same processor with other memory
    return next((peak for gpu, peak in known.items() if gpu in name), None)


# ---- the implementations: each builds a model with the given weights and returns its loss as a
# function of the tokens


def implementations(
    config: Any, options: argparse.Namespace
) -> list[tuple[str, Callable[..., Any], bool, Optimizer]]:
    """(name, build, compiled, optimizer): `build(start, tokens, dtype)` returns the module and a
    function that gives the loss.
    """
    from moxin_lab.training.optimizer import build_adamw

    chunk = options.loss_chunk or (4096 if options.device == "cuda" else 512)

    def ours(compiled: str, fused: bool) -> Callable[..., Any]:
        return lambda *arguments: build_ours(
            config, options, compiled, chunk if fused else None, *arguments
        )

    def theirs(attention: str, compiled: bool) -> Callable[..., Any]:
        return lambda *arguments: build_theirs(
            config, options.device, attention, compiled, *arguments
        )

    whole = ours("whole", True)
    jobs = [
        ("ours, eager", ours("no", False), False, build_adamw),
        (f"ours, eager, {FUSED}", ours("no", True), False, build_adamw),
        ("ours, compiled blocks", ours("blocks", False), True, build_adamw),
        (f"ours, compiled blocks, {FUSED}", ours("blocks", True), True, build_adamw),
        (f"ours, compiled whole, {FUSED}", whole, True, build_adamw),
        ("transformers, sdpa, eager", theirs("sdpa", False), False, torch_adamw),
        ("transformers, sdpa, compiled", theirs("sdpa", True), True, torch_adamw),
        (
            "transformers, flex_attention, compiled",
            theirs("flex_attention", True),
            True,
            torch_adamw,
        ),
    ]
    if options.device == "cuda":
        jobs.insert(
            5, (f"ours, compiled whole, {FUSED}, PyTorch's AdamW", whole, True, torch_adamw)
        )
    return jobs


def torch_adamw(groups: list[dict[str, Any]], **constants: Any) -> Any:
    import torch

    return torch.optim.AdamW(groups, **constants, fused=True)


def build_ours(
    config: Any,
    options: argparse.Namespace,
    compiled: str,
    chunk: int | None,
    start: dict,
    tokens: Any,
    dtype: Any,
) -> tuple[Any, Step]:
    import torch
    import torch.nn.functional as F

    from moxin_lab.model.decoder import MoxinForCausalLM
    from moxin_lab.training.loss import IGNORE_INDEX, linear_cross_entropy

    with torch.device("meta"):
        model = MoxinForCausalLM(config, attention_backend=options.backend)
    model.load_state_dict(
        {name: tensor.to(options.device, copy=True) for name, tensor in start.items()}, assign=True
    )
    model.requires_grad_(True).train()
    labels = F.pad(tokens[:, 1:], (0, 1), value=IGNORE_INDEX)
    states, loss_of = model.hidden_states, linear_cross_entropy
    if compiled == "blocks":
        for block in model.model.layers:
            block.compile(dynamic=False)
    if compiled == "whole":
        states = torch.compile(model.hidden_states, dynamic=False)
    if compiled != "no":
        loss_of = torch.compile(linear_cross_entropy, dynamic=False)

    def loss() -> Any:
        hidden = states(tokens)
        if chunk is not None:
            return loss_of(hidden, model.lm_head.weight, labels, chunk_tokens=chunk)
        logits = model.lm_head(hidden)
        return F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX
        )

    return model, loss


def build_theirs(
    config: Any, device: str, attention: str, compiled: bool, start: dict, tokens: Any, dtype: Any
) -> tuple[Any, Step]:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    peer_config = MistralConfig(**config.to_hf_dict(), attn_implementation=attention)
    with torch.device("meta"):
        model = MistralForCausalLM(peer_config)
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(
            peer_config
        )  # its buffer is no weight, so it is made anew
    model.load_state_dict(
        {name: tensor.to(device, copy=True) for name, tensor in start.items()},
        strict=True,
        assign=True,
    )
    model.requires_grad_(True).train()
    call = torch.compile(model, dynamic=False) if compiled else model
    return model, lambda: call(input_ids=tokens, labels=tokens, use_cache=False).loss


# ---- taking the time


def prepare(
    build: Callable[..., Any],
    build_optimizer: Optimizer,
    start: dict,
    tokens: Any,
    dtype: Any,
    options: argparse.Namespace,
) -> tuple[Step, dict[str, Any]]:
    """The step of one implementation, after its first three steps; with their losses and what the
    first one took.
    """
    model, loss_of = build(start, tokens.to(options.device), dtype)
    optimizer = build_optimizer(
        [{"params": list(model.parameters())}], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1
    )

    def step() -> Any:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    began = time.perf_counter()
    losses = [step().item()]
    first = time.perf_counter() - began
    losses += [step().item() for _ in range(2)]
    return step, {
        "first_step_seconds": round(first, 2),
        "first_losses": [round(loss, 5) for loss in losses],
    }


def one_by_one(
    jobs: list, start: dict, tokens: Any, dtype: Any, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """GPU: a row is built, timed and freed before the next one."""
    import torch

    from moxin_lab.bench import free_memory, median_seconds, peak_bytes

    measured: list[dict[str, Any]] = []
    for name, build, _, optimizer in jobs:
        torch.compiler.reset()  # graphs of an earlier row would count against the limit of recompilations
        free_memory(options.device)
        print(f"  {name}", file=sys.stderr)
        try:
            step, values = prepare(build, optimizer, start, tokens, dtype, options)
            seconds = median_seconds(step, device=options.device, warmup=3, repeats=options.repeats)
            measured.append(
                {"median_seconds": seconds, "peak_bytes": peak_bytes(options.device), **values}
            )
            del step
        except (RuntimeError, ValueError, ImportError) as error:
            measured.append(
                {"reason": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            )
    return measured


def together(
    jobs: list, start: dict, tokens: Any, dtype: Any, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """CPU: all rows in memory, one step each a round. `fastest_ms` is the least disturbed step of a
    row.
    """
    steps: list[Step | None] = []
    measured: list[dict[str, Any]] = []
    for name, build, compiled, optimizer in jobs:
        print(f"  {name}", file=sys.stderr)
        if "flex" in name:
            steps.append(None)
            measured.append({"reason": "FlexAttention has no backward on the CPU"})
        elif compiled and not options.compile_on_cpu:
            steps.append(None)
            measured.append({"reason": "not asked for: --compile-on-cpu"})
        else:
            step, values = prepare(build, optimizer, start, tokens, dtype, options)
            steps.append(step)
            measured.append(values)
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(options.repeats):
        for place, one in enumerate(steps):
            if one is not None:
                began = time.perf_counter()
                one()
                times[place].append(time.perf_counter() - began)
    return [
        values
        if not taken
        else {"median_seconds": statistics.median(taken), "fastest_ms": min(taken) * 1000, **values}
        for values, taken in zip(measured, times, strict=True)
    ]
