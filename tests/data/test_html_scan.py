"""A page costs time in proportion to its size; damage is told from what only looks like it."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab.data import html_scan
from moxin_lab.data.html_scan import MAX_ATTRIBUTES, MAX_DEPTH, scan
from moxin_lab.data.html_text import html_to_text
from moxin_lab.data.unreadable import Unreadable

PAGE_BYTES = 240_000
SECONDS = 1.0
"""Of processor time, per page of `PAGE_BYTES`."""


def fault(page: str) -> tuple[str, str]:
    with pytest.raises(Unreadable) as error:
        html_to_text(page)
    return error.value.args


def seconds(page: str) -> float:
    started = time.process_time()
    try:
        html_to_text(page)
    except Unreadable as error:
        assert all(error.args)
    return time.process_time() - started


HOSTILE = {
    "deep": "<div>",
    "deep and closed": None,
    "unclosed script tag": "<script ",
    "unclosed scripts": "<script>",
    "open quotes": "<a b='",
    "open comments": "<!-- x ",
    "formatting in paragraphs": "<p><b><i>x",
    "links in paragraphs": "<a><p>",
    "lists": "<ul><li>",
    "tables": "<table><tr><td>x",
    "closed tables": "<table><tr><td>x</table>",
    "end tags": "<div></p>",
    "wrong order": "<div><object></div></object>x",
    "wrong nesting": "<b><i><u>x</b>",
    "paragraphs": "<p>x",
    "links": "<a href=x>x</a>",
    "hidden": "<p hidden>x</p>",
    "empty elements": '<span id="x"/>',
    "left angles": "<",
    "templates": "<template>",
    "fonts of many sizes": None,
    "fonts in paragraphs": None,
    "attributes": None,
}


def hostile(name: str) -> str:
    made = {
        "deep and closed": "<div>" * (PAGE_BYTES // 11) + "x" + "</div>" * (PAGE_BYTES // 11),
        "fonts of many sizes": "".join(f"<font size={i}>" for i in range(PAGE_BYTES // 16)),
        "fonts in paragraphs": "".join(f"<p><font size={i}>x" for i in range(PAGE_BYTES // 20)),
        "attributes": "<p " + " ".join(f"a{i}=1" for i in range(PAGE_BYTES // 9)) + ">x",
    }
    unit = HOSTILE[name]
    body = made[name] if unit is None else unit * (PAGE_BYTES // len(unit))
    return f"<html><body><p>hello</p>{body}"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_page_costs_less_than_a_second(name: str) -> None:
    assert seconds(hostile(name)) < SECONDS


TAGS = "div p b a i font span ul li table tr td object script select button svg form h1 main nav"
FRAGMENTS = st.one_of(
    st.sampled_from(TAGS.split()).map("<{}>".format),
    st.sampled_from(TAGS.split()).map("</{}>".format),
    st.sampled_from(TAGS.split()).map("<{} hidden class=menu href=x>".format),
    st.sampled_from(("x", " ", "<", "<!--", "-->", "<a b='", "'>", "&amp;", "<br/>", "<i/>", "と")),
)


@given(st.lists(FRAGMENTS, min_size=1, max_size=6).map("".join), st.integers(20_000, 100_000))
@settings(max_examples=60, deadline=None)
def test_any_fragment_repeated_costs_less_than_a_second(unit: str, size: int) -> None:
    assert seconds("<body>hello" + unit * (size // len(unit))) < SECONDS


@given(st.lists(FRAGMENTS | st.text("<>/=\"' a\n", max_size=4), max_size=12).map("".join))
@settings(deadline=None)
def test_a_quick_look_calls_no_page_plain_that_a_slow_one_changes_or_refuses(page: str) -> None:
    for whole in (page, f"<html><body>{page}</body></html>"):
        if html_scan._is_plain(whole):
            assert html_scan._scan(whole) == (whole, False)


def test_elements_nested_up_to_the_limit_are_read() -> None:
    # html is outermost and not counted from body on
    for depth, good in ((MAX_DEPTH - 10, True), (MAX_DEPTH + 10, False)):
        page = f"<html><body>{'<div>' * depth}text{'</div>' * depth}</body></html>"
        if good:
            assert html_to_text(page) == "text"
        else:
            assert fault(page)[0] == "page too complex"


def test_many_elements_that_do_not_nest_are_no_depth() -> None:
    inside = "<p>x<li>y<a href=z>z" * 2000
    assert html_to_text(f"<html><body><ul>{inside}</ul></body></html>").count("z") == 2000
    spans = "<p><span>x</p>" * 1000  # the end of the paragraph closes the span
    assert html_to_text(f"<html><body>{spans}</body></html>").count("x") == 1000


def test_a_tag_with_thousands_of_attributes_is_refused() -> None:
    tag = "<p " + " ".join(f"a{i}=1" for i in range(MAX_ATTRIBUTES + 10)) + ">"
    assert fault(f"<body>{tag}x</p></body>")[0] == "page too complex"
    image = '<img src="data:' + "a b=c/" * 9000 + '">'
    assert html_to_text(f"<body>{image}text</body>") == "text"


@pytest.mark.parametrize(
    "inside",
    [
        "<!-- <script> -->",
        "<!-- <title> <textarea> -->",
        '<script src="x.js"/>',
        "<script src='x.js' />",
        '<a id="x"/>',
        "<style/>",
        "<title/>",
        '<textarea name="x"/>',
        "<iframe src='x'/>",
        "<script>if (a < b) { document.write('<script src=x/>') }</script>",
        "<script>s = '<!--'</script>",
        "<style>a::before { content: '<p ' }</style>",
        '<p title="a > b <!-- <script>">',
        "<a href=x/>link</a>",
        "<svg><path d='M0'/></svg>",
        "<!-->",
        "<!--->",
        "<!-- a --!>",
        "<?php echo 1 ?>",
        "<![CDATA[ x ]]>",
        "a < b and b > c, 3 <4",
    ],
)
def test_what_only_looks_like_damage_costs_no_text(inside: str) -> None:
    page = f"<html><body><p>before</p>{inside}<p>after</p></body></html>"
    text = html_to_text(page)
    assert text.startswith("before") and text.endswith("after")
    assert "document.write" not in text


def test_empty_elements_are_closed_and_nothing_else_changes() -> None:
    page = '<p><a id="x"/>t<br/><a href=u/>v</a><img src="i"/><b\n/></p>'
    assert scan(page)[0] == '<p><a id="x"></a>t<br/><a href=u/>v</a><img src="i"/><b\n></b></p>'


CUT = (
    '<!DOCTYPE html><html lang="en"><head><title>Sorting</title><script>var menu = 1;</script>'
    '</head><body><!-- menu --><div id="content"><h1>Sorting rows</h1>'
    "<p>Choose <b>Data</b> and then Sort.</p><ul><li>One</li><li>Two</li></ul></div>"
)


def test_a_page_cut_off_in_a_tag_a_comment_a_script_or_a_sentence_is_rejected() -> None:
    whole = CUT + "</body></html>"
    assert html_to_text(whole)
    for end in range(CUT.index("<script>") + 1, len(CUT)):
        assert fault(whole[:end])[0] in ("broken HTML", "no main content"), whole[:end]


def test_a_page_cut_off_in_a_paragraph_is_rejected_if_others_are_closed() -> None:
    page = "<html><body><p>One.</p><p>Choose <b>Data</b> and</p></body></html>"
    for end in range(page.index("One.") + 6, page.index("</body>") - 4):
        if not page[:end].rstrip().endswith(">"):
            assert fault(page[:end])[0] == "broken HTML", page[:end]


@pytest.mark.parametrize(
    "page",
    [
        "<p>One<p>Two",
        "<html><body><p>One.</p>\nTwo",
        "<body><ul><li>One<li>Two</ul>",
        CUT.replace("</li>", "").replace("</p>", "") + "\n",
    ],
)
def test_end_tags_that_may_be_left_out_are_not_missed(page: str) -> None:
    assert html_to_text(page)
