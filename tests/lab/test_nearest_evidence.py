"""Guarantees of the nearest evidence: every claim that needs full scale has some or a reason, its
numbers are read, and it changes no verdict.
"""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from bs4 import BeautifulSoup

from moxin_lab.lab import claims, findings, nearest_evidence, site
from moxin_lab.lab.artifacts import LabError
from moxin_lab.lab.closure import closure
from moxin_lab.stages import STAGES, stage_info
from tests.lab import example_runs

RESULTS = "reports/released/toy/results.json"
GOOD = {
    "claim": "toy.full",
    "kind": "ablation",
    "scale": "small",
    "file": RESULTS,
    "numbers": {
        "change": {
            "row": ["rows", {"arm": "deep"}],
            "value": "change",
            "low": "low",
            "high": "high",
        },
        "seeds": ["rows", {"arm": "deep"}, "seeds"],
    },
    "sentence": "It changes by {change:+.2f} over {seeds} seeds.",
}
HELD: dict[str, Any] = {
    "rows": [
        {"arm": "deep", "change": -0.25, "low": -0.5, "high": 0.125, "seeds": 3, "word": "worse"},
        {"arm": "wide", "change": 0.5, "low": 0.0, "high": 1.0, "seeds": 3},
    ],
    "nothing": None,
    "yes": True,
}


def claim(name: str, scale: str, **more) -> dict:
    about = {"topic": "t", "claim": "c", "source": "s", "how": "h", "status": "not attempted"}
    return {"id": name, "tested_in": "06_reasoning", "scale_needed": scale, **about, **more}


@pytest.fixture
def lab(tmp_path):
    """A tree with three claims, one file of results, and a function that writes entries."""
    listed = [claim("toy.full", "full"), claim("toy.small", "small"), claim("toy.tiny", "tiny")]
    listed[0] |= {"value": 0.5, "unit": "share"}
    (tmp_path / "papers" / "tables").mkdir(parents=True)
    text = yaml.safe_dump({"claims": listed, "planned_notebooks": []})
    (tmp_path / "papers" / "claims.yml").write_text(text)
    (tmp_path / "papers/tables/index.yml").write_text(
        "items: {A: 40}\ntables: [{file: t.csv, copied_rows: [peer], source: s}]\n"
    )
    (tmp_path / "papers/tables/t.csv").write_text("model,A,B,Ave\nours,2,1,1.5\npeer,1,3,2\n")
    (tmp_path / RESULTS).parent.mkdir(parents=True)
    (tmp_path / RESULTS).write_text(json.dumps(HELD))

    def write(*entries) -> Path:
        (tmp_path / nearest_evidence.FILE).write_text(yaml.safe_dump({"entries": list(entries)}))
        return tmp_path

    return write


def only(root: Path, records=()) -> nearest_evidence.Evidence:
    ((found,),) = nearest_evidence.evidence(root, records).values()
    return found


def reading(spec, **more) -> dict:
    """An entry with one number."""
    return {**GOOD, "numbers": {"x": spec}, "sentence": "It is {x}.", **more}


def test_a_sentence_has_the_numbers_that_the_file_holds_now(lab):
    root = lab(GOOD)
    found = only(root)
    assert found.sentence == "It changes by −0.25 (−0.50 to +0.12) over 3 seeds."
    assert (found.label, found.sources) == ("ablation, small scale", (RESULTS,))
    changed = {**HELD, "rows": [{**HELD["rows"][0], "change": 0.75, "seeds": 5}]}
    (root / RESULTS).write_text(json.dumps(changed))
    assert only(root).sentence == "It changes by +0.75 (−0.50 to +0.12) over 5 seeds."


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (["rows", 1, "change"], "0.5"),
        (["rows", {"arm": "deep"}, "word"], "worse"),
        ({"path": ["rows", {"seeds": 3}, "change"], "sum": True}, "0.25"),
        ({"file": RESULTS, "path": ["rows", 0, "seeds"]}, "3"),
        ({"claim": "toy.full"}, "0.5"),
        ({"table": "t.csv", "row": "peer", "column": "B"}, "3.0"),
        ({"table": "t.csv", "row": "ours", "count": "best"}, "1"),
        ({"table": "t.csv", "count": "columns"}, "2"),
        ({"table": "t.csv", "count": "rows"}, "2"),
        ({"table": "t.csv", "count": "copied"}, "1"),
        ({"table": "t.csv", "items": "A"}, "40"),
        ({"of": "1 - 3 / 4 + 2 ** 0.5 * 0"}, "0.25"),
    ],
)
def test_each_way_of_reading_gives_the_number_that_stands_there(lab, spec, said):
    assert only(lab(reading(spec))).sentence == f"It is {said}."


@pytest.mark.parametrize(
    "spec",
    [
        ["rows", {"arm": "tall"}, "change"],
        ["rows", {"seeds": 3}, "change"],
        ["rows", 2, "change"],
        ["absent"],
        {"path": ["rows", {"arm": "tall"}, "change"], "sum": True},
        {"row": ["rows", {"arm": "deep"}], "value": "mean"},
        {"row": ["rows", {"arm": "wide"}], "value": "change", "low": "word"},
    ],
)
def test_a_path_that_leads_to_no_single_value_is_named_with_claim_and_file(lab, spec):
    with pytest.raises(LabError, match=rf"'x' of toy\.full.*{re.escape(RESULTS)}"):
        only(lab(reading(spec)))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "null", "true", "[1]"])
def test_a_number_that_is_not_finite_is_named_with_claim_and_file(lab, text):
    root = lab(reading(["value"]))
    (root / RESULTS).write_text(f'{{"value": {text}}}')
    with pytest.raises(LabError, match=re.escape(RESULTS)) as caught:
        only(root)
    assert "toy.full" in str(caught.value) or "cannot be read as JSON" in str(caught.value)


def test_a_number_of_a_bench_that_did_not_finish_is_refused_with_claim_and_file(lab):
    root = lab(GOOD)
    cut = HELD | {"command": "moxin-lab bench toy", "finished": False}
    (root / RESULTS).write_text(json.dumps(cut))
    said = rf"of toy\.full .*{re.escape(RESULTS)}, which is of a run that did not finish"
    with pytest.raises(LabError, match=said):
        only(root)


def test_a_file_that_is_not_there_is_named_with_the_claim(lab):
    with pytest.raises(LabError, match=r"of toy\.full .*toy/gone\.json, which does not exist"):
        only(lab({**GOOD, "file": "reports/released/toy/gone.json"}))
    with pytest.raises(LabError, match=r"of toy\.full .*gone\.csv, which does not exist"):
        only(lab(reading({"table": "gone.csv", "count": "rows"})))


@pytest.mark.parametrize("file", ["runs/x.json", "reports/released/../../x.json", "/etc/x", 3])
def test_a_number_is_read_from_committed_files_alone(lab, file):
    with pytest.raises(LabError, match=r"toy\.full.* no file under reports/released/"):
        only(lab({**GOOD, "file": file}))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"of": "1 / 0"}, "cannot be calculated"),
        ({"of": "later + 1"}, "has later"),
        ({"of": "__import__('os')"}, "cannot be calculated"),
        ({"of": "(0 - 1) ** 0.5"}, "no finite number"),
        ({"of": "1 +"}, "cannot be calculated"),
        ({"claim": "toy.small"}, "value of toy.small is None"),
        ({"table": "t.csv", "row": "gone", "column": "A"}, "has no gone"),
        ({"table": "t.csv", "count": "worst"}, "has no worst"),
        ({"guess": 3}, "read from nowhere"),
        (3, "read from nowhere"),
    ],
)
def test_a_number_that_cannot_be_had_is_named_with_the_claim(lab, spec, message):
    with pytest.raises(LabError, match=rf"'x' of toy\.full.*{message}"):
        only(lab(reading(spec)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**GOOD, "claim": "toy.gone"}, "'toy.gone' is of no claim"),
        ({**GOOD, "claim": "toy.tiny"}, "'toy.tiny' is beside a claim that every scale decides"),
        ({**GOOD, "kind": "proof"}, "'toy.full' has the kind 'proof'"),
        ({**GOOD, "verdict": "reproduced"}, "'toy.full' has unknown fields: verdict"),
        ({**GOOD, "numbers": {}}, "'toy.full' needs a `sentence` and `numbers`"),
        ({**GOOD, "sentence": "It is {y}."}, "'toy.full' has no number for the gap y"),
        ({**GOOD, "sentence": "It is {x"}, "'toy.full' has a sentence with a broken gap"),
        ({**GOOD, "sentence": "Of 36 blocks {change}."}, "'toy.full' types the number 36"),
        ({**GOOD, "sentence": "By +0.25: {change}."}, "'toy.full' types the number 0.25"),
        ({"claim": "toy.full", "kind": "none"}, "'toy.full' needs a `reason`, and nothing else"),
        ({**GOOD, "kind": "none", "reason": "r"}, "'toy.full' needs a `reason`, and nothing else"),
    ],
)
def test_an_entry_that_is_not_as_stated_is_refused_by_its_claim(lab, entry, message):
    with pytest.raises(
        LabError, match=rf"nearest_evidence\.yml: the entry of {re.escape(message)}"
    ):
        nearest_evidence.load(lab(entry))


def test_names_with_digits_are_no_typed_numbers(lab):
    sentence = "SmolLM2-135M on an H200, MATH-500, Qwen2.5 7B: {change}."
    assert nearest_evidence.load(lab({**GOOD, "sentence": sentence}))


def test_a_claim_that_needs_full_scale_and_has_no_entry_is_an_error_that_names_it(lab):
    with pytest.raises(LabError, match=r"nearest_evidence\.yml has no entry of toy\.full,"):
        nearest_evidence.load(lab({**GOOD, "claim": "toy.small"}))
    root = lab(GOOD)
    (root / nearest_evidence.FILE).unlink()
    with pytest.raises(LabError, match=r"nearest_evidence\.yml cannot be read"):
        nearest_evidence.evidence(root, [])


def test_a_claim_has_evidence_or_none_and_not_both(lab):
    none = {"claim": "toy.full", "kind": "none", "reason": "Nothing bears on it."}
    assert only(lab(none)).sentence == "Nothing bears on it."
    with pytest.raises(LabError, match=r"'toy\.full' has evidence and an entry of the kind none"):
        nearest_evidence.load(lab(GOOD, none))


def measured(value=0.5, interval=(0.25, 0.75), **labels) -> dict:
    found = {"name": "gain", "value": value, "interval": interval, "labels": labels}
    return {"stage": "06_reasoning", "scale": "small", "measures": [found]}


def test_a_measure_is_that_of_the_record_at_its_scale_or_is_said_to_be_missing(lab):
    spec = {"stage": "06_reasoning", "measure": "gain", "labels": {"k": 1}}
    root = lab(reading(spec, scale="tiny"))
    found = only(root, [measured(k=1)])
    assert found.sentence == "It is 0.5 (0.25 to 0.75)."
    assert (found.scale, found.sources) == ("small", ("the record of stage 06",))
    assert only(root, [measured(interval=None, k=1)]).sentence == "It is 0.5."
    assert only(root).sentence == "Stage 06, which measures gain, has not run at this scale."
    said = "Stage 06 ran without this part at small scale."
    assert only(root, [measured(k=8)]).sentence == said
    with pytest.raises(LabError, match=r"toy\.full, in the record of stage 06 .* nan"):
        only(root, [measured(value=math.nan, k=1)])


# ---- this repository's own entries


def labelled(repository: Path) -> list[tuple[str, str, dict]]:
    """(stage, measure, labels) of every number that is read from a record."""
    numbers = [
        spec
        for entry in nearest_evidence.load(repository)
        for spec in entry.get("numbers", {}).values()
    ]
    measures = [spec for spec in numbers if isinstance(spec, dict) and "measure" in spec]
    return [(spec["stage"], spec["measure"], spec.get("labels", {})) for spec in measures]


def full_records(repository: Path, scale: str = "tiny") -> list[dict]:
    """Records of all stages whose measures the entries name, with made-up values."""
    records: dict[str, dict] = {}
    for stage, name, labels in labelled(repository):
        one = {"name": name, "value": 0.25, "unit": "", "interval": [0.125, 0.5], "labels": labels}
        fresh = example_runs.record(stage, stage, claims=[], measures=[], scale=scale)
        records.setdefault(stage, fresh)["measures"].append(one)
    return [records[info.name] for info in STAGES if info.name in records]


def test_every_claim_that_needs_full_scale_has_an_entry_whose_numbers_are_there(repository):
    found = nearest_evidence.evidence(repository, full_records(repository))
    needed = claims.scales_needed(repository)
    assert {claim for claim, scale in needed.items() if scale == "full"} <= found.keys()
    for each in (each for several in found.values() for each in several):
        assert each.sentence.endswith(".") and "{" not in each.sentence
        assert each.kind == "none" or each.sources, each
        assert "has not run" not in each.sentence and "without this part" not in each.sentence


def test_the_row_of_stage_10_lists_every_file_that_the_entries_name(repository):
    reads = stage_info("10_openness_report").reads
    for file in nearest_evidence.files(repository):
        assert any(f"{file}/".startswith(f"{read}/") for read in reads), file
    released = [read for read in reads if read.startswith(nearest_evidence.RELEASED)]
    assert all((repository / read).exists() for read in released)


def test_a_measure_that_an_entry_names_is_one_that_its_stage_records(repository):
    """Names and the words of labels stand in the code that the stage's notebook reaches."""
    words = {}
    for stage, name, labels in labelled(repository):
        if stage not in words:
            cells = json.loads((repository / "notebooks" / f"{stage}.ipynb").read_text())["cells"]
            code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
            sources = {f"{stage}, cell {i}": text for i, text in enumerate(code)}
            words[stage] = closure(repository, sources).strings
        # a label may be put together from parts, as `decoupled - decoupled at 0`
        said = " ".join(words[stage])
        texts = [name, *labels, *(each for each in labels.values() if isinstance(each, str))]
        for word in (part for text in texts for part in text.split()):
            assert word in said, f"{stage} records no {name} {labels}: {word!r}"


def test_no_code_that_decides_a_verdict_reads_it(repository):
    deciding = [repository / "moxin_lab/lab/claims.py", repository / "moxin_lab/lab/rules.py"]
    deciding += sorted((repository / "moxin_lab").glob("*/verdicts.py"))
    assert len(deciding) > 8
    for file in deciding:
        assert "nearest_evidence" not in file.read_text(encoding="utf-8"), file


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, BeautifulSoup]:
    """Pages of the whole example: the front page with and without the file, and one of a stage
    that leaves a claim open.
    """
    root = example_runs.write_whole_example(tmp_path_factory.mktemp("lab"), repository)
    shutil.copytree(repository / "papers/tables", root / "papers/tables")
    for name in (*nearest_evidence.files(repository), nearest_evidence.FILE):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, root / name)
    path = root / "runs/tiny/01_data_curation/stage.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    told = {"id": "data.short-documents", "verdict": "not attempted", "evidence": "Seen here."}
    path.write_text(json.dumps({**record, "claims": [*record["claims"], told]}), encoding="utf-8")

    def page(name: str) -> BeautifulSoup:
        text = (root / "reports/tiny" / name).read_text(encoding="utf-8")
        return BeautifulSoup(text, "html.parser")

    site.build_site(root, "tiny")
    found = {"with": page("index.html"), "stage": page("01_data_curation.html")}
    (root / nearest_evidence.FILE).unlink()
    site.build_site(root, "tiny")
    return {**found, "without": page("index.html")}


def test_verdicts_are_the_same_with_it_and_without_it(pages):
    def decided(page: BeautifulSoup) -> list[list[str]]:
        chosen = ("#claims + p .state", "td > .state", ".open-claims summary")
        return [[each.get_text() for each in page.select(words)] for words in chosen]

    assert decided(pages["with"]) == decided(pages["without"])
    assert all(decided(pages["with"]))
    assert pages["with"].select(".nearest") and not pages["without"].select(".nearest")


def test_the_row_of_every_claim_that_needs_full_scale_shows_it_by_its_label(pages, repository):
    for name, scale in claims.scales_needed(repository).items():
        (row,) = pages["with"].select(f"[id='claim-{name}']")
        if scale == "full":
            assert nearest_evidence.LABEL in row.get_text(), name
        if scale == "tiny":
            assert not row.select(".nearest"), name


def test_a_stage_page_shows_it_beside_claims_that_the_stage_leaves_open(pages):
    (row,) = pages["stage"].select("[id='verdict-data.short-documents']")
    told = ("Seen here.", nearest_evidence.LABEL, "documents of the small corpus")
    assert all(words in row.get_text() for words in told)
    (row,) = pages["stage"].select("[id='verdict-data.html-extraction']")
    assert not row.select(".nearest")


def test_the_heading_of_the_notebook_has_the_words_of_the_label(repository):
    text = (repository / "notebooks/10_openness_report.ipynb").read_text(encoding="utf-8")
    assert f"### {nearest_evidence.LABEL}\\n" in text
    template = repository / "moxin_lab/lab/templates/parts.html.j2"
    assert f"<strong>{nearest_evidence.LABEL}</strong>" in template.read_text(encoding="utf-8")


def test_it_rests_on_no_released_run_that_another_will_replace(repository):
    # The corpus has a folder of its own, which the next whole run of the small scale leaves.
    replaced = {findings.SMALL, *findings.SMALL_OF.values()} - {"corpus-small"}
    assert len(replaced) == 2
    for file in nearest_evidence.files(repository):
        assert Path(file).parts[2] not in replaced
