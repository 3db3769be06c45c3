"""Preference pairs for the prompts of `instructions`: constructed, or sampled from a model.

    row of instructions -> kinds of corruption that fit it -> one of them, chosen by a hash
      -> as many longer as shorter ones -> constructed pairs
    notebook 05's sampled pairs -> the training row that each one answers
      -> checked against that row -> on-policy pairs

`data_cards/preferences` (train.parquet, test.parquet, on_policy.parquet), one row per pair:

    id: string, unique over all files
    prompt: list<struct<role: string, content: string>>; the last message is the user's
    chosen, rejected: of the same type, one assistant message each
    construction: `constructed corruption: <kind>`, or `on-policy` for a sampled pair
    origin, source_item, task, language, difficulty, verifier, license: those of the example

Kinds of corruption, as named in `construction`:

    other choice         another item, digit or heading that the prompt offers
    wrong number         the right number plus or minus 1, 2 or 10
    wrong value          the answer to another prompt of the task, refused by the verifier
    neighbour's answer   the answer to another prompt of the task, where no verifier decides
    wrong language       the answer in another language; for a translation, the untranslated text
    dropped end          shorter: the answer without its last word, or without its last character
    truncated            shorter: the first half of the answer
    repeated             longer: the answer two or three times
    rambling             longer: the answer, followed by the answer to another prompt

Guarantees: each pair belongs to one row of `instructions` and to its side of the split; if the row
has a verifier, it accepts chosen and refuses rejected. Among constructed pairs, rejected answers
are longer as often as they are shorter, on each side of the split, so no rule that looks at length
alone is better than chance; the same rows give the same pairs. On-policy pairs belong to training
rows with a verifier.
Out of scope: ranking answers without a verifier, where a rejected answer may be as good in some
reader's eyes; sampling on-policy pairs. A run of notebook 05 sampled those of the card once; at run
time, post-training samples from its own model and does not read them.
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
"""Most pairs of a task, difficulty and language: in train and in test."""
_EASY_PAIRS = (60, 20)
"""The same for difficulty 1, where small models can distinguish the answers."""
ON_POLICY, ON_POLICY_FILE = "on-policy", "on_policy.parquet"
_ROW_COLUMNS = ("origin", "source_item", "task", "language", "difficulty", "verifier", "license")
"""Columns that a pair copies from its row."""


def corruptions(row: dict[str, Any], neighbours: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(kind, answer) for each kind of corruption that fits the row.

    The answer differs from the row's, and the row's verifier, if it has one, refuses it.

    neighbours: other rows of the same task and language.
    """
    answer, key = _answer(row), row["id"]
    others = sorted({_answer(other) for other in neighbours} - {answer})
    other = tasks.hashed_sample(f"{key}/other", others, 1)[0] if others else None
    candidates: list[tuple[str, str | None]] = [
        ("wrong value" if row["verifier"] else "neighbour's answer", other)
    ]
    candidates += [("other choice", _other_choice(row)), ("wrong number", _wrong_number(row))]
    candidates.append(("wrong language", _in_another_language(row)))
    words = tasks.plain(answer).split()
    candidates.append(("dropped end", " ".join(words[:-1]) if len(words) > 1 else words[0][:-1]))
    candidates.append(
        ("truncated", answer[: len(answer) // 2].rstrip() if len(answer) >= 8 else None)
    )
    candidates.append(
        ("repeated", " ".join([answer] * (2 + tasks.hashed_integer(f"{key}/times", 2))))
    )
    candidates.append(("rambling", f"{answer} {other}" if other else None))
    for kind, text in candidates:
        if (
            text
            and tasks.plain(text) != tasks.plain(answer)
            and not (row["verifier"] and tasks.is_right(row["verifier"], text))
        ):
            yield kind, text


def _other_choice(row: dict[str, Any]) -> str | None:
    """Another of the choices that the prompt offers; None if it offers none."""
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
        tasks.hashed_sample(f"{row['id']}/choice", others, 1)[0]
        if answer in offered and others
        else None
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
    candidates = [value + d for d in (-10, -2, -1, 1, 2, 10) if value + d >= 0]
    return str(tasks.hashed_sample(f"{row['id']}/number", candidates, 1)[0])


def _in_another_language(row: dict[str, Any]) -> str | None:
    if row["task"] == "translate":
        return row["messages"][0]["content"].partition("\n")[2]
    answer = _answer(row)
    for words in tasks.CLOSED_ANSWERS:
        if answer in words[row["language"]]:
            position = words[row["language"]].index(answer)
            others = [language for language in tasks.LANGUAGES if language != row["language"]]
            other = tasks.hashed_sample(f"{row['id']}/language", others, 1)[0]
            return words[other][position]
    return None


def _answer(row: dict[str, Any]) -> str:
    return row["messages"][-1]["content"]


def pairs(rows: list[dict[str, Any]], side: int) -> list[dict[str, Any]]:
    """Constructed pairs for the rows of one side, in their order. side: 0 for train, 1 for test."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["task"], row["difficulty"], row["language"]].append(row)
    longer: list[dict[str, Any]] = []
    shorter: list[dict[str, Any]] = []
    equal: list[dict[str, Any]] = []
    for (_, difficulty, _), group in groups.items():
        for row in group[: (_EASY_PAIRS if difficulty == 1 else _PAIRS)[side]]:
            candidates = list(corruptions(row, group))
            # First whether the answer gets longer or shorter, then the kind: otherwise a kind that
            # always fits would crowd out the others.
            signs = sorted({_sign(text, row) for _, text in candidates})
            if signs:
                sign = tasks.hashed_sample(f"{row['id']}/length", signs, 1)[0]
                fitting = [(kind, text) for kind, text in candidates if _sign(text, row) == sign]
                kind, text = tasks.hashed_sample(f"{row['id']}/kind", fitting, 1)[0]
                {-1: shorter, 0: equal, 1: longer}[sign].append(_pair(row, kind, text))
    count = min(len(longer), len(shorter))
    kept = {pair["id"] for pair in (*_some(longer, count), *_some(shorter, count), *equal)}
    ordered = {pair["id"]: pair for pair in (*longer, *shorter, *equal)}
    return [ordered[key] for key in (f"pair-{row['id']}" for row in rows) if key in kept]


def _sign(text: str, row: dict[str, Any]) -> int:
    """1 if `text` is longer than the row's answer, -1 if it is shorter, else 0."""
    difference = len(text) - len(_answer(row))
    return (difference > 0) - (difference < 0)


def _some(pairs: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` of the pairs, by a hash of their ids."""
    return sorted(pairs, key=lambda pair: tasks.hashed_integer(f"{pair['id']}/kept", 2**64))[:count]


def _pair(row: dict[str, Any], kind: str, text: str) -> dict[str, Any]:
    return {
        "id": f"pair-{row['id']}",
        "prompt": row["messages"][:-1],
        "chosen": row["messages"][-1:],
        "rejected": [{"role": "assistant", "content": text}],
        "construction": f"constructed corruption: {kind}",
        **{name: row[name] for name in _ROW_COLUMNS},
    }


# ---- pairs sampled from a model


def on_policy(
    sampled: Iterable[dict[str, Any]], train: list[dict[str, Any]], test: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Sampled pairs in the form of the card, in the order of `train`.

    The prompt identifies the training row that a pair answers: no two rows with a verifier have the
    same one. The column `row` of `sampled` is not read, since it is an index into the rows that a
    run sampled from, which may be a subset.

    Args:
        sampled: rows of notebook 05's `sampled_pairs.parquet`; their `chosen` and `rejected` are
            whole conversations.
        train, test: the rows of `instructions`.
    Raises `CardError` for a pair that answers no training row or two different prompts, or that has
    one of the faults of `on_policy_faults`.
    """
    rows = {_key(row["messages"][:-1]): row for row in train if row["verifier"]}
    on_policy_pairs = [_on_policy_pair(pair, rows) for pair in sampled]
    if faults := list(on_policy_faults(on_policy_pairs, train, test)):
        raise CardError(faults[0] + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""))
    positions = {f"{ON_POLICY}-{row['id']}": index for index, row in enumerate(train)}
    return sorted(on_policy_pairs, key=lambda pair: positions[pair["id"]])


def _key(messages: list[dict[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in messages)


def _on_policy_pair(
    pair: dict[str, Any], rows: dict[tuple[tuple[str, str], ...], dict[str, Any]]
) -> dict[str, Any]:
    prompt = _key(pair["chosen"][:-1])
    question = prompt[-1][1] if prompt else ""
    if prompt != _key(pair["rejected"][:-1]):
        raise CardError(f"the pair about {question!r} rejects an answer to another prompt")
    if prompt not in rows:
        raise CardError(
            f"the pair about {question!r} answers no training row of instructions "
            "that has a verifier"
        )
    row = rows[prompt]
    return {
        "id": f"{ON_POLICY}-{row['id']}",
        "prompt": row["messages"][:-1],
        "chosen": pair["chosen"][-1:],
        "rejected": pair["rejected"][-1:],
        "construction": pair["construction"],
        **{name: row[name] for name in _ROW_COLUMNS},
    }


def on_policy_faults(
    pairs: list[dict[str, Any]], train: list[dict[str, Any]], test: list[dict[str, Any]]
) -> Iterator[str]:
    """Why on-policy pairs are not allowed in the card: one line per fault.

    train, test: the rows of `instructions`.
    """
    rows = {f"{ON_POLICY}-{row['id']}": row for row in train}
    held_out = {row["source_item"] for row in test}
    for name, count in Counter(pair["id"] for pair in pairs).items():
        if count > 1:
            yield f"{name} occurs {count} times"
    for pair in pairs:
        row = rows.get(pair["id"])
        faults = _faults(pair, row) if row else ["no training row of instructions has this id"]
        yield from (f"{pair['id']}: {fault}" for fault in faults)
        if pair["source_item"] in held_out:
            yield f"{pair['id']}: its source item {pair['source_item']} is on the test side"


def _faults(pair: dict[str, Any], row: dict[str, Any]) -> Iterator[str]:
    if pair["construction"] != ON_POLICY:
        yield f"its construction is {pair['construction']!r}, not {ON_POLICY!r}"
    if pair["prompt"] != row["messages"][:-1]:
        yield "its prompt is not that of its row"
    yield from (
        f"its {name} is not that of its row" for name in _ROW_COLUMNS if pair[name] != row[name]
    )
    for side in ("chosen", "rejected"):
        roles = [message["role"] for message in pair[side]]
        if roles != ["assistant"] or not pair[side][0]["content"].strip():
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
    """Faults of the card's on-policy pairs, given the card `instructions` under `card_root`.

    Raises `CardError` if that card cannot be read.
    """
    return list(on_policy_faults(table.to_pylist(), *_instructions(card_root)))


def on_policy_table(file: Path, card_root: Path) -> pa.Table:
    """The pairs of notebook 05's `sampled_pairs.parquet`, in the form of the card.

    Each pair is checked against its row of `instructions` under `card_root`. Raises `CardError`,
    naming `file` and its fault.
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
    columns = {"chosen", "rejected", "construction"}
    if missing := columns - set(table.schema.names):
        raise CardError(
            f"{file} has no column {', '.join(sorted(missing))}: "
            "it does not contain the sampled pairs of notebook 05"
        )
    if table.num_rows == 0:
        raise CardError(f"{file} has no pairs")
    return table.select(sorted(columns)).to_pylist()


def _instructions(card_root: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    data = card_root / "instructions" / "data"
    train, test = (read_card(data / f"{side}.parquet").to_pylist() for side in ("train", "test"))
    return train, test


# ---- the card's constructed files


def tables(card_root: Path) -> dict[str, pa.Table]:
    """The constructed tables of `data_cards/preferences`, by file name.

    They are built from the card `instructions` under `card_root`. Raises `CardError`.
    """
    train, test = _instructions(card_root)
    constructed = {"test.parquet": pairs(test, 1), "train.parquet": pairs(train, 0)}
    return {
        name: pa.Table.from_pylist(rows, schema=PREFERENCES_SCHEMA)
        for name, rows in constructed.items()
    }
