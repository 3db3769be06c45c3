"""Each kind of answer, in both directions: rewrites that must be accepted and near-misses that must
not, whichever of the two is the gold answer.
"""

import json
from pathlib import Path

import pytest

from moxin_lab.verifier import kinds_table
from moxin_lab.verifier.compare import RULES
from moxin_lab.verifier.verifier import Verifier

KINDS = json.loads((Path(__file__).parent / "kinds.json").read_text(encoding="utf-8"))
CASES = [
    pytest.param(kind, direction, *pair, id=f"{kind}-{direction}-{i}")
    for kind, cases in KINDS.items()
    for direction in ("equal", "different")
    for i, pair in enumerate(cases[direction])
]


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=2, timeout=5) as verifier:
        yield verifier


@pytest.mark.parametrize(("kind", "direction", "gold", "answer"), CASES)
def test_rewrites_are_accepted_and_near_misses_refused_in_either_order(
    verifier, kind, direction, gold, answer
):
    if kind == "gold in a box":  # the gold is a text with a box: not to be put into another one
        verdicts = [verifier.verify(answer, gold)]
    else:
        pairs = [(gold, answer), (answer, gold)]
        verdicts = [verifier.verify(rf"Thus \boxed{{{a}}}.", g) for g, a in pairs]
    for verdict in verdicts:
        assert verdict.correct == (direction == "equal"), verdict
        assert verdict.reason in ("correct", "wrong", "unparsable"), verdict
        assert verdict.type and verdict.rule, verdict


def test_the_table_of_kinds_names_every_rule():
    table = kinds_table()
    assert [row["type"] for row in table] == list(RULES)
    assert all(row["decided by"] and row["example"] for row in table)
