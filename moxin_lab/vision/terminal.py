"""`moxin-lab chat --image FILE`: a conversation about one image in the terminal.

Guarantees: the image is read before the model, so that a wrong file costs nothing; end of input or
an empty line ends it.
Out of scope: shortening a conversation that fills the model's positions; the model's error says so.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moxin_lab.lab.artifacts import LabError, read_json
from moxin_lab.vision.images import open_image

MODEL_TYPE = "moxin_vl"
"""What the `config.json` of `hf.save` says."""


def find_model(root: Path, scale: str) -> Path:
    """The folder below `runs/<scale>/07_vision_language` that `hf.save` wrote. Raises
    FileNotFoundError with the command that creates it.
    """
    stage = root / "runs" / scale / "07_vision_language"
    folders = sorted(path.parent for path in stage.glob("**/processor_config.json"))
    if not folders:
        raise FileNotFoundError(
            f"{stage} has no model: run `moxin-lab run --scale {scale} --only 07`, or name a "
            "folder with --model"
        )
    return folders[0]


def _refuse_other_models(folder: Path) -> None:
    """Raises LabError unless `folder` holds a vision-language model of this lab: transformers would
    answer with the names of all classes that it knows.
    """
    remedy = (
        "give --model a folder that moxin_lab.vision.hf.save wrote, such as "
        "runs/<scale>/07_vision_language/vlm"
    )
    file = folder / "config.json"
    if not file.is_file():
        raise LabError(f"{folder} has no config.json, so it is not a model; {remedy}")
    config = read_json(file, remedy)
    kind = config.get("model_type", "unknown") if isinstance(config, dict) else "unknown"
    if kind != MODEL_TYPE:
        raise LabError(
            f"{folder} is a model of type {kind!r}; a conversation about an image needs a "
            f"vision-language model of type {MODEL_TYPE!r}: {remedy}"
        )
    if not (folder / "processor_config.json").is_file():
        raise LabError(f"{folder} has no processor_config.json to prepare images with; {remedy}")


def chat(
    folder: Path,
    image: str | Path,
    *,
    question: str | None = None,
    max_new_tokens: int = 64,
    read: Callable[[str], str] = input,
    write: Callable[[str], Any] = print,
) -> int:
    """Answer `question`, or questions that are read until an empty line. Returns the exit code 0.
    Raises ImageError, FileNotFoundError, and the errors of loading a model.
    """
    picture = open_image(image)
    _refuse_other_models(folder)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from moxin_lab.vision import hf  # noqa: F401 (registers the model type)

    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    model.eval()
    messages: list[dict[str, Any]] = []
    while True:
        if question is None:
            try:
                text = read("In: ").strip()
            except EOFError:
                text = ""
            if not text:
                return 0
        else:
            text = question
        image_part = [] if messages else [{"type": "image"}]  # the first message has the image
        messages.append({"role": "user", "content": [*image_part, {"type": "text", "text": text}]})
        inputs = processor(text=processor.apply_chat_template(messages), images=[picture])
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens)[
            0, inputs["input_ids"].shape[1] :
        ]
        answer = processor.decode(ids, skip_special_tokens=True).strip()
        write(f"Out: {answer}")
        sys.stdout.flush()
        if question is not None:
            return 0
        messages.append({"role": "assistant", "content": answer})
