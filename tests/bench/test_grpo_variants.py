"""The bench of GRPO's variants: trainings that resume from their file, questions of its own, equal
samples by the ledger, verdicts by the rule, a page that follows from the rows.
"""

import argparse
import json
import threading
from types import SimpleNamespace

import pytest

from moxin_lab import bench, scales
from moxin_lab.bench import grpo_variants, grpo_variants_page, grpo_variants_training
from moxin_lab.bench import grpo_variants_plan as plan
from moxin_lab.bench import grpo_variants_results as results
from moxin_lab.lab.artifacts import LabError
from moxin_lab.model import convert
from moxin_lab.reasoning import experiments, released, tasks
from tests.posttraining.examples import make_model, make_tokenizer

SMALL = scales.load("small").reasoning


def tiny():
    section = scales.load("tiny").reasoning
    grpo = section.grpo.model_copy(
        update={
            **{"steps": 3, "prompts_per_step": 4, "num_generations": 4},
            **{"micro_batch_examples": 8, "max_completion_length": 6},
        }
    )
    counts = {"cot_examples": 24, "problems": 16, "test_items": 6, "pass_at": (1, 4)}
    return section.model_copy(update={"grpo": grpo, "num_generations_eval": 4, **counts})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants")
    convert.save_pretrained(make_model(), folder / "cot")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(autouse=True)
def small_scale(monkeypatch):
    monkeypatch.setattr(scales, "load", lambda name: SimpleNamespace(reasoning=tiny_section))


tiny_section = tiny()


def run(folders, rows, *words):
    """The record of the bench as the command line would write it."""
    parser = argparse.ArgumentParser()
    bench.add_common_arguments(parser)
    grpo_variants.add_arguments(parser)
    given = ["--device", "cpu", "--cot", str(folders / "cot"), "--seeds", "1"]
    given += ["--tokenizer", str(folders / "tokenizer"), "--results", str(rows)]
    options = parser.parse_args([*given, "--validation-items", "5", *words])
    return bench.record("grpo-variants", "cpu", grpo_variants.run(options))


def trainings(record):
    return [(row["variant"], row["seed"]) for row in record["rows"]]


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    """The start and two variants, whose second takes its steps from the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scales, "load", lambda name: SimpleNamespace(reasoning=tiny_section))
        rows = tmp_path_factory.mktemp("whole") / "rows.json"
        return rows, run(folders, rows, "--only", "start,recipe,draw-anew")


def test_a_change_is_trained_at_equal_samples_and_the_ledger_adds_up(whole):
    """The model is random, so no group has contrast: each of two rounds draws all groups anew, and
    one step generates what three of the recipe do.
    """
    record = whole[1]
    assert trainings(record) == [("start", 0), ("recipe", 0), ("draw-anew", 0)]
    _, recipe, anew = record["rows"]
    assert recipe["groups without contrast"] == 1.0
    assert (recipe["steps"], anew["steps"]) == (3, 1)
    assert recipe["generated"] == recipe["consumed"] == anew["generated"] == 3 * 16
    assert anew["consumed"] == 16
    for row in (recipe, anew):
        for unit in ("", " tokens"):
            parts = row[f"consumed{unit}"] + row[f"discarded{unit}"]
            assert row[f"generated{unit}"] == parts > 0
    for row in record["rows"]:
        assert {
            f"pass@{k} {group}" for k in (1, 4) for group in record["settings"]["questions"]
        } <= {*row}
    missing = {one["variant"]: one["reason"] for one in record["not_run"]}
    assert missing["warmer"] == "not named by --only" and "recipe" not in missing


def test_what_the_file_has_is_not_trained_again(whole, folders, monkeypatch):
    rows, record = whole

    def refuse(*arguments, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr(grpo_variants_training, "run_one", refuse)
    again = run(folders, rows, "--only", "start,recipe,draw-anew")
    assert again["rows"] == record["rows"] and again["right"] == record["right"]
    for words in (["--seconds", "0"], ["--seconds", "0", "--only", "no-kl"]):
        later = run(folders, rows, *words)
        assert later["rows"] == record["rows"]
        missing = {one["variant"]: one["reason"] for one in later["not_run"]}
        assert missing["no-kl"] == "would have ended after --seconds 0"


def test_another_recipe_is_another_training_and_other_experiments_of_the_scale_are_none(
    whole, folders, monkeypatch
):
    other = tiny_section.model_copy(update={"seeds": 7})
    monkeypatch.setattr(scales, "load", lambda name: SimpleNamespace(reasoning=other))
    assert run(folders, whole[0], "--seconds", "0")["rows"] == whole[1]["rows"]
    later = run(folders, whole[0], "--seconds", "0", "--steps", "2")
    assert later["rows"] == [] and later["verdicts"][0]["verdict"] == results.UNDECIDED
    missing = {one["variant"]: one["reason"] for one in later["not_run"]}
    assert "follows from the recipe's training" in missing["draw-anew"]


def test_a_training_that_fails_is_said_and_tried_again_by_the_next_run(
    folders, tmp_path, monkeypatch
):
    rows = tmp_path / "rows.json"

    def out_of_memory(*arguments, **options):
        raise RuntimeError("CUDA out of memory\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(experiments, "reinforce", out_of_memory)
        first = run(folders, rows, "--only", "recipe,draw-anew")
    assert first["rows"] == []
    missing = {one["variant"]: one["reason"] for one in first["not_run"]}
    assert missing["recipe"] == "failed: RuntimeError: CUDA out of memory"
    file = tmp_path / "new folder" / "grpo-variants.json"
    second = run(folders, rows, "--only", "recipe", "--json", str(file))
    assert trainings(second) == [("recipe", 0)]
    assert json.loads(file.read_text(encoding="utf-8"))["rows"] == second["rows"]


def test_processes_that_share_the_file_lose_no_training(tmp_path):
    path = tmp_path / "rows.json"
    threads = [
        threading.Thread(target=grpo_variants.add_record, args=(path, f"digest/a/{i}", {"n": i}))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = grpo_variants.read_records(path, SimpleNamespace(digest="digest"))
    assert {name: one["n"] for name, one in found.items()} == {f"a/{i}": i for i in range(12)}
    path.write_text("{}")
    with pytest.raises(LabError, match=r"rows\.json is not a file of `--results`"):
        grpo_variants.read_records(path, SimpleNamespace(digest="digest"))


@pytest.mark.parametrize("variant", plan.VARIANTS, ids=lambda variant: variant.name)
def test_a_variant_changes_one_thing_of_what_it_is_compared_with(variant):
    settings = SMALL
    ours = plan.grpo_of(variant, settings, settings.grpo.steps).model_dump()
    against = plan.BY_NAME[variant.against or "recipe"]
    theirs = plan.grpo_of(against, settings, settings.grpo.steps).model_dump()
    # Micro-batches change no result (test_a_training_does_not_depend_on_accumulation).
    changed = {name for name in ours if ours[name] != theirs[name]} - {"micro_batch_examples"}
    assert len(changed) == (0 if variant.against is None else 1)


# ---- questions


def test_validation_questions_are_of_the_training_families_and_neither_trained_on_nor_tested():
    settings = tiny_section
    asked = experiments.questions(settings, seed=plan.STAGE_SEED)
    drawn = grpo_variants.validation_of(settings, asked, 40)
    own = {task.question for task in drawn}
    assert len(own) > 20 and {task.family for task in drawn} == set(settings.families)
    assert all(tasks.part_of(question) == "test" for question in own)
    assert not own & {task.question for task in (*asked.problems, *asked.all_tests())}
    shared = experiments.Questions(cot=[], problems=drawn[:1], tests={}, left_out={})
    with pytest.raises(LabError, match="1 validation questions are also a problem of GRPO"):
        grpo_variants.validation_of(settings, shared, 40)


# ---- what they show


def counts(right):
    return {"validation": right, "in-family": right}


SETTINGS = {"pass_at": [1, 4], "samples": 4}


def decided(recipe, changed, seeds=(0,)):
    """The verdict on `changed` against `recipe`, each a function of the seed to right samples."""
    rows = [{"variant": name, "seed": seed} for name in ("recipe", "b") for seed in seeds]
    rows.append({"variant": "start", "seed": 0})
    right = {f"recipe/{seed}": counts(recipe(seed)) for seed in seeds}
    right |= {f"b/{seed}": counts(changed(seed)) for seed in seeds} | {"start/0": counts(recipe(0))}
    found = results.summarise(rows, right, SETTINGS, {"recipe": None, "b": "recipe"})
    by_name = {one["variant"]: one for one in found["verdicts"]}
    return by_name["b"], found


def questions(*parts):
    """`count` questions with so many right samples each."""
    return " ".join(f"{right} " * count for count, right in parts).strip()


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        (questions((40, 4), (40, 1), (20, 0)), results.KEEPS),
        (questions((80, 1), (20, 0)), results.PRICE),
        (questions((20, 4), (80, 0)), results.LOSES),
        (questions((40, 4), (60, 0)), results.NONE),
    ],
)
def test_one_seed_is_judged_over_questions_and_says_so(changed, verdict):
    recipe = questions((40, 4), (60, 0))
    found, whole = decided(lambda seed: recipe, lambda seed: changed)
    assert found["verdict"] == verdict
    assert "one seed, interval over questions" in found["line"]
    assert whole["choice"] == ("b" if verdict == results.KEEPS else "recipe")


def test_several_seeds_are_paired_and_judged_over_seeds():
    """Seeds differ by more than the change does; it has the same sign in each."""

    def recipe(seed):
        return questions((20 + 20 * seed, 4), (80 - 20 * seed, 0))

    def changed(seed):
        return questions((20 + 20 * seed, 4), (10 + seed, 1), (70 - 21 * seed, 0))

    found, whole = decided(recipe, changed, seeds=(0, 1, 2))
    assert found["verdict"] == results.KEEPS and ", 3 seeds." in found["line"]
    (row,) = [
        one
        for one in whole["differences"]
        if (one["variant"], one["against"], one["group"], one["k"])
        == ("b", "recipe", "validation", 4)
    ]
    assert row["by_seed"] == pytest.approx([0.10, 0.11, 0.12]) and row["over"] == "seeds"


# ---- the page


def test_the_page_follows_from_the_rows_and_names_what_was_not_run(whole, tmp_path):
    record = whole[1]
    file = tmp_path / "grpo-variants.json"
    file.write_text(json.dumps(record), encoding="utf-8")
    page = grpo_variants_page.write(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "test columns" in text and record["rule"] in text and str(tmp_path) not in text
    assert "- warmer, seed 0: not named by --only" in text
    assert "| draw-anew | 0 | 1 | 48 (" in text
    assert "pass@4" in (tmp_path / "variants.svg").read_text(encoding="utf-8")
    shown = released.read(file)
    assert released.names(shown) == ["start", "recipe", "draw-anew"]
    assert "Planned and not run" in released.in_words(shown)
    assert list(released.differences(shown)) == [*record["settings"]["questions"]]

    changed = json.loads(file.read_text(encoding="utf-8"))
    changed["right"]["recipe/0"]["validation"] = "4 4 4 4 4"
    file.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(ValueError, match="verdicts are not those of the code"):
        grpo_variants_page.write(tmp_path)
