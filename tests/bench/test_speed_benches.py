"""The benches of attention, decoding and prefill run at tiny width on the CPU, and a peer that
cannot run is a row with its reason.
"""

import json

import pytest

from moxin_lab import cli


def run_bench(tmp_path, *arguments: str) -> dict:
    file = tmp_path / "result.json"
    assert cli.main(["bench", *arguments, "--device", "cpu", "--json", str(file)]) == 0
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", ["decode", "prefill"])
def test_every_implementation_has_a_row_with_a_time_or_a_reason(name: str, tmp_path) -> None:
    sizes = (
        ["--shapes", "2x40", "--new-tokens", "2"]
        if name == "decode"
        else ["--tokens", "40", "--chunks", "40,16"]
    )
    result = run_bench(tmp_path, name, "--width", "tiny", *sizes)
    assert result["bench"] == name and result["machine"]["versions"]["torch"]
    times = [row.get("ms_per_token", row.get("ms")) for row in result["rows"]]
    assert all(
        time is not None or row["reason"] for time, row in zip(times, result["rows"], strict=True)
    )
    assert sum(time is not None for time in times) >= 2
    assert any("transformers" in row["implementation"] for row in result["rows"])
    assert all(
        row["floor_ms"] > 0
        for row, time in zip(result["rows"], times, strict=True)
        if time is not None
    )


@pytest.mark.parametrize("documents", ["0", "35"])
def test_attention_rows_are_correct_or_give_their_reason(documents: str, tmp_path) -> None:
    result = run_bench(
        tmp_path,
        "attention",
        "--width",
        "tiny",
        "--shapes",
        "70x1",
        "--repeats",
        "1",
        "--only",
        "sdpa,flash,auto",
        "--document-tokens",
        documents,
    )
    ran = {row["implementation"]: row for row in result["rows"] if "reason" not in row}
    assert {"auto", "sdpa, dense mask"} <= ran.keys()
    assert all(
        row["relative_error"] < 1e-5 and row["forward_ms"] > 0 < row["backward_ms"]
        for row in ran.values()
    )
    refused = {row["implementation"]: row["reason"] for row in result["rows"] if "reason" in row}
    assert "needs a GPU" in refused["flash (flash-attn-4)"]


def test_a_missing_gpu_raises_an_error_before_any_work(tmp_path, monkeypatch, capsys) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "decode", "--device", "cuda"]) == 1
    assert "PyTorch sees no GPU here" in capsys.readouterr().err
