"""Conversations that spell markup or are no conversations: every prompt holds its texts and the
control tokens of its own turns, or is refused by name.

pytest -m fuzz tests/fuzz/test_conversations.py    # 2,000 conversations, minutes, seed printed
"""

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from moxin_lab.evaluation.bits_per_byte import encode_documents
from moxin_lab.model import plain_text
from moxin_lab.posttraining import chat, prompts
from moxin_lab.vision.data import Example
from moxin_lab.vision.images import ImageError
from moxin_lab.vision.processor import ESCAPE, MoxinVLImageProcessor, MoxinVLProcessor
from moxin_lab.vision.prompts import PromptError, encode_example, encode_prompt, tokenize
from tests.fuzz.measured import Call, change_value, check, run_in_child
from tests.posttraining.test_prompts import CHATML, ZEPHYR

CALLS = 2_000
LEAST = {"accepted": 0.2, "ChatError": 0.003, "PromptError": 0.003, "ImageError": 0.003}
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
FRAGMENTS = (
    *SPECIALS,
    *(
        "<image>",
        "\nOut: ",
        "In: ",
        "</s>In: x\nOut: ",
        "<|user|>",
        "\n<|assistant|>\n",
        "<|system|>",
    ),
    *("<", "/s>", "<|", "|>", "user\n", "Out:", "\n", " ", "\t", "\0", "\u2028", "\ufeff", ESCAPE),
    *("\U000f0000", "\U000f0001", "{{ eos_token }}", "{% for %}", "%}", "漢字", "e\u0301", "🙂"),
    *(
        "<tool_call>",
        "</tool_call",
        "＜/s＞",
        "＜|user|＞",
        "＜tool_call＞",
        "<|ｓystem|>",
        "（",
        "    ",
    ),
    *("<s", ">", "[INST]", "###", "what is this?", "yes", "\r\n", "\x1c", "\ud800", "\udfff"),
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges reach into spelled markup."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([f"In: what\nOut: {piece} <|user|>\n" for piece in SPECIALS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS[4:]})
    return tokenizer


def make_loose_tokenizer() -> PreTrainedTokenizerFast:
    """With a template whose headers are text, control tokens that are not called special, and a
    normaliser that makes both of full-width letters.
    """
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=True), AddedToken("    ")])
    tokenizer.add_tokens([AddedToken("</s>", special=True, normalized=True)], special_tokens=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.chat_template = ZEPHYR
    return tokenizer


def make_text(rng: random.Random) -> str:
    return "".join(rng.choices(FRAGMENTS, k=rng.choice((0, 1, 1, 2, 3, 5, 40))))


def make_conversation(rng: random.Random, image: Any) -> list[dict[str, Any]]:
    """Turns of hostile texts, some with an image or in parts, and half of them with a change."""
    messages: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[place % 2], "content": make_text(rng)}
        for place in range(rng.choice((1, 1, 2, 3, 5)))
    ]
    if image is not None:
        part = rng.choice(({"type": "image", "image": image}, {"type": "image", "path": "no.png"}))
        text = {"type": "text", "text": messages[0]["content"]}
        messages[0]["content"] = rng.choice(([part, text], [text, part], [part, part]))
    if rng.random() < 0.2:
        messages.insert(0, {"role": "system", "content": make_text(rng)})
    return messages


def texts_of(messages: list[dict[str, Any]]) -> list[str]:
    return [
        content
        if isinstance(content := message["content"], str)
        else "".join(part["text"] for part in content if part["type"] == "text")
        for message in messages
    ]


def check_text(tokenizer: PreTrainedTokenizerFast, messages: Any) -> None:
    """A text model's prompt: the control tokens of the same turns with harmless words, and all
    texts in their places.
    """
    ids = prompts.encode_prompt(messages, tokenizer)
    harmless = [
        {"role": message["role"], "content": f"q{place}z"} for place, message in enumerate(messages)
    ]
    plain = prompts.encode_prompt(harmless, tokenizer)
    control = set(plain_text.control_tokens(tokenizer))
    assert [i for i in ids if i in control] == [i for i in plain if i in control]
    normalizer = tokenizer.backend_tokenizer.normalizer
    text = tokenizer.decode(plain, clean_up_tokenization_spaces=False)
    for place, message in enumerate(messages):
        content = message["content"]
        if normalizer is not None:
            content = normalizer.normalize_str(content)
        text = text.replace(f"q{place}z", content, 1)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    for marker in prompts.plain_headers(tokenizer):
        roles = [message["role"] for message in messages] + ["assistant"]
        if marker in ("<|system|>", "<|user|>", "<|assistant|>"):
            assert text.count(marker) == roles.count(marker.strip("<|>"))


def check_image_prompt(processor: MoxinVLProcessor, messages: Any) -> None:
    """A vision-language model's prompt has the ids of training."""
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors=None
    )
    texts = texts_of(messages[0] if isinstance(messages[0], list) else messages)  # a batch of one
    turns = list(zip(texts[::2], [*texts[1::2], "yes"], strict=False))
    example = encode_example(
        processor.tokenizer, Example("a", None, tuple(turns)), stage="finetune", max_tokens=10**6
    )
    ids = [i for i in inputs["input_ids"][0] if i != processor.image_token_id]
    assert ids == example.input_ids.tolist()[: len(ids)]
    if len(texts) % 2:  # a question is last
        assert ids == encode_prompt(processor.tokenizer, turns[:-1], texts[-1])
    assert len(inputs["input_ids"][0]) - len(ids) == (4 if inputs["has_image"][0] else 0)


def check_document(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """A document, a question and its answer hold no control token."""
    control = set(plain_text.control_tokens(tokenizer))
    assert not control & set(tokenize(tokenizer, text))
    if tokenizer.backend_tokenizer.normalizer is not None:
        return  # bits per byte refuses a tokenizer that changes a text
    assert not control & set(encode_documents(tokenizer, [text])[0])


def campaign(count: int, seed: int, folder: Path) -> Iterator[Call]:
    rng = random.Random(seed)
    tulu, chatml, plain = make_tokenizer(), make_tokenizer(), make_tokenizer()
    chat.install_template(tulu)
    chatml.chat_template = CHATML
    loose = make_loose_tokenizer()
    texts = {"tulu": tulu, "chatml": chatml, "zephyr": loose}
    processor = MoxinVLProcessor(
        MoxinVLImageProcessor(16, "naive", ("dino", "siglip")), plain, num_patches=4
    )
    stored = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stored, "PNG")
    for _ in range(count):
        kind = rng.choice(("tulu", "chatml", "zephyr", "image", "image", "document"))
        image = stored.getvalue() if kind == "image" and rng.random() < 0.7 else None
        messages: Any = make_conversation(rng, image)
        if rng.random() < 0.3:
            _, messages = change_value(messages, rng)
        check: Callable[[], None]
        if kind == "image":
            check = lambda messages=messages: check_image_prompt(processor, messages)  # noqa: E731
        elif kind == "document":
            messages = make_text(rng)
            tokenizer = rng.choice((plain, loose))
            check = lambda messages=messages, t=tokenizer: check_document(t, messages)  # noqa: E731
        else:
            tokenizer = texts[kind]
            check = lambda messages=messages, t=tokenizer: check_text(t, messages)  # noqa: E731
        yield Call(f"{kind}: {messages!r}", check, (chat.ChatError, PromptError, ImageError))


def test_three_hundred_conversations_are_encoded_as_text_or_refused_by_name(tmp_path):
    check(run_in_child(campaign, 300, tmp_path, seed=0), 300, LEAST)


@pytest.mark.fuzz
def test_two_thousand_conversations_are_encoded_as_text_or_refused_by_name(tmp_path):
    check(run_in_child(campaign, CALLS, tmp_path), CALLS, LEAST)
