"""What is known of each published claim at a scale: the verdicts that finished stages recorded, and for the rest, why not.

Does not: decide a verdict. A notebook does, with `stage.claim`; a failed stage's record counts for nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moxin_lab.lab.artifacts import LabError

if TYPE_CHECKING:
    from moxin_lab.lab.site import NavItem

SCALES = ("tiny", "small", "full")  # in the order of their power to decide


def read_claims(root: Path) -> list[dict[str, Any]]:
    """Entries of `papers/claims.yml`; an empty list if there is no such file. Raises LabError if it is not such a list."""
    path = root / "papers" / "claims.yml"
    if not path.exists():
        return []
    content = parse_yaml(path.read_text(encoding="utf-8"), path)
    claims = content.get("claims") if isinstance(content, dict) else content
    if not isinstance(claims, list) or not all(isinstance(claim, dict) and "id" in claim for claim in claims):
        raise LabError(f"{path} is not a list of claims, each with an id; mend it and build the report again")
    return claims


def judge(
    claim: Mapping[str, Any], scale: str, nav: Sequence["NavItem"], records: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, Any]:
    """A claim with its verdict, evidence and notebook; without a verdict from a finished stage it is `not attempted`, and why."""
    verdicts = {
        found["id"]: (found, item)
        for item in nav
        if item.state != "failed"
        for found in (records.get(item.name) or {}).get("claims", [])
    }
    stage = str(claim.get("tested_in") or "")
    item = next((item for item in nav if item.name == stage), None)
    if claim["id"] in verdicts:
        found, item = verdicts[claim["id"]]
        verdict, evidence, reason = found["verdict"], found.get("evidence", ""), "the notebook says why"
    else:
        verdict, evidence, reason = "not attempted", "", _why_not(claim, scale, item)
    return {
        "id": claim["id"],
        "topic": str(claim.get("topic") or str(claim["id"]).split(".")[0]).replace("_", " "),
        "claim": claim.get("claim") or claim.get("text") or claim["id"],
        "source": claim.get("source", ""),
        "verdict": verdict,
        "evidence": evidence,
        "reason": reason,
        "stage": f"{item.number} {item.title}" if item else stage.replace("_", " "),
        "href": item.href if item else None,
    }


def _why_not(claim: Mapping[str, Any], scale: str, item: "NavItem | None") -> str:
    """Why nothing is known of a claim, in words that many claims share: the front page groups by them."""
    needed = claim.get("scale_needed", scale)
    if item is None:
        return "notebook planned"
    if needed in SCALES and scale in SCALES and SCALES.index(needed) > SCALES.index(scale):
        return f"{needed} scale needed"
    if item.state == "done":
        return "no verdict in the notebook"
    return "notebook not finished at this scale"


def grouped(rows: Sequence[dict[str, Any]], by: str) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[by], []).append(row)
    return list(groups.items())


def parse_yaml(text: str, path: Path) -> Any:
    """YAML text from a file; an empty mapping if it is empty. Raises LabError naming the file."""
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise LabError(f"{path} is not valid YAML: {error}") from error
