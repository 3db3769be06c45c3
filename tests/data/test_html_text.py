"""The text of a page: no character of its main block is lost, and what is beside it goes."""

import html as entities

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moxin_lab.data.html_text import html_to_text
from moxin_lab.data.unreadable import Unreadable

SCRIPTS = {
    "Latin": ("aqzéßŁŵ—“”…·", "The quick brown fox, “naïve” – façade…"),
    "Cyrillic": ("абвЯЁїѓ«»№", "Съешь ещё этих «мягких» булок."),
    "Greek": ("αβγΏϊς·«»", "Ξεσκεπάζω τὴν ψυχοφθόρα «βδελυγμία»."),
    "Arabic": ("ابتثءآى\u064e،؛؟", "هذا نصٌّ بسيط، أليس كذلك؟"),
    "Devanagari": ("कखगआी\u094d\u0902।॥", "यह एक सरल वाक्य है। क्षत्रिय"),
    "Thai": ("กขคเแ\u0e34\u0e48ๆฯ", "นี่เป็นข้อความทดสอบ น้ำ"),
    "Han": ("的一是在中\U00020000「」、。", "这是「简单」的测试、对吗。"),
    "Kana": ("とがはアンー゛々〜「」、。", "これは「簡単」なテストです。"),
    "Hangul": ("가는이한글을\u1112\u1161「」", "이것은 간단한 시험입니다."),
}
INLINE = ("code", "b", "i", "span", "a", "em", "sub", "kbd", "font", "u", "mark", "q", "x-word")
BLOCK = ("p", "div", "li", "td", "dd", "h2", "pre", "blockquote", "figcaption", "section")


def squeezed(text: str) -> str:
    """Without white space and list marks, which the form of the text may change."""
    return "".join(text.replace("•", "").split())


@st.composite
def pages(draw: st.DrawFn) -> tuple[str, str]:
    """A page whose text nodes are one or a few characters of a script, and its text."""
    characters = SCRIPTS[draw(st.sampled_from(sorted(SCRIPTS)))][0]
    markup, text = [], []
    for _ in range(draw(st.integers(1, 6))):
        pieces = []
        for _ in range(draw(st.integers(1, 6))):
            word = draw(st.text(characters, min_size=1, max_size=draw(st.sampled_from((1, 1, 3)))))
            how = draw(st.sampled_from(("plain", "decimal", "hexadecimal", "comment", "inline")))
            name = draw(st.sampled_from(INLINE))
            pieces.append(
                {
                    "plain": entities.escape(word) + "<wbr>",
                    "decimal": "".join(f"&#{ord(char)};" for char in word),
                    "hexadecimal": "".join(f"&#x{ord(char):x};" for char in word),
                    "comment": f"<!-- x -->{word}<!-- y -->",
                    "inline": f"<{name}>{word}</{name}>",
                }[how]
            )
            text.append(word)
        block = draw(st.sampled_from(BLOCK))
        row = "".join(pieces)
        markup.append(
            {"li": f"<ul><li>{row}</li></ul>", "td": f"<table><tr><td>{row}</td></tr></table>"}.get(
                block, f"<{block}>{row}</{block}>"
            )
        )
    return "<html><body><main>" + "".join(markup) + "</main></body></html>", "".join(text)


@given(pages())
@settings(max_examples=300, deadline=None)
def test_no_character_of_any_script_is_lost(page: tuple[str, str]) -> None:
    markup, text = page
    for form in (markup, markup.replace("<main>", "<div>").replace("</main>", "</div>")):
        assert squeezed(html_to_text(form)) == squeezed(text)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_hand_made_page_keeps_its_text(script: str) -> None:
    sentence = SCRIPTS[script][1]
    nodes = "".join(f"<span>{char}</span>" for char in sentence)
    page = (
        f"<html><body><nav><a href='x'>menu</a></nav><div><h1>{sentence}</h1><p>{nodes}</p>"
        f"<ul><li>{sentence}</li><li>{sentence[:1]}</li></ul>"
        f"<table><tr><td>{sentence[:1]}</td><td>{sentence}</td></tr></table></div></body></html>"
    )
    expected = sentence * 3 + sentence[:1] * 2 + sentence
    assert sorted(squeezed(html_to_text(page))) == sorted(squeezed(expected))
    assert sentence in html_to_text(page)


@pytest.mark.parametrize(
    "char",
    [
        "と",
        "「",
        "」",
        "、",
        "。",
        "—",
        "é",
        "😀",
        "\u0301",
        "¶",
        "•",
        "\u200d",
        "ﷺ",
        "\ue000",
        "☃",
    ],
)
@pytest.mark.parametrize("form", ["{}", "&#x{:x};", "<b>{}</b>", "<i><b>{}</b></i>"])
def test_a_text_node_of_one_character_stays(char: str, form: str) -> None:
    inner = form.format(ord(char) if "&#" in form else char)
    page = f"<p><code>alpha</code>{inner}<code>beta</code> tail</p>"
    assert html_to_text(page) == f"alpha{char}beta tail"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<p><i>a</i> <i>b</i>&nbsp;<i>c</i>\u3000<i>d</i></p>", "a b\xa0c\u3000d"),
        ("<p><ruby>漢<rp>(</rp><rt>かん</rt><rp>)</rp></ruby>字</p>", "漢(かん)字"),
        ("<p>Donau<wbr>dampf&shy;schiff</p>", "Donaudampf\xadschiff"),
        ("<p>あ<br>い<br/>う</p>", "あ\nい\nう"),
        ("<pre>a\n  b\n\nc</pre>", "a\n  b\n\nc"),
        ("<div>See<table><tr><td>a</td><td>b</td></tr></table>end</div>", "See\na\t\tb\nend"),
        ("<details><summary>More</summary>Text</details>", "More\nText"),
        ("<p>one <a href='x'>two</a> three</p>", "one two three"),
    ],
)
def test_words_are_neither_joined_nor_parted(markup: str, text: str) -> None:
    lines = [line.strip() for line in html_to_text(markup).splitlines() if line.strip()]
    assert "\n".join(lines) == text.replace("\n\n", "\n").replace("\n  ", "\n")


def test_of_hidden_alternatives_one_is_shown() -> None:
    switch = (
        '<span class="switchinline"><span hidden="true" class="MAC">Command</span>'
        '<span hidden="true" id="default1">Ctrl</span></span>'
    )
    page = f"<p>Choose the {switch}+Shift+Enter command.</p><p hidden>draft</p>"
    assert html_to_text(page) == "Choose the Ctrl+Shift+Enter command."
    unnamed = "<p>Press <b><i hidden>Alt</i><i hidden>Option</i></b>.</p>"
    assert html_to_text(unnamed) == "Press Alt."
    one = "<div><div hidden>Do you accept?</div></div><p>Text</p>"
    assert html_to_text(one) == "Text"


def test_an_element_hidden_by_style_goes() -> None:
    page = "<p>a<span style='color:red; display: none'>x</span>b<i aria-hidden=true>y</i></p>"
    assert html_to_text(page) == "ab"


MAIN = "<h1>Sorting</h1>" + "<p>Choose Data and then Sort. It sorts the rows.</p>" * 8
BESIDE = (
    '<div class="navheader"><a href="a">Prev</a></div>',
    '<div class="menu"><ul>' + '<li><a href="b">Contents</a></li>' * 9 + "</ul></div>",
    '<ul><li><a href="c">Contents</a></li><li><a href="d">Index</a></li></ul>',
    '<div id="footer">Copyright, all rights reserved</div>',
    "<header><p>Contents of the help</p></header>",
    "<aside><label>Index</label><div>Contents</div></aside>",
    "<footer>All rights reserved</footer>",
    '<form action="s"><div>Contents</div><input></form>',
)


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("where", ["{beside}<div>{main}</div>", "<div>{main}</div>{beside}"])
def test_what_stands_beside_the_main_block_goes(beside: str, where: str) -> None:
    page = "<html><body>" + where.format(beside=beside, main=MAIN) + "</body></html>"
    text = html_to_text(page)
    assert text.count("It sorts the rows.") == 8 and text.startswith("Sorting")
    assert not any(word in text for word in ("Prev", "Contents", "Index", "rights"))


def test_tables_lists_and_sidebars_in_the_main_block_stay() -> None:
    inside = (
        '<div class="related"><ul><li><a href="x">Related topics</a></li></ul></div>'
        '<div class="sidebar"><p>A note in a box.</p></div>'
        '<table class="share"><tr><td>Ctrl</td><td>F2</td></tr></table>'
    )
    for page in (f"<main>{MAIN}{inside}</main>", f"<div>{MAIN}{inside}</div>"):
        text = html_to_text(f"<html><body>{page}</body></html>")
        for words in ("A note in a box.", "F2"):
            assert words in text
    assert "Related topics" in html_to_text(f"<main>{MAIN}{inside}</main>")


def test_the_heading_above_the_main_element_stays() -> None:
    page = f"<body><div><h1>Title</h1></div><main><p>Text</p></main><p>{'x' * 50}</p></body>"
    assert html_to_text(page) == "Title\n\nText"


@given(st.text(max_size=300))
@example("<a href=x>")
@settings(max_examples=200, deadline=None)
def test_any_text_gives_text_or_a_reason(page: str) -> None:
    try:
        assert html_to_text(page).strip()
    except Unreadable as error:
        assert all(error.args)
