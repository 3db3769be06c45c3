"""The bench of overlapped rollouts runs at tiny width on the CPU: both arrangements trained, the
clock covers whole steps.
"""

import json

import pytest

from moxin_lab import cli

SIZES = [
    "--prompts",
    "2",
    "--samples",
    "2",
    "--prompt-tokens",
    "5",
    "--new-tokens",
    "4",
    "--micro-batch",
    "4",
]


def test_both_arrangements_train_on_as_many_completions_and_are_timed(tmp_path) -> None:
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
    after, overlapped = json.loads(file.read_text())["rows"]
    assert (after["arrangement"], overlapped["arrangement"]) == (
        "one after the other",
        "overlapped",
    )
    for row in (after, overlapped):
        assert "reason" not in row, row
        assert 0 < row["waited_s"] < row["seconds_per_step"] < row["whole_s"] and row["steps"] == 2
    assert after["staleness"] == 0 and 0 < overlapped["staleness"] <= 1
    assert overlapped["times_synchronous"] == pytest.approx(
        after["seconds_per_step"] / overlapped["seconds_per_step"]
    )
    assert 1 <= after["modelled_times_synchronous"] <= 2


def test_fewer_steps_than_are_not_counted_are_refused() -> None:
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
