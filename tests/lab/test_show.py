"""Guarantees of figures and tables: a text alternative, the scale, and the same bytes each time."""

import base64
import re
import subprocess
import sys
from xml.etree import ElementTree

import bleach
import matplotlib
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

matplotlib.use("agg")
import matplotlib.pyplot as plt

from moxin_lab.lab import pictures, show


def simple_figure(title: str = "Title"):
    show.style()
    figure, axes = plt.subplots()
    axes.plot([0, 1, 2], [3.0, 2.0, 1.5], label="loss")
    axes.axvspan(0.5, 1, alpha=0.2)
    axes.set(xlabel="step", ylabel="nats", title=title)
    axes.legend()
    return figure


def figure_text(**more: str) -> str:
    arguments = {
        "alt": "Loss falls <from> 3 to 1.5.",
        "caption": 'Loss & "steps".',
        "scale": "tiny",
        **more,
    }
    figure = simple_figure()
    try:
        return show.figure_html(figure, **arguments)
    finally:
        plt.close(figure)


def figure_soup(**more: str) -> BeautifulSoup:
    return BeautifulSoup(figure_text(**more), "html.parser")


def test_importing_show_imports_neither_matplotlib_nor_pandas():
    check = (
        "import sys, moxin_lab.lab.show; "
        "print([m for m in ('matplotlib', 'pandas', 'IPython') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def on_a_page(html: str) -> BeautifulSoup:
    """A figure as the site shows it."""
    return BeautifulSoup(pictures.inlined(html), "html.parser")


def test_figure_in_a_notebook_is_one_image_that_needs_no_trust():
    soup = figure_soup()
    (image,) = soup.find_all("img")
    assert image["alt"] == "Loss falls <from> 3 to 1.5." and not soup.find("svg")
    head, content = image["src"].split(",")
    assert head == "data:image/svg+xml;base64"
    svg = base64.b64decode(content).decode()
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    # What JupyterLab's and a code host's sanitisers leave of a notebook that is not trusted.
    kept = bleach.clean(
        str(soup),
        tags={"figure", "div", "img", "figcaption", "span"},
        attributes={"img": ["src", "alt", "width", "height"]},
        protocols={"data"},
    )
    assert image["src"] in kept and image["alt"] in BeautifulSoup(kept, "html.parser").img["alt"]


def test_figure_on_a_page_is_the_same_picture_inline_named_by_its_text_alternative():
    soup = on_a_page(figure_text())
    svg = soup.find("svg")
    assert svg["role"] == "img" and not soup.find("img")
    assert soup.find(id=svg["aria-labelledby"]).get_text() == "Loss falls <from> 3 to 1.5."
    assert svg.find("text", string=re.compile("loss|step", re.IGNORECASE))


def test_pictures_of_others_are_left_alone():
    foreign = '<img alt="x" src="data:image/svg+xml;base64,PHN2Zy8+">'
    assert pictures.inlined(foreign) == foreign


def test_figure_caption_ends_with_the_scale():
    assert figure_soup().find("figcaption").get_text() == 'Loss & "steps". tiny scale'


def test_figure_has_the_same_bytes_each_time_and_no_date():
    first, second = str(figure_soup()), str(figure_soup())
    assert first == second
    assert not re.search(r"20\d\d-\d\d-\d\d|<metadata|matplotlib", first)


def test_figure_refers_to_nothing_outside_itself():
    text = str(on_a_page(figure_text()))
    assert "http" not in text and "<style" not in text and "xmlns" not in text


def test_every_reference_in_a_figure_has_its_target_and_ids_differ_between_figures():
    first, second = figure_text(), figure_text(alt="Another picture.")
    soup = on_a_page(first + second)
    ids = [element["id"] for element in soup.find_all(id=True)]
    used = re.findall(r'(?:href="|url\()#([^")]+)', str(soup))
    assert used and set(used) <= set(ids) and len(ids) == len(set(ids))


def test_figure_with_an_image_in_it_keeps_the_image():
    figure, axes = plt.subplots()
    axes.imshow(np.eye(3))
    html = show.figure_html(figure, alt="a", caption="c", scale="tiny")
    plt.close(figure)
    assert 'href="data:image/png;base64,' in str(on_a_page(html))


def test_figure_keeps_small_numbers_in_its_labels():
    figure, axes = plt.subplots()
    axes.plot([0.0001234, 0.0005678])
    axes.text(0, 0.0002, "0.0001234")
    html = show.figure_html(figure, alt="a", caption="c", scale="tiny")
    plt.close(figure)
    assert ">0.0001234<" in str(on_a_page(html))


def test_what_has_no_scale_has_no_badge():
    soup = figure_soup(scale="")
    assert soup.find("figcaption").get_text() == 'Loss & "steps".' and not soup.find(class_="scale")


def test_figure_too_large_for_a_page_says_so():
    figure, axes = plt.subplots()
    axes.scatter(range(3000), range(3000))
    with pytest.warns(UserWarning, match="plot fewer points"):
        show.figure_html(figure, alt="a", caption="c", scale="tiny")
    plt.close(figure)


@pytest.mark.parametrize("missing", ["alt", "caption"])
def test_figure_without_alt_text_or_caption_is_refused(missing):
    with pytest.raises(ValueError, match=missing):
        figure_soup(**{missing: " "})


def test_shown_figure_is_closed():
    figure = simple_figure()
    show.figure_output(figure, alt="a", caption="c", scale="tiny")
    assert not plt.fignum_exists(figure.number)


FRAME = pd.DataFrame(
    {
        "language": ["en", "zh"],
        "documents": [12345, 7],
        "share": [0.91234, np.nan],
        "p": [-0.00001, 0.5],
        "ok": [True, False],
    }
)


def table_soup(frame: pd.DataFrame = FRAME, **more) -> BeautifulSoup:
    return BeautifulSoup(
        show.table_html(frame, **{"caption": "What <was> kept.", "scale": "tiny", **more}),
        "html.parser",
    )


def test_table_begins_with_a_caption_that_ends_with_the_scale():
    table = table_soup().find("table")
    assert table.find(True).name == "caption"
    assert table.caption.get_text() == "What <was> kept. tiny scale"


def test_every_table_header_has_a_scope_and_text_columns_head_their_rows():
    soup = table_soup()
    assert [th["scope"] for th in soup.find_all("th")] == ["col"] * 5 + ["row"] * 2
    assert [th.get_text() for th in soup.tbody.find_all("th")] == ["en", "zh"]


def test_numbers_are_aligned_right_and_words_left():
    styles = [cell["style"] for cell in table_soup().tbody.tr.find_all(["th", "td"])]
    assert styles == [
        "text-align:left",
        "text-align:right",
        "text-align:right",
        "text-align:right",
        "text-align:left",
    ]


def test_cells_have_readable_numbers():
    rows = [
        [cell.get_text() for cell in row.find_all(["th", "td"])]
        for row in table_soup().tbody.find_all("tr")
    ]
    assert rows == [["en", "12,345", "0.912", "−1.0e−05", "yes"], ["zh", "7", "–", "0.500", "no"]]


def test_a_column_separates_thousands_in_all_of_its_numbers_or_in_none():
    soup = table_soup(pd.DataFrame({"large": [3072, 10240], "small": [914.5, 497.0]}))
    texts = [cell.get_text() for cell in soup.find_all("td")]
    assert texts == ["3,072", "914.500", "10,240", "497.000"]
    assert show.format_value(3072) == f"{3072:,}"  # as figures write it


def test_only_columns_of_long_words_wrap():
    soup = table_soup(
        pd.DataFrame(
            {
                "name": ["a", "b"],
                "note": ["short", "words that go on for longer than a line of a table"],
            }
        )
    )
    assert [cell.get("class") for cell in soup.tbody.tr.find_all(["th", "td"])] == [None, ["wrap"]]


def test_decimals_can_differ_by_column():
    soup = table_soup(decimals={"share": 1})
    assert [cell.get_text() for cell in soup.tbody.tr.find_all(["th", "td"])][2] == "0.9"


def test_named_index_becomes_row_headers():
    soup = table_soup(FRAME.set_index("language"))
    assert soup.thead.th.get_text() == "language"
    assert [th.get_text() for th in soup.tbody.find_all("th")] == ["en", "zh"]


def test_numbering_left_by_a_filter_is_not_shown():
    assert len(table_soup(FRAME[FRAME.documents < 100]).tbody.tr.find_all(["th", "td"])) == 5


def test_index_of_words_without_a_name_leaves_no_empty_header():
    soup = table_soup(FRAME.set_index("language").rename_axis(None))
    assert all(th.get_text() for th in soup.find_all("th"))


def test_several_index_and_column_levels_are_spelled_out():
    frame = FRAME.pivot_table(
        index=["language", "ok"], values=["share", "documents"], aggfunc=["mean"]
    )
    soup = table_soup(frame)
    assert "mean · documents" in [th.get_text() for th in soup.thead.find_all("th")]
    assert len(soup.tbody.tr.find_all("th")) == 2


def test_empty_table_and_missing_caption_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        table_soup(FRAME[:0])
    with pytest.raises(ValueError, match="caption"):
        table_soup(caption="")


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (4.1234567, (4.0, 4.2), "4.123 [4.000, 4.200]"),
        (8.0, None, "8.0"),
        (8114180096, None, "8,114,180,096"),
        (0.012345, None, "0.01235"),
        (0.0, None, "0.0"),
        (123456.7, None, "123,457"),
        (2e-9, None, "2.0e−09"),
        (None, None, "–"),
        ("Class III", None, "Class III"),
    ],
)
def test_measured_numbers_have_four_significant_digits(value, interval, text):
    assert show.format_number(value, interval) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(12, "12 bytes"), (7_340_032, "7.00 MiB"), (1_503_238_553, "1.40 GiB"), (None, "")],
)
def test_sizes_are_binary_units(size, text):
    assert show.format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (71.25, "1 min 11 s"), (7300, "2 h 1 min"), (None, "")]
)
def test_durations_are_in_seconds_minutes_or_hours(seconds, text):
    assert show.format_seconds(seconds) == text


@pytest.mark.parametrize(
    "package",
    [
        "data",
        "tokenizer",
        "model",
        "pretraining",
        "posttraining",
        "reasoning",
        "vision",
        "evaluation",
        "serving",
    ],
)
def test_no_figure_of_a_notebook_is_wider_than_a_telephone_can_show(repository, package):
    """Letters of 10 points in a wider one are smaller than 9 pixels there."""
    files = sorted((repository / "moxin_lab" / package).glob("*figures.py"))
    texts = [path.read_text(encoding="utf-8") for path in files]
    widths = [w for text in texts for w in re.findall(r"figsize=\(([\w.]+),", text)]
    assert len(widths) >= 3 or package == "reasoning"
    assert all(w.endswith("PHONE_WIDTH") or float(w) <= show.PHONE_WIDTH for w in widths)
    assert not any("subplots()" in text for text in texts), "such a figure is as wide as the page"
