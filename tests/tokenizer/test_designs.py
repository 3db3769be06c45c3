"""Guarantees of the other designs: lossless, exactly as large as asked, merges within a script, the
worst-off language first, and tokens across words.
"""

import json

import pytest
from hypothesis import given, settings

from moxin_lab.tokenizer import designs, peers
from moxin_lab.tokenizer.byte_level import byte_names
from tests.tokenizer.conftest import TEXTS
from tests.tokenizer.test_routed import MIXED, hard_cases

SIZE = 500


@pytest.fixture(scope="module")
def trained():
    return {
        "script split": designs.script_split_bpe(TEXTS, SIZE),
        "parity-aware": designs.parity_aware_bpe(
            TEXTS, {name: TEXTS[name] for name in ("en", "ja", "ru")}, SIZE
        ),
        "SuperBPE": designs.super_bpe(TEXTS, SIZE),
    }


def ids(design, text):
    if isinstance(design, designs.TwoPasses):
        return design.encode_batch([text])[0]
    return design.encode(text, add_special_tokens=False).ids


@hard_cases
@settings(max_examples=100, deadline=None)
@given(text=MIXED)
def test_every_design_is_lossless(trained, text):
    for name, design in trained.items():
        found = ids(design, text)
        assert max(found, default=0) < SIZE, name
        back = (
            design.decode(found)
            if isinstance(design, designs.TwoPasses)
            else design.decode(found, skip_special_tokens=False)
        )
        assert back == text, name


def test_every_design_has_exactly_the_ids_asked_for(trained):
    assert {name: getattr(it, "second", it).get_vocab_size() for name, it in trained.items()} == (
        dict.fromkeys(trained, SIZE)
    )
    for design in (designs.script_split_bpe, designs.super_bpe):
        with pytest.raises(ValueError, match=r"the text fills only \d+ of"):
            design({"en": ["a few words"]}, 5000)
    with pytest.raises(ValueError, match=r"the text fills only \d+ of 5000 ids"):
        designs.parity_aware_bpe({"en": ["a few words"]}, {"en": ["words"]}, 5000)
    with pytest.raises(ValueError, match="the parallel text has fr"):
        designs.parity_aware_bpe({"en": ["words"]}, {"fr": ["mots"]}, 300)


def test_no_merge_of_the_script_split_mixes_scripts(trained):
    mixed = "ab漢字ab漢字 ab漢字ab漢字\n" * 20
    split = designs.script_split_bpe({"ja": [mixed, *TEXTS["ja"]]}, 300)
    joint = peers.joint_bpe({"ja": [mixed, *TEXTS["ja"]]}, 300)
    byte_of = {name: byte for byte, name in enumerate(byte_names())}

    def mixes(tokenizer):
        tokens = json.loads(tokenizer.to_str())["model"]["vocab"]
        spelled = [bytes(byte_of[c] for c in token) for token in tokens if "<" not in token]
        return [t for t in spelled if t.lower() != t.upper() and max(t) >= 0x80]

    assert mixes(joint)
    assert not mixes(split)


def test_a_plain_bpe_is_what_parity_aware_is_with_one_language():
    texts = {"en": TEXTS["en"]}
    size = 400
    ours = designs.parity_aware_bpe(texts, texts, size)
    plain = peers.joint_bpe(texts, size)
    sentence = TEXTS["en"][0] * 3
    # Ties are broken otherwise, so the tokens are not the same, but as many.
    ours_count, plain_count = len(ids(ours, sentence)), len(ids(plain, sentence))
    assert abs(ours_count - plain_count) <= 0.02 * plain_count


def test_the_worst_off_language_gets_its_merges():
    parallel = {"en": [TEXTS["en"][0][:20]], "ja": TEXTS["ja"][:2]}
    size = 380
    favoured = designs.parity_aware_bpe(TEXTS, parallel, size)
    other = designs.parity_aware_bpe(TEXTS, {"en": parallel["en"]}, size)
    count = {
        name: {language: len(ids(it, TEXTS[language][0])) for language in parallel}
        for name, it in (("both", favoured), ("English alone", other))
    }
    assert count["both"]["ja"] < count["English alone"]["ja"]
    assert count["both"]["en"] > count["English alone"]["en"]


def test_a_token_of_the_second_pass_crosses_words_but_no_line_end(trained):
    design = trained["SuperBPE"]
    spelled = [token for token in design.second.get_vocab() if len(token) > 1]
    parts = [
        [design.first.decode([ord(part) - designs.FIRST_PRIVATE]) for part in token]
        for token in spelled
    ]
    assert any(part[0] == " " and part[1:].isalpha() for token in parts for part in token[1:])
    assert not any("\n" in part for token in parts for part in token[:-1])
    assert max(map(len, spelled)) <= designs.SUPERWORD_TOKENS
