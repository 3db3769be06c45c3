"""Guarantees of notebook 04's verdicts: they follow from settings and log, and can turn."""

import itertools

import pandas as pd
import pytest

from moxin_lab import scales
from moxin_lab.pretraining import results, verdicts


@pytest.fixture
def settings():
    return scales.load("tiny").pretraining


def log_of(rates):
    return pd.DataFrame({"learning_rate": rates, "loss": 1.0, "phase": 0})


def test_rates_that_leave_the_schedule_contradict_the_optimizer(settings):
    rates = results.planned_rates(settings)
    assert verdicts.judge_optimizer(settings, log_of(rates), rates)[0] == "reproduced"
    off = [*rates[:-1], rates[-1] * 1.01]
    assert verdicts.judge_optimizer(settings, log_of(off), rates)[0] == "contradicted"
    other = settings.model_copy(update={"adam_beta2": 0.99})
    assert verdicts.judge_optimizer(other, log_of(rates), rates)[0] == "contradicted"


def test_a_context_that_does_not_double_contradicts_the_phases(settings):
    assert verdicts.judge_phases(settings, 10)[0] == "reproduced"
    same = [phase.model_copy(update={"sequence_length": 256}) for phase in settings.phases]
    assert verdicts.judge_phases(settings.model_copy(update={"phases": same}), 10)[0] == (
        "contradicted"
    )


def test_the_plan_has_one_rate_per_step_and_its_phases_follow_each_other(settings):
    spans, rates = results.spans(settings), results.planned_rates(settings)
    assert spans[0].first_step == 0 and spans[-1].first_step + spans[-1].steps == len(rates)
    assert all(b.first_step == a.first_step + a.steps for a, b in itertools.pairwise(spans))
