"""A data card can be cited by its content, and its Croissant file says what its data is; each lack
of one is named.
"""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from moxin_lab import cli
from moxin_lab.data import card_blocks, cards, croissant
from moxin_lab.data.card_facts import CardError, facts, sections
from moxin_lab.lab.artifacts import describe

CARDS = sorted(
    path.parent.name for path in (Path(__file__).parents[2] / "data_cards").glob("*/README.md")
)


@pytest.fixture
def card(repository, tmp_path):
    """A copy of the smallest card."""
    name = "conversations"
    return Path(shutil.copytree(repository / "data_cards" / name, tmp_path / name))


def changed(card, **values):
    """The card's Croissant file with some values replaced; None removes one."""
    path = card / "croissant.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, value in values.items():
        content[name] = value
        if value is None:
            del content[name]
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", CARDS)
def test_every_card_is_read_at_three_depths_cited_and_loaded_offline(name, repository, no_network):
    folder = repository / "data_cards" / name
    assert cards.published_problems(folder) == []
    written = json.loads((folder / "croissant.json").read_text(encoding="utf-8"))
    assert written["conformsTo"] == list(croissant.CONFORMS_TO)
    assert written["identifier"] == facts(folder).identifier


def test_the_identifier_is_the_hash_that_each_stage_records_for_the_card(repository):
    folder = repository / "data_cards/udhr"
    about = facts(folder)
    assert about.sha256 == describe(folder / "data")["sha256"]
    assert about.identifier in card_blocks.bibtex(about)
    assert about.sha256[:8] in card_blocks.bibtex(about)


def test_records_loaded_by_croissant_are_the_rows_of_the_files(repository):
    import mlcroissant as mlc

    folder = repository / "data_cards/preferences"
    records = mlc.Dataset(jsonld=folder / "croissant.json").records("test")
    loaded = next(iter(records))
    row = pq.read_table(folder / "data/test.parquet").slice(0, 1).to_pylist()[0]
    assert loaded["test/id"].decode() == row["id"]
    assert loaded["test/difficulty"] == row["difficulty"]
    turns = [
        {key.rsplit("/", 1)[1]: value.decode() for key, value in turn.items()}
        for turn in loaded["test/prompt"]
    ]
    assert turns == row["prompt"]


@pytest.mark.parametrize("key", [*croissant.REQUIRED, *croissant.RAI])
def test_what_the_library_only_recommends_is_required(card, key):
    found = croissant.faults(changed(card, **{key: None}))
    assert found and key in found[0]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"creator": [{"@type": "sc:Person"}]}, "a creator has no name"),
        ({"datePublished": "last week"}, "not an ISO date"),
        ({"datePublished": "2026-11-22.5"}, "not an ISO date"),
        ({"datePublished": "2026-13-45"}, "not an ISO date"),
        ({"datePublished": "2026-11-22T25:00:00Z"}, "not an ISO date"),
        ({"datePublished": "20261122"}, "not an ISO date"),
        ({"conformsTo": "http://mlcommons.org/croissant/1.0"}, "croissant/1.1"),
        ({"license": []}, "no licence"),
        ({"recordSet": []}, "no record set"),
    ],
)
def test_a_value_that_says_nothing_is_a_fault(card, change, fault):
    assert fault in " ".join(croissant.faults(changed(card, **change)))


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("sha256", None, "has no SHA-256"),
        ("sha256", "0" * 64, "recorded 000000000000"),
        ("sha256", "abc", "has no SHA-256"),
        ("contentUrl", "https://example.org/train.parquet", "cannot be checked offline"),
        ("contentUrl", "../data/train.parquet", "cannot be checked offline"),
        ("contentUrl", "data/other.parquet", "is missing"),
        ("contentUrl", None, "cannot be checked offline"),
        ("contentSize", "1 B", "bytes, recorded '1 B'"),
        ("contentSize", "many", "bytes, recorded 'many'"),
        ("encodingFormat", "text/csv", "mlcroissant cannot read it"),
    ],
)
def test_a_file_without_its_hash_or_in_another_place_is_named(card, no_network, key, value, fault):
    content = json.loads((card / "croissant.json").read_text(encoding="utf-8"))
    files = content["distribution"]
    files[0][key] = value
    if value is None:
        del files[0][key]
    assert fault in " ".join(croissant.faults(changed(card, distribution=files)))


@pytest.mark.parametrize(
    ("stated", "size", "right"),
    [
        ("12345 B", 12345, True),
        ("12345", 12345, True),
        ("12,345 bytes", 12345, True),
        ("12 KB", 12345, True),
        ("12.3 kB", 12345, True),
        ("12.1 KiB", 12345, True),
        ("11 KB", 12345, False),
        ("12.34 GB", 12345, False),
        ("1.2.3 B", 1, False),
        ("-1 B", 1, False),
    ],
)
def test_a_stated_size_is_compared_in_its_own_unit_and_digits(stated, size, right):
    assert croissant._is_size(stated, size) is right


@pytest.mark.parametrize("name", ["croissant.json", "README.md"])
def test_a_card_s_file_in_another_encoding_is_a_fault_without_a_traceback(card, name):
    (card / name).write_bytes(b"\xff\xfe{")
    assert any(name in problem for problem in cards.published_problems(card))


def test_one_flipped_bit_of_the_data_is_found_by_the_croissant_file_alone(card):
    path = card / "data/train.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "has SHA-256" in croissant.faults(card / "croissant.json")[0]


def test_a_parquet_file_that_the_croissant_file_leaves_out_is_named(card):
    shutil.copy(card / "data/train.parquet", card / "data/more.parquet")
    assert (
        "data/more.parquet is not among its files" in croissant.faults(card / "croissant.json")[0]
    )


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}', "{}", "[" * 5000])
def test_a_file_that_is_no_croissant_is_refused_without_a_traceback(card, text):
    path = card / "croissant.json"
    path.write_text(text)
    assert croissant.faults(path)


def test_a_field_of_a_file_that_is_not_listed_is_found_by_the_library(card):
    content = json.loads((card / "croissant.json").read_text(encoding="utf-8"))
    field = content["recordSet"][0]["field"][0]
    field["source"]["fileObject"]["@id"] = "data/none.parquet"
    assert "mlcroissant" in croissant.faults(changed(card, recordSet=content["recordSet"]))[0]


@pytest.mark.parametrize("section", [h for d in card_blocks.DEPTHS.values() for h in d])
def test_a_card_without_a_section_of_a_reading_depth_is_named(card, section):
    readme = card / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(text.replace(f"## {section}\n", "## Something else\n"), encoding="utf-8")
    assert cards.published_problems(card)


@pytest.mark.parametrize("field", ["creators", "date_published", "version", "license", "language"])
def test_a_card_that_cannot_be_cited_says_what_it_lacks(card, field):
    readme = card / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(text.replace(f"\n{field}:", f"\nx_{field}:", 1), encoding="utf-8")
    assert any(field in problem for problem in cards.published_problems(card))


def test_a_licence_that_spdx_does_not_know_is_refused_by_name(card):
    readme = card / "README.md"
    text = readme.read_text(encoding="utf-8").replace("license: bsd-3-clause", "license: bsd-ish")
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(CardError, match="bsd-ish is no SPDX identifier"):
        facts(card)


def test_a_card_whose_data_changed_has_another_identifier_and_must_be_written_again(card):
    before = facts(card)
    table = pq.read_table(card / "data/train.parquet")
    pq.write_table(table.slice(1), card / "data/train.parquet")
    after = facts(card)
    assert before.identifier != after.identifier and after.rows == before.rows - 1
    found = " ".join(cards.published_problems(card))
    assert "its summary or citation is not that of its data" in found
    cards.write_published(card)
    assert cards.published_problems(card) == []
    assert after.identifier in (card / "README.md").read_text(encoding="utf-8")


def test_writing_a_card_twice_gives_the_same_bytes(card):
    before = [(card / name).read_bytes() for name in ("README.md", "croissant.json")]
    cards.write_published(card)
    assert [(card / name).read_bytes() for name in ("README.md", "croissant.json")] == before


def test_the_command_checks_one_card_or_a_file_of_anyone(card, capsys):
    assert cli.main(["cards", "check", str(card)]) == 0
    assert cli.main(["cards", "check", str(card / "croissant.json")]) == 0
    assert cli.main(["cards", "check", str(changed(card, license=None))]) == 1
    assert "no licence" in capsys.readouterr().out
    assert cli.main(["cards", "check", str(card / "data")]) == 1


def test_prose_is_read_without_code_tables_stay_in_lines():
    lines = ["# T", "", "intro", "more", "", "## A", "", "one", "two", "", "- b", "  c", "- d", ""]
    lines += ["```", "code", "```", "## B", "", "| x |", "|---|"]
    text = "\n".join(lines)
    assert sections(text) == {"T": "intro more", "A": "one two\n- b c\n- d", "B": "| x |\n|---|"}
