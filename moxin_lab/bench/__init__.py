"""`moxin-lab bench NAME`: measurements of speed and memory, ours and peers in one run, as JSON.

A bench is a module of this folder with `add_arguments(parser)` and `run(options) -> dict`;
`BENCHES` lists them. The dictionary holds `rows` (one measurement each) and whatever else the
reader of the file needs; `record` adds the machine, the versions, the date and the command.
Guarantees: times are medians over repeated calls after warm-up, on a GPU between device events; a
peer that cannot run is a row with its reason, never a missing row.
Does not: judge (the notebook and the reader do), test equality (tests do), or compare across
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
from typing import Any

BENCHES = {
    "attention": "attention back ends forward and backward, with FlexAttention, SDPA and flash-attn-4 as peers",
    "decode": "one token after a long text, with transformers as peer",
    "prefill": "reading a long text into the ring, with transformers as peer",
    "train-step": "one training step, with transformers as peer",
    "expansion": "32 blocks expanded to 36 by three recipes against training from scratch, at equal compute",
    "sft": "steps of supervised fine-tuning, with TRL's SFTTrainer as peer",
    "rollout": "completions sampled for GRPO, with transformers' generate as peer",
    "overlap": "GRPO steps whose rollouts are sampled meanwhile, on the same GPU or another, against one after the other",
    "towers": "images through the frozen vision towers, with plain timm and open_clip calls as peer",
    "verifier": "verdicts on answers, with Math-Verify, TRL's accuracy_reward and plain SymPy as peers",
}
PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "flash-attn-4",
    "nvidia-cutlass-dsl",
    "lightning",
    "trl",
    "math-verify",
)


def load(name: str) -> Any:
    """The module of a bench, by the name used on the command line."""
    return import_module(f"moxin_lab.bench.{name.replace('-', '_')}")


def machine(device: str) -> dict[str, Any]:
    """What the numbers were taken on: GPU or processor, versions, date in UTC, command."""

    import torch

    from moxin_lab import threads
    from moxin_lab.lab.environment import cpu_name

    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    described: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": threads.usable_cores(),
        "threads": torch.get_num_threads(),
    }
    if device == "cuda":
        free = torch.cuda.get_device_properties(0)
        described |= {
            "gpu": free.name,
            "gpu_memory_bytes": free.total_memory,
            "multiprocessors": free.multi_processor_count,
            "driver_cuda": torch.version.cuda,
        }
    return described | {
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def record(name: str, device: str, result: dict[str, Any]) -> dict[str, Any]:
    """`result` of a bench with what makes it readable later."""
    by_command_line = Path(sys.argv[0]).name in ("moxin-lab", "cli.py")
    # The file's name is enough for a reader who repeats the command; its folder was this machine's.
    words = [
        Path(word).name if before == "--json" else word
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
    """Median seconds of `call`, which must leave nothing behind that the next call trips over."""
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
    """Give back what an earlier row held, so that the next row's peak is its own."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: str) -> int | None:
    """Largest bytes allocated on the GPU since `free_memory`; None on the CPU."""
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def print_table(rows: list[dict[str, Any]]) -> None:
    """Rows as aligned text: one column a key, in order of first appearance."""
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
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default=None, help="default: cuda where there is one"
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write JSON there; without FILE, print it",
    )
