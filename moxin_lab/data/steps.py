"""Steps of a curation pipeline: functions from a Daft data frame to a data frame.

    documents -> Local -> Local -> Marks -> Across -> documents, those removed among them

No step takes a row out of the frame. A removed document stays in it, with the step that removed it,
the reason and the detail, and later steps pass it by; so each step keeps its reasons, and nothing
can be lost on the way. The columns are `COLUMNS`; `Marks` adds two of its own.

    Local    looks at one document: changes its text, or removes it
    Marks    adds a digest and a MinHash signature, which `Across` steps read in place of the text
    Naming   names the programming language of a document
    Across   looks at all documents at once and says which to remove
    Learned  learns something from all documents, then is a Local
    Split    says which pages are held out, and which training documents go for their sake

Guarantees: what a `Local` does to a document depends on that document alone; what `Across` and
`Learned` do depends on the set of documents, not on their order, partitions or engine; code is
neither normalised nor identified.
Out of scope: which steps make a recipe (`pipelines.py`); files, resuming (`engine.py`).
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

# Before Daft's import: otherwise it reports its use over the network.
os.environ["DAFT_ANALYTICS_ENABLED"] = "0"
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")

import daft
import pyarrow as pa
from daft import DataType, col
from daft.functions import when

from moxin_lab.data.dedup import minima
from moxin_lab.data.extract import CurationError
from moxin_lab.data.findings import Finding


class Labels(NamedTuple):
    """What is known of a document beside its text; "" where nothing is.

    page: equal for translations of one page. project: the site or package that the page is from.
    """

    id: str
    source: str
    language: str
    page: str
    project: str
    code_language: str
    licence: str


LABELS = Labels._fields
STATE = ("text", "step", "reason", "detail", "sizes")
COLUMNS = (*LABELS, *STATE)
"""`step`, `reason`, `detail` are null until the document is removed. `sizes`: UTF-8 bytes of the
text as it came, then after each `Local`, up to the one that removed it.
"""
_STATE_TYPE = DataType.struct(
    {name: DataType.string() for name in STATE[:-1]} | {"sizes": DataType.list(DataType.int64())}
)
CODE = "code"

Work = Callable[[str, Labels], str | Finding]
"""The new text of a document, or why it is removed."""


@dataclass(frozen=True)
class Local:
    """A step on one document at a time."""

    name: str
    work: Work

    def __call__(self, frame: daft.DataFrame) -> daft.DataFrame:
        return walk(frame, [self])


@dataclass(frozen=True)
class Marks:
    """Adds `digest` (SHA-256 of the text, hexadecimal) and `signature` (uint32 [permutations]),
    both null for a removed document, the signature also for one without features.
    """

    permutations: int
    ngram_size: int
    name: str = "fingerprints"

    def __call__(self, frame: daft.DataFrame) -> daft.DataFrame:
        present = frame.with_column("present", when(col("step").is_null(), col("text")))
        signature = minima(self.permutations, self.ngram_size)
        marked = present.with_columns(
            {"digest": _digest(col("present")), "signature": signature(col("present"))}
        )
        return marked.select(*frame.column_names, "digest", "signature")


@dataclass(frozen=True)
class Across:
    """A step on all documents: `removals` gets the frame of those that are still there, and returns
    the columns id, reason, detail of those to remove.
    """

    name: str
    removals: Callable[[daft.DataFrame], pa.Table]

    def __call__(self, frame: daft.DataFrame) -> daft.DataFrame:
        return mark(frame, decided(self.name, self.removals(still_there(frame))))


@dataclass(frozen=True)
class Learned:
    """A step on one document at a time, by what `learn` returns for all that are still there."""

    name: str
    learn: Callable[[daft.DataFrame], Any]
    work: Callable[[Any], Work]

    def local(self, learnt: Any) -> Local:
        """The step by what was learnt."""
        return Local(self.name, self.work(learnt))

    def __call__(self, frame: daft.DataFrame) -> daft.DataFrame:
        return self.local(self.learn(still_there(frame)))(frame)


@dataclass(frozen=True)
class Naming:
    """A step that fills in `code_language` where it is unknown."""

    name: str
    language_of: Callable[[str, Labels], str]

    def __call__(self, frame: daft.DataFrame) -> daft.DataFrame:
        @daft.func.batch(return_dtype=DataType.string())
        def named(text: daft.Series, step: daft.Series, *labels: daft.Series) -> list[str]:
            columns = (column.to_pylist() for column in (text, step, *labels))
            rows = (
                (text, step, Labels(*label)) for text, step, *label in zip(*columns, strict=True)
            )
            return [
                label.code_language if step is not None else self.language_of(text, label)
                for text, step, label in rows
            ]

        known = col("code_language")
        found = named(col("text"), col("step"), *map(col, LABELS))
        return frame.with_column("code_language", when(known == "", found).otherwise(known))


class Held(NamedTuple):
    """What is held out: names of pages, and ids of those of their documents that training text
    repeats, which are removed.
    """

    pages: frozenset[str]
    repeated: frozenset[str]


@dataclass(frozen=True)
class Split:
    """The step that divides the documents: `choose` says which pages are held out, `removals` which
    documents to remove then (columns id, reason, detail).

    share: of the bytes, about. As a function of a frame it marks what is removed.
    """

    name: str
    share: float
    seed: int
    choose: Callable[[daft.DataFrame], Held]
    removals: Callable[[daft.DataFrame, Held], pa.Table]

    def leaving(self, held: Held) -> Across:
        """The step that removes what may not stay beside these held-out pages."""
        return Across(self.name, lambda frame: self.removals(frame, held))

    def __call__(self, frame: daft.DataFrame) -> daft.DataFrame:
        return self.leaving(self.choose(still_there(frame)))(frame)


Step = Local | Marks | Naming | Across | Learned | Split


# ---- single documents


def walk(frame: daft.DataFrame, steps: Sequence[Local]) -> daft.DataFrame:
    """The frame after these steps, in one pass over the texts."""
    steps = list(steps)

    @daft.func.batch(return_dtype=_STATE_TYPE, unnest=True)
    def walked(
        text: daft.Series,
        step: daft.Series,
        reason: daft.Series,
        detail: daft.Series,
        sizes: daft.Series,
        *labels: daft.Series,
    ) -> pa.Array:
        state = (text, step, reason, detail, sizes)
        rows = zip(*(column.to_pylist() for column in state), strict=True)
        known = zip(*(column.to_pylist() for column in labels), strict=True)
        done = [
            _walk_one(row, Labels(*label), steps) for row, label in zip(rows, known, strict=True)
        ]
        columns = [list(column) for column in zip(*done, strict=True)] or [[] for _ in STATE]
        types = [*[pa.large_string()] * 4, pa.large_list(pa.int64())]
        arrays = [pa.array(*pair) for pair in zip(columns, types, strict=True)]
        return pa.StructArray.from_arrays(arrays, names=STATE)

    rest = [name for name in frame.column_names if name not in COLUMNS]
    return frame.select(*LABELS, *rest, walked(*map(col, STATE), *map(col, LABELS))).select(
        *COLUMNS, *rest
    )


def _walk_one(row: tuple[Any, ...], labels: Labels, steps: Sequence[Local]) -> tuple[Any, ...]:
    text, step, reason, detail, sizes = row
    if step is not None:
        return row
    sizes = list(sizes)
    for each in steps:
        result = each.work(text, labels)
        if isinstance(result, Finding):
            return (text, each.name, result.reason, result.detail, sizes)
        if result is not text:
            text = result
            sizes.append(len(text.encode()))
        else:
            sizes.append(sizes[-1])
    return (text, step, reason, detail, sizes)


def rule(name: str, check: Callable[[str, Labels], Finding | None]) -> Local:
    """A step that removes the documents in which `check` finds something."""
    return Local(name, lambda text, labels: check(text, labels) or text)


def prose_rule(name: str, check: Callable[[str, Labels], Finding | None]) -> Local:
    """As `rule`; code is not looked at."""
    return rule(name, lambda text, labels: None if labels.language == CODE else check(text, labels))


@daft.func.batch(return_dtype=DataType.string())
def _digest(text: daft.Series) -> list[str | None]:
    return [
        None
        if value is None
        else hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        for value in text.to_pylist()
    ]


# ---- all documents


def check_unique(ids: Sequence[str]) -> None:
    """Raises CurationError for two documents of one id. ids: sorted."""
    for one, other in pairwise(ids):
        if one == other:
            raise CurationError(f"two documents have the id {one!r}: an id must be unique")


REMOVALS = pa.schema([(name, pa.string()) for name in ("id", "step", "reason", "detail")])


def still_there(frame: daft.DataFrame) -> daft.DataFrame:
    """The documents that no step has removed."""
    return frame.where(col("step").is_null())


def decided(name: str, removals: pa.Table) -> pa.Table:
    """The rows that step `name` removes, in the columns `REMOVALS`, sorted by id."""
    columns = [removals[column].cast(pa.string()) for column in ("id", "reason", "detail")]
    columns.insert(1, pa.array([name] * removals.num_rows, pa.string()))
    return pa.table(columns, schema=REMOVALS).sort_by("id")


def mark(frame: daft.DataFrame, removals: pa.Table) -> daft.DataFrame:
    """The frame with these documents (columns `REMOVALS`) marked as removed."""
    if not removals.num_rows:
        return frame
    names = ("step", "reason", "detail")
    renamed = removals.rename_columns(["id", *(f"new_{name}" for name in names)])
    joined = frame.join(daft.from_arrow(renamed), on="id", how="left")
    marked = joined.with_columns({name: col(name).fill_null(col(f"new_{name}")) for name in names})
    return marked.select(*frame.column_names)
