"""Guarantees of the runner and the stage object, with small notebooks in a repository of its own
and real papermill.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from io import StringIO
from pathlib import Path

import nbformat
import pytest

from moxin_lab import cli
from moxin_lab.lab import layout, runner
from moxin_lab.lab import stage as open_stage
from moxin_lab.lab.artifacts import LabError, describe, find_root, read_record
from moxin_lab.lab.lock import BY_RUNNER, acquire_lock, release_lock
from moxin_lab.lab.stage import RUNNER_VARIABLE
from moxin_lab.stages import stage_info
from tests.lab import toy_lab
from tests.lab.toy_lab import write_notebook

FIRST, SECOND = toy_lab.FIRST, toy_lab.SECOND
WRITE_DOCUMENTS, WRITE_TOKENIZER = toy_lab.WRITE_DOCUMENTS, toy_lab.WRITE_TOKENIZER


@pytest.fixture
def lab_root(tmp_path):
    return toy_lab.make_root(tmp_path)


def run(root, **options):
    out = StringIO()
    options.setdefault("stages", (FIRST, SECOND))
    return runner.run(root, "tiny", out=out, **options), out.getvalue()


def reasons(root, stage=FIRST):
    return dict(runner.status(root, "tiny"))[stage.name]


def test_second_run_executes_nothing_and_a_changed_cell_reruns_only_its_stage(lab_root):
    assert run(lab_root)[0] == [FIRST.name, SECOND.name]
    assert run(lab_root)[0] == []
    write_notebook(lab_root, FIRST.name, WRITE_DOCUMENTS, "1 + 1")
    assert reasons(lab_root) == ["code cells"]
    assert reasons(lab_root, SECOND) == [f"if the result of {FIRST.name} differs"]
    assert run(lab_root)[0] == [FIRST.name]


def test_status_names_what_changed(lab_root):
    run(lab_root)
    assert reasons(lab_root) == reasons(lab_root, SECOND) == []
    assert dict(runner.status(lab_root, "tiny", seed=1))[FIRST.name] == ["parameter seed: 0 -> 1"]
    (lab_root / "requirements.lock").write_text("one==2\n")
    assert reasons(lab_root) == ["lock file"]
    (lab_root / "data_cards" / "udhr" / "data" / "rows").write_text("other rows")
    assert reasons(lab_root) == ["data cards: udhr", "lock file"]


def test_markdown_is_not_in_the_key_and_imported_source_is(lab_root):
    (lab_root / "moxin_lab" / "data").mkdir()
    helper = lab_root / "moxin_lab" / "data" / "helper.py"
    helper.write_text("import moxin_lab.data.deeper\n")
    (lab_root / "moxin_lab" / "data" / "deeper.py").write_text("x = 1\n")
    write_notebook(
        lab_root, FIRST.name, WRITE_DOCUMENTS, "if False:\n    from moxin_lab.data import helper"
    )
    run(lab_root, stages=(FIRST,))
    notebook = nbformat.read(lab_root / "notebooks" / f"{FIRST.name}.ipynb", as_version=4)
    notebook.cells[0].source += "\n\nMore words."
    nbformat.write(notebook, lab_root / "notebooks" / f"{FIRST.name}.ipynb")
    assert reasons(lab_root) == []
    (lab_root / "moxin_lab" / "data" / "deeper.py").write_text("x = 2\n")
    assert reasons(lab_root) == ["source: moxin_lab/data/deeper.py"]


def test_a_failed_stage_keeps_its_notebook_and_the_last_good_result_and_the_next_run_resumes_there(
    lab_root,
):
    run(lab_root)
    before = describe(lab_root / "runs/tiny" / SECOND.name / "tokenizer")
    write_notebook(lab_root, SECOND.name, WRITE_TOKENIZER, 'raise ValueError("broken on purpose")')
    with pytest.raises(
        LabError, match=r"failed in cell \d+: ValueError: broken on purpose"
    ) as error:
        run(lab_root)
    # the reader is sent to the notebook to correct; the copy with its outputs is only named
    assert f"correct notebooks/{SECOND.name}.ipynb" in str(error.value)
    assert "failed.ipynb" in str(error.value)
    assert (
        "broken on purpose" in (lab_root / "runs/tiny" / SECOND.name / "failed.ipynb").read_text()
    )
    assert describe(lab_root / "runs/tiny" / SECOND.name / "tokenizer") == before
    write_notebook(lab_root, SECOND.name, WRITE_TOKENIZER)
    assert reasons(lab_root) == []
    assert reasons(lab_root, SECOND) == ["its last run failed or was stopped"]
    assert run(lab_root)[0] == [SECOND.name]
    assert not (lab_root / "runs/tiny" / SECOND.name / "failed.ipynb").exists()


def test_a_run_killed_with_sigkill_is_resumed_at_the_stage_and_earlier_stages_stay_untouched(
    lab_root,
):
    write_notebook(lab_root, SECOND.name, "import time\ntime.sleep(60)", WRITE_TOKENIZER)
    command = [sys.executable, "-m", "moxin_lab.cli", "--root", str(lab_root), "run"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (lab_root / "runs/tiny" / SECOND.name / ".new").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = (lab_root / "runs/tiny" / FIRST.name / "stage.json").read_bytes()
    assert not (lab_root / "runs/tiny" / SECOND.name / "stage.json").exists()
    assert reasons(lab_root) == []
    assert reasons(lab_root, SECOND) == ["its last run failed or was stopped"]
    write_notebook(lab_root, SECOND.name, WRITE_TOKENIZER)
    assert run(lab_root)[0] == [SECOND.name]
    assert (lab_root / "runs/tiny" / FIRST.name / "stage.json").read_bytes() == first


def test_a_kernel_that_dies_is_reported_with_what_to_do(lab_root):
    write_notebook(lab_root, FIRST.name, "import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(
        LabError, match=r"the kernel died .* run again: the run resumes at this stage"
    ):
        run(lab_root)


def test_a_missing_earlier_stage_is_refused_with_the_command_that_makes_it(lab_root):
    with pytest.raises(
        LabError,
        match=r"needs 'documents' of stage 01_data_curation.*moxin-lab run --scale tiny --only 01",
    ):
        run(lab_root, stages=(SECOND,))


def test_an_artifact_changed_by_hand_is_refused_by_the_next_stage_and_rebuilt_by_the_runner(
    lab_root,
):
    run(lab_root)
    (lab_root / "runs/tiny" / FIRST.name / "documents" / "text").write_text("documents 0 edited")
    assert reasons(lab_root) == ["artifact documents was changed after the stage wrote it"]
    with pytest.raises(
        LabError, match=r"has changed since 01_data_curation wrote it.*--only 01 --force"
    ):
        run(lab_root, stages=(SECOND,), force=True)
    assert run(lab_root)[0] == [
        FIRST.name,
        SECOND.name,
    ]  # the failed attempt above is resumed, with the input it recorded


def test_optional_input_is_required_only_when_the_notebook_asks_for_it(lab_root):
    run(lab_root)
    info = stage_info("07_vision_language")
    leave = [f'stage.output("{name}").write_text("made")' for name in info.leaves]
    write_notebook(lab_root, info.name, *leave)
    assert run(lab_root, stages=(info,))[0] == [info.name]
    assert set(read_record(lab_root, "tiny", info.name)["inputs"]) == {"tokenizer"}
    write_notebook(lab_root, info.name, 'stage.input("pretrained")', *leave)
    with pytest.raises(
        LabError, match=r"needs 'pretrained' of stage 04_pretraining, which has not run.*--only 04"
    ):
        run(lab_root, stages=(info,))


def test_from_only_force_and_dry_run_choose_stages(lab_root, capsys, monkeypatch):
    run(lab_root)
    monkeypatch.setattr(
        cli, "_publish", lambda root, scale: root / "reports" / scale / "index.html"
    )
    monkeypatch.setattr(cli, "_chosen_stages", limited(cli._chosen_stages))
    assert cli.main(["--root", str(lab_root), "run", "--only", "1", "--force", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{FIRST.name:24} would run: forced"]
    assert cli.main(["--root", str(lab_root), "run", "--from", "02", "--force"]) == 0
    out = capsys.readouterr().out
    assert f"[1/1] {SECOND.name}  runs: forced" in out and f"{FIRST.name}  runs" not in out
    assert cli.main(["--root", str(lab_root), "run", "--only", "99"]) == 1
    assert "names no stage(s)" in capsys.readouterr().err


def limited(choose):
    """Only the first two notebooks of the small repository run to their end."""
    return lambda options: tuple(info for info in choose(options) if info in (FIRST, SECOND))


def test_an_unknown_scale_and_an_unknown_parameter_are_refused(lab_root, capsys):
    assert cli.main(["--root", str(lab_root), "run", "--scale", "huge"]) == 1
    assert "unknown scale 'huge': choose one of tiny, small, full" in capsys.readouterr().err
    import papermill

    with pytest.raises(
        papermill.PapermillExecutionError,
        match="unknown parameter scal: a notebook has scale, seed, root",
    ):
        papermill.execute_notebook(
            lab_root / "notebooks" / f"{FIRST.name}.ipynb",
            None,
            parameters={"scal": "tiny"},
            cwd=lab_root,
            progress_bar=False,
        )


def test_a_notebook_run_by_hand_works_and_status_says_so(lab_root):
    import papermill

    run(lab_root)
    out = lab_root / "out.ipynb"
    papermill.execute_notebook(
        lab_root / "notebooks" / f"{FIRST.name}.ipynb",
        out,
        parameters={"scale": "tiny"},
        cwd=lab_root / "notebooks",
        progress_bar=False,
    )
    assert reasons(lab_root) == [
        "it was last run by hand, so no executed notebook belongs to its result"
    ]
    assert reasons(lab_root, SECOND) == [f"if the result of {FIRST.name} differs"]
    assert read_record(lab_root, "tiny", FIRST.name)["outputs"]["documents"]["sha256"]


@pytest.mark.parametrize(
    ("holder", "words"),
    [
        (BY_RUNNER, "another run is at work in {folder} (process {pid})"),
        ("03_model", "the notebook 03_model is open in another kernel (process {pid})"),
    ],
)
def test_second_run_in_one_folder_is_refused_while_the_first_is_at_work(lab_root, holder, words):
    acquire_lock(lab_root, "tiny", holder)
    try:
        environment = {name: value for name, value in os.environ.items() if name != RUNNER_VARIABLE}
        second = subprocess.run(
            [sys.executable, "-m", "moxin_lab.cli", "--root", str(lab_root), "run"],
            capture_output=True,
            text=True,
            env=environment,
        )
    finally:
        release_lock(lab_root, "tiny")
    assert second.returncode == 1
    assert words.format(folder=lab_root / "runs/tiny", pid=os.getpid()) in second.stderr
    assert not (lab_root / "reports").exists()  # the refused run does not touch the report


def test_a_stage_that_cannot_open_by_hand_does_not_keep_others_out(lab_root, monkeypatch):
    monkeypatch.delenv(RUNNER_VARIABLE, raising=False)
    with pytest.raises(LabError, match="has not run at this scale"):
        open_stage(SECOND.name, scale="tiny", seed=0, root=lab_root)
    assert acquire_lock(lab_root, "tiny", BY_RUNNER)
    release_lock(lab_root, "tiny")


def test_a_cell_run_again_after_finish_says_what_to_do(lab_root, monkeypatch):
    monkeypatch.delenv(RUNNER_VARIABLE, raising=False)
    stage = open_stage(FIRST.name, scale="tiny", seed=0, root=lab_root)
    stage.output("documents").write_text("x")
    stage.finish()
    for again in (
        lambda: stage.output("documents"),
        lambda: stage.scratch(),
        lambda: stage.measure("n", 1, unit="u"),
        lambda: stage.claim("known.claim", "reproduced", "x"),
        stage.finish,
    ):
        with pytest.raises(LabError, match=r"is finished in this kernel.*lab\.stage\(\.\.\.\)"):
            again()
    reopened = open_stage(FIRST.name, scale="tiny", seed=0, root=lab_root)
    reopened.output("documents").write_text("y")
    reopened.finish()


def test_a_cell_that_runs_by_hand_shows_one_line_that_is_rewritten(lab_root):
    import papermill

    work = """for step in range(1, 4):
    stage._progress_at = 0.0
    stage.progress(step, 3, "training")"""
    write_notebook(lab_root, FIRST.name, WRITE_DOCUMENTS, work)
    out = lab_root / "out.ipynb"
    papermill.execute_notebook(
        lab_root / "notebooks" / f"{FIRST.name}.ipynb", out, cwd=lab_root, progress_bar=False
    )
    cell = next(c for c in nbformat.read(out, as_version=4).cells if "training" in c.source)
    [line] = cell.outputs
    assert line["data"]["text/plain"].startswith("training 3 of 3, ")


def test_an_output_folder_that_cannot_be_written_is_refused_before_work(lab_root):
    (lab_root / "runs").write_text(
        "a file in place of the folder: fails for root as a read-only folder fails for others"
    )
    with pytest.raises(LabError, match=r"cannot write under .*runs"):
        run(lab_root)


def test_a_read_only_output_folder_is_refused_before_work():
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "runs").mkdir()
        (root / "runs").chmod(0o555)
        root.chmod(0o755)
        user = os.geteuid()
        if user == 0:  # root may write anywhere: try as another user
            os.seteuid(65534)
        try:
            with pytest.raises(
                LabError, match=r"cannot write under .*Permission denied.*make it writable"
            ):
                acquire_lock(root, "tiny", BY_RUNNER)
        finally:
            os.seteuid(user)


def test_a_run_from_another_folder_finds_the_clone_and_a_folder_without_one_is_refused(
    lab_root, tmp_path_factory
):
    assert find_root(lab_root / "notebooks") == lab_root
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(LabError, match="is not inside a Moxin Lab repository"):
        find_root(elsewhere)
    done = subprocess.run(
        [sys.executable, "-m", "moxin_lab.cli", "--root", str(lab_root), "status"],
        capture_output=True,
        text=True,
        cwd=elsewhere,
    )
    assert "it has not run yet" in done.stdout, done.stderr


def test_stage_must_write_exactly_the_outputs_of_its_row(lab_root):
    write_notebook(lab_root, FIRST.name, "1")
    with pytest.raises(LabError, match="ends without writing documents"):
        run(lab_root)
    write_notebook(lab_root, FIRST.name, 'stage.output("surprise")')
    with pytest.raises(LabError, match="leaves 'surprise', which its row") as error:
        run(lab_root)
    assert str(error.value).count(FIRST.name) == 1
    write_notebook(lab_root, FIRST.name, WRITE_DOCUMENTS)
    notebook = nbformat.read(lab_root / "notebooks" / f"{FIRST.name}.ipynb", as_version=4)
    notebook.cells.pop()
    nbformat.write(notebook, lab_root / "notebooks" / f"{FIRST.name}.ipynb")
    with pytest.raises(LabError, match=rf"last cell of notebooks/{FIRST.name}\.ipynb"):
        run(lab_root, stages=(FIRST,), force=True)


def test_unknown_claims_verdicts_beyond_the_scale_and_nan_measures_are_refused(lab_root):
    for cell, message in (
        (
            'stage.claim("unknown.claim", "reproduced", "x")',
            r"of 'unknown\.claim', which is not in papers/claims\.yml",
        ),
        (
            'stage.claim("known.claim", "proven", "x")',
            r"'proven' of 'known\.claim'; a verdict is one of reproduced,",
        ),
        (
            'stage.claim("large.claim", "reproduced", "x")',
            r"'large\.claim', but only full scale can decide that claim",
        ),
        (
            f'stage.measure("m", float("nan"), unit="1")\n{WRITE_DOCUMENTS}',
            r"measures m .* as nan, .*record only finite numbers",
        ),
    ):
        write_notebook(lab_root, FIRST.name, cell)
        with pytest.raises(LabError, match=message):
            run(lab_root, stages=(FIRST,))
    write_notebook(
        lab_root,
        FIRST.name,
        WRITE_DOCUMENTS,
        'stage.claim("large.claim", "not attempted", "3 seen")',
    )
    run(lab_root, stages=(FIRST,))
    said = {"id": "large.claim", "verdict": "not attempted", "evidence": "3 seen"}
    assert read_record(lab_root, "tiny", FIRST.name)["claims"] == [said]


def test_a_scale_outside_the_package_runs_under_its_name_and_decides_no_more_than_its_base(
    lab_root, tmp_path_factory, monkeypatch, capsys
):
    file = tmp_path_factory.mktemp("outside") / "mine.yaml"
    file.write_text("extends: tiny\ndata: {minimum_characters: 3}\n")
    monkeypatch.setenv("MOXIN_SCALES", "")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    says = "print(scale, stage.scale, stage.settings('data').minimum_characters)"
    write_notebook(lab_root, FIRST.name, WRITE_DOCUMENTS, says)
    arguments = ["--root", str(lab_root), "run", "--scale", str(file), "--only", "1"]
    assert cli.main(arguments) == 0
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    record = read_record(lab_root, "mine", FIRST.name)
    assert (record["scale"], record["decides_as"]) == ("mine", "tiny")
    notebook = nbformat.read(lab_root / "runs/mine" / FIRST.name / "notebook.ipynb", as_version=4)
    assert notebook.cells[-2].outputs[0].text == "mine mine 3\n"
    assert (lab_root / "reports/mine/index.html").is_file()
    assert str(file.parent) not in (lab_root / "runs/mine" / FIRST.name / "stage.json").read_text()
    for command in ("status", "verify"):
        assert cli.main(["--root", str(lab_root), command, "--scale", "mine"]) == 0
    capsys.readouterr()
    file.write_text("extends: tiny\ndata: {minimum_characters: 4}\n")
    assert dict(runner.status(lab_root, "mine"))[FIRST.name] == ["settings: data"]
    write_notebook(lab_root, FIRST.name, 'stage.claim("large.claim", "reproduced", "x")')
    assert cli.main(arguments) == 1
    assert "but only full scale can decide that claim" in capsys.readouterr().err


def test_the_hub_is_reached_where_the_scale_or_what_it_extends_is_full(
    lab_root, tmp_path, monkeypatch
):
    (tmp_path / "scales").mkdir()
    (tmp_path / "scales" / "cluster.yaml").write_text("extends: full\n")
    monkeypatch.setenv("MOXIN_SCALES", "")
    for scale in ("full", "cluster"):
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        assert cli.main(["--root", str(lab_root), "status", "--scale", scale]) == 0
        assert "HF_HUB_OFFLINE" not in os.environ
    assert cli.main(["--root", str(lab_root), "status"]) == 0
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_record_holds_hashes_seconds_memory_environment_and_no_name_of_the_machine(lab_root):
    run(lab_root)
    text = (lab_root / "runs/tiny" / SECOND.name / "stage.json").read_text()
    record = json.loads(text)
    assert (
        record["inputs"]["documents"]["sha256"]
        == read_record(lab_root, "tiny", FIRST.name)["outputs"]["documents"]["sha256"]
    )
    assert record["seconds"] > 0 and record["peak_memory_bytes"] > 2**20
    assert record["environment"]["python"] and record["environment"]["cpu"]
    assert os.uname().nodename not in text and str(lab_root) not in text


def test_the_same_run_twice_gives_the_same_executed_notebook_but_for_the_times_it_prints(lab_root):
    run(lab_root, stages=(FIRST,))
    path = lab_root / "runs/tiny" / FIRST.name / "notebook.ipynb"
    once = nbformat.read(path, as_version=4)
    run(lab_root, stages=(FIRST,), force=True)
    twice = nbformat.read(path, as_version=4)
    assert once.metadata == twice.metadata
    assert once.cells[:-1] == twice.cells[:-1]


def test_help_answers_without_importing_anything_heavy():
    code = (
        "import sys, moxin_lab.cli as cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "names = {'torch', 'pandas', 'matplotlib', 'transformers', 'papermill', 'lightning', "
        "'pydantic', 'numpy'}\n"
        "heavy = names & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_executed_notebook_holds_no_path_of_the_machine(lab_root):
    """Neither in a warning, a traceback, a value nor a page; the report reads as before."""
    write_notebook(
        lab_root,
        FIRST.name,
        WRITE_DOCUMENTS,
        "import os, sys, tempfile, warnings\nfrom pathlib import Path\nimport numpy\n"
        "warnings.warn('a warning of this cell')\n"
        "warnings.warn_explicit('of a library', UserWarning, numpy.__file__, 7)",
        "print(Path.cwd(), Path('runs').resolve(), tempfile.mkdtemp(), sys.path, sys.executable)",
        "print('a manual speaks of /etc/fstab, /tmp/x and /usr/share/doc')",
        "print('\\x1b[32m' + os.__file__ + '\\x1b[0m', Path('x').absolute().as_uri())",
        "Path.cwd() / 'data_cards'",
        "from IPython.display import HTML\nHTML(f'<td>{numpy.__file__}</td><td>{Path.cwd()}</td>')",
        "raise OSError(2, 'gone', str(Path.cwd() / 'runs/x'))",
    )
    with pytest.raises(runner.StageFailed):
        run(lab_root)
    text = (lab_root / "runs" / "tiny" / FIRST.name / "failed.ipynb").read_text()
    assert "/etc/fstab, /tmp/x and /usr/share/doc" in text
    text = text.replace("/tmp/x", "")
    for folder in (
        lab_root,
        tempfile.gettempdir() + "/",
        sys.prefix,
        os.__file__,
        Path.home() / "",
    ):
        assert str(folder) not in text, folder
    assert "ipykernel_" not in text
    for shown in ("<cell>:4: UserWarning: a warning", "PosixPath('data_cards')", "runs/x"):
        assert shown in text


@pytest.mark.parametrize(
    ("text", "shown", "of_program"),
    [
        ("{root}/runs/x", "runs/x", False),
        ("PosixPath('{root}')", "PosixPath('.')", False),
        ("\x1b[32m{root}/a.py\x1b[0m", "\x1b[32ma.py\x1b[0m", False),
        ("file://{root}/x", "file://x", False),
        ("{root}ly/x", "{root}ly/x", False),  # a path that is not there is not of this machine
        ("{root}ly/x", "[tmp]/", True),
        ("<td>/usr/lib/x.so</td>", "<td>/usr/lib/x.so</td>", False),
        ("<td>/usr/lib/x.so</td>", "<td>[elsewhere]/x.so</td>", True),
        ("https://example.org/usr/lib/x", "https://example.org/usr/lib/x", True),
        ("and/or 3/4 /v1/chat/completions /dev/null <b>a</b>", None, True),
        ("See /etc/fstab, /tmp/nothing and /usr/share.", None, False),
    ],
)
def test_paths_are_shown_without_the_machines_folders(tmp_path, text, shown, of_program):
    root = tmp_path / "lab"
    text = text.format(root=root)
    found = layout.presentable(text, root, of_program=of_program)
    expected = (shown or text).format(root=root)
    assert found.startswith(expected) if shown == "[tmp]/" else found == expected
