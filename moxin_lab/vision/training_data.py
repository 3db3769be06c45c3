"""What a VLM learns from: the cards of this repository, or LLaVA v1.5's published files, in one
form.

    from_cards(concepts, items, pictures, languages)     captions of drawings, questions about scenes; all looked at beforehand
    from_llava({"align": ..., "finetune": ..., "images": ...}, root)      558K captions, 665K conversations; opened step by step

Guarantees: both go through the same trainings (`experiments.run_recipe`); a missing file is named,
with what it is and which line of the scale file says where to look, before a model is loaded.
Does not: download anything, or open an image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from moxin_lab.vision.data import Concept, DataError, Example, Pixels, load_llava, pictures
from moxin_lab.vision.tasks import Item, caption_examples
from moxin_lab.vision.vlm_training import Images

LLAVA_FILES = {
    "align": "LLaVA's pretraining file blip_laion_cc_sbu_558k.json, 558K records with an image and its caption",
    "finetune": "LLaVA v1.5's instruction file llava_v1_5_mix665k.json, 665K conversations",
    "images": "the folder below which the records' images are files (00453/..., coco/train2017/..., gqa/images/..., ...)",
}
"""What `vision: llava` of a scale file names."""


class Material(NamedTuple):
    """Examples of both stages, and their images."""

    captions: Sequence[Example]
    """Of alignment."""
    instructions: Sequence[Example]
    """Of fine-tuning."""
    images: Images
    looked: bool
    """Whether frozen towers have seen all images beforehand (`experiments.look`); else each step
    opens its own.
    """


def pictured(items: Sequence[Item], concepts: Sequence[Concept], edge: int) -> dict[str, Pixels]:
    """Pictures of questions and of concepts (in Google's style) by the names that their examples
    have.
    """
    return {item.example().image or "": item.picture for item in items} | drawn(
        concepts, "google", edge
    )


def drawn(concepts: Sequence[Concept], style: str, edge: int) -> dict[str, Pixels]:
    """Pictures of concepts in one style by the names that their captions have."""
    return {
        f"{one.id}.png": shown
        for one, shown in zip(concepts, pictures(concepts, style, edge), strict=True)
    }


def from_cards(
    concepts: Sequence[Concept],
    items: Sequence[Item],
    every: Mapping[str, Pixels],
    languages: Sequence[str],
) -> Material:
    """Captions of the concepts in each language and the questions; every: `pictured` of both."""
    return Material(
        caption_examples(concepts, languages),
        [item.example() for item in items],
        every,
        looked=True,
    )


def from_llava(files: Mapping[str, str], root: Path) -> Material:
    """The published files as they are, relative to `root`.

    Raises DataError naming the file that is not there, an unknown or missing key, or the record
    that cannot be used.
    """
    if set(files) != set(LLAVA_FILES):
        raise DataError(
            f"`vision: llava` names {', '.join(files)}; it needs {', '.join(LLAVA_FILES)}"
        )
    places = {name: root / file for name, file in files.items()}
    for name, place in places.items():
        if not (place.is_dir() if name == "images" else place.is_file()):
            raise DataError(
                f"{place} is not there: it is to be {LLAVA_FILES[name]}. Put it there, or change `vision: llava: {name}` of the "
                "scale file; moxin_lab/vision/data.py describes the format"
            )
    captions, instructions = (
        load_llava(places[name], places["images"]) for name in ("align", "finetune")
    )
    return Material(captions, instructions, lambda name: places["images"] / name, looked=False)
