"""All notebooks, twice on one machine: the same to the last byte but for what a clock decides.

Two walks take twice the minutes of one, so this is no part of `pytest -m full_walk`, which every
change runs: `pytest -m campaign tests/scales`.
"""

import shutil

import pytest

from moxin_lab.lab import repeated
from tests.scales.test_full_walk import TOY, make_root, walk


@pytest.mark.campaign
def test_a_second_walk_shows_and_records_the_same_but_for_what_a_clock_decides(
    tmp_path, repository
):
    """Every measure, artifact, table, figure and sentence of stages 01 to 10, at toy sizes."""
    root = make_root(tmp_path, repository)
    runs = root / "runs" / TOY.stem
    first = runs.with_name("first")
    assert set(walk(root, repository).values()) == {"ok"}
    shutil.move(runs, first)
    assert set(walk(root, repository).values()) == {"ok"}
    assert repeated.differences(first, runs) == []
