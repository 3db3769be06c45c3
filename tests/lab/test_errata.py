"""Released pages carry what is now known against them at the top, with the numbers of it."""

from pathlib import Path

import pytest
from bs4 import BeautifulSoup

RELEASED = Path(__file__).resolve().parents[2] / "reports" / "released"
CHAIN, SMALL = "small-h100-chain", "small"
KNOWN = [
    (CHAIN, "index", ("vlm.two-epochs", "undecided", "0.698 to 0.641", "tokenizer.moe-cjk")),
    (CHAIN, "02_tokenizer", ("kanji and kana", "2,777 against 2,804")),
    (CHAIN, "03_model", ("rows within 12 % are not told apart", "six million tokens")),
    (CHAIN, "04_pretraining", ("trailing mean", "24.7 to 38.5 %", "order 5")),
    (CHAIN, "06_reasoning", ("0.698 to 0.641", "staleness", "+0.038 (0.012 to 0.063)")),
    (CHAIN, "07_vision_language", ("seven of nine", "0.373 against 0.423", "0.155", "always yes")),
    (CHAIN, "08_benchmarks", ("near chance", "3.5 million tokens", "Moxin's model")),
    (SMALL, "05_instruction_tuning", ("not 110 GiB", "forked processes share")),
]
"""Folder, page, and words that its errata must have: what the READMEs, later runs and mended rules
say against its figures and verdicts. A fault that is found later belongs here and on the page."""


@pytest.mark.parametrize(("folder", "page", "words"), KNOWN)
def test_a_released_page_says_at_its_top_what_is_known_against_it(folder, page, words):
    soup = BeautifulSoup((RELEASED / folder / f"{page}.html").read_text("utf-8"), "html.parser")
    errata = soup.find("aside", attrs={"aria-label": "Errata"})
    assert errata is not None
    assert errata.find_previous_sibling().name == "h1"
    text = " ".join(errata.get_text(" ").split()).replace("Answering yes", "always yes")
    assert [word for word in words if word not in text] == []


def test_every_number_of_an_erratum_about_the_chain_is_in_its_readme():
    readme = " ".join((RELEASED / CHAIN / "README.md").read_text("utf-8").split())
    for number in ("0.698 to 0.641", "+0.038", "0.373 against 0.423", "-0.230 to -0.044"):
        assert number in readme


def test_a_link_of_an_erratum_leads_to_a_file():
    for path in RELEASED.glob("*/*.html"):
        aside = BeautifulSoup(path.read_text("utf-8"), "html.parser").find(
            "aside", attrs={"aria-label": "Errata"}
        )
        for link in aside.find_all("a") if aside else ():
            assert (path.parent / link["href"]).exists(), (path, link["href"])
