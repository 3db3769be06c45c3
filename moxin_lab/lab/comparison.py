"""Two runs side by side: which measures differ, by how much, inside or outside their intervals;
which verdicts and artifacts differ; and what was set differently.

    a, b = read_run(root, "tiny"), read_run(root, "../other clone")
    found = compare(a, b)
    found.outside                    # pairs of measures whose intervals do not meet

A measure of one run belongs to that of the other with the same stage, name, labels and unit; of
several such measures the first to the first. An interval is the one that the stage recorded.

Guarantees: every measure, verdict and artifact of both runs is in exactly one group; nothing is
rounded before it is compared; the same two runs give the same bytes.
Out of scope: whether a difference matters, and a test of two measures (the intervals are of one
measure each, so two that overlap can still differ by a paired test); showing it
(`comparison_page.py`).
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moxin_lab.lab import layout
from moxin_lab.lab.artifacts import LabError, read_record_of
from moxin_lab.lab.keys import differences
from moxin_lab.lab.show import format_number
from moxin_lab.stages import STAGES

SAME, INSIDE, MEET, OUTSIDE, BARE = "same", "inside", "meet", "outside", "bare"
IN_WORDS = {
    OUTSIDE: "outside: the intervals do not meet",
    BARE: "differ, and no interval was recorded",
    MEET: "intervals meet, but one value lies outside the other's",
    INSIDE: "inside: each value lies in the other's interval",
    SAME: "the same",
}
"""Relations of two values of a measure, the most striking first."""
NOT_RECORDED, NONE = "none recorded", "none"
"""Stand for the verdict, and for the artifact's hash, of a run that has none."""
TIMES = ("s", "seconds", "ms", "hours")
"""Units of time: such a measure, and a rate per second, differs between equal runs."""


@dataclass(frozen=True)
class Run:
    """Records of the finished stages of one run, by stage, in their order."""

    name: str
    folder: Path
    records: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Pair:
    """One measure in both runs; an interval is None where none was recorded."""

    stage: str
    name: str
    labels: Mapping[str, Any]
    unit: str
    a: float
    b: float
    interval_a: tuple[float, float] | None
    interval_b: tuple[float, float] | None

    @property
    def difference(self) -> float:
        """B minus A, in the measure's unit."""
        return self.b - self.a

    @property
    def of_the_clock(self) -> bool:
        named = "share_of_step" in self.name or "_time_" in self.name
        return named or self.unit in TIMES or bool(re.search(r"/s\b", self.unit))

    @property
    def relation(self) -> str:
        """`same`, `inside`, `meet`, `outside`, or `bare` without an interval (`IN_WORDS`).

        With an interval in one run only, the other's value counts as an interval of no width.
        """
        if self.a == self.b and self.interval_a == self.interval_b:
            return SAME
        if self.interval_a is None and self.interval_b is None:
            return BARE
        of_a = self.interval_a or (self.a, self.a)
        of_b = self.interval_b or (self.b, self.b)
        if of_a[1] < of_b[0] or of_b[1] < of_a[0]:
            return OUTSIDE
        b_in_a = self.interval_a is None or of_a[0] <= self.b <= of_a[1]
        a_in_b = self.interval_b is None or of_b[0] <= self.a <= of_b[1]
        return INSIDE if a_in_b and b_in_a else MEET

    @property
    def half_widths(self) -> float | None:
        """The difference in half widths of the wider interval; None where neither has a width."""
        intervals = [each for each in (self.interval_a, self.interval_b) if each is not None]
        widest = max((high - low for low, high in intervals), default=0.0) / 2
        return self.difference / widest if widest > 0 else None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    a: Run
    b: Run
    pairs: tuple[Pair, ...]
    only: tuple[tuple[str, str, str, str], ...]
    """(A or B, stage, measure in words, value) of a measure that one run alone has."""
    verdicts: tuple[tuple[str, str, str], ...]
    """(claim, verdict in A, verdict in B) where they differ; `none recorded` where one has none."""
    artifacts: tuple[tuple[str, str, str, str], ...]
    """(stage, artifact, SHA-256 in A, in B) where they differ; `none` where one has none."""
    equal_artifacts: int
    settings: tuple[tuple[str, str], ...]
    """(stage, what was set, read or installed differently)."""

    def related(self, relation: str) -> list[Pair]:
        return [pair for pair in self.pairs if pair.relation == relation]

    @cached_property
    def outside(self) -> list[Pair]:
        return self.related(OUTSIDE)

    @property
    def differ(self) -> bool:
        """Whether a verdict, or a measure beyond its interval that is not of the clock, differs."""
        beyond = [pair for pair in self.pairs if pair.relation in (OUTSIDE, BARE)]
        return bool(self.verdicts or self.only or any(not pair.of_the_clock for pair in beyond))

    def summary(self) -> str:
        """Counts in one sentence. What one run alone has is no difference, and counted apart."""
        count = Counter(pair.relation for pair in self.pairs if not pair.of_the_clock)
        clock = sum(pair.of_the_clock for pair in self.pairs)
        verdicts = [said for said in self.verdicts if NOT_RECORDED not in said]
        artifacts = [made for made in self.artifacts if NONE not in made]
        one_only = (
            (len(self.only), "measures"),
            (len(self.verdicts) - len(verdicts), "verdicts"),
            (len(self.artifacts) - len(artifacts), "artifacts"),
        )
        return (
            f"{len(self.pairs)} measures in both: {count[SAME]} the same, {count[INSIDE]} differ "
            f"inside their intervals, {count[MEET]} with intervals that meet, {count[OUTSIDE]} "
            f"outside them, {count[BARE]} without an interval, {clock} times and rates; "
            f"{len(verdicts)} verdicts and {len(artifacts)} of "
            f"{len(artifacts) + self.equal_artifacts} artifacts differ; in one run only: "
            + (", ".join(f"{number} {what}" for number, what in one_only if number) or "nothing")
        )


def read_run(root: Path, given: str, scale: str = "tiny") -> Run:
    """A run by its folder (`runs/tiny`), by a clone that holds `runs/<scale>`, or by the name of a
    scale, whose run in `root` it is. Raises LabError if no stage has finished there.
    """
    named = root / "runs" / given
    tried = [Path(given), Path(given) / "runs" / scale, *([named] if "/" not in given else [])]
    for folder in tried:
        if records := _records(folder):
            name = layout.presentable(given, root.resolve(), of_program=True)
            return Run(name, folder.resolve(), records)
    raise LabError(
        f"{given} is not a run: no stage has finished in "
        f"{' or '.join(str(folder) for folder in tried)}; give a folder like runs/tiny, a clone "
        "(with --scale), or the name of a scale that was run here"
    )


def _records(folder: Path) -> dict[str, Mapping[str, Any]]:
    read = {info.name: read_record_of(folder / info.name) for info in STAGES}
    return {name: record for name, record in read.items() if record is not None}


def compare(a: Run, b: Run) -> Comparison:
    """Compare two runs, measure by measure."""
    in_a, in_b = _measures(a), _measures(b)
    pairs = tuple(_pair(key, in_a[key], in_b[key]) for key in in_a if key in in_b)
    only = tuple(
        (side, key[0], in_words(measure), _value(measure))
        for side, mine, other in (("A", in_a, in_b), ("B", in_b, in_a))
        for key, measure in mine.items()
        if key not in other
    )
    said_a, said_b = _verdicts(a), _verdicts(b)
    verdicts = tuple(
        (claim, said_a.get(claim, NOT_RECORDED), said_b.get(claim, NOT_RECORDED))
        for claim in sorted(said_a.keys() | said_b.keys())
        if said_a.get(claim) != said_b.get(claim)
    )
    made_a, made_b = _artifacts(a), _artifacts(b)
    names = list(dict.fromkeys([*made_a, *made_b]))
    artifacts = tuple(
        (*name, made_a.get(name, NONE), made_b.get(name, NONE))
        for name in names
        if made_a.get(name) != made_b.get(name)
    )
    equal = len(names) - len(artifacts)
    return Comparison(a, b, pairs, only, verdicts, artifacts, equal, tuple(_settings(a, b)))


def _measures(run: Run) -> dict[tuple[str, ...], Mapping[str, Any]]:
    found: dict[tuple[str, ...], Mapping[str, Any]] = {}
    seen: Counter[tuple[str, ...]] = Counter()
    for stage, record in run.records.items():
        for measure in record.get("measures", []):
            labels = json.dumps(_labels(measure), sort_keys=True, ensure_ascii=False, default=str)
            key = (stage, str(measure["name"]), labels, str(measure.get("unit") or ""))
            found[(*key, str(seen[key]))] = measure
            seen[key] += 1
    return found


def _labels(measure: Mapping[str, Any]) -> dict[str, Any]:
    """Labels that say what was measured; `headline` says where it is shown."""
    return {n: v for n, v in (measure.get("labels") or {}).items() if n != "headline"}


def _pair(key: tuple[str, ...], a: Mapping[str, Any], b: Mapping[str, Any]) -> Pair:
    return Pair(
        stage=key[0],
        name=key[1],
        labels=_labels(a),
        unit=key[3],
        a=a["value"],
        b=b["value"],
        interval_a=_interval(a),
        interval_b=_interval(b),
    )


def _interval(measure: Mapping[str, Any]) -> tuple[float, float] | None:
    bounds = measure.get("interval")
    return None if bounds is None else (float(bounds[0]), float(bounds[1]))


def in_words(measure: Mapping[str, Any]) -> str:
    """Name and labels of a measure."""
    labels = ", ".join(f"{name} {value}" for name, value in _labels(measure).items())
    return str(measure["name"]).replace("_", " ") + (f" ({labels})" if labels else "")


def _value(measure: Mapping[str, Any]) -> str:
    shown = format_number(measure["value"], _interval(measure))
    return f"{shown} {measure.get('unit') or ''}".strip()


def _verdicts(run: Run) -> dict[str, str]:
    return {
        claim["id"]: claim["verdict"]
        for record in run.records.values()
        for claim in record.get("claims", [])
    }


def _artifacts(run: Run) -> dict[tuple[str, str], str]:
    return {
        (stage, name): output["sha256"]
        for stage, record in run.records.items()
        for name, output in record["outputs"].items()
    }


def _settings(a: Run, b: Run) -> list[tuple[str, str]]:
    """What explains a difference: parts of the stages' keys, and the machines."""
    rows = []
    for stage in [info.name for info in STAGES]:
        if (stage in a.records) != (stage in b.records):
            rows.append((stage, f"finished in {'A' if stage in a.records else 'B'} only"))
        elif stage in a.records:
            one, other = a.records[stage].get("key_parts"), b.records[stage].get("key_parts")
            rows += [(stage, words) for words in differences(one or {}, other or {})]
    machines = []
    for run in (a, b):
        about = [r.get("environment") or {} for r in run.records.values()]
        fields = ("cpu", "gpu", "python", "platform", "git_commit")
        machines.append({n: sorted({str(each.get(n)) for each in about}) for n in fields})
    for name, before in machines[0].items():
        if before != (after := machines[1][name]):
            words = f"{name.replace('_', ' ')}: {', '.join(before)} -> {', '.join(after)}"
            rows.append(("machine", words))
    return rows
