"""What stages 05 and 06 start from: rows of the data cards or of the hub, the chat tokenizer, and a
model of an earlier stage.

Guarantees: where a scale asks for fewer rows than there are, they are taken at even distances.
Out of scope: encoding conversations (`chat`), training (`experiments`).
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from transformers import PreTrainedTokenizerFast

from moxin_lab.data import tulu
from moxin_lab.lab import Stage
from moxin_lab.model import convert
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.posttraining import chat, tables
from moxin_lab.posttraining.chat import Encoded
from moxin_lab.scales.sections import InstructionTuningSettings


@dataclass(frozen=True)
class Data:
    """Rows of the data cards, or of the hub sets where the scale names those: conversations to
    train on and to test on, preference pairs of both sides, and all training rows of the card.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    pairs_train: pd.DataFrame
    pairs_test: pd.DataFrame
    card_train: pd.DataFrame
    instructions: Path
    """The folder with the parquet files of the instructions' card."""


def read_data(stage: Stage, settings: InstructionTuningSettings) -> Data:
    """The rows that the scale asks for."""
    folders = {name: stage.data_card(name) / "data" for name in ("instructions", "preferences")}
    card_train, card_test, pairs_train, pairs_test = (
        tables.up_to(pd.read_parquet(folders[name] / f"{split}.parquet"), settings.max_difficulty)
        for name in folders
        for split in ("train", "test")
    )
    train, test = card_train, tables.spread(card_test, settings.test_rows)
    if settings.source == "tulu-3":
        train = pd.DataFrame(tulu.instructions(path=stage.hub_path(tulu.SFT)).rows)
        pairs_train = pd.DataFrame(tulu.preferences(path=stage.hub_path(tulu.PREFERENCES)).rows)
    train = tables.spread(train, settings.train_rows)
    return Data(train, test, pairs_train, pairs_test, card_train, folders["instructions"])


def load(folder: Path) -> MoxinForCausalLM:
    """A model of an earlier stage, on the device."""
    return convert.from_pretrained(folder, device=convert.best_device())


def chat_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of stage 02 with the Tülu template in it."""
    return chat.install_template(PreTrainedTokenizerFast.from_pretrained(folder))


def short_conversations(
    data: Data, tokenizer: PreTrainedTokenizerFast, settings: InstructionTuningSettings
) -> tuple[list[Encoded], list[Encoded]]:
    """Conversations of the card for the test of reductions, to train on and held out: spread over
    its rows, and long documents left out, because that test has few tokens per row.
    """

    def encoded(split: str, count: int) -> list[Encoded]:
        rows = tables.spread(pd.read_parquet(data.instructions / f"{split}.parquet"), count)
        kept, _ = chat.encode_all(
            tables.conversations(rows),
            tokenizer,
            max_tokens=settings.sft.max_tokens,
            max_refused_share=0.6,
        )
        return kept

    return encoded("train", 1500), encoded("test", 200)
