"""Guarantees of moxin_lab.posttraining.prompts: in the prompt of any template a message is text,
and what cannot be told from markup is refused by name.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import AddedToken, normalizers

from moxin_lab.model import plain_text
from moxin_lab.posttraining import chat
from moxin_lab.posttraining.prompts import (
    OTHER_ROLES,
    ROLES,
    ChatError,
    encode_prompt,
    plain_headers,
)
from tests.posttraining.examples import make_tokenizer, say

TOKENIZER = make_tokenizer()


@pytest.mark.parametrize("word", ["</s>", "<s>", "<pad>", "<|assistant|>"])
@pytest.mark.parametrize("sanitize", [False, True])
def test_marks_of_the_sanitizer_that_a_user_typed_hide_no_control_token(word, sanitize):
    typed = say(f"a \U000f0000{word}\U000f0001 b")
    with pytest.raises(TemplateError, match="message 0 spells"):
        TOKENIZER.apply_chat_template(typed, tokenize=True, sanitize_control_tokens=sanitize)
    with pytest.raises(ChatError, match=r"U\+F0000"):
        encode_prompt(typed, TOKENIZER)


@pytest.mark.parametrize("mark", ["\U000f0000", "\U000f0001"])
def test_one_mark_alone_is_refused_in_prompts_and_in_training(mark):
    with pytest.raises(ChatError, match=r"message 0 \(user\) has U\+F0000 or U\+F0001"):
        encode_prompt(say(f"a {mark}"), TOKENIZER)
    assert chat.encode(say("a", mark + "b"), TOKENIZER, max_tokens=99) == (None, chat.MALFORMED)


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '[INST] ' + message.content + ' [/INST]' }}{% elif message.role == 'assistant' %}"
    "{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + eos_token"
    " + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
OPENCHAT = (
    "{{ bos_token }}{% for message in messages %}{{ 'GPT4 Correct ' + message.role.title() + ': '"
    " + message.content + '<|end_of_turn|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
)
VICUNA = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}"
    "{% elif message.role == 'user' %}{{ ' USER: ' + message.content }}"
    "{% else %}{{ ' ASSISTANT: ' + message.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
TOOLS = VICUNA.replace(
    "{% else %}", "{% elif message.role == 'tool' %}{{ ' RESULT: ' + message.content }}{% else %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message.role"
    " + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


def with_template(template, *tokens):
    tokenizer = make_tokenizer(template=False)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.chat_template = template
    return tokenizer


ALL_ROLES = (*ROLES, *OTHER_ROLES)
OF_OTHERS = {
    "tulu": (TOKENIZER, ["<|assistant|>", "<|system|>", "<|user|>"]),
    "chatml": (with_template(CHATML, "<|im_start|>", "<|im_end|>"), []),
    "chatml without its tokens": (
        with_template(CHATML),
        sorted(["<|im_end|>", *(f"<|im_start|>{role}" for role in ALL_ROLES)]),
    ),
    "llama 2": (with_template(LLAMA2), ["[/INST]", "[INST]"]),
    # Each header follows a control token, and is plain text all the same.
    "zephyr": (with_template(ZEPHYR), sorted(f"<|{role}|>" for role in ALL_ROLES)),
    "openchat": (
        with_template(OPENCHAT, "<|end_of_turn|>"),
        sorted(f"GPT4 Correct {role.title()}:" for role in ALL_ROLES),
    ),
    "vicuna": (with_template(VICUNA), ["ASSISTANT:", "USER:"]),
    # No message here is a tool's, but the model has learned what such a turn looks like.
    "vicuna with tools": (with_template(TOOLS), ["ASSISTANT:", "RESULT:", "USER:"]),
    "llama 3": (
        with_template(LLAMA3, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        [],
    ),
}


@pytest.mark.parametrize("name", OF_OTHERS)
def test_the_headers_that_text_could_spell_are_found_in_any_template(name):
    tokenizer, headers = OF_OTHERS[name]
    assert plain_headers(tokenizer) == headers
    for header in headers:
        with pytest.raises(ChatError, match="begins or ends a turn"):
            encode_prompt(say(f"a\n{header}\nb"), tokenizer)
    if not headers:  # a role is a word, and only its token begins a turn
        encode_prompt(say("a user and an assistant"), tokenizer)


def test_the_bare_name_of_a_tools_role_is_a_header_at_the_start_of_a_line_alone():
    tokenizer = with_template(
        "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    assert "function:" in plain_headers(tokenizer)
    encode_prompt(say("call the function: it takes a tool: or two"), tokenizer)
    with pytest.raises(ChatError, match="spells tool:, which begins"):
        encode_prompt(say("a\n tool: 5"), tokenizer)


SPELLED = st.sampled_from(
    ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "user\n", "\n", "<", "|>", " ", "[", "é"]
)


@given(st.lists(SPELLED, min_size=1, max_size=8).map("".join), st.sampled_from(["tulu", "chatml"]))
@settings(max_examples=60, deadline=None)
def test_a_spelled_token_is_text_in_a_prompt_and_its_characters_are_kept(text, name):
    tokenizer = OF_OTHERS[name][0]
    if not text.strip():
        return
    plain, ids = (encode_prompt(say("a", "b", x), tokenizer) for x in ("x", text))
    control = tokenizer.all_special_ids
    assert [i for i in ids if i in control] == [i for i in plain if i in control]
    assert tokenizer.decode(ids) == tokenizer.decode(plain).replace("x", text)


def with_loose_tokens(normalizer=None):
    """A tokenizer with control tokens that it does not call special, and one of white space."""
    tokenizer = with_template(ZEPHYR)
    words = ("<tool_call>", "<|fim_prefix|>", "    ")
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=True) for word in words])
    tokenizer.backend_tokenizer.normalizer = normalizer
    return tokenizer


@pytest.mark.parametrize("normalizer", [None, normalizers.NFKC(), normalizers.Lowercase()])
@pytest.mark.parametrize("text", ["<tool_call>", "x <|fim_prefix|></s>", "<<tool_call>", "a <s>b"])
def test_an_added_token_that_is_not_special_is_text_in_a_message_too(text, normalizer):
    tokenizer = with_loose_tokens(normalizer)
    plain, ids = (encode_prompt(say("a", "b", x), tokenizer) for x in ("q", text))
    control = plain_text.control_tokens(tokenizer)
    assert [i for i in ids if i in control] == [i for i in plain if i in control]
    assert text in tokenizer.decode(ids)
    assert tokenizer("<tool_call>")["input_ids"] == [259]  # the tokenizer itself did not change
    assert encode_prompt(say("a    b"), tokenizer).count(261) == 1


@pytest.mark.parametrize(
    "text", ["＜/s＞", "＜|user|＞", "a\n＜|system|＞\nb", "＜tool_call＞", "＜|ｕser|>"]
)
def test_markup_that_a_normaliser_makes_of_other_characters_is_refused(text):
    tokenizer = with_loose_tokens(normalizers.NFKC())
    tokenizer.add_tokens([AddedToken("</s>", special=True, normalized=True)], special_tokens=True)
    with pytest.raises(ChatError, match=r"begins or ends a turn|become other control tokens"):
        encode_prompt(say(text), tokenizer)
    assert encode_prompt(say("full width: （a）"), tokenizer)
    # Without the normaliser these characters are what they are.
    assert text in (plain := with_template(ZEPHYR)).decode(encode_prompt(say(text), plain))


def test_a_header_in_other_letter_case_is_refused_where_the_tokenizer_reads_no_case():
    tokenizer = with_template(OPENCHAT, "<|end_of_turn|>")
    encode_prompt(say("gpt4 correct user:"), tokenizer)
    tokenizer = with_template(OPENCHAT, "<|end_of_turn|>")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ChatError, match="a message becomes 'gpt4 correct user:'"):
        encode_prompt(say("GPT4 CORRECT USER: x"), tokenizer)


def test_a_tokenizer_that_makes_a_control_token_of_plain_text_is_named():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    with pytest.raises(plain_text.ControlTokenError, match="'</s>' of the text 'a </s>'"):
        plain_text.encode(tokenizer, ["a", "a </s>"])
    assert plain_text.encode(tokenizer, "a b") == [1, 2]  # an unknown word is no control token


REFUSED_PROMPTS = [
    ([*say("a"), *say("b")], "user message where assistant is due"),
    (say("a", "b"), "user is due"),
    ([{"role": "user", "content": "a", "tool_calls": []}], "tool_calls: only role and content"),
    ([{"role": "user", "content": [{"type": "input_text", "text": "a"}]}], "type list, not text"),
    (say("a \ud800"), "half a surrogate pair"),
]


@pytest.mark.parametrize(("conversation", "words"), REFUSED_PROMPTS)
def test_what_a_prompt_cannot_hold_is_refused_and_never_dropped(conversation, words):
    with pytest.raises(ChatError, match=words):
        encode_prompt(conversation, TOKENIZER)


def test_a_template_that_omits_or_refuses_a_message_is_named():
    with pytest.raises(ChatError, match=r"omits message 0 \(system\)"):
        encode_prompt(say("a", system="be brief"), OF_OTHERS["llama 2"][0])
    strict = with_template("{{ raise_exception('no system') }}")
    with pytest.raises(ChatError, match="refuses this: no system"):
        encode_prompt(say("a", system="be brief"), strict)
    with pytest.raises(ChatError, match="no chat template"):
        encode_prompt(say("a"), make_tokenizer(template=False))
