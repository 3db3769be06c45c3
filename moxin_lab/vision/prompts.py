"""Text around an image: Prismatic's prompt, and which tokens carry loss.

    finetune   <s> [patches] In: What is this?\\nOut: a cat</s>In: And its colour?\\nOut: black</s>
                                                     ^^^^^^^^^                          ^^^^^^^^^
    align      <s> [patches] a cat, sitting</s>
                             ^^^^^^^^^^^^^^^^^^

Marked tokens carry loss; alignment trains on captions without a prompt.

Guarantees: questions and answers are tokenised one by one, in training and at inference, so no
token crosses a border between them; text cannot spell a control token.
Out of scope: placing the patches (`vlm.py`), placeholders and chat templates (`processor.py`).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from moxin_lab.model import plain_text
from moxin_lab.training.loss import IGNORE_INDEX
from moxin_lab.vision.data import Example


class PromptError(ValueError):
    """A prompt or an example that cannot be tokenised, or a tokenizer that lacks a token; the
    message says why.
    """


class EncodedExample(NamedTuple):
    """A conversation as tokens."""

    input_ids: NDArray[np.int64]
    """[T]"""
    labels: NDArray[np.int64]
    """[T], IGNORE_INDEX where there is no loss."""
    image: str | None
    """Name of the example's image."""
    id: str


def format_question(text: str) -> str:
    """The prompt of one question, which its answer follows."""
    return f"In: {text.strip()}\nOut: "


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, never control tokens, even if the text spells one. Raises PromptError
    for half a surrogate pair, and for a tokenizer that makes a control token of plain text.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PromptError(
            f"the text {text[:60]!r} has half a surrogate pair, which is no character"
        )
    return list(_tokenize(tokenizer, len(tokenizer), text))


# The same questions and answers return in every training. `size` is part of the key, since adding a
# token changes a tokenizer in place.
@lru_cache(maxsize=100_000)
def _tokenize(tokenizer: PreTrainedTokenizerBase, size: int, text: str) -> tuple[int, ...]:
    try:
        return tuple(plain_text.encode(tokenizer, text))
    except plain_text.ControlTokenError as error:
        raise PromptError(str(error)) from error


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], text: str
) -> list[int]:
    """Token ids of bos, the earlier `turns` (question, answer), and the question `text`, as
    `encode_example` has them.
    """
    ids = [_special_token_id(tokenizer, "bos")]
    for question, answer in turns:
        ids += tokenize(tokenizer, format_question(question)) + encode_answer(tokenizer, answer)
    return ids + tokenize(tokenizer, format_question(text))


def encode_answer(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of an answer and eos; none for an empty answer, as in training."""
    if not text.strip():
        return []
    return [*tokenize(tokenizer, text.strip()), _special_token_id(tokenizer, "eos")]


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    *,
    stage: str,
    max_tokens: int,
) -> EncodedExample:
    """A conversation as tokens, cut at `max_tokens`.

    stage: one of `vlm_training.STAGES`; `align` takes the answers without their questions. Raises
    PromptError if no token with loss is left, where LLaVA's trainers continue with a loss of 0.
    """
    ids, labels = [_special_token_id(tokenizer, "bos")], [IGNORE_INDEX]
    for question, answer in example.turns:
        prompt = [] if stage == "align" else tokenize(tokenizer, format_question(question))
        completion = encode_answer(tokenizer, answer)
        ids += prompt + completion
        labels += [IGNORE_INDEX] * len(prompt) + completion
    ids, labels = ids[:max_tokens], labels[:max_tokens]
    if all(label == IGNORE_INDEX for label in labels):
        raise PromptError(
            f"example {example.id}: none of its first {max_tokens} tokens is part of an answer, so "
            "there is nothing to learn from; raise max_tokens, or remove the example"
        )
    return EncodedExample(np.array(ids), np.array(labels), example.image, str(example.id))


def _special_token_id(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    token_id = getattr(tokenizer, f"{name}_token_id")
    if token_id is None:
        raise PromptError(f"the tokenizer has no {name} token; set tokenizer.{name}_token")
    return token_id
