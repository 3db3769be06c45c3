"""Preference pairs made of the instruction set: its answer is chosen, a stated corruption of it is rejected.

    instruction row -> kinds of corruption that fit it -> one of them by a hash -> as many longer as shorter -> pairs

Kinds, each named in `construction`:

    other choice         the prompt's own other item, digit or heading, where it offers some
    wrong number         the right number with 1, 2 or 10 added or taken away
    wrong value          the answer to another prompt of the same task and language, which the verifier refuses
    neighbour's answer   the answer to another prompt of the same task and language (no verifier decides)
    wrong language       the answer in another language; for a translation, the text as it stood
    dropped end          shorter: the answer without its last word, or last character if it is one word
    truncated            shorter: the first half of the answer
    repeated             longer: the answer two or three times
    rambling             longer: the answer, and another prompt's answer after it

Guarantees: each pair is of one row of `instructions` and on its side of the split; where a verifier exists it accepts chosen
and refuses rejected; rejected answers are longer as often as shorter, on each side of the split, so that no rule of length
alone beats chance; the same rows give the same pairs.
Does not: say that a rejected answer of a row without a verifier is worse in every reader's eyes; the construction says how it
was made. On-policy pairs are no part of the set: post-training samples them from its own model.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from moxin_lab.data import tasks
from moxin_lab.data.cards import read_card
from moxin_lab.data.packaged import PREFERENCES_SCHEMA

_PAIRS = (24, 8)
"""At most so many pairs of a task, a difficulty and a language: train, test."""
_EASY_PAIRS = (60, 20)
"""The same for difficulty 1, which small models can tell apart."""


def corruptions(row: dict[str, Any], neighbours: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(kind, answer) for each kind that fits the row and gives an answer that differs from it, wrong by its verifier if any.

    neighbours: other rows of the same task and language.
    """
    answer, key = _answer(row), row["id"]
    others = sorted({_answer(other) for other in neighbours} - {answer})
    other = tasks.chosen(f"{key}/other", others, 1)[0] if others else None
    made: list[tuple[str, str | None]] = [("wrong value" if row["verifier"] else "neighbour's answer", other)]
    made += [("other choice", _other_choice(row)), ("wrong number", _wrong_number(row))]
    made.append(("wrong language", _in_another_language(row)))
    words = tasks.plain(answer).split()
    made.append(("dropped end", " ".join(words[:-1]) if len(words) > 1 else words[0][:-1]))
    made.append(("truncated", answer[: len(answer) // 2].rstrip() if len(answer) >= 8 else None))
    made.append(("repeated", " ".join([answer] * (2 + tasks.number(f"{key}/times", 2)))))
    made.append(("rambling", f"{answer} {other}" if other else None))
    for kind, text in made:
        if (
            text
            and tasks.plain(text) != tasks.plain(answer)
            and not (row["verifier"] and tasks.is_right(row["verifier"], text))
        ):
            yield kind, text


def _other_choice(row: dict[str, Any]) -> str | None:
    """Another of the things that the prompt lets one choose from; None if it offers none."""
    prompt, answer = row["messages"][0]["content"], _answer(row)
    if row["task"] in ("larger", "smaller"):
        offered = re.findall(r"\d+", prompt)
    elif row["task"] in ("first_item", "last_item"):
        offered = prompt.partition(": ")[2].split()
    elif row["task"] == "find_heading":
        line = prompt.partition("\n")[0]
        offered = [text for text in re.split("[“”「」]", line)[1::2] if text]
    else:
        return None
    others = [text for text in offered if text != answer]
    return tasks.chosen(f"{row['id']}/choice", others, 1)[0] if answer in offered and others else None


def _wrong_number(row: dict[str, Any]) -> str | None:
    if row["task"] not in ("add", "subtract", "multiply", "next_number", "count_items", "count_letter"):
        return None
    value = int(_answer(row))
    return str(
        tasks.chosen(f"{row['id']}/number", [value + d for d in (-10, -2, -1, 1, 2, 10) if value + d >= 0], 1)[0]
    )


def _in_another_language(row: dict[str, Any]) -> str | None:
    if row["task"] == "translate":
        return row["messages"][0]["content"].partition("\n")[2]
    answer = _answer(row)
    for words in tasks.CLOSED_ANSWERS:
        if answer in words[row["language"]]:
            place = words[row["language"]].index(answer)
            spoken = tasks.chosen(f"{row['id']}/language", [x for x in tasks.LANGUAGES if x != row["language"]], 1)[0]
            return words[spoken][place]
    return None


def _answer(row: dict[str, Any]) -> str:
    return row["messages"][-1]["content"]


def pairs(rows: list[dict[str, Any]], side: int) -> list[dict[str, Any]]:
    """Pairs of the rows of one side, in the rows' order. side: 0 for train, 1 for test."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["task"], row["difficulty"], row["language"]].append(row)
    longer: list[dict[str, Any]] = []
    shorter: list[dict[str, Any]] = []
    equal: list[dict[str, Any]] = []
    for (_, difficulty, _), group in groups.items():
        for row in group[: (_EASY_PAIRS if difficulty == 1 else _PAIRS)[side]]:
            made = list(corruptions(row, group))
            # first which way the length goes, then how: a kind that always fits would crowd out the others
            signs = sorted({_sign(text, row) for _, text in made})
            if signs:
                sign = tasks.chosen(f"{row['id']}/length", signs, 1)[0]
                fitting = [one for one in made if _sign(one[1], row) == sign]
                kind, text = tasks.chosen(f"{row['id']}/kind", fitting, 1)[0]
                {-1: shorter, 0: equal, 1: longer}[sign].append(_pair(row, kind, text))
    count = min(len(longer), len(shorter))
    kept = {pair["id"] for pair in (*_some(longer, count), *_some(shorter, count), *equal)}
    ordered = {pair["id"]: pair for pair in (*longer, *shorter, *equal)}
    return [ordered[key] for key in (f"pair-{row['id']}" for row in rows) if key in kept]


def _sign(text: str, row: dict[str, Any]) -> int:
    difference = len(text) - len(_answer(row))
    return (difference > 0) - (difference < 0)


def _some(made: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return sorted(made, key=lambda pair: tasks.number(f"{pair['id']}/kept", 2**64))[:count]


def _pair(row: dict[str, Any], kind: str, text: str) -> dict[str, Any]:
    kept = ("origin", "source_item", "task", "language", "difficulty", "verifier", "license")
    return {
        "id": f"pair-{row['id']}",
        "prompt": row["messages"][:-1],
        "chosen": row["messages"][-1:],
        "rejected": [{"role": "assistant", "content": text}],
        "construction": f"constructed corruption: {kind}",
        **{name: row[name] for name in kept},
    }


def tables(card_root: Path) -> dict[str, pa.Table]:
    """The parquet files of `data_cards/preferences`, from the card `instructions` under `card_root`. Raises `CardError`."""
    data = card_root / "instructions" / "data"
    made = {
        name: pairs(read_card(data / name).to_pylist(), name == "test.parquet")
        for name in ("test.parquet", "train.parquet")
    }
    return {name: pa.Table.from_pylist(rows, schema=PREFERENCES_SCHEMA) for name, rows in made.items()}
