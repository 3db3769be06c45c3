"""Croissant 1.1 of a data card, with its Responsible AI fields: written, validated and loaded by
MLCommons' own library, offline.

    write(folder)                       # data_cards/<name>/croissant.json
    faults(folder / "croissant.json")   # what is wrong with anyone's file; empty: nothing

`faults` is stricter than the library: what it only recommends is required, and so are a creator, a
content hash of every file, and the fields of `RAI`. Hashes are checked by loading: one record of
each set is read, for which the library hashes the files that it comes from.

Guarantees: the same card gives the same bytes; nothing is fetched, for an address instead of a file
is refused before the library sees it.
Out of scope: the README (`card_blocks.py`, `card_numbers.py`).
"""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moxin_lab.data.card_blocks import bibtex
from moxin_lab.data.card_facts import CardFile, bullets, facts
from moxin_lab.data.card_files import CardError
from moxin_lab.lab.artifacts import LabError, read_json, sha256_file, write_atomically

FILE_NAME = "croissant.json"
PAGE = "README.md"
"""The card's own page, which Croissant's mandatory `url` names, relative to the file: it holds
wherever the card is published.
"""
CONFORMS_TO = (
    "http://mlcommons.org/croissant/1.1",
    "http://mlcommons.org/croissant/RAI/1.0",
)
PARQUET, JSON = "application/x-parquet", "application/json"
IMAGES = ("google", "twitter", "png")
"""Names of binary columns that hold PNG images."""
REQUIRED = {
    "name": "name",
    "description": "description",
    "license": "licence",
    "url": "address",
    "creator": "creator",
    "datePublished": "date of publication",
    "version": "version",
    "citeAs": "citation",
    "distribution": "file",
    "recordSet": "record set",
}
RAI = {
    "rai:dataCollection": "Data Collection and Processing",
    "rai:dataUseCases": "Direct Use",
    "rai:dataLimitations": "Out-of-Scope Use",
    "rai:dataBiases": "Bias, Risks, and Limitations",
    "rai:personalSensitiveInformation": "Personal and Sensitive Information",
    "rai:dataAnnotationProtocol": "Annotations",
    "rai:dataReleaseMaintenancePlan": "",
}
"""Required field -> the section of the README that it is written from."""
MAINTENANCE = (
    "Rows change only together with the version and the identifier in citeAs; the repository's "
    "history keeps every earlier one. Questions and corrections go to its issue tracker."
)


def write(folder: Path) -> Path:
    """Writes `folder`/croissant.json; returns its path. Raises `CardError`."""
    path = folder / FILE_NAME
    write_atomically(path, render(folder))
    return path


def render(folder: Path) -> str:
    """The Croissant file of a card as text. Raises `CardError` for a card that lacks a section or a
    field that the file needs.
    """
    import mlcroissant as mlc

    about = facts(folder)
    if lacking := [s for s in RAI.values() if s and not about.sections.get(s)]:
        raise CardError(f"{folder / 'README.md'} has no section {', '.join(map(repr, lacking))}")
    context = mlc.Context(conforms_to=list(CONFORMS_TO))
    context.rdf = mlc.Rdf(context=_standard_terms(context))
    text = about.sections
    with _quiet():
        metadata = mlc.Metadata(
            ctx=context,
            conforms_to=list(CONFORMS_TO),
            name=about.name,
            description=f"{about.title}. {about.summary}",
            creators=[mlc.Organization(ctx=context, name=name) for name in about.creators],
            publisher=[mlc.Organization(ctx=context, name=about.creators[0])],
            date_published=about.published,
            version=about.version,
            url=PAGE,
            license=[_licence_address(name) for name in about.licences]
            or ["https://spdx.org/rdf/terms/#noassertion"],
            cite_as=bibtex(about),
            keywords=list(about.keywords),
            in_language=list(about.languages),
            distribution=[_file_object(mlc, context, file) for file in about.files],
            record_sets=[_record_set(mlc, context, folder, file) for file in about.files],
            data_collection=text["Data Collection and Processing"],
            data_use_cases=[text["Direct Use"]],
            data_limitations=[text["Out-of-Scope Use"]],
            data_biases=bullets(text["Bias, Risks, and Limitations"]),
            personal_sensitive_information=[text["Personal and Sensitive Information"]],
            data_annotation_protocol=[text["Annotations"]],
            data_release_maintenance_plan=MAINTENANCE,
        )
        value = {**metadata.to_json(), "identifier": about.identifier}
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def faults(path: Path, *, load: bool = True) -> list[str]:
    """What is wrong with a Croissant file, one line per fault.

    load: also read a record of each set, which checks the hash of the files behind it.
    """
    try:
        value = read_json(path)
    except LabError as error:
        return [str(error)]
    if not isinstance(value, dict):
        return [f"{path} is no JSON object"]
    found = [f"{path}: {fault}" for fault in (*_lacking(value), *_file_faults(value, path.parent))]
    if found:
        return found
    return [f"{path}: {fault}" for fault in _library_faults(path, load)]


def _lacking(value: dict[str, Any]) -> Iterator[str]:
    for key, what in REQUIRED.items():
        if not value.get(key):
            yield f"no {what} ({key!r})"
    for key in RAI:
        if not value.get(key):
            yield f"no Responsible AI field {key!r}"
    stated = value.get("conformsTo")
    stated = [stated] if isinstance(stated, str) else stated or []
    for address in CONFORMS_TO:
        if address not in stated:
            yield f"it does not say that it conforms to {address}"
    for creator in _objects(value.get("creator")):
        if not creator.get("name"):
            yield "a creator has no name"
    date = str(value.get("datePublished") or "")
    if date and not _is_iso_date(date):
        yield f"datePublished is {date!r}, not an ISO date"


def _is_iso_date(text: str) -> bool:
    if not re.match(r"\d{4}-\d{2}-\d{2}(T|$)", text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _file_faults(value: dict[str, Any], folder: Path) -> Iterator[str]:
    """Every distributed file has a hash, lies in the folder, and has that hash."""
    named = set()
    for item in _objects(value.get("distribution")):
        address, digest = str(item.get("contentUrl") or ""), str(item.get("sha256") or "")
        inside = PurePosixPath(address)
        if item.get("@type") not in ("cr:FileObject", "FileObject"):
            continue  # a FileSet is a pattern over files that are listed beside it
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            yield f"file {address or item.get('@id')!r} has no SHA-256"
        elif not address or ":" in address or inside.is_absolute() or ".." in inside.parts:
            yield f"file {address!r} is not beside the card, so it cannot be checked offline"
        elif not (path := folder / address).is_file():
            yield f"file {address!r} is missing"
        elif (actual := sha256_file(path)) != digest:
            yield f"file {address!r} has SHA-256 {actual[:12]}, recorded {digest[:12]}"
        elif (size := item.get("contentSize")) and not _is_size(str(size), path.stat().st_size):
            yield f"file {address!r} has {path.stat().st_size} bytes, recorded {str(size)!r}"
        named.add(address)
    for path in sorted((folder / "data").glob("*.parquet")):
        if f"data/{path.name}" not in named:
            yield f"data/{path.name} is not among its files"


def _is_size(stated: str, size: int) -> bool:
    """Whether a text such as `12345 B` or `12 KB` states a file's bytes, to the digits given."""
    found = re.fullmatch(r"([\d.,]+)\s*(B|bytes|[kKMGT]i?B)?", stated.strip())
    try:
        number = float(found[1].replace(",", "")) if found else -1.0
    except ValueError:
        return False
    if found is None or number < 0:
        return False
    unit = (found[2] or "B").removesuffix("ytes").upper()
    power = " KMGT".index(unit[0]) if unit not in ("B",) else 0
    digits = len(found[1].partition(".")[2])
    return any(abs(size / base**power - number) <= 0.5 / 10**digits for base in (1000, 1024))


def _library_faults(path: Path, load: bool) -> Iterator[str]:
    import mlcroissant as mlc

    try:
        with _quiet():
            data = mlc.Dataset(jsonld=path)
            issues = data.metadata.ctx.issues
            yield from (*sorted(issues.errors), *sorted(issues.warnings))
            for record_set in data.metadata.record_sets if load else ():
                if next(iter(data.records(record_set.uuid)), None) is None:
                    yield f"record set {record_set.uuid!r} has no records"
    except Exception as error:  # noqa: BLE001 - the library raises many kinds for a bad file
        yield f"mlcroissant cannot read it: {type(error).__name__}: {error}"


# ---- parts of the file


def _file_object(mlc: Any, context: Any, file: CardFile) -> Any:
    return mlc.FileObject(
        ctx=context,
        id=file.path,
        name=file.path,
        description=f"{file.rows:,} rows",
        content_url=file.path,
        content_size=f"{file.size} B",
        encoding_formats=[JSON if file.path.endswith(".json") else PARQUET],
        sha256=file.sha256,
    )


def _record_set(mlc: Any, context: Any, folder: Path, file: CardFile) -> Any:
    name = Path(file.path).stem
    if file.path.endswith(".json"):
        fields = [
            mlc.Field(
                ctx=context,
                id=f"packages/{key}",
                name=key,
                data_types=[mlc.DataType.TEXT],
                source=mlc.Source(
                    file_object=file.path, extract=mlc.Extract(json_path=f"$.packages[*].{key}")
                ),
            )
            for key in ("package", "version", "sha256", "licence")
        ]
        return mlc.RecordSet(
            ctx=context,
            id="packages",
            name="packages",
            description="The archives from which a command builds the data.",
            fields=fields,
        )
    schema = pq.read_schema(folder / file.path)
    return mlc.RecordSet(
        ctx=context,
        id=name,
        name=name,
        description=f"The rows of {file.path}.",
        fields=[_field(mlc, context, name, column, file.path) for column in schema],
    )


def _field(
    mlc: Any, context: Any, prefix: str, column: pa.Field, file: str, above: tuple[str, ...] = ()
) -> Any:
    """A column; of a list the elements' type, of a struct one sub-field per member."""
    kind, listed = column.type, {}
    if pa.types.is_list(kind):
        kind, listed = kind.value_type, {"is_array": True, "array_shape": "-1"}
    name = f"{prefix}/{column.name}"
    if pa.types.is_struct(kind):
        inner = (*above, column.name)
        parts = [_field(mlc, context, name, member, file, inner) for member in kind]
        return mlc.Field(ctx=context, id=name, name=column.name, sub_fields=parts, **listed)
    types = {
        pa.string(): mlc.DataType.TEXT,
        pa.int64(): mlc.DataType.INTEGER,
        pa.float64(): mlc.DataType.FLOAT,
        pa.binary(): mlc.DataType.IMAGE_OBJECT if column.name in IMAGES else mlc.DataType.TEXT,
    }
    if kind not in types:
        raise CardError(f"{file}: column {column.name!r} of type {kind} has no type in Croissant")
    path = ".".join((*above[1:], column.name)) if above else None
    return mlc.Field(
        ctx=context,
        id=name,
        name=column.name,
        data_types=[types[kind]],
        source=mlc.Source(
            file_object=file,
            extract=mlc.Extract(column=above[0] if above else column.name),
            transforms=[mlc.Transform(json_path=path)] if path else [],
        ),
        **listed,
    )


def _licence_address(identifier: str) -> str:
    return f"https://spdx.org/licenses/{identifier}.html"


def _objects(value: Any) -> list[dict[str, Any]]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict)]


def _standard_terms(context: Any) -> dict[str, Any]:
    """The `@context` that the library itself writes for the version."""
    from mlcroissant._src.core.rdf import make_context

    return make_context(context)


@contextmanager
def _quiet() -> Iterator[None]:
    """The library logs what it also returns."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
