r"""Questions with one checkable answer: reasoning-gym's generators at every scale, and which part
of the data a question belongs to.

    family + difficulty + seed -> question -> hash of its text -> part: cot | rl | test
    completion + task -> judge -> Verdict (reason code)

A question belongs to one of three parts by the hash of its text alone, so chain-of-thought
training, reinforcement learning and tests never share one, whatever the seeds. Tests come in three
groups: the trained families (`in-family`), the same families at a higher difficulty than training
uses (`harder`), and families that training never saw (`new family`).

Guarantees: equal arguments give equal tasks, byte for byte, in any process; a numeric answer is
judged by our verifier, any other by the family's own `score_answer`, and only full marks count.
Out of scope: balancing answers; families whose questions depend on today's date or whose scorer
evaluates the answer as code (`FAMILIES` lists those known to be safe).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import pandas as pd

from moxin_lab.reasoning import gym, traces
from moxin_lab.verifier.extraction import extract
from moxin_lab.verifier.verifier import Verdict, Verifier

Part = Literal["cot", "rl", "test"]
Group = Literal["in-family", "harder", "new family"]
GROUPS: tuple[Group, ...] = ("in-family", "harder", "new family")
SHARES: dict[Part, int] = {"cot": 40, "rl": 40, "test": 20}  # % of all questions
TRIES = 40
"""Questions generated per requested question. Also, per question found so far, how many in a row
may bring nothing new before a family counts as exhausted."""
USED_UP = 400
"""Questions in a row without a new one that are always allowed, on top of `TRIES` per question."""
LONGEST_ANSWER = 400
"""Characters of an answer that a family's own scorer may read."""
NUMERIC = frozenset(
    (
        "basic_arithmetic",
        "chain_sum",
        "count_bits",
        "deepscaler",
        "gcd",
        "lcm",
        "leg_counting",
        "letter_counting",
        "products",
    )
    + ("simple_equations", "simple_geometry")
)
SCORED = frozenset(
    (
        "base_conversion",
        "fraction_simplification",
        "number_sorting",
        "prime_factorization",
        "spell_backward",
    )
)
FAMILIES = (NUMERIC - {"deepscaler"}) | SCORED
"""Families of reasoning-gym that a scale may name; those that training uses also need a solver."""


@dataclass(frozen=True)
class Task:
    """One question. entry: `answer` and `metadata` for the family's scorer. trace: a solver's chain
    of thought, or "".
    """

    family: str
    question: str
    answer: str
    trace: str = ""
    entry: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def prompt(self) -> list[dict[str, str]]:
        """The question as a conversation that asks for an answer."""
        return [{"role": "user", "content": self.question}]

    def conversation(self) -> list[dict[str, str]]:
        """Question and trace. Raises ValueError without a trace."""
        if not self.trace:
            raise ValueError(f"the question {self.question[:60]!r} of {self.family} has no trace")
        return [*self.prompt(), {"role": "assistant", "content": self.trace}]


def part_of(question: str) -> Part:
    """The part of the data that a question belongs to: a function of its text alone, white space
    aside.
    """
    digest = hashlib.sha256(" ".join(question.split()).encode()).digest()
    bucket = int.from_bytes(digest[:8], "big") % 100
    for part, share in SHARES.items():
        bucket -= share
        if bucket < 0:
            return part
    raise AssertionError("the shares do not add up to 100")


def draw(
    family: str, difficulty: Mapping[str, Any], *, part: Part, count: int, seed: int, traced: bool
) -> list[Task]:
    """`count` different questions of one family that belong to `part`, fewer if the family has no
    more.

    difficulty: reasoning-gym's parameters of the family. Raises ValueError for an unknown family or
    difficulty, a family that needs a trace and has no solver, and a difficulty that gives no
    question.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: known are {', '.join(sorted(FAMILIES))}")
    if traced and family not in traces.SOLVERS:
        raise ValueError(
            f"{family} has no solver: training needs one of {', '.join(sorted(traces.SOLVERS))}"
        )
    key = hashlib.sha256(f"{family}/{part}/{seed}".encode()).digest()
    source = _dataset(family, difficulty, int.from_bytes(key[:4], "big") % 2**31, count * TRIES)
    chosen: dict[str, Task] = {}  # by question
    newest = 0  # index of the last question that was new
    for index in range(len(source)):
        if index - newest > USED_UP + TRIES * len(chosen):
            break
        entry = source[index]
        question = entry["question"].strip()
        if question in chosen or part_of(question) != part or not _has_one_answer(family, entry):
            continue
        trace = traces.trace(family, entry) if traced else ""
        for_scorer = {"answer": entry["answer"], "metadata": entry["metadata"]}
        chosen[question] = Task(family, question, entry["answer"], trace, for_scorer)
        newest = index
        if len(chosen) == count:
            break
    if not chosen:
        raise ValueError(
            f"{family} with {dict(difficulty)} gave no question for {part!r}: widen its difficulty"
        )
    return list(chosen.values())


def draw_all(
    families: Mapping[str, Mapping[str, Any]],
    *,
    part: Part,
    count: int,
    seed: int,
    traced: bool = False,
    apart_from: Iterable[Task] = (),
) -> list[Task]:
    """About `count` tasks, equally many per family, the families in turn; none whose question is in
    `apart_from`.
    """
    per_family = -(-count // len(families))  # rounded up
    taken = {task.question for task in apart_from}
    drawn = [
        [
            task
            for task in draw(name, level, part=part, count=per_family, seed=seed, traced=traced)
            if task.question not in taken
        ]
        for name, level in families.items()
    ]
    longest = max(map(len, drawn))
    in_turn = [tasks[i] for i in range(longest) for tasks in drawn if i < len(tasks)]
    return in_turn[:count]


def _has_one_answer(family: str, entry: Mapping[str, Any]) -> bool:
    """False for an equation such as 0 = 0, whose variable has cancelled out."""
    return (
        family != "simple_equations"
        or entry["metadata"]["variable"] in entry["metadata"]["equation"]
    )


def _dataset(family: str, difficulty: Mapping[str, Any], seed: int, size: int) -> Any:
    try:
        return gym.load().create_dataset(family, seed=seed, size=size, **difficulty)
    except (TypeError, AssertionError) as error:
        raise ValueError(
            f"reasoning-gym refuses {family} with {dict(difficulty)}: {error}"
        ) from error


@lru_cache(maxsize=64)
def _scorer(family: str) -> Any:
    return gym.load().create_dataset(family, seed=0, size=1)


# --------------------------------------------------------------------------------------------------
# verdicts


def judge(verifier: Verifier, completions: Sequence[str], tasks: Sequence[Task]) -> list[Verdict]:
    """The verdict on each completion of its task. Raises ValueError if the lengths differ."""
    if len(completions) != len(tasks):
        raise ValueError(
            f"{len(completions)} completions but {len(tasks)} tasks: give one task per completion"
        )
    numeric = [i for i, task in enumerate(tasks) if task.family in NUMERIC]
    decided = verifier.verify_batch(
        [completions[i] for i in numeric], [tasks[i].answer for i in numeric]
    )
    verdicts: list[Verdict | None] = [None] * len(tasks)
    for i, verdict in zip(numeric, decided, strict=True):
        verdicts[i] = verdict
    return [
        scored(completion, task) if verdict is None else verdict
        for completion, task, verdict in zip(completions, tasks, verdicts, strict=True)
    ]


def scored(completion: str, task: Task) -> Verdict:
    """The family's own scorer on the extracted answer: `correct` for full marks, else `wrong` or
    `no_answer`.
    """
    extracted = extract(completion)
    if extracted is None:
        return Verdict("no_answer", "extraction", detail="no box, tag, expression or number in it")
    if len(extracted.text) > LONGEST_ANSWER:
        return Verdict(
            "wrong",
            "string",
            extracted.text[:200],
            extracted.how,
            "longer than any answer of the family",
        )
    try:
        score = _score(extracted.text, task)
    except (ValueError, TypeError, OverflowError, ZeroDivisionError, IndexError) as error:
        return Verdict(
            "unparsable",
            "string",
            extracted.text[:200],
            extracted.how,
            f"{task.family}'s scorer: {error}"[:200],
        )
    reason: Literal["correct", "wrong"] = "correct" if score == 1.0 else "wrong"
    return Verdict(
        reason,
        "string",
        extracted.text[:200],
        extracted.how,
        f"{task.family}'s score_answer: {score:g}",
    )


def _score(text: str, task: Task) -> float:
    """The family's score, with two repairs: sorted numbers must be the numbers, exactly
    (reasoning-gym accepts each within 1, and NaN), and factors may be joined by any
    multiplication sign.
    """
    if task.family == "number_sorting":
        expected, given = _numbers(task.answer), _numbers(text)
        return float(given is not None and given == expected)
    if task.family == "prime_factorization":
        text = _TIMES.sub(" × ", text.strip("$ "))
        text = _POWER.sub(lambda m: " × ".join([m[1]] * min(int(m[2] or m[3]), 64)), text)
    return _scorer(task.family).score_answer(text, dict(task.entry))


_DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
_TIMES = re.compile(r"\s*(?:\\times|\\cdot|\*(?!\*)|·|×|(?<=\d)\s*x(?=\s*\d))\s*")
_POWER = re.compile(r"(\d+)\s*\^\s*(?:\{(\d{1,2})\}|(\d{1,2}))")


def _numbers(text: str) -> list[Fraction] | None:
    """The numbers of a JSON list, exact; None for anything else."""
    try:
        values = json.loads(text.replace("'", '"'), parse_float=str, parse_int=str)
    except ValueError:
        return None
    if not isinstance(values, list) or not all(
        isinstance(value, str) and _DECIMAL.fullmatch(value) for value in values
    ):
        return None
    return [Fraction(value) for value in values]


def majority_answers(train: Sequence[Task], tests: Sequence[Task]) -> list[str]:
    """For each test, the most frequent answer of its family among training tasks, of all of them
    for an unknown family; ties go to the first in code point order. In a box, so that it is judged
    like a completion.
    """
    answers = pd.DataFrame(
        [(task.family, task.answer) for task in train], columns=["family", "answer"]
    )

    def most_frequent(column: pd.Series) -> str:
        counts = column.value_counts()
        return min(counts[counts == counts.max()].index)

    common = answers.groupby("family")["answer"].agg(most_frequent)
    overall = most_frequent(answers["answer"])
    return [rf"\boxed{{{common.get(task.family, overall)}}}" for task in tests]


def shown_question(task: Task, limit: int = 80) -> str:
    """A question on one line, cut at its beginning if too long: the operands are at its end."""
    text = re.sub(r"\s+", " ", task.question)
    return text if len(text) <= limit else "… " + text[-limit + 2 :]
