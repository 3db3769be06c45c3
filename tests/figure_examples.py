"""An example of each figure of stages 04 to 08 and 10, with labels as long as real runs have, for
tests that measure pictures: `examples()[module, function]` draws it.

Numbers of runs are made up; those of committed records and published tables are read.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moxin_lab import scales
from moxin_lab.evaluation import comparison_figures, published, rankings, results, stage_scores
from moxin_lab.evaluation import figures as evaluation_figures
from moxin_lab.lab import claims
from moxin_lab.lab import published as printed_tables
from moxin_lab.openness import figures as openness_figures
from moxin_lab.openness import report
from moxin_lab.posttraining import figures as tuning_figures
from moxin_lab.posttraining import tables
from moxin_lab.pretraining import experiments
from moxin_lab.pretraining import figures as pretraining_figures
from moxin_lab.pretraining import released as pretraining_released
from moxin_lab.pretraining import results as pretraining_results
from moxin_lab.reasoning import figures as reasoning_figures
from moxin_lab.reasoning import released as reasoning_released
from moxin_lab.vision import data as vision_data
from moxin_lab.vision import figures as vision_figures
from moxin_lab.vision.tasks import Item

REPOSITORY = Path(__file__).resolve().parents[1]
MODULES = (
    "pretraining.figures",
    "pretraining.experiments",
    "posttraining.figures",
    "reasoning.figures",
    "reasoning.released",
    "vision.figures",
    "evaluation.figures",
    "evaluation.comparison_figures",
    "openness.figures",
)
"""Those whose every figure has an example here."""
LANGUAGES = ("en", "zh", "ja", "ko", "de", "fr", "code")


def examples() -> dict[tuple[str, str], Callable[[], Any]]:
    """By module and function, the figure of each with its arguments."""
    return {
        (draw.func.__module__.removeprefix("moxin_lab."), draw.func.__name__): draw
        for draw in [
            *_stage_04(),
            *_stage_05(),
            *_stage_06(),
            *_stage_07(),
            *_stage_08(),
            *_stage_10(),
        ]
    }


def _released(name: str) -> Any:
    path = REPOSITORY / "reports" / "released" / name / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _stage_04() -> list[partial[Any]]:
    settings = scales.load("small").pretraining
    spans = pretraining_results.spans(settings)
    rates = pretraining_results.planned_rates(settings)
    log = pd.DataFrame(
        [
            (step, span.name, 3 + 6 * np.exp(-step / 60), 1 + 20 / (1 + step))
            for span in spans
            for step in range(span.first_step, span.first_step + span.steps)
        ],
        columns=["step", "phase", "loss", "gradient_norm"],
    )
    models = ("untrained", "unigram", "trigram", *(f"after phase {n}" for n in (1, 2, 3)))
    scores = pd.DataFrame(
        [(model, group, 2.0 - n / 5) for n, model in enumerate(models) for group in LANGUAGES],
        columns=["model", "group", "bits_per_byte"],
    ).assign(low=lambda t: t["bits_per_byte"] - 0.1, high=lambda t: t["bits_per_byte"] + 0.1)
    ladder, deeper = map(_released, ("ladder", "smollm2-expansion"))
    ablations = pretraining_released.ablations(REPOSITORY / "reports" / "released" / "ablations")
    mixtures = [phase.mixture for phase in settings.phases]
    return [
        partial(pretraining_figures.schedule, rates, spans, mixtures),
        partial(pretraining_figures.losses, log, spans),
        partial(pretraining_figures.bits_per_byte, scores),
        partial(experiments.ladder, ladder["ladder"]),
        partial(experiments.forest, ablations["verdicts"], ablations["differences"]),
        partial(experiments.expansion, pretraining_released.deeper(deeper)),
    ]


def _stage_05() -> list[partial[Any]]:
    steps = np.arange(200)
    sft = pd.DataFrame(
        {
            "step": steps,
            "nats": 900 / (1 + steps / 40),
            "targets": 128,
            "gradient_norm": 2 + 10 / (1 + steps),
        }
    )
    dpo = pd.DataFrame(
        {
            "step": steps[:40],
            "pairs": 32,
            "correct": 16 + steps[:40] // 4,
            "chosen_ratio": steps[:40] / 4.0,
            "rejected_ratio": -steps[:40] / 4.0,
        }
    )
    names = ["majority", "untrained", "pretrained", "SFT", "DPO, length-normalised", "DPO, plain"]
    exact = pd.DataFrame({"value": np.linspace(0, 0.5, len(names))}, index=names)
    exact = exact.assign(low=exact["value"] - 0.03, high=exact["value"] + 0.03)
    variants = ["mean", "mean, not clipped", "sum", "sum, not clipped", "part_mean"]
    runs = pd.DataFrame(
        [
            (name, size, 6 + n / 9 + seed / 40)
            for n, name in enumerate(variants)
            for size in (32, 8)
            for seed in range(3)
        ],
        columns=["variant", "micro_batch", "answer_loss"],
    )
    pull = tables.preference_push((0.1, 1.0, 5.0), [step / 10 for step in range(-30, 31)])
    logs = {"DPO, length-normalised": dpo, "DPO, plain": dpo}
    return [
        partial(tuning_figures.tuning_path),
        partial(tuning_figures.sft_curve, sft),
        partial(tuning_figures.preference_push, pull),
        partial(tuning_figures.dpo_curves, logs),
        partial(tuning_figures.shares, exact, label="share of exactly correct answers"),
        partial(tuning_figures.reduction_runs, runs, variants),
    ]


def _stage_06() -> list[partial[Any]]:
    steps = np.arange(60)
    log = pd.DataFrame(
        {
            "step": steps,
            "reward": 0.2 + steps / 200,
            "frac_reward_zero_std": 0.6 - steps / 200,
            "entropy": 1.2 - steps / 100,
            "kl": steps / 1000,
        }
    )
    models = ("majority", "untrained", "instruct", "CoT-SFT", "SFT for as long", "GRPO")
    passed = pd.DataFrame(
        [
            (model, group, k, 0.1 * n + 0.02 * k)
            for n, model in enumerate(models)
            for group in ("in-family", "harder", "new family")
            for k in (1, 4, 8)
        ],
        columns=["model", "group", "k", "value"],
    ).assign(low=lambda t: t["value"] - 0.05, high=lambda t: t["value"] + 0.05)
    ends = pd.DataFrame(
        [
            (level, objective, seed, 0.4 - level / 40 + seed / 99, 1 + level / 4)
            for objective in ("naive", "decoupled")
            for level in (0, 1, 2, 4)
            for seed in range(3)
        ],
        columns=["staleness", "objective", "seed", "pass_at_1", "times_faster"],
    )
    names = ("start", "recipe", "no KL term", "clip 0.28 above", "entropy bonus 0.01")
    rows = [
        {"variant": name, "group": group, "k": k, "value": 0.4, "low": 0.35, "high": 0.46}
        for name in names
        for group in reasoning_released.MARKS
        for k in (1, 8)
    ]
    record = {"settings": {"pass_at": [1, 8]}, "scores": rows}
    return [
        partial(reasoning_figures.worked_group, [1, 0, 0, 1, 0, 0, 0, 0]),
        partial(reasoning_figures.reward_curve, log),
        partial(reasoning_figures.pass_at, passed),
        partial(reasoning_figures.staleness, ends),
        partial(reasoning_released.variants, record),
    ]


def _stage_07() -> list[partial[Any]]:
    concepts = vision_data.read_concepts(REPOSITORY / "data_cards" / "emoji", "test")[:6]
    drawn = list(vision_data.render_concepts(concepts, "google", 64))
    asked = {
        "colour": ("Which colour is most of it?", "pink"),
        "count": ("How many are there?", "5"),
        "category": ("Which group is it of?", "Smileys & Emotion"),
        "presence": ("Is a woman wearing turban in the picture?", "no"),
    }
    items = [
        Item(f"{task}-1", task, "", *words, (), drawn[number])
        for number, (task, words) in enumerate(asked.items())
    ]
    examples = {item.task: item for item in items}
    sample = pd.DataFrame(
        [(item.id, item.question, item.answer, item.answer, "5", "green") for item in items],
        columns=["id", "question", "truth", "model", "shuffled", "blind"],
    ).set_index("id")
    words = (
        "<s>",
        "In",
        ":",
        "·W",
        "h",
        "ich",
        "·colour",
        "·category",
        "?↵",
        "Out",
        ":",
        "p",
        "ink",
    )
    tokens = [(word, word in ("p", "ink")) for word in words]
    log = pd.DataFrame({"step": range(40), "loss": [6 - step / 20 for step in range(40)]})
    recall = pd.DataFrame(
        {"R@5": [0.1, 0.7], "R@5 low": [0.05, 0.6], "R@5 high": [0.2, 0.8], "chance R@5": 0.035},
        index=["DINO, untrained", "pixels, 16 x 16"],
    )
    answerers = vision_figures.MODEL_AND_BASELINES
    scores = pd.DataFrame(
        [(task, name, 0.4, 0.3, 0.5) for task in asked for name in answerers],
        columns=["task", "answerer", "value", "low", "high"],
    )
    runs = pd.DataFrame(
        [(arm, seed, 0.4 + seed / 99) for arm in ("no-align", "three-epochs") for seed in range(3)],
        columns=["arm", "seed", "accuracy"],
    )
    maps = {name: np.zeros((6, 4, 4)) for name in ("dino", "siglip")}
    names = [one.label() for one in concepts]
    return [
        partial(vision_figures.gallery, drawn, names),
        partial(vision_figures.two_styles, concepts),
        partial(vision_figures.question_gallery, examples),
        partial(vision_figures.answer_gallery, items, sample),
        partial(vision_figures.picture_to_tokens, drawn[0], 4, tokens),
        partial(vision_figures.losses, {"SigLIP": log, "DINO": log}),
        partial(vision_figures.recalls, recall),
        partial(vision_figures.task_scores, scores),
        partial(vision_figures.arms, runs, value="accuracy", label="share of correct answers"),
        partial(vision_figures.similarity_maps, drawn, maps, names),
    ]


def _stage_10() -> list[partial[Any]]:
    every = claims.verdicts(REPOSITORY, [], "tiny")
    looks = list(openness_figures.VERDICT_LOOKS)
    listed = [replace(item, verdict=looks[n % len(looks)]) for n, item in enumerate(every)]
    return [
        partial(openness_figures.component_figure, report.readings(REPOSITORY)),
        partial(openness_figures.verdict_figure, listed),
    ]


def checkpoint_shares() -> pd.DataFrame:
    """The shares of every checkpoint of stage 08 on every benchmark."""
    names = (stage_scores.UNTRAINED, *stage_scores.CHAIN, "SmolLM2-135M")
    benchmarks = (*stage_scores.CHANCE, stage_scores.QUESTIONS)
    frame = pd.DataFrame(
        [
            (name, benchmark, (20 + 7 * n) % 60 / 100, 200)
            for benchmark in benchmarks
            for n, name in enumerate(names)
        ],
        columns=["checkpoint", "benchmark", "share", "items"],
    )
    return frame.assign(low=frame["share"] - 0.06, high=frame["share"] + 0.06)


def published_tables() -> dict[str, published.PublishedTable]:
    """The published tables by name."""
    return {table.name: table for table in published.load_tables(REPOSITORY / "papers" / "tables")}


def _stage_08() -> list[partial[Any]]:
    printed = published_tables()
    bits = pd.DataFrame(
        [
            (model, language, 2.0 - n, 1.9 - n, 2.1 - n)
            for n, model in enumerate(("trained", "untrained"))
            for language in LANGUAGES
        ],
        columns=["model", "language", "bits_per_byte", "low", "high"],
    )
    cloze = pd.DataFrame(
        [
            (model, language, metric, 0.3, 0.2, 0.4, 100)
            for metric in results.METRICS
            for model in ("trained", "untrained", "n-grams")
            for language in (*LANGUAGES, "all")
        ],
        columns=["model", "language", "metric", "accuracy", "low", "high", "items"],
    )
    positions = pd.DataFrame(
        [
            (reader, first, first + 63, 200.0 - n, 180.0 - n, 220.0 - n)
            for n, reader in enumerate(("full cache", "ring cache", "no window"))
            for first in range(0, 512, 64)
        ],
        columns=["reader", "first", "last", "perplexity", "low", "high"],
    )
    needles = pd.DataFrame(
        [
            (reader, distance, 0.9 / (1 + distance / 100))
            for reader in ("full cache", "ring cache")
            for distance in (16, 64, 128, 256)
        ],
        columns=["reader", "distance", "share"],
    ).assign(low=lambda t: t["share"] - 0.1, high=lambda t: t["share"] + 0.1)
    found_by = {"this model": (needles, 64), "SmolLM2-135M": (needles, 64)}
    group = [printed[name] for name in published.GROUPS["base"]]
    cells = rankings.with_intervals(printed_tables.cells(REPOSITORY / "papers" / "tables"))
    compared = rankings.pairs(cells, "table_2_zero_shot_base")
    averages = printed["table_2_zero_shot_base"].frame.set_index("model")["Ave"]
    return [
        partial(evaluation_figures.averages, averages),
        partial(evaluation_figures.bits_figure, bits),
        partial(evaluation_figures.cloze_figure, cloze),
        partial(comparison_figures.checkpoints, checkpoint_shares(), 0.3),
        partial(comparison_figures.positions, positions, 64),
        partial(comparison_figures.needles, found_by),
        partial(comparison_figures.rankings, compared),
        partial(comparison_figures.leads, [published.lead(table) for table in group]),
    ]
