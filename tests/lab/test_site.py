"""Guarantees of the report: no script, no network, readable by a screen reader; failures,
provenance and verdicts are shown.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup

from moxin_lab.lab import captions, cells, show, site
from moxin_lab.lab.artifacts import LabError
from moxin_lab.stages import STAGES
from tests.lab import example_runs

PAGES = ("index", "01_data_curation", "02_tokenizer")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lab")
    example_runs.write_example(root)
    site.build_site(root, "tiny")
    return root


def page(root: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup(
        (root / "reports" / "tiny" / f"{name}.html").read_text(encoding="utf-8"), "html.parser"
    )


def rebuilt(tmp_path: Path, notebook: list[dict], **record_fields) -> BeautifulSoup:
    """The page of a stage 01 with these cells."""
    example_runs.write_example(tmp_path)
    folder = tmp_path / "runs" / "tiny" / "01_data_curation"
    example_runs.write_notebook(folder / "notebook.ipynb", notebook)
    if record_fields:
        record = {**example_runs.record("01_data_curation", "Data curation"), **record_fields}
        (folder / "stage.json").write_text(json.dumps(record), encoding="utf-8")
    site.build_site(tmp_path, "tiny")
    return page(tmp_path, "01_data_curation")


# ---- guarantees of every page


def check_page(soup: BeautifulSoup, folder: Path) -> None:
    """The guarantees of any page of any site; `folder` is where its relative links lead."""
    assert not soup.find_all(["script", "iframe", "object", "embed", "link", "base", "form"])
    for element in soup.find_all(True):
        for name, value in element.attrs.items():
            assert not name.startswith(("on", "xmlns")), (element.name, name)
            if name in ("src", "href", "xlink:href", "srcset", "poster", "action", "data"):
                assert not re.match(r"[a-z]+:(?!image/)|//", value), (element.name, value)
    for style in soup.find_all("style"):
        assert "url(" not in style.get_text() and "@import" not in style.get_text()
    ids = [element["id"] for element in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    for anchor in soup.find_all("a"):
        path, _, fragment = anchor["href"].partition("#")
        assert (folder / path).exists() if path else fragment in ids, anchor["href"]
    for image in soup.find_all("img"):
        assert image["alt"].strip()
    for svg in soup.find_all("svg"):
        named_by = svg.get("aria-labelledby")
        assert svg["role"] == "img" and (
            soup.find(id=named_by).get_text().strip() if named_by else svg["aria-label"]
        )
    levels = [int(heading.name[1]) for heading in soup.find_all(re.compile("^h[1-6]$"))]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), levels
    for cell in soup.find_all("th"):
        assert cell.get("scope"), cell
    for name in ("main", "footer", "nav"):
        assert soup.find(name), name
    assert soup.find("a", class_="skip")["href"] == "#main" and soup.find("main")["id"] == "main"
    assert soup.html["lang"] == "en" and soup.title.get_text().strip()
    assert soup.find(class_="scale").get_text().endswith(" scale")


@pytest.mark.parametrize("name", PAGES)
def test_page_runs_nothing_loads_nothing_and_names_everything(built, name):
    check_page(page(built, name), built / "reports" / "tiny")


@pytest.mark.parametrize("name", PAGES)
def test_page_forbids_the_browser_to_load_anything(built, name):
    policy = page(built, name).find("meta", attrs={"http-equiv": "Content-Security-Policy"})[
        "content"
    ]
    assert "default-src 'none'" in policy and "http" not in policy


def test_same_records_give_the_same_bytes_in_another_folder_and_process(built, tmp_path):
    example_runs.write_example(tmp_path)
    command = (
        "import sys, pathlib; from moxin_lab.lab import site; "
        "site.build_site(pathlib.Path(sys.argv[1]), 'tiny')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", command, str(tmp_path)], check=True, env=environment)
    for name in PAGES:
        path = Path("reports", "tiny", f"{name}.html")
        assert (built / path).read_bytes() == (tmp_path / path).read_bytes()


def test_pages_fit_their_size_budget_even_with_the_projects_own_claims(tmp_path, repository):
    example_runs.write_example(tmp_path)
    path = tmp_path / "papers" / "claims.yml"
    real = yaml.safe_load((repository / "papers" / "claims.yml").read_text(encoding="utf-8"))
    example = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps({**real, "claims": real["claims"] + example["claims"]}), encoding="utf-8"
    )
    index = site.build_site(tmp_path, "tiny")
    assert index.stat().st_size <= 150_000
    assert all(path.stat().st_size <= 600_000 for path in index.parent.iterdir())


def test_importing_the_site_imports_no_renderer():
    renderers = "('mistune', 'bs4', 'jinja2', 'nbconvert', 'torch')"
    check = f"import sys, moxin_lab.lab.site; print([m for m in {renderers} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- rendering of a notebook


def test_mathematics_becomes_mathml_that_names_itself(built):
    soup = page(built, "01_data_curation")
    formulas = soup.find_all("math")
    assert len(formulas) == 4
    assert formulas[0]["alttext"] == r"\sqrt{d_k}" and formulas[0].find("msqrt")
    assert formulas[1]["alttext"] == "a +\nb"
    assert formulas[2]["display"] == "block" and formulas[2].find("munderover")
    assert "$" not in soup.find("main").get_text().replace("$5 and $6", "")


def test_mathematics_that_cannot_be_converted_is_shown_as_source_and_logged(caplog):
    for latex in (r"x_", r"\nosuchcommand{x}", r"\left( x"):
        assert cells.mathml(latex) == f'<code class="math-source">{latex}</code>'
        assert latex in caplog.text


def test_all_mathematics_in_the_projects_notebooks_can_be_converted(repository, caplog):
    notebooks = sorted((repository / "notebooks").glob("*.ipynb"))
    if not notebooks:
        pytest.skip("there is no notebook in notebooks/ yet")
    for path in notebooks:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                cells.markdown_html("".join(cell["source"]))
    assert not caplog.records, caplog.text


def test_code_and_printed_output_are_folded(built):
    soup = page(built, "01_data_curation")
    main = soup.find("main")
    for block in main.find_all("pre"):
        folded = block.find_parent("details")
        assert folded is not None or "fence" in block.get("class", []) or block.get_text() == "2"
    assert all(not details.has_attr("open") for details in soup.find_all("details"))
    source = main.find("details", class_="code").pre.get_text()
    assert (
        source == 'scale = "tiny"'
    )  # the injected parameters; the defaults that they replace are omitted


def test_long_printed_output_keeps_its_ends_and_overwritten_lines_their_last_state(built):
    text = page(built, "01_data_curation").find("details", class_="printed").pre.get_text()
    lines = text.split("\n")
    assert lines[0] == "step 3" and lines[-1] == "line 99"
    assert "[61 lines omitted]" in lines and len(lines) == 41


def test_text_from_the_notebook_is_not_taken_for_markup(built):
    assert "a <rather> long column name" in page(built, "01_data_curation").find("main").get_text()
    assert "<b>Vision</b> works." in page(built, "index").find("main").get_text()


def test_links_stay_inside_the_site_and_other_addresses_become_text(built):
    main = page(built, "01_data_curation").find("main")
    assert main.find("a", string="the tokenizer")["href"] == "02_tokenizer.html"
    assert "the claims (../papers/claims.yml)" in main.get_text()
    assert "the report (https://example.org/paper)" in main.get_text()


HOSTILE = """
<script>alert(1)</script><img src="https://example.org/x.png"><img src="x.png" alt="a cat"><iframe src="//example.org"></iframe>
<p onclick="f()" style="background:url(https://example.org)">text</p><a href="javascript:f()">go</a><style>@import "x";</style>
<svg xmlns="http://www.w3.org/2000/svg"><a xlink:href="https://example.org"><image href="https://example.org/y.png"/></a></svg>
<form action="https://example.org"><input></form><link rel="stylesheet" href="x.css"><object data="x"></object>
"""


def test_hostile_markup_in_text_and_outputs_is_removed(tmp_path):
    soup = rebuilt(
        tmp_path,
        [
            example_runs.words("# T\n\n" + HOSTILE),
            example_runs.code("x", [example_runs.html(HOSTILE)]),
        ],
    )
    check_page(soup, tmp_path / "reports" / "tiny")
    assert (
        "alert" not in soup.get_text()
        and "[picture not part of this page: a cat]" in soup.get_text()
    )


def test_pictures_take_their_alternative_from_the_output_or_say_there_is_none(tmp_path):
    def picture(**metadata):
        return {
            "output_type": "display_data",
            "metadata": metadata,
            "data": {"image/png": "iVBORw0KGgo=\n"},
        }

    outputs = [picture(**{"image/png": {"alt": 'A "quoted" curve.'}}), picture()]
    soup = rebuilt(tmp_path, [example_runs.words("# T"), example_runs.code("x", outputs)])
    alternatives = [image["alt"] for image in soup.find_all("img")]
    assert alternatives == [
        'A "quoted" curve.',
        "Picture made by code cell 2; the notebook gives no description of it.",
    ]
    check_page(soup, tmp_path / "reports" / "tiny")


def test_notebook_without_or_with_several_titles_gets_exactly_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert rebuilt(tmp_path / "a", [example_runs.words("Text.")]).h1.get_text() == "Data curation"
    soup = rebuilt(tmp_path / "b", [example_runs.words("# One\n\n# Two\n\n## Two\n\nText.")])
    assert soup.h1.get_text() == "One"
    assert [heading["id"] for heading in soup.find("main").find_all("h2")] == [
        "Two",
        "Two-2",
        "verdicts",
    ]


def test_contents_lead_to_every_section(built):
    soup = page(built, "01_data_curation")
    contents = soup.find("nav", attrs={"aria-label": "On this page"})
    assert [a.get_text() for a in contents.find_all("a")] == [
        "The funnel",
        "By language",
        "What this does not show",
        "Verdicts of this stage",
    ]
    assert contents.find("a")["href"] == "#The-funnel"  # as JupyterLab names it


# ---- records, claims, provenance


def test_failed_stage_shows_its_error_first_and_what_to_do(built):
    main = page(built, "02_tokenizer").find("main")
    assert [element.name for element in main.find_all(["h1", "h2"])][:2] == ["h1", "h2"]
    failure = main.find(class_="failure")
    assert "train.parquet has no column <text>" in failure.get_text()
    assert "moxin-lab run --scale tiny --from 02" in failure.get_text()
    traceback = failure.find("details").get_text()
    assert (
        "File moxin_lab/x.py:3" in traceback
        and "\x1b" not in traceback
        and str(built) not in traceback
    )
    assert main.find(id=failure.find("a")["href"][1:]).find(class_="stopped")
    assert "An Exception was encountered" not in main.get_text()


def test_stage_killed_without_an_exception_says_so(tmp_path):
    example_runs.write_example(tmp_path)
    example_runs.write_notebook(
        tmp_path / "runs/tiny/02_tokenizer/failed.ipynb",
        [example_runs.words("# 02"), example_runs.code("f()")],
    )
    site.build_site(tmp_path, "tiny")
    assert "left no exception" in page(tmp_path, "02_tokenizer").find(class_="failure").get_text()


def test_failed_run_does_not_carry_the_record_of_an_earlier_good_one(tmp_path):
    example_runs.write_example(tmp_path)
    folder = tmp_path / "runs" / "tiny" / "01_data_curation"
    example_runs.write_notebook(folder / "failed.ipynb", example_runs.failing_cells(tmp_path))
    site.build_site(tmp_path, "tiny")
    assert "left no record" in page(tmp_path, "01_data_curation").find("footer").get_text()
    index = page(tmp_path, "index")
    assert "0 reproduced" in index.get_text() and "1 min 11 s" not in index.get_text()


def test_index_tells_the_state_and_cost_of_each_stage(built):
    rows = page(built, "index").find("table", class_="stage-table").tbody.find_all("tr")
    cells_of = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in rows]
    assert len(rows) == len(STAGES)
    assert cells_of[0] == [
        "01 Data curation",
        "done",
        "1 min 11 s",
        "1.40 GiB",
        "1 min",
        "documents kept: 12,345 documents",
    ]
    assert cells_of[1][1] == "failed" and cells_of[2][1] == "not run"
    assert rows[2].find("a") is None


def test_index_counts_verdicts_and_says_why_the_rest_is_open(built):
    soup = page(built, "index")
    states = [
        state.get_text() for state in soup.find(id="claims").find_next("p").find_all(class_="state")
    ]
    assert states == [
        "1 reproduced",
        "0 contradicted",
        "0 no difference seen",
        "0 undecided",
        "2 not attempted",
        "0 not testable as stated",
    ]
    decided = soup.find(id="claim-data.kept").get_text()
    assert "Most documents are kept." in decided and "12,345 documents were kept." in decided
    assert soup.find(id="claim-data.kept").find("a", class_="state")["href"] == (
        "01_data_curation.html#verdict-data.kept"
    )
    reasons = [summary.get_text() for summary in soup.select(".open-claims summary")]
    assert reasons == ["1: full scale needed", "1: notebook planned"]


def test_index_says_that_numbers_of_a_scale_are_not_the_papers(built):
    assert "never the paper's numbers" in page(built, "index").find(class_="scale-note").get_text()


def test_provenance_gives_machine_commit_and_full_hashes(built):
    footer = page(built, "01_data_curation").find("footer").get_text(" ")
    for expected in (
        "Example CPU",
        "abcdef012345 with uncommitted changes",
        "0123456789abcdef" * 4,
        "torch: 2.13.0",
        "min_characters: 200",
    ):
        assert expected in footer
    assert "4.123 [4.000, 4.200]" in footer and "language zh" in footer


def test_record_without_optional_fields_makes_a_page_without_them(tmp_path):
    example_runs.write_example(tmp_path)
    folder = tmp_path / "runs" / "tiny" / "01_data_curation"
    bare = {
        "stage": "01_data_curation",
        "scale": "tiny",
        "outputs": {},
        "key": "k",
        "measures": [{"name": "n", "value": 1}],
        "claims": [{"id": "data.kept", "verdict": "contradicted"}],
    }
    (folder / "stage.json").write_text(json.dumps(bare), encoding="utf-8")
    site.build_site(tmp_path, "tiny")
    for name in PAGES:
        soup = page(tmp_path, name)
        check_page(soup, tmp_path / "reports" / "tiny")
        assert "None" not in soup.find("main").get_text() + soup.find("footer").get_text()


def test_a_run_by_hand_leaves_the_page_of_the_run_before_and_marks_it_stale(tmp_path):
    example_runs.write_example(tmp_path)
    record = {**example_runs.record("01_data_curation", "Data curation"), "key": None}
    (tmp_path / "runs/tiny/01_data_curation/stage.json").write_text(
        json.dumps(record), encoding="utf-8"
    )
    site.build_site(tmp_path, "tiny")
    older = page(tmp_path, "01_data_curation")
    banner = older.find("main").find(class_="stale").get_text()
    assert "This page is stale." in banner and "moxin-lab run --scale tiny --only 01" in banner
    assert "0123456789abcdef" not in older.find("footer").get_text()  # the record of another run
    row = page(tmp_path, "index").find("table", class_="stage-table").tbody.tr.get_text(" ")
    assert "run by hand" in row and "12,345" in row


def test_a_stage_run_by_hand_that_never_had_a_notebook_has_no_page(tmp_path):
    example_runs.write_example(tmp_path)
    folder = tmp_path / "runs/tiny/01_data_curation"
    record = {**example_runs.record("01_data_curation", "Data curation"), "key": None}
    (folder / "stage.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "notebook.ipynb").unlink()
    site.build_site(tmp_path, "tiny")
    assert not (tmp_path / "reports/tiny/01_data_curation.html").exists()


def test_a_claim_leads_to_its_verdict_and_the_verdict_to_its_cell(tmp_path):
    cells_with_claim = [
        example_runs.words("# T\n\nClaims: `data.kept`, and `not.a-claim`."),
        example_runs.code("stage.claim('data.kept', 'reproduced', 'x')"),
    ]
    main = rebuilt(tmp_path, cells_with_claim).find("main")
    row = main.find(id="verdict-data.kept")
    assert row.find("a", class_="state")["href"] == "#cell-2"
    assert row.th.a["href"] == "index.html#claim-data.kept"
    in_text = main.find(id="cell-1")
    assert [a["href"] for a in in_text.find_all("a")] == ["index.html#claim-data.kept"]


def test_a_table_of_many_columns_names_each_value_for_a_telephone(built):
    table = page(built, "01_data_curation").find("table", class_="stack")
    assert table.caption.get_text().startswith("Table 1. Documents kept.")
    row = table.tbody.tr
    assert [td.get("data-label") for td in row.find_all("td")][:2] == [
        "documents kept after every filter",
        "share",
    ]


def test_a_row_that_several_names_tell_apart_says_what_each_is(tmp_path):
    """On a telephone `GRPO, CoT-SFT, 8` below each other would not say which is which."""
    levels = ["first", "second", "k"]
    index = pd.MultiIndex.from_tuples([("GRPO", "CoT-SFT", 8)], names=levels)
    frame = pd.DataFrame({"value": [0.1]}, index=index)
    output = example_runs.html(show.table_html(frame, caption="Differences.", scale="tiny"))
    row = rebuilt(tmp_path, [example_runs.code("show()", [output])]).find("main").tbody.tr
    assert [th["data-label"] for th in row.find_all("th")] == levels


def test_identifiers_in_a_tables_head_become_words(tmp_path):
    head = "<table><thead><tr><th>exact_match</th><th>pass@1</th></tr></thead></table>"
    output = example_runs.html(head)
    soup = rebuilt(tmp_path, [example_runs.words("# T"), example_runs.code("x", [output])])
    assert [th.get_text() for th in soup.find("main").table.find_all("th")] == [
        "exact match",
        "pass@1",
    ]


def test_empty_repository_still_gets_an_index(tmp_path):
    index = site.build_site(tmp_path, "tiny")
    check_page(BeautifulSoup(index.read_text(encoding="utf-8"), "html.parser"), index.parent)


def test_page_of_a_stage_whose_run_is_gone_is_removed(tmp_path):
    example_runs.write_example(tmp_path)
    site.build_site(tmp_path, "tiny")
    (tmp_path / "runs/tiny/02_tokenizer/failed.ipynb").unlink()
    site.build_site(tmp_path, "tiny")
    assert not (tmp_path / "reports/tiny/02_tokenizer.html").exists()


def test_broken_notebook_and_broken_claims_are_named(tmp_path):
    example_runs.write_example(tmp_path)
    notebook = tmp_path / "runs" / "tiny" / "01_data_curation" / "notebook.ipynb"
    for text in ("{", "[" * 100_000, '{"cells": ' + "9" * 5000 + "}"):
        notebook.write_text(text, encoding="utf-8")
        with pytest.raises(LabError, match=r"notebook\.ipynb cannot be read as JSON: .*--only 01"):
            site.build_site(tmp_path, "tiny")
    notebook.write_text('{"cells": 3}', encoding="utf-8")
    with pytest.raises(LabError, match=r"notebook\.ipynb is not a notebook"):
        site.build_site(tmp_path, "tiny")
    example_runs.write_notebook(notebook, example_runs.good_cells())
    for text in ("claims: 3", "- just words", "claims: ["):
        (tmp_path / "papers" / "claims.yml").write_text(text, encoding="utf-8")
        with pytest.raises(LabError, match=r"claims\.yml"):
            site.build_site(tmp_path, "tiny")


def test_the_built_report_of_this_repository_holds_the_same_guarantees(repository):
    pages = sorted((repository / "reports" / "tiny").glob("*.html"))
    if not pages:
        pytest.skip("reports/tiny is not built here; `make reproduce` builds it")
    for path in pages:
        check_page(BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser"), path.parent)
        assert path.stat().st_size <= (150_000 if path.stem == "index" else 600_000), path


def test_half_a_notebook_of_a_killed_run_is_a_failed_stage_without_a_page(tmp_path):
    example_runs.write_example(tmp_path)
    failed = tmp_path / "runs" / "tiny" / "02_tokenizer" / "failed.ipynb"
    text = failed.read_text(encoding="utf-8")
    for half in (text[: len(text) // 2], ""):
        failed.write_text(half, encoding="utf-8")
        site.build_site(tmp_path, "tiny")
        assert not (tmp_path / "reports" / "tiny" / "02_tokenizer.html").exists()
        entry = page(tmp_path, "index").find("span", class_="absent", string=None)
        assert "(failed)" in page(tmp_path, "index").find("nav").get_text() and entry is not None


def test_a_report_of_all_stages_is_built_within_20_s_of_the_processor(tmp_path, repository):
    """This repository's own notebooks, with a figure and a table below every third code cell, which
    makes them as large as a run leaves them.
    """
    root = example_runs.write_whole_example(tmp_path, repository)
    shown = [example_runs.html(example_runs.example_figure())]
    shown += [example_runs.html(example_runs.example_table())]
    for info in STAGES:
        notebook = json.loads((repository / "notebooks" / f"{info.name}.ipynb").read_text("utf-8"))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(code):
            cell |= {"outputs": [] if number % 3 else shown, "execution_count": 1}
        folder = root / "runs" / "tiny" / info.name
        example_runs.write_notebook(folder / "notebook.ipynb", notebook["cells"])
        record = example_runs.record(info.name, info.title, claims=[])
        (folder / "stage.json").write_text(json.dumps(record), encoding="utf-8")
        (folder / "failed.ipynb").unlink(missing_ok=True)
    said = site.main(root, "tiny")
    print(said)
    pages, seconds = re.search(r": (\d+) pages in ([\d.]+) s of the processor", said).groups()
    assert int(pages) >= len(STAGES) + 20 and float(seconds) < 20


# ---- what is long is folded


def _table(rows: int, caption: str) -> dict:
    frame = pd.DataFrame({"name": [f"row {n}" for n in range(rows)], "value": range(rows)})
    html = show.table_html(frame, caption=caption, scale="tiny")
    return {"output_type": "display_data", "metadata": {}, "data": {"text/html": html}}


def _code(source: str, *outputs: dict) -> dict:
    return {"cell_type": "code", "metadata": {}, "source": source, "outputs": list(outputs)}


def test_a_long_table_is_folded_below_its_caption_and_a_short_one_is_not(tmp_path):
    long, short = captions.FOLDED_FROM, captions.FOLDED_FROM - 1
    soup = rebuilt(tmp_path, [_code("1", _table(long, "Many"), _table(short, "Few"))])
    tables = {t.caption.get_text(" ", strip=True): t for t in soup.select("table.moxin-table")}
    many, few = tables["Table 1. Many tiny scale"], tables["Table 2. Few tiny scale"]
    assert many.find_parent("details").summary.get_text() == f"Table 1. Many ({long} rows)"
    assert few.find_parent("details") is None


def test_the_verdicts_that_a_page_ends_with_are_not_shown_a_second_time(tmp_path, repository):
    last = _code("stage.finish()", _table(3, cells.VERDICTS_CAPTION))
    soup = rebuilt(tmp_path, [_code("1", _table(3, "Results")), last])
    table = soup.find("table", class_="moxin-table", id="table-2")
    assert table.find_parent("details").summary.get_text() == "End of the stage"
    assert soup.find(id="table-1").find_parent("details") is None
    # the caption is the one that a stage gives it
    assert cells.VERDICTS_CAPTION in (repository / "moxin_lab/lab/stage.py").read_text()
