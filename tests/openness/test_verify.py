"""`verify` sees every byte, file and link that differs from the manifest, and says clearly when
there is no usable manifest.
"""

import json
import os
import shutil
import time

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from moxin_lab import cli
from moxin_lab.lab.artifacts import LabError, describe, is_working_state, json_text
from moxin_lab.openness import verify as manifest

FILES = {
    "reports/tiny/index.html": b"<h1>report</h1>",
    "reports/tiny/assets/style.css": b"body {}",
    "runs/tiny/02_tokenizer/stage.json": b"{}",
    "runs/tiny/02_tokenizer/notebook.ipynb": b"{}",
    "runs/tiny/02_tokenizer/tokenizer/tokenizer.json": b"{}",
    "data_cards/udhr/data/test.parquet": b"PAR1",
    "notebooks/02_tokenizer.ipynb": b"{}",
    "papers/claims.yml": b"claims: []",
    "requirements.lock": b"torch==2.13.0",
    "MOF.yml": b"release: {}",
}
NOT_COVERED = [
    "runs/tiny/.lock",
    "runs/tiny/02_tokenizer/.new/x",
    "runs/tiny/02_tokenizer/scratch/x",
    "runs/full/x",
    "README.md",
]


@pytest.fixture
def root(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name in NOT_COVERED:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"working state")
    manifest.write_manifest(tmp_path, "tiny")
    return tmp_path


def found(root):
    return [(problem.kind, problem.path) for problem in manifest.verify(root, "tiny")]


def test_untouched_tree_has_no_problem_and_every_covered_file_is_bound(root):
    assert found(root) == []
    assert manifest.read_manifest(root, "tiny").keys() == FILES.keys()


def test_manifest_is_an_in_toto_statement_with_the_same_bytes_each_time(root):
    path = manifest.manifest_path(root, "tiny")
    before = path.read_bytes()
    statement = json.loads(before)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == sorted(statement["subject"], key=lambda entry: entry["name"])
    assert statement["predicate"] == {
        "scale": "tiny",
        "files": len(FILES),
        "bytes": sum(map(len, FILES.values())),
    }
    manifest.write_manifest(root, "tiny")
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_in_any_file_is_caught(root, name):
    content = bytearray((root / name).read_bytes())
    content[len(content) // 2] ^= 1
    (root / name).write_bytes(content)
    assert found(root) == [("changed", name)]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=strategies.data())
def test_any_single_flipped_bit_is_found_also_one_of_the_manifest(root, data):
    """A whole file of the tree at a time, the manifest among them; its bytes are put back."""
    names = [*FILES, "reports/tiny/manifest.json"]
    path = root / data.draw(strategies.sampled_from(names))
    before = path.read_bytes()
    bit = data.draw(strategies.integers(0, 8 * len(before) - 1))
    content = bytearray(before)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    try:
        try:
            problems = manifest.verify_folder(root).problems
        except LabError as error:
            problems = [error]
        assert problems, (path.name, bit)
    finally:
        path.write_bytes(before)
    assert manifest.verify_folder(root).problems == ()


def test_a_report_as_large_as_the_tiny_one_is_verified_within_5_s_of_the_processor(root):
    """300 files of 130 MB, which is what a tiny run leaves with the data cards."""
    for number in range(300):
        folder = root / "runs/tiny" / f"stage_{number % 10}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.safetensors").write_bytes(bytes([number % 256]) * 450_000)
    manifest.write_manifest(root, "tiny")
    began = time.process_time()
    checked = manifest.verify_folder(root)
    assert time.process_time() - began < 5
    assert checked.files > 300 and not [p for p in checked.problems if p.kind == "changed"]


def test_one_file_is_checked_by_the_manifest_around_it(root):
    page = root / "reports/tiny/index.html"
    assert manifest.verify_file(page).problems == ()
    card = root / "data_cards/udhr/data/test.parquet"
    assert manifest.verify_file(card).problems == ()
    assert manifest.verify_file(root / "reports/tiny/manifest.json").files == len(FILES)
    card.write_bytes(b"PAR2")
    assert [p.kind for p in manifest.verify_file(card).problems] == ["changed"]
    page.unlink()
    assert [p.kind for p in manifest.verify_file(page).problems] == ["missing"]
    with pytest.raises(LabError, match=r"README\.md: no manifest around it names it"):
        manifest.verify_file(root / "README.md")
    assert cli.main(["verify", str(card)]) == 1


def test_missing_changed_and_surplus_files_are_listed_together_in_order(root):
    (root / "runs/tiny/02_tokenizer/stage.json").unlink()
    (root / "requirements.lock").write_bytes(b"torch==2.13.0\nmore")
    (root / "reports/tiny/new.html").write_bytes(b"")
    problems = manifest.verify(root, "tiny")
    assert [str(problem) for problem in problems] == [
        "surplus: reports/tiny/new.html (not in the manifest)",
        "changed: requirements.lock (18 bytes, recorded 13)",
        "missing: runs/tiny/02_tokenizer/stage.json",
    ]


def test_working_state_and_other_scales_are_not_bound(root):
    for name in NOT_COVERED:
        (root / name).write_bytes(b"changed")
    assert found(root) == []


def test_emptied_artifact_folder_shows_its_files_as_missing_and_an_empty_folder_is_nothing(root):
    shutil.rmtree(root / "runs/tiny/02_tokenizer/tokenizer")
    (root / "runs/tiny/02_tokenizer/tokenizer").mkdir()
    assert found(root) == [("missing", "runs/tiny/02_tokenizer/tokenizer/tokenizer.json")]


@pytest.mark.parametrize("name", ["papers/claims.yml", "data_cards/udhr/data"])
def test_link_in_place_of_a_file_or_folder_is_refused_even_with_the_same_content(root, name):
    moved = root / "elsewhere"
    (root / name).rename(moved)
    (root / name).symlink_to(moved)
    assert ("not a plain file", name) in found(root)
    with pytest.raises(LabError, match=name):
        manifest.write_manifest(root, "tiny")


def test_surplus_link_and_pipe_are_caught_without_being_opened(root):
    (root / "papers/link").symlink_to(root / "absent")
    os.mkfifo(root / "papers/pipe")
    assert found(root) == [("not a plain file", "papers/link"), ("not a plain file", "papers/pipe")]


def test_folder_without_a_report_cannot_be_bound(tmp_path):
    (tmp_path / "reports" / "tiny").mkdir(parents=True)
    with pytest.raises(
        LabError, match="holds no report; make one with: moxin-lab run --scale tiny"
    ):
        manifest.write_manifest(tmp_path, "tiny")


def test_missing_manifest_names_the_command_that_makes_it(root):
    manifest.manifest_path(root, "tiny").unlink()
    with pytest.raises(LabError, match=r"does not exist.*moxin-lab run --scale tiny"):
        manifest.verify(root, "tiny")


def test_half_written_manifest_is_refused(root):
    path = manifest.manifest_path(root, "tiny")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(LabError, match="cannot be read as JSON"):
        manifest.verify(root, "tiny")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(LabError, match="cannot be read as JSON"):
        manifest.verify(root, "tiny")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("subject"), "'subject' is absent"),
        (lambda s: s.update(_type="something else"), "not a statement of type"),
        (lambda s: s["predicate"].update(scale="full"), "belongs to scale 'full'"),
        (lambda s: s["subject"].clear(), "list of files is empty"),
        (lambda s: s["subject"].pop(), "incomplete"),
        (lambda s: s["subject"].append(s["subject"][0]), "names a file twice"),
        (lambda s: s["subject"][0].update(name="../../etc/passwd"), "outside the repository"),
        (lambda s: s["subject"][0].update(name="/etc/passwd"), "outside the repository"),
        (lambda s: s["subject"][0]["digest"].update(sha256="abc"), "hash or size"),
        (lambda s: s["subject"][0].pop("annotations"), "'annotations' is absent"),
        (lambda s: s.update(subject=None), "is not a manifest"),
    ],
)
def test_malformed_manifest_says_what_is_wrong(root, change, message):
    path = manifest.manifest_path(root, "tiny")
    statement = json.loads(path.read_text())
    change(statement)
    path.write_text(json_text(statement))
    with pytest.raises(LabError, match=message):
        manifest.verify(root, "tiny")


def test_manifest_that_is_a_bare_list_is_refused(root):
    manifest.manifest_path(root, "tiny").write_text("[]")
    with pytest.raises(LabError, match="is not a manifest"):
        manifest.verify(root, "tiny")


def test_nesting_and_digits_beyond_the_parsers_limits_are_refused(root):
    path = manifest.manifest_path(root, "tiny")
    good = path.read_text()
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(
        LabError, match=r"manifest\.json cannot be read as JSON: .*nested too deeply"
    ):
        manifest.verify(root, "tiny")
    statement = json.loads(good)
    size = statement["subject"][0]["annotations"]["size"]
    path.write_text(good.replace(f'"size": {size}', f'"size": {"9" * 5000}'))
    with pytest.raises(LabError, match=r"manifest\.json cannot be read as JSON: .*digits"):
        manifest.verify(root, "tiny")
    statement["subject"][0]["name"] = "\ud800"
    path.write_text(json.dumps(statement))
    with pytest.raises(LabError, match="is not a manifest"):
        manifest.verify(root, "tiny")


def test_a_repository_is_checked_whole_from_any_folder_in_it(root):
    for name in ("moxin_lab", "notebooks/deeper"):
        (root / name).mkdir(parents=True)
    for folder in (root, root / "notebooks/deeper", root / "reports/tiny"):
        checked = manifest.verify_folder(folder)
        assert (checked.folder, checked.files, checked.problems) == (root, len(FILES), ())
        assert checked.summary() == f"{root}, tiny scale, 10 files: as the manifest says"


def test_a_copy_of_the_tree_without_its_package_is_checked_itself(root):
    (root / "papers/claims.yml").write_text("claims: [x]")
    assert [str(problem) for problem in manifest.verify_folder(root).problems] == [
        "changed: papers/claims.yml (11 bytes, recorded 10)"
    ]


@pytest.mark.parametrize("inside", [False, True])
def test_a_copied_report_is_checked_by_its_own_files_and_says_what_is_not_there(
    root, tmp_path_factory, inside
):
    """Also where the copy lies inside the repository, whose own report is as it was."""
    (root / "moxin_lab").mkdir()
    copy = (root if inside else tmp_path_factory.mktemp("elsewhere")) / "copy"
    shutil.copytree(root / "reports/tiny", copy)
    checked = manifest.verify_folder(copy)
    assert (checked.folder, checked.files, checked.elsewhere) == (copy, 2, 8)
    assert checked.summary().startswith(
        f"{copy}, the report at tiny scale alone, 2 files: as the manifest says; not here and not "
        "checked: 8 files"
    )
    (copy / "index.html").write_bytes(b"<h1>REPORT</h1>")
    (copy / "assets/style.css").unlink()
    (copy / "more.html").write_bytes(b"")
    assert [(problem.kind, problem.path) for problem in manifest.verify_folder(copy).problems] == [
        ("missing", "reports/tiny/assets/style.css"),
        ("changed", "reports/tiny/index.html"),
        ("surplus", "reports/tiny/more.html"),
    ]
    with pytest.raises(LabError, match="is the report at tiny scale, not small"):
        manifest.verify_folder(copy, "small")


def test_the_command_checks_the_folder_that_it_is_given_or_called_in_and_names_it(
    root, tmp_path_factory, monkeypatch, capsys
):
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(root / "reports/tiny", copy)
    monkeypatch.chdir(copy)
    assert cli.main(["verify"]) == 0
    assert f"verify: {copy}, the report at tiny scale alone" in capsys.readouterr().out
    (copy / "index.html").write_bytes(b"")
    for words in (["verify"], ["verify", str(copy)], ["--root", str(copy), "verify"]):
        assert cli.main(words) == 1
        assert "changed: reports/tiny/index.html" in capsys.readouterr().out
    assert cli.main(["verify", str(root), "--scale", "tiny"]) == 0
    assert f"verify: {root}, tiny scale" in capsys.readouterr().out


def test_a_folder_without_a_manifest_is_refused_instead_of_another_tree_being_checked(
    root, tmp_path_factory
):
    (root / "moxin_lab").mkdir()
    (root / "reports/released/old").mkdir(parents=True)
    with pytest.raises(LabError, match=r"old has no manifest\.json"):
        manifest.verify_folder(root / "reports/released/old")
    with pytest.raises(LabError, match="is not inside a repository, so there is nothing to verify"):
        manifest.verify_folder(tmp_path_factory.mktemp("empty"))
    with pytest.raises(LabError, match="none does not exist"):
        manifest.verify_folder(root / "none")
    with pytest.raises(LabError, match="not the name of a scale"):
        manifest.verify_folder(root, "..")


@pytest.mark.parametrize("name", [b"\xff.txt", b"a\n\x1b[31m.txt", "\u202etxt.x".encode()])
def test_a_file_of_an_odd_name_is_found_and_said_without_acting_on_the_terminal(root, name, capsys):
    (root / "reports/tiny" / os.fsdecode(name)).write_bytes(b"")
    assert cli.main(["verify", str(root)]) == 1
    said = capsys.readouterr().out
    said.encode()  # also a stream that takes UTF-8 alone can be written
    assert said.count("\n") == 2 and said.startswith("surplus: reports/tiny/")
    assert "\x1b" not in said and "\u202e" not in said
    with pytest.raises(LabError, match="rename it"):
        manifest.write_manifest(root, "tiny")


def test_a_file_whose_name_is_in_any_script_is_bound(root):
    for name in ("räksmörgås 中文.txt", "👩‍👩‍👧.txt"):
        (root / "reports/tiny" / name).write_text("x")
    manifest.write_manifest(root, "tiny")
    assert found(root) == []


LEFTOVERS = ["x~", "Thumbs.db", "desktop.ini", "#x#", "x.swp", ".DS_Store", "__pycache__/x.pyc"]


@pytest.mark.parametrize("name", LEFTOVERS)
def test_what_an_editor_or_a_file_manager_leaves_is_working_state_everywhere(root, name):
    artifact = root / "runs/tiny/02_tokenizer/tokenizer"
    before = describe(artifact)
    for folder in ("reports/tiny", "runs/tiny/02_tokenizer/tokenizer", "papers"):
        (root / folder / name).parent.mkdir(exist_ok=True)
        (root / folder / name).write_bytes(b"left")
    assert found(root) == [] and describe(artifact) == before
    path = manifest.manifest_path(root, "tiny")
    written = path.read_bytes()
    manifest.write_manifest(root, "tiny")
    assert path.read_bytes() == written
    assert not is_working_state("index.html") and not is_working_state("#")


def test_every_released_report_has_a_manifest_that_verify_accepts(repository, tmp_path, capsys):
    released = (repository / "reports/released").iterdir()
    folders = sorted(path for path in released if path.is_dir() and any(path.iterdir()))
    assert len(folders) >= 7
    for folder in folders:
        write = f"write it with: python -m moxin_lab.openness.verify reports/released/{folder.name}"
        assert (folder / "manifest.json").is_file(), write
        checked = manifest.verify_folder(folder)
        assert (checked.problems, checked.elsewhere) == ((), 0), write
        assert checked.files == sum(file.is_file() for file in folder.rglob("*")) - 1
    copy = shutil.copytree(folders[0], tmp_path / "anywhere")
    assert cli.main(["verify", str(copy)]) == 0
    assert f"report released/{folders[0].name}" in capsys.readouterr().out
    (copy / "more").write_bytes(b"")
    assert cli.main(["verify", str(copy)]) == 1


def test_a_released_manifest_binds_the_files_of_its_folder_alone(root):
    folder = root / "reports/released/old"
    folder.mkdir(parents=True)
    with pytest.raises(LabError, match="holds no report"):
        manifest.write_released_manifest(folder)
    (folder / "a.json").write_text("{}")
    (folder / "deeper").mkdir()
    (folder / "deeper/b.html").write_text("b")
    path = manifest.write_released_manifest(folder)
    before = path.read_bytes()
    assert manifest.write_released_manifest(folder).read_bytes() == before
    assert manifest.verify_folder(folder).problems == ()
    assert found(root) == []  # the report of the scale rests on no released one
    (folder / "a.json").write_text("[]")
    (folder / "deeper/b.html").unlink()
    (folder / "c").write_text("")
    problems = manifest.verify_folder(folder).problems
    assert [(problem.kind, problem.path) for problem in problems] == [
        ("changed", "reports/released/old/a.json"),
        ("surplus", "reports/released/old/c"),
        ("missing", "reports/released/old/deeper/b.html"),
    ]
    with pytest.raises(LabError, match="is no folder of reports/released"):
        manifest.write_released_manifest(root / "reports/tiny")
