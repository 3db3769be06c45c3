"""The hash of a folder is that of its files, without working state such as caches."""

import os

import pytest

from moxin_lab.lab.artifacts import LabError, describe, write_atomically


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / ".new" / "artifact"  # a dot above the folder says nothing about what is in it
    (path / "inner").mkdir(parents=True)
    (path / "a.txt").write_text("a")
    (path / "inner" / "b.txt").write_text("bb")
    return path


@pytest.mark.parametrize(
    "name", [".DS_Store", "inner/.hidden", ".git/config", "inner/__pycache__/b.cpython-311.pyc"]
)
def test_working_state_in_a_folder_does_not_change_its_hash(folder, name):
    before = describe(folder)
    assert (before["files"].keys(), before["size"]) == ({"a.txt", "inner/b.txt"}, 3)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("made by a tool")
    assert describe(folder) == before


@pytest.mark.parametrize("change", ["content", "name", "surplus", "missing"])
def test_any_other_change_in_a_folder_changes_its_hash(folder, change):
    before = describe(folder)["sha256"]
    if change == "content":
        (folder / "inner" / "b.txt").write_text("bc")
    elif change == "name":
        (folder / "a.txt").rename(folder / "inner" / "a.txt")
    elif change == "surplus":
        (folder / "pycache").write_text("")
    else:
        (folder / "a.txt").unlink()
    assert describe(folder)["sha256"] != before


def test_folder_with_nothing_but_working_state_counts_as_empty(tmp_path):
    (tmp_path / ".DS_Store").write_text("x")
    with pytest.raises(LabError, match="is an empty folder"):
        describe(tmp_path)


def test_a_result_goes_to_the_file_behind_a_link_and_never_in_the_place_of_a_device(tmp_path):
    (tmp_path / "results").mkdir()
    link, pipe = tmp_path / "latest.json", tmp_path / "pipe"
    link.symlink_to(tmp_path / "results" / "one.json")
    os.mkfifo(pipe)
    write_atomically(link, "new")
    assert link.is_symlink() and (tmp_path / "results" / "one.json").read_text() == "new"
    with pytest.raises(LabError, match="pipe is no file"):
        write_atomically(pipe, "new")
    assert pipe.is_fifo()
