"""Scores of the tasks of `tasks.py`, for a model and four baselines.

    majority    the most frequent training answer to this kind of question; for boxes, the one that
                overlaps enough with most training boxes
    blind       the same model without a picture
    shuffled    the same model with the picture of another item of the task
    nearest     no model: the answer of the training picture of the same kind that is nearest, at
                16 x 16 pixels

Closed questions are scored by likelihood: the choice with the highest log-likelihood is the answer,
which is how the Prismatic suite scores POPE, VSR, TallyQA and AI2D. Boxes are generated as text,
parsed, and correct if their IoU with the reference is at least 0.5 (RefCOCO's rule). Text that
cannot be parsed is a wrong answer, never an omitted item.

Guarantees: every baseline answers exactly the items that the model answers; no item is dropped.
Out of scope: running a model (`answering.py`).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moxin_lab.vision.data import Pixels, resize_square
from moxin_lab.vision.tasks import Item

BASELINES = ("majority", "blind", "shuffled", "nearest")
CORRECT_IOU = 0.5
_BOX = re.compile(r"\[\s*(\d*\.?\d+)\s*,\s*(\d*\.?\d+)\s*,\s*(\d*\.?\d+)\s*,\s*(\d*\.?\d+)\s*\]")

Interval = Callable[[NDArray[np.float64]], tuple[float, float, float]]
"""Values of questions to (mean, low, high): `evaluation.statistics.bootstrap_interval`."""


class Difference(Protocol):
    """Paired values of two answerers to (mean difference, low, high):
    `evaluation.statistics.paired_bootstrap`.
    """

    def __call__(
        self, a: NDArray[np.float64], b: NDArray[np.float64], /, *, seed: int
    ) -> tuple[float, float, float]: ...


def most_likely(items: Sequence[Item], log_likelihoods: Sequence[Sequence[float]]) -> list[str]:
    """The most likely choice of each closed item. Raises ValueError for an open item or a wrong
    number of scores.
    """
    answers = []
    for item, scores in zip(items, log_likelihoods, strict=True):
        if not item.choices or len(scores) != len(item.choices):
            raise ValueError(f"{item.id} has {len(item.choices)} choices and {len(scores)} scores")
        answers.append(item.choices[int(np.argmax(np.asarray(scores)))])
    return answers


def is_correct(item: Item, answer: str) -> bool:
    """Whether an answer equals the reference but for upper and lower case; for a box, whether the
    IoU is at least 0.5.
    """
    if item.task != "box":
        return answer.strip().casefold() == item.answer.casefold()
    box, reference = parse_box(answer), parse_box(item.answer)
    assert reference is not None, f"the reference answer of {item.id} is not a box"
    return box is not None and iou(box, reference) >= CORRECT_IOU


def parse_box(text: str) -> tuple[float, float, float, float] | None:
    """The first `[x1, y1, x2, y2]` in a text, as fractions of the edges; None if there is none or
    it has no area.
    """
    match = _BOX.search(text)
    if match is None:
        return None
    x1, y1, x2, y2 = (float(group) for group in match.groups())
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes with area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return shared / (sum(areas) - shared)


def judge(items: Sequence[Item], answers: Sequence[str]) -> NDArray[np.bool_]:
    """`is_correct` for each item, [items]."""
    return np.array(
        [is_correct(item, answer) for item, answer in zip(items, answers, strict=True)], dtype=bool
    )


# ---- baselines without a model


def majority(train: Sequence[Item], test: Sequence[Item]) -> list[str]:
    """The most frequent training answer of each item's kind (ties: the alphabetically first), and
    the best constant box (`constant_box`) of each question about a box.

    For captions no training label is among a test item's choices, so the answer is the first
    choice: chance.
    """
    by_kind: dict[str, list[str]] = defaultdict(list)
    for item in train:
        by_kind[item.kind].append(item.answer)
    boxes: dict[str, list[str]] = defaultdict(list)
    for item in train:
        if item.task == "box":
            boxes[item.question].append(item.answer)
    constant = {question: constant_box(answers) for question, answers in boxes.items()}
    anywhere = constant_box([answer for of_question in boxes.values() for answer in of_question])
    answers = []
    for item in test:
        if item.task == "box":
            answers.append(constant.get(item.question, anywhere))
            continue
        counts = Counter(
            answer for answer in by_kind[item.kind] if not item.choices or answer in item.choices
        )
        best = min(
            counts,
            key=lambda answer: (-counts[answer], answer),
            default=item.choices[0] if item.choices else "",
        )
        answers.append(best)
    return answers


def constant_box(answers: Sequence[str]) -> str:
    """The answer whose IoU is at least 0.5 with most of the boxes in `answers` (ties: the first in
    the order of the alphabet); empty for none. Raises ValueError for a text that is no box.
    """
    parsed = {answer: parse_box(answer) for answer in answers}
    if None in parsed.values():
        raise ValueError("a training answer is not a box")
    boxes = [box for answer in answers if (box := parsed[answer])]

    def hits(candidate: str) -> int:
        box = parsed[candidate]
        assert box is not None
        return sum(iou(box, other) >= CORRECT_IOU for other in boxes)

    return max(sorted(parsed), key=hits, default="")


def nearest(train: Sequence[Item], test: Sequence[Item]) -> list[str]:
    """The answer of the nearest training picture, searched among the same question, else the same
    kind, else the same task.
    """
    train_features = pixel_features([item.picture for item in train])
    test_features = pixel_features([item.picture for item in test])
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, item in enumerate(train):
        for key in (("question", item.question), ("kind", item.kind), ("task", item.task)):
            groups[key].append(index)
    answers = []
    for item, features in zip(test, test_features, strict=True):
        candidates = (
            groups[("question", item.question)]
            or groups[("kind", item.kind)]
            or groups[("task", item.task)]
        )
        if item.task == "caption":  # no training label is among the choices
            candidates = []
        allowed = [i for i in candidates if not item.choices or train[i].answer in item.choices]
        if not allowed:
            answers.append(item.choices[0] if item.choices else "")
            continue
        distances = ((train_features[allowed] - features) ** 2).sum(axis=1)
        answers.append(train[allowed[int(distances.argmin())]].answer)
    return answers


def pixel_features(pictures: Sequence[Pixels] | Pixels, edge: int = 16) -> NDArray[np.float32]:
    """Pictures resized to `edge` x `edge`, flattened, with mean 0 and length 1: `[n, 768]`."""
    resized = np.stack([resize_square(picture, edge) for picture in pictures])
    small = resized.reshape(len(pictures), -1).astype(np.float32)  # [n, edge * edge * 3]
    small -= small.mean(axis=1, keepdims=True)
    return small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6)


def shuffled_indices(items: Sequence[Item], seed: int) -> list[int]:
    """For each item the index of another item of the same task, whose picture it is shown: a
    rotation of a random order. Raises ValueError for a task with one item.
    """
    rng = np.random.default_rng(seed)
    by_task: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        by_task[item.task].append(index)
    other = list(range(len(items)))
    for task, indices in by_task.items():
        if len(indices) < 2:
            raise ValueError(f"{task} has one item; a shuffled picture needs two")
        order = [indices[i] for i in rng.permutation(len(indices))]
        for index, shown in zip(order, order[1:] + order[:1], strict=True):
            other[index] = shown
    return other


# ---- tables


def correct_over_seeds(
    items: Sequence[Item], answers: Sequence[Mapping[str, Sequence[str]]]
) -> dict[str, NDArray[np.float64]]:
    """Answerer to the share of seeds that answer each question correctly, [items].

    answers: one mapping per seed, answerer to its answers.
    """
    return {
        name: np.mean([judge(items, of_seed[name]) for of_seed in answers], axis=0)
        for name in answers[0]
    }


def scores(
    items: Sequence[Item], correct: Mapping[str, NDArray[np.float64]], interval: Interval
) -> pd.DataFrame:
    """One row per task and answerer: task, answerer, items, value, low, high.

    correct: answerer to 0 or 1 for each question, or to the share of seeds (`correct_over_seeds`).
    """
    tasks = np.array([item.task for item in items])
    rows = []
    for task in dict.fromkeys(tasks.tolist()):
        for answerer, values in correct.items():
            part = values[tasks == task]
            value, low, high = interval(part)
            rows.append(
                {
                    "task": task,
                    "answerer": answerer,
                    "items": len(part),
                    "value": value,
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(rows)


def gains(
    items: Sequence[Item],
    correct: Mapping[str, NDArray[np.float64]],
    difference: Difference,
    *,
    model: str,
    seed: int,
    against: str = "blind",
) -> pd.DataFrame:
    """One row per task: the score of the model and of each baseline, and the difference between the
    model and the baseline `against` on the same items with its paired interval.

    correct: as for `scores`. `verdict` says: above, below, or no difference seen.
    """
    tasks = np.array([item.task for item in items])
    rows: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(tasks.tolist()):
        part = tasks == task
        row: dict[str, Any] = {"items": int(part.sum()), model: correct[model][part].mean()}
        for name in BASELINES:
            if name in correct:
                row[name] = correct[name][part].mean()
        value, low, high = difference(correct[model][part], correct[against][part], seed=seed)
        row |= {f"minus {against}": value, "low": low, "high": high}
        row["verdict"] = (
            f"above {against}"
            if low > 0
            else f"below {against}"
            if high < 0
            else "no difference seen"
        )
        rows[task] = row
    return pd.DataFrame(rows).T.rename_axis("task")


def picture_summary(
    above_blind: Sequence[str], above_both: Sequence[str], *, num_tasks: int
) -> str:
    """Sentences on the tasks that need a picture, and those that need their own.

    above_blind: tasks on which the model is above itself without a picture. above_both: those of
    them on which it is also above itself with another question's picture.
    """
    count = f"{len(above_blind)} of {num_tasks} tasks are answered better with the picture"
    if not above_blind:
        return f"{count} than without."
    others = set(above_blind) - set(above_both)
    return (
        f"{count} than without: {', '.join(above_blind)}. Of these, better than with another "
        f"question's picture: {', '.join(above_both) or 'none'}."
        + (" On the others it helped that there was a picture, not what it shows." * bool(others))
    )


def caption_gap_in_words(gap: tuple[float, float, float]) -> str:
    """What it means that another's picture costs `gap` nats per token more, with its interval."""
    value, low, high = gap
    verb = "uses" if low > 0 else "is not seen to use"
    return (
        f"Another picture costs {value:.4f} nats per token more ({low:.4f} to {high:.4f}): the "
        f"model {verb} it."
    )


RULES = {
    "majority": "The most frequent training answer",
    "nearest": "The nearest training picture by pixels",
}
"""Baselines that have no model, as a sentence begins with them."""


def rule_summary(compared: pd.DataFrame, rule: str, *, model: str = "model") -> str:
    """A sentence on a baseline without a model: on which tasks it beats the model, and on which the
    model beats it.

    compared: of `gains` against `rule`, one of `RULES`. A task counts as won by who has the higher
    share; those whose interval excludes zero are named as such.
    """
    ahead = compared.index[compared[rule].astype(float) > compared[model].astype(float)]
    surely = [task for task in ahead if compared.loc[task, "verdict"] == f"below {rule}"]
    beaten = [task for task in compared.index if compared.loc[task, "verdict"] == f"above {rule}"]
    names = f" ({', '.join(ahead)}; beyond the interval: {', '.join(surely) or 'none'})"
    return (
        f"{RULES[rule]}, a rule without a model, scores higher than the model on {len(ahead)} of "
        f"{len(compared)} tasks{names if len(ahead) else ''}. The model is above it, interval "
        f"included, on {len(beaten)}{': ' + ', '.join(beaten) if beaten else ''}."
    )


def presence_summary(table: pd.DataFrame) -> str:
    """A sentence on `presence_table`: where answering yes to everything has the higher F1."""
    worse = table.index[table["F1 of always yes"] >= table["F1"]]
    return (
        f"Answering yes to everything has an F1 at least as high as the model's for {len(worse)} "
        f"of {len(table)} kinds of negatives{': ' + ', '.join(worse) if len(worse) else ''}."
    )


def presence_table(items: Sequence[Item], answers: Sequence[str]) -> pd.DataFrame:
    """POPE's measures by kind of negative: accuracy, precision, recall and F1 of `yes`, the F1 of
    answering yes to everything, and the share of `yes` among the answers and the references.
    """
    rows = {}
    for kind in dict.fromkeys(item.kind for item in items if item.task == "presence"):
        pairs = [
            (item.answer, answer)
            for item, answer in zip(items, answers, strict=True)
            if item.kind == kind
        ]
        hits = sum(reference == answer == "yes" for reference, answer in pairs)
        answered_yes = sum(answer == "yes" for _, answer in pairs)
        truly_yes = sum(reference == "yes" for reference, _ in pairs)
        precision = hits / answered_yes if answered_yes else 0.0
        recall = hits / truly_yes if truly_yes else 0.0
        rows[kind] = {
            "items": len(pairs),
            "accuracy": sum(reference == answer for reference, answer in pairs) / len(pairs),
            "precision": precision,
            "recall": recall,
            "F1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
            "F1 of always yes": 2 * truly_yes / (len(pairs) + truly_yes),
            "answered yes": answered_yes / len(pairs),
            "truly yes": truly_yes / len(pairs),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("negatives")
