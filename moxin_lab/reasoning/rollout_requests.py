"""What each rollout of a GRPO training asks of its engine: prompts, sampling settings and seed.

Guarantees: pure functions of (settings, seed, rollout index), so a rollout can be sampled ahead of
time or again.
Out of scope: sampling (ring_engine.py), rewards (rollout_stream.py).
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from moxin_lab.reasoning.rollout import SamplingSettings
from moxin_lab.scales.sections import GRPOSettings


class HasPrompt(Protocol):
    """A problem with its prompt as token ids."""

    @property
    def prompt_ids(self) -> Sequence[int]: ...


def drawn_problems(
    num_problems: int, prompts_per_step: int, seed: int, rollout_index: int
) -> list[int]:
    """Indices of the problems of a rollout: epochs over all problems, each in a seeded order."""
    start = rollout_index * prompts_per_step
    positions = range(start, start + prompts_per_step)
    epochs = {position // num_problems for position in (positions[0], positions[-1])}
    orders = {
        epoch: np.random.default_rng([seed, epoch]).permutation(num_problems) for epoch in epochs
    }
    return [int(orders[i // num_problems][i % num_problems]) for i in positions]


def sampling_seed(seed: int, rollout_index: int, attempt: int = 0, rank: int = 0) -> int:
    """The engine's seed for a rollout. attempt: 0 for its first sampling, then the round of
    replacing groups without variance. rank: of the process whose engine samples.
    """
    entropy = [seed, rollout_index, attempt, *([rank] if rank else [])]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def max_completion_length_of(settings: GRPOSettings, rollout_index: int) -> int:
    """Response budget of a rollout in tokens; `length_stages` override `max_completion_length`."""
    reached = [length for first, length in settings.length_stages if first <= rollout_index]
    return reached[-1] if reached else settings.max_completion_length


def sampling_settings(settings: GRPOSettings, rollout_index: int) -> SamplingSettings:
    """How a rollout is sampled."""
    return SamplingSettings(
        settings.num_generations,
        max_completion_length_of(settings, rollout_index),
        settings.temperature,
        settings.top_p,
    )


def requests(
    problems: Sequence[HasPrompt], settings: GRPOSettings, seed: int
) -> Iterator[tuple[list[Sequence[int]], SamplingSettings, int]]:
    """The arguments (prompts, sampling, seed) of `generate` for each rollout of a `RolloutStream`,
    in order, without replacement of groups.
    """
    for rollout_index in range(settings.steps):
        chosen = drawn_problems(len(problems), settings.prompts_per_step, seed, rollout_index)
        yield (
            [problems[index].prompt_ids for index in chosen],
            sampling_settings(settings, rollout_index),
            sampling_seed(seed, rollout_index),
        )
