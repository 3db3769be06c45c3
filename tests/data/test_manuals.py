"""Manual pages, XML manuals, reStructuredText and catalogues lose no word and keep no markup."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.data.manuals import (
    catalogue_to_text,
    docbook_to_text,
    man_to_text,
    rst_to_text,
)
from moxin_lab.data.unreadable import Unreadable

WORDS = st.lists(
    st.sampled_from(["alpha", "beta", "と", "「名前」", "도움말", "文件", "x-y", "naïve"]),
    min_size=1,
)


def mo(messages: dict[str, str], order: str = "<") -> bytes:
    pairs = sorted((a.encode(), b.encode()) for a, b in messages.items())
    tables, strings = [b"", b""], b""
    start = 28 + 16 * len(pairs)
    for side in (0, 1):
        for pair in pairs:
            tables[side] += struct.pack(f"{order}2I", len(pair[side]), start + len(strings))
            strings += pair[side] + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, start)
    return head + tables[0] + tables[1] + strings


def test_a_manual_page_loses_its_macros_only():
    page = (
        '.\\" a comment\n.TH CAT 1 "2020"\n.SH NAME\ncat \\- join \\fBfiles\\fP\n.SH OPTIONS\n'
        '.TP\n.BR \\-A ", " --all\nshow\nall\n.nf\n  a\n  b\n.fi\n.ig\nhidden\n..\n\\(lqq\\(rq\n'
    )
    assert man_to_text(page) == (
        "NAME\n\ncat - join files\n\nOPTIONS\n\n-A, --all show all\n  a\n  b\n“q”"
    )


def test_an_mdoc_page_keeps_arguments_and_options():
    page = ".Dd May 1\n.Sh NAME\n.Nm ls\n.Nd list\n.Sh SYNOPSIS\n.Op Fl l Ar file\n.Xr cat 1 .\n"
    assert man_to_text(page) == "NAME\n\nls list\n\nSYNOPSIS\n\n[-l file] cat(1)."


def test_japanese_lines_are_joined_without_a_space_and_korean_with_one():
    assert man_to_text(".SH A\n名前は\n例です\n") == "A\n\n名前は例です"
    assert man_to_text(".SH A\n창을\n엽니다\n") == "A\n\n창을 엽니다"


@given(WORDS)
def test_no_word_of_a_manual_page_or_xml_page_is_lost(words):
    text = man_to_text(f".SH A\n.B {' '.join(words)}\n{' '.join(words)}\n")
    assert "".join(text.split()) == "A" + "".join(words) * 2
    xml = f"<page><p>{'<em>x</em>'.join(words)}</p></page>"
    assert docbook_to_text(xml) == "x".join(words)


@given(st.text())
def test_any_text_is_read_or_unreadable(text):
    for reader in (man_to_text, rst_to_text, docbook_to_text):
        try:
            assert reader(text).strip()
        except Unreadable as error:
            assert len(error.args) == 2


@given(st.binary())
def test_any_bytes_are_a_catalogue_or_unreadable(content):
    for candidate in (content, struct.pack("<I", 0x950412DE) + content):
        try:
            assert catalogue_to_text(candidate)
        except Unreadable as error:
            assert len(error.args) == 2


@pytest.mark.parametrize("page", [".so man1/other.1\n", ".TH A 1\n"])
def test_an_alias_or_empty_manual_page_is_set_aside(page):
    with pytest.raises(Unreadable):
        man_to_text(page)


def test_docbook_keeps_blocks_on_lines_and_examples_as_they_are():
    xml = (
        "<article><info><author>N</author></info><title>T</title><para>a\n  <em>b</em> c</para>"
        "<screen>x\n  y</screen></article>"
    )
    assert docbook_to_text(xml) == "T\n\na b c\n\nx\n y"


@pytest.mark.parametrize(
    "xml",
    [
        "<a>",
        "",
        '<!DOCTYPE a [<!ENTITY e "x">]><a>&e;</a>',
        '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a>&e;</a>',
    ],
)
def test_broken_xml_and_entities_are_set_aside(xml):
    with pytest.raises(Unreadable, match="broken XML"):
        docbook_to_text(xml)


def test_deep_xml_is_read_without_recursion():
    assert docbook_to_text("<a>" * 20_000 + "x" + "</a>" * 20_000) == "x"


def test_rst_keeps_words_and_loses_what_the_builder_reads():
    source = (
        ".. _label:\n\nTitle\n=====\n\nSee :ref:`the page <label>` and `x <http://e>`_.\n\n"
        ".. note::\n   :class: a\n\n   Kept.\n\n.. a comment\n   goes on\n\n::\n\n   code\n"
    )
    assert rst_to_text(source).split() == [
        "Title",
        *["See", "the", "page", "and", "x.", "Kept.", "::", "code"],
    ]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_catalogue_gives_its_translations_once(order):
    messages = {"": "Content-Type: text/plain; charset=UTF-8\n", "a": "열기", "b": "열기", "c": "c"}
    assert catalogue_to_text(mo(messages, order)) == "열기"
    with pytest.raises(Unreadable, match="not UTF-8"):
        catalogue_to_text(mo({"": "charset=EUC-KR\n", "a": "x"}, order))
