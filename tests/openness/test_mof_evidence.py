"""Evidence decides what counts: a missing file, another hash, a licence without its text or a
notebook that is not there takes a component out.
"""

import hashlib
import subprocess
from pathlib import Path

import pytest
import yaml

from moxin_lab.lab.artifacts import describe
from moxin_lab.openness import commands, mof, mof_evidence
from moxin_lab.untrusted import printable

ROOT = Path(__file__).resolve().parents[2]
NAMES = [fact["name"] for fact in mof.catalogue()["components"]]


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def tree(tmp_path):
    """A release of class I: one file per component, and its evidence as a dictionary."""
    (tmp_path / "LICENCE.txt").write_text("do as you like")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "04_x.ipynb").write_text("{}")
    licence = {"path": "LICENCE.txt", "sha256": sha256("do as you like")}
    evidence = {}
    for number, name in enumerate(NAMES):
        (tmp_path / f"file{number}").write_text(name)
        evidence[name] = {
            "status": "present",
            "files": [{"path": f"file{number}", "sha256": sha256(name)}],
            "licence": dict(licence),
            "notebook": "04_x",
            "note": "n",
        }
    entry = {
        "framework": {"name": "Model Openness Framework", "version": "1.0", "date": "2024-12-15"},
        "release": {
            "name": "r",
            "producer": "p",
            "license": {"distribution": {"name": "OpenMDW-1.0"}},
            "components": [{"name": name} for name in NAMES],
        },
    }
    (tmp_path / "MOF.yml").write_text(yaml.safe_dump(entry))
    return tmp_path, evidence


def write(tree, **top):
    folder, evidence = tree
    (folder / "MOF.evidence.yml").write_text(yaml.safe_dump({**top, "evidence": evidence}))
    return folder / "MOF.yml"


def link(folder, target):
    folder.mkdir(exist_ok=True)
    (folder / "loop").symlink_to(target)
    return "loop"


def outcome(path):
    checked = mof_evidence.check_all(path)
    entry = mof.load(path)
    lost = mof_evidence.unsupported(entry, checked)
    return mof_evidence.with_evidence(entry, checked).mof_class, lost


def test_whole_evidence_gives_the_class_of_the_entry(tree, capsys):
    path = write(tree)
    assert outcome(path) == (1, {})
    assert commands.evaluate_mof(path) == 0
    assert "MOF.evidence.yml: Class I - Open Science" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder, item: item["files"][0].update(path="gone"), "gone does not exist"),
        (lambda folder, item: item["files"][0].update(sha256="0" * 64), "not 000000000000"),
        (lambda folder, item: item.update(files=[]), "it names no file"),
        (lambda folder, item: item.pop("licence"), "it names no licence text"),
        (lambda folder, item: item["licence"].update(sha256="1" * 64), "not 111111111111"),
        (lambda folder, item: item.update(notebook="05_y"), "there is no notebook 05_y"),
        (lambda folder, item: item["files"][0].update(path="../x"), "leads out of the folder"),
        (lambda folder, item: item["files"][0].update(path="/etc/passwd"), "leads out of"),
        (lambda folder, item: item.update(notebook="../notebooks/04_x"), "there is no notebook"),
        (lambda folder, item: item["files"][0].update(path="x" * 5000), "cannot be read"),
        (lambda folder, item: item["files"][0].update(path="a\0b"), "cannot be read"),
        (lambda folder, item: item["files"][0].update(path=link(folder, "loop")), "loop "),
        (lambda folder, item: item["files"][0].update(path=link(folder, "/etc")), "leads out of"),
        (
            lambda folder, item: link(folder / "in", "/etc") and item["files"][0].update(path="in"),
            "leads out of",
        ),
        (lambda folder, item: item.update(status="partial"), "its evidence says 'partial'"),
        (lambda folder, item: item.update(status="link only"), "its evidence says 'link only'"),
        (lambda folder, item: item["files"][0].update(at="commit"), "the evidence names none"),
        (
            lambda folder, item: item.update(files=[], address="https://example.org"),
            "https://example.org is named without a SHA-256",
        ),
    ],
)
def test_a_component_whose_evidence_does_not_hold_does_not_count(tree, change, reason, capsys):
    folder, evidence = tree
    change(folder, evidence["Model card"])
    path = write(tree)
    mof_class, lost = outcome(path)
    assert mof_class == 0 and list(lost) == ["Model card"] and reason in lost["Model card"]
    problems = mof_evidence.check_all(path)["Model card"].problems
    assert commands.evaluate_mof(path) == (1 if problems else 0)
    assert f"does not count: Model card: {printable(lost['Model card'])}" in capsys.readouterr().out


def test_one_flipped_bit_of_any_file_takes_its_component_out(tree):
    folder, evidence = tree
    path = write(tree)
    for name, item in evidence.items():
        file = folder / item["files"][0]["path"]
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        assert list(outcome(path)[1]) == [name]
        file.write_bytes(content)
    assert outcome(path)[1] == {}


def test_a_component_without_a_row_does_not_count(tree):
    del tree[1]["Datasets"]
    mof_class, lost = outcome(write(tree))
    assert mof_class == 2 and lost == {"Datasets": "no evidence is given"}


def test_code_is_bound_to_the_commit_of_the_release_and_may_go_on(tree):
    folder, evidence = tree
    code = folder / "code"
    code.mkdir()
    (code / "a.py").write_text("a")
    (code / "b.py").write_text("b")

    def git(*words):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(folder), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "code")
    git("commit", "-q", "-m", "code")
    commit, digest = git("rev-parse", "HEAD"), describe(code)["sha256"]
    file = {"path": "code", "sha256": digest, "at": "commit"}
    evidence["Training code"]["files"] = [file]
    assert outcome(write(tree, commit=commit)) == (1, {})
    (code / "a.py").write_text("changed later")
    assert outcome(write(tree, commit=commit)) == (1, {})
    file["sha256"] = "0" * 64
    reason = outcome(write(tree, commit=commit))[1]["Training code"]
    assert f"code at commit {commit[:12]} has SHA-256 {digest[:12]}" in reason
    file["sha256"] = digest
    reason = outcome(write(tree, commit="0" * 40))[1]["Training code"]
    assert "cannot be read at commit 000000000000" in reason


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("evidence:\n  Data Card: {status: present}", r"line 2, .*did you mean 'Data card'"),
        ("evidence:\n  Data card: {status: there}", r"line 2, .*'there'; it is one of present"),
        ("evidence:\n  Data card:\n    status: present\n    files: [x]", r"line 2, .*a `sha256`"),
        ("commit: --output=x\nevidence: {}", "not the 40 digits of a commit"),
        ("evidence:\n  Data card: {status: present, files: 3}", "`files` is not a list"),
    ],
)
def test_malformed_evidence_is_refused_with_its_line(tree, content, said):
    folder, _ = tree
    (folder / "MOF.evidence.yml").write_text(content)
    with pytest.raises(mof.MofError, match=said):
        mof_evidence.check_all(folder / "MOF.yml")


def test_recording_writes_the_present_hashes_and_nothing_else(tree):
    folder, _ = tree
    text = (
        "# kept\nevidence:\n  Model card:\n    status: present\n    files:\n"
        f"    - {{path: file4, sha256: {'f' * 64}}}\n"
        f"    licence: {{path: LICENCE.txt, sha256: {'f' * 64}}}\n    note: n\n"
    )
    path = folder / "MOF.evidence.yml"
    path.write_text(text)
    assert mof_evidence.record(folder / "MOF.yml") == ["file4", "LICENCE.txt"]
    expected = text.replace("f" * 64, sha256(NAMES[4]), 1)
    assert path.read_text() == expected.replace("f" * 64, sha256("do as you like"), 1)
    assert mof_evidence.check_all(folder / "MOF.yml")["Model card"].holds


def test_the_lab_is_class_one_by_the_rules_and_by_its_evidence():
    path = ROOT / "MOF.yml"
    mof_class, lost = outcome(path)
    assert mof.evaluate(path).mof_class == mof_class == 1
    assert lost == {"Model metadata": "its evidence says 'partial'"}  # optional


def test_every_gap_of_upstream_is_named_and_dated():
    evidence = mof_evidence.evidence(ROOT / "papers" / "moxin_mof.yml")
    assert list(evidence) == NAMES
    for item in evidence.values():
        assert item["read"] and item["source"] and item["note"]
        assert item["status"] == "present" or item["gap"]
