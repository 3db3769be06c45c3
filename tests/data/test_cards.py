"""Data cards: the released data sets are what their cards say, and damage is reported by name."""

import re
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moxin_lab.data import card_numbers, cards, packaged, sources
from moxin_lab.data.card_files import CardError, read_card

LANGUAGES = ["en", "zh", "ja", "ko"]
CONFIGURATIONS = [
    ("help_pages", None),
    *(("help_pages", language) for language in LANGUAGES),
    ("python_docs", None),
    ("code_samples", None),
    ("code_samples", "pygments"),
    ("code_samples", "cpython"),
    ("udhr", None),
    ("conversations", None),
    ("instructions", None),
    ("preferences", None),
    ("emoji", None),
    ("charts", None),
]


@pytest.fixture(scope="module")
def tables(repository: Path) -> dict[str, pa.Table]:
    return {name: read_card(repository / "data_cards" / name) for name in sources.SOURCES}


@pytest.fixture
def copy(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root whose only card is a copy of the smallest released one."""
    shutil.copytree(
        repository / "data_cards" / "conversations", tmp_path / "data_cards" / "conversations"
    )
    monkeypatch.setattr(cards, "SOURCES", {"conversations": sources.SOURCES["conversations"]})
    monkeypatch.setattr(cards, "WITHOUT_DATA", ())
    return tmp_path


# ---- the released data sets


def test_every_released_card_is_as_recorded(repository: Path) -> None:
    assert cards.check(repository) == []


def test_each_source_has_a_folder_with_the_expected_files_and_no_other(repository: Path) -> None:
    folders = {
        folder.name: folder for folder in (repository / "data_cards").iterdir() if folder.is_dir()
    }
    for name, record in sources.SOURCES.items():
        files = {
            str(file.relative_to(folders[name]))
            for file in folders[name].rglob("*")
            if file.is_file()
        }
        expected = {"README.md", "LICENSE", *(f"data/{file}" for file in record.rows)}
        expected |= {f"data/{file}" for file, digest in record.sampled.items() if digest}
        assert expected <= files <= expected | {"croissant.json"}


@pytest.mark.parametrize(("name", "configuration"), CONFIGURATIONS)
def test_load_dataset_reads_the_card_without_a_network(
    name: str, configuration: str | None, repository: Path, tmp_path: Path, no_network: None
) -> None:
    record = sources.SOURCES[name]
    loaded = datasets.load_dataset(
        str(repository / "data_cards" / name), configuration, cache_dir=str(tmp_path)
    )
    assert sorted(loaded) == sorted(record.splits)
    files = (
        record.rows
        if configuration is None
        else {f"{configuration}.parquet": record.rows[f"{configuration}.parquet"]}
    )
    assert sum(rows.num_rows for rows in loaded.values()) == sum(files.values())
    assert {tuple(rows.column_names) for rows in loaded.values()} == {tuple(record.schema.names)}
    if len(record.splits) > 1:
        assert {f"{split}.parquet": rows.num_rows for split, rows in loaded.items()} == record.rows


def test_each_help_page_exists_once_in_each_language_and_row_i_is_the_same_page(
    repository: Path,
) -> None:
    folder = repository / "data_cards" / "help_pages" / "data"
    pages = {language: pq.read_table(folder / f"{language}.parquet") for language in LANGUAGES}
    reference = pages["en"]["page"].to_pylist()
    assert len(set(reference)) == len(reference) > 2500
    for language, table in pages.items():
        assert table["page"].to_pylist() == reference
        assert set(table["language"].to_pylist()) == {language}


@pytest.mark.parametrize(
    ("language", "script"),
    [("zh", "[\u4e00-\u9fff]"), ("ja", "[\u3041-\u30ff]"), ("ko", "[\uac00-\ud7a3]")],
)
def test_a_translated_help_page_contains_text_in_its_script(
    language: str, script: str, tables
) -> None:
    rows = tables["help_pages"].to_pylist()
    (html,) = (
        r["html"]
        for r in rows
        if (r["language"], r["page"]) == (language, "swriter/guide/footnote_usage")
    )
    text = re.sub("<[^>]+>", " ", html.decode("utf-8"))
    assert len(re.findall(script, text)) > 200


@pytest.mark.parametrize("name", ["help_pages", "python_docs", "code_samples", "udhr"])
def test_a_row_is_one_file_of_its_package(name: str, tables) -> None:
    table = tables[name]
    paths = table["path"].to_pylist()
    assert len(set(paths)) == len(paths)
    assert table.schema.field(sources.SOURCES[name].content).type == pa.binary()
    assert all(column.null_count == 0 for column in table.columns)


def test_code_samples_covers_450_languages_and_the_standard_library(tables) -> None:
    rows = tables["code_samples"].to_pylist()
    assert len({row["language"] for row in rows if row["source"] == "pygments"}) >= 450
    modules = {
        row["path"].removeprefix("usr/lib/python3.11/")
        for row in rows
        if row["source"] == "cpython"
    }
    assert {"argparse.py", "os.py", "asyncio/tasks.py", "json/decoder.py"} <= modules
    assert {row["license"] for row in rows} == {"BSD-2-Clause", "Python-2.0", packaged.OWN_NOTICE}


def test_udhr_has_500_translations_with_metadata_that_agrees_with_the_page(tables) -> None:
    rows = {row["code"]: row for row in tables["udhr"].to_pylist()}
    assert len(rows) > 500
    for code, row in rows.items():
        html = row["html"].decode("utf-8")
        assert f'data-code="{code}"' in html and f'dir="{row["direction"]}"' in html
    assert {"eng", "cmn_hans", "jpn", "kor"} <= set(rows)
    assert "世界人权宣言" in rows["cmn_hans"]["html"].decode("utf-8")


def test_conversations_have_no_empty_turn_and_are_in_four_languages(tables) -> None:
    rows = tables["conversations"].to_pylist()
    assert {row["language"] for row in rows} == set(LANGUAGES)
    assert all(
        row["conversation"] and all(turn.strip() for turn in row["conversation"]) for row in rows
    )
    keys = [(row["path"], row["index"]) for row in rows]
    assert len(set(keys)) == len(keys)


def test_the_cards_stay_within_their_size_limits(repository: Path) -> None:
    sizes = [
        file.stat().st_size for file in (repository / "data_cards").rglob("*") if file.is_file()
    ]
    assert max(sizes) <= cards.MAX_FILE_BYTES == 9 * 2**20
    assert sum(sizes) <= cards.MAX_TOTAL_BYTES == 29 * 2**20


@pytest.mark.parametrize("name", sources.SOURCES)
def test_the_numbers_of_a_card_are_those_computed_from_its_data(
    name: str, repository: Path
) -> None:
    folder = repository / "data_cards" / name
    assert (folder / "README.md").read_text(encoding="utf-8") == card_numbers.render(folder)


@pytest.mark.parametrize("name", sources.SOURCES)
def test_a_card_has_the_sections_of_the_hub_template(name: str, repository: Path) -> None:
    text = (repository / "data_cards" / name / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    assert sum(line.startswith("# ") for line in text.splitlines()) == 1
    for section in (
        "Dataset Details",
        "Dataset Sources",
        "Direct Use",
        "Out-of-Scope Use",
        "Data Fields",
        "Data Splits",
        "Curation Rationale",
        "Source Data",
        "Personal and Sensitive Information",
        "Bias, Risks, and Limitations",
        "How to cite",
    ):
        assert section in headings
    for column in sources.SOURCES[name].schema.names:
        assert f"| `{column}` |" in text, "each column is described"


# ---- damage is reported by name


def damaged(copy: Path, damage: str) -> Path:
    path = copy / "data_cards" / "conversations" / "data" / "train.parquet"
    schema = sources.SOURCES["conversations"].schema
    if damage == "no bytes":
        path.write_bytes(b"")
    elif damage == "cut short":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "another format":
        path.write_bytes(b"id,text\n1,hello\n" * 100)
    elif damage == "content overwritten":
        content = bytearray(path.read_bytes())
        content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
        path.write_bytes(content)
    elif damage == "no rows":
        pq.write_table(schema.empty_table(), path)
    elif damage == "other columns":
        pq.write_table(pa.table({"text": ["hello"]}), path)
    elif damage == "another type":
        pq.write_table(pq.read_table(path).set_column(3, "index", pa.array(["0"] * 3515)), path)
    elif damage == "missing":
        path.unlink()
    return path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no bytes", "is empty: it has 0 bytes"),
        ("cut short", "is not a readable parquet file"),
        ("another format", "is not a readable parquet file"),
        ("content overwritten", "is not a readable parquet file"),
        ("no rows", "has no rows"),
        ("other columns", r"has the columns \(text: string\), expected \(language: string"),
        ("another type", "index: string"),
        ("missing", "is missing"),
    ],
)
def test_a_bad_parquet_file_is_named_with_the_fault_and_the_remedy(
    damage: str, message: str, copy: Path
) -> None:
    path = damaged(copy, damage)
    for argument in (path, path.parent.parent):
        with pytest.raises(CardError, match=message) as caught:
            read_card(argument)
        assert str(path) in str(caught.value)
        assert "moxin-lab cards build conversations" in str(caught.value)
    problems = cards.check(copy)
    assert any(re.search(message, problem) for problem in problems)


def test_a_folder_of_other_rows_is_read_with_the_given_schema(tmp_path: Path) -> None:
    schema = pa.schema([("html", pa.binary())])
    (tmp_path / "mine" / "data").mkdir(parents=True)
    with pytest.raises(CardError, match=r"holds no data/\*.parquet"):
        read_card(tmp_path / "mine", schema)
    pq.write_table(
        pa.table({"html": [b"\xff"]}, schema=schema), tmp_path / "mine" / "data" / "a.parquet"
    )
    assert read_card(tmp_path / "mine", schema).to_pylist() == [{"html": b"\xff"}]
    with pytest.raises(ValueError, match="no data set 'mine'"):
        read_card(tmp_path / "mine")


def test_check_finds_no_problem_in_an_intact_copy(copy: Path) -> None:
    assert cards.check(copy) == []


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("license: bsd-3-clause", "license: mit", "front matter says license: 'mit'"),
        ("- 1K<n<10K", "- n<1K", "front matter says size_categories"),
        (
            "pretty_name: ChatterBot conversations in four languages",
            "pretty_name:",
            "lacks pretty_name",
        ),
        ("  - split: train", "  - split: test", r"splits are \['test'\]"),
        ("path: data/train", "path: data/other", "first configuration loads"),
        ("parquet` | 3,515", "parquet` | 3,516", "numbers are not those of its data"),
        ("<!-- numbers: end -->", "", "lacks the markers"),
        ("license: bsd", "license: [bsd", "front matter is not YAML"),
        ("---\n", "", "does not begin with YAML front matter"),
    ],
)
def test_check_finds_a_card_that_contradicts_its_data_or_its_record(
    old: str, new: str, message: str, copy: Path
) -> None:
    replace(copy / "data_cards" / "conversations" / "README.md", old, new)
    problems = cards.check(copy)
    assert len(problems) == 1
    assert re.search(message, problems[0])


def test_check_finds_a_changed_row_even_if_the_card_was_rendered_again(copy: Path) -> None:
    folder = copy / "data_cards" / "conversations"
    path = folder / "data" / "train.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[100]["conversation"][0] += "?"
    sources.write_table(
        pa.Table.from_pylist(rows, schema=sources.SOURCES["conversations"].schema), path
    )
    (folder / "README.md").write_text(card_numbers.render(folder), encoding="utf-8")
    (problem,) = cards.check(copy)
    assert "rows" in problem and "SHA-256" in problem


def test_check_finds_missing_changed_and_surplus_files(copy: Path) -> None:
    folder = copy / "data_cards" / "conversations"
    (folder / "data" / "more.parquet").write_bytes((folder / "data" / "train.parquet").read_bytes())
    replace(folder / "LICENSE", "Gunther Cox", "Somebody Else")
    licence, surplus = cards.check(copy)
    assert "LICENSE is not upstream's" in licence
    assert "more.parquet belongs to no data set" in surplus
    (folder / "LICENSE").unlink()
    (folder / "README.md").unlink()
    licence, _, readme = cards.check(copy)
    assert "LICENSE is missing" in licence
    assert "README.md is missing" in readme


def test_check_finds_a_file_above_the_size_limit(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "MAX_FILE_BYTES", 90_000)
    (problem,) = cards.check(copy)
    assert "train.parquet has" in problem and "limit is 90,000" in problem


def test_rebuild_from_a_folder_of_archives_restores_data_and_numbers(
    copy: Path, monkeypatch
) -> None:
    folder = copy / "data_cards" / "conversations"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    intact = pq.read_table(folder / "data" / "train.parquet")
    damaged(copy, "no bytes")

    def build(name: str, archives: Path, out: Path) -> list[Path]:
        assert (name, archives) == ("conversations", copy / "archives")
        return [sources.write_table(intact, out / "data" / "train.parquet")]

    monkeypatch.setattr(cards, "build", build)
    messages: list[str] = []
    cards.rebuild(copy, "conversations", copy / "archives", progress=messages.append)
    assert messages == [f"building {folder}"]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
