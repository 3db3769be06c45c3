"""What a data card says about itself, for its README, its Croissant file and its citation.

    facts(root / "data_cards/udhr").identifier      # "ni:///sha-256;..."

Guarantees: sizes, rows and hashes are computed from the files; prose comes from the README's own
sections; a field that the front matter lacks is an error that names it.
Out of scope: checking a card (`cards.py`), the tables of its numbers (`card_numbers.py`).
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moxin_lab import untrusted
from moxin_lab.data.card_files import CardError, remedy
from moxin_lab.lab.artifacts import LabError, describe, read_json, sha256_file

GENERATED = re.compile(r"(?s)<!-- (\w+): begin.*?<!-- \1: end -->")
"""A part of a README that a command writes."""
NEEDED = ("pretty_name", "license", "language", "creators", "version", "date_published")
"""Fields of the front matter without which a data set cannot be cited."""


@dataclass(frozen=True)
class CardFile:
    """A file that the card distributes; `path` is relative to the card's folder."""

    path: str
    sha256: str
    size: int
    """Bytes."""
    rows: int


@dataclass(frozen=True)
class CardFacts:
    """Facts of one card; `sections` has the prose below each heading of its README."""

    name: str
    title: str
    summary: str
    """The first paragraph."""
    creators: tuple[str, ...]
    version: str
    published: str
    """ISO date."""
    licences: tuple[str, ...]
    """SPDX identifiers; none where each package has its own."""
    languages: tuple[str, ...]
    keywords: tuple[str, ...]
    files: tuple[CardFile, ...]
    rows: int
    size: int
    """Bytes of the files, or of the text that a command builds."""
    sha256: str
    """Of `data/`, as the record of each stage that reads it has it; of the list of archives where a
    command builds the data."""
    sections: dict[str, str]

    @property
    def identifier(self) -> str:
        """The content hash as a name, RFC 6920."""
        digest = base64.urlsafe_b64encode(bytes.fromhex(self.sha256)).decode().rstrip("=")
        return f"ni:///sha-256;{digest}"


def facts(folder: Path) -> CardFacts:
    """Facts of the card in `folder`. Raises `CardError` for a README without front matter or a
    needed field, and for data that cannot be read.
    """
    matter, text = read_readme(folder)
    if lacking := [name for name in NEEDED if not matter.get(name)]:
        raise CardError(
            f"{folder / 'README.md'}: its front matter lacks {', '.join(lacking)}; a data set "
            "without them cannot be cited"
        )
    built = folder / "build.json"
    files: tuple[CardFile, ...]
    if not (folder / "data").is_dir() and built.is_file():
        packages = _packages(built)
        files = (CardFile("build.json", sha256_file(built), built.stat().st_size, len(packages)),)
        rows = sum(package["documents"] for package in packages)
        size = sum(package["text_bytes"] for package in packages)
        digest = _archives_sha256(packages)
    else:
        files = _parquet_files(folder)
        rows, size = sum(f.rows for f in files), sum(f.size for f in files)
        digest = describe(folder / "data")["sha256"]
    return CardFacts(
        name=folder.name,
        title=str(matter["pretty_name"]),
        summary=_first_paragraph(text),
        creators=_texts(matter["creators"]),
        version=str(matter["version"]),
        published=str(matter["date_published"]),
        licences=_licences(matter),
        languages=_texts(matter["language"]),
        keywords=_texts(matter.get("tags") or ()),
        files=files,
        rows=rows,
        size=size,
        sha256=digest,
        sections=sections(text),
    )


def read_readme(folder: Path) -> tuple[dict[str, Any], str]:
    """Front matter and text of a card's README.md. Raises `CardError` if it has no front matter."""
    readme = folder / "README.md"
    if not readme.is_file():
        raise CardError(f"{readme} is missing. {remedy(folder)}")
    parts = readme.read_text(encoding="utf-8").split("---\n", 2)
    if len(parts) != 3 or parts[0]:
        raise CardError(f"{readme} does not begin with YAML front matter between two `---` lines")
    try:
        matter = untrusted.load_yaml(parts[1])
    except untrusted.UntrustedError as error:
        raise CardError(f"{readme}: its front matter is not YAML: {error}") from error
    if not isinstance(matter, dict):
        raise CardError(f"{readme}: its front matter is not a mapping. {remedy(folder)}")
    return matter, parts[2]


def sections(text: str) -> dict[str, str]:
    """The prose below each heading of a README, without code, generated parts and subsections."""
    plain = re.sub(r"(?s)^```.*?^```", "", GENERATED.sub("", text), flags=re.MULTILINE)
    parts = re.split(r"(?m)^#{1,6} +(.+?)\s*$", plain)
    return {title: _unwrapped(body) for title, body in zip(parts[1::2], parts[2::2], strict=True)}


def bullets(prose: str) -> list[str]:
    """The items of a list, or the whole prose where it has none."""
    items = re.findall(r"(?m)^- (.+)$", prose)
    return items or [prose]


def _unwrapped(body: str) -> str:
    """One line per paragraph, list item and table row."""
    return re.sub(r"\n(?![-|\n])[ \t]*", " ", body.strip()).replace("\n\n", "\n").strip()


def _first_paragraph(text: str) -> str:
    body = re.split(r"(?m)^# .+$", GENERATED.sub("", text), maxsplit=1)[-1]
    return " ".join(body.strip().split("\n\n", 1)[0].split())


def _texts(value: Any) -> tuple[str, ...]:
    return (
        tuple(map(str, value))
        if isinstance(value, Sequence) and not isinstance(value, str)
        else (str(value),)
    )


def _licences(matter: dict[str, Any]) -> tuple[str, ...]:
    """SPDX identifiers of the Hub's licence fields; `a-and-b` is how the cards name several."""
    from cyclonedx import spdx

    named = str(matter.get("license_name") or matter["license"])
    if named == "per-package":
        return ()
    known = [(part, spdx.fixup_id(part)) for part in named.split("-and-")]
    if unknown := [part for part, found in known if found is None]:
        raise CardError(f"front matter: license {', '.join(unknown)} is no SPDX identifier")
    return tuple(found for _, found in known if found)


def _packages(built: Path) -> list[dict[str, Any]]:
    try:
        packages = read_json(built)["packages"]
        _archives_sha256(packages), [(p["documents"], p["text_bytes"]) for p in packages]
    except (LabError, KeyError, TypeError) as error:
        raise CardError(
            f"{built} is not the record of a build: {error}; write it with `moxin-lab corpus card`"
        ) from error
    return packages


def _archives_sha256(packages: list[dict[str, Any]]) -> str:
    """SHA-256 of the sorted lines `package version sha256` of the archives that a build reads."""
    lines = sorted(f"{p['package']} {p['version']} {p['sha256']}\n" for p in packages)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _parquet_files(folder: Path) -> tuple[CardFile, ...]:
    found = []
    for path in sorted((folder / "data").glob("*.parquet")):
        try:
            rows = pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError) as error:
            raise CardError(f"{path} is not a readable parquet file: {error}") from error
        found.append(
            CardFile(f"data/{path.name}", sha256_file(path), path.stat().st_size, int(rows))
        )
    if not found:
        raise CardError(f"{folder} holds no data/*.parquet. {remedy(folder)}")
    return tuple(found)
