"""Answers of a chat model, judged by the exact rule of the data card, and preference pairs sampled
from them.

Guarantees: a greedy answer does not depend on the other prompts of its batch; sampling is seeded; a
pair's chosen answer is right and its rejected one wrong, both sampled from the model.
Out of scope: judging open answers (notebook 06 has the verifier for mathematics), scoring
log-probabilities.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from transformers import PreTrainedTokenizerFast

from moxin_lab.data.tasks import is_right
from moxin_lab.lab.progress import Progress
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.generate import generate
from moxin_lab.posttraining.prompts import Conversation, encode_prompt


class Answer(NamedTuple):
    """text: without special tokens; num_tokens: the end token included; ended: False if
    `max_new_tokens` came first.
    """

    text: str
    num_tokens: int
    ended: bool


def respond(
    model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Conversation],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[Answer]:
    """The model's answer to each prompt (a conversation that ends with a user message), in the
    order of the prompts.

    Prompts are sorted by length, longest first, and padded on the left. temperature 0 is greedy.
    """
    encoded = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
    device = model.lm_head.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    answers: list[Answer] = [Answer("", 0, False)] * len(encoded)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        width = len(encoded[indices[0]])
        ids = torch.full((len(indices), width), tokenizer.pad_token_id)
        for row, index in enumerate(indices):
            ids[row, width - len(encoded[index]) :] = torch.tensor(encoded[index])
        lengths = torch.tensor([len(encoded[index]) for index in indices])
        mask = torch.arange(width) >= width - lengths[:, None]  # [B, width]
        completions = generate(
            model,
            ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            generator=generator,
        )[:, width:].tolist()
        for index, tokens in zip(indices, completions, strict=True):
            ended = tokenizer.eos_token_id in tokens
            tokens = tokens[: tokens.index(tokenizer.eos_token_id) + 1] if ended else tokens
            answers[index] = Answer(
                tokenizer.decode(tokens, skip_special_tokens=True), len(tokens), ended
            )
        if progress is not None:
            progress(start + len(indices), len(order), "answering")
    return answers


def majority_answers(train: pd.DataFrame) -> dict[tuple[str, str], str]:
    """The most frequent answer of each (task, language) among the training rows; ties go to the
    first in code point order.
    """
    answers = train["messages"].map(lambda messages: messages[-1]["content"])
    counts = (
        answers.groupby([train["task"], train["language"]]).value_counts().reset_index(name="count")
    )
    counts = counts.sort_values(["count", "messages"], ascending=[False, True])
    first = counts.drop_duplicates(["task", "language"])
    return {(row.task, row.language): row.messages for row in first.itertuples()}


def on_policy_pairs(
    model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: pd.DataFrame,
    *,
    num_generations: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Pairs from the model's own answers to `rows` (columns messages, verifier): for each row with
    both a right and a wrong answer among `num_generations`, the first of each. Columns `chosen` and
    `rejected` (whole conversations), `row` (the row's label) and `construction`, as in
    data_cards/preferences: `on-policy`.

    Also counts rows by what was sampled: `all right`, `all wrong`, `mixed`.
    """
    prompts = [list(messages)[:-1] for messages in rows["messages"]]
    answers = respond(
        model,
        tokenizer,
        [prompt for prompt in prompts for _ in range(num_generations)],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    pairs, counts = [], {"all right": 0, "all wrong": 0, "mixed": 0}
    for position, (label, prompt, verifier) in enumerate(
        zip(rows.index, prompts, rows["verifier"], strict=True)
    ):
        drawn = [
            answer.text
            for answer in answers[position * num_generations : (position + 1) * num_generations]
        ]
        right = [text for text in drawn if is_right(verifier, text)]
        wrong = [text for text in drawn if not is_right(verifier, text) and text.strip()]
        if not right:
            counts["all wrong"] += 1
        elif len(right) == num_generations:
            counts["all right"] += 1
        else:
            counts["mixed"] += 1
        if right and wrong:
            sides = [
                [*prompt, {"role": "assistant", "content": side[0]}] for side in (right, wrong)
            ]
            pairs.append(
                {
                    "chosen": sides[0],
                    "rejected": sides[1],
                    "row": label,
                    "construction": "on-policy",
                }
            )
    return pd.DataFrame(pairs, columns=["chosen", "rejected", "row", "construction"]), counts
