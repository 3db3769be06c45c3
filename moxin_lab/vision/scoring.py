"""What an answer is worth, and what it is worth without looking: scores of `tasks.py` beside four
baselines.

    baseline    what it knows
    majority    the commonest training answer to this kind of question
    blind       the same model, the question, no picture
    shuffled    the same model, the question, the picture of another item of the task
    nearest     no model: the answer of the training picture of the same kind whose 16 x 16 pixels are nearest

Closed questions are scored by likelihood: the choice with the highest log-likelihood is the answer,
which is how the Prismatic suite scores POPE, VSR, TallyQA and AI2D. Boxes are written out, parsed,
and right if they overlap the reference with an IoU of at least 0.5 (RefCOCO's rule). What cannot be
parsed is wrong, never left out.

Guarantees: every baseline answers exactly the items that the model answers; no item is dropped.
Does not: run a model; it is handed log-likelihoods and texts.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moxin_lab.vision.data import Pixels, resized
from moxin_lab.vision.tasks import Item

BASELINES = ("majority", "blind", "shuffled", "nearest")
IOU_RIGHT = 0.5
_BOX = re.compile(r"\[\s*(\d*\.?\d+)\s*,\s*(\d*\.?\d+)\s*,\s*(\d*\.?\d+)\s*,\s*(\d*\.?\d+)\s*\]")

Interval = Callable[[Any], Any]
"""Values of questions to (value, low, high)."""


def chosen(items: Sequence[Item], log_likelihoods: Sequence[Sequence[float]]) -> list[str]:
    """The most likely choice of each closed item. Raises ValueError for an open item or a wrong
    number of scores.
    """
    answers = []
    for item, scores in zip(items, log_likelihoods, strict=True):
        if not item.choices or len(scores) != len(item.choices):
            raise ValueError(f"{item.id} has {len(item.choices)} choices and {len(scores)} scores")
        answers.append(item.choices[int(np.argmax(np.asarray(scores)))])
    return answers


def is_right(item: Item, answer: str) -> bool:
    """Whether an answer counts: the very choice, or for a box an IoU of at least 0.5 with the
    reference.
    """
    if item.task != "box":
        return answer.strip().casefold() == item.answer.casefold()
    found, wanted = parse_box(answer), parse_box(item.answer)
    assert wanted is not None, f"{item.id} has no box for an answer"
    return found is not None and iou(found, wanted) >= IOU_RIGHT


def parse_box(text: str) -> tuple[float, float, float, float] | None:
    """The first `[x1, y1, x2, y2]` of a text, as shares of the edges; None where there is none or
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
    """`is_right` for each item."""
    return np.array(
        [is_right(item, answer) for item, answer in zip(items, answers, strict=True)], dtype=bool
    )


# ---- baselines without a model


def majority(train: Sequence[Item], test: Sequence[Item]) -> list[str]:
    """The commonest training answer of each item's kind (ties: the least), the mean box for boxes.

    A caption's label never occurs among the test's choices, so its majority is the first choice:
    chance.
    """
    by_kind: dict[str, list[str]] = defaultdict(list)
    for item in train:
        by_kind[item.kind].append(item.answer)
    boxes = [box for item in train if item.task == "box" and (box := parse_box(item.answer))]
    mean_box = (
        "[" + ", ".join(f"{value:.2f}" for value in np.mean(boxes, axis=0)) + "]" if boxes else ""
    )
    answers = []
    for item in test:
        if item.task == "box":
            answers.append(mean_box)
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


def nearest(train: Sequence[Item], test: Sequence[Item]) -> list[str]:
    """The answer of the nearest training picture; the same question goes before the same kind, that
    before the same task.
    """
    seen = pixel_features([item.picture for item in train])
    asked = pixel_features([item.picture for item in test])
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, item in enumerate(train):
        for key in (("question", item.question), ("kind", item.kind), ("task", item.task)):
            groups[key].append(place)
    answers = []
    for item, features in zip(test, asked, strict=True):
        places = (
            groups[("question", item.question)]
            or groups[("kind", item.kind)]
            or groups[("task", item.task)]
        )
        if (
            item.task == "caption"
        ):  # no training label is a choice, so the nearest answer is a word that is not offered
            places = []
        allowed = [
            place for place in places if not item.choices or train[place].answer in item.choices
        ]
        if not allowed:
            answers.append(item.choices[0] if item.choices else "")
            continue
        distances = ((seen[allowed] - features) ** 2).sum(axis=1)
        answers.append(train[allowed[int(distances.argmin())]].answer)
    return answers


def pixel_features(pictures: Sequence[Pixels] | Pixels, edge: int = 16) -> NDArray[np.float32]:
    """Pictures at 16 x 16 as rows of numbers with mean 0 and length 1: `[n, 768]`."""
    small = (
        np.stack([resized(picture, edge) for picture in pictures])
        .reshape(len(pictures), -1)
        .astype(np.float32)
    )
    small -= small.mean(axis=1, keepdims=True)
    return small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6)


def shuffled_places(items: Sequence[Item], seed: int) -> list[int]:
    """For each item the place of another item of the same task, whose picture it is shown: a
    rotation of a random order.
    """
    rng = np.random.default_rng(seed)
    by_task: dict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        by_task[item.task].append(place)
    other = list(range(len(items)))
    for task, places in by_task.items():
        if len(places) < 2:
            raise ValueError(f"{task} has one item; a shuffled picture needs two")
        order = [places[i] for i in rng.permutation(len(places))]
        for place, shown in zip(order, order[1:] + order[:1], strict=True):
            other[place] = shown
    return other


# ---- tables


def right_over_seeds(
    items: Sequence[Item], found: Sequence[Mapping[str, Sequence[str]]]
) -> dict[str, NDArray[np.float64]]:
    """Of each answerer and question the share of seeds whose answer is right. found: answers by
    answerer, one mapping a seed.
    """
    return {
        name: np.mean([judge(items, answers[name]) for answers in found], axis=0)
        for name in found[0]
    }


def scores(
    items: Sequence[Item], right: Mapping[str, NDArray[np.float64]], interval: Interval
) -> pd.DataFrame:
    """One row a task and answerer: `task, answerer, items, value, low, high`. right: of each
    question, whether it was answered rightly, or the share of seeds that did. interval: these
    values to (value, low, high).
    """
    tasks = np.array([item.task for item in items])
    rows = []
    for task in dict.fromkeys(tasks.tolist()):
        for answerer, found in right.items():
            part = found[tasks == task]
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
    right: Mapping[str, NDArray[np.float64]],
    difference: Callable[..., Any],
    *,
    model: str,
    seed: int,
    against: str = "blind",
) -> pd.DataFrame:
    """The model's score and each baseline's, and the difference to one of them on the same items
    with its paired interval, one row a task. right: as for `scores`.

    `verdict` says against that one: above, below, or not told apart.
    """
    tasks = np.array([item.task for item in items])
    rows: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(tasks.tolist()):
        part = tasks == task
        row: dict[str, Any] = {"items": int(part.sum()), model: right[model][part].mean()}
        for name in BASELINES:
            if name in right:
                row[name] = right[name][part].mean()
        value, low, high = difference(right[model][part], right[against][part], seed=seed)
        row |= {f"minus {against}": value, "low": low, "high": high}
        row["verdict"] = (
            f"above {against}" if low > 0 else f"below {against}" if high < 0 else "not told apart"
        )
        rows[task] = row
    return pd.DataFrame(rows).T.rename_axis("task")


def presence_table(items: Sequence[Item], answers: Sequence[str]) -> pd.DataFrame:
    """POPE's numbers by kind of negative: accuracy, precision, recall and F1 of `yes`, and the
    share of `yes`.
    """
    rows = {}
    for kind in dict.fromkeys(item.kind for item in items if item.task == "presence"):
        pairs = [
            (item.answer, answer)
            for item, answer in zip(items, answers, strict=True)
            if item.kind == kind
        ]
        hits = sum(truth == said == "yes" for truth, said in pairs)
        said_yes, are_yes = (
            sum(said == "yes" for _, said in pairs),
            sum(truth == "yes" for truth, _ in pairs),
        )
        precision, recall = hits / said_yes if said_yes else 0.0, hits / are_yes if are_yes else 0.0
        rows[kind] = {
            "items": len(pairs),
            "accuracy": sum(truth == said for truth, said in pairs) / len(pairs),
            "precision": precision,
            "recall": recall,
            "F1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
            "said yes": said_yes / len(pairs),
            "are yes": are_yes / len(pairs),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("negatives")
