"""A browser without a network shows the whole report: on a telephone, on a desktop, by keyboard,
and to a screen reader.

Needs the system's Chromium (`apt-get install chromium`, or MOXIN_CHROMIUM naming another);
`.ci/run` installs it. The pages are those of the two examples in tests/lab/example_runs.py (of the
second those of documents, claims and a comparison), of the four stages in example_stages.py with
every figure and table that real ones have, and, where it is built, of reports/tiny.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from moxin_lab.lab import comparison, comparison_page, site
from tests.browser import example_stages
from tests.browser.chromium import NEEDS_CHROMIUM
from tests.lab import example_runs

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = NEEDS_CHROMIUM
WIDTHS = (360, 768, 1280, 1920)
LARGEST_PAGE = 600_000
"""Bytes; a page of a report may be sent by mail and opened on a telephone. Our choice."""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lab")
    example_runs.write_example(root)
    return site.build_site(root, "tiny").parent


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of the whole example the front page, bills, summaries, a comparison, and of cards and
    deviations the lists and the two largest each.
    """
    root = example_runs.write_whole_example(tmp_path_factory.mktemp("lab"), REPOSITORY)
    out = site.build_site(root, "tiny").parent
    example_runs.write_records(root, "again", by=1.02)
    runs = [comparison.read_run(root, name) for name in ("tiny", "again")]
    comparison_page.write(comparison.compare(*runs), out / "compare.html")
    lists = ("index", "bills", "summaries", "data", "deviations", "compare")
    chosen = [out / f"{name}.html" for name in lists]
    for kind in ("data", "deviation", "summary"):
        chosen += sorted(out.glob(f"{kind}-*.html"), key=lambda page: page.stat().st_size)[-2:]
    return chosen


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return example_stages.write(tmp_path_factory.mktemp("lab"))


@pytest.fixture(params=["example", "stages", "reports/tiny"])
def pages(request: pytest.FixtureRequest) -> list[Path]:
    return pages_of(request)


@pytest.fixture(params=["example", "stages", "documents", "reports/tiny"])
def every_page(request: pytest.FixtureRequest) -> list[Path]:
    """For what a wide table breaks: the documents too, without a run of the lab."""
    return pages_of(request)


def pages_of(request: pytest.FixtureRequest) -> list[Path]:
    if request.param in ("stages", "documents"):
        return request.getfixturevalue(request.param)
    folder = REPOSITORY / "reports" / "tiny"
    if request.param == "example":
        folder = request.getfixturevalue("example")
    found = sorted(folder.glob("*.html"))
    if not found:
        pytest.skip("reports/tiny is not built here; `make reproduce` builds it")
    return found


class Watched:
    """A page that records its errors."""

    def __init__(self, browser, width: int, **more) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 800}, offline=True, **more
        )
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "requestfailed", lambda request: self.complaints.append(f"failed: {request.url}")
        )


@pytest.fixture
def watch(browser) -> Iterator:
    opened: list[Watched] = []

    def open_page(path: Path, width: int = 1280, **more) -> Watched:
        watched = Watched(browser, width, **more)
        opened.append(watched)
        watched.page.goto(path.as_uri())
        return watched

    yield open_page
    for watched in opened:
        watched.context.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_load_only_themselves_and_fit_the_window(every_page, watch, width):
    for path in every_page:
        watched = watch(path, width)
        watched.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= width, path.name
        watched.page.evaluate("window.scrollTo(500, 0)")
        assert watched.page.evaluate("window.scrollX") == 0, path.name
        assert watched.requests == [path.as_uri()]
        assert watched.complaints == []


def test_pages_print_without_complaint(pages, watch):
    for path in pages:
        watched = watch(path)
        assert watched.page.pdf(format="A4").startswith(b"%PDF")
        assert watched.complaints == []


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_pages_have_no_serious_fault_by_axe(pages, browser, width, mode):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe-playwright-python is in the extra `dev`: make test installs it",
    ).Axe()
    faults = []
    for path in pages:
        # the page's policy forbids scripts, axe's too
        context = browser.new_context(
            viewport={"width": width, "height": 800},
            offline=True,
            color_scheme=mode,
            bypass_csp=True,
        )
        page = context.new_page()
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        found = axe.run(page, options={"resultTypes": ["violations"]}).response
        assert len(found["passes"]) > 10, f"axe looked at nothing in {path.name}"
        faults += [
            f"{path.name}: {fault['id']}: {fault['nodes'][0]['html'][:200]}"
            for fault in found["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
        context.close()
    assert faults == []


@pytest.mark.parametrize("width", [380, 1280])
def test_ordered_tables_have_no_serious_fault_by_axe(stages, browser, width):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe-playwright-python is in the extra `dev`: make test installs it",
    ).Axe()
    context = browser.new_context(viewport={"width": width, "height": 800}, bypass_csp=True)
    page = context.new_page()
    page.goto(stages[-1].as_uri())
    page.evaluate(
        """() => {
          document.querySelectorAll('details').forEach(d => d.open = true);
          document.querySelectorAll('.sortable select').forEach(e => e.selectedIndex = 1);
        }"""
    )
    found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
    context.close()
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []


def test_no_page_is_too_large_to_be_sent(every_page):
    assert {p.name: p.stat().st_size for p in every_page if p.stat().st_size > LARGEST_PAGE} == {}


def test_printed_pages_show_all_columns_of_a_table(every_page, watch):
    for path in every_page:
        page = watch(path, 794).page  # the width of A4 at 96 pixels per inch
        page.emulate_media(media="print")
        assert page.evaluate("document.documentElement.scrollWidth") <= 794, path.name
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= 794, path.name


def test_a_term_opens_its_explanation_by_keyboard_and_closes_again(example, watch):
    page = watch(example / "01_data_curation.html").page
    term = page.locator("button.term").first
    note = page.locator(f"#{term.get_attribute('popovertarget')}")
    assert not note.is_visible()
    term.focus()
    page.keyboard.press("Enter")
    assert note.is_visible()
    page.keyboard.press("Escape")
    assert not note.is_visible()


def test_a_telephone_shows_every_value_of_a_wide_table_without_scrolling(example, watch):
    page = watch(example / "01_data_curation.html", 380).page
    table = page.get_by_role("table", name="Documents kept.")
    assert table.get_by_role("rowheader", name="English").is_visible()
    for cell in table.get_by_role("cell").all():
        box = cell.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 380
    shown = table.locator("td").first.evaluate("e => getComputedStyle(e, '::before').content")
    assert shown == '"documents kept after every filter"'


@pytest.mark.parametrize("kind", ["", "wrap"])
def test_a_telephone_breaks_no_name_of_a_value_letter_by_letter(example, watch, kind):
    page = watch(example / "01_data_curation.html", 380).page
    cell = page.get_by_role("table", name="Documents kept.").locator("td").first
    cell.evaluate("(e, kind) => { e.textContent = 'words '.repeat(60); e.className = kind }", kind)
    name = cell.evaluate(
        "e => { const s = getComputedStyle(e, '::before'); return [s.width, s.height] }"
    )
    width, height = (float(length.removesuffix("px")) for length in name)
    assert width > 80 and height < 80
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


@pytest.mark.parametrize("width", [380, 1280])
def test_pictures_are_seen_whole(pages, watch, width):
    for path in pages:
        wide = watch(path, width).page.evaluate(
            """width => [...document.querySelectorAll('main figure svg, main figure img')]
                .map(e => e.getBoundingClientRect())
                .filter(b => b.width && (b.left < 0 || b.right > width)).length""",
            width,
        )
        assert wide == 0, path.name


def test_keyboard_goes_from_the_first_tab_to_the_text(pages, watch):
    for path in pages:
        page = watch(path, 360).page
        page.keyboard.press("Tab")
        skip = page.locator(":focus")
        assert skip.inner_text() == "Skip to the text"
        assert skip.bounding_box()["x"] >= 0  # it comes into view when it has the focus
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"


def test_folded_code_opens_by_keyboard(example, watch):
    page = watch(example / "01_data_curation.html").page
    block = page.locator("details.code").first
    assert not block.locator("pre").is_visible()
    block.locator("summary").focus()
    page.keyboard.press("Enter")
    assert block.locator("pre").is_visible()


def test_contents_are_folded_on_a_telephone_and_open_on_a_desktop(example, watch):
    path = example / "01_data_curation.html"
    phone = watch(path, 360).page
    assert not phone.get_by_role("navigation", name="Pages").is_visible()
    phone.get_by_text("Contents", exact=True).click()
    assert phone.get_by_role("navigation", name="Pages").is_visible()
    assert watch(path, 1280).page.get_by_role("navigation", name="Pages").is_visible()


def test_following_the_pages_walks_the_site(example, watch):
    page = watch(example / "index.html").page
    page.get_by_role("main").get_by_role("link", name="Data curation").first.click()
    assert page.title().startswith("01 · Data curation")
    page.get_by_role("link", name="02 The routed tokenizer →").click()
    assert page.get_by_role("heading", name="This stage did not finish").is_visible()
    page.get_by_role("link", name="Moxin Lab").click()
    assert page.title() == "Moxin Lab: report at tiny scale"


def test_accessibility_tree_names_pictures_tables_and_formulas(example, watch):
    page = watch(example / "01_data_curation.html").page
    assert page.get_by_role("img", name="Bits per byte over 300 steps").is_visible()
    table = page.get_by_role("table", name="Documents kept.")
    assert table.get_by_role("columnheader").count() == 5
    assert table.get_by_role("rowheader", name="English").is_visible()
    assert page.get_by_role("heading", level=1).count() == 1
    for landmark in ("main", "contentinfo", "banner"):
        assert page.get_by_role(landmark).count() == 1, landmark
    assert page.locator("math").first.bounding_box()["height"] > 10  # it is drawn, not merely there


def test_claims_stay_a_table_when_a_telephone_stacks_them(example, watch):
    page = watch(example / "index.html", 360).page
    table = page.get_by_role("table", name="Claims with a verdict at this scale")
    assert table.get_by_role("rowheader").count() >= 1
    assert table.get_by_role("cell", name="reproduced").count() == 1


# every text node's colour against the first background behind it, by WCAG 2.2's formula for
# relative luminance
CONTRAST = """() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) =>
    .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const ground = element => {
    const colour = numbers(getComputedStyle(element).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
    return element.parentElement ? ground(element.parentElement) : [255, 255, 255];
  };
  document.querySelectorAll('details').forEach(details => details.open = true);
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || element.closest('svg, style')) continue;
    const pair = [luminance(numbers(getComputedStyle(element).color)), luminance(ground(element))];
    const ratio = (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
    if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${element.className} ${text.slice(0, 40)}`);
  }
  return low;
}"""


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_aa_requires(pages, watch, mode):
    for path in pages:
        assert watch(path, color_scheme=mode).page.evaluate(CONTRAST) == [], path.name


LETTERS = """() => [...document.querySelectorAll('main figure svg text')].map(text => {
  const svg = text.ownerSVGElement;
  const shrunk = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return [text.textContent.trim(), parseFloat(getComputedStyle(text).fontSize) * shrunk];
}).filter(([words, size]) => words && 0 < size && size < 9)"""  # 0: not shown at this width


def test_a_telephone_shows_letters_of_nine_pixels_in_every_figure(stages, documents, watch):
    for path in [*stages, *documents]:
        page = watch(path, 380).page
        drawn = page.locator("main figure svg text").count()
        assert drawn > 20 or path in documents, path.name
        assert page.evaluate(LETTERS) == [], path.name
    assert any(path.name == "compare.html" for path in documents)


# a table that is wider than the window lies in a box that the keyboard scrolls, with a shadow at
# the edge; and on a telephone one of many columns is stacked, so that nothing is beyond the edge
BEYOND = """width => [...document.querySelectorAll('main table, footer table')].filter(table => {
  const box = table.closest('.scroll');
  if (table.getBoundingClientRect().right <= width) return false;
  const style = box && getComputedStyle(box);
  return table.rows[0].cells.length > 3 && width < 640 || !box || box.tabIndex !== 0
    || style.overflowX !== 'auto' || !style.backgroundImage.includes('gradient');
}).map(table => table.caption?.textContent)"""


@pytest.mark.parametrize("width", [380, 1280])
def test_wide_tables_are_stacked_or_scroll_in_a_box_with_a_shadow(every_page, watch, width):
    for path in every_page:
        page = watch(path, width).page
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate(BEYOND, width) == [], path.name


def sortable(page, caption: str):
    """The list of orders and the table of this caption on a page whose folded tables are open."""
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    block = page.locator(".sortable").filter(has=page.get_by_role("table", name=caption))
    return block.get_by_role("combobox"), block.get_by_role("table")


def seen_rows(table) -> list[str]:
    """Names of the rows from top to bottom, as the eye finds them."""
    rows = table.locator("tbody th").evaluate_all(
        "names => names.map(e => [e.getBoundingClientRect().top, e.textContent])"
    )
    return [name for _, name in sorted(rows)]


def read(page, caption: str, role: str) -> list[str]:
    """Names of a table's parts of this role in the order in which a screen reader reads them."""
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    known = {node["nodeId"]: node for node in nodes}

    def said(node, what):
        return str(node.get(what, {}).get("value", ""))

    def below(node):
        yield node
        for child in node.get("childIds", []):
            yield from below(known[child]) if child in known else ()

    table = next(n for n in nodes if said(n, "role") == "table" and caption in said(n, "name"))
    return [said(node, "name") for node in below(table) if said(node, "role") == role]


@pytest.mark.parametrize("width", [380, 1280])
def test_the_reader_orders_the_rows_of_a_table_by_keyboard(stages, watch, width):
    watched = watch(stages[-1], width)
    page, caption = watched.page, example_stages.CHECKPOINTS
    orders, table = sortable(page, caption)
    given = seen_rows(table)
    assert given[:3] == ["chance", "majority", "untrained"] == read(page, caption, "rowheader")[:3]
    orders.focus()
    page.keyboard.type("held-out cloze, h")  # as a list is chosen from without a pointer
    assert orders.input_value() == "d1"
    highest = seen_rows(table)
    assert highest[:2] == ["DPO", "SFT"] and highest[-1] == "majority"  # which has no such value
    assert sorted(highest) == sorted(given)
    orders.select_option("a1")
    assert seen_rows(table)[:2] == ["CoT-SFT", "GRPO"] and seen_rows(table)[-1] == "majority"
    orders.select_option("")
    assert seen_rows(table) == given
    assert watched.complaints == []


@pytest.mark.parametrize("width", [380, 1280])
def test_a_screen_reader_reads_rows_in_the_order_chosen_and_hears_which(stages, watch, width):
    page, caption = watch(stages[-1], width).page, example_stages.CHECKPOINTS
    orders, table = sortable(page, caption)
    page.evaluate(  # of a whole page the tree takes seconds
        """caption => document.querySelectorAll('main section').forEach(e =>
            e.textContent.includes(caption) || e.remove())""",
        caption,
    )
    assert orders.get_attribute("aria-label").startswith(f"Order of the rows: {caption}")
    for value, word in (("d1", "descending"), ("a1", "ascending")):
        orders.select_option(value)
        assert read(page, caption, "rowheader") == seen_rows(table)
        heads = read(page, caption, "columnheader")
        assert [head for head in heads if "scending" in head] == [f"held-out cloze {word}"]
        assert table.get_by_role("rowheader").count() == len(seen_rows(table))
        assert table.get_by_role("cell").count() == 5 * len(seen_rows(table))


def test_a_telephone_names_each_cell_of_a_row_with_several_names(stages, watch):
    page = watch(stages[2], 380).page
    page.locator("summary", has_text="First minus second in pass@k").click()  # folded, as long
    table = page.get_by_role("table", name="First minus second in pass@k")
    names = table.locator("tbody tr").first.locator("th")
    assert names.count() == 4
    for cell, name in zip(names.all(), ("first", "second", "group", "k"), strict=True):
        assert cell.evaluate("e => getComputedStyle(e, '::before').content") == f'"{name}"'
        box = cell.bounding_box()
        assert box["height"] < 40 and box["x"] + box["width"] <= 380
    assert table.get_by_role("rowheader").count() == 4 * table.locator("tbody tr").count()


def test_published_tables_are_ordered_by_each_of_their_columns(stages, watch):
    page = watch(stages[-1]).page
    orders, table = sortable(page, "Published, not attempted at this scale (tiny). Table 2,")
    assert orders.locator("option").count() > 10
    orders.select_option(label="Ave, highest first")
    cells = table.locator("tbody tr").evaluate_all(
        """rows => rows.map(e => [e.getBoundingClientRect().top, e.lastElementChild.textContent])
            .sort((a, b) => a[0] - b[0]).map(([_, text]) => parseFloat(text))"""
    )
    assert len(cells) > 6 and cells == sorted(cells, reverse=True)


@pytest.mark.parametrize("width", [380, 1280])
def test_an_ordered_table_keeps_its_columns_and_its_page(stages, watch, width):
    """Every long table, in its last order: each cell stays under its head, nothing overflows."""
    for path in stages:
        page = watch(path, width).page
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.locator(".sortable select").count() >= 2, path.name
        for orders in page.locator(".sortable select").all():
            orders.select_option(index=orders.locator("option").count() - 1)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
        assert page.evaluate(BEYOND, width) == [], path.name
        astray = page.evaluate(
            """() => [...document.querySelectorAll('.sortable table')].filter(table => {
                if (getComputedStyle(table).display === 'block') return false;  // stacked
                const lefts = row => [...row.children].map(e => e.getBoundingClientRect().left);
                const heads = lefts(table.tHead.rows[0]);
                return [...table.tBodies[0].rows].some(row =>
                    lefts(row).some((left, i) => Math.abs(left - heads[i]) > 1));
            }).map(table => table.caption.textContent)"""
        )
        assert astray == [], path.name


def test_paper_shows_the_order_chosen_and_no_list_of_orders(stages, watch):
    for path in stages:
        page = watch(path, 794).page
        for orders in page.locator(".sortable select").all():
            orders.evaluate("e => { e.selectedIndex = e.options.length - 1 }")
        page.emulate_media(media="print")
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert not any(each.is_visible() for each in page.locator(".sortable select").all())
        assert page.evaluate("document.documentElement.scrollWidth") <= 794, path.name
        assert page.evaluate(BEYOND, 794) == [], path.name
        assert page.pdf(format="A4").startswith(b"%PDF")
    _, table = sortable(page, example_stages.CHECKPOINTS)
    assert seen_rows(table)[-3:] == ["SmolLM2-135M", "chance", "majority"]  # without bits per byte
