"""`moxin-lab bench overlap`: seconds a GRPO step takes when sampling waits for learning, and when
it does not.

    moxin-lab bench overlap --device cuda --json FILE                  # 32 prompts x 8, 48 tokens of prompt, 96 new ones
    moxin-lab bench overlap --device cpu --width tiny --prompts 2 --samples 4 --new-tokens 12

Rows: `train_grpo` (one after the other), `train_overlapped` with the sampler on the training's
device (a stream of its own) and, where there is a second GPU, on that. All train the same random
weights by the decoupled objective on as many completions; the end token is switched off, so that
each has the same length, and the reward costs nothing. Counted are steps in the middle of a run,
from the end of one to the end of another: the first (compile, capture) and the last (nothing left
to sample) are not. `modelled_times_synchronous` is what `asynchronous.modelled_seconds` makes of
the first row's stages for a device each; notebook 06's picture rests on it. Does not: measure what
staleness costs in reward (notebook 06 does), or judge answers.
"""

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from moxin_lab.bench import free_memory, peak_bytes
from moxin_lab.bench.generation import make_model, random_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", default="small", help="whose shape: tiny, small (default), full")
    parser.add_argument("--prompts", type=int, default=32, help="prompts a step (default 32)")
    parser.add_argument("--samples", type=int, default=8, help="completions a prompt (default 8)")
    parser.add_argument(
        "--prompt-tokens", type=int, default=48, help="tokens of a prompt (default 48)"
    )
    parser.add_argument(
        "--new-tokens", type=int, default=96, help="generated tokens a row (default 96)"
    )
    parser.add_argument(
        "--micro-batch", type=int, default=128, help="completions trained together (default 128)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=16,
        help="steps of a run, of which 6 are not counted (default 16)",
    )
    parser.add_argument("--staleness", type=int, default=2, help="rollouts ahead (default 2)")
    parser.add_argument(
        "--decoding",
        default="graph",
        help="graph (default), kernels, plain: see rollout.engine_options",
    )
    parser.add_argument(
        "--rollout-device",
        action="append",
        help="only this device samples ahead; repeat for more (default: all there are)",
    )


class Words:
    """As much of a tokenizer as training needs: no end token, no text."""

    eos_token_id, pad_token_id = -1, 0

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [""] * len(rows)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Rows: arrangement, sampler, steps, seconds_per_step, times_synchronous,
    modelled_times_synchronous, waited_s (a step, for completions), staleness (mean), whole_s,
    peak_bytes, reason. Raises ValueError for fewer steps than are not counted.
    """
    import torch

    from moxin_lab.reasoning.asynchronous import modelled_seconds, stage_seconds

    first, last = options.staleness + 2, options.steps - options.staleness
    if last - first < 2:
        raise ValueError(
            f"{options.steps} steps leave {last - first} to count: give {first + options.staleness + 2} or more"
        )
    base = make_model(options, torch.float32)
    devices = options.rollout_device or (
        [f"cuda:{place}" for place in range(min(2, torch.cuda.device_count()))]
        if options.device == "cuda"
        else ["cpu"]
    )
    rows: list[dict[str, Any]] = []
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
            whole = modelled_seconds(parts["made"], parts["read"], options.staleness)[-1]
            row["modelled_times_synchronous"] = float(parts.sum().sum() / whole)
        elif "seconds_per_step" in rows[0]:
            row["times_synchronous"] = rows[0]["seconds_per_step"] / seconds
        rows.append(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), file=sys.stderr)
    sizes = {
        name: getattr(options, name)
        for name in ("prompts", "samples", "prompt_tokens", "new_tokens", "staleness")
    }
    return {"width": options.width, **sizes, "rows": rows}


def _train(base: Any, options: argparse.Namespace, sampler: str | None) -> tuple[Any, list[float]]:
    """The log of one run, and the time at its beginning and at the end of each step."""
    from moxin_lab.reasoning.asynchronous import train_overlapped
    from moxin_lab.reasoning.grpo_trainer import GRPOSettings, Problem, train_grpo

    on_gpu = options.device == "cuda"
    settings = GRPOSettings(
        steps=options.steps,
        prompts_per_step=options.prompts,
        num_generations=options.samples,
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

    def reward(problems: Any, texts: Any) -> list[float]:
        return [float(place % 2) for place in range(len(texts))]

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
                model, Words(), problems, reward, settings, resume_folder=Path(folder), **common
            )
        else:
            log = train_overlapped(
                model,
                Words(),
                problems,
                reward,
                settings,
                folder=Path(folder),
                device=sampler,
                **common,
            )
    return log, stamps
