"""Text around an image: Prismatic's prompt and which tokens carry loss.

    <s> [patches] In: What is this?\\nOut: a cat</s>In: And its colour?\\nOut: black</s>
                                      ^^^^^^^^^                          ^^^^^^^^^     loss here alone
    <s> [patches] a cat, sitting</s>                                  align: no prompt, the caption alone
                  ^^^^^^^^^^^^^^^^^^

Each turn is tokenised by itself, as at inference, so no token lies over a border. Text cannot spell
a special token.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from moxin_lab.training.loss import IGNORE_INDEX


class PromptError(ValueError):
    """An example that nothing can be learned from, or a tokenizer that lacks a token; the message
    says which.
    """


class EncodedExample(NamedTuple):
    """input_ids, labels: int64 [T], the labels IGNORE_INDEX where no loss is; image: what the example's
    image is found by, or None.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    image: Any
    id: str


def question(text: str) -> str:
    """What stands before an answer."""
    return f"In: {text.strip()}\nOut: "


def tokens(tokenizer: Any, text: str) -> list[int]:
    """Ids without special tokens, whatever the text spells."""
    return list(_tokens(tokenizer, len(tokenizer), text))


@lru_cache(
    maxsize=100_000
)  # the same questions and answers come back in every training; the size tells of an added token
def _tokens(tokenizer: Any, size: int, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def encode_prompt(tokenizer: Any, turns: Sequence[tuple[str, str]], text: str) -> list[int]:
    """bos, earlier turns with their answers, and the question `text`, ready for an answer."""
    ids = [_special(tokenizer, "bos")]
    for asked, answered in turns:
        ids += (
            tokens(tokenizer, question(asked))
            + tokens(tokenizer, answered.strip())
            + [_special(tokenizer, "eos")]
        )
    return ids + tokens(tokenizer, question(text))


def encode_example(tokenizer: Any, example: Any, *, stage: str, max_tokens: int) -> EncodedExample:
    """A conversation (`id, image, turns`) as tokens. stage `align`: the answers alone, without
    their prompts.

    What is beyond `max_tokens` is cut off. Raises PromptError if no token with loss is left:
    LLaVA's trainers go on with a loss of 0 there.
    """
    end = _special(tokenizer, "eos")
    ids, labels = [_special(tokenizer, "bos")], [IGNORE_INDEX]
    for asked, answered in example.turns:
        prompt = [] if stage == "align" else tokens(tokenizer, question(asked))
        answer = [*tokens(tokenizer, answered.strip()), end] if answered.strip() else []
        ids += prompt + answer
        labels += [IGNORE_INDEX] * len(prompt) + answer
    ids, labels = ids[:max_tokens], labels[:max_tokens]
    if all(label == IGNORE_INDEX for label in labels):
        raise PromptError(
            f"example {example.id}: none of its first {max_tokens} tokens is part of an answer, so it would train nothing; "
            "raise max_tokens, or leave it out"
        )
    return EncodedExample(np.array(ids), np.array(labels), example.image, str(example.id))


def _special(tokenizer: Any, name: str) -> int:
    found = getattr(tokenizer, f"{name}_token_id")
    if found is None:
        raise PromptError(f"the tokenizer has no {name} token; set tokenizer.{name}_token")
    return found
