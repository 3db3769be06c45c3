"""The text of a PDF with its headings and tables, read in a process of its own.

    blocks = read_pdf(data)

pdfplumber finds characters with their sizes, and tables by their lines. A line is a heading if its
letters are larger than those of most of the text, or bold on a line of its own; the larger, the
higher. This module run as a program is the process that reads: a file made to take all memory or
all time takes only the child's.

Guarantees: at most MAX_SECONDS and MAX_MEMORY are used, and the caller goes on; a broken or
encrypted file, or one without text, is refused with the reason.
Out of scope: scanned pages (no text to find), the order of columns that overlap, pictures.
"""

import io
import json
import re
import resource
import subprocess
import sys
from collections import Counter
from typing import Any

from moxin_lab.data.unreadable import Unreadable

MAX_SECONDS = 120
MAX_MEMORY = 2 * 2**30
"""Bytes of address space of the process that reads."""
MAX_PAGES = 5_000
LARGER = 1.12
"""A heading's letters are at least so many times as large as those of most of the text."""
HEADING_CHARACTERS = 160
"""A longer line is no heading."""


def read_pdf(data: bytes) -> list[tuple[str, str, int]]:
    """Kind, text and level of each block of a PDF, as in `documents.Block`.

    Raises Unreadable, see the module's docstring.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-m", __name__],
            input=data,
            capture_output=True,
            timeout=MAX_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unreadable("too slow", f"the PDF took more than {MAX_SECONDS} s") from None
    if child.returncode != 0:
        raise Unreadable("broken PDF", "reading it ended its process (memory, or damage)")
    result = json.loads(child.stdout)
    if "refused" in result:
        raise Unreadable(*result["refused"])
    return [tuple(block) for block in result["blocks"]]


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    try:
        result: dict[str, Any] = {"blocks": parse(sys.stdin.buffer.read())}
    except Unreadable as error:
        result = {"refused": error.args}
    json.dump(result, sys.stdout)


def parse(data: bytes) -> list[tuple[str, str, int]]:
    """As `read_pdf`, in this process and without its limits."""
    import pdfplumber
    from pdfminer.pdfdocument import PDFPasswordIncorrect
    from pdfplumber.utils.exceptions import PdfminerException

    try:
        with pdfplumber.open(io.BytesIO(data)) as pdf:
            if len(pdf.pages) > MAX_PAGES:
                raise Unreadable("too large", f"{len(pdf.pages):,} pages; at most {MAX_PAGES:,}")
            pages = [_page(page) for page in pdf.pages]
    except PdfminerException as error:
        cause = error.args[0] if error.args else error
        if isinstance(cause, PDFPasswordIncorrect):
            raise Unreadable("encrypted", "the PDF asks for a password: save it without") from None
        raise Unreadable("broken PDF", f"{type(cause).__name__} {cause}".strip()) from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        # pdfminer's own faults on damaged files
        raise Unreadable("broken PDF", f"{type(error).__name__}: {error}") from None
    lines = [line for page in pages for line in page]
    if not any(line["text"].strip() for line in lines):
        raise Unreadable("no text", "the PDF holds no text, perhaps scanned pages")
    return _assembled(lines)


def _page(page: Any) -> list[dict[str, Any]]:
    """Lines and tables of a page from top to bottom: text, top, bottom, size, bold, table."""
    tables = [table for table in page.find_tables() if len(table.rows) > 1]
    boxes = [table.bbox for table in tables]

    def outside(item: dict[str, Any]) -> bool:
        if item.get("object_type") != "char":
            return True
        across, down = (item["x0"] + item["x1"]) / 2, (item["top"] + item["bottom"]) / 2
        return not any(x0 <= across <= x1 and y0 <= down <= y1 for x0, y0, x1, y1 in boxes)

    found = []
    for line in page.filter(outside).extract_text_lines(return_chars=True):
        sizes = Counter(round(char["size"], 1) for char in line["chars"])
        bold = sum("bold" in char["fontname"].lower() for char in line["chars"])
        found.append(
            {
                "text": line["text"],
                "top": line["top"],
                "bottom": line["bottom"],
                "size": sizes.most_common(1)[0][0],
                "bold": bold > 0.9 * len(line["chars"]),
                "table": False,
            }
        )
    for table in tables:
        rows = [
            " | ".join(re.sub(r"\s+", " ", cell or "").replace("|", "¦") for cell in row)
            for row in table.extract()
        ]
        text = "\n".join(row for row in rows if row.strip(" |"))
        top, bottom = table.bbox[1], table.bbox[3]
        found.append({"text": text, "top": top, "bottom": bottom, "size": 0.0, "table": True})
    page.close()  # frees what it has parsed
    return sorted(found, key=lambda line: line["top"])


def _assembled(lines: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """Lines to blocks: headings by size, lines close to each other joined to paragraphs."""
    sizes: Counter[float] = Counter()
    for line in lines:
        if not line["table"]:
            sizes[line["size"]] += len(line["text"])
    body = sizes.most_common(1)[0][0] if sizes else 0.0
    large = sorted({size for size in sizes if size >= LARGER * body}, reverse=True)
    blocks: list[tuple[str, str, int]] = []
    before: dict[str, Any] | None = None
    for line in lines:
        text = line["text"].strip()
        if not text:
            continue
        level = 0
        if not line["table"] and len(text) <= HEADING_CHARACTERS:
            if line["size"] in large:
                level = 1 + large.index(line["size"])
            elif line["bold"] and line["size"] >= body and not text.endswith((".", "。", ":")):
                level = 1 + len(large)
        kind = "table" if line["table"] else "heading" if level else "text"
        same = blocks and blocks[-1][::2] == (kind, level) and kind != "table"
        if same and before is not None and _continues(before, line):
            blocks[-1] = (kind, _joined(blocks[-1][1], text), level)
        else:
            blocks.append((kind, text, level))
        before = line
    return blocks


def _continues(before: dict[str, Any], line: dict[str, Any]) -> bool:
    """Whether a line is the next one of the same paragraph: same letters, no gap."""
    gap = line["top"] - before["bottom"]
    return before["size"] == line["size"] and -line["size"] < gap < 0.6 * line["size"]


def _joined(text: str, line: str) -> str:
    if re.search(r"[a-z]-\Z", text) and line[:1].islower():
        return text[:-1] + line  # a word divided at the end of a line
    wide = re.compile(r"[\u3000-\u9fff\uff00-\uffef]")  # scripts that put no space between words
    between = "" if wide.match(text[-1:]) and wide.match(line[:1]) else " "
    return text + between + line


if __name__ == "__main__":
    _main()
