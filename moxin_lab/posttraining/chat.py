"""Conversations to tokens: the Tülu chat template, and which tokens carry loss.

A conversation is a list of `{"role", "content"}`: an optional system message, then user and
assistant messages in turn. As text:

    <|system|>              loss is on the text in [ ]: the answer and the end token,
    You help.               never on a role marker or on the text of a user or system message
    <|user|>
    Why?
    <|assistant|>
    [Because.</s>]

Role markers are plain text, only an answer ends with an end token, and no text begins with `<s>`:
this is the published template of Tülu 3 (chat_template of the Llama-3.1-Tulu-3-8B tokenizer;
Moxin's cards print the same form).

Guarantees: an encoded conversation is token for token what `apply_chat_template` gives at
inference; its loss tokens are exactly the answers' (tests check both against transformers); every
conversation that cannot be learned from is counted with its reason, and refused above a stated
share.
Out of scope: cutting inside an answer. A conversation longer than the context is cut after the last
answer that fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerFast

from moxin_lab.lab.progress import Progress

Conversation = Sequence[dict[str, Any]]

# `generation` marks the answers for `apply_chat_template(return_assistant_tokens_mask=True)`, which
# TRL and others train by.
TULU_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' and loop.first -%}"
    "{{ '<|system|>\\n' + message.content + '\\n' }}"
    "{%- elif message.role == 'user' -%}"
    "{{ '<|user|>\\n' + message.content + '\\n' }}"
    "{%- elif message.role == 'assistant' -%}"
    "{{ '<|assistant|>\\n' }}"
    "{%- generation -%}{{ message.content + eos_token }}{%- endgeneration -%}"
    "{{ '' if loop.last else '\\n' }}"
    "{%- else -%}"
    "{{ raise_exception('a ' + message.role + ' message at place ' ~ loop.index0 ~ "
    "' does not belong there') }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{{ '<|assistant|>\\n' if add_generation_prompt else '' }}"
)
MARKERS = {"system": "<|system|>\n", "user": "<|user|>\n", "assistant": "<|assistant|>\n"}
# Reasons why a conversation cannot be trained on, in the order of the report.
MALFORMED = "malformed"
SPECIAL_TOKEN = "spells a special token or a role marker"
NOT_ROUND_TRIP = "tokens do not give the template back"
NO_ANSWER_TOKEN = "no token carries loss"
CUT = "first answer ends beyond the context"
SHORTENED = "kept, last turns omitted to fit the context"
REFUSED = (MALFORMED, SPECIAL_TOKEN, NOT_ROUND_TRIP, NO_ANSWER_TOKEN, CUT)


class ChatError(ValueError):
    """A conversation, a tokenizer or a data set that cannot be trained on; the message says why and
    what to do.
    """


@dataclass(frozen=True, eq=False)
class Encoded:
    """input_ids: int64 [T]; answer: bool [T], True on the tokens that are predicted with loss;
    index: row of the data set.
    """

    input_ids: np.ndarray
    answer: np.ndarray
    index: int

    @property
    def num_targets(self) -> int:
        return int(self.answer.sum())

    def __len__(self) -> int:
        return len(self.input_ids)


def check_conversation(conversation: Any, *, ends_with: str = "assistant") -> None:
    """Raises ChatError for a wrong type, role or order, content that is empty or not text, or a
    last role other than `ends_with`.
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
        if role not in MARKERS:
            raise ChatError(
                f"message {position} has the role {role!r}: known are {', '.join(MARKERS)}"
            )
        if role not in expected:
            raise ChatError(
                f"message {position} is a {role} message where {' or '.join(expected)} is due"
            )
        if not isinstance(content, str):
            raise ChatError(
                f"message {position} ({role}) has a content of type {type(content).__name__}, not "
                "text"
            )
        if not content.strip():
            raise ChatError(f"message {position} ({role}) is empty")
        expected = ("assistant",) if role == "user" else ("user",)
    if conversation[-1]["role"] != ends_with:
        raise ChatError(
            f"the last message is a {conversation[-1]['role']} message; {ends_with} is due"
        )


def render(conversation: Conversation, eos_token: str) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and the span of each answer with its end token in it (characters,
    end excluded).
    """
    text, spans = "", []
    for position, message in enumerate(conversation):
        text += MARKERS[message["role"]]
        if message["role"] == "assistant":
            spans.append((len(text), len(text) + len(message["content"]) + len(eos_token)))
            text += (
                message["content"] + eos_token + ("" if position == len(conversation) - 1 else "\n")
            )
        else:
            text += message["content"] + "\n"
    return text, spans


def install_template(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Put the Tülu template into a tokenizer, for `save_pretrained` to write; returns it. Raises
    ChatError without an eos token.
    """
    if tokenizer.eos_token is None:
        raise ChatError(
            "the tokenizer has no eos token, which ends every answer: set tokenizer.eos_token"
        )
    tokenizer.chat_template = TULU_TEMPLATE
    require_template(tokenizer)
    return tokenizer


def require_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raises ChatError unless the tokenizer's own template gives the text that `render` gives."""
    if not tokenizer.chat_template:
        raise ChatError(
            "the tokenizer has no chat template: call chat.install_template(tokenizer) before "
            "saving it"
        )
    example = [
        {"role": role, "content": content}
        for role, content in (
            ("system", "a"),
            ("user", "b"),
            ("assistant", "c"),
            ("user", "d"),
            ("assistant", "e"),
        )
    ]
    text = tokenizer.apply_chat_template(example, tokenize=False)
    expected, _ = render(example, tokenizer.eos_token)
    if text != expected:
        raise ChatError(
            f"the tokenizer's chat template is not Tülu's: it gives {text!r}, not {expected!r}"
        )


def encode_prompt(conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Token ids of a conversation that ends with a user message, and of the assistant's role
    marker.
    """
    check_conversation(conversation, ends_with="user")
    return tokenizer(_prompt_text(conversation, tokenizer), add_special_tokens=False)["input_ids"]


def _prompt_text(conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> str:
    return render(conversation, tokenizer.eos_token)[0] + MARKERS["assistant"]


def encode(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_tokens: int,
    index: int = 0,
) -> tuple[Encoded | None, str]:
    """A conversation as tokens or None, and the reason why it is None or was shortened ("" if
    neither).
    """
    try:
        check_conversation(conversation)
    except ChatError:
        return None, MALFORMED
    text, spans = render(conversation, tokenizer.eos_token)
    if _spells_special(conversation, tokenizer):
        return None, SPECIAL_TOKEN
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = np.array(tokens["input_ids"], dtype=np.int64)  # [T]
    offsets = np.array(tokens["offset_mapping"])  # [T, 2], characters of the text
    # A token across a border would be half marker, half answer; at inference the marker is
    # tokenised without the answer.
    crossed = any(
        ((offsets[:, 0] < edge) & (offsets[:, 1] > edge)).any() for span in spans for edge in span
    )
    if crossed or tokenizer.decode(ids) != text:
        return None, NOT_ROUND_TRIP
    answer = np.zeros(len(ids), dtype=bool)
    ends = []
    for start, end in spans:
        inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= end)
        answer |= inside
        ends.append(int(np.flatnonzero(inside)[-1]) + 1 if inside.any() else 0)
    if not answer.any():
        return None, NO_ANSWER_TOKEN
    fitting = [end for end in ends if end <= max_tokens]
    if not fitting:
        return None, CUT
    end = fitting[-1]
    return Encoded(ids[:end], answer[:end], index), SHORTENED if end < ends[-1] else ""


def _spells_special(conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Text that a user typed must not become an end token or a turn of another role."""
    words = [*tokenizer.all_special_tokens, *(marker.strip() for marker in MARKERS.values())]
    return any(word in message["content"] for message in conversation for word in words)


def encode_all(
    conversations: Sequence[Any],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_tokens: int,
    max_refused_share: float,
    progress: Progress | None = None,
) -> tuple[list[Encoded], pd.DataFrame]:
    """Encode a data set: the conversations that can be trained on, and a report with the columns
    `conversations`, `share` and `example`, one row per reason.

    Raises ChatError if there are none, or if more than `max_refused_share` of the conversations
    cannot be trained on.
    """
    require_template(tokenizer)
    usable: list[Encoded] = []
    counts = dict.fromkeys((*REFUSED, SHORTENED), 0)
    examples = dict.fromkeys(counts, "")
    for index, conversation in enumerate(conversations):
        encoded, reason = encode(conversation, tokenizer, max_tokens=max_tokens, index=index)
        if encoded is not None:
            usable.append(encoded)
        if reason:
            examples[reason] = examples[reason] or f"{index}: {_why(conversation)}"[:160]
            counts[reason] += 1
        if progress is not None and index % 256 == 0:
            progress(index, len(conversations), "encoding conversations")
    total = max(1, len(conversations))
    report = pd.DataFrame(
        {
            "conversations": counts,
            "share": {name: count / total for name, count in counts.items()},
            "example": examples,
        }
    ).rename_axis("reason")
    refused = int(report["conversations"][list(REFUSED)].sum())
    if not usable or refused > max_refused_share * len(conversations):
        reasons = "; ".join(
            f"{name}: {counts[name]} ({examples[name]})" for name in REFUSED if counts[name]
        )
        raise ChatError(
            f"{refused} of {len(conversations)} conversations give nothing to learn from, more "
            f"than the stated share of {max_refused_share:.1%}: "
            f"{reasons or 'the data set is empty'}. Mend the data, or raise the context or the "
            "share"
        )
    return usable, report


def _why(conversation: Any) -> str:
    try:
        check_conversation(conversation)
    except ChatError as error:
        return str(error)
    return " | ".join(f"{message['role']}: {message['content'][:40]}" for message in conversation)
