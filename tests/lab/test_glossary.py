"""Guarantees of the glossary: each term once, in prose only, and its explanation is on the page."""

from bs4 import BeautifulSoup

from moxin_lab.lab import glossary


def explained(text: str) -> BeautifulSoup:
    html = glossary.explain(f'<section class="words" id="cell-1">{text}</section>')
    return BeautifulSoup(html, "html.parser")


def test_the_first_use_of_a_term_opens_its_explanation():
    soup = explained("<p>First DPO, then GRPO &amp; DPO again.</p>")
    buttons = soup.find_all("button")
    assert [button.get_text() for button in buttons] == ["DPO", "GRPO"]
    for button in buttons:
        note = soup.find(id=button["popovertarget"])
        assert note.has_attr("popover") and note.get_text().startswith(button.get_text())
    assert soup.section.get_text() == "First DPO, then GRPO & DPO again."


def test_headings_code_links_formulas_and_tables_stay_as_they_are():
    for inside in ("h2", "code", "a", "math", "td"):
        text = f"<{inside}>DPO</{inside}>"
        text = f"<table><tr>{text}</tr></table>" if inside == "td" else text
        assert explained(text).find("button") is None, inside


def test_a_part_of_a_word_is_no_term():
    assert explained("<p>ADPO, DPO-like, DPO2</p>").find("button") is None


def test_markup_in_text_stays_text():
    soup = explained("<p>a &lt;b&gt; DPO &lt;i&gt;</p>")
    assert soup.find("b") is None and soup.section.get_text() == "a <b> DPO <i>"


def test_a_page_without_a_term_is_unchanged():
    html = '<section class="words" id="cell-1"><p>Nothing here.</p></section>'
    assert glossary.explain(html) == html


def test_anchors_are_unique():
    anchors = [term["anchor"] for term in glossary.terms()]
    assert len(anchors) == len(set(anchors)) > 20
