"""Text that anyone may have written as token ids, never as control tokens.

    ids = plain_text.encode(tokenizer, "what does </s> mean?")

A control token is any token that was added to the model's vocabulary and is not white space alone:
`</s>`, but also `<tool_call>` or `<|fim_prefix|>`, which many tokenizers do not call special.
transformers' `split_special_tokens` reads the special ones alone as text.

Guarantees: no id of a control token comes from a text, also where a normaliser turns full-width
brackets into plain ones: a tokenizer that makes one of plain text is refused by name. For a
tokenizer whose added tokens are all special, the ids are those of `split_special_tokens=True`.
Out of scope: the token of unknown characters, which a character may yield, but not its spelling;
conversations (`posttraining/prompts.py`).
"""

import copy
from collections.abc import Sequence
from typing import Any, overload
from weakref import WeakKeyDictionary

from transformers import AddedToken, PreTrainedTokenizerBase

from moxin_lab.lab.artifacts import LabError


class ControlTokenError(ValueError):
    """A text of which the tokenizer makes a control token; the message names it."""


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Id to content of the control tokens."""
    return {
        index: token.content
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip()
    }


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int, where: object) -> None:
    """Raises LabError, which begins with `where`, for a tokenizer that makes ids of `vocab_size` or
    more, for which a model has no embedding: of text, as bos, eos or unk, or by its chat template.
    """
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    template = str(tokenizer.chat_template or "")
    unused = {  # of a padding token beyond the vocabulary, for example, no text is made
        index
        for index, token in control_tokens(tokenizer).items()
        if index not in used and token not in template
    }
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= vocab_size}
    if found := sorted(beyond.keys() - unused):
        raise LabError(
            f"{where}: the tokenizer makes {len(found)} tokens, such as {beyond[found[0]]!r} "
            f"({found[0]}), beyond the model's vocabulary of {vocab_size}: it belongs to another "
            "model, or tokens were added to it and not to the model's embedding"
        )


_READERS: WeakKeyDictionary[Any, tuple[Any, Any]] = WeakKeyDictionary()


def reader(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, or where some control tokens are not special, a copy in which they are."""
    loose = [
        token
        for token in tokenizer.added_tokens_decoder.values()
        if not token.special and token.content.strip()
    ]
    if not loose:
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    key = [
        len(tokenizer),
        *map(str, (*loose, tokenizer.special_tokens_map, getattr(backend, "post_processor", None))),
    ]
    known, made = _READERS.get(tokenizer, (None, None))
    if known != key:
        made = copy.deepcopy(tokenizer)
        made.add_tokens([_as_special(token) for token in loose], special_tokens=True)
        _READERS[tokenizer] = key, made
    return made


def _as_special(token: AddedToken) -> AddedToken:
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=True,
    )


@overload
def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = ...
) -> list[int]: ...
@overload
def encode(
    tokenizer: PreTrainedTokenizerBase, text: Sequence[str], *, add_special_tokens: bool = ...
) -> list[list[int]]: ...
def encode(
    tokenizer: PreTrainedTokenizerBase,
    text: str | Sequence[str],
    *,
    add_special_tokens: bool = False,
) -> list[int] | list[list[int]]:
    """Token ids of a text, or of each of several. add_special_tokens: with what the tokenizer
    itself adds, such as bos. Raises ControlTokenError.
    """
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        return []
    made = reader(tokenizer)(
        texts,
        add_special_tokens=add_special_tokens,
        split_special_tokens=True,
        return_attention_mask=False,
        return_special_tokens_mask=add_special_tokens,
    )
    rows: list[list[int]] = made["input_ids"]
    control = control_tokens(tokenizer)
    control.pop(tokenizer.unk_token_id, None)
    masks = made["special_tokens_mask"] if add_special_tokens else [None] * len(rows)
    for ids, mask, one in zip(rows, masks, texts, strict=True):
        found = control.keys() & (
            ids
            if mask is None
            else {index for index, added in zip(ids, mask, strict=True) if not added}
        )
        if found:
            raise ControlTokenError(
                f"the tokenizer makes the control token {control[min(found)]!r} of the text "
                f"{one[:60]!r}: write it otherwise, or use another tokenizer"
            )
    return rows[0] if isinstance(text, str) else rows
