"""The Model Openness Framework (MOF, arXiv 2403.13784): evaluates a `MOF.yml` into a class,
progress and what is missing.

    evaluation = evaluate(Path("MOF.yml"))
    print(format_text(evaluation))

This module implements the rules of the Model Openness Tool (MOT,
github.com/lfai/model_openness_tool at 8b5d30e):

- A component has its own licence, else the release's licence for its content type (code, data,
  document), else the licence of the distribution, else none. An empty licence beside a component
  means unlicensed and inherits nothing.
- A component counts if its licence is open (OSI, FSF, open data, OpenMDW). An open licence that is
  unusual for the content type counts too, with a warning. Any other licence is invalid.
- Classes build on each other: III (open model), II (open tooling), I (open science). Progress of a
  class is the share of its required components, including those of the classes below; it is 0 as
  long as the class below is not met.
- A research paper replaces the technical report: in classes III and II as a component, in class I
  by requiring one component fewer.

Guarantees: agrees with MOT's own fixtures on progress and counts; refuses component names that MOT
would silently ignore, and says what a licence that does not count, or a field that the tool does
not read, may have meant; any file gives an evaluation or a MofError within a second.
Out of scope: reading the file (`mof_entry.py`) and whether a component exists (`mof_evidence.py`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from moxin_lab.openness.licences import similar
from moxin_lab.openness.mof_entry import (
    MAX_PROBLEMS,
    MofError,
    catalogue,
    check,
    ignored_fields,
    load,
)
from moxin_lab.untrusted import printable

__all__ = ["MofError", "catalogue", "check", "load"]  # of mof_entry, for those who evaluate

TECHNICAL_REPORT = "Technical report"
RESEARCH_PAPER = "Research paper"
RECOMMENDED_LICENCE = {"code": "Apache-2.0", "data": "CDLA-Permissive-2.0", "document": "CC-BY-4.0"}
"""By content type; source: LF AI & Data, "Simplifying AI model licensing with OpenMDW" (22 July
2025).
"""


@dataclass(frozen=True)
class Component:
    """One of the 17 components, and its state in a release."""

    name: str
    content_type: str
    mof_class: int
    required: bool
    status: str
    """`included`, `invalid` (licence not open), `unlicensed` or `absent`."""
    licence: str = ""
    licence_from: str = ""
    """Where the licence was found: `component`, `release.license.<type>` or
    `release.license.distribution`.
    """
    open: bool = False
    type_appropriate: bool = False
    description: str = ""
    component_path: str = ""


@dataclass(frozen=True)
class ClassResult:
    """Progress of a release in one class; the tuples hold component names."""

    number: int
    name: str
    progress: float
    counted: tuple[str, ...]
    missing: tuple[str, ...]
    unlicensed: tuple[str, ...]
    invalid: tuple[str, ...]

    @property
    def met(self) -> bool:
        return self.progress == 100.0


@dataclass(frozen=True)
class Evaluation:
    """The result: `mof_class` is 3, 2 or 1, or 0 for unclassified."""

    release: str
    producer: str
    mof_class: int
    class_name: str
    classes: tuple[ClassResult, ...]
    components: tuple[Component, ...]
    warnings: tuple[str, ...]

    def progress(self, number: int) -> float:
        """Progress in class 1, 2 or 3, in percent."""
        return next(result.progress for result in self.classes if result.number == number)

    @property
    def next_class(self) -> ClassResult | None:
        """The lowest class that is not met; None if class I is met."""
        return next((result for result in self.classes if not result.met), None)

    @property
    def num_included(self) -> int:
        """Number of components that count."""
        return sum(component.status == "included" for component in self.components)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def is_open(licence: str) -> bool:
    """Whether MOT counts an SPDX identifier as open."""
    return any(licence in identifiers for identifiers in catalogue()["open_licences"].values())


def is_type_appropriate(licence: str, content_type: str) -> bool:
    """Whether MOT lists a licence as made for `code`, `data` or `document`."""
    return licence in catalogue()["type_appropriate"][content_type]


def evaluate(path: str | Path) -> Evaluation:
    """Evaluate a MOF.yml. Raises MofError."""
    return evaluate_entry(load(Path(path)))


def evaluate_entry(entry: dict[str, Any]) -> Evaluation:
    """Evaluate an entry that `load` or `check` returned."""
    release = entry["release"]
    given = {component["name"]: component for component in release["components"]}
    components = tuple(
        _component(fact, given.get(fact["name"]), release["license"])
        for fact in catalogue()["components"]
    )
    results = tuple(_class_result(number, components) for number in (3, 2, 1))
    results = _stop_at_first_unmet(results)
    mof_class = min((result.number for result in results if result.met), default=0)
    return Evaluation(
        release=release["name"],
        producer=release["producer"],
        mof_class=mof_class,
        class_name=catalogue()["class_names"][mof_class],
        classes=results,
        components=components,
        warnings=(
            *(
                _warning(component)
                for component in components
                if component.status == "included" and not component.type_appropriate
            ),
            *_unknown_to_the_tool(components),
            *_misspelt(components),
            *islice(ignored_fields(entry), MAX_PROBLEMS),
        ),
    )


def format_text(evaluation: Evaluation, lines: Mapping[str, int] | None = None) -> str:
    """Class, progress, 17 components, warnings and what the next class needs, for a terminal.

    lines: where the file has each component (`component_lines`).
    """
    lines_in_file = lines or {}
    named = printable(f"{evaluation.release} ({evaluation.producer})")
    text = [f"{named}: {evaluation.class_name}", ""]
    for result in evaluation.classes:
        text.append(
            f"  {result.name:<26} {result.progress:5.1f} %  {'met' if result.met else 'not met'}"
        )
    text += ["", f"  {'line':<5}{'component':<32} {'class':<6} {'status':<11} {'licence':<22} from"]
    numerals = {3: "III", 2: "II", 1: "I"}
    for component in evaluation.components:
        optional = "" if component.required else " (optional)"
        line = lines_in_file.get(component.name, "-")
        text.append(
            f"  {line:<5}{component.name:<32} {numerals[component.mof_class]:<6} "
            f"{component.status:<11} {printable(component.licence) or '-':<22} "
            f"{component.licence_from or '-'}{optional}"
        )
    text += [""] + [f"  warning: {warning}" for warning in evaluation.warnings]
    return "\n".join(text + next_steps(evaluation)).rstrip()


def next_steps(evaluation: Evaluation) -> list[str]:
    """What the release lacks for the next class, one line per reason; empty if class I is met."""
    result = evaluation.next_class
    if result is None:
        return []
    lines = [f"  for {result.name}:"]
    lines += [f"    add {name}" for name in result.missing]
    lines += [f"    give {name} a licence" for name in result.unlicensed]
    lines += [f"    give {name} an open licence" for name in result.invalid]
    return lines


def _component(
    fact: dict[str, Any], given: dict[str, Any] | None, licences: dict[str, Any]
) -> Component:
    common = {
        "name": fact["name"],
        "content_type": fact["content_type"],
        "mof_class": fact["class"],
        "required": fact["required"],
    }
    if given is None:
        return Component(**common, status="absent")
    licence, licence_from = _resolve_licence(given, fact["content_type"], licences)
    is_licence_open = is_open(licence)
    without = "unlicensed" if licence in ("", "unlicensed") else "invalid"
    return Component(
        **common,
        status="included" if is_licence_open else without,
        licence=licence,
        licence_from=licence_from,
        open=is_licence_open,
        type_appropriate=is_type_appropriate(licence, fact["content_type"]),
        description=given.get("description", ""),
        component_path=given.get("component_path", ""),
    )


def _resolve_licence(
    given: dict[str, Any], content_type: str, licences: dict[str, Any]
) -> tuple[str, str]:
    if "license" in given:
        return given["license"], "component"
    for key in (content_type, "distribution"):
        if name := licences.get(key, {}).get("name"):
            return name, f"release.license.{key}"
    return "", ""


def _class_result(number: int, components: tuple[Component, ...]) -> ClassResult:
    """Progress of a class by itself; `_stop_at_first_unmet` applies the rule that classes build on
    each other.
    """
    required = [
        component
        for component in components
        if component.required and component.mof_class >= number
    ]
    report = next(component for component in components if component.name == TECHNICAL_REPORT)
    paper = next(component for component in components if component.name == RESEARCH_PAPER)
    total = len(required)
    lists: dict[str, list[str]] = {"included": [], "absent": [], "unlicensed": [], "invalid": []}
    for component in required:
        lists[component.status].append(component.name)
    if report.status != "included" and paper.status != "absent":
        if report.status == "absent":
            lists["absent"].remove(TECHNICAL_REPORT)
        if number > 1:
            lists[paper.status].append(RESEARCH_PAPER)
        elif paper.status == "included":
            total -= 1
    return ClassResult(
        number=number,
        name=catalogue()["class_names"][number],
        progress=min(len(lists["included"]) / total * 100, 100.0),
        counted=tuple(lists["included"]),
        missing=tuple(lists["absent"]),
        unlicensed=tuple(lists["unlicensed"]),
        invalid=tuple(lists["invalid"]),
    )


def _stop_at_first_unmet(results: tuple[ClassResult, ...]) -> tuple[ClassResult, ...]:
    """Progress 0 for every class above the first unmet one (results in the order III, II, I)."""
    limited: list[ClassResult] = []
    for result in results:
        below_met = all(lower.met for lower in limited)
        limited.append(result if below_met else replace(result, progress=0.0))
    return tuple(limited)


def _warning(component: Component) -> str:
    better = RECOMMENDED_LICENCE[component.content_type]
    return (
        f"{component.name}: {component.licence} is open, but not a licence made for "
        f"{component.content_type}, such as {better}"
    )


def _unknown_to_the_tool(components: tuple[Component, ...]) -> Iterator[str]:
    """A line for each licence that the tool's lists are too old for, or disagree on."""
    upstream = catalogue()["upstream"]
    list_of = f"the tool's list ({upstream['commit']}, {upstream['date']})"
    for component in components:
        if component.status != "invalid":
            continue
        if newer := catalogue()["newer_licences"].get(component.licence):
            yield (
                f"{component.name}: {component.licence}, announced on {newer['announced']}, is not "
                f"yet in {list_of}, so it does not count; whether a later list has it is not "
                "guessed here"
            )
        elif component.type_appropriate:
            yield (
                f"{component.name}: {list_of} calls {component.licence} made for "
                f"{component.content_type} but not open, so it does not count"
            )


def _misspelt(components: tuple[Component, ...]) -> Iterator[str]:
    """A line for each licence that does not count but is close to one that does."""
    named: dict[str, list[str]] = {}
    for component in components:
        if component.status == "invalid":
            named.setdefault(component.licence, []).append(component.name)
    for licence, names in named.items():
        if close := similar(licence, _open_identifiers()):
            yield (
                f"{', '.join(names)}: {licence!r} is no identifier of one SPDX licence, so it does "
                f"not count; did you mean {' or '.join(map(repr, close))}?"
            )


@cache
def _open_identifiers() -> tuple[str, ...]:
    return tuple(name for names in catalogue()["open_licences"].values() for name in names)
