"""Questions with exact answers about pictures composed of emoji, and about charts.

Each task is a small version of a task of the Prismatic suite:

    task      modelled on     picture                                answer
    caption   captioning      one drawing                            its label, among four
    category  classification  one drawing                            one of eight groups
    colour    attributes      one drawing                            colour of most of its pixels
    count     TallyQA         one to five copies of a drawing        their number
    same      matching        two drawings, the second rotated       yes or no
    side      VSR             a drawing and a coloured disc          left, right, above or below
    box       RefCOCO         a drawing and a coloured square        [x1, y1, x2, y2] in tenths
    presence  POPE            three of 60 drawings seen in training  yes or no
    chart     chart reading   a chart of `data_cards/charts`         see `data/charts.py`

Negatives of `presence` are random, popular or adversarial, as in POPE.

Guarantees: item i of a task is a function of (seed, task, split, i) and the concepts; answers are
drawn uniformly where the task allows it; a box's IoU after rounding to tenths is at least 0.5;
training and test items share no concept if the caller's concepts share none (`presence` asks about
training concepts in new scenes, as POPE does); only drawings of the style that the caller names are
used.
Out of scope: judging answers (`scoring.py`).
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from moxin_lab.vision.data import (
    Concept,
    DataError,
    Example,
    Pixels,
    paste,
    read_rows,
    render,
    resize_square,
)
from moxin_lab.vision.images import open_image

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
"""Colour names in RGB; a pixel has the name of the nearest colour."""
MARK_COLOURS = ("red", "green", "blue", "purple")
NEGATIVES = ("random", "popular", "adversarial")
PRESENCE_CONCEPTS, POPULAR_CONCEPTS = 60, 8
CHART_PIXELS = 1024 * 1024
"""Largest width x height of a chart; those of the card have 192 x 192."""


class Item(NamedTuple):
    """One question about one picture."""

    id: str
    task: str
    kind: str
    """Type of question within the task; the majority baseline is computed for each."""
    question: str
    answer: str
    choices: tuple[str, ...]
    """Empty where the answer is generated rather than chosen."""
    picture: Pixels
    """uint8 `[edge, edge, 3]`"""

    def example(self) -> Example:
        """The item as a LLaVA conversation."""
        return Example(self.id, f"{self.id}.png", ((self.question, self.answer),))


class Draft(NamedTuple):
    """An item without its id and task."""

    kind: str
    question: str
    answer: str
    choices: tuple[str, ...]
    picture: Pixels


Maker = Callable[[np.random.Generator, Sequence[Concept], int, str], Draft | None]
"""(rng, concepts, edge, style) to a draft, or None where the random draw allows no item."""


def make_items(
    task: str,
    count: int,
    concepts: Sequence[Concept],
    *,
    edge: int,
    seed: int,
    split: str,
    style: str = "google",
) -> list[Item]:
    """`count` items of a task from `TASKS` about drawings of `concepts`. Raises ValueError if there
    are too few concepts for them.
    """
    items: list[Item] = []
    for attempt in range(20 * count):
        if len(items) == count:
            return items
        rng = np.random.default_rng(_hash(f"{seed} {task} {split} {attempt}"))
        draft = TASKS[task](rng, concepts, edge, style)
        if draft is not None:
            items.append(Item(f"{task}-{split}-{len(items):05d}", task, *draft))
    raise ValueError(f"{len(concepts)} concepts gave {len(items)} of {count} items of {task!r}")


def chart_items(card: Path, split: str, edge: int) -> list[Item]:
    """All questions of a split of the chart card that are legible at this edge. Raises ImageError
    for a chart that is no image, or of more than CHART_PIXELS, DataError for a file or a row that
    is not as the card describes it.
    """
    items = []
    file = card / "data" / f"{split}.parquet"
    for number, row in enumerate(read_rows(file, ("id", "png", "questions"))):
        image = open_image(row["png"], max_pixels=CHART_PIXELS, name=f"{file}, chart {row['id']}")
        resampling = Image.Resampling.BOX if edge < image.width else Image.Resampling.BICUBIC
        picture = np.asarray(image.resize((edge, edge), resampling))
        try:
            items += [
                Item(
                    id=f"chart-{split}-{row['id']}-{one['task'].removeprefix('chart ')}",
                    task="chart",
                    kind=one["task"],
                    question=one["question"],
                    answer=one["answer"],
                    choices=tuple(one["choices"]),
                    picture=picture,
                )
                for one in row["questions"]
                if one["pixels"] <= edge
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file}, row {number} (chart {row['id']}): a question lacks task, question, "
                f"answer, choices or pixels ({type(error).__name__}: {error})"
            ) from None
    return items


def caption_examples(concepts: Sequence[Concept], languages: Sequence[str]) -> list[Example]:
    """Data for alignment in the form of LLaVA's 558K set: one picture with its caption per concept
    and language.
    """
    question = {"en": "What is this?", "zh": "这是什么?", "ja": "これは何?", "ko": "이것은 무엇?"}
    return [
        Example(
            f"{concept.id}-{language}",
            f"{concept.id}.png",
            ((question[language], concept.caption(language)),),
        )
        for concept in concepts
        for language in languages
    ]


def spread(items: Sequence[Item], count: int | None) -> list[Item]:
    """At most `count` items at even distances, so that all kinds remain; None: all items."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


# ---- one maker per task


def _caption(
    rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str
) -> Draft | None:
    target, *rest = [concepts[i] for i in rng.permutation(len(concepts))[:12]]
    others = [concept for concept in rest if concept.family != target.family][:3]
    labels = [concept.label() for concept in (target, *others)]
    if len(set(labels)) < 4:
        return None
    choices = tuple(labels[i] for i in rng.permutation(4))
    picture = _single_drawing(rng, target, edge, style)
    return Draft("caption", "What is this?", target.label(), choices, picture)


def _category(
    rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str
) -> Draft | None:
    groups = sorted({concept.category for concept in concepts if concept.category != "Flags"})
    group = groups[rng.integers(len(groups))]
    members = [concept for concept in concepts if concept.category == group]
    picture = _single_drawing(rng, _pick(rng, members), edge, style)
    return Draft("category", "Which group is it of?", group, tuple(groups), picture)


def _colour(
    rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str
) -> Draft | None:
    colour = tuple(COLOURS)[rng.integers(len(COLOURS))]
    for _ in range(12):
        concept = _pick(rng, concepts)
        if _cached_main_colour(concept, style) == colour:
            picture = _single_drawing(rng, concept, edge, style)
            return Draft("colour", "Which colour is most of it?", colour, tuple(COLOURS), picture)
    return None


def _count(
    rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str
) -> Draft | None:
    count = int(rng.integers(1, 6))
    canvas, size, pitch = _canvas(rng, edge), edge * 3 // 10, edge // 3
    drawing = resize_square(_pick(rng, concepts).drawings[style], size)
    for cell in rng.permutation(9)[:count]:
        shift = rng.integers(0, pitch - size + 1, 2)
        top, left = cell // 3 * pitch + shift[0], cell % 3 * pitch + shift[1]
        paste(canvas, drawing, int(top), int(left))
    return Draft("count", "How many are there?", str(count), tuple("12345"), canvas)


def _same(
    rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str
) -> Draft | None:
    first, answer = _pick(rng, concepts), YES_NO[rng.integers(2)]
    second = first
    if answer == "no":
        second = _pick(rng, [concept for concept in concepts if concept.family != first.family])
    canvas = _canvas(rng, edge)
    for column, concept in enumerate((first, second)):
        size = int(rng.integers(edge * 3 // 10, edge * 9 // 20))
        drawing = concept.drawings[style]
        if column == 1:
            angle = float(rng.uniform(-25, 25))
            rotated = Image.fromarray(drawing).rotate(angle, Image.Resampling.BILINEAR)
            drawing = np.asarray(rotated)
        top = rng.integers(0, edge - size)
        left = rng.integers(0, edge // 2 - size + 1) + column * (edge // 2)
        paste(canvas, resize_square(drawing, size), int(top), int(left))
    return Draft("same", "Are the two the same?", answer, YES_NO, canvas)


def _side(
    rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str
) -> Draft | None:
    answer, colour = SIDES[rng.integers(4)], MARK_COLOURS[rng.integers(len(MARK_COLOURS))]
    canvas, size, mark = _canvas(rng, edge), edge * 2 // 5, edge // 5
    near = int(rng.integers(0, edge // 10 + 1))
    far = edge - mark - int(rng.integers(0, edge // 10 + 1))
    along, across = int(rng.integers(0, edge - mark)), int(rng.integers(0, edge - size))
    # The disc is at the edge that the answer names, the drawing at the opposite edge.
    disc, opposite = (near, edge - size) if answer in ("left", "above") else (far, 0)
    drawing = resize_square(_pick(rng, concepts).drawings[style], size)
    if answer in ("left", "right"):
        paste(canvas, drawing, across, opposite)
        _disc(canvas, along, disc, mark, colour)
    else:
        paste(canvas, drawing, opposite, across)
        _disc(canvas, disc, along, mark, colour)
    question = f"On which side of the picture is the {colour} disc?"
    return Draft("side", question, answer, SIDES, canvas)


def _box(
    rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str
) -> Draft | None:
    colour = MARK_COLOURS[rng.integers(len(MARK_COLOURS))]
    canvas = _canvas(rng, edge)
    sizes = [
        int(rng.integers(edge * 2 // 5, edge * 3 // 5)),
        int(rng.integers(edge * 3 // 10, edge * 2 // 5)),
    ]
    for _ in range(20):
        squares = [  # (top, left, size) of the drawing and of the coloured square
            (int(rng.integers(0, edge - size)), int(rng.integers(0, edge - size)), size)
            for size in sizes
        ]
        if not _overlap(*squares):
            break
    else:
        return None
    (top, left, size), (mark_top, mark_left, mark) = squares
    paste(canvas, resize_square(_pick(rng, concepts).drawings[style], size), top, left)
    canvas[mark_top : mark_top + mark, mark_left : mark_left + mark] = COLOURS[colour]
    target = int(rng.integers(2))
    question = "Where is the drawing?" if target == 0 else f"Where is the {colour} square?"
    y, x, length = squares[target]
    tenths = [round(10 * value / edge) for value in (x, y, x + length, y + length)]
    answer = "[" + ", ".join(f"{value / 10:.1f}" for value in tenths) + "]"
    return Draft("box", question, answer, (), canvas)


def _presence(
    rng: np.random.Generator, concepts: Sequence[Concept], edge: int, style: str
) -> Draft | None:
    known = _cached_presence_concepts(concepts)
    weights = 1 / np.arange(1, len(known) + 1)
    shown = [known[i] for i in rng.choice(len(known), 3, replace=False, p=weights / weights.sum())]
    kind, answer = NEGATIVES[rng.integers(3)], YES_NO[rng.integers(2)]
    absent = [concept for concept in known if concept not in shown]
    groups = {concept.subcategory for concept in shown}
    negatives = {
        "random": absent,
        "popular": [concept for concept in absent if concept in known[:POPULAR_CONCEPTS]],
        "adversarial": [concept for concept in absent if concept.subcategory in groups],
    }
    if answer == "yes":
        target = shown[rng.integers(3)]
    elif negatives[kind]:
        target = _pick(rng, negatives[kind])
    else:
        return None
    canvas, size, pitch = _canvas(rng, edge), edge * 9 // 20, edge // 2
    for cell, concept in zip(rng.permutation(4), shown, strict=False):
        shift = rng.integers(0, pitch - size + 1, 2)
        top, left = cell // 2 * pitch + shift[0], cell % 2 * pitch + shift[1]
        paste(canvas, resize_square(concept.drawings[style], size), int(top), int(left))
    question = f"Is there this in the image: {target.label()}?"
    return Draft(kind, question, answer, YES_NO, canvas)


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
    """The concepts that `presence` asks about, most frequent first: three per subcategory, no two
    of one family. Raises ValueError for too few.
    """
    by_group: dict[str, dict[str, Concept]] = {}
    for concept in concepts:
        if concept.category != "Flags":
            by_group.setdefault(concept.subcategory, {}).setdefault(concept.family, concept)
    groups = sorted((name for name, members in by_group.items() if len(members) >= 3), key=_hash)
    known = [concept for name in groups for concept in list(by_group[name].values())[:3]]
    known = known[:PRESENCE_CONCEPTS]
    if len(known) < 12:
        raise ValueError(
            "presence needs subcategories with three families each; "
            f"{len(concepts)} concepts give {len(known)}"
        )
    return sorted(known, key=lambda concept: _hash(concept.id))


def main_colour(drawing: Pixels) -> str | None:
    """The most frequent colour name of the opaque pixels; None if fewer than half have it."""
    sampled = drawing[::2, ::2]  # a quarter of the pixels is enough
    opaque = sampled[sampled[..., 3] > 128][:, :3].astype(np.int32)
    if len(opaque) < 25:
        return None
    palette = np.array([*COLOURS.values(), (255, 255, 255)])
    nearest = ((opaque[:, None] - palette) ** 2).sum(axis=2).argmin(axis=1)  # [pixels]
    name, count = Counter(nearest.tolist()).most_common(1)[0]
    return tuple(COLOURS)[name] if name < len(COLOURS) and 2 * count >= len(opaque) else None


# Drawings are arrays, which cannot be hashed: the caches are keyed by concept ids.
_presence_cache: dict[tuple[str, str, int], list[Concept]] = {}
_colour_cache: dict[tuple[str, str], str | None] = {}


def _cached_presence_concepts(concepts: Sequence[Concept]) -> list[Concept]:
    key = (concepts[0].id, concepts[-1].id, len(concepts))
    if key not in _presence_cache:
        _presence_cache[key] = presence_concepts(concepts)
    return _presence_cache[key]


def _cached_main_colour(concept: Concept, style: str) -> str | None:
    key = (concept.id, style)
    if key not in _colour_cache:
        _colour_cache[key] = main_colour(concept.drawings[style])
    return _colour_cache[key]


def _pick(rng: np.random.Generator, pool: Sequence[Concept]) -> Concept:
    return pool[int(rng.integers(len(pool)))]


def _canvas(rng: np.random.Generator, edge: int) -> Pixels:
    """A light background of one colour."""
    canvas = np.empty((edge, edge, 3), dtype=np.uint8)
    canvas[:] = rng.integers(215, 256, 3)
    return canvas


def _single_drawing(rng: np.random.Generator, concept: Concept, edge: int, style: str) -> Pixels:
    """One drawing that fills a light background."""
    red, green, blue = (int(value) for value in _canvas(rng, 1)[0, 0])
    return render(concept.drawings[style], edge, (red, green, blue))


def _disc(canvas: Pixels, top: int, left: int, size: int, colour: str) -> None:
    """Draw a disc of diameter `size` on the canvas, in place."""
    y, x = np.ogrid[:size, :size]
    inside = (y - size / 2 + 0.5) ** 2 + (x - size / 2 + 0.5) ** 2 <= (size / 2) ** 2
    canvas[top : top + size, left : left + size][inside] = COLOURS[colour]


def _overlap(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    """Whether two squares (top, left, size) share a pixel."""
    return all(a[axis] < b[axis] + b[2] and b[axis] < a[axis] + a[2] for axis in (0, 1))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"vision {text}".encode()).digest()[:8], "big")
