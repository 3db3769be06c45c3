"""Data cards: computing the numbers that a card prints, making its files, and checking the whole
card.

Does: `render` writes the measured part of a card's README.md between its two markers; `rebuild`
makes a data set from its archives and renders its card; `add_on_policy` puts a model's pairs into
the card `preferences`; `check` holds every card to `sources.py` and to its own data.
Guarantees: no number in a card is typed by hand; `check` goes on after a problem (a file that
cannot be read ends the look at its own card only) and returns all it found; files sampled from a
model are held to the rows they answer.
Does not: make a model's answers again (`Source.sampled`), write prose (that is in README.md,
outside the markers), decode or clean text, or use the network in `check`.
"""

import hashlib
import io
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from moxin_lab.data import instructions, preferences
from moxin_lab.data.archives import sha256_of
from moxin_lab.data.card_files import CardError, read_card, remedy
from moxin_lab.data.packaged import MESSAGES
from moxin_lab.data.sources import (
    SOURCES,
    Source,
    build,
    fetch,
    rows_sha256,
    source,
    write,
    write_table,
)

MARKERS = ("<!-- numbers: begin, written by `moxin-lab cards build` -->", "<!-- numbers: end -->")
MAX_FILE_BYTES = 9 * 2**20
MAX_TOTAL_BYTES = 29 * 2**20

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
_IMAGES = {"emoji": ("google", "twitter"), "charts": ("png",)}
"""The columns that hold PNG images, of the sets that have some."""
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
_EMAIL = re.compile(
    rb"@(?<=[\w.+-]@)[\w-]+\.[\w-]"
)  # begins with a literal, so that `search` skips to the next @


def rebuild(
    root: Path, name: str, archives: Path | None = None, progress: Callable[[str], object] = print
) -> list[Path]:
    """Make `root`/data_cards/`name` anew: parquet files from its archives or cards, then the
    numbers in its README.md.

    archives: a folder that holds the archives; fetched by package name if None. Not looked at for a
    set made of cards.
    progress: told what is being done, a line a step.
    Returns the parquet paths. Raises `ArchiveError` or `CardError`.
    """
    wanted = source(name)
    out = root / "data_cards" / wanted.name
    if wanted.cards:
        progress(f"building {out} from {', '.join(wanted.cards)}")
        written = write(name, _tables_from_cards(name, root / "data_cards"), out)
        (out / "README.md").write_text(render(out), encoding="utf-8")
        return written
    with tempfile.TemporaryDirectory() as scratch:
        if archives is None:
            archives = Path(scratch)
            fetch(name, archives, progress)
        progress(f"building {out}")
        written = build(name, archives, out)
    readme = out / "README.md"
    readme.write_text(render(out), encoding="utf-8")
    return written


def _tables_from_cards(name: str, card_root: Path) -> dict[str, pa.Table]:
    builders = {"instructions": instructions.tables, "preferences": preferences.tables}
    return builders[name](card_root)


def add_on_policy(root: Path, file: Path, progress: Callable[[str], object] = print) -> Path:
    """Make `root`/data_cards/preferences/data/on_policy.parquet of the pairs in `file`, then the
    numbers in the card.

    file: `sampled_pairs.parquet`, which notebook 05 leaves in its artifact `tuning_log`.
    progress: told what was written, and what `sources.py` has to record of it. Returns the parquet
    path. Raises `CardError`, before anything is written, if a pair may not be in the card.
    """
    folder = root / "data_cards" / "preferences"
    table = preferences.on_policy_table(file, root / "data_cards")
    written = write_table(table, folder / "data" / preferences.ON_POLICY_FILE)
    (folder / "README.md").write_text(render(folder), encoding="utf-8")
    progress(
        f"written: {written}, {table.num_rows:,} pairs, and their numbers in {folder / 'README.md'}"
    )
    progress(
        f'to record in moxin_lab/data/sources.py: sampled={{"{written.name}": "{rows_sha256([table])}"}}'
    )
    return written


def render(folder: Path) -> str:
    """The text of a card's README.md with its numbers computed anew. Raises `CardError`."""
    readme = folder / "README.md"
    if not readme.is_file():
        raise CardError(f"{readme} is missing. {remedy(folder)}")
    text = readme.read_text(encoding="utf-8")
    begin, end = (text.find(marker) for marker in MARKERS)
    if not 0 <= begin < end:
        raise CardError(
            f"{readme} lacks the markers that its numbers stand between: {MARKERS[0]} and {MARKERS[1]}"
        )
    return f"{text[:begin]}{MARKERS[0]}\n\n{numbers(folder)}\n{text[end:]}"


def check(root: Path) -> list[str]:
    """What is wrong with the cards under `root`/data_cards: one line a problem, an empty list if
    nothing is.
    """
    problems: list[str] = []
    total = 0
    for wanted in SOURCES.values():
        folder = root / "data_cards" / wanted.name
        try:
            problems.extend(_card_problems(folder, wanted))
        except CardError as error:
            problems.append(str(error))
        files = [file for file in folder.rglob("*") if file.is_file()]
        total += sum(file.stat().st_size for file in files)
        problems += [
            f"{file} has {file.stat().st_size:,} bytes; the limit is {MAX_FILE_BYTES:,}"
            for file in files
            if file.stat().st_size > MAX_FILE_BYTES
        ]
    if total > MAX_TOTAL_BYTES:
        problems.append(
            f"{root / 'data_cards'} has {total:,} bytes; the limit is {MAX_TOTAL_BYTES:,}"
        )
    return problems


def _card_problems(folder: Path, wanted: Source) -> Iterator[str]:
    readme, licence = folder / "README.md", folder / "LICENSE"
    if not licence.is_file():
        yield f"{licence} is missing. {remedy(folder)}"
    elif sha256_of(licence) != wanted.license_sha256:
        yield f"{licence} is not upstream's licence text as recorded. {remedy(folder)}"
    surplus = (
        {file.name for file in (folder / "data").glob("*")}
        - wanted.rows.keys()
        - wanted.sampled.keys()
    )
    for name in sorted(surplus):
        yield f"{folder / 'data' / name} belongs to no data set"
    tables = {name: read_card(folder / "data" / name) for name in sorted(wanted.rows)}
    for name, table in tables.items():
        if table.num_rows != wanted.rows[name]:
            yield f"{folder / 'data' / name} has {table.num_rows:,} rows, expected {wanted.rows[name]:,}"
    if (digest := rows_sha256(tables.values())) != wanted.rows_sha256:
        yield f"the rows of {folder} have SHA-256 {digest}, expected {wanted.rows_sha256}. {remedy(folder)}"
    sampled = _sampled_tables(folder, wanted)
    for name, table in sampled.items():
        yield from _sampled_problems(folder / "data" / name, table, wanted)
    rows = sum(table.num_rows for table in (*tables.values(), *sampled.values()))
    yield from _front_matter_problems(folder, wanted, rows)
    if render(folder) != readme.read_text(encoding="utf-8"):
        yield f"{readme}: its numbers are not those of its data. {remedy(folder)}"


def _sampled_tables(folder: Path, wanted: Source) -> dict[str, pa.Table]:
    """The files sampled from a model: those that must be there, and those that are there and not
    yet recorded.
    """
    paths = {name: folder / "data" / name for name in sorted(wanted.sampled)}
    return {
        name: read_card(path)
        for name, path in paths.items()
        if wanted.sampled[name] or path.is_file()
    }


def _sampled_problems(path: Path, table: pa.Table, wanted: Source) -> Iterator[str]:
    if (digest := rows_sha256([table])) != wanted.sampled[path.name]:
        yield f"the rows of {path} have SHA-256 {digest}, expected {wanted.sampled[path.name] or 'none: not recorded yet'}"
    for problem in preferences.on_policy_problems(table, path.parents[2]):
        yield f"{path}: {problem}"


def _front_matter_problems(folder: Path, wanted: Source, rows: int) -> list[str]:
    readme = folder / "README.md"
    try:
        matter = front_matter(folder)
    except yaml.YAMLError as error:
        return [f"{readme}: its front matter is not YAML: {error}"]
    expected: dict[str, Any] = {**wanted.licence, "size_categories": [size_category(rows)]}
    problems = [
        f"{readme}: front matter says {key}: {matter.get(key)!r}, expected {value!r}"
        for key, value in expected.items()
        if matter.get(key) != value
    ]
    problems += [
        f"{readme}: front matter lacks {key}"
        for key in ("language", "pretty_name", "task_categories")
        if not matter.get(key)
    ]
    configs = matter.get("configs") or []
    listed = {entry["path"] for config in configs[:1] for entry in config["data_files"]}
    covered = {f"data/{file.name}" for pattern in listed for file in folder.glob(pattern)}
    if covered != {f"data/{name}" for name in wanted.rows}:
        problems.append(
            f"{readme}: its first configuration loads {sorted(covered)}, not all parquet files"
        )
    loaded = {
        config["config_name"]: [entry["path"] for entry in config["data_files"]]
        for config in configs[1:]
    }
    problems += [
        f"{readme}: no configuration {Path(name).stem} loads data/{name} alone"
        for name in wanted.sampled
        if loaded.get(Path(name).stem) != [f"data/{name}"]
    ]
    splits = {entry["split"] for config in configs for entry in config["data_files"]}
    if splits != set(wanted.splits):
        problems.append(
            f"{readme}: its splits are {sorted(splits)}, expected {', '.join(wanted.splits)}"
        )
    return problems


def front_matter(folder: Path) -> dict[str, Any]:
    """The YAML front matter of a card's README.md. Raises `CardError` if there is none."""
    readme = folder / "README.md"
    if not readme.is_file():
        raise CardError(f"{readme} is missing. {remedy(folder)}")
    parts = readme.read_text(encoding="utf-8").split("---\n", 2)
    if len(parts) != 3 or parts[0]:
        raise CardError(f"{readme} does not begin with YAML front matter between two `---` lines")
    return yaml.safe_load(parts[1])


def size_category(rows: int) -> str:
    """The Hub's size category for a number of rows."""
    return next(category for limit, category in _SIZES.items() if rows < limit)


def numbers(folder: Path) -> str:
    """The measured part of a card, as Markdown: files, groups of rows, what is in the rows,
    archives.
    """
    wanted = source(folder.name)
    tables = {name: read_card(folder / "data" / name) for name in sorted(wanted.rows)}
    sampled = _sampled_tables(folder, wanted)
    content = "images" if wanted.name in _IMAGES else "raw text"
    lines = [
        f"| File | Rows | Bytes of {content} | Bytes of file | SHA-256 of file |",
        "|---|---:|---:|---:|---|",
    ]
    for name, table in (*tables.items(), *sampled.items()):
        path = folder / "data" / name
        raw = sum(map(len, _raw(table, wanted)))
        lines.append(
            f"| `data/{name}` | {table.num_rows:,} | {raw:,} | {path.stat().st_size:,} | `{sha256_of(path)}` |"
        )
    rebuilt = " that a build makes" if sampled else ""
    lines += _measured(
        pa.concat_tables(tables.values()),
        wanted,
        _GROUPS[wanted.name],
        content,
        f"all rows{rebuilt}",
    )
    lines += [
        "",
        f"SHA-256 of all rows{rebuilt}, whatever file holds them (`moxin_lab.data.sources.rows_sha256`): "
        f"`{rows_sha256(tables.values())}`.",
    ]
    for name, table in sampled.items():
        lines += ["", f"`data/{name}`, which was sampled from a model and is made by no build:"]
        lines += _measured(table, wanted, "task", content, f"the rows of `data/{name}`")
        lines += ["", f"SHA-256 of these rows: `{rows_sha256([table])}`."]
    lines += ["", *(_cards_built_from(wanted) if wanted.cards else _archives_built_from(wanted))]
    return "\n".join(lines) + "\n"


def _measured(table: pa.Table, wanted: Source, group: str, content: str, of_what: str) -> list[str]:
    """Two tables of a card: rows by the values of column `group`, and what is in the rows."""
    raws = _raw(table, wanted)
    lines = ["", f"| `{group}` | Rows | Bytes of {content} |", "|---|---:|---:|"]
    values = table[group].to_pylist()
    rows, sizes = Counter(values), Counter[str]()
    for value, raw_text in zip(values, raws, strict=True):
        sizes[value] += len(raw_text)
    lines += [
        f"| {f'`{value}`' if value else '(none)'} | {rows[value]:,} | {sizes[value]:,} |"
        for value in sorted(rows)
    ]
    lines += ["", f"| Measured over {of_what} | Count |", "|---|---:|"]
    return lines + [f"| {label} | {count:,} |" for label, count in _facts(table, raws, wanted)]


def _archives_built_from(wanted: Source) -> list[str]:
    return [
        "| Built from | Kind | Version | Archive | SHA-256 of archive | Licence |",
        "|---|---|---|---|---|---|",
    ] + [
        f"| `{archive.package}` | {archive.kind} | {archive.version} | `{archive.file_name}` | `{archive.sha256}` "
        f"| {archive.licence} |"
        for archive in wanted.archives
    ]


def _cards_built_from(wanted: Source) -> list[str]:
    return ["| Built from data card | SHA-256 of its rows |", "|---|---|"] + [
        f"| `{name}` | `{source(name).rows_sha256}` |" for name in wanted.cards
    ]


def _facts(table: pa.Table, raws: list[bytes], wanted: Source) -> list[tuple[str, int]]:
    if wanted.name in _IMAGES:
        return _facts_about_images(table, _IMAGES[wanted.name])
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
    if wanted.content == "conversation":
        turns = Counter(map(len, table["conversation"].to_pylist()))
        facts += [("rows with two turns", turns[2]), ("rows with one turn", turns[1])]
        facts.append(
            ("rows with more than two turns", sum(n for length, n in turns.items() if length > 2))
        )
    if "verifier" in columns:
        facts += _facts_about_answers(table)
    return facts


def _facts_about_images(table: pa.Table, columns: tuple[str, ...]) -> list[tuple[str, int]]:
    """What counts in sets of images: that all decode, their sizes, and how many texts stand beside
    them.
    """
    from PIL import Image

    facts = [("rows", table.num_rows)]
    for column in columns:
        images = table[column].to_pylist()
        sizes = {
            Image.open(io.BytesIO(image)).size for image in images
        }  # raises for what is no image
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
        asked = [question for questions in table["questions"].to_pylist() for question in questions]
        facts.append(("questions", len(asked)))
        counts = Counter(question["task"] for question in asked)
        facts += [(f"questions of task `{task}`", counts[task]) for task in sorted(counts)]
    return facts


def _facts_about_answers(table: pa.Table) -> list[tuple[str, int]]:
    """What counts in instructions and preferences: who can check a row, for whom it is, how long
    its answers are.
    """
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


def _raw(table: pa.Table, wanted: Source) -> list[bytes]:
    """The raw text of each row: the content column, or all columns of messages or images where
    there are such.
    """
    if wanted.name in _IMAGES:
        images = zip(*(table[column].to_pylist() for column in _IMAGES[wanted.name]), strict=True)
        return [b"".join(row) for row in images]
    chats = [table[field.name].to_pylist() for field in table.schema if field.type == MESSAGES]
    if chats:
        rows = zip(*chats, strict=True)
        return [
            "\n".join(turn["content"] for chat in row for turn in chat).encode("utf-8")
            for row in rows
        ]
    values = table[wanted.content].to_pylist()
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
