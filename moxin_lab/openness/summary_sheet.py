"""What the checks of a public summary share: the sheet that they read, and small questions to it.

Guarantees: only what a reader sees counts as text. Out of scope: the checks (`summary_checks.py`,
`summary_document.py`) and grades (`summary.py`).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from moxin_lab.lab.artifacts import read_json

PLAIN_WORDS, HARD_WORDS = 20, 28
"""Words of a mean sentence that reads easily, and that is hard. Our choice, after the usual advice
of plain-language guides of 15 to 20.
"""
MANIFEST = "release.json"
UNREAD = ("link", "sha256", "source", "version", "records")
"""Parts of a field that are no prose."""


class Found(NamedTuple):
    """A score (None: not applicable) and its reason."""

    score: float | None
    reason: str


NEEDS_ANSWER = Found(None, "needs an answer")


@dataclass(frozen=True)
class Sheet:
    """A summary, the fields computed again from records, the release's folder (None where there is
    none), the page, and the template's order of fields.
    """

    summary: Mapping[str, Any]
    recomputed: Mapping[str, Mapping[str, Any]]
    release: Path | None
    html: str
    order: tuple[str, ...]

    @property
    def document(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.summary["document"]
        return found

    def field(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.summary["fields"].get(name) or {}
        return found

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        return {} if self.release is None else read_json(self.release / MANIFEST)


def met(is_met: bool, what: str) -> Found:
    """1 or 0, and in words."""
    return Found(1, what) if is_met else Found(0, f"not so: {what}")


def is_filled(content: Mapping[str, Any]) -> bool:
    """Whether a field says anything."""
    return any(bool(value) for name, value in content.items() if name not in ("records", "source"))


def texts(value: Any) -> Iterator[str]:
    """Every text in a field, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in UNREAD:
                yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def links(value: Any) -> Iterator[str]:
    """Every link in a field, at any depth."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name == "link" and inner:
                yield str(inner)
            else:
                yield from links(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from links(inner)


def plainness(parts: list[str]) -> Found:
    """How easily texts read: words of the mean sentence of more than three."""
    sentences = [
        words
        for part in parts
        for sentence in re.split(r"(?<=[.;:?])\s+", part)
        if len(words := sentence.split()) > 3
    ]
    if not sentences:
        return Found(1, "no sentence, only names and numbers")
    mean = sum(map(len, sentences)) / len(sentences)
    score = 1 if mean <= PLAIN_WORDS else 0.5 if mean <= HARD_WORDS else 0
    return Found(score, f"{len(sentences)} sentences of {mean:.0f} words in the mean")


def is_date(value: Any, form: str) -> bool:
    """Whether a text is a date of the form (`datetime.strptime`)."""
    try:
        datetime.strptime(str(value), form)
    except ValueError:
        return False
    return True
