"""Guarantees of the asynchronous variant: the decoupled formula, a deterministic grid, bounded
staleness, the clock.
"""

import threading
import time

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from moxin_lab.reasoning import grpo
from moxin_lab.reasoning.asynchronous import (
    COLUMNS,
    OverlappedEngine,
    modelled_seconds,
    staleness_grid,
    train_overlapped,
)
from moxin_lab.reasoning.grpo_trainer import grpo_loss
from moxin_lab.reasoning.log_probs import completion_log_probs
from moxin_lab.reasoning.ring_engine import RingEngine
from moxin_lab.reasoning.rollout import SamplingSettings
from moxin_lab.reasoning.rollout_requests import requests
from tests.posttraining.examples import make_model
from tests.reasoning.test_grpo_trainer import (
    EOS,
    PAD,
    PROBLEMS,
    TOKENIZER,
    letters,
    make_settings,
    train,
)

CPU = {"accelerator": "cpu"}


def weight(model):
    """A number that differs between weights."""
    assert not model.training
    return float(model.lm_head.weight.detach().double().abs().sum())


def grid(folder, **changes):
    options = {
        "seeds": [0],
        "staleness": (0, 1),
        "folder": folder,
        "trainer_options": CPU,
        "judge": weight,
        **changes,
    }
    settings = make_settings(steps=3, updates_per_rollout=2, kl_coef=0.0, log_kl=False)
    return staleness_grid(make_model, TOKENIZER, PROBLEMS, letters, settings, **options)


# --------------------------------------------------------------------------------------------------
# objectives


def batch_of_two(old, behaviour):
    """One sequence of two tokens after a prompt of one, advantage 1; log-probabilities of the start
    and of the sampler.
    """
    ids = torch.tensor([[5, 6, 7]])
    scalars = {
        "step_sequences": 1.0,
        "step_tokens": 2.0,
        "rollout_tokens": 2.0,
        "max_completion_length": 7.0,
    }
    return {
        "input_ids": ids,
        "mask": torch.ones(1, 2, dtype=torch.bool),
        "advantages": torch.tensor([1.0]),
        "sampling_log_probs": behaviour,
        "old_log_probs": old,
        **{name: torch.tensor(value) for name, value in scalars.items()},
    }


def test_the_decoupled_loss_is_the_closed_form_on_two_tokens():
    """-1/2 sum of min(w, cap else 0) x min(u A, clip(u) A), u = policy / start, w = start /
    sampler; the naive one has no w.
    """
    model = make_model()
    with torch.no_grad():
        now, _ = completion_log_probs(
            model, torch.tensor([[5, 6, 7]]), torch.ones(1, 2, dtype=torch.bool), 0.9
        )
    old = now - torch.tensor(
        [[0.1, 0.5]]
    )  # ratios 1.105 and 1.649, of which the second is clipped to 1.2
    for gap, weights in (
        ((0.3, -0.4), (1.3498588, 0.6703200)),
        ((0.3, 2.0), (1.3498588, 0.0)),
    ):  # exp(2) is above the cap of 5
        behaviour = old - torch.tensor([gap])
        found = grpo_loss(make_settings(correction="decoupled", kl_coef=0.0))(
            model, batch_of_two(old, behaviour)
        )
        assert found["loss"].item() == pytest.approx(
            -0.5 * (weights[0] * 1.1051709 + weights[1] * 1.2), rel=1e-5
        )
        assert int(found["left_out"]) == (weights[1] == 0.0)
    behaviour = now - torch.tensor([[0.1, 0.5]])
    found = grpo_loss(make_settings(correction="naive", kl_coef=0.0))(
        model, batch_of_two(now, behaviour)
    )
    assert found["loss"].item() == pytest.approx(-0.5 * (1.1051709 + 1.2), rel=1e-5)


def test_with_fresh_rollouts_both_objectives_are_the_synchronous_one(tmp_path):
    runs = [
        train(
            tmp_path / name,
            make_settings(correction=name, updates_per_rollout=2, learning_rate=1e-3),
        )
        for name in ("none", "naive", "decoupled")
    ]
    for _, log in runs[1:]:
        for name in ("loss", "gradient_norm", "reward"):
            torch.testing.assert_close(
                torch.tensor(log[name]), torch.tensor(runs[0][1][name]), rtol=1e-3, atol=1e-5
            )


def test_behaviour_weights_that_do_not_fit_are_refused():
    values = torch.zeros(2, 3)
    step = grpo.totals([torch.ones(2, 3)])[0]
    with pytest.raises(ValueError, match="behaviour_weights has shape"):
        grpo.policy_loss(
            values,
            torch.zeros(2),
            torch.ones(2, 3),
            step,
            grpo.Objective(3),
            behaviour_weights=torch.ones(2, 2),
        )


# --------------------------------------------------------------------------------------------------
# grid


def test_the_grid_is_tidy_deterministic_and_with_equal_samples(tmp_path):
    table, again = (grid(tmp_path / name) for name in ("one", "two"))
    assert tuple(table.columns) == COLUMNS and len(table) == 2 * 2 * 3
    clock = ["seconds", "seconds_synchronous"]
    pd.testing.assert_frame_equal(table.drop(columns=clock), again.drop(columns=clock))
    assert (
        table.groupby(["staleness", "objective"])["completions"].agg(list).map(tuple).nunique() == 1
    )
    assert table["completions"].unique().tolist() == [16, 32, 48]
    assert (table["seconds"] <= table["seconds_synchronous"] + 1e-9).all()
    judged = table.groupby(["staleness", "objective"])["judged"]
    assert judged.nunique().eq(1).all()  # one value a run, of its last weights
    assert (
        judged.first().nunique() > 1 and weight(make_model().eval()) not in judged.first().tolist()
    )
    fresh = table[table["staleness"] == 0]
    assert (fresh["seconds"] - fresh["seconds_synchronous"]).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "at least one seed"),
        ({"objectives": ["ppo"]}, "unknown objective 'ppo'"),
        ({"staleness": [-1]}, "-1"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused_before_its_first_run(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        grid(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------
# clock


def test_the_modelled_clock_on_cases_done_by_hand():
    assert modelled_seconds([2, 2, 2], [1, 1, 1], 0) == [3, 6, 9]
    assert modelled_seconds([2, 2, 2], [1, 1, 1], 1) == [3, 5, 7]  # bound by the sampler
    assert modelled_seconds([1, 1, 1], [2, 2, 2], 1) == [3, 5, 7]  # bound by the trainer
    assert modelled_seconds([1, 5, 1, 1], [3, 1, 3, 3], 1) == [4, 7, 10, 13]
    assert modelled_seconds([1, 1, 1, 1], [1, 1, 1, 1], 8) == [2, 3, 4, 5]


@hypothesis_settings(deadline=None)
@given(
    seconds=st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=12),
    staleness=st.integers(0, 8),
)
def test_overlapping_is_never_slower_nor_faster_than_the_busier_side(seconds, staleness):
    made, read = zip(*seconds, strict=True)
    end = modelled_seconds(made, read, staleness)[-1]
    assert max(sum(made), sum(read)) - 1e-6 <= end <= sum(made) + sum(read) + 1e-6
    assert modelled_seconds(made, read, staleness + 1)[-1] <= end + 1e-6


# --------------------------------------------------------------------------------------------------
# overlapped


def test_an_overlapped_run_uses_the_requested_rollouts_none_older_than_allowed(tmp_path):
    settings = make_settings(steps=8, staleness=2, correction="decoupled")
    log = train_overlapped(
        make_model(),
        TOKENIZER,
        PROBLEMS,
        letters,
        settings,
        seed=0,
        folder=tmp_path,
        trainer_options=CPU,
    )
    assert len(log) == 8 and log["staleness"].between(0, 2).all() and log["staleness"].iloc[0] == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "rollout"]


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a GPU: streams and captured graphs; run on the GPU machines",
)
@pytest.mark.parametrize("sampler", ["cuda:0", "cuda:1"])
def test_on_gpus_the_thread_captures_and_samples_while_the_trainer_trains(tmp_path, sampler):
    """Weights hardly move, so sampler and trainer agree up to bfloat16, whichever weights the
    sampler had.
    """
    if torch.device(sampler).index >= torch.cuda.device_count():
        pytest.skip("needs two GPUs; run on the GPU machines")
    shape = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    settings = make_settings(
        steps=12, staleness=2, num_generations=16, learning_rate=1e-6, correction="decoupled"
    )
    log = train_overlapped(
        make_model(**shape),
        TOKENIZER,
        PROBLEMS,
        letters,
        settings,
        seed=0,
        folder=tmp_path,
        device=sampler,
    )
    assert (
        len(log) == 12 and log["staleness"].between(0, 2).all() and log["gradient_norm"].gt(0).all()
    )
    assert log["sampling/sampling_logp_difference/mean"].max() < 0.05


def test_rollouts_of_the_first_weights_are_those_of_the_simulated_run(tmp_path):
    """The first `staleness` + 1 rollouts are sampled with the first weights, so both ways sample
    the same completions.
    """
    settings = make_settings(steps=3, staleness=2)
    engine = Slow(RingEngine(make_model(), eos_token_id=EOS, pad_token_id=PAD))
    log = train_overlapped(
        make_model(),
        TOKENIZER,
        PROBLEMS,
        letters,
        settings,
        seed=0,
        folder=tmp_path / "a",
        engine=engine,
        trainer_options=CPU,
    )
    simulated = train(tmp_path / "b", settings)[1]
    assert log["reward"].iloc[0] == simulated["reward"].iloc[0]
    assert engine.seen[0] == 0 and len(engine.seen) == 3


class Slow:
    """A slow engine that records which weights it was given."""

    def __init__(self, engine, seconds=0.0):
        self.engine, self.seconds, self.seen = engine, seconds, []

    def update_weights(self, state_dict, version):
        self.seen.append(version)
        self.engine.update_weights(state_dict, version)

    def generate(self, *arguments):
        time.sleep(self.seconds)
        return self.engine.generate(*arguments)


@pytest.mark.parametrize("staleness", [1, 3])
def test_the_thread_stops_ahead_of_the_trainer_by_the_staleness(staleness):
    settings, model = make_settings(steps=9, staleness=staleness), make_model()
    engine = Slow(RingEngine(model, eos_token_id=EOS, pad_token_id=PAD))
    asked = list(requests(PROBLEMS, settings, 0))
    with OverlappedEngine(engine, iter(asked), staleness) as ahead:
        for number, (prompts, sampling, seed) in enumerate(asked):
            ahead.update_weights(model.state_dict(), number)
            rollout = ahead.generate(prompts, sampling, seed)
            assert number - rollout.version <= staleness
            time.sleep(0.05)  # time enough to run far ahead, were that allowed
            assert len(engine.seen) <= number + 1 + staleness
    assert len(engine.seen) == 9


def test_sampling_and_training_take_less_together_than_one_after_the_other():
    """With an engine that mostly waits and so leaves the processor to the trainer; without overlap,
    the seconds would add up.
    """
    settings, model = make_settings(steps=6, staleness=2), make_model()
    engine = Slow(RingEngine(model, eos_token_id=EOS, pad_token_id=PAD), seconds=0.1)
    asked = list(requests(PROBLEMS, settings, 0))
    begin = time.perf_counter()
    with OverlappedEngine(engine, iter(asked), 2) as ahead:
        for number, (prompts, sampling, seed) in enumerate(asked):
            ahead.update_weights(model.state_dict(), number)
            ahead.generate(prompts, sampling, seed)
            time.sleep(0.1)  # learning
        elapsed = time.perf_counter() - begin
    assert elapsed < ahead.busy_seconds + 6 * 0.1 - 0.25


def test_an_error_in_the_thread_reaches_the_trainer():
    class Broken:
        def update_weights(self, state_dict, version):
            raise MemoryError("no room for the ring")

    sampling = SamplingSettings(2, 4)
    with OverlappedEngine(Broken(), iter([([[5]], sampling, 0)]), 1) as ahead:
        ahead.update_weights({}, 0)
        with pytest.raises(MemoryError, match="no room for the ring"):
            ahead.generate([[5]], sampling, 0)


def test_other_prompts_than_those_sampled_ahead_are_refused():
    engine = RingEngine(make_model(), eos_token_id=EOS, pad_token_id=PAD)
    sampling = SamplingSettings(2, 4)
    with OverlappedEngine(engine, iter([([[5]], sampling, 0)]), 1) as ahead:
        ahead.update_weights(make_model().state_dict(), 0)
        with pytest.raises(RuntimeError, match="out of step"):
            ahead.generate([[6]], sampling, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"staleness": 0}, "overlapping needs 1 or more"), ({"resample_rounds": 1}, "must be 0")],
)
def test_what_cannot_overlap_is_refused(tmp_path, changes, message):
    settings = make_settings(**{"staleness": 1, **changes})
    with pytest.raises(ValueError, match=message):
        train_overlapped(
            make_model(),
            TOKENIZER,
            PROBLEMS,
            letters,
            settings,
            seed=0,
            folder=tmp_path,
            trainer_options=CPU,
        )


def test_a_folder_with_a_run_is_refused(tmp_path):
    (tmp_path / "resume.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be resumed"):
        train_overlapped(
            make_model(),
            TOKENIZER,
            PROBLEMS,
            letters,
            make_settings(staleness=1),
            seed=0,
            folder=tmp_path,
            trainer_options=CPU,
        )


def test_a_killed_grid_continues_where_it_was(tmp_path):
    uninterrupted = grid(tmp_path / "uninterrupted", staleness=(1,))

    def kill(done, total, text):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grid(tmp_path / "killed", staleness=(1,), progress=kill)
    resumed = grid(tmp_path / "killed", staleness=(1,))
    assert resumed["reward"].tolist() == uninterrupted["reward"].tolist()
