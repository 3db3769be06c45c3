"""A notebook that is broken, prints without end, prints what is no text, or deletes what it reads
ends in a sentence that says so; and a repository may lie at a path of any letters.
"""

import json
from io import StringIO

import pytest

from moxin_lab import cli
from moxin_lab.lab import execution, runner, site
from moxin_lab.lab.artifacts import LabError, describe, read_record
from moxin_lab.openness import verify
from tests.lab import toy_lab
from tests.lab.toy_lab import FIRST, SECOND, WRITE_DOCUMENTS, WRITE_TOKENIZER, write_notebook


@pytest.fixture
def lab_root(tmp_path):
    return toy_lab.make_root(tmp_path / "lab")


def run(root, *stages, **options):
    return runner.run(root, "tiny", out=StringIO(), stages=stages or (FIRST,), **options)


def test_a_syntax_error_is_named_with_its_cell_and_earlier_results_stay(lab_root):
    run(lab_root)
    before = describe(lab_root / "runs/tiny" / FIRST.name / "documents")
    write_notebook(lab_root, FIRST.name, "for in x:", WRITE_DOCUMENTS)
    with pytest.raises(LabError, match=rf"(?s){FIRST.name}.*cell \d.*(syntax|Syntax)"):
        run(lab_root)
    assert describe(lab_root / "runs/tiny" / FIRST.name / "documents") == before


ENDLESS = """import time
from IPython.display import HTML, display
while True:
    try:
        {work}
    except KeyboardInterrupt:
        pass"""


@pytest.mark.parametrize(
    "work", ["print('x' * 10_000)", "display(HTML('<p>' + 'x' * 10_000))"], ids=["print", "display"]
)
def test_output_without_end_stops_the_stage_and_what_was_printed_is_kept(
    lab_root, monkeypatch, work
):
    monkeypatch.setattr(execution, "MAX_OUTPUT_BYTES", 300_000)
    write_notebook(lab_root, FIRST.name, ENDLESS.format(work=work))
    with pytest.raises(runner.StageFailed, match=r"cell \d prints without end: more than 300,000"):
        run(lab_root)
    kept = (lab_root / "runs/tiny" / FIRST.name / "failed.ipynb").read_text()
    assert 100_000 < kept.count("x") < 400_000
    site.build_site(lab_root, "tiny")
    assert read_record(lab_root, "tiny", FIRST.name) is None


def test_a_notebook_file_that_is_not_utf_8_is_refused_by_name_before_work(lab_root):
    path = lab_root / "notebooks" / f"{FIRST.name}.ipynb"
    path.write_bytes(path.read_bytes().replace(b"# A stage", b"# A st\xe4ge"))
    with pytest.raises(LabError, match=rf"{FIRST.name}\.ipynb cannot be read as JSON"):
        run(lab_root)
    assert not (lab_root / "runs/tiny" / FIRST.name).exists()


def test_output_that_is_no_text_is_shown_and_the_stage_finishes(lab_root):
    prints = """import os, sys
print("no character: \\uffff", "a null: \\x00", "an escape: \\x1b[31m")
sys.stdout.buffer.write(b"latin-1: \\xe4\\n") if hasattr(sys.stdout, "buffer") else None
os.write(1, b"to the descriptor: \\xff\\xfe\\n")"""
    write_notebook(lab_root, FIRST.name, prints, WRITE_DOCUMENTS)
    assert run(lab_root) == [FIRST.name]
    page = (site.build_site(lab_root, "tiny").parent / f"{FIRST.name}.html").read_bytes()
    assert b"no character" in page and page.decode("utf-8")
    verify.write_manifest(lab_root, "tiny")
    assert verify.verify_folder(lab_root).problems == ()


@pytest.mark.parametrize(
    ("cell", "done"),
    [
        ("import shutil\nshutil.rmtree(stage.input('documents'))", "deleted"),
        ("(stage.input('documents') / 'text').unlink()", "changed"),
    ],
)
def test_a_result_whose_input_a_cell_changed_is_not_kept(lab_root, cell, done):
    run(lab_root, FIRST, SECOND)
    before = read_record(lab_root, "tiny", SECOND.name)
    write_notebook(lab_root, SECOND.name, WRITE_TOKENIZER, cell)
    with pytest.raises(runner.StageFailed) as error:
        run(lab_root, FIRST, SECOND)
    assert f"documents was {done} while it ran, by a cell of notebooks/{SECOND.name}" in str(
        error.value
    )
    assert f"--only {FIRST.name[:2]} --force" in str(error.value)
    assert read_record(lab_root, "tiny", SECOND.name) == before
    # The report that is built then does not verify: an artifact is not what its stage recorded.
    site.build_site(lab_root, "tiny")
    verify.write_manifest(lab_root, "tiny")
    found = verify.verify_folder(lab_root).problems
    assert found and all(f"{FIRST.name}" in str(problem) for problem in found)
    write_notebook(lab_root, SECOND.name, WRITE_TOKENIZER)
    assert run(lab_root, FIRST, SECOND) == [FIRST.name, SECOND.name]


@pytest.mark.parametrize(
    "name", ["mit Leerzeichen, Umlaut ä und 中文 {scale} 'x' \"y\" %20 #1 $HOME"]
)
def test_a_repository_at_a_path_of_any_letters_runs_reports_and_verifies(
    tmp_path, capsys, name, monkeypatch
):
    root = toy_lab.make_root(tmp_path / name)
    monkeypatch.chdir(root / "notebooks")
    assert cli.main(["--root", str(root), "run", "--only", "1", "--only", "2"]) == 0
    record = (root / "runs/tiny" / SECOND.name / "stage.json").read_text(encoding="utf-8")
    assert json.loads(record)["outputs"]["tokenizer"]["size"] == len("tokens of documents 0")
    assert cli.main(["--root", str(root), "status"]) == 0
    assert capsys.readouterr().out.count("up to date") == 2
    assert cli.main(["verify", str(root)]) == 0
    for page in (root / "reports" / "tiny").glob("*.html"):
        assert str(tmp_path) not in page.read_text(encoding="utf-8")
