"""The expansion bench: equal compute, the same start for identity blocks, exact resumption, paired
differences.
"""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moxin_lab import scales
from moxin_lab.bench import expansion
from moxin_lab.lab.artifacts import LabError
from moxin_lab.pretraining.pools import Tokens

VOCABULARY = 40


class SmallScale:
    """A scale with the recipe's depth and the smallest sizes."""

    tokenizer = SimpleNamespace(vocab_size=VOCABULARY)
    model = SimpleNamespace(
        model_dump=lambda: {
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 36,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 4,
            "sliding_window": 16,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
        }
    )
    pretraining = SimpleNamespace(
        phases=(SimpleNamespace(sequence_length=16, mixture={"a": 100}),),
        tokens_per_step=32,
        micro_batch_tokens=16,
        learning_rate=1e-2,
        warmup_steps=20,
        weight_decay=0.1,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_eps=1e-8,
        gradient_clip_norm=1.0,
    )


def tokens(seed):
    generator = np.random.default_rng(seed)
    pieces = [
        np.array([1, *generator.integers(4, VOCABULARY, 20), 2], dtype=np.int32) for _ in range(20)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
    return Tokens(
        np.concatenate(pieces),
        offsets,
        np.ones(20, dtype=np.int64),
        list(map(str, range(20))),
        VOCABULARY,
    )


@pytest.fixture(scope="module", autouse=True)
def small():
    data = SimpleNamespace(
        pools={"a": tokens(0)},
        heldout=[tokens(9).document(i)[1:-1].tolist() for i in range(4)],
        languages=["x", "x", "y", "y"],
        num_bytes=np.array([30, 31, 32, 33]),
        bos_id=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scales, "load", lambda name: SmallScale)
        patch.setattr(
            expansion,
            "load_data",
            lambda plan, real=expansion.load_data: data if plan.runs != MISSING else real(plan),
        )
        yield


MISSING = Path("nowhere")


def make_options(work):
    return SimpleNamespace(
        scale="tiny",
        seeds=2,
        steps=4,
        tokens_per_step=None,
        heldout_bytes=100,
        work=str(work),
        runs=".",
        root=None,
        device="cpu",
        json=None,
    )


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    work = tmp_path_factory.mktemp("finished")
    return work, expansion.run(make_options(work))


@pytest.fixture
def options(tmp_path):
    return make_options(tmp_path / "work")


@pytest.fixture
def result(options, finished):
    """A finished run whose folder a test may change."""
    shutil.copytree(finished[0], options.work)
    return finished[1]


def test_every_arm_costs_the_budget_up_to_less_than_one_step(options):
    plan = expansion.make_plan(options)
    rows = {row["arm"]: row for row in expansion.compute(plan)}
    assert tuple(rows) == expansion.ARMS
    budget = rows["32 continued"]["flops"]
    assert budget == 8 * 32 * plan.flops[32]
    for arm, row in rows.items():
        assert budget - plan.flops[int(arm[:2])] * 32 < row["flops"] <= budget
        assert row["tokens"] == row["steps"] * 32
    assert (
        rows["36 from scratch"]["steps"]
        <= rows["36 identity"]["steps"]
        <= rows["32 continued"]["steps"]
    )


def test_rows_hold_every_arm_and_seed_and_arms_share_their_start(result):
    rows = {(row["seed"], row["arm"]): row for row in result["rows"]}
    assert set(rows) == {(seed, arm) for seed in range(2) for arm in expansion.ARMS}
    for seed in range(2):
        start = {arm: rows[seed, arm]["bits_per_byte_at_start"] for arm in expansion.ARMS}
        assert start["36 identity"] == start["32 continued"]
        assert (
            len(
                {
                    start["36 interleaved"],
                    start["36 top"],
                    start["32 continued"],
                    start["36 from scratch"],
                }
            )
            == 4
        )
        for arm in expansion.ARMS:
            assert rows[seed, arm]["bits_per_byte"] < start["36 from scratch"], (
                "training must have lowered the loss"
            )
            assert set(rows[seed, arm]["by_language"]) == {"x", "y"}
    assert rows[0, "32 continued"]["bits_per_byte"] != rows[1, "32 continued"]["bits_per_byte"]


def test_a_second_run_reads_stored_results_and_trains_nothing(options, result, monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("trained again")

    monkeypatch.setattr(expansion, "train", refuse)
    assert expansion.run(options) == result


def test_a_killed_run_resumes_with_the_same_numbers(options, result, monkeypatch, tmp_path):
    def without_times(rows):
        return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]

    real, calls = expansion.train, []

    def killed(*arguments, **named):
        calls.append(named["name"])
        if len(calls) == 4:  # stem, continued, identity, then interleaved
            raise KeyboardInterrupt
        return real(*arguments, **named)

    options.work = str(tmp_path / "killed")
    monkeypatch.setattr(expansion, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        expansion.run(options)
    resumed = expansion.run(options)
    assert calls.count("stem") == options.seeds, "the stem is stored, not trained again"
    assert without_times(resumed["rows"]) == without_times(result["rows"])


def test_results_of_other_settings_are_refused(options, result):
    options.steps = 5
    with pytest.raises(LabError, match="was made with other settings: give another --work folder"):
        expansion.run(options)


def test_continuing_from_the_stem_equals_one_uninterrupted_training(options, tmp_path):
    plan = expansion.make_plan(options)
    data = expansion.load_data(plan)
    work = tmp_path / "seam"
    work.mkdir()
    model, moments = expansion.load_stem(plan, data, 0, work, "cpu")
    named = {"steps": 4, "device": "cpu", "name": "32 continued"}
    expansion.train(model, plan, data, 0, first=4, moments=moments, **named)
    whole, _ = expansion.load_stem(plan, data, 0, work, "cpu")
    whole.init_weights(torch.Generator().manual_seed(0))
    expansion.train(whole, plan, data, 0, first=0, moments={}, **{**named, "steps": 8})
    for (name, ours), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, other), name


def test_old_weights_keep_their_moments_and_new_blocks_have_none(options, tmp_path):
    plan = expansion.make_plan(options)
    (tmp_path / "moments").mkdir()
    model, moments = expansion.load_stem(
        plan, expansion.load_data(plan), 0, tmp_path / "moments", "cpu"
    )
    assert set(moments) == {name for name, _ in model.named_parameters()}
    carried = expansion.carry_moments(moments, "identity")
    new = {f"model.layers.{layer}." for layer in (8, 17, 26, 35)}
    assert {name[: name.index(".", 13) + 1] for name in carried if ".layers." in name} == {
        f"model.layers.{layer}." for layer in range(36)
    } - new
    assert (
        carried["model.layers.9.mlp.up_proj.weight"] is moments["model.layers.8.mlp.up_proj.weight"]
    )


def test_the_learning_rate_is_constant_in_the_first_half_and_ends_at_a_tenth(options):
    plan = expansion.make_plan(options)
    rates = [expansion.lr_factor(step, plan, 80, 40) for step in range(80)]
    assert rates[1:40] == [1.0] * 39 and rates[-1] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[39:]))


def test_differences_are_paired_by_seed_with_an_interval_of_students_t():
    values = {"32 continued": [2.0, 3.0, 4.0], "36 identity": [2.1, 3.2, 4.3]}
    rows = [
        {"arm": arm, "seed": seed, "bits_per_byte": values.get(arm, values["32 continued"])[seed]}
        for arm in expansion.ARMS
        for seed in range(3)
    ]
    differences = {row["arm"]: row for row in expansion.paired_differences(rows)}
    identity = differences["36 identity"]
    assert identity["by_seed"] == pytest.approx([0.1, 0.2, 0.3]) and identity[
        "mean"
    ] == pytest.approx(0.2)
    assert identity["interval"] == pytest.approx(
        [0.2 - 4.303 * 0.1 / 3**0.5, 0.2 + 4.303 * 0.1 / 3**0.5]
    )
    assert differences["36 top"]["interval"] == [0.0, 0.0]
    alone = expansion.paired_differences([row for row in rows if row["seed"] == 0])
    assert alone[0]["interval"] is None


def test_missing_artifacts_name_the_command_that_makes_them():
    plan = SimpleNamespace(runs=MISSING, settings={"scale": "tiny"})
    with pytest.raises(
        LabError,
        match="01_data_curation/documents is missing: moxin-lab run --scale tiny --only 01",
    ):
        expansion.load_data(plan)
