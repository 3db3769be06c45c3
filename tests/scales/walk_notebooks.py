"""Runs the code cells of every notebook in order in one process, at a scale of a repository root,
and writes what became of each as JSON: "ok", or the cell and the traceback.

    python walk_notebooks.py ROOT SCALE RESULTS [STAGE ...]

What the cells display is kept as the runner keeps it, in the stage's notebook.ipynb. One process
instead of a kernel per notebook saves the imports. `lm_eval.simple_evaluate`, which fetches its
tasks from the hub, is replaced: it checks the names of its arguments and answers.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def evaluate(*, model, model_args, tasks, num_fewshot, batch_size):
    """In place of lm-evaluation-harness on hub weights."""
    from lm_eval.tasks import TaskManager

    assert model == "hf" and set(model_args) == {"pretrained", "dtype"} and num_fewshot >= 0
    assert set(tasks) <= set(known_tasks(TaskManager))
    return {"results": {name: {"acc,none": 0.5, "acc_norm,none": 0.5} for name in tasks}}


def known_tasks(manager) -> list[str]:
    if not hasattr(known_tasks, "names"):
        known_tasks.names = manager().all_tasks
    return known_tasks.names


SHOWN: list[dict[str, Any]] = []
"""What the running cell has displayed."""


def display(*values, raw=False, metadata=None, **options) -> None:
    """In place of IPython's: bundles, and Markdown with its metadata under its type."""
    for value in values:
        if raw:
            data, about = value, metadata or {}
        elif hasattr(value, "_repr_markdown_"):
            data, about = {"text/markdown": value.data}, {"text/markdown": value.metadata or {}}
        else:
            data, about = {"text/plain": type(value).__name__}, {}
        SHOWN.append({"output_type": "display_data", "data": data, "metadata": about})


def run(notebook: Path, scale: str, root: Path) -> str:
    names = {"__name__": "__main__"}
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    executed = []
    for index, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        try:
            exec(compile(source, f"{notebook.stem}, cell {index}", "exec"), names)
        except Exception:  # noqa: BLE001 - whatever a cell raises is reported
            return f"cell {index}\n{traceback.format_exc()}"
        if "parameters" in cell["metadata"].get("tags", ()):
            names |= {"scale": scale, "root": str(root)}
        executed.append({"cell_type": "code", "source": source, "outputs": [*SHOWN]})
        SHOWN.clear()
    folder = root / "runs" / scale / notebook.stem
    if (folder / "stage.json").is_file():
        text = json.dumps({"cells": executed}, ensure_ascii=False)
        (folder / "notebook.ipynb").write_text(text, encoding="utf-8")
    return "ok"


def main(root: Path, scale: str, results: Path, stages: list[str]) -> None:
    import IPython.display
    import lm_eval

    lm_eval.simple_evaluate = evaluate
    IPython.display.display = display
    os.chdir(root)
    became: dict[str, str] = {}
    for notebook in sorted((root / "notebooks").glob("*.ipynb")):
        if stages and notebook.stem not in stages:
            continue
        began = time.monotonic()
        became[notebook.stem] = run(notebook, scale, root)
        print(f"== {notebook.stem} {time.monotonic() - began:.1f} s", flush=True)
        results.write_text(json.dumps(became), encoding="utf-8")
        if became[notebook.stem] != "ok":
            break


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
