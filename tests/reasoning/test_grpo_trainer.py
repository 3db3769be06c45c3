"""Guarantees of GRPO as a training: any cut of a step, seeds, resume, groups, masks, the log, early
refusals.
"""

import json
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moxin_lab.reasoning import grpo
from moxin_lab.reasoning.advantages import group_advantages
from moxin_lab.reasoning.diagnose import diagnose
from moxin_lab.reasoning.grpo_trainer import (
    Problem,
    grpo_loss,
    objective_of,
    train_grpo,
)
from moxin_lab.reasoning.rewards import WeightedReward
from moxin_lab.reasoning.ring_engine import RingEngine
from moxin_lab.reasoning.rollout import Rollout
from moxin_lab.reasoning.rollout_requests import drawn_problems
from moxin_lab.reasoning.rollout_stream import RolloutStream
from moxin_lab.reasoning.tasks import Task
from moxin_lab.scales.sections import GRPOSettings
from moxin_lab.verifier.verifier import Verifier
from tests.posttraining.examples import gradient_norm, make_model, make_tokenizer

TOKENIZER = make_tokenizer(template=False)
EOS, PAD = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id
PROBLEMS = [
    Problem(TOKENIZER(f"say {'a' * (number % 5)} {number}")["input_ids"], str(number))
    for number in range(10)
]
LOSS_TYPES = (*grpo.LOSS_TYPES, "gspo")


def letters(problems, completions):
    """More for completions with more of the letters a to z; differs between and within groups."""
    return [
        sum(letter.isascii() and letter.isalpha() for letter in text) / 4 for text in completions
    ]


def make_settings(**changes):
    values = {
        "steps": 4,
        "prompts_per_step": 4,
        "num_generations": 4,
        "max_completion_length": 7,
        "temperature": 0.9,
        "learning_rate": 1e-2,
        "precision": "32-true",
        "micro_batch_examples": 8,
        "checkpoint_every_steps": 2,
        "kl_coef": 0.05,
    }
    return GRPOSettings(**{**values, **changes})


def train(folder, settings=None, reward=letters, problems=PROBLEMS, seed=0, model=None, **options):
    model = model or make_model()
    log = train_grpo(
        model,
        TOKENIZER,
        problems,
        reward,
        settings or make_settings(),
        seed=seed,
        resume_folder=folder,
        trainer_options={"accelerator": "cpu"},
        **options,
    )
    return model, log


def make_stream(settings, model=None, reward=letters, problems=PROBLEMS, engine=None):
    model = model or make_model()
    engine = engine or RingEngine(make_model(), eos_token_id=EOS, pad_token_id=PAD)
    return RolloutStream(
        model, make_model(5), TOKENIZER, problems, reward, engine, settings, seed=0
    )


def without_clock(log):
    return log[
        [name for name in log if not name.startswith("seconds/") and name != "tokens_per_second"]
    ]


def same_weights(one, other):
    return all(
        torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items()
    )


# --------------------------------------------------------------------------------------------------
# the cut


@pytest.mark.parametrize("correction", ["none", "naive", "decoupled"])
@pytest.mark.parametrize("loss", LOSS_TYPES)
def test_a_step_does_not_depend_on_how_it_is_cut(loss, correction):
    """Loss and gradient of the second update of a rollout, whose lengths differ, as 1, 2, 4 and 8
    micro-batches.
    """
    settings = make_settings(
        loss_type=loss,
        updates_per_rollout=2,
        correction=correction,
        mask_truncated_completions=True,
    )
    engine = Scripted(
        lambda row, samples: row * 5 % 8 + 1, budget=7, log_prob=-5.5
    )  # near a uniform draw of 259 ids
    stream, function, found = (
        make_stream(settings, make_model(5), engine=engine),
        grpo_loss(settings),
        [],
    )
    stream.batch(0)
    moved = make_model(9)  # other weights than those that sampled, so that ratios are not 1
    for parts in (1, 2, 4, 8):
        moved.zero_grad()
        total = 0.0
        for part in range(parts):
            share = function(moved, stream.batch(1, part=part, parts=parts))["loss"]
            share.backward()
            total += share.item()
        found.append((total, gradient_norm(moved), moved.lm_head.weight.grad.clone()))
    assert found[0][1] > 0
    for total, norm, gradient in found[1:]:
        assert total == pytest.approx(found[0][0], rel=1e-5, abs=1e-6)
        assert norm == pytest.approx(found[0][1], rel=1e-5)
        torch.testing.assert_close(
            gradient, found[0][2], rtol=1e-5, atol=1e-5 * gradient.abs().max().item()
        )


@pytest.mark.parametrize("loss", ["grpo", "dapo"])
def test_a_training_does_not_depend_on_accumulation(tmp_path, loss):
    logs = [
        train(
            tmp_path / str(size),
            make_settings(micro_batch_examples=size, loss_type=loss, steps=2, learning_rate=1e-4),
        )[1]
        for size in (16, 2)
    ]
    for name in ("loss", "gradient_norm", "reward", "kl", "entropy"):
        np.testing.assert_allclose(logs[0][name], logs[1][name], rtol=1e-4, atol=1e-7)


def test_the_parts_of_a_rollout_hold_each_completion_once_with_its_own_groups_advantage():
    settings = make_settings(updates_per_rollout=2)
    stream = make_stream(settings, engine=Scripted())
    seen = Counter()
    for update in range(2):
        for part in range(4):
            batch = stream.batch(update, part=part, parts=4)
            for ids, mask, advantage in zip(
                batch["input_ids"], batch["mask"], batch["advantages"], strict=True
            ):
                text = TOKENIZER.decode(ids[1:][mask], skip_special_tokens=True)
                prompt = TOKENIZER.decode(
                    ids[: int(mask.int().argmax()) + 1], skip_special_tokens=True
                )
                seen[prompt, text] += 1
                # The scripted group of a prompt earns 1/4, 2/4, 3/4, 4/4 whatever the others do.
                expected = (len(text) / 4 - 0.625) / (np.std([0.25, 0.5, 0.75, 1.0], ddof=1) + 1e-4)
                assert float(advantage) == pytest.approx(expected)
    wanted = {
        TOKENIZER.decode(PROBLEMS[number].prompt_ids) for number in drawn_problems(10, 4, 0, 0)
    }
    assert seen == Counter(
        {(prompt, "z" * count): 1 for prompt in wanted for count in (1, 2, 3, 4)}
    )


class Scripted:
    """An engine without a model: it answers with z, zz, zzz .. and an end token; every
    log-probability is `log_prob`.
    """

    def __init__(self, length=lambda row, samples: row % samples + 1, budget=4, log_prob=-1.0):
        self.length, self.version, self.calls, self.budget, self.log_prob = (
            length,
            0,
            [],
            budget,
            log_prob,
        )

    def update_weights(self, state_dict, version):
        self.version = version

    def generate(self, prompts, sampling, seed):
        self.calls.append((len(prompts), sampling.max_completion_length))
        rows = [prompt for prompt in prompts for _ in range(sampling.num_generations)]
        ids = torch.full((len(rows), self.budget + 1), PAD)
        for row in range(len(rows)):
            count = self.length(row, sampling.num_generations)
            ids[row, :count] = TOKENIZER.convert_tokens_to_ids("z")
            if count <= self.budget:
                ids[row, count] = EOS
        ends = ids == EOS
        mask = ends.cumsum(1) - ends.long() == 0
        finish = ["eos" if ended else "length" for ended in ends.any(1).tolist()]
        logs = torch.where(mask, self.log_prob, 0.0)
        return Rollout(
            [list(row) for row in rows],
            ids,
            mask,
            logs,
            finish,
            sampling.num_generations,
            self.version,
        )


def test_truncated_completions_carry_no_loss_where_they_are_masked():
    engine = Scripted(lambda row, samples: 5 if row % samples == 0 else row % samples)
    for masked in (False, True):
        stream = make_stream(make_settings(mask_truncated_completions=masked), engine=engine)
        counts = stream.batch(0)["mask"].sum(1).tolist()
        assert sorted(counts) == sorted([0 if masked else 5, 2, 3, 4] * 4)


def test_the_end_token_has_loss_but_not_prompt_or_padding():
    batch = make_stream(make_settings(), engine=Scripted()).batch(0)
    for ids, mask in zip(batch["input_ids"], batch["mask"], strict=True):
        places = mask.nonzero()[:, 0]
        assert torch.equal(places, torch.arange(int(places[0]), int(places[-1]) + 1))
        assert (
            ids[1:][mask][-1] == EOS
            and (ids[1:][mask][:-1] == TOKENIZER.convert_tokens_to_ids("z")).all()
        )
        assert (ids[int(places[-1]) + 2 :] == PAD).all()


# --------------------------------------------------------------------------------------------------
# seeds and resume


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path):
    (one, log), (again, same), (_, other) = (
        train(tmp_path / str(n), seed=seed) for n, seed in enumerate((3, 3, 4))
    )
    assert without_clock(log).equals(without_clock(same)) and same_weights(one, again)
    assert not without_clock(log).equals(without_clock(other))


@pytest.mark.parametrize(
    "changes",
    [{}, {"updates_per_rollout": 2, "staleness": 2, "correction": "decoupled", "steps": 5}],
)
@pytest.mark.parametrize("stop_at", [3, 4])
def test_a_killed_run_continues_with_bitwise_the_same_log_and_weights(tmp_path, stop_at, changes):
    settings = make_settings(checkpoint_every_steps=3, **changes)
    whole, wanted = train(tmp_path / "whole", settings)

    def kill(step, total, text):
        if step == stop_at:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path / "killed", settings, progress=kill)
    resumed, log = train(tmp_path / "killed", settings)
    assert without_clock(log).equals(without_clock(wanted)) and same_weights(whole, resumed)
    lines = [
        json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == list(range(len(wanted)))


def test_stale_rollouts_come_from_the_weights_of_that_many_rollouts_earlier(tmp_path):
    _, log = train(tmp_path, make_settings(staleness=2, steps=6))
    assert log["staleness"].tolist() == [0, 1, 2, 2, 2, 2]
    fresh = train(tmp_path / "fresh", make_settings(steps=6))[1][
        "sampling/sampling_logp_difference/mean"
    ]
    assert fresh.max() < 1e-4 < log["sampling/sampling_logp_difference/mean"][2:].min()


# --------------------------------------------------------------------------------------------------
# learning


def test_reward_rises_and_the_doctor_has_nothing_to_say(tmp_path):
    settings = make_settings(steps=25, num_generations=8, learning_rate=1e-2, kl_coef=0.0)
    _, log = train(tmp_path, settings)
    assert log["reward"][-5:].mean() > log["reward"][:5].mean() + 0.2
    assert diagnose(log, reward_range=(0.0, 2.0)).trend == "rising"


def test_the_log_has_every_name_that_the_doctor_reads(tmp_path):
    with Verifier(workers=1, lazy=True) as verifier:
        settings = make_settings(steps=4)
        reward = WeightedReward(settings.rewards, verifier)
        tasks = [replace(each, task=Task("gcd", "?", each.answer)) for each in PROBLEMS]
        _, log = train(tmp_path, settings, reward, tasks)
    assert diagnose(log).missing == ()
    assert log["rewards/verified_answer/mean"].tolist() == log["reward"].tolist()
    for name in (
        "seconds/rollout",
        "seconds/reward",
        "seconds/update",
        "tokens_per_second",
        "completions/min_length",
    ):
        assert (log[name] > 0).all()
    assert (log.filter(like="verifier/").sum(axis=1) == 16).all()
    assert (
        log["completions/clipped_ratio"].between(0, 1).all()
        and (log["seconds/step"] > log["seconds/rollout"]).all()
    )


def test_groups_without_variance_are_replaced_by_others_with_some():
    """Problems 3 and 7 have reward 0 only: their groups must not be trained on."""
    hopeless = {"3", "7"}

    def reward(problems, completions):
        return [
            0.0 if problem.answer in hopeless else len(text)
            for problem, text in zip(problems, completions, strict=True)
        ]

    settings = make_settings(prompts_per_step=10, resample_rounds=4)
    stream = make_stream(settings, reward=reward, engine=Scripted())
    batch = stream.batch(0)
    metrics = stream._current.metrics
    assert (
        metrics["frac_reward_zero_std"] == 0.2
    )  # of what was drawn first: resampling does not hide it
    assert metrics["resampled_groups"] == 2 and metrics["frac_groups_used"] == 1.0
    texts = [TOKENIZER.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]]
    assert not any(f" {name}z" in text for text in texts for name in hopeless)
    assert len(texts) == 40 and (batch["advantages"] != 0).all()


def test_what_is_sampled_is_consumed_by_a_step_or_counted_as_discarded():
    """The completions of one problem in three are all paid alike; what the steps read is counted
    from their batches, what is sampled from the engine.
    """

    def reward(problems, completions):
        return [
            0.0 if int(problem.answer) % 3 == 0 else len(text)
            for problem, text in zip(problems, completions, strict=True)
        ]

    class Counting(Scripted):
        completions = tokens = 0

        def generate(self, prompts, sampling, seed):
            found = super().generate(prompts, sampling, seed)
            self.completions += len(found.lengths)
            self.tokens += int(found.completion_mask.sum())
            return found

    engine, settings = Counting(), make_settings(resample_rounds=2, prompts_per_step=6)
    stream = make_stream(settings, reward=reward, engine=engine)
    totals, read = Counter(), Counter()
    for step in range(settings.steps):
        batch = stream.batch(step)
        read.update(completions=len(batch["mask"]), tokens=int(batch["mask"].sum()))
        totals.update(stream._current.metrics)
    assert totals["completions/discarded"] > 0 and totals["num_tokens/discarded"] > 0
    for name, sampled, consumed in (
        ("completions", "completions/generated", "completions/consumed"),
        ("tokens", "num_tokens", "num_tokens/consumed"),
    ):
        assert totals[sampled] == getattr(engine, name)
        assert totals[consumed] == read[name]
        discarded = totals[
            "completions/discarded" if name == "completions" else "num_tokens/discarded"
        ]
        assert totals[sampled] == totals[consumed] + discarded


def test_an_upper_bound_has_no_effect_where_a_rollout_serves_one_update(tmp_path):
    """Then every ratio is 1. Where it serves two, the bound acts."""
    found = {
        (updates, high): train(
            tmp_path / f"{updates}_{high}",
            make_settings(updates_per_rollout=updates, epsilon_high=high),
        )
        for updates in (1, 2)
        for high in (0.0, 0.28)
    }
    assert same_weights(found[1, 0.0][0], found[1, 0.28][0])
    assert (found[1, 0.0][1]["clip_ratio"] == 0).all()
    assert not same_weights(found[2, 0.0][0], found[2, 0.28][0])


def test_an_entropy_bonus_keeps_the_entropy_higher(tmp_path):
    ends = [
        train(tmp_path / str(bonus), make_settings(steps=6, entropy_coef=bonus))[1]["entropy"]
        for bonus in (0.0, 1.0)
    ]
    assert ends[0].iloc[0] == ends[1].iloc[0] and ends[0].iloc[-1] < ends[1].iloc[-1]


def test_the_format_gates_the_reward_and_values_are_mapped():
    settings = make_settings(
        format_pattern="z{1,2}", reward_values=(-5.0, 5.0), scale_rewards="none"
    )
    stream = make_stream(
        settings, reward=lambda problems, texts: [1.0] * len(texts), engine=Scripted()
    )
    stream.batch(0)
    assert (
        stream._current.metrics["reward"] == 0.0
        and stream._current.metrics["format/passed_ratio"] == 0.5
    )
    assert set(stream._current.tensors["advantages"].tolist()) == {-5.0, 5.0}


def test_without_a_critic_rewards_are_compared_over_the_whole_batch():
    """AReaL's variant: a group that is all right learns from one that is all wrong."""
    rewards = [1.0, 1.0, 0.0, 0.0]
    assert (group_advantages(rewards, "aabb", num_generations=2).advantages == 0).all()
    found = group_advantages(
        rewards, "aabb", num_generations=2, scale_rewards="batch", baseline="batch"
    ).advantages
    np.testing.assert_allclose(
        found, np.array([0.5, 0.5, -0.5, -0.5]) / (np.std(rewards, ddof=1) + 1e-4)
    )


def test_the_response_budget_follows_its_stages():
    settings = make_settings(length_stages=((0, 2), (2, 5)), steps=4)
    engine = Scripted()
    stream = make_stream(settings, engine=engine)
    budgets = [int(stream.batch(step)["max_completion_length"]) for step in range(4)]
    assert budgets == [2, 2, 5, 5] == [budget for _, budget in engine.calls]


def test_an_epoch_has_each_problem_once():
    drawn = [number for rollout in range(5) for number in drawn_problems(10, 4, 0, rollout)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10)) and drawn[:10] != drawn[10:]


# --------------------------------------------------------------------------------------------------
# refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problems": []}, "prompt set is empty"),
        ({"problems": PROBLEMS[:3]}, "has 3 prompts, a step takes 4"),
        (
            {"problems": [*PROBLEMS, SimpleNamespace(prompt_ids=[])]},
            "problem 10 has an empty prompt",
        ),
        ({"problems": [SimpleNamespace(prompt_ids=[5] * 506)] * 5}, "exceeds the 512 positions"),
        (
            {"reward": lambda problems, texts: [math.nan] * len(texts)},
            "2 of 2 rewards are not finite",
        ),
        ({"reward": lambda problems, texts: [1.0]}, r"rewards have shape \[1\], not \[2\]"),
        (
            {"settings": {"num_generations": 1}},
            r"num_generations\n  Input should be greater than 1",
        ),
        (
            {"settings": {"max_completion_length": 0}},
            r"max_completion_length\n  Input should be greater than 0",
        ),
        ({"settings": {"length_stages": ((0, 8), (5, 0))}}, "has a budget below one token"),
        ({"settings": {"length_stages": ((3, 8),)}}, "must begin at step 0"),
        ({"settings": {"temperature": 0.0}}, r"temperature\n  Input should be greater than 0"),
        (
            {"settings": {"correction": "both"}},
            r"correction\n  Input should be \'none\', \'naive\' or \'decoupled\'",
        ),
        ({"settings": {"loss_type": "ppo"}}, r"loss_type\n  Input should be \'grpo\'"),
        ({"settings": {"updates_per_rollout": 3}}, "do not divide into 3 equal updates"),
        ({"settings": {"reward_values": (1.0, 0.0)}}, "the wrong answer's, then the right one's"),
        ({"settings": {"micro_batch_examples": 5}}, "not a multiple of micro_batch_examples"),
        ({"settings": {"baseline": "batch"}}, "Set scale_rewards to batch or none"),
        ({"model": {"mlp_dropout": 0.1}}, "the model has dropout"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_rollout(tmp_path, changes, message):
    class Untouchable:
        def generate(self, *_):
            pytest.fail("a rollout was begun")

        update_weights = generate

    with pytest.raises(ValueError, match=message):
        train(
            tmp_path,
            make_settings(**changes.get("settings", {})),
            changes.get("reward", letters),
            changes.get("problems", PROBLEMS),
            model=make_model(**changes.get("model", {})),
            engine=Untouchable(),
        )


def test_a_reward_that_breaks_later_is_named(tmp_path):
    calls = []

    def reward(problems, completions):
        calls.append(len(completions))
        return [math.nan if len(calls) > 2 else 1.0] * len(completions)

    with pytest.raises(ValueError, match="16 of 16 rewards are not finite"):
        train(tmp_path, reward=reward)
    assert calls == [2, 16, 16]


def test_gspo_is_the_grpo_loss_at_sequence_level():
    sequence_level = make_settings(importance_sampling_level="sequence")
    assert objective_of(make_settings(loss_type="gspo"), 4) == objective_of(sequence_level, 4)


def test_an_infinite_behaviour_weight_is_masked_and_not_nan():
    """exp(200) is infinite in float32, and infinity times 0 is NaN."""
    stream = make_stream(make_settings(updates_per_rollout=2, correction="decoupled"))
    batch = stream.batch(0)
    first = batch["mask"].int().argmax(dim=1)
    batch["sampling_log_probs"][0, first[0]] -= 200
    model = make_model(9)
    sums = grpo_loss(make_settings(correction="decoupled"))(model, batch)
    sums["loss"].backward()
    assert int(sums["left_out"]) >= 1
    assert all(math.isfinite(value.item()) for value in sums.values())
    assert math.isfinite(gradient_norm(model))


def test_completions_end_at_any_of_several_end_tokens(tmp_path):
    """The trainer's mask and the sampler agree on what ends a completion."""
    settings = make_settings(steps=2, num_generations=8, max_completion_length=20)
    _, one = train(tmp_path / "one", settings)
    many = [EOS, *range(60, 120)]
    _, several = train(tmp_path / "several", settings, eos_token_id=many)
    clipped = "completions/clipped_ratio"
    assert several[clipped].max() < one[clipped].min()
    assert several["completions/mean_length"].max() < one["completions/mean_length"].min()
