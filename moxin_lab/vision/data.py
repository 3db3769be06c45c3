"""Image-text data: LLaVA's JSON in and out, and the concepts of `data_cards/emoji` as arrays.

    {"id": "...", "image": "a/b.png", "conversations": [{"from": "human", "value": "<image>\\n..."},
    {"from": "gpt", ...}]}

The loader takes the published files of LLaVA v1.5 (558K captions, 665K instructions) as they are: a
record without `image` is text alone, `<image>` may stand before or after the first question, a
conversation may open with an answer (which is left out, as LLaVA's code does). Anything else is
refused with the record's id: a record that trains nothing is a fault that nobody sees.

Guarantees: `load_llava(save_llava(x))` is `x`; a drawing is composed on a background here, once, so
that no transparent pixel reaches a tower.
Does not: decode the images of a LLaVA file (`images.py` does, when it needs them).
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

IMAGE_MARK = "<image>"
DRAWING_PIXELS = 64
WHITE = (255, 255, 255)

Pixels = NDArray[np.uint8]


class DataError(ValueError):
    """A record or an image that cannot be used; the message names it."""


class Example(NamedTuple):
    """One conversation about at most one image."""

    id: str
    image: str | None
    """File name below the image folder; None: text alone."""
    turns: tuple[tuple[str, str], ...]
    """Questions and answers, without the mark of the image."""


# ---- LLaVA's JSON


def load_llava(path: Path, image_folder: Path | None = None) -> list[Example]:
    """The conversations of a LLaVA file, in its order.

    image_folder: if given, every image must be a file below it. Raises DataError naming the record
    for a missing turn, an empty answer, two images, or an image that is not there or not below the
    folder.
    """
    records = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(records, list) or not records:
        raise DataError(f"{path} is not a LLaVA file: it must hold a list of at least one record")
    examples = [
        _example(record, f"{path}, record {number}") for number, record in enumerate(records)
    ]
    if image_folder is not None:
        missing = [
            example
            for example in examples
            if example.image and not (image_folder / example.image).is_file()
        ]
        if missing:
            raise DataError(
                f"{path}: {len(missing)} of {len(examples)} records name an image that is not below {image_folder}; "
                f"the first is {missing[0].image} of record {missing[0].id}"
            )
    return examples


def _example(record: Mapping[str, Any], where: str) -> Example:
    try:
        name, turns, image = str(record["id"]), list(record["conversations"]), record.get("image")
        said = [(turn["from"], turn["value"]) for turn in turns]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{where} lacks {error}: it needs id and conversations with from and value"
        ) from error
    where = f"{where} (id {name})"
    if image is not None and (Path(image).is_absolute() or ".." in Path(image).parts):
        raise DataError(f"{where}: image {image!r} is not a name below the image folder")
    while said and said[0][0] == "gpt":
        said = said[1:]
    said = said[: len(said) // 2 * 2]
    if not said or [who for who, _ in said] != ["human", "gpt"] * (len(said) // 2):
        raise DataError(
            f"{where}: human and gpt do not take turns, so there is nothing to learn from"
        )
    if image is not None:
        marks = sum(text.count(IMAGE_MARK) for _, text in said)
        if marks > 1:
            raise DataError(f"{where} marks {marks} images; one a conversation is read")
        said = [(who, text.replace(IMAGE_MARK, "").strip()) for who, text in said]
    questions, answers = [text for _, text in said[::2]], [text for _, text in said[1::2]]
    if not all(answer.strip() for answer in answers):
        raise DataError(f"{where} has an empty answer: it would carry no loss")
    return Example(name, image, tuple(zip(questions, answers, strict=True)))


def to_llava(example: Example) -> dict[str, Any]:
    """The record that LLaVA's own training code reads."""
    conversations = []
    for number, (question, answer) in enumerate(example.turns):
        mark = f"{IMAGE_MARK}\n" if number == 0 and example.image else ""
        conversations += [
            {"from": "human", "value": mark + question},
            {"from": "gpt", "value": answer},
        ]
    return {
        "id": example.id,
        **({"image": example.image} if example.image else {}),
        "conversations": conversations,
    }


def save_llava(examples: Iterable[Example], images: Mapping[str, Pixels], folder: Path) -> Path:
    """Write `folder`/data.json and the images that the examples name below `folder`/images; return
    the JSON's path.
    """
    records = []
    for example in examples:
        records.append(to_llava(example))
        if example.image:
            file = folder / "images" / example.image
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[example.image]).save(file, format="PNG")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "data.json"
    path.write_text(json.dumps(records, ensure_ascii=False, indent=0), encoding="utf-8")
    return path


# ---- concepts


class Concept(NamedTuple):
    """A row of `data_cards/emoji`, its drawings decoded."""

    id: str
    family: str
    category: str
    subcategory: str
    names: dict[str, tuple[str, tuple[str, ...]]]
    """Language to label and tags."""
    drawings: dict[str, Pixels]
    """Style to `[64, 64, 4]` RGBA."""

    def label(self, language: str = "en") -> str:
        return self.names[language][0]

    def caption(self, language: str = "en", tags: int = 4) -> str:
        """Label and tags that do not repeat it: `octopus: animal, creature, ocean`."""
        label, all_tags = self.names[language]
        kept = [tag for tag in all_tags if tag != label][:tags]
        return f"{label}: {', '.join(kept)}" if kept else label


def read_concepts(
    card: Path, split: str, languages: Sequence[str] = ("en", "zh", "ja", "ko")
) -> list[Concept]:
    """The concepts of one split of the card in its folder, decoded. Raises DataError for a drawing
    that is none.
    """
    columns = ["concept", "family", "category", "subcategory", "texts", "google", "twitter"]
    found = []
    for row in pq.read_table(card / "data" / f"{split}.parquet", columns=columns).to_pylist():
        texts = {text["language"]: (text["label"], tuple(text["tags"])) for text in row["texts"]}
        found.append(
            Concept(
                row["concept"],
                row["family"],
                row["category"],
                row["subcategory"],
                {language: texts[language] for language in languages},
                {
                    style: _decode(row[style], f"{card}: {row['concept']}, {style}")
                    for style in ("google", "twitter")
                },
            )
        )
    return found


def _decode(png: bytes, where: str) -> Pixels:
    try:
        image = Image.open(io.BytesIO(png)).convert("RGBA")
    except OSError as error:
        raise DataError(f"{where} is not an image: {error}") from error
    if image.size != (
        DRAWING_PIXELS,
        DRAWING_PIXELS,
    ):  # a few of one package have an edge of two pixels more
        image = image.resize((DRAWING_PIXELS, DRAWING_PIXELS), Image.Resampling.BICUBIC)
    return np.asarray(image)


def resized(drawing: Pixels, edge: int) -> Pixels:
    """A square picture `[n, n, channels]` with another edge; transparency is weighted in, so that
    edges do not darken.
    """
    if drawing.shape[0] == edge:
        return drawing
    return np.asarray(Image.fromarray(drawing).resize((edge, edge), Image.Resampling.BICUBIC))


def paste(canvas: Pixels, drawing: Pixels, top: int, left: int) -> None:
    """Lay an RGBA drawing over part of an RGB canvas, in place."""
    height, width = drawing.shape[:2]
    below = canvas[top : top + height, left : left + width]
    alpha = drawing[..., 3:].astype(np.uint16)
    below[:] = ((drawing[..., :3] * alpha + below * (255 - alpha) + 127) // 255).astype(np.uint8)


def flat(drawing: Pixels, edge: int, background: tuple[int, int, int] = WHITE) -> Pixels:
    """A drawing alone on a background, `[edge, edge, 3]`."""
    canvas = np.empty((edge, edge, 3), dtype=np.uint8)
    canvas[:] = background
    paste(canvas, resized(drawing, edge), 0, 0)
    return canvas


def pictures(concepts: Sequence[Concept], style: str, edge: int) -> Pixels:
    """All concepts in one style on white, `[n, edge, edge, 3]`."""
    return np.stack([flat(concept.drawings[style], edge) for concept in concepts])
