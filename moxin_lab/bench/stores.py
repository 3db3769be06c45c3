"""`moxin-lab bench stores`: where a knowledge base is kept, SQLite beside LanceDB and DuckDB.

All keep the same passages of the help pages with random vectors of 384 numbers, and answer the same
headings by BM25 over pre-cut terms and by exact cosine. `--pages` sets how many pages of one
language; ten thousand are all four languages.

Guarantees: the same passages, terms, vectors and questions; a store that is not installed, or that
has no full-text search without fetching an extension, is a row with its reason.
Out of scope: how good the answers are, approximate vector indexes, several writers.
"""

import argparse
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moxin_lab.bench.keeping import Keep, keeping

DIMENSION = 384
Vectors = NDArray[np.float32]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pages", type=int, default=2560, help="of one language (default 2560)")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--cards", type=Path, default=Path("data_cards"))


@keeping("stores")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: one per store with CPU seconds to build, megabytes on disk and of the package, CPU
    milliseconds to open and answer the first question, and of the median question.
    """
    passages, questions = _material(options)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((len(passages), DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = vectors[rng.integers(len(vectors), size=len(questions))]
    rows: list[dict[str, Any]] = []
    result = {"passages": len(passages), "questions": len(questions), "rows": rows}
    for name, package, store in (
        ("SQLite FTS5, vectors as BLOBs", "sqlite3", _sqlite),
        ("LanceDB", "lancedb", _lancedb),
        ("DuckDB", "duckdb", _duckdb),
    ):
        if find_spec(package) is None:
            rows.append({"store": name, "reason": f"not installed: pip install {package}"})
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = _measured(store, Path(folder), passages, vectors, questions, asked)
            except Unavailable as error:
                row = {"reason": str(error)}
        rows.append({"store": name, **row, "package_mb": _package_mb(package)})
        keep(result)
    return result


class Unavailable(RuntimeError):
    """Why a store cannot do what is asked without fetching something."""


Search = Callable[[list[str], NDArray[np.float32]], Any]
"""(terms of a question, its vector) to both halves' first hundred."""
Store = Callable[[Path, list[str], Vectors], Callable[[], Search]]
"""Builds in a folder; what it returns opens it again."""


def _measured(
    store: Store,
    folder: Path,
    passages: list[str],
    vectors: Vectors,
    questions: list[list[str]],
    asked: Vectors,
) -> dict[str, Any]:
    start = time.process_time()
    opener = store(folder, passages, vectors)
    built = time.process_time()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    opened = time.process_time()
    search = opener()
    search(questions[0], asked[0])
    first = time.process_time() - opened
    each = []
    for words, vector in zip(questions, asked, strict=True):
        begin = time.process_time()
        search(words, vector)
        each.append(time.process_time() - begin)
    return {
        "build_cpu_s": built - start,
        "disk_mb": size / 1e6,
        "open_and_first_cpu_ms": 1000 * first,
        "question_cpu_ms": 1000 * statistics.median(each),
    }


def _sqlite(folder: Path, passages: list[str], vectors: Vectors) -> Callable[[], Search]:
    path = folder / "index.sqlite"
    database = sqlite3.connect(path)
    database.execute("create table vectors (id integer primary key, vector blob)")
    database.execute("create virtual table lexical using fts5(text, content='', tokenize=porter)")
    half = vectors.astype(np.float16)
    database.executemany(
        "insert into vectors values (?, ?)", ((i, row.tobytes()) for i, row in enumerate(half))
    )
    database.executemany("insert into lexical(rowid, text) values (?, ?)", enumerate(passages))
    database.commit()
    database.close()

    def opener() -> Search:
        opened = sqlite3.connect(path)
        rows = opened.execute("select vector from vectors order by id").fetchall()
        joined = b"".join(row for (row,) in rows)
        matrix = np.frombuffer(joined, np.float16).reshape(len(rows), -1).astype(np.float32)

        def search(words: list[str], vector: NDArray[np.float32]) -> Any:
            query = " OR ".join(f'"{word}"' for word in words)
            lexical = opened.execute(
                "select rowid, bm25(lexical) from lexical where lexical match ? order by 2 limit "
                "100",
                (query,),
            ).fetchall()
            return lexical, np.argpartition(-(matrix @ vector), 100)[:100]

        return search

    return opener


def _lancedb(folder: Path, passages: list[str], vectors: Vectors) -> Callable[[], Search]:
    import lancedb
    import pyarrow as pa

    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSION)
    table = pa.table({"id": range(len(passages)), "text": passages, "vector": flat})
    made = lancedb.connect(folder).create_table("passages", table)
    made.create_fts_index("text", base_tokenizer="whitespace", stem=True, remove_stop_words=False)

    def opener() -> Search:
        opened = lancedb.connect(folder).open_table("passages")

        def search(words: list[str], vector: NDArray[np.float32]) -> Any:
            text = opened.search(" ".join(words), query_type="fts").limit(100)
            near = opened.search(vector).metric("cosine").limit(100)
            return text.to_arrow(), near.to_arrow()

        return search

    return opener


def _duckdb(folder: Path, passages: list[str], vectors: Vectors) -> Callable[[], Search]:
    import duckdb

    database = duckdb.connect(folder / "index.duckdb")
    try:
        database.execute("load fts")
    except duckdb.Error:
        raise Unavailable(
            "its full-text search is an extension that the package does not hold and that is "
            "fetched when it is first used"
        ) from None
    raise Unavailable("its extension for full-text search is here; this bench has no row for it")


def _material(options: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
    """Terms of every passage joined by spaces, and terms of the headings that ask."""
    from moxin_lab.serving import passages, questions
    from moxin_lab.serving.terms import question_terms, terms

    card = options.cards / "help_pages"
    pages = questions.read_pages(card, ["en"], options.pages)["en"]
    texts = [
        " ".join(terms(f"{' '.join(one.headings)} {one.text}"))
        for page in pages
        for one in passages.cut(page.document)
    ]
    asked = [question_terms(one.text) for one in questions.title_questions(pages)]
    asked = [words for words in asked if words]
    count = min(options.questions, len(asked))
    return texts, [asked[i * len(asked) // count] for i in range(count)]


def _package_mb(package: str) -> float | None:
    """Megabytes of an installed package; None for what Python itself brings."""
    if package in ("sqlite3",):
        return None
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None, "it was used a moment ago"
    folder = Path(spec.origin).parent
    files = [*folder.rglob("*"), *folder.parent.glob(f"_{package}*")]
    return sum(path.stat().st_size for path in files if path.is_file()) / 1e6
