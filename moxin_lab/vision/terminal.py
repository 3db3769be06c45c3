"""`moxin-lab chat --image FILE`: a conversation about one image in the terminal.

Guarantees: the image is read before the model, so that a wrong file costs nothing; end of input or
an empty line ends it.
Does not: forget: when the conversation fills the model's positions, the model's own error says so.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moxin_lab.vision.images import open_image


def find_model(root: Path, scale: str) -> Path:
    """The folder below `runs/<scale>/07_vision_language` that `hf.save` wrote. Raises
    FileNotFoundError saying how to make it.
    """
    stage = root / "runs" / scale / "07_vision_language"
    found = sorted(path.parent for path in stage.glob("**/processor_config.json"))
    if not found:
        raise FileNotFoundError(
            f"{stage} has no model: run `moxin-lab run --scale {scale} --only 07`, or name a folder with --model"
        )
    return found[0]


def chat(
    folder: Path,
    image: str | Path,
    *,
    question: str | None = None,
    max_new_tokens: int = 64,
    read: Callable[[str], str] = input,
    write: Callable[[str], Any] = print,
) -> int:
    """Ask `question`, or read questions until an empty line. Raises ImageError, and what loading
    raises.
    """
    picture = open_image(image)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json: give a folder that moxin_lab.vision.hf.save wrote"
        )
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
                asked = read("In: ").strip()
            except EOFError:
                asked = ""
            if not asked:
                return 0
        else:
            asked = question
        picture_part = [] if messages else [{"type": "image"}]
        messages.append(
            {"role": "user", "content": [*picture_part, {"type": "text", "text": asked}]}
        )
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
