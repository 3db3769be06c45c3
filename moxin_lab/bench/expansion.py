"""`moxin-lab bench expansion`: 32 blocks trained, then expanded to 36 or not, against 36 from
scratch, at equal compute.

A 32-block model (the stem) reads the first half of the budget. From it four arms go on with the
second half: 32 blocks continued, and 36 blocks by each recipe of `moxin_lab.model.expansion`. A
fifth arm is 36 blocks from random weights with the whole budget. The budget is counted in
floating-point operations (`training_flops_per_token`), so deeper arms take fewer steps and 32
continued reads the most text. All arms of a seed read the same rows in the same order, warm up
alike, keep the peak rate in the first half of their budget and follow a cosine to a tenth in the
second; old weights keep AdamW's moments, new blocks have none.

Guarantees: held-out text is the same for all arms and seeds; the second half of every arm costs at
most the budget and less than one step below it; an arm that is done is read from the work folder
and never run again, one made with other settings is refused.
Does not: freeze the old blocks (LLaMA Pro does), tune the rate by arm, or decide anything about 8
billion parameters.
"""

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

RECIPE_ARMS = ("identity", "interleaved", "top")
ARMS = ("32 continued", *(f"36 {recipe}" for recipe in RECIPE_ARMS), "36 from scratch")
STUDENT_T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided, by number of seeds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scale",
        default="tiny",
        help="tiny (default) or small: shape, data and optimizer of that scale",
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default 3)")
    parser.add_argument(
        "--steps",
        type=int,
        default=60,
        help="steps of the 32-block stem, half of the budget (default 60)",
    )
    parser.add_argument("--tokens-per-step", type=int, default=None, help="default: the scale's")
    parser.add_argument(
        "--heldout-bytes",
        type=int,
        default=20_000,
        help="held-out text by language (default 20,000)",
    )
    parser.add_argument(
        "--work",
        default=None,
        metavar="FOLDER",
        help="results by arm (default: runs/<scale>/expansion)",
    )
    parser.add_argument(
        "--runs",
        default=None,
        metavar="FOLDER",
        help="where `documents` and `tokenizer` lie (default: runs/<scale>)",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One row an arm and seed, the differences to `32 continued` paired by seed, and what was done."""
    plan = make_plan(options)
    work = Path(options.work) if options.work else plan.runs / "expansion"
    work.mkdir(parents=True, exist_ok=True)
    data = load_data(plan)
    total, done = options.seeds * len(ARMS), 0
    rows = []
    for seed in range(options.seeds):
        for arm in ARMS:
            rows.append(run_arm(plan, data, seed, arm, work, options.device))
            done += 1
            print(
                f"[{done}/{total}] seed {seed}, {arm}: {rows[-1]['bits_per_byte']:.4f} bits a byte",
                file=sys.stderr,
            )
        stem_path(work, seed).unlink(missing_ok=True)  # every arm of the seed is done
    return {
        "settings": plan.settings,
        "compute": compute(plan),
        "rows": rows,
        "differences": paired_differences(rows),
    }


# ---- what is run


def make_plan(options: argparse.Namespace) -> SimpleNamespace:
    """Settings of the whole run; steps of each arm from equal compute. Raises ValueError, LabError
    before any work.
    """
    from moxin_lab import scales
    from moxin_lab.lab.artifacts import LabError, find_root
    from moxin_lab.model.config import training_flops_per_token

    if options.seeds < 1 or options.steps < 2:
        raise LabError(
            f"--seeds {options.seeds} must be at least 1 and --steps {options.steps} at least 2"
        )
    scale = scales.load(options.scale)
    runs = (
        Path(options.runs)
        if options.runs
        else find_root(options.root or ".") / "runs" / options.scale
    )
    phase = scale.pretraining.phases[0]
    tokens_per_step = options.tokens_per_step or scale.pretraining.tokens_per_step
    config = model_config(scale, 32, vocab_size=scale.tokenizer.vocab_size)
    flops = {
        depth: training_flops_per_token(
            model_config(scale, depth, vocab_size=config.vocab_size), phase.sequence_length
        )
        for depth in (32, 36)
    }
    half = options.steps * flops[32]
    steps = {
        "stem": options.steps,
        "32 continued": options.steps,
        **{f"36 {recipe}": int(half // flops[36]) for recipe in RECIPE_ARMS},
        "36 from scratch": int(2 * half // flops[36]),
    }
    settings = {
        "scale": options.scale,
        "steps": steps,
        "tokens_per_step": tokens_per_step,
        "sequence_length": phase.sequence_length,
        "mixture": phase.mixture,
        "learning_rate": scale.pretraining.learning_rate,
        "warmup_steps": min(scale.pretraining.warmup_steps, options.steps // 3),
        "heldout_bytes_per_language": options.heldout_bytes,
        "precision": "bf16 autocast" if options.device == "cuda" else "float32",
    }
    return SimpleNamespace(
        scale=scale, runs=runs, phase=phase, flops=flops, steps=steps, settings=settings
    )


def model_config(scale: Any, depth: int, *, vocab_size: int) -> Any:
    from moxin_lab.model.config import MoxinConfig

    return MoxinConfig(
        vocab_size=vocab_size, **{**scale.model.model_dump(), "num_hidden_layers": depth}
    )


def compute(plan: SimpleNamespace) -> list[dict[str, Any]]:
    """Floating-point operations of each arm from the first step on, the stem's included where it
    has one.
    """
    rows = []
    stem = plan.steps["stem"] * plan.flops[32]
    for arm in ARMS:
        flops = plan.steps[arm] * plan.flops[int(arm[:2])] + (
            0 if arm.endswith("scratch") else stem
        )
        steps = plan.steps[arm] + (0 if arm.endswith("scratch") else plan.steps["stem"])
        tokens_per_step = plan.settings["tokens_per_step"]
        rows.append(
            {
                "arm": arm,
                "steps": steps,
                "tokens": steps * tokens_per_step,
                "flops": flops * tokens_per_step,
            }
        )
    return rows


def load_data(plan: SimpleNamespace) -> SimpleNamespace:
    """Training pools and held-out documents from the artifacts of stages 01 and 02."""
    import pandas as pd
    from transformers import AutoTokenizer

    from moxin_lab.evaluation import heldout
    from moxin_lab.evaluation.bits_per_byte import encode_documents
    from moxin_lab.lab.artifacts import LabError
    from moxin_lab.pretraining import packing

    documents = plan.runs / "01_data_curation" / "documents"
    tokenizer_folder = plan.runs / "02_tokenizer" / "tokenizer"
    for folder, stage in ((documents, "01"), (tokenizer_folder, "02")):
        if not folder.is_dir():
            raise LabError(
                f"{folder} is missing: moxin-lab run --scale {plan.settings['scale']} --only {stage}"
            )
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    if len(tokenizer) != plan.scale.tokenizer.vocab_size:
        raise LabError(
            f"{tokenizer_folder} has {len(tokenizer)} tokens, the scale {plan.scale.tokenizer.vocab_size}"
        )
    train = pd.read_parquet(documents / "train.parquet")
    texts = heldout.choose(
        pd.read_parquet(documents / "heldout.parquet"),
        bytes_per_language=plan.settings["heldout_bytes_per_language"],
        seed=0,
    )
    return SimpleNamespace(
        pools=packing.tokenize_pools(train, tokenizer),
        heldout=encode_documents(tokenizer, texts["text"].tolist()),
        languages=texts["language"].tolist(),
        num_bytes=texts["num_bytes"].to_numpy(),
    )


# ---- one arm


def stem_path(work: Path, seed: int) -> Path:
    return work / f"seed{seed}-stem.pt"


def run_arm(
    plan: SimpleNamespace, data: SimpleNamespace, seed: int, arm: str, work: Path, device: str
) -> dict[str, Any]:
    """The row of one arm: read if its file is there, else trained, measured and written."""
    import torch

    from moxin_lab.lab.artifacts import LabError
    from moxin_lab.model.decoder import MoxinForCausalLM
    from moxin_lab.model.expansion import expand

    path = work / f"seed{seed}-{arm.replace(' ', '-')}.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["settings"] != plan.settings:
            raise LabError(
                f"{path} was made with other settings: give another --work folder, or delete this one"
            )
        return kept["row"]
    first, steps = 0, plan.steps[arm]
    if arm == "36 from scratch":
        config = model_config(plan.scale, 36, vocab_size=plan.scale.tokenizer.vocab_size)
        model = MoxinForCausalLM(config, generator=torch.Generator().manual_seed(seed)).to(device)
        state: dict[str, Any] = {}
    else:
        model, state = load_stem(plan, data, seed, work, device)
        first = plan.steps["stem"]
        if arm != "32 continued":
            recipe = arm.split()[1]
            deeper = expand(model, 36, recipe)
            state = carry_moments(deeper, state, recipe)
            model = deeper
    at_start = measure(model, data, plan, device)["bits_per_byte"]
    log, _ = train(
        model, plan, data, seed, first=first, steps=steps, moments=state, device=device, words=arm
    )
    row = {
        "seed": seed,
        "arm": arm,
        **measure(model, data, plan, device),
        "bits_per_byte_at_start": at_start,
        **log,
    }
    path.write_text(
        json.dumps({"settings": plan.settings, "row": row}, indent=1) + "\n", encoding="utf-8"
    )
    return row


def load_stem(
    plan: SimpleNamespace, data: SimpleNamespace, seed: int, work: Path, device: str
) -> tuple[Any, dict]:
    """The 32-block model after the first half of the budget, and AdamW's state by parameter name;
    trained if need be.
    """
    import torch

    from moxin_lab.model.decoder import MoxinForCausalLM

    config = model_config(plan.scale, 32, vocab_size=plan.scale.tokenizer.vocab_size)
    model = MoxinForCausalLM(config, generator=torch.Generator().manual_seed(seed)).to(device)
    path = stem_path(work, seed)
    kept = torch.load(path, map_location=device, weights_only=True) if path.exists() else None
    if kept is None or kept["settings"] != plan.settings:
        _, moments = train(
            model,
            plan,
            data,
            seed,
            first=0,
            steps=plan.steps["stem"],
            moments={},
            device=device,
            words="stem",
        )
        kept = {"settings": plan.settings, "weights": model.state_dict(), "moments": moments}
        torch.save(kept, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
    model.load_state_dict(kept["weights"])
    return model, {
        name: {k: v.clone() for k, v in state.items()} for name, state in kept["moments"].items()
    }


def carry_moments(deeper: Any, moments: dict[str, Any], recipe: str) -> dict[str, Any]:
    """AdamW's state of the old parameters under their names in the deeper model; new blocks have
    none.
    """
    from moxin_lab.model.expansion import layer_plan

    carried = {
        name: state for name, state in moments.items() if not name.startswith("model.layers.")
    }
    for layer, (source, is_new) in enumerate(layer_plan(32, 36, recipe)):
        if not is_new:
            prefix = f"model.layers.{source}."
            for name, state in moments.items():
                if name.startswith(prefix):
                    carried[f"model.layers.{layer}.{name.removeprefix(prefix)}"] = state
    return carried


def rate(step: int, plan: SimpleNamespace, arm_steps: int, half: int) -> float:
    """Share of the peak at `step` of an arm of `arm_steps` in all: warm-up, level to `half`, then
    cosine to a tenth.
    """
    warmup = plan.settings["warmup_steps"]
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step < half:
        return 1.0
    done = (step - half + 1) / (arm_steps - half)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def train(
    model: Any,
    plan: SimpleNamespace,
    data: SimpleNamespace,
    seed: int,
    *,
    first: int,
    steps: int,
    moments: dict[str, Any],
    device: str,
    words: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train in place from step `first` of the seed's stream; returns loss by step and seconds, and
    AdamW's state by name.
    """
    import torch

    from moxin_lab.pretraining.packing import TrainingStream
    from moxin_lab.pretraining.trainer import adamw, token_loss

    settings = plan.scale.pretraining
    longest = plan.steps["stem"] + plan.steps["32 continued"]
    phase = SimpleNamespace(
        name="expansion",
        steps=longest,
        sequence_length=plan.phase.sequence_length,
        mixture=plan.phase.mixture,
    )
    stream = TrainingStream(
        data.pools, [phase], tokens_per_step=plan.settings["tokens_per_step"], seed=seed
    )
    parts = max(1, plan.settings["tokens_per_step"] // settings.micro_batch_tokens)
    optimizer = adamw(model, settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if names[id(parameter)] in moments:
                optimizer.state[parameter] = moments[names[id(parameter)]]
    whole = words == "36 from scratch"
    arm_steps, half = (steps, steps // 2) if whole else (first + steps, plan.steps["stem"])
    model.train()
    losses, began = [], time.monotonic()
    for step in range(first, first + steps):
        share = (
            1.0
            if words == "stem" and step >= plan.settings["warmup_steps"]
            else rate(step, plan, arm_steps, half)
        )
        for group in optimizer.param_groups:
            group["lr"] = share * settings.learning_rate
        total = 0.0
        for part in range(parts):
            batch = {
                name: torch.from_numpy(array).to(device)
                for name, array in stream.batch(step, part=part, parts=parts).items()
            }
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = token_loss(model, batch) / batch["num_targets"]
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(total):
            raise ArithmeticError(f"{words}, seed {seed}: the loss of step {step} is {total}")
        losses.append(total)
        if step == first or (step + 1) % 10 == 0:
            print(
                f"  seed {seed}, {words}: step {step + 1}/{first + steps}, loss {total:.3f}",
                file=sys.stderr,
            )
    state = {names[id(parameter)]: dict(values) for parameter, values in optimizer.state.items()}
    means = [
        round(statistics.fmean(losses[start : start + 10]), 4)
        for start in range(0, len(losses), 10)
    ]
    log = {
        "first_step": first,
        "steps": steps,
        "loss_by_ten_steps": means,
        "seconds": round(time.monotonic() - began, 1),
    }
    return log, state


def measure(
    model: Any, data: SimpleNamespace, plan: SimpleNamespace, device: str
) -> dict[str, Any]:
    """Held-out bits per byte over all documents, and by language."""
    import numpy as np

    from moxin_lab.evaluation.bits_per_byte import bits_per_byte, document_losses

    model.eval()
    nats = document_losses(
        model, data.heldout, context=plan.settings["sequence_length"], device=device
    )
    languages = np.array(data.languages)
    return {
        "bits_per_byte": bits_per_byte(nats, data.num_bytes),
        "by_language": {
            str(name): bits_per_byte(nats[languages == name], data.num_bytes[languages == name])
            for name in sorted(set(data.languages))
        },
    }


# ---- what it says


def paired_differences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bits per byte of each 36-block arm minus `32 continued` of the same seed: mean, 95 % interval
    (Student's t), each seed.

    With three seeds the interval is 4.3 standard errors wide on either side: it can show a
    difference that is large beside the spread between seeds, and never that there is none. The
    interval is None where one seed gives no spread.
    """
    by_arm = {
        arm: {row["seed"]: row["bits_per_byte"] for row in rows if row["arm"] == arm}
        for arm in ARMS
    }
    found = []
    for arm in ARMS[1:]:
        differences = [by_arm[arm][seed] - by_arm[ARMS[0]][seed] for seed in sorted(by_arm[arm])]
        mean, interval = statistics.fmean(differences), None
        if len(differences) > 1:
            spread = statistics.stdev(differences) / len(differences) ** 0.5
            spread *= STUDENT_T_95.get(len(differences), 2.571)
            interval = [mean - spread, mean + spread]
        found.append(
            {
                "arm": arm,
                "against": ARMS[0],
                "mean": mean,
                "interval": interval,
                "by_seed": differences,
            }
        )
    return found
