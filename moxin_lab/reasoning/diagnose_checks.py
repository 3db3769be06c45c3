"""The checks of the GRPO diagnosis: what a log of numbers can say about why reward does not rise.

    Run (a log and the reward's range) -> each check of `CHECKS` -> Cause, or None

Guarantees: a check reads numbers only and states those it rests on; one whose columns the log lacks
finds nothing.
Out of scope: the trend and the paragraph (diagnose.py); proving a cause. The bounds are rules of
thumb, each with its reason.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

# Bounds. A share is taken over the last half of the log, where the trouble is now.
# Share of completions that are truncated: of groups of 8, 94 % then contain at least one.
TRUNCATED = 0.3
NO_ANSWER = 0.3  # share of verdicts, for the same reason
# Share of verdicts that the verifier could not reach: rare on honest answers, so a tenth is a
# pattern.
REFUSED = 0.1
UNIFORM = 0.8  # share of groups without variance: five times the rollouts for the same gradient
# Share of the reward's range: nearer to an end than this, uniform groups are all wrong or right.
EXTREME = 0.15
STALE_STEPS = 4.0  # where naive PPO lost 19 of 42 points (AReaL v0.3, AIME24; 2 steps lost 2)
# Nats per token: the sampler's and the trainer's weights or arithmetic differ by 10 % per token.
LOGP_DIFFERENCE = 0.1
# Share of clipped ratios: steps move further from the rollout's policy than its samples support.
CLIPPED_RATIOS = 0.2
COLLAPSED_ENTROPY = 0.05  # nats per token: the likeliest token has about 99 %
ENTROPY_LEFT = 0.2  # share of the first steps' entropy
# Multiple of the KL of best-of-n sampling from a group, which costs no training at all.
FAR = 4.0
SMALL_GAIN = 0.1  # share of the reward's range
STILL_KL = 1e-6  # nats per token from the reference: nothing visible has been learned


@dataclass(frozen=True)
class Cause:
    """name: one of `CHECKS`. seen: what the log shows, with its numbers. advice: what to change
    first.
    """

    name: str
    seen: str
    advice: str


@dataclass(frozen=True)
class Run:
    """A log with what the checks need besides. low, high: the reward's range; None: not known."""

    log: pd.DataFrame
    low: float
    high: float
    num_generations: int | None
    prompts_per_step: int | None

    def late(self, name: str) -> float:
        """Mean over the last half of the steps that have a value; NaN without one."""
        if name not in self.log:
            return math.nan
        values = self.log[name].dropna().to_numpy()
        return float(values[len(values) // 2 :].mean()) if len(values) else math.nan

    def early(self, name: str) -> float:
        """Mean over the first tenth of the steps that have a value; NaN without one."""
        values = self.log[name].dropna().to_numpy() if name in self.log else np.empty(0)
        return float(values[: max(1, len(values) // 10)].mean()) if len(values) else math.nan

    def verdicts(self) -> dict[str, float]:
        """Share of each verifier reason, of all verdicts; empty without columns for them."""
        counts = {
            name.split("/", 1)[1]: self.late(name)
            for name in self.log
            if str(name).startswith("verifier/")
        }
        counts = {
            name: count
            for name, count in counts.items()
            if name not in ("cached", "workers_killed")
        }
        total = sum(counts.values())
        return {name: count / total for name, count in counts.items()} if total else {}

    def reward_share(self) -> float:
        """Late reward as a share of its range: 0 at `low`, 1 at `high`."""
        return (self.late("reward") - self.low) / (self.high - self.low)


def thirds(reward: np.ndarray) -> tuple[float, float]:
    """Mean reward of the first and of the last third of the steps."""
    third = max(1, len(reward) // 3)
    return float(reward[:third].mean()), float(reward[-third:].mean())


def _truncation(run: Run) -> Cause | None:
    share = run.late("completions/clipped_ratio")
    if not share > TRUNCATED:
        return None
    length = run.late("completions/mean_length")
    about = "" if math.isnan(length) else f" (mean length {length:.0f} tokens)"
    return Cause(
        "truncation",
        f"{share:.0%} of completions are cut by the response budget{about}, before they can state "
        "an answer",
        "Raise max_completion_length, or mask truncated completions, and check that the end token "
        "is learned",
    )


def _no_answer(run: Run) -> Cause | None:
    shares = run.verdicts()
    share = shares.get("no_answer", 0.0) + shares.get("unparsable", 0.0)
    if not share > NO_ANSWER:
        return None
    return Cause(
        "no_answer",
        f"in {share:.0%} of completions the verifier finds no answer that it can read",
        "Show the answer's format in the prompt or in fine-tuning before RL, and read ten "
        "completions",
    )


def _verifier_refusals(run: Run) -> Cause | None:
    shares = run.verdicts()
    bombs, late = shares.get("refused_bomb", 0.0), shares.get("timeout", 0.0)
    if not bombs + late > REFUSED:
        return None
    return Cause(
        "verifier_refusals",
        f"the verifier refuses {bombs:.0%} of the answers as too large to compute and gives up on "
        f"{late:.0%} after its timeout",
        "Read the refused answers: right ones ask for wider limits or a simpler gold, nonsense is "
        "a policy that has drifted",
    )


def _wrong_grouping(run: Run) -> Cause | None:
    """A suspicion. With a reward of two values, of which the higher has share r in a step, groups
    of G drawn at random from the step have equal rewards as often as r^G + (1 - r)^G, and a mean
    deviation that follows from the binomial distribution. Where prompts differ in difficulty, right
    groups are equal more often and deviate less; mixed groups do neither.
    """
    size, needed = run.num_generations, ["reward", "frac_reward_zero_std", "reward_std"]
    if size is None or run.prompts_per_step is None or not set(needed) <= set(run.log):
        return None
    rows = run.log[needed].dropna()
    if not len(rows):
        return None
    share = ((rows["reward"] - run.low) / (run.high - run.low)).clip(0, 1).to_numpy()
    equal = share**size + (1 - share) ** size
    deviation = sum(
        math.comb(size, k)
        * share**k
        * (1 - share) ** (size - k)
        * math.sqrt(k * (size - k) / (size * (size - 1)))
        for k in range(size + 1)
    )
    chance, seen = float(equal.mean()), float(rows["frac_reward_zero_std"].mean())
    spread, seen_spread = (
        float(np.mean(deviation)) * (run.high - run.low),
        float(rows["reward_std"].mean()),
    )
    error = math.sqrt(float((equal * (1 - equal)).mean()) / (run.prompts_per_step * len(rows)))
    # A difference of 5 % of the distance from chance to 1 must be ruled out; else the log is too
    # short, or reward too extreme, to decide.
    near = (
        abs(seen - chance) + 2 * error < 0.05 * (1 - chance)
        and abs(seen_spread - spread) < 0.05 * spread
    )
    if not near:
        return None
    return Cause(
        "wrong_grouping",
        f"{seen:.1%} of groups have equal rewards and reward_std is {seen_spread:.3g}, as of "
        "groups drawn without regard to the prompt "
        f"({chance:.1%}, {spread:.3g}): either all prompts are equally hard or groups mix "
        "prompts",
        "Check that each completion carries its own prompt's key through sampling, sorting and "
        "gathering",
    )


def _all_zero_groups(run: Run) -> Cause | None:
    return _uniform(
        run,
        "all_zero_groups",
        lambda share: share <= EXTREME,
        "nearly all answers are wrong",
        "Start from easier prompts or more fine-tuning, draw more completions per prompt, or "
        "resample such groups",
    )


def _solved(run: Run) -> Cause | None:
    return _uniform(
        run,
        "solved",
        lambda share: share >= 1 - EXTREME,
        "nearly all answers are right: there is little left to learn here",
        "Take harder prompts",
    )


def _two_kinds(run: Run) -> Cause | None:
    return _uniform(
        run,
        "uniform_groups",
        lambda share: EXTREME < share < 1 - EXTREME,
        "prompts are either solved or hopeless, or a group's completions are copies of one another",
        "Check that the temperature is above 0 and that completions of a prompt differ; then take "
        "prompts of middling difficulty",
    )


def _uniform(
    run: Run, name: str, holds: Callable[[float], bool], meaning: str, advice: str
) -> Cause | None:
    share = run.late("frac_reward_zero_std")
    if not (share >= UNIFORM and holds(run.reward_share())):
        return None
    spread = run.late("reward_std")
    about = "" if math.isnan(spread) else f", reward_std {spread:.3g}"
    return Cause(
        name,
        f"{share:.0%} of groups have equal rewards and so no gradient (mean reward "
        f"{run.late('reward'):.3g}{about}); {meaning}",
        advice,
    )


def _stale_weights(run: Run) -> Cause | None:
    steps, difference = run.late("staleness"), run.late("sampling/sampling_logp_difference/mean")
    clipped = run.late("clip_ratio")
    signs = []
    if steps >= STALE_STEPS:
        signs.append(f"completions are {steps:.1f} optimizer steps old")
    if difference > LOGP_DIFFERENCE:
        signs.append(
            f"sampler and trainer differ by {difference:.2f} nats per token on the same completions"
        )
    if clipped > CLIPPED_RATIOS:
        signs.append(f"the bounds hold back {clipped:.0%} of the ratios")
    if not signs:
        return None
    return Cause(
        "stale_weights",
        "what is learned from was sampled by other weights: " + ", ".join(signs),
        "Check that the sampler receives every update, lower the allowed staleness or use the "
        "decoupled objective",
    )


def _entropy_collapse(run: Run) -> Cause | None:
    first, last = run.early("entropy"), run.late("entropy")
    if not (last < COLLAPSED_ENTROPY or last < ENTROPY_LEFT * first):
        return None
    return Cause(
        "entropy_collapse",
        f"entropy is {last:.3g} nats per token, from {first:.3g} at the start: completions of a "
        "prompt are nearly the same",
        "Raise epsilon_high or the temperature, lower the learning rate, and restart from before "
        "the collapse",
    )


def drift(run: Run) -> Cause | None:
    """The policy is far from the reference and reward hardly better. The best of G samples is at
    most log G - (G - 1)/G nats from the policy (Beirami et al. 2024, arXiv 2401.01879) and has the
    reward of pass@G.
    """
    if run.num_generations is None:
        return None
    best = math.log(run.num_generations) - (run.num_generations - 1) / run.num_generations
    distance = run.late("kl") * run.late("completions/mean_length")
    first, last = thirds(run.log["reward"].to_numpy(dtype=np.float64))
    gain = last - first
    if not (distance > FAR * best and gain < SMALL_GAIN * (run.high - run.low)):
        return None
    return Cause(
        "drift",
        f"the policy is {distance:.1f} nats per completion from the reference, where taking the "
        f"best of {run.num_generations} samples would be {best:.1f}, and reward moved by "
        f"{gain:+.3f}: noise moves the weights more than reward does",
        "Lower the learning rate or take more groups per step, and compare pass@k, which falls "
        "when a model becomes more certain and no better",
    )


def _still_policy(run: Run) -> Cause | None:
    if not run.late("kl") < STILL_KL:
        return None
    return Cause(
        "still_policy",
        f"the KL to the reference is {run.late('kl'):.1g} nats per token: the weights hardly move",
        "Check that gradients reach the weights and that the learning rate is not lost in the "
        "weights' precision",
    )


CHECKS: dict[str, Callable[[Run], Cause | None]] = {
    "truncation": _truncation,
    "no_answer": _no_answer,
    "verifier_refusals": _verifier_refusals,
    "stale_weights": _stale_weights,
    "entropy_collapse": _entropy_collapse,
    "all_zero_groups": _all_zero_groups,
    "solved": _solved,
    "uniform_groups": _two_kinds,
    "drift": drift,
    "wrong_grouping": _wrong_grouping,
    "still_policy": _still_policy,
}
"""From cause to consequence: a truncated completion has no answer, a missing answer makes its group
all wrong. Suspicions and mere symptoms come last.
"""
