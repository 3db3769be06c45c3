"""`moxin-lab bench grpo-variants`: what keeps pass@k while GRPO raises pass@1. One change of a
scale's recipe at a time, from one chain-of-thought model, at equal samples.

    moxin-lab bench grpo-variants --scale small --cot COT_SFT --tokenizer TOKENIZER --device cuda \\
        --seeds 3 --seconds 560 --results rows.json --json grpo-variants.json
    python -m moxin_lab.bench.grpo_variants_page reports/released/grpo-variants

`VARIANTS` says what each one changes and what is expected of it, `RULE` what would count; both
stand here before a run. Several processes may share `--results` with other `--only`; `--seconds 0`
trains nothing and writes `--json` from the trainings that are there.

Guarantees: a training is `reasoning.experiments.reinforce`, the stage's own; `--results` is written
after each one, whole or not at all, and what it has is not trained again; validation questions are
of the training families and in neither training nor the stage's test, or nothing runs; what was not
run is listed with its reason.
Out of scope: the page (`grpo_variants_page.py`), verdicts (`grpo_variants_results.py`), other seeds
of the fine-tuned start.
"""

from __future__ import annotations

import argparse
import fcntl
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from moxin_lab.bench import grpo_variants_results as results
from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    import pandas as pd

    from moxin_lab.reasoning.experiments import Questions
    from moxin_lab.reasoning.tasks import Task
    from moxin_lab.scales.sections import GRPOSettings, ReasoningSettings

STAGE_SEED = 0
"""Seed of the stage's questions, which the start was fine-tuned on, and of all sampled answers."""
VALIDATION_SEED = 20261
"""Seed of the validation questions: neither training nor test draws with it. Our choice."""
READ = {"grpo", "num_generations_eval", "pass_at", "decoding"}
"""What a training here depends on of a scale's `reasoning`, beside the questions themselves."""
START = results.START
VALIDATION = results.VALIDATION

# Before a training has run: one H200 took about 130 s for 80 steps of 64 prompts x 8; then a guess
# for a model's answers. Several updates of a rollout add a forward pass and optimizer steps.
SECONDS_PER_COMPLETION = 130 / (80 * 64 * 8)
SECONDS_OF_ANSWERS = 30.0
SEVERAL_UPDATES = 1.3


class Variant(NamedTuple):
    """changes: fields of `GRPOSettings`, in place of the recipe's. against: the variant that it has
    one change more than, None for the recipe. expects: said before the run. equal: of what there is
    as much as in the recipe, completions generated or consumed.
    """

    name: str
    changes: dict[str, Any]
    against: str | None
    expects: str
    equal: str = "generated"


VARIANTS = (
    Variant("recipe", {}, None, "pass@1 rises and pass@k falls, as in the scale's earlier run."),
    Variant(
        "draw-anew",
        {"resample_rounds": 2},
        "recipe",
        "Groups without contrast are rejected and drawn anew: every consumed completion teaches, "
        "hard questions more often, so pass@k falls less. It takes fewer steps for it.",
    ),
    Variant(
        "warmer",
        {"temperature": 1.2},
        "recipe",
        "Sampling at 1.2 pays for answers that are rare at 1.0, which keeps them alive. All "
        "answers are judged at the recipe's temperature.",
    ),
    Variant(
        "no-kl",
        {"kl_coef": 0.0},
        "recipe",
        "Nothing holds the model near its start: pass@k falls at least as far.",
    ),
    Variant(
        "more-kl",
        {"kl_coef": 0.01},
        "recipe",
        "Ten times the pull to the start keeps pass@k and costs some of the gain in pass@1.",
    ),
    Variant(
        "entropy-bonus",
        {"entropy_coef": 0.01},
        "recipe",
        "A bonus for undecided tokens keeps entropy and pass@k; too much of it costs pass@1.",
    ),
    Variant(
        "no-scaling",
        {"scale_rewards": "none"},
        "recipe",
        "Advantages that the group's deviation does not divide: a rare success and a rare failure "
        "weigh less than in the recipe, so hard questions lose weight.",
    ),
    Variant(
        "four-updates",
        {"updates_per_rollout": 4},
        "recipe",
        "Four optimizer steps on a quarter of each rollout: ratios leave 1, so that clipping can "
        "act at all. pass@1 moves further and pass@k falls further.",
    ),
    Variant(
        "clip-higher",
        {"updates_per_rollout": 4, "epsilon_high": 0.28},
        "four-updates",
        "An upper bound of 1.28 lets unlikely tokens grow further before they are clipped, which "
        "keeps entropy and pass@k. With one update of a rollout every ratio is 1 and the bound has "
        "no effect, so it is compared where a rollout serves four.",
    ),
    Variant(
        "draw-anew-longer",
        {"resample_rounds": 2},
        "recipe",
        "As draw-anew, with the recipe's number of steps: as many completions consumed, and more "
        "generated. More useful updates move both measures further.",
        "consumed",
    ),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}

RULE = results.RULE
EQUAL = (
    "Equal samples: a training generates as many completions as the recipe, prompts x generations "
    "x steps, and an optimizer reads each once. One that draws groups anew generates more in a "
    "step. `draw-anew` therefore takes fewer steps, as many as the recipe's share of groups "
    "without contrast with the same seed lets expect, and consumes fewer; `draw-anew-longer` takes "
    "the recipe's number of steps and generates more. The ledger has what each came to: generated "
    "= consumed + discarded. Groups without contrast that a step reads count as consumed; they "
    "teach nothing but the KL term. Fresh problems are no variant: the recipe sees none twice."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", default="small", help="its recipe and questions (default small)")
    parser.add_argument("--cot", metavar="FOLDER", help="the model `cot_sft` of notebook 06")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="the tokenizer of notebook 02")
    parser.add_argument("--results", metavar="ROWS.json", help="trainings so far; made if missing")
    names = ", ".join((START, *BY_NAME))
    parser.add_argument("--only", metavar="NAMES", help=f"by commas, of {names}")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of a variant (default 3)")
    parser.add_argument("--steps", type=int, help="of the recipe (default: the scale's)")
    parser.add_argument(
        "--seconds", type=float, help="start no training that would end later than this"
    )
    parser.add_argument("--validation-items", type=int, default=630, help="questions (default 630)")


@keeping("grpo-variants")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: one for the start and one for each training in `--results` that belongs to this start,
    tokenizer, scale and number of steps.
    """
    from moxin_lab import scales
    from moxin_lab.lab.artifacts import LabError

    began = time.monotonic()
    names = names_of(options)
    for option in ("cot", "tokenizer", "results"):
        if not getattr(options, option):
            raise LabError(f"--{option} is missing")
    setup = load(scales.load(options.scale).reasoning, options)
    return run_jobs(names, setup, options, began, keep)


def names_of(options: argparse.Namespace) -> list[str]:
    """The variants that the command line names, in the order of running. Raises LabError for
    unknown ones.
    """
    from moxin_lab.lab.artifacts import LabError

    known = [START, *BY_NAME]
    only = {name for name in (options.only or "").split(",") if name}
    if only - set(known):
        raise LabError(
            f"no variant {', '.join(sorted(only - set(known)))}: there are {', '.join(known)}"
        )
    return [name for name in known if name in only or not only]


# ---- what is trained on and asked


def load(settings: ReasoningSettings, options: argparse.Namespace) -> SimpleNamespace:
    """Settings, questions, and the digest of all that a training here depends on. Raises LabError
    for a folder that is not there and for questions that are shared.
    """
    import torch

    from moxin_lab.lab.artifacts import LabError, describe, sha256_json
    from moxin_lab.posttraining.inputs import chat_tokenizer
    from moxin_lab.reasoning import experiments

    if settings.source != "reasoning-gym":
        raise LabError("validation questions are drawn from generators, which this scale has not")
    if options.device == "cpu" and torch.cuda.is_available():
        raise LabError("--device cpu: a training takes the GPU; hide it by CUDA_VISIBLE_DEVICES=")
    if options.steps:
        steps = settings.grpo.model_copy(update={"steps": options.steps})
        settings = settings.model_copy(update={"grpo": steps})
    cot, tokenizer = Path(options.cot), Path(options.tokenizer)
    start = describe(cot)["sha256"]
    asked = experiments.questions(settings, seed=STAGE_SEED)
    validation = validation_of(settings, asked, options.validation_items)
    tests = {VALIDATION: validation, **asked.tests}
    texts = [[task.question for task in part] for part in (asked.problems, *tests.values())]
    read = settings.model_dump(mode="json", include=READ)
    parts = (start, describe(tokenizer)["sha256"], read, texts)
    return SimpleNamespace(
        settings=settings,
        scale=options.scale,
        cot=cot,
        tokenizer=chat_tokenizer(tokenizer),
        asked=asked,
        tests=tests,
        start=start,
        seeds=options.seeds,
        digest=sha256_json(parts)[:16],
    )


def validation_of(settings: ReasoningSettings, asked: Questions, count: int) -> list[Task]:
    """At most `count` questions of the training families, from the part of all questions that no
    training draws from, without the stage's test. Raises LabError if one is trained on or tested.
    """
    from moxin_lab.lab.artifacts import LabError
    from moxin_lab.reasoning.tasks import draw_all

    drawn = draw_all(
        settings.families,
        part="test",
        count=count,
        seed=VALIDATION_SEED,
        apart_from=asked.all_tests(),
    )
    own = {task.question for task in drawn}
    others = {
        "a chain": {rows[0]["content"] for rows in asked.cot},
        "a problem of GRPO": {task.question for task in asked.problems},
        "a test question": {task.question for task in asked.all_tests()},
    }
    for what, questions in others.items():
        if own & questions:
            raise LabError(f"{len(own & questions)} validation questions are also {what}")
    return drawn


def grpo_of(variant: Variant, settings: ReasoningSettings, steps: int) -> GRPOSettings:
    """The recipe with a variant's changes; micro-batches as large as its updates allow."""
    base = settings.grpo
    updates = variant.changes.get("updates_per_rollout", base.updates_per_rollout)
    rows = base.prompts_per_step * base.num_generations // updates
    update = {
        **variant.changes,
        "steps": steps,
        "micro_batch_examples": math.gcd(base.micro_batch_examples, rows),
    }
    return type(base)(**(base.model_dump() | update))


def steps_of(
    variant: Variant, seed: int, settings: ReasoningSettings, found: Mapping[str, Any]
) -> int | None:
    """Steps at equal samples (`EQUAL`), None as long as the recipe of the seed has not run.

    With a share u of groups without contrast, r rounds generate 1 + u + .. + u^r times the
    completions of a step. found: good records by `name_of`.
    """
    rounds = variant.changes.get("resample_rounds", 0)
    if not rounds or variant.equal == "consumed":
        return settings.grpo.steps
    recipe = found.get(name_of("recipe", seed))
    if recipe is None:
        return None
    share = recipe["groups without contrast"]
    times = sum(share**number for number in range(rounds + 1))
    return max(1, round(settings.grpo.steps / times))


# ---- running


def name_of(variant: str, seed: int) -> str:
    return f"{variant}/{seed}"


def run_jobs(
    names: Sequence[str],
    setup: SimpleNamespace,
    options: argparse.Namespace,
    began: float,
    keep: Keep,
) -> dict[str, Any]:
    """Everything that is named and not yet there, in order, as long as there is time. After each
    training `--json` is written as well.
    """
    from moxin_lab.verifier.verifier import Verifier

    path, tried = Path(options.results), set[str]()
    with Verifier(lazy=True) as verifier:
        while True:
            found = read_records(path, setup)
            result = summary(names, setup, found, options)
            keep(result)
            good = {name: one for name, one in found.items() if "failed" not in one}
            waiting = []
            for variant, seed in jobs(names, setup.seeds):
                name = name_of(variant, seed)
                if name in good or name in tried:
                    continue
                steps = 0
                if variant != START:
                    ready = steps_of(BY_NAME[variant], seed, setup.settings, good)
                    if ready is None:
                        continue
                    steps = ready
                used = time.monotonic() - began
                needed = expected_seconds(variant, steps, setup, found.values())
                if options.seconds is None or used + needed <= options.seconds:
                    waiting.append((variant, seed, steps, needed))
            if not waiting:
                return result
            variant, seed, steps, needed = waiting[0]
            tried.add(name_of(variant, seed))
            say(
                f"[{time.monotonic() - began:.0f} s, {len(waiting)} left in time] {variant}, seed "
                f"{seed}: about {needed:.0f} s"
            )
            record = run_one(variant, seed, steps, setup, verifier, options)
            add_record(path, f"{setup.digest}/{name_of(variant, seed)}", record)


def jobs(names: Sequence[str], seeds: int) -> Iterator[tuple[str, int]]:
    """The start, then every variant with the first seed, with the second, ..."""
    if START in names:
        yield START, STAGE_SEED
    for seed in range(seeds):
        yield from ((name, seed) for name in names if name != START)


def expected_seconds(variant: str, steps: int, setup: SimpleNamespace, found: Any) -> float:
    """By the slowest training and answers so far on this machine, else by the constants above."""
    own = [one for one in found if one.get("machine") == machine_name() and "failed" not in one]
    answers = max((one["answer seconds"] for one in own), default=SECONDS_OF_ANSWERS)
    if variant == START:
        return answers
    rates = [one["seconds"] / one["generated"] for one in own if one.get("generated")]
    settings, changes = setup.settings.grpo, BY_NAME[variant].changes
    generated = setup.settings.grpo.steps * settings.prompts_per_step * settings.num_generations
    if BY_NAME[variant].equal == "consumed":  # as if every other group had no contrast
        generated *= 1 + changes.get("resample_rounds", 0) / 2
    slower = SEVERAL_UPDATES if changes.get("updates_per_rollout", 1) > 1 else 1.0
    return answers + slower * generated * max(rates, default=SECONDS_PER_COMPLETION)


def machine_name() -> str:
    import torch

    from moxin_lab.lab.environment import cpu_name

    return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()


def run_one(
    variant: str,
    seed: int,
    steps: int,
    setup: SimpleNamespace,
    verifier: Any,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The record of one training, or of the start. One that diverges or finds no room in memory or
    on disk has `failed` with the reason and is tried again by the next run.
    """
    import torch

    from moxin_lab.bench import free_memory, peak_bytes
    from moxin_lab.model import convert
    from moxin_lab.reasoning import answers, experiments

    free_memory(options.device)
    record: dict[str, Any] = {
        "variant": variant,
        "seed": seed,
        "machine": machine_name(),
        "torch": torch.__version__,
    }
    model = convert.from_pretrained(setup.cot, dtype=torch.float32, device=options.device)
    try:
        if variant != START:
            grpo = grpo_of(BY_NAME[variant], setup.settings, steps)
            chosen = setup.settings.model_copy(update={"grpo": grpo})
            began = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="grpo-variants-") as folder:
                model, log = experiments.reinforce(
                    model,
                    setup.tokenizer,
                    setup.asked.problems,
                    verifier,
                    chosen,
                    seed=seed,
                    folder=Path(folder),
                    progress=every_tenth,
                )
            record |= {"seconds": time.monotonic() - began, **of_log(log, grpo)}
        began = time.monotonic()
        found = answers.answer(
            model,
            setup.tokenizer,
            setup.tests,
            verifier,
            settings=setup.settings,
            seed=STAGE_SEED,
        )
    except (ArithmeticError, RuntimeError, OSError) as error:
        say(f"{variant}, seed {seed}, failed: {error}")
        return record | {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    return record | {
        "answer seconds": time.monotonic() - began,
        "peak bytes": peak_bytes(options.device),
        **of_answers(found, setup.settings.pass_at),
    }


def of_log(log: pd.DataFrame, grpo: GRPOSettings) -> dict[str, Any]:
    """What a log says: the ledger over the whole run, the share of groups without contrast among
    those drawn first, and means over the last tenth of the rollouts. Entropy and KL are those at
    the temperature of the training, in nats a token.
    """
    updates = grpo.updates_per_rollout
    rollouts = log.iloc[::updates]  # each row of a rollout has the whole rollout's numbers
    last = max(1, len(rollouts) // 10)
    end, ends = log.tail(last * updates), rollouts.tail(last)
    ledger = {
        name: int(rollouts[column].sum())
        for name, column in (
            ("generated", "completions/generated"),
            ("consumed", "completions/consumed"),
            ("discarded", "completions/discarded"),
            ("generated tokens", "num_tokens"),
            ("consumed tokens", "num_tokens/consumed"),
            ("discarded tokens", "num_tokens/discarded"),
        )
    }
    return {
        "steps": len(rollouts),
        "optimizer steps": len(log),
        **ledger,
        "groups without contrast": float(rollouts["frac_reward_zero_std"].mean()),
        "groups without contrast at the end": float(ends["frac_reward_zero_std"].mean()),
        "reward at the end": float(ends["reward"].mean()),
        "entropy at the beginning": float(log.head(last * updates)["entropy"].mean()),
        "entropy at the end": float(end["entropy"].mean()),
        "clip fraction at the end": float(end["clip_ratio"].mean()),
        "kl at the end": float(end["kl"].mean()),
    }


def of_answers(found: pd.DataFrame, ks: Sequence[int]) -> dict[str, Any]:
    """pass@k by group of questions, the mean number of different answers to a validation question,
    and in `right` by group the number of right samples of each question, as text.
    """
    from moxin_lab.reasoning import answers

    passed = {
        f"pass@{k} {group}": float(values.mean())
        for k in ks
        for group, values in answers.items(found, k).groupby("group", sort=False)
    }
    counts = found.groupby(["group", "item"], sort=False)["right"].sum()
    validation = found[found["group"] == VALIDATION]
    different = validation.groupby("item")["answer"].nunique(dropna=False)
    return {
        **passed,
        "different answers": float(different.mean()),
        "right": {
            group: " ".join(map(str, counts[group])) for group in counts.index.unique("group")
        },
    }


def every_tenth(step: int, total: int, text: str) -> None:
    if step % max(1, total // 10) == 0:
        say(f"  {step} of {total}: {text}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- the file of trainings


def read_records(path: Path, setup: SimpleNamespace) -> dict[str, dict[str, Any]]:
    """The file's records of this setup by `name_of`; none if there is no file. Raises LabError for
    a file of something else.
    """
    from moxin_lab.lab.artifacts import LabError, read_json

    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict) or "grpo-variants" not in content:
        raise LabError(f"{path} is not a file of `--results`: name another")
    return {
        key.removeprefix(f"{setup.digest}/"): record
        for key, record in content["grpo-variants"].items()
        if key.startswith(f"{setup.digest}/")
    }


def add_record(path: Path, key: str, record: dict[str, Any]) -> None:
    """Add a record to the file, whole or not at all, also beside other processes that do so."""
    from moxin_lab.lab.artifacts import read_json, write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        content = read_json(path) if path.exists() else {"grpo-variants": {}}
        content["grpo-variants"][key] = record
        write_json(path, content)


# ---- what the file says


def summary(
    names: Sequence[str],
    setup: SimpleNamespace,
    found: Mapping[str, dict[str, Any]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """What `--json` holds: statements, rows, differences and verdicts, and what was not run."""
    settings, grpo = setup.settings, setup.settings.grpo
    good = [one for one in in_order(found) if "failed" not in one]
    described = {
        "scale": setup.scale,
        "steps": grpo.steps,
        "prompts_per_step": grpo.prompts_per_step,
        "num_generations": grpo.num_generations,
        "temperature": grpo.temperature,
        "learning_rate": grpo.learning_rate,
        "pass_at": list(settings.pass_at),
        "samples": settings.num_generations_eval,
        "seeds": setup.seeds,
        "questions": {group: len(tasks) for group, tasks in setup.tests.items()},
        "validation_seed": VALIDATION_SEED,
        "problems": len(setup.asked.problems),
        "start_sha256": setup.start,
        "digest": setup.digest,
    }
    rows = [{name: value for name, value in one.items() if name != "right"} for one in good]
    right = {name_of(one["variant"], one["seed"]): one["right"] for one in good}
    return {
        "rule": RULE,
        "choice_rule": results.CHOICE,
        "equal_samples": EQUAL,
        "variants": [variant._asdict() for variant in VARIANTS],
        "settings": described,
        "rows": rows,
        **results.summarise(rows, right, described, VARIANTS_AGAINST),
        "not_run": not_run(names, setup, found, options),
        "note": ran_on(good),
        "right": right,
    }


VARIANTS_AGAINST = {variant.name: variant.against for variant in VARIANTS}


def ran_on(good: Sequence[Mapping[str, Any]]) -> str:
    """Where the trainings ran: the file may be written elsewhere, with `--seconds 0`."""
    places = sorted({f"{one['machine']} (torch {one['torch']})" for one in good})
    return f"Trainings and answers: {', '.join(places) or 'none'}."


def in_order(found: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Records by variant, as in `VARIANTS`, and seed."""
    places = {name: place for place, name in enumerate((START, *BY_NAME))}
    return sorted(found.values(), key=lambda one: (places[one["variant"]], one["seed"]))


def not_run(
    names: Sequence[str],
    setup: SimpleNamespace,
    found: Mapping[str, dict[str, Any]],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Each training of the plan that the file lacks, with the reason."""
    missing = []
    good = {name: one for name, one in found.items() if "failed" not in one}
    for variant, seed in jobs((START, *BY_NAME), setup.seeds):
        name = name_of(variant, seed)
        if name in good:
            continue
        if name in found:
            reason = f"failed: {found[name]['failed']}"
        elif variant not in names:
            reason = "not named by --only"
        elif variant != START and steps_of(BY_NAME[variant], seed, setup.settings, good) is None:
            reason = "its number of steps follows from the recipe's training, which is missing"
        elif options.seconds is not None:
            reason = f"would have ended after --seconds {options.seconds:g}"
        else:
            reason = "had not run when this file was written"
        missing.append({"variant": variant, "seed": seed, "reason": reason})
    return missing
