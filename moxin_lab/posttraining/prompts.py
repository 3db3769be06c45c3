"""A conversation as the prompt of a model, by the chat template of its tokenizer.

    ids = prompts.encode_prompt([{"role": "user", "content": "Why?"}], tokenizer)

A conversation is a list of `{"role", "content"}`: an optional system message, then user and
assistant messages in turn.

Guarantees: no text becomes a control token or a turn, with Tülu's template or another one. `</s>`
or `<tool_call>` in a message is text. What begins or ends a turn in the template without being a
control token, such as `<|user|>` in Tülu's, cannot be told from text, so a message that spells it
is refused; the comparison is made on the token ids, so that no normaliser can hide it. Nothing of a
conversation is omitted in silence.
Out of scope: the template of Tülu and training (`chat.py`); tools, documents and images.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from moxin_lab.model import plain_text

Conversation = Sequence[dict[str, Any]]
ROLES = ("system", "user", "assistant")
OTHER_ROLES = ("tool", "function", "developer", "ipython", "environment", "observation")
"""Roles that templates of others know. No message here has one, and none may spell its header."""
SANITIZER_MARKS = ("\U000f0000", "\U000f0001")
"""transformers puts these two characters around what `sanitize_control_tokens` reads as text."""


class ChatError(ValueError):
    """A conversation, a tokenizer or a data set that cannot be used; the message says why and what
    to do.
    """


def check_conversation(conversation: Any, *, ends_with: str = "assistant") -> None:
    """Raises ChatError for a wrong type, role or order, content that is empty, not text or has one
    of the SANITIZER_MARKS, a key beside role and content, or a last role other than `ends_with`.
    """
    if (
        not isinstance(conversation, Sequence)
        or isinstance(conversation, str)
        or not len(conversation)
    ):
        raise ChatError(
            "a conversation is a list of messages with at least one; this is "
            f"{str(conversation)[:80]!r}"
        )
    expected: tuple[str, ...] = ("system", "user")
    for position, message in enumerate(conversation):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ChatError(
                f"message {position} is {str(message)[:80]!r}: it needs a role and a content"
            )
        role, content = message["role"], message["content"]
        if not isinstance(role, str) or role not in ROLES:
            raise ChatError(
                f"message {position} has the role {role!r}: known are {', '.join(ROLES)}"
            )
        if role not in expected:
            raise ChatError(
                f"message {position} is a {role} message where {' or '.join(expected)} is due"
            )
        # A table of conversations has a column for each key of any of them.
        given = {str(key) for key, value in message.items() if value is not None}
        if others := sorted(given - {"role", "content"}):
            raise ChatError(
                f"message {position} has {', '.join(others)}: only role and content are read"
            )
        if not isinstance(content, str):
            raise ChatError(
                f"message {position} ({role}) has a content of type {type(content).__name__}, not "
                "text"
            )
        if not content.strip():
            raise ChatError(f"message {position} ({role}) is empty")
        if any("\ud800" <= character <= "\udfff" for character in content):
            raise ChatError(f"message {position} ({role}) has half a surrogate pair: no UTF-8 text")
        if any(mark in content for mark in SANITIZER_MARKS):
            raise ChatError(
                f"message {position} ({role}) has U+F0000 or U+F0001, which transformers itself "
                "puts around control tokens: leave these private-use characters out"
            )
        expected = ("assistant",) if role == "user" else ("user",)
    if conversation[-1]["role"] != ends_with:
        raise ChatError(
            f"the last message is a {conversation[-1]['role']} message; {ends_with} is due"
        )


def encode_prompt(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a conversation that ends with a user message, and of what the tokenizer's own
    chat template, Tülu's or another, begins an answer with.

    Raises ChatError for what `check_conversation` refuses, for text that spells what begins or ends
    a turn, and where the template refuses the conversation or omits a message.
    """
    check_conversation(conversation, ends_with="user")
    return conversation_ids(conversation, tokenizer, add_generation_prompt=True)


def conversation_ids(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool
) -> list[int]:
    """As `encode_prompt`, for a conversation that was checked and ends with any role."""
    roles = tuple(message["role"] for message in conversation)
    state = tokenizer.chat_template, len(tokenizer)
    outline = _outline(tokenizer, state, roles, add_generation_prompt)
    for position, role in enumerate(roles):
        if not any(_name(position) in run for run in outline.runs):
            raise ChatError(f"the model's chat template omits message {position} ({role})")
    headers = plain_headers(tokenizer)
    for position, message in enumerate(conversation):
        if spelled := [header for header in headers if _times(header, message["content"])]:
            raise ChatError(
                f"message {position} ({message['role']}) spells {', '.join(spelled)}, which begins "
                "or ends a turn in the model's prompt: write it otherwise"
            )
    try:
        ids: list[int] = plain_text.reader(tokenizer).apply_chat_template(
            [{"role": message["role"], "content": message["content"]} for message in conversation],
            chat_template=tokenizer.chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=False,
            sanitize_control_tokens=True,
            marked=True,  # read by our own template only
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise ChatError(f"the model's chat template refuses this: {error}") from error
    control, runs = _runs(ids, tokenizer)
    if control != outline.control:
        raise ChatError(
            "the messages become other control tokens than those of their turns, after the "
            "tokenizer's normaliser or in the model's chat template: write them otherwise"
        )
    for header in headers:
        if [_times(header, run) for run in runs] != [_times(header, run) for run in outline.runs]:
            raise ChatError(
                f"a message becomes {header!r} in the tokenizer's normaliser, which begins or ends "
                "a turn in the model's prompt: write it otherwise"
            )
    return ids


def _times(header: str, text: str) -> int:
    """How often the text spells the header. The bare name of a role that no message here has is
    also a word of program code: `function:` begins a turn at the start of a line alone.
    """
    if header.rstrip(":").lower() in OTHER_ROLES:
        return len(re.findall(rf"^\s*{re.escape(header)}", text, re.MULTILINE))
    return text.count(header)


def plain_headers(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What begins or ends a turn in the tokenizer's chat template without being a control token, so
    that text could spell it: `<|system|>`, `<|user|>` and `<|assistant|>` in Tülu's, nothing in
    ChatML.
    """
    return list(_headers(tokenizer, (tokenizer.chat_template, len(tokenizer))))


State = tuple[str | None, int]
"""A tokenizer's template and its number of tokens, both of which can change in place."""


@lru_cache(maxsize=64)
def _headers(tokenizer: PreTrainedTokenizerBase, state: State) -> tuple[str, ...]:
    turns = ("user", "assistant", "user", "assistant", "user")
    try:
        outline = _outline(tokenizer, state, ("system", *turns), True)
    except ChatError:  # some templates have no place for a system message
        outline = _outline(tokenizer, state, turns, True)
    headers = _lines_at_messages(outline)
    for role in OTHER_ROLES:
        # templates differ in where such a message may stand, and most have no place for it
        for more in ((role,), (role, "assistant"), (role, "user")):
            with suppress(ChatError):
                headers |= _lines_at_messages(
                    _outline(tokenizer, state, ("user", "assistant", *more), False)
                )
    return tuple(sorted(headers))


def _lines_at_messages(outline: "_Outline") -> set[str]:
    """The lines of the template that stand before, between and after the messages."""
    headers: set[str] = set()
    for place, run in enumerate(outline.runs):
        parts = re.split(NAME, run)
        for number, part in enumerate(parts):
            lines = [line.strip() for line in part.splitlines() if line.strip()]
            if not lines:
                continue
            # A role that stands beside a control token, as in ChatML, begins no turn without it.
            after_control = number == 0 and place > 0
            before_control = number == len(parts) - 1 and place < len(outline.runs) - 1
            if not (after_control and _is_words(lines[0])):
                headers.add(lines[0])
            if not ((before_control or (after_control and not lines[1:])) and _is_words(lines[-1])):
                headers.add(lines[-1])
    return headers


def _is_words(text: str) -> bool:
    return re.fullmatch(r"[\w -]+", text) is not None


class _Outline(NamedTuple):
    """The prompt of messages with a name in place of each content: ids of its control tokens, and
    the texts before, between and after them.
    """

    control: list[int]
    runs: list[str]


NAME = "zq[a-j]+qz"


def _name(position: int) -> str:
    """Letters alone, which tokenizers keep together."""
    return f"zq{str(position).translate(str.maketrans('0123456789', 'abcdefghij'))}qz"


@lru_cache(maxsize=256)
def _outline(
    tokenizer: PreTrainedTokenizerBase,
    state: State,
    roles: tuple[str, ...],
    add_generation_prompt: bool,
) -> _Outline:
    if not state[0]:
        raise ChatError("the tokenizer has no chat template, so it cannot form a conversation")
    messages = [{"role": role, "content": _name(i)} for i, role in enumerate(roles)]
    try:
        text = tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=False
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise ChatError(f"the model's chat template refuses this: {error}") from error
    control, runs = _runs(tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer)
    shown, read = re.findall(NAME, text), re.findall(NAME, "".join(runs))
    if shown != read:
        raise ChatError(
            f"the tokenizer loses text: {len(shown)} words of the chat template come back as "
            f"{len(read)}, so it cannot be checked that a message begins no turn of its own"
        )
    return _Outline(control, runs)


def _runs(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[str]]:
    """The control tokens, and the texts before, between and after them. Unknown characters are
    text.
    """
    known = plain_text.control_tokens(tokenizer).keys() - {tokenizer.unk_token_id}
    control: list[int] = []
    runs: list[list[int]] = [[]]
    for index in ids:
        if index in known:
            control.append(index)
            runs.append([])
        else:
            runs[-1].append(index)
    texts = [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]
    return control, texts
