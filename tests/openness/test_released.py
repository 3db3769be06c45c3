"""`verify` finds what hashes alone do not show: each fault here was in somebody's release."""

import hashlib
import shutil
import subprocess

import pytest

from moxin_lab.lab.artifacts import describe, sha256_file, write_json
from moxin_lab.openness import released, verify

STAGE = "runs/tiny/04_pretraining"


def page(commit="", card="", digest=""):
    row = f'<th scope="row">{card}</th><td>data card</td><td>1 B</td><td class="hash">{digest}</td>'
    return f"<dt>Commit</dt><dd>{commit}</dd>" * bool(commit) + f"<tr>{row}</tr>" * bool(card)


@pytest.fixture
def root(tmp_path):
    """A tiny run with one training: two checkpoints, their order, a data card, a page."""
    for name, text in {
        "data_cards/udhr/data/test.parquet": "rows",
        "runs/tiny/01_data_curation/documents/train.parquet": "documents",
        f"{STAGE}/phase_checkpoints/phase_1/model.safetensors": "one",
        f"{STAGE}/phase_checkpoints/phase_1/config.json": "{}",
        f"{STAGE}/phase_checkpoints/phase_2/model.safetensors": "two",
        f"{STAGE}/phase_checkpoints/phase_2/config.json": "{}",
        f"{STAGE}/training_log/order.json": "[]",
        "reports/tiny/index.html": page(),
        "notebooks/x.ipynb": "{}",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "moxin_lab").mkdir()
    documents = describe(tmp_path / "runs/tiny/01_data_curation/documents")
    write_json(
        tmp_path / STAGE / "stage.json",
        {
            "inputs": {"documents": {"stage": "01_data_curation", "sha256": documents["sha256"]}},
            "data_cards": {
                "udhr": {"sha256": describe(tmp_path / "data_cards/udhr/data")["sha256"]}
            },
            "outputs": {
                name: {"sha256": describe(tmp_path / STAGE / name)["sha256"]}
                for name in ("phase_checkpoints", "training_log")
            },
        },
    )
    return tmp_path


def found(root):
    """(kind, path, detail) after the tree has been bound as it is."""
    verify.write_manifest(root, "tiny")
    return [(p.kind, p.path, p.detail) for p in verify.verify_folder(root).problems]


def test_a_sound_tree_has_no_fault(root):
    assert found(root) == []


def test_two_steps_with_the_same_bytes_are_one_checkpoint(root):
    """pythia issue 195: steps 0 to 6,300 of the 2.8B model were one file."""
    phases = root / STAGE / "phase_checkpoints"
    shutil.copy(phases / "phase_1/model.safetensors", phases / "phase_2/model.safetensors")
    kinds = {kind: path for kind, path, _ in found(root)}
    assert kinds["two steps, one checkpoint"].endswith("phase_2/model.safetensors")


@pytest.mark.parametrize(
    ("first", "second", "fault"),
    [
        ("a/step_100/model.safetensors", "a/step_200/model.safetensors", True),
        ("a/step100-x.ckpt", "a/step143000-x.ckpt", True),
        ("a/pretrained/model.safetensors", "b/phase_3/model.safetensors", False),
        (
            "a/step_1/model-00001-of-00002.safetensors",
            "a/step_2/model-00001-of-00002.safetensors",
            True,
        ),
        ("a/step_100/config.json", "a/step_200/config.json", False),
        ("a/step_1/rank_0.pt", "a/step_1/rank_1.pt", False),
        ("a/model-00001-of-00002.safetensors", "a/model-00002-of-00002.safetensors", False),
    ],
)
def test_only_weights_that_differ_in_a_step_are_compared(first, second, fault):
    problems = list(released.same_checkpoints({first: "0" * 64, second: "0" * 64}))
    assert bool(problems) == fault


def test_a_stage_whose_order_of_data_is_lost_cannot_be_resumed(root):
    """OLMo issues 879 and 837."""
    (root / STAGE / "training_log/order.json").rename(root / STAGE / "training_log/other.json")
    details = [detail for kind, _, detail in found(root) if kind == "cannot be resumed"]
    assert any("order.json, the data's order, is missing" in detail for detail in details)


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        (
            "runs/tiny/01_data_curation/documents",
            "input runs/tiny/01_data_curation/documents is not",
        ),
        ("data_cards/udhr/data", "data card data_cards/udhr/data is not there"),
        (f"{STAGE}/phase_checkpoints", f"output {STAGE}/phase_checkpoints is not there"),
        (f"{STAGE}/phase_checkpoints/phase_1/config.json", "weights without config.json"),
    ],
)
def test_a_stage_with_something_missing_cannot_be_resumed(root, path, fault):
    """OLMo-core issue 617: the file with the mixture was not released."""
    target = root / path
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert any(fault in detail for _, _, detail in found(root))


@pytest.mark.parametrize(
    "path",
    ["runs/tiny/01_data_curation/documents/train.parquet", "data_cards/udhr/data/test.parquet"],
)
def test_a_stage_made_from_another_version_cannot_be_resumed(root, path):
    (root / path).write_text("another version")
    assert any("the stage's record has" in detail for _, _, detail in found(root))


def test_an_index_that_names_a_missing_shard_cannot_be_resumed(root):
    index = root / STAGE / "phase_checkpoints/phase_1/model.safetensors.index.json"
    write_json(index, {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    (index.parent / "model-1.safetensors").write_text("x")
    assert any("shard model-2.safetensors is missing" in detail for _, _, detail in found(root))


def git(root, *arguments):
    command = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_page_of_a_commit_or_of_data_that_are_not_in_the_tree_is_found(root):
    git(root, "init", "-q")
    git(root, "add", "notebooks")
    git(root, "commit", "-q", "-m", "x")
    commit = git(root, "rev-parse", "HEAD")[:12]
    digest = describe(root / "data_cards/udhr/data")["sha256"]
    target = root / "reports/released/r/page.html"
    target.parent.mkdir(parents=True)
    for text, kind in [
        (page(commit, "udhr", digest), None),
        (page("0" * 12, "udhr", digest), "commit that is not in the tree"),
        (page(commit, "udhr", "0" * 64), "data that is not in the tree"),
        (page(commit, "gone", digest), "data that is not in the tree"),
        (f"<p>made at commit {'1' * 40}</p>", "commit that is not in the tree"),
    ]:
        target.write_text(text)
        verify.write_released_manifest(target.parent)
        kinds = [problem.kind for problem in verify.verify_folder(target.parent).problems]
        assert kinds == ([kind] if kind else [])
        assert bool(kind) == any(kind == k for k, _, _ in found(root))  # the clone's check too


def test_a_page_of_data_that_only_the_history_has_is_sound(root):
    """The data has changed since; whoever reads the page finds it at the page's commit."""
    digest = describe(root / "data_cards/udhr/data")["sha256"]
    git(root, "init", "-q")
    git(root, "add", "data_cards")
    git(root, "commit", "-q", "-m", "x")
    target = root / "reports/released/r/page.html"
    target.parent.mkdir(parents=True)
    target.write_text(page("", "udhr", digest))
    (root / "data_cards/udhr/data/test.parquet").write_text("another version")
    verify.write_released_manifest(target.parent)
    assert verify.verify_folder(target.parent).problems == ()
    shutil.rmtree(root / ".git")
    checked = verify.verify_folder(target.parent)
    assert checked.problems == () and "data card udhr" in checked.notes[0]


def test_without_a_history_it_says_what_was_not_looked_up(root):
    (root / "reports/tiny/index.html").write_text(page("0" * 12))
    verify.write_manifest(root, "tiny")
    checked = verify.verify_folder(root)
    assert checked.problems == ()
    assert checked.notes == ("no git history: commit 000000000000 of reports/tiny/index.html",)


HOME = "/" + "home"  # no file of the repository spells a path of a machine


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("saved to {root}/runs/x", "the folder of the clone"),
        ("run by wildhorse-7", "the host"),
        ("owner: jsmith42", "the user"),
        (f"see {HOME}/ada/lab/x.py", "a home folder"),
        ("see /Users/ada/lab/x.py", "a home folder"),
        (f"see {HOME}/user/x and https://example.org{HOME}/ada/", None),
        (f"a path like /etc/fstab, ~/x, src{HOME}/ada/", None),
        ("wildhorse-72 and xjsmith42", None),
    ],
)
def test_no_published_file_names_the_machine(root, monkeypatch, text, fault):
    monkeypatch.setattr(released.socket, "gethostname", lambda: "wildhorse-7")
    monkeypatch.setattr(released.getpass, "getuser", lambda: "jsmith42")
    (root / "reports/tiny/index.html").write_text(text.format(root=root))
    details = [detail for kind, _, detail in found(root) if kind == "names a machine"]
    assert [d.split(":")[0] for d in details] == ([fault] if fault else [])


def test_a_host_or_user_of_a_common_name_is_not_looked_for(root, monkeypatch):
    monkeypatch.setattr(released.socket, "gethostname", lambda: "vm")
    monkeypatch.setattr(released.getpass, "getuser", lambda: "root")
    (root / "reports/tiny/index.html").write_text("the vm's root")
    assert found(root) == []


def test_an_artifact_s_hash_from_the_manifest_is_the_one_that_its_stage_recorded(root):
    folder = root / STAGE / "phase_checkpoints"
    (folder / ".hidden").write_text("working state")
    hashes = {
        path.relative_to(root).as_posix(): sha256_file(path)
        for path in root.rglob("*")
        if path.is_file()
    }
    recorded = describe(folder)["sha256"]
    assert released._bound_hash(folder.relative_to(root).as_posix(), hashes) == recorded
    assert hashlib.sha256(b"").hexdigest() != recorded
