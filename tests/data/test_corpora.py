"""A corpus of one's own: files to documents, splits by page, mistakes named."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from moxin_lab import scales
from moxin_lab.data import curation, engine, extract
from moxin_lab.scales import sections

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


def corpus(**changes):
    return sections.CorpusSettings(
        **{"name": "poems", "path": "poems", "text": "body", "language": "en", "licence": "CC0-1.0"}
        | changes
    )


def read(root, **changes):
    """The rows that stage 01 reads of the entry, in the order of their ids."""
    given = curation.of_entry(corpus(**changes), root)
    frames = [given.read(file).to_pylist() for file in given.files]
    return sorted((row for rows in frames for row in rows), key=lambda row: row["id"])


def test_every_row_is_a_document_or_removed_with_a_reason(folder):
    rows = read(folder)
    assert [row["text"] for row in rows] == ["Roses are red.", "", "Rosen sind rot.", ""]
    assert [row["reason"] for row in rows] == [None, "no text", None, "no text"]
    assert [row["id"] for row in rows][1:3] == ["poems/0/000000001", "poems/1/000000000"]
    assert {(row["source"], row["language"]) for row in rows} == {("poems", "en")}


def test_rows_of_one_page_share_the_key_of_the_split(folder):
    assert [row["page"] for row in read(folder, page="title")] == ["a", "b", "a", "c"]


def test_files_are_those_that_the_entry_names(folder):
    assert [row["id"] for row in read(folder, files="1.*")] == [
        "poems/1/000000000",
        "poems/1/000000001",
    ]
    (folder / "poems" / "notes.txt").write_text("no corpus")
    assert len(read(folder)) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "prose"}, "no .parquet, .* file at .*prose"),
        ({"files": "2.*"}, r"no .parquet, .* file at .*poems 2\.\*"),
        ({"text": "verse"}, "poems has no column 'verse', only title, body"),
        ({"page": "author"}, "poems has no column 'author'"),
    ],
    ids=["folder", "files", "text", "page"],
)
def test_what_cannot_be_read_is_refused_with_the_name_of_the_corpus(changes, message, folder):
    with pytest.raises(extract.CurationError, match=message):
        read(folder, **changes)


def test_a_damaged_file_is_named_by_the_run(folder):
    (folder / "poems" / "0.parquet").write_bytes(b"PAR1 and nothing else")
    given = curation.of_entry(corpus(), folder)
    with pytest.raises(extract.CurationError, match=r"0\.parquet: "):
        engine.run("x", [], [given], folder / "out", say=lambda line: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hub": "owner/poems"}, "give either a path or a hub set"),
        ({"path": None}, "give either a path or a hub set"),
        ({"path": None, "hub": "owner/poems"}, "name the files of the hub set"),
        ({"licence": ""}, "licence"),
        ({"name": "my poems"}, "name"),
    ],
    ids=["both", "neither", "files", "licence", "name"],
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
