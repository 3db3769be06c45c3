"""Guarantees of the probe: an engine that ignores updates is found; no other engine is accused."""

import copy

import pytest
import torch

from moxin_lab.reasoning.ring_engine import RingEngine
from moxin_lab.reasoning.weight_probe import StaleWeightsError, WeightProbe
from tests.posttraining.examples import make_model
from tests.reasoning.test_grpo_trainer import (
    EOS,
    PAD,
    PROBLEMS,
    make_settings,
    same_weights,
    train,
    without_clock,
)


class Deaf:
    """An engine whose `update_weights` does nothing from its update number `deaf_from` on."""

    def __init__(self, engine, deaf_from=0):
        self.engine, self.deaf_from, self.updates = engine, deaf_from, 0

    def update_weights(self, state_dict, version):
        if self.updates < self.deaf_from:
            self.engine.update_weights(state_dict, version)
        self.updates += 1

    def generate(self, *arguments):
        return self.engine.generate(*arguments)


def make_engine(model, **options):
    return RingEngine(model, eos_token_id=EOS, pad_token_id=PAD, **options)


@pytest.mark.parametrize("deaf_from", [0, 2])
def test_an_engine_that_ignores_updates_is_an_error_at_the_next_rollout(tmp_path, deaf_from):
    engine = Deaf(make_engine(make_model()), deaf_from)
    with pytest.raises(StaleWeightsError, match="did not reach the weights that sample"):
        train(tmp_path, make_settings(steps=6, learning_rate=1e-3), engine=engine)
    assert engine.updates == max(deaf_from, 1) + 1


@pytest.mark.parametrize(
    "options",
    [
        {"settings": make_settings(learning_rate=0.0)},
        {
            "settings": make_settings(kl_coef=0.0),
            "reward": lambda problems, texts: [1.0] * len(texts),
        },
    ],
    ids=["learning rate 0", "no gradient"],
)
def test_an_update_of_nothing_is_no_error(tmp_path, options):
    model, log = train(tmp_path, **options)
    assert len(log) == 4 and same_weights(model, make_model())


def test_a_sampler_in_bfloat16_is_not_accused_of_updates_too_small_for_it(tmp_path):
    settings = make_settings(steps=6, learning_rate=1e-6)
    engine = make_engine(make_model(), dtype=torch.bfloat16)
    assert len(train(tmp_path / "small", settings, engine=engine)[1]) == 6
    engine = Deaf(make_engine(make_model(), dtype=torch.bfloat16))
    with pytest.raises(StaleWeightsError):
        train(tmp_path / "deaf", make_settings(steps=20), engine=engine)


def test_the_probe_changes_nothing_of_what_is_learned(tmp_path):
    (one, log), (other, same) = (
        train(tmp_path / str(check), check_weights=check) for check in (True, False)
    )
    assert without_clock(log).equals(without_clock(same)) and same_weights(one, other)


def test_the_first_check_sets_the_tolerance_and_accuses_nobody():
    probe = WeightProbe(PROBLEMS[0].prompt_ids, 7, 0.9)
    engine, model = make_engine(make_model(1)), make_model(2)
    probe.check(engine, model)  # other weights from the start: seen in the log's difference
    near = copy.deepcopy(engine.model)
    probe = WeightProbe(PROBLEMS[0].prompt_ids, 7, 0.9)
    probe.check(engine, near)
    probe.check(engine, near)
    with pytest.raises(StaleWeightsError):
        probe.check(engine, model)
