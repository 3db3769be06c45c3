"""Questions with exact answers about pictures composed of emoji, and about charts: the stand-ins of
the Prismatic suite's tasks.

    task        stands for        the picture                                   answer
    caption     captioning        one drawing                                   its label, among four
    category    classification    one drawing                                   one of eight groups
    colour      attributes        one drawing                                   the colour of most of its pixels
    count       TallyQA           one to five copies of a drawing               their number
    same        matching          two drawings, the second turned and resized   yes or no
    side        VSR               a drawing and a coloured disc                 left, right, above or below
    box         RefCOCO           a drawing and a coloured square               [x1, y1, x2, y2] of the one asked for, tenths
    presence    POPE              three drawings of 60 that training knows      yes or no; negatives random, popular, adversarial
    chart       chart reading     a chart of `data_cards/charts`                see `data/charts.py`

Guarantees: item i of a task is a function of (seed, task, split, i) and the concepts given; answers
are drawn evenly where the task allows it; a box item's IoU after rounding to tenths is at least
0.5; train and test items share no concept where the caller's concepts share none (`presence` asks
for known concepts in new scenes, as POPE does).
Does not: judge answers (`scoring.py`), or use any drawing of the style that the caller does not
name.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from moxin_lab.vision.data import Concept, Example, Pixels, flat, paste, resized

YES_NO = ("yes", "no")
SIDES = ("left", "right", "above", "below")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 210, 60),
    "green": (60, 150, 50),
    "blue": (50, 120, 220),
    "purple": (140, 80, 180),
    "pink": (255, 140, 190),
    "brown": (130, 80, 50),
    "grey": (140, 145, 150),
    "black": (35, 35, 40),
}
"""Names and what they look like; a pixel has the name of the nearest in RGB."""
MARK_COLOURS = ("red", "green", "blue", "purple")
NEGATIVES = ("random", "popular", "adversarial")
PRESENCE_CONCEPTS, POPULAR_CONCEPTS = 60, 8


class Item(NamedTuple):
    """One question about one picture."""

    id: str
    task: str
    kind: str
    """What the majority answer is taken over: a sort of question within the task."""
    question: str
    answer: str
    choices: tuple[str, ...]
    """Empty where the answer is written out rather than chosen."""
    picture: Pixels
    """`[edge, edge, 3]`"""

    def example(self) -> Example:
        """As one LLaVA conversation."""
        return Example(self.id, f"{self.id}.png", ((self.question, self.answer),))


Made = tuple[str, str, str, tuple[str, ...], Pixels] | None
"""Kind, question, answer, choices, picture; None where the draw allows no item."""
Maker = Callable[[np.random.Generator, Sequence[Concept], int, str], Made]


def make(
    task: str,
    count: int,
    concepts: Sequence[Concept],
    *,
    edge: int,
    seed: int,
    split: str,
    style: str = "google",
) -> list[Item]:
    """`count` items of a task from `TASKS`, of drawings `concepts`. Raises ValueError if so few
    concepts cannot give them.
    """
    items: list[Item] = []
    for attempt in range(20 * count):
        if len(items) == count:
            return items
        rng = np.random.default_rng(_number(f"{seed} {task} {split} {attempt}"))
        made = TASKS[task](rng, concepts, edge, style)
        if made is not None:
            kind, question, answer, choices, picture = made
            items.append(
                Item(
                    f"{task}-{split}-{len(items):05d}",
                    task,
                    kind,
                    question,
                    answer,
                    choices,
                    picture,
                )
            )
    raise ValueError(f"{len(concepts)} concepts gave {len(items)} of {count} items of {task!r}")


def chart_items(card: Path, split: str, edge: int) -> list[Item]:
    """All questions of a split of the charts' card that can be read at this edge."""
    items = []
    for row in pq.read_table(card / "data" / f"{split}.parquet").to_pylist():
        image = Image.open(io.BytesIO(row["png"])).convert("RGB")
        picture = np.asarray(
            image.resize(
                (edge, edge),
                Image.Resampling.BOX if edge < image.width else Image.Resampling.BICUBIC,
            )
        )
        for asked in row["questions"]:
            if asked["pixels"] <= edge:
                name = f"chart-{split}-{row['id']}-{asked['task'].removeprefix('chart ')}"
                choices = tuple(asked["choices"])
                items.append(
                    Item(
                        name,
                        "chart",
                        asked["task"],
                        asked["question"],
                        asked["answer"],
                        choices,
                        picture,
                    )
                )
    return items


def caption_examples(concepts: Sequence[Concept], languages: Sequence[str]) -> list[Example]:
    """Alignment's data: a picture and its caption, the 558K set's form, one a concept and language."""
    ask = {"en": "What is this?", "zh": "这是什么?", "ja": "これは何?", "ko": "이것은 무엇?"}
    return [
        Example(
            f"{concept.id}-{language}",
            f"{concept.id}.png",
            ((ask[language], concept.caption(language)),),
        )
        for concept in concepts
        for language in languages
    ]


def spread(items: Sequence[Item], count: int | None) -> list[Item]:
    """At most `count` items at even distances, so that all kinds stay in."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


# ---- one picture each


def _caption(rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str) -> Made:
    chosen = [concepts[i] for i in rng.permutation(len(concepts))[:12]]
    wanted, others = chosen[0], [one for one in chosen[1:] if one.family != chosen[0].family][:3]
    labels = [one.label() for one in (wanted, *others)]
    if len(set(labels)) < 4:
        return None
    choices = tuple(labels[i] for i in rng.permutation(4))
    return "caption", "What is this?", wanted.label(), choices, _alone(rng, wanted, edge, style)


def _category(rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str) -> Made:
    groups = sorted({one.category for one in concepts if one.category != "Flags"})
    wanted = groups[rng.integers(len(groups))]
    pool = [one for one in concepts if one.category == wanted]
    return (
        "category",
        "Which group is it of?",
        wanted,
        tuple(groups),
        _alone(rng, _one(rng, pool), edge, style),
    )


def _colour(rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str) -> Made:
    wanted = tuple(COLOURS)[rng.integers(len(COLOURS))]
    for _ in range(12):
        one = _one(rng, concepts)
        if _known_colour(one, style) == wanted:
            return (
                "colour",
                "Which colour is most of it?",
                wanted,
                tuple(COLOURS),
                _alone(rng, one, edge, style),
            )
    return None


def _count(rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str) -> Made:
    number = int(rng.integers(1, 6))
    canvas, size = _canvas(rng, edge), edge * 3 // 10
    drawing = resized(_one(rng, concepts).drawings[style], size)
    for cell in rng.permutation(9)[:number]:
        shift = rng.integers(0, edge // 3 - size + 1, 2)
        paste(
            canvas,
            drawing,
            int(cell // 3 * (edge // 3) + shift[0]),
            int(cell % 3 * (edge // 3) + shift[1]),
        )
    return "count", "How many are there?", str(number), tuple("12345"), canvas


def _same(rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str) -> Made:
    first, answer = _one(rng, concepts), YES_NO[rng.integers(2)]
    second = (
        first
        if answer == "yes"
        else _one(rng, [one for one in concepts if one.family != first.family])
    )
    canvas = _canvas(rng, edge)
    for place, one in enumerate((first, second)):
        size = int(rng.integers(edge * 3 // 10, edge * 9 // 20))
        drawing = one.drawings[style]
        if place:
            turned = Image.fromarray(drawing).rotate(
                float(rng.uniform(-25, 25)), Image.Resampling.BILINEAR
            )
            drawing = np.asarray(turned)
        top, left = (
            rng.integers(0, edge - size),
            rng.integers(0, edge // 2 - size + 1) + place * (edge // 2),
        )
        paste(canvas, resized(drawing, size), int(top), int(left))
    return "same", "Are the two the same?", answer, YES_NO, canvas


def _side(rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str) -> Made:
    answer, colour = SIDES[rng.integers(4)], MARK_COLOURS[rng.integers(len(MARK_COLOURS))]
    canvas, size, mark = _canvas(rng, edge), edge * 2 // 5, edge // 5
    near, far = (
        int(rng.integers(0, edge // 10 + 1)),
        edge - mark - int(rng.integers(0, edge // 10 + 1)),
    )
    along, across = int(rng.integers(0, edge - mark)), int(rng.integers(0, edge - size))
    at, behind = (near, edge - size) if answer in ("left", "above") else (far, 0)
    if answer in ("left", "right"):
        paste(canvas, resized(_one(rng, concepts).drawings[style], size), across, behind)
        _disc(canvas, along, at, mark, colour)
    else:
        paste(canvas, resized(_one(rng, concepts).drawings[style], size), behind, across)
        _disc(canvas, at, along, mark, colour)
    return "side", f"On which side of the picture is the {colour} disc?", answer, SIDES, canvas


def _box(rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str) -> Made:
    colour = MARK_COLOURS[rng.integers(len(MARK_COLOURS))]
    canvas = _canvas(rng, edge)
    sizes = [
        int(rng.integers(edge * 2 // 5, edge * 3 // 5)),
        int(rng.integers(edge * 3 // 10, edge * 2 // 5)),
    ]
    for _ in range(20):
        places = [
            (int(rng.integers(0, edge - size)), int(rng.integers(0, edge - size)), size)
            for size in sizes
        ]
        if not _overlap(*places):
            break
    else:
        return None
    (top, left, size), (mark_top, mark_left, mark) = places
    paste(canvas, resized(_one(rng, concepts).drawings[style], size), top, left)
    canvas[mark_top : mark_top + mark, mark_left : mark_left + mark] = COLOURS[colour]
    asked = int(rng.integers(2))
    question = "Where is the drawing?" if asked == 0 else f"Where is the {colour} square?"
    y, x, length = places[asked]
    tenths = [round(10 * value / edge) for value in (x, y, x + length, y + length)]
    return (
        "box",
        question,
        "[" + ", ".join(f"{value / 10:.1f}" for value in tenths) + "]",
        (),
        canvas,
    )


def _presence(rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str) -> Made:
    known = _known(concepts)
    weights = 1 / np.arange(1, len(known) + 1)
    shown = [known[i] for i in rng.choice(len(known), 3, replace=False, p=weights / weights.sum())]
    kind, answer = NEGATIVES[rng.integers(3)], YES_NO[rng.integers(2)]
    absent = [one for one in known if one not in shown]
    groups = {one.subcategory for one in shown}
    pools = {
        "random": absent,
        "popular": [one for one in absent if one in known[:POPULAR_CONCEPTS]],
        "adversarial": [one for one in absent if one.subcategory in groups],
    }
    wanted = (
        shown[rng.integers(3)]
        if answer == "yes"
        else _one(rng, pools[kind])
        if pools[kind]
        else None
    )
    if wanted is None:
        return None
    canvas, size = _canvas(rng, edge), edge * 9 // 20
    for cell, one in zip(rng.permutation(4), shown, strict=False):
        shift = rng.integers(0, edge // 2 - size + 1, 2)
        place = (int(cell // 2 * (edge // 2) + shift[0]), int(cell % 2 * (edge // 2) + shift[1]))
        paste(canvas, resized(one.drawings[style], size), *place)
    return kind, f"Is there this in the image: {wanted.label()}?", answer, YES_NO, canvas


TASKS: dict[str, Maker] = {
    "caption": _caption,
    "category": _category,
    "colour": _colour,
    "count": _count,
    "same": _same,
    "side": _side,
    "box": _box,
    "presence": _presence,
}


# ---- parts


def presence_concepts(concepts: Sequence[Concept]) -> list[Concept]:
    """The concepts that presence is asked of, commonest first: siblings by subcategory, no two of
    one family.
    """
    by_group: dict[str, dict[str, Concept]] = {}
    for one in concepts:
        if one.category != "Flags":
            by_group.setdefault(one.subcategory, {}).setdefault(one.family, one)
    groups = sorted((name for name, found in by_group.items() if len(found) >= 3), key=_number)
    known = [one for name in groups for one in list(by_group[name].values())[:3]][
        :PRESENCE_CONCEPTS
    ]
    if len(known) < 12:
        raise ValueError(
            f"presence needs subcategories with three families each; {len(concepts)} concepts give {len(known)}"
        )
    return sorted(known, key=lambda one: _number(one.id))


def main_colour(drawing: Pixels) -> str | None:
    """The name that most opaque pixels have; None if it is less than half of them."""
    sampled = drawing[::2, ::2]  # every fourth pixel decides as well
    opaque = sampled[sampled[..., 3] > 128][:, :3].astype(np.int32)
    if len(opaque) < 25:
        return None
    names = np.array([*COLOURS.values(), (255, 255, 255)])
    nearest = ((opaque[:, None] - names) ** 2).sum(axis=2).argmin(axis=1)
    name, count = Counter(nearest.tolist()).most_common(1)[0]
    return tuple(COLOURS)[name] if name < len(COLOURS) and 2 * count >= len(opaque) else None


_known_found: dict[tuple[str, str, int], list[Concept]] = {}


def _known(concepts: Sequence[Concept]) -> list[Concept]:
    key = (concepts[0].id, concepts[-1].id, len(concepts))
    if key not in _known_found:
        _known_found[key] = presence_concepts(concepts)
    return _known_found[key]


_colours_found: dict[tuple[str, str], str | None] = {}


def _known_colour(one: Concept, style: str) -> str | None:
    key = (one.id, style)
    if key not in _colours_found:
        _colours_found[key] = main_colour(one.drawings[style])
    return _colours_found[key]


def _one(rng: np.random.Generator, pool: Sequence[Concept]) -> Concept:
    return pool[int(rng.integers(len(pool)))]


def _canvas(rng: np.random.Generator, edge: int) -> Pixels:
    """A light background of one colour."""
    canvas = np.empty((edge, edge, 3), dtype=np.uint8)
    canvas[:] = rng.integers(215, 256, 3)
    return canvas


def _alone(rng: np.random.Generator, one: Concept, edge: int, style: str) -> Pixels:
    return flat(one.drawings[style], edge, tuple(int(value) for value in _canvas(rng, 1)[0, 0]))  # type: ignore[arg-type]


def _disc(canvas: Pixels, top: int, left: int, size: int, colour: str) -> None:
    y, x = np.ogrid[:size, :size]
    inside = (y - size / 2 + 0.5) ** 2 + (x - size / 2 + 0.5) ** 2 <= (size / 2) ** 2
    canvas[top : top + size, left : left + size][inside] = COLOURS[colour]


def _overlap(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    return all(a[axis] < b[axis] + b[2] and b[axis] < a[axis] + a[2] for axis in (0, 1))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"vision {text}".encode()).digest()[:8], "big")
