"""Guarantees of the GRPO diagnosis: each cause, provoked in a simulated run, is found and named
first; a healthy run has none.
"""

import math
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from moxin_lab.reasoning import diagnose, grpo
from moxin_lab.reasoning.advantages import group_advantages
from moxin_lab.verifier.verifier import REASONS, Verifier

EOS, WIDTH, VOCABULARY, GROUPS, SIZE = 1, 12, 16, 32, 8


@pytest.fixture(scope="module")
def verifier():
    with Verifier(lazy=True) as shared:
        yield shared


def simulate(
    verifier,
    *,
    steps=12,
    skill=lambda step: (0.1, 0.9),
    cut=0.0,
    silent=0.0,
    bombs=0.0,
    shuffled=False,
    drift=0.05,
    sharpness=lambda step: 1.0,
    staleness=0.0,
    low=0.0,
    kl=True,
):
    """The log of a run: completions are drawn, judged, masked and compared by the functions that a
    real run uses.
    """
    draw, log = np.random.default_rng(0), []
    torch.manual_seed(0)
    objective = grpo.Objective(WIDTH)
    for step in range(steps):
        chance = np.repeat(draw.uniform(*skill(step), GROUPS), SIZE)
        count = len(chance)
        right, truncated = draw.random(count) < chance, draw.random(count) < cut
        kinds = draw.random(count)
        texts = [
            "I would rather not say"
            if cut_off or kind < silent
            else r"\boxed{9^{9^{9}}}"
            if kind < silent + bombs
            else rf"\boxed{{{7 if good else 8}}}"
            for good, cut_off, kind in zip(right, truncated, kinds, strict=True)
        ]
        verdicts = verifier.verify_batch(texts, ["7"] * count)
        keys = np.repeat(np.arange(GROUPS), SIZE)
        if shuffled:
            keys = np.tile(np.arange(GROUPS), SIZE)  # the order of another loop
        rewards = [1.0 if verdict.correct else low for verdict in verdicts]
        groups = group_advantages(rewards, keys.tolist(), num_generations=SIZE)
        ids = torch.full((count, WIDTH), 5)
        lengths = torch.where(torch.from_numpy(truncated), WIDTH, 6)
        ids[torch.arange(count)[~truncated], 5] = EOS
        completions = grpo.completion_mask(ids, lengths, eos_ids=[EOS])
        logits = sharpness(step) * torch.randn(count, WIDTH, VOCABULARY)
        log_probs, old = (
            logits.log_softmax(-1),
            (logits + drift * torch.randn_like(logits)).log_softmax(-1),
        )
        chosen = torch.distributions.Categorical(logits=logits).sample()[..., None]
        sums = grpo.policy_loss(
            log_probs.gather(2, chosen)[..., 0],
            torch.from_numpy(groups.advantages),
            completions.mask,
            grpo.totals([completions.mask])[0],
            objective,
            old_log_probs=old.gather(2, chosen)[..., 0],
            reference_log_probs=old.gather(2, chosen)[..., 0]
            if kl
            else log_probs.gather(2, chosen)[..., 0],
            entropies=-(log_probs.exp() * log_probs).sum(-1),
        )
        reasons = Counter(verdict.reason for verdict in verdicts)
        log.append(
            {
                "staleness": staleness,
                **{f"verifier/{reason}": reasons[reason] for reason in REASONS},
                **groups.metrics,
                **completions.metrics,
                **grpo.metrics(sums),
            }
        )
    return log


def diagnosis_of(log, **changes):
    return diagnose.diagnose(
        log, **{"num_generations": SIZE, "prompts_per_step": GROUPS, **changes}
    )


def names(diagnosis):
    return [cause.name for cause in diagnosis.causes]


def test_a_flat_run_without_a_known_cause_is_given_none(verifier):
    diagnosis = diagnosis_of(simulate(verifier))
    assert (diagnosis.trend, names(diagnosis), diagnosis.missing) == ("flat", [], ())
    assert (
        "Reward is flat" in diagnosis.paragraph
        and "None of the known causes" in diagnosis.paragraph
    )
    assert re.search(r"a change of less than 0\.\d+ over them would not show", diagnosis.paragraph)


def test_a_flat_run_says_what_change_its_log_would_have_shown():
    """Rewards of equal spread about a line: at the change that is named the run turns from flat to
    rising.
    """
    noise = np.random.default_rng(0).normal(0, 0.05, 24)
    noise -= np.polyval(np.polyfit(np.arange(24), noise, 1), np.arange(24))
    flat = diagnose.diagnose([{"reward": 0.5 + value} for value in noise])
    named = float(re.search(r"less than (0\.\d+)", flat.paragraph).group(1))
    for share, trend in ((0.9, "flat"), (1.1, "rising")):
        rising = 0.5 + noise + share * named * np.arange(24) / 24
        assert diagnose.diagnose([{"reward": value} for value in rising]).trend == trend


def test_a_rising_run_needs_no_explanation(verifier):
    log = simulate(verifier, skill=lambda step: (0.05 * step, 0.05 * step + 0.3), staleness=9.0)
    diagnosis = diagnosis_of(log)
    assert (
        diagnosis.trend == "rising"
        and not diagnosis.causes
        and "nothing to explain" in diagnosis.paragraph
    )
    fallen = diagnosis_of(log[::-1])
    assert fallen.trend == "falling" and names(fallen)[0] == "stale_weights"


@pytest.mark.parametrize(
    ("cause", "also", "changes", "seen"),
    [
        (
            "truncation",
            {"no_answer"},
            {"cut": 0.6},
            r"6\d% of completions are cut .*mean length \d+ tokens",
        ),
        (
            "no_answer",
            set(),
            {"silent": 0.5},
            r"in (4|5)\d% of completions the verifier finds no answer",
        ),
        (
            "verifier_refusals",
            set(),
            {"bombs": 0.25},
            r"refuses 2\d% of the answers .* gives up on 0%",
        ),
        ("wrong_grouping", set(), {"shuffled": True}, r"without regard to the prompt"),
        ("stale_weights", set(), {"staleness": 8.0}, r"completions are 8\.0 optimizer steps old"),
        ("stale_weights", set(), {"drift": 1.0}, r"the bounds hold back [2-9]\d% of the ratios"),
        (
            "entropy_collapse",
            set(),
            {"sharpness": lambda step: 1.0 if step < 3 else 60.0},
            r"entropy is 0\.\d+ nats per token, from 2\.\d+ at the start",
        ),
        (
            "all_zero_groups",
            set(),
            {"skill": lambda step: (0.0, 0.01)},
            r"\d\d% of groups have equal .* all answers are wrong",
        ),
        ("solved", set(), {"skill": lambda step: (0.99, 1.0)}, r"nearly all answers are right"),
        ("still_policy", set(), {"kl": False}, r"the weights hardly move"),
    ],
)
def test_each_cause_provoked_is_found_first(verifier, cause, also, changes, seen):
    log = simulate(verifier, **changes)
    diagnosis = diagnosis_of(log)
    assert (
        diagnosis.trend == "flat"
        and names(diagnosis)[0] == cause
        and set(names(diagnosis)[1:]) <= also
    )
    assert re.search(f"Look first at this: .*{seen}", diagnosis.paragraph), diagnosis.paragraph
    assert diagnosis.causes[0].advice in diagnosis.paragraph and "\n" not in diagnosis.paragraph
    assert names(diagnosis_of(pd.DataFrame(log))) == names(diagnosis)


@pytest.mark.parametrize(("rise", "trend"), [(0.0, "flat"), (0.004, "rising"), (0.05, "rising")])
def test_drift_is_reported_even_where_reward_rises(verifier, rise, trend):
    log = simulate(verifier)
    for step, row in enumerate(log):
        row.update(
            reward=0.15 + rise * step, kl=0.5
        )  # of 6 tokens: 3 nats per completion, best of 8: 1.2
    assert names(diagnosis_of(log)) == []
    for row in log:
        row["completions/mean_length"] = 36.0
    diagnosis = diagnosis_of(log)
    assert diagnosis.trend == trend and names(diagnosis) == (["drift"] if rise < 0.01 else [])
    if rise < 0.01:
        lead = "Yet" if trend == "rising" else "Look first at this:"
        assert (
            f"{lead} the policy is 18.0 nats per completion from the reference"
            in diagnosis.paragraph
        )
        assert (
            "best of 8 samples would be 1.2" in diagnosis.paragraph
            and "nothing to explain" not in diagnosis.paragraph
        )
    assert names(diagnose.diagnose(log)) == []  # without the group's size nothing says what is far


def test_solved_and_hopeless_prompts_together_are_named(verifier):
    log = simulate(verifier)
    for row in log:
        row.update(frac_reward_zero_std=0.95, reward=0.5, reward_std=0.02)
    diagnosis = diagnosis_of(log)
    assert names(diagnosis) == ["uniform_groups"] and "copies of one another" in diagnosis.paragraph


def test_the_cause_is_named_before_its_consequences(verifier):
    log = simulate(verifier, cut=1.0, skill=lambda step: (0.0, 0.01))
    diagnosis = diagnosis_of(log)
    assert names(diagnosis) == ["truncation", "no_answer", "all_zero_groups"]
    places = [diagnosis.paragraph.index(cause.seen) for cause in diagnosis.causes]
    assert (
        places == sorted(places)
        and diagnosis.paragraph.count("Also, perhaps as a consequence") == 2
    )


def test_a_weight_update_that_never_reaches_the_sampler_is_seen_in_the_log_probabilities(verifier):
    log = [
        {**row, "sampling/sampling_logp_difference/mean": 0.02 * step}
        for step, row in enumerate(simulate(verifier))
    ]
    diagnosis = diagnosis_of(log)
    assert (
        names(diagnosis) == ["stale_weights"]
        and "sampler and trainer differ by 0.17 nats" in diagnosis.paragraph
    )


def test_mixed_groups_are_not_suspected_without_the_numbers_to_decide(verifier):
    mixed = simulate(verifier, shuffled=True)
    assert names(diagnose.diagnose(mixed)) == []
    assert names(diagnosis_of(mixed[:1], prompts_per_step=2)) == []  # too few groups
    graded = [
        {**row, "reward_std": 0.1} for row in mixed
    ]  # a reward of many values, whose groups are never equal
    assert names(diagnosis_of(graded)) == []
    assert (
        names(diagnosis_of(simulate(verifier, skill=lambda step: (0.2, 0.8)))) == []
    )  # right groups, milder differences
    five = simulate(verifier, shuffled=True, low=-1.0)
    assert names(diagnosis_of(five, reward_range=(-1.0, 1.0))) == ["wrong_grouping"]


def test_prompts_that_are_all_equally_hard_look_like_mixed_groups_and_the_paragraph_says_so(
    verifier,
):
    diagnosis = diagnosis_of(simulate(verifier, skill=lambda step: (0.5, 0.5)))
    assert names(diagnosis) == ["wrong_grouping"]
    assert "either all prompts are equally hard or groups mix prompts" in diagnosis.paragraph


def test_all_wrong_is_judged_by_the_rewards_range(verifier):
    log = [
        {**row, "reward": 10 * row["reward"] - 5}
        for row in simulate(verifier, skill=lambda step: (0.0, 0.01))
    ]
    assert names(diagnosis_of(log, reward_range=(-5.0, 5.0))) == ["all_zero_groups"]


def test_what_the_log_lacks_is_named_and_not_guessed():
    diagnosis = diagnose.diagnose([{"reward": 0.0}] * 8)
    assert diagnosis.causes == () and diagnosis.missing == (*diagnose.NAMES, "verifier/<reason>")
    assert (
        "Not checked, because the log lacks it: reward_std, frac_reward_zero_std, kl, entropy"
        in diagnosis.paragraph
    )
    sparse = [{"reward": 0.3, "entropy": 2.0 if step < 4 else None} for step in range(8)]
    assert names(diagnose.diagnose(sparse)) == []
    with_trls_name = diagnose.diagnose([{"reward": 0.3, "clip_ratio/region_mean": 0.5}] * 8)
    assert names(with_trls_name) == ["stale_weights"] and "clip_ratio" not in with_trls_name.missing


def test_a_few_steps_are_not_called_flat():
    diagnosis = diagnose.diagnose([{"reward": 0.1, "completions/clipped_ratio": 0.9}] * 3)
    assert "3 step(s) are too few" in diagnosis.paragraph and names(diagnosis) == ["truncation"]
    one = diagnose.diagnose([{"reward": 0.1}])
    assert "1 step(s) are too few" in one.paragraph


@pytest.mark.parametrize(
    ("log", "changes", "message"),
    [
        ([], {}, "the log is empty"),
        ([{"kl": 0.1}], {}, "no column `reward`, only kl"),
        (
            [{"reward": 0.1}, {"reward": math.nan}],
            {},
            "missing or not finite in 1 of 2 rows, the first is row 1",
        ),
        ([{"reward": 0.1}, {"reward": None}], {}, "missing or not finite in 1 of 2 rows"),
        ([{"reward": math.inf}], {}, "missing or not finite in 1 of 1 rows"),
        ([{"reward": 0.1}], {"reward_range": (1.0, 1.0)}, "give the lowest, then the highest"),
    ],
)
def test_a_log_that_cannot_be_read_is_refused(log, changes, message):
    with pytest.raises(ValueError, match=message):
        diagnose.diagnose(log, **changes)
