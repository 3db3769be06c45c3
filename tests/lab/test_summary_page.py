"""A public summary's page has every field of the template, says what is blank, and shows text as
text.
"""

import itertools
import json
import re

import pytest

from moxin_lab.lab import documents, summary_page

DOCUMENT = {"lead": "What it was trained on.", "version": "1.0", "language": "en"}
GRADE = {
    "transparency": {"letter": "A", "percent": 92.9},
    "usefulness": {"letter": "not applicable", "percent": None},
    "sections": {
        "Document": [
            {"letter": "A", "percent": 92.9},
            {"letter": "not applicable", "percent": None},
        ]
    },
    "metrics": [
        {"id": "D1", "dimension": "Clarity", "weight": 3, "score": None, "how": "automatic"}
        | {"reason": "the <first> version"}
    ],
}


def made(fields, **more):
    content = {"model": "m <1>", "document": DOCUMENT, "fields": fields}
    return summary_page.page(content, links=lambda address: address, **more)


def test_every_field_has_its_heading_in_order_and_a_blank_one_says_so():
    html = made({})
    places = [html.index(f'id="field-{name}"') for name in summary_page.FIELDS]
    assert places == sorted(places)
    assert html.count(f"<p>{summary_page.BLANK}</p>") == len(summary_page.FIELDS)
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", html)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))


def test_a_field_below_a_no_says_that_it_does_not_apply_and_why():
    html = made({"2.3.a": {"answer": "no"}, "2.4.a": {"answer": "no"}, "2.6.a": {"answer": "yes"}})
    for field in "bcdefghi":
        part = html.partition(f'id="field-2.3.{field}"')[2].partition("<h3")[0]
        assert "<p>Not applicable. 2.3.a is answered no.</p>" in part
    for field in ("2.4.d", "2.6.b"):  # 2.4.b is not answered; 2.6.a is answered yes
        part = html.partition(f'id="field-{field}"')[2].partition("<h3")[0]
        assert f"<p>{summary_page.BLANK}</p>" in part


def test_a_field_below_a_no_that_says_something_is_shown():
    html = made({"2.5.a": {"answer": "no"}, "2.5.e": {"text": "All text is by people."}})
    assert "<p>All text is by people.</p>" in html


def test_a_page_of_no_scale_names_none():
    assert " scale</span>" not in made({})
    assert "tiny scale</span>" in made({}, shared={"scale": "tiny"})


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ({"answer": "no"}, "<p>No</p>"),
        ({"text": "Manuals."}, "<p>Manuals.</p>"),
        ({"size": "3 tokens"}, '<p><span class="note">Size:</span> 3 tokens</p>'),
        ({"items": ["Text"]}, "<li>Text"),
        ({"items": [{"name": "a", "link": "b.md"}]}, '<a href="b.md">a</a>'),
        ({"not_applicable": "None."}, "<p>Not applicable. None.</p>"),
        ({"text": "<script>x</script>"}, "&lt;script&gt;x&lt;/script&gt;"),
        ({"text": "x", "records": True}, "<p>x</p>"),
    ],
)
def test_each_kind_of_part_is_shown(field, expected):
    html = made({"2.1.c": field})
    assert expected in html and "<script" not in html and "Records" not in html


def test_a_link_without_an_address_on_the_page_is_text():
    content = {"model": "m", "document": DOCUMENT, "fields": {"2.1.c": {"items": []}}}
    content["fields"]["2.1.c"]["items"] = [{"name": "weights", "link": "model/x.safetensors"}]
    html = summary_page.page(content, links=lambda address: None)
    assert "weights" in html and "x.safetensors" not in html


def test_the_site_has_a_page_per_published_summary_with_its_grade(tmp_path):
    root, out = tmp_path / "root", tmp_path / "site"
    fields = {"2.1.c": {"items": [{"name": "Help", "link": "../../data_cards/help/README.md"}]}}
    for folder, stem, model in (
        (root / "papers" / "summaries", "theirs", "Theirs"),
        (root / "release" / "ours", "public_summary", "Ours"),
    ):
        folder.mkdir(parents=True)
        content = {"model": model, "document": DOCUMENT, "fields": fields}
        (folder / f"{stem}.json").write_text(json.dumps(content))
        (folder / f"{stem}_grade.json").write_text(json.dumps(GRADE))
    found = summary_page.published(root)
    assert [item["href"] for item in found] == ["summary-ours.html", "summary-theirs.html"]
    assert found[0]["letters"] == {"transparency": "A (92.90 %)", "usefulness": "not applicable"}
    assert "summaries" in [document.name for document in documents.listed(root, out)]
    shared = {"scale": "tiny", "nav": [], "documents": documents.listed(root, out)}
    pages = {path.name for path in documents.write(root, out, shared)}
    assert {"summaries.html", "summary-ours.html", "summary-theirs.html"} <= pages
    index = (out / "summaries.html").read_text(encoding="utf-8")
    assert '<a href="summary-ours.html">Ours</a>' in index and "A (92.90 %)" in index
    page = (out / "summary-ours.html").read_text(encoding="utf-8")
    assert '<a href="data-help.html">Help</a>' in page
    assert "the &lt;first&gt; version" in page and "n/a" in page
