"""`moxin-lab chat`: a conversation with a model in the terminal.

    moxin-lab chat                           the text model that the tiny run left last
    moxin-lab chat --model FOLDER            any Hugging Face folder with a language model
    moxin-lab chat --image FILE              the vision-language model of the run, about an image

The answer appears token by token and joins the history. `/reset` begins anew, `/image FILE` shows
another image, `/exit` or end of input ends. Ctrl-C stops the answer, not the conversation.

Guarantees: files named are checked before a model is loaded; no message becomes a turn of its own:
a special token that it spells is text, a role marker that the template writes as text is refused
(`posttraining.prompts.encode_prompt`); only safetensors are read, which cannot run code. A folder
without a chat template continues the text instead, and says so.
Out of scope: more than one request at a time, shortening a conversation that fills the context.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from moxin_lab.lab.artifacts import LabError, read_json
from moxin_lab.vision.images import ImageError, open_image

VISION_TYPE = "moxin_vl"
"""`model_type` in the `config.json` of `vision.hf.save`."""
TEXT_MODELS = (("06_reasoning", "reasoning"), ("05_instruction_tuning", "instruct"))
VISION_MODEL = ("07_vision_language", "vlm")
COMMANDS = "/reset begins anew, /exit ends"
IMAGE_COMMANDS = f"/image FILE shows another image, {COMMANDS}"

Show = Callable[[str], Any]
Message = dict[str, str]


class Refused(ValueError):
    """A message that cannot be answered; the conversation goes on without it."""


class Model(Protocol):
    """What the loop below needs of a loaded model."""

    about: str

    def answer(self, messages: list[Message], show: Show) -> str:
        """Show the answer to the last message piece by piece; returns all of it. Raises Refused."""
        ...


def find_model(root: Path, scale: str, *, with_image: bool) -> Path:
    """The newest model that a run at `scale` left: stage 06's, else 05's; with an image, 07's.

    Raises LabError with the command that makes one.
    """
    choices = (VISION_MODEL,) if with_image else TEXT_MODELS
    for stage, artifact in choices:
        folder = root / "runs" / scale / stage / artifact
        if (folder / "config.json").is_file():
            return folder
    stage = choices[-1][0]
    raise LabError(
        f"no run at scale {scale} has left a model to talk with: run `moxin-lab run --scale {scale}"
        f" --only {stage[:2]}` first, or name a folder with --model"
    )


def chat(
    folder: Path,
    *,
    image: str | Path | None = None,
    system: str | None = None,
    question: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    read: Callable[[str], str] = input,
    show: Show | None = None,
) -> int:
    """Answer `question`, or what `read` gives until `/exit` or EOFError. Returns the exit code.

    temperature 0 is greedy. Raises LabError for a folder or a file that does not serve.
    """
    show = show or _to_terminal
    kind = model_type(folder)
    if (kind == VISION_TYPE) != (image is not None):
        raise LabError(
            f"{folder} is a vision-language model: name the image with --image FILE"
            if image is None
            else f"{folder} is a text model ({kind}) and sees no image: leave out --image, or give "
            "--model a folder that stage 07 wrote, such as runs/<scale>/07_vision_language/vlm"
        )
    if kind == VISION_TYPE and system is not None:
        raise LabError("the prompt of a vision-language model has no place for --system")
    if not temperature >= 0:
        raise LabError(f"--temperature {temperature}: it is 0 (greedy) or more")
    try:
        picture = None if image is None else open_image(image)
        with silenced():
            model: Model = (
                TextModel(folder, max_new_tokens, temperature)
                if picture is None
                else VisionModel(folder, picture, max_new_tokens, temperature)
            )
    except (ImageError, OSError, ValueError) as error:
        raise LabError(str(error)) from error
    first = [] if system is None else [{"role": "system", "content": system}]
    if question is None:
        return _converse(model, first, read, show)
    try:
        model.answer([*first, {"role": "user", "content": question}], show)
    except Refused as error:
        raise LabError(str(error)) from error
    show("\n")
    return 0


def _converse(model: Model, first: list[Message], read: Callable[[str], str], show: Show) -> int:
    """The loop. `first`: what a conversation begins with."""
    commands = IMAGE_COMMANDS if isinstance(model, VisionModel) else COMMANDS
    show(f"{model.about}\n{commands}\n")
    messages = list(first)
    while True:
        try:
            text = read("You: ").strip()
        except EOFError:
            show("\n")
            return 0
        if text == "/exit":
            return 0
        if text.startswith("/"):
            show(f"{_command(text, model, messages, first)}\n")
            continue
        if not text:
            continue
        messages.append({"role": "user", "content": text})
        show("Model: ")
        try:
            answer = model.answer(messages, show)
        except Refused as error:
            messages.pop()
            show(f"(not answered) {error}\n")
            continue
        # An empty answer has no place in a history: templates refuse or hide it.
        messages.append({"role": "assistant", "content": answer or "…"})
        show("\n")


def _command(text: str, model: Model, messages: list[Message], first: list[Message]) -> str:
    """Carry out a line that begins with a slash; what to say of it."""
    word, _, rest = text.partition(" ")
    if word == "/reset":
        messages[:] = first
        return "(a new conversation)"
    if word == "/image" and isinstance(model, VisionModel):
        try:
            model.picture = open_image(rest.strip())
        except (ImageError, OSError) as error:
            return f"(the image stays as it was) {error}"
        messages[:] = first
        return "(a new conversation about another image)"
    known = IMAGE_COMMANDS if isinstance(model, VisionModel) else COMMANDS
    return f"{word} is not a command here; {known}"


class TextModel:
    """A folder with a language model and its tokenizer, loaded by transformers."""

    def __init__(self, folder: Path, max_new_tokens: int, temperature: float) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from moxin_lab.model.convert import best_device, without_bars

        device = best_device()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        with without_bars():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
        self.model = model.to(device).eval()
        self.options = _sampling(max_new_tokens, temperature)
        self.has_template = bool(self.tokenizer.chat_template)
        millions = sum(weight.numel() for weight in self.model.parameters()) / 1e6
        self.about = f"{folder}: {millions:,.1f} million parameters on {device}." + (
            ""
            if self.has_template
            else " It has no chat template, so it continues your text; each line begins anew."
        )

    def answer(self, messages: list[Message], show: Show) -> str:
        ids = self._ids(messages)
        limit = getattr(self.model.config, "max_position_embeddings", None)
        new = self.options["max_new_tokens"]
        if limit is not None and ids.shape[1] + new > limit:
            raise Refused(
                f"{ids.shape[1]} tokens of conversation and {new} new ones are more than the "
                f"model's {limit} positions: /reset, or a smaller --max-new-tokens"
            )
        printer = Printer(self.tokenizer, show)
        pad = self.tokenizer.pad_token_id
        with contextlib.suppress(KeyboardInterrupt), silenced():
            self.model.generate(
                ids,
                attention_mask=ids.new_ones(ids.shape),
                streamer=printer,
                pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
                **self.options,
            )
        return printer.finish()

    def _ids(self, messages: list[Message]) -> Any:
        """Token ids of the prompt, int64 [1, T], on the model's device."""
        import torch

        from moxin_lab.model import plain_text
        from moxin_lab.posttraining.prompts import ChatError, check_conversation, encode_prompt

        if not self.has_template and messages[0]["role"] == "system":
            # No hint at /reset, which keeps the system message.
            raise Refused("this folder has no chat template, so it has no place for --system")
        try:
            if self.has_template:
                ids = encode_prompt(messages, self.tokenizer)
            else:
                check_conversation(messages[-1:], ends_with="user")
                ids = plain_text.encode(
                    self.tokenizer, messages[-1]["content"], add_special_tokens=True
                )
        except (ChatError, plain_text.ControlTokenError) as error:
            hint = "; /reset forgets what was said before" if len(messages) > 1 else ""
            raise Refused(f"{error}{hint}") from error
        return torch.tensor([ids], device=self.model.device)


class VisionModel:
    """A folder that `vision.hf.save` wrote, and the image that the conversation is about."""

    def __init__(self, folder: Path, picture: Any, max_new_tokens: int, temperature: float) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from moxin_lab.model.convert import without_bars
        from moxin_lab.vision import hf  # noqa: F401 (registers the model type)

        with without_bars():
            self.model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.picture = picture
        self.options = _sampling(max_new_tokens, temperature)
        self.about = f"{folder}: a vision-language model."

    def answer(self, messages: list[Message], show: Show) -> str:
        first, *rest = messages
        content = [
            {"type": "image", "image": self.picture},
            {"type": "text", "text": first["content"]},
        ]
        try:
            inputs = self.processor.apply_chat_template(
                [{"role": first["role"], "content": content}, *rest],
                tokenize=True,
                return_dict=True,
            )
        except ValueError as error:
            raise Refused(str(error)) from error
        printer = Printer(self.processor.tokenizer, show)
        try:
            with contextlib.suppress(KeyboardInterrupt), silenced():
                self.model.generate(**inputs, streamer=printer, **self.options)
        except ValueError as error:  # more tokens than positions
            raise Refused(f"{error}: /reset, or a smaller --max-new-tokens") from error
        return printer.finish()


class Printer:
    """A streamer of transformers (`put`, `end`): shows each token's text once its characters are
    whole.
    """

    def __init__(self, tokenizer: Any, show: Show) -> None:
        self.tokenizer, self.show = tokenizer, show
        self.ids: list[int] = []
        self.shown = ""
        self.in_prompt = True

    def put(self, value: Any) -> None:
        """First the prompt, which is not shown, then one token at a time: int64 [1, T] or [1]."""
        if self.in_prompt:
            self.in_prompt = False
            return
        self.ids += value.reshape(-1).tolist()
        text = self._text()
        if not text.endswith("\ufffd"):  # the bytes of a character may be several tokens
            self._extend(text)

    def end(self) -> None:
        """Show what is left, whole or not."""
        self._extend(self._text())

    def finish(self) -> str:
        """The whole answer."""
        self.end()
        return self.shown.strip()

    def _text(self) -> str:
        """All so far, without the space that many tokenizers begin a text with."""
        return self.tokenizer.decode(self.ids, skip_special_tokens=True).lstrip()

    def _extend(self, text: str) -> None:
        if new := text[len(self.shown) :]:
            self.show(new)
            self.shown = text


def _sampling(max_new_tokens: int, temperature: float) -> dict[str, Any]:
    """The arguments of `generate`. Raises LabError for no token at all."""
    if max_new_tokens < 1:
        raise LabError(f"--max-new-tokens {max_new_tokens}: it must be at least 1")
    sampled = {"do_sample": True, "temperature": temperature} if temperature else {}
    return {"max_new_tokens": max_new_tokens, "do_sample": False, **sampled}


def model_type(folder: Path) -> str:
    """`model_type` of the folder's config.json. Raises LabError where it holds no model."""
    remedy = "give --model a folder with config.json, safetensors and a tokenizer"
    if not folder.is_dir():
        raise LabError(f"there is no folder {folder}; {remedy}")
    if not (folder / "config.json").is_file():
        raise LabError(f"{folder} has no config.json, so it is not a model; {remedy}")
    config = read_json(folder / "config.json", remedy)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise LabError(f"{folder / 'config.json'} names no model_type; {remedy}")
    if not list(folder.glob("*.safetensors")):
        raise LabError(f"{folder} has no *.safetensors file, and no other weights are read")
    if not list(folder.glob("tokenizer*")):
        raise LabError(f"{folder} has no tokenizer file; {remedy}")
    return config["model_type"]


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Hides what libraries write while they load and generate; errors still come through."""
    import warnings

    from transformers.utils import logging

    from moxin_lab.model.convert import without_bars

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with without_bars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def _to_terminal(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def enable_line_editing() -> None:
    """Arrow keys and history in `input`, where the platform has readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
