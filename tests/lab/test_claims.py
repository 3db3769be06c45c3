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
            claim("a.one"),
            claim("b.two", scale_needed="full"),
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
    assert "not built yet" in three.evidence and three.command.endswith("(once notebook 06 exists)")


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


@pytest.mark.parametrize("verdict", ["reproduced", "contradicted"])
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
