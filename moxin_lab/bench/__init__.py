"""`moxin-lab bench NAME`: speed and memory of ours and of peers, measured in one run, as JSON.

A bench is a module of this package with `add_arguments(parser)` and `run(options) -> dict`;
`BENCHES` lists them. The dictionary holds `rows` (one per measurement) and whatever else a reader
of the file needs; `record` adds the machine, the versions, the date and the command.

Guarantees: times are medians over repeated calls after a warm-up, on a GPU between device events; a
peer that cannot run is a row with its reason, never a missing row; a run that is cut keeps its rows
(`keeping.py`).
Out of scope: verdicts (notebooks and readers), tests of equality (tests/), comparisons across
machines.
"""

import argparse
import datetime
import gc
import itertools
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Protocol

BENCHES = {
    "attention": (
        "attention backends forward and backward, with FlexAttention, SDPA and flash-attn-4 as "
        "peers"
    ),
    "compression": (
        "a model pruned by magnitude, Wanda and 2:4, and quantised by torchao and as GGUF: "
        "held-out bits per byte and bytes"
    ),
    "curation": (
        "near-duplicates, filters and the whole of `slimpajama`: speed, memory, quality and cost, "
        "with rensa and datasketch as peers"
    ),
    "extraction": "HTML to text: characters kept by script, and speed, with trafilatura as peer",
    "decode": "one token after a long text, with transformers as peer",
    "prefill": "reading a long text into the ring, with transformers as peer",
    "train-step": "one training step, with transformers as peer",
    "pretraining": (
        "three phases on the corpus: the loop beside a bare step, bits per byte beside n-grams"
    ),
    "recipe": (
        "the choices of the pretraining recipe: a ladder of widths with its power law, ablations "
        "over seeds with intervals"
    ),
    "expansion": (
        "32 blocks expanded to 36 by three recipes, against training from scratch, at equal compute"
    ),
    "extension": (
        "SmolLM2-135M given the routed tokenizer's Chinese, Japanese and Korean experts: bits per "
        "byte before and after a short training of the new rows"
    ),
    "smollm2-expansion": (
        "SmolLM2-135M, 30 blocks expanded to 36 by three recipes and continued, against itself "
        "continued, at equal compute"
    ),
    "evaluation": "requests of lm-evaluation-harness, with its own `hf` adapter as peer",
    "sft": "steps of supervised fine-tuning, with TRL's SFTTrainer as peer",
    "rollout": "completions sampled for GRPO, with transformers' generate as peer",
    "grpo-variants": (
        "what keeps pass@8 while GRPO raises pass@1: one change of the recipe at a time, at equal "
        "samples, on validation questions"
    ),
    "overlap": (
        "GRPO steps with rollouts sampled during training, on the same or another GPU, against "
        "rollout and training one after the other"
    ),
    "scaling": (
        "sharded training on 1, 2, 4 and 8 GPUs: speed, memory, loss curve, resume on other counts"
    ),
    "serve": (
        "the server under streaming clients, and its scheduler beside the time to read the weights"
    ),
    "stores": "where a knowledge base is kept: SQLite beside LanceDB and DuckDB",
    "tokenizer": (
        "the routed tokenizer in tokens, speed and memory, with a joint BPE, Mistral's two, "
        "tiktoken, quicktok and gigatoken as peers"
    ),
    "tokenizer-designs": (
        "the routed tokenizer beside parity-aware BPE, SuperBPE and shipped vocabularies: tokens, "
        "Renyi efficiency, bits per byte of one small model at equal compute"
    ),
    "towers": (
        "images through the frozen vision towers, with plain timm and open_clip calls as peer"
    ),
    "verifier": (
        "verdicts on answers, with Math-Verify, TRL's accuracy_reward and plain SymPy as peers"
    ),
}
PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "flash-attn-4",
    "nvidia-cutlass-dsl",
    "lightning",
    "trl",
    "lm-eval",
    "math-verify",
    "resiliparse",
    "trafilatura",
    "daft",
    "rensa",
    "datasketch",
    "reasoning-gym",
    "tokenizers",
    "tiktoken",
    "quicktok-v1",
    "gigatoken",
    "torchao",
    "gguf",
    "lancedb",
    "duckdb",
)


OF_THIS_MACHINE = ("--json", "--picture", "--datatrove", "--cot", "--tokenizer", "--results")
"""Options whose value is a path."""


class Bench(Protocol):
    """What a module of this package defines."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the bench's own options."""

    def run(self, options: argparse.Namespace) -> dict[str, Any]:
        """Measure; returns `rows` and what else the file holds."""


def load(name: str) -> Bench:
    """The module of a bench, by its name on the command line."""
    return import_module(f"moxin_lab.bench.{name.replace('-', '_')}")


def machine(device: str) -> dict[str, Any]:
    """The machine of a measurement: GPU, processor, package versions, and the date in UTC."""

    import torch

    from moxin_lab import threads
    from moxin_lab.lab.environment import cpu_name

    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    description: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": threads.usable_cores(),
        "threads": torch.get_num_threads(),
    }
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        description |= {
            "gpu": gpu.name,
            "gpu_memory_bytes": gpu.total_memory,
            "multiprocessors": gpu.multi_processor_count,
            "driver_cuda": torch.version.cuda,
        }
    return description | {
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def record(name: str, device: str, result: dict[str, Any]) -> dict[str, Any]:
    """`result` of a bench together with its name, device, command and machine."""
    by_command_line = Path(sys.argv[0]).name in ("moxin-lab", "cli.py")
    # The file's name is enough to repeat the command; its folder belongs to this machine.
    words = [
        Path(word).name if before in OF_THIS_MACHINE else word
        for before, word in itertools.pairwise(sys.argv[1:])
    ]
    command = shlex.join(["moxin-lab", "bench", *words]) if by_command_line else name
    return {
        "bench": name,
        "device": device,
        "command": command,
        "machine": machine(device),
        **result,
    }


def median_seconds(
    call: Callable[[], Any], *, device: str, warmup: int = 3, repeats: int = 10
) -> float:
    """Median seconds of `call`. It is repeated, so one call must not affect the next."""
    import torch

    for _ in range(warmup):
        call()
    seconds = []
    if device == "cuda":
        events = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(repeats)
        ]
        torch.cuda.synchronize()
        for start, end in events:
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in events) / 1000
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def free_memory(device: str) -> None:
    """Free the memory of earlier rows and reset the peak, so that the next row measures its own."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: str) -> int | None:
    """Peak of the bytes allocated on the GPU since `free_memory`; None on the CPU."""
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def say(text: str) -> None:
    """Print a line of progress to standard error, at once."""
    print(text, file=sys.stderr, flush=True)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows as aligned text, one column per key, in order of first appearance."""
    columns: list[str] = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [
        max(len(column), *(len(line[i]) for line in cells)) if cells else len(column)
        for i, column in enumerate(columns)
    ]
    for line in [columns, *cells]:
        print(
            "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every bench."""
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default=None, help="default: cuda if available"
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write JSON to FILE, or print it if FILE is omitted",
    )
