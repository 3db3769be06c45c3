"""`moxin-lab bench overlap`: seconds per GRPO step if rollouts are sampled before each training
step, and if they are sampled during it.

    moxin-lab bench overlap --device cuda --json FILE
    moxin-lab bench overlap --device cpu --width tiny --prompts 2 --num-generations 4 \
        --new-tokens 12

Rows: `train_grpo` (rollout and training one after the other), and `train_overlapped` with the
sampler on the device of the training (in a stream of its own) and, if there is a second GPU, on
that. All rows train the same random weights with the decoupled objective on equally many
completions; the end token is disabled, so that all completions have the same length, and the reward
takes no time. Steps in the middle of a run are counted, from the end of one to the end of another:
the first (compilation, graph capture) and the last (nothing left to sample) are not.

`modelled_times_synchronous` is the speed-up that `asynchronous.modelled_seconds` predicts from the
stages of the first row with one device for each; the picture of notebook 06 uses it.

Guarantees: a row that cannot run holds its reason; all rows have the same sizes and weights.
Out of scope: what staleness costs in reward (notebook 06 measures it); judging answers.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moxin_lab.bench import free_memory, peak_bytes
from moxin_lab.bench.generation import add_rollout_arguments, make_model, random_text
from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    import pandas as pd

    from moxin_lab.model.decoder import MoxinForCausalLM
    from moxin_lab.reasoning.grpo_trainer import Problem


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rollout_arguments(parser, prompts=32, prompt_tokens=48, new_tokens=96)
    parser.add_argument(
        "--micro-batch",
        type=int,
        default=128,
        help="completions per forward and backward pass (default 128)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=16,
        help="steps per run (default 16); 2 x staleness + 2 of them are not counted",
    )
    parser.add_argument(
        "--staleness", type=int, default=2, help="rollouts sampled ahead (default 2)"
    )
    parser.add_argument(
        "--decoding",
        default="graph",
        help="graph (default), kernels or plain: see ring_engine.engine_options",
    )
    parser.add_argument(
        "--rollout-device",
        action="append",
        help="device of the sampler; repeat it for several rows (default: up to two GPUs)",
    )


class TextlessTokenizer:
    """The part of a tokenizer that training uses, without an end token and without text."""

    eos_token_id, pad_token_id = -1, 0

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [""] * len(rows)


@keeping("overlap")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: arrangement, sampler, steps, seconds_per_step, times_synchronous (speed relative to the
    synchronous row), modelled_times_synchronous, waited_s (seconds per step of waiting for
    completions), staleness (mean), whole_s (seconds of the run), peak_bytes, reason. Raises
    ValueError if fewer than two steps could be counted.
    """
    import torch

    from moxin_lab.reasoning.asynchronous import modelled_seconds, stage_seconds

    first, last = options.staleness + 2, options.steps - options.staleness
    if last - first < 2:
        raise ValueError(
            f"{options.steps} steps leave {last - first} to count: "
            f"give {first + options.staleness + 2} or more"
        )
    base = make_model(options, torch.float32)
    devices = options.rollout_device or (
        [f"cuda:{index}" for index in range(min(2, torch.cuda.device_count()))]
        if options.device == "cuda"
        else ["cpu"]
    )
    sizes = {
        "prompts": options.prompts,
        "samples": options.num_generations,  # the key of committed files
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "staleness": options.staleness,
    }
    rows: list[dict[str, Any]] = []
    result = {"width": options.width, **sizes, "rows": rows}
    for sampler in (None, *devices):
        row = {
            "arrangement": "overlapped" if sampler else "one after the other",
            "sampler": sampler or "the training's",
        }
        free_memory(options.device)
        try:
            log, stamps = _train(base, options, sampler)
        except (RuntimeError, ValueError) as error:
            rows.append(row | {"reason": f"{type(error).__name__}: {error}"[:300]})
            keep(result)
            continue
        seconds = (stamps[last] - stamps[first]) / (last - first)
        row |= {
            "steps": last - first,
            "seconds_per_step": seconds,
            "staleness": float(log["staleness"].mean()),
        }
        row |= {
            "waited_s": float(log["seconds/rollout"][first:last].mean()),
            "whole_s": stamps[-1] - stamps[0],
        }
        row["peak_bytes"] = peak_bytes(options.device)
        if sampler is None:
            parts = stage_seconds(log)[first:last]
            overlapped_seconds = modelled_seconds(parts["made"], parts["read"], options.staleness)[
                -1
            ]
            row["modelled_times_synchronous"] = float(parts.sum().sum() / overlapped_seconds)
        elif "seconds_per_step" in rows[0]:
            row["times_synchronous"] = rows[0]["seconds_per_step"] / seconds
        rows.append(row)
        keep(result)
        print(", ".join(f"{name} {value}" for name, value in row.items()), file=sys.stderr)
    return result


def _train(
    base: MoxinForCausalLM, options: argparse.Namespace, sampler: str | None
) -> tuple[pd.DataFrame, list[float]]:
    """The log of one run, and the times of its start and of the end of each step, in seconds."""
    from moxin_lab.reasoning.asynchronous import train_overlapped
    from moxin_lab.reasoning.grpo_trainer import GRPOSettings, Problem, train_grpo

    on_gpu = options.device == "cuda"
    settings = GRPOSettings(
        steps=options.steps,
        prompts_per_step=options.prompts,
        num_generations=options.num_generations,
        max_completion_length=options.new_tokens,
        temperature=1.0,
        precision="bf16-mixed" if on_gpu else "32-true",
        micro_batch_examples=options.micro_batch,
        checkpoint_every_steps=options.steps + 1,
        staleness=options.staleness if sampler else 0,
        correction="decoupled",
    )
    ids = random_text(base, options.prompts * 2, options.prompt_tokens).tolist()
    problems = [Problem(prompt, "") for prompt in ids]

    def reward(problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        # Rewards of a group must differ, or its advantages are zero.
        return [float(index % 2) for index in range(len(texts))]

    stamps = [time.perf_counter()]
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "seed": 0,
            "progress": lambda *_: stamps.append(time.perf_counter()),
            "decoding": options.decoding,
            "trainer_options": {} if on_gpu else {"accelerator": "cpu"},
        }
        model = copy.deepcopy(base)
        if sampler is None:
            log = train_grpo(
                model,
                TextlessTokenizer(),
                problems,
                reward,
                settings,
                resume_folder=Path(folder),
                **common,
            )
        else:
            log = train_overlapped(
                model,
                TextlessTokenizer(),
                problems,
                reward,
                settings,
                folder=Path(folder),
                device=sampler,
                **common,
            )
    return log, stamps
