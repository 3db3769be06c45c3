"""Makes a notebook of a text file whose cells begin with `# %%`, or `# %% [markdown]`, or a tag.

    python docs/cells_to_notebook.py page_lengths.py notebooks/11_page_lengths.ipynb

    # %% [markdown]
    # # A heading, each line behind a number sign
    # %% parameters
    scale = "tiny"
    # %%
    print("a code cell")

Guarantees: no outputs, cell ids that do not change between runs. Out of scope: the way back.
"""

import json
import sys
from pathlib import Path


def notebook(text: str) -> dict[str, object]:
    """The notebook of a text in cells."""
    cells = []
    for index, part in enumerate(text.split("# %%")[1:]):
        head, _, body = part.partition("\n")
        kind, lines = head.strip(), body.strip("\n").split("\n")
        cell: dict[str, object] = {"id": f"cell-{index}", "metadata": {}}
        if kind == "[markdown]":
            cell["cell_type"] = "markdown"
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        else:
            cell |= {"cell_type": "code", "outputs": [], "execution_count": None}
            if kind:
                cell["metadata"] = {"tags": [kind]}
            if kind == "bookkeeping":  # JupyterLab folds it as the report does
                cell["metadata"] = {"jupyter": {"source_hidden": True}, "tags": [kind]}
        cell["source"] = [line + "\n" for line in lines[:-1]] + lines[-1:]
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python docs/cells_to_notebook.py CELLS.py NOTEBOOK.ipynb")
    cells_file, notebook_file = map(Path, sys.argv[1:])
    made = notebook(cells_file.read_text(encoding="utf-8"))
    notebook_file.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", "utf-8")
