"""What a stage's code reaches: imports, names in strings, files beside modules."""

import ast

import pytest

from moxin_lab.lab.artifacts import LabError
from moxin_lab.lab.closure import closure
from moxin_lab.lab.keys import code_cells
from moxin_lab.stages import STAGES

COMPUTES_MODULE_NAMES = {"moxin_lab/bench/__init__.py", "moxin_lab/reasoning/rewards.py"}
"""`bench.load` serves the command line; stage 03 imports the package for `released` alone. What a
setting names as module:function is in the key by that name (`keys._modules_named`).
"""


@pytest.fixture
def tree(tmp_path):
    """A package in which some modules name others only in strings."""
    files = {
        "moxin_lab/__init__.py": "",
        "moxin_lab/stages.py": "",
        "moxin_lab/one/__init__.py": '"""Docstring: moxin_lab.two.unused."""',
        "moxin_lab/one/lazy.py": "def f():\n    from moxin_lab.two import other\n",
        "moxin_lab/one/starts.py": 'CODE = "import sys; from moxin_lab.two.worker import main"\n',
        "moxin_lab/one/script.py": 'FILE = Path(__file__).with_name("beside.py")\n',
        "moxin_lab/one/beside.py": "",
        "moxin_lab/one/relative.py": "from ..two import unused\nfrom . import lazy\n",
        "moxin_lab/two/__init__.py": "",
        "moxin_lab/two/other.py": "",
        "moxin_lab/two/worker.py": "",
        "moxin_lab/two/unused.py": "",
        "moxin_lab/three/__init__.py": "",
        "moxin_lab/three/reads.py": "",
        "moxin_lab/three/tasks/list.yaml": "a: 1",
        "moxin_lab/three/tasks/_base": "a: 1",
        "moxin_lab/three/.cache/x.json": "{}",
        "moxin_lab/lab/__init__.py": "",
        "moxin_lab/lab/words.yml": "a: 1",
        "moxin_lab/lab/templates/page.html.j2": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def reached(tree, source):
    return {name.removeprefix("moxin_lab/") for name in closure(tree, {"a cell": source}).files}


def test_import_inside_a_function_is_followed(tree):
    assert reached(tree, "from moxin_lab.one import lazy") == {
        "__init__.py",
        "one/__init__.py",
        "one/lazy.py",
        "two/__init__.py",
        "two/other.py",
    }


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from moxin_lab.one import starts", "two/worker.py"),
        ("from moxin_lab.one import script", "one/beside.py"),
        ("from moxin_lab.one import relative", "two/unused.py"),
        ('import_module("moxin_lab.two.worker")', "two/worker.py"),
        ('run([python, "-c", "from moxin_lab.two import other, worker"])', "two/worker.py"),
        ('run([python, "-m", "moxin_lab.two.worker"])', "two/worker.py"),
    ],
)
def test_module_named_only_in_a_string_is_reached(tree, source, module):
    assert module in reached(tree, source)


def test_docstring_reaches_nothing(tree):
    assert "two/unused.py" not in reached(tree, "from moxin_lab import one")


def test_every_file_beside_a_module_is_reached_whatever_its_suffix(tree):
    assert {"three/tasks/list.yaml", "three/tasks/_base"} <= reached(
        tree, "from moxin_lab.three import reads"
    )
    assert "three/.cache/x.json" not in reached(tree, "from moxin_lab.three import reads")


def test_page_templates_are_not_reached_but_other_data_of_the_lab_is(tree):
    found = reached(tree, "from moxin_lab import lab")
    assert "lab/words.yml" in found and "lab/templates/page.html.j2" not in found


def test_code_that_is_not_python_is_refused_by_name_and_ipython_lines_are_passed_over(tree):
    assert "two/other.py" in reached(tree, "%matplotlib inline\nimport moxin_lab.two.other\n!ls")
    with pytest.raises(LabError, match="a cell is not valid Python"):
        reached(tree, "def f(:")
    (tree / "moxin_lab/two/other.py").write_text("def f(:")
    with pytest.raises(LabError, match=r"moxin_lab/two/other\.py is not valid Python"):
        reached(tree, "import moxin_lab.two.other")


def test_scales_that_code_loads_are_found_with_the_section_it_reads(tree):
    source = 'a = scales.load("full").model.layers\nb = scales.load("tiny")\nc = scales.load(name)'
    assert closure(tree, {"a cell": source}).scales == {("full", "model"), ("tiny", "")}


def test_the_package_computes_module_names_only_where_no_stage_calls_it(repository):
    """The closure cannot follow a name that is computed at run time, so there must be none."""
    computing = set()
    for file in (repository / "moxin_lab").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                loads = name in ("import_module", "__import__", "run_module", "run_path")
                if loads and not isinstance(node.args[0], ast.Constant):
                    computing.add(file.relative_to(repository).as_posix())
    assert computing <= COMPUTES_MODULE_NAMES
    for info in STAGES:
        for cell in code_cells(repository / "notebooks" / f"{info.name}.ipynb"):
            assert "bench.load" not in cell and "import_module" not in cell


def test_a_notebook_that_names_a_file_of_the_repository_lists_it_in_its_row(repository):
    """A folder that a notebook reads without listing it would be in no key."""
    for info in STAGES:
        cells = code_cells(repository / "notebooks" / f"{info.name}.ipynb")
        code = {f"{info.name}, code cell {i}": cell for i, cell in enumerate(cells, start=1)}
        strings = {
            node.value
            for cell in code.values()
            for node in ast.walk(ast.parse(cell))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        short = {text for text in strings if text.strip("./ ") and len(text) < 100}
        paths = {text for text in short if (repository / text).exists()}
        for path in paths:
            listed = (f"{path}/".startswith(f"{read}/") for read in info.reads)
            # `root / "papers" / "tables"` is two strings
            first = (read.startswith(f"{path}/") for read in info.reads)
            assert any(listed) or any(first), f"{info.name} names {path}"
