"""Guarantees of moxin_lab.threads: waiting threads sleep soon, and a CPU quota limits how many
there are.
"""

import json
import os
import re
import subprocess
import sys

import pytest

from moxin_lab import threads


def environment(code: str, **variables: str) -> str:
    """What `code` prints in a fresh interpreter with these variables, and none of those that
    `configure` sets.
    """
    names = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


IMPORT = re.compile(r"(from|import) \w").match
SPIN = "import moxin_lab, os; print(os.environ.get('GOMP_SPINCOUNT'))"


def test_importing_the_package_limits_spinning_and_leaves_what_the_user_set() -> None:
    assert environment(SPIN) == threads.SPIN_COUNT
    assert environment(SPIN, GOMP_SPINCOUNT="7") == "7"
    assert environment(SPIN, OMP_WAIT_POLICY="ACTIVE") == "None"


def test_no_module_of_the_package_can_import_torch_before_threads_are_configured() -> None:
    """Every import of the package runs moxin_lab/__init__.py first; it must not import torch."""
    assert environment("import moxin_lab, sys; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "100 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_usable_cores_are_the_smaller_of_affinity_and_quota(tmp_path, files, cores) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    every = len(os.sched_getaffinity(0))
    assert threads.usable_cores(tmp_path) == (every if cores is None else min(cores, every))
    large = tmp_path / "large"
    large.mkdir()
    (large / "cpu.max").write_text(f"{(every + 5) * 100000} 100000")
    assert threads.usable_cores(large) == every


def test_every_notebook_imports_the_package_before_torch(repository) -> None:
    """JupyterLab's kernels do not get the runner's environment, and torch reads it once."""
    for path in sorted((repository / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        modules = [line.split()[1].split(".")[0] for line in code.splitlines() if IMPORT(line)]
        heavy = [name for name in modules if name in ("torch", "transformers", "moxin_lab")]
        assert heavy[0] == "moxin_lab", path.name
