"""Whatever decides a stage's result is in its key: each such file is edited in a copy of this
repository, and `status` must say which stages it changes, and no other.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from moxin_lab import scales
from moxin_lab.lab import keys, runner
from moxin_lab.lab.artifacts import describe, sha256_json, stage_folder, write_json
from moxin_lab.lab.keys import key_parts
from moxin_lab.stages import STAGES, stage_info

COPIED = (
    "moxin_lab",
    "notebooks",
    "papers",
    "reports/released",
    "data_cards",
    "MOF.yml",
    "MOF.evidence.yml",
    "requirements.lock",
    "README.md",
)


@pytest.fixture(scope="module")
def tree(repository, tmp_path_factory):
    """A copy of this repository whose stages are all up to date: their records were written by
    hand, with the keys that they have now.
    """
    root = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        if (repository / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(repository / name, root / name, ignore=ignored)
        else:
            shutil.copy(repository / name, root / name)
    scale = scales.load("tiny", root)
    for info in STAGES:
        folder = stage_folder(root, "tiny", info.name)
        folder.mkdir(parents=True)
        (folder / "notebook.ipynb").write_text("{}")
        outputs = {}
        for name in info.leaves:
            (folder / name).write_text(name)
            outputs[name] = describe(folder / name)
        parts = key_parts(root, info, scale, {"scale": "tiny", "seed": 0})
        record = {"key": sha256_json(parts), "key_parts": parts, "outputs": outputs}
        write_json(folder / "stage.json", record)
    return root


@pytest.fixture
def edit(tree):
    """Edits files of the copy; puts them back after the test."""
    before = {}

    def change(name, pattern=None, replacement="\n"):
        path = tree / name
        before[path] = path.read_bytes()
        if pattern is None:
            path.write_bytes(before[path] + b"\n")
            return
        text, count = re.subn(pattern, replacement, path.read_text(), count=1)
        assert count == 1, f"{name} has no {pattern}"
        path.write_text(text)

    yield change
    for path, content in before.items():
        path.write_bytes(content)


def changed(tree):
    """Number of each stage with its own reasons to run; not those that only follow from another."""
    return {
        name[:2]: reasons
        for name, reasons in runner.status(tree, "tiny")
        if reasons and not reasons[0].startswith("if the result of")
    }


def test_an_untouched_copy_is_up_to_date(tree):
    assert changed(tree) == {}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("moxin_lab/verifier/worker.py", {"06", "08", "10"}),
        ("moxin_lab/evaluation/tasks/_cloze_yaml", {"04", "05", "06", "07", "08", "09", "10"}),
        ("moxin_lab/openness/mof_catalogue.yml", {"10"}),
        ("papers/tables/table_8_vlm.csv", {"07", "08", "10"}),
        ("reports/released/h100/decode.json", {"03"}),
        ("data_cards/emoji/data/train.parquet", {"07", "09", "10"}),
        ("requirements.lock", {"01", "02", "03", "04", "05", "06", "07", "08", "09", "10"}),
    ],
)
def test_status_says_which_stages_an_edited_file_changes(tree, edit, name, stages):
    edit(name)
    assert changed(tree).keys() == stages


def test_number_that_judges_a_claim_changes_the_stages_that_read_it_and_no_other(tree, edit):
    pattern = r"(id: eval\.zero-shot-base\n(?:.*\n)*?  tolerance: )[\d.]+"
    edit("papers/claims.yml", pattern, r"\g<1>9.75")
    assert changed(tree) == {"08": ["claims: eval.zero-shot-base"], "10": ["files: papers"]}


def test_scale_that_a_claim_needs_changes_the_stage_that_records_it(tree, edit):
    pattern = r"(id: arch\.36-blocks\n(?:.*\n)*?  scale_needed: )tiny"
    edit("papers/claims.yml", pattern, r"\g<1>small")
    assert changed(tree) == {"03": ["claims: arch.36-blocks"], "10": ["files: papers"]}


def test_wording_of_a_claim_changes_the_openness_report_alone(tree, edit):
    edit("papers/claims.yml", r"Extends the Mistral architecture", "Extends Mistral's architecture")
    assert changed(tree).keys() == {"10"}


@pytest.mark.parametrize(
    "name",
    [
        "moxin_lab/cli.py",
        "moxin_lab/lab/templates/style.css",
        "moxin_lab/lab/site.py",
        "data_cards/emoji/README.md",
        "papers/deviations.yml",
    ],
)
def test_file_that_decides_no_result_changes_the_openness_report_alone(tree, edit, name):
    """Notebook 10 prints the hashes of these folders; no other stage depends on them."""
    edit(name)
    assert changed(tree).keys() == {"10"}


def test_file_that_no_stage_reads_changes_nothing(tree, edit):
    edit("README.md")
    edit("reports/released/h200/README.md")
    assert changed(tree) == {}


def test_setting_of_another_scale_that_a_notebook_prints_is_in_its_key(tree, edit):
    """Read by the copy's own package in a process of its own, for the scales belong to it."""
    edit(
        "moxin_lab/scales/full.yaml",
        r"(\npretraining:(?:\n.*)*?\n  weight_decay: )[\d.]+",
        r"\g<1>0.123",
    )
    command = [sys.executable, "-m", "moxin_lab.cli", "status"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert rows["04_pretraining"] == "would run: settings of other scales: full.pretraining"
    assert rows["03_model"] == "up to date", done.stderr


@pytest.fixture
def own_scale(tmp_path, monkeypatch):
    """A repository of one empty notebook, and the key of stage 06 at a scale with `reasoning`."""
    for folder in ("notebooks", "papers"):
        (tmp_path / folder).mkdir()
    cells = {"cells": [{"cell_type": "code", "source": "1"}]}
    (tmp_path / "notebooks/06_reasoning.ipynb").write_text(json.dumps(cells))
    about = (
        "{id: a, topic: t, claim: c, source: s, tested_in: x, scale_needed: tiny, how: h, "
        "status: reproduced}"
    )
    (tmp_path / "papers/claims.yml").write_text(f"claims: [{about}]")

    class Section(dict):
        def model_dump(self, mode):
            return dict(self)

    class Scale:
        name = decides_as = "tiny"

        def __init__(self, reasoning):
            self.reasoning = Section(reasoning)

        def __getattr__(self, section):
            return Section()

    def part(name, **reasoning):
        return key_parts(tmp_path, stage_info("06_reasoning"), Scale(reasoning), {})[name]

    return tmp_path, part


def test_files_and_folders_that_a_setting_names_are_in_the_key(own_scale, monkeypatch):
    root, part = own_scale
    (root / "corpus").mkdir()
    (root / "corpus/a.jsonl").write_text("{}")
    (root / "own.py").write_text("from moxin_lab.verifier import screen")
    settings = {
        "rewards": [{"name": "mine", "file": "own.py"}, {"name": "corpus"}],
        "corpora": [{"paths": {"hub/name": "corpus"}}],
        "towers": {"dino": "none/here.safetensors"},
    }
    before = part("named in settings", **settings)
    assert before.keys() == {"own.py", "corpus"}
    assert part("named in settings", **settings) == before
    (root / "corpus/a.jsonl").write_text("[]")
    changed = part("named in settings", **settings)
    assert [name for name in changed if changed[name] != before[name]] == ["corpus"]
    monkeypatch.setattr(keys, "HASHED_BYTES", 1)  # too large to read: size and time count
    large = part("named in settings", **settings)["corpus"]
    os.utime(root / "corpus/a.jsonl", (0, 0))
    assert part("named in settings", **settings)["corpus"] != large


def test_package_source_that_a_file_of_a_setting_imports_is_in_the_key(own_scale):
    root, part = own_scale
    (root / "moxin_lab/verifier").mkdir(parents=True)
    (root / "moxin_lab/verifier/screen.py").write_text("")
    (root / "own.py").write_text("from moxin_lab.verifier import screen")
    assert "moxin_lab/verifier/screen.py" in part("source", rewards=[{"file": "own.py"}])


def test_module_that_a_setting_names_is_in_the_key_and_is_not_imported(
    own_scale, monkeypatch, tmp_path_factory
):
    _, part = own_scale
    folder = tmp_path_factory.mktemp("site")
    (folder / "mypackage_x").mkdir()
    (folder / "mypackage_x/__init__.py").write_text("raise ValueError('imported')")
    (folder / "mypackage_x/rewards.py").write_text("1")
    monkeypatch.syspath_prepend(str(folder))
    named = [{"name": "mypackage_x.rewards:mine"}, {"name": "none_such.rewards:mine"}]
    before = part("named in settings", rewards=named)
    assert before["none_such.rewards:mine"] is None
    (folder / "mypackage_x/rewards.py").write_text("2")
    assert part("named in settings", rewards=named) != before


def test_package_installed_in_another_version_than_locked_is_in_the_key(tmp_path):
    from importlib.metadata import version

    from moxin_lab.lab.keys import _installed_versions

    lock = tmp_path / "requirements.lock"
    lock.write_text(f"pyyaml==0.1 \\\n    --hash=x\npytest=={version('pytest')}\nabsent==1\n")
    found = _installed_versions(lock, "1")
    assert found.pop("python") == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert found == {"pyyaml": version("pyyaml")}


def test_malformed_record_is_refused_by_name_with_what_to_do(tree, edit):
    record = f"runs/tiny/{STAGES[0].name}/stage.json"
    good = json.loads((tree / record).read_text())
    for content, message in {
        "[" * 100_000 + "]" * 100_000: "nested too deeply",
        '{"key": ' + "9" * 5000 + "}": "digits",
        '{"key": null': "delimiter",
        "[]": "not an object",
        "{}": "has no 'outputs'",
        json.dumps(good | {"outputs": 3}): "'outputs' is of the wrong type",
        json.dumps(good | {"outputs": {"documents": {}}}): "output 'documents' has no SHA-256",
        json.dumps(good | {"key_parts": []}): "'key_parts' is of the wrong type",
    }.items():
        edit(record, r"(?s).*", lambda _, content=content: content)
        with pytest.raises(Exception, match=f"stage.json .*{message}.*--only 01"):
            changed(tree)
        (tree / record).write_text(json.dumps(good))
