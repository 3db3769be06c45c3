"""A campaign in shards makes each call once, goes on after a fault, and says what was cut off."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fuzz import measured, shards
from tests.fuzz.measured import Call, Fault


def numbered(count: int, seed: int, folder: Path) -> Iterator[Call]:
    """Each call leaves a file with its number, and its outcome depends on it alone."""

    def run(number: int) -> str:
        (folder / f"{number} {os.getpid()}").touch()
        return "even" if number % 2 == 0 else "odd"

    for number in range(count):
        yield Call(f"case {seed} {number}", lambda number=number: run(number), ())


def faulty(count: int, seed: int, folder: Path) -> Iterator[Call]:
    def run(number: int) -> None:
        if number == 2:
            raise KeyError("gone")
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 6:
            bytearray(b"x") * (2**30 + 2**28)

    for number in range(count):
        yield Call(f"case {number}", lambda number=number: run(number), ())


def slow(count: int, seed: int, folder: Path) -> Iterator[Call]:
    for number in range(count):
        yield Call(f"case {number}", lambda: time.sleep(60), ())


@pytest.fixture
def campaigns(monkeypatch):
    """The campaigns above in place of the real ones."""
    modules = {
        "images": SimpleNamespace(campaign=numbered, CALLS=10, LEAST={"even": 0.4, "odd": 0.4}),
        "llava": SimpleNamespace(campaign=faulty, CALLS=8, LEAST={"accepted": 0.1}),
        "mof": SimpleNamespace(campaign=slow, CALLS=4, LEAST={"accepted": 0.1}),
    }
    monkeypatch.setattr(shards, "load", modules.__getitem__)


def test_the_shards_of_a_campaign_make_each_call_exactly_once(tmp_path):
    for shard in range(3):
        assert len(list(measured.results(numbered, 10, 7, tmp_path, shard, 3))) in (3, 4)
    made = sorted(int(path.name.split()[0]) for path in tmp_path.iterdir())
    assert made == list(range(10))
    assert len({path.name.split()[1] for path in tmp_path.iterdir()}) == 3  # processes


@pytest.mark.parametrize("name", shards.NAMES)
def test_two_shards_find_what_the_whole_campaign_finds(tmp_path, name):
    campaign = shards.load(name).campaign
    for folder in ("whole", "0", "1"):
        (tmp_path / folder).mkdir()
    whole = list(measured.results(campaign, 12, 3, tmp_path / "whole"))
    halves = [
        list(measured.results(campaign, 12, 3, tmp_path / str(shard), shard, 2)) for shard in (0, 1)
    ]
    assert [whole[0::2], whole[1::2]] == halves
    assert not any(isinstance(outcome, Fault) for outcome in whole)


def test_a_campaign_goes_on_after_an_exception_a_crash_and_a_memory_limit(tmp_path):
    found = list(measured.results(faulty, 8, 0, tmp_path))
    assert len(found) == 8 and found.count("accepted") == 5
    faults = [outcome for outcome in found if isinstance(outcome, Fault)]
    assert [(fault.number, fault.case) for fault in faults] == [
        (2, "case 2"),
        (5, "case 5"),
        (6, "case 6"),
    ]
    assert "KeyError" in faults[0].what and "exit code -9" in faults[1].what
    assert "MiB" in faults[2].what


def test_a_campaign_that_fails_between_two_calls_ends_with_its_reason(tmp_path):
    def broken(count: int, seed: int, folder: Path) -> Iterator[Call]:
        yield Call("one", lambda: None, ())
        raise OSError("no space")

    def short(count: int, seed: int, folder: Path) -> Iterator[Call]:
        yield Call("one", lambda: None, ())

    with pytest.raises(AssertionError, match="between two calls"):
        list(measured.results(broken, 2, 0, tmp_path))
    with pytest.raises(AssertionError, match="ended before call 1 of 2"):
        list(measured.results(short, 2, 0, tmp_path))


def test_a_call_that_never_ends_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "SILENCE", 0.5)
    (fault,) = measured.results(slow, 1, 0, tmp_path)
    assert fault == Fault(0, "case 0", "no answer within 0 s")


@pytest.mark.skipif(sys.platform != "linux", reason="the campaigns above reach a forked process")
def test_the_files_of_all_shards_are_joined_into_one(tmp_path, campaigns, capsys):
    arguments = ["images", "llava", "--shards", "3", "--seed", "5", "--out", str(tmp_path)]
    assert shards.main(arguments) == 1
    results = json.loads((tmp_path / "fuzz.json").read_text())
    images, llava = results["images"], results["llava"]
    assert images["outcomes"] == {"even": 5, "odd": 5} and images["wrong"] == ""
    assert (images["seed"], images["count"], images["calls"]) == (5, 10, 10)
    assert not images["unfinished_shards"] and not images["faults"]
    assert sorted(fault["number"] for fault in llava["faults"]) == [2, 5, 6]
    assert llava["wrong"] == "3 faults" and llava["calls"] == 8
    assert "images: 10 of 10 calls, seed 5" in capsys.readouterr().out
    (tmp_path / "fuzz.json").unlink()
    assert shards.main([*arguments, "--merge"]) == 1
    assert json.loads((tmp_path / "fuzz.json").read_text()) == results


@pytest.mark.skipif(sys.platform != "linux", reason="the campaigns above reach a forked process")
def test_what_the_time_limit_cuts_off_is_said(tmp_path, campaigns):
    began = time.monotonic()
    arguments = ["mof", "--shards", "2", "--seconds", "1", "--out", str(tmp_path)]
    assert shards.main(arguments) == 1
    assert time.monotonic() - began < 30
    result = json.loads((tmp_path / "fuzz.json").read_text())["mof"]
    assert result["unfinished_shards"] == [0, 1] and "are not 4 calls" in result["wrong"]


def test_files_of_two_seeds_are_not_joined(tmp_path, campaigns):
    arguments = ["images", "--shards", "2", "--out", str(tmp_path)]
    shards.main([*arguments, "--seed", "1"])
    shards.main([*arguments, "--seed", "2", "--shard", "0", "--merge"])
    path = tmp_path / "images-0-of-2.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 2}))
    with pytest.raises(ValueError, match="two seeds"):
        shards.main([*arguments, "--merge"])
