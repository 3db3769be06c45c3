r"""Rewards by name: the reward of a completion is a weighted sum over the entries of a scale file.

    reasoning.grpo.rewards:
      - {name: verified_answer, weight: 1.0}
      - {name: length, weight: -0.1, arguments: {characters: 200}}
      - {name: short_steps, weight: 0.2, file: lab_rewards.py}      # registered by that file
      - {name: "package.module:function", weight: 0.2}              # of an installed package

A reward is a function of a batch of completions that returns one float per completion:

    @register("short_steps")
    def short_steps(batch: Batch, *, characters: int = 40) -> list[float]: ...

Guarantees: `verified_answer` alone with weight 1 equals the verifier's reward bit for bit;
completions are verified at most once per batch, whatever the number of entries; a reward that is
unknown, takes other arguments, or returns anything but one finite number per completion is refused
with its name.
Out of scope: the gate on the format (`GRPOSettings.format_pattern`) and `reward_values`, which the
trainer applies to the sum.
"""

import importlib
import importlib.util
import inspect
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from moxin_lab.lab.artifacts import find_root
from moxin_lab.reasoning.advantages import check_rewards
from moxin_lab.reasoning.tasks import Task, judge
from moxin_lab.scales.sections import RewardSettings
from moxin_lab.verifier.extraction import BOX_AT_END
from moxin_lab.verifier.verifier import Verdict, Verifier


class HasTask(Protocol):
    """What a reward needs of a problem."""

    @property
    def task(self) -> Task: ...


@dataclass(frozen=True)
class Batch:
    """Completions to be rewarded: `problems[i]` is the problem that `completions[i]` answers; its
    `task` has `question`, `answer` and `family`.
    """

    problems: Sequence[HasTask]
    completions: Sequence[str]
    verifier: Verifier

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """The verdict on each completion, computed at the first access."""
        return judge(self.verifier, self.completions, [problem.task for problem in self.problems])


RewardFunction = Callable[..., Sequence[float]]
"""(batch, **arguments of the entry) to one float per completion."""

REGISTERED: dict[str, RewardFunction] = {}
"""Rewards by the name used in a scale file."""


def register(name: str) -> Callable[[RewardFunction], RewardFunction]:
    """Decorator that registers a function as the reward of this name. Raises ValueError if another
    function has the name.
    """

    def add(function: RewardFunction) -> RewardFunction:
        existing = REGISTERED.get(name)
        if existing is not None and (existing.__module__, existing.__qualname__) != (
            function.__module__,
            function.__qualname__,
        ):
            raise ValueError(f"there is a reward {name!r} already, in {existing.__module__}")
        REGISTERED[name] = function
        return function

    return add


@register("verified_answer")
def verified_answer(batch: Batch) -> list[float]:
    """1 for a correct answer, 0 for any other."""
    return [verdict.reward for verdict in batch.verdicts]


@register("format")
def matches_format(batch: Batch, *, pattern: str = BOX_AT_END) -> list[float]:
    """1 where the whole completion matches the regular expression, else 0."""
    return [float(re.fullmatch(pattern, text, re.DOTALL) is not None) for text in batch.completions]


@register("length")
def length(batch: Batch, *, characters: int) -> list[float]:
    """Length as a share of `characters`, at most 1. A negative weight makes it a penalty."""
    if characters < 1:
        raise ValueError(f"characters is {characters}: it must be at least 1")
    return [min(1.0, len(text) / characters) for text in batch.completions]


def resolve(name: str, file: str | None = None, root: Path | None = None) -> RewardFunction:
    """The function of a name: a registered one, or `module:function` of an installed package.

    file: Python file that registers it, relative to `root` (default: the repository at or above the
    current folder); it is run first. Raises ValueError for a name or a file that does not exist.
    """
    if file is not None:
        path = (find_root() if root is None else root) / file
        if not path.is_file():
            raise ValueError(f"reward {name!r}: there is no file {path}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    if name in REGISTERED:
        return REGISTERED[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(
            f"unknown reward {name!r}: there are {', '.join(sorted(REGISTERED))}; one of your own "
            "is registered by a `file`, or named as module:function"
        )
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward {name!r} cannot be imported: {error}") from error


class WeightedReward:
    """The reward that the entries of a scale file describe, for `train_grpo`.

    After each call, `reasons` counts the verifier's reasons (empty if no reward used it), and
    `values` has the unweighted values of each reward, float64 [N], by name.
    """

    def __init__(
        self, entries: Sequence[RewardSettings], verifier: Verifier, *, root: Path | None = None
    ) -> None:
        names = [entry.name for entry in entries]
        if not entries or len(set(names)) < len(names):
            raise ValueError(f"rewards are {names}: give at least one, and each name once")
        self._verifier = verifier
        self._parts: list[tuple[RewardSettings, RewardFunction]] = []
        for entry in entries:
            function = resolve(entry.name, entry.file, root)
            try:
                inspect.signature(function).bind(None, **entry.arguments)
            except TypeError as error:
                raise ValueError(f"reward {entry.name!r}: {error}") from error
            self._parts.append((entry, function))
        self.reasons: Counter[str] = Counter()
        self.values: dict[str, np.ndarray] = {}

    def __call__(self, problems: Sequence[HasTask], completions: Sequence[str]) -> list[float]:
        """Weighted sum per completion."""
        batch = Batch(problems, completions, self._verifier)
        total = np.zeros(len(completions))
        self.values = {}
        for entry, function in self._parts:
            try:
                values = check_rewards(function(batch, **entry.arguments), len(completions))
            except ValueError as error:
                raise ValueError(f"reward {entry.name!r}: {error}") from error
            self.values[entry.name] = values
            total += entry.weight * values
        judged = "verdicts" in vars(batch)
        self.reasons = (
            Counter(verdict.reason for verdict in batch.verdicts) if judged else Counter()
        )
        return total.tolist()
