"""Tables of stage 07 that only count or arrange: data, questions, baselines, answers.

Guarantees: each function returns a DataFrame and changes nothing that it is given.
Out of scope: scores (`scoring.py`), comparisons of recipes (`recipes.py`).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from moxin_lab.training.loss import IGNORE_INDEX
from moxin_lab.vision.data import Concept
from moxin_lab.vision.experiments import Questions
from moxin_lab.vision.prompts import EncodedExample
from moxin_lab.vision.tasks import Item


def split_sizes(splits: Mapping[str, Sequence[Concept]]) -> pd.DataFrame:
    """Number of concepts and of families: one row per split."""
    rows = {
        name: {"concepts": len(part), "families": len({concept.family for concept in part})}
        for name, part in splits.items()
    }
    return pd.DataFrame(rows).T.rename_axis("split")


def example_of_each_task(items: Sequence[Item]) -> dict[str, Item]:
    """The first question of each task, in the order of the tasks in `items`."""
    examples: dict[str, Item] = {}
    for item in items:
        examples.setdefault(item.task, item)
    return examples


def question_counts(questions: Questions) -> pd.DataFrame:
    """Number of training and test questions and one example: one row per task."""
    rows = {
        task: {
            "train": sum(item.task == task for item in questions.train),
            "test": sum(item.task == task for item in questions.test),
            "question": example.question,
        }
        for task, example in example_of_each_task(questions.test).items()
    }
    return pd.DataFrame(rows).T.rename_axis("task")


def sample_answers(items: Sequence[Item], answers: pd.DataFrame, *, count: int) -> pd.DataFrame:
    """The answers of the first seed to `count` questions at even distances, with the questions.

    answers: the table of `answers` for these items.
    """
    first = answers.loc[answers.index.get_level_values("seed")[0]].reset_index(drop=True)
    first = first.assign(question=[item.question for item in items])
    places = [(2 * index + 1) * len(items) // (2 * count) for index in range(count)]
    return first.iloc[places].set_index("id")


def caption_means(nats: Mapping[str, NDArray[np.float64]]) -> pd.DataFrame:
    """Mean loss of captions by what was shown, of `experiments.caption_comparison`."""
    means = {name: {"nats per token": values.mean()} for name, values in nats.items()}
    return pd.DataFrame(means).T.rename_axis("shown")


def tokens_with_loss(
    encoded: EncodedExample, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[str, bool]]:
    """Each token of an example as text, and whether it carries loss. A line break is shown as ↵, a
    space as ·.
    """
    texts = [
        name if name in tokenizer.all_special_tokens else tokenizer.decode([token])
        for token, name in zip(
            encoded.input_ids.tolist(),
            tokenizer.convert_ids_to_tokens(encoded.input_ids.tolist()),
            strict=True,
        )
    ]
    has_loss = (encoded.labels != IGNORE_INDEX).tolist()
    shown = [text.replace("\n", "↵").replace(" ", "·") for text in texts]
    return list(zip(shown, has_loss, strict=True))


def answers(
    items: Sequence[Item], by_seed: Sequence[Mapping[str, Sequence[str]]], *, first_seed: int
) -> pd.DataFrame:
    """The answer of each answerer to each question: one row per seed and question.

    by_seed: one mapping of answerer to answers per seed, of the seeds from `first_seed`.
    Columns: id, truth, and one per answerer. The first level of the index is the seed.
    """
    known = {"id": [item.id for item in items], "truth": [item.answer for item in items]}
    frames = [pd.DataFrame({**known, **of_seed}) for of_seed in by_seed]
    return pd.concat(frames, keys=range(first_seed, first_seed + len(frames)), names=["seed"])
