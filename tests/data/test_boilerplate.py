"""Boilerplate: what a site's pages share at their edges goes; what is a page's own stays."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.data.boilerplate import EDGE, MIN_PAGES, shared_lines, strip

MENU = "Home | Index\n\nTable of contents\n"
FOOTER = "\n\n© 2020 The Company\nPage {n} of 12\n"


def site(pages: int = 8) -> list[tuple[str, str]]:
    return [
        (
            "docs",
            f"{MENU}Title {chr(97 + n)}\nParameters\n\nbody {chr(97 + n)}" + FOOTER.format(n=n),
        )
        for n in range(pages)
    ]


def test_navigation_and_footers_go_and_shared_headings_inside_stay() -> None:
    pages = site()
    shared = shared_lines(pages)["docs"]
    assert strip(pages[2][1], shared) == "Title c\nParameters\n\nbody c\n"


def test_a_site_keeps_what_only_another_site_repeats() -> None:
    other = [("blog", f"{MENU}Title {n}\nbody") for n in range(MIN_PAGES - 1)]
    shared = shared_lines([*site(), *other])
    assert strip(other[0][1], shared["blog"]) == other[0][1]


@pytest.mark.parametrize(("pages", "goes"), [(MIN_PAGES - 1, False), (MIN_PAGES, True)])
def test_so_many_pages_make_a_line_boilerplate(pages: int, goes: bool) -> None:
    texts = [("s", f"own{chr(97 + n)}\nfooter") for n in range(20)]
    texts += [("s", f"my{chr(97 + n)}\nlegal notice") for n in range(pages)]
    assert (strip("x\nlegal notice", shared_lines(texts)["s"]) == "x") == goes


def test_on_a_large_site_a_tenth_of_the_pages_is_needed() -> None:
    def texts(number: int) -> list[tuple[str, str]]:
        return [("s", f"x{i:b}\n{'notice' if i < number else f'y{i:b}'}") for i in range(200)]

    # digits fold into one, so the pages' own lines are spelled with letters
    spelled = {
        number: [(s, t.translate(str.maketrans("01", "ab"))) for s, t in texts(number)]
        for number in (19, 20)
    }
    assert strip("own\nnotice", shared_lines(spelled[19])["s"]) == "own\nnotice"
    assert strip("own\nnotice", shared_lines(spelled[20])["s"]) == "own"


def test_brackets_that_close_every_page_of_code_stay() -> None:
    texts = [("s", f"def f{chr(97 + n)}(\n)\n}}") for n in range(9)]
    assert strip(texts[0][1], shared_lines(texts)["s"]) == texts[0][1]


def test_a_page_of_shared_lines_alone_is_left_empty() -> None:
    texts = [("s", "This page has been moved\n\nto here")] * 9
    assert strip(texts[0][1], shared_lines(texts)["s"]) == ""


def test_a_line_that_pages_share_in_their_middle_is_no_boilerplate() -> None:
    def own(page: int) -> str:
        return "\n".join(f"own {chr(97 + page)}{chr(97 + i % 26)}{i // 26:b}" for i in range(EDGE))

    texts = [("s", f"{own(2 * n)}\nParameters\n{own(2 * n + 1)}") for n in range(9)]
    assert shared_lines(texts)["s"] == frozenset()


LINES = st.lists(st.sampled_from(["menu", "", "  ", "own 1", "other", ")", "日本語", "foot\r"]))


@given(st.lists(LINES, min_size=1, max_size=12), st.integers(0, 11))
def test_a_second_run_changes_nothing_and_only_ends_are_cut(
    pages: list[list[str]], which: int
) -> None:
    texts = ["\n".join(lines) for lines in pages]
    shared = shared_lines(("s", text) for text in texts)["s"]
    assert shared == shared_lines(("s", text) for text in reversed(texts))["s"]
    text = texts[which % len(texts)]
    left = strip(text, shared)
    assert left in text
    assert strip(left, shared) == left


def test_time_is_linear_in_the_lines() -> None:
    def seconds(lines: int) -> float:
        texts = [("s", "\n".join(f"line {chr(97 + i % 26)}" for i in range(lines)))] * 10
        began = time.process_time()
        shared = shared_lines(texts)["s"]
        for _, text in texts:
            strip(text, shared)
        return time.process_time() - began

    small = min(seconds(4_000) for _ in range(3))
    assert seconds(40_000) < 30 * max(small, 0.001)
