"""Benchmarks by name: any task of lm-evaluation-harness, or of a folder of task files, as an entry
of the scale file.

    evaluation.tasks:
      - {name: arc_easy, shots: 0}                          # of the harness; data on the hub
      - {name: lab_capitals, shots: 2, folder: lab_tasks}   # lab_tasks/lab_capitals.yaml

    table = run_benchmarks(models, settings.tasks)

Guarantees: an unknown task is refused with its name before any model runs; a model that cannot
generate (the n-gram) is omitted from tasks that need it. Out of scope: the data. A task of the
harness downloads them, or reads the hub's cache where the network is off; a task file may name
files of its own, relative to the folder in which the notebook runs (the repository's root).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from moxin_lab.evaluation.harness import quiet
from moxin_lab.evaluation.language_models import NGramLM, TokenLM
from moxin_lab.scales.sections import TaskSettings

COLUMNS = ("task", "shots", "items", "model", "metric", "value", "stderr")


def run_benchmarks(models: Mapping[str, TokenLM], entries: Sequence[TaskSettings]) -> pd.DataFrame:
    """Each task with each model: one row per task, model and metric, in `COLUMNS`.

    value and stderr are the harness's (stderr is NaN where it gives none); items is the number of
    documents that were scored. A group such as `mmlu` gives rows for its tasks, too.
    Raises ValueError for an unknown task or folder, and what the harness raises for missing data.
    """
    managers = [_manager(entry) for entry in entries]
    rows = []
    for entry, manager in zip(entries, managers, strict=True):
        for name, lm in models.items():
            if isinstance(lm, NGramLM) and _generates(entry, manager):
                continue
            with quiet():
                results = simple_evaluate(
                    model=lm,
                    tasks=[entry.name],
                    task_manager=manager,
                    num_fewshot=entry.shots,
                    limit=entry.limit,
                    bootstrap_iters=1,  # standard errors of means are closed forms
                )
            rows += list(_rows(results, name))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def run_named(models: Mapping[str, TokenLM], entries: Sequence[TaskSettings]) -> pd.DataFrame:
    """`run_benchmarks`, or its empty table if the scale file names no task."""
    return run_benchmarks(models, entries) if entries else pd.DataFrame(columns=list(COLUMNS))


def _manager(entry: TaskSettings) -> TaskManager:
    if entry.folder is None:
        manager = TaskManager()  # indexes thousands of files
    elif not Path(entry.folder).is_dir():
        raise ValueError(f"task {entry.name!r}: there is no folder {entry.folder}")
    else:
        manager = TaskManager(include_path=entry.folder, include_defaults=False)
    if entry.name not in manager.all_tasks:
        where = f"the folder {entry.folder}" if entry.folder else "lm-evaluation-harness"
        raise ValueError(f"there is no task {entry.name!r} in {where}")
    return manager


def _generates(entry: TaskSettings, manager: TaskManager) -> bool:
    """Whether any task of the entry asks for generated text."""
    with quiet():
        loaded = manager.load([entry.name])
    return any(task.OUTPUT_TYPE == "generate_until" for task in loaded["tasks"].values())


def _rows(results: Mapping[str, Any], model: str) -> Iterator[dict[str, Any]]:
    """The harness writes `acc,none` for a metric and its filter, and `acc_stderr,none`."""
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            yield {
                "task": task,
                "shots": results["n-shot"].get(task),
                "items": results["n-samples"].get(task, {}).get("effective"),
                "model": model,
                "metric": metric if filtered == "none" else f"{metric} ({filtered})",
                "value": float(value),
                "stderr": float(error) if isinstance(error, int | float) else float("nan"),
            }
