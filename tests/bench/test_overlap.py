"""The overlap bench runs at tiny width on the CPU: both arrangements train, and the clock covers
full steps.
"""

import json

import pytest

from moxin_lab import cli

SIZES = [
    "--prompts",
    "2",
    "--num-generations",
    "2",
    "--prompt-tokens",
    "5",
    "--new-tokens",
    "4",
    "--micro-batch",
    "4",
]


def test_both_arrangements_train_on_equally_many_completions_and_are_timed(tmp_path) -> None:
    file = tmp_path / "result.json"
    options = [
        "--device",
        "cpu",
        "--width",
        "tiny",
        *SIZES,
        "--steps",
        "6",
        "--staleness",
        "1",
        "--json",
        str(file),
    ]
    assert cli.main(["bench", "overlap", *options]) == 0
    synchronous, overlapped = json.loads(file.read_text())["rows"]
    assert (synchronous["arrangement"], overlapped["arrangement"]) == (
        "one after the other",
        "overlapped",
    )
    for row in (synchronous, overlapped):
        assert "reason" not in row, row
        assert 0 < row["waited_s"] < row["seconds_per_step"] < row["whole_s"] and row["steps"] == 2
    assert synchronous["staleness"] == 0 and 0 < overlapped["staleness"] <= 1
    assert overlapped["times_synchronous"] == pytest.approx(
        synchronous["seconds_per_step"] / overlapped["seconds_per_step"]
    )
    assert 1 <= synchronous["modelled_times_synchronous"] <= 2


def test_a_run_without_steps_to_count_raises_an_error() -> None:
    with pytest.raises(ValueError, match="6 steps leave 0 to count: give 8 or more"):
        cli.main(
            [
                "bench",
                "overlap",
                "--device",
                "cpu",
                "--width",
                "tiny",
                "--steps",
                "6",
                "--staleness",
                "2",
            ]
        )
