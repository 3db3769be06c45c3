"""Tasks by name or file, loaded and checked before any model is.

    tasks = load(["arc_easy", "moxin_gsm8k", "my_tasks/capitals.yaml"], include=Path("my_tasks"))
    tasks.facts["arc_easy"].chance          # 0.25 for four choices each

A name is a task of this package (`tasks/`), a file or a task of the folder that the user includes,
or a task or group of lm-evaluation-harness, in this order. Files of a task may lie beside its YAML
or below the working directory.

Guarantees: an unknown task, a file that cannot be read, data that are not there, an item without a
gold answer: LabError with the task, the item and the reason; a task of this package reads the
recorded items (`benchmark_sets`) and nothing else.
Out of scope: running them (`evaluate`).
"""

import difflib
import functools
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval.api.registry import METRIC_REGISTRY
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from moxin_lab.evaluation import benchmark_sets
from moxin_lab.evaluation.harness import TASKS_FOLDER, quiet
from moxin_lab.lab.artifacts import LabError, sha256_file

FILE_FORMATS = ("json", "csv", "parquet", "text")
"""Builders of `datasets` that read files of the user's own."""


class Facts(NamedTuple):
    """What can be said of a task before a model is asked.

    items: of the task, and scored: those that will be. chance: expected accuracy of choosing
    blindly; majority: accuracy of always giving the answer whose text is right most often; None
    where the task has no such thing. data: SHA-256 of its files, by name.
    """

    items: int
    scored: int
    chance: float | None
    majority: float | None
    data: dict[str, str]


@dataclass
class Tasks:
    """Loaded tasks. objects: lm-eval's tasks and groups, as `simple_evaluate` takes them."""

    manager: TaskManager
    objects: list[Any]
    leaves: dict[str, Any]
    facts: dict[str, Facts] = field(default_factory=dict)

    @property
    def run_programs(self) -> bool:
        """Whether a task runs code that the model writes."""
        return any(getattr(task, "UNSAFE_CODE", False) for task in self.leaves.values())


def load(
    names: Sequence[str],
    include: Path | None = None,
    *,
    shots: int | None = None,
    limit: int | None = None,
    data: Path | None = None,
    cache: Path | None = None,
    online: bool = False,
) -> Tasks:
    """The tasks of these names (none: the task of the file `include`), checked.

    include: a YAML file, or a folder of them. shots: examples before each item, in place of what
    the task says. limit: the first items only. data: folder with the files of this package's tasks
    on held-out text. cache: where `datasets` may write what it makes of our files. online: whether
    the user has let the harness reach the hub (for the error message only).
    Raises LabError.
    """
    cache = Path(tempfile.gettempdir()) if cache is None else cache
    files = _task_files(include)
    wanted = list(dict.fromkeys(names or files))
    if not wanted:
        raise LabError("name a task: --tasks NAME,NAME, or --include FILE.yaml")
    if not names and include is not None and include.is_dir():
        raise LabError(f"{include} is a folder: say with --tasks which of its tasks")
    own = {path.stem: path for path in sorted(TASKS_FOLDER.glob("moxin_*.yaml"))}
    specs: list[str | dict[str, Any]] = []
    for name in wanted:
        path = own.get(name) or files.get(name)
        if path is None and name.endswith((".yaml", ".yml")):
            path = Path(name)
        if path is None:
            specs.append(name)
        elif name in own:
            specs.append(_own_task(path, data, cache))
        else:
            specs.append(_users_task(path))
    objects: list[Any] = []
    leaves: dict[str, Any] = {}
    manager = TaskManager(include_defaults=False)
    for name, spec in zip(wanted, specs, strict=True):
        if isinstance(spec, str):
            manager = _manager_of(name, include, [*own, *files])
        loaded = _build(manager, name, spec, online=online)
        if repeated := set(loaded["tasks"]) & set(leaves):
            raise LabError(f"--tasks names {', '.join(sorted(repeated))} twice, once by {name}")
        leaves |= loaded["tasks"]
        top = loaded["groups"].get(name)
        objects += [top] if top is not None else list(loaded["tasks"].values())
    tasks = Tasks(manager, objects, leaves)
    for name, task in leaves.items():
        if shots is not None:
            task.set_config(key="num_fewshot", value=shots)
        if task.config.num_fewshot is not None and task.config.num_fewshot < 0:
            raise LabError(f"task {name}: num_fewshot is {task.config.num_fewshot}")
        with quiet():
            tasks.facts[name] = _examine(name, task, limit)
    return tasks


@functools.cache
def _manager(include: Path | None, *, with_harness: bool) -> TaskManager:
    """Indexing the harness's own tasks takes seconds, so it is done once, and only if needed."""
    with quiet():
        return TaskManager(
            include_path=None if include is None else str(include), include_defaults=with_harness
        )


def _manager_of(name: str, include: Path | None, ours: Sequence[str]) -> TaskManager:
    """The manager that knows a name which is no task file. Raises LabError if none does."""
    folder = include if include is not None and include.is_dir() else None
    if folder is not None and name in _manager(folder, with_harness=False).all_tasks:
        return _manager(folder, with_harness=True)  # a group, which may name the harness's tasks
    manager = _manager(None, with_harness=True)
    if name not in manager.all_tasks:
        raise LabError(_unknown(name, [*manager.all_tasks, *ours], include))
    return manager


def _task_files(include: Path | None) -> dict[str, Path]:
    """The YAML files that the user includes, by the name of their task."""
    if include is None:
        return {}
    if include.is_file():
        return {_read_yaml(include)["task"]: include}
    if not include.is_dir():
        raise LabError(f"--include {include}: there is no such file or folder")
    files = {}
    for path in sorted(include.rglob("*.yaml")):
        try:
            config = load_yaml(path, resolve_func=False)
        except Exception:  # noqa: BLE001 - named by `_unknown` if its task is asked for
            continue
        if isinstance(config.get("task"), str) and "class" not in config:
            files[config["task"]] = path
    return files


def _read_yaml(path: Path, *, functions: bool = False) -> dict[str, Any]:
    """A task file with what it includes. Raises LabError."""
    if not path.is_file():
        raise LabError(f"there is no task file {path}")
    try:
        config = load_yaml(path, resolve_func=functions)
    except Exception as error:  # YAML's, the file system's, and of the functions that it names
        raise LabError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(config.get("task"), str):
        raise LabError(f"{path} has no `task: NAME`, so it is not a task file")
    return config


def _own_task(path: Path, data: Path | None, cache: Path) -> dict[str, Any]:
    config = _read_yaml(path, functions=True)
    file_name = config["dataset_kwargs"]["data_files"]["test"]
    stem = Path(file_name).stem
    if stem in benchmark_sets.SETS:
        found = benchmark_sets.find(stem)
        remedy = f"run `moxin-lab benchmarks fetch {stem}`"
    else:
        found = None if data is None else data / file_name
        remedy = f"give --data FOLDER, where {file_name} is; stage 08 writes it"
    if found is None or not found.is_file():
        raise LabError(f"{path.stem} has no items here: {remedy}")
    source = {"data_files": {"test": str(found)}, "cache_dir": str(cache)}
    return {**config, "dataset_kwargs": source}


def _users_task(path: Path) -> dict[str, Any]:
    """A user's task file; relative names of its files mean the working directory, or the file's own
    folder where they are not there.
    """
    config = _read_yaml(path, functions=True)
    _check_metrics(config, path)
    kwargs = config.get("dataset_kwargs") or {}
    sources = kwargs.get("data_files")
    if config.get("dataset_path") not in FILE_FORMATS or sources is None:
        return config

    def place(name: Any) -> Any:
        if not isinstance(name, str):
            return [place(each) for each in name]
        if any(mark in name for mark in ("*", "://")):
            return name
        for each in (Path(name), path.parent / name):
            if each.is_file():
                return str(each.resolve())
        raise LabError(f"{path}: there is no {name}, neither here nor in {path.parent}")

    named = (
        {split: place(each) for split, each in sources.items()}
        if isinstance(sources, dict)
        else place(sources)
    )
    return {**config, "dataset_kwargs": {**kwargs, "data_files": named}}


def _check_metrics(config: dict[str, Any], path: Path) -> None:
    """Raises LabError for a metric by a name that the harness has not; it would look on the hub for
    one, and go on without. A task with `process_results` names its own.
    """
    metrics = config.get("metric_list") or []
    if "process_results" in config or not isinstance(metrics, list):
        return
    for entry in metrics:
        name = entry.get("metric") if isinstance(entry, dict) else entry
        ours = isinstance(name, str) and not (isinstance(entry, dict) and entry.get("hf_evaluate"))
        if ours and name not in METRIC_REGISTRY:
            close = difflib.get_close_matches(name, METRIC_REGISTRY, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise LabError(f"{path}: the harness has no metric {name}{hint}")


def _unknown(name: str, known: Sequence[str], include: Path | None) -> str:
    where = "lm-evaluation-harness or in moxin_lab/evaluation/tasks"
    if include is not None:
        where = f"{include}, in {where}"
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    broken = []
    if include is not None and include.is_dir():
        for path in sorted(include.rglob("*.yaml")):
            try:
                load_yaml(path, resolve_func=False)
            except Exception as error:  # noqa: BLE001 - what it is, is said
                broken.append(f"\n{path} cannot be read: {type(error).__name__}: {error}")
    return f"there is no task {name!r} in {where}{hint}{''.join(broken)}"


def _build(manager: TaskManager, name: str, spec: Any, *, online: bool) -> Any:
    try:
        with quiet():
            return manager.load([spec])
    except Exception as error:  # of the harness, of `datasets`, and of the task's own functions
        hub = (
            ""
            if isinstance(spec, dict) or online
            else (". Its data come from the hub; --online lets the harness fetch them")
        )
        raise LabError(
            f"task {name} cannot be loaded: {type(error).__name__}: {error}{hub}"
        ) from error


# ---- what is in a task


def _examine(name: str, task: Any, limit: int | None) -> Facts:
    """Raises LabError for a task without items or with an item that has no gold answer."""
    try:
        docs = task.eval_docs
        count = len(docs)
    except Exception as error:  # a split that the data lack, and the task's own functions
        raise LabError(f"task {name} has no items: {type(error).__name__}: {error}") from error
    if not count:
        raise LabError(f"task {name} has no items")
    _check_config(name, task)
    scored = count if limit is None else min(limit, count)
    golds: list[Any] = []
    chances: list[float] = []
    for index, doc in enumerate(itertools.islice(docs, scored)):
        try:
            _check_prompt(task, doc)
        except Exception as error:  # as below
            raise LabError(
                f"task {name}, item {index} cannot be asked: {type(error).__name__}: {error}"
            ) from error
        try:
            gold, chance = _gold(task, doc)
        except Exception as error:  # a missing field, a template, the task's own functions
            raise LabError(
                f"task {name}, item {index} has no gold answer that can be read: "
                f"{type(error).__name__}: {error}"
            ) from error
        if chance is not None:
            chances.append(chance)
        golds.append(gold)
    is_choice = task.OUTPUT_TYPE == "multiple_choice"
    has_answers = is_choice or (
        task.OUTPUT_TYPE == "generate_until" and task.config.process_results is None
    )
    majority = None
    if has_answers and all(isinstance(gold, str) for gold in golds):
        majority = Counter(golds).most_common(1)[0][1] / len(golds)
    return Facts(
        items=count,
        scored=scored,
        chance=sum(chances) / len(chances) if chances else None,
        majority=majority,
        data=_data_hashes(task),
    )


def _check_prompt(task: Any, doc: Any) -> None:
    """Raises ValueError for an item without a prompt, or without two choices that are texts."""
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(doc)
        is_list = isinstance(choices, list | tuple)
        if not is_list or not all(isinstance(each, str) and each for each in choices):
            raise ValueError(f"the choices are no list of texts: {choices!r}")
        if len(choices) < 2:
            raise ValueError(f"there is nothing to choose from: {choices!r}")
        if task.multiple_input:
            return
    prompt = task.doc_to_text(doc)
    if not isinstance(prompt, str) or (not prompt and task.OUTPUT_TYPE == "generate_until"):
        raise ValueError(f"doc_to_text gives {prompt!r}")
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise ValueError("the prompt has half a character, which no tokenizer reads")


def _check_config(name: str, task: Any) -> None:
    """Raises LabError for what the harness would meet only after a model has answered."""
    text, fields = task.config.doc_to_text, getattr(task.eval_docs, "column_names", None)
    if isinstance(text, str) and fields and text.isidentifier() and text not in fields:
        raise LabError(
            f"task {name}: doc_to_text is {text!r}, which is no field of the items "
            f"({', '.join(fields)}), so each prompt would be that word"
        )


def _gold(task: Any, doc: Any) -> tuple[Any, float | None]:
    """The gold answer (the text of a choice), and the chance of a blind choice. Raises
    ValueError.
    """
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(doc)
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        if isinstance(gold, str):
            if gold not in choices:
                raise ValueError(f"{gold!r} is none of the choices {choices!r}")
            gold = choices.index(gold)
        golds = gold if isinstance(gold, list) else [gold]
        places = [each for each in golds if type(each) is int and 0 <= each < len(choices)]
        if not golds or len(places) < len(golds):
            raise ValueError(f"{gold!r} is no place among {len(choices)} choices")
        texts = [choices[place] for place in sorted(set(places))]
        return (texts[0] if len(texts) == 1 else texts), len(texts) / len(choices)
    if task.config.doc_to_target is None:
        if task.config.process_results is None:
            raise ValueError("the task file has no doc_to_target")
        return None, None  # the task's own function finds what is right
    gold = task.doc_to_target(doc)
    is_empty = gold is None or (isinstance(gold, str | list) and not gold)
    if is_empty and (gold is None or task.config.process_results is None):
        raise ValueError(f"doc_to_target gives {gold!r}")
    return gold, None


def _data_hashes(task: Any) -> dict[str, str]:
    sources = (task.config.dataset_kwargs or {}).get("data_files")
    listed = json.loads(json.dumps(sources)) if sources else {}
    groups = listed.values() if isinstance(listed, dict) else [listed]
    names = [name for each in groups for name in (each if isinstance(each, list) else [each])]
    return {Path(name).name: sha256_file(Path(name)) for name in names if Path(name).is_file()}
