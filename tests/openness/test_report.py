"""Tables and figures of the openness report agree with their inputs, for the entries of this
repository.
"""

from pathlib import Path

import pytest

from moxin_lab.lab import claims, nearest_evidence
from moxin_lab.openness import figures, mof, mof_evidence, report, summary

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def readings():
    return report.readings(ROOT)


def record(stage="03_model", **changes):
    base = {
        "stage": stage,
        "scale": "tiny",
        "claims": [{"id": "arch.36-blocks", "verdict": "reproduced", "evidence": "36 counted"}],
        "inputs": {"tokenizer": {"sha256": "b" * 64}},
        "outputs": {"architecture": {"sha256": "a" * 64}},
        "seconds": 12.5,
        "peak_memory_bytes": 2**30,
        "environment": {"python": "3.11.7", "gpu": None, "packages": {"torch": "2.13.0"}},
    }
    return {**base, **changes}


def test_upstream_lacks_a_data_card_in_both_readings_and_so_has_no_class(readings):
    for name in ("Moxin, favourable reading", "Moxin, its own blog"):
        assert readings[name].mof_class == 0
        assert readings[name].next_class.missing == ("Data card",)


def test_by_its_evidence_the_lab_has_no_component_more_than_it_lists(readings):
    listed, held = readings["Lab, as listed"], readings["Lab, by its evidence"]
    included = {component.name for component in listed.components if component.status != "absent"}
    assert {c.name for c in held.components if c.status == "included"} <= included
    assert listed.mof_class == held.mof_class == 1


@pytest.mark.parametrize("entry", ["MOF.yml", "papers/moxin_mof.yml"])
def test_evidence_has_a_row_for_each_of_the_17_components_and_agrees_with_the_entry(entry):
    evidence = mof_evidence.evidence(ROOT / entry)
    listed = {component["name"] for component in mof.load(ROOT / entry)["release"]["components"]}
    assert evidence.keys() == {fact["name"] for fact in mof.catalogue()["components"]}
    for name, item in evidence.items():
        assert item["note"]
        if item["status"] in ("present", "partial"):
            assert name in listed
        if item["status"] in ("absent", "not found"):
            assert name not in listed


def test_component_table_has_a_row_for_each_of_the_17_components(readings):
    frame = report.component_table(
        readings["Lab, as listed"], mof_evidence.evidence(ROOT / "MOF.yml")
    ).set_index("component")
    assert len(frame) == 17
    assert tuple(frame.loc["Datasets", ["licence", "licence from", "open", "fits its type"]]) == (
        "MPL-2.0",
        "component",
        "yes",
        "no",
    )


def test_every_file_of_the_evidence_has_a_row_with_its_hash_and_state():
    evidence = mof_evidence.evidence(ROOT / "MOF.yml")
    checked = mof_evidence.check_all(ROOT / "MOF.yml")
    frame = report.evidence_table(evidence, checked)
    place = "file, or why there is none"
    for name, item in evidence.items():
        rows = frame[frame["component"] == name]
        assert list(rows[place]) == [file["path"] for file in item["files"]]
        assert list(rows["SHA-256"]) == [file["sha256"][:12] for file in item["files"]]
        assert set(rows["evidence"]) == {"holds" if checked[name].holds else "–"}


def test_evidence_that_does_not_hold_is_said_in_its_row():
    evidence = {"Data card": {"status": "present", "note": "n"}}
    checked = {"Data card": mof_evidence.Checked("Data card", "present", ("it names no file",))}
    (row,) = report.evidence_table(evidence, checked).to_dict(orient="records")
    assert (row["file, or why there is none"], row["evidence"]) == ("n", "it names no file")


def test_grades_stand_by_section_and_lost_points_heaviest_first():
    metrics = [
        summary.Scored("A", "Document", "1", "Clarity", 3, 0.5, "answer", "why A"),
        summary.Scored("B", "Document", "1", "Clarity", 20, 0, "automatic", "why B"),
        summary.Scored("C", "Document", "1", "Comprehension", 9, 1, "automatic", "why C"),
        summary.Scored("D", "User data", "2", "Clarity", 9, None, "automatic", "why D"),
    ]
    graded = summary.Graded("m", tuple(metrics))
    assert list(report.lost_table(graded)["metric"]) == ["B", "A"]
    table = report.summary_table({"m": graded})
    assert table.loc["User data", "m: transparency"] == "not applicable"
    assert table.loc["Whole summary", "m: transparency"] == "F (6.5 %)"
    assert table.loc["Document", "m: usefulness"] == "A+ (100.0 %)"


def test_data_card_table_has_every_card_with_its_own_licence():
    frame = report.data_card_table(ROOT).set_index("data set")
    assert set(frame.index) == {
        path.parent.name for path in (ROOT / "data_cards").glob("*/README.md")
    }
    assert frame.loc["help_pages", "licence on its card"] == "mpl-2.0"
    assert (frame["rows"] > 0).all()


def test_pictures_and_their_text_alternatives_come_from_the_same_numbers(readings):
    verdicts = claims.verdicts(ROOT, [record()], "tiny")
    counts = report.verdict_counts(verdicts)
    assert (
        counts.to_numpy().sum() == len(verdicts) and counts.loc["architecture", "reproduced"] == 1
    )
    left = counts.loc["architecture", "not attempted"]
    assert f"architecture: 1 reproduced, {left} not attempted" in figures.verdict_alt(verdicts)
    figure = figures.verdict_figure(verdicts)
    written = sum(int(text.get_text()) for text in figure.axes[0].texts)
    assert written == len(verdicts), "the counts in the bars add up to the number of claims"
    grid = figures.component_figure(readings)
    assert len(grid.axes[0].collections) == 17 * len(readings)
    assert "Data card" in figures.component_alt(readings)


def test_every_claim_is_in_exactly_one_of_the_two_claim_tables():
    verdicts = claims.verdicts(ROOT, [record()], "tiny")
    decided, undecided = report.decided_table(verdicts), report.undecided_table(verdicts)
    assert len(decided) == 1 and "36 counted" in decided.loc[0, "evidence"]
    assert len(decided) + len(undecided) == len(verdicts)
    carried = {entry["command"] for entry in claims.load(ROOT) if "command" in entry}
    assert set(undecided["command"]) == carried | {"none"}


def test_nearest_evidence_stands_by_kind_and_changes_no_verdict():
    every = claims.verdicts(ROOT, [record()], "tiny")
    beside = nearest_evidence.evidence(ROOT, [record()])
    before = list(every)
    text = report.nearest_evidence_list(every, beside)
    assert every == before == claims.verdicts(ROOT, [record()], "tiny")
    kinds = [line[2 : line.index("**:")] for line in text.splitlines() if line.startswith("**")]
    assert kinds == [kind.capitalize() for kind in nearest_evidence.KINDS]
    open_claims = {v.id for v in every if v.verdict in claims.OPEN}
    for claim, several in beside.items():
        for each in several:
            assert claim in open_claims
            line = next(x for x in text.splitlines() if each.sentence in x and f"`{claim}`" in x)
            assert line.startswith(f"- `{claim}`") and all(name in line for name in each.read_from)
    needing = {v.id for v in every if v.scale_needed == "full"}
    bare = [claim for claim in needing if beside[claim][0].kind == "none"]
    unread = [
        claim
        for claim in needing - set(bare)
        if all(each.sentence.startswith("Stage ") for each in beside[claim])
    ]
    assert bare and unread
    read = len(needing) - len(bare) - len(unread)
    said = report.nearest_evidence_sentence(every, beside)
    assert said.startswith(f"Evidence stands beside {read} of the {len(needing)} claims")
    assert f"beside {len(bare)} there is none" in said and f"Of {len(unread)} more" in said


def test_a_claim_that_has_its_verdict_has_no_nearest_evidence_beside_it():
    told = {"id": "arch.ablations", "verdict": "reproduced", "evidence": "e"}
    full = record(scale="full", claims=[told])
    every = claims.verdicts(ROOT, [full], "full")
    beside = nearest_evidence.evidence(ROOT, [full])
    text = report.nearest_evidence_list(every, beside)
    assert "`arch.ablations`" not in text and "`arch.custom-initialisation`" in text
    waiting = sum(v.scale_needed == "full" for v in every) - 1
    assert f"of the {waiting} claims" in report.nearest_evidence_sentence(every, beside)


def test_provenance_tables_show_where_stages_differ():
    records = [
        record(),
        record(stage="04_pretraining", environment={"python": "3.12.1", "packages": {}}),
    ]
    environment = report.environment_table(records).set_index("what")["value"]
    assert (
        environment["python"] == "3.11.7; 3.12.1"
        and environment["torch"] == "2.13.0"
        and "gpu" not in environment
    )
    stages = report.stage_table(records)
    assert (
        stages.loc[0, "outputs"] == "architecture aaaaaaaaaaaa"
        and stages.loc[0, "peak memory (GiB)"] == 1
    )


def test_the_provenance_sentence_names_inputs_that_are_not_the_present_outputs():
    maker = record(stage="02_tokenizer", inputs={}, outputs={"tokenizer": {"sha256": "b" * 64}})
    same = report.provenance_sentence([maker, record()])
    assert same.startswith("2 stages in 25 s.") and "Every input is the present output" in same
    other = {**maker, "outputs": {"tokenizer": {"sha256": "c" * 64}}}
    assert "another version than the present one: tokenizer." in report.provenance_sentence(
        [other, record()]
    )


def test_what_was_found_of_a_component_is_beside_what_the_blog_says(readings):
    evidence = mof_evidence.evidence(ROOT / "papers" / "moxin_mof.yml")
    item = evidence["Data card"]
    sentence = report.found_sentence(evidence, ["Data card", "Training code"])
    assert f"Data card: {item['status']} (its blog: {item['blog']}); Training code: " in sentence
    for evaluation in readings.values():
        absent = sum(component.status != "included" for component in evaluation.components)
        assert evaluation.num_included == 17 - absent


def test_deviation_table_keeps_every_source():
    deviations = claims.deviations(ROOT)
    frame = report.deviation_table(deviations)
    assert len(frame) == len(deviations)
    for item, text in zip(deviations, frame["sources"], strict=True):
        assert all(f"[{source}]" in text for source in item["sources"])
