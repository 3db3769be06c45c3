"""`moxin-lab bench serve`: every row is there, every answer whole, and a failure is told."""

import json

import pytest

from moxin_lab import cli
from moxin_lab.bench import serve


def test_rows_of_clients_decoding_and_first_tokens(tmp_path):
    file = tmp_path / "serve.json"
    sizes = ["--seconds", "1", "--clients", "3", "--answer-tokens", "8", "--new-tokens", "4"]
    shapes = ["--shapes", "1x20,2x20", "--prompts", "40"]
    command = ["bench", "serve", "--device", "cpu", *sizes, *shapes, "--json", str(file)]
    assert cli.main(command) == 0
    result = json.loads(file.read_text())
    one, many, alone, pair, first = result["rows"]
    assert [row["kind"] for row in result["rows"]] == ["clients"] * 2 + ["decode"] * 2 + [
        "first token"
    ]
    assert one["rows"] == 1 and many["rows"] == 3
    assert all(row["failed"] == 0 and row["tokens_per_second"] > 0 for row in (one, many))
    assert result["times_one_client"] == many["tokens_per_second"] / one["tokens_per_second"]
    assert 0 < alone["floor_ms"] < alone["ms_per_token"] and pair["floor_ms"] > alone["floor_ms"]
    assert alone["floor_share"] == pytest.approx(alone["floor_ms"] / alone["ms_per_token"])
    assert first["first_token_ms"] > 0


def test_a_server_that_is_not_there_is_an_error():
    with pytest.raises(RuntimeError, match="the server cannot be measured"):
        serve.stream_for("http://127.0.0.1:9", 2, 1.0, 4)
