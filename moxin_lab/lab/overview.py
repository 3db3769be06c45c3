"""What `notebooks/00_start_here.ipynb` shows: the map of the stages, what each needs, and the best
figure of each.

    overview.show_pipeline()
    overview.show_best_figures(scale, root)

A figure is that of the newest run at this scale; where a stage has not run, it is that of the run
committed under `reports/released`, and its caption says so. So a first reader sees something before
anything has run.

Guarantees: nothing is computed again and nothing is written; a figure is the very picture of the
stage's notebook, with its text alternative.
Out of scope: the front page of the report (`front_page.py`), which has the same sentences.
"""

import html
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from moxin_lab.lab import findings, pictures, show
from moxin_lab.lab.artifacts import (
    MAX_NOTEBOOK_BYTES,
    LabError,
    find_root,
    read_json,
    read_record,
    stage_folder,
)
from moxin_lab.lab.findings import RELEASED, SMALL, SMALL_OF
from moxin_lab.stages import STAGES, StageInfo, producer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Guide(NamedTuple):
    """A stage for a newcomer. `figure`: words in the caption of its best figure, here and then in
    the released run; the first figure with them is taken."""

    stage: str
    question: str
    figure: tuple[str, ...]


GUIDES = (
    Guide(
        "01_data_curation",
        "What does a pretraining corpus look like before and after cleaning?",
        ("Outcome of the documents", "Where the documents"),
    ),
    Guide(
        "02_tokenizer",
        "Does routing text to experts by script save tokens?",
        ("Bytes per token on held-out text", "Bytes a token on held-out text"),
    ),
    Guide(
        "03_model",
        "What is in 36 blocks, and what does the rolling cache save?",
        ("Bytes of keys and values",),
    ),
    Guide(
        "04_pretraining",
        "What does a model know after each of three phases?",
        ("Held-out bits per byte",),
    ),
    Guide(
        "05_instruction_tuning",
        "What do fine-tuning and preferences change?",
        ("Exact match on held-out prompts",),
    ),
    Guide(
        "06_reasoning",
        "Does reinforcement learning add anything to chains of thought?",
        ("pass@1 in the group", "pass@k of each model"),
    ),
    Guide(
        "07_vision_language",
        "Does the model look at the picture, or guess from the question?",
        ("tasks are answered better with the picture", "Share of right answers by task"),
    ),
    Guide(
        "08_benchmarks",
        "How is a benchmark scored, and how can it be passed without reading?",
        ("same items", "Cloze accuracy"),
    ),
    Guide(
        "09_applications",
        "Can it answer from documents, with the source, and say when it cannot?",
        ("Recall at 5 of pages by their heading",),
    ),
    Guide(
        "10_openness_report",
        "Which published claims hold, and how open is the model?",
        ("published claims reproduced at this scale", "Published claims by topic"),
    ),
)


def show_pipeline() -> None:
    """Display the stages as boxes in their order, each with what it leaves."""
    show.style()
    figure = _pipeline()
    alt = "Stages in order: " + "; ".join(
        f"{info.title} leaves {', '.join(info.leaves)}" for info in STAGES
    )
    show.figure_output(
        figure, alt=alt.replace("_", " "), caption="The stages and what each leaves.", scale=""
    )


def show_map() -> None:
    """Display one row per stage: the question that it answers."""
    import pandas as pd

    rows = [(guide.stage, guide.question) for guide in GUIDES]
    frame = pd.DataFrame(rows, columns=["notebook", "the question that it answers"])
    show.table_output(frame.set_index("notebook"), caption="The notebooks.", scale="")


def show_needs(scale: str, root: str | Path = ".") -> None:
    """Display one row per stage: the earlier ones that it needs, what it leaves, how long its
    notebook says that it takes at tiny scale, and how long it took here at this one, if it has run.
    """
    import pandas as pd

    folder = find_root(root)
    rows = []
    for info in STAGES:
        record = read_record(folder, scale, info.name)
        took = show.format_seconds(record["seconds"]) if record else "not run yet"
        leaves = ", ".join(info.leaves).replace("_", " ")
        stated = stated_time(folder / "notebooks" / f"{info.name}.ipynb")
        rows.append((info.name, needs_in_words(info), leaves, stated, took))
    columns = ["notebook", "needs", "leaves", "tiny, two cores", f"here, {scale} scale"]
    caption = (
        "What each notebook needs and leaves, and how long it takes. In brackets: only if the "
        "scale's file asks for it."
    )
    frame = pd.DataFrame(rows, columns=columns).set_index("notebook")
    show.table_output(frame, caption=caption, scale="", clock=True)


def needs_in_words(info: StageInfo) -> str:
    """`01, 02, 04 (05, 06)`: numbers of the stages whose artifacts a stage takes, or may take."""
    if info.reads_records:
        return "the records of all that have run"
    needs, may = (
        sorted({producer(artifact).name[:2] for artifact in artifacts})
        for artifacts in (info.takes, info.may_take)
    )
    brackets = ", ".join(number for number in may if number not in needs)
    return (", ".join(needs) or "nothing") + (f" ({brackets})" if brackets else "")


def stated_time(notebook: Path) -> str:
    """`about 70 seconds`: the time that a notebook states for two cores at tiny scale. Raises
    LabError for one that states none.
    """
    cells = read_json(notebook, max_bytes=MAX_NOTEBOOK_BYTES)["cells"]
    text = " ".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    rest = r"(?: of processor time)?(?: at tiny scale)?(?: on two [a-z ]*cores)?\."
    found = re.search(rf"It takes ([^.]*?){rest}", text)
    if found is None:
        raise LabError(f"{notebook} does not say how long it takes: `It takes ... on two cores.`")
    return " ".join(found[1].split())


def show_findings(scale: str, root: str | Path = ".") -> None:
    """Display the report's findings in sentences, from this scale's records and released files."""
    folder = find_root(root)
    records = {info.name: read_record(folder, scale, info.name) for info in STAGES}
    found = findings.findings(records, folder)
    show.say("\n".join(f"- {sentence} (`{stage}`)" for sentence, stage in found))


def show_best_figures(scale: str, root: str | Path = ".") -> int:
    """Display the best figure of each stage; returns how many there are."""
    folder, count = find_root(root), 0
    for guide in GUIDES:
        found = _best(folder, scale, guide)
        if found is not None:
            show.html_output(found, f"[figure of {guide.stage}]")
            count += 1
    return count


def _best(root: Path, scale: str, guide: Guide) -> str | None:
    """The figure of this scale's run, else of the released one, else None."""
    for figure in _of_run(stage_folder(root, scale, guide.stage) / "notebook.ipynb"):
        if _says(figure, guide.figure):
            return figure
    page = root / RELEASED / SMALL_OF.get(guide.stage, SMALL) / f"{guide.stage}.html"
    for figure in _of_page(page):
        if _says(figure, guide.figure):
            return figure.replace("</figcaption>", " (released run)</figcaption>")
    return None


def _of_run(notebook: Path) -> Iterator[str]:
    """The figures of an executed notebook, in order."""
    if not notebook.is_file():
        return
    content = read_json(notebook, max_bytes=MAX_NOTEBOOK_BYTES)
    for cell in content["cells"] if isinstance(content, dict) and "cells" in content else []:
        for output in cell.get("outputs", []):
            yield from _figures("".join(output.get("data", {}).get("text/html", [])))


def _of_page(page: Path) -> Iterator[str]:
    """The figures of a page of the site, in order, as they are in a notebook."""
    if not page.is_file():
        return
    yield from _figures(page.read_text(encoding="utf-8"))


def _figures(text: str) -> Iterator[str]:
    """The figures in HTML, each picture as an image."""
    for figure in re.findall(
        r'<figure [^>]*class="moxin-figure"[^>]*>.*?</figure>', text, re.DOTALL
    ):
        svg = re.search(r"<svg.*</svg>", figure, re.DOTALL)
        yield figure.replace(svg[0], pictures.image_of_inline(svg[0])) if svg else figure


def _says(figure: str, words: tuple[str, ...]) -> bool:
    caption = re.search(r"<figcaption[^>]*>(.*?)</figcaption>", figure, re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]+>", "", caption[1])) if caption else ""
    return any(part in text for part in words)


def _pipeline() -> "Figure":
    """The stages on a path that runs forth and back."""
    import textwrap

    import matplotlib.pyplot as plt

    columns = 2  # letters of 11 points in boxes that fit into a telephone's width
    rows = -(-len(STAGES) // columns)
    figure, axes = plt.subplots(figsize=(show.PHONE_WIDTH, 1.25 * rows))
    places = []
    for index, info in enumerate(STAGES):
        row, column = divmod(index, columns)
        if row % 2:  # the way runs back, so that neighbours in order are neighbours on the page
            column = columns - 1 - column
        places.append((column, -row))
        title = "\n".join(textwrap.wrap(f"{info.name[:2]} {info.title}", 22))
        leaves = "\n".join(textwrap.wrap(", ".join(info.leaves).replace("_", " "), 28))
        axes.text(
            column,
            -row + 0.06,
            f"{title}\n",
            ha="center",
            va="center",
            fontsize=11,
            fontweight="bold",
            color="#111111",
        )
        axes.text(
            column, -row - 0.2, leaves, ha="center", va="center", fontsize=10, color="#444444"
        )
        axes.add_patch(
            plt.Rectangle(
                (column - 0.42, -row - 0.38),
                0.84,
                0.76,
                facecolor="#E3EEF7",
                edgecolor="#555555",
                zorder=0,
            )
        )
    for (x, y), (next_x, next_y) in itertools.pairwise(places):
        across, down = next_x - x, next_y - y
        axes.annotate(
            "",
            (next_x - 0.43 * across, next_y - 0.39 * down),
            (x + 0.43 * across, y + 0.39 * down),
            arrowprops={"arrowstyle": "->", "color": "#333333"},
        )
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(-rows + 0.55, 0.45))
    axes.axis("off")
    return figure
