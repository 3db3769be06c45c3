"""A release is made of a finished run and nothing else, is the same each time, and fits a clone."""

import gzip
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pandas as pd
import pytest
import yaml

from moxin_lab.lab.artifacts import LabError, describe, sha256_file, write_json
from moxin_lab.openness import release, summary

ROOT = Path(__file__).resolve().parents[2]
RELEASED = ROOT / "release" / "moxin-lab-small"
SCALE = "toy"


class Tools:
    """Stands in for `evaluation.released`: knows no model."""

    @staticmethod
    def store(source, target):
        target.mkdir(parents=True)
        for file in source.iterdir():
            (target / file.name).write_bytes(file.read_bytes()[: 2**24])

    @staticmethod
    def scores(checkpoints, documents, tokenizer_folder, settings, *, seed):
        assert (documents / "train").is_dir() and seed == 7
        assert (tokenizer_folder / "tokenizer.json").exists()
        rows = [
            (name, group, 2.0 + at, 1.9 + at, 2.1 + at, 5)
            for at, name in enumerate([*checkpoints, "untrained"])
            for group in ("en", "zh")
        ]
        columns = ["model", "group", "bits_per_byte", "low", "high", "documents"]
        return pd.DataFrame(rows, columns=columns)

    @staticmethod
    def continuations(checkpoint, documents, languages):
        row = {"language": "en", "document": "d", "prompt": "a | b", "continuation": "<i>\nx"}
        return pd.DataFrame([row])


def commit(root, message):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    git = ["git", "-C", str(root), *identity]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", message], check=True)
    done = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def measure(name, value, **labels):
    return {"name": name, "value": value, "unit": "", "interval": None, "labels": labels}


MEASURES = {
    "04_pretraining": [measure("parameters", 12345), measure("training_tokens", 6789)],
    "08_benchmarks": [
        measure("cloze_accuracy", 25.0, language="en", model="trained", metric="acc_norm"),
    ],
}


@pytest.fixture
def root(tmp_path):
    """A repository with a finished run at a scale of its own."""
    root = tmp_path / "clone with spaces é"
    for name in ("help_pages", "python_docs", "code_samples", "conversations"):
        (root / "data_cards" / name).mkdir(parents=True)
        shutil.copy(ROOT / "data_cards" / name / "README.md", root / "data_cards" / name)
    (root / "scales").mkdir()
    (root / "scales" / f"{SCALE}.yaml").write_text("extends: tiny\n")
    text = (ROOT / "papers" / "summaries" / "moxin-lab-small.yml").read_text(encoding="utf-8")
    (root / "papers" / "summaries").mkdir(parents=True)
    (root / "papers" / "summaries" / f"{SCALE}.yml").write_text(text, encoding="utf-8")
    (root / ".gitignore").write_text("runs/\nrelease/\n")
    head = commit(root, "everything")
    runs = root / "runs" / SCALE
    sources = {"help_pages": 900, "python_docs": 800, "code_samples": 700, "conversations": 9}
    files = {
        "01_data_curation/documents/train/00000.parquet": pd.DataFrame(
            {"source": list(sources), "num_bytes": list(sources.values())}
        ),
        "01_data_curation/documents/heldout/00000.parquet": pd.DataFrame({"text": ["held out"]}),
        "01_data_curation/documents/funnel.json": "{}",
        "01_data_curation/documents/run.json": json.dumps(
            {"pipeline": "p", "steps": ["reading"], "settings": {"evaluation": ["HumanEval"]}}
        ),
        "02_tokenizer/tokenizer/tokenizer.json": "{}",
        "03_model/architecture/config.json": "{}",
        "04_pretraining/pretrained/model.safetensors": "final",
        "04_pretraining/phase_checkpoints/phase_1/model.safetensors": "first",
        "04_pretraining/phase_checkpoints/phase_2/model.safetensors": "second",
        "04_pretraining/training_log/order.json": json.dumps([{"first step": 4, "sha256": "a"}]),
        "04_pretraining/training_log/steps.parquet": pd.DataFrame(
            {"loss": [3.0, 2.0, 1.0], "phase": ["a", "b", "c"]}
        ),
        "08_benchmarks/evaluation_results/answers.json": "[]",
    }
    config = {
        "architectures": ["MistralForCausalLM"],
        **dict.fromkeys(
            ("num_hidden_layers", "hidden_size", "intermediate_size", "sliding_window"), 4
        ),
        **dict.fromkeys(("vocab_size", "num_attention_heads", "num_key_value_heads"), 2),
    }
    for name in ("pretrained", "phase_checkpoints/phase_1", "phase_checkpoints/phase_2"):
        files[f"04_pretraining/{name}/config.json"] = json.dumps(config)
    for name, content in files.items():
        path = runs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pd.DataFrame):
            content.to_parquet(path)
        else:
            path.write_text(content)
    made = {}
    for stage, artifacts in release.STAGES.items():
        outputs = {name: describe(runs / stage / name) for name in artifacts}
        record = {
            "stage": stage,
            "scale": SCALE,
            "seed": 7,
            "state": "done",
            "key": "k",
            "inputs": {name: {"sha256": digest} for name, digest in made.items()},
            "outputs": outputs,
            "measures": MEASURES.get(stage, []),
            "claims": [],
            "environment": {
                "git_commit": head,
                "git_dirty": False,
                "cpu": "c",
                "cores": 2,
                "python": "3.11",
                "packages": {"torch": "2", "lm-eval": "0.4"},
            },
            "seconds": 1.0,
            "peak_memory_bytes": 1,
        }
        made |= {name: facts["sha256"] for name, facts in outputs.items()}
        write_json(runs / stage / "stage.json", record)
    return root


def dated(root):
    """The toy's summary says the day of the toy's commit."""
    path = release.summary_file(root, SCALE)
    day = subprocess.run(
        ["git", "-C", str(root), "show", "-s", "--format=%cd", "--date=format:%d/%m/%Y"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["document"]["date"] = day
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")


def build(root):
    dated(root)
    return release.build(root, SCALE, Tools, progress=lambda text: None)


def edit(root, stage, change):
    path = root / "runs" / SCALE / stage / "stage.json"
    record = json.loads(path.read_text())
    change(record)
    write_json(path, record)


def test_a_release_has_every_part_and_its_list_binds_each(root):
    folder = build(root)
    names = set(describe(folder)["files"])
    assert {
        "README.md",
        "technical_report.md",
        "technical_report.html",
        "public_summary.html",
        "public_summary.json",
        "public_summary_grade.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "checkpoints/phase_1/model.safetensors",
        "checkpoints/phase_2/model.safetensors",
        "training/steps.parquet",
        "training/order.json",
        "training/settings.json",
        "training/stages.json",
        "evaluation/bits_per_byte.json",
        "evaluation/measures.json",
        "evaluation/sample_outputs.json",
        "figures/training_loss.svg",
    } <= names
    assert release.check(folder) == []
    assert set(json.loads((folder / "release.json").read_text())["files"]) == names - {
        "release.json"
    }
    assert not [path for path in (root / "release").iterdir() if path.name.startswith(".")]


def test_the_same_run_gives_the_same_bytes(root):
    folder = build(root)
    archive = folder.parent / f"{SCALE}.tar.gz"
    first, packed = describe(folder)["sha256"], sha256_file(archive)
    build(root)
    assert (describe(folder)["sha256"], sha256_file(archive)) == (first, packed)


def test_check_names_what_is_missing_changed_or_surplus(root):
    folder = build(root)
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    (folder / "README.md").unlink()
    (folder / "more.txt").write_text("x")
    archive = folder.parent / f"{SCALE}.tar.gz"
    archive.write_bytes(archive.read_bytes() + b"x")
    assert release.check(folder) == [
        "changed: model/model.safetensors",
        f"changed: {SCALE}.tar.gz beside it",
        "missing: README.md",
        "surplus: more.txt",
    ]


def test_the_archive_has_the_float32_weights_and_what_release_json_lists(root):
    folder = build(root)
    listed = json.loads((folder / "release.json").read_text())["archive"]
    with tarfile.open(folder.parent / listed["name"]) as archive:
        names = {member.name.removeprefix(f"{SCALE}/") for member in archive}
        assert all(member.mtime == 0 and member.uname == "" for member in archive)
    assert names == set(listed["files"])
    assert "float32/model/model.safetensors" in names
    with gzip.open(folder.parent / listed["name"]) as packed:
        assert b"final" in packed.read()


def test_weights_too_large_for_a_clone_go_to_the_archive_alone(root, monkeypatch):
    monkeypatch.setattr(release, "MAX_TREE_BYTES", 1000)
    folder = build(root)
    assert not list(folder.rglob("*.safetensors"))
    manifest = json.loads((folder / "release.json").read_text())
    assert "bfloat16/model/model.safetensors" in manifest["archive"]["files"]
    assert "in the archive `toy.tar.gz`" in (folder / "README.md").read_text()
    grade = json.loads((folder / "public_summary_grade.json").read_text())
    beside = next(metric for metric in grade["metrics"] if metric["id"] == "D12")
    assert beside["score"] == 0


@pytest.mark.parametrize(
    ("stage", "change", "said"),
    [
        ("04_pretraining", lambda r: r["environment"].update(git_dirty=True), "no commit has"),
        ("04_pretraining", lambda r: r.update(state="failed"), "04_pretraining has not finished"),
        ("04_pretraining", lambda r: r.update(key=None), "04_pretraining has not finished"),
        (
            "08_benchmarks",
            lambda r: r["inputs"]["pretrained"].update(sha256="x"),
            "08_benchmarks took another pretrained than the present one",
        ),
        (
            "04_pretraining",
            lambda r: r["environment"].update(git_commit="0" * 40),
            "made at commit 0000",
        ),
    ],
)
def test_a_run_that_is_not_fit_is_refused_with_the_reason(root, stage, change, said):
    edit(root, stage, change)
    with pytest.raises(LabError, match=said):
        build(root)
    assert not (root / "release" / SCALE).exists()


def test_a_run_without_stage_08_is_released_with_the_scores_of_its_weights_and_says_so(root):
    shutil.rmtree(root / "runs" / SCALE / "08_benchmarks")
    folder = build(root)
    assert release.check(folder) == []
    assert {path.name for path in (folder / "evaluation").iterdir()} == {
        "bits_per_byte.json",
        "sample_outputs.json",
    }
    report = (folder / "technical_report.md").read_text(encoding="utf-8")
    assert "Stage 08, with cloze questions beside simple rules, was not run" in report


def test_an_artifact_changed_since_the_run_is_refused(root):
    path = root / "runs" / SCALE / "04_pretraining" / "pretrained" / "model.safetensors"
    path.write_text("other")
    with pytest.raises(LabError, match="pretrained is not what 04_pretraining left"):
        build(root)


def test_a_failed_build_leaves_the_release_before_it(root):
    folder = build(root)
    before = describe(folder)["sha256"]
    release.summary_file(root, SCALE).unlink()
    with pytest.raises(LabError, match="has what no record says of the training content"):
        release.build(root, SCALE, Tools, progress=lambda text: None)
    assert describe(folder)["sha256"] == before


def test_nothing_published_names_a_folder_of_this_machine(root):
    folder = build(root)
    for path in folder.rglob("*"):
        if path.is_file():
            assert str(root).encode() not in path.read_bytes()
            assert b"/tmp/" not in path.read_bytes()


def test_model_text_cannot_break_the_report(root):
    folder = build(root)
    report = (folder / "technical_report.md").read_text(encoding="utf-8")
    assert "| en | a \\| b | &lt;i&gt; x |" in report
    assert "<i>" not in (folder / "technical_report.html").read_text(encoding="utf-8")


# ---- the committed release


def test_the_committed_release_is_what_its_list_says_and_fits_a_clone():
    assert release.check(RELEASED) == []
    manifest = json.loads((RELEASED / "release.json").read_text())
    assert sum(facts["size"] for facts in manifest["files"].values()) <= release.MAX_TREE_BYTES
    assert {"model/model.safetensors", "checkpoints/phase_1/model.safetensors"} <= set(
        manifest["files"]
    )


def test_the_committed_checkpoints_are_three_different_trainings_of_one_model():
    """A known fault of others' releases: checkpoints of different steps with the same bytes."""
    paths = sorted(RELEASED.rglob("model.safetensors"))
    assert len(paths) == 3
    assert len({sha256_file(path) for path in paths}) == 3
    assert len({path.stat().st_size for path in paths}) == 1


def test_the_committed_model_loads_without_our_code_and_predicts_better_than_chance():
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(RELEASED / "model")
    model = AutoModelForCausalLM.from_pretrained(RELEASED / "model", dtype=torch.float32)
    assert (
        sum(p.numel() for p in model.parameters())
        == json.loads((RELEASED / "release.json").read_text())["parameters"]
    )
    ids = tokenizer("Click the button to open the dialog and choose a file.", return_tensors="pt")
    with torch.no_grad():
        loss = model(**ids, labels=ids["input_ids"]).loss.item()
    uniform = torch.log(torch.tensor(float(model.config.vocab_size))).item()
    assert loss < 0.9 * uniform


def test_the_committed_scores_are_better_than_an_untrained_model_in_every_language():
    rows = json.loads((RELEASED / "evaluation" / "bits_per_byte.json").read_text())
    bits = {(row["model"], row["group"]): row for row in rows}
    languages = {row["group"] for row in rows}
    assert languages == {"en", "zh", "ja", "ko", "code"}
    for language in languages:
        released = bits["released, model", language]
        assert released["bits_per_byte"] < bits["untrained", language]["bits_per_byte"]
        rounded = abs(released["bits_per_byte"] - bits["float32, model", language]["bits_per_byte"])
        assert rounded < 0.05


def test_the_summary_of_the_release_is_complete():
    whole = summary.complete(summary.load(release.summary_file(ROOT, "moxin-lab-small")), ROOT)
    listed = [item["name"] for item in whole["fields"]["2.1.c"]["items"]]
    others = [item["name"] for item in whole["fields"]["2.1.d"]["items"]]
    manifest = json.loads((RELEASED / "release.json").read_text())
    assert len(listed) + len(others) == len(manifest["training_text"]) == 4
