"""A bench that is cut keeps its rows: the file is whole after every row, says that it is not
finished and why, and no reader takes it for a finished one.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from moxin_lab import bench, cli
from moxin_lab.bench import compression_page, decode, grpo_variants_page, released
from moxin_lab.bench.keeping import keeping, sigterm_left_to_the_training
from moxin_lab.lab import measured
from moxin_lab.lab.artifacts import LabError

TWO_ROWS = """
import argparse, sys, time
from moxin_lab import bench
from moxin_lab.bench.keeping import keeping

bench.machine = lambda device: {}

@keeping("decode")
def run(options, keep):
    result = {"rows": []}
    for number in range(2):
        result["rows"].append({"number": number})
        keep(result)
        print(number, flush=True)
    time.sleep(60)

run(argparse.Namespace(json=sys.argv[1], device="cpu"))
"""
ONE_ROW_CUT = {
    "bench": "decode",
    "device": "cpu",
    "command": "moxin-lab bench decode",
    "machine": {"gpu": "Chip", "date": "2026-01-02", "versions": {}},
    "finished": False,
    "stopped": "stopped by SIGTERM",
    "rows": [{"implementation": "ours", "rows": 1, "tokens": 8}],
}
REFUSED = r"is of a run that did not finish \(stopped by SIGTERM; 1 rows\): run it again, `moxin-"


@pytest.fixture
def quick(monkeypatch):
    """Without the machine's description."""
    monkeypatch.setattr(bench, "machine", lambda device: {})


def options(file=None):
    return argparse.Namespace(json=None if file is None else str(file), device="cpu")


@pytest.mark.parametrize(
    ("number", "code", "stopped"),
    [
        (signal.SIGKILL, -signal.SIGKILL, None),
        (signal.SIGTERM, 143, "stopped by SIGTERM"),
        (signal.SIGINT, -signal.SIGINT, "stopped by Ctrl-C"),
    ],
)
def test_a_run_that_is_killed_after_two_rows_leaves_both_and_says_why(
    number, code, stopped, tmp_path
):
    file = tmp_path / "decode.json"
    command = [sys.executable, "-c", TWO_ROWS, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert [process.stdout.readline() for _ in range(2)] == [b"0\n", b"1\n"]
        process.send_signal(number)
        assert process.wait(30) == code
    record = json.loads(file.read_text())
    assert record["rows"] == [{"number": 0}, {"number": 1}]
    assert record["finished"] is False and record.get("stopped") == stopped
    assert [path.name for path in tmp_path.iterdir()] == ["decode.json"]


def test_an_exception_in_a_row_keeps_the_rows_before_it_with_its_message(tmp_path, quick, capsys):
    file = tmp_path / "new folder" / "x.json"

    @keeping("x")
    def run(options, keep):
        result = {"settings": {"a": 1}, "rows": [{"number": 0}]}
        keep(result)
        raise ArithmeticError("the loss is not finite\nin step 3")

    with pytest.raises(ArithmeticError, match="not finite"):
        run(options(file))
    assert json.loads(file.read_text()) == {
        "bench": "x",
        "device": "cpu",
        "command": "x",
        "machine": {},
        "finished": False,
        "stopped": "ArithmeticError: the loss is not finite",
        "settings": {"a": 1},
        "rows": [{"number": 0}],
    }
    assert f"{file} has 1 row" in capsys.readouterr().err


def test_the_file_of_an_earlier_run_is_what_it_was_until_the_first_row(tmp_path, quick):
    file = tmp_path / "x.json"
    file.write_text("earlier")

    @keeping("x")
    def run(options, keep):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        run(options(file))
    assert file.read_text() == "earlier"


@pytest.mark.parametrize(("json_option", "shown"), [(None, "number\n     7"), ("-", '"number": 7')])
def test_a_run_that_stops_without_a_file_prints_its_rows(json_option, shown, quick, capsys):
    @keeping("x")
    def run(options, keep):
        keep({"rows": [{"number": 7}]})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(argparse.Namespace(json=json_option, device="cpu"))
    assert shown in capsys.readouterr().out


def test_a_folder_in_place_of_the_file_is_refused_before_anything_is_measured(tmp_path):
    @keeping("x")
    def run(options, keep):
        raise AssertionError("measured")

    with pytest.raises(LabError, match="is a folder: name a file in it"):
        run(options(tmp_path))


def test_a_forked_worker_ends_at_sigterm_and_keeps_nothing(tmp_path, quick):
    file = tmp_path / "x.json"

    @keeping("x")
    def run(options, keep):
        ready, begun = os.pipe()
        child = os.fork()
        if not child:
            os.write(begun, b".")
            time.sleep(30)
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        return {"rows": [], "signal": os.WTERMSIG(os.waitpid(child, 0)[1])}

    before = signal.getsignal(signal.SIGTERM)
    assert run(options(file))["signal"] == signal.SIGTERM
    assert not file.exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_training_with_resume_points_has_sigterm_to_itself(quick):
    @keeping("x")
    def run(options, keep):
        own = signal.getsignal(signal.SIGTERM)
        with sigterm_left_to_the_training():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == own != signal.SIG_DFL
        return {"rows": []}

    run(options())


def run_decode(file) -> int:
    sizes = ["--shapes", "1x40", "--new-tokens", "1", "--width", "tiny", "--no-peer"]
    return cli.main(["bench", "decode", "--device", "cpu", *sizes, "--json", str(file)])


def test_a_bench_that_is_stopped_in_its_second_row_keeps_the_first(tmp_path, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    first = {"first": decode.plain, "second": stopped}
    monkeypatch.setattr(decode, "implementations", lambda options: first)
    assert run_decode(tmp_path / "decode.json") == 130
    record = json.loads((tmp_path / "decode.json").read_text())
    assert [row["implementation"] for row in record["rows"]] == ["first"]
    assert record["rows"][0]["ms_per_token"] > 0
    assert record["stopped"] == "stopped by Ctrl-C"
    with pytest.raises(ValueError, match="did not finish"):
        released.read(tmp_path, "decode")


def test_a_finished_file_is_what_was_always_written(tmp_path, monkeypatch):
    kept = []
    only = {"first": decode.plain}
    monkeypatch.setattr(decode, "implementations", lambda options: only)
    real = bench.record
    monkeypatch.setattr(bench, "record", lambda *parts: kept.append(real(*parts)) or kept[-1])
    assert run_decode(tmp_path / "decode.json") == 0
    text = (tmp_path / "decode.json").read_text()
    assert text == json.dumps(kept[-1], indent=1) + "\n"
    assert [*json.loads(text)] == [
        *("bench", "device", "command", "machine"),
        *("width", "dtype", "ceilings", "rows"),
    ]
    assert [*kept[0]][4] == "finished" and len(kept) == 2  # after the row, and at the end
    assert released.read(tmp_path, "decode") == json.loads(text)


def test_every_bench_of_more_than_one_step_keeps_its_rows():
    at_once = {"extraction"}  # one call measures all of it
    keeps = {name for name in bench.BENCHES if hasattr(bench.load(name).run, "__wrapped__")}
    assert bench.BENCHES.keys() - keeps == at_once


# ---- readers


def test_readers_of_records_refuse_one_that_is_not_finished_and_name_its_command(tmp_path):
    folder = tmp_path / "reports" / "released" / "chip"
    folder.mkdir(parents=True)
    (folder / "decode.json").write_text(json.dumps(ONE_ROW_CUT))
    with pytest.raises(ValueError, match=rf"decode\.json {REFUSED}"):
        released.read(folder, "decode")
    with pytest.raises(ValueError, match=rf"decode\.json {REFUSED}"):
        released.records(folder, "decode")
    with pytest.raises(LabError, match=rf"decode\.json {REFUSED}"):
        measured.charts(tmp_path)
    with pytest.raises(ValueError, match=rf"decode\.json {REFUSED}"):
        measured.read_record(folder / "decode.json", {"decode": ("rows",)})


@pytest.mark.parametrize(
    ("page", "name"), [(compression_page, "compression"), (grpo_variants_page, "grpo-variants")]
)
def test_no_page_is_written_from_a_record_that_is_not_finished(page, name, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ONE_ROW_CUT | {"bench": name}))
    with pytest.raises(ValueError, match=REFUSED):
        page.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_run_that_was_killed_outright_has_no_reason_and_is_refused_all_the_same():
    record = {name: value for name, value in ONE_ROW_CUT.items() if name != "stopped"}
    assert "(killed, or still running; 1 rows)" in measured.unfinished(record)
    assert measured.unfinished(record | {"finished": True}) == ""
