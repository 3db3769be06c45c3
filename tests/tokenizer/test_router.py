"""Router: a partition by script, a pure function of the text, in agreement with the Unicode Script
property.
"""

import itertools

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moxin_lab.tokenizer.router import (
    EXPERTS,
    RANGES,
    expert_of_character,
    piece_splitter,
    route,
    runs_in_pieces,
    runs_of,
)

TEXT = st.text(
    st.one_of(
        st.sampled_from("  \n\tab1.漢字、カなー한글Жя\u0301\u3099👨\u200d"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=50,
)


def joined(runs):
    """Runs, with neighbours of one expert joined."""
    return [
        (e, "".join(run for _, run in group))
        for e, group in itertools.groupby(runs, key=lambda pair: pair[0])
    ]


@settings(max_examples=500, deadline=None)
@given(TEXT)
def test_runs_partition_the_text_and_neighbours_differ(text):
    runs = route(text)
    assert "".join(run for _, run in runs) == text
    assert all(run and expert in EXPERTS for expert, run in runs)
    assert joined(runs) == runs


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_every_character_is_in_a_run_of_its_expert_except_for_one_before_a_letter(text):
    for expert, run in runs_in_pieces(text):
        for position, character in enumerate(run):
            if expert_of_character(character) != expert:
                assert position == 0 and expert_of_character(character) == "common"
                assert regex.match(r"\p{L}", run[1])
                assert expert_of_character(run[1]) == expert


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_the_splitters_of_the_experts_share_the_text_out_as_route_does(text):
    found = sorted(
        (start, expert, run)
        for expert in EXPERTS
        for run, (start, _) in runs_of(expert).pre_tokenize_str(text)
    )
    assert [(expert, run) for _, expert, run in found] == list(runs_in_pieces(text))


@settings(max_examples=300, deadline=None)
@given(TEXT)
@example("ªAఀ")
@example("E\u0301A文")
def test_a_text_cut_between_two_pieces_keeps_the_runs_before_the_cut(text):
    pieces = [piece for piece, _ in piece_splitter().pre_tokenize_str(text)]
    for number in range(1, len(pieces)):
        before = "".join(pieces[:number])
        if not before[-1].isspace():  # white space and what follows it are cut together
            runs = list(runs_in_pieces(before))
            assert list(runs_in_pieces(text))[: len(runs)] == runs


def test_within_a_piece_a_cut_between_two_runs_can_change_the_run_before_it():
    # Tekken's pattern ends a piece before a capital that follows a mark or an uncased letter, but
    # only if no further such letter or mark follows the capital.
    assert list(runs_in_pieces("E\u0301A文")) == [("latin", "E\u0301A"), ("cjk", "文")]
    assert list(runs_in_pieces("E\u0301A")) == [("latin", "E\u0301"), ("latin", "A")]


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("a 한 글 b", [("latin", "a"), ("hangul", " 한 글"), ("latin", " b")]),
        ("文書を保存する", [("cjk", "文書を保存する")]),
        ("(x) “词”。\n", [("latin", "(x"), ("common", ") “"), ("cjk", "词"), ("common", "”。\n")]),
        ("\n“词", [("common", "\n"), ("cjk", "“词")]),
        ("x=12", [("latin", "x"), ("common", "=12")]),
        ("e\u0301か\u3099", [("latin", "e\u0301"), ("cjk", "か\u3099")]),
    ],
)
def test_runs_of_a_few_texts(text, runs):
    assert route(text) == runs


def test_the_table_follows_the_unicode_script_property_for_every_assigned_character():
    """Compared with the Unicode tables of the package `regex`, for letters and marks.

    Common, Inherited and unassigned code points follow their block and are not compared.
    """
    expert_of_script = {
        "Latin": "latin",
        "Han": "cjk",
        "Hiragana": "cjk",
        "Katakana": "cjk",
        "Hangul": "hangul",
        "Cyrillic": "cyrillic",
        "Arabic": "arabic",
        "Devanagari": "devanagari",
        "Thai": "thai",
    }
    everything = "".join(map(chr, itertools.chain(range(0xD800), range(0xE000, 0x110000))))
    letters = set(regex.findall(r"[\p{L}\p{M}]", everything))
    named = {
        script: letters & set(regex.findall(rf"\p{{Script={script}}}", everything))
        for script in expert_of_script
    }
    free = set(
        regex.findall(r"[\p{Script=Common}\p{Script=Inherited}\p{Script=Unknown}]", everything)
    )
    for script, characters in named.items():
        assert {of_table(character) for character in characters} == {expert_of_script[script]}, (
            script
        )
    rest = letters - free - set().union(*named.values())
    assert {of_table(character) for character in rest} == {"other"}


def of_table(character):
    """The expert by `RANGES` alone."""
    for expert, ranges in RANGES.items():
        if any(low <= ord(character) <= high for low, high in ranges):
            return expert
    return "other"


def test_ranges_are_sorted_and_disjoint():
    spans = sorted(span for spans in RANGES.values() for span in spans)
    assert all(low <= high for low, high in spans)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))
    assert all(list(spans) == sorted(spans) for spans in RANGES.values())


@pytest.mark.parametrize(
    ("character", "expert"),
    [
        (" ", "common"),
        ("7", "common"),
        ("{", "common"),
        ("，", "common"),
        ("。", "common"),
        ("１", "common"),
        ("👩", "common"),
        ("\u200d", "common"),
        ("।", "common"),
        ("฿", "common"),
        ("é", "latin"),
        ("\u0301", "latin"),
        ("Ａ", "latin"),
        ("々", "cjk"),
        ("𠮷", "cjk"),
        ("ー", "cjk"),
        ("\u3099", "cjk"),
        ("ｶ", "cjk"),
        ("ﾞ", "cjk"),
        ("ᄒ", "hangul"),
        ("ㅋ", "hangul"),
        ("Ж", "cyrillic"),
        ("ع", "arabic"),
        ("क", "devanagari"),
        ("ไ", "thai"),
        ("Ω", "other"),
    ],
)
def test_a_letter_belongs_to_its_script_and_anything_else_to_common(character, expert):
    assert expert_of_character(character) == expert
    assert route(character) == [(expert, character)]
