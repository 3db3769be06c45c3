"""Published tables: shown as printed, with commands that name real tasks."""

from html import unescape
from pathlib import Path

import pytest
import yaml

from moxin_lab.evaluation.published import (
    CLAIM_TABLES,
    GROUPS,
    HARNESS_TASKS,
    NEAREST_TASKS,
    OTHER_SUITES,
    attempt,
    folded,
    judge,
    lead,
    lead_in_words,
    load_tables,
)

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "papers" / "tables"


@pytest.fixture(scope="module")
def tables():
    return {table.name: table for table in load_tables(TABLES)}


def test_every_table_has_tasks_or_another_suite_and_every_entry_has_its_table(tables):
    assert set(tables) == set(HARNESS_TASKS) | set(OTHER_SUITES)
    assert not set(HARNESS_TASKS) & set(OTHER_SUITES)
    for table in tables.values():
        page = unescape(folded(table, "tiny", attempted=False))
        assert table.requirement() in page and all(note in page for note in table.notes)
        assert bool(table.commands()) == (bool(table.tasks) or table.name == "table_1_architecture")
        assert all(line in page for line in [*table.commands(), *table.nearest_commands()])
        assert "not attempted at this scale (tiny)" in page


def test_every_table_of_benchmarks_is_in_one_group(tables):
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(set(tables) - {"table_1_architecture"})


def test_the_lead_is_that_of_moxin_s_best_row_over_the_best_other(tables):
    found = lead(tables["table_5_few_shot_instruct"])
    assert (found.moxin, found.other, found.last) == (
        "Moxin-7B-DPO",
        "Qwen2.5 7B Instruct",
        (71.66, 73.54),
    )
    assert found.points.index.tolist() == ["HellaSwag", "WinoGrande", "ARC-C", "MMLU"]
    assert found.points["MMLU"] == pytest.approx(58.36 - 71.3)
    told = lead_in_words(found)
    assert (
        "from +5.6 (HellaSwag) to \u221212.9 (MMLU); without HellaSwag its mean is \u22124.4"
        in told
    )
    alone = lead_in_words(lead(tables["table_mt_bench"]))
    assert alone.endswith("the best other row (Llama2-13B-Chat) 6.65.")


def test_digits_are_shown_as_printed(tables):
    for table in tables.values():
        lines = (TABLES / f"{table.name}.csv").read_text(encoding="utf-8").splitlines()[1:]
        shown = table.marked()
        assert len(lines) == len(shown)
        for line, row in zip(lines, shown.itertuples(index=False), strict=True):
            printed = line.split(",")
            assert row[0].removesuffix(" *") == printed[0]
            assert [float(a) for a in row[1:] if _is_number(a)] == [
                float(b) for b in printed[1:] if _is_number(b)
            ]


def test_claims_of_the_tables_exist(tables):
    claims = yaml.safe_load((ROOT / "papers" / "claims.yml").read_text(encoding="utf-8"))
    known = {claim["id"] for claim in (claims["claims"] if isinstance(claims, dict) else claims)}
    assert {claim for table in tables.values() for claim in table.claims} <= known


def test_a_claim_without_an_attempt_says_what_its_table_needs(tables):
    for claim, name in CLAIM_TABLES.items():
        assert claim in tables[name].claims
        evidence = tables[name].not_attempted("tiny")
        assert evidence.startswith("Not attempted at tiny scale: needs ")
        assert tables[name].requirement() in evidence
        commands = tables[name].commands()
        assert (commands[0] if commands else "no command") in evidence


def test_every_task_exists_in_the_installed_harness():
    import lm_eval
    from lm_eval.tasks import TaskManager

    names = [
        "hellaswag",
        "winogrande",
        "piqa",
        "arc",
        "mmlu",
        "gsm8k",
        "minerva_math",
        "bbh",
        "benchmarks",
    ]
    folders = [Path(lm_eval.__file__).parent / "tasks" / name for name in names]
    known = TaskManager(
        include_path=[str(folder) for folder in folders], include_defaults=False
    ).task_index
    named = [*HARNESS_TASKS.values(), *NEAREST_TASKS.values()]
    assert {task for tasks in named for task, _ in tasks.values()} <= set(known)


def test_the_command_line_names_release_tasks_and_shots(tables):
    assert tables["table_2_zero_shot_base"].commands() == [
        "moxin-lab run --scale full --only 08",
        "lm_eval run --model hf --model_args pretrained=moxin-org/Moxin-7B-LLM,dtype=bfloat16 "
        "--tasks hellaswag,winogrande,piqa,arc_easy,arc_challenge --num_fewshot 0 "
        "--batch_size auto",
    ]
    _, *few = tables["table_5_few_shot_instruct"].commands()
    assert [line.split("--tasks ")[1] for line in few] == [
        "mmlu,winogrande --num_fewshot 5 --batch_size auto",
        "hellaswag --num_fewshot 10 --batch_size auto",
        "arc_challenge --num_fewshot 25 --batch_size auto",
    ]


def test_attempt_evaluates_released_weights_and_returns_both_accuracies_and_the_printed_number(
    tables,
):
    calls = []

    def run(**options):
        calls.append(options)
        numbers = (
            {"acc,none": 0.5}
            if options["tasks"] == ["winogrande"]
            else {"acc,none": 0.5, "acc_norm,none": 0.6}
        )
        return {"results": {options["tasks"][0]: numbers}}

    attempted = attempt(tables["table_2_zero_shot_base"], run=run).set_index("column")
    assert {options["model_args"]["pretrained"] for options in calls} == {"moxin-org/Moxin-7B-LLM"}
    assert {options["num_fewshot"] for options in calls} == {0}
    assert attempted.loc["ARC-C", ["published", "acc", "acc_norm"]].tolist() == [58.64, 50.0, 60.0]
    assert attempted["acc_norm"].isna().tolist() == [False, True, False, False, False]
    assert set(attempted["row"]) == {"Moxin-7B-Enhanced"}


@pytest.mark.parametrize(
    ("shift", "expected"), [(0.0, "reproduced"), (0.4, "reproduced"), (2.0, "contradicted")]
)
def test_a_verdict_follows_the_tolerance_of_the_claim(tables, shift, expected):
    def run(**options):
        column = next(
            c
            for c, (task, _) in tables["table_2_zero_shot_base"].tasks.items()
            if task == options["tasks"][0]
        )
        printed = (
            tables["table_2_zero_shot_base"]
            .frame.set_index("model")
            .at["Moxin-7B-Enhanced", column]
        )
        return {
            "results": {
                options["tasks"][0]: {"acc,none": 0.1, "acc_norm,none": (printed + shift) / 100}
            }
        }

    measured = attempt(tables["table_2_zero_shot_base"], run=run)
    verdict, evidence = judge("eval.zero-shot-base", measured, ROOT)
    assert verdict == expected
    assert f"10.00 by acc, {75.44 + shift:.2f} by acc_norm" in evidence


def test_attempt_refuses_a_table_made_with_another_suite(tables):
    with pytest.raises(ValueError, match="OLMES"):
        attempt(tables["table_6_olmes"])


def test_an_index_that_does_not_match_the_files_is_named(tmp_path):
    (tmp_path / "index.yml").write_text("tables:\n- {file: gone.csv}\n")
    (tmp_path / "surplus.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"gone\.csv, surplus\.csv"):
        load_tables(tmp_path)


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True
