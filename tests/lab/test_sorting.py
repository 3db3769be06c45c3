"""A long table has a list of orders, and each row its rank in each column."""

import re

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.lab import layout, show, sorting
from moxin_lab.lab.captions import make_table_readable


def parsed(html):
    """A table as a page shows it, in its soup."""
    soup = BeautifulSoup(html, "html.parser")
    make_table_readable(soup.table, soup)
    return soup


def table(**columns):
    return parsed(show.table_html(pd.DataFrame(columns), caption="Numbers.", scale="tiny"))


def in_order(soup, choice):
    """The first cells of the rows as the style rules of this choice put them."""
    rule = re.search(
        rf'\[value="{choice}"\]:checked\) tbody > tr {{ order: (.*); }}', sorting.rules()
    )[1]
    name, missing = re.search(r"var\((--k\d+), (-?\d+)\)", rule).groups()
    sign = -1 if rule.startswith("calc(-1 *") else 1

    def order(row):
        own = re.search(rf"{name}:(\d+)", row.get("style", ""))
        return sign * int(own[1] if own else missing)

    return [
        row.find(["th", "td"]).get_text() for row in sorted(soup.select("tbody > tr"), key=order)
    ]


def test_rows_go_by_the_numbers_of_a_column_and_missing_ones_come_last_both_ways():
    soup = table(model=list("abcdefgh"), score=[1000.5, -3.0, None, 2e-9, 0.0, 20.0, 1000.5, 3.0])
    assert in_order(soup, "a1") == ["b", "e", "d", "h", "f", "a", "g", "c"]
    assert in_order(soup, "d1") == ["a", "g", "f", "h", "d", "e", "b", "c"]
    words = [option.get_text() for option in soup.find_all("option")]
    assert words == ["as given", "model, A to Z", "score, highest first", "score, lowest first"]
    assert soup.select_one("select > option")["value"] == ""


@pytest.mark.parametrize(
    ("texts", "smallest_first"),
    [
        (["9.0 (3.0 to 15.0)", "20.0", "2.0 [−4.0, 8.0]", "–"], [2, 0, 1]),
        (["2 min 5 s", "59.0 s", "1 h 2 min", "3.0 s"], [3, 1, 0, 2]),
        (["1.2 GiB", "900 bytes", "7.00 MiB", "120 KiB"], [1, 3, 2, 0]),
        (["12 %", "9 %", "+10 %", "−1 %"], [3, 1, 2, 0]),
        (["∞", "1,234", "-∞", "5.0e−09"], [2, 3, 1, 0]),
    ],
)
def test_numbers_are_read_with_what_stands_around_them(texts, smallest_first):
    ranks, numeric = sorting.ranked(texts)
    assert numeric
    order = sorted((rank, place) for place, rank in enumerate(ranks) if rank is not None)
    assert [place for _, place in order] == smallest_first


def test_numbers_of_different_units_are_words_not_quantities():
    assert not sorting.ranked(["3 tokens", "5 bytes"])[1]
    assert not sorting.ranked(["0.5", "not run"])[1]
    assert not sorting.ranked(["–", ""])[1]


def test_words_go_by_letters_without_capitals_and_by_the_numbers_in_them():
    ranks, numeric = sorting.ranked(["phase 10", "Phase 2", "GRPO", "中文", "phase 2"])
    assert (ranks, numeric) == ([2, 1, 0, 3, 1], False)


@given(st.lists(st.text(max_size=12), max_size=12))
def test_any_text_has_a_rank_or_is_missing(texts):
    ranks, _ = sorting.ranked(texts)
    present = [rank for rank in ranks if rank is not None]
    assert len(ranks) == len(texts)
    assert set(present) == set(range(len(set(present))))
    assert all(
        (rank is None) == (text in sorting.MISSING) for text, rank in zip(texts, ranks, strict=True)
    )


@given(st.lists(st.floats(-1e12, 1e12), min_size=2, max_size=20))
def test_numbers_as_tables_show_them_are_ranked_as_numbers(values):
    texts = [show.format_value(value, 3) for value in values]
    ranks, numeric = sorting.ranked(texts)
    assert numeric
    for one, rank in zip(values, ranks, strict=True):
        for other, against in zip(values, ranks, strict=True):
            assert (
                rank <= against
                or one >= other
                or show.format_value(one) == show.format_value(other)
            )


def test_a_short_table_or_one_with_groups_of_rows_is_left_alone():
    assert not table(model=list("abcde"), score=range(5)).find("select")
    rows = "".join(f"<tr><td>{n}</td><td>{n}</td></tr>" for n in range(8))
    head = "<caption>c</caption><thead><tr><th>a</th><th>b</th></tr></thead>"
    grouped = '<tr><th colspan="2">group</th></tr>'
    for whole, found in (
        (f"{head}<tbody>{rows}</tbody>", True),
        (f"{head}<tbody>{grouped}{rows}</tbody>", False),
        (f"{head}<tbody>{rows}</tbody><tbody>{rows}</tbody>", False),
        (f"{head}<tbody>{rows}</tbody><tfoot><tr><td>8</td><td>8</td></tr></tfoot>", False),
        (f"<tbody>{rows}</tbody>", False),
    ):
        soup = parsed(f"<table>{whole}</table>")
        assert bool(soup.find("select")) == found, whole[:200]
        assert found or not soup.select("[style]")


def test_prose_and_columns_of_one_value_are_no_orders():
    texts = ["word " * 20] * 7 + ["x"]
    soup = table(model=list("abcdefgh"), text=texts, same=[1] * 8, score=range(8))
    assert [option["value"] for option in soup.find_all("option")] == ["", "a0", "d3", "a3"]


def test_a_table_of_words_keeps_the_order_that_it_was_written_in():
    assert not table(setting=list("abcdefgh"), value=["mean", *"1234567"]).find("select")


def test_the_list_of_orders_names_its_table():
    soup = table(model=list("abcdefgh"), score=range(8))
    assert soup.find("select")["aria-label"] == "Order of the rows: Numbers. tiny scale"
    assert soup.find("label").find_next("table") is soup.table


def test_every_column_that_can_be_chosen_has_its_rules_on_every_page():
    names = {f"column {n}": range(8) for n in range(sorting.MAX_COLUMNS + 3)}
    values = [option["value"] for option in table(**names).find_all("option")][1:]
    assert len(values) == 2 * sorting.MAX_COLUMNS
    for value in values:
        assert sorting.rules().count(f'[value="{value}"]:checked') == 2
    assert sorting.rules() in layout._css()


@pytest.mark.parametrize(
    "in_order",
    [
        ["1.2.0", "1.9.0", "1.10.0", "2.0.0"],
        ["2.9.1", "2.13.0", "2.13.0.post1"],
        ["850 µs", "900 ms", "1.2 s", "2 min", "1 h"],
        ["59 min 59 s", "1 h 2 min 3 s", "1 h 3 min 1 s"],
        ["1 byte", "900 bytes", "1 kB", "1 KiB", "1 MB", "1 MiB", "1 GB"],
        ["\N{MINUS SIGN}0.3", "\N{MINUS SIGN}0.1", "0.2", "undecided"],
        ["2025-12-31", "2026-01-02", "2026-11-30"],
    ],
)
def test_versions_times_sizes_signs_and_dates_are_in_their_order(in_order):
    ranks, _ = sorting.ranked(in_order)
    assert ranks == sorted(ranks) and len(set(ranks)) == len(in_order)


def test_a_version_is_no_number_and_a_lone_minus_is_a_missing_value():
    assert sorting.ranked(["1.2.0", "1.10.0", "1.9.0"])[1] is False
    assert sorting.ranked(["\N{MINUS SIGN}", "3", "1"]) == ([None, 1, 0], True)
