"""A report has exactly one verdict per claim, never one that its scale cannot decide."""

import pytest
import yaml

from moxin_lab.lab import claims
from moxin_lab.lab.artifacts import LabError


def claim(claim_id, **changes):
    entry = {
        "id": claim_id,
        "topic": "a topic",
        "claim": "something",
        "source": "a report",
        "tested_in": "03_model",
        "scale_needed": "tiny",
        "how": "By looking.",
        "status": "not attempted",
    }
    return {key: value for key, value in {**entry, **changes}.items() if value is not None}


@pytest.fixture
def root(tmp_path):
    write(
        tmp_path,
        [
            claim("a.one", command="moxin-lab run --scale tiny --only 03"),
            claim("b.two", scale_needed="full", command="moxin-lab run --scale full --only 03"),
            claim("c.three", tested_in="06_reasoning"),
        ],
    )
    return tmp_path


def write(root, entries):
    (root / "papers").mkdir(exist_ok=True)
    content = {"planned_notebooks": ["06_reasoning"], "claims": entries}
    (root / "papers" / "claims.yml").write_text(yaml.safe_dump(content), encoding="utf-8")


def record(*statements, scale="tiny", stage="03_model"):
    said = [{"id": name, "verdict": verdict, "evidence": "seen"} for name, verdict in statements]
    return {"stage": stage, "scale": scale, "claims": said}


def test_recorded_verdict_is_reported_with_its_scale_and_stage(root):
    first = claims.verdicts(root, [record(("a.one", "reproduced"))], "tiny")[0]
    assert (first.verdict, first.evidence, first.scale, first.stage) == (
        "reproduced",
        "seen",
        "tiny",
        "03_model",
    )
    assert first.command == first.reason == ""


def test_claim_without_a_verdict_is_not_attempted_with_a_reason_and_the_command(root):
    one, two, three = claims.verdicts(root, [], "tiny")
    assert {one.verdict, two.verdict, three.verdict} == {"not attempted"}
    assert (
        two.command == "moxin-lab run --scale full --only 03"
        and "full scale would decide it" in two.evidence
    )
    assert "not built yet" in three.evidence and three.command == ""


def test_a_claim_that_no_command_attempts_has_none_and_says_so(root):
    write(root, [claim("a.one"), claim("b.two", scale_needed="full")])
    for item in claims.verdicts(root, [record()], "tiny"):
        assert (item.verdict, item.command) == ("not attempted", "")
        assert item.reason == "no command attempts it" and "no stage does" in item.evidence
    said = claims.verdicts(root, [record(("a.one", "not attempted"))], "tiny")[0]
    assert (said.command, said.reason) == ("", "the notebook says why")


@pytest.mark.parametrize("verdict", ["no difference seen", "undecided"])
def test_a_comparison_that_settles_nothing_was_attempted_and_carries_no_command(root, verdict):
    first = claims.verdicts(root, [record(("a.one", verdict))], "tiny")[0]
    assert (first.verdict, first.evidence, first.command, first.reason) == (verdict, "seen", "", "")


def test_a_notebook_may_say_not_attempted_and_its_own_reason_is_kept(root):
    two = claims.verdicts(root, [record(("b.two", "not attempted"))], "tiny")[1]
    assert (two.verdict, two.evidence, two.reason) == (
        "not attempted",
        "seen",
        "the notebook says why",
    )
    assert two.command == "moxin-lab run --scale full --only 03"


def test_each_open_claim_has_one_short_reason_that_fits_the_scale_and_what_has_run(root):
    def reasons(records, scale):
        return [item.reason for item in claims.verdicts(root, records, scale)]

    unfinished, silent = "notebook not finished at this scale", "no verdict in the notebook"
    assert reasons([], "tiny") == [unfinished, "full scale needed", "notebook planned"]
    assert reasons([record()], "tiny") == [silent, "full scale needed", "notebook planned"]
    assert reasons([record(scale="full")], "full") == [silent, silent, "notebook planned"]


@pytest.mark.parametrize("verdict", [v for v in claims.VERDICTS if v not in claims.OPEN])
def test_verdict_from_a_smaller_scale_than_the_claim_needs_is_refused(root, verdict):
    with pytest.raises(LabError, match="only full scale can decide"):
        claims.verdicts(root, [record(("b.two", verdict))], "tiny")
    assert (
        claims.verdicts(root, [record(("b.two", verdict), scale="full")], "full")[1].verdict
        == verdict
    )


def test_own_scale_decides_the_claims_of_the_scale_that_it_extends(root):
    statement = ("b.two", "reproduced")
    own = record(statement, scale="mine") | {"decides_as": "full"}
    assert claims.verdicts(root, [own], "full")[1].verdict == "reproduced"
    own["decides_as"] = "tiny"
    with pytest.raises(LabError, match=r"at mine scale says .* only full scale can decide"):
        claims.verdicts(root, [own], "tiny")


def test_two_stages_that_disagree_are_refused(root):
    with pytest.raises(LabError, match="one notebook decides"):
        claims.verdicts(
            root,
            [
                record(("a.one", "reproduced")),
                record(("a.one", "contradicted"), stage="08_benchmarks"),
            ],
            "tiny",
        )


def test_unknown_claim_or_verdict_in_a_record_is_refused(root):
    with pytest.raises(LabError, match=r"not in papers/claims\.yml"):
        claims.verdicts(root, [record(("z.none", "reproduced"))], "tiny")
    with pytest.raises(LabError, match="a verdict is one of"):
        claims.verdicts(root, [record(("a.one", "confirmed"))], "tiny")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "no list `claims`"),
        ([claim("a", source=None)], "lacks source"),
        ([claim("a", how="")], "lacks how"),
        ([claim("a"), claim("a")], "listed twice"),
        ([claim("a", scale_needed="huge")], "unknown scale_needed"),
        ([claim("a", status="maybe")], "unknown scale_needed or status"),
        ([claim("a", margin=0.1)], "margin_reason that says why"),
        ([claim("a", margin=0, margin_reason="r")], "a margin above 0"),
        ([claim("a", margin="wide", margin_reason="r")], "a margin above 0"),
        (["a"], "lacks"),
    ],
)
def test_incomplete_claims_file_is_refused(root, entries, message):
    write(root, entries)
    with pytest.raises(LabError, match=message):
        claims.load(root)


@pytest.mark.parametrize("content", [b"claims: [", b"\xff", b"- 1", b""])
def test_malformed_claims_file_gives_a_clear_error(root, content):
    (root / "papers" / "claims.yml").write_bytes(content)
    with pytest.raises(LabError, match=r"claims\.yml"):
        claims.load(root)
    (root / "papers" / "claims.yml").unlink()
    with pytest.raises(LabError, match="cannot be read"):
        claims.load(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ["a"]}, r"of claim \['a'\], id must be text"),
        ({"id": {"a": 1}}, "id must be text"),
        ({"tested_in": 3}, "of claim 'a.one', tested_in must be text"),
        ({"scale_needed": ["tiny"]}, "scale_needed must be text"),
        ({"how": True}, "how must be text"),
    ],
)
def test_a_field_that_is_no_text_is_refused_by_its_name(root, change, message):
    write(root, [{**claim("a.one"), **change}])
    with pytest.raises(LabError, match=rf"claims\.yml: .*{message}"):
        claims.load(root)


def test_a_claims_file_that_says_a_thing_twice_or_contains_itself_is_refused(root):
    path = root / "papers" / "claims.yml"
    path.write_text("claims: []\nclaims: []\n")
    with pytest.raises(LabError, match=r"claims\.yml .*'claims' is given twice in line 2"):
        claims.load(root)
    path.write_text("claims: &a [*a]\n")
    with pytest.raises(LabError, match=r"claims\.yml .*contains itself"):
        claims.load(root)
    path.write_text(
        f"planned_notebooks: 3\nclaims: {yaml.safe_dump([claim('a')], default_flow_style=True)}"
    )
    with pytest.raises(LabError, match="`planned_notebooks` is not a list"):
        claims.load(root)


def test_a_claim_that_is_not_testable_as_stated_says_why_and_has_no_command(root):
    how = "No measure is named."
    entry = claim("a.one", status=claims.NOT_TESTABLE, how=how)
    write(root, [entry])
    [found] = claims.verdicts(root, [record()], "tiny")
    assert (found.verdict, found.evidence, found.reason) == (
        claims.NOT_TESTABLE,
        how,
        claims.NOT_TESTABLE,
    )
    assert found.command == "" == found.stage
    write(root, [{**entry, "command": "moxin-lab run --scale tiny --only 03"}])
    with pytest.raises(LabError, match=r"'a\.one' is not testable as stated, so no command"):
        claims.load(root)


@pytest.mark.parametrize(
    "documents",
    [
        "words",
        [],
        [{"source": "a", "says": "b"}],
        [{"source": "a", "says": "b", "agrees": "yes"}],
        [{"source": "a", "says": "b", "agrees": True, "by": "me"}],
    ],
)
def test_documents_of_a_claim_are_complete(root, documents):
    good = [{"source": "a", "says": "b", "agrees": True}]
    write(root, [claim("a.one", documents=good), claim("b.two")])
    assert claims.documents(root) == {"a.one": good}
    write(root, [claim("a.one", documents=documents)])
    with pytest.raises(LabError, match=r"the documents of claim 'a\.one' are not a list"):
        claims.load(root)
