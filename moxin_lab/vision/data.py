"""Image-text data: LLaVA's JSON read and written, and the concepts of `data_cards/emoji`.

    {"id": "...", "image": "a/b.png",
     "conversations": [{"from": "human", "value": "<image>\\n..."},
                       {"from": "gpt", "value": "..."}]}

`load_llava` reads the published files of LLaVA v1.5 (558K captions, 665K instructions) unchanged: a
record without `image` is text alone and has no first or last line `<image>`; with an image the mark
may come before or after the first question; a conversation may begin with an answer, which is
dropped as in LLaVA's code. Any other record is refused with its row and id, since a record without
anything to learn from would go unnoticed.

Guarantees: `load_llava(save_llava(x))` is `x`; whatever a LLaVA file holds, the result is a list of
examples or a `DataError` with file and row, also for an image that cannot be decoded; drawings are
laid on an opaque background here, so no transparent pixel reaches a tower.
Out of scope: pixels of a LLaVA file's images (`images.py`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from moxin_lab import threads, untrusted
from moxin_lab.vision.images import ImageError, open_image

IMAGE_MARK = "<image>"
MAX_LLAVA_BYTES = 4 * 2**30
"""Largest file; the 665K conversations of LLaVA v1.5 have 1.0 GB."""
MAX_NAME_BYTES = 255
"""Longest name of a file or folder on the usual file systems."""
OTHER_MEDIA = ("images", "video", "videos", "audio", "audios")
"""Keys under which other data sets have what is not read here."""
DRAWING_PIXELS = 64
MAX_DRAWING_PIXELS = 512 * 512
"""Largest width x height of a drawing in a card."""
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

    image_folder: if given, every image must be a file below it, and is decoded once. Raises
    DataError naming file and row for a file that is not such JSON, a missing turn, an empty answer,
    two images, or an image that is missing, outside the folder or damaged.
    """
    try:
        content = untrusted.read_bytes(path, MAX_LLAVA_BYTES)
        records = untrusted.load_json(content, max_bytes=MAX_LLAVA_BYTES)
    except (OSError, untrusted.UntrustedError) as error:
        raise DataError(f"{path} cannot be read as a LLaVA file: {error}") from None
    if not isinstance(records, list) or not records:
        raise DataError(f"{path} is not a LLaVA file: it must be a list of at least one record")
    examples = [_example(record, f"{path}, record {index}") for index, record in enumerate(records)]
    if image_folder is not None:
        _check_images(path, examples, image_folder)
    return examples


def _check_images(path: Path, examples: Sequence[Example], folder: Path) -> None:
    """Decode each image once, before a training could stop at it. Raises DataError."""
    first_row: dict[str, int] = {}
    for row, example in enumerate(examples):
        if example.image is not None:
            first_row.setdefault(example.image, row)
    missing = {}
    for name, row in first_row.items():
        try:
            there = (folder / name).is_file()
        except OSError as error:  # all in all too long a path
            raise DataError(
                f"{path}, record {row} (id {examples[row].id}): image {_shown(name)} cannot be "
                f"looked up ({error.strerror})"
            ) from None
        if not there:
            missing[name] = row
    if missing:
        rows = sum(example.image in missing for example in examples)
        name, row = next(iter(missing.items()))
        raise DataError(
            f"{path}: {rows} of {len(examples)} records name an image that is not "
            f"below {folder}; the first is {name} of record {examples[row].id} (row {row})"
        )

    def problem(name: str) -> str | None:
        try:
            open_image(folder / name)
        except ImageError as error:
            return str(error)
        return None

    # Pillow decodes without holding Python's lock.
    with ThreadPoolExecutor(threads.usable_cores()) as pool:
        for (name, row), found in zip(first_row.items(), pool.map(problem, first_row), strict=True):
            if found is not None:
                raise DataError(
                    f"{path}, record {row} (id {examples[row].id}): image {name!r} cannot be used: "
                    f"{found}"
                )


def _example(record: Any, where: str) -> Example:
    """One record, checked. `where` begins error messages."""
    if not isinstance(record, dict):
        raise DataError(f"{where} is not an object with id and conversations")
    absent = [name for name in ("id", "conversations") if name not in record]
    if absent:
        raise DataError(
            f"{where} lacks {absent[0]!r}: it needs id and conversations with from and value"
        )
    name, turns, image = record["id"], record["conversations"], record.get("image")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise DataError(f"{where}: its id is {_shown(name)}, neither text nor a whole number")
    where = f"{where} (id {_printable(str(name), where)})"
    for other in OTHER_MEDIA:
        if record.get(other) is not None:
            raise DataError(
                f"{where} has {other!r}: a conversation is about one image, under the key 'image'"
            )
    if not isinstance(turns, list):
        raise DataError(f"{where}: conversations is {_shown(turns)}, not a list of turns")
    messages = [_message(turn, f"{where}, turn {number}") for number, turn in enumerate(turns)]
    if image is not None:
        image = _image_name(image, where)
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
    elif any(role == "human" and _marks_image(text) for role, text in messages):
        raise DataError(f"{where} marks an image by {IMAGE_MARK}, but its image is missing")
    questions, answers = [text for _, text in messages[::2]], [text for _, text in messages[1::2]]
    if not all(answer.strip() for answer in answers):
        raise DataError(f"{where} has an empty answer: there is nothing to learn from")
    return Example(str(name), image, tuple(zip(questions, answers, strict=True)))


def _marks_image(text: str) -> bool:
    """Whether `<image>` is the first or last of several lines, as LLaVA writes it. Elsewhere in a
    text without an image it is meant literally: as a tag of HTML.
    """
    lines = text.strip().splitlines()
    return len(lines) > 1 and IMAGE_MARK in (lines[0].strip(), lines[-1].strip())


def _message(turn: Any, where: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise DataError(f"{where} is {_shown(turn)}, not an object with from and value")
    for name in ("from", "value"):
        if not isinstance(turn.get(name), str):
            raise DataError(
                f"{where}: {name} is "
                + (f"{_shown(turn[name])}, not text" if name in turn else "missing")
            )
    return turn["from"], _printable(turn["value"], where)


def _image_name(image: Any, where: str) -> str:
    """A relative path below a folder."""
    if not isinstance(image, str):
        raise DataError(f"{where}: image is {_shown(image)}, not the name of one file")
    parts = Path(image).parts
    if (
        not image.strip()
        or not parts
        or "\0" in image
        or Path(image).is_absolute()
        or ".." in parts
    ):
        raise DataError(f"{where}: image {image!r} is not a name below the image folder")
    if max(map(len, map(str.encode, Path(_printable(image, where)).parts))) > MAX_NAME_BYTES:
        raise DataError(f"{where}: image {image[:40]!r}... is too long for the name of a file")
    return image


def _printable(text: str, where: str) -> str:
    """Text that can be tokenised and printed."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: {text[:60]!a} holds half of a surrogate pair, which is no character"
        ) from None
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


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
    is not an image, and for a file or a row that is not as the card describes it.
    """
    columns = ["concept", "family", "category", "subcategory", "texts", "google", "twitter"]
    concepts = []
    file = card / "data" / f"{split}.parquet"
    for number, row in enumerate(read_rows(file, columns)):
        try:
            names = {one["language"]: (one["label"], tuple(one["tags"])) for one in row["texts"]}
            names = {language: names[language] for language in languages}
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{file}, row {number} ({row['concept']}): its texts are not label and tags in "
                f"{', '.join(languages)} ({type(error).__name__}: {error})"
            ) from None
        drawings = {
            style: _decode(row[style], f"{file}: {row['concept']}, {style}")
            for style in ("google", "twitter")
        }
        concepts.append(
            Concept(
                row["concept"], row["family"], row["category"], row["subcategory"], names, drawings
            )
        )
    return concepts


def read_rows(file: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a card's Parquet file. Raises DataError for a file that is missing, is not
    Parquet, or lacks a column.
    """
    try:
        absent = [name for name in columns if name not in pq.read_schema(file).names]
        if absent:
            raise DataError(f"{file} lacks the column {absent[0]!r}: it needs {', '.join(columns)}")
        return pq.read_table(file, columns=list(columns)).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read as Parquet: {error}") from None


def _decode(png: bytes, where: str) -> Pixels:
    try:
        image = open_image(png, max_pixels=MAX_DRAWING_PIXELS, name=where, mode="RGBA")
    except ImageError as error:
        raise DataError(str(error)) from None
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
