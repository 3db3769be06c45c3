"""The hub sets of the full scale's reasoning stage, read from the hub or from local files of the
same schema.

    open-thoughts/OpenThoughts-114k          113,957 rows: system, conversations (list of
                                             {from: user | assistant, value})
    open-r1/OpenR1-Math-220k                 93,733 rows: problem, solution, answer, generations,
                                             correctness_math_verify, correctness_llama, messages
                                             and more; the `default` configuration
    agentica-org/DeepScaleR-Preview-Dataset  about 40,300 rows: problem, answer, solution

Columns: dataset_info of the cards. Which sets: technical report v6, section 5. OpenR1-Math-220k's
name counts `default` and `extended` together; `default` is what loads without a name, and what its
card recommends for fine-tuning.

Guarantees: a row that cannot be used is counted with its reason, never skipped in silence; a set
with other columns is refused before the first row.
Out of scope: downloading at import; judging a trace that its set has not judged.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from moxin_lab.lab.hub import Rows, open_set
from moxin_lab.reasoning.tasks import Task

OPEN_THOUGHTS = "open-thoughts/OpenThoughts-114k"
OPEN_R1 = "open-r1/OpenR1-Math-220k"
DEEPSCALER = "agentica-org/DeepScaleR-Preview-Dataset"
COLUMNS = {
    OPEN_THOUGHTS: ("system", "conversations"),
    OPEN_R1: ("problem", "answer", "generations", "correctness_math_verify", "correctness_llama"),
    DEEPSCALER: ("problem", "answer", "solution"),
}
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


class ReasoningSetError(ValueError):
    """A set without the columns that it is documented to have; the message names them."""


def open_thoughts(
    limit: int | None = None, *, path: str = OPEN_THOUGHTS, revision: str | None = None
) -> Rows:
    """Conversations (lists of role and content) of OpenThoughts-114k, the system message first.

    limit: rows to read at most, None for all. path: the hub name, or a folder or file that
    `datasets` loads. revision: a commit of the hub set. Raises ReasoningSetError for other columns,
    and whatever `datasets` raises.
    """

    def conversation(row: dict[str, Any]) -> Any:
        messages = (
            [{"role": "system", "content": row["system"]}] if (row["system"] or "").strip() else []
        )
        for turn in row["conversations"] or []:
            if turn["from"] not in ROLES:
                return "unknown speaker"
            messages.append({"role": ROLES[turn["from"]], "content": turn["value"]})
        roles = [message["role"] for message in messages if message["role"] != "system"]
        if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
            return "turns out of order"
        return (
            messages
            if all((message["content"] or "").strip() for message in messages)
            else "empty message"
        )

    return _rows(OPEN_THOUGHTS, path, revision, limit, conversation)


def open_r1(limit: int | None = None, *, path: str = OPEN_R1, revision: str | None = None) -> Rows:
    """Conversations of OpenR1-Math-220k: the problem, and its first generation that Math-Verify (or
    else the set's judge model) called right. Parameters and errors as in `open_thoughts`.
    """

    def conversation(row: dict[str, Any]) -> Any:
        generations = row["generations"] or []
        if not (row["problem"] or "").strip():
            return "no problem"
        for verdicts in (row["correctness_math_verify"], row["correctness_llama"]):
            for text, right in zip(generations, verdicts or [], strict=False):
                if right and text.strip():
                    return [
                        {"role": "user", "content": row["problem"]},
                        {"role": "assistant", "content": text},
                    ]
        return "no generation called right"

    return _rows(OPEN_R1, path, revision, limit, conversation)


def deepscaler(
    limit: int | None = None, *, path: str = DEEPSCALER, revision: str | None = None
) -> Rows:
    """Tasks of the family `deepscaler`: problem and answer, without a trace. Parameters and errors
    as in `open_thoughts`.
    """

    def task(row: dict[str, Any]) -> Any:
        problem, answer = (
            str(row[name] if row[name] is not None else "").strip()
            for name in ("problem", "answer")
        )
        if not problem:
            return "no problem"
        return Task("deepscaler", problem, answer) if answer else "no answer"

    return _rows(DEEPSCALER, path, revision, limit, task)


def _rows(
    name: str,
    path: str,
    revision: str | None,
    limit: int | None,
    convert: Callable[[dict[str, Any]], Any],
) -> Rows:
    """`convert` maps a row to the value to yield, or to the reason (a string) for omitting it."""
    stream = open_set(
        path,
        name=name,
        columns=COLUMNS[name],
        revision=revision,
        limit=limit,
        error=ReasoningSetError,
    )
    omitted: Counter[str] = Counter()

    def rows() -> Iterator[Any]:
        for row in stream:
            value = convert(row)
            if isinstance(value, str):
                omitted[value] += 1
            else:
                yield value

    return Rows(rows(), omitted)
