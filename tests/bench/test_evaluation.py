"""`moxin-lab bench evaluation`: both adapters score the same requests alike."""

import json

from moxin_lab import cli


def test_both_adapters_give_the_same_log_likelihoods_and_a_time(tmp_path, capsys):
    file = tmp_path / "result.json"
    sizes = ["--questions", "3", "--characters", "60", "--rows", "2", "--rounds", "1"]
    assert cli.main(["bench", "evaluation", "--device", "cpu", *sizes, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["count"] for row in rows] == [12, 12, 12, 12, 3, 3]
    assert {row["implementation"] for row in rows} == {"moxin-lab", "lm-eval hf"}
    assert all(row["difference"] < 1e-3 and row["cpu_seconds"] > 0 for row in rows)
    assert cli.main(["bench", "evaluation", "--device", "cpu", "--rounds", "0"]) == 1
    assert "at least 1" in capsys.readouterr().err
