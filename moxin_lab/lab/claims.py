"""Published claims and their verdicts: reads `papers/claims.yml` and joins it with what notebooks
recorded.

    # records: the stages' stage.json at one scale, as `stage.records()` returns them
    verdicts(root, records, stage.decides_as)

A claim's verdict is the one that a notebook recorded. A claim without a recorded verdict is `not
attempted`, with the reason, and with the command that would attempt it if its entry has one, or
`not testable as stated` if its entry says so. The stage object, notebook 10 and the report site all
read claims here.

Guarantees: one verdict per claim; a verdict from a smaller scale than the claim needs, or two
stages that disagree, is an error and never reaches a report.
Out of scope: deciding a verdict, which notebooks do (`rules.py` has the rule for intervals).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from moxin_lab.lab.artifacts import LabError, parse_yaml, read_text, read_yaml
from moxin_lab.scales import SCALES

NOT_TESTABLE = "not testable as stated"
OPEN = ("not attempted", NOT_TESTABLE)
"""Not compared: not yet, or because no number could decide the words, as `how` then says."""
VERDICTS = ("reproduced", "contradicted", "no difference seen", "undecided", *OPEN)
"""`no difference seen`: compared, and the interval of the difference contains zero. `undecided`:
compared, and the interval settles it neither way.
"""
PROSE = ("id", "topic", "claim", "source", "how", "status", "tested_in", "command", "margin_reason")
"""Fields of a claim that decide no verdict."""
REQUIRED = ("id", "topic", "claim", "source", "tested_in", "scale_needed", "how", "status")


@dataclass(frozen=True)
class Verdict:
    """A claim with its verdict; `scale` and `stage` say where the verdict was recorded, and are
    empty if nowhere.
    """

    id: str
    topic: str
    claim: str
    source: str
    tested_in: str
    scale_needed: str
    verdict: str
    evidence: str
    """What the notebook recorded, or why there is no verdict."""
    reason: str
    """Why it is not decided, in a phrase that many claims share, by which a page groups them; empty
    for a decided claim.
    """
    scale: str
    stage: str
    command: str
    """Would attempt the claim; empty for a claim that was attempted or that no command attempts."""


def load(root: Path) -> list[dict[str, Any]]:
    """Entries of `papers/claims.yml` in their order. Raises LabError for a file that is not a list
    of complete claims.
    """
    return _read(root)["claims"]


def scales_needed(root: Path) -> dict[str, str]:
    """The smallest scale that can decide each claim, by the claim's id. Raises LabError as `load`
    does.
    """
    return {claim["id"]: claim["scale_needed"] for claim in load(root)}


def margins(root: Path) -> dict[str, float]:
    """The largest difference that a claim of no difference still calls none, by the claim's id.
    Raises LabError as `load` does.
    """
    return {claim["id"]: float(claim["margin"]) for claim in load(root) if "margin" in claim}


def deciding_values(root: Path, stage: str, words: Collection[str]) -> dict[str, dict[str, Any]]:
    """What decides a stage's verdicts: value, unit, tolerance and needed scale, by claim, of the
    claims tested in `stage` and of those whose id is one of `words`.

    The prose of a claim (wording, source, how) decides nothing and is omitted. Raises LabError as
    `load` does.
    """
    return {
        claim["id"]: {name: value for name, value in claim.items() if name not in PROSE}
        for claim in load(root)
        if claim["tested_in"] == stage or claim["id"] in words
    }


def refuse_unfounded(
    stage: str,
    scale: str,
    decides_as: str,
    claim_id: str,
    verdict: str,
    needed: Mapping[str, str],
) -> None:
    """Raises LabError if there is no such claim or verdict, or this scale cannot decide it.

    decides_as: the scale of the package whose claims this one may decide (`Scale.decides_as`).
    needed: `scales_needed`.
    """
    where = f"stage {stage} at {scale} scale says {verdict!r} of {claim_id!r}"
    if claim_id not in needed:
        raise LabError(
            f"{where}, which is not in papers/claims.yml; correct the id there or in "
            f"notebooks/{stage}.ipynb and run again"
        )
    if verdict not in VERDICTS:
        raise LabError(f"{where}; a verdict is one of {', '.join(VERDICTS)}")
    if verdict not in OPEN and SCALES.index(decides_as) < SCALES.index(needed[claim_id]):
        raise LabError(
            f"{where}, but only {needed[claim_id]} scale can decide that claim (scale_needed in "
            "papers/claims.yml): record 'not attempted' with what was seen as its evidence"
        )


def documents(root: Path) -> dict[str, list[dict[str, Any]]]:
    """What documents say of each claim that only documents can decide, by the claim's id: source,
    says, agrees. Raises LabError as `load` does.
    """
    return {claim["id"]: claim["documents"] for claim in load(root) if "documents" in claim}


def planned_notebooks(root: Path) -> list[str]:
    """Notebooks that claims name and that do not exist yet."""
    return _read(root)["planned_notebooks"]


def deviations(root: Path) -> list[dict[str, Any]]:
    """Entries of `papers/deviations.yml` in their order. Raises LabError for any other content."""
    path = root / "papers" / "deviations.yml"
    entries = _mapping(read_yaml(path), path).get("deviations")
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and "id" in entry for entry in entries
    ):
        raise LabError(f"{path} has no list `deviations` of entries with an id")
    return entries


def verdicts(root: Path, records: Sequence[Mapping[str, Any]], decides_as: str) -> list[Verdict]:
    """One verdict per claim, in the order of `papers/claims.yml`. Raises LabError as the module's
    text says.

    records: of the stages that finished at one scale. decides_as: that scale's `Scale.decides_as`;
    it decides only which reason an open claim is given, for each record carries its own.
    """
    content = _read(root)
    needed = {claim["id"]: claim["scale_needed"] for claim in content["claims"]}
    recorded: dict[str, dict[str, str]] = {}
    for record in records:
        for statement in record["claims"]:
            claim_id, verdict = statement["id"], statement["verdict"]
            refuse_unfounded(
                record["stage"],
                record["scale"],
                record.get("decides_as", record["scale"]),
                claim_id,
                verdict,
                needed,
            )
            if claim_id in recorded and recorded[claim_id]["verdict"] != verdict:
                raise LabError(
                    f"stage {record['stage']} says {verdict!r} of {claim_id!r}, but stage "
                    f"{recorded[claim_id]['stage']} says {recorded[claim_id]['verdict']!r}; "
                    "one notebook decides a claim"
                )
            recorded[claim_id] = {**statement, "stage": record["stage"], "scale": record["scale"]}
    finished = {record["stage"] for record in records}
    planned = content["planned_notebooks"]
    return [
        _verdict(claim, recorded.get(claim["id"]), planned, finished, decides_as)
        for claim in content["claims"]
    ]


def _verdict(
    claim: Mapping[str, Any],
    recorded: Mapping[str, str] | None,
    planned: list[str],
    finished: set[str],
    decides_as: str,
) -> Verdict:
    verdict = recorded["verdict"] if recorded else claim["status"]
    command = claim.get("command", "")
    if recorded:
        evidence, reason = recorded.get("evidence", ""), "the notebook says why"
    elif verdict == NOT_TESTABLE:
        evidence, reason = claim["how"], NOT_TESTABLE
    elif claim["tested_in"] in planned:
        evidence, reason = f"Notebook {claim['tested_in']} is not built yet.", "notebook planned"
    else:
        decided_by = (
            f"{claim['scale_needed']} scale would decide it" if command else "no stage does"
        )
        evidence = f"No verdict was recorded; {decided_by}. {claim['how']}"
        reason = _why_silent(claim, finished, decides_as)
    return Verdict(
        id=claim["id"],
        topic=claim["topic"],
        claim=claim["claim"],
        source=claim["source"],
        tested_in=claim["tested_in"],
        scale_needed=claim["scale_needed"],
        verdict=verdict,
        evidence=evidence,
        reason=reason if verdict in OPEN else "",
        scale=recorded["scale"] if recorded else "",
        stage=recorded["stage"] if recorded else "",
        command=command if verdict in OPEN else "",
    )


def _why_silent(claim: Mapping[str, Any], finished: set[str], decides_as: str) -> str:
    if not claim.get("command"):
        return "no command attempts it"
    if SCALES.index(claim["scale_needed"]) > SCALES.index(decides_as):
        return f"{claim['scale_needed']} scale needed"
    return (
        "no verdict in the notebook"
        if claim["tested_in"] in finished
        else "notebook not finished at this scale"
    )


def _read(root: Path) -> dict[str, Any]:
    path = root / "papers" / "claims.yml"
    return _checked(read_text(path), path)


@lru_cache(maxsize=4)
def _checked(text: str, path: Path) -> dict[str, Any]:
    """Claims and planned notebooks; kept, for PyYAML takes a third of a second over them and each
    stage's key needs them.
    """
    content = _mapping(parse_yaml(text, path), path)
    claims = content.get("claims")
    if not isinstance(claims, list) or not claims:
        raise LabError(f"{path} has no list `claims`")
    ids: set[str] = set()
    for claim in claims:
        name = claim.get("id", claim) if isinstance(claim, dict) else claim
        absent = [
            field for field in REQUIRED if not isinstance(claim, dict) or not claim.get(field)
        ]
        if absent:
            raise LabError(f"{path}: claim {name!r} lacks {', '.join(absent)}")
        if odd := [field for field in REQUIRED if not isinstance(claim[field], str)]:
            raise LabError(f"{path}: of claim {name!r}, {', '.join(odd)} must be text")
        if claim["scale_needed"] not in SCALES or claim["status"] not in VERDICTS:
            raise LabError(f"{path}: claim {name!r} has an unknown scale_needed or status")
        if "margin" in claim and not _is_stated_margin(claim):
            raise LabError(
                f"{path}: claim {name!r} needs a margin above 0 and a margin_reason that says why "
                "it is that large"
            )
        if claim["status"] == NOT_TESTABLE and "command" in claim:
            raise LabError(f"{path}: claim {name!r} is {NOT_TESTABLE}, so no command attempts it")
        if "documents" in claim and not _are_documents(claim["documents"]):
            raise LabError(
                f"{path}: the documents of claim {name!r} are not a list of entries with `source`, "
                "`says` and `agrees` (true or false)"
            )
        if name in ids:
            raise LabError(f"{path}: claim {name!r} is listed twice")
        ids.add(name)
    planned = content.get("planned_notebooks") or []
    if not isinstance(planned, list):
        raise LabError(f"{path}: `planned_notebooks` is not a list")
    return {"claims": claims, "planned_notebooks": planned}


def _is_stated_margin(claim: Mapping[str, Any]) -> bool:
    margin = claim["margin"]
    return isinstance(margin, int | float) and margin > 0 and bool(claim.get("margin_reason"))


def _are_documents(entries: Any) -> bool:
    return (
        isinstance(entries, list)
        and bool(entries)
        and all(
            isinstance(entry, dict)
            and entry.keys() == {"source", "says", "agrees"}
            and isinstance(entry["source"], str)
            and isinstance(entry["says"], str)
            and isinstance(entry["agrees"], bool)
            for entry in entries
        )
    )


def _mapping(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise LabError(f"{path} is not a mapping at its top level")
    return content
