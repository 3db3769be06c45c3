"""Guarantees of notebook 10's verdicts: each follows from the entries, and can go either way."""

import copy

import pandas as pd
import pytest

from moxin_lab.openness import mof_evidence, report, verdicts


@pytest.fixture(scope="module")
def upstream(repository):
    return report.readings(repository)["Moxin, favourable reading"]


@pytest.fixture
def evidence(repository):
    return copy.deepcopy(mof_evidence.evidence(repository / "papers" / "moxin_mof.yml"))


def test_a_component_that_appears_turns_its_claim(upstream, evidence):
    for claim, parts in verdicts.NAMED.items():
        for name in parts:
            evidence[name]["status"] = "present"
        assert verdicts.judge_release(evidence, parts)[0] == "reproduced", claim
        evidence[parts[0]]["status"] = "absent"
        assert verdicts.judge_release(evidence, parts)[0] == "contradicted", claim


def test_only_the_two_models_that_the_sentence_names_decide_the_licence(evidence):
    licences = evidence[verdicts.WEIGHTS[1]]["licences"]
    licences |= {"Base": "Apache-2.0", "Chat": "Apache-2.0", "VLM": "other"}
    assert verdicts.judge_licences(evidence)[0] == "reproduced"
    licences["Chat"] = "MIT"
    assert verdicts.judge_licences(evidence)[0] == "contradicted"


def test_one_wrong_average_contradicts_the_table():
    rows = {"model": ["a", "b"], "printed": [1.0, 2.0], "mean": [1.0, 2.5]}
    right = pd.DataFrame({**rows, "agrees": [True, True]})
    assert verdicts.judge_averages(right)[0] == "reproduced"
    verdict, evidence = verdicts.judge_averages(right.assign(agrees=[True, False]))
    assert verdict == "contradicted" and "1 of 2" in evidence and "b prints 2.0" in evidence


def test_the_class_is_that_of_the_evaluator(upstream):
    verdict, evidence = verdicts.judge_class(upstream)
    assert verdict == ("reproduced" if upstream.mof_class == 1 else "contradicted")
    assert upstream.class_name in evidence
