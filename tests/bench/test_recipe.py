"""The recipe bench: the lab's own training, arms of equal compute, resumption, rates chosen on one
half and differences reported on the other, verdicts by rule.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from moxin_lab import scales
from moxin_lab.bench import recipe, recipe_arms, recipe_page, recipe_results, recipe_training
from moxin_lab.bench.keeping import keeping
from moxin_lab.bench.pretraining import useful_flops
from moxin_lab.evaluation.scoring import Request
from moxin_lab.model.config import training_flops_per_token
from moxin_lab.pretraining import trainer
from moxin_lab.pretraining.packing import TrainingStream
from moxin_lab.pretraining.pools import Tokens

VOCABULARY = 60
SCALE = scales.load("tiny")
SIZES = recipe_arms.Sizes(16, 5, 64, 32, 3, (16, 24, 32, 40, 48), 0.004, 128)
RATES = {"adamw": 0.01, "muon": 0.01}


def pool(seed: int) -> Tokens:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(5, 60, 40)
    ids = generator.integers(4, VOCABULARY, lengths.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    names = [f"{seed}/{index}" for index in range(40)]
    return Tokens(ids, offsets, lengths, names, VOCABULARY)


@pytest.fixture(scope="module")
def setup() -> SimpleNamespace:
    phases = SCALE.pretraining.phases
    names = sorted({*phases[0].mixture, *phases[-1].mixture, recipe_arms.BENCHMARK_POOL})
    pages = [f"page {index}" for index in range(20)]
    languages = ["en", "code"]
    texts = pd.DataFrame(
        [
            {"id": f"{page}/{language}", "page": page, "language": language, "num_bytes": 30}
            for page in pages
            for language in languages
        ]
    )
    texts["half"] = [recipe_training.half_of(page) for page in texts["page"]]
    generator = np.random.default_rng(9)
    tokens = [generator.integers(4, VOCABULARY, 12).tolist() for _ in range(len(texts))]
    questions = recipe_training.Questions([Request([1, 5, 6, 7], 1)], [1])
    heldout = recipe_training.Heldout(
        texts, tokens, {"benchmark": questions, "neighbour": questions}, bos=1
    )
    return SimpleNamespace(
        scale=SCALE,
        pools={name: pool(index) for index, name in enumerate(names)},
        heldout=heldout,
        vocab_size=VOCABULARY,
        digest="text",
        corpus={},
    )


def options(json_file: Path | None, seconds: float | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        device="cpu", json=None if json_file is None else str(json_file), seconds=seconds
    )


def stream_of(training, setup):
    phases = recipe_arms.phases(training, SCALE)
    pools = {name: setup.pools[name] for phase in phases for name in phase.mixture}
    return TrainingStream(
        pools, phases, tokens_per_step=training.tokens_per_step, seed=training.seed_data
    )


# ---- a training


def test_the_weights_are_those_of_the_labs_own_training_bit_for_bit(setup, tmp_path):
    training = recipe_arms.Training(16, 5, 64, 32, 0.01, blocks=3)
    config = recipe_arms.shape(training, SCALE, VOCABULARY)
    settings = recipe_training.settings_of(training, SCALE.pretraining)
    ours, labs = (recipe_training.new_model(training, config) for _ in range(2))
    log = recipe_training.train(ours, stream_of(training, setup), training, settings)
    table = trainer.fit(
        labs,
        stream_of(training, setup),
        settings,
        resume_folder=tmp_path,
        save_phase=lambda index: None,
        trainer_options={"accelerator": "cpu"},
    )
    for mine, other in zip(ours.parameters(), labs.parameters(), strict=True):
        assert torch.equal(mine, other)
    np.testing.assert_allclose(log.loss, table["loss"], rtol=1e-6)


@pytest.mark.parametrize(
    "changes", [{"optimizer": "muon"}, {"label_smoothing": 0.1}, {"dropout": 0.1}]
)
def test_an_arm_differs_from_the_recipe_and_repeats_itself(setup, changes):
    base = recipe_arms.Training(16, 3, 64, 32, 0.01, blocks=2)
    weights = []
    for training in (base, replace(base, **changes), replace(base, **changes)):
        model = recipe_training.new_model(training, recipe_arms.shape(training, SCALE, VOCABULARY))
        settings = recipe_training.settings_of(training, SCALE.pretraining)
        recipe_training.train(model, stream_of(training, setup), training, settings)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])


def test_a_training_that_diverges_is_a_row_with_its_reason(setup, monkeypatch):
    def nan_loss(model, batch, loss):
        return model.lm_head.weight.sum() * float("nan")

    monkeypatch.setattr(trainer, "token_loss", nan_loss)
    training = recipe_arms.Training(16, 5, 64, 32, 0.01, blocks=1)
    record = recipe.run_training(training, setup, options(None))
    assert "diverged at step 2" in record["failed"] and "measures" not in record


# ---- the table of arms


def test_32_blocks_take_as_many_steps_as_the_same_compute_allows(setup):
    sizes = SIZES._replace(steps=50)
    jobs = [
        job
        for job in recipe_arms.jobs(["depth"], sizes, SCALE, VOCABULARY, RATES)
        if job.experiment == "depth"
    ]
    deep, shallow = (job.training for job in jobs[:2])
    assert (deep.blocks, shallow.blocks) == (36, 32) and shallow.steps > deep.steps
    costs, steps = [], []
    for training in (deep, shallow):
        config = recipe_arms.shape(training, SCALE, VOCABULARY)
        costs.append(training_flops_per_token(config, training.sequence) * training.tokens)
        steps.append(costs[-1] / training.steps)
    assert 0 <= costs[0] - costs[1] < steps[1]
    # By the pairs that the rows' own masks allow the two are equal to one step as well.
    real = [
        sum(
            useful_flops(
                stream_of(training, setup),
                recipe_arms.shape(training, SCALE, VOCABULARY),
                range(training.steps),
            )
        )
        for training in (deep, shallow)
    ]
    assert abs(real[0] - real[1]) < 1.5 * steps[0]


def test_arms_of_a_pair_differ_in_what_the_table_says_alone():
    names = [experiment.name for experiment in recipe_arms.PAIRS]
    jobs = recipe_arms.jobs(names, SIZES, SCALE, VOCABULARY, RATES)
    for experiment in recipe_arms.PAIRS:
        own = [job for job in jobs if job.experiment == experiment.name]
        assert [job.arm for job in own] == [experiment.recipe, experiment.changed] * 3
        for before, after in zip(own[::2], own[1::2], strict=True):
            again = replace(before.training, **experiment.changes, steps=after.training.steps)
            assert again == after.training


def test_the_rows_before_phase_3_are_the_same_with_and_without_it(setup):
    base = recipe_arms.Training(16, 20, 64, 32, 0.01)
    streams = [
        stream_of(replace(base, data=data), setup)
        for data in ("recipe", "no phase 3", "benchmark in phase 3")
    ]
    for step in range(18):
        first = streams[0].batch(step)["input_ids"]
        assert all(np.array_equal(first, one.batch(step)["input_ids"]) for one in streams[1:])
    assert recipe_arms.BENCHMARK_POOL in streams[2].consumed
    assert "code" not in stream_of(replace(base, data="no code"), setup).consumed


def test_a_ladder_has_tokens_in_proportion_and_the_recipes_depth():
    small = scales.load("small")
    sizes = recipe_arms.Sizes(256, 610, 32768, 512, 3, (80, 128, 256, 384, 640), 1.0, 65536)
    widths = {}
    for job in recipe_arms.ladder(sizes, small, 32000):
        config = recipe_arms.shape(job.training, small, 32000)
        count = recipe_arms.inner_parameters(config)
        widths[job.training.width] = count
        assert config.num_hidden_layers == 36
        assert job.training.tokens == pytest.approx(count, rel=0.01)
        assert job.training.learning_rate == pytest.approx(1e-3 * 512 / job.training.width)
        assert config.initializer_range == pytest.approx(0.02 * (4096 / config.hidden_size) ** 0.5)
    assert min(widths.values()) == pytest.approx(3e6, rel=0.05)
    assert max(widths.values()) == pytest.approx(2e8, rel=0.06)


def test_questions_of_the_benchmark_and_of_its_neighbour_are_apart():
    assert not set(recipe_training.BENCHMARK_TASKS) & set(recipe_training.NEIGHBOUR_TASKS)


# ---- a run


def run_jobs(names, sizes, setup, records, options):
    """As `recipe.run`, of these sizes and tokens."""

    @keeping("recipe")
    def run(options, keep):
        return recipe.run_jobs(names, sizes, setup, records, options, 0.0, keep)

    return run(options)


def test_a_half_finished_file_is_continued_and_what_was_not_run_is_said(
    setup, tmp_path, monkeypatch
):
    file = tmp_path / "recipe.json"
    calls = []

    def counted(training, setup, options):
        calls.append(training)
        return run_training(training, setup, options)

    run_training = recipe.run_training
    monkeypatch.setattr(recipe, "run_training", counted)
    monkeypatch.setattr(recipe_arms, "BLOCKS", 2)
    sizes = SIZES._replace(seeds=1, steps=2)
    half = run_jobs(["adamw-rate"], sizes, setup, {}, options(file))
    assert len(calls) == 3 and len(half["rows"]) == 3
    assert [row["status"] for row in half["plan"]] == ["run"] * 3
    records = recipe.read_records([str(file), None, str(tmp_path / "not there")])
    base = recipe_arms.rule_rate(setup.scale, sizes.width)
    one = {name: r for name, r in records.items() if r["training"]["learning_rate"] == base}
    early = run_jobs(["label-smoothing"], sizes, setup, one, options(file, 0))
    assert [row["experiment"] for row in early["rows"]] == ["adamw-rate"]  # no rate is chosen yet
    assert [row["done"] for row in early["plan"]] == [0, 1, 0, 0, 0]
    late = run_jobs(["label-smoothing"], sizes, setup, records, options(file, 0))
    assert len(calls) == 3  # no time was left
    assert [row["status"] for row in late["plan"]][-1] == "not run: 1 of 1"
    done = run_jobs(["label-smoothing"], sizes, setup, records, options(file))
    # The recipe's arm at the chosen rate is one of the grid's; the changed arm is the only new one.
    assert len(calls) == 4 and calls[-1].label_smoothing == 0.1
    assert calls[-1].learning_rate == done["rates"]["adamw"]["rate"]
    assert len(json.loads(file.read_text())["trainings"]) == 4
    again = run_jobs(["label-smoothing"], sizes, setup, records, options(file))
    assert len(calls) == 4 and again["rows"] == done["rows"]


def test_a_file_of_another_bench_is_refused(tmp_path):
    from moxin_lab.lab.artifacts import LabError

    (tmp_path / "a.json").write_text('{"bench": "decode"}')
    with pytest.raises(LabError, match="is not of"):
        recipe.read_records([str(tmp_path / "a.json")])


def planted(values, **others):
    """Records of the jobs, with the measures that `values(job)` gives."""
    jobs = recipe_arms.jobs(others.pop("names"), SIZES, SCALE, VOCABULARY, RATES)
    return jobs, {job.training.id("text"): {"measures": values(job)} for job in jobs}


def test_the_validation_half_chooses_the_rate_and_an_edge_is_said():
    jobs, records = planted(
        lambda job: {"validation": abs(job.training.learning_rate - 0.018), "mean": 1.0},
        names=["adamw-rate"],
    )
    base = recipe_arms.rule_rate(SCALE, SIZES.width)
    found = recipe_results.chosen_rates(SIZES, SCALE, records, "text")
    assert found["adamw"]["rate"] == min((base / 2, base, 2 * base), key=lambda r: abs(r - 0.018))
    assert found["adamw"]["at_edge"] == (found["adamw"]["rate"] != base) and "muon" not in found
    del records[jobs[0].training.id("text")]
    assert not recipe_results.chosen_rates(SIZES, SCALE, records, "text")


@pytest.mark.parametrize(
    ("added", "verdict"),
    [
        ((0.10, 0.11, 0.12), "worse"),
        ((-0.10, -0.11, -0.12), "better"),
        ((0.10, -0.11, 0.02), "no difference seen"),
    ],
)
def test_the_verdict_follows_from_the_interval_over_paired_seeds(added, verdict):
    def values(job):
        seed = job.training.seed_weights
        changed = job.training.label_smoothing > 0
        return {"validation": 1.0, "mean": 3.0 + seed + (added[seed] if changed else 0)}

    jobs, records = planted(values, names=["label-smoothing"])
    rows = recipe_results.differences(jobs, records, "text")
    row = next(row for row in rows if row["experiment"] == "label-smoothing")
    assert row["difference"] == pytest.approx(np.mean(added)) and row["seeds"] == 3
    assert row["recipe_spread"] == pytest.approx(1.0)
    said = recipe_results.verdicts(jobs, records, "text", rows)
    assert [one["verdict"] for one in said] == [verdict]


def test_more_right_answers_are_better_and_a_diverged_arm_is_undecided():
    experiment = recipe_arms.BY_NAME["benchmark"]
    row = {"difference": 0.2, "low": 0.1, "high": 0.3, "seeds": 3, "recipe_spread": 0.01}
    right = recipe_results.verdict_of(experiment, recipe_arms.BENCHMARK_RIGHT, row, [])
    bits = recipe_results.verdict_of(experiment, recipe_arms.BENCHMARK, row, [])
    failed = recipe_results.verdict_of(experiment, recipe_arms.BENCHMARK, row, ["it diverged"])
    assert (right[0], bits[0], failed[0]) == ("better", "worse", "undecided")


def test_seeds_of_weights_and_of_data_are_told_apart():
    def values(job):
        one = job.training
        changed = 0.5 if one.optimizer == "muon" else 0
        return {"validation": 1, "mean": 3 + 0.1 * one.seed_weights + changed * one.seed_data}

    jobs, records = planted(values, names=["seeds"])
    found = {
        (row["what"], row["changes"]): row["spread"]
        for row in recipe_results.spreads(jobs, records, "text")
    }
    assert found["AdamW", "weights"] == pytest.approx(0.1)
    assert found["AdamW", "data"] == pytest.approx(0)
    assert found["difference", "data"] == pytest.approx(0.5)
    assert found["difference", "weights"] == pytest.approx(0)


def test_the_ladders_fit_predicts_a_planted_last_rung():
    rungs = []
    for index, flops in enumerate((1e14, 7e14, 5e15, 3e16, 2e17)):
        loss = 1.0 + 0.8 * (flops / 5e15) ** -0.12
        runs = [loss - 0.002, loss, loss + 0.002] if index < 3 else [loss]
        rungs.append(
            {"flops": flops, "seeds": len(runs), "mean": loss, "nats_per_token": loss}
            | {"mean_runs": runs, "nats_per_token_runs": runs}
        )
    full = recipe_arms.shape(recipe_arms.Training(256, 1, 1, 512, 1e-3), SCALE, VOCABULARY)
    found = recipe_results.ladder(rungs, full, 512)["fits"]["mean"]
    assert found["holds"] and found["all"]["exponent"] == pytest.approx(0.12, rel=0.05)
    low, high = found["all"]["exponent_interval"]
    assert low < 0.12 < high
    rungs[-1]["mean"] += 0.2
    assert not recipe_results.ladder(rungs, full, 512)["fits"]["mean"]["holds"]
    assert recipe_results.ladder(rungs[:4], full, 512) == {}


# ---- the page


def test_the_page_says_verdicts_fit_and_what_was_not_run(tmp_path):
    def values(job):
        one = job.training
        bits = 2.0 + 0.01 * one.seed_weights + (0.1 if one.dropout else 0)
        return {"validation": 2.0, "mean": bits, "text": bits, "code": bits}

    jobs, records = planted(values, names=["dropout"])
    differences = recipe_results.differences(jobs, records, "text")
    rungs = [
        {
            "width": 8 * index,
            "parameters": 10**5 * index,
            "tokens": 10,
            "flops": 10.0 ** (14 + index),
        }
        | {"seeds": 1, "epochs": {"ko": 2.5}, "mean": 1 + 2.0**-index, "nats_per_token": 3.0}
        | {"mean_runs": [1 + 2.0**-index], "nats_per_token_runs": [3.0 - 0.1 * index]}
        for index in range(1, 6)
    ]
    full = recipe_arms.shape(recipe_arms.Training(256, 1, 1, 512, 1e-3), SCALE, VOCABULARY)
    record = {
        "bench": "recipe",
        "command": "moxin-lab bench recipe",
        "machine": {"gpu": "GPU", "versions": {"torch": "2"}, "date": "2026-11-29"},
        "settings": {"scale": "tiny"},
        "corpus": {"sha256": "0123456789"},
        "experiments": recipe.experiments(["dropout"]),
        "rates": recipe_results.chosen_rates(SIZES, SCALE, records, "text"),
        "differences": differences,
        "verdicts": recipe_results.verdicts(jobs, records, "text", differences),
        "spreads": [],
        "ladder": recipe_results.ladder(rungs, full, 512),
        "plan": recipe.plan(jobs, SCALE, VOCABULARY, {}, "text"),
    }
    (tmp_path / "recipe.json").write_text(json.dumps(record))
    text = recipe_page.write(tmp_path).read_text()
    assert "**dropout**: 0.1 against none" in text and "worse, +0.1000" in text
    assert "The first 4 rungs predict" in text and "not run: 3 of 3" in text
    for picture in ("ladder.svg", "ablations.svg"):
        assert (tmp_path / picture).read_text().startswith("<svg") and f"]({picture})" in text
    with pytest.raises(ValueError, match="no JSON file"):
        recipe_page.write(tmp_path / "empty")
