"""Documents of a knowledge base: HTML, Markdown, reStructuredText, PDF and plain text as paragraphs
under their headings.

    read_folder(folder)            every document below a folder, and what could not be read
    read_document(name, data)      one document from its bytes

Markdown (mistune) and reStructuredText (docutils) are turned into HTML first, so one walk over an
HTML tree finds headings, paragraphs, lists, tables and code of all three. A table is one paragraph:
a line per row, cells between bars. PDF is read in a process of its own (`pdf.py`).

Guarantees: text of the main content stays in its order; headings and rows of tables stay whole;
scripts and styles never become text, while markup that a document shows as code stays as text;
nothing is fetched, included or run, whatever a document asks for; control characters, with which a
text could act on a terminal, are removed; what cannot be read is refused with a reason, by name.
Out of scope: pictures, scanned pages without text, what a script would write into a page.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from moxin_lab.data import encodings
from moxin_lab.data.html_text import main_content
from moxin_lab.data.unreadable import Unreadable
from moxin_lab.lab.artifacts import LabError
from moxin_lab.serving.rst import words

MAX_BYTES = 64 * 2**20
"""Largest file that is read, in bytes."""
MAX_NAME = 1024
SUFFIXES = {
    ".html": "html", ".htm": "html", ".xhtml": "html", ".md": "markdown", ".markdown": "markdown",
    ".rst": "rst", ".txt": "text", ".pdf": "pdf",
}  # fmt: skip
_BLOCKS = words(
    "address article aside blockquote body br caption center details dd div dl dt fieldset "
    "figcaption figure footer form header hr li main ol p section summary table tbody td tfoot th "
    "thead tr ul"
)
_HEADING = re.compile(r"h([1-6])\Z")
_SPACE = re.compile(r"[ \t\n\r\f\v\u00a0\u2028\u2029\u0085]+")


class Block(NamedTuple):
    """A piece of a document in its order. kind: `heading`, or that of a paragraph. level: of a
    heading, from 1.
    """

    kind: str
    text: str
    level: int = 0


@dataclass(frozen=True)
class Paragraph:
    """headings: those that it stands under, the outermost first. kind: text, list, table, code."""

    headings: tuple[str, ...]
    kind: str
    text: str


@dataclass(frozen=True)
class Document:
    """name: its path below the folder, with `/`. title: its first heading, else the name's stem."""

    name: str
    title: str
    paragraphs: tuple[Paragraph, ...]


class Folder(NamedTuple):
    """What `read_folder` found. unreadable: name to the reason."""

    documents: list[Document]
    unreadable: dict[str, str]


def read_folder(folder: Path) -> Folder:
    """Every file below `folder` whose suffix is in SUFFIXES, in the order of their names.

    Hidden files and folders, and links that lead out of the folder, are left out. Raises LabError
    where there is no such folder or no document in it.
    """
    if not folder.is_dir():
        raise LabError(f"{folder} is not a folder: name the one that holds the documents")
    found = Folder([], {})
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        try:
            if not path.resolve().is_relative_to(folder.resolve()):
                raise Unreadable("outside", "a link that leads out of the folder")
            if (size := path.stat().st_size) > MAX_BYTES:
                raise Unreadable("too large", f"{size:,} bytes; at most {MAX_BYTES:,} are read")
            found.documents.append(read_document(name, path.read_bytes()))
        except Unreadable as error:
            found.unreadable[name] = ": ".join(map(str, error.args))
        except OSError as error:
            found.unreadable[name] = f"cannot be opened: {error.strerror}"
    if not found.documents:
        raise LabError(
            f"{folder} has no document that can be read ({', '.join(SUFFIXES)})"
            + "".join(f"\n  {name}: {reason}" for name, reason in found.unreadable.items())
        )
    return found


def read_document(name: str, data: bytes) -> Document:
    """A document from the bytes of a file; the suffix of its name says what it is.

    Raises Unreadable for a name that is none, an unknown suffix, too many bytes, damage, a
    password, or no text.
    """
    check_name(name)
    kind = SUFFIXES.get(PurePosixPath(name).suffix.lower())
    if kind is None:
        raise Unreadable("unknown kind", f"its name ends in none of {', '.join(SUFFIXES)}")
    if len(data) > MAX_BYTES:
        raise Unreadable("too large", f"{len(data):,} bytes; at most {MAX_BYTES:,} are read")
    if kind == "pdf":
        from moxin_lab.serving.pdf import read_pdf

        blocks = [Block(*block) for block in read_pdf(data)]
    else:
        parse = {"html": html_blocks, "markdown": _markdown, "rst": _rst, "text": _plain}[kind]
        blocks = parse(encodings.decode(data).text)
    return assemble(name, blocks)


def check_name(name: str) -> None:
    """Raises Unreadable for a name that is no plain relative path: empty, absolute, with `..`, a
    backslash, a drive, or a control character, or longer than MAX_NAME.
    """
    parts = name.split("/")
    if not name or len(name) > MAX_NAME:
        raise Unreadable("bad name", f"it has {len(name)} characters; 1 to {MAX_NAME} are allowed")
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl") for character in name):
        raise Unreadable("bad name", f"{name!r} has a control character")
    if "\\" in name or re.match(r"[A-Za-z]:", name) or not all(parts) or {".", ".."} & set(parts):
        raise Unreadable("bad name", f"{name!r} is no path inside a folder")


def assemble(name: str, blocks: list[Block]) -> Document:
    """The paragraphs of a document under their headings. Raises Unreadable if it has no text.

    A document of headings alone has one paragraph, its title.
    """
    paragraphs: list[Paragraph] = []
    path: list[tuple[int, str]] = []
    title = ""
    for block in blocks:
        text = clean(block.text, lines=block.kind in ("table", "code"))
        if not text:
            continue
        if block.kind == "heading":
            title = title or text
            while path and path[-1][0] >= block.level:
                path.pop()
            path.append((block.level, text))
        else:
            paragraphs.append(Paragraph(tuple(words for _, words in path), block.kind, text))
    if not paragraphs and title:
        paragraphs.append(Paragraph((), "text", title))
    if not paragraphs:
        raise Unreadable("no text", "the document holds no text")
    return Document(name, title or PurePosixPath(name).stem, tuple(paragraphs))


def clean(text: str, *, lines: bool = False) -> str:
    """Text in Unicode NFC without control characters, spaces joined. lines: line breaks stay."""
    if lines:
        kept = [_visible(line).rstrip() for line in text.expandtabs(4).splitlines()]
        return "\n".join(line for line in kept if line.strip())
    return _visible(_SPACE.sub(" ", text)).strip()


def _visible(text: str) -> str:
    # Category Cf holds joiners that scripts need; those that turn the direction of text go.
    normal = unicodedata.normalize("NFC", text)
    if normal.isascii() and normal.isprintable():
        return normal
    return "".join(
        character
        for character in normal
        if unicodedata.category(character) not in ("Cc", "Cs")
        and not "\u202a" <= character <= "\u202e"
        and not "\u2066" <= character <= "\u2069"
    )


def html_blocks(html: str) -> list[Block]:
    """Headings, paragraphs, list items, tables and code of a page's main content."""
    body = main_content(html).body
    return [] if body is None else list(_walk(body))


def _walk(body: Any) -> Iterator[Block]:
    """Blocks of a tree in their order. A stack, not recursion: pages nest up to 512 deep."""
    text: list[str] = []
    level = 0  # of the heading that the text is in

    def flush() -> Iterator[Block]:
        joined = "".join(text)
        text.clear()
        if joined.strip():
            if level:
                yield Block("heading", joined, level)
            else:
                yield Block("list" if items else "text", joined)

    items = 0  # list items that the text is in
    stack: list[tuple[Any, bool]] = [(body, False)]
    while stack:
        node, leaving = stack.pop()
        tag = node.tag
        if tag == "#text":
            text.append(node.value)
            continue
        if tag.startswith("#") and tag != "#document":  # a comment
            continue
        heading = _HEADING.match(tag)
        if tag in _BLOCKS or heading:
            yield from flush()
        if leaving:
            items -= tag == "li"
            level = 0 if heading else level
            continue
        if tag == "pre":
            yield from flush()
            yield Block("code", node.text_content or "")
            continue
        if tag == "table" and (rows := _rows(node)):
            yield Block("table", "\n".join(rows))
            continue
        level = int(heading[1]) if heading else level
        items += tag == "li"
        if tag in _BLOCKS or heading:
            stack.append((node, True))
        child = node.last_child
        while child is not None:
            stack.append((child, False))
            child = child.prev
    yield from flush()


def _rows(table: Any) -> list[str]:
    """Rows of a table of data, cells between bars; none for one that only lays out a page: with a
    table or a heading inside, or with one column.
    """
    if table.query_selector("table, h1, h2, h3, h4, h5, h6, pre") is not None:
        return []
    rows = []
    widest = 0
    for row in table.query_selector_all("caption, tr").values():
        if row.tag == "caption":
            rows.append(clean(row.text_content or ""))
            continue
        cells = row.query_selector_all("th, td").values()
        widest = max(widest, len(cells))
        line = " | ".join(clean(cell.text_content or "").replace("|", "¦") for cell in cells)
        rows.append(line if line.strip(" |") else "")
    return [row for row in rows if row] if widest > 1 else []


def _markdown(source: str) -> list[Block]:
    import mistune

    # CommonMark passes HTML through; the walk drops scripts, as in any page. Front matter is not
    # text of the document.
    source = re.sub(r"\A---\n.*?\n---\n", "", source, count=1, flags=re.DOTALL)
    render = mistune.create_markdown(
        escape=False, plugins=["table", "strikethrough", "footnotes", "def_list", "task_lists"]
    )
    try:
        return html_blocks(f"<main>{render(source)}</main>")
    except RecursionError:
        raise Unreadable("page too complex", "quotes or lists nested too deeply") from None


def _plain(source: str) -> list[Block]:
    return [Block("text", part) for part in re.split(r"\n\s*\n", source)]


def _rst(source: str) -> list[Block]:
    from moxin_lab.serving.rst import rst_to_html

    return html_blocks(f"<main>{rst_to_html(source)}</main>")


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.suffix.lower() in SUFFIXES and not path.is_dir():
            yield path
