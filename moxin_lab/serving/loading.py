"""A model folder as the server needs it, and messages as its prompt.

    served = load(folder)                    # a language model, or a vision-language model
    prompt = served.chat_prompt([{"role": "user", "content": "Why?"}], image=None)

Guarantees: only safetensors are read, which cannot run code; no text of a message or a prompt
becomes a control token or a turn of its own (`posttraining.prompts`, `vision.prompts`).
Out of scope: when a prompt runs (`scheduler.py`), opening images (`vision.images`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from moxin_lab.lab.artifacts import LabError
from moxin_lab.model import convert, generation_config, plain_text
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.generate import end_ids
from moxin_lab.posttraining.prompts import ChatError, encode_prompt
from moxin_lab.serving import terminal
from moxin_lab.vision import prompts
from moxin_lab.vision.vlm import MoxinVLM

Message = dict[str, str]


class PromptError(ValueError):
    """Messages that cannot become a prompt of this model; the message says why."""


@dataclass(frozen=True)
class Prompt:
    """ids: one per token, and one placeholder per image patch. embed: makes [1, T, C] of them on
    the model's thread; None: they are all tokens.
    """

    ids: list[int]
    embed: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Served:
    """A loaded model. end_ids: tokens that end a text. vlm, processor: of a model that sees."""

    name: str
    model: MoxinForCausalLM
    tokenizer: Any
    end_ids: frozenset[int]
    vlm: MoxinVLM | None = None
    processor: Any = None

    @property
    def patch_ids(self) -> frozenset[int]:
        """The placeholder of image patches."""
        return frozenset() if self.processor is None else frozenset({self.processor.image_token_id})

    @cached_property
    def longest_piece(self) -> int:
        """Characters of the longest token, at least: how far a text's tokens can be fewer."""
        return max(map(len, self.tokenizer.get_vocab()))

    def text_prompt(self, text: str) -> list[int]:
        """Token ids of a text that is continued, with what the tokenizer begins a text with. A bos
        token that the text itself spells at its beginning is not doubled; any other control token
        in it is text.
        """
        bos, rest = self.tokenizer.bos_token, text
        if bos and text.startswith(bos):
            rest = text[len(bos) :]
        try:
            ids = plain_text.encode(self.tokenizer, rest, add_special_tokens=True)
        except plain_text.ControlTokenError as error:
            raise PromptError(str(error)) from error
        if rest is not text and ids[:1] != [self.tokenizer.bos_token_id]:
            ids = [self.tokenizer.bos_token_id, *ids]
        return ids

    def chat_prompt(self, messages: Sequence[Message], image: Image | None) -> Prompt:
        """The prompt of a conversation that ends with a user's message; or, where it ends with the
        assistant's, that prompt followed by this answer and its end token. Raises PromptError.
        """
        answer = None
        if messages[-1]["role"] == "assistant":
            messages, answer = messages[:-1], messages[-1]["content"]
        prompt = (
            self._text_chat(messages, image) if self.vlm is None else self._seen(messages, image)
        )
        if answer is not None:
            prompt.ids.extend(prompts.tokenize(self.tokenizer, answer))
            prompt.ids.append(self.tokenizer.eos_token_id)
        return prompt

    def _text_chat(self, messages: Sequence[Message], image: Image | None) -> Prompt:
        if image is not None:
            raise PromptError(f"the model {self.name} sees no images")
        if not self.tokenizer.chat_template:
            raise PromptError(
                f"the model {self.name} has no chat template: use /v1/completions instead"
            )
        try:
            return Prompt(list(encode_prompt(messages, self.tokenizer)))
        except ChatError as error:
            raise PromptError(str(error)) from error

    def _seen(self, messages: Sequence[Message], image: Image | None) -> Prompt:
        """A conversation about an image, or without one, in the form that stage 07 trains."""
        assert self.vlm is not None
        if len(messages) % 2 == 0 or any(
            message["role"] != ("assistant" if place % 2 else "user")
            for place, message in enumerate(messages)
        ):
            raise PromptError(
                "the prompt of this vision-language model has user and assistant messages in turn, "
                "a user's first and last, and no system message"
            )
        texts = [message["content"] for message in messages]
        turns = list(zip(texts[:-1:2], texts[1::2], strict=True))
        text_ids = prompts.encode_prompt(self.tokenizer, turns, texts[-1])
        if image is None:
            return Prompt(text_ids)
        pixels = dict(self.processor.image_processor([image]))
        patches = [self.processor.image_token_id] * self.vlm.towers.num_patches
        ids = [text_ids[0], *patches, *text_ids[1:]]
        vlm = self.vlm

        def embed() -> Tensor:
            # Of all ids but the patches', so that an answer that was added is there too.
            tokens = torch.tensor([[ids[0], *ids[1 + len(patches) :]]], device=vlm.device)
            values = {
                name.removeprefix("pixel_values_"): value.to(vlm.device)
                for name, value in pixels.items()
            }
            return vlm.join(tokens, vlm.image_features(values)).embeddings

        return Prompt(ids, embed)


def load(folder: Path, *, name: str | None = None, device: str | None = None) -> Served:
    """Load a folder: bfloat16 on a GPU, float32 on the CPU. name: what clients call the model
    (default: the folder's name). How to sample is each request's. Raises LabError for a folder that
    holds no model to serve, or whose generation_config.json asks for what the server does not do.
    """
    kind = terminal.model_type(folder)
    generation_config.check(folder)
    device = device or convert.best_device()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    name = name or folder.resolve().name
    with terminal.silenced():
        try:
            if kind == terminal.VISION_TYPE:
                return _load_vision(folder, name, device, dtype)
            from transformers import AutoTokenizer

            model = convert.from_pretrained(folder, dtype=dtype, device=device)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise LabError(str(error)) from error
    plain_text.check_vocabulary(tokenizer, model.config.vocab_size, folder)
    return Served(name, model.requires_grad_(False), tokenizer, end_ids(model, tokenizer, folder))


def _load_vision(folder: Path, name: str, device: str, dtype: torch.dtype) -> Served:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from moxin_lab.vision import hf  # noqa: F401 (registers the model type)

    vlm = AutoModelForImageTextToText.from_pretrained(folder).vlm.to(device, dtype).eval()
    processor = AutoProcessor.from_pretrained(folder)
    model = vlm.requires_grad_(False).decoder
    ends = end_ids(model, processor.tokenizer, folder)
    return Served(name, model, processor.tokenizer, ends, vlm, processor)
