"""Benchmarks by name: local task files, shots and limits, every model, mistakes named."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from moxin_lab.evaluation.benchmarks import COLUMNS, run_benchmarks
from moxin_lab.evaluation.language_models import NGramLM, TokenLM
from moxin_lab.evaluation.ngrams import NGram
from moxin_lab.evaluation.scoring import Score

CHOICE = """
task: lab_choice
dataset_path: json
dataset_kwargs: {data_files: {test: lab_tasks/data.jsonl, train: lab_tasks/train.jsonl}}
output_type: multiple_choice
test_split: test
fewshot_split: train
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc}]
"""
WRITTEN = """
task: lab_written
dataset_path: json
dataset_kwargs: {data_files: {test: lab_tasks/data.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


class Letters:
    """A tokenizer of characters."""

    bos_token_id, eos_token_id, unk_token_id = 1, 2, None
    added_tokens_decoder: ClassVar[dict] = {}

    def __call__(self, texts, **_):
        ids = [[3 + ord(letter) % 100 for letter in text] for text in texts]
        return {"input_ids": ids, "special_tokens_mask": [[0] * len(row) for row in ids]}

    def decode(self, ids):
        return "</s>"


class PrefersShort(TokenLM):
    """Each token costs one nat, so the shortest choice wins; writes `yes`."""

    def __init__(self):
        super().__init__(Letters(), max_length=512)
        self.prompts = []

    def score_tokens(self, requests):
        self.prompts += [request.tokens for request in requests]
        return [Score(float(request.num_scored), False) for request in requests]

    def generate_until(self, requests, disable_tqdm=False):
        return ["yes"] * len(requests)


@dataclass(frozen=True)
class Entry:
    name: str
    shots: int | None = None
    limit: int | None = None
    folder: str | None = "lab_tasks"


@pytest.fixture
def lab_tasks(tmp_path, monkeypatch):
    """A folder of two tasks with four questions; the shortest choice is right in three."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "lab_tasks"
    folder.mkdir()
    (folder / "lab_choice.yaml").write_text(CHOICE)
    (folder / "lab_written.yaml").write_text(WRITTEN)
    rows = [
        {"question": f"Is {i} even?", "choices": ["yes", "certainly not"], "label": int(i == 3)}
        for i in range(4)
    ]
    for name in ("data", "train"):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def ngram():
    fitted = NGram.fit([[5, 6, 7, 5, 6]], order=2, vocab_size=103, bos_id=1)
    return NGramLM(fitted, Letters())


def test_a_local_task_is_scored_for_every_model(lab_tasks):
    table = run_benchmarks({"short": PrefersShort(), "bigram": ngram()}, [Entry("lab_choice")])
    assert tuple(table.columns) == COLUMNS
    row = table[table["model"] == "short"].iloc[0]
    assert (row["task"], row["metric"], row["items"]) == ("lab_choice", "acc", 4)
    assert row["value"] == 0.75 and row["stderr"] == pytest.approx(np.sqrt(0.75 * 0.25 / 3))
    assert set(table["model"]) == {"short", "bigram"}


def test_a_model_that_cannot_generate_is_omitted_where_text_is_generated(lab_tasks):
    table = run_benchmarks({"short": PrefersShort(), "bigram": ngram()}, [Entry("lab_written")])
    assert table["model"].tolist() == ["short"]
    assert (table["metric"].iloc[0], table["value"].iloc[0]) == ("exact_match", 0.75)


def test_shots_lengthen_prompts_and_a_limit_reads_the_first_items(lab_tasks):
    none, two = PrefersShort(), PrefersShort()
    bare = run_benchmarks({"m": none}, [Entry("lab_choice", shots=0, limit=2)])
    shown = run_benchmarks({"m": two}, [Entry("lab_choice", shots=2, limit=2)])
    assert bare["items"].tolist() == shown["items"].tolist() == [2]
    assert (bare["shots"].iloc[0], shown["shots"].iloc[0]) == (0, 2)
    assert min(map(len, two.prompts)) > max(map(len, none.prompts))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry("lab_nothing"), "no task 'lab_nothing' in the folder lab_tasks"),
        (Entry("lab_choice", folder="elsewhere"), "there is no folder elsewhere"),
    ],
    ids=["task", "folder"],
)
def test_an_unknown_task_is_refused_before_any_model_is_asked(entry, message, lab_tasks):
    model = PrefersShort()
    with pytest.raises(ValueError, match=message):
        run_benchmarks({"m": model}, [Entry("lab_choice"), entry])
    assert not model.prompts
