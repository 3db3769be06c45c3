"""Adapter for lmms-eval 0.7.3: its command line evaluates a VLM saved by `hf.save`, without a fork.

    # Without the lock file this replaces packages of the project.
    uv pip install lmms-eval==0.7.3 -c requirements.lock
    FOLDER=runs/small/07_vision_language/vlm
    python -m lmms_eval --model moxin_vl --model_args pretrained=$FOLDER --tasks gqa
    python -m lmms_eval --model moxin_vl --force_simple --model_args pretrained=$FOLDER \\
        --tasks seedbench_ppl

`--force_simple` is for tasks that are scored by likelihood (output type `multiple_choice`), since
lmms-eval's chat models only generate. Both classes generate the same answers. For your own tasks
pass `--include_path` and a folder of YAML files.

pyproject.toml names `model_manifest` in the entry points `lmms_eval.models`. The classes are built
when they are first accessed, so importing this module does not need lmms-eval, which is not a
dependency of the project.

Guarantees: `generate_until` stops at the request's `until` strings, and refuses options that it
does not follow; `loglikelihood` is the sum over the tokens of the continuation, as in
`MoxinVLM.answer_log_likelihoods` but without eos. A placeholder `<image>` that a task puts at the
beginning or the end of a question with an image is taken out; anywhere else, and with whatever
other token it spells, a question is text.
Out of scope: video, audio, more than one image per question (all refused); batches.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from moxin_lab.vision.data import IMAGE_MARK
from moxin_lab.vision.prompts import PromptError, encode_prompt, tokenize

FOLLOWED_OPTIONS = ("until", "max_new_tokens", "do_sample", "temperature", "top_p")
NEUTRAL_OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "repetition_penalty": (None, 1, 1.0),
    "use_cache": (None, True),
    "image_aspect_ratio": (None, "original"),
}
"""Values of other options that ask for nothing; tasks of lmms-eval state some of them."""
IS_SIMPLE = {"MoxinVL": False, "MoxinVLSimple": True}
"""The two classes by lmms-eval's flag: whether requests carry a prompt and images, or messages."""


def model_manifest() -> Any:
    """The entry point. Raises ImportError where lmms-eval is not installed."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="moxin_vl",
        simple_class_path=f"{__name__}.MoxinVLSimple",
        chat_class_path=f"{__name__}.MoxinVL",
    )


def __getattr__(name: str) -> Any:
    if name not in IS_SIMPLE:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from lmms_eval.api.model import lmms

    adapter = globals()[name] = type(
        name,
        (LmmsAdapter, lmms),
        {"is_simple": IS_SIMPLE[name], "__module__": __name__, "__doc__": LmmsAdapter.__doc__},
    )
    return adapter


class Request(Protocol):
    """The part of `lmms_eval.api.instance.Instance` that is used."""

    args: tuple[Any, ...]


class LmmsAdapter:
    """The methods of lmms-eval's models. `task_dict` is set by its evaluator: task to split to
    documents.
    """

    task_dict: Any
    is_simple: bool

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        batch_size: int | str = 1,
        max_new_tokens: int = 128,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            raise ValueError(
                f"unknown model_args {', '.join(sorted(kwargs))}: known are pretrained, device, "
                "max_new_tokens"
            )
        if str(batch_size) != "1":
            raise ValueError(
                f"batch_size is {batch_size}: moxin_vl answers one question at a time, leave it "
                "at 1"
            )
        super().__init__()
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from moxin_lab.vision import hf  # noqa: F401 (registers the model type)

        # lmms-eval's evaluator reads `device` where several processes share a task.
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = AutoModelForImageTextToText.from_pretrained(pretrained).to(self.device).eval()
        self.processor = AutoProcessor.from_pretrained(pretrained)
        self._max_new_tokens = int(max_new_tokens)

    def generate_until(self, requests: list[Request]) -> list[str]:
        """One answer per request, see `_messages_and_options`."""
        answers = []
        for request in requests:
            messages, options = self._messages_and_options(request)
            _check_generation_options(options)
            inputs = self.processor.apply_chat_template(
                _plain_messages(messages), tokenize=True, return_dict=True
            ).to(self.device)
            temperature = float(options.get("temperature") or 0.0)
            ids = self.model.generate(
                **inputs,
                max_new_tokens=int(options.get("max_new_tokens") or self._max_new_tokens),
                do_sample=bool(options.get("do_sample", temperature > 0)) and temperature > 0,
                temperature=temperature or 1.0,
                top_p=float(options.get("top_p") or 1.0),
            )
            answer = self.processor.decode(
                ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            until = options.get("until") or []
            for stop in [until] if isinstance(until, str) else until:
                answer = answer.split(stop)[0] if stop else answer
            answers.append(answer.strip())
        return answers

    def _messages_and_options(
        self, request: Request
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Chat messages and generation options of a request.

        `request.args` are (context, options, doc_to_visual, doc_id, task, split) for a simple
        model, and (context, doc_to_messages, options, doc_id, task, split) for a chat model, whose
        messages contain the context.
        """
        context, second, third, doc_id, task, split = request.args
        document = self.task_dict[task][split][doc_id]
        if not self.is_simple:
            return second(document), third
        images = [{"type": "image", "url": image} for image in third(document) or []]
        return [{"role": "user", "content": [*images, {"type": "text", "text": context}]}], second

    @torch.no_grad()
    def loglikelihood(self, requests: list[Request]) -> list[Any]:
        """A `GenerationResult` per request, whose text is the pair (-log P(target | image, context)
        in nats, whether greedy decoding gives the target).

        `request.args` are (context, target or doc_to_target, doc_to_visual, doc_id, task, split).
        The sign is that of lmms-eval's own models, which return a loss: its `multiple_choice` takes
        the smallest. The evaluator turns any other return value into a string, a bare pair too.
        """
        from lmms_eval.api.instance import GenerationResult

        return [GenerationResult(text=self._loss(request)) for request in requests]

    def _loss(self, request: Request) -> tuple[float, bool]:
        context, doc_to_target, doc_to_visual, doc_id, task, split = request.args
        document = self.task_dict[task][split][doc_id]
        target = doc_to_target if isinstance(doc_to_target, str) else doc_to_target(document)
        images = list(doc_to_visual(document) or [])
        if len(images) > 1:
            raise PromptError(
                f"{task} {doc_id} has {len(images)} images; this model was trained with one"
            )
        tokenizer = self.processor.tokenizer
        prompt = encode_prompt(tokenizer, [], _without_placeholder(context) if images else context)
        answer = tokenize(tokenizer, str(target).strip())
        if not answer:
            raise PromptError(f"{task} {doc_id} has an empty target, which has no likelihood")
        pixels = dict(self.processor.image_processor(images).to(self.device)) if images else {}
        pixels = {name.removeprefix("pixel_values_"): values for name, values in pixels.items()}
        ids = torch.tensor([[*prompt, *answer]], device=self.device)
        logits = self.model.vlm(pixels or None, ids).logits[0, -len(answer) - 1 : -1]
        log_probabilities = logits.float().log_softmax(dim=-1)  # [answer tokens, V]
        targets = torch.tensor(answer, device=self.device)
        loss = -float(log_probabilities.gather(1, targets[:, None]).sum())
        return loss, bool((log_probabilities.argmax(dim=-1) == targets).all())

    def generate_until_multi_round(self, requests: list[Request]) -> list[str]:
        """Not supported. Raises NotImplementedError."""
        raise NotImplementedError(
            "moxin_vl answers single rounds; choose tasks of output type generate_until or "
            "multiple_choice"
        )


def _check_generation_options(options: Mapping[str, Any]) -> None:
    """Raises ValueError for options of a task that are not followed."""
    unknown = [
        f"{name}={value!r}"
        for name, value in sorted(options.items())
        if name not in FOLLOWED_OPTIONS and value not in NEUTRAL_OPTIONS.get(name, (None,))
    ]
    if unknown:
        raise ValueError(
            f"moxin_vl does not follow {', '.join(unknown)}: remove it from the task's "
            "generation_kwargs"
        )


def _plain_messages(raw: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """lmms-eval's messages in the form of the processor, which refuses video and audio."""
    contents = [
        [{"type": "text", "text": message["content"]}]
        if isinstance(message["content"], str)
        else message["content"]
        for message in raw
    ]
    has_image = any(part["type"] == "image" for parts in contents for part in parts)
    messages = []
    for message, parts in zip(raw, contents, strict=True):
        plain = []
        for part in parts:
            if part["type"] == "image":
                part = {"type": "image", "image": part.get("url", part.get("image"))}
            elif part["type"] == "text" and has_image:
                part = {"type": "text", "text": _without_placeholder(part["text"])}
            plain.append(part)
        messages.append({"role": message["role"], "content": plain})
    return messages


def _without_placeholder(text: str) -> str:
    """A question without the placeholder that a task put before or after it."""
    text = text.strip()
    if text.startswith(IMAGE_MARK):
        return text.removeprefix(IMAGE_MARK)
    return text.removesuffix(IMAGE_MARK)
