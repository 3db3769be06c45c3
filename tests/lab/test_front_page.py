"""Guarantees of the front page and the documents: numbers from records and files, nothing typed."""

import json
import re
import shutil
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from moxin_lab.lab import claims, documents, findings, front_page, measured, site
from tests.lab import example_runs
from tests.lab.test_site import check_page


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A site of the example with this repository's own papers, cards and measurements."""
    root = tmp_path_factory.mktemp("lab")
    example_runs.write_example(root)
    shutil.rmtree(root / "data_cards")
    for readme in (repository / "data_cards").glob("*/README.md"):
        (root / "data_cards" / readme.parent.name).mkdir(parents=True)
        shutil.copy(readme, root / "data_cards" / readme.parent.name)
    shutil.copy(repository / "papers" / "deviations.yml", root / "papers")
    shutil.copy(repository / "CITATION.cff", root)
    shutil.copytree(repository / "reports" / "released", root / "reports" / "released")
    site.build_site(root, "tiny")
    return root


def soup(root: Path, name: str) -> BeautifulSoup:
    text = (root / "reports" / "tiny" / f"{name}.html").read_text(encoding="utf-8")
    return BeautifulSoup(text, "html.parser")


def test_every_document_holds_the_guarantees_of_any_page(built):
    pages = sorted((built / "reports" / "tiny").glob("*.html"))
    names = {path.stem for path in pages}
    assert {"measurements", "deviations", "data", "glossary", "data-help_pages"} <= names
    for path in pages:
        check_page(BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser"), path.parent)
        assert path.stat().st_size <= 600_000, path


def test_every_deviation_and_every_card_is_on_a_page_that_the_navigation_leads_to(built):
    index = soup(built, "index")
    leads = {a["href"] for a in index.find("nav", attrs={"aria-label": "Pages"}).find_all("a")}
    assert {
        document.href for document in documents.listed(built, built / "reports" / "tiny")
    } <= leads
    import yaml

    entries = yaml.safe_load((built / "papers" / "deviations.yml").read_text("utf-8"))["deviations"]
    page = soup(built, "deviations")
    assert all(page.find(id=f"deviation-{entry['id']}") for entry in entries)
    for entry in entries:
        own = soup(built, f"deviation-{entry['id']}")
        assert own.h1.get_text() == entry["title"]
        assert all(text in own.get_text() for text in entry["sources"].values())
        assert page.find("a", href=f"deviation-{entry['id']}.html")
    cards = {card["href"] for card in documents.data_cards(built)}
    assert cards == {a["href"] for a in soup(built, "data").select("table a")}


def test_a_claim_leads_to_the_page_of_each_deviation_that_touches_it(tmp_path, repository):
    example_runs.write_example(tmp_path)
    for name in ("claims.yml", "deviations.yml"):
        shutil.copy(repository / "papers" / name, tmp_path / "papers")
    record = example_runs.record("01_data_curation", "Data curation", claims=[])
    path = tmp_path / "runs" / "tiny" / "01_data_curation" / "stage.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    site.build_site(tmp_path, "tiny")
    index = soup(tmp_path, "index")
    for claim, touching in documents.by_claim(tmp_path).items():
        row = index.find(id=f"claim-{claim}")
        assert {entry["href"] for entry in touching} == {
            link["href"] for link in row.th.find_all("a", href=re.compile("^deviation-"))
        }
    untestable = index.find(id="claim-grpo.dramatic")
    assert "nothing says how large" in untestable.get_text()
    assert index.find("span", class_="not-testable-as-stated").get_text().startswith("4 ")


def test_a_claim_leads_to_cards_summaries_and_bills_that_concern_it(tmp_path, repository):
    root = example_runs.write_whole_example(tmp_path, repository)
    site.build_site(root, "tiny")
    index, out = soup(root, "index"), root / "reports" / "tiny"

    def links(claim: str) -> list[str]:
        return [link["href"] for link in index.find(id=f"claim-{claim}").th.find_all("a")]

    assert {"data-emoji.html", "data-charts.html", "bills.html#model-vlm"} <= {
        *links("vlm.base-backbone")
    }
    assert "data-help_pages.html" in links("data.html-extraction")
    assert "summary-moxin-7b.html" in links("data.uncontaminated")
    assert "summary-moxin-7b.html" in links("sft.tulu3")
    assert "bills.html" in links("mof.licence") and "bills.html#model-pretrained" in links(
        "data.code-reasoning"
    )
    assert not [href for href in links("arch.pre-norm") if href.startswith(("bills", "summary"))]
    for claim in documents.related(root, out):
        for href in links(claim):
            page, _, anchor = href.partition("#")
            assert (out / page).is_file()
            assert not anchor or soup(root, page.removesuffix(".html")).find(id=anchor)


def test_claims_on_training_data_are_in_the_list_of_claims(repository):
    topics = {claim["id"]: claim["topic"] for claim in claims.load(repository)}
    assert set(documents.TRAINING_DATA_TOPICS) <= {*topics.values()}
    assert set(documents.TRAINING_DATA_CLAIMS) <= topics.keys()


def test_the_speed_is_that_of_the_committed_file(built):
    rows = json.loads((built / "reports/released/h100/decode.json").read_text("utf-8"))["rows"]
    times = {row["implementation"]: row for row in rows if row["tokens"] == 32_000}
    peer = times["transformers, DynamicCache, SDPA"]
    fastest = min(row["ms_per_token"] for name, row in times.items() if name.startswith("ours"))
    sentence = soup(built, "index").find(class_="findings").li.get_text()
    assert f"takes {fastest:.1f} ms" in sentence and f"{peer['ms_per_token']:.0f} ms" in sentence
    assert f"{peer['floor_ms']:.1f} ms" in sentence
    bars = soup(built, "index").find("table", class_="bars")
    assert len(bars.tbody.find_all("tr")) == len(times) == len(bars.find_all(class_="limit"))


def test_the_citation_names_version_date_and_commit(built):
    text = front_page.cite(built, [{"environment": {"git_commit": "abcdef0123456789"}}])
    assert "version = {0.1.0}" in text and "date    = {2026-11-22}" in text
    assert "abcdef012345" in text and text.count("{") == text.count("}")
    assert "commit" not in front_page.cite(
        built, [{"environment": {"git_commit": c}} for c in ("a" * 40, "b" * 40)]
    )


def test_a_released_report_with_pages_is_one_link_away(built):
    page = built / "reports" / "tiny" / "index.html"
    cards = soup(built, "index").select("ul.cards a")
    links = {a["href"] for a in cards if "released" in a["href"]}
    folders = [list(f.glob("*.html")) for f in (built / "reports" / "released").iterdir()]
    fronts = {
        (pages[0] if len(pages) == 1 else pages[0].with_name("index.html")).resolve()
        for pages in folders
        if pages
    }
    assert {(page.parent / link).resolve() for link in links} == fronts
    assert len(links) >= 3


def test_a_chart_that_is_not_about_speed_gives_both_values_and_no_ratio(repository):
    [chart] = [c for c in measured.charts(repository) if c.question.unit == "bits per byte"]
    assert "times as fast" not in chart.finding
    assert re.fullmatch(r"after phase 3: [\d.]+ bits per byte; .*order 5: [\d.]+\.", chart.finding)


# ---- findings


def gain(language: str, value: float, low: float, high: float) -> dict:
    return {
        "name": "gain",
        "value": value,
        "interval": [low, high],
        "labels": {"language": language, "tokenizer": "over joint BPE"},
    }


def test_a_finding_counts_a_gain_only_if_its_interval_is_above_zero(tmp_path):
    measures = [gain("zh", 2.0, 1.0, 3.0), gain("ja", 0.5, -0.1, 1.1), gain("ko", -4.0, -5.0, -3.0)]
    [(sentence, stage)] = findings.findings({"02_tokenizer": {"measures": measures}}, tmp_path)
    assert stage == "02_tokenizer" and "a gain in 1 of 3 languages" in sentence
    assert "+2.0 % in Chinese, +0.5 % in Japanese and −4.0 % in Korean" in sentence
    assert "Routing alone" not in sentence


def test_what_the_weights_of_languages_gain_is_not_said_of_routing(tmp_path):
    measures = [gain(tag, 2.0, 1.0, 3.0) for tag in ("zh", "ja", "ko")]
    alone = [gain(tag, 0.1, -0.3, 0.5) for tag in ("zh", "ja", "ko")]
    for one in alone:
        one["labels"] |= {"tokenizer": "equal weights, over joint BPE"}
    [(sentence, _)] = findings.findings({"02_tokenizer": {"measures": measures + alone}}, tmp_path)
    assert "with more weight on three languages" in sentence
    assert "Routing alone, with equal weights, gives +0.1 %, +0.1 % and +0.1 %." in sentence


@pytest.mark.parametrize(
    ("ends", "words"),
    [((0.01, 0.2), "more than"), ((-0.2, -0.01), "less than"), ((-0.1, 0.2), "no differently")],
)
def test_the_finding_on_grpo_says_which_way_the_interval_points(tmp_path, ends, words):
    labels = {"first": "GRPO", "second": "CoT-SFT", "group": "in-family", "k": 1}
    measures = [
        {"name": "pass_difference", "value": 0.05, "interval": list(ends), "labels": labels},
        {"name": "pass_at_1", "value": 0.5, "labels": {"model": "GRPO", "group": "in-family"}},
    ]
    [(sentence, _)] = findings.findings({"06_reasoning": {"measures": measures}}, tmp_path)
    assert words in sentence


def test_a_measure_that_a_finished_stage_lacks_is_logged_and_its_finding_omitted(tmp_path, caplog):
    assert findings.findings({"02_tokenizer": {"measures": []}}, tmp_path) == []
    assert "02_tokenizer has no measure gain" in caplog.text


def test_every_key_number_of_a_released_stage_is_on_its_page(repository):
    for number in findings.KEY_NUMBERS:
        # the released small runs are older than stage 09, and stage 10 is of the tree, not of a run
        if number.stage not in ("09_applications", "10_openness_report"):
            assert findings.released_number(repository, number) is not None, number
    values = {number.measure: number for number in findings.KEY_NUMBERS}
    pictures = values["tasks_above_blind_and_shuffled"]
    assert findings.released_number(repository, pictures) == (5.0, None)


# ---- measurements


def record(*rows: dict) -> dict:
    return {"bench": "towers", "machine": {"gpu": "G", "date": "D"}, "rows": list(rows)}


def towers(name: str, value: float | None, **more) -> dict:
    return {"implementation": name, "images_per_second": value, **more}


TOWERS = next(question for question in measured.QUESTIONS if question.bench == "towers")


def test_rows_of_several_runs_are_one_bar_with_its_range():
    rows = [towers("ours", 9.0), towers("ours", 12.0), towers("ours", 10.0), towers("peer", 5.0)]
    chart = measured.chart(record(*rows), TOWERS, "x.json")
    assert [(b.name, b.value, b.low, b.high, b.runs) for b in chart.bars] == [
        ("ours", 10.0, 9.0, 12.0, 3),
        ("peer", 5.0, 5.0, 5.0, 1),
    ]
    assert chart.finding == "ours is 2.00 times as fast as the best peer, peer."


def test_bars_whose_ranges_overlap_are_not_told_apart():
    rows = [towers("ours", 9.0), towers("ours", 12.0), towers("peer", 11.0)]
    assert measured.chart(record(*rows), TOWERS, "x").finding == "ours and peer are not told apart."


def test_two_rows_that_call_the_same_attention_kernel_are_never_told_apart(repository):
    attention = [c for c in measured.charts(repository) if c.question.bench == "attention"]
    findings_of = [chart.finding for chart in attention]
    assert len(findings_of) == 8 and not [f for f in findings_of if f.startswith("auto is 1.")]
    assert all(measured.OTHER_WORK not in text for text in findings_of)


def test_a_row_that_could_not_run_keeps_its_reason_and_comes_last():
    rows = [towers("peer", None, reason="out of memory"), towers("ours", 9.0)]
    bars = measured.chart(record(*rows), TOWERS, "x.json").bars
    assert [bar.name for bar in bars] == ["ours", "peer"] and bars[1].reason == "out of memory"


def test_every_committed_row_of_a_gpu_answers_a_question(repository):
    shown = {(chart.source, chart.question.bench) for chart in measured.charts(repository)}
    for path in (repository / "reports" / "released").glob("*/*.json"):
        if path.name == "manifest.json":
            continue
        content = json.loads(path.read_text("utf-8"))
        if any(kind <= content.keys() for kind in measured.EVALUATED):
            continue
        if content["machine"].get("gpu") and content["bench"] not in measured.SHOWN_ELSEWHERE:
            assert (path.relative_to(repository).as_posix(), content["bench"]) in shown
