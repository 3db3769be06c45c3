"""The public summary of a model's training content (EU AI Act, article 53(1)(d)): the template's
fields as data, and its grade by a public set of 242 weighted metrics.

    summary = load(root / "papers" / "summaries" / "moxin-7b.yml")
    graded = grade(summary, root)
    graded.transparency, graded.usefulness      # Grade("A+", 97.1), Grade("A", 93.0)

A summary is a YAML file: `model`, `document` (version, date, status, ...), `fields` by the
template's numbers (0.a to 3.3.a) and `answers`. A field has parts (`text`, `items`, `answer` yes or
no, `name`, ...) or `not_applicable` with the reason.

Rule, of the metrics' authors (aial.ie/research/gpai-training-transparency/methodology): a metric
is met (1), half met (0.5), not met (0) or not applicable. A grade is the sum of weight x score over
the sum of weights of the applicable metrics: A+ from 95 %, A from 90 %. Transparency sums Clarity,
Completeness, Consistency and Correctness; usefulness Accessibility and Comprehension.

Guarantees: each metric has its score's reason; a check that needs judgement is an `answer` of the
file with its reason, which can also lower an automatic score and never raise one; a metric that
nobody judged is an error, not a point; a blank field scores 0.
Out of scope: whether the Act asks this model for a summary; the wording of the metrics.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from moxin_lab.lab import summary_page
from moxin_lab.lab.artifacts import LabError, read_text, read_yaml
from moxin_lab.openness import summary_checks, summary_document, summary_records
from moxin_lab.openness.summary_document import PAGE
from moxin_lab.openness.summary_sheet import NEEDS_ANSWER, Sheet

METRICS_FILE = Path(__file__).parent / "summary_metrics.yml"
SCORES = (0, 0.5, 1)


class SummaryError(LabError):
    """A summary that cannot be read or graded; the message names file, field and remedy."""


class Metric(NamedTuple):
    """One of the 242."""

    id: str
    section: str
    field: str
    dimension: str
    weight: int
    check: str


@dataclass(frozen=True)
class Scored:
    """A metric's score (None: not applicable), how it was found, and why."""

    id: str
    section: str
    field: str
    dimension: str
    weight: int
    score: float | None
    how: str
    """`automatic`, or `answer` where the file's own words decided."""
    reason: str


class Grade(NamedTuple):
    """A letter and the percentage behind it; both say `not applicable` and None for no metric."""

    letter: str
    percent: float | None


@dataclass(frozen=True)
class Graded:
    """A whole summary's scores and grades."""

    model: str
    metrics: tuple[Scored, ...]

    @property
    def transparency(self) -> Grade:
        return pair(self)[0]

    @property
    def usefulness(self) -> Grade:
        return pair(self)[1]

    def of(
        self, *, section: str | None = None, dimensions: list[str] | tuple[str, ...] | None = None
    ) -> Grade:
        """The grade of a part: a section, some dimensions, or both."""
        chosen = [
            metric
            for metric in self.metrics
            if metric.score is not None
            and section in (None, metric.section)
            and (dimensions is None or metric.dimension in dimensions)
        ]
        total = sum(metric.weight for metric in chosen)
        if not total:
            return Grade("not applicable", None)
        reached = sum(metric.weight * (metric.score or 0) for metric in chosen)
        return Grade(letter(reached / total * 100), round(reached / total * 100, 2))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: both grades, those of the sections, and every metric."""
        return {
            "transparency": self.transparency._asdict(),
            "usefulness": self.usefulness._asdict(),
            "sections": {
                name: [grade._asdict() for grade in pair(self, name)] for name in sections()
            },
            "metrics": [asdict(metric) for metric in self.metrics],
        }


def pair(graded: Graded, section: str | None = None) -> tuple[Grade, Grade]:
    """Transparency and usefulness of a section, or of all."""
    return (
        graded.of(section=section, dimensions=_facts()["transparency"]),
        graded.of(section=section, dimensions=_facts()["usefulness"]),
    )


def metrics() -> tuple[Metric, ...]:
    """The 242, in their authors' order."""
    return tuple(Metric(*row) for row in _facts()["metrics"])


def sections() -> tuple[str, ...]:
    """The eight sections, in order."""
    return tuple(dict.fromkeys(metric.section for metric in metrics()))


def letter(percent: float) -> str:
    """The grade of a percentage."""
    return next(name for name, least in _facts()["grades"].items() if percent >= least)


@cache
def _facts() -> dict[str, Any]:
    return read_yaml(METRICS_FILE)


def load(path: Path) -> dict[str, Any]:
    """Read a summary's file. Raises SummaryError for unknown fields, metrics or scores, and for a
    value that is no text, nor a list or mapping of texts.
    """
    content = read_yaml(path)
    parts = {"model": str, "document": dict, "fields": dict, "answers": dict}
    wrong = [
        f"`{name}` is not {kind.__name__}"
        for name, kind in parts.items()
        if not isinstance(content, dict) or not isinstance(content.get(name), kind)
    ]
    if wrong:
        raise SummaryError(f"{path}: {', '.join(wrong)}")
    known = {metric.field for metric in metrics()}
    wrong += [f"field {name!r} is not the template's" for name in content["fields"].keys() - known]
    wrong += [
        f"field {name!r} is no mapping"
        for name, field in content["fields"].items()
        if not isinstance(field, dict)
    ]
    wrong += _malformed_values(content)
    ids = {metric.id for metric in metrics()}
    for name, given in content["answers"].items():
        if name not in ids:
            wrong.append(f"answer {name!r} is to no metric")
        elif not _is_answer(given):
            wrong.append(f"answer {name!r} is not [0, 0.5 or 1, reason]")
    if wrong:
        raise SummaryError(f"{path}:\n" + "\n".join(f"  - {problem}" for problem in wrong))
    return content


def complete(content: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The summary with the fields that follow from records: those of the release in the folder
    `about`, laid under what the file says itself. Without `about`, unchanged.
    """
    if not content.get("about"):
        return dict(content)
    computed = summary_records.fields(root, root / content["about"])
    return {
        **content,
        "fields": {
            name: {**computed.get(name, {}), **content["fields"].get(name, {})}
            for name in dict.fromkeys([*content["fields"], *computed])
        },
    }


def grade(summary: Mapping[str, Any], root: Path, html: str) -> Graded:
    """Score all metrics of a completed summary. html: its page, as it is published.

    Raises SummaryError for a metric that needs an answer and has none.
    """
    release = root / summary["about"] if summary.get("about") else None
    recomputed = summary_records.fields(root, release) if release else {}
    order = tuple(dict.fromkeys(metric.field for metric in metrics()))
    sheet = Sheet(summary, recomputed, release, html, order)
    scored, unanswered = [], []
    for metric in metrics():
        found = (
            summary_document.apply(metric.check, sheet)
            if metric.section == "Document"
            else summary_checks.apply(metric.check, metric.field, sheet)
        )
        given = summary["answers"].get(metric.id)
        if found is NEEDS_ANSWER and given is None:
            unanswered.append(f"{metric.id} (field {metric.field}, {metric.dimension.lower()})")
            continue
        if given is not None and (
            found is NEEDS_ANSWER or (found.score is not None and given[0] < found.score)
        ):
            scored.append(Scored(*metric[:5], given[0], "answer", given[1]))
        else:
            scored.append(Scored(*metric[:5], found.score, "automatic", found.reason))
    if unanswered:
        raise SummaryError(
            f"the summary of {summary['model']} has no answer to: {', '.join(unanswered)}"
        )
    return Graded(summary["model"], tuple(scored))


def grade_file(path: Path, root: Path) -> tuple[dict[str, Any], Graded]:
    """A summary's file, completed, and its grade: by the page in the release that it is about, else
    by the page that the site would show.
    """
    whole = complete(load(path), root)
    if whole.get("about"):
        html = read_text(root / whole["about"] / PAGE)
    else:
        html = summary_page.page(whole, links=lambda address: address)
    return whole, grade(whole, root, html)


def grade_all(root: Path) -> dict[str, Graded]:
    """The grades of all summaries of `papers/summaries/`, by model."""
    paths = sorted((root / "papers" / "summaries").glob("*.yml"), reverse=True)
    return {graded.model: graded for _, graded in (grade_file(path, root) for path in paths)}


def _malformed_values(content: Mapping[str, Any]) -> Iterator[str]:
    about = content.get("about", "")
    if not isinstance(about, str) or PurePath(about).is_absolute() or ".." in PurePath(about).parts:
        yield f"`about` is {about!r}, not a folder of the repository"
    document = content["document"]
    if not isinstance(document.get("lead"), str):
        yield "`document` has no text `lead`"
    versions = document.get("versions") or []
    if not isinstance(versions, list) or not all(
        isinstance(version, Mapping) and "version" in version for version in versions
    ):
        yield "`versions` is no list of mappings with a `version`"
    parts = [(f"`{name}`", value) for name, value in document.items()]
    for number, field in content["fields"].items():
        if isinstance(field, Mapping):
            parts += [(f"field {number!r}: `{name}`", value) for name, value in field.items()]
            if field.get("answer") not in (None, "yes", "no"):
                given = field["answer"]
                yield f"field {number!r}: `answer` is {given!r}, not 'yes' or 'no' in quotes"
            if not isinstance(field.get("items") or [], list):
                yield f"field {number!r}: `items` is no list"
    for where, value in parts:
        if value is not None and not _is_text_or_list(value) and "`answer`" not in where:
            yield f"{where} is {value!r}, not text (in quotes, if it looks like a number) or a list"


def _is_text_or_list(value: Any) -> bool:
    """Text, or a list or mapping of such; what is called a link or a name is text."""
    if isinstance(value, Mapping):
        named = all(isinstance(value.get(key, ""), str) for key in ("link", "name"))
        return named and all(map(_is_text_or_list, value.values()))
    if isinstance(value, list):
        return all(map(_is_text_or_list, value))
    return isinstance(value, str)


def _is_answer(given: Any) -> bool:
    return (
        isinstance(given, list)
        and len(given) == 2
        and given[0] in SCORES
        and not isinstance(given[0], bool)
        and isinstance(given[1], str)
        and bool(given[1].strip())
    )
