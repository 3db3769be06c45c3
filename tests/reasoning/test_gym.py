"""Guarantees of moxin_lab.reasoning.gym: no family in use needs a package with a C compiler."""

import os
import re
import subprocess
import sys

from moxin_lab.reasoning.tasks import FAMILIES

WITHOUT_PYCOSAT = """
import importlib.util, json, sys
from importlib.abc import MetaPathFinder

class Hidden(MetaPathFinder):  # as on a machine where it is not installed
    def find_spec(self, name, path=None, target=None):
        if name == "pycosat":
            raise ModuleNotFoundError(name)

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "pycosat" else find_spec(name, *rest)
sys.meta_path.insert(0, Hidden())
from moxin_lab.reasoning import gym
loaded = gym.load()
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_PYCOSAT + code],
        capture_output=True,
        text=True,
    )


def test_every_family_in_use_works_without_pycosat() -> None:
    result = run(
        f"for family in {sorted(FAMILIES)!r}:\n"
        "    assert loaded.create_dataset(family, seed=0, size=1)[0]['question'], family\n"
        "assert 'pycosat' not in sys.modules\n"
        "print('all')"
    )
    assert result.stdout == "all\n", result.stderr


def test_a_family_that_needs_pycosat_says_so() -> None:
    result = run("loaded.create_dataset('zebra_puzzles', seed=0, size=1)[0]")
    assert re.search(
        r"ImportError: pycosat\.\w+ is needed by reasoning-gym's zebra puzzles", result.stderr
    )


def test_the_lock_omits_what_needs_a_c_compiler(repository) -> None:
    lock = (repository / "requirements.lock").read_text()
    assert "reasoning-gym==" in lock
    assert not re.search(r"^pycosat==", lock, flags=re.M)


def test_a_first_import_prints_nothing(tmp_path) -> None:
    """Python compiles the package here, as on a fresh machine, and would warn of its code."""
    result = subprocess.run(
        [sys.executable, "-c", "from moxin_lab.reasoning import gym; gym.load()"],
        env={**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
