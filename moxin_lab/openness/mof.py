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
would silently ignore.
Out of scope: whether a component exists. The sidecar `<name>.evidence.yml` and notebook 10 say.
"""

import difflib
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from moxin_lab.lab.artifacts import LabError, read_yaml

CATALOGUE_FILE = Path(__file__).parent / "mof_catalogue.yml"
TECHNICAL_REPORT = "Technical report"
RESEARCH_PAPER = "Research paper"
RECOMMENDED_LICENCE = {"code": "Apache-2.0", "data": "CDLA-Permissive-2.0", "document": "CC-BY-4.0"}
"""By content type; source: LF AI & Data, "Simplifying AI model licensing with OpenMDW" (22 July
2025).
"""


class MofError(LabError):
    """A MOF entry that cannot be evaluated; the message names file, field and remedy."""


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


@cache
def catalogue() -> dict[str, Any]:
    """The 17 components, the classes and the licences of `mof_catalogue.yml`, with their source."""
    return read_yaml(CATALOGUE_FILE)


def is_open(licence: str) -> bool:
    """Whether MOT counts an SPDX identifier as open."""
    return any(licence in identifiers for identifiers in catalogue()["open_licences"].values())


def is_type_appropriate(licence: str, content_type: str) -> bool:
    """Whether MOT lists a licence as made for `code`, `data` or `document`."""
    return licence in catalogue()["type_appropriate"][content_type]


def load(path: Path) -> dict[str, Any]:
    """Read and check an entry. Raises MofError for a file that cannot be read, breaks the schema or
    names unknown components.
    """
    if not path.exists():
        raise MofError(f"{path} does not exist; give the path of a MOF.yml")
    return check(_yaml(path), str(path))


def check(entry: Any, where: str = "entry") -> dict[str, Any]:
    """A copy of the entry with dates as text. Raises MofError with every breach of the schema, or
    else every name that is not in the catalogue.
    """
    entry = _dates_as_text(entry)
    validator = jsonschema.Draft7Validator(
        _schema(), format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER
    )
    problems = [
        f"{'.'.join(map(str, error.absolute_path)) or 'top level'}: {error.message}"
        for error in validator.iter_errors(entry)
    ]
    if not problems:
        problems = _name_problems(
            [component["name"] for component in entry["release"]["components"]]
        )
    if problems:
        raise MofError(
            f"{where} is not a valid MOF entry:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
        )
    return entry


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
        warnings=tuple(
            _warning(component)
            for component in components
            if component.status == "included" and not component.type_appropriate
        ),
    )


def evidence(path: str | Path) -> dict[str, dict[str, Any]]:
    """The sidecar `<name>.evidence.yml` of an entry: component name -> {status, paths, artifact,
    licence, note}.

    Raises MofError if it is missing, is not such a mapping or names an unknown component.
    """
    sidecar = Path(path).with_suffix(".evidence.yml")
    if not sidecar.exists():
        raise MofError(
            f"{sidecar} does not exist; it has the paths of each component of {Path(path).name}"
        )
    content = _yaml(sidecar)
    components = content.get("evidence") if isinstance(content, dict) else None
    if not isinstance(components, dict):
        raise MofError(f"{sidecar} cannot be read as evidence: it has no mapping `evidence`")
    if problems := _name_problems(list(components)):
        raise MofError(f"{sidecar}:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return components


def _yaml(path: Path) -> Any:
    try:
        return read_yaml(path)
    except LabError as error:
        raise MofError(str(error)) from None


def with_components(entry: dict[str, Any], extra: dict[str, str]) -> dict[str, Any]:
    """A copy of an entry with more components, name -> licence; listed ones keep theirs."""
    release = entry["release"]
    listed = {component["name"] for component in release["components"]}
    added = [
        {"name": name, "license": licence} for name, licence in extra.items() if name not in listed
    ]
    return check({**entry, "release": {**release, "components": [*release["components"], *added]}})


def format_text(evaluation: Evaluation) -> str:
    """Class, progress, 17 components, warnings and what the next class needs, for a terminal."""
    lines = [f"{evaluation.release} ({evaluation.producer}): {evaluation.class_name}", ""]
    for result in evaluation.classes:
        lines.append(
            f"  {result.name:<26} {result.progress:5.1f} %  {'met' if result.met else 'not met'}"
        )
    lines += ["", f"  {'component':<32} {'class':<6} {'status':<11} {'licence':<22} from"]
    numerals = {3: "III", 2: "II", 1: "I"}
    for component in evaluation.components:
        optional = "" if component.required else " (optional)"
        lines.append(
            f"  {component.name:<32} {numerals[component.mof_class]:<6} {component.status:<11} "
            f"{component.licence or '-':<22} {component.licence_from or '-'}{optional}"
        )
    lines += [""] + [f"  warning: {warning}" for warning in evaluation.warnings]
    return "\n".join(lines + next_steps(evaluation)).rstrip()


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


def _name_problems(names: list[str]) -> list[str]:
    known = [fact["name"] for fact in catalogue()["components"]]
    problems = []
    for name in dict.fromkeys(names):
        if name not in known:
            lower = {entry.lower(): entry for entry in known}
            close = difflib.get_close_matches(name.lower(), lower, n=1)
            problems.append(
                f"component {name!r} is not in the catalogue"
                + (f"; did you mean {lower[close[0]]!r}?" if close else "")
            )
        if names.count(name) > 1:
            problems.append(f"component {name!r} is listed {names.count(name)} times")
    return problems


def _dates_as_text(value: Any) -> Any:
    """YAML turns an unquoted 2024-12-15 into a date; MOT reads text."""
    if isinstance(value, dict):
        return {key: _dates_as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_dates_as_text(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value


def _schema() -> dict[str, Any]:
    """JSON Schema (draft 7) of an entry, with MOT's field names and enumerations; a component's
    `name` is required as well.
    """
    facts = catalogue()["schema"]
    text = {"type": "string"}
    day = {"type": "string", "format": "date"}
    maybe_text = {"type": ["string", "null"]}
    licence = {"type": "object", "properties": {"name": maybe_text, "path": maybe_text}}
    component_fields = ("description", "license", "license_path", "component_path")
    release = {
        "type": "object",
        "required": ["name", "license", "producer", "components"],
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "date": day,
            **dict.fromkeys(("version", "origin", "producer", "contact"), text),
            **{
                field: {"type": "string", "enum": facts[field]}
                for field in ("type", "architecture", "treatment")
            },
            "license": {
                "type": "object",
                "properties": dict.fromkeys(("distribution", *RECOMMENDED_LICENCE), licence),
            },
            "components": {
                "type": "array",
                "maxItems": len(catalogue()["components"]),
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": dict.fromkeys(("name", *component_fields), text),
                },
            },
        },
    }
    framework = {
        "type": "object",
        "required": ["name", "version", "date"],
        "properties": {"name": {"const": facts["framework_name"]}, "version": text, "date": day},
    }
    return {
        "type": "object",
        "required": ["framework", "release"],
        "properties": {"framework": framework, "release": release},
    }
