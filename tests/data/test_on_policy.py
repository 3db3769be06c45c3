"""Pairs sampled from a model, in `data_cards/preferences`: only for training rows with a verifier,
which ranks them.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moxin_lab import cli
from moxin_lab.data import card_numbers, cards, preferences, sources, tasks
from moxin_lab.data.card_files import CardError, read_card
from moxin_lab.data.packaged import PREFERENCES_SCHEMA

TASKS = ("add", "last_item", "parity", "find_heading", "identify_language", "weekday")
FILE = preferences.ON_POLICY_FILE
RECORDED = [file for file, digest in sources.SOURCES["preferences"].sampled.items() if digest]


@pytest.fixture(scope="module")
def instructions(repository: Path) -> dict[str, list[dict]]:
    folder = repository / "data_cards" / "instructions" / "data"
    return {
        side: pq.read_table(folder / f"{side}.parquet").to_pylist() for side in ("train", "test")
    }


@pytest.fixture(scope="module")
def chosen_rows(instructions) -> list[dict]:
    """One training row of each task in `TASKS`."""
    return [next(row for row in instructions["train"] if row["task"] == task) for task in TASKS]


def answered(row: dict, text: str) -> list[dict]:
    """The row's conversation with `text` as the answer."""
    return [*row["messages"][:-1], {"role": "assistant", "content": text}]


def sample(row: dict, index: int = 0) -> dict:
    """A row of `sampled_pairs.parquet`, with a right answer that is spelled differently."""
    right = f" {row['messages'][-1]['content']}."
    return {
        "chosen": answered(row, right),
        "rejected": answered(row, "?!"),
        "row": index,
        "construction": "on-policy",
    }


@pytest.fixture
def sampled(chosen_rows) -> list[dict]:
    return [sample(row, index) for index, row in enumerate(chosen_rows)]


def write(sampled: list[dict], folder: Path) -> Path:
    """As notebook 05 writes them."""
    pd.DataFrame(sampled).to_parquet(folder / "sampled_pairs.parquet")
    return folder / "sampled_pairs.parquet"


def record(monkeypatch: pytest.MonkeyPatch, digest: str) -> None:
    known = dataclasses.replace(sources.SOURCES["preferences"], sampled={FILE: digest})
    monkeypatch.setitem(sources.SOURCES, "preferences", known)
    monkeypatch.setitem(cards.SOURCES, "preferences", known)


@pytest.fixture
def root(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the card `preferences`, which has no sampled pairs yet."""
    monkeypatch.setattr(cards, "SOURCES", {})
    monkeypatch.setattr(cards, "WITHOUT_DATA", ())
    record(monkeypatch, "")
    folder = tmp_path / "data_cards" / "preferences"
    shutil.copytree(repository / "data_cards" / "preferences", folder)
    folder.with_name("instructions").symlink_to(repository / "data_cards" / "instructions")
    for name in ("notebooks", "moxin_lab"):
        (tmp_path / name).mkdir()
    if (folder / "data" / FILE).is_file():
        (folder / "data" / FILE).unlink()
        (folder / "README.md").write_text(card_numbers.render(folder), encoding="utf-8")
        cards.write_published(folder)
    return tmp_path


# ---- from a run's file to the card's form


def test_no_two_training_rows_with_a_verifier_have_the_same_prompt(instructions) -> None:
    """The prompt identifies the row that a pair answers."""
    prompts = [
        preferences._key(row["messages"][:-1]) for row in instructions["train"] if row["verifier"]
    ]
    assert len(set(prompts)) == len(prompts) > 6_000


def test_a_sampled_pair_has_the_columns_of_its_row_and_the_answers_of_the_model(
    sampled, chosen_rows, root: Path, tmp_path: Path
) -> None:
    table = preferences.on_policy_table(write(sampled, tmp_path), root / "data_cards")
    assert table.schema.equals(PREFERENCES_SCHEMA)
    pairs = {pair["id"]: pair for pair in table.to_pylist()}
    assert len(pairs) == len(TASKS)
    for row in chosen_rows:
        pair = pairs[f"on-policy-{row['id']}"]
        assert pair["prompt"] == row["messages"][:-1]
        assert pair["chosen"] == [
            {"role": "assistant", "content": f" {row['messages'][-1]['content']}."}
        ]
        assert pair["rejected"] == [{"role": "assistant", "content": "?!"}]
        assert pair["construction"] == "on-policy"
        for name in (
            "origin",
            "source_item",
            "task",
            "language",
            "difficulty",
            "verifier",
            "license",
        ):
            assert pair[name] == row[name]


def test_pairs_are_in_the_order_of_the_training_rows_whatever_order_a_run_gave_them(
    sampled, instructions
) -> None:
    pairs = preferences.on_policy(sampled, **instructions)
    order = {f"on-policy-{row['id']}": index for index, row in enumerate(instructions["train"])}
    positions = [order[pair["id"]] for pair in pairs]
    assert positions == sorted(positions)
    backwards = [{**pair, "row": 10**6} for pair in reversed(sampled)]
    assert preferences.on_policy(backwards, **instructions) == pairs


def of_a_test_row(sampled: list[dict], rows: dict) -> None:
    sampled.append(sample(next(row for row in rows["test"] if row["verifier"])))


def of_an_open_row(sampled: list[dict], rows: dict) -> None:
    sampled.append(sample(next(row for row in rows["train"] if row["verifier"] is None)))


def with_another_prompt(sampled: list[dict], rows: dict) -> None:
    for side in ("chosen", "rejected"):
        user, answer = sampled[2][side]
        sampled[2][side] = [{**user, "content": user["content"] + " "}, answer]


def with_two_prompts(sampled: list[dict], rows: dict) -> None:
    sampled[2]["rejected"] = sampled[3]["rejected"]


def with_no_messages(sampled: list[dict], rows: dict) -> None:
    sampled[2]["chosen"] = sampled[2]["rejected"] = []


def with_a_wrong_answer_chosen(sampled: list[dict], rows: dict) -> None:
    sampled[2]["chosen"] = sampled[2]["rejected"]


def with_a_right_answer_rejected(sampled: list[dict], rows: dict) -> None:
    sampled[2]["rejected"] = sampled[2]["chosen"]


def with_an_empty_answer_rejected(sampled: list[dict], rows: dict) -> None:
    sampled[2]["rejected"] = [*sampled[2]["rejected"][:-1], {"role": "assistant", "content": " \n"}]


def with_an_answer_of_the_user(sampled: list[dict], rows: dict) -> None:
    sampled[2]["rejected"] = [*sampled[2]["rejected"][:-1], {"role": "user", "content": "?!"}]


def with_a_constructed_pair(sampled: list[dict], rows: dict) -> None:
    sampled[2]["construction"] = "constructed corruption: repeated"


def with_one_row_twice(sampled: list[dict], rows: dict) -> None:
    sampled.append(sampled[2])


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (of_a_test_row, "answers no training row of instructions that has a verifier"),
        (of_an_open_row, "answers no training row of instructions that has a verifier"),
        (with_another_prompt, "answers no training row of instructions that has a verifier"),
        (with_two_prompts, "rejects an answer to another prompt"),
        (with_no_messages, "answers no training row"),
        (with_a_wrong_answer_chosen, "the verifier does not accept the chosen answer '\\?!'"),
        (with_a_right_answer_rejected, "the verifier accepts the rejected answer"),
        (with_an_empty_answer_rejected, "rejected is not one message of the assistant with text"),
        (with_an_answer_of_the_user, "rejected is not one message of the assistant with text"),
        (with_a_constructed_pair, "its construction is 'constructed corruption: repeated'"),
        (with_one_row_twice, "occurs 2 times"),
    ],
)
def test_a_pair_that_is_not_allowed_in_the_card_is_refused(
    corrupt: Callable, message: str, sampled, instructions
) -> None:
    corrupt(sampled, instructions)
    with pytest.raises(CardError, match=message):
        preferences.on_policy(sampled, **instructions)


def test_a_refused_pair_leaves_the_card_unchanged(sampled, root: Path, tmp_path: Path) -> None:
    with_a_wrong_answer_chosen(sampled, {})
    file = write(sampled, tmp_path)
    before = {
        path: path.read_bytes() for path in (root / "data_cards").rglob("*") if path.is_file()
    }
    with pytest.raises(CardError, match="does not accept the chosen answer") as caught:
        cards.add_on_policy(root, file)
    assert str(file) in str(caught.value)
    assert {
        path: path.read_bytes() for path in (root / "data_cards").rglob("*") if path.is_file()
    } == before


def test_a_file_that_is_not_the_sampled_pairs_of_a_run_is_named(
    sampled, root: Path, tmp_path: Path
) -> None:
    for content, message in (
        (None, "not a readable parquet file"),
        (pa.table({"chosen": [1], "rejected": [2]}), "has no column construction"),
        (
            pa.table({"chosen": [1], "rejected": [2], "construction": [3]}).slice(0, 0),
            "has no pairs",
        ),
    ):
        file = tmp_path / "some.parquet"
        if content is not None:
            pq.write_table(content, file)
        with pytest.raises(CardError, match=message) as caught:
            preferences.on_policy_table(file, root / "data_cards")
        assert str(file) in str(caught.value)


# ---- in the card


@pytest.fixture
def added(root: Path, sampled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The card with artificial pairs, recorded."""
    path = cards.add_on_policy(root, write(sampled, tmp_path), progress=lambda _: None)
    record(monkeypatch, sources.rows_sha256([pq.read_table(path)]))
    return path


def replace_rows(path: Path, rows: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the rows of a file, and records and renders them as if they were intended."""
    table = pa.Table.from_pylist(rows, schema=PREFERENCES_SCHEMA)
    sources.write_table(table, path)
    record(monkeypatch, sources.rows_sha256([table]))
    (path.parents[1] / "README.md").write_text(
        card_numbers.render(path.parents[1]), encoding="utf-8"
    )


def test_the_command_writes_the_file_and_the_numbers_and_prints_what_to_record(
    root: Path,
    sampled,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    file = write(sampled, tmp_path)
    readme = root / "data_cards" / "preferences" / "README.md"
    assert cards.check(root) == []
    without = readme.read_text(encoding="utf-8")
    assert cli.main(["--root", str(root), "cards", "on-policy", str(file)]) == 0
    digest = sources.rows_sha256([pq.read_table(readme.parent / "data" / FILE)])
    assert f'sampled={{"{FILE}": "{digest}"}}' in capsys.readouterr().out
    (problem,) = cards.check(root)
    assert f"SHA-256 {digest}, expected none: not recorded yet" in problem
    record(monkeypatch, digest)
    assert cards.check(root) == []
    text = readme.read_text(encoding="utf-8")
    assert f"| `data/{FILE}` | {len(TASKS)} |" in text
    assert f"SHA-256 of these rows: `{digest}`" in text
    of_the_default = [
        line
        for line in without.split("### Numbers")[1].splitlines()
        if line.startswith("| ") and "Measured over" not in line
    ]
    assert set(of_the_default) <= set(text.splitlines())
    assert all(f"| `{task}` | 1 |" in text for task in TASKS)


def test_the_command_reports_what_is_wrong_with_a_file(
    root: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["--root", str(root), "cards", "on-policy"]) == 1
    assert "moxin-lab cards on-policy FILE" in capsys.readouterr().err
    assert cli.main(["--root", str(root), "cards", "on-policy", str(root / "none.parquet")]) == 1
    assert "none.parquet is not a readable parquet file" in capsys.readouterr().err


def test_the_pairs_are_a_separate_configuration_and_the_default_one_is_unchanged(
    added: Path, tmp_path: Path
) -> None:
    folder = str(added.parents[1])
    loaded = datasets.load_dataset(
        folder, "on_policy", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.to_list() == pq.read_table(added).to_pylist()
    default = datasets.load_dataset(folder, cache_dir=str(tmp_path / "cache"))
    expected_rows = sources.SOURCES["preferences"].rows
    assert {f"{split}.parquet": rows.num_rows for split, rows in default.items()} == expected_rows
    assert read_card(added.parents[1]).num_rows == sum(expected_rows.values())


def test_a_build_leaves_the_pairs_and_their_numbers_unchanged(root: Path, added: Path) -> None:
    before = {
        path: path.read_bytes() for path in (root / "data_cards").rglob("*") if path.is_file()
    }
    written = cards.rebuild(root, "preferences", progress=lambda _: None)
    assert added not in written
    assert {
        path: path.read_bytes() for path in (root / "data_cards").rglob("*") if path.is_file()
    } == before


def test_a_recorded_file_that_is_missing_is_named_with_the_only_remedy(
    root: Path, added: Path
) -> None:
    added.unlink()
    (problem,) = cards.check(root)
    assert f"{added} is missing. Restore it with `git checkout" in problem
    assert "moxin-lab cards build" not in problem


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("chosen", [{"role": "assistant", "content": "?!"}], "does not accept the chosen answer"),
        ("prompt", [{"role": "user", "content": "?"}], "its prompt is not that of its row"),
        ("license", "MIT", "its license is not that of its row"),
        ("verifier", tasks.exact("?"), "its verifier is not that of its row"),
        ("id", "on-policy-none", "no training row of instructions has this id"),
    ],
)
def test_check_checks_every_pair_even_if_its_file_was_recorded_and_rendered_again(
    column: str,
    value: object,
    message: str,
    root: Path,
    added: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = pq.read_table(added).to_pylist()
    rows[3][column] = value
    replace_rows(added, rows, monkeypatch)
    problems = cards.check(root)
    assert problems
    assert all(str(added) in problem for problem in problems)
    assert any(message in problem for problem in problems)


def test_check_finds_a_pair_of_the_test_side(
    root: Path, added: Path, instructions, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pq.read_table(added).to_pylist()
    rows[3]["source_item"] = instructions["test"][0]["source_item"]
    replace_rows(added, rows, monkeypatch)
    problems = cards.check(root)
    assert any("is on the test side" in problem for problem in problems)


def test_check_finds_a_changed_answer_that_the_verifier_also_refuses(
    root: Path, added: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = sources.SOURCES["preferences"].sampled[FILE]
    rows = pq.read_table(added).to_pylist()
    rows[3]["rejected"][0]["content"] = "?!?"
    replace_rows(added, rows, monkeypatch)
    record(monkeypatch, digest)
    (problem,) = cards.check(root)
    assert f"expected {digest}" in problem


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("config_name: on_policy", "config_name: sampled"),
        ("path: data/on_policy", "path: data/train"),
    ],
)
def test_check_requires_a_configuration_with_the_name_of_the_file(
    old: str, new: str, root: Path, added: Path
) -> None:
    readme = added.parents[1] / "README.md"
    text = readme.read_text(encoding="utf-8")
    assert text.count(old) == 1
    readme.write_text(text.replace(old, new), encoding="utf-8")
    (problem,) = cards.check(root)
    assert f"no configuration on_policy loads data/{FILE} alone" in problem


# ---- the released file


@pytest.fixture
def released(repository: Path) -> Path:
    if not RECORDED:
        pytest.skip(f"no {FILE} is released yet: its record in moxin_lab/data/sources.py is empty")
    return repository / "data_cards" / "preferences"


def test_the_released_pairs_are_for_training_rows_and_ranked_by_their_verifiers(
    released: Path, instructions, tmp_path: Path
) -> None:
    pairs = read_card(released / "data" / FILE).to_pylist()
    assert list(preferences.on_policy_faults(pairs, **instructions)) == []
    assert len(pairs) > 100
    assert {pair["language"] for pair in pairs} == {"en", "zh", "ja", "ko"}
    loaded = datasets.load_dataset(
        str(released), "on_policy", split="train", cache_dir=str(tmp_path)
    )
    assert loaded.to_list() == pairs


def test_the_released_card_has_no_placeholder(released: Path) -> None:
    assert "FILL-IN" not in (released / "README.md").read_text(encoding="utf-8")
