"""Text and images to the inputs of `hf.MoxinVLForConditionalGeneration`.

    processor = AutoProcessor.from_pretrained(folder)      # after `import moxin_lab.vision.hf`
    inputs = processor.apply_chat_template(                # a path, a PIL image, a data: URI, ...
        [{"role": "user", "content": [{"type": "image", "image": image},
                                      {"type": "text", "text": "What is this?"}]}],
        tokenize=True, return_dict=True)
    text = processor.apply_chat_template(messages)         # or in two steps
    inputs = processor(text=text, images=[image])
    prefix = processor(text=processor.prompt("What is this?"), images=[image])

There are two equivalent modes. With placeholders, as in LLaVA, the text is
"<s><image>In: ...\\nOut: ", and `<image>` is expanded to one placeholder per patch. In prefix mode,
as in Prismatic, the text has no placeholder, and the model inserts the patches after bos.

Guarantees: both modes tokenise as training does, whatever a message says: `</s>`, `<image>` or a
line `Out: ` in a message of `apply_chat_template` or `prompt` is text, which is why they put an
escape character (ESCAPE) into it. What has no place in a prompt is refused.
Out of scope: an image anywhere but right after bos, where training had it (refused). A string that
is written by hand is markup: put no user's text into one.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jinja2 import TemplateError
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from moxin_lab.scales.sections import TowerSettings
from moxin_lab.vision.data import IMAGE_MARK
from moxin_lab.vision.pixels import prepare_images
from moxin_lab.vision.prompts import PromptError, format_question, tokenize

ESCAPE = "\x10"
"""Data link escape: removed before tokenising; two stand for one that the text itself has."""
OUT_MARK = "\nOut: "
IMAGE_KEYS = ("image", "url", "path", "base64")
"""Names of an image's source in a message, as in transformers."""
MEDIA = ("videos", "audio")  # which transformers passes on, empty
TRUNCATIONS = (True, False, None, "longest_first", "only_first", "do_not_truncate")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    # All images come first: patches follow bos wherever a message names its image.
    "{%- for message in messages if message.content is not string -%}"
    "{%- for part in message.content if part.type == 'image' -%}<image>{%- endfor -%}{%- endfor -%}"
    "{%- for message in messages -%}"
    "{%- if message.role != ('assistant' if loop.index0 % 2 else 'user') -%}"
    "{{ raise_exception('message ' ~ loop.index0 ~ ' is of the role ' ~ message.role"
    " ~ ': user and assistant alternate in this prompt') }}{%- endif -%}"
    "{%- set words = namespace(text='') -%}"
    "{%- if message.content is string -%}{%- set words.text = message.content -%}{%- else -%}"
    "{%- for part in message.content if part.type != 'image' -%}"
    "{%- if part.type != 'text' -%}"
    "{{ raise_exception('message ' ~ loop.index0 ~ ' has a part of type ' ~ part.type) }}"
    "{%- endif -%}"
    "{%- set words.text = words.text + part.text -%}{%- endfor -%}"
    "{%- endif -%}"
    "{%- if message.role == 'user' -%}{{ 'In: ' + words.text.strip() + '\\nOut: ' }}"
    "{%- else -%}{{ words.text.strip() + eos_token }}{%- endif -%}"
    "{%- endfor -%}"
)


class MoxinVLImageProcessor(BaseImageProcessor):
    """Images to `pixel_values_dino` and `pixel_values_siglip`, float32 [B, 3, S, S], by
    `pixels.prepare_images`. The arguments are fields of `TowerSettings`.
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

    def __call__(
        self, images: Any, return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """images: one, or a list of them, nested or not. Raises ImageError, and PromptError for an
        option that is not followed.
        """
        if kwargs:
            raise PromptError(f"the image processor does not know {', '.join(sorted(kwargs))}")
        settings = TowerSettings.model_validate(
            {"image_size": self.image_size, "resize": self.resize_how, "which": self.which}
        )
        pixels = prepare_images(_flat_images(images, None)[0], settings)
        return BatchFeature(
            {f"pixel_values_{name}": values for name, values in pixels.items()},
            tensor_type=_tensor_type(return_tensors),
        )

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
        tokenizer.padding_side = "left"  # the default here, which users change at the tokenizer
        self.num_patches = num_patches
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_MARK)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def prompt(self, text: str) -> str:
        """The prompt of one question without placeholder (prefix mode)."""
        return self.tokenizer.bos_token + format_question(self._escape(text))

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, for one conversation or a list of them, with every message read as
        text (`sanitize_control_tokens` changes nothing).

        A message is `{"role", "content"}`, content a text or a list of parts `{"type": "text",
        "text"}` and `{"type": "image", "image" | "url" | "path" | "base64"}`; user and assistant
        alternate. A last user message is always followed by `Out: `. Raises PromptError for
        anything else.
        """
        kwargs.pop("sanitize_control_tokens", None)
        for name in (
            "tools",
            "documents",
            "continue_final_message",
            "return_assistant_tokens_mask",
        ):
            if kwargs.get(name):
                raise PromptError(f"{name} has no place in this prompt: leave it out")
        if not isinstance(conversation, list | tuple) or not conversation:
            raise PromptError(
                f"a conversation is a list of messages, not {str(conversation)[:60]!r}"
            )
        if isinstance(conversation[0], list | tuple):
            checked: Any = [self._check_messages(messages) for messages in conversation]
        else:
            checked = self._check_messages(conversation)
        try:
            return super().apply_chat_template(checked, *args, **kwargs)
        except TemplateError as error:
            raise PromptError(str(error)) from error

    def _check_messages(self, conversation: Sequence[Any]) -> list[dict[str, Any]]:
        """The messages with their text escaped. Raises PromptError."""
        if not isinstance(conversation, list | tuple) or not conversation:
            raise PromptError(
                f"a conversation is a list of messages, not {str(conversation)[:60]!r}"
            )
        messages = []
        for position, message in enumerate(conversation):
            where = f"message {position}"
            if not isinstance(message, Mapping) or message.get("content") is None:
                raise PromptError(
                    f"{where} is {str(message)[:60]!r}: it needs a role and a content"
                )
            role = "assistant" if position % 2 else "user"
            if message.get("role") != role:
                raise PromptError(
                    f"{where} is of the role {str(message.get('role'))[:60]!r} where {role} is "
                    "due: this prompt has user and assistant in turn, and no system message"
                )
            _check_keys(message, ("role", "content"), where)
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if not isinstance(parts, list | tuple):
                raise PromptError(
                    f"{where} has a content of type {type(content).__name__}: it is a text or a "
                    "list of parts"
                )
            checked = [self._check_part(part, role, where) for part in parts]
            if role == "assistant" and not "".join(part["text"] for part in checked).strip():
                raise PromptError(f"{where} (assistant) is empty, which no answer in training was")
            messages.append({"role": role, "content": checked})
        return messages

    def _check_part(self, part: Any, role: str, where: str) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            _check_keys(part, ("type", "text"), where)
            return {"type": "text", "text": self._escape(part["text"])}
        if kind == "image_url" and role == "user":
            _check_keys(part, ("type", "image_url"), where)
            address = part.get("image_url")
            address = address.get("url") if isinstance(address, Mapping) else address
            return {"type": "image", "url": address}
        if kind == "image" and role == "user":
            _check_keys(part, ("type", *IMAGE_KEYS), where)
            if len(sources := [part[key] for key in IMAGE_KEYS if part.get(key) is not None]) > 1:
                raise PromptError(f"{where} names one image in {len(sources)} ways")
            if part.get("base64") is not None:
                sources = [f"data:image;base64,{part['base64']}"]
            return {"type": "image", **({"image": sources[0]} if sources else {})}
        raise PromptError(
            f"{where} ({role}) has the part {str(part)[:60]!r}: known are "
            '{"type": "text", "text": ...} and, of a user, {"type": "image", "image": ...}'
        )

    def _escape(self, text: str) -> str:
        """The text with an escape character in everything that `__call__` reads as markup."""
        text = text.replace(ESCAPE, ESCAPE * 2)
        for mark in (self.tokenizer.bos_token, self.tokenizer.eos_token, IMAGE_MARK, OUT_MARK):
            text = text.replace(mark, mark[0] + ESCAPE + mark[1:])
        return text

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = True,
        add_special_tokens: bool | None = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """input_ids and, unless return_attention_mask is False, attention_mask, int64 [B, T];
        pixels; has_image, bool [B].

        A text has at most one image: the texts with `<image>` have one, or every text if none has a
        placeholder. images: in the order of the texts, or a list per text.

        return_tensors: `pt`, `np`, or None for lists. padding: True or `longest`, `max_length`, or
        False; padding_side: the tokenizer's unless stated, which is `left` in a new or loaded
        processor. truncation: True (or `longest_first`, `only_first`, which are the same for one
        text) cuts to max_length at the tokenizer's truncation_side, but never bos and the image;
        False, None and `do_not_truncate` do not. add_special_tokens: bos, where a text does not
        begin with it. Raises PromptError for any other option or number of images, for `<image>`
        anywhere but at the beginning, and for a row that would have no bos, which training never
        had.
        """
        if unknown := [name for name in kwargs if name not in MEDIA or kwargs[name]]:
            raise PromptError(f"the processor does not know {', '.join(sorted(unknown))}")
        if text is None:
            raise PromptError(
                "a prompt is needed: "
                "processor(text=processor.prompt('What is this?'), images=[image])"
            )
        if truncation not in TRUNCATIONS:
            raise PromptError(
                f"truncation is {truncation!r}: known are {', '.join(map(repr, TRUNCATIONS))}"
            )
        is_cut = truncation not in (False, None, "do_not_truncate")
        if max_length is not None and not is_cut and padding != "max_length":
            raise PromptError(
                f"max_length {max_length} does nothing by itself: add truncation=True to cut rows "
                "to it, or padding='max_length' to fill them up to it"
            )
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(prompt, str) for prompt in texts):
            raise PromptError("text is a prompt or a list of at least one, each a string")
        marks = [prompt.count(IMAGE_MARK) for prompt in texts]
        pictures, given = _flat_images(images, len(texts))
        has_image = [bool(mark) for mark in marks] if any(marks) else [bool(pictures)] * len(texts)
        if (
            sum(has_image) != len(pictures)
            or max(marks) > 1
            or (given is not None and any(marks) and given != [int(has) for has in has_image])
        ):
            raise PromptError(
                f"{len(pictures)} images for {len(texts)} texts with {sum(marks)} {IMAGE_MARK}: "
                "at most one image per text"
            )
        rows = []
        for prompt, mark in zip(texts, marks, strict=True):
            body = prompt.removeprefix(self.tokenizer.bos_token)
            if add_special_tokens is False and not prompt.startswith(self.tokenizer.bos_token):
                raise PromptError(
                    f"{prompt[:60]!r} does not begin with {self.tokenizer.bos_token}, and "
                    "add_special_tokens=False adds none: this model never saw a text without it"
                )
            if mark and not body.startswith(IMAGE_MARK):
                raise PromptError(
                    f"{IMAGE_MARK} must be right at the beginning of {prompt[:60]!r}, where "
                    "training had it"
                )
            head = [self.tokenizer.bos_token_id] + [self.image_token_id] * (self.num_patches * mark)
            tail = self._turns(body.removeprefix(IMAGE_MARK))
            if is_cut:
                tail = self._truncate(tail, len(head), max_length)
            rows.append(head + tail)
        inputs = self._pad(rows, padding, padding_side or self.tokenizer.padding_side, max_length)
        if return_tensors is not None and len({len(row) for row in inputs["input_ids"]}) > 1:
            raise PromptError(
                "rows of unequal lengths make no tensor: leave padding on, or return_tensors=None"
            )
        if return_attention_mask is False:
            del inputs["attention_mask"]
        inputs["has_image"] = has_image
        if pictures:
            inputs |= dict(self.image_processor(pictures))
        return BatchFeature(inputs, tensor_type=_tensor_type(return_tensors))

    def _turns(self, body: str) -> list[int]:
        """Token ids of a conversation, each question and each answer tokenised separately, as in
        training.
        """
        turns = body.split(self.tokenizer.eos_token)
        ids: list[int] = []
        for index, turn in enumerate(turns):
            question, mark, answer = turn.partition(OUT_MARK)
            ids += tokenize(self.tokenizer, _unescape(question + mark))
            ids += tokenize(self.tokenizer, _unescape(answer))
            if index < len(turns) - 1:
                ids.append(self.tokenizer.eos_token_id)
        return ids

    def _truncate(self, tail: list[int], head: int, max_length: int | None) -> list[int]:
        """The tokens after bos and image, cut so that all are at most `max_length`."""
        if max_length is None or max_length <= head:
            raise PromptError(
                f"truncation to max_length {max_length} leaves no text: bos and image are {head} "
                "tokens"
            )
        room = max_length - head
        return tail[-room:] if self.tokenizer.truncation_side == "left" else tail[:room]

    def _pad(
        self, rows: list[list[int]], padding: bool | str, side: str, max_length: int | None
    ) -> dict[str, Any]:
        """input_ids and attention_mask as lists [B][T]."""
        if padding not in (True, False, "longest", "max_length", "do_not_pad"):
            raise PromptError(
                f"padding is {padding!r}: known are True, longest, max_length and False"
            )
        if side not in ("left", "right"):
            raise PromptError(f"padding_side is {side!r}: known are left and right")
        width = max(map(len, rows))
        if padding == "max_length":
            if max_length is None or max_length < width:
                raise PromptError(
                    f"padding to max_length {max_length}: the longest row has {width} tokens"
                )
            width = max_length
        pad = self.tokenizer.pad_token_id or 0
        ids, mask = [], []
        for row in rows:
            empty = 0 if padding in (False, "do_not_pad") else width - len(row)
            before, after = (empty, 0) if side == "left" else (0, empty)
            ids.append([pad] * before + row + [pad] * after)
            mask.append([0] * before + [1] * len(row) + [0] * after)
        return {"input_ids": ids, "attention_mask": mask}

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "has_image", *self.image_processor.model_input_names]


def _check_keys(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raises PromptError for a key that would be dropped in silence."""
    unknown = sorted(
        str(key) for key, value in values.items() if key not in known and value is not None
    )
    if unknown:
        raise PromptError(f"{where} has {', '.join(unknown)}, which is not read")


def _unescape(text: str) -> str:
    return re.sub(f"{ESCAPE}({ESCAPE}?)", r"\1", text)


def _tensor_type(name: str | None) -> str | None:
    if name not in ("pt", "np", None):
        raise PromptError(f"return_tensors is {name!r}: known are pt, np and None")
    return name


def _flat_images(images: Any, num_texts: int | None) -> tuple[list[Any], list[int] | None]:
    """The images in order, and how many each text was given if they came in a list per text."""
    if images is None:
        return [], None
    if not isinstance(images, list | tuple):
        return [images], None
    if not any(isinstance(image, list | tuple) for image in images):
        return list(images), None
    nested = [list(own) if isinstance(own, list | tuple) else [own] for own in images]
    if num_texts is not None and len(nested) != num_texts:
        raise PromptError(f"{len(nested)} lists of images for {num_texts} texts: one list per text")
    return [image for own in nested for image in own], [len(own) for own in nested]
