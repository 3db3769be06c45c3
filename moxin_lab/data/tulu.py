"""The Tülu 3 mixtures that Moxin's instruct models were tuned on, read from the hub or from local
files of the same schema.

    allenai/tulu-3-sft-mixture
        id, source, messages (list of {content, role})
    allenai/llama-3.1-tulu-3-8b-preference-mixture
        id, source, prompt (text), chosen and rejected (whole conversations, the prompt included)

Columns: dataset_info of the two sets' cards (one split, train; 939,343 and 271,409 rows). Which
sets: Moxin-LLM, finetune/sft_finetune.sh and finetune/dpo_finetune.sh. Both are ODC-BY with parts
under other licences: nothing of them is kept in this repository.

Rows are streamed in the form of `data_cards/instructions` and `data_cards/preferences`, as far as
post-training reads them.

Guarantees: a row that cannot be used is counted with its reason, never skipped in silence; a set
with other columns is refused before the first row; importing this module downloads nothing.
Out of scope: filtering by source, and correcting a conversation.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from moxin_lab.lab.hub import Rows, open_set

SFT = "allenai/tulu-3-sft-mixture"
PREFERENCES = "allenai/llama-3.1-tulu-3-8b-preference-mixture"
COLUMNS = {
    SFT: ("id", "messages", "source"),
    PREFERENCES: ("id", "prompt", "chosen", "rejected", "source"),
}
ROLES = ("system", "user", "assistant")
"""Roles of the two sets; an SFT row may begin with a system message."""


class TuluError(ValueError):
    """A set without the columns that it is documented to have; the message names them."""


def instructions(limit: int | None = None, *, path: str = SFT, revision: str | None = None) -> Rows:
    """Rows of the SFT mixture: id, messages, origin (`tulu-3/<source>`), source_item (the id),
    task, language, verifier None.

    limit: rows that are read at most, None for all. path: the hub name, or a local folder of files
    with the set's columns. revision: a commit of the hub set, so that a run names its exact rows.
    Raises TuluError for other columns, and whatever `datasets` raises when a set cannot be reached.
    """
    left_out: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for row in stream:
            reason = _fault(row["messages"])
            if reason:
                left_out[reason] += 1
            else:
                yield {"id": row["id"], "messages": _messages(row["messages"]), **_about(row)}

    stream = _stream(SFT, path, revision, limit)
    return Rows(rows(), left_out)


def preferences(
    limit: int | None = None, *, path: str = PREFERENCES, revision: str | None = None
) -> Rows:
    """Pairs of the 8B preference mixture: id, prompt (messages), chosen and rejected (one assistant
    message each), construction.

    The prompt is taken from the two conversations, which repeat it, because the column `prompt` is
    text without roles. A pair whose conversations differ before the answer, or do not differ at
    all, is omitted and counted. Parameters and errors as in `instructions`.
    """
    left_out: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for row in stream:
            reason = _fault(row["chosen"]) or _fault(row["rejected"]) or _pair_fault(row)
            if reason:
                left_out[reason] += 1
                continue
            chosen, rejected = _messages(row["chosen"]), _messages(row["rejected"])
            pair = {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}
            yield {
                "id": row["id"],
                **pair,
                "construction": "Tülu 3 preference mixture",
                **_about(row),
            }

    stream = _stream(PREFERENCES, path, revision, limit)
    return Rows(rows(), left_out)


def _stream(name: str, path: str, revision: str | None, limit: int | None) -> Any:
    return open_set(
        path, name=name, columns=COLUMNS[name], revision=revision, limit=limit, error=TuluError
    )


def _about(row: dict[str, Any]) -> dict[str, Any]:
    about = {"origin": f"tulu-3/{row['source']}", "source_item": row["id"], "task": row["source"]}
    return {**about, "language": None, "difficulty": None, "verifier": None, "license": None}


def _messages(conversation: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"]} for message in conversation]


def _fault(conversation: Any) -> str | None:
    """Why a conversation cannot be trained on, or None."""
    if not conversation:
        return "no messages"
    roles = [message.get("role") for message in conversation]
    if not all(role in ROLES for role in roles):
        return "unknown role"
    if not all(
        isinstance(message.get("content"), str) and message["content"].strip()
        for message in conversation
    ):
        return "empty message"
    if any(message.keys() - {"role", "content"} for message in map(_given, conversation)):
        return "more than role and content in a message, such as tool calls"
    spoken = roles[1:] if roles[0] == "system" else roles
    if any(role != ("user", "assistant")[index % 2] for index, role in enumerate(spoken)):
        return "roles out of order"
    return None if roles[-1] == "assistant" else "does not end with an answer"


def _given(message: dict[str, Any]) -> dict[str, Any]:
    """Without the keys that a table fills with nulls because other rows have them."""
    return {key: value for key, value in message.items() if value is not None}


def _pair_fault(row: dict[str, Any]) -> str | None:
    chosen, rejected = _messages(row["chosen"]), _messages(row["rejected"])
    if chosen[:-1] != rejected[:-1]:
        return "chosen and rejected answer different conversations"
    return "chosen and rejected are equal" if chosen == rejected else None
