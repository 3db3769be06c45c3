"""Rules for program code: its language, its licence, filters of files, near-duplicates.

    language_of("lib/stack.h", text)     # "cpp", by the file's name, then by what is in it
    check(text)                          # the first finding of RULES, or None
    statistics(documents)                # a table with a row for every language present

Sources of the limits: StarCoder (arXiv 2305.06161, section 3.3) for lines and the alphanumeric
share; CodeParrot and GitHub's linguist (lib/linguist/generated.rb) for the marks of generated
files; huggingface/blog dedup.md for the near-duplicates of The Stack (256 permutations, 0.7).

Guarantees: every rule is a pure function of the text, takes time linear in it and never fails;
languages are named as Pygments names them.
Out of scope: whether code is correct; a licence text inside a file, which only the licence field of
its package stands for; secrets (`pii`).
"""

import re
from collections import defaultdict
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import pyarrow as pa
from pygments.lexers import find_lexer_class_by_name, get_all_lexers
from pygments.util import ClassNotFound

from moxin_lab.data.corpus_rules import CHOSEN
from moxin_lab.data.dedup import Settings
from moxin_lab.data.findings import Finding

MEAN_LINE = 100
LONGEST_LINE = 1_000
ALPHANUMERIC = 0.25
GENERATED_LINES = 10
"""First lines that may say that a file was generated."""
NEAR_DUPLICATES = Settings(25, 256, 25, 10, 0.7)
"""The Stack's: 5-grams of tokens, 256 permutations, Jaccard 0.7. Five tokens of code are about 25
characters, which is our width; bands and rows are datasketch's for 0.7 of 256 permutations.
"""
CONTENT_CHARACTERS = 20_000
"""Beginning of a file that is read to tell its language."""

_GENERATED = re.compile(
    r"auto[- ]?generated|automatically generated|generated (?:by|from|with|file|code)\b"
    r"|do not (?:edit|modify)\b.{0,40}(?:generated|by hand|manually)|machine generated"
    r"|@generated\b|DO NOT EDIT",
    re.I,
)
# Permissive licences in use, by SPDX id: those of Blue Oak Council's list and public domain.
_PERMISSIVE = re.compile(
    r"(?:MIT(?:-0|-Modern-Variant)?|BSD-[0-9]-Clause(?:-Patent|-Clear|-LBNL)?|0BSD|ISC"
    r"|Apache-(?:1\.1|2\.0)|Unlicense|CC0-1\.0|Zlib|zlib-acknowledgement|BSL-1\.0|PostgreSQL"
    r"|Python-2\.0(?:\.1)?|PSF-2\.0|CNRI-Python|X11|curl|[Ll]ibpng(?:-2\.0)?|NCSA|W3C|HPND|ICU"
    r"|TCL|Unicode-(?:3\.0|DFS-201[56])|WTFPL|FTL|MulanPSL-2\.0|AFL-[123]\.[0-9]|ECL-2\.0|UPL-1\.0"
    r"|BlueOak-1\.0\.0|Artistic-2\.0|MS-PL|OpenSSL|Ruby|LicenseRef-public-domain)"
)
# Endings that several languages share, after GitHub's linguist: the first pattern found decides,
# then corpus_rules.CHOSEN.
_CONTENT = {
    ".h": (
        ("objective-c", r"^\s*(?:@(?:interface|protocol|property|class|end)\b|#import\b)"),
        ("cpp", r"^\s*(?:class\s+\w+|namespace\b|template\s*<|(?:public|private|protected):|using\s"
                r"|#include\s*<(?:c?string|vector|iostream|memory|map|utility)>)|\bstd::"),
    ),
    ".m": (
        ("objective-c", r"^\s*(?:@(?:interface|implementation|protocol|end)\b|#import\b)"),
        ("matlab", r"^\s*(?:function\b|%|classdef\b)"),
        ("mathematica", r"\(\*|:=|^BeginPackage"),
    ),
    ".pl": (
        ("perl", r"^\s*(?:use|package|my|sub)\b|^#!.*perl"),
        ("prolog", r"^[^#\n]*:-"),
    ),
    ".pro": (
        ("prolog", r"^[^#\n]*:-"),
        ("idl", r"^\s*(?:pro|function)\s+\w+"),
    ),
    ".v": (("coq", r"^\s*(?:Require|Theorem|Lemma|Proof|Definition|Inductive)\b.*\.?$"),),
    ".ts": (("xml", r"\A\s*(?:<\?xml|<!DOCTYPE TS|<TS\b)"),),
    ".fs": (("forth", r"^(?:: |\\ )"),),
    ".inc": (("php", r"<\?php"), ("pov", r"^\s*#(?:declare|local|macro)\b")),
    ".cl": (("c", r"__kernel\b|\bkernel void\b"),),
    ".s": (("ca65", r"^\s*\.(?:segment|proc|zeropage)\b"),),
    ".r": (("rebol", r"\A\s*REBOL\b"),),
}  # fmt: skip
_INTERPRETER = re.compile(
    r"#!\s*\S*?(?:/env(?:\s+-\S+)*\s+)?(?:\w+=\S+\s+)*([A-Za-z][\w+-]*?)[\d.]*(?:\s|$)"
)
_MODELINE = re.compile(
    r"(?:\bvim?:.*?\b(?:ft|filetype)=|-\*-\s*(?:mode:\s*)?)([A-Za-z][\w+-]*)", re.I
)


def language_of(path: str, text: str) -> str:
    """The programming language of a file, as Pygments names it; "" if neither its name nor its
    content tells.

    The name's ending, or the whole name (Makefile), decides where one language has it; where
    several do, the content; else the interpreter of the first line, or an editor's mode line.
    """
    name, beginning = PurePosixPath(path).name, text[:CONTENT_CHARACTERS]
    suffix = PurePosixPath(path).suffix
    for language, pattern in _content().get(suffix, ()):
        if pattern.search(beginning):
            return language
    if suffix in CHOSEN:
        return CHOSEN[suffix]
    found = _by_name(name) or _by_suffix().get(suffix, [])
    if len(found) > 1:
        # The first of equals: Pygments' order is that of names.
        return max(found, key=lambda alias: _likeness(alias, beginning))
    return found[0] if found else _by_first_lines(beginning)


def line_length(text: str) -> Finding | None:
    """Mean and longest line in characters."""
    lengths = [len(line) for line in text.splitlines()] or [0]
    if max(lengths) > LONGEST_LINE:
        return Finding("longest line", str(max(lengths)))
    mean = sum(lengths) / len(lengths)
    return Finding("mean line", f"{mean:.1f}") if mean > MEAN_LINE else None


def alphanumeric_share(text: str) -> float:
    """Share of the characters that are letters or digits; 0 for an empty text."""
    return sum(map(str.isalnum, text)) / max(1, len(text))


def alphanumeric(text: str) -> Finding | None:
    """Share of letters and digits."""
    share = alphanumeric_share(text)
    return Finding("alphanumeric characters", f"{share:.3f}") if share < ALPHANUMERIC else None


def generated(text: str) -> Finding | None:
    """Whether one of the first lines says that a program wrote the file."""
    for line in text[:CONTENT_CHARACTERS].splitlines()[:GENERATED_LINES]:
        found = _GENERATED.search(line[:LONGEST_LINE])
        if found:
            return Finding("generated file", found[0])
    return None


RULES: tuple[Callable[[str], Finding | None], ...] = (line_length, alphanumeric, generated)


def check(text: str) -> Finding | None:
    """The first finding of `RULES`."""
    return next((found for rule in RULES if (found := rule(text)) is not None), None)


# ---- licences


def is_permissive(licence: str) -> bool:
    """Whether an SPDX licence expression permits use under permissive licences alone.

    Of `A OR B` one must be permissive, of `A AND B` both; an exception (`WITH`) takes none of the
    permissions away. Empty: no. ValueError for what is no expression.
    """
    if not licence.strip():
        return False
    words = re.findall(r"[()]|[^\s()]+", licence)
    value, rest = _either(words)
    if rest:
        raise ValueError(f"{licence!r} is no SPDX licence expression: {rest[0]!r} is left over")
    return value


def licence_field(licence: str) -> Finding | None:
    """The finding of a document whose licence is not permissive, or is no SPDX expression."""
    try:
        permissive = is_permissive(licence)
    except ValueError as error:
        return Finding("licence not understood", str(error))
    return None if permissive else Finding("licence not permissive", licence or "none")


def _either(words: list[str]) -> tuple[bool, list[str]]:
    value, words = _both(words)
    while words and words[0].upper() == "OR":
        other, words = _both(words[1:])
        value = value or other
    return value, words


def _both(words: list[str]) -> tuple[bool, list[str]]:
    value, words = _one(words)
    while words and words[0].upper() == "AND":
        other, words = _one(words[1:])
        value = value and other
    return value, words


def _one(words: list[str]) -> tuple[bool, list[str]]:
    if not words or words[0] == ")" or words[0].upper() in ("AND", "OR", "WITH"):
        raise ValueError("a licence is missing in an SPDX licence expression")
    if words[0] == "(":
        value, words = _either(words[1:])
        if not words or words[0] != ")":
            raise ValueError("a bracket of an SPDX licence expression is not closed")
        return value, words[1:]
    value, words = _PERMISSIVE.fullmatch(words[0]) is not None, words[1:]
    if words and words[0].upper() == "WITH":
        if len(words) < 2:
            raise ValueError("an exception is missing in an SPDX licence expression")
        words = words[2:]
    return value, words


# ---- all languages of a corpus


def statistics(documents: pa.Table) -> pd.DataFrame:
    """One row for every language present, the most bytes first.

    documents: columns code_language, text, licence. Columns: language, files, MB, lines (of all
    files), mean line (characters, of all lines), alphanumeric share (of the characters), then the
    files that each rule and the licence field remove, as if it were the only one.
    """
    rows: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(6 + len(RULES) + 1))
    columns = (documents[name] for name in ("code_language", "text", "licence"))
    for language, text, licence in zip(*columns, strict=True):
        content = text.as_py()
        lines = content.splitlines()
        removed = [rule(content) is not None for rule in RULES]
        removed.append(licence_field(licence.as_py() or "") is not None)
        rows[language.as_py() or ""] += (
            1,
            len(content.encode("utf-8", "surrogatepass")) / 1e6,
            len(lines),
            sum(map(len, lines)),
            len(content),
            sum(map(str.isalnum, content)),
            *removed,
        )
    table = [
        (
            name,
            int(row[0]),
            row[1],
            int(row[2]),
            row[3] / max(1.0, row[2]),
            row[5] / max(1.0, row[4]),
            *row[6:].astype(int),
        )
        for name, row in rows.items()
    ]
    names = [rule.__name__.replace("_", " ") for rule in (*RULES, licence_field)]
    columns_out = ["language", "files", "MB", "lines", "mean line", "alphanumeric share", *names]
    frame = pd.DataFrame(table, columns=columns_out)
    return frame.sort_values(["MB", "language"], ascending=[False, True], ignore_index=True)


# ---- Pygments' names


@cache
def _content() -> dict[str, tuple[tuple[str, re.Pattern[str]], ...]]:
    return {
        suffix: tuple((language, re.compile(pattern, re.M)) for language, pattern in patterns)
        for suffix, patterns in _CONTENT.items()
    }


@cache
def _by_suffix() -> dict[str, list[str]]:
    """File ending to the languages that have it."""
    names: dict[str, list[str]] = defaultdict(list)
    for _, aliases, patterns, _ in get_all_lexers(plugins=False):
        for pattern in patterns:
            if aliases and re.fullmatch(r"\*\.[\w+-]+", pattern):
                names[pattern[1:]].append(aliases[0])
    return dict(names)


@cache
def _by_name(name: str) -> list[str]:
    """Languages with a pattern for the whole name, such as Makefile or CMakeLists.txt."""
    return [
        aliases[0]
        for _, aliases, patterns, _ in get_all_lexers(plugins=False)
        for pattern in patterns
        if aliases and not re.fullmatch(r"\*\.[\w+-]+", pattern) and fnmatchcase(name, pattern)
    ][:1]


def _by_first_lines(text: str) -> str:
    lines = text[:2_000].splitlines()
    found = _INTERPRETER.match(lines[0]) if lines else None
    marks = [found[1]] if found else []
    marks += [match[1] for line in lines[:5] if (match := _MODELINE.search(line))]
    for mark in marks:
        try:
            return str(find_lexer_class_by_name({"node": "javascript"}.get(mark, mark)).aliases[0])
        except ClassNotFound:
            continue
    return ""


def _likeness(alias: str, text: str) -> float:
    return float(find_lexer_class_by_name(alias).analyse_text(text))
