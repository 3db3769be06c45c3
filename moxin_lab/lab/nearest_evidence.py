"""What small scale can say of claims that only full scale decides.

    found = nearest_evidence.evidence(root, stage.records())
    found["grpo.gain"][0].sentence        # its numbers were read just now

An entry of `papers/nearest_evidence.yml` names a claim, a kind (`KINDS`), a sentence with gaps, and
where the number of each gap is read: a committed JSON file under `reports/released`, the record of
a stage, a printed table, or arithmetic on these. An entry of the kind `none` has a reason instead.

Guarantees: every claim that needs full scale has an entry; a number is never typed, and one that
is absent, ambiguous or not finite is an error that names the claim and the file. A stage that has
not run is said in place of the sentence.
Out of scope: verdicts. Nothing here is recorded or compared with what a claim states, and
`claims.py` does not read this module.
"""

import ast
import math
import operator
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moxin_lab.lab import claims, measured, published
from moxin_lab.lab.artifacts import LabError, read_json, read_yaml

FILE = "papers/nearest_evidence.yml"
LABEL = "Nearest evidence, not a verdict"
KINDS = {
    "ablation": "one thing was changed and all else kept, in models far smaller than the claim's",
    "direction": "the same kind of change was made at small size; its sign may carry over, its "
    "size does not",
    "mechanism": "the same mechanism ran, on other data or at another size",
    "arithmetic": "it follows from numbers that are printed or measured; nothing was run for it",
    "none": "nothing at small scale bears on it",
}
RELEASED = "reports/released/"
FIELDS = {"claim", "kind", "sentence", "numbers", "file", "scale", "reason"}
OPERATORS: Mapping[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """One sentence beside a claim without a verdict."""

    claim: str
    kind: str
    """A key of `KINDS`."""
    sentence: str
    scale: str
    """Of what was measured; empty for what has none, as arithmetic or a model of others."""
    sources: tuple[str, ...]
    """Files, and records of stages, from which the numbers were read."""

    @property
    def label(self) -> str:
        """Kind and scale, as `ablation, small scale`."""
        return f"{self.kind}, {self.scale} scale" if self.scale else self.kind

    @property
    def read_from(self) -> tuple[str, ...]:
        """`sources` without the folder that most of them share."""
        return tuple(source.removeprefix(RELEASED) for source in self.sources)


@dataclass(frozen=True)
class Figure:
    """A number with its interval, if it has one; `{change:+.3f}` formats all three alike."""

    value: float
    low: float | None = None
    high: float | None = None

    def __format__(self, spec: str) -> str:
        text = format(self.value, spec)
        if self.low is not None and self.high is not None:
            text += f" ({format(self.low, spec)} to {format(self.high, spec)})"
        return text.replace("-", "−")


Beside = Mapping[str, Sequence[Evidence]]
"""Evidence by the id of the claim."""


class _NotRun(Exception):
    """A record or a measure that is not there. It is said: a scale may leave a part out."""


def load(root: Path) -> list[dict[str, Any]]:
    """Entries of the file in their order. Raises LabError, with the claim, for one that is not as
    the module's text says, and for a claim that needs full scale and has none.
    """
    path = root / FILE
    content = read_yaml(path, f"restore it: git checkout -- {FILE}")
    entries = content.get("entries") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise LabError(f"{path} has no list `entries` of entries with a claim")
    needed = claims.scales_needed(root)
    for entry in entries:
        if problem := _problem(entry, needed):
            raise LabError(f"{path}: the entry of {entry.get('claim')!r} {problem}")
    kinds: dict[str, list[str]] = {}
    for entry in entries:
        kinds.setdefault(entry["claim"], []).append(entry["kind"])
    for claim, found in kinds.items():
        if "none" in found and len(found) > 1:
            raise LabError(f"{path}: {claim!r} has evidence and an entry of the kind none")
    if absent := [
        claim for claim, scale in needed.items() if scale == "full" and claim not in kinds
    ]:
        raise LabError(
            f"{path} has no entry of {', '.join(absent)}, which full scale alone decides: add the "
            "nearest evidence, or the kind none with a reason"
        )
    return entries


def evidence(root: Path, records: Iterable[Record]) -> dict[str, tuple[Evidence, ...]]:
    """The evidence beside each claim, by the claim's id.

    records: of the stages that finished at one scale. Raises LabError as the module's text says.
    """
    read = _Reader(root, {record["stage"]: record for record in records})
    found: dict[str, tuple[Evidence, ...]] = {}
    for entry in load(root):
        found[entry["claim"]] = (*found.get(entry["claim"], ()), read.entry(entry))
    return found


def beside(root: Path, records: Iterable[Record]) -> dict[str, tuple[Evidence, ...]]:
    """`evidence`, or nothing in a tree that has no such file, as the report's other parts do."""
    return evidence(root, records) if (root / FILE).exists() else {}


def files(root: Path) -> list[str]:
    """The committed files that the entries name, sorted; a stage that shows them lists them."""
    named = set()
    for entry in load(root):
        numbers = [spec for spec in entry.get("numbers", {}).values() if isinstance(spec, dict)]
        named |= {each["file"] for each in (entry, *numbers) if "file" in each}
    return sorted(named)


def _problem(entry: Mapping[str, Any], needed: Mapping[str, str]) -> str:
    """What is wrong with an entry as it is written, in words; empty if nothing is."""
    claim, kind = str(entry.get("claim")), str(entry.get("kind"))
    if claim not in needed:
        return "is of no claim in papers/claims.yml"
    if needed[claim] == "tiny":
        return "is beside a claim that every scale decides"
    if kind not in KINDS:
        return f"has the kind {kind!r}; there are {', '.join(KINDS)}"
    if unknown := entry.keys() - FIELDS:
        return f"has unknown fields: {', '.join(sorted(unknown))}"
    if kind == "none":
        said = entry.get("reason")
        alone = entry.keys() == {"claim", "kind", "reason"}
        stated = isinstance(said, str) and said.strip()
        return "" if alone and stated else "needs a `reason`, and nothing else"
    sentence, numbers = entry.get("sentence"), entry.get("numbers")
    if not isinstance(sentence, str) or not isinstance(numbers, dict) or not numbers:
        return "needs a `sentence` and `numbers`"
    try:
        parts = list(string.Formatter().parse(sentence))
    except ValueError as error:
        return f"has a sentence with a broken gap: {error}"
    if unknown := {name for _, name, _, _ in parts if name is not None} - numbers.keys():
        return f"has no number for the gap {', '.join(sorted(unknown))}"
    words = " ".join(text for text, *_ in parts)
    if typed := re.search(r"(?<![\w.,-])\d[\d.,]*(?![\w-])", words):
        return f"types the number {typed[0]}: read it from a file"
    return ""


class _Reader:
    """Reads the numbers of entries; a file is parsed once."""

    def __init__(self, root: Path, records: Mapping[str, Record]) -> None:
        self.root = root
        self.records = records
        self.parsed: dict[str, Any] = {}
        self.tables: list[dict[str, Any]] = []

    def entry(self, entry: Mapping[str, Any]) -> Evidence:
        claim, kind, scale = entry["claim"], entry["kind"], entry.get("scale", "")
        if kind == "none":
            return Evidence(claim, kind, entry["reason"], "", ())
        values: dict[str, Figure | str] = {}
        sources: dict[str, None] = {}  # an ordered set
        for name, spec in entry["numbers"].items():
            where = f"{FILE}, number {name!r} of {claim}"
            try:
                value, source, measured_at = self.number(spec, entry.get("file"), values, where)
            except _NotRun as reason:
                return Evidence(claim, kind, str(reason), "", ())
            values[name], scale = value, measured_at or scale
            sources |= dict.fromkeys(filter(None, [source]))
        sentence = string.Formatter().vformat(entry["sentence"], (), values)
        return Evidence(claim, kind, sentence, scale, tuple(sources))

    def number(
        self, spec: Any, file: str | None, known: Mapping[str, Figure | str], where: str
    ) -> tuple[Figure | str, str, str]:
        """(number, source, scale of the record); a word that a file holds stays a word."""
        match spec:
            case list():
                return self.in_file({"path": spec, "file": file}, where)
            case {"path": list(), **rest} if rest.keys() <= {"file", "sum"}:
                return self.in_file({"file": file, **spec}, where)
            case {"row": list(), "value": _, **rest} if rest.keys() <= {"file", "low", "high"}:
                return self.in_row({"file": file, **spec}, where)
            case {"measure": str(), "stage": str(), **rest} if rest.keys() <= {"labels"}:
                return self.in_record(spec, where)
            case {"of": str(expression), **rest} if not rest:
                return Figure(_calculated(expression, known, where)), "", ""
            case {"claim": str(claim), **rest} if not rest:
                entry = next((c for c in claims.load(self.root) if c["id"] == claim), {})
                return Figure(_finite(entry.get("value"), f"{where}: the value of {claim}")), "", ""
            case {"table": str(), **rest} if rest.keys() <= {"row", "column", "count", "items"}:
                return self.in_table(spec, where)
        raise LabError(f"{where} is read from nowhere that is known: {spec!r}")

    def in_file(self, spec: Mapping[str, Any], where: str) -> tuple[Figure | str, str, str]:
        content, where = self.content(spec["file"], where)
        found = list(_matches(content, spec["path"]))
        if spec.get("sum"):
            numbers = [_finite(each, where) for each in found]
            if not numbers:
                raise LabError(f"{where} has nothing at {spec['path']}")
            return Figure(_finite(sum(numbers), where)), spec["file"], ""
        only = _only(found, spec["path"], where)
        if isinstance(only, str):
            return only, spec["file"], ""
        return Figure(_finite(only, f"{where}: {spec['path']}")), spec["file"], ""

    def in_row(self, spec: Mapping[str, Any], where: str) -> tuple[Figure, str, str]:
        """A value and the ends of its interval, each a key of one row or a path below it."""
        content, where = self.content(spec["file"], where)
        parts = {}
        for name in {"value", "low", "high"} & spec.keys():
            below = spec[name] if isinstance(spec[name], list) else [spec[name]]
            path = [*spec["row"], *below]
            only = _only(list(_matches(content, path)), path, where)
            parts[name] = _finite(only, f"{where}: {path}")
        return Figure(**parts), spec["file"], ""

    def content(self, file: Any, where: str) -> tuple[Any, str]:
        """What a committed file holds, and the words for where that is."""
        if not isinstance(file, str) or not file.startswith(RELEASED) or ".." in file:
            raise LabError(f"{where} names {file!r}, which is no file under {RELEASED}")
        if file not in self.parsed:
            if not (self.root / file).is_file():
                raise LabError(f"{where} is to be read from {file}, which does not exist")
            content = read_json(self.root / file)
            if isinstance(content, dict) and (cut := measured.unfinished(content)):
                raise LabError(f"{where} is to be read from {file}, which {cut}")
            self.parsed[file] = content
        return self.parsed[file], f"{where}, in {file}"

    def in_record(self, spec: Mapping[str, Any], where: str) -> tuple[Figure, str, str]:
        stage, name, labels = spec["stage"], spec["measure"], spec.get("labels", {})
        record = self.records.get(stage)
        if record is None:
            words = name.replace("_", " ")
            raise _NotRun(f"Stage {stage[:2]}, which measures {words}, has not run at this scale.")
        source, scale = f"the record of stage {stage[:2]}", record["scale"]
        found = [
            each
            for each in record.get("measures", [])
            if each["name"] == name and (each.get("labels") or {}) == labels
        ]
        if not found:
            raise _NotRun(f"Stage {stage[:2]} ran without this part at {scale} scale.")
        ends = found[-1].get("interval") or ()
        where = f"{where}, in {source} at {scale} scale"
        return (
            Figure(*(_finite(each, where) for each in (found[-1]["value"], *ends))),
            source,
            scale,
        )

    def in_table(self, spec: Mapping[str, Any], where: str) -> tuple[Figure, str, str]:
        """A printed cell, or a count over a printed table: its `rows`, its benchmarks (`columns`),
        those in which a row is printed highest (`best`), its rows that equal an earlier
        publication's (`copied`), or the questions behind a column (`items`).
        """
        folder, file = self.root / "papers" / "tables", spec["table"]
        source, row, count = f"papers/tables/{file}", spec.get("row"), spec.get("count")
        self.tables = self.tables or published.index(folder)
        index = next((each for each in self.tables if each["file"] == file), None)
        if index is None:
            raise LabError(f"{where} is to be read from {source}, which does not exist")
        where = f"{where}, in {source}"
        frame = published.table(folder, file)
        benchmarks = frame.drop(columns="Ave", errors="ignore")
        try:
            match count:
                case "rows":
                    value: Any = len(frame)
                case "columns":
                    value = benchmarks.shape[1]
                case "best":
                    value = int((benchmarks.drop(index=row).max() < benchmarks.loc[row]).sum())
                case "copied":
                    value = len(index["copied_rows"])
                case None if "items" in spec:
                    value = published.items(folder)[spec["items"]]
                case None:
                    value = frame.loc[row, spec["column"]].item()
                case _:
                    raise KeyError(count)
        except KeyError as error:
            raise LabError(f"{where} has no {error.args[0]}") from error
        return Figure(_finite(value, where)), source, ""


def _matches(content: Any, path: Sequence[Any]) -> Iterable[Any]:
    """All values at a path. A word is a key, a number a place in a list, a mapping chooses the
    rows of a list that have these values.
    """
    if not path:
        yield content
        return
    step, rest = path[0], path[1:]
    match step, content:
        case dict(), list():
            for row in content:
                if isinstance(row, dict) and all(row.get(key) == step[key] for key in step):
                    yield from _matches(row, rest)
        case int(), list() if 0 <= step < len(content):
            yield from _matches(content[step], rest)
        case str(), dict() if step in content:
            yield from _matches(content[step], rest)


def _only(found: Sequence[Any], path: Sequence[Any], where: str) -> Any:
    if len(found) != 1:
        raise LabError(
            f"{where} has {len(found) or 'nothing'} at {list(path)}: one value is needed"
        )
    return found[0]


def _finite(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise LabError(f"{where} is {value!r}, which is no finite number")
    return value


def _calculated(expression: str, known: Mapping[str, Figure | str], where: str) -> float:
    """`1 - after / before` of numbers that were read before it."""

    def value(node: ast.AST) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.Name(id=name) if isinstance(figure := known.get(name), Figure):
                return figure.value
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
                return OPERATORS[type(sign)](value(left), value(right))
        raise LabError(f"{where} cannot be calculated: {expression!r} has {ast.unparse(node)}")

    try:
        result = value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ArithmeticError) as error:
        raise LabError(f"{where} cannot be calculated: {expression!r}: {error}") from error
    return _finite(result, f"{where}: {expression!r}")
