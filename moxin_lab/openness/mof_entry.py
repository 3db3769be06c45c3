"""A `MOF.yml` as a file: read, checked against the Model Openness Tool's schema and names, and the
line of each of its parts.

    entry = load(Path("MOF.yml"))          # MofError: "line 12, release.type: 'text' is not one of"
    component_lines(Path("MOF.yml"))       # {"Training code": 31, ...}

Guarantees: any file gives an entry or a MofError within a second; an error of a file names the line
of each fault; component names that the tool would silently ignore are refused.
Out of scope: what an entry is worth (`mof.py`), and whether its components exist
(`mof_evidence.py`).
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from moxin_lab import untrusted
from moxin_lab.lab.artifacts import LabError, read_yaml

CATALOGUE_FILE = Path(__file__).parent / "mof_catalogue.yml"
CONTENT_TYPES = ("code", "data", "document")
MAX_PROBLEMS = 20
"""Faults that one error names; a file of 99,000 faults would be answered after minutes."""
MAX_FIELDS = 1_000
"""Fields of one part that are compared with those of the tool; a full entry has 20."""
MAX_NAME_LETTERS = 80
"""Letters of a wrong name that an error quotes."""

Place = tuple[str | int, ...]
"""Keys and positions that lead to a part of a YAML file."""


class MofError(LabError):
    """A MOF entry that cannot be evaluated; the message names file, line, field and remedy."""


@cache
def catalogue() -> dict[str, Any]:
    """The 17 components, the classes and the licences of `mof_catalogue.yml`, with their source."""
    return read_yaml(CATALOGUE_FILE)


def load(path: Path) -> dict[str, Any]:
    """Read and check an entry. Raises MofError for a file that cannot be read, breaks the schema or
    names unknown components.
    """
    if not path.exists():
        raise MofError(f"{path} does not exist; give the path of a MOF.yml")
    return check(read(path), str(path), path)


def check(entry: Any, where: str = "entry", file: Path | None = None) -> dict[str, Any]:
    """A copy of the entry with dates as text. Raises MofError with the first MAX_PROBLEMS breaches
    of the schema, or else as many names that are not in the catalogue.

    file: what the entry was read from, for the lines that the error names.
    """
    entry = _dates_as_text(entry)
    validator = jsonschema.Draft7Validator(
        _schema(), format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER
    )
    problems: list[tuple[Place, str]] = [
        (
            tuple(error.absolute_path),
            f"{'.'.join(map(str, error.absolute_path)) or 'top level'}: {_short(error.message)}",
        )
        for error in islice(validator.iter_errors(entry), MAX_PROBLEMS)
    ]
    if not problems:
        names = [component["name"] for component in entry["release"]["components"]]
        problems = [
            (("release", "components", position, "name"), text)
            for position, text in name_problems(names)
        ]
    if problems:
        places = [place for place, _ in problems]
        lines = lines_of(file, places) if file else [None] * len(places)
        raise MofError(
            f"{where} is not a valid MOF entry:\n"
            + "\n".join(
                "  - " + (f"line {line}, " if line else "") + text
                for line, (_, text) in zip(lines, problems, strict=True)
            )
        )
    return entry


def component_lines(path: Path) -> dict[str, int]:
    """The line at which each component of a valid entry begins."""
    names = [component["name"] for component in load(path)["release"]["components"]]
    places: list[Place] = [("release", "components", position) for position in range(len(names))]
    return dict(zip(names, lines_of(path, places), strict=True))


def read(path: Path) -> Any:
    """The value of a YAML file. Raises MofError as `read_yaml` raises LabError."""
    try:
        return read_yaml(path)
    except LabError as error:
        raise MofError(str(error)) from None


def lines_of(path: Path, places: list[Place]) -> list[int]:
    """The line, from 1, of each place of a YAML file that `read` reads; of a place that the file
    lacks, that of the part that should hold it.
    """
    text = untrusted.text_of(untrusted.read_bytes(path, untrusted.MAX_YAML_BYTES))
    root = yaml.compose(text, Loader=untrusted.Loader)
    return [1 if root is None else _line(root, place) for place in places]


def _line(node: yaml.Node, place: Place) -> int:
    line = node.start_mark.line + 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def ignored_fields(entry: Mapping[str, Any]) -> Iterator[str]:
    """A line for each field that the tool passes over and that is nearly one that it reads, or that
    stands among the licences by content type. The tool's schema allows any other field, so a slip
    of the pen in `license` leaves a component with the licence of the whole release.
    """
    schema = _schema()["properties"]["release"]["properties"]
    release = entry["release"]
    kinds = schema["license"]["properties"]
    for kind in islice(release["license"], MAX_FIELDS):
        if kind not in kinds:
            yield (
                f"release.license: the tool does not read {quoted(kind)}, so it counts for "
                f"nothing; it reads {', '.join(kinds)}"
            )
    yield from _misspelt_fields(release, "release", [*schema])
    for kind in kinds.keys() & release["license"].keys():
        known = [*kinds[kind]["properties"]]
        yield from _misspelt_fields(release["license"][kind], f"release.license.{kind}", known)
    known = [*schema["components"]["items"]["properties"]]
    for item in release["components"]:
        yield from _misspelt_fields(item, f"component {quoted(item['name'])}", known)


def _misspelt_fields(value: Mapping[str, Any], where: str, known: list[str]) -> Iterator[str]:
    for name in islice(value, MAX_FIELDS):
        wrong = "" if name in known else str(name)[:MAX_NAME_LETTERS].lower()
        if close := difflib.get_close_matches(wrong, known, 1, cutoff=0.75):
            yield (
                f"{where}: the tool does not read {quoted(name)}, so it counts for nothing; did "
                f"you mean {close[0]!r}?"
            )


def name_problems(names: list[str]) -> list[tuple[int, str]]:
    """The first MAX_PROBLEMS names that are not in the catalogue or are listed twice, with their
    positions.
    """
    return list(islice(_each_name_problem(names), MAX_PROBLEMS))


def _each_name_problem(names: list[str]) -> Iterator[tuple[int, str]]:
    known = [fact["name"] for fact in catalogue()["components"]]
    lower = {entry.lower(): entry for entry in known}
    last: Mapping[str, int] = {name: position for position, name in enumerate(names)}
    first: Mapping[str, int] = {
        name: len(names) - 1 - position for position, name in enumerate(reversed(names))
    }
    for name, count in Counter(names).items():
        if name not in known:
            close = difflib.get_close_matches(name[:MAX_NAME_LETTERS].lower(), lower, n=1)
            yield (
                first[name],
                f"component {quoted(name)} is not in the catalogue"
                + (f"; did you mean {lower[close[0]]!r}?" if close else ""),
            )
        if count > 1:
            yield last[name], f"component {quoted(name)} is listed {count} times"


def quoted(name: Any) -> str:
    text = str(name)
    return repr(text if len(text) <= MAX_NAME_LETTERS else f"{text[:MAX_NAME_LETTERS]}...")


def _short(message: str) -> str:
    """The validator's message, which quotes the value, however long that is."""
    return message if len(message) <= 400 else f"{message[:200]} ... {message[-150:]}"


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
                "properties": dict.fromkeys(("distribution", *CONTENT_TYPES), licence),
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
