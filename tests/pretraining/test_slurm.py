"""scripts/full_scale.slurm beside stand-ins of Slurm's commands: what it runs, when it requeues."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from torch.distributed.run import get_args_parser

from moxin_lab import cli

SRUN = """while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """if [ "$1" = show ]; then echo localhost; else echo "$*" >> "$CALLS/requeued"; fi
"""
SBATCH = """printf '%s\\n' "$*" >> "$CALLS/submitted"; echo 77
"""
PYTHON = """import json, os, pathlib, signal, sys, time
calls = pathlib.Path(os.environ["CALLS"])
(calls / "arguments.json").write_text(json.dumps(sys.argv[1:]))
def save(number, frame):
    time.sleep(1)
    (calls / "saved").touch()
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
(calls / "ready").touch()
time.sleep(float(os.environ["SECONDS_OF_TRAINING"]))
"""


@pytest.fixture
def started(tmp_path, repository):
    """`started(seconds, **variables)`: the script as a job that trains for so long."""
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    calls.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("sbatch", SBATCH)):
        (folder / name).write_text(f"#!{shutil.which('bash')}\n{text}")
        (folder / name).chmod(0o755)
    python = folder / "python"
    python.write_text(f"#!{sys.executable}\n{PYTHON}")
    python.chmod(0o755)
    shutil.copytree(repository / "scripts", tmp_path / "clone" / "scripts")

    def start(seconds: float, **variables: str) -> subprocess.Popen:
        job = {"SLURM_JOB_ID": "42", "SLURM_JOB_NUM_NODES": "8", "SLURM_JOB_NODELIST": "n[1-8]"}
        job |= {"SLURM_SUBMIT_DIR": str(tmp_path / "clone"), "SLURM_GPUS_ON_NODE": "8"}
        job |= {"MOXIN_PYTHON": str(python), "MOXIN_DATA_DONE": "1", "CALLS": str(calls)}
        job |= {"SECONDS_OF_TRAINING": str(seconds), "PATH": f"{folder}:{os.environ['PATH']}"}
        return subprocess.Popen(
            ["bash", "scripts/full_scale.slurm"],
            cwd=tmp_path / "clone",
            env={**os.environ, **job, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start, calls


def assert_runs(words: list[str], stages: list[str]) -> None:
    """The command line is one of ours, read by our own parser."""
    assert words[:2] == ["-m", "moxin_lab.cli"]
    options = cli._parser().parse_args(words[2:])
    assert (options.command, options.scale, options.only) == ("run", "full", stages)


def test_the_script_is_bash(repository):
    subprocess.run(["bash", "-n", repository / "scripts/full_scale.slurm"], check=True)


def test_its_ranks_are_those_of_the_full_scale_and_its_command_lines_parse(started):
    start, calls = started
    process = start(0)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    words = json.loads((calls / "arguments.json").read_text())
    assert words[:2] == ["-m", "torch.distributed.run"]
    launched = get_args_parser().parse_args(words[2:])
    assert (launched.nnodes, launched.nproc_per_node, launched.max_restarts) == ("8", "8", 0)
    assert launched.rdzv_endpoint == "localhost:29400" and launched.shutdown_timeout == 540
    assert launched.module and launched.training_script == "moxin_lab.cli"
    assert_runs(["-m", launched.training_script, *launched.training_script_args], ["04"])
    assert not (calls / "requeued").exists()


def test_data_and_tokenizer_come_first_on_a_node_of_their_own(started):
    start, calls = started
    process = start(0, MOXIN_DATA_DONE="0")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    data, again = (calls / "submitted").read_text().splitlines()
    assert "--nodes=1 " in data and "gpu" not in data
    wrapped = shlex.split(data.partition("--wrap ")[2])
    assert_runs(wrapped[1:], ["01", "02", "03"])
    assert "afterok:77" in again and "--nodes=8" in again and "MOXIN_DATA_DONE=1" in again
    assert not (calls / "arguments.json").exists()


def test_sigterm_waits_until_the_training_has_saved_and_requeues(started):
    start, calls = started
    process = start(100)
    while not (calls / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "queued again" in out, out
    assert (calls / "saved").exists()
    assert (calls / "requeued").read_text() == "requeue 42\n"


def test_a_failed_training_is_not_requeued(started):
    start, calls = started
    process = start(100)
    while not (calls / "ready").exists():
        time.sleep(0.05)
    for child in psutil.Process(process.pid).children():
        child.kill()
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert not (calls / "requeued").exists()
