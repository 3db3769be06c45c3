"""The variants of `bench grpo-variants` and what a run of them would do: the changes of each, its
steps at equal samples, the order of the trainings, the time one takes, and what was not run.

Guarantees: no training is started or read here; a variant whose number of steps follows from a
training that is missing waits for it.
Out of scope: training one (`grpo_variants_training.py`), the rule (`grpo_variants_results.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from moxin_lab.bench.grpo_variants_results import START

if TYPE_CHECKING:
    from moxin_lab.scales.sections import GRPOSettings, ReasoningSettings

STAGE_SEED = 0
"""Seed of the stage's questions, which the start was fine-tuned on, and of all sampled answers."""

# Before a training has run: one H200 took about 130 s for 80 steps of 64 prompts x 8; then a guess
# for a model's answers. Several updates of a rollout add a forward pass and optimizer steps.
SECONDS_PER_COMPLETION = 130 / (80 * 64 * 8)
SECONDS_OF_ANSWERS = 30.0
SEVERAL_UPDATES = 1.3


class Variant(NamedTuple):
    """changes: fields of `GRPOSettings`, in place of the recipe's. against: the variant that it has
    one change more than, None for the recipe. expects: said before the run. equal: of what there is
    as much as in the recipe, completions generated or consumed.
    """

    name: str
    changes: dict[str, Any]
    against: str | None
    expects: str
    equal: str = "generated"


VARIANTS = (
    Variant("recipe", {}, None, "pass@1 rises and pass@k falls, as in the scale's earlier run."),
    Variant(
        "draw-anew",
        {"resample_rounds": 2},
        "recipe",
        "Groups without contrast are rejected and drawn anew: every consumed completion teaches, "
        "hard questions more often, so pass@k falls less. It takes fewer steps for it.",
    ),
    Variant(
        "warmer",
        {"temperature": 1.2},
        "recipe",
        "Sampling at 1.2 pays for answers that are rare at 1.0, which keeps them alive. All "
        "answers are judged at the recipe's temperature.",
    ),
    Variant(
        "no-kl",
        {"kl_coef": 0.0},
        "recipe",
        "Nothing holds the model near its start: pass@k falls at least as far.",
    ),
    Variant(
        "more-kl",
        {"kl_coef": 0.01},
        "recipe",
        "Ten times the pull to the start keeps pass@k and costs some of the gain in pass@1.",
    ),
    Variant(
        "entropy-bonus",
        {"entropy_coef": 0.01},
        "recipe",
        "A bonus for undecided tokens keeps entropy and pass@k; too much of it costs pass@1.",
    ),
    Variant(
        "no-scaling",
        {"scale_rewards": "none"},
        "recipe",
        "Advantages that the group's deviation does not divide: a rare success and a rare failure "
        "weigh less than in the recipe, so hard questions lose weight.",
    ),
    Variant(
        "four-updates",
        {"updates_per_rollout": 4},
        "recipe",
        "Four optimizer steps on a quarter of each rollout: ratios leave 1, so that clipping can "
        "act at all. pass@1 moves further and pass@k falls further.",
    ),
    Variant(
        "clip-higher",
        {"updates_per_rollout": 4, "epsilon_high": 0.28},
        "four-updates",
        "An upper bound of 1.28 lets unlikely tokens grow further before they are clipped, which "
        "keeps entropy and pass@k. With one update of a rollout every ratio is 1 and the bound has "
        "no effect, so it is compared where a rollout serves four.",
    ),
    Variant(
        "draw-anew-longer",
        {"resample_rounds": 2},
        "recipe",
        "As draw-anew, with the recipe's number of steps: as many completions consumed, and more "
        "generated. More useful updates move both measures further.",
        "consumed",
    ),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}
AGAINST = {variant.name: variant.against for variant in VARIANTS}

EQUAL = (
    "Equal samples: a training generates as many completions as the recipe, prompts x generations "
    "x steps, and an optimizer reads each once. One that draws groups anew generates more in a "
    "step. `draw-anew` therefore takes fewer steps, as many as the recipe's share of groups "
    "without contrast with the same seed lets expect, and consumes fewer; `draw-anew-longer` takes "
    "the recipe's number of steps and generates more. The ledger has what each came to: generated "
    "= consumed + discarded. Groups without contrast that a step reads count as consumed; they "
    "teach nothing but the KL term. Fresh problems are no variant: the recipe sees none twice."
)


def names_of(only: str | None) -> list[str]:
    """The variants that `--only` names, in the order of running; without it all. Raises LabError
    for unknown ones.
    """
    from moxin_lab.lab.artifacts import LabError

    known = [START, *BY_NAME]
    chosen = {name for name in (only or "").split(",") if name}
    if chosen - set(known):
        raise LabError(
            f"no variant {', '.join(sorted(chosen - set(known)))}: there are {', '.join(known)}"
        )
    return [name for name in known if name in chosen or not chosen]


# ---- one training


def name_of(variant: str, seed: int) -> str:
    return f"{variant}/{seed}"


def grpo_of(variant: Variant, settings: ReasoningSettings, steps: int) -> GRPOSettings:
    """The recipe with a variant's changes; micro-batches as large as its updates allow."""
    base = settings.grpo
    updates = variant.changes.get("updates_per_rollout", base.updates_per_rollout)
    rows = base.prompts_per_step * base.num_generations // updates
    update = {
        **variant.changes,
        "steps": steps,
        "micro_batch_examples": math.gcd(base.micro_batch_examples, rows),
    }
    return type(base)(**(base.model_dump() | update))


def steps_of(
    variant: Variant, seed: int, settings: ReasoningSettings, found: Mapping[str, Any]
) -> int | None:
    """Steps at equal samples (`EQUAL`), None as long as the recipe of the seed has not run.

    With a share u of groups without contrast, r rounds generate 1 + u + .. + u^r times the
    completions of a step. found: good records by `name_of`.
    """
    rounds = variant.changes.get("resample_rounds", 0)
    if not rounds or variant.equal == "consumed":
        return settings.grpo.steps
    recipe = found.get(name_of("recipe", seed))
    if recipe is None:
        return None
    share = recipe["groups without contrast"]
    times = sum(share**number for number in range(rounds + 1))
    return max(1, round(settings.grpo.steps / times))


# ---- all trainings


def jobs(names: Sequence[str], seeds: int) -> Iterator[tuple[str, int]]:
    """The start, then every variant with the first seed, with the second, ..."""
    if START in names:
        yield START, STAGE_SEED
    for seed in range(seeds):
        yield from ((name, seed) for name in names if name != START)


def expected_seconds(
    variant: str, settings: ReasoningSettings, own: Sequence[Mapping[str, Any]]
) -> float:
    """Of one training and its answers: by the slowest so far, else by the constants above. own:
    good records of this machine.
    """
    answers = max((one["answer seconds"] for one in own), default=SECONDS_OF_ANSWERS)
    if variant == START:
        return answers
    rates = [one["seconds"] / one["generated"] for one in own if one.get("generated")]
    grpo, changes = settings.grpo, BY_NAME[variant].changes
    generated = grpo.steps * grpo.prompts_per_step * grpo.num_generations
    if BY_NAME[variant].equal == "consumed":  # as if every other group had no contrast
        generated *= 1 + changes.get("resample_rounds", 0) / 2
    slower = SEVERAL_UPDATES if changes.get("updates_per_rollout", 1) > 1 else 1.0
    return answers + slower * generated * max(rates, default=SECONDS_PER_COMPLETION)


def in_order(found: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Records by variant, as in `VARIANTS`, and seed."""
    places = {name: place for place, name in enumerate((START, *BY_NAME))}
    return sorted(found.values(), key=lambda one: (places[one["variant"]], one["seed"]))


def not_run(
    names: Sequence[str],
    seeds: int,
    settings: ReasoningSettings,
    found: Mapping[str, dict[str, Any]],
    limit: float | None,
) -> list[dict[str, Any]]:
    """Each training of the plan that the file lacks, with the reason. limit: of `--seconds`."""
    missing = []
    good = {name: one for name, one in found.items() if "failed" not in one}
    for variant, seed in jobs((START, *BY_NAME), seeds):
        name = name_of(variant, seed)
        if name in good:
            continue
        if name in found:
            reason = f"failed: {found[name]['failed']}"
        elif variant not in names:
            reason = "not named by --only"
        elif variant != START and steps_of(BY_NAME[variant], seed, settings, good) is None:
            reason = "its number of steps follows from the recipe's training, which is missing"
        elif limit is not None:
            reason = f"would have ended after --seconds {limit:g}"
        else:
            reason = "had not run when this file was written"
        missing.append({"variant": variant, "seed": seed, "reason": reason})
    return missing
