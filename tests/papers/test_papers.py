"""The files of `papers/` are complete, sourced and consistent; the printed tables are intact."""

import csv
import importlib.resources
import json
import re
import tomllib
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml

from moxin_lab.lab import claims, published
from moxin_lab.lab.closure import closure
from moxin_lab.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
PAPERS = ROOT / "papers"
CLAIMS = claims.load(ROOT)
DEVIATIONS = claims.deviations(ROOT)
TABLES = published.index(ROOT / "papers" / "tables")
STAGE_NAMES = {info.name for info in STAGES}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["id"])
def test_claim_is_complete_and_names_a_notebook(claim):
    assert re.fullmatch(r"[a-z]+\.[A-Za-z0-9.-]+", claim["id"])
    assert claim["tested_in"] in STAGE_NAMES | set(claims.planned_notebooks(ROOT))
    assert claim["status"] in claims.OPEN, (
        "a verdict is what a notebook records, never what this file says"
    )
    assert ("unit" in claim) == ("value" in claim)
    if "tolerance" in claim:
        assert isinstance(claim["value"], int | float) and claim["tolerance"] >= 0
    assert all(isinstance(claim[field], str) and claim[field].strip() for field in claims.REQUIRED)


@pytest.mark.parametrize(
    "claim", [claim for claim in CLAIMS if "command" in claim], ids=lambda claim: claim["id"]
)
def test_command_of_a_claim_runs_the_stage_whose_code_speaks_of_it(claim):
    stage, scale = claim["tested_in"], claim["scale_needed"]
    assert claim["command"] == f"moxin-lab run --scale {scale} --only {stage[:2]}"
    assert claim["id"] in spoken_of(stage), (
        f"no code that notebooks/{stage}.ipynb reaches names {claim['id']}, so its command would "
        "record no verdict: take the command away, or let the notebook decide the claim"
    )


@cache
def spoken_of(stage: str) -> frozenset[str]:
    notebook = json.loads((ROOT / "notebooks" / f"{stage}.ipynb").read_text(encoding="utf-8"))
    cells = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources = {f"cell {i}": "".join(text) for i, text in enumerate(cells)}
    return closure(ROOT, sources).strings


def test_a_claim_that_no_code_of_its_notebook_names_has_no_command():
    silent = {
        claim["id"]
        for claim in CLAIMS
        if claim["tested_in"] in STAGE_NAMES and claim["id"] not in spoken_of(claim["tested_in"])
    }
    assert "context.32k-quality" in silent  # a benchmark of long context is not in notebook 08
    assert not silent & {claim["id"] for claim in CLAIMS if "command" in claim}


def test_a_claim_of_no_difference_states_its_margin_and_why():
    margins = claims.margins(ROOT)
    assert margins and all(
        len(claim["margin_reason"].split()) > 10 for claim in CLAIMS if claim["id"] in margins
    )


def test_a_claim_that_is_not_testable_says_why_and_no_notebook_decides_it():
    untestable = [claim for claim in CLAIMS if claim["status"] == claims.NOT_TESTABLE]
    expected = {"dpo.helpful-harmless", "grpo.dramatic", "app.edge", "app.robotics"}
    assert {claim["id"] for claim in untestable} == expected
    for claim in untestable:
        assert len(claim["how"].split()) > 15 and claim["id"] not in spoken_of(claim["tested_in"])


def test_planned_notebooks_do_not_exist_yet():
    for name in claims.planned_notebooks(ROOT):
        assert name not in STAGE_NAMES and not (ROOT / "notebooks" / f"{name}.ipynb").exists(), (
            f"{name} exists: take it off planned_notebooks in papers/claims.yml"
        )


@pytest.mark.parametrize("deviation", DEVIATIONS, ids=lambda deviation: deviation["id"])
def test_deviation_quotes_its_sources_and_says_how_it_is_read(deviation):
    assert deviation.keys() == {
        "id",
        "topic",
        "title",
        "sources",
        "reading",
        "effect",
        "treated",
        "claims",
    }
    assert len(deviation["sources"]) >= 2
    assert all(isinstance(text, str) and text.strip() for text in deviation["sources"].values())
    assert deviation["reading"].strip() and deviation["effect"].strip()
    assert deviation["treated"] and set(deviation["treated"]) <= STAGE_NAMES | set(
        claims.planned_notebooks(ROOT)
    )
    assert deviation["claims"] and set(deviation["claims"]) <= {claim["id"] for claim in CLAIMS}


def test_deviation_ids_are_unique():
    assert len({deviation["id"] for deviation in DEVIATIONS}) == len(DEVIATIONS)


def test_index_and_folder_name_the_same_tables():
    assert sorted(entry["file"] for entry in TABLES) == sorted(
        path.name for path in (PAPERS / "tables").glob("*.csv")
    )


@pytest.mark.parametrize("entry", TABLES, ids=lambda entry: entry["file"])
def test_table_is_rectangular_numeric_and_described(entry):
    with (PAPERS / "tables" / entry["file"]).open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert len({len(row) for row in rows}) == 1
    names = [row[0] for row in rows[1:]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"\d+(\.\d+)?", value) for row in rows[1:] for value in row[1:])
    assert {
        *entry.get("ours", {}),
        *entry.get("copied_rows", []),
        *entry.get("average_mismatches", []),
    } <= set(names)
    assert bool(entry.get("copied_rows")) == ("copied_from" in entry)
    columns = [name for name in rows[0][1:] if name != "Ave"]
    for model, values in entry.get("left_out", {}).items():
        assert model not in names and len(values) == len(columns), model
    assert set(entry["claims"]) <= {claim["id"] for claim in CLAIMS}
    assert entry["source"] and entry["caption"]
    # Tables 6 to 8 and MT-Bench come from suites that no stage runs: a command would promise what
    # it cannot do.
    other_suite = entry["file"] in {
        "table_6_olmes.csv",
        "table_7_reasoning.csv",
        "table_8_vlm.csv",
        "table_mt_bench.csv",
    }
    assert (
        entry["command"] is None
        if other_suite
        else entry["command"].startswith("moxin-lab run --scale full --only ")
    )


def test_no_published_row_is_called_ours():
    for entry in TABLES:
        names = published.table(PAPERS / "tables", entry["file"]).index
        assert not [name for name in names if "ours" in name.lower().split()]


def test_every_printed_average_is_the_mean_of_its_row_except_those_flagged():
    averages = published.averages(ROOT / "papers" / "tables")
    found = set(
        averages.loc[~averages["agrees"], ["table", "model"]].itertuples(index=False, name=None)
    )
    flagged = {
        (entry["title"], model) for entry in TABLES for model in entry.get("average_mismatches", [])
    }
    assert found == flagged and len(flagged) == 2
    assert len(averages) == sum(
        len(published.table(ROOT / "papers" / "tables", e["file"]))
        for e in TABLES
        if "average_mismatches" in e
    )


@pytest.mark.parametrize(
    ("claim_id", "file", "model", "column"),
    [
        ("eval.zero-shot-base", "table_2_zero_shot_base.csv", "Moxin-7B-Enhanced", "Ave"),
        ("eval.few-shot-base", "table_3_few_shot_base.csv", "Moxin-7B-Enhanced", "Ave"),
        ("eval.zero-shot-instruct", "table_4_zero_shot_instruct.csv", "Moxin-7B-DPO", "Ave"),
        ("eval.few-shot-instruct", "table_5_few_shot_instruct.csv", "Moxin-7B-DPO", "Ave"),
        ("eval.olmes", "table_6_olmes.csv", "Moxin-7B-DPO", "Ave"),
        ("eval.reasoning", "table_7_reasoning.csv", "Moxin-7B-RL-DeepScaleR", "Ave"),
        ("grpo.areal", "table_7_reasoning.csv", "Moxin-7B-RL-AReaL", "Ave"),
        ("grpo.gain", "table_7_reasoning.csv", "Moxin-7B-RL-DeepScaleR", "MATH-500"),
        ("eval.vlm", "table_8_vlm.csv", "Moxin-7B-VLM", "Ave"),
        ("eval.mt-bench", "table_mt_bench.csv", "Moxin-7B-chat", "MT-Bench"),
    ],
)
def test_value_of_a_claim_is_the_one_in_its_table(claim_id, file, model, column):
    value = next(claim["value"] for claim in CLAIMS if claim["id"] == claim_id)
    assert published.table(ROOT / "papers" / "tables", file).loc[model, column] == value


def test_gain_of_phase_three_is_the_difference_of_the_two_printed_rows():
    value = next(claim["value"] for claim in CLAIMS if claim["id"] == "pretraining.phase-3-gain")
    averages = published.table(ROOT / "papers" / "tables", "table_2_zero_shot_base.csv")["Ave"]
    assert averages["Moxin-7B-Enhanced"] - averages["Moxin-7B-Original"] == pytest.approx(value)


def test_bibliography_has_an_entry_for_each_source_that_the_claims_name():
    keys = re.findall(
        r"^@\w+\{(\w+),", (PAPERS / "moxin.bib").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(set(keys)) == len(keys)
    assert {
        "moxin2025report",
        "moxin2024report",
        "moxin2025code",
        "moxin2025vlmcode",
        "moxin2025website",
    } <= set(keys)


def test_citation_file_is_valid_and_carries_the_packages_version_and_licence():
    schemas = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "citation-file-format.json").read_text(encoding="utf-8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert [
        error.message for error in jsonschema.Draft7Validator(schema).iter_errors(citation)
    ] == []
    assert list(jsonschema.Draft7Validator(schema).iter_errors({**citation, "authors": []})), (
        "the schema must bite"
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_licence_file_is_the_full_apache_text():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
