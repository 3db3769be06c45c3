"""Rows of a benchmark from the files that a package, or a folder, holds them in.

    rows = math_problems({"math/amc.json": content})    # one dict per item, for a task file

Guarantees: an item without a question or without exactly one right answer is an error that names
the item, not a row; equal bytes give equal rows in the same order.
Out of scope: where files come from (`benchmark_sets`), prompts (`tasks/*.yaml`; BIG-bench's are
part of its files, and so of the rows).
"""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Files = Mapping[str, bytes]
"""Name of each file to its content."""
Rows = list[dict[str, Any]]

# BIG-bench's defaults, where a task's JSON says nothing (bigbench/api/json_task.py).
INPUT_PREFIX, OUTPUT_PREFIX, CHOICE_PREFIX = "\nQ: ", "\nA: ", "\n  choice: "


class ItemError(ValueError):
    """An item that is not complete; the message says which."""


def gsm8k(files: Files) -> Rows:
    """question, answer (the solution; the number after ####)."""
    rows = [{"question": item["question"], "answer": item["answer"]} for item in _json_lines(files)]
    for index, row in enumerate(rows):
        _require(index, row["question"], row["answer"].partition("####")[2].strip())
    return rows


def gpqa(files: Files) -> Rows:
    """question, choices (four), label. The right answer's place is drawn from the item's record id,
    so that it is the same on each machine and no place is right more often by design.
    """
    (content,) = files.values()
    rows = []
    reader = csv.DictReader(io.StringIO(content.decode("utf-8"), newline=""))
    for index, item in enumerate(reader):
        names = ["Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3))]
        choices = [item[name].strip() for name in names]
        _require(index, item["Question"], *choices)
        order = random.Random(item["Record ID"]).sample(range(4), 4)
        rows.append(
            {
                "question": item["Question"].strip(),
                "choices": [choices[place] for place in order],
                "label": order.index(0),
            }
        )
    return rows


def math_lines(files: Files) -> Rows:
    """problem, answer of JSON lines with `question`."""
    return _problems((item["question"], item["answer"]) for item in _json_lines(files))


def math_problems(files: Files, *, only: str = "") -> Rows:
    """problem, answer of a JSON list. only: keeps items with this in their `url`."""
    (content,) = files.values()
    return _problems(
        (item["problem"], item["answer"])
        for item in json.loads(content)
        if only in item.get("url", "")
    )


def human_eval(files: Files) -> Rows:
    """task_id, prompt, entry_point, canonical_solution, test."""
    (content,) = files.values()
    rows = [json.loads(line) for line in gzip.decompress(content).splitlines() if line.strip()]
    for index, row in enumerate(rows):
        _require(index, *(row[key] for key in ("prompt", "entry_point", "test")))
    return rows


def bigbench_choices(files: Files) -> Rows:
    """context (with BIG-bench's own prefixes), choices, label, subtask of `task.json` files that
    score by `multiple_choice_grade`.
    """
    rows: Rows = []
    for name, content in files.items():
        task = json.loads(content)
        for item in task["examples"]:
            choices = list(item["target_scores"])
            right = [choice for choice in choices if item["target_scores"][choice] == 1]
            if len(right) != 1 or sum(item["target_scores"].values()) != 1:
                raise ItemError(f"item {len(rows)} of {name} has {len(right)} right answers")
            listed = "".join(task.get("choice_prefix", CHOICE_PREFIX) + each for each in choices)
            context = (
                task.get("task_prefix", "")
                + task.get("example_input_prefix", INPUT_PREFIX)
                + item["input"]
                + (listed if task.get("append_choices_to_input", True) else "")
                + task.get("example_output_prefix", OUTPUT_PREFIX)
            )
            _require(len(rows), item["input"], *choices)
            rows.append(
                {
                    "context": context,
                    "choices": choices,
                    "label": choices.index(right[0]),
                    "subtask": name.split("/")[-2],
                }
            )
    return rows


def wikilingua(files: Files, *, language: str) -> Rows:
    """source (an article), summary (in English), choices (this summary and those of three other
    articles), label. language: BIG-bench's word for it, such as `japanese`. BIG-bench's file has a
    few articles without a text or a summary; those are left out.
    """
    (content,) = files.values()
    mark = f"wiki_lingua_{language}_"
    items = [
        each
        for each in json.loads(content)["examples"]
        if each["comment"].startswith(mark) and each["input"].strip() and each["target"].strip()
    ]
    summaries = [item["target"] for item in items]
    rows = []
    for item in items:
        draw = random.Random(item["comment"])
        others = sorted(set(summaries) - {item["target"]})
        choices = [item["target"], *draw.sample(others, 3)]
        draw.shuffle(choices)
        rows.append(
            {
                "source": item["input"],
                "summary": item["target"],
                "choices": choices,
                "label": choices.index(item["target"]),
            }
        )
    return rows


def _problems(pairs: Iterable[tuple[str, Any]]) -> Rows:
    rows = []
    for index, (problem, answer) in enumerate(pairs):
        if isinstance(answer, float) and answer.is_integer():
            answer = int(answer)  # AMC's answers are stored as 142.0
        rows.append({"problem": problem, "answer": "" if answer is None else str(answer)})
        _require(index, problem, rows[-1]["answer"])
    return rows


def _json_lines(files: Files) -> list[dict[str, Any]]:
    lines = [line for content in files.values() for line in content.splitlines()]
    return [json.loads(line) for line in lines if line.strip()]


def _require(index: int, *texts: str) -> None:
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ItemError(f"item {index} lacks its question or its answer")


Converter = Callable[[Files], Rows]
