"""Machine-readable bills of materials of a report: SPDX 3.0.1 and CycloneDX 1.6, from one set of
facts.

    write(root, "tiny")         # reports/tiny/bills/lab.spdx.json and lab.cdx.json
    faults(Path("x.json"))      # of either format, also of somebody else's bill; empty: none

Guarantees: a bill that its own validator refuses is not written; validation is offline; the same
run gives the same bytes.
Out of scope: the formats (`spdx_bill.py`, `cyclonedx_bill.py`), the facts (`bill_facts.py`).
"""

from pathlib import Path

from moxin_lab.lab.artifacts import LabError, read_json, read_text, write_atomically
from moxin_lab.openness import cyclonedx_bill, spdx_bill
from moxin_lab.openness.bill_facts import Bill, gather

SPDX, CYCLONEDX = "lab.spdx.json", "lab.cdx.json"


def folder_of(root: Path, scale: str) -> Path:
    return root / "reports" / scale / "bills"


def write(root: Path, scale: str) -> list[Path]:
    """Write both bills of a scale; their paths. Raises LabError if a fact is missing or a validator
    finds a fault.
    """
    return write_facts(gather(root, scale), folder_of(root, scale))


def renew(root: Path, scale: str) -> str:
    """`write`; where a fact is missing no bill of an earlier run stays, and the reason is
    returned, for a report without bills is still a report.
    """
    for name in (SPDX, CYCLONEDX):
        (folder_of(root, scale) / name).unlink(missing_ok=True)
    try:
        write(root, scale)
    except LabError as error:
        return str(error)
    return ""


def write_facts(bill: Bill, folder: Path) -> list[Path]:
    """Write both bills of given facts. Raises LabError if a validator finds a fault."""
    texts = {SPDX: spdx_bill.text(bill), CYCLONEDX: cyclonedx_bill.text(bill)}
    for name, check in ((SPDX, spdx_bill.faults), (CYCLONEDX, cyclonedx_bill.faults)):
        if found := check(texts[name]):
            raise LabError(
                f"{folder / name} would not be valid, so no bill was written: {found[0]}"
            )
    for name, content in texts.items():
        write_atomically(folder / name, content)
    return [folder / name for name in texts]


def faults(path: Path) -> list[str]:
    """What is wrong with a bill in either format. Raises LabError for a file that is neither."""
    value = read_json(path)
    if isinstance(value, dict) and value.get("bomFormat") == "CycloneDX":
        return cyclonedx_bill.faults(read_text(path))
    if isinstance(value, dict) and "spdx.org" in str(value.get("@context")):
        return spdx_bill.faults(read_text(path))
    raise LabError(
        f"{path} is no bill of materials: neither SPDX 3 in JSON-LD nor CycloneDX in JSON"
    )
