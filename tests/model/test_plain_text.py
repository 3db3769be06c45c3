"""Text becomes no control token, and no id beyond a model's vocabulary, or the tokenizer is named.
(tests/posttraining/test_prompts.py has what conversations need.)
"""

import copy
import pickle

import pytest

from moxin_lab.lab.artifacts import LabError
from moxin_lab.model import plain_text
from tests.posttraining.examples import make_tokenizer


def test_a_tokenizer_whose_tokens_are_special_is_used_as_it_is():
    tokenizer = make_tokenizer(template=False)
    assert plain_text.reader(tokenizer) is tokenizer
    text = "a </s> <s> b"
    assert plain_text.encode(tokenizer, text) == tokenizer.encode(
        text, add_special_tokens=False, split_special_tokens=True
    )
    assert plain_text.encode(tokenizer, [text, ""]) == [plain_text.encode(tokenizer, text), []]
    assert plain_text.encode(tokenizer, []) == []


def test_tokens_that_are_added_later_and_copies_are_seen():
    tokenizer = make_tokenizer(template=False)
    for word in ("<one>", "<two>"):
        tokenizer.add_tokens([word])
        for each in (tokenizer, copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
            ids = plain_text.encode(each, f"a{word}b")
            assert each.decode(ids) == f"a{word}b"
            assert not set(ids) & set(plain_text.control_tokens(each))
            assert len(each.encode(f"a{word}b", add_special_tokens=False)) == 3  # left as it was


def test_a_tokenizer_of_another_model_is_refused_with_folder_and_token():
    tokenizer = make_tokenizer()
    plain_text.check_vocabulary(tokenizer, 259, "x")
    with pytest.raises(LabError, match=r"x: the tokenizer makes 1 tokens, .* \(258\), beyond"):
        plain_text.check_vocabulary(tokenizer, 258, "x")
    tokenizer.add_special_tokens({"pad_token": "<more>"})
    plain_text.check_vocabulary(tokenizer, 259, "x")  # no text is made of a padding token
    tokenizer.chat_template = "{{ '<more>' }}"
    with pytest.raises(LabError, match="'<more>'"):
        plain_text.check_vocabulary(tokenizer, 259, "x")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    with pytest.raises(LabError, match="'<end>'"):
        plain_text.check_vocabulary(tokenizer, 259, "x")
