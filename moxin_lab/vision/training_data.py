"""Training data of a VLM: the cards of this repository, or LLaVA v1.5's files, in one form.

    from_cards(concepts, items, pictures, languages)    captions of drawings, questions on scenes
    from_llava(files, root)                             558K captions, 665K conversations

Guarantees: both go through the same trainings (`experiments.run_recipe`); a missing file is
reported before a model is loaded, with its contents and the line of the scale file that names it.
Out of scope: downloading, opening images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from moxin_lab.vision.data import Concept, DataError, Example, Pixels, load_llava, render_concepts
from moxin_lab.vision.tasks import Item, caption_examples
from moxin_lab.vision.vlm_training import Images

LLAVA_FILES = {
    "align": "LLaVA's pretraining file blip_laion_cc_sbu_558k.json, "
    "558K records with an image and its caption",
    "finetune": "LLaVA v1.5's instruction file llava_v1_5_mix665k.json, 665K conversations",
    "images": "the folder below which the records' images are files "
    "(00453/..., coco/train2017/..., gqa/images/..., ...)",
}
"""The keys of `vision: llava` in a scale file, and the contents of each path."""


class TrainingData(NamedTuple):
    """Examples of both stages, and their images."""

    captions: Sequence[Example]
    """For alignment."""
    instructions: Sequence[Example]
    """For fine-tuning."""
    images: Images
    has_features: bool
    """Whether the features of all images are computed before training
    (`features.compute_features`). Otherwise each step opens its own images.
    """


def pictures_by_name(
    items: Sequence[Item], concepts: Sequence[Concept], edge: int
) -> dict[str, Pixels]:
    """Pictures of questions, and of concepts in Google's style, by the image names of their
    examples.
    """
    questions = {item.example().image or "": item.picture for item in items}
    return questions | drawings_by_name(concepts, "google", edge)


def drawings_by_name(concepts: Sequence[Concept], style: str, edge: int) -> dict[str, Pixels]:
    """Pictures of concepts in one style, by the image names of their captions."""
    pictures = render_concepts(concepts, style, edge)
    return {
        f"{concept.id}.png": picture for concept, picture in zip(concepts, pictures, strict=True)
    }


def from_cards(
    concepts: Sequence[Concept],
    items: Sequence[Item],
    pictures: Mapping[str, Pixels],
    languages: Sequence[str],
) -> TrainingData:
    """Captions of the concepts in each language, and the questions.

    pictures: `pictures_by_name` of the items and concepts.
    """
    return TrainingData(
        captions=caption_examples(concepts, languages),
        instructions=[item.example() for item in items],
        images=pictures,
        has_features=True,
    )


def from_llava(files: Mapping[str, str], root: Path) -> TrainingData:
    """The published files, unchanged. files: paths relative to `root`, keys as in `LLAVA_FILES`.

    Raises DataError for a missing file, an unknown or missing key, or a record that cannot be used.
    """
    if set(files) != set(LLAVA_FILES):
        raise DataError(
            f"`vision: llava` names {', '.join(files)}; it needs {', '.join(LLAVA_FILES)}"
        )
    paths = {name: root / file for name, file in files.items()}
    for name, path in paths.items():
        if not (path.is_dir() if name == "images" else path.is_file()):
            raise DataError(
                f"{path} is missing: it should be {LLAVA_FILES[name]}. Put it there, or change "
                f"`vision: llava: {name}` of the scale file; moxin_lab/vision/data.py describes "
                "the format"
            )
    captions, instructions = (
        load_llava(paths[name], paths["images"]) for name in ("align", "finetune")
    )
    return TrainingData(
        captions, instructions, images=lambda name: paths["images"] / name, has_features=False
    )
