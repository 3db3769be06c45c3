"""Guarantee of docs/adding-*.md: whoever types what a page says gets what it says.

Each page is followed in a copy of the tree of its own; see pages.py for how its blocks are read.
"""

import re
from pathlib import Path

import pytest

from tests.docs import pages

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("adding-*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_reader_who_follows_the_page_gets_what_it_says(page, tmp_path):
    pages.follow(page, pages.copy_tree(ROOT, tmp_path))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_says_how_long_it_takes_and_checks_itself(page):
    text = page.read_text()
    assert re.search(r"^Time: about \d+ minutes", text, re.MULTILINE)
    found = pages.blocks(page)
    assert any(block.title for block in found), "it adds no file"
    assert any(block.language == "sh" for block in found), "it runs nothing"
    assert any(block.language == "text" for block in found), "it says no result"


def write_page(folder, text):
    page = folder / "page.md"
    page.write_text(text)
    return page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```sh\nfalse\n```\n", "exit code 1"),
        ("```sh\necho four\n```\n\n```text\nfive\n```\n", "not printed: 'five'"),
        ('```diff title="a.txt"\n-three\n+four\n```\n', "0 times"),
        ('```python title="a.txt"\none\n```\n', "a.txt exists already"),
        ("```\nno language\n```\n", "a fence has no language"),
    ],
    ids=lambda value: value.splitlines()[0][:20],
)
def test_a_page_that_does_not_work_is_an_error(text, message, tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    page = write_page(tmp_path, text)
    with pytest.raises(pages.PageError, match=message):
        pages.follow(page, tmp_path)


def test_a_diff_replaces_lines_and_keeps_the_rest(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    pages.apply_diff(tmp_path / "a.txt", " one\n-two\n+2\n+2.5\n", "here")
    assert (tmp_path / "a.txt").read_text() == "one\n2\n2.5\nthree\n"
