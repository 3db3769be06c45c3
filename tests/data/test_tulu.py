"""`moxin_lab.data.tulu`: files of the two Tülu 3 schemas are read; what cannot be used is counted;
other files are refused.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moxin_lab.data import tulu
from moxin_lab.data.tulu import TuluError

MESSAGES = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
SFT = pa.schema([("id", pa.string()), ("messages", MESSAGES), ("source", pa.string())])
PREFERENCES = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("source", pa.string()),
    ]
)


def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"content": content, "role": role} for role, content in turns]


QUESTION = ("user", "Why is the sky blue?")
GOOD, BAD = ("assistant", "Short waves scatter more."), ("assistant", "It is not.")


def folder(tmp_path: Path, schema: pa.Schema | None, rows: list[dict]) -> str:
    """A local data set that `datasets` loads as it loads the hub's: parquet files named train-*."""
    (tmp_path / "data").mkdir()
    pq.write_table(
        pa.Table.from_pylist(rows, schema=schema),
        tmp_path / "data" / "train-00000-of-00001.parquet",
    )
    return str(tmp_path)


def test_conversations_of_the_sft_schema_come_out_with_their_source(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "messages": talk(QUESTION, GOOD), "source": "ai2-adapt-dev/oasst1_converted"},
        {
            "id": "b",
            "messages": talk(("system", "Be brief."), QUESTION, GOOD, QUESTION, BAD),
            "source": "x",
        },
    ]
    found = tulu.instructions(path=folder(tmp_path, SFT, rows))
    read = list(found.rows)
    assert [row["messages"] for row in read] == [row["messages"] for row in rows]
    assert [(row["id"], row["origin"], row["source_item"]) for row in read] == [
        ("a", "tulu-3/ai2-adapt-dev/oasst1_converted", "a"),
        ("b", "tulu-3/x", "b"),
    ]
    assert not found.left_out


def test_a_pair_has_its_prompt_once_and_one_answer_a_side(tmp_path: Path) -> None:
    system = ("system", "Be brief.")
    row = {
        "id": "a",
        "prompt": "Why is the sky blue?",
        "chosen": talk(system, QUESTION, GOOD),
        "rejected": talk(system, QUESTION, BAD),
        "source": "s",
    }
    (pair,) = tulu.preferences(path=folder(tmp_path, PREFERENCES, [row])).rows
    assert pair["prompt"] == talk(system, QUESTION)
    assert (pair["chosen"], pair["rejected"]) == (talk(GOOD), talk(BAD))


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        (talk(("user", "a"), ("tool", "b")), "unknown role"),
        (talk(QUESTION, ("assistant", " \n")), "empty message"),
        (talk(GOOD, QUESTION), "roles out of order"),
        (talk(QUESTION, QUESTION, GOOD), "roles out of order"),
        (talk(QUESTION, GOOD, ("system", "late"), GOOD), "roles out of order"),
        (talk(("system", "alone")), "does not end with an answer"),
        (talk(QUESTION, GOOD, QUESTION), "does not end with an answer"),
    ],
)
def test_a_conversation_that_cannot_be_used_is_counted_with_its_reason(
    messages, reason: str, tmp_path: Path
) -> None:
    rows = [
        {"id": "bad", "messages": messages, "source": "s"},
        {"id": "good", "messages": talk(QUESTION, GOOD), "source": "s"},
    ]
    found = tulu.instructions(path=folder(tmp_path, SFT, rows))
    assert [row["id"] for row in found.rows] == ["good"]
    assert dict(found.left_out) == {reason: 1}


def test_tool_calls_are_counted_and_never_dropped_from_a_conversation(tmp_path: Path) -> None:
    called = {"role": "assistant", "content": "b", "tool_calls": ["f"]}
    rows = [
        {"id": "bad", "messages": [*talk(("user", "a")), called], "source": "s"},
        {"id": "good", "messages": talk(QUESTION, GOOD), "source": "s"},
    ]
    found = tulu.instructions(path=folder(tmp_path, None, rows))
    assert [row["id"] for row in found.rows] == ["good"]
    assert dict(found.left_out) == {
        "more than role and content in a message, such as tool calls": 1
    }


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (talk(QUESTION, GOOD), talk(QUESTION, GOOD), "chosen and rejected are equal"),
        (
            talk(QUESTION, GOOD),
            talk(("user", "Why?"), BAD),
            "chosen and rejected answer different conversations",
        ),
        (talk(QUESTION, GOOD), talk(QUESTION), "does not end with an answer"),
    ],
)
def test_a_pair_that_cannot_be_used_is_counted_with_its_reason(
    chosen, rejected, reason: str, tmp_path: Path
) -> None:
    row = {"id": "a", "prompt": "p", "chosen": chosen, "rejected": rejected, "source": "s"}
    found = tulu.preferences(path=folder(tmp_path, PREFERENCES, [row]))
    assert list(found.rows) == []
    assert dict(found.left_out) == {reason: 1}


def test_a_limit_reads_the_first_rows_alone(tmp_path: Path) -> None:
    rows = [{"id": str(i), "messages": talk(QUESTION, GOOD), "source": "s"} for i in range(5)]
    assert [row["id"] for row in tulu.instructions(2, path=folder(tmp_path, SFT, rows)).rows] == [
        "0",
        "1",
    ]


def test_a_set_with_other_columns_is_refused_before_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"id": "a", "conversations": []}) + "\n")
    with pytest.raises(
        TuluError,
        match=r"columns id, conversations; allenai/tulu-3-sft-mixture .* messages, source missing",
    ):
        tulu.instructions(path=str(tmp_path))
    with pytest.raises(TuluError, match="prompt, chosen, rejected, source missing"):
        tulu.preferences(path=str(tmp_path))
