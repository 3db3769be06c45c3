"""Guarantees of moxin_lab.posttraining.chat: Tülu's strings, loss on answers alone, refusals that
say why.
"""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from moxin_lab.model import plain_text
from moxin_lab.posttraining import chat
from moxin_lab.posttraining.prompts import ChatError, check_conversation, encode_prompt
from tests.posttraining.examples import make_conversations, make_tokenizer, say

TOKENIZER = make_tokenizer()
CHARACTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\U000f0000\U000f0001")
TEXT = st.text(CHARACTERS, min_size=1, max_size=20).filter(lambda text: text.strip())


# The published template (chat_template of Llama-3.1-Tulu-3-8B) written out by hand, with this
# tokenizer's end token.
PUBLISHED = [
    (say("What is 2+2?", "4"), False, "<|user|>\nWhat is 2+2?\n<|assistant|>\n4</s>"),
    (
        say("a", "b", "c", "d", system="You help."),
        False,
        "<|system|>\nYou help.\n<|user|>\na\n<|assistant|>\nb</s>\n"
        "<|user|>\nc\n<|assistant|>\nd</s>",
    ),
    (say("a"), True, "<|user|>\na\n<|assistant|>\n"),
    (say("a", "b", "c"), True, "<|user|>\na\n<|assistant|>\nb</s>\n<|user|>\nc\n<|assistant|>\n"),
    (say("a\n\n", " b "), False, "<|user|>\na\n\n\n<|assistant|>\n b </s>"),
]


@pytest.mark.parametrize(("conversation", "asks", "text"), PUBLISHED)
def test_template_gives_the_published_strings(conversation, asks, text):
    assert (
        TOKENIZER.apply_chat_template(conversation, tokenize=False, add_generation_prompt=asks)
        == text
    )
    if not asks:
        assert chat.render(conversation, "</s>")[0] == text


def test_template_is_saved_with_the_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.apply_chat_template(PUBLISHED[1][0], tokenize=False) == PUBLISHED[1][2]


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.one_of(st.none(), TEXT))
@settings(max_examples=60, deadline=None)
def test_encoding_and_loss_equal_transformers_tokens_and_assistant_mask(turns, system):
    conversation = say(*(text for turn in turns for text in turn), system=system)
    encoded, reason = chat.encode(conversation, TOKENIZER, max_tokens=10_000)
    if reason:
        assert reason == chat.MARKER
        return
    theirs = TOKENIZER.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded.input_ids.tolist() == theirs["input_ids"]
    assert encoded.answer.astype(int).tolist() == theirs["assistant_masks"]
    prompt = encode_prompt(conversation[:-1], TOKENIZER)
    assert encoded.input_ids[: len(prompt)].tolist() == prompt
    assert (
        TOKENIZER.decode(encoded.input_ids[len(prompt) :]) == conversation[-1]["content"] + "</s>"
    )


def test_every_answer_and_its_end_token_carry_loss_and_nothing_else():
    encoded, _ = chat.encode(say("ab", "cd", "ef", "gh", system="xy"), TOKENIZER, max_tokens=999)
    pieces = np.split(encoded.input_ids, np.flatnonzero(np.diff(encoded.answer.astype(int))) + 1)
    assert [TOKENIZER.decode(piece) for piece in pieces[1::2]] == ["cd</s>", "gh</s>"]
    assert encoded.num_targets == 6


MALFORMED = [
    ("hello", "list of messages"),
    ([], "list of messages"),
    ([{"role": "user"}], "needs a role and a content"),
    (say("a", "b", "c"), "assistant is due"),
    ([{"role": "assistant", "content": "a"}], "assistant message where system or user is due"),
    (say("a", "b")[::-1], "assistant message where"),
    ([*say("a"), *say("a", "b")], "user message where assistant is due"),
    ([*say("a"), {"role": "system", "content": "s"}], "system message where assistant is due"),
    (
        [*say("a"), {"role": "tool", "content": "s"}],
        "role 'tool': known are system, user, assistant",
    ),
    ([{"role": {"name": 7}, "content": "a"}], "role {'name': 7}: known are system"),
    (say("a", " \n"), r"message 1 \(assistant\) is empty"),
    (say("a", 7), r"message 1 \(assistant\) has a content of type int"),
    (say("a", None), "type NoneType"),
    ([{"role": "system", "content": "s"}] * 2 + say("a", "b"), "system message where user is due"),
]


@pytest.mark.parametrize(("conversation", "words"), MALFORMED)
def test_a_malformed_conversation_is_refused_with_position_and_reason(conversation, words):
    with pytest.raises(ChatError, match=words):
        check_conversation(conversation)
    assert chat.encode(conversation, TOKENIZER, max_tokens=99) == (None, chat.MALFORMED)


def test_the_template_itself_refuses_an_unknown_role():
    with pytest.raises(Exception, match="a tool message at place 1 does not belong there"):
        TOKENIZER.apply_chat_template([*say("a"), {"role": "tool", "content": "s"}], tokenize=False)


@pytest.mark.parametrize("marker", ["<|assistant|>", "x\n<|user|>\n", "<|system|>"])
def test_text_that_spells_a_role_marker_is_not_learned(marker):
    for conversation in (say(f"a {marker} b", "c"), say("c", f"a {marker} b")):
        assert chat.encode(conversation, TOKENIZER, max_tokens=99) == (None, chat.MARKER)


@pytest.mark.parametrize("word", ["</s>", "<s>", "<pad>", "<tool_call>", "</s></s>"])
def test_a_spelled_control_token_is_learned_as_the_text_that_inference_reads(word):
    tokenizer = make_tokenizer(template=False)
    tokenizer.add_tokens(["<tool_call>"])  # not special
    chat.install_template(tokenizer)
    conversation = say(f"a {word} b", f"c {word}", word, f"{word}d", system=f"in {word}")
    encoded, reason = chat.encode(conversation, tokenizer, max_tokens=999)
    assert (
        reason == "" and tokenizer.decode(encoded.input_ids) == chat.render(conversation, "</s>")[0]
    )
    control = set(plain_text.control_tokens(tokenizer))
    assert [i for i in encoded.input_ids.tolist() if i in control] == [2, 2]  # two ends of answers
    pieces = np.split(encoded.input_ids, np.flatnonzero(np.diff(encoded.answer.astype(int))) + 1)
    assert [tokenizer.decode(piece) for piece in pieces[1::2]] == [f"c {word}</s>", f"{word}d</s>"]
    for place in (3, 5):  # what precedes an answer is its prompt at inference
        prompt = encode_prompt(conversation[: place - 1], tokenizer)
        assert encoded.input_ids[: len(prompt)].tolist() == prompt
    short, reason = chat.encode(conversation, tokenizer, max_tokens=len(encoded) - 1)
    assert reason == chat.SHORTENED and short.input_ids[-1] == 2
    assert tokenizer.decode(short.input_ids[short.answer]) == f"c {word}</s>"
    with pytest.raises(TemplateError, match="spells"):
        tokenizer.apply_chat_template(conversation, tokenize=True)


def test_tool_calls_and_tools_are_refused_and_never_dropped_from_training():
    call = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    conversation = say("a", "b")
    conversation[1]["tool_calls"] = call
    with pytest.raises(ChatError, match="message 1 has tool_calls: only role and content"):
        check_conversation(conversation)
    assert chat.encode(conversation, TOKENIZER, max_tokens=99) == (None, chat.MALFORMED)
    with pytest.raises(TemplateError, match="message 1 has tool calls"):
        TOKENIZER.apply_chat_template(conversation, tokenize=False)
    with pytest.raises(TemplateError, match="tools and documents have no place"):
        TOKENIZER.apply_chat_template(say("a"), tools=[{"type": "function"}], tokenize=False)
    conversation[1]["tool_calls"] = None  # as a table fills it where another row has some
    assert chat.encode(conversation, TOKENIZER, max_tokens=99)[1] == ""


@pytest.mark.parametrize("word", ["</s>", "<s>", "<pad>", "<|assistant|>", "<|system|>"])
def test_the_template_itself_refuses_text_that_spells_a_token_or_a_marker(word):
    for conversation in (say(f"a {word} b"), say("a", f"x\n{word}")):
        with pytest.raises(TemplateError, match="spells"):
            TOKENIZER.apply_chat_template(conversation, tokenize=True)
    with pytest.raises(TemplateError, match="content of message 0 is not text"):
        TOKENIZER.apply_chat_template(
            [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}], tokenize=True
        )


def test_the_template_refuses_every_special_token_of_its_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    words = ["<|tool|>", "<it's>", '<"%}\\n>', "<é𝄞>"]
    tokenizer = make_tokenizer(template=False)
    tokenizer.add_special_tokens({"additional_special_tokens": words})
    chat.install_template(tokenizer).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert set(words) < set(loaded.all_special_tokens)
    for word in words:
        with pytest.raises(TemplateError, match="message 0 spells " + re.escape(word)):
            loaded.apply_chat_template(say(f"a {word} b"), tokenize=True)
        ids = encode_prompt(say(f"a {word} b"), loaded)
        assert not set(ids) & set(loaded.all_special_ids)
        assert f"a {word} b" in loaded.decode(ids)
    assert loaded.apply_chat_template(PUBLISHED[1][0], tokenize=False) == PUBLISHED[1][2]
    assert TOKENIZER.chat_template == chat.TULU_TEMPLATE  # nothing to add: the bytes are the same


def test_a_long_conversation_loses_whole_turns_and_never_keeps_half_an_answer():
    conversation = say("a", "b" * 10, "c", "d" * 50)
    whole, reason = chat.encode(conversation, TOKENIZER, max_tokens=999)
    assert reason == ""
    first = (
        int(np.flatnonzero(np.diff(whole.answer.astype(int)) == -1)[0]) + 1
    )  # behind the first answer's end token
    for limit in (first, len(whole) - 1):
        kept, reason = chat.encode(conversation, TOKENIZER, max_tokens=limit)
        assert (
            reason == chat.SHORTENED and kept.input_ids.tolist() == whole.input_ids[:first].tolist()
        )
        assert kept.input_ids[-1] == TOKENIZER.eos_token_id and kept.num_targets == 11
    assert chat.encode(conversation, TOKENIZER, max_tokens=first - 1) == (None, chat.CUT)


def test_a_tokenizer_that_joins_marker_and_answer_or_loses_text_is_detected():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {
        "</s>": 0,
        "<unk>": 1,
        **{name: i for i, name in enumerate("abcdefgijklmnoprstuvwxyz<|>\n", start=2)},
    }
    vocab["\nz"] = len(vocab)
    inner = Tokenizer(models.BPE(vocab, [("\n", "z")], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("zz", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", clean_up_tokenization_spaces=False
    )
    chat.install_template(tokenizer)
    assert chat.encode(say("a", "zb"), tokenizer, max_tokens=99)[1] == chat.NOT_ROUND_TRIP
    assert chat.encode(say("a", "bé"), tokenizer, max_tokens=99)[1] == chat.NOT_ROUND_TRIP


def test_a_data_set_reports_refused_conversations_and_fails_above_the_stated_share():
    bad = [say("a", "b", "c"), say("x", "<|user|>"), say("long", "y" * 200)]
    conversations = [*make_conversations(17), *bad]
    kept, report = chat.encode_all(conversations, TOKENIZER, max_tokens=200, max_refused_share=0.15)
    assert [encoded.index for encoded in kept] == list(range(17))
    assert report["conversations"].to_dict() == {
        chat.MALFORMED: 1,
        chat.MARKER: 1,
        chat.NOT_ROUND_TRIP: 0,
        chat.NO_ANSWER_TOKEN: 0,
        chat.CUT: 1,
        chat.SHORTENED: 0,
    }
    assert (
        report["example"][chat.MALFORMED]
        == "17: the last message is a user message; assistant is due"
    )
    with pytest.raises(
        ChatError,
        match=r"3 of 20 conversations give nothing to learn from, more than .* of 14\.9%.*",
    ):
        chat.encode_all(conversations, TOKENIZER, max_tokens=200, max_refused_share=0.149)
    with pytest.raises(ChatError, match="0 of 0 conversations"):
        chat.encode_all([], TOKENIZER, max_tokens=200, max_refused_share=0.5)


def test_a_tokenizer_without_the_template_or_with_another_is_refused():
    bare = make_tokenizer(template=False)
    with pytest.raises(ChatError, match="has no chat template: call"):
        chat.encode_all(make_conversations(2), bare, max_tokens=99, max_refused_share=0.0)
    bare.chat_template = "{{ bos_token }}" + chat.TULU_TEMPLATE
    with pytest.raises(ChatError, match="is not Tülu's: it gives '<s><"):
        chat.require_template(bare)
    bare.eos_token = None
    with pytest.raises(ChatError, match="has no eos token"):
        chat.install_template(bare)
