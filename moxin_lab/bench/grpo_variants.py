"""`moxin-lab bench grpo-variants`: what keeps pass@k while GRPO raises pass@1. One change of a
scale's recipe at a time, from one chain-of-thought model, at equal samples.

    moxin-lab bench grpo-variants --scale small --cot COT_SFT --tokenizer TOKENIZER --device cuda \\
        --seeds 3 --seconds 560 --results rows.json --json grpo-variants.json
    python -m moxin_lab.bench.grpo_variants_page reports/released/grpo-variants

The variants, with what is expected of each, are in `grpo_variants_plan.py`; a training in
`grpo_variants_training.py`; the rule, and what the trainings show by it, in
`grpo_variants_results.py`. Variants and rule stand there before a run. Several processes may share
`--results` with other `--only`; `--seconds 0` trains nothing and writes `--json` from the trainings
that are there.

Guarantees: `--results` is written after each training, whole or not at all, and what it has is not
trained again; validation questions are of the training families and in neither training nor the
stage's test, or nothing runs; what was not run is listed with its reason.
Out of scope: the page (`grpo_variants_page.py`), other seeds of the fine-tuned start.
"""

from __future__ import annotations

import argparse
import fcntl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from moxin_lab.bench import grpo_variants_plan as plan
from moxin_lab.bench import grpo_variants_results as results
from moxin_lab.bench import grpo_variants_training as training
from moxin_lab.bench import say
from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    from moxin_lab.reasoning.experiments import Questions
    from moxin_lab.reasoning.tasks import Task
    from moxin_lab.scales.sections import ReasoningSettings

VALIDATION_SEED = 20261
"""Seed of the validation questions: neither training nor test draws with it. Our choice."""
READ = {"grpo", "num_generations_eval", "pass_at", "decoding"}
"""What a training here depends on of a scale's `reasoning`, beside the questions themselves."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", default="small", help="its recipe and questions (default small)")
    parser.add_argument("--cot", metavar="FOLDER", help="the model `cot_sft` of notebook 06")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="the tokenizer of notebook 02")
    parser.add_argument("--results", metavar="ROWS.json", help="trainings so far; made if missing")
    names = ", ".join((results.START, *plan.BY_NAME))
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
    names = plan.names_of(options.only)
    for option in ("cot", "tokenizer", "results"):
        if not getattr(options, option):
            raise LabError(f"--{option} is missing")
    setup = load(scales.load(options.scale).reasoning, options)
    return run_jobs(names, setup, options, began, keep)


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
    asked = experiments.questions(settings, seed=plan.STAGE_SEED)
    validation = validation_of(settings, asked, options.validation_items)
    tests = {results.VALIDATION: validation, **asked.tests}
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


# ---- running


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
            here = [one for one in good.values() if one["machine"] == training.machine_name()]
            waiting = []
            for variant, seed in plan.jobs(names, setup.seeds):
                name = plan.name_of(variant, seed)
                if name in good or name in tried:
                    continue
                steps = 0
                if variant != results.START:
                    ready = plan.steps_of(plan.BY_NAME[variant], seed, setup.settings, good)
                    if ready is None:
                        continue
                    steps = ready
                used = time.monotonic() - began
                needed = plan.expected_seconds(variant, setup.settings, here)
                if options.seconds is None or used + needed <= options.seconds:
                    waiting.append((variant, seed, steps, needed))
            if not waiting:
                return result
            variant, seed, steps, needed = waiting[0]
            tried.add(plan.name_of(variant, seed))
            say(
                f"[{time.monotonic() - began:.0f} s, {len(waiting)} left in time] {variant}, seed "
                f"{seed}: about {needed:.0f} s"
            )
            record = training.run_one(variant, seed, steps, setup, verifier, options)
            add_record(path, f"{setup.digest}/{plan.name_of(variant, seed)}", record)


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
    good = [one for one in plan.in_order(found) if "failed" not in one]
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
    right = {plan.name_of(one["variant"], one["seed"]): one["right"] for one in good}
    return {
        "rule": results.RULE,
        "choice_rule": results.CHOICE,
        "equal_samples": plan.EQUAL,
        "variants": [variant._asdict() for variant in plan.VARIANTS],
        "settings": described,
        "rows": rows,
        **results.summarise(rows, right, described, plan.AGAINST),
        "not_run": plan.not_run(names, setup.seeds, settings, found, options.seconds),
        "note": ran_on(good),
        "right": right,
    }


def ran_on(good: Sequence[Mapping[str, Any]]) -> str:
    """Where the trainings ran: the file may be written elsewhere, with `--seconds 0`."""
    places = sorted({f"{one['machine']} (torch {one['torch']})" for one in good})
    return f"Trainings and answers: {', '.join(places) or 'none'}."
