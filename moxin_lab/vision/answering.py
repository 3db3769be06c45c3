"""A VLM's answers to questions, with their pictures, with none, or with those of other questions.

Guarantees: every question gets an answer, in the order of the questions; a closed question is
answered with one of its choices.
Out of scope: judging an answer (`scoring.py`).
"""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from moxin_lab.lab.progress import Progress
from moxin_lab.scales.sections import VisionSettings
from moxin_lab.training.fit import autocast
from moxin_lab.training.loss import IGNORE_INDEX
from moxin_lab.vision import scoring
from moxin_lab.vision.prompts import encode_prompt, tokenize
from moxin_lab.vision.tasks import Item
from moxin_lab.vision.vlm import MoxinVLM, pad_examples


def answer(
    model: MoxinVLM,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    features: Tensor | None,
    settings: VisionSettings,
    *,
    progress: Progress | None = None,
) -> list[str]:
    """One answer per item: the most likely choice, or greedy decoding where there are no choices.

    features: `[n, patches, channels]`, the picture that each item is shown, or None: blind.
    settings: answer_batch, max_new_tokens, finetune.precision (answers are computed in the
    precision of the training).
    """
    answers = [""] * len(items)
    prompts = [encode_prompt(tokenizer, [], item.question) for item in items]
    with autocast(settings.finetune.precision, model.device):
        _choose(model, tokenizer, items, prompts, features, settings, answers, progress)
        _write(model, tokenizer, items, prompts, features, settings, answers)
    return answers


def _choose(
    model: MoxinVLM,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    prompts: Sequence[list[int]],
    features: Tensor | None,
    settings: VisionSettings,
    answers: list[str],
    progress: Progress | None,
) -> None:
    """Fill in `answers` for the items with choices."""
    closed = [index for index, item in enumerate(items) if item.choices]
    for start in range(0, len(closed), settings.answer_batch):
        batch = closed[start : start + settings.answer_batch]
        choices = [
            [[*tokenize(tokenizer, choice), tokenizer.eos_token_id] for choice in items[i].choices]
            for i in batch
        ]
        scores = model.answer_log_likelihoods(
            [prompts[i] for i in batch],
            choices,
            features=None if features is None else features[batch],
            batch_rows=settings.answer_batch,
        )
        likeliest = scoring.most_likely([items[i] for i in batch], scores)
        for index, text in zip(batch, likeliest, strict=True):
            answers[index] = text
        if progress is not None:
            progress(start + len(batch), len(items), "answering")


def _write(
    model: MoxinVLM,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    prompts: Sequence[list[int]],
    features: Tensor | None,
    settings: VisionSettings,
    answers: list[str],
) -> None:
    """Fill in `answers` for the items without choices."""
    opened = [index for index, item in enumerate(items) if not item.choices]
    for start in range(0, len(opened), settings.answer_batch):
        indices = opened[start : start + settings.answer_batch]
        batch = pad_examples([(prompts[i], [IGNORE_INDEX] * len(prompts[i])) for i in indices])
        completions = model.generate(  # [B, up to max_new_tokens]
            None,
            batch["input_ids"].to(model.device),
            max_new_tokens=settings.max_new_tokens,
            features=None if features is None else features[indices].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        for index, ids in zip(indices, completions.tolist(), strict=True):
            answers[index] = tokenizer.decode(ids, skip_special_tokens=True).strip()


def baselines(
    models: Sequence[MoxinVLM],
    answers: Sequence[list[str]],
    train: Sequence[Item],
    test: Sequence[Item],
    features: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    settings: VisionSettings,
    *,
    seed: int,
    progress: Progress | None = None,
) -> list[dict[str, list[str]]]:
    """Answers to the test questions by answerer, one mapping per model of a recipe (one model per
    seed).

    `model`: the given `answers`; `blind`: the same model without a picture; `shuffled`: the same
    model with the picture of another question; `majority` and `nearest`: from the training
    questions, equal for all models (scoring.py). features: `[n, patches, channels]` of the test
    questions' pictures. seed: decides which other picture a question is shown.
    """
    others = features[scoring.shuffled_indices(test, seed)]
    common = {"majority": scoring.majority(train, test), "nearest": scoring.nearest(train, test)}
    by_model = []
    for model, own in zip(models, answers, strict=True):
        blind, shuffled = (
            answer(model, tokenizer, test, shown, settings, progress=progress)
            for shown in (None, others)
        )
        by_model.append({"model": own, "blind": blind, "shuffled": shuffled, **common})
    return by_model
