"""Which files of a package belong to the corpus, and what each one is.

    usr/share/help/ko/gnome-help/about.page  ->  docbook, ko, page usr/share/help/*/...

Guarantees: the format is decided by the file's name alone; translations of a page have equal
`page`; programming languages are named as Pygments names them, and of two languages that share an
ending the choice is the one written below.
Out of scope: the natural language of the content, which curation identifies; what to do with a
file (`corpus_text.py`).
"""

import fnmatch
import re
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Literal

from pygments.lexers import get_all_lexers

from moxin_lab.data.archives import Archive

FORMATS = ("html", "rst", "man", "docbook", "catalogue", "code")

_MAN = re.compile(r"(?:^|/)man/(?:[^/]+/)?man[1-9]\w*/[^/]+$")
_LOCALE = re.compile(r"^([a-z]{2,3})(?:[_-][A-Za-z]{2,4})?(?:\.[\w-]+)?(?:@\w+)?$")
CHOSEN = {
    ".h": "c", ".inc": "delphi", ".pas": "delphi", ".pp": "delphi", ".m": "objective-c",
    ".pl": "perl", ".pm": "perl", ".s": "gas", ".S": "gas", ".cl": "common-lisp", ".t": "perl",
    ".v": "verilog", ".ts": "typescript", ".sql": "sql", ".rs": "rust", ".cls": "openedge",
    ".js": "javascript", ".mjs": "javascript", ".py": "python", ".vim": "vim", ".el": "emacs-lisp",
    ".lisp": "common-lisp", ".go": "go", ".rkt": "racket", ".scrbl": "racket", ".c": "c",
    ".cpp": "cpp", ".java": "java", ".sh": "bash", ".r": "splus", ".R": "splus", ".d": "d",
    ".f90": "fortran", ".hs": "haskell", ".ml": "ocaml", ".scm": "scheme", ".pro": "prolog",
}  # fmt: skip
_NO_CODE = frozenset((".html", ".htm", ".txt", ".svg", ".css", ".min.js", ".json", ".xml", ".po"))


@dataclass(frozen=True)
class Package:
    """An entry of `corpus_packages.yml`."""

    archive: Archive
    bytes: int
    """Size of the archive."""
    project: str
    """Packages of one project, such as its translations, share it; the split keeps it together."""
    include: tuple[str, ...]
    """Patterns of `fnmatch` over a file's path in the archive; `*` crosses folders."""
    exclude: tuple[str, ...] = ()
    language: str = "en"
    """Of files whose path names none: ISO 639, or `code`."""
    locale: str = ""
    """Regular expression whose group is the part of a path that names the language."""
    code: Literal["", "name", "folder"] = ""
    """Where a program's language is read: its file name, or the folder below the first `include`
    (Pygments' examples). Empty: the package has no code."""


@dataclass(frozen=True)
class File:
    """What a file of a package is."""

    page: str
    language: str
    format: str
    code_language: str
    """Pygments' name of the programming language; empty for text."""


def is_wanted(package: Package, path: str) -> bool:
    """Whether a file of `package` belongs to the corpus."""
    return (
        any(fnmatch.fnmatchcase(path, pattern) for pattern in package.include)
        and not any(fnmatch.fnmatchcase(path, pattern) for pattern in package.exclude)
        and _format(package, path)[0] != ""
    )


def describe(package: Package, path: str) -> File:
    """What the file is. Raises ValueError if it is not wanted."""
    format, code_language = _format(package, path)
    if not format:
        raise ValueError(f"{path} of {package.archive.package} has no format of the corpus")
    page, language = path, package.language
    found = re.search(package.locale, path) if package.locale else None
    if found:
        page = f"{path[: found.start(1)]}*{path[found.end(1) :]}"
        language = _language(found[1]) or language
    return File(
        page=f"{package.project}/{page}",
        language="code" if code_language else language,
        format=format,
        code_language=code_language,
    )


def _format(package: Package, path: str) -> tuple[str, str]:
    """Format and programming language; ("", "") for neither text nor code of the corpus."""
    name = PurePosixPath(path).name
    if package.code:
        language = _code_language(path, package.code)
        return ("code", language) if language else ("", "")
    if re.search(r"\.x?html?$", name):
        return "html", ""
    if name.endswith((".rst", ".rst.txt")):
        return "rst", ""
    if _MAN.search(path):
        return "man", ""
    if name.endswith((".page", ".docbook")):
        return "docbook", ""
    return ("catalogue", "") if name.endswith(".mo") else ("", "")


def _language(locale: str) -> str:
    """ISO 639 code of a locale: `zh` for `zh_CN`, `en` for `C`; empty if it is none."""
    found = _LOCALE.match(locale)
    return "en" if locale == "C" else found[1] if found else ""


def _code_language(path: str, by: str) -> str:
    if by == "folder":  # .../examplefiles/LANGUAGE/file
        parts = path.split("/")
        return "" if path.endswith(".output") or len(parts) < 2 else parts[-2]
    suffix = PurePosixPath(path).suffix
    return "" if suffix in _NO_CODE else CHOSEN.get(suffix) or _suffixes().get(suffix, "")


@cache
def _suffixes() -> dict[str, str]:
    """File ending to Pygments' name, for endings that belong to one language only."""
    names: dict[str, set[str]] = {}
    for _, aliases, patterns, _ in get_all_lexers(plugins=False):
        for pattern in patterns:
            if aliases and re.fullmatch(r"\*\.\w+", pattern):
                names.setdefault(pattern[1:], set()).add(aliases[0])
    return {suffix: next(iter(found)) for suffix, found in names.items() if len(found) == 1}
