"""Several ranks of torchrun run one stage: the first alone writes, and who fails is named."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from moxin_lab.lab import ranks
from moxin_lab.lab.artifacts import LabError, read_record
from tests.lab import toy_lab

ROOT = Path(__file__).resolve().parents[2]
ALL = """import os
import time
from pathlib import Path
rank = os.environ["RANK"]
Path("seen").mkdir(exist_ok=True)
Path("seen", rank).write_text(str(stage.scratch()))
while len(list(Path("seen").iterdir())) < 2:  # as a training waits for the other ranks
    time.sleep(0.1)"""
FAILS = """if rank == "1":
    raise ValueError("shard 7 is damaged")
time.sleep(300)"""
DIES = """if rank == "1":
    os.kill(os.getpid(), 9)
time.sleep(300)"""


class Memory(dict):
    """A store in one process."""

    def set(self, key, value):
        self[key] = value.encode()

    def add(self, key, amount):
        self[key] = self.get(key, 0) + amount
        return self[key]

    def check(self, keys):
        return all(key in self for key in keys)


def make(root: Path, *cells: str) -> Path:
    """A lab whose first stage begins with cells of all ranks."""
    toy_lab.make_root(root)
    name = toy_lab.FIRST.name
    toy_lab.write_notebook(root, name, *cells, toy_lab.WRITE_DOCUMENTS)
    path = root / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2 + len(cells)].metadata["tags"] = [ranks.ALL_RANKS]
    nbformat.write(notebook, path)
    return root


def torchrun(root: Path, *, count: int = 2) -> subprocess.Popen:
    """The run of the first stage by so many ranks."""
    code = (
        "import sys; from pathlib import Path; from moxin_lab.lab import ranks, runner;"
        "from moxin_lab.training.launched import shared_store; import os;"
        "from moxin_lab.stages import STAGES;"
        "here = ranks.Ranks(*ranks.of_environment(os.environ), shared_store())\n"
        "try: print(runner.run(Path('.'), 'tiny', stages=STAGES[:1], ranks=here))\n"
        "except KeyboardInterrupt: sys.exit(143)\n"
        "except Exception as error: sys.exit(f'ended: {error}')"
    )
    (root / "start.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*command, "--nproc-per-node", str(count), "start.py"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_first_rank_alone_writes_and_all_share_one_folder_of_resume_points(tmp_path):
    root = make(tmp_path / "lab", ALL)
    process = torchrun(root)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    folder = root / "runs/tiny" / toy_lab.FIRST.name
    assert read_record(root, "tiny", toy_lab.FIRST.name)["key"]
    seen = {path.name: path.read_text() for path in (root / "seen").iterdir()}
    assert seen["0"] == seen["1"] and len(seen) == 2
    log = nbformat.read(ranks.log_file(folder, 1), as_version=4)
    sources = "\n".join(cell.source for cell in log.cells)
    assert "seen" in sources and "finish" not in sources
    assert sorted(path.name for path in folder.iterdir()) == [
        ".ranks",
        "documents",
        "notebook.ipynb",
        "stage.json",
    ]
    process = torchrun(root)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "up to date" in out, out


@pytest.mark.parametrize(("cell", "said"), [(FAILS, "shard 7 is damaged"), (DIES, "kernel died")])
def test_one_rank_that_fails_ends_all_and_every_rank_names_it(tmp_path, cell, said):
    root = make(tmp_path / "lab", ALL, cell)
    process = torchrun(root)
    out, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    named = [line for line in out.splitlines() if line.startswith("ended: rank 1 of 2 failed")]
    assert named and all(said in line for line in named), out
    assert read_record(root, "tiny", toy_lab.FIRST.name) is None
    assert ranks.log_file(root / "runs/tiny" / toy_lab.FIRST.name, 1).exists()


def test_a_notebook_without_a_cell_of_all_ranks_is_refused(tmp_path):
    root = toy_lab.make_root(tmp_path / "lab")
    with pytest.raises(LabError, match="no cell with the tag all-ranks"):
        ranks.cells_of_all(root / "notebooks" / f"{toy_lab.FIRST.name}.ipynb")


def test_a_lost_connection_is_not_the_cause_where_another_rank_died(monkeypatch):
    monkeypatch.setattr(ranks, "LATE_SECONDS", 0.2)
    store = Memory()
    first, second = ranks.Ranks(0, 2, store), ranks.Ranks(1, 2, store)
    first.report("RuntimeError: Connection closed by peer")
    second.report("04: the kernel died (DeadKernelError)")
    second.report("a second message is none")
    for rank, own in ((first, "Connection closed by peer"), (second, "the kernel died")):
        assert rank.cause(own).startswith("rank 1 of 2 failed, which ends all: 04: the kernel died")


def test_a_rank_that_waits_for_the_first_hears_that_it_failed():
    store = Memory()
    ranks.Ranks(0, 2, store).report("another run is at work")
    with pytest.raises(LabError, match="rank 0 of 2 failed, which ends all: another run"):
        ranks.Ranks(1, 2, store).told()


def test_sigterm_ends_a_rank_that_waits():
    waits = ranks.Ranks(1, 2, Memory())
    with waits.together(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        waits.told()
