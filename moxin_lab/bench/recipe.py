"""`moxin-lab bench recipe`: what the choices of the pretraining recipe are worth, as experiments on
one GPU: a ladder of widths with its power law, and ablations at one width with intervals over
seeds.

    moxin-lab bench pretraining --scale small --folder WORK --until packed   # the tokens; no GPU
    moxin-lab bench recipe --plan                                            # what would run
    moxin-lab bench recipe --folder WORK --device cuda --only ladder --json ladder.json
    moxin-lab bench recipe --folder WORK --device cuda --without ladder --json ablations.json

The table of experiments, with the rule of each, is in `recipe_arms.py`; a training in
`recipe_training.py`; what the trainings show in `recipe_results.py`. Two processes can run on two
GPUs of a machine (CUDA_VISIBLE_DEVICES), each with its own file; `--read` takes the other's.

Guarantees: the file is written after each training, and a training that it has, with the same
settings and data, is not run again; held-out pages are in two halves, one of which chooses learning
rates and the other is reported; documents that repeat training text are left out; what was not run
is in the plan as such.
Out of scope: several devices for one training, the page (`recipe_page.py`).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from moxin_lab.bench import recipe_arms as arms
from moxin_lab.bench import recipe_results as results
from moxin_lab.bench import say
from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    import pandas as pd

    from moxin_lab.pretraining.pools import Tokens
    from moxin_lab.scales import Scale

RESERVED = 3
"""Times the bytes of held-out text that are looked through, since some repeat training text."""

# The time of a training before one like it has run. One H200 did 345,000 tokens a second at width
# 512, 0.31 of its peak (reports/released/pretraining-small); the rest is our guess: the share falls
# with the root of the width, a step's kernels take at least 6 ms, dropout three times as long.
PEAK = 989e12
SHARE_AT_512 = 0.31
STEP_FLOOR = 0.006
DROPOUT_FACTOR = 3.0
MUON_SECONDS = 0.01
START_SECONDS = 8.0  # a model, loader processes, a graph, the scores
COMPILE_SECONDS = 30.0  # of a shape that this process has not had


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", default="small", help="its mixtures and constants")
    parser.add_argument(
        "--folder", metavar="WORK", help="tokens, tokenizer and held-out text of `pretraining`"
    )
    names = ", ".join(arms.NAMES)
    parser.add_argument("--only", metavar="NAMES", help=f"experiments, by commas, of {names}")
    parser.add_argument("--without", metavar="NAMES", help="all experiments but these")
    parser.add_argument("--plan", action="store_true", help="print what would run, and stop")
    parser.add_argument(
        "--seconds", type=float, help="start no training that would end later than this"
    )
    parser.add_argument(
        "--read", nargs="*", default=[], metavar="FILE", help="further files of this bench"
    )
    parser.add_argument("--width", type=int, default=256, help="of the ablations (default 256)")
    parser.add_argument("--steps", type=int, default=610, help="of an ablation (default 610)")
    parser.add_argument("--tokens-per-step", type=int, default=32768, help="default 32768")
    parser.add_argument("--sequence", type=int, default=512, help="tokens of a row (default 512)")
    parser.add_argument("--seeds", type=int, default=3, help="default 3")
    parser.add_argument(
        "--ladder-widths", default="80,128,256,384,640", help="default 80,128,256,384,640"
    )
    parser.add_argument(
        "--tokens-per-parameter", type=float, default=1.0, help="of the ladder (default 1)"
    )
    parser.add_argument(
        "--ladder-batch", type=int, default=65536, help="tokens of a step of its last rung"
    )
    parser.add_argument(
        "--heldout-bytes", type=int, help="by language, of both halves (default: the scale's)"
    )


@keeping("recipe")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: one for each experiment, arm and seed. With --plan the rows are the plan."""
    from moxin_lab import scales
    from moxin_lab.lab.artifacts import LabError

    scale = scales.load(options.scale)
    sizes = sizes_of(options)
    names = names_of(options)
    records = read_records([options.json, *options.read])
    if options.plan:
        vocabulary = scale.tokenizer.vocab_size
        jobs = arms.jobs(names, sizes, scale, vocabulary, {})
        return {"rows": plan(jobs, scale, vocabulary, {}, "")}
    if not options.folder:
        raise LabError("--folder is missing: name the folder of `moxin-lab bench pretraining`")
    began = time.monotonic()
    setup = load(scale, Path(options.folder), options)
    return run_jobs(names, sizes, setup, records, options, began, keep)


def sizes_of(options: argparse.Namespace) -> arms.Sizes:
    """Raises LabError for a step that is not whole rows."""
    from moxin_lab.lab.artifacts import LabError

    if options.tokens_per_step % options.sequence:
        raise LabError(
            f"--tokens-per-step {options.tokens_per_step} are not whole rows of {options.sequence}"
        )
    return arms.Sizes(
        width=options.width,
        steps=options.steps,
        tokens_per_step=options.tokens_per_step,
        sequence=options.sequence,
        seeds=options.seeds,
        ladder=tuple(int(width) for width in options.ladder_widths.split(",")),
        tokens_per_parameter=options.tokens_per_parameter,
        ladder_batch=options.ladder_batch,
    )


def names_of(options: argparse.Namespace) -> list[str]:
    """The experiments that the command line names. Raises LabError for unknown ones."""
    from moxin_lab.lab.artifacts import LabError

    only, without = (
        {name for name in (text or "").split(",") if name}
        for text in (options.only, options.without)
    )
    unknown = sorted((only | without) - set(arms.NAMES))
    if unknown:
        raise LabError(f"no experiment {', '.join(unknown)}: there are {', '.join(arms.NAMES)}")
    return [name for name in arms.NAMES if (name in only or not only) and name not in without]


def read_records(files: Sequence[str | None]) -> dict[str, dict[str, Any]]:
    """Trainings of earlier files of this bench, by id; a file that is not there yet has none.
    Raises LabError for a file of something else.
    """
    from moxin_lab.lab.artifacts import LabError

    found: dict[str, dict[str, Any]] = {}
    for file in files:
        if file in (None, "-") or not Path(str(file)).is_file():
            continue
        content = json.loads(Path(str(file)).read_text(encoding="utf-8"))
        if content.get("bench") != "recipe":
            raise LabError(f"{file} is not of `moxin-lab bench recipe`: name another file")
        found |= content.get("trainings", {})
    return found


# ---- what is trained on and scored


def load(scale: Scale, folder: Path, options: argparse.Namespace) -> SimpleNamespace:
    """Pools, held-out text and questions. Raises LabError for a folder that is not prepared."""
    import pandas as pd
    from transformers import AutoTokenizer

    from moxin_lab.bench import recipe_training as training
    from moxin_lab.data import corpus_pack
    from moxin_lab.lab.artifacts import LabError, find_root
    from moxin_lab.pretraining.pools import Tokens

    text = folder / "curated" / "heldout.parquet"
    for path in (text, folder / "packed" / "pack.json", folder / "tokenizer"):
        if not path.exists():
            raise LabError(
                f"{path} is missing: make it with `moxin-lab bench pretraining --scale "
                f"{scale.name} --folder {folder} --until packed`"
            )
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    phases = scale.pretraining.phases
    drawn = {*phases[0].mixture, *phases[-1].mixture}
    packed = corpus_pack.read_pools(folder / "packed", drawn, folder / "tokenizer")
    pools = {name: Tokens(*pool) for name, pool in packed.items()}
    card = find_root() / "data_cards" / "instructions" / "data"
    train, test = (pd.read_parquet(card / f"{side}.parquet") for side in ("train", "test"))
    pairs = training.question_pairs(train, training.BENCHMARK_TASKS)
    pools[arms.BENCHMARK_POOL] = training.pool_of(pairs, tokenizer)
    questions = {
        name: training.questions_of(training.question_pairs(test, tasks), tokenizer)
        for name, tasks in (
            ("benchmark", training.BENCHMARK_TASKS),
            ("neighbour", training.NEIGHBOUR_TASKS),
        )
    }
    limit = options.heldout_bytes or scale.pretraining.heldout_bytes_per_language
    documents = pd.read_parquet(text)
    documents = documents[documents["language"].isin(phases[0].mixture)]
    texts = fresh(documents, tokenizer, [pool.ids for pool in pools.values()], limit, options)
    heldout = training.heldout_of(texts, questions, tokenizer)
    manifest = corpus_pack.read_manifest(folder / "packed")
    hashed = hashlib.sha256(corpus_pack.pack_sha256(manifest).encode())
    for one in (*texts["id"], *texts["text"], *(name for name, _, _ in pairs)):
        hashed.update(one.encode("utf-8", "surrogatepass"))
    return SimpleNamespace(
        scale=scale,
        pools=pools,
        heldout=heldout,
        vocab_size=len(tokenizer),
        digest=hashed.hexdigest()[:16],
        corpus={
            "pools": manifest["pools"],
            "sha256": corpus_pack.pack_sha256(manifest),
            "benchmark": {"questions": len(pairs), "tokens": len(pools[arms.BENCHMARK_POOL].ids)},
            "heldout": heldout_counts(heldout.texts),
            "test_questions": {name: len(one.num_bytes) for name, one in questions.items()},
        },
    )


def fresh(
    documents: pd.DataFrame,
    tokenizer: Any,
    streams: Sequence[Any],
    limit: int,
    options: argparse.Namespace,
) -> pd.DataFrame:
    """Held-out documents of which at most 5 % lie in 13-grams of the training pools, for each half
    of the pages half of `limit` bytes by language: columns id, page, language, text, num_bytes.
    """
    import pandas as pd

    from moxin_lab.bench import recipe_training as training
    from moxin_lab.bench.pretraining_corpus import repeated
    from moxin_lab.data.split import MAX_OVERLAP
    from moxin_lab.evaluation import heldout
    from moxin_lab.evaluation.bits_per_byte import encode_documents

    sized = documents.assign(num_bytes=[len(text.encode()) for text in documents["text"]])
    texts = heldout.choose(sized, bytes_per_language=RESERVED * limit, seed=0)
    overlap = repeated(encode_documents(tokenizer, texts["text"].tolist()), streams, options.device)
    texts = texts[overlap <= MAX_OVERLAP]
    halves = [training.half_of(page) for page in texts["page"]]
    return pd.concat(
        [
            heldout.choose(part, bytes_per_language=max(1, limit // 2), seed=0)
            for _, part in texts.groupby(halves)
        ],
        ignore_index=True,
    )


def heldout_counts(texts: pd.DataFrame) -> list[dict[str, Any]]:
    """Documents and bytes by half and language."""
    table = texts.groupby(["half", "language"])["num_bytes"].agg(["size", "sum"]).reset_index()
    return [
        {"half": row[0], "language": row[1], "documents": int(row[2]), "bytes": int(row[3])}
        for row in table.itertuples(index=False)
    ]


# ---- running


def run_jobs(
    names: Sequence[str],
    sizes: arms.Sizes,
    setup: SimpleNamespace,
    records: dict[str, dict[str, Any]],
    options: argparse.Namespace,
    began: float,
    keep: Keep,
) -> dict[str, Any]:
    """Every job that is not in the records, in order, as long as there is time; after each one the
    file is written.
    """
    from moxin_lab.bench.recipe_training import many_shapes

    shapes: set[tuple[Any, ...]] = set()
    with many_shapes():
        while True:
            result = summary(names, sizes, setup, records)
            keep(result)
            used = time.monotonic() - began
            rates = {name: one["rate"] for name, one in result["rates"].items()}
            waiting = [
                job
                for job in arms.jobs(names, sizes, setup.scale, setup.vocab_size, rates)
                if job.ready and job.training.id(setup.digest) not in records
            ]
            in_time = [
                job
                for job in waiting
                if options.seconds is None
                or used + expected_seconds(job.training, setup, records, shapes) <= options.seconds
            ]
            if not in_time:
                return result
            job = in_time[0]
            say(
                f"[{used:.0f} s, {len(waiting)} left] {job.experiment}, {job.arm}, seeds "
                f"{job.training.seed_weights} and {job.training.seed_data}"
            )
            shapes.add(shape_key(job.training))
            records[job.training.id(setup.digest)] = run_training(job.training, setup, options)


def run_training(
    training: arms.Training, setup: SimpleNamespace, options: argparse.Namespace
) -> dict[str, Any]:
    """One training and its scores; one that diverges has `failed` in place of them."""
    import statistics

    from moxin_lab.bench import free_memory, machine, peak_bytes
    from moxin_lab.bench import recipe_training as one
    from moxin_lab.bench.pretraining import useful_flops
    from moxin_lab.pretraining.packing import TrainingStream

    free_memory(options.device)
    config = arms.shape(training, setup.scale, setup.vocab_size)
    phases = arms.phases(training, setup.scale)
    drawn = {name for phase in phases for name in phase.mixture}
    pools: dict[str, Tokens] = {name: setup.pools[name] for name in sorted(drawn)}
    stream = TrainingStream(
        pools, phases, tokens_per_step=training.tokens_per_step, seed=training.seed_data
    )
    settings = one.settings_of(training, setup.scale.pretraining)
    model = one.new_model(training, config).to(options.device)
    described = machine(options.device)
    found: dict[str, Any] = {
        "training": asdict(training),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "inner_parameters": arms.inner_parameters(config),
        "tokens": training.tokens,
        "epochs": {name: stream.consumed[name] / len(pool.ids) for name, pool in pools.items()},
        "machine": described.get("gpu", described["cpu"]),
        "torch": described["versions"]["torch"],
    }
    try:
        log = one.train(model, stream, training, settings, say)
    except ArithmeticError as error:
        return found | {"failed": str(error)}
    began = time.monotonic()
    measures, scores = one.scores_of(
        model, setup.heldout, context=training.sequence, precision=settings.precision
    )
    return found | {
        "flops": sum(useful_flops(stream, config, range(stream.num_steps))),
        "seconds": log.seconds,
        "step_seconds": log.step_seconds,
        "score_seconds": time.monotonic() - began,
        "tokens_per_second": training.tokens_per_step / log.step_seconds,
        "peak_bytes": peak_bytes(options.device),
        "loss": statistics.fmean(log.loss[-20:]),
        "curve": [round(value, 4) for value in log.loss[:: max(1, len(log.loss) // 100)]],
        "measures": measures,
        "scores": scores,
    }


def summary(
    names: Sequence[str],
    sizes: arms.Sizes,
    setup: SimpleNamespace,
    records: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """What the file holds: everything that the trainings so far show."""
    scale, digest = setup.scale, setup.digest
    rates = results.chosen_rates(sizes, scale, records, digest)
    chosen = {name: one["rate"] for name, one in rates.items()}
    jobs = arms.jobs(names, sizes, scale, setup.vocab_size, chosen)
    found = results.differences(jobs, records, digest)
    rungs = results.rungs(jobs, records, digest)
    return {
        "settings": {
            "scale": scale.name,
            **sizes._asdict(),
            "experiments": list(names),
            "phases": [phase.model_dump() for phase in scale.pretraining.phases],
            "digest": digest,
        },
        "corpus": setup.corpus,
        "experiments": experiments(names),
        "rows": results.rows(jobs, records, digest),
        "rates": rates,
        "differences": found,
        "verdicts": results.verdicts(jobs, records, digest, found),
        "spreads": results.spreads(jobs, records, digest),
        "ladder": fitted(json.dumps(rungs)),
        "plan": plan(jobs, scale, setup.vocab_size, records, digest),
        "trainings": dict(records),
    }


@functools.lru_cache(maxsize=1)
def fitted(rungs: str) -> dict[str, Any]:
    """`recipe_results.ladder` of the rungs as JSON, with the shape of the full scale; kept, because
    the file is written after each training and resampling takes a second.
    """
    from moxin_lab import scales
    from moxin_lab.model.config import MoxinConfig

    full = scales.load("full")
    shape = MoxinConfig(vocab_size=full.tokenizer.vocab_size, **full.model.model_dump())
    return results.ladder(json.loads(rungs), shape, full.pretraining.phases[0].sequence_length)


def experiments(names: Sequence[str]) -> list[dict[str, Any]]:
    """The table of `recipe_arms` as it was before the run."""
    found: list[dict[str, Any]] = []
    for name in names:
        pair = arms.BY_NAME.get(name)
        if pair is not None:
            found.append(
                {
                    "name": name,
                    "question": pair.question,
                    "recipe": pair.recipe,
                    "changed": pair.changed,
                    "changes": dict(pair.changes),
                    "measures": [measure._asdict() for measure in pair.measures],
                    "rule": arms.RULE,
                }
            )
        elif name == "ladder":
            found.append({"name": name, "rule": arms.LADDER_RULE})
        elif name == "seeds":
            found.append({"name": name, "question": f"seeds told apart: {arms.SEEDS_PAIR.name}"})
        else:
            found.append({"name": name, "rule": arms.CHOICE_RULE})
    return found


# ---- the plan


def plan(
    jobs: Sequence[arms.Job],
    scale: Scale,
    vocab_size: int,
    records: Mapping[str, dict[str, Any]],
    digest: str,
) -> list[dict[str, Any]]:
    """One row for each experiment and arm, in the order of running: trainings, parameters, tokens,
    expected seconds of a training and of those not shared with an earlier row, and how many ran.
    """
    from moxin_lab.model.config import count_parameters

    setup = SimpleNamespace(scale=scale, vocab_size=vocab_size)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    seen: set[arms.Training] = set()
    shapes: set[tuple[Any, ...]] = set()
    for job in jobs:
        config = arms.shape(job.training, scale, vocab_size)
        row = found.setdefault(
            (job.experiment, job.arm),
            {
                "experiment": job.experiment,
                "arm": job.arm,
                "parameters": count_parameters(config)["total"],
                "outside_embeddings": arms.inner_parameters(config),
                "steps": job.training.steps,
                "tokens": job.training.tokens,
                "trainings": 0,
                "shared": 0,
                "expected_seconds": 0.0,
                "done": 0,
            },
        )
        row["trainings"] += 1
        row["done"] += job.ready and job.training.id(digest) in records
        if job.training in seen:
            row["shared"] += 1
            continue
        seen.add(job.training)
        row["expected_seconds"] += expected_seconds(job.training, setup, records, shapes)
        shapes.add(shape_key(job.training))
    for row in found.values():
        row["expected_seconds"] = round(row["expected_seconds"])
        left = row["trainings"] - row["done"]
        row["status"] = f"not run: {left} of {row['trainings']}" if left else "run"
    return list(found.values())


def shape_key(training: arms.Training) -> tuple[Any, ...]:
    """What a compiled block and loss depend on."""
    return (
        training.width,
        training.tokens_per_step,
        training.sequence,
        training.dropout > 0,
        training.label_smoothing > 0,
    )


def expected_seconds(
    training: arms.Training,
    setup: SimpleNamespace,
    records: Mapping[str, dict[str, Any]],
    shapes: set[tuple[Any, ...]],
) -> float:
    """By the step of a training like it, if one has run, else by the constants above."""
    from moxin_lab.model.config import training_flops_per_token

    start = START_SECONDS + (0 if shape_key(training) in shapes else COMPILE_SECONDS)

    def kind(one: Mapping[str, Any]) -> tuple[Any, ...]:
        fields = ("width", "blocks", "tokens_per_step", "sequence", "optimizer")
        return (*(one[field] for field in fields), one["dropout"] > 0)

    alike = [
        record["step_seconds"]
        for record in records.values()
        if "step_seconds" in record and kind(record["training"]) == kind(asdict(training))
    ]
    if alike:
        return start + training.steps * alike[-1]
    config = arms.shape(training, setup.scale, setup.vocab_size)
    flops = training_flops_per_token(config, training.sequence) * training.tokens_per_step
    step = STEP_FLOOR + flops / (PEAK * SHARE_AT_512 * (training.width / 512) ** 0.5)
    step *= DROPOUT_FACTOR if training.dropout else 1
    step += MUON_SECONDS if training.optimizer == "muon" else 0
    return start + training.steps * step
