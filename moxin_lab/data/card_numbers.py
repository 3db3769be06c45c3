"""The measured part of a data card: its numbers, computed from its data.

`render` writes that part between two markers of the card's README.md: the files, groups of rows,
facts about the rows, and the archives or cards that the set is built from.

Guarantees: every number is computed from the files; the same files give the same text.
Out of scope: prose, which is in README.md outside the markers; checking the numbers (`cards.py`).
"""

import hashlib
import io
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pyarrow as pa

from moxin_lab.data.card_files import CardError, read_card, remedy
from moxin_lab.data.packaged import MESSAGES
from moxin_lab.data.sources import Source, rows_sha256, source
from moxin_lab.lab.artifacts import sha256_file

MARKERS = ("<!-- numbers: begin, written by `moxin-lab cards build` -->", "<!-- numbers: end -->")

_GROUPS = {
    "help_pages": "language",
    "python_docs": "section",
    "code_samples": "source",
    "udhr": "direction",
    "conversations": "language",
    "instructions": "task",
    "preferences": "construction",
    "emoji": "category",
    "charts": "table",
}
"""By data set, the column whose values group the rows in the card."""
_IMAGES = {"emoji": ("google", "twitter"), "charts": ("png",)}
"""By data set, the columns with PNG images."""
# It begins with a literal, so that `search` skips to the next @.
_EMAIL = re.compile(rb"@(?<=[\w.+-]@)[\w-]+\.[\w-]")


def render(folder: Path) -> str:
    """The text of a card's README.md, with its numbers computed from the data.

    Raises `CardError` for a README.md that is missing or lacks the markers, and for data that
    cannot be read.
    """
    readme = folder / "README.md"
    if not readme.is_file():
        raise CardError(f"{readme} is missing. {remedy(folder)}")
    text = readme.read_text(encoding="utf-8")
    begin, end = (text.find(marker) for marker in MARKERS)
    if not 0 <= begin < end:
        raise CardError(
            f"{readme} lacks the markers around its numbers: {MARKERS[0]} and {MARKERS[1]}"
        )
    return f"{text[:begin]}{MARKERS[0]}\n\n{measured_part(folder)}\n{text[end:]}"


def measured_part(folder: Path) -> str:
    """The measured part of a card, as Markdown. Raises `CardError`."""
    record = source(folder.name)
    tables = {name: read_card(folder / "data" / name) for name in sorted(record.rows)}
    sampled = sampled_tables(folder, record)
    content = "images" if record.name in _IMAGES else "raw text"
    lines = [
        f"| File | Rows | Bytes of {content} | Bytes of file | SHA-256 of file |",
        "|---|---:|---:|---:|---|",
    ]
    for name, table in (*tables.items(), *sampled.items()):
        path = folder / "data" / name
        raw = sum(map(len, _raw(table, record)))
        lines.append(
            f"| `data/{name}` | {table.num_rows:,} | {raw:,} | {path.stat().st_size:,} "
            f"| `{sha256_file(path)}` |"
        )
    rebuilt = " that a build makes" if sampled else ""
    lines += _measured(
        pa.concat_tables(tables.values()),
        record,
        _GROUPS[record.name],
        content,
        f"all rows{rebuilt}",
    )
    lines += [
        "",
        f"SHA-256 of all rows{rebuilt}, whatever file holds them "
        f"(`moxin_lab.data.sources.rows_sha256`): `{rows_sha256(tables.values())}`.",
    ]
    for name, table in sampled.items():
        lines += ["", f"`data/{name}`, which was sampled from a model and is made by no build:"]
        lines += _measured(table, record, "task", content, f"the rows of `data/{name}`")
        lines += ["", f"SHA-256 of these rows: `{rows_sha256([table])}`."]
    lines += ["", *(_cards_built_from(record) if record.cards else _archives_built_from(record))]
    return "\n".join(lines) + "\n"


def sampled_tables(folder: Path, record: Source) -> dict[str, pa.Table]:
    """The files sampled from a model: the recorded ones, and those that exist unrecorded."""
    paths = {name: folder / "data" / name for name in sorted(record.sampled)}
    return {
        name: read_card(path)
        for name, path in paths.items()
        if record.sampled[name] or path.is_file()
    }


def _measured(
    table: pa.Table, record: Source, group: str, content: str, description: str
) -> list[str]:
    """Two tables as Markdown: rows by the values of column `group`, and facts about the rows.

    content: what the rows contain, and description: which rows they are, for the headers.
    """
    raws = _raw(table, record)
    lines = ["", f"| `{group}` | Rows | Bytes of {content} |", "|---|---:|---:|"]
    values = table[group].to_pylist()
    rows, sizes = Counter(values), Counter[str]()
    for value, raw in zip(values, raws, strict=True):
        sizes[value] += len(raw)
    lines += [
        f"| {f'`{value}`' if value else '(none)'} | {rows[value]:,} | {sizes[value]:,} |"
        for value in sorted(rows)
    ]
    lines += ["", f"| Measured over {description} | Count |", "|---|---:|"]
    return lines + [f"| {label} | {count:,} |" for label, count in _facts(table, raws, record)]


def _archives_built_from(record: Source) -> list[str]:
    return [
        "| Built from | Kind | Version | Archive | SHA-256 of archive | Licence |",
        "|---|---|---|---|---|---|",
    ] + [
        f"| `{archive.package}` | {archive.kind} | {archive.version} | `{archive.file_name}` "
        f"| `{archive.sha256}` | {archive.licence} |"
        for archive in record.archives
    ]


def _cards_built_from(record: Source) -> list[str]:
    return ["| Built from data card | SHA-256 of its rows |", "|---|---|"] + [
        f"| `{name}` | `{source(name).rows_sha256}` |" for name in record.cards
    ]


def _facts(table: pa.Table, raws: list[bytes], record: Source) -> list[tuple[str, int]]:
    """What a card counts over its rows: label and count. raws: the raw text of each row."""
    if record.name in _IMAGES:
        return _facts_about_images(table, _IMAGES[record.name])
    texts = [text for text in map(_text, raws) if text is not None]
    facts = [
        ("rows", len(raws)),
        ("rows with no text", sum(not raw.strip() for raw in raws)),
        (
            "rows whose text is byte for byte that of an earlier row",
            len(raws) - len(_digests(raws)),
        ),
        ("rows that are not valid UTF-8", len(raws) - len(texts)),
        (
            "rows that are not in Unicode normal form C",
            sum(not unicodedata.is_normalized("NFC", t) for t in texts),
        ),
        (
            "rows with something like an e-mail address",
            sum(bool(_EMAIL.search(raw)) for raw in raws),
        ),
        ("bytes of the longest row", max(map(len, raws))),
    ]
    columns = table.schema.names
    if "language" in columns:
        facts.append(("distinct values of `language`", len(set(table["language"].to_pylist()))))
    if "page" in columns:
        facts.append(("distinct values of `page`", len(set(table["page"].to_pylist()))))
    if "license" in columns:
        counts = Counter(table["license"].to_pylist())
        facts += [(f"rows with `license` {name}", counts[name]) for name in sorted(counts)]
    if "stage" in columns:
        facts.append(("rows with `stage` below 4", sum(s < 4 for s in table["stage"].to_pylist())))
    if record.content == "conversation":
        turns = Counter(map(len, table["conversation"].to_pylist()))
        facts += [("rows with two turns", turns[2]), ("rows with one turn", turns[1])]
        facts.append(
            ("rows with more than two turns", sum(n for length, n in turns.items() if length > 2))
        )
    if "verifier" in columns:
        facts += _facts_about_answers(table)
    return facts


def _facts_about_images(table: pa.Table, columns: tuple[str, ...]) -> list[tuple[str, int]]:
    """Facts about a set of images: their sizes, and the numbers of texts and questions.

    Raises CardError for bytes that are no PNG.
    """
    from PIL import Image

    facts = [("rows", table.num_rows)]
    for column in columns:
        images = table[column].to_pylist()
        try:
            sizes = {Image.open(io.BytesIO(image), formats=("PNG",)).size for image in images}
        except (OSError, ValueError, TypeError) as error:
            raise CardError(f"an image in the column `{column}` is no PNG: {error}") from error
        facts += [
            (f"bytes of all images in `{column}`", sum(map(len, images))),
            (f"distinct images in `{column}`", len(_digests(images))),
            (f"distinct sizes in `{column}`", len(sizes)),
            (f"largest edge in `{column}`, pixels", max(edge for size in sizes for edge in size)),
        ]
    for column in ("family", "style", "kind", "table"):
        if column in table.schema.names:
            facts.append((f"distinct values of `{column}`", len(set(table[column].to_pylist()))))
    if "texts" in table.schema.names:
        texts = [text for texts in table["texts"].to_pylist() for text in texts]
        facts += [
            ("languages", len({text["language"] for text in texts})),
            ("labels", len(texts)),
            ("tags", sum(len(text["tags"]) for text in texts)),
        ]
    if "questions" in table.schema.names:
        all_questions = [
            question for questions in table["questions"].to_pylist() for question in questions
        ]
        facts.append(("questions", len(all_questions)))
        counts = Counter(question["task"] for question in all_questions)
        facts += [(f"questions of task `{task}`", counts[task]) for task in sorted(counts)]
    return facts


def _facts_about_answers(table: pa.Table) -> list[tuple[str, int]]:
    """Facts about instructions or preferences: verifiers, languages, difficulty, lengths."""
    rows = table.to_pylist()
    facts = [
        ("distinct values of `source_item`", len({row["source_item"] for row in rows})),
        ("rows with a verifier", sum(row["verifier"] is not None for row in rows)),
    ]
    for column in ("language", "difficulty"):
        counts = Counter(row[column] for row in rows)
        facts += [(f"rows with `{column}` {value}", counts[value]) for value in sorted(counts)]
    if "messages" in table.schema.names:
        sizes = [sum(len(message["content"]) for message in row["messages"]) for row in rows]
        return [
            *facts,
            (
                "rows of fewer than 100 characters, question and answer together",
                sum(n < 100 for n in sizes),
            ),
        ]
    differences = [
        len(row["rejected"][0]["content"]) - len(row["chosen"][0]["content"]) for row in rows
    ]
    return facts + [
        ("pairs whose rejected answer is longer, in characters", sum(n > 0 for n in differences)),
        ("pairs whose rejected answer is shorter", sum(n < 0 for n in differences)),
        ("pairs whose answers are of one length", sum(n == 0 for n in differences)),
    ]


def _raw(table: pa.Table, record: Source) -> list[bytes]:
    """The raw content of each row.

    It is the columns of images if the set has some, else the columns of messages if there are any,
    else the set's content column.
    """
    if record.name in _IMAGES:
        images = zip(*(table[column].to_pylist() for column in _IMAGES[record.name]), strict=True)
        return [b"".join(row) for row in images]
    chats = [table[field.name].to_pylist() for field in table.schema if field.type == MESSAGES]
    if chats:
        rows = zip(*chats, strict=True)
        return [
            "\n".join(turn["content"] for chat in row for turn in chat).encode("utf-8")
            for row in rows
        ]
    values = table[record.content].to_pylist()
    return [
        value if isinstance(value, bytes) else "\n".join(value).encode("utf-8") for value in values
    ]


def _digests(raws: list[bytes]) -> set[bytes]:
    return {hashlib.sha256(raw).digest() for raw in raws}


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
