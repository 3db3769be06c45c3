"""A corpus of one's own: files to documents, splits by page, mistakes named."""

import json
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from moxin_lab import scales
from moxin_lab.data import extract
from moxin_lab.data.corpora import extract_corpus
from moxin_lab.scales import sections


@dataclass(frozen=True)
class Entry:
    name: str = "poems"
    path: str | None = "poems"
    hub: str | None = None
    subset: str | None = None
    text: str = "body"
    page: str | None = None
    language: str = "en"
    rows: int | None = None


ROWS = [
    {"title": "a", "body": "Roses are red."},
    {"title": "b", "body": ""},
    {"title": "a", "body": "Rosen sind rot."},
    {"title": "c", "body": None},
]


@pytest.fixture
def folder(tmp_path):
    """A corpus of one parquet file and one of JSON Lines."""
    (tmp_path / "poems").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS[:2]), tmp_path / "poems" / "0.parquet")
    lines = "\n".join(map(json.dumps, ROWS[2:]))
    (tmp_path / "poems" / "1.jsonl").write_text(lines + "\n")
    return tmp_path


def test_every_row_is_a_document_or_rejected_with_a_reason(folder):
    documents, rejected = extract_corpus(Entry(), folder)
    assert documents.schema.equals(extract.DOCUMENTS) and rejected.schema.equals(extract.REJECTED)
    assert documents["text"].to_pylist() == ["Roses are red.", "Rosen sind rot."]
    assert documents["id"].to_pylist() == ["poems/000000000000", "poems/000000000002"]
    assert set(documents["source"].to_pylist()) == {"poems"}
    assert set(documents["language"].to_pylist()) == {"en"}
    assert rejected["reason"].to_pylist() == ["no text", "no text"]


def test_rows_of_one_page_share_the_key_of_the_split(folder):
    documents, _ = extract_corpus(Entry(page="title"), folder)
    assert documents["page"].to_pylist() == ["poems/a", "poems/a"]


def test_rows_limit_what_is_read(folder):
    documents, rejected = extract_corpus(Entry(rows=2), folder)
    assert (documents.num_rows, rejected.num_rows) == (1, 1)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry(path="prose"), "corpus 'poems': no .parquet or .jsonl file in the folder"),
        (Entry(text="verse"), "corpus 'poems' has no column 'verse', only title, body"),
        (Entry(page="author"), "has no column 'author'"),
    ],
    ids=["folder", "text", "page"],
)
def test_what_cannot_be_read_is_refused_with_the_name_of_the_corpus(entry, message, folder):
    with pytest.raises(extract.CurationError, match=message):
        extract_corpus(entry, folder)


def test_a_damaged_file_is_named(folder):
    (folder / "poems" / "0.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(extract.CurationError, match=r"0\.parquet cannot be read"):
        extract_corpus(Entry(), folder)


def corpus(**changes):
    return sections.CorpusSettings(
        **{"name": "poems", "path": "poems", "text": "body", "language": "en", "licence": "CC0-1.0"}
        | changes
    )


def test_an_entry_of_a_scale_is_what_is_extracted(folder):
    documents, _ = extract_corpus(corpus(), folder)
    assert documents.num_rows == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hub": "owner/poems"}, "give either a path or a hub set"),
        ({"path": None}, "give either a path or a hub set"),
        ({"licence": ""}, "licence"),
        ({"name": "my poems"}, "name"),
    ],
    ids=["both", "neither", "licence", "name"],
)
def test_an_entry_that_cannot_work_is_refused_with_the_field(changes, message):
    with pytest.raises(ValidationError, match=message):
        corpus(**changes)


@pytest.mark.parametrize("name", ["python_docs", "udhr"], ids=["a source", "always read"])
def test_two_sources_of_one_name_are_refused(name):
    section = scales.load("tiny").data.model_dump()
    taken = {**section, "corpora": [corpus(name=name).model_dump()]}
    with pytest.raises(ValidationError, match=f"{name}: two sources have this name"):
        sections.DataSettings(**taken)
