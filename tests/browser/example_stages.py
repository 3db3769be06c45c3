"""Pages of stages 04, 05, 06 and 08 as long and as wide as real ones: every figure of
`tests/figure_examples.py`, the tables of the released pages, and today's tables of stage 08.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pandas as pd
from bs4 import BeautifulSoup
from matplotlib import pyplot as plt

from moxin_lab.evaluation import published, stage_scores
from moxin_lab.lab import show, site
from tests import figure_examples
from tests.lab import example_runs

RELEASED = figure_examples.REPOSITORY / "reports" / "released"
STAGES = {
    "04_pretraining": ("pretraining.", "small-h100-chain"),
    "05_instruction_tuning": ("posttraining.", "small"),
    "06_reasoning": ("reasoning.", "small-h100-chain"),
    "08_benchmarks": ("evaluation.", "small-h100-chain"),
}
"""Stage -> the package of its figures, and the released folder that has its page."""
CHECKPOINTS = "Right answers of every stage's checkpoint"


def write(root: Path) -> list[Path]:
    """Turn `root` into a repository with these stages; their pages."""
    example_runs.write_example(root)
    for stage, (package, released) in STAGES.items():
        shown = [*_figures(package), *_released_tables(RELEASED / released / f"{stage}.html")]
        if stage == "08_benchmarks":
            shown += _tables_of_stage_08()
        folder = root / "runs" / "tiny" / stage
        cells = [example_runs.words(f"# {stage[:2]} · {stage[3:]}\n\nAn example.")]
        cells += [example_runs.code("show()", [example_runs.html(each)]) for each in shown]
        example_runs.write_notebook(folder / "notebook.ipynb", cells)
        measures = [example_runs.measure(number, 1.0) for number in range(40)]
        record = example_runs.record(stage, stage[3:], measures=measures)
        (folder / "stage.json").write_text(json.dumps(record), encoding="utf-8")
    out = site.build_site(root, "tiny").parent
    return [out / f"{stage}.html" for stage in STAGES]


def _figures(package: str) -> Iterator[str]:
    with matplotlib.rc_context():
        show.style()
        for (module, name), draw in figure_examples.examples().items():
            if module.startswith(package):
                figure = draw()
                words = f"{module}.{name}"
                yield show.figure_html(figure, alt=words, caption=words, scale="tiny")
                plt.close(figure)


def _released_tables(page: Path) -> Iterator[str]:
    """The tables of a released page as its notebook displayed them."""
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    for table in soup.select("table.moxin-table"):
        del table["id"]
        for label in table.select("a.numbered"):
            label.decompose()
        for cell in table.select("[data-label]"):
            del cell["data-label"]
        yield str(table.find_parent(class_="scroll"))


def _tables_of_stage_08() -> Iterator[str]:
    shares = figure_examples.checkpoint_shares()
    names = shares["checkpoint"].unique()
    documents = pd.DataFrame({"checkpoint": names, "bits": range(9, 9 + len(names)), "bytes": 8})
    frame = stage_scores.table(shares, documents, {stage_scores.QUESTIONS: 0.3})
    yield show.table_html(frame, caption=CHECKPOINTS, scale="tiny")
    for table in figure_examples.published_tables().values():
        yield published.folded(table, "tiny", attempted=False)
