"""Router: a partition by code point, independent of left context, in agreement with the Unicode
Script property.
"""

import itertools

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from moxin_lab.tokenizer.router import EXPERTS, RANGES, RUN_PATTERN, expert_of_character, route

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


@settings(max_examples=500, deadline=None)
@given(TEXT)
def test_every_character_is_in_a_run_of_its_expert_except_for_a_leading_space(text):
    for expert, run in route(text):
        for position, character in enumerate(run):
            if expert_of_character(character) != expert:
                assert character == " "
                assert position + 1 < len(run), "a space belongs to the character after it"
                assert expert_of_character(run[position + 1]) == expert


@settings(max_examples=500, deadline=None)
@example("漢", "\u3099", "x")
@given(TEXT, TEXT, st.just(""))
def test_left_context_never_changes_the_runs_unless_it_ends_in_a_space(left, right, more):
    right = right + more
    if not left.endswith(" "):
        assert route(left + right) == joined(route(left) + route(right))


def test_the_run_of_a_trailing_space_depends_on_the_next_character():
    assert route("a ") == [("latin", "a ")]
    assert route("a " + "한") == [("latin", "a"), ("hangul", " 한")]
    assert route("a  한 글 b") == [("latin", "a "), ("hangul", " 한 글"), ("latin", " b")]


@settings(max_examples=500, deadline=None)
@given(TEXT)
def test_python_and_the_exported_pre_tokenizer_find_the_same_runs(text):
    split = Split(Regex(RUN_PATTERN), behavior="isolated")
    assert [piece for piece, _ in split.pre_tokenize_str(text)] == [run for _, run in route(text)]


def test_the_table_follows_the_unicode_script_property_for_every_assigned_character():
    """Compared with the Unicode tables of the package `regex`.

    Common, Inherited and unassigned code points follow their block and are not compared.
    """
    expert_of_script = {
        "Latin": "latin",
        "Han": "han",
        "Hiragana": "kana",
        "Katakana": "kana",
        "Hangul": "hangul",
    }
    everything = "".join(map(chr, itertools.chain(range(0xD800), range(0xE000, 0x110000))))
    named = {
        script: set(regex.findall(rf"\p{{Script={script}}}", everything))
        for script in expert_of_script
    }
    free = set(
        regex.findall(r"[\p{Script=Common}\p{Script=Inherited}\p{Script=Unknown}]", everything)
    )
    for script, characters in named.items():
        assert {expert_of_character(character) for character in characters} == {
            expert_of_script[script]
        }, script
    rest = set(everything) - free - set().union(*named.values())
    assert {expert_of_character(character) for character in rest} == {"other"}


def test_ranges_are_sorted_and_disjoint():
    spans = sorted(span for spans in RANGES.values() for span in spans)
    assert all(low <= high for low, high in spans)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))
    assert all(list(spans) == sorted(spans) for spans in RANGES.values())


@pytest.mark.parametrize(
    ("character", "expert"),
    [
        (" ", "latin"),
        ("7", "latin"),
        ("{", "latin"),
        ("é", "latin"),
        ("\u0301", "latin"),
        ("👩", "latin"),
        ("\u200d", "latin"),
        ("，", "han"),
        ("。", "han"),
        ("\u3000", "han"),
        ("１", "han"),
        ("々", "han"),
        ("𠮷", "han"),
        ("ー", "kana"),
        ("・", "kana"),
        ("\u3099", "kana"),
        ("ｶ", "kana"),
        ("ﾞ", "kana"),
        ("ᄒ", "hangul"),
        ("ㅋ", "hangul"),
        ("Ж", "other"),
        ("।", "other"),
        ("،", "other"),
        ("฿", "other"),
        ("Ａ", "latin"),
    ],
)
def test_common_and_inherited_characters_follow_their_block(character, expert):
    assert expert_of_character(character) == expert
    assert route(character) == [(expert, character)]
