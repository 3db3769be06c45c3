"""Guarantees of an extended tokenizer: old ids and the ids of text in other scripts stay, letters
of the new experts are merged as the expert merges them, and new rows begin as means.
"""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from moxin_lab.tokenizer import extend, peers, routed
from moxin_lab.tokenizer.router import RANGES, expert_of_character
from tests.tokenizer.conftest import ENGLISH, JAPANESE, KOREAN, TEXTS
from tests.tokenizer.test_routed import MIXED, hard_cases

EXPERTS = ("cjk", "hangul")
LETTERS = re.compile(
    "[" + "".join(f"{chr(a)}-{chr(b)}" for name in EXPERTS for a, b in RANGES[name]) + "]"
)


@pytest.fixture(scope="module")
def bases():
    byte_level = peers.joint_bpe({"en": ENGLISH, "ja": JAPANESE[:1], "ru": TEXTS["ru"]}, 420)
    return {"byte-level": byte_level, "Mistral": extend.from_sentencepiece(peers.mistral())}


@pytest.fixture(scope="module")
def extensions(bases, small):
    return {name: extend.extend(base, small, EXPERTS) for name, base in bases.items()}


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


@hard_cases
@settings(max_examples=40, deadline=None)
@given(text=MIXED)
def test_mistral_as_a_hugging_face_tokenizer_has_the_ids_of_sentencepiece(bases, text):
    assert ids(bases["Mistral"], text) == peers.mistral().encode(text)


@hard_cases
@settings(max_examples=40, deadline=None)
@given(text=MIXED)
def test_text_without_a_letter_of_the_new_experts_keeps_its_ids(bases, extensions, text):
    text = "".join(c for c in text if expert_of_character(c) not in EXPERTS)
    for name, base in bases.items():
        changed = extensions[name].changed
        kept = "".join(c for c in text if c not in changed)
        assert ids(extensions[name].tokenizer, kept) == ids(base, kept), name


def test_signs_that_change_are_named_and_begin_like_a_new_letter(bases, extensions):
    assert not extensions["Mistral"].changed
    changed = extensions["byte-level"].changed
    for sign in "\u309b\u30fb":  # voicing mark, middle dot: they begin like kana
        base, longer = (
            ids(it, sign) for it in (bases["byte-level"], extensions["byte-level"].tokenizer)
        )
        assert (sign in changed) == (base != longer)
        assert len(longer) <= len(base)


@hard_cases
@settings(max_examples=40, deadline=None)
@given(text=MIXED)
def test_an_extended_tokenizer_is_as_lossless_as_its_base(bases, extensions, text):
    for name, base in bases.items():
        longer = extensions[name].tokenizer
        back = longer.decode(ids(longer, text), skip_special_tokens=False)
        assert back == base.decode(ids(base, text), skip_special_tokens=False), name


@given(text=st.text(st.sampled_from("".join(JAPANESE + KOREAN).replace("\n", "")), max_size=30))
@settings(max_examples=40, deadline=None)
def test_letters_are_merged_as_the_expert_merges_them(small, extensions, text):
    """A base joins nothing here that the expert leaves apart: it has seen none of these words."""
    letters = "".join(LETTERS.findall(text))
    longer = extensions["Mistral"].tokenizer
    tokens = [longer.id_to_token(i) for i in ids(longer, "a" + letters)][1:]
    expected = [small.decode([i]) for i in small.encode("a" + letters)][1:]
    known = [token in longer.get_vocab() for token in expected]
    if all(known):
        assert len(tokens) <= len(expected)


def test_every_old_id_stays_and_the_new_ones_lie_in_blocks(bases, extensions):
    for name, base in bases.items():
        extension = extensions[name]
        old, new = base.get_vocab(), extension.tokenizer.get_vocab()
        assert old.items() <= new.items()
        assert [block.name for block in extension.blocks] == ["base", "shared", *EXPERTS]
        assert extension.blocks[0].stop == max(old.values()) + 1
        for left, right in zip(extension.blocks, extension.blocks[1:], strict=False):
            assert left.stop == right.start
        assert sorted(new.values()) == list(range(extension.blocks[-1].stop))
        assert len(extension.pieces) == extension.blocks[-1].stop - len(old)
        assert all(max(pieces) < len(old) for pieces in extension.pieces)
        for block in extension.blocks[2:]:
            assert len(block) > 10
            for index in range(block.start, block.stop):
                text = extension.tokenizer.decode([index]).strip()
                assert {expert_of_character(c) for c in text} == {block.name}


def test_fewer_tokens_in_these_languages_and_none_spent_in_others(bases, extensions):
    for name, base in bases.items():
        longer = extensions[name].tokenizer
        for text in JAPANESE + KOREAN:
            assert len(ids(longer, text)) < 0.7 * len(ids(base, text))
        assert ids(longer, TEXTS["ru"][0]) == ids(base, TEXTS["ru"][0])


def test_a_new_row_begins_as_the_mean_of_its_pieces(extensions):
    embedding = torch.randn(420, 6, generator=torch.Generator().manual_seed(0))
    pieces = extensions["byte-level"].pieces
    rows = extend.initial_rows(embedding, pieces)
    assert rows.shape == (len(pieces), 6)
    torch.testing.assert_close(rows[-1], embedding[list(pieces[-1])].mean(0))
    assert extend.initial_rows(embedding.bfloat16(), pieces).dtype == torch.bfloat16


def test_a_base_that_is_no_bpe_and_an_unknown_expert_are_refused(small, bases):
    with pytest.raises(ValueError, match="only a BPE can be extended"):
        extend.extend(Tokenizer(WordLevel({"a": 0}, unk_token="a")), small, EXPERTS)
    with pytest.raises(ValueError, match="no expert kana; there are latin, cjk"):
        extend.extend(bases["byte-level"], small, ("kana",))


def test_a_routed_tokenizer_can_itself_be_extended(small):
    base = routed.train({"en": ENGLISH}, 300).union
    longer = extend.extend(base, small, ("cjk",))
    assert ids(longer.tokenizer, ENGLISH[0]) == ids(base, ENGLISH[0])
    assert len(ids(longer.tokenizer, JAPANESE[1])) < 0.7 * len(ids(base, JAPANESE[1]))
