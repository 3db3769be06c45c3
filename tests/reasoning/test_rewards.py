"""Rewards by name: the default is the verifier alone, a sum is weighted, mistakes are named."""

import textwrap
from dataclasses import dataclass, field

import numpy as np
import pytest

from moxin_lab.reasoning import rewards
from moxin_lab.reasoning.grpo_trainer import Problem
from moxin_lab.reasoning.tasks import Task, judge
from moxin_lab.verifier.verifier import Verifier

TASK = Task("gcd", "Find the Greatest Common Divisor (GCD) of these numbers: 12, 8.", "4")
COMPLETIONS = [r"\boxed{4}", "4", r"\boxed{5}", "", r"so \boxed{\frac{8}{2}}"]
PROBLEMS = [Problem([1], TASK.answer, TASK.family, task=TASK)] * len(COMPLETIONS)


@dataclass(frozen=True)
class Entry:
    name: str
    weight: float = 1.0
    file: str | None = None
    arguments: dict = field(default_factory=dict)


@pytest.fixture(scope="module")
def verifier():
    verifier = Verifier(lazy=True)
    yield verifier
    verifier.close()


def test_the_default_entry_pays_what_the_verifier_pays_bit_for_bit(verifier):
    verdicts = judge(verifier, COMPLETIONS, [TASK] * len(COMPLETIONS))
    paid = rewards.WeightedReward([Entry("verified_answer")], verifier)
    assert paid(PROBLEMS, COMPLETIONS) == [verdict.reward for verdict in verdicts]
    assert paid.reasons == rewards.Counter(verdict.reason for verdict in verdicts)
    assert set(paid.values["verified_answer"]) == {0.0, 1.0}


def test_rewards_are_summed_by_weight_and_each_is_kept_by_name(verifier):
    entries = [
        Entry("verified_answer", 1.0),
        Entry("format", 0.5),
        Entry("length", -0.1, arguments={"characters": 9}),
    ]
    paid = rewards.WeightedReward(entries, verifier)
    total = paid(PROBLEMS, COMPLETIONS)
    assert paid.values["format"].tolist() == [1, 0, 1, 0, 1]
    assert paid.values["length"].tolist() == [1, 1 / 9, 1, 0, 1]
    by_hand = sum(entry.weight * paid.values[entry.name] for entry in entries)
    np.testing.assert_array_equal(total, by_hand)


def test_completions_are_verified_once_and_only_if_a_reward_asks(verifier, monkeypatch):
    calls = []
    monkeypatch.setattr(rewards, "judge", lambda *arguments: calls.append(1) or judge(*arguments))
    monkeypatch.setitem(
        rewards.REGISTERED, "wrong", lambda batch: [float(not v.correct) for v in batch.verdicts]
    )
    both = rewards.WeightedReward([Entry("verified_answer"), Entry("wrong")], verifier)
    assert both(PROBLEMS, COMPLETIONS) == [1.0] * len(COMPLETIONS)
    assert len(calls) == 1
    unread = rewards.WeightedReward([Entry("format")], verifier)
    unread(PROBLEMS, COMPLETIONS)
    assert len(calls) == 1 and not unread.reasons


def test_a_file_registers_a_reward_and_may_be_run_twice(verifier, tmp_path, monkeypatch):
    monkeypatch.setattr(rewards, "REGISTERED", dict(rewards.REGISTERED))
    text = """
        from moxin_lab.reasoning.rewards import register

        @register("polite")
        def polite(batch):
            return [float("please" in text) for text in batch.completions]
    """
    (tmp_path / "lab_rewards.py").write_text(textwrap.dedent(text))
    for _ in range(2):
        paid = rewards.WeightedReward(
            [Entry("polite", file="lab_rewards.py")], verifier, root=tmp_path
        )
    assert paid(PROBLEMS[:2], ["please", "no"]) == [1.0, 0.0]


def test_a_reward_of_an_installed_package_is_named_by_module_and_function(verifier):
    function = rewards.resolve("moxin_lab.reasoning.rewards:matches_format")
    assert function is rewards.matches_format


def test_a_name_cannot_be_taken_twice():
    with pytest.raises(ValueError, match="there is a reward 'format' already"):
        rewards.register("format")(lambda batch: [])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "give at least one"),
        ([Entry("format"), Entry("format")], "each name once"),
        ([Entry("kindness")], "unknown reward 'kindness': there are format, length"),
        ([Entry("length")], "reward 'length': missing a required argument: 'characters'"),
        ([Entry("format", arguments={"colour": 1})], "unexpected keyword argument 'colour'"),
        ([Entry("no_such_module:f")], "cannot be imported"),
        ([Entry("moxin_lab.reasoning.rewards:nothing")], "cannot be imported"),
        ([Entry("polite", file="missing.py")], "there is no file .*missing.py"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused_before_any_completion(entries, message, verifier):
    with pytest.raises(ValueError, match=message):
        rewards.WeightedReward(entries, verifier)


@pytest.mark.parametrize(("values", "message"), [([1.0], "shape"), ([float("nan")] * 5, "finite")])
def test_a_wrong_number_of_values_and_nan_are_refused_with_the_name(
    values, message, verifier, monkeypatch
):
    monkeypatch.setitem(rewards.REGISTERED, "broken", lambda batch: values)
    paid = rewards.WeightedReward([Entry("broken")], verifier)
    with pytest.raises(ValueError, match=f"reward 'broken'.*{message}"):
        paid(PROBLEMS, COMPLETIONS)
