"""Two runs on one machine are the same to the last byte but for what a clock decides, and whatever
else differs is named.
"""

import ast
import json
import re
import shutil
import subprocess
import sys

import pytest

from moxin_lab import scales
from moxin_lab.lab import runner
from moxin_lab.lab.artifacts import LabError, write_json
from moxin_lab.lab.repeated import differences
from tests.lab import toy_lab

STAGE = toy_lab.FIRST.name
CELLS = (
    toy_lab.WRITE_DOCUMENTS,
    # a table, a figure and a sentence that the seed decides
    "import numpy as np, pandas as pd, matplotlib.pyplot as plt\n"
    "rng = np.random.default_rng(seed)\n"
    "values = rng.normal(size=8)\n"
    "stage.show_table(pd.DataFrame({'value': values}), caption='Values')",
    "figure, axes = plt.subplots()\naxes.plot(values)\n"
    "stage.show_figure(figure, alt='A line.', caption='Values')\n"
    "stage.measure('mean', float(values.mean()), unit='nats', headline=True)",
    # what a clock decides
    "import time\nseconds = time.perf_counter()\n"
    "stage.measure('speed', 1 / seconds, unit='tokens/s')\n"
    "stage.show_table(pd.DataFrame({'s': [seconds]}), caption='Time', clock=True)\n"
    "figure, axes = plt.subplots()\naxes.plot([seconds, 2 * seconds])\n"
    "stage.show_figure(figure, alt=f'{seconds}', caption='Time', clock=True)\n"
    "stage.say(f'It took {seconds} s.', clock=True)",
)


CLOCK = re.compile(
    r"seconds|attention_times|speed|throughput|per_second|stage_table|provenance_sentence"
    r"|training_sentence"
)
"""Names in the notebooks whose values a clock decides; a full walk of all notebooks, twice, finds
others (tests/scales/test_repeated_walk.py).
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The first stage of the toy lab, run in two clones by real kernels."""
    folders = []
    for name in ("once", "again"):
        root = toy_lab.make_root(tmp_path_factory.mktemp(name) / "lab")
        toy_lab.write_notebook(root, STAGE, *CELLS)
        scale = scales.use("tiny", root)
        runner.run(root, scale.name, stages=(toy_lab.FIRST,), out=sys.stderr)
        folders.append(root / "runs" / "tiny")
    return folders


@pytest.fixture
def pair(runs, tmp_path):
    """Copies that a test may change."""
    return [shutil.copytree(run, tmp_path / run.parts[-3] / str(i)) for i, run in enumerate(runs)]


def changed(run, change):
    path = run / STAGE / "stage.json"
    record = json.loads(path.read_text())
    change(record)
    write_json(path, record)


def test_two_runs_give_the_same_measures_tables_figures_and_artifacts(runs):
    assert differences(*runs) == []
    once, again = (json.loads((run / STAGE / "stage.json").read_text()) for run in runs)
    speeds = [
        next(m["value"] for m in r["measures"] if m["name"] == "speed") for r in (once, again)
    ]
    assert speeds[0] != speeds[1]  # so the two did run, at two times


@pytest.mark.parametrize("code", ["show_table", "show_figure", "say"])
def test_an_output_of_the_clock_that_is_not_marked_is_named(pair, code):
    """Every other output of the cell is still marked, and this one's mark is taken away."""
    for run in pair:
        path = run / STAGE / "notebook.ipynb"
        notebook = json.loads(path.read_text())
        cell = next(c for c in notebook["cells"] if "perf_counter" in "".join(c["source"]))
        position = {"show_table": 0, "show_figure": 1, "say": 2}[code]
        shown = [o for o in cell["outputs"] if o["output_type"] == "display_data"]
        shown[position]["metadata"] = {}
        path.write_text(json.dumps(notebook))
    (line,) = differences(*pair)
    assert "shows something else" in line and STAGE in line


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda r: r["measures"][0].update(value=0.5), "measure mean"),
        (lambda r: r["measures"][0].update(interval=[0.0, 1.0]), "(0.0 to 1.0)"),
        (lambda r: r["measures"].append({**r["measures"][0], "name": "more"}), "only B has"),
        (lambda r: r["claims"].append({"id": "c", "verdict": "reproduced"}), "claim c"),
    ],
)
def test_a_measure_or_a_verdict_that_differs_is_named(pair, change, fault):
    changed(pair[1], change)
    assert any(fault in line for line in differences(*pair))


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("first_token", "ms"),
        ("rate", "tokens/s"),
        ("pipeline_throughput", "MB/s a core"),
        ("attention_time_exponent", "exponent"),
    ],
)
def test_a_measure_of_the_clock_may_differ(pair, name, unit):
    for run, value in zip(pair, (1.0, 2.0), strict=True):
        measure = {"name": name, "value": value, "unit": unit, "labels": {}, "interval": None}
        changed(run, lambda r, m=measure: r["measures"].append(m))
    assert differences(*pair) == []


@pytest.mark.parametrize("field", ["seconds", "peak_memory_bytes", "finished_at"])
def test_time_and_memory_of_a_stage_may_differ(pair, field):
    changed(pair[1], lambda r: r.update({field: 1 if field != "finished_at" else "2000-01-01"}))
    assert differences(*pair) == []


def test_an_artifact_that_differs_is_named_by_its_file(pair):
    (pair[1] / STAGE / "documents" / "text").write_text("others")
    changed(pair[1], lambda r: r["outputs"]["documents"].update(sha256="0" * 64))
    assert differences(*pair) == [f"{STAGE}: artifact documents/text differs"]


def test_of_a_log_only_columns_of_the_clock_may_differ(pair):
    import pandas as pd

    for run, seconds in zip(pair, (1.0, 2.0), strict=True):
        log = run / STAGE / "training_log"
        log.mkdir()
        frame = pd.DataFrame({"step": [1], "loss": [0.5], "seconds": [seconds]})
        frame.to_parquet(log / "steps.parquet")
        changed(run, lambda r, s=seconds: r["outputs"].update(training_log={"sha256": str(s)}))
    assert differences(*pair) == []
    frame = frame.assign(loss=[0.6])
    frame.to_parquet(log / "steps.parquet")
    (line,) = differences(*pair)
    assert line.endswith("artifact training_log/steps.parquet differs in loss")


def test_a_stage_of_one_run_alone_is_named(pair):
    other = pair[1] / toy_lab.SECOND.name
    shutil.copytree(pair[1] / STAGE, other)
    assert differences(*pair) == [f"{toy_lab.SECOND.name}: only one of the runs has finished it"]


def test_a_folder_without_a_run_is_refused(runs, tmp_path):
    with pytest.raises(LabError, match="no stage has finished"):
        differences(runs[0], tmp_path)


def test_the_command_ends_with_1_where_something_differs(pair):
    command = [sys.executable, "-m", "moxin_lab.lab.repeated", *map(str, pair)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    changed(pair[1], lambda r: r["measures"][0].update(value=0.5))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "measure mean" in done.stdout


def shown(source):
    """Calls that display something, as text, but for what is read from a file of reports/released:
    it names the full scale as its own and is the same in every run.
    """
    names = ("show_table", "show_figure", "say")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in names:
            call = ast.unparse(node)
            if "scale='full'" not in call:
                yield call


def test_notebooks_mark_what_a_clock_decides(repository):
    marked = 0
    for path in sorted((repository / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            for call in shown("".join(cell["source"])) if cell["cell_type"] == "code" else ():
                if CLOCK.search(call):
                    assert "clock=True" in call, f"{path.name}: {call}"
                marked += "clock=True" in call
    assert marked >= 9
