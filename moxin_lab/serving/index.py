"""The index of a knowledge base: one SQLite file with documents, passages, BM25 and vectors.

    build(folder_of_documents, DIR, encoder="none")     # writes DIR/index.sqlite
    with open_index(DIR) as index:
        index.lexical("How do I insert a table?", 20)    # [(passage id, BM25 score), ...]
        index.dense("How do I insert a table?", 20)      # [(passage id, cosine), ...]

SQLite was chosen by measurement over LanceDB and DuckDB: docs/knowledge-base.md. Its FTS5 computes
BM25 (k1 1.2, b 0.75) with a weight for each field; vectors are float16 and compared exactly, which
takes milliseconds for the passages of ten thousand pages.

Guarantees: an index is whole or not there (it is written beside and renamed); what it was made of,
with which encoder, is in it; the same documents give the same passages in the same order; a file
that is no index, or of another version, is refused.
Out of scope: which half is right (`retrieval.py`); changing an index (build it again).
"""

import contextlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moxin_lab.lab.artifacts import LabError
from moxin_lab.serving import encoders, passages
from moxin_lab.serving.documents import Document, read_folder
from moxin_lab.serving.terms import question_terms, terms

FILE = "index.sqlite"
VERSION = 1
NO_ENCODER = "none"
FIELD_WEIGHTS = (10.0, 1.0, 1.0)
"""Weights of a term in the document's title, in the other headings and in the text; chosen on
validation questions, see docs/knowledge-base.md.
"""
BATCH = 2_048
_TABLES = """
create table facts (name text primary key, value text not null);
create table arrays (name text primary key, shape text not null, dtype text not null, data blob);
create table documents (id integer primary key, name text not null unique, title text not null);
create table paragraphs (
    document integer not null, number integer not null, kind text not null, headings text not null,
    text text not null, primary key (document, number)) without rowid;
create table passages (
    id integer primary key, document integer not null, first integer not null,
    last integer not null, headings text not null, text text not null, vector blob);
create virtual table lexical using fts5(
    title, headings, text, content='', tokenize="porter unicode61 remove_diacritics 2");
"""


@dataclass(frozen=True)
class Found:
    """A passage with its document: name and title; first, last: its paragraphs, from 1."""

    passage: int
    document: str
    title: str
    headings: tuple[str, ...]
    first: int
    last: int
    text: str


def build(
    source: Path, target: Path, *, encoder: str = NO_ENCODER, say: Callable[[str], Any] = print
) -> dict[str, str]:
    """Index every document below `source` into `target`; returns what could not be read, by name.

    Raises LabError where nothing can be read, or for an unknown encoder.
    """
    if encoder != NO_ENCODER and not encoders.installed(encoder):
        encoders.load(encoder)  # refused before the documents are read
    folder = read_folder(source)
    for name, reason in folder.unreadable.items():
        say(f"left out: {name}: {reason}")
    counts = build_from(folder.documents, target, encoder=encoder)
    say(
        f"{target}: {counts['documents']:,} documents, {counts['passages']:,} passages, vectors: "
        f"{encoder}"
    )
    return folder.unreadable


def build_from(
    documents: Iterable[Document],
    target: Path,
    *,
    encoder: str | encoders.Encoder = NO_ENCODER,
) -> dict[str, int]:
    """Index documents into `target`; an index that is there is replaced. Returns the counts."""
    target.mkdir(parents=True, exist_ok=True)
    new = target / f".{FILE}.{os.getpid()}"
    new.unlink(missing_ok=True)
    model: encoders.Encoder | None
    if isinstance(encoder, str):
        model = None if encoder == NO_ENCODER else encoders.load(encoder)
    else:
        model = encoder
    try:
        with contextlib.closing(_connect(new)) as database:
            database.executescript("pragma journal_mode = off; pragma synchronous = off;")
            database.executescript(_TABLES)
            counts = _fill(database, documents)
            if model is not None:
                _add_vectors(database, model)
            facts = {
                "version": str(VERSION),
                "encoder": NO_ENCODER
                if model is None
                else encoders.stored_name(model.name, target),
                **{name: str(value) for name, value in counts.items()},
            }
            database.executemany("insert into facts values (?, ?)", facts.items())
            database.execute("insert into lexical(lexical) values ('optimize')")
            database.commit()
        new.replace(target / FILE)
    finally:
        new.unlink(missing_ok=True)
    return counts


def _fill(database: sqlite3.Connection, documents: Iterable[Document]) -> dict[str, int]:
    count = passage = 0
    known: set[str] = set()
    for count, document in enumerate(documents, 1):
        if document.name in known:
            raise LabError(f"two documents have the name {document.name}")
        known.add(document.name)
        row = (count, document.name, document.title)
        database.execute("insert into documents values (?, ?, ?)", row)
        database.executemany(
            "insert into paragraphs values (?, ?, ?, ?, ?)",
            (
                (count, number, part.kind, _packed(part.headings), part.text)
                for number, part in enumerate(document.paragraphs, 1)
            ),
        )
        for one in passages.cut(document):
            passage += 1
            database.execute(
                "insert into passages values (?, ?, ?, ?, ?, ?, null)",
                (passage, count, one.first, one.last, _packed(one.headings), one.text),
            )
            database.execute(
                "insert into lexical(rowid, title, headings, text) values (?, ?, ?, ?)",
                (passage, *map(_spaced, (document.title, " ".join(one.headings[1:]), one.text))),
            )
    if not count:
        raise LabError("there is no document to index")
    return {"documents": count, "passages": passage}


def _add_vectors(database: sqlite3.Connection, model: encoders.Encoder) -> None:
    rows = database.execute("select id, headings, text from passages order by id").fetchall()
    texts = [embedded(json.loads(headings), text) for _, headings, text in rows]
    for name, array in model.fit(texts).items():
        value = (name, json.dumps(array.shape), str(array.dtype), array.tobytes())
        database.execute("insert into arrays values (?, ?, ?, ?)", value)
    for start in range(0, len(rows), BATCH):
        vectors = model.passages(texts[start : start + BATCH]).astype(np.float16)
        database.executemany(
            "update passages set vector = ? where id = ?",
            (
                (vector.tobytes(), row[0])
                for vector, row in zip(vectors, rows[start : start + BATCH], strict=True)
            ),
        )


def embedded(headings: Sequence[str], text: str) -> str:
    """What an encoder reads of a passage: its headings, then its text."""
    return f"{' › '.join(headings)}\n{text}"


def open_index(folder: Path, encoder: encoders.Encoder | None = None) -> "Index":
    """The index in `folder`. encoder: one that is loaded already, else the index's own is loaded
    when it is first needed. Raises LabError for what is no index.
    """
    path = folder / FILE
    remedy = f"build it: moxin-lab index DOCUMENTS {folder}"
    if not path.is_file():
        raise LabError(f"{folder} holds no index ({FILE}); {remedy}")
    database = _connect(path, read_only=True)
    try:
        facts = dict(database.execute("select name, value from facts"))
    except sqlite3.DatabaseError as error:
        database.close()
        raise LabError(f"{path} is no index of this program ({error}); {remedy}") from None
    if facts.get("version") != str(VERSION):
        database.close()
        raise LabError(f"{path} has version {facts.get('version')}, not {VERSION}; {remedy}")
    return Index(database, facts, folder, encoder)


class Index:
    """An open index; `with` closes it. Reading threads may share it."""

    def __init__(
        self,
        database: sqlite3.Connection,
        facts: dict[str, str],
        folder: Path,
        encoder: encoders.Encoder | None,
    ) -> None:
        self._database = database
        self.facts, self._folder = facts, folder
        self._encoder = encoder
        self._vectors: encoders.Vectors | None = None
        self._fitted: dict[str, NDArray[Any]] | None = None
        self.size = int(facts["passages"])

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    @property
    def has_vectors(self) -> bool:
        return self.facts["encoder"] != NO_ENCODER

    def lexical(
        self, question: str, count: int, *, weights: Sequence[float] = FIELD_WEIGHTS
    ) -> list[tuple[int, float]]:
        """The passages that share terms with the question: id and BM25 score, best first.

        weights: as FIELD_WEIGHTS.
        """
        words = question_terms(question)
        if not words:
            return []
        query = " OR ".join(f'"{word}"' for word in words)
        found = self._database.execute(
            "select rowid, -bm25(lexical, ?, ?, ?) as score from lexical where lexical match ? "
            "order by score desc, rowid limit ?",
            (*weights, query, count),
        )
        return [(int(passage), float(score)) for passage, score in found]

    def dense(self, question: str, count: int) -> list[tuple[int, float]]:
        """The passages whose vectors are closest to the question's: id and cosine, best first.

        Raises LabError for an index without vectors.
        """
        return self.nearest(self.encoder.queries([question])[0], count)

    def nearest(self, vector: encoders.Vectors, count: int) -> list[tuple[int, float]]:
        """As `dense`, for the vector of a question, float32 [d]."""
        cosines = self._matrix() @ vector
        count = min(count, len(cosines))
        best = np.argpartition(-cosines, count - 1)[:count]
        best = best[np.lexsort((best, -cosines[best]))]
        return [(int(place) + 1, float(cosines[place])) for place in best]

    @property
    def encoder(self) -> encoders.Encoder:
        """The encoder of the vectors. Raises LabError for an index without."""
        if not self.has_vectors:
            raise LabError("the index has no vectors: build it with --encoder")
        if self._encoder is None:
            self._encoder = encoders.load_stored(self.facts["encoder"], self._folder)
        name = encoders.stored_name(self._encoder.name, self._folder)
        if self.facts["encoder"] not in (name, self._encoder.name):
            raise LabError(f"the index has vectors of {self.facts['encoder']}, not of {name}")
        # Each time: indexes may share an encoder, and it learns something else of each corpus.
        if self._fitted is None:
            self._fitted = {
                name: np.frombuffer(data, dtype).reshape(json.loads(shape))
                for name, shape, dtype, data in self._database.execute("select * from arrays")
            }
        self._encoder.restore(self._fitted)
        return self._encoder

    def _matrix(self) -> encoders.Vectors:
        """Vectors of all passages, float32 [N, d], read once."""
        if self._vectors is None:
            rows = self._database.execute("select vector from passages order by id").fetchall()
            joined = b"".join(vector for (vector,) in rows)
            stored = np.frombuffer(joined, np.float16).reshape(len(rows), -1)
            self._vectors = stored.astype(np.float32)
        return self._vectors

    def frequencies(self, words: Iterable[str]) -> dict[str, int]:
        """In how many passages each term (of `terms`) occurs, after stemming."""
        counts: Counter[str] = Counter()
        for word in set(words):
            found = self._database.execute(
                "select count(*) from lexical where lexical match ?", (f'"{word}"',)
            )
            counts[word] = int(found.fetchone()[0])
        return dict(counts)

    def owners(self) -> dict[int, str]:
        """The name of each passage's document."""
        return dict(
            self._database.execute(
                "select p.id, d.name from passages p join documents d on d.id = p.document"
            )
        )

    def passage(self, number: int) -> Found:
        """The passage of an id."""
        row = self._database.execute(
            "select p.id, d.name, d.title, p.headings, p.first, p.last, p.text from passages p "
            "join documents d on d.id = p.document where p.id = ?",
            (number,),
        ).fetchone()
        return Found(row[0], row[1], row[2], tuple(json.loads(row[3])), *row[4:])

    def paragraphs(self, found: Found) -> list[tuple[int, str]]:
        """The numbers and whole texts of a passage's paragraphs."""
        return self._database.execute(
            "select p.number, p.text from paragraphs p join documents d on d.id = p.document "
            "where d.name = ? and p.number between ? and ? order by p.number",
            (found.document, found.first, found.last),
        ).fetchall()

    def holding(self, passage: int, words: Sequence[str]) -> set[str]:
        """Which of the terms occur in a passage or its headings, after stemming."""
        held = set()
        for word in words:
            found = self._database.execute(
                "select 1 from lexical where lexical match ? and rowid = ?", (f'"{word}"', passage)
            )
            if found.fetchone():
                held.add(word)
        return held


def _spaced(text: str) -> str:
    return " ".join(terms(text))


def _packed(headings: Sequence[str]) -> str:
    return json.dumps(list(headings), ensure_ascii=False)


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    if read_only:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, check_same_thread=False)
    return sqlite3.connect(path)
