"""Files of documents to the frames that a pipeline takes: parquet and JSON Lines, also compressed,
on this machine or at an address that Daft reads (`hf://datasets/...`, `s3://...`).

Guarantees: every row of a file becomes a row of the frame; one without a text, or a line that is
no JSON object, is in it as removed by the step "reading", with the reason; a row without an id of
its own is called by its file and its number in it; a file that lacks a column is refused with those
that it has.
Out of scope: what comes after (`engine.py`).
"""

import posixpath
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import daft
import pyarrow as pa
from daft import DataType, col, lit
from daft.functions import list_join, monotonically_increasing_id, when
from resiliparse.extract.html2text import extract_plain_text

from moxin_lab import untrusted
from moxin_lab.data import corpus, corpus_text, extract
from moxin_lab.data.encodings import check_replaced, decode
from moxin_lab.data.extract import HUB_SETS, CurationError
from moxin_lab.data.html_scan import scan
from moxin_lab.data.html_text import main_content
from moxin_lab.data.steps import COLUMNS, LABELS, STATE
from moxin_lab.data.unreadable import Unreadable

READING = "reading"
"""The step that removes rows without a text."""
SUFFIXES = (".parquet", ".jsonl", ".jsonl.zst", ".jsonl.gz", ".json", ".json.zst", ".json.gz")
_LINE_TYPE = DataType.struct(
    {name: DataType.string() for name in COLUMNS[:-1]} | {"sizes": DataType.list(DataType.int64())}
)
_ROW_TYPE = DataType.struct(
    {name: DataType.string() for name in ("id", *STATE[:-1])}
    | {"sizes": DataType.list(DataType.int64())}
)


class Layout(NamedTuple):
    """How the rows of a set are read.

    columns: what `text` needs. text: from a row, as a dict of these columns, to the document's
    text; raises Unreadable. labels: the column of a label (`steps.LABELS`), where there is one.
    language: of all documents, where no column says.
    """

    columns: tuple[str, ...]
    text: Callable[[dict[str, Any]], str]
    labels: Mapping[str, str]
    language: str = ""


class File(NamedTuple):
    """name: what rows are called by; path: where Daft reads it; size: bytes, -1 if unknown."""

    name: str
    path: str
    size: int


class Readable(Protocol):
    """What a pipeline reads: named files, each of which gives a frame of `steps.COLUMNS`."""

    @property
    def name(self) -> str: ...
    @property
    def files(self) -> tuple[File, ...]: ...
    def read(self, file: File) -> daft.DataFrame: ...


class Input(NamedTuple):
    """A set of files of one layout; `name` is the `source` of its documents."""

    name: str
    layout: Layout
    files: tuple[File, ...]

    def read(self, file: File) -> daft.DataFrame:
        """The rows of a file in the columns `steps.COLUMNS`, lazily. Raises CurationError."""
        return frame(self.name, self.layout, file)


def text_column(name: str) -> Callable[[dict[str, Any]], str]:
    """Takes the text from column `name`."""

    def text(row: dict[str, Any]) -> str:
        value = row[name]
        if not isinstance(value, str) or not value.strip():
            raise Unreadable("no text", f"column {name!r} is null or empty")
        return value.removeprefix("\ufeff")

    return text


def plain(
    text: str, language: str, *, language_column: str | None = None, **labels: str | None
) -> Layout:
    """The layout of a set that has its text in one column; labels: the columns of other labels."""
    named = {name: column for name, column in labels.items() if column}
    if language_column:
        named["language"] = language_column
    return Layout((text,), text_column(text), named, language)


# ---- sets


def files_below(place: str, pattern: str = "") -> tuple[File, ...]:
    """The files at `place` that match `pattern`, sorted by path.

    place: a file, a folder, or an address. pattern: a glob, `**` for folders of any depth; by
    default all files of a folder whose kind is known. Raises CurationError if there is none.
    """
    if "://" in place:
        found = _files_at(posixpath.join(place, pattern) if pattern else place)
    elif Path(place).is_file():
        found = [File(Path(place).name, place, Path(place).stat().st_size)]
    else:
        folder = Path(place)
        found = [
            File(path.relative_to(folder).as_posix(), str(path), path.stat().st_size)
            for path in folder.glob(pattern or "**/*")
            if path.name.endswith(SUFFIXES) and path.is_file()
        ]
    if not found:
        raise CurationError(f"no {', '.join(SUFFIXES)} file at {place} {pattern}".rstrip())
    return tuple(sorted(found))


def _files_at(pattern: str) -> list[File]:
    start = pattern.split("*")[0].rpartition("/")[0] + "/"
    rows = daft.from_glob_path(pattern).select("path", "size").to_pylist()
    return [File(row["path"].removeprefix(start), row["path"], row["size"] or -1) for row in rows]


def of_corpus(scale: str, kind: str = "text") -> Input:
    """The corpus of a scale. kind: "text", as `corpus build` extracted it; "html", its raw pages,
    of which resiliparse chooses the main content, as DCLM's did. Raises CorpusError if it was not
    built.
    """
    labels = {"id": "id", "page": "page", "project": "project", "language": "language"}
    labels |= {"code_language": "code_language", "licence": "licence"}
    if kind == "text":
        layout = Layout(("text",), text_column("text"), labels)
    else:
        layout = Layout(("content", "format"), _web_page, labels)
    paths = corpus.sources(scale, "text" if kind == "text" else "raw")
    files = tuple(File(path.name, str(path), path.stat().st_size) for path in paths)
    return Input(corpus_text.SOURCE, layout, files)


def _web_page(row: dict[str, Any]) -> str:
    if row["format"] != "html":
        raise Unreadable("no web page", row["format"])
    html = decode(row["content"]).text
    markup, deep = scan(html)
    if deep:
        main_content(html)  # refuses what is nested too deeply
    text: str = extract_plain_text(markup, main_content=True)
    if not text.strip():
        raise Unreadable("no main content", "resiliparse found none")
    return text


def of_hub(name: str, place: str, pattern: str) -> Input:
    """A hub set known to `extract.HUB_SETS`; place: a local folder, or `hf://datasets/...`."""
    hub = HUB_SETS[name]

    def text(row: dict[str, Any]) -> str:
        return extract.hub_text(hub, row)

    return Input(
        name, Layout(hub.columns, text, hub.labels, hub.language), files_below(place, pattern)
    )


# ---- one file


def frame(source: str, layout: Layout, file: File) -> daft.DataFrame:
    """The rows of a file in the columns `steps.COLUMNS`, lazily. Raises CurationError for a file
    that lacks a column, naming those that it has.
    """
    stem = file.name
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    read = _of_parquet if file.path.endswith(".parquet") else _of_lines
    labelled = read(source, layout, file.path, stem)
    # A row without a page is a page of its own.
    page = when(col("page") == "", col("id")).otherwise(col("page"))
    return labelled.with_column("page", page).select(*COLUMNS)


def _needed(layout: Layout) -> list[str]:
    return list(dict.fromkeys([*layout.columns, *layout.labels.values()]))


def _check_columns(source: str, layout: Layout, present: Sequence[str]) -> None:
    absent = [name for name in _needed(layout) if name not in present]
    if absent:
        raise CurationError(f"{source} has no column {absent[0]!r}, only {', '.join(present)}")


# ---- parquet


def _of_parquet(source: str, layout: Layout, path: str, stem: str) -> daft.DataFrame:
    raw = daft.read_parquet(path)
    _check_columns(source, layout, raw.column_names)
    raw = raw.select(*_needed(layout))
    named = layout.labels
    rows = raw.with_column("row", monotonically_increasing_id())

    @daft.func.batch(return_dtype=_ROW_TYPE, unnest=True)
    def read(row: daft.Series, key: daft.Series, *values: daft.Series) -> pa.Array:
        columns = [value.to_pylist() for value in values]
        done = []
        for number, own, *cells in zip(row.to_pylist(), key.to_pylist(), *columns, strict=True):
            identifier = f"{source}/{stem}/{number:09d}" if own is None else f"{source}/{own}"
            done.append(
                (identifier, *_state(layout, dict(zip(layout.columns, cells, strict=True))))
            )
        lists = [list(column) for column in zip(*done, strict=True)] or [[] for _ in range(6)]
        types = [*[pa.large_string()] * 5, pa.large_list(pa.int64())]
        arrays = [pa.array(*pair) for pair in zip(lists, types, strict=True)]
        return pa.StructArray.from_arrays(arrays, names=["id", *STATE])

    key = _as_text(raw, named["id"]) if "id" in named else _null()
    others = {}
    for name in LABELS[1:]:
        given = _as_text(raw, named[name]) if name in named else _null()
        default = {"source": lit(source), "language": lit(layout.language)}.get(name, lit(""))
        others[f"label {name}"] = default if name == "source" else given.fill_null(default)
    labelled = rows.select(
        read(col("row"), key, *map(col, layout.columns)),
        *(value.alias(name) for name, value in others.items()),
    )
    renamed = {name: col(f"label {name}") for name in LABELS[1:]}
    return labelled.with_columns(renamed).select(*COLUMNS)


def _as_text(frame: daft.DataFrame, column: str) -> daft.Expression:
    """A label as text; a list of labels, such as licences, with commas."""
    value = col(column)
    if frame.schema()[column].dtype.is_list():
        value = list_join(value, ", ")
    return value.cast(DataType.string())


def _null() -> daft.Expression:
    return lit(None).cast(DataType.string())


def _state(layout: Layout, row: dict[str, Any]) -> tuple[Any, ...]:
    """text, step, reason, detail, sizes of a row."""
    try:
        text = layout.text(row)
        text.encode()
        check_replaced(text)
    except Unreadable as error:
        return ("", READING, error.args[0], error.args[1], [0])
    except UnicodeEncodeError as error:
        return ("", READING, "invalid Unicode", f"a lone surrogate at {error.start}", [0])
    return (text, None, None, None, [len(text.encode())])


# ---- JSON Lines

MAX_LINE_BYTES = 2**28
"""Longest line that is parsed; with empty lists it makes some 7 GB of objects."""
_LOOKED_AT = 20
"""Rows whose keys say which columns a file has."""


def _of_lines(source: str, layout: Layout, path: str, stem: str) -> daft.DataFrame:
    """Daft reads the lines; what is in them is parsed here, since Daft's own parser ends the
    process at 100,000 open brackets, and one bad line would end the file.
    """
    lines = daft.read_text(path)
    first = [row["text"] for row in lines.limit(_LOOKED_AT).to_pylist()]
    if path.endswith((".json", ".json.gz", ".json.zst")) and _begins(first[:1], "["):
        raise CurationError(f"{source}: {path} is one JSON list; write an object a line instead")
    found = [row for line in first if isinstance(row := _parsed(line), dict)]
    if found:
        _check_columns(source, layout, sorted({key for row in found for key in row}))

    @daft.func.batch(return_dtype=_LINE_TYPE, unnest=True)
    def read(row: daft.Series, line: daft.Series) -> pa.Array:
        pairs = zip(row.to_pylist(), line.to_pylist(), strict=True)
        done = [_of_line(source, layout, f"{stem}/{number:09d}", line) for number, line in pairs]
        columns = [list(column) for column in zip(*done, strict=True)] or [[] for _ in COLUMNS]
        types = [*[pa.large_string()] * (len(COLUMNS) - 1), pa.large_list(pa.int64())]
        arrays = [pa.array(*pair) for pair in zip(columns, types, strict=True)]
        return pa.StructArray.from_arrays(arrays, names=COLUMNS)

    return lines.with_column("row", monotonically_increasing_id()).select(
        read(col("row"), col("text"))
    )


def _begins(lines: Sequence[str], sign: str) -> bool:
    return any(line.lstrip("\ufeff \t").startswith(sign) for line in lines)


def _parsed(line: str) -> Any:
    """The value of a line, or why there is none."""
    try:
        return untrusted.load_json(line.removeprefix("\ufeff"), max_bytes=MAX_LINE_BYTES)
    except untrusted.UntrustedError as error:
        return str(error)


def _of_line(source: str, layout: Layout, called: str, line: str) -> tuple[Any, ...]:
    """A line as a row of `steps.COLUMNS`."""
    row = _parsed(line)
    labels = dict.fromkeys(LABELS, "") | {"source": source, "language": layout.language}
    labels["id"] = f"{source}/{called}"
    if not isinstance(row, dict):
        told = row if isinstance(row, str) else f"{type(row).__name__} instead of an object"
        return (*labels.values(), "", READING, "invalid JSON", told, [0])
    for name, column in layout.labels.items():
        value = row.get(column)
        if value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            text = text.encode(errors="replace").decode()
            labels[name] = f"{source}/{text}" if name == "id" else text
    cells = {name: row.get(name) for name in layout.columns}
    return (*labels.values(), *_state(layout, cells))
