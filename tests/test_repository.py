"""Guarantees of the tree: lock, conda environment, notebooks, scales, no address of a registry or a
machine.
"""

import json
import re
import subprocess
import tomllib
from itertools import pairwise

import pytest
import yaml

from moxin_lab import scales
from moxin_lab.stages import STAGES

# bytes; the image sets of stage 07 are a third of the first, released reports and the released
# model eight MiB
SIZE_LIMIT, FILE_LIMIT = 41 * 2**20, 9 * 2**20


@pytest.fixture(scope="session")
def tracked(repository):
    """Files that git tracks, or all files that it does not ignore in a tree not yet committed."""
    listed = subprocess.run(
        [
            "git",
            "-C",
            str(repository),
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return [
        repository / name
        for name in listed.stdout.split("\0")
        if name and (repository / name).is_file()
    ]


def requirement_name(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement).group().lower().replace("_", "-")


def test_lock_pins_every_dependency_by_hash_and_names_no_index(repository):
    lock = (repository / "requirements.lock").read_text()
    assert not re.search(r"https?://|--index-url|--extra-index-url|--find-links", lock)
    pinned = re.findall(
        r"^([a-z0-9-]+)==\S+(.*\\\n(?:    --hash=sha256:[0-9a-f]{64}.*\n)+)?", lock, flags=re.M
    )
    assert pinned and all(hashes for _, hashes in pinned)
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert {requirement_name(requirement) for requirement in wanted} <= {name for name, _ in pinned}


def test_conda_environment_is_python_and_pip_and_its_header_installs_the_same_lock(repository):
    text = (repository / "environment.yml").read_text()
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert yaml.safe_load(text)["dependencies"] == [f"python{project['requires-python']}", "pip"]
    install = "pip install --no-deps --require-hashes -r requirements.lock"
    assert install in text  # pip would insist on a package that the lock omits
    assert install.removeprefix("pip install ") in (repository / "Makefile").read_text()


def test_the_design_cards_packages_are_dependencies(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    names = {requirement_name(requirement) for requirement in project["dependencies"]}
    assert {
        "jupyterlab",
        "papermill",
        "torch",
        "lightning",
        "datasets",
        "transformers",
        "matplotlib",
        "pandas",
    } <= names


def test_tree_and_files_stay_small(tracked):
    sizes = {path: path.stat().st_size for path in tracked}
    assert sum(sizes.values()) <= SIZE_LIMIT
    assert not [path for path, size in sizes.items() if size > FILE_LIMIT]


def test_no_file_names_a_package_registrys_host_or_a_path_of_one_machine(tracked, repository):
    hosts = "|".join(
        ("py" + r"pi\.org", "pythonhosted" + r"\.org", r"registry\.npm" + "js", r"deb\.deb" + "ian")
    )
    machine = "|".join(("/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/[a-z]"))
    for path in tracked:
        if path.suffix in {
            ".py",
            ".md",
            ".yml",
            ".yaml",
            ".toml",
            ".lock",
            ".ipynb",
            ".cff",
            ".j2",
            ".css",
        } or path.name in {"Makefile", "run"}:
            text = path.read_text(encoding="utf-8")
            found = re.search(f"{hosts}|{machine}", text)
            assert not found, f"{path.relative_to(repository)} names {found.group()}"


@pytest.mark.parametrize("info", STAGES, ids=lambda info: info.name)
def test_every_notebook_has_one_h1_a_parameters_cell_short_cells_and_no_outputs(repository, info):
    notebook = json.loads((repository / "notebooks" / f"{info.name}.ipynb").read_text())
    cells = notebook["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    prose = [
        re.sub(r"```.*?```", "", source, flags=re.S)
        for cell, source in zip(cells, sources, strict=True)
        if cell["cell_type"] == "markdown"
    ]
    headings = [line for text in prose for line in text.splitlines() if line.startswith("#")]
    assert cells[0]["cell_type"] == "markdown" and sources[0].startswith("# ")
    assert sum(line.startswith("# ") for line in headings) == 1
    levels = [len(line) - len(line.lstrip("#")) for line in headings]
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert cells[1]["metadata"]["tags"] == ["parameters"]
    assert sources[1].splitlines() == ['scale = "tiny"', "seed = 0", 'root = "."']
    code = [
        (cell, source)
        for cell, source in zip(cells, sources, strict=True)
        if cell["cell_type"] == "code"
    ]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell, _ in code)
    num_lines = [len(source.splitlines()) for _, source in code]
    _, imports, *others = num_lines  # the first cell has the parameters
    assert imports <= 20 and max(others) <= 12
    assert code[-1][1].strip().endswith("stage.finish()")
    assert "## What this does not show" in headings


def test_notebooks_and_stage_table_name_the_same_stages(repository):
    # 00 is the map: it computes nothing and is no stage
    assert sorted(path.stem for path in (repository / "notebooks").glob("*.ipynb")) == sorted(
        ["00_start_here", *(info.name for info in STAGES)]
    )


def test_artifacts_have_one_producer_that_comes_before_every_user():
    produced = []
    for info in STAGES:
        assert {*info.takes, *info.may_take} <= set(produced)
        assert not set(info.leaves) & set(produced)
        produced += info.leaves


@pytest.mark.parametrize("name", scales.SCALES)
def test_scales_load_and_keep_the_recipe(name):
    scale, full = scales.load(name), scales.load("full")
    assert scale.model.num_hidden_layers == 36
    assert len(scale.pretraining.phases) == 3
    assert (
        scale.pretraining.phases[1].sequence_length
        == 2 * scale.pretraining.phases[0].sequence_length
    )
    assert scale.model.num_attention_heads == 4 * scale.model.num_key_value_heads
    assert (
        scale.model.intermediate_size / scale.model.hidden_size
        == full.model.intermediate_size / full.model.hidden_size
    )
    assert scale.model.max_position_embeddings == 8 * scale.model.sliding_window
    for field in (
        "adam_beta1",
        "adam_beta2",
        "adam_eps",
        "weight_decay",
        "final_learning_rate_ratio",
    ):
        assert getattr(scale.pretraining, field) == getattr(full.pretraining, field)


def test_every_value_of_the_full_scale_carries_its_source_or_the_words_our_choice(repository):
    bare = []
    for number, line in enumerate(
        (repository / "moxin_lab/scales/full.yaml").read_text().splitlines(), start=1
    ):
        if re.match(r"^\s*(- )?[\w-]+: *[^\s#]", line) and not re.search(r"#\s*\S", line):
            bare.append(f"{number}: {line.strip()}")
    assert not bare


def test_an_unknown_scale_and_a_wrong_value_are_refused_with_the_field(tmp_path, monkeypatch):
    with pytest.raises(
        scales.ScaleError, match="unknown scale 'huge': choose one of tiny, small, full"
    ):
        scales.load("huge")
    good = (scales.Path(scales.__file__).parent / "tiny.yaml").read_text()
    (tmp_path / "tiny.yaml").write_text(
        good.replace("num_hidden_layers: 36", "num_hidden_layers: -1")
    )
    monkeypatch.setattr(scales, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(scales.ScaleError, match=r"tiny.yaml.*[\s\S]*model.num_hidden_layers"):
        scales.load("tiny")
