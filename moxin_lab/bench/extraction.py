"""`moxin-lab bench extraction`: HTML to text, ours beside resiliparse and trafilatura.

Reads the help pages of the tree, or a folder of pages (`--folder`, with `--mark`, the publisher's
own mark of the content, and `--language`). `--half` splits the pages, so that a change of
`moxin_lab/data/html_text.py` is chosen on the even half and reported on the odd one. Its present
settings were chosen on 60 pages per language of this site and 60 per site of six others.

Guarantees: all methods read the same pages in the same process; a peer that is not installed is a
row with its reason. Out of scope: pages whose publisher marks no content.
"""

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PEER = "trafilatura"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, help="pages (*.html) in place of the help pages")
    parser.add_argument("--mark", default=None, help="CSS selector of the content of a page")
    parser.add_argument("--language", default="und", help="of the pages in --folder")
    parser.add_argument("--half", choices=("odd", "even"), default="odd", help="default: odd")
    parser.add_argument(
        "--pages", type=int, default=400, help="about so many, in each language (default 400)"
    )
    parser.add_argument("--cards", type=Path, default=Path("data_cards"))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Rows: one per method and language. `scripts`: characters lost by script and method. `speed`:
    MB/s and the slowest page of each method.
    """
    from moxin_lab.data import measures

    pages = _pages(options)
    mark = options.mark or measures.MAIN_AREA
    methods = {**measures.METHODS, **_peers()}
    marked = [(language, content.decode("utf-8", "replace")) for language, _, content in pages]
    rows = measures.extraction_agreement(marked, mark, methods).to_dict("records")
    if PEER not in methods:
        rows.append({"method": PEER, "reason": f"not installed: pip install {PEER}"})
    named = [(name, html.encode()) for (_, name, _), (_, html) in zip(pages, marked, strict=True)]
    return {
        "mark": mark,
        "half": options.half,
        "rows": rows,
        "scripts": measures.lost_characters(marked, mark, methods).to_dict("records"),
        "speed": measures.extraction_speed(named, methods).to_dict("records"),
    }


def _pages(options: argparse.Namespace) -> list[tuple[str, str, bytes]]:
    """Language, name and bytes of pages of one half, a regular sample in the order of names.

    Of a help page all languages are taken. Raises ValueError if there are no pages.
    """
    from moxin_lab.data.card_files import read_card

    found: dict[str, list[tuple[str, str, bytes]]] = {}
    if options.folder is not None:
        for file in options.folder.rglob("*.html"):
            name = str(file.relative_to(options.folder))
            found[name] = [(options.language, name, file.read_bytes())]
    else:
        for row in read_card(options.cards / "help_pages").to_pylist():
            name = f"{row['language']}/{row['page']}"
            found.setdefault(row["page"], []).append((row["language"], name, row["html"]))
    half = sorted(found)[options.half == "odd" :: 2]
    if not half:
        raise ValueError(f"{options.folder or options.cards} holds no pages")
    return [page for name in half[:: max(len(half) // options.pages, 1)] for page in found[name]]


def _peers() -> dict[str, Callable[[str], str]]:
    """trafilatura with its setting for recall, if it is installed."""
    if find_spec(PEER) is None:
        return {}
    import trafilatura

    return {PEER: lambda html: trafilatura.extract(html, favor_recall=True) or ""}
