"""What all pages of the report site share: the layout, the style sheet, the navigation.

Guarantees: a page is one file with its style inside. Out of scope: the content of pages (`site`,
`front_page`, `documents`).
"""

import json
import re
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from moxin_lab.lab import sorting
from moxin_lab.lab.artifacts import write_atomically
from moxin_lab.lab.captions import add_order, name_values

WORDS_PER_MINUTE = 200
"""Reading speed of technical prose; our choice."""

_PATH_LETTER = r"[^\s\x1b'\"<>()\[\]{}|:,;]"
_NAME = r"[^\s\x1b'\"<>()\[\]{}|:,;/\\]+"
_SLASH = r"\\*/"
r"""Some writers of JSON spell `/` as `\/`, and a JSON text inside another doubles the backslash."""
_LETTER = r"A-Za-z0-9_\u00c0-\u052f"
"""Of a script that puts spaces between words; directly after a Chinese letter, a path may begin."""
_START = (
    # a terminal's colour, an address of a file, a line break as Python spells it, or nothing that a
    # path goes on from
    rf"(?:(?<=\dm)|(?<=file://)|(?<=\\[nrt])|(?<![{_LETTER}.~<\]/\\-]))"
)
_OF_EVERY_SYSTEM = ("dev", "proc", "sys")


@dataclass(frozen=True)
class NavItem:
    """A stage in the site's navigation; `href` is None while it has no page."""

    name: str
    title: str
    href: str | None
    state: str
    """One of: done, failed, not run, run by hand."""

    @property
    def number(self) -> str:
        return self.name.split("_", 1)[0]


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render a template of `templates/` into a file; every page's template takes `scale`, `nav`,
    `documents`, `here`, `kind`, `page_title` and `contents`.
    """
    write_atomically(path, rendered(template, **values))


def rendered(template: str, **values: Any) -> str:
    """The page that `write_page` writes."""
    return _template(template).render(css=_css(), **values)


def reading_minutes(html: str) -> int:
    """Minutes that the prose of a page takes: code, tables with their lists of orders, and pictures
    do not count.
    """
    prose = re.sub(r"(?s)<(pre|table|select|svg|details|math)\b.*?</\1>", " ", html)
    return max(1, round(len(re.sub(r"<[^>]+>", " ", prose).split()) / WORDS_PER_MINUTE))


def inside(address: str, hrefs: Mapping[str, str | None]) -> str | None:
    """Address in the site of another stage's notebook; None for any other file."""
    path, _, fragment = address.partition("#")
    href = hrefs.get(Path(path).stem) if Path(path).suffix in (".ipynb", ".html") else None
    return f"{href}#{fragment}" if href and fragment else href


def presentable(text: str, root: Path, *, of_program: bool = False) -> str:
    """Text without this machine's folders and without the kernel's temporary file names, which
    differ between equal runs.

    Paths below `root` become relative, others begin with `~`, `[tmp]` or `[python]` (the
    environment and its interpreter). of_program: the text is a warning or a traceback, whose paths
    are all of this machine; of any other path that begins with a folder at the top of this machine,
    `[elsewhere]` and the last name are left. Other text, such as a page of a manual, may speak of
    /tmp or /etc: there a path below /tmp or /root counts if it exists.
    """
    if "/ipykernel_" in text:
        cell = rf"{_START}/(?:{_PATH_LETTER}{{0,200}}/)?ipykernel_\d+/\d+\.py"
        text = re.sub(cell, "<cell>", text)
    for folder, label in _machine_folders(root).items():
        # as it is, in an address, and in JSON without letters beyond ASCII
        for spelled in {str(folder), quote(str(folder)), json.dumps(str(folder))[1:-1]}:
            if spelled.rpartition("/")[2].rpartition("\\")[2] in text:
                text = _with_label(text, folder, spelled, label, of_program)
    if not of_program or not any(top.name in text for top in Path("/").iterdir()):
        return text
    return re.sub(
        rf"{_START}({_SLASH})({_NAME}){_SLASH}(?:{_PATH_LETTER}*/)?({_NAME})", _elsewhere, text
    )


def _machine_folders(root: Path) -> dict[Path, str]:
    labels = {root.resolve(): "", root.absolute(): ""}
    for name in ("purelib", "stdlib"):
        labels.setdefault(Path(sysconfig.get_path(name)).parent, "[python]")
    for prefix in (sys.prefix, sys.base_prefix):
        if len(Path(prefix).parts) > 2:  # /usr is not Python's alone
            labels.setdefault(Path(prefix), "[python]")
    labels.setdefault(Path(tempfile.gettempdir()), "[tmp]")
    labels.setdefault(Path.home(), "~")
    return {folder: label for folder, label in labels.items() if folder.parent != folder}


def _with_label(text: str, folder: Path, spelled: str, label: str, of_program: bool) -> str:
    start = _START + re.escape(spelled).replace(r"\\", r"\\+").replace("/", _SLASH)
    if len(folder.parts) > 2 or of_program:
        text = re.sub(
            rf"{start}({_SLASH})(?={_PATH_LETTER})",
            lambda path: label and label + path[1],
            text,
        )
        return re.sub(rf"{start}(?:{_SLASH}|(?![{_LETTER}.-]))", label or ".", text)

    def of_this_machine(path: re.Match[str]) -> str:
        name = path[2].rstrip(".").replace("\\", "")
        is_there = len(name) < 1000 and (folder / name).exists()
        return f"{label}{path[1]}{path[2]}" if is_there else path[0]

    return re.sub(rf"{start}({_SLASH})({_PATH_LETTER}+)", of_this_machine, text)


def _elsewhere(path: re.Match[str]) -> str:
    top = path[2]
    if top in _OF_EVERY_SYSTEM or not Path("/", top).is_dir():
        return path[0]
    return f"[elsewhere]{path[1]}{path[3]}"


def readable(html: str) -> Any:
    """HTML of a template whose tables are as those of a notebook: rows of wide ones stacked on a
    telephone, a list of orders above long ones.
    """
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    for table in soup.select(".scroll > table"):
        if not {"stack", "claims"} & set(table.get_attribute_list("class")):
            name_values(table)  # the others have a way of their own
        add_order(table, soup)
    return markup(str(soup))


def markup(html: str) -> Any:
    from markupsafe import Markup

    return Markup(html)


@cache
def _template(name: str) -> Any:
    import jinja2

    folder = Path(__file__).parent / "templates"
    loader = jinja2.FileSystemLoader(folder)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["readable"] = readable
    return environment.get_template(name)


@cache
def _css() -> Any:
    written = (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    return markup(written.replace("/* rules of sorting.py */", sorting.rules()))
