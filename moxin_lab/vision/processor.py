"""Text and images to the inputs of `hf.MoxinVLForConditionalGeneration`.

    processor = AutoProcessor.from_pretrained(folder)      # after `import moxin_lab.vision.hf`
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=text, images=[image], return_tensors="pt")
    prefix = processor(text=processor.prompt("What is this?"), images=[image])

There are two equivalent modes. With placeholders, as in LLaVA, the text is
"<s><image>In: ...\\nOut: ", and `<image>` is expanded to one placeholder per patch. In prefix mode,
as in Prismatic, the text has no placeholder, and the model inserts the patches after bos.

Guarantees: both modes tokenise as training does.
Out of scope: an image anywhere but right after bos, where training had it (refused).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from moxin_lab.scales.sections import TowerSettings
from moxin_lab.vision.data import IMAGE_MARK
from moxin_lab.vision.images import prepare_images
from moxin_lab.vision.prompts import PromptError, format_question

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    # All images come first: patches follow bos wherever a message names its image.
    "{%- for message in messages if message.content is not string -%}"
    "{%- for part in message.content if part.type == 'image' -%}<image>{%- endfor -%}{%- endfor -%}"
    "{%- for message in messages -%}"
    "{%- if message.role not in ('user', 'assistant') -%}"
    "{{ raise_exception('a ' + message.role + ' message has no place in this prompt: In and Out"
    " alternate') }}{%- endif -%}"
    "{%- set words = namespace(text='') -%}"
    "{%- if message.content is string -%}{%- set words.text = message.content -%}{%- else -%}"
    "{%- for part in message.content if part.type == 'text' -%}"
    "{%- set words.text = words.text + part.text -%}{%- endfor -%}"
    "{%- endif -%}"
    "{%- if message.role == 'user' -%}{{ 'In: ' + words.text.strip() + '\\nOut: ' }}"
    "{%- else -%}{{ words.text.strip() + eos_token }}{%- endif -%}"
    "{%- endfor -%}"
)


class MoxinVLImageProcessor(BaseImageProcessor):
    """Images to `pixel_values_dino` and `pixel_values_siglip`, float32 [B, 3, S, S], by
    `images.prepare_images`. The arguments are fields of `TowerSettings`.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values_dino", "pixel_values_siglip"]

    def __init__(
        self,
        image_size: int = 224,
        resize: str = "naive",
        which: Sequence[str] = ("dino", "siglip"),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size, self.resize_how, self.which = image_size, resize, list(which)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        values["resize"] = values.pop("resize_how")
        return values

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        settings = TowerSettings.model_validate(
            {"image_size": self.image_size, "resize": self.resize_how, "which": self.which}
        )
        images = images if isinstance(images, list | tuple) else [images]
        pixels = prepare_images(images, settings)
        return BatchFeature({f"pixel_values_{name}": values for name, values in pixels.items()})

    preprocess = __call__


class MoxinVLProcessor(ProcessorMixin):
    """A tokenizer and an image processor. An image is `num_patches` placeholders in the text."""

    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_patches: int = 256,
        chat_template: str | None = None,
    ) -> None:
        if tokenizer.convert_tokens_to_ids(IMAGE_MARK) in (None, tokenizer.unk_token_id):
            tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_MARK]})
        self.num_patches = num_patches
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_MARK)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def prompt(self, text: str) -> str:
        """The prompt of one question without placeholder (prefix mode)."""
        return self.tokenizer.bos_token + format_question(text)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """input_ids and attention_mask, int64 [B, T], padded on the left; pixels; has_image,
        bool [B].

        A text has at most one image: the texts with `<image>` have one, or every text if none has a
        placeholder. Raises PromptError for any other number of images, and for `<image>` anywhere
        but at the beginning.
        """
        if text is None:
            raise PromptError(
                "a prompt is needed: "
                "processor(text=processor.prompt('What is this?'), images=[image])"
            )
        texts = [text] if isinstance(text, str) else list(text)
        images = (
            [] if images is None else list(images) if isinstance(images, list | tuple) else [images]
        )
        marks = [prompt.count(IMAGE_MARK) for prompt in texts]
        has_image = [bool(mark) for mark in marks] if any(marks) else [bool(images)] * len(texts)
        if sum(has_image) != len(images) or max(marks) > 1:
            raise PromptError(
                f"{len(images)} images for {len(texts)} texts with {sum(marks)} {IMAGE_MARK}: "
                "at most one image per text"
            )
        bos = self.tokenizer.bos_token
        rows = []
        for prompt, mark in zip(texts, marks, strict=True):
            body = prompt.removeprefix(bos)
            if mark and not body.startswith(IMAGE_MARK):
                raise PromptError(
                    f"{IMAGE_MARK} must be right at the beginning of {prompt[:60]!r}, where "
                    "training had it"
                )
            body = body.removeprefix(IMAGE_MARK)
            rows.append(
                [self.tokenizer.bos_token_id]
                + [self.image_token_id] * (self.num_patches * mark)
                + self._turns(body)
            )
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        inputs = {"input_ids": ids, "attention_mask": mask, "has_image": torch.tensor(has_image)}
        if images:
            inputs |= dict(self.image_processor(images))
        return BatchFeature(inputs)

    def _turns(self, body: str) -> list[int]:
        """Token ids of a conversation, each question and each answer tokenised separately, as in
        training.
        """
        ids: list[int] = []
        for index, turn in enumerate(body.split(self.tokenizer.eos_token)):
            if index:
                ids.append(self.tokenizer.eos_token_id)
            question, mark, answer = turn.partition("\nOut: ")
            for part in (question + mark, answer):
                if part:
                    ids += self.tokenizer(part, add_special_tokens=False)["input_ids"]
        return ids

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "has_image", *self.image_processor.model_input_names]
