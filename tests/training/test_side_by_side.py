"""Calls run side by side give what they give one after the other, and their errors say which."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moxin_lab.training import side_by_side

SEEDS = {f"seed {seed}": {"seed": seed} for seed in (3, 1, 2)}


def squares(data, *, seed, progress=None):
    """What a training would be: a function of what is shared and of its seed."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    if progress is not None:
        progress(1, 1, "drawn")
    return {"drawn": torch.rand(3, generator=generator) + data["offset"], "process": os.getpid()}


def fail(*, seed, progress=None):
    if seed == 1:
        raise ValueError("no such optimiser")
    return seed


def seen_device(*, seed, progress=None):
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_without_a_gpu_calls_wait_for_their_results_and_run_here_in_order():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU; the calls run elsewhere: the next test")
    said = []
    running = side_by_side.start(squares, SEEDS, shared={"data": {"offset": 0.0}})
    assert said == []
    found = running.results(lambda done, total, text: said.append(text))
    assert list(found) == list(SEEDS)
    assert said == ["seed 3: drawn", "seed 1: drawn", "seed 2: drawn"]
    assert {one["process"] for one in found.values()} == {os.getpid()}


def test_processes_of_their_own_give_the_same_results_in_the_same_order():
    shared = {"data": {"offset": 10.0}}
    here = side_by_side.start(squares, SEEDS, shared=shared, devices=[]).results()
    there = side_by_side.start(squares, SEEDS, shared=shared, devices=[None, None]).results()
    assert list(there) == list(here)
    for key in SEEDS:
        assert there[key]["drawn"].tolist() == here[key]["drawn"].tolist()
        assert there[key]["process"] != os.getpid()


def test_views_of_one_tensor_travel_as_one_tensor():
    import torch

    rows = torch.arange(100_000, dtype=torch.float32).reshape(1000, 100)
    views = {str(index): row for index, row in enumerate(rows)}
    written = side_by_side._dumps(views)
    assert len(written) < 2 * rows.numel() * 4
    again = side_by_side._loads(written)
    assert all(again[name].equal(row) for name, row in views.items())


@pytest.mark.parametrize("devices", [[], [None]])
def test_an_error_names_its_call(devices):
    running = side_by_side.start(fail, SEEDS, shared={}, devices=devices)
    with pytest.raises(ValueError, match="no such optimiser") as caught:
        running.results()
    assert caught.value.__notes__ == ["in the call 'seed 1' of fail"]


def test_each_process_has_the_gpu_that_it_was_given():
    calls = {index: {"seed": index} for index in range(2)}
    found = side_by_side.start(seen_device, calls, shared={}, devices=["7"]).results()
    assert set(found.values()) == {"7"}


def test_the_last_gpu_comes_first_and_a_training_of_the_whole_gpu_leaves_out_the_first(monkeypatch):
    started = []
    monkeypatch.setattr(side_by_side, "visible_devices", lambda: ["4", "6"])
    monkeypatch.setattr(
        side_by_side,
        "ProcessPoolExecutor",
        lambda workers, **options: started.append((workers, options["initializer"].args[0])),
    )
    monkeypatch.setattr(side_by_side, "Running", lambda *arguments: None)
    many = {seed: {"seed": seed} for seed in range(9)}
    for own_device in (False, True):
        side_by_side.start(fail, many, shared={}, own_device=own_device)
    taken = [[slots.get(timeout=5) for _ in range(workers)] for workers, slots in started]
    assert taken == [["6", "6", "4", "4"], ["6"]]


def test_a_process_ends_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, time\n"
        "from moxin_lab.training import side_by_side\n"
        "def wait(*, seed, progress=None):\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    running = side_by_side.start(wait, {0: {'seed': 0}}, shared={}, devices=[None])\n"
        f"    while not os.path.exists({str(tmp_path / 'pid')!r}): time.sleep(0.1)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, script], timeout=120, check=False)
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not _runs(child):
            return
        time.sleep(0.1)
    os.kill(child, 9)
    raise AssertionError("the process outlived its parent by ten seconds")


def _runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def batches_of_a_loader(*, seed, progress=None):
    """As a training on a GPU reads them: by worker processes, of rows that pickle refuses."""
    import torch
    from torch.utils.data import Dataset, SequentialSampler

    from moxin_lab.training import compiled

    class Parts(Dataset):
        def __init__(self):
            self.row = lambda index: torch.tensor([index, seed])

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return self.row(index)

    parts = Parts()
    loader = compiled.loader(parts, SequentialSampler(parts), torch.device("cuda"))
    return [batch.tolist() for batch in loader]


def test_a_loader_for_a_gpu_works_in_a_process_of_its_own():
    running = side_by_side.start(
        batches_of_a_loader, {"one": {"seed": 7}}, shared={}, devices=[None]
    )
    assert running.results() == {"one": [[0, 7], [1, 7], [2, 7]]}
