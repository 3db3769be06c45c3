"""Stage 07's questions about pictures, asked over HTTP and answered in this process.

    items = questions(emoji_card, charts_card, settings, count=24, seed=0)
    table = compared(items, ask(url, model, items), answers_here(folder, items))

Guarantees: both ways get the same picture and words, and decode greedily.
Out of scope: how well the model sees (stage 07); choices, which stage 07 ranks by likelihood.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from moxin_lab.scales.sections import VisionSettings
from moxin_lab.serving import client
from moxin_lab.serving.terminal import VisionModel
from moxin_lab.vision import data, experiments, scoring
from moxin_lab.vision.tasks import Item

MAX_TOKENS = 16


def questions(
    emoji: Path, charts: Path, settings: VisionSettings, *, count: int, seed: int
) -> list[Item]:
    """`count` of the test questions of stage 07, evenly spread over its tasks."""
    train, test = (data.read_concepts(emoji, split) for split in ("train", "test"))
    items = experiments.questions(train, test, charts, settings, seed=seed).test
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def ask(url: str, model: str, items: Sequence[Item]) -> list[str]:
    """The answer of a running server to each question."""
    return [
        client.chat(
            url, model, item.question, picture=Image.fromarray(item.picture), max_tokens=MAX_TOKENS
        ).text.strip()
        for item in items
    ]


def answers_here(folder: Path, items: Sequence[Item]) -> list[str]:
    """The answer of the model in `folder` to each question, without a server."""
    answers = []
    model = VisionModel(folder, None, MAX_TOKENS, 0.0)
    for item in items:
        model.picture = Image.fromarray(item.picture)
        message = {"role": "user", "content": item.question}
        answers.append(model.answer([message], lambda piece: None))
    return answers


def compared(items: Sequence[Item], over_http: Sequence[str], here: Sequence[str]) -> pd.DataFrame:
    """Columns question, truth, over HTTP, here, right (over HTTP), same."""
    return pd.DataFrame(
        [
            (item.question, item.answer, http, own, scoring.is_correct(item, http), http == own)
            for item, http, own in zip(items, over_http, here, strict=True)
        ],
        columns=["question", "truth", "over HTTP", "here", "right", "same"],
    )
