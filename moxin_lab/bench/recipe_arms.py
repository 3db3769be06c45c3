"""The experiments of `bench recipe` as a table: arms, what differs, seeds, and the rule that
decides, all of it before anything runs.

Each experiment compares a changed arm with the recipe at one width, or is a ladder of widths, or
chooses a learning rate. A training is a value (`Training`); two experiments that need the same one
share it.

Guarantees: arms of a pair read the same rows in the same order as far as their data agree, and
differ in nothing but what the table says; the arm with other blocks takes as many steps as the same
compute allows, less than one step below it; the arms of one seed stand beside each other in the
order of running.
Out of scope: running (`recipe_training.py`), reading results (`recipe.py`).
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from moxin_lab.model.config import MoxinConfig, count_parameters, training_flops_per_token
from moxin_lab.scales import Scale
from moxin_lab.scales.sections import Phase

BLOCKS = 36
PHASE_3_SHARE = 0.1  # of the steps, as at the small scale
WARMUP_SHARE = 0.1
BENCHMARK_POOL = "benchmark tasks"
BENCHMARK_SHARE = 20.0
"""Percent of phase 3's rows where a benchmark's training set is in it: our choice."""
GRID = (0.5, 1.0, 2.0)
"""Learning rates tried, as multiples of the rule's."""


@dataclass(frozen=True)
class Training:
    """What one training is. data: a key of `mixtures`. learning_rate: peak of the cosine."""

    width: int
    steps: int
    tokens_per_step: int
    sequence: int
    learning_rate: float
    blocks: int = BLOCKS
    optimizer: str = "adamw"
    initialisation: str = "custom"
    data: str = "recipe"
    dropout: float = 0.0
    label_smoothing: float = 0.0
    seed_weights: int = 0
    seed_data: int = 0

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    def id(self, data_digest: str) -> str:
        """A short name of this training on this data."""
        text = json.dumps([asdict(self), data_digest], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class Sizes(NamedTuple):
    """What the command line decides. ladder: widths; batch: tokens of a step of the last rung."""

    width: int
    steps: int
    tokens_per_step: int
    sequence: int
    seeds: int
    ladder: tuple[int, ...]
    tokens_per_parameter: float
    ladder_batch: int


class Measure(NamedTuple):
    """A number of a training that a rule reads. higher: whether more is better."""

    name: str
    words: str
    higher: bool = False


MEAN = Measure("mean", "held-out bits per byte, mean over the languages and code")
TEXT = Measure("text", "held-out bits per byte, mean over the languages without code")
CODE = Measure("code", "held-out bits per byte of code")
BENCHMARK = Measure("benchmark_answers", "bits per byte of the benchmark's answers")
BENCHMARK_RIGHT = Measure(
    "benchmark_right", "share of the benchmark's answers that are right", True
)
NEIGHBOUR = Measure("neighbour_answers", "bits per byte of the neighbouring tasks' answers")
NEIGHBOUR_RIGHT = Measure(
    "neighbour_right", "share of the neighbour's answers that are right", True
)


class Experiment(NamedTuple):
    """recipe, changed: names of the two arms. changes: fields of `Training` in the changed arm.
    measures: those with a verdict, the first one first. claims: ids of papers/claims.yml.
    """

    name: str
    question: str
    recipe: str
    changed: str
    changes: Mapping[str, Any]
    measures: tuple[Measure, ...] = (MEAN,)
    claims: tuple[str, ...] = ()


RULE = (
    "The changed arm is better (worse) in a measure if the whole 95 % Student interval over the "
    "seeds of changed minus recipe, paired by seed, lies on its good (bad) side of zero; else no "
    "difference is seen. Measured on the test half of the held-out pages."
)
LADDER_RULE = (
    "The fit of all rungs but the last predicts the last one: it holds if the last rung's loss "
    "lies in the 95 % interval of the prediction."
)
CHOICE_RULE = (
    "The learning rate with the lowest mean bits per byte on the validation half of the held-out "
    "pages, one seed; at the grid's edge the result says so."
)

PAIRS = (
    Experiment(
        "depth",
        "36 blocks against 32 of the same width at equal compute",
        "36 blocks",
        "32 blocks",
        {"blocks": 32},
        claims=("arch.ablations",),
    ),
    Experiment(
        "initialisation",
        "deviations for this width and depth against 0.02 for every matrix, as transformers "
        "draws them from config.json",
        "0.02 x sqrt(4096 / width), less by depth",
        "0.02 everywhere",
        {"initialisation": "default"},
        claims=("arch.custom-initialisation",),
    ),
    Experiment(
        "code",
        "code in the mixture against text alone, at the same number of tokens",
        "with code",
        "without code",
        {"data": "no code"},
        (TEXT, CODE, BENCHMARK, NEIGHBOUR),
        ("data.code-reasoning",),
    ),
    Experiment(
        "phase-3",
        "the last tenth on phase 3's mixture against phase 1's to the end",
        "with phase 3",
        "without phase 3",
        {"data": "no phase 3"},
        (MEAN, CODE),
    ),
    Experiment(
        "benchmark",
        "a benchmark's training set in phase 3: what that does to the benchmark, and to "
        "neighbouring tasks whose training set stayed out",
        "without it",
        "with it",
        {"data": "benchmark in phase 3"},
        (BENCHMARK, BENCHMARK_RIGHT, NEIGHBOUR, NEIGHBOUR_RIGHT, MEAN),
        ("pretraining.phase-3-gain",),
    ),
    Experiment(
        "optimizer",
        "Muon for the blocks' matrices against AdamW for all, at equal steps, each at its own "
        "learning rate",
        "AdamW",
        "Muon",
        {"optimizer": "muon"},
    ),
    Experiment(
        "label-smoothing",
        "label smoothing of 0.1 against none",
        "none",
        "0.1",
        {"label_smoothing": 0.1},
        claims=("regularisation.label-smoothing",),
    ),
    Experiment(
        "dropout",
        "dropout of 0.1 in attention and feed-forward against none",
        "none",
        "0.1",
        {"dropout": 0.1},
        claims=("regularisation.dropout-0.1",),
    ),
)
BY_NAME = {experiment.name: experiment for experiment in PAIRS}
SEEDS_PAIR = BY_NAME["optimizer"]
"""The pair whose seeds of data and of weights are told apart."""
NAMES = ("adamw-rate", "ladder", *(e.name for e in PAIRS[:5]), "muon-rate")
NAMES = (*NAMES, *(e.name for e in PAIRS[5:]), "seeds")
"""In the order of running: what decides more for its time comes first."""
NEEDS = {
    **dict.fromkeys(BY_NAME, ("adamw-rate",)),
    "optimizer": ("adamw-rate", "muon-rate"),
    "seeds": ("adamw-rate", "muon-rate"),
}
"""Experiments whose result decides a setting of others."""


class Job(NamedTuple):
    """A training in its place in an experiment. ready: whether its learning rate is known."""

    experiment: str
    arm: str
    training: Training
    ready: bool = True


def jobs(
    names: Sequence[str], sizes: Sizes, scale: Scale, vocab_size: int, rates: Mapping[str, float]
) -> list[Job]:
    """Every training of the named experiments and of what they need, in the order of running.

    rates: learning rate by optimizer, as far as it is chosen. Raises ValueError for a name that is
    not in NAMES.
    """
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise ValueError(f"no experiment {', '.join(unknown)}: there are {', '.join(NAMES)}")
    needed = {need for name in names for need in NEEDS.get(name, ())}
    found = []
    for name in NAMES:
        if name in names or name in needed:
            found += list(_jobs_of(name, sizes, scale, vocab_size, rates))
    return found


def _jobs_of(
    name: str, sizes: Sizes, scale: Scale, vocab_size: int, rates: Mapping[str, float]
) -> Iterator[Job]:
    if name == "ladder":
        yield from ladder(sizes, scale, vocab_size)
        return
    if name.endswith("-rate"):
        optimizer = name.removesuffix("-rate")
        for factor in GRID:
            rate = factor * rule_rate(scale, sizes.width)
            yield Job(name, f"{rate:.3g}", _base(sizes, rate, optimizer=optimizer))
        return

    def pair(experiment: Experiment, weights: int, data: int) -> Iterator[Job]:
        for arm, changes in (
            (experiment.recipe, {}),
            (experiment.changed, dict(experiment.changes)),
        ):
            optimizer = changes.get("optimizer", "adamw")
            rate = rates.get(optimizer, rule_rate(scale, sizes.width))
            training = _base(sizes, rate, seed_weights=weights, seed_data=data, **changes)
            if "blocks" in changes:
                training = at_equal_compute(training, scale, vocab_size)
            yield Job(name, arm, training, optimizer in rates and "adamw" in rates)

    seeds = [(seed, seed) for seed in range(sizes.seeds)]
    if name == "seeds":
        others = range(1, sizes.seeds)
        seeds = [(0, 0), *((s, 0) for s in others), *((0, s) for s in others)]
    for weights, data in seeds:
        yield from pair(SEEDS_PAIR if name == "seeds" else BY_NAME[name], weights, data)


def _base(sizes: Sizes, rate: float, **changes: Any) -> Training:
    return Training(
        **{
            "width": sizes.width,
            "steps": sizes.steps,
            "tokens_per_step": sizes.tokens_per_step,
            "sequence": sizes.sequence,
            "learning_rate": rate,
            **changes,
        }
    )


def rule_rate(scale: Scale, width: int) -> float:
    """The scale's learning rate at the scale's width, and in inverse proportion to the width: 1e-3
    at 512 for the small scale.
    """
    return scale.pretraining.learning_rate * scale.model.hidden_size / width


def at_equal_compute(training: Training, scale: Scale, vocab_size: int) -> Training:
    """The training with as many steps as cost what its steps cost with BLOCKS blocks, or less."""
    own, recipe = (
        training_flops_per_token(shape(one, scale, vocab_size), training.sequence)
        for one in (training, replace(training, blocks=BLOCKS))
    )
    return replace(training, steps=int(training.steps * recipe / own))


def ladder(sizes: Sizes, scale: Scale, vocab_size: int) -> Iterator[Job]:
    """One job for each rung and seed, small rungs first; the last two rungs have one seed.

    Tokens are `tokens_per_parameter` for each parameter outside the embeddings. Tokens of a step
    are the power of two nearest to `ladder_batch` x sqrt(tokens / tokens of the last rung): the
    batch that pays grows about with the root of the text (Zhang et al. 2024, arXiv 2410.21676).
    """
    counts = []
    for width in sizes.ladder:
        drawn = Training(width, 1, 1, sizes.sequence, rule_rate(scale, width), data="one phase")
        counts.append((drawn, inner_parameters(shape(drawn, scale, vocab_size))))
    most = max(count for _, count in counts)
    for rung, (drawn, count) in enumerate(counts):
        batch = sizes.ladder_batch * math.sqrt(count / most)
        batch = max(sizes.sequence, 2 ** round(math.log2(batch)))
        steps = max(2, round(count * sizes.tokens_per_parameter / batch))
        for seed in range(sizes.seeds if rung < len(counts) - 2 else 1):
            yield Job(
                "ladder",
                f"width {drawn.width}",
                replace(
                    drawn,
                    steps=steps,
                    tokens_per_step=batch,
                    seed_weights=seed,
                    seed_data=seed,
                ),
            )


def shape(training: Training, scale: Scale, vocab_size: int) -> MoxinConfig:
    """The recipe's block at this width: feed-forward 3.5 times as wide, heads of 64 numbers (32 and
    16 where the width is small), about four query heads for each key/value head.
    """
    width = training.width
    head_dim = next(
        size for size in (64, 32, 16, 8) if width % size == 0 and (width >= 4 * size or size == 8)
    )
    heads = width // head_dim
    divisors = [d for d in range(1, heads + 1) if heads % d == 0]
    kv_heads = min(divisors, key=lambda d: (abs(d - heads / 4), -d))
    custom = training.initialisation == "custom"
    return MoxinConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=width * 7 // 2,
        num_hidden_layers=training.blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=scale.model.rope_theta,
        sliding_window=training.sequence,
        max_position_embeddings=scale.model.max_position_embeddings,
        rms_norm_eps=scale.model.rms_norm_eps,
        initializer_range=0.02 * math.sqrt(4096 / width) if custom else 0.02,
        attention_dropout=training.dropout,
        mlp_dropout=training.dropout,
    )


def inner_parameters(config: MoxinConfig) -> int:
    """Parameters outside embedding and head."""
    parts = count_parameters(config)
    return parts["total"] - parts["embed_tokens"] - parts["lm_head"]


def phases(training: Training, scale: Scale) -> list[Phase]:
    """The phases of a training: the scale's first mixture and its last, in rows of one length."""
    first = dict(scale.pretraining.phases[0].mixture)
    last = dict(scale.pretraining.phases[-1].mixture)
    mixtures = {
        "recipe": (first, last),
        "one phase": (first,),
        "no phase 3": (first, first),
        "no code": (_without(first, "code"), _without(last, "code")),
        "benchmark in phase 3": (first, _with_benchmark(last)),
    }[training.data]
    late = max(1, round(training.steps * PHASE_3_SHARE)) if len(mixtures) == 2 else 0
    counts = (training.steps - late, late)
    return [
        Phase(name=name, steps=count, sequence_length=training.sequence, mixture=mixture)
        for name, count, mixture in zip(("first", "last"), counts, mixtures, strict=False)
    ]


def _without(mixture: dict[str, float], name: str) -> dict[str, float]:
    """Raises ValueError for a mixture of nothing else."""
    rest = {pool: share for pool, share in mixture.items() if pool != name}
    if not rest:
        raise ValueError(f"the mixture {mixture} has nothing but {name}")
    total = sum(rest.values())
    return {pool: 100 * share / total for pool, share in rest.items()}


def _with_benchmark(mixture: dict[str, float]) -> dict[str, float]:
    kept = (100 - BENCHMARK_SHARE) / sum(mixture.values())
    return {
        **{pool: share * kept for pool, share in mixture.items()},
        BENCHMARK_POOL: BENCHMARK_SHARE,
    }
