"""Image-text data: LLaVA's JSON read and written, and the concepts of `data_cards/emoji`.

    {"id": "...", "image": "a/b.png",
     "conversations": [{"from": "human", "value": "<image>\\n..."},
                       {"from": "gpt", "value": "..."}]}

`load_llava` reads the published files of LLaVA v1.5 (558K captions, 665K instructions) unchanged: a
record without `image` is text alone, `<image>` may come before or after the first question, and a
conversation may begin with an answer, which is dropped as in LLaVA's code. Any other record is
refused with its id, since a record without anything to learn from would go unnoticed.

Guarantees: `load_llava(save_llava(x))` is `x`; drawings are laid on an opaque background here, so
no transparent pixel reaches a tower.
Out of scope: decoding the images of a LLaVA file (`images.py`).
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
    """Pairs of question and answer, without `<image>`."""


# ---- LLaVA's JSON


def load_llava(path: Path, image_folder: Path | None = None) -> list[Example]:
    """The conversations of a LLaVA file, in file order.

    image_folder: if given, every image must be a file below it. Raises DataError naming the record
    for a missing turn, an empty answer, two images, or an image that is missing or outside the
    folder.
    """
    records = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(records, list) or not records:
        raise DataError(f"{path} is not a LLaVA file: it must be a list of at least one record")
    examples = [_example(record, f"{path}, record {index}") for index, record in enumerate(records)]
    if image_folder is not None:
        missing = [
            example
            for example in examples
            if example.image and not (image_folder / example.image).is_file()
        ]
        if missing:
            raise DataError(
                f"{path}: {len(missing)} of {len(examples)} records name an image that is not "
                f"below {image_folder}; the first is {missing[0].image} of record {missing[0].id}"
            )
    return examples


def _example(record: Mapping[str, Any], where: str) -> Example:
    """One record, checked. `where` begins error messages."""
    try:
        name, turns, image = str(record["id"]), list(record["conversations"]), record.get("image")
        messages = [(turn["from"], turn["value"]) for turn in turns]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{where} lacks {error}: it needs id and conversations with from and value"
        ) from error
    where = f"{where} (id {name})"
    if image is not None and (Path(image).is_absolute() or ".." in Path(image).parts):
        raise DataError(f"{where}: image {image!r} is not a name below the image folder")
    while messages and messages[0][0] == "gpt":
        messages = messages[1:]
    messages = messages[: len(messages) // 2 * 2]  # a last question without answer is dropped
    roles = [role for role, _ in messages]
    if not messages or roles != ["human", "gpt"] * (len(messages) // 2):
        raise DataError(
            f"{where}: human and gpt do not take turns, so there is nothing to learn from"
        )
    if image is not None:
        marks = sum(text.count(IMAGE_MARK) for _, text in messages)
        if marks > 1:
            raise DataError(f"{where} marks {marks} images; a conversation may have one")
        messages = [(role, text.replace(IMAGE_MARK, "").strip()) for role, text in messages]
    questions, answers = [text for _, text in messages[::2]], [text for _, text in messages[1::2]]
    if not all(answer.strip() for answer in answers):
        raise DataError(f"{where} has an empty answer: there is nothing to learn from")
    return Example(name, image, tuple(zip(questions, answers, strict=True)))


def to_llava(example: Example) -> dict[str, Any]:
    """The record that LLaVA's own training code reads."""
    conversations = []
    for index, (question, answer) in enumerate(example.turns):
        mark = f"{IMAGE_MARK}\n" if index == 0 and example.image else ""
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
    """Write `folder`/data.json, and the images of the examples into `folder`/images; returns the
    path of the JSON file.
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
    """A row of `data_cards/emoji` with decoded drawings."""

    id: str
    family: str
    category: str
    subcategory: str
    names: dict[str, tuple[str, tuple[str, ...]]]
    """Language to label and tags."""
    drawings: dict[str, Pixels]
    """Style to RGBA `[64, 64, 4]`."""

    def label(self, language: str = "en") -> str:
        """The concept's name."""
        return self.names[language][0]

    def caption(self, language: str = "en", tags: int = 4) -> str:
        """Label and the first tags that do not repeat it: `octopus: animal, creature, ocean`."""
        label, all_tags = self.names[language]
        shown = [tag for tag in all_tags if tag != label][:tags]
        return f"{label}: {', '.join(shown)}" if shown else label


def read_concepts(
    card: Path, split: str, languages: Sequence[str] = ("en", "zh", "ja", "ko")
) -> list[Concept]:
    """The concepts of one split. card: folder of the data card. Raises DataError for a drawing that
    is not an image.
    """
    columns = ["concept", "family", "category", "subcategory", "texts", "google", "twitter"]
    concepts = []
    for row in pq.read_table(card / "data" / f"{split}.parquet", columns=columns).to_pylist():
        texts = {text["language"]: (text["label"], tuple(text["tags"])) for text in row["texts"]}
        concepts.append(
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
    return concepts


def _decode(png: bytes, where: str) -> Pixels:
    try:
        image = Image.open(io.BytesIO(png)).convert("RGBA")
    except OSError as error:
        raise DataError(f"{where} is not an image: {error}") from error
    size = (DRAWING_PIXELS, DRAWING_PIXELS)
    if image.size != size:  # a few drawings of one package are two pixels larger
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


def resize_square(drawing: Pixels, edge: int) -> Pixels:
    """A square picture `[n, n, channels]` resized to `[edge, edge, channels]`. Colours are weighted
    by their opacity, so that edges do not darken.
    """
    if drawing.shape[0] == edge:
        return drawing
    return np.asarray(Image.fromarray(drawing).resize((edge, edge), Image.Resampling.BICUBIC))


def paste(canvas: Pixels, drawing: Pixels, top: int, left: int) -> None:
    """Draw an RGBA drawing `[h, w, 4]` over part of an RGB canvas `[H, W, 3]`, in place."""
    height, width = drawing.shape[:2]
    below = canvas[top : top + height, left : left + width]
    alpha = drawing[..., 3:].astype(np.uint16)
    below[:] = ((drawing[..., :3] * alpha + below * (255 - alpha) + 127) // 255).astype(np.uint8)


def render(drawing: Pixels, edge: int, background: tuple[int, int, int] = WHITE) -> Pixels:
    """A drawing that fills an opaque background, `[edge, edge, 3]`."""
    canvas = np.empty((edge, edge, 3), dtype=np.uint8)
    canvas[:] = background
    paste(canvas, resize_square(drawing, edge), 0, 0)
    return canvas


def render_concepts(concepts: Sequence[Concept], style: str, edge: int) -> Pixels:
    """All concepts in one style on white, `[n, edge, edge, 3]`."""
    return np.stack([render(concept.drawings[style], edge) for concept in concepts])
