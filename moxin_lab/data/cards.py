"""Builds and checks data cards.

`rebuild` builds a data set from its archives or cards and renders its card; `add_on_policy` adds a
model's pairs to the card `preferences`; `check` compares every card with `sources.py` and with its
own data, and validates and loads its Croissant file.

Guarantees: `check` continues after a problem and returns all problems found, except that a file
that cannot be read ends the check of its card; files sampled from a model are compared with the
rows that they answer; `check` does not use the network.
Out of scope: the text of a card's numbers (`card_numbers.py`) and of its prose (README.md);
sampling a model's answers (`Source.sampled`); decoding or cleaning text.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from moxin_lab.data import corpus_card, croissant, instructions, preferences
from moxin_lab.data.card_blocks import missing_parts, with_blocks
from moxin_lab.data.card_facts import facts, read_readme
from moxin_lab.data.card_files import CardError, read_card, remedy
from moxin_lab.data.card_numbers import render, sampled_tables
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
from moxin_lab.lab.artifacts import sha256_file

MAX_FILE_BYTES = 9 * 2**20
MAX_TOTAL_BYTES = 29 * 2**20

WITHOUT_DATA = (corpus_card.problems,)
"""The checks of cards whose data is built outside the tree."""
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}


def rebuild(
    root: Path, name: str, archives: Path | None = None, progress: Callable[[str], object] = print
) -> list[Path]:
    """Rebuilds `root`/data_cards/`name`: the parquet files, then the numbers in its README.md.

    Args:
        archives: a folder with the archives; by default they are fetched by package name. Ignored
            for a set that is built from cards.
        progress: called with one line per step.
    Returns the paths of the parquet files. Raises `ArchiveError` or `CardError`.
    """
    record = source(name)
    out = root / "data_cards" / record.name
    if record.cards:
        progress(f"building {out} from {', '.join(record.cards)}")
        written = write(name, _tables_from_cards(name, root / "data_cards"), out)
        _write_texts(out)
        return written
    with tempfile.TemporaryDirectory() as scratch:
        if archives is None:
            archives = Path(scratch)
            fetch(name, archives, progress)
        progress(f"building {out}")
        written = build(name, archives, out)
    _write_texts(out)
    return written


def _write_texts(folder: Path) -> None:
    """README.md with its generated parts, then the Croissant file that is written from it."""
    readme = folder / "README.md"
    readme.write_text(render(folder), encoding="utf-8")
    write_published(folder)


def write_published(folder: Path) -> None:
    """The parts of a card for readers who have not seen the lab: the card at a glance, how to cite
    it, and its Croissant file. Raises `CardError`.
    """
    readme = folder / "README.md"
    text = with_blocks(readme.read_text(encoding="utf-8"), facts(folder))
    readme.write_text(text, encoding="utf-8")
    croissant.write(folder)


def _tables_from_cards(name: str, card_root: Path) -> dict[str, pa.Table]:
    builders = {"instructions": instructions.tables, "preferences": preferences.tables}
    return builders[name](card_root)


def add_on_policy(root: Path, file: Path, progress: Callable[[str], object] = print) -> Path:
    """Writes the pairs of `file` to the card `preferences`, then the numbers in its README.md.

    Args:
        file: `sampled_pairs.parquet`, which notebook 05 writes into its artifact `tuning_log`.
        progress: called with lines that say what was written, and what to record in `sources.py`.
    Returns the path of the parquet file. Raises `CardError`, before anything is written, for a pair
    that is not allowed in the card.
    """
    folder = root / "data_cards" / "preferences"
    table = preferences.on_policy_table(file, root / "data_cards")
    written = write_table(table, folder / "data" / preferences.ON_POLICY_FILE)
    _write_texts(folder)
    progress(
        f"written: {written}, {table.num_rows:,} pairs, and their numbers in {folder / 'README.md'}"
    )
    progress(
        "to record in moxin_lab/data/sources.py: "
        f'sampled={{"{written.name}": "{rows_sha256([table])}"}}'
    )
    return written


def check(root: Path) -> list[str]:
    """The problems of the cards under `root`/data_cards: one line per problem, or an empty list."""
    problems: list[str] = []
    total = 0
    for record in SOURCES.values():
        folder = root / "data_cards" / record.name
        try:
            problems.extend(_card_problems(folder, record))
        except CardError as error:
            problems.append(str(error))
        files = [file for file in folder.rglob("*") if file.is_file()]
        total += sum(file.stat().st_size for file in files)
        problems += [
            f"{file} has {file.stat().st_size:,} bytes; the limit is {MAX_FILE_BYTES:,}"
            for file in files
            if file.stat().st_size > MAX_FILE_BYTES
        ]
    for problems_of in WITHOUT_DATA:
        problems += problems_of(root)
    for readme in sorted((root / "data_cards").glob("*/README.md")):
        # What follows from a fault that is named already, such as another hash, is not named again.
        if not any(str(readme.parent) in problem for problem in problems):
            problems += published_problems(readme.parent)
    if total > MAX_TOTAL_BYTES:
        problems.append(
            f"{root / 'data_cards'} has {total:,} bytes; the limit is {MAX_TOTAL_BYTES:,}"
        )
    return problems


def check_one(path: Path) -> list[str]:
    """The problems of one card's folder, or of a Croissant file that anyone wrote."""
    if path.is_file():
        return croissant.faults(path)
    if not (path / "README.md").is_file():
        return [f"{path} is neither a Croissant file nor a folder with README.md"]
    return published_problems(path)


def published_problems(folder: Path) -> list[str]:
    """What keeps a card, also one that `sources.py` does not know, from being read at three depths,
    cited by its content and loaded by its Croissant file.
    """
    readme, written = folder / "README.md", folder / croissant.FILE_NAME
    try:
        text = readme.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        return [f"{readme} is not UTF-8 text: {error}"]
    found = [f"{readme}: {problem}" for problem in missing_parts(text)]
    again = f"Write it again with `moxin-lab cards write {folder.name}`."
    try:
        about = facts(folder)
        if with_blocks(text, about) != text:
            found.append(f"{readme}: its summary or citation is not that of its data. {again}")
        if not written.is_file():
            return [*found, f"{written} is missing. {again}"]
        if croissant.render(folder).encode() != written.read_bytes():
            found.append(f"{written} is not what its card says. {again}")
    except CardError as error:
        found.append(str(error))
    return found + (croissant.faults(written) if written.is_file() else [])


def _card_problems(folder: Path, record: Source) -> Iterator[str]:
    readme, licence = folder / "README.md", folder / "LICENSE"
    if not licence.is_file():
        yield f"{licence} is missing. {remedy(folder)}"
    elif sha256_file(licence) != record.license_sha256:
        yield f"{licence} is not upstream's licence text as recorded. {remedy(folder)}"
    surplus = (
        {file.name for file in (folder / "data").glob("*")}
        - record.rows.keys()
        - record.sampled.keys()
    )
    for name in sorted(surplus):
        yield f"{folder / 'data' / name} belongs to no data set"
    tables = {name: read_card(folder / "data" / name) for name in sorted(record.rows)}
    for name, table in tables.items():
        if table.num_rows != (expected := record.rows[name]):
            yield f"{folder / 'data' / name} has {table.num_rows:,} rows, expected {expected:,}"
    if (digest := rows_sha256(tables.values())) != record.rows_sha256:
        yield (
            f"the rows of {folder} have SHA-256 {digest}, expected {record.rows_sha256}. "
            f"{remedy(folder)}"
        )
    sampled = sampled_tables(folder, record)
    for name, table in sampled.items():
        yield from _sampled_problems(folder / "data" / name, table, record)
    rows = sum(table.num_rows for table in (*tables.values(), *sampled.values()))
    yield from _front_matter_problems(folder, record, rows)
    if render(folder) != readme.read_text(encoding="utf-8"):
        yield f"{readme}: its numbers are not those of its data. {remedy(folder)}"


def _sampled_problems(path: Path, table: pa.Table, record: Source) -> Iterator[str]:
    expected = record.sampled[path.name] or "none: not recorded yet"
    if (digest := rows_sha256([table])) != expected:
        yield f"the rows of {path} have SHA-256 {digest}, expected {expected}"
    for problem in preferences.on_policy_problems(table, path.parents[2]):
        yield f"{path}: {problem}"


def _front_matter_problems(folder: Path, record: Source, rows: int) -> list[str]:
    readme = folder / "README.md"
    matter, _ = read_readme(folder)
    expected: dict[str, Any] = {**record.licence, "size_categories": [size_category(rows)]}
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
    if covered != {f"data/{name}" for name in record.rows}:
        problems.append(
            f"{readme}: its first configuration loads {sorted(covered)}, "
            f"expected {', '.join(f'data/{name}' for name in sorted(record.rows))}"
        )
    loaded = {
        config["config_name"]: [entry["path"] for entry in config["data_files"]]
        for config in configs[1:]
    }
    problems += [
        f"{readme}: no configuration {Path(name).stem} loads data/{name} alone"
        for name in record.sampled
        if loaded.get(Path(name).stem) != [f"data/{name}"]
    ]
    splits = {entry["split"] for config in configs for entry in config["data_files"]}
    if splits != set(record.splits):
        problems.append(
            f"{readme}: its splits are {sorted(splits)}, expected {', '.join(record.splits)}"
        )
    return problems


def size_category(rows: int) -> str:
    """The Hub's size category for a number of rows."""
    return next(category for limit, category in _SIZES.items() if rows < limit)
