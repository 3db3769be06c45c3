"""`moxin-lab bench expansion`: 32 blocks trained and then expanded to 36 or not, against 36 from
scratch, at equal compute.

A 32-block model (the stem) is trained with the first half of the budget. From it four arms continue
with the second half: 32 blocks continued, and 36 blocks by each recipe of
`moxin_lab.model.expansion`. A fifth arm trains 36 blocks from random weights with the full budget.
The budget is counted in FLOPs (`training_flops_per_token`), so deeper arms take fewer steps and
`32 continued` reads the most text. All arms of a seed read the same rows in the same order, have
the same warm-up, keep the peak learning rate in the first half of their budget and decay by a
cosine to a tenth of it in the second. Old weights keep AdamW's moments, new blocks have none.

Guarantees: the held-out text is the same for all arms and seeds; the second half of every arm costs
at most the budget, and less than one step below it; the result of a finished arm is read from the
work folder and the arm does not run again, and a result with other settings raises an error.
Out of scope: freezing the old blocks (as LLaMA Pro does), tuning the learning rate for each arm,
conclusions about 8 billion parameters.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    import numpy as np

    from moxin_lab.model.config import MoxinConfig
    from moxin_lab.model.decoder import MoxinForCausalLM
    from moxin_lab.pretraining.pools import Tokens
    from moxin_lab.scales import Scale
    from moxin_lab.scales.sections import Phase

Moments = dict[str, dict[str, Any]]
"""AdamW's state by parameter name."""

RECIPE_ARMS = ("identity", "interleaved", "top")
CONTINUED, FROM_SCRATCH = "32 continued", "36 from scratch"
ARMS = (CONTINUED, *(f"36 {recipe}" for recipe in RECIPE_ARMS), FROM_SCRATCH)
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
        help="bytes of held-out text per language (default 20,000)",
    )
    parser.add_argument(
        "--work",
        default=None,
        metavar="FOLDER",
        help="folder of the results of each arm (default: runs/<scale>/expansion)",
    )
    parser.add_argument(
        "--runs",
        default=None,
        metavar="FOLDER",
        help="folder with the artifacts of stages 01 and 02 (default: runs/<scale>)",
    )


@keeping("expansion")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """One row per arm and seed, the differences to `32 continued` paired by seed, the settings, and
    the compute of each arm.
    """
    plan = make_plan(options)
    work = Path(options.work) if options.work else plan.runs / "expansion"
    work.mkdir(parents=True, exist_ok=True)
    data = load_data(plan)
    total, done = options.seeds * len(ARMS), 0
    rows: list[dict[str, Any]] = []
    result = {"settings": plan.settings, "compute": compute(plan), "rows": rows}
    for seed in range(options.seeds):
        for arm in ARMS:
            rows.append(run_arm(plan, data, seed, arm, work, options.device))
            keep(result)
            done += 1
            bits_per_byte = rows[-1]["bits_per_byte"]
            print(
                f"[{done}/{total}] seed {seed}, {arm}: {bits_per_byte:.4f} bits per byte",
                file=sys.stderr,
            )
        stem_path(work, seed).unlink(missing_ok=True)  # every arm of the seed is done
    return result | {"differences": paired_differences(rows)}


# ---- plan and data


@dataclass(frozen=True)
class Plan:
    """What a run trains: FLOPs per token by depth, steps of the stem and of each arm, and the
    settings that a stored result must match.
    """

    scale: Scale
    runs: Path
    phase: Phase
    flops: dict[int, float]
    steps: dict[str, int]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Data:
    """Tokens to train on by name of the pool, and held-out documents with their languages and
    sizes.
    """

    pools: dict[str, Tokens]
    heldout: list[list[int]]
    languages: list[str]
    num_bytes: np.ndarray
    bos_id: int


def make_plan(options: argparse.Namespace) -> Plan:
    """The plan of a run, with the steps of each arm from equal compute. Raises ValueError and
    LabError before any work.
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
        CONTINUED: options.steps,
        **{f"36 {recipe}": int(half // flops[36]) for recipe in RECIPE_ARMS},
        FROM_SCRATCH: int(2 * half // flops[36]),
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
    return Plan(scale=scale, runs=runs, phase=phase, flops=flops, steps=steps, settings=settings)


def model_config(scale: Scale, depth: int, *, vocab_size: int) -> MoxinConfig:
    """The scale's configuration with `depth` blocks."""
    from moxin_lab.model.config import MoxinConfig

    return MoxinConfig(
        vocab_size=vocab_size, **{**scale.model.model_dump(), "num_hidden_layers": depth}
    )


def compute(plan: Plan) -> list[dict[str, Any]]:
    """Steps, tokens and FLOPs of each arm, including those of the stem that it continues."""
    rows = []
    for arm in ARMS:
        stem_steps = 0 if arm == FROM_SCRATCH else plan.steps["stem"]
        flops = plan.steps[arm] * plan.flops[int(arm[:2])] + stem_steps * plan.flops[32]
        steps = plan.steps[arm] + stem_steps
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


def load_data(plan: Plan) -> Data:
    """Training pools and held-out documents from the artifacts of stages 01 and 02."""
    from transformers import AutoTokenizer

    from moxin_lab.evaluation import heldout
    from moxin_lab.evaluation.bits_per_byte import encode_documents, prefix_token_id
    from moxin_lab.lab import curated
    from moxin_lab.lab.artifacts import LabError
    from moxin_lab.pretraining import pools

    documents = plan.runs / "01_data_curation" / "documents"
    tokenizer_folder = plan.runs / "02_tokenizer" / "tokenizer"
    for folder, stage in ((documents, "01"), (tokenizer_folder, "02")):
        if not folder.is_dir():
            raise LabError(
                f"{folder} is missing: "
                f"moxin-lab run --scale {plan.settings['scale']} --only {stage}"
            )
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    if len(tokenizer) != plan.scale.tokenizer.vocab_size:
        raise LabError(
            f"{tokenizer_folder} has {len(tokenizer)} tokens, "
            f"the scale {plan.scale.tokenizer.vocab_size}"
        )
    train = curated.read(documents, "train").to_pandas()
    texts = heldout.choose(
        curated.read(documents, "heldout").to_pandas(),
        bytes_per_language=plan.settings["heldout_bytes_per_language"],
        seed=0,
    )
    return Data(
        pools=pools.tokenize_pools(train, tokenizer, plan.scale.pretraining.phases),
        heldout=encode_documents(tokenizer, texts["text"].tolist()),
        languages=texts["language"].tolist(),
        num_bytes=texts["num_bytes"].to_numpy(),
        bos_id=prefix_token_id(tokenizer),
    )


# ---- one arm


def stem_path(work: Path, seed: int) -> Path:
    """File of the stem's weights and moments."""
    return work / f"seed{seed}-stem.pt"


def run_arm(plan: Plan, data: Data, seed: int, arm: str, work: Path, device: str) -> dict[str, Any]:
    """The row of one arm: read from its file if there is one, else trained, measured and stored."""
    import torch

    from moxin_lab.lab.artifacts import LabError, write_atomically
    from moxin_lab.model.decoder import MoxinForCausalLM
    from moxin_lab.model.expansion import expand

    path = work / f"seed{seed}-{arm.replace(' ', '-')}.json"
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["settings"] != plan.settings:
            raise LabError(
                f"{path} was made with other settings: give another --work folder, "
                "or delete this one"
            )
        return stored["row"]
    first, steps = 0, plan.steps[arm]
    if arm == FROM_SCRATCH:
        config = model_config(plan.scale, 36, vocab_size=plan.scale.tokenizer.vocab_size)
        model = MoxinForCausalLM(config, generator=torch.Generator().manual_seed(seed)).to(device)
        state: dict[str, Any] = {}
    else:
        model, state = load_stem(plan, data, seed, work, device)
        first = plan.steps["stem"]
        if arm != CONTINUED:
            recipe = arm.split()[1]
            deeper = expand(model, 36, recipe)
            state = carry_moments(state, recipe)
            model = deeper
    context = plan.settings["sequence_length"]
    at_start = measure(model, data, context, device)["bits_per_byte"]
    log, _ = train(
        model, plan, data, seed, first=first, steps=steps, moments=state, device=device, name=arm
    )
    row = {
        "seed": seed,
        "arm": arm,
        **measure(model, data, context, device),
        "bits_per_byte_at_start": at_start,
        **log,
    }
    write_atomically(path, json.dumps({"settings": plan.settings, "row": row}, indent=1) + "\n")
    return row


def load_stem(
    plan: Plan, data: Data, seed: int, work: Path, device: str
) -> tuple[MoxinForCausalLM, Moments]:
    """The 32-block model after the first half of the budget, and AdamW's state by parameter name;
    read from the work folder, or trained and stored there.
    """
    import torch

    from moxin_lab.model.decoder import MoxinForCausalLM

    config = model_config(plan.scale, 32, vocab_size=plan.scale.tokenizer.vocab_size)
    model = MoxinForCausalLM(config, generator=torch.Generator().manual_seed(seed)).to(device)
    path = stem_path(work, seed)
    stored = torch.load(path, map_location=device, weights_only=True) if path.exists() else None
    if stored is None or stored["settings"] != plan.settings:
        _, moments = train(
            model,
            plan,
            data,
            seed,
            first=0,
            steps=plan.steps["stem"],
            moments={},
            device=device,
            name="stem",
        )
        stored = {"settings": plan.settings, "weights": model.state_dict(), "moments": moments}
        # Renamed when complete, so that an interrupted run leaves no partial file.
        torch.save(stored, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
    model.load_state_dict(stored["weights"])
    return model, {
        name: {k: v.clone() for k, v in state.items()} for name, state in stored["moments"].items()
    }


def carry_moments(moments: Moments, recipe: str) -> Moments:
    """AdamW's state of the old parameters, under their names in the deeper model. New blocks have
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


def lr_factor(step: int, plan: Plan, arm_steps: int, half: int) -> float:
    """Learning rate at `step` of `arm_steps`, relative to the peak: warm-up, constant until step
    `half`, then a cosine to a tenth.
    """
    warmup = plan.settings["warmup_steps"]
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step < half:
        return 1.0
    progress = (step - half + 1) / (arm_steps - half)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    model: MoxinForCausalLM,
    plan: Plan,
    data: Data,
    seed: int,
    *,
    first: int,
    steps: int,
    moments: Moments,
    device: str,
    name: str,
) -> tuple[dict[str, Any], Moments]:
    """Train the stem or an arm in place, from step `first` of the seed's stream.

    Returns the log (losses, seconds) and AdamW's state by parameter name. Raises ArithmeticError
    for a loss that is not finite.
    """
    import torch

    from moxin_lab.pretraining.packing import TrainingStream
    from moxin_lab.pretraining.trainer import adamw, token_loss
    from moxin_lab.scales.sections import Phase

    settings = plan.scale.pretraining
    phase = Phase(
        name="expansion",
        steps=plan.steps["stem"] + plan.steps[CONTINUED],  # the longest arm
        sequence_length=plan.phase.sequence_length,
        mixture=plan.phase.mixture,
    )
    stream = TrainingStream(
        data.pools, [phase], tokens_per_step=plan.settings["tokens_per_step"], seed=seed
    )
    parts = max(1, plan.settings["tokens_per_step"] // settings.micro_batch_tokens)
    optimizer = adamw(model, settings)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if names[id(parameter)] in moments:
                optimizer.state[parameter] = moments[names[id(parameter)]]
    arm_steps, half = first + steps, plan.steps["stem"]
    if name == FROM_SCRATCH:
        arm_steps, half = steps, steps // 2
    model.train()
    losses, began = [], time.monotonic()
    for step in range(first, first + steps):
        factor = (
            1.0
            if name == "stem" and step >= plan.settings["warmup_steps"]
            else lr_factor(step, plan, arm_steps, half)
        )
        for group in optimizer.param_groups:
            group["lr"] = factor * settings.learning_rate
        total = 0.0
        for part in range(parts):
            batch = {
                key: torch.from_numpy(array).to(device)
                for key, array in stream.batch(step, part=part, parts=parts).items()
            }
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = token_loss(model, batch) / batch["num_targets"]
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(total):
            raise ArithmeticError(f"{name}, seed {seed}: the loss of step {step} is {total}")
        losses.append(total)
        if step == first or (step + 1) % 10 == 0:
            print(
                f"  seed {seed}, {name}: step {step + 1}/{first + steps}, loss {total:.3f}",
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


def measure(model: MoxinForCausalLM, data: Data, context: int, device: str) -> dict[str, Any]:
    """Held-out bits per byte of all documents, and of those of each language."""
    import numpy as np

    from moxin_lab.evaluation.bits_per_byte import bits_per_byte, document_losses

    model.eval()
    nats = document_losses(
        model,
        data.heldout,
        context=context,
        bos_id=data.bos_id,
        device=device,
    )
    languages = np.array(data.languages)
    return {
        "bits_per_byte": bits_per_byte(nats, data.num_bytes),
        "by_language": {
            str(name): bits_per_byte(nats[languages == name], data.num_bytes[languages == name])
            for name in sorted(set(data.languages))
        },
    }


# ---- differences


def paired_differences(
    rows: list[dict[str, Any]], arms: Sequence[str] = ARMS[1:], against: str = CONTINUED
) -> list[dict[str, Any]]:
    """Bits per byte of each of the arms minus those of `against` with the same seed: mean, 95 %
    interval (Student's t), and the difference for each seed that has both. An arm that has no seed
    in common with `against` is left out.

    With three seeds the interval extends 4.3 standard errors to either side: it can show a
    difference that is large compared with the spread between seeds, but never that there is none.
    With one seed there is no spread, and the interval is None.
    """
    by_arm = {
        arm: {row["seed"]: row["bits_per_byte"] for row in rows if row["arm"] == arm}
        for arm in (*arms, against)
    }
    records = []
    for arm in arms:
        seeds = sorted(by_arm[arm].keys() & by_arm[against].keys())
        if not seeds:
            continue
        differences = [by_arm[arm][seed] - by_arm[against][seed] for seed in seeds]
        mean, interval = statistics.fmean(differences), None
        if len(differences) > 1:
            spread = statistics.stdev(differences) / len(differences) ** 0.5
            spread *= STUDENT_T_95.get(len(differences), 2.571)
            interval = [mean - spread, mean + spread]
        records.append(
            {
                "arm": arm,
                "against": against,
                "mean": mean,
                "interval": interval,
                "by_seed": differences,
            }
        )
    return records
