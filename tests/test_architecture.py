"""Guarantees of the tree: packages import downwards, no circle, and the contracts for it can fail.

The contracts are in pyproject.toml, `[tool.importlinter]`; docs/architecture.md explains them.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LINTER = Path(sys.executable).with_name("lint-imports")

FORBIDDEN = {
    "a lower layer imports a higher one": (
        "model/config.py",
        "import moxin_lab.evaluation.scoring",
        "Packages import downwards only",
    ),
    "a stage imports another stage": (
        "vision/recipes.py",
        "import moxin_lab.posttraining.chat",
        "A stage gets what it needs of another stage from disk",
    ),
    "an import inside a function": (
        "vision/recipes.py",
        "def later():\n    from moxin_lab.reasoning import grpo",
        "A stage gets what it needs of another stage from disk",
    ),
    "a circle inside a package": (
        "verifier/screen.py",
        "import moxin_lab.verifier.verifier",
        "No import circle, in any package",
    ),
    "lab imports torch": (
        "lab/hub.py",
        "import torch",
        "lab, openness, verifier and the scales know nothing of any model",
    ),
    "the verifier imports something of ours": (
        "verifier/pool.py",
        "from moxin_lab import scales",
        "The verifier and the kernels import nothing of ours",
    ),
    "a package in no layer": (
        "newcomer/__init__.py",
        "",
        "Packages import downwards only",
    ),
}


def lint(root):
    """Exit code and output of the linter for the tree in `root`, by contract."""
    result = subprocess.run(
        [LINTER, "--no-cache", "--no-logo"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout + result.stderr


def test_no_import_breaks_a_contract(repository):
    code, output = lint(repository)
    assert code == 0, output


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_contracts_catch(name, repository, tmp_path):
    file, line, contract = FORBIDDEN[name]
    shutil.copy(repository / "pyproject.toml", tmp_path)
    shutil.copytree(
        repository / "moxin_lab",
        tmp_path / "moxin_lab",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    path = tmp_path / "moxin_lab" / file
    path.parent.mkdir(exist_ok=True)
    text = path.read_text() if path.exists() else ""
    path.write_text(f"{text}\n{line}\n")
    code, output = lint(tmp_path)
    assert code == 1, output
    assert contract in output.split("Contracts:")[1], output
