"""lmms-eval's entry point: its own command evaluates a VLM saved by `hf.save`, with no fork of
theirs. Run with lmms-eval 0.7.3.

    uv pip install lmms-eval==0.7.3 -c requirements.lock        # without the lock it replaces packages of ours
    python -m lmms_eval --model moxin_vl --model_args pretrained=runs/small/07_vision_language/vlm --tasks gqa
    python -m lmms_eval --model moxin_vl --force_simple --model_args pretrained=FOLDER --tasks seedbench_ppl

`--force_simple` is for tasks that are scored by likelihood (their output type `multiple_choice`):
their chat models write answers, and nothing else. Both classes write the same answers. Tasks of
one's own: `--include_path` and a folder of YAML files.

pyproject names `model_manifest` in the group `lmms_eval.models`. The classes are built when they
are asked for, so importing this module needs no lmms-eval, which is not among the project's
dependencies.

Guarantees: `generate_until` stops at their `until` words; `loglikelihood` is the sum over the
continuation's tokens, as `MoxinVLM.answer_log_likelihoods`, without an end token, since theirs is a
continuation. Does not: read video or audio, or more than one image a question (refused); answer
several questions at once.
"""

from typing import Any

import torch

from moxin_lab.vision.data import IMAGE_MARK
from moxin_lab.vision.prompts import PromptError, encode_prompt, tokens

IS_SIMPLE = {"MoxinVL": False, "MoxinVLSimple": True}
"""The two classes by lmms-eval's flag: whether requests carry a prompt and images, or messages."""


def model_manifest() -> Any:
    """What the entry point returns. Raises ImportError where lmms-eval is not installed."""
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

    found = globals()[name] = type(
        name,
        (Answering, lmms),
        {"is_simple": IS_SIMPLE[name], "__module__": __name__, "__doc__": Answering.__doc__},
    )
    return found


class Answering:
    """The methods of lmms-eval's model; `task_dict` is set by its evaluator: task, split, number to
    a document.
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
                f"unknown model_args {', '.join(sorted(kwargs))}: known are pretrained, device, max_new_tokens"
            )
        if str(batch_size) != "1":
            raise ValueError(
                f"batch_size is {batch_size}: moxin_vl answers one question at a time, leave it at 1"
            )
        super().__init__()
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from moxin_lab.vision import hf  # noqa: F401 (registers the model type)

        # Their evaluator reads the name `device` where several processes share a task.
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = AutoModelForImageTextToText.from_pretrained(pretrained).to(self.device).eval()
        self.processor = AutoProcessor.from_pretrained(pretrained)
        self._max_new_tokens = int(max_new_tokens)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """One answer a request; see `_asked` for what a request carries."""
        answers = []
        for request in requests:
            messages, options = self._asked(request)
            messages, images = _plain_messages(messages)
            text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
            inputs = self.processor(text=text, images=images or None).to(self.device)
            temperature = float(options.get("temperature") or 0.0)
            made = self.model.generate(
                **inputs,
                max_new_tokens=int(options.get("max_new_tokens") or self._max_new_tokens),
                do_sample=bool(options.get("do_sample", temperature > 0)) and temperature > 0,
                temperature=temperature or 1.0,
                top_p=float(options.get("top_p") or 1.0),
            )
            answer = self.processor.decode(
                made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            until = options.get("until") or []
            for stop in [until] if isinstance(until, str) else until:
                answer = answer.split(stop)[0] if stop else answer
            answers.append(answer.strip())
        return answers

    def _asked(self, request: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Messages and options. `.args` are (context, options, doc_to_visual, doc_id, task, split)
        for a simple model, and (context, doc_to_messages, options, doc_id, task, split) for a chat
        model, whose messages hold the context.
        """
        context, second, third, number, task, split = request.args
        document = self.task_dict[task][split][number]
        if not self.is_simple:
            return second(document), third
        images = [{"type": "image", "url": image} for image in third(document) or []]
        return [{"role": "user", "content": [*images, {"type": "text", "text": context}]}], second

    @torch.no_grad()
    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """(-log P(target | image, context), whether greedy decoding would say it), each in their
        `GenerationResult`; `.args` are (context, target or doc_to_target, doc_to_visual, doc_id,
        task, split).

        The sign is that of their own models, which return a loss: their `multiple_choice` takes the
        smallest. A bare pair would reach it as text, for the evaluator passes on nothing but
        answers as they are.
        """
        from lmms_eval.api.instance import GenerationResult

        return [GenerationResult(text=self._loss(request)) for request in requests]

    def _loss(self, request: Any) -> tuple[float, bool]:
        context, doc_to_target, doc_to_visual, number, task, split = request.args
        document = self.task_dict[task][split][number]
        target = doc_to_target if isinstance(doc_to_target, str) else doc_to_target(document)
        images = list(doc_to_visual(document) or [])
        if len(images) > 1:
            raise PromptError(
                f"{task} {number} has {len(images)} images; this model was trained with one"
            )
        tokenizer = self.processor.tokenizer
        prompt = encode_prompt(tokenizer, [], context.replace(IMAGE_MARK, ""))
        answer = tokens(tokenizer, str(target).strip())
        if not answer:
            raise PromptError(f"{task} {number} has an empty target, which has no likelihood")
        pixels = dict(self.processor.image_processor(images).to(self.device)) if images else {}
        pixels = {name.removeprefix("pixel_values_"): values for name, values in pixels.items()}
        ids = torch.tensor([[*prompt, *answer]], device=self.device)
        logits = (
            self.model.vlm(pixels or None, ids)
            .logits[0, -len(answer) - 1 : -1]
            .float()
            .log_softmax(dim=-1)
        )
        wanted = torch.tensor(answer, device=self.device)
        return -float(logits.gather(1, wanted[:, None]).sum()), bool(
            (logits.argmax(dim=-1) == wanted).all()
        )

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError(
            "moxin_vl answers single rounds; choose tasks of output type generate_until or multiple_choice"
        )


def _plain_messages(raw: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """lmms-eval's messages for the chat template, and their images. Raises PromptError for media
    that the model cannot see.
    """
    messages, images = [], []
    for message in raw:
        content = message["content"]
        if isinstance(content, str):
            messages.append({"role": message["role"], "content": content.replace(IMAGE_MARK, "")})
            continue
        parts = []
        for part in content:
            if part["type"] == "text":
                parts.append({"type": "text", "text": part["text"].replace(IMAGE_MARK, "")})
            elif part["type"] == "image":
                parts.append({"type": "image"})
                images.append(part.get("url", part.get("image")))
            else:
                raise PromptError(f"a message has {part['type']}; this model sees images alone")
        messages.append({"role": message["role"], "content": parts})
    return messages, images
