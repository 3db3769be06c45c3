"""What a stage's `verdicts` module hands to its last cell: numbers to record, and verdicts.

    stage.record(numbers)                        # Number
    stage.claim("arch.36-blocks", *judged)       # Judged

Out of scope: recording (`Stage.record`, `Stage.claim`), and what a verdict may be (`claims`).
"""

from typing import Any, NamedTuple

Judged = tuple[str, str]
"""Verdict and evidence."""


def reproduced_if(holds: bool, evidence: str) -> Judged:
    """The verdict on a claim that either holds or is contradicted."""
    return ("reproduced" if holds else "contradicted", evidence)


class Number(NamedTuple):
    """Arguments of `Stage.measure`."""

    name: str
    value: float
    unit: str
    interval: tuple[float, float] | None
    labels: dict[str, Any]
