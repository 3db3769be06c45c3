"""What documents and printed tables decide follows from their entries, and can go either way."""

import copy

import pandas as pd
import pytest

from moxin_lab.lab import claims, published
from moxin_lab.openness import sources


def test_every_claim_with_documents_is_judged_and_no_other(repository):
    assert set(claims.documents(repository)) == set(sources.DOCUMENTED)
    judged = sources.judge_all(repository)
    tables = {"eval.above-similar-7b", "eval.sota-7b", "eval.only-larger"}
    assert set(judged) == {*sources.DOCUMENTED, *tables}
    assert judged["pretraining.phase-3-content"][0] == "reproduced"
    assert judged["data.uncontaminated"][0] == judged["grpo.pure-rl"][0] == "contradicted"


def test_one_document_that_does_not_agree_contradicts(repository):
    entries = copy.deepcopy(claims.documents(repository)["grpo.pure-rl"])
    for entry in entries:
        entry["agrees"] = True
    assert sources.judge_documents(entries)[0] == "reproduced"
    entries[0]["agrees"] = False
    verdict, evidence = sources.judge_documents(entries)
    assert verdict == "contradicted" and entries[0]["source"] in evidence


@pytest.mark.parametrize(
    ("ours", "count", "expected"),
    [(50.0, 1000, "contradicted"), (61.0, 100, "no difference seen"), (90.0, 1000, "reproduced")],
)
def test_above_the_peers_needs_the_interval_above_zero_and_no_peer_ahead(ours, count, expected):
    table = pd.DataFrame(
        {"A": [ours, 60.0, 40.0, 99.0]}, index=["Moxin-7B-Enhanced", "Peer-7B", "Low 7b", "Big-13B"]
    )
    verdict, evidence = sources.judge_above(table, "Moxin-7B-Enhanced", {"A": count})
    assert verdict == expected and "of 2 peers" in evidence and "Peer-7B" in evidence


def test_the_least_favourable_benchmark_decides():
    table = pd.DataFrame(
        {"A": [90.0, 10.0], "B": [50.0, 51.0]}, index=["Moxin-7B-Enhanced", "Peer-7B"]
    )
    assert sources.judge_above(table, table.index[0], {"A": 500})[0] == "reproduced"
    assert sources.judge_above(table, table.index[0], {"A": 500, "B": 500})[0] == "contradicted"


def test_a_row_left_out_contradicts_only_if_it_is_a_7b_model_and_higher(repository):
    table = published.table(repository / "papers" / "tables", sources.REASONING)
    ours = ["Moxin-7B-RL-AReaL", "Moxin-7B-RL-DeepScaleR"]

    def judged(row, values):
        return sources.judge_best(table, ours, {row: values}, "a table")

    assert judged("Other-7B", [43.3] * 4)[0] == "contradicted"
    assert judged("Other-7B", [43.1] * 4)[0] == judged("Other-70B", [99.0] * 4)[0] == "reproduced"
    with pytest.raises(ValueError, match="left_out row Other-7B has not 4 values"):
        judged("Other-7B", [1.0])
