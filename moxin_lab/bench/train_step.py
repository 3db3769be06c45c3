"""`moxin-lab bench train-step`: a training step of ours and of transformers' `MistralForCausalLM`,
with the same weights, tokens and optimizer.

A step is forward, mean cross-entropy over the next tokens, backward, and AdamW. Peers use PyTorch's
fused AdamW; ours use the AdamW of our trainings (on a GPU a kernel of ours), and one row uses
PyTorch's, to show the difference. `first_losses` are the losses of the first three steps from the
same weights, which show that every row does the same work.

    moxin-lab bench train-step --scale tiny --device cpu --json FILE
    moxin-lab bench train-step --scale full --blocks 8 --batch 2 --sequence 4096 --device cuda \
        --json FILE

Guarantees: useful FLOPs are `training_flops_per_token` (6 for each weight of a matrix product plus
attention's pairs in the window, backward twice forward, nothing for recomputation); the share of
peak is computed only for GPUs whose peak is known here. On the CPU rows take turns, one step of
each per round, so that a busy moment does not affect a single row; on a GPU only one row is in
memory at a time.
Out of scope: packed documents (transformers has no mask for them here), activation checkpointing,
several devices.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from moxin_lab.model.config import MoxinConfig

Step = Callable[[], "Tensor"]
BuildOptimizer = Callable[..., "torch.optim.Optimizer"]
FUSED = "fused loss"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scale", "--width", default="tiny", help="scale of the shape: tiny (default), small, full"
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
        help="tokens per row (default: the first phase's; full: 4096)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default=None, help="default: bfloat16 on a GPU"
    )
    parser.add_argument(
        "--loss-chunk", type=int, default=None, help="tokens of a chunk of the fused loss"
    )
    parser.add_argument("--backend", default="auto", help="our attention backend (default auto)")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps per row (default 10)")
    parser.add_argument(
        "--only",
        default="",
        metavar="WORDS",
        help="only rows whose name contains one of these words, separated by commas",
    )
    parser.add_argument(
        "--compile-on-cpu",
        action="store_true",
        help="also measure compiled rows on the CPU, which take minutes to compile",
    )


@keeping("train-step")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
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
        if any(word in job.name for word in options.only.split(","))
    ]
    measure = measure_in_turns if options.device == "cpu" else measure_one_by_one
    peak = device_peak(options.device)
    settings = {
        "scale": options.scale,
        "blocks": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "parameters": sum(tensor.numel() for tensor in start.values()),
        "batch": batch,
        "sequence": sequence,
        "dtype": str(dtype).removeprefix("torch."),
        "optimizer": "AdamW",
        "flops_per_step": flops,
        "peak_flops": peak,
    }
    rows: list[dict[str, Any]] = []
    result = {"settings": settings, "rows": rows}
    for job, values in zip(jobs, measure(jobs, start, tokens, dtype, options), strict=True):
        seconds = values.pop("median_seconds", None)
        row: dict[str, Any] = {"implementation": job.name}
        if seconds is not None:
            row |= {"median_ms": seconds * 1000, "tokens_per_second": tokens.numel() / seconds}
            row["model_flops_utilisation"] = flops / seconds / peak if peak else None
        rows.append(row | values)
        keep(result)
    return result


def shape(options: argparse.Namespace) -> tuple[MoxinConfig, int, int]:
    """Configuration, number of rows and tokens per row: those of the scale, unless an option
    changes them.
    """
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
    """Dense bf16 FLOP/s of this GPU as stated by its maker; None if it is not known here."""
    from moxin_lab.pretraining import costs

    return costs.peak_of(costs.device_name()) if device == "cuda" else None


# ---- implementations


class Job(NamedTuple):
    """One row: `build(start, tokens, dtype)` returns a module with the weights `start` and a
    function that computes its loss.
    """

    name: str
    build: Callable[..., tuple[nn.Module, Step]]
    is_compiled: bool
    build_optimizer: BuildOptimizer


def implementations(config: MoxinConfig, options: argparse.Namespace) -> list[Job]:
    """All rows, ours first."""
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

    compiled_model, flex = ours("whole", True), theirs("flex_attention", True)
    jobs = [
        Job("ours, eager", ours("no", False), False, build_adamw),
        Job(f"ours, eager, {FUSED}", ours("no", True), False, build_adamw),
        Job("ours, compiled blocks", ours("blocks", False), True, build_adamw),
        Job(f"ours, compiled blocks, {FUSED}", ours("blocks", True), True, build_adamw),
        Job(f"ours, compiled whole, {FUSED}", compiled_model, True, build_adamw),
        Job("transformers, sdpa, eager", theirs("sdpa", False), False, torch_adamw),
        Job("transformers, sdpa, compiled", theirs("sdpa", True), True, torch_adamw),
        Job("transformers, flex_attention, compiled", flex, True, torch_adamw),
    ]
    if options.device == "cuda":
        name = f"ours, compiled whole, {FUSED}, PyTorch's AdamW"
        jobs.insert(5, Job(name, compiled_model, True, torch_adamw))
    return jobs


def torch_adamw(groups: list[dict[str, Any]], **constants: Any) -> torch.optim.Optimizer:
    """PyTorch's fused AdamW."""
    import torch

    return torch.optim.AdamW(groups, **constants, fused=True)


def build_ours(
    config: MoxinConfig,
    options: argparse.Namespace,
    compiled: str,
    chunk: int | None,
    start: dict[str, Tensor],
    tokens: Tensor,
    dtype: torch.dtype,
) -> tuple[nn.Module, Step]:
    """Our model. compiled: "no", "blocks" or "whole"; chunk: tokens per chunk of the fused loss,
    None for the plain one.
    """
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

    def loss() -> Tensor:
        hidden = states(tokens)
        if chunk is not None:
            return loss_of(hidden, model.lm_head.weight, labels, chunk_tokens=chunk)
        logits = model.lm_head(hidden)
        return F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX
        )

    return model, loss


def build_theirs(
    config: MoxinConfig,
    device: str,
    attention: str,
    compiled: bool,
    start: dict[str, Tensor],
    tokens: Tensor,
    dtype: torch.dtype,
) -> tuple[nn.Module, Step]:
    """transformers' model with its attention implementation `attention`."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    peer_config = MistralConfig(**config.to_hf_dict(), attn_implementation=attention)
    with torch.device("meta"):
        model = MistralForCausalLM(peer_config)
    # The buffer of the rotary embedding is not in the state dict, so it is built again off the meta
    # device.
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(peer_config)
    model.load_state_dict(
        {name: tensor.to(device, copy=True) for name, tensor in start.items()},
        strict=True,
        assign=True,
    )
    model.requires_grad_(True).train()
    call = torch.compile(model, dynamic=False) if compiled else model
    return model, lambda: call(input_ids=tokens, labels=tokens, use_cache=False).loss


# ---- timing


def prepare(
    job: Job,
    start: dict[str, Tensor],
    tokens: Tensor,
    dtype: torch.dtype,
    options: argparse.Namespace,
) -> tuple[Step, dict[str, Any]]:
    """The step of one implementation after its first three steps, with the losses of these and the
    seconds of the first.
    """
    model, compute_loss = job.build(start, tokens.to(options.device), dtype)
    optimizer = job.build_optimizer(
        [{"params": list(model.parameters())}], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1
    )

    def step() -> Tensor:
        loss = compute_loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    began = time.perf_counter()
    losses = [step().item()]
    first_step_seconds = time.perf_counter() - began
    losses += [step().item() for _ in range(2)]
    return step, {
        "first_step_seconds": round(first_step_seconds, 2),
        "first_losses": [round(loss, 5) for loss in losses],
    }


def measure_one_by_one(
    jobs: list[Job],
    start: dict[str, Tensor],
    tokens: Tensor,
    dtype: torch.dtype,
    options: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """On a GPU: each row is built, timed and freed before the next one."""
    import torch

    from moxin_lab.bench import free_memory, median_seconds, peak_bytes

    for job in jobs:
        # Graphs of earlier rows would count towards the limit of recompilations.
        torch.compiler.reset()
        free_memory(options.device)
        print(f"  {job.name}", file=sys.stderr)
        try:
            step, values = prepare(job, start, tokens, dtype, options)
            seconds = median_seconds(step, device=options.device, warmup=3, repeats=options.repeats)
            found = {"median_seconds": seconds, "peak_bytes": peak_bytes(options.device), **values}
            del step
        except (RuntimeError, ValueError, ImportError) as error:
            found = {"reason": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        yield found


def measure_in_turns(
    jobs: list[Job],
    start: dict[str, Tensor],
    tokens: Tensor,
    dtype: torch.dtype,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """On the CPU: all rows are in memory, and each round runs one step of each, so that all end
    together. `fastest_ms` is the least disturbed step of a row.
    """
    steps: list[Step | None] = []
    measured: list[dict[str, Any]] = []
    for job in jobs:
        print(f"  {job.name}", file=sys.stderr)
        if "flex" in job.name:
            steps.append(None)
            measured.append({"reason": "FlexAttention has no backward on the CPU"})
        elif job.is_compiled and not options.compile_on_cpu:
            steps.append(None)
            measured.append({"reason": "skipped without --compile-on-cpu"})
        else:
            step, values = prepare(job, start, tokens, dtype, options)
            steps.append(step)
            measured.append(values)
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(options.repeats):
        for index, run_step in enumerate(steps):
            if run_step is not None:
                began = time.perf_counter()
                run_step()
                times[index].append(time.perf_counter() - began)
    return [
        values
        if not seconds
        else {
            "median_seconds": statistics.median(seconds),
            "fastest_ms": min(seconds) * 1000,
            **values,
        }
        for values, seconds in zip(measured, times, strict=True)
    ]
