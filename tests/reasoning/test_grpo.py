"""Guarantees of GRPO's functions: TRL's losses and advantages, any cut of a step, groups of one
prompt, errors before work.
"""

import itertools
import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from moxin_lab.reasoning import grpo
from moxin_lab.reasoning.log_probs import completion_log_probs

EOS, PAD = 2, 0
BUDGET = 12


def make_objective(**changes):
    return grpo.Objective(
        **{"max_completion_length": BUDGET, "epsilon_low": 0.2, "epsilon_high": 0.28, **changes}
    )


def make_rollout(count=8, width=9, seed=0):
    """Log-probabilities of four policies over completions of unequal lengths; ratios on both sides
    of both bounds.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(count, width, generator=draw, dtype=torch.float64)

    log_probs = -normal().abs() - 0.1
    lengths = torch.tensor([width, 1, 4, 7, 2, width, 3, 5][:count])
    return SimpleNamespace(
        log_probs=log_probs,
        old=log_probs + 0.4 * normal(),
        reference=log_probs + 0.5 * normal(),
        entropies=normal().abs(),
        advantages=normal()[:, 0],
        mask=torch.arange(width) < lengths[:, None],
    )


def policy_loss(rollout, step, objective, rows=slice(None), **changes):
    """Loss and gradient of some rows of a rollout."""
    log_probs = rollout.log_probs[rows].clone().requires_grad_()
    options = {"old_log_probs": rollout.old[rows], "reference_log_probs": rollout.reference[rows]}
    found = grpo.policy_loss(
        log_probs,
        rollout.advantages[rows],
        rollout.mask[rows],
        step,
        objective,
        entropies=rollout.entropies[rows],
        **{**options, **changes},
    )
    found["loss"].backward()
    return found, log_probs.grad


def trl_loss(rollout, objective, *, rows=slice(None), accumulate=1, steps=1, rollout_tokens=None):
    """TRL's own `_compute_loss`, with the log-probabilities given where it would run a model."""
    from trl import GRPOTrainer

    log_probs = rollout.log_probs[rows].clone().requires_grad_()
    count = log_probs.shape[0]
    cispo = objective.loss_type == "cispo"
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **options: (
            log_probs,
            rollout.entropies[rows],
            None,
        ),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        importance_sampling_level=objective.importance_sampling_level,
        beta=objective.kl_coef,
        loss_type=objective.loss_type,
        epsilon_low=objective.epsilon_low,
        epsilon_high=objective.epsilon_high + cispo,
        args=SimpleNamespace(
            delta=None, use_bias_correction_kl=False, steps_per_generation=steps * accumulate
        ),
        max_completion_length=objective.max_completion_length,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=accumulate,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
    )
    ids = torch.zeros(count, 1, dtype=torch.long)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": torch.zeros(log_probs.shape, dtype=torch.long),
        "completion_mask": rollout.mask[rows].long(),
        "advantages": rollout.advantages[rows],
        "old_per_token_logps": rollout.old[rows],
        "ref_per_token_logps": rollout.reference[rows],
        "num_items_in_batch": rollout.mask.sum()
        if rollout_tokens is None
        else torch.tensor(rollout_tokens),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    return (
        loss.item(),
        log_probs.grad,
        {name: values[0] for name, values in trainer._metrics["train"].items()},
    )


EVERY = [(loss, level) for loss in grpo.LOSS_TYPES for level in grpo.LEVELS]


@pytest.mark.parametrize(("loss", "level"), EVERY)
@pytest.mark.parametrize("coefficient", [0.0, 0.04])
def test_losses_gradients_and_metrics_equal_trls(loss, level, coefficient):
    rollout = make_rollout()
    objective = make_objective(loss_type=loss, importance_sampling_level=level, kl_coef=coefficient)
    (step,) = grpo.totals([rollout.mask])
    found, gradient = policy_loss(rollout, step, objective)
    expected, their_gradient, theirs = trl_loss(rollout, objective)
    assert found["loss"].item() == pytest.approx(expected, abs=1e-6) and abs(expected) > 1e-3
    torch.testing.assert_close(gradient, their_gradient, atol=1e-9, rtol=1e-9)
    ours = grpo.metrics(found)
    assert ours["entropy"] == pytest.approx(theirs["entropy"], abs=1e-6)
    if coefficient:
        assert ours["kl"] == pytest.approx(theirs["kl"], abs=1e-6)
    if loss == "cispo":
        assert ours["clip_ratio/region_mean"] == pytest.approx(theirs["cispo_clip_ratio"], abs=1e-6)
    else:
        for name in ("low_mean", "high_mean", "region_mean"):
            assert ours[f"clip_ratio/{name}"] == pytest.approx(
                theirs[f"clip_ratio/{name}"], abs=1e-6
            )
    assert level == "sequence" or ours["clip_ratio/region_mean"] > 0


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "cispo"])
def test_accumulated_steps_of_a_rollout_for_two_steps_equal_trls(loss):
    rollout, objective = make_rollout(), make_objective(loss_type=loss)
    steps = grpo.totals([rollout.mask[:4], rollout.mask[4:]])
    assert steps[0].tokens != steps[1].tokens and steps[0].rollout_tokens == steps[1].rollout_tokens
    for number, step in enumerate(steps):
        ours, theirs = 0.0, 0.0
        for part in range(2):
            rows = slice(4 * number + 2 * part, 4 * number + 2 * part + 2)
            ours += policy_loss(rollout, step, objective, rows)[0]["loss"].item()
            theirs += trl_loss(rollout, objective, rows=rows, accumulate=2, steps=2)[0]
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_two_tokens_in_closed_form():
    """One answer of one token with advantage 1, one of two with -0.5 whose second ratio the lower
    bound holds back.
    """
    ratio = torch.tensor([[1.5, 1.0], [1.1, 0.5]], dtype=torch.float64)
    log_probs = torch.tensor([[-1.0, -9.0], [-2.0, -3.0]], dtype=torch.float64)
    mask = torch.tensor([[True, False], [True, True]])
    advantages = torch.tensor([1.0, -0.5], dtype=torch.float64)
    (step,) = grpo.totals([mask])
    clipped = [-1.2, 0.5 * 1.1, 0.5 * 0.8]
    cispo = [-1.2 * 1 * -1.0, 1.1 * 0.5 * -2.0, 0.5 * 0.5 * -3.0]
    whole = 0.5 * max(math.sqrt(1.1 * 0.5), 0.8)
    expected = {
        ("grpo", "token"): (clipped[0] + (clipped[1] + clipped[2]) / 2) / 2,
        ("dr_grpo", "token"): sum(clipped) / (2 * 10),
        ("dapo", "token"): sum(clipped) / 3,
        ("bnpo", "token"): sum(clipped) / 3,
        ("cispo", "token"): sum(cispo) / 3,
        ("grpo", "sequence"): (-1.2 + whole) / 2,
        ("dapo", "sequence"): (-1.2 + 2 * whole) / 3,
    }
    for (loss, level), value in expected.items():
        objective = grpo.Objective(10, loss, level, 0.2, 0.2)
        found = grpo.policy_loss(
            log_probs, advantages, mask, step, objective, old_log_probs=log_probs - ratio.log()
        )
        assert found["loss"].item() == pytest.approx(value, abs=1e-12), (loss, level)
    k3 = math.exp(0.5) - 0.5 - 1
    with_kl = grpo.Objective(10, "dapo", kl_coef=0.1)
    found = grpo.policy_loss(
        log_probs, advantages * 0, mask, step, with_kl, reference_log_probs=log_probs + 0.5
    )
    assert found["loss"].item() == pytest.approx(0.1 * k3, abs=1e-12)
    assert grpo.metrics(found)["kl"] == pytest.approx(k3, abs=1e-12)


def test_bounds_are_separate_and_a_clipped_token_has_no_gradient_except_in_cispo():
    log_probs = torch.tensor([[-1.0, -1.0]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    (step,) = grpo.totals([mask])
    for advantage, pushed in ((1.0, [1.25, 1.35]), (-1.0, [0.85, 0.75])):
        old = log_probs - torch.tensor([pushed], dtype=torch.float64).log()
        rollout = SimpleNamespace(
            log_probs=log_probs,
            old=old,
            reference=old,
            entropies=old,
            mask=mask,
            advantages=torch.tensor([advantage]),
        )
        found, gradient = policy_loss(rollout, step, make_objective(loss_type="dapo"))
        assert gradient[0, 0] != 0 and gradient[0, 1] == 0
        side = "high" if advantage > 0 else "low"
        assert grpo.metrics(found)[f"clip_ratio/{side}_mean"] == 0.5
        _, gradient = policy_loss(rollout, step, make_objective(loss_type="cispo"))
        weight = min(pushed[1], 1.28)
        assert gradient[0, 1].item() == pytest.approx(-weight * advantage / 2)


@pytest.mark.parametrize(("loss", "level"), EVERY)
def test_a_steps_loss_and_gradient_do_not_depend_on_how_it_is_cut(loss, level):
    rollout = make_rollout()
    rollout.mask[3] = False  # a masked completion
    objective = make_objective(loss_type=loss, importance_sampling_level=level, kl_coef=0.01)
    (step,) = grpo.totals([rollout.mask])
    whole, gradient = policy_loss(rollout, step, objective)
    for cut in ([4, 4], [1] * 8, [5, 2, 1]):
        ends = list(itertools.accumulate(cut))
        parts = [
            policy_loss(rollout, step, objective, slice(b - n, b))
            for n, b in zip(cut, ends, strict=True)
        ]
        assert sum(part["loss"].item() for part, _ in parts) == pytest.approx(
            whole["loss"].item(), rel=1e-5
        )
        torch.testing.assert_close(
            torch.cat([g for _, g in parts]), gradient, rtol=1e-5, atol=1e-12
        )
        sums = {name: sum(part[name] for part, _ in parts) for name in whole if name != "loss"}
        assert grpo.metrics(sums) == pytest.approx(grpo.metrics(whole))
        assert int(sums["sequences"]) == 8


def test_dapo_divides_by_the_mean_tokens_of_a_rollouts_steps_and_bnpo_by_those_of_its_step():
    masks = [torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 9, dtype=torch.bool)]
    assert grpo.totals(masks) == [grpo.Totals(2, 6, 12.0), grpo.Totals(2, 18, 12.0)]
    weights = {
        loss: [
            float(grpo.token_weights(mask, step, make_objective(loss_type=loss)).sum())
            for mask, step in zip(masks, grpo.totals(masks), strict=True)
        ]
        for loss in grpo.LOSS_TYPES
    }
    assert weights["grpo"] == weights["bnpo"] == pytest.approx([1, 1])
    assert weights["dapo"] == weights["cispo"] == pytest.approx([0.5, 1.5])
    assert weights["dr_grpo"] == pytest.approx([6 / 24, 18 / 24])


def test_tokens_behind_the_first_end_token_carry_no_loss():
    rows = torch.tensor(
        [
            [5, 6, EOS, 7, EOS],
            [5, 6, 7, 8, 9],
            [5, PAD, 6, EOS, PAD],
            [EOS, 5, 5, 5, 5],
            [5, 6, PAD, PAD, PAD],
        ]
    )
    found = grpo.completion_mask(rows, torch.tensor([5, 5, 4, 1, 2]), eos_ids=[EOS])
    kept = ["11100", "11111", "11110", "10000", "11000"]
    assert ["".join(map(str, row)) for row in found.mask.int().tolist()] == kept
    assert found.truncated.tolist() == [False, True, False, False, True]
    assert (
        found.metrics["completions/mean_length"] == pytest.approx(3)
        and found.metrics["completions/max_length"] == 5
    )
    assert found.metrics["completions/clipped_ratio"] == pytest.approx(0.4)
    same = grpo.completion_mask(
        torch.where(rows == PAD, EOS, rows), torch.tensor([5, 5, 4, 1, 2]), eos_ids=[EOS]
    )
    assert same.mask[4].tolist() == [True, True, False, False, False] and bool(same.truncated[4])
    dropped = grpo.completion_mask(
        rows, torch.tensor([5, 5, 4, 1, 2]), eos_ids=[EOS], mask_truncated_completions=True
    )
    assert dropped.mask.sum(dim=1).tolist() == [3, 0, 4, 1, 0] and dropped.metrics == found.metrics
    assert grpo.totals([dropped.mask]) == [grpo.Totals(5, 8, 8.0)]
    several = grpo.completion_mask(rows, torch.tensor([5] * 5), eos_ids=[EOS, 7])
    assert several.mask[1].tolist() == [True, True, True, False, False]
    for lengths in ([5, 5, 0, 1, 2], [6, 5, 4, 1, 2]):
        with pytest.raises(ValueError, match=r"not in 1\.\.5"):
            grpo.completion_mask(rows, torch.tensor(lengths), eos_ids=[EOS])


@pytest.mark.parametrize("level", grpo.LEVELS)
@pytest.mark.parametrize("loss", grpo.LOSS_TYPES)
def test_values_in_padding_never_reach_loss_or_gradient(loss, level):
    rollout, objective = (
        make_rollout(),
        make_objective(loss_type=loss, importance_sampling_level=level, kl_coef=0.1),
    )
    (step,) = grpo.totals([rollout.mask])
    found, gradient = policy_loss(rollout, step, objective)
    for junk in (math.nan, -math.inf, 1e30):
        spoilt = make_rollout()
        for values in (spoilt.log_probs, spoilt.old, spoilt.reference, spoilt.entropies):
            values[~spoilt.mask] = junk
        same, same_gradient = policy_loss(spoilt, step, objective)
        assert all(torch.equal(same[name], found[name]) for name in found)
        assert torch.equal(same_gradient, gradient) and not gradient[~rollout.mask].any()


def test_a_step_of_which_everything_is_masked_has_loss_zero_and_no_nan():
    rollout = make_rollout()
    rollout.mask[:] = False
    for loss, level in EVERY:
        (step,) = grpo.totals([rollout.mask])
        found, gradient = policy_loss(
            rollout, step, make_objective(loss_type=loss, importance_sampling_level=level)
        )
        assert found["loss"].item() == 0 and not gradient.any() and grpo.metrics(found)["kl"] == 0


P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)


def test_kl_estimators_have_their_known_means_on_a_pair_of_distributions():
    kl = float((P * (P / Q).log()).sum())
    exact = {
        name: float((P * grpo.kl_estimates(P.log(), Q.log(), name)).sum())
        for name in grpo.ESTIMATORS
    }
    assert exact["k1"] == pytest.approx(kl, abs=1e-12) and exact["k3"] == pytest.approx(
        kl, abs=1e-12
    )
    assert exact["k2"] == pytest.approx(0.7 * math.log(2.5) ** 2 / 2, abs=1e-12)
    drawn = torch.multinomial(
        P, 40_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    for name in grpo.ESTIMATORS:
        values = grpo.kl_estimates(P.log()[drawn], Q.log()[drawn], name)
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - exact[name]) < 4 * error and error < 0.005
        assert (values < 0).any() == (name == "k1")


def test_the_gradients_of_k2_and_k3_are_those_of_the_two_divergences_and_k1_has_none():
    logits = P.log().clone().requires_grad_()

    def gradient(value):
        return torch.autograd.grad(value, logits)[0]

    def divergence(left, right):
        return (left * (left / right).log()).sum()

    policy = logits.softmax(dim=0)
    expected = {"k1": torch.zeros(3), "k2": gradient(divergence(policy, Q))}
    expected["k3"] = gradient(divergence(Q, logits.softmax(dim=0)))
    for name in grpo.ESTIMATORS:
        found = gradient((P * grpo.kl_estimates(logits.log_softmax(dim=0), Q.log(), name)).sum())
        torch.testing.assert_close(found, expected[name].double(), atol=1e-12, rtol=1e-9)


def test_without_old_log_probabilities_the_gradient_is_the_policy_gradients():
    rollout = make_rollout()
    (step,) = grpo.totals([rollout.mask])
    for loss in grpo.LOSS_TYPES:
        objective = make_objective(loss_type=loss)
        found, gradient = policy_loss(
            rollout, step, objective, old_log_probs=None, reference_log_probs=None
        )
        expected = -rollout.advantages[:, None] * grpo.token_weights(rollout.mask, step, objective)
        torch.testing.assert_close(gradient, expected)
        assert grpo.metrics(found)["clip_ratio/region_mean"] == 0 and "kl" not in found


@pytest.mark.parametrize("at_once", [100, 1])
def test_the_entropy_bonus_has_the_gradient_of_the_entropy_by_hand(at_once, monkeypatch):
    """H = -sum p log p has the derivative -p_i (log p_i + H) in the logit i. The loss is -0.1 times
    the mean over sequences of their tokens' mean H, where no advantage adds to it. at_once: tokens
    whose logits are in memory; the others' are computed again for the gradient.
    """
    monkeypatch.setattr("moxin_lab.reasoning.log_probs.HEAD_TOKENS", at_once)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(3)).requires_grad_()
    model = SimpleNamespace(hidden_states=lambda ids: logits, lm_head=lambda states: states)
    ids = torch.zeros(2, 4, dtype=torch.int64)
    log_probs, entropies = completion_log_probs(model, ids, mask, 0.7, entropy_gradient=True)
    objective, (step,) = make_objective(entropy_coef=0.1), grpo.totals([mask])
    found = grpo.policy_loss(log_probs, torch.zeros(2), mask, step, objective, entropies=entropies)
    found["loss"].backward()
    with torch.no_grad():
        logs = (logits / 0.7).log_softmax(dim=-1)
        entropy = -(logs.exp() * logs).sum(dim=-1)
        weights = torch.tensor([[0.25, 0.25, 0.0], [0.5, 0.0, 0.0]])
        expected = 0.1 * weights[..., None] * logs.exp() * (logs + entropy[..., None]) / 0.7
    assert found["loss"].item() == pytest.approx(-0.1 * float((weights * entropy).sum()), rel=1e-5)
    torch.testing.assert_close(logits.grad, expected)
    with pytest.raises(
        ValueError, match=r"entropy_coef is 0\.1 and the entropies have no gradient"
    ):
        grpo.policy_loss(
            log_probs, torch.zeros(2), mask, step, objective, entropies=entropies.detach()
        )


def test_half_precision_is_widened():
    rollout, objective = make_rollout(), make_objective(loss_type="dapo", kl_coef=0.1)
    half = SimpleNamespace(
        **{name: values.bfloat16() for name, values in vars(rollout).items() if name != "mask"}
    )
    wide = SimpleNamespace(
        **{name: values.float() for name, values in vars(half).items()}, mask=rollout.mask
    )
    half.mask = rollout.mask
    (step,) = grpo.totals([rollout.mask])
    found, expected = (
        policy_loss(half, step, objective)[0]["loss"],
        policy_loss(wide, step, objective)[0]["loss"],
    )
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss_type": "ppo"},
            "unknown loss_type 'ppo': available are grpo, dr_grpo, dapo, bnpo, cispo",
        ),
        ({"importance_sampling_level": "word"}, "unknown importance_sampling_level 'word'"),
        ({"kl_estimator": "k4"}, "unknown kl_estimator 'k4'"),
        ({"max_completion_length": 0}, "the response budget is 0 tokens"),
        ({"epsilon_low": 1.5}, "epsilon_low is 1.5"),
        ({"epsilon_high": -0.1}, "epsilon_high is -0.1"),
        ({"kl_coef": math.nan}, "kl_coef is nan"),
        ({"entropy_coef": -0.01}, "entropy_coef is -0.01"),
    ],
)
def test_an_objective_outside_its_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_objective(**changes)


def test_tensors_that_do_not_fit_are_refused():
    rollout = make_rollout()
    (step,) = grpo.totals([rollout.mask])
    with pytest.raises(ValueError, match=r"kl_coef is 0\.1 and there are no reference_log_probs"):
        policy_loss(rollout, step, make_objective(kl_coef=0.1), reference_log_probs=None)
    with pytest.raises(ValueError, match=r"old_log_probs has shape \[8, 8\], log_probs \[8, 9\]"):
        policy_loss(rollout, step, make_objective(), old_log_probs=rollout.old[:, 1:])
    rollout.advantages = rollout.advantages[:3]
    with pytest.raises(ValueError, match=r"advantages have shape \[3\], not \[8\]"):
        policy_loss(rollout, step, make_objective())
    with pytest.raises(ValueError, match="nothing to learn"):
        grpo.totals([rollout.mask, rollout.mask[:0]])


@pytest.mark.parametrize("kl_estimator", grpo.ESTIMATORS)
@pytest.mark.parametrize(("loss", "level"), EVERY)
@pytest.mark.parametrize("nats", [200.0, -200.0, 1e4])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_log_ratios_of_any_size_give_a_finite_loss_and_gradient(
    loss, level, kl_estimator, nats, advantage
):
    """In float32, where exp(200) is infinite; the other tokens keep their gradient."""
    values = torch.full((2, 3), -1.0)
    far = values.clone()
    far[0, 1] -= nats
    rollout = SimpleNamespace(
        log_probs=values,
        old=far,
        reference=values - (far - values),
        entropies=values,
        mask=torch.ones(2, 3, dtype=torch.bool),
        advantages=torch.full((2,), advantage),
    )
    (step,) = grpo.totals([rollout.mask])
    objective = make_objective(
        loss_type=loss,
        importance_sampling_level=level,
        kl_coef=0.1,
        kl_estimator=kl_estimator,
    )
    found, gradient = policy_loss(rollout, step, objective)
    assert math.isfinite(found["loss"].item()) and bool(gradient.isfinite().all())
    assert bool((gradient[1] != 0).all())
    assert all(math.isfinite(value) for value in grpo.metrics(found).values())


@pytest.mark.parametrize(("loss", "level"), EVERY)
def test_ordinary_ratios_are_bitwise_what_they_are_without_the_bound(loss, level, monkeypatch):
    rollout = make_rollout()
    objective = make_objective(loss_type=loss, importance_sampling_level=level, kl_coef=0.1)
    (step,) = grpo.totals([rollout.mask])
    found, gradient = policy_loss(rollout, step, objective)
    monkeypatch.setattr(grpo, "MAX_LOG_RATIO", math.inf)
    unbounded, same_gradient = policy_loss(rollout, step, objective)
    assert all(torch.equal(found[name], unbounded[name]) for name in found)
    assert torch.equal(gradient, same_gradient)
