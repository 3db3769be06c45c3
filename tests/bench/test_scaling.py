"""Guarantees of `bench scaling`: which jobs there are, what fits, what is compared and kept."""

import json
from types import SimpleNamespace

import pytest

from moxin_lab.bench import scaling


def test_one_gpu_is_measured_unsharded_and_even_numbers_with_tensor_parallelism():
    jobs = scaling.jobs([1, 2, 3])
    found = {(job["gpus"], job["layout"]) for job in jobs if job["part"] == "speed"}
    assert found == {
        (1, scaling.WHOLE),
        (1, scaling.SHARDED),
        (2, scaling.SHARDED),
        (2, scaling.SPLIT),
        (3, scaling.SHARDED),
    }
    assert len({scaling.key_of(job) for job in jobs}) == len(jobs)


def test_rows_are_compared_with_one_gpu_of_the_same_run():
    curve = {"part": "curve", "precision": "32-true", "gpus": 1, "layout": scaling.WHOLE}
    rows = [
        {"part": "weak", "gpus": 1, "tokens_per_second": 100.0},
        {"part": "weak", "gpus": 2, "tokens_per_second": 180.0},
        {"part": "weak", "gpus": 4, "reason": "not run: the machine has 2"},
        {**curve, "losses": [4.0, 2.0]},
        {**curve, "gpus": 2, "layout": scaling.SHARDED, "losses": [4.0, 2.1]},
    ]
    scaling.compare(rows)
    assert rows[1]["efficiency"] == pytest.approx(0.9)
    assert "efficiency" not in rows[2]
    assert rows[4]["largest_difference"] == pytest.approx(0.05) and not rows[4]["within_tolerance"]
    assert rows[3]["within_tolerance"]


def test_adding_keeps_what_was_measured_repeats_what_failed_and_refuses_other_settings(tmp_path):
    done = {"part": "weak", "gpus": 1, "layout": "a", "checkpointing": "none"}
    failed = {"part": "speed", "gpus": 2, "layout": "a", "checkpointing": "none", "reason": "no"}
    file = tmp_path / "scaling.json"
    file.write_text(json.dumps({"settings": {"rows": 2}, "rows": [done, failed]}))
    options = SimpleNamespace(add=True, json=str(file))
    assert scaling.kept_rows(options, {"rows": 2}) == [done]
    with pytest.raises(ValueError, match="was measured with other settings"):
        scaling.kept_rows(options, {"rows": 4})


def test_a_job_that_fails_is_a_row_with_what_its_rank_said(tmp_path):
    job = {"part": "speed", "gpus": 1, "layout": scaling.SPLIT, "checkpointing": "none"}
    (tmp_path / "output").write_text("the last line\n")
    assert scaling.reason(tmp_path, "torchrun ended with 1").endswith("1: the last line")
    (tmp_path / "error-1").write_text("OutOfMemoryError: no room")
    assert scaling.reason(tmp_path, "torchrun ended with 1") == "OutOfMemoryError: no room"
    assert scaling.name_of(job) == "speed 1 x FSDP2, tensor parallel 2, none"


def test_the_streams_fill_every_step():
    for make in (scaling.random_stream, scaling.structured_stream):
        stream = make(64, 5, 32, 128)
        assert stream.num_steps == 5
        assert stream.batch(4)["input_ids"].shape == (4, 32)
