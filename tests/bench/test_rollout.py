"""The rollout bench runs at tiny width on the CPU: every row generates its tokens, and ours have
the log-probabilities of transformers.
"""

import json

import pytest

from moxin_lab import cli


def test_ours_and_transformers_sample_equally_many_tokens_and_log_probabilities_agree(
    tmp_path,
) -> None:
    file = tmp_path / "result.json"
    sizes = [
        "--prompts",
        "2",
        "--num-generations",
        "3",
        "--prompt-tokens",
        "9",
        "--new-tokens",
        "5",
        "--repeats",
        "1",
        "--static",
    ]
    assert (
        cli.main(
            ["bench", "rollout", "--device", "cpu", "--width", "tiny", *sizes, "--json", str(file)]
        )
        == 0
    )
    rows = {row["implementation"]: row for row in json.loads(file.read_text())["rows"]}
    assert set(rows) == {
        "ours, RingEngine",
        "transformers generate, DynamicCache",
        "transformers generate, static cache",
    }
    for row in rows.values():
        assert "reason" not in row, row
        assert row["rows"] == 6 and row["tokens_per_second"] * row["seconds"] == pytest.approx(30)
    assert rows["ours, RingEngine"]["log_prob_error"] < 1e-3
    peers = [row["times_transformers"] for name, row in rows.items() if "transformers" in name]
    assert max(peers) == 1.0
