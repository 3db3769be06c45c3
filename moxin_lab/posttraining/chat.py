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

Guarantees: an encoded conversation is token for token what `prompts.encode_prompt` gives at
inference; its loss tokens are exactly the answers' (tests check both against transformers); every
conversation that cannot be learned from is counted with its reason, and refused above a stated
share. No text becomes a control token or a turn: `</s>` in a message is text, and a role marker,
which is text and cannot be told from one, is refused. The template itself, in the hands of others,
refuses both.
Out of scope: cutting inside an answer. A conversation longer than the context is cut after the last
answer that fits. Prompts (`prompts.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from moxin_lab.lab.progress import Progress
from moxin_lab.model import plain_text
from moxin_lab.posttraining.prompts import (
    ChatError,
    Conversation,
    check_conversation,
    conversation_ids,
)

# `generation` marks the answers for `apply_chat_template(return_assistant_tokens_mask=True)`, which
# TRL and others train by.
TULU_TEMPLATE = (
    "{%- if tools or documents -%}{{ raise_exception('tools and documents have no place in this"
    " prompt') }}{%- endif -%}"
    "{%- for message in messages -%}{%- set place = loop.index0 -%}"
    "{%- if message.content is not string -%}"
    "{{ raise_exception('the content of message ' ~ loop.index0 ~ ' is not text') }}"
    "{%- endif -%}"
    "{%- if message.tool_calls -%}"
    "{{ raise_exception('message ' ~ loop.index0 ~ ' has tool calls') }}"
    "{%- endif -%}"
    "{%- for word in [bos_token, eos_token, pad_token, unk_token,"
    " '<|system|>', '<|user|>', '<|assistant|>'] if word -%}"
    # transformers puts these two characters around what `sanitize_control_tokens` reads as text.
    # A user can type them too: only `encode_prompt`, which refuses them before, says `marked`.
    "{%- if word in (message.content.replace('\\U000f0000' ~ word ~ '\\U000f0001', '')"
    " if marked else message.content) -%}"
    "{{ raise_exception('message ' ~ place ~ ' spells ' ~ word) }}"
    "{%- endif -%}"
    "{%- endfor -%}"
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
MARKER = "spells a role marker"
NOT_ROUND_TRIP = "tokens do not give the template back"
NO_ANSWER_TOKEN = "no token carries loss"
CUT = "first answer ends beyond the context"
SHORTENED = "kept, last turns omitted to fit the context"
REFUSED = (MALFORMED, MARKER, NOT_ROUND_TRIP, NO_ANSWER_TOKEN, CUT)


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


def tulu_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """TULU_TEMPLATE, which refuses text that spells any control token of this tokenizer."""
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    control = (*tokenizer.all_special_tokens, *plain_text.control_tokens(tokenizer).values())
    others = [repr(word) for word in dict.fromkeys(control) if word not in named]
    return TULU_TEMPLATE.replace("'<|system|>', ", ", ".join([*others, "'<|system|>', "]), 1)


def install_template(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Put the Tülu template into a tokenizer, for `save_pretrained` to write; returns it. Raises
    ChatError without an eos token.
    """
    if tokenizer.eos_token is None:
        raise ChatError(
            "the tokenizer has no eos token, which ends every answer: set tokenizer.eos_token"
        )
    tokenizer.chat_template = tulu_template(tokenizer)
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
    contents = [message["content"] for message in conversation]
    if any(marker.strip() in content for content in contents for marker in MARKERS.values()):
        return None, MARKER
    control = plain_text.control_tokens(tokenizer).values()
    if any(word in content for content in contents for word in control):
        found = _encode_spelled(conversation, tokenizer)
    else:
        found = _encode_whole(text, spans, tokenizer)
    if found is None or tokenizer.decode(found[0], clean_up_tokenization_spaces=False) != text:
        return None, NOT_ROUND_TRIP
    ids, answer, ends = found
    if not answer.any():
        return None, NO_ANSWER_TOKEN
    fitting = [end for end in ends if end <= max_tokens]
    if not fitting:
        return None, CUT
    end = fitting[-1]
    return Encoded(ids[:end], answer[:end], index), SHORTENED if end < ends[-1] else ""


Tokens = tuple[np.ndarray, np.ndarray, list[int]]
"""ids int64 [T], answer bool [T], and the end of each answer in tokens (excluded)."""


def _encode_whole(
    text: str, spans: list[tuple[int, int]], tokenizer: PreTrainedTokenizerFast
) -> Tokens | None:
    """None where a token crosses the border of an answer: at inference what is before an answer is
    tokenised without it.
    """
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = np.array(tokens["input_ids"], dtype=np.int64)  # [T]
    offsets = np.array(tokens["offset_mapping"])  # [T, 2], characters of the text
    if any(
        ((offsets[:, 0] < edge) & (offsets[:, 1] > edge)).any() for span in spans for edge in span
    ):
        return None
    answer = np.zeros(len(ids), dtype=bool)
    ends = []
    for start, end in spans:
        inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= end)
        answer |= inside
        ends.append(int(np.flatnonzero(inside)[-1]) + 1 if inside.any() else 0)
    return ids, answer, ends


def _encode_spelled(
    conversation: Conversation, tokenizer: PreTrainedTokenizerFast
) -> Tokens | None:
    """As `_encode_whole`, for texts that spell a control token: no offsets are known, but an answer
    follows its prompt and ends with the end token, which no text yields.
    """
    try:
        ids = np.array(
            conversation_ids(conversation, tokenizer, add_generation_prompt=False), dtype=np.int64
        )
        heads = [
            conversation_ids(conversation[:place], tokenizer, add_generation_prompt=True)
            for place, message in enumerate(conversation)
            if message["role"] == "assistant"
        ]
    except ChatError:  # the tokenizer makes a control token of plain text
        return None
    ends = [int(place) + 1 for place in np.flatnonzero(ids == tokenizer.eos_token_id)]
    answer = np.zeros(len(ids), dtype=bool)
    for head, end in zip(heads, ends, strict=True):
        if ids[: len(head)].tolist() != head:
            return None
        answer[len(head) : end] = True
    return ids, answer, ends


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
