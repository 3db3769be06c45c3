"""Preference pairs about the instruction set: constructed of its answers, or a model's own answers
that its verifier ranked.

    instruction row -> kinds of corruption that fit it -> one of them by a hash -> as many longer as
    shorter -> pairs notebook 05's sampled pairs -> the training row that each answers -> checked
    against that row -> on-policy pairs

Kinds of corruption, each named in `construction`:

    other choice         the prompt's own other item, digit or heading, where it offers some
    wrong number         the right number with 1, 2 or 10 added or taken away
    wrong value          the answer to another prompt of the same task and language, which the verifier refuses
    neighbour's answer   the answer to another prompt of the same task and language (no verifier decides)
    wrong language       the answer in another language; for a translation, the text as it stood
    dropped end          shorter: the answer without its last word, or last character if it is one word
    truncated            shorter: the first half of the answer
    repeated             longer: the answer two or three times
    rambling             longer: the answer, and another prompt's answer after it

Guarantees: each pair is of one row of `instructions` and on its side of the split; where a verifier
exists it accepts chosen and refuses rejected. Of constructed pairs: rejected answers are longer as
often as shorter, on each side of the split, so that no rule of length alone beats chance; the same
rows give the same pairs. On-policy pairs are of training rows with a verifier.
Does not: say that a rejected answer of a row without a verifier is worse in every reader's eyes;
the construction says how it was made. Sample on-policy pairs: a run of notebook 05 did, once for
this card; at run time post-training samples anew from its own model and does not read them.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moxin_lab.data import tasks
from moxin_lab.data.card_files import CardError, read_card
from moxin_lab.data.packaged import PREFERENCES_SCHEMA

_PAIRS = (24, 8)
"""At most so many pairs of a task, a difficulty and a language: train, test."""
_EASY_PAIRS = (60, 20)
"""The same for difficulty 1, which small models can tell apart."""
ON_POLICY, ON_POLICY_FILE = "on-policy", "on_policy.parquet"
_OF_ROW = ("origin", "source_item", "task", "language", "difficulty", "verifier", "license")
"""Columns that a pair has from its row."""


def corruptions(row: dict[str, Any], neighbours: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(kind, answer) for each kind that fits the row and gives an answer that differs from it,
    wrong by its verifier if any.

    neighbours: other rows of the same task and language.
    """
    answer, key = _answer(row), row["id"]
    others = sorted({_answer(other) for other in neighbours} - {answer})
    other = tasks.chosen(f"{key}/other", others, 1)[0] if others else None
    made: list[tuple[str, str | None]] = [
        ("wrong value" if row["verifier"] else "neighbour's answer", other)
    ]
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
    return (
        tasks.chosen(f"{row['id']}/choice", others, 1)[0] if answer in offered and others else None
    )


def _wrong_number(row: dict[str, Any]) -> str | None:
    if row["task"] not in (
        "add",
        "subtract",
        "multiply",
        "next_number",
        "count_items",
        "count_letter",
    ):
        return None
    value = int(_answer(row))
    return str(
        tasks.chosen(
            f"{row['id']}/number", [value + d for d in (-10, -2, -1, 1, 2, 10) if value + d >= 0], 1
        )[0]
    )


def _in_another_language(row: dict[str, Any]) -> str | None:
    if row["task"] == "translate":
        return row["messages"][0]["content"].partition("\n")[2]
    answer = _answer(row)
    for words in tasks.CLOSED_ANSWERS:
        if answer in words[row["language"]]:
            place = words[row["language"]].index(answer)
            spoken = tasks.chosen(
                f"{row['id']}/language", [x for x in tasks.LANGUAGES if x != row["language"]], 1
            )[0]
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
            # first which way the length goes, then how: a kind that always fits would crowd out the
            # others
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
    return {
        "id": f"pair-{row['id']}",
        "prompt": row["messages"][:-1],
        "chosen": row["messages"][-1:],
        "rejected": [{"role": "assistant", "content": text}],
        "construction": f"constructed corruption: {kind}",
        **{name: row[name] for name in _OF_ROW},
    }


# ---- pairs sampled from a model


def on_policy(
    sampled: Iterable[dict[str, Any]], train: list[dict[str, Any]], test: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Pairs in the card's form, in the order of `train`.

    sampled: rows of notebook 05's `sampled_pairs.parquet`, whose `chosen` and `rejected` are whole
    conversations.
    train, test: the rows of `instructions`. The prompt tells which training row a pair answers; no
    two with a verifier have the same. Column `row` of `sampled` is not read: it counts the rows
    that a run sampled from, which may be a part of these. Raises `CardError` for a pair that
    answers no training row, or two prompts, or has one of the faults of `on_policy_faults`.
    """
    rows = {_key(row["messages"][:-1]): row for row in train if row["verifier"]}
    made = [_on_policy_pair(pair, rows) for pair in sampled]
    if faults := list(on_policy_faults(made, train, test)):
        raise CardError(faults[0] + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""))
    places = {f"{ON_POLICY}-{row['id']}": place for place, row in enumerate(train)}
    return sorted(made, key=lambda pair: places[pair["id"]])


def _key(messages: list[dict[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in messages)


def _on_policy_pair(
    pair: dict[str, Any], rows: dict[tuple[tuple[str, str], ...], dict[str, Any]]
) -> dict[str, Any]:
    prompt = _key(pair["chosen"][:-1])
    asked = prompt[-1][1] if prompt else ""
    if prompt != _key(pair["rejected"][:-1]):
        raise CardError(f"the pair about {asked!r} rejects an answer to another prompt")
    if prompt not in rows:
        raise CardError(
            f"the pair about {asked!r} answers no training row of instructions that has a verifier"
        )
    row = rows[prompt]
    return {
        "id": f"{ON_POLICY}-{row['id']}",
        "prompt": row["messages"][:-1],
        "chosen": pair["chosen"][-1:],
        "rejected": pair["rejected"][-1:],
        "construction": pair["construction"],
        **{name: row[name] for name in _OF_ROW},
    }


def on_policy_faults(
    pairs: list[dict[str, Any]], train: list[dict[str, Any]], test: list[dict[str, Any]]
) -> Iterator[str]:
    """Why on-policy pairs may not be in the card, one line a fault. train, test: the rows of
    `instructions`.
    """
    rows = {f"{ON_POLICY}-{row['id']}": row for row in train}
    held_out = {row["source_item"] for row in test}
    for name, count in Counter(pair["id"] for pair in pairs).items():
        if count > 1:
            yield f"{name} is there {count} times"
    for pair in pairs:
        row = rows.get(pair["id"])
        found = _faults(pair, row) if row else ["no training row of instructions has this id"]
        yield from (f"{pair['id']}: {fault}" for fault in found)
        if pair["source_item"] in held_out:
            yield f"{pair['id']}: its source item {pair['source_item']} is of the test side"


def _faults(pair: dict[str, Any], row: dict[str, Any]) -> Iterator[str]:
    if pair["construction"] != ON_POLICY:
        yield f"its construction is {pair['construction']!r}, not {ON_POLICY!r}"
    if pair["prompt"] != row["messages"][:-1]:
        yield "its prompt is not that of its row"
    yield from (f"its {name} is not that of its row" for name in _OF_ROW if pair[name] != row[name])
    for side in ("chosen", "rejected"):
        if [message["role"] for message in pair[side]] != ["assistant"] or not pair[side][0][
            "content"
        ].strip():
            yield f"{side} is not one message of the assistant with text"
            return
    chosen, rejected = pair["chosen"][0]["content"], pair["rejected"][0]["content"]
    if row["verifier"] is None:
        yield "its row has no verifier, so that nothing ranked the answers"
    elif not tasks.is_right(row["verifier"], chosen):
        yield f"the verifier does not accept the chosen answer {chosen!r}"
    elif tasks.is_right(row["verifier"], rejected):
        yield f"the verifier accepts the rejected answer {rejected!r}"


def on_policy_problems(table: pa.Table, card_root: Path) -> list[str]:
    """Faults of the card's on-policy pairs against `instructions` under `card_root`. Raises
    `CardError` if that is damaged.
    """
    return list(on_policy_faults(table.to_pylist(), *_instructions(card_root)))


def on_policy_table(file: Path, card_root: Path) -> pa.Table:
    """The pairs of notebook 05's `sampled_pairs.parquet` in the card's form, each checked against
    its row of `instructions` under `card_root`. Raises `CardError` naming `file` and what is wrong
    with it.
    """
    sampled, sides = _read_sampled(file), _instructions(card_root)
    try:
        pairs = on_policy(sampled, *sides)
    except CardError as error:
        raise CardError(f"{file}: {error}") from error
    return pa.Table.from_pylist(pairs, schema=PREFERENCES_SCHEMA)


def _read_sampled(file: Path) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(file, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise CardError(f"{file} is not a readable parquet file: {error}") from error
    wanted = {"chosen", "rejected", "construction"}
    if missing := wanted - set(table.schema.names):
        raise CardError(
            f"{file} has no column {', '.join(sorted(missing))}: it is not the sampled pairs of notebook 05"
        )
    if table.num_rows == 0:
        raise CardError(f"{file} has no pairs")
    return table.select(sorted(wanted)).to_pylist()


def _instructions(card_root: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    data = card_root / "instructions" / "data"
    train, test = (read_card(data / f"{side}.parquet").to_pylist() for side in ("train", "test"))
    return train, test


# ---- the card's constructed files


def tables(card_root: Path) -> dict[str, pa.Table]:
    """The parquet files of `data_cards/preferences` that can be built, from the card `instructions`
    under `card_root`.

    Raises `CardError`.
    """
    train, test = _instructions(card_root)
    made = {"test.parquet": pairs(test, 1), "train.parquet": pairs(train, 0)}
    return {
        name: pa.Table.from_pylist(rows, schema=PREFERENCES_SCHEMA) for name, rows in made.items()
    }
