"""Committed measurements of the recipe: what a sentence says follows from the record."""

import copy
import json

import pytest

from moxin_lab.lab.artifacts import LabError
from moxin_lab.pretraining import experiments, released, tables
from moxin_lab.stages import stage_info


@pytest.fixture(scope="module")
def records(repository):
    """The committed records by the name of their folder."""
    paths = [repository / name for name in stage_info("04_pretraining").reads]
    found = {path.parent.name: released.read(path) for path in paths}
    return found | {"ablations": released.ablations(repository / "reports/released/ablations")}


def test_a_file_of_another_bench_or_without_a_part_is_refused_with_its_name(tmp_path):
    path = tmp_path / "ladder.json"
    with pytest.raises(LabError, match=r"ladder\.json"):
        released.read(path)
    path.write_text(json.dumps({"bench": "decode"}))
    with pytest.raises(ValueError, match=r"ladder\.json says that it is of bench 'decode'"):
        released.read(path)
    path.write_text(json.dumps({"bench": "scaling", "rows": [], "machine": {}, "command": ""}))
    with pytest.raises(ValueError, match=r"ladder\.json lacks settings: .*bench scaling"):
        released.read(path)


def test_the_model_beside_n_grams_is_counted_by_whole_intervals_on_fresh_text():
    rows = [
        {"text": text, "model": model, "language": language, "bits_per_byte": bits}
        | {"low": bits - 0.1, "high": bits + 0.1}
        for text, add in (("fresh", 0.0), ("all", 9.0))
        for model, language, bits in (
            ("order 5", "en", 2.0 + add),
            ("order 5", "ko", 2.0 + add),
            ("after phase 1", "en", 1.9 + add),
            ("after phase 1", "ko", 1.9 + add),
            ("after phase 3", "en", 1.5 + add),
            ("after phase 3", "ko", 1.9 + add),
        )
    ]
    record = {"rows": rows, "training": {"tokens": 1234}}
    said = released.against_ngrams_in_words(record)
    assert "1,234 tokens" in said and "In 1 of 2 kinds of text" in said
    assert "25 % below in en, 5 % below in ko" in said
    alt = released.against_ngrams_alt(record)
    assert "after phase 3: en 1.50 (1.40 to 1.60), ko 1.90" in alt
    assert "phase 1" not in alt and "11." not in alt


def test_the_sentence_of_a_ladder_says_what_its_prediction_was_worth(records):
    record = copy.deepcopy(records["ladder"])
    fit = record["ladder"]["fits"]["mean"]
    fit["holds"] = False
    assert "a law that missed one rung says little" in released.ladder_in_words(record)
    fit["holds"] = True
    said = released.ladder_in_words(record)
    assert fit["line"] in said and "only if the same law goes on" in said
    assert f"gives {fit['all']['predictions']['full scale']['value']:.2f}" in said
    pool, times = max(record["ladder"]["rungs"][-1]["epochs"].items(), key=lambda one: one[1])
    assert f"{pool}, {times:.1f} times" in released.ladder_limits(record)


def test_what_an_ablation_did_not_run_is_counted_from_its_plan():
    plan = [
        {"experiment": "code", "arm": "without", "trainings": 3, "done": 2},
        {"experiment": "depth", "arm": "32 blocks", "trainings": 3, "done": 3},
        {"experiment": "optimizer", "arm": "Muon", "trainings": 3, "done": 0},
    ]
    verdicts = [
        {"experiment": "code", "verdict": "worse", "line": "a line"},
        {"experiment": "optimizer", "verdict": "undecided", "line": "another"},
    ]
    said = released.ablations_in_words({"plan": plan, "verdicts": verdicts})
    assert "- **code**: a line" in said and "another" not in said
    assert "code (without: 1 of 3); optimizer (Muon: 3 of 3)" in said
    assert said.endswith("Hence undecided: optimizer.") and "depth" not in said
    assert released.not_run(plan[1:2], []) == "Every training of the plan was run."


def test_of_an_experiment_in_two_records_the_newest_that_decided_it_counts():
    def record(date, **found):
        rows = [{"experiment": name, "verdict": said} for name, said in found.items()]
        plan = [{"experiment": name} for name in found]
        return {"machine": {"date": date}, "settings": date, "verdicts": rows, "plan": plan} | {
            "differences": [{"experiment": name, "of": date, "seeds": 3} for name in found]
        }

    old = record("2026-11-29", depth="worse", code="worse", dropout="undecided", muon="undecided")
    new = record("2026-11-30", code="better", depth="undecided", dropout="undecided", muon="worse")
    for records in ([old, new], [new, old]):
        found = released.together(records)
        said = {one["experiment"]: one["verdict"] for one in found["verdicts"]}
        assert said == {"depth": "worse", "code": "better", "dropout": "undecided", "muon": "worse"}
        dates = {row["experiment"]: row["of"] for row in found["differences"]}
        assert dates["depth"] == "2026-11-29" and dates["code"] == "2026-11-30"
        assert len(found["differences"]) == len(found["plan"]) == 4
        assert found["settings"] == "2026-11-30"
        assert [len(one["verdicts"]) for one in found["records"]] == [1, 3]


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ([-0.2, -0.1], "better: top; none is worse"),
        ([0.1, 0.2], "none is better; worse: top"),
        ([-0.1, 0.2], "none is better; none is worse"),
    ],
)
def test_adding_blocks_is_a_gain_only_with_the_whole_interval_below_zero(interval, words):
    row = {"text": "all", "arm": "top", "against": "continued", "interval": interval}
    other = {"text": "all", "arm": "top", "against": "identity", "interval": [-9, -8]}
    record = {"settings": {"blocks": [30, 36]}, "differences": [row, other]}
    said = released.deeper_in_words(record)
    assert "36 blocks in place of 30" in said and f"Of 1 ways to add blocks {words}." in said


def test_the_cost_takes_the_best_measured_utilisation_of_the_most_gpus():
    rows = [
        {"gpus": 1, "model_flops_utilisation": 0.6},
        {"gpus": 2, "model_flops_utilisation": 0.4},
        {"gpus": 2, "model_flops_utilisation": 0.5},
        {"gpus": 4, "error": "not run"},
    ]
    assert released.utilisation({"rows": rows}) == 0.5
    with pytest.raises(ValueError, match="no row"):
        released.utilisation({"rows": rows[3:]})
    cost = tables.stated_cost(measured=0.5)
    hours, dollars = cost.iloc[-1]
    same = cost.loc["H100 at 50% of 989 TFLOP/s"]
    assert [hours, dollars] == pytest.approx(list(same))
    assert len(cost) == len(tables.stated_cost()) + 1
    record = {"rows": rows, "settings": {"config": {"num_hidden_layers": 24}}}
    said = released.cost_in_words(record, hours, dollars)
    assert "50.0%" in said and "24 of 36 blocks on 2 GPUs" in said and f"{hours / 24:,.0f}" in said


def test_every_committed_record_can_be_shown(records):
    for figure in (
        experiments.ladder(records["ladder"]["ladder"]),
        experiments.forest(records["ablations"]["verdicts"], records["ablations"]["differences"]),
        experiments.expansion(released.deeper(records["smollm2-expansion"])),
    ):
        assert figure.axes[0].get_xlabel()
    assert "blocks" in released.deeper_alt(records["smollm2-expansion"])
    assert records["ablations"]["plan"][0]["done"] >= 0
    assert "width" in released.ablations_caption(records["ablations"])
    said = experiments.forest_alt(
        records["ablations"]["verdicts"], records["ablations"]["differences"]
    )
    assert "32 blocks: all text" in said and "without code: all but code" in said
    assert 0.2 < released.utilisation(records["scaling"]) < 1
