"""lmms-eval's entry point: `lmms_eval --model moxin_vl --model_args pretrained=FOLDER --tasks ...`, with no fork of theirs.

pyproject names `model_manifest` in the group `lmms_eval.models` (their docs/guides/model_guide.md). The class is built when it is
asked for, so importing this module needs no lmms-eval, which is not among the project's dependencies.

Guarantees: `generate_until` stops at their `until` words; `loglikelihood` is the sum over the continuation's tokens, as
`MoxinVLM.answer_log_likelihoods`, without an end token, since theirs is a continuation. One image a request at most, none is
text. Does not: read video or audio (refused).
"""

from typing import Any

import torch

from moxin_lab.vision.prompts import PromptError, encode_prompt, tokens


def model_manifest() -> Any:
    """What the entry point returns. Raises ImportError where lmms-eval is not installed."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="moxin_vl", chat_class_path="moxin_lab.vision.lmms.MoxinVL")


def __getattr__(name: str) -> Any:
    if name != "MoxinVL":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from lmms_eval.api.model import lmms

    found = globals()["MoxinVL"] = type("MoxinVL", (Answering, lmms), {"is_simple": False, "__module__": __name__})
    return found


class Answering:
    """The methods of lmms-eval's model; `task_dict` is set by its evaluator: task, split, number to a document."""

    task_dict: Any

    def __init__(
        self, pretrained: str, device: str = "cpu", batch_size: int | str = 1, max_new_tokens: int = 128, **kwargs: Any
    ) -> None:
        if kwargs:
            raise ValueError(
                f"unknown model_args {', '.join(sorted(kwargs))}: known are pretrained, device, max_new_tokens"
            )
        super().__init__()
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from moxin_lab.vision import hf  # noqa: F401 (registers the model type)

        self.model = AutoModelForImageTextToText.from_pretrained(pretrained).to(device).eval()
        self.processor = AutoProcessor.from_pretrained(pretrained)
        self.batch_size_per_gpu, self._max_new_tokens, self._device_name = int(batch_size), max_new_tokens, device

    def generate_until(self, requests: list[Any]) -> list[str]:
        """One answer a request; `.args` are (doc_to_messages, gen_kwargs, doc_id, task, split)."""
        answers = []
        for request in requests:
            doc_to_messages, options, number, task, split = request.args
            messages, images = _plain_messages(doc_to_messages(self.task_dict[task][split][number]))
            text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
            inputs = self.processor(text=text, images=images or None).to(self._device_name)
            temperature = float(options.get("temperature") or 0.0)
            made = self.model.generate(
                **inputs,
                max_new_tokens=int(options.get("max_new_tokens", self._max_new_tokens)),
                do_sample=bool(options.get("do_sample", temperature > 0)) and temperature > 0,
                temperature=temperature or 1.0,
                top_p=float(options.get("top_p") or 1.0),
            )
            answer = self.processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            until = options.get("until") or []
            for stop in [until] if isinstance(until, str) else until:
                answer = answer.split(stop)[0] if stop else answer
            answers.append(answer.strip())
        return answers

    @torch.no_grad()
    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """(log P(target | image, context), whether greedy decoding would say it); `.args` are (context, doc_to_target,
        doc_to_visual, doc_id, task, split)."""
        found, tokenizer = [], self.processor.tokenizer
        for request in requests:
            context, doc_to_target, doc_to_visual, number, task, split = request.args
            document = self.task_dict[task][split][number]
            target = doc_to_target if isinstance(doc_to_target, str) else doc_to_target(document)
            images = list(doc_to_visual(document) or [])
            if len(images) > 1:
                raise PromptError(f"{task} {number} has {len(images)} images; this model was trained with one")
            prompt = encode_prompt(tokenizer, [], context.replace("<image>", ""))
            answer = tokens(tokenizer, str(target).strip())
            if not answer:
                raise PromptError(f"{task} {number} has an empty target, which has no likelihood")
            pixels = dict(self.processor.image_processor(images).to(self._device_name)) if images else {}
            pixels = {name.removeprefix("pixel_values_"): values for name, values in pixels.items()}
            ids = torch.tensor([[*prompt, *answer]], device=self._device_name)
            logits = self.model.vlm(pixels or None, ids).logits[0, -len(answer) - 1 : -1].float().log_softmax(dim=-1)
            wanted = torch.tensor(answer, device=logits.device)
            found.append(
                (float(logits.gather(1, wanted[:, None]).sum()), bool((logits.argmax(dim=-1) == wanted).all()))
            )
        return found

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError(
            "moxin_vl answers single rounds; choose tasks of output type generate_until or loglikelihood"
        )


def _plain_messages(raw: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """lmms-eval's messages for the chat template, and their images. Raises PromptError for media that the model cannot see."""
    messages, images = [], []
    for message in raw:
        content = message["content"]
        if isinstance(content, str):
            messages.append({"role": message["role"], "content": content})
            continue
        parts = []
        for part in content:
            if part["type"] == "text":
                parts.append({"type": "text", "text": part["text"]})
            elif part["type"] == "image":
                parts.append({"type": "image"})
                images.append(part.get("url", part.get("image")))
            else:
                raise PromptError(f"a message has {part['type']}; this model sees images alone")
        messages.append({"role": message["role"], "content": parts})
    return messages, images
