"""The GRPO doctor: from a training log, one paragraph that says whether reward rises, and if not,
why and what to change first.

    log (one row per step, the field's names) -> trend of the reward -> checks, from cause to
    consequence -> Diagnosis.paragraph

Guarantees: reads numbers only, so any trainer's log will do; every finding states the number it
rests on; what the log lacks is named, not guessed (tests/reasoning/test_diagnose.py provokes each
cause).
Out of scope: proving a cause. The bounds are rules of thumb, each with its reason; a finding says
where to look first.

Names read: `reward`, `reward_std`, `frac_reward_zero_std`, `kl`, `entropy`, `clip_ratio` (or
`clip_ratio/region_mean`), `completions/mean_length`, `completions/clipped_ratio`,
`verifier/<reason>` (a step's count of each of the verifier's reasons), `staleness` (optimizer steps
between the weights that sampled and those that learn), and
`sampling/sampling_logp_difference/mean`. Only `reward` must be there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

Trend = Literal["rising", "flat", "falling"]
NAMES = (
    "reward_std",
    "frac_reward_zero_std",
    "kl",
    "entropy",
    "clip_ratio",
    "completions/mean_length",
    "completions/clipped_ratio",
    "staleness",
)

# Bounds. A share is taken over the last half of the log, where the trouble is now.
TRUNCATED = (
    0.3  # of completions: in groups of 8, 94% then hold one that is judged without its answer
)
NO_ANSWER = 0.3  # of verdicts, for the same reason
# Of verdicts that the verifier could not reach: rare on honest answers, so a tenth is a pattern.
REFUSED = 0.1
UNIFORM = 0.8  # of groups without variance: five times the rollouts for the same gradient
# Of the reward's range: nearer to an end than this, uniform groups are all wrong or all right.
EXTREME = 0.15
STALE_STEPS = 4.0  # where naive PPO lost 19 of 42 points (AReaL v0.3, AIME24; 2 steps lost 2)
# Nats per token: the sampler's and the trainer's weights or arithmetic differ by 10% per token.
LOGP_DIFFERENCE = 0.1
CLIPPED_RATIOS = (
    0.2  # of ratios held back by the bounds: steps move further than the rollout can tell about
)
COLLAPSED_ENTROPY = 0.05  # nats per token: the likeliest token has about 99%
ENTROPY_LEFT = 0.2  # of the first steps' entropy
# Times the KL of taking the best of a group, which a step could do at once by choosing among its
# samples.
FAR = 4.0
SMALL_GAIN = 0.1  # of the reward's range
STILL_KL = 1e-6  # nats per token from the reference: nothing has been learned that could show


@dataclass(frozen=True)
class Cause:
    """name: one of `CHECKS`. seen: the numbers. advice: what to change first."""

    name: str
    seen: str
    advice: str


@dataclass(frozen=True)
class Diagnosis:
    """causes: from the one nearest to the root. missing: columns that a check would have needed."""

    trend: Trend
    causes: tuple[Cause, ...]
    missing: tuple[str, ...]
    paragraph: str


@dataclass(frozen=True)
class _Run:
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

    def place(self) -> float:
        """Late reward as a share of its range."""
        return (self.late("reward") - self.low) / (self.high - self.low)


def diagnose(
    log: pd.DataFrame | Sequence[Mapping[str, Any]],
    *,
    reward_range: tuple[float, float] = (0.0, 1.0),
    num_generations: int | None = None,
    prompts_per_step: int | None = None,
) -> Diagnosis:
    """Why reward does not rise, from a log with one row per step (a DataFrame, or mappings of name
    to number; None and NaN: not logged in that step).

    reward_range: the lowest and highest reward of one completion, such as (-5, 5). num_generations:
    needed to say how far from the reference is far, and with prompts_per_step to tell mixed groups
    from the others, with a reward of two values. Raises ValueError for an empty log, one without
    `reward` or with a reward that is missing or not finite, or an empty range.
    """
    table = pd.DataFrame(log if isinstance(log, pd.DataFrame) else list(log))
    if not len(table):
        raise ValueError("the log is empty: log at least one step before asking why reward is flat")
    if "reward" not in table:
        raise ValueError(
            f"the log has no column `reward`, only {', '.join(map(str, table.columns))}"
        )
    if "clip_ratio" not in table and "clip_ratio/region_mean" in table:
        table = table.rename(columns={"clip_ratio/region_mean": "clip_ratio"})
    table = table.select_dtypes(exclude="object").join(
        table.select_dtypes("object").apply(pd.to_numeric, errors="coerce")
    )
    bad = np.flatnonzero(~np.isfinite(table["reward"].to_numpy(dtype=np.float64)))
    if len(bad):
        raise ValueError(
            f"`reward` is missing or not finite in {len(bad)} of {len(table)} rows, the first is "
            f"row {bad[0]}: fix the reward "
            "first, its NaN is the cause"
        )
    low, high = map(float, reward_range)
    if not low < high:
        raise ValueError(
            f"reward_range is {reward_range}: give the lowest, then the highest reward of a "
            "completion"
        )
    run = _Run(table, low, high, num_generations, prompts_per_step)
    trend, sentence = _trend(table["reward"].to_numpy(dtype=np.float64), high - low)
    checks = [_drift] if trend == "rising" else CHECKS.values()
    found = [cause for check in checks if (cause := check(run)) is not None]
    missing = tuple(name for name in NAMES if name not in table)
    missing += () if run.verdicts() else ("verifier/<reason>",)
    return Diagnosis(trend, tuple(found), missing, _paragraph(sentence, trend, found, missing, run))


def _trend(reward: np.ndarray, width: float) -> tuple[Trend, str]:
    """Rising or falling: the straight line through the rewards leaves 0 by two standard errors and
    a hundredth of the range.
    """
    steps = np.arange(len(reward), dtype=np.float64)
    first, last = _ends(reward)
    text = f"from {first:.3g} (first third of {len(reward)} steps) to {last:.3g} (last third)"
    if len(reward) < 4:
        return (
            "flat",
            f"Reward went {text}; {len(reward)} step(s) are too few to call it flat, the causes "
            "below are early signs",
        )
    slope, offset = np.polyfit(steps, reward, 1)
    rest = reward - (slope * steps + offset)
    error = math.sqrt(
        float(rest @ rest) / (len(reward) - 2) / float(((steps - steps.mean()) ** 2).sum())
    )
    if abs(slope) > 2 * error and abs(slope) * len(reward) > 0.01 * width:
        return (
            ("rising", f"Reward rises {text}") if slope > 0 else ("falling", f"Reward falls {text}")
        )
    unseen = max(2 * error * len(reward), 0.01 * width)
    return (
        "flat",
        f"Reward is flat, {text}; a change of less than {unseen:.2g} over them would not show "
        "above their own spread",
    )


def _ends(reward: np.ndarray) -> tuple[float, float]:
    """Mean reward of the first and of the last third of the steps."""
    third = max(1, len(reward) // 3)
    return float(reward[:third].mean()), float(reward[-third:].mean())


def _paragraph(
    sentence: str, trend: Trend, causes: list[Cause], missing: tuple[str, ...], run: _Run
) -> str:
    parts = [sentence + "."]
    if trend == "rising" and not causes:
        parts.append("There is nothing to explain.")
    first = "Yet" if trend == "rising" else "Look first at this:"
    for number, cause in enumerate(causes):
        lead = first if number == 0 else "Also, perhaps as a consequence:"
        parts.append(f"{lead} {cause.seen}. {cause.advice}.")
    if trend != "rising" and not causes:
        parts.append(
            "None of the known causes shows in the log: compare start and end on the same "
            "questions, which sees smaller changes; "
            "then raise the learning rate or the number of steps."
        )
    if trend != "rising" and missing:
        parts.append(f"Not checked, because the log lacks it: {', '.join(missing)}.")
    return " ".join(parts)


# --------------------------------------------------------------------------------------------------
# checks


def _truncation(run: _Run) -> Cause | None:
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


def _no_answer(run: _Run) -> Cause | None:
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


def _verifier_refusals(run: _Run) -> Cause | None:
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


def _wrong_grouping(run: _Run) -> Cause | None:
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
    # A twentieth of the room above chance must be ruled out; else the log is too short, or reward
    # too extreme, to tell.
    near = (
        abs(seen - chance) + 2 * error < 0.05 * (1 - chance)
        and abs(seen_spread - spread) < 0.05 * spread
    )
    if not near:
        return None
    return Cause(
        "wrong_grouping",
        f"{seen:.1%} of groups have equal rewards and reward_std is {seen_spread:.3g}, as of "
        "groups drawn without regard to the "
        f"prompt ({chance:.1%}, {spread:.3g}): either all prompts are equally hard or groups mix "
        "prompts",
        "Check that each completion carries its own prompt's key through sampling, sorting and "
        "gathering",
    )


def _all_zero_groups(run: _Run) -> Cause | None:
    return _uniform(
        run,
        "all_zero_groups",
        lambda place: place <= EXTREME,
        "nearly all answers are wrong",
        "Start from easier prompts or more fine-tuning, draw more completions per prompt, or "
        "resample such groups",
    )


def _solved(run: _Run) -> Cause | None:
    return _uniform(
        run,
        "solved",
        lambda place: place >= 1 - EXTREME,
        "nearly all answers are right: there is little left to learn here",
        "Take harder prompts",
    )


def _two_kinds(run: _Run) -> Cause | None:
    return _uniform(
        run,
        "uniform_groups",
        lambda place: EXTREME < place < 1 - EXTREME,
        "prompts are either solved or hopeless, or a group's completions are copies of one another",
        "Check that the temperature is above 0 and that completions of a prompt differ; then take "
        "prompts of middling difficulty",
    )


def _uniform(
    run: _Run, name: str, holds: Callable[[float], bool], meaning: str, advice: str
) -> Cause | None:
    share = run.late("frac_reward_zero_std")
    if not (share >= UNIFORM and holds(run.place())):
        return None
    spread = run.late("reward_std")
    about = "" if math.isnan(spread) else f", reward_std {spread:.3g}"
    return Cause(
        name,
        f"{share:.0%} of groups have equal rewards and so no gradient (mean reward "
        f"{run.late('reward'):.3g}{about}); {meaning}",
        advice,
    )


def _stale_weights(run: _Run) -> Cause | None:
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


def _entropy_collapse(run: _Run) -> Cause | None:
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


def _drift(run: _Run) -> Cause | None:
    """Weights that go far for little. The best of G samples is at most log G - (G - 1)/G nats from
    the policy (Beirami et al. 2024, arXiv 2401.01879) and has the reward of pass@G.
    """
    if run.num_generations is None:
        return None
    best = math.log(run.num_generations) - (run.num_generations - 1) / run.num_generations
    gone = run.late("kl") * run.late("completions/mean_length")
    first, last = _ends(run.log["reward"].to_numpy(dtype=np.float64))
    gained = last - first
    if not (gone > FAR * best and gained < SMALL_GAIN * (run.high - run.low)):
        return None
    return Cause(
        "drift",
        f"the policy is {gone:.1f} nats per completion from the reference, where taking the best "
        "of "
        f"{run.num_generations} samples would be {best:.1f}, and reward moved by {gained:+.3f}: "
        "noise "
        "moves the weights more than reward does",
        "Lower the learning rate or take more groups per step, and compare pass@k, which falls "
        "when "
        "a model becomes more certain and no better",
    )


def _still_policy(run: _Run) -> Cause | None:
    if not run.late("kl") < STILL_KL:
        return None
    return Cause(
        "still_policy",
        f"the KL to the reference is {run.late('kl'):.1g} nats per token: the weights hardly move",
        "Check that gradients reach the weights and that the learning rate is not lost in the "
        "weights' precision",
    )


CHECKS: dict[str, Callable[[_Run], Cause | None]] = {
    "truncation": _truncation,
    "no_answer": _no_answer,
    "verifier_refusals": _verifier_refusals,
    "stale_weights": _stale_weights,
    "entropy_collapse": _entropy_collapse,
    "all_zero_groups": _all_zero_groups,
    "solved": _solved,
    "uniform_groups": _two_kinds,
    "drift": _drift,
    "wrong_grouping": _wrong_grouping,
    "still_policy": _still_policy,
}
"""From cause to consequence: a cut completion has no answer, a missing answer makes its group all
wrong. What can only be suspected, or is no more than a symptom, stands last.
"""
