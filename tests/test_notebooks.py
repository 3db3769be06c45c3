"""Guarantees of the notebooks as something to read; the rules are in docs/adding-a-stage.md."""

import json
import re
from pathlib import Path

import pytest

from moxin_lab.stages import STAGES

NAMES = ["00_start_here", *(info.name for info in STAGES)]
CODE_LINES, WORDS, FIRST_FIGURE, LIMITS = 12, 110, 5, 6
"""Most lines of code and words in a cell, the cell by which a picture comes, most limits named."""
SECTIONS = ("What you will see", "Change this and run again", "What this does not show")
PICTURE = re.compile(r"\bshow_figure\(|\bfigures\.\w+\(|\bshow_pipeline\(")


class Cell:
    """A cell as its reader sees it."""

    def __init__(self, cell: dict) -> None:
        self.text = "".join(cell["source"])
        self.is_code = cell["cell_type"] == "code"
        self.metadata = cell["metadata"]
        self.tags = set(cell["metadata"].get("tags", []))
        self.is_folded = "bookkeeping" in self.tags
        self.lines = [line for line in self.text.splitlines() if line.strip()]


def read(repository: Path, name: str) -> list[Cell]:
    text = (repository / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    return [Cell(cell) for cell in json.loads(text)["cells"]]


def faults(cells: list[Cell]) -> list[str]:
    """What the rules of docs/adding-a-stage.md find wrong, as sentences; none is right."""
    found = []
    words = [cell for cell in cells if not cell.is_code]
    headings = [line for cell in words for line in cell.lines if re.match("#+ ", line)]
    if len([line for line in headings if line.startswith("# ")]) != 1:
        found.append("it has not exactly one H1")
    for section in SECTIONS:
        if f"## {section}" not in headings:
            found.append(f"it has no section {section!r}")
    for number, cell in enumerate(cells, 1):
        if cell.is_code and len(cell.lines) > CODE_LINES:
            found.append(f"cell {number} has {len(cell.lines)} lines of code")
        if not cell.is_code and len(cell.text.split()) > WORDS:
            found.append(f"cell {number} has {len(cell.text.split())} words")
        before = cells[number - 2] if number > 1 else None
        follows_its_like = cell.is_folded and before is not None and before.is_folded
        needs_words = cell.is_code and "parameters" not in cell.tags and not follows_its_like
        if needs_words and (before is None or before.is_code):
            found.append(f"no words before the code of cell {number}")
        if cell.is_folded and not cell.metadata.get("jupyter", {}).get("source_hidden"):
            found.append(f"cell {number} is bookkeeping, but JupyterLab shows its code")
    if not any(cell.is_code and PICTURE.search(cell.text) for cell in cells[:FIRST_FIGURE]):
        found.append(f"no picture in its first {FIRST_FIGURE} cells")
    for cell in words:
        if "## What this does not show" in cell.text:
            limits = cell.text.split("## What this does not show", 1)[1]
            if len(re.findall(r"^[-*] ", limits, re.MULTILINE)) > LIMITS:
                found.append(f"it names more than {LIMITS} things that it does not show")
    if not any(cell.is_code and "lab.versions()" in cell.text for cell in cells):
        found.append("no cell says lab.versions()")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_can_be_read_from_top_to_bottom(name, repository):
    assert faults(read(repository, name)) == []


def words(text: str) -> Cell:
    return Cell({"cell_type": "markdown", "metadata": {}, "source": [text]})


def code(text: str, **metadata) -> Cell:
    return Cell({"cell_type": "code", "metadata": metadata, "source": [text]})


def good() -> list[Cell]:
    return [
        words("# 01 · T"),
        code('scale = "tiny"', tags=["parameters"]),
        words("## What you will see\n\nA figure."),
        code("stage.show_figure(figures.f())"),
        words("## Change this and run again\n\n## What this does not show\n\n- One."),
        code("stage.say(lab.versions())"),
        words("What is recorded."),
        code("a", tags=["bookkeeping"], jupyter={"source_hidden": True}),
        code("b", tags=["bookkeeping"], jupyter={"source_hidden": True}),
    ]


@pytest.mark.parametrize(
    ("position", "cell", "fault"),
    [
        (0, words("Text."), "not exactly one H1"),
        (2, words("# Second"), "not exactly one H1"),
        (2, words("Text."), "no section 'What you will see'"),
        (3, code("stage.say('x')"), "no picture"),
        (3, code("figures.f()\n" * 13), "13 lines of code"),
        (6, words("word " * 111), "111 words"),
        (4, words("## Change this and run again\n## What this does not show\n" + "- a\n" * 7), "6"),
        (5, code("f()"), r"lab\.versions"),
        (6, code("f()"), "no words before the code of cell 7"),
        (7, code("a", tags=["bookkeeping"]), "JupyterLab shows"),
    ],
)
def test_each_rule_finds_its_fault(position, cell, fault):
    assert faults(good()) == []
    cells = good()
    cells[position] = cell
    assert re.search(fault, " ".join(faults(cells)))
