"""Runs that are killed, terminated or out of disk space at random moments: whatever verifies is
right, and the next run ends in the hashes of a run that nothing disturbed.

The campaign of twenty runs takes minutes: `pytest -m campaign`. Its seed is printed at a failure.
In parts:

    MOXIN_CAMPAIGN=FOLDER MOXIN_CAMPAIGN_ROUNDS=2 pytest -m campaign tests/lab

does the next two rounds of each campaign and keeps in FOLDER which are done; a campaign that has
rounds left is skipped with their number, and passes in the part that does the last one.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moxin_lab.lab.artifacts import describe, read_json, write_json
from moxin_lab.lab.stage import RUNNER_VARIABLE
from tests.lab import toy_lab
from tests.lab.toy_lab import FIRST, SECOND, write_notebook

WRITE_MUCH = """import time
folder = stage.output("documents")
folder.mkdir()
for part in range(40):
    (folder / f"part {part}").write_text(f"document {part} of seed {seed} " * 400)
    time.sleep(0.02)
stage.measure("seed_squared", seed * seed, unit="1")"""
JOIN = """import time
parts = sorted(stage.input("documents").iterdir())
with stage.output("tokenizer").open("w") as file:
    for part in parts:
        file.write(part.read_text()[: 100 + seed])
        time.sleep(0.01)"""
SECONDS = 300
"""More than any of these runs takes, on a busy machine too."""


def make(root: Path) -> Path:
    toy_lab.make_root(root)
    write_notebook(root, FIRST.name, WRITE_MUCH)
    write_notebook(root, SECOND.name, JOIN)
    return root


def start(root: Path, seed: int) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != RUNNER_VARIABLE}
    return subprocess.Popen(
        [sys.executable, "-m", "moxin_lab.cli", "--root", str(root), "run", "--seed", str(seed)]
        + ["--only", "01", "--only", "02"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def verifies(root: Path) -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "moxin_lab.cli", "verify", str(root)], capture_output=True, text=True
    )
    return done.returncode == 0


def hashes(root: Path) -> dict[str, str]:
    return {
        artifact: describe(root / "runs/tiny" / stage.name / artifact)["sha256"]
        for stage, artifact in ((FIRST, "documents"), (SECOND, "tokenizer"))
    }


def expected(seed: int) -> dict[str, str]:
    """Hashes of the artifacts that an undisturbed run of this seed leaves, computed here."""
    parts = {f"part {n}": f"document {n} of seed {seed} " * 400 for n in range(40)}
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in parts.items()}
    listing = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    joined = "".join(parts[name][: 100 + seed] for name in sorted(parts))
    return {
        "documents": hashlib.sha256(listing.encode()).hexdigest(),
        "tokenizer": hashlib.sha256(joined.encode()).hexdigest(),
    }


def check_what_verifies(root: Path) -> None:
    """A report that verifies shows records whose artifacts are there, of one seed a stage, and a
    failed or unfinished stage as such.
    """
    if not verifies(root):
        return
    index = (root / "reports/tiny/index.html").read_text(encoding="utf-8")
    for stage, artifact in ((FIRST, "documents"), (SECOND, "tokenizer")):
        folder = root / "runs/tiny" / stage.name
        page = root / "reports/tiny" / f"{stage.name}.html"
        if (folder / "failed.ipynb").exists():
            assert ">failed<" in index
            continue
        if not (folder / "stage.json").exists():
            assert not page.exists()
            continue
        record = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        assert describe(folder / artifact)["sha256"] == record["outputs"][artifact]["sha256"]
        if record["key"] is not None:
            assert record["outputs"][artifact]["sha256"] == expected(record["seed"])[artifact]
            assert f"seed {record['seed']}" in page.read_text(encoding="utf-8")


def disturbed(root: Path, seed: int, number: signal.Signals, after: float) -> str:
    """Start a run and send it a signal after some seconds; what it printed."""
    process = start(root, seed)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    process.send_signal(number)
    out, _ = process.communicate(timeout=SECONDS)
    if number == signal.SIGTERM and process.returncode not in (0, -signal.SIGTERM):
        # A process that has not come to its handler, or has left it, ends by the signal itself.
        assert process.returncode == 143, out
        assert "the next run resumes at the stage that was running" in out
    # A kernel that is ended may print a traceback of its own; ours must end in a sentence.
    assert "moxin_lab/cli.py" not in out, out
    return out


def resumed(root: Path, seed: int) -> None:
    process = start(root, seed)
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, out
    assert hashes(root) == expected(seed), out
    assert verifies(root)
    check_what_verifies(root)
    assert not list((root / "runs/tiny").glob("*/failed.ipynb"))


def disturb_and_resume(
    root: Path, chance: random.Random, seed: int, longest: float
) -> dict[str, Any]:
    number = chance.choice([signal.SIGKILL, signal.SIGTERM])
    after = chance.uniform(0.2, longest)
    print(f"seed {seed}: {number.name} after {after:.2f} s")
    disturbed(root, seed, number, after)
    check_what_verifies(root)
    resumed(root, seed)
    return {"signal": number.name, "after": round(after, 2)}


def in_parts(
    name: str,
    count: int,
    folder: Path,
    one_round: Callable[[int, random.Random], dict[str, Any]],
) -> list[dict[str, Any]]:
    """What each round of a campaign returned, with its seconds. Rounds are numbered from 1, each
    with a chance of its own, which the campaign's seed and its number decide; finished ones are in
    `folder`/NAME.json and are not repeated.
    """
    path = folder / f"{name}.json"
    state = read_json(path) if path.is_file() else {"seed": int(time.time()), "rounds": []}
    print(f"seed of the campaign: {state['seed']}")
    rounds = state["rounds"]
    last = min(count, len(rounds) + int(os.environ.get("MOXIN_CAMPAIGN_ROUNDS", count)))
    for number in range(len(rounds) + 1, last + 1):
        began = time.monotonic()
        result = one_round(number, random.Random(f"{state['seed']} {number}"))
        seconds = round(time.monotonic() - began, 1)
        rounds.append({"round": number, "seconds": seconds, **result})
        write_json(path, state)
    if last < count:
        pytest.skip(f"{last} of {count} rounds are done, by {path}; run again for the others")
    return rounds


def test_a_campaign_in_parts_does_each_round_once_with_the_chance_of_the_whole(
    tmp_path, monkeypatch
):
    def draws(number: int, chance: random.Random) -> dict[str, Any]:
        made.append(number)
        return {"drawn": chance.random()}

    made: list[int] = []
    write_json(tmp_path / "whole.json", {"seed": 5, "rounds": []})
    whole = in_parts("whole", 5, tmp_path, draws)
    assert made == [1, 2, 3, 4, 5]
    made.clear()
    write_json(tmp_path / "parts.json", {"seed": 5, "rounds": []})
    monkeypatch.setenv("MOXIN_CAMPAIGN_ROUNDS", "2")
    for done in (2, 4):
        with pytest.raises(pytest.skip.Exception, match=f"{done} of 5 rounds"):
            in_parts("parts", 5, tmp_path, draws)
    parts = in_parts("parts", 5, tmp_path, draws)
    assert made == [1, 2, 3, 4, 5]
    assert [one["drawn"] for one in parts] == [one["drawn"] for one in whole]


@pytest.fixture
def campaign_folder(tmp_path) -> Path:
    """Where the finished rounds are noted; without the variable every run begins anew."""
    folder = Path(os.environ.get("MOXIN_CAMPAIGN", tmp_path / "campaign"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def undisturbed_seconds(root: Path) -> float:
    began = time.monotonic()
    resumed(root, 0)
    return time.monotonic() - began


def test_a_run_that_is_killed_or_terminated_ends_after_a_resume_in_the_same_hashes(tmp_path):
    root = make(tmp_path / "lab")
    longest, chance = undisturbed_seconds(root), random.Random(1)
    for seed, number in enumerate((signal.SIGKILL, signal.SIGTERM), start=1):
        disturbed(root, seed, number, chance.uniform(0.4, 0.8) * longest)
        check_what_verifies(root)
    resumed(root, 2)


@pytest.mark.campaign
def test_twenty_runs_disturbed_at_random_moments(tmp_path, campaign_folder):
    root = make(tmp_path / "lab")
    longest = undisturbed_seconds(root)

    def one_round(seed: int, chance: random.Random) -> dict[str, Any]:
        return disturb_and_resume(root, chance, seed, longest)

    in_parts("signals", 20, campaign_folder, one_round)


@contextlib.contextmanager
def small_disk(folder: Path, kibibytes: int):
    """A file system of this size at `folder`; the test is skipped where none can be made."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount here")
    if done.returncode:
        pytest.skip(f"a small file system needs the right to mount one: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill_and_resume(root: Path, left: int, seed: int) -> bool:
    """A run with so many KiB free, then one with space; whether the first ran out of it."""
    ballast = root / "runs" / "ballast"
    about = os.statvfs(root / "runs")
    ballast.write_bytes(b"x" * max(0, about.f_bavail * about.f_frsize - left * 1024))
    process = start(root, seed)
    out, _ = process.communicate(timeout=SECONDS)
    assert "moxin_lab/cli.py" not in out, out
    full = process.returncode != 0
    if full:
        assert process.returncode == 1, out
        assert "No space left on device" in out or "no space is left" in out, out
    check_what_verifies(root)
    ballast.unlink()
    resumed(root, seed)
    return full


def test_a_full_disk_is_named_and_the_run_resumes_when_there_is_space(tmp_path):
    root = tmp_path / "lab"
    with small_disk(root / "runs", 4096):
        make(root)
        assert fill_and_resume(root, 60, 3)


@pytest.mark.campaign
def test_the_disk_is_full_at_ten_moments(tmp_path, campaign_folder):
    root = tmp_path / "lab"

    def one_round(seed: int, chance: random.Random) -> dict[str, Any]:
        left = chance.randrange(0, 700)
        return {"kibibytes": left, "full": fill_and_resume(root, left, seed)}

    with small_disk(root / "runs", 4096):
        make(root)
        rounds = in_parts("disk", 10, campaign_folder, one_round)
    assert any(one["full"] for one in rounds)
