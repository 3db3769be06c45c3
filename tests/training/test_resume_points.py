"""Resume points as files: whole or absent, two of them, hashed, and of one training only."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from moxin_lab.training import resume_points
from moxin_lab.training.resume_points import ResumeError, newest, write

IDENTITY = {"learning_rate": 3e-4, "phases.0.steps": 4, "data": "a" * 64, "clip": None}


def put(folder: Path, *steps: int, identity: dict = IDENTITY) -> None:
    for step in steps:
        write(folder, step, lambda path, step=step: path.write_text(f"state {step}"), identity)


def edit(point: Path, **values: object) -> None:
    file = point.with_suffix(".json")
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_points_are_kept_each_with_its_hash_and_its_identity(tmp_path: Path) -> None:
    assert newest(tmp_path, IDENTITY) is None
    put(tmp_path, 3, 6, 9)
    assert names(tmp_path) == [
        f"resume-0000000{step}.{kind}" for step in (6, 9) for kind in ("ckpt", "json")
    ]
    point = newest(tmp_path, IDENTITY)
    assert point is not None and point.read_text() == "state 9"
    record = json.loads(point.with_suffix(".json").read_text())
    assert record["step"] == 9 and record["identity"] == IDENTITY
    assert record["sha256"] == resume_points.sha256_of(point)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda point: point.write_text("state 8"), "its SHA-256 is not that of resume-00000009"),
        (lambda point: point.write_text(""), "it has 0 bytes instead of 7"),
        (lambda point: point.with_suffix(".json").unlink(), "resume-00000009.json is missing"),
        (lambda point: point.with_suffix(".json").write_text("{"), "is no record"),
        (lambda point: point.with_suffix(".json").write_text("[]"), "is no record"),
        (lambda point: point.with_suffix(".json").write_text("[" * 100_000), "nested too deeply"),
        (lambda point: edit(point, identity=[]), "identity is missing or no dict"),
        (lambda point: edit(point, bytes=None), "bytes is missing or no int"),
        (lambda point: edit(point, identity={**IDENTITY, "learning_rate": 1.0}), "as it was writ"),
        (lambda point: edit(point, identity={"rate": 3e-4}), "record_sha256 is another"),
        (lambda point: edit(point, phases="a"), "record_sha256 is another"),
        (lambda point: edit(point, record_sha256=None), "record_sha256 is missing"),
        (lambda point: (point.unlink(), point.symlink_to("gone")), "No such file"),
    ],
)
def test_a_damaged_point_is_named_and_the_one_before_it_is_used(
    tmp_path: Path, damage, message: str
) -> None:
    put(tmp_path, 6, 9)
    damage(tmp_path / "resume-00000009.ckpt")
    with pytest.warns(UserWarning, match=f"resume-00000009.ckpt is damaged: .*{message}"):
        assert newest(tmp_path, IDENTITY) == tmp_path / "resume-00000006.ckpt"
    # What was beyond the point that is used is overtaken.
    put(tmp_path, 8)
    assert newest(tmp_path, IDENTITY) == tmp_path / "resume-00000008.ckpt"


def test_without_a_whole_point_nothing_starts_anew_in_silence(tmp_path: Path) -> None:
    put(tmp_path, 6, 9)
    for point in tmp_path.glob("*.ckpt"):
        point.write_text("")
    with pytest.raises(ResumeError, match=r"resume-00000009.ckpt is damaged.*resume-00000006.ckpt"):
        newest(tmp_path, IDENTITY)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 1e-3}, "learning_rate was 0.0003, is 0.001"),
        ({"phases.0.steps": 5}, "phases.0.steps was 4, is 5"),
        ({"data": "b" * 64}, "data was aaaaaaaaaaaa, is bbbbbbbbbbbb"),
        ({"clip": 1.0}, "clip was None, is 1.0"),
        ({"seed": 1}, "seed was absent, is 1"),
    ],
)
def test_a_point_of_another_training_is_refused_with_the_old_and_the_new_value(
    tmp_path: Path, changed: dict, message: str
) -> None:
    put(tmp_path, 9)
    with pytest.raises(ResumeError, match=f"resume-00000009.ckpt belongs to another .*{message}"):
        newest(tmp_path, {**IDENTITY, **changed})


def killed_write(folder: Path, moment: str) -> None:
    """Kill this process with SIGKILL while it writes the point of step 9."""

    def die(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def save(path: Path) -> None:
        path.write_text("stat")
        if moment == "state":
            die()

    replaced = 0
    replace = Path.replace

    def replace_or_die(self: Path, target: Path) -> Path:
        nonlocal replaced
        replaced += 1
        if moment == f"rename {replaced}":
            die()
        return replace(self, target)

    Path.replace = replace_or_die  # type: ignore[method-assign]
    write(folder, 9, save, IDENTITY)


@pytest.mark.parametrize("moment", ["state", "rename 1", "rename 2"])
@pytest.mark.filterwarnings("ignore:.*resume-00000009.ckpt is damaged")
def test_a_process_killed_inside_the_write_leaves_the_point_before(
    tmp_path: Path, moment: str
) -> None:
    put(tmp_path, 3, 6)
    process = multiprocessing.get_context("fork").Process(
        target=killed_write, args=(tmp_path, moment)
    )
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    point = newest(tmp_path, IDENTITY)
    assert point is not None and point.read_text() == "state 6"
    put(tmp_path, 9)  # and the next attempt tidies up
    assert names(tmp_path) == [
        f"resume-0000000{step}.{kind}" for step in (6, 9) for kind in ("ckpt", "json")
    ]


def test_a_point_is_staged_beside_its_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    staged = []
    write(tmp_path, 1, lambda path: staged.append(path) or path.write_text("state"), IDENTITY)
    assert [path.parent for path in staged] == [tmp_path]


def test_a_folder_as_state_is_hashed_file_by_file(tmp_path: Path) -> None:
    def save(path: Path) -> None:
        (path / "shards").mkdir(parents=True)
        (path / "shards" / "0").write_text("zero")
        (path / "meta").write_text("meta")

    write(tmp_path, 1, save, IDENTITY)
    point = newest(tmp_path, IDENTITY)
    assert point is not None and (point / "shards" / "0").read_text() == "zero"
    (point / "shards" / "0").write_text("nero")
    with pytest.raises(ResumeError, match="its SHA-256 is not that of"):
        newest(tmp_path, IDENTITY)


def test_a_full_disk_and_a_folder_that_cannot_be_written_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, 6, 9)  # 14 bytes, which the new points replace
    (tmp_path / "resume-00000012.part").write_text("par")  # removed by the next write
    (tmp_path / "resume-00000015.ckpt").symlink_to("gone")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    resume_points.check_room(tmp_path, 117)
    with pytest.raises(OSError, match="GB free and the training needs") as refused:
        resume_points.check_room(tmp_path, 118)
    assert refused.value.errno == errno.ENOSPC
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/below cannot be written"):
        resume_points.check_room(tmp_path / "file" / "below", 1)
