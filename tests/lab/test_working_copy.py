"""A checkout that cannot be written runs with its results elsewhere, and is not touched."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moxin_lab import cli
from moxin_lab.lab import working_copy
from moxin_lab.lab.artifacts import LabError, describe
from moxin_lab.lab.stage import RUNNER_VARIABLE
from tests.lab import toy_lab


def read_only(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def test_a_read_only_checkout_runs_with_its_results_in_an_empty_folder(tmp_path, repository):
    checkout, out = toy_lab.make_root(tmp_path / "read only"), tmp_path / "results, elsewhere"
    shutil.rmtree(checkout / "moxin_lab")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repository / "moxin_lab", checkout / "moxin_lab", ignore=ignored)
    out.mkdir()
    read_only(checkout)
    before = listing(checkout)
    bound = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-all", "--"]
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("as root, every folder can be written; setpriv (util-linux) takes that right")
    command = [*(bound if os.geteuid() == 0 else []), sys.executable, "-m", "moxin_lab.cli"]
    environment = {name: value for name, value in os.environ.items() if name != RUNNER_VARIABLE}

    def call(*words: str) -> str:
        done = subprocess.run(
            [*command, "--root", str(out), *words],
            env=environment | {"PYTHONPATH": str(checkout)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "was empty; it now has copies" in call("run", "--only", "01", "--only", "02")
    assert describe(out / "runs/tiny" / toy_lab.SECOND.name / "tokenizer")["size"] > 0
    assert call("status").count("up to date") == 2
    assert (out / "reports/tiny/index.html").is_file()
    (out / "notebooks" / "new").write_text("the copy can be written")
    assert listing(checkout) == before


def test_only_a_folder_that_is_empty_is_filled(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    for name in ("full", "mistyped"):
        assert cli.main(["--root", str(tmp_path / name), "run"]) == 1
        assert "is not inside a Moxin Lab repository" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_folder_that_cannot_be_filled_is_named(tmp_path):
    checkout = toy_lab.make_root(tmp_path / "checkout")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "moxin_lab").write_text("in the way")
    with pytest.raises(LabError, match=r"out cannot be filled with a copy of .*checkout: File exi"):
        working_copy.fill(tmp_path / "out", checkout)
