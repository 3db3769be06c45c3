"""A comparison of two runs puts each measure, verdict and artifact in the one group in which it
belongs, and its page keeps the guarantees of the site's pages.
"""

import json
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab import cli
from moxin_lab.lab import comparison, comparison_page
from moxin_lab.lab.artifacts import LabError
from tests.lab import example_runs
from tests.lab.test_site import check_page


def measure(name, value, interval=None, unit="share", **labels):
    bounds = None if interval is None else list(interval)
    return {"name": name, "value": value, "unit": unit, "labels": labels, "interval": bounds}


def write_run(folder: Path, measures, stage="01_data_curation", **fields) -> Path:
    (folder / stage).mkdir(parents=True)
    record = example_runs.record(stage, "A stage", measures=measures, **fields)
    (folder / stage / "stage.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def compared(tmp_path, in_a, in_b, fields_a=None, fields_b=None):
    write_run(tmp_path / "a", in_a, **(fields_a or {}))
    write_run(tmp_path / "b", in_b, **(fields_b or {}))
    runs = [comparison.read_run(tmp_path, str(tmp_path / name)) for name in "ab"]
    return comparison.compare(*runs)


@pytest.mark.parametrize(
    ("a", "b", "relation"),
    [
        ((0.5, (0.4, 0.6)), (0.5, (0.4, 0.6)), "same"),
        ((0.5, None), (0.5, None), "same"),
        ((0.5, (0.4, 0.6)), (0.55, (0.45, 0.65)), "inside"),
        ((0.5, (0.4, 0.6)), (0.5, (0.3, 0.7)), "inside"),  # only the interval differs
        ((0.5, (0.4, 0.6)), (0.65, (0.55, 0.75)), "meet"),
        ((0.5, (0.45, 0.6)), (0.6, (0.3, 0.7)), "inside"),  # the ends belong to an interval
        ((0.5, (0.49, 0.51)), (0.6, (0.4, 0.8)), "meet"),  # A in B's, B not in A's
        ((0.5, (0.4, 0.6)), (0.9, (0.8, 1.0)), "outside"),
        ((0.9, (0.8, 1.0)), (0.5, (0.4, 0.6)), "outside"),
        ((0.5, (0.4, 0.6)), (0.55, None), "inside"),
        ((0.5, None), (0.7, (0.6, 0.8)), "outside"),
        ((0.5, None), (0.5000001, None), "bare"),
    ],
)
def test_each_pair_of_values_has_the_relation_of_its_intervals(tmp_path, a, b, relation):
    found = compared(tmp_path, [measure("m", *a)], [measure("m", *b)])
    assert [pair.relation for pair in found.pairs] == [relation]
    assert found.pairs[0].difference == pytest.approx(b[0] - a[0])
    assert found.differ == (relation in ("outside", "bare"))


numbers = st.floats(-5, 5, allow_nan=False)
measured = st.tuples(numbers, st.one_of(st.none(), st.tuples(st.floats(0, 3), st.floats(0, 3))))


@given(measured, measured)
def test_the_relation_does_not_depend_on_which_run_comes_first(a, b):
    def pair(first, second):
        ends = [
            None if width is None else (value - width[0], value + width[1])
            for value, width in (first, second)
        ]
        return comparison.Pair("s", "m", {}, "u", first[0], second[0], *ends)

    there, back = pair(a, b), pair(b, a)
    assert there.relation == back.relation in comparison.IN_WORDS
    assert there.difference == -back.difference


def test_a_measure_is_paired_by_stage_name_labels_and_unit_and_repeated_ones_in_their_order(
    tmp_path,
):
    in_a = [measure("m", 1, language="zh", headline=True), measure("m", 2), measure("m", 3)]
    in_b = [measure("m", 5), measure("m", 3), measure("m", 1, language="zh"), measure("n", 7)]
    found = compared(tmp_path, in_a, [*in_b, measure("m", 9, unit="bytes")])
    assert [(pair.a, pair.b) for pair in found.pairs] == [(1, 1), (2, 5), (3, 3)]
    assert [row[:3] for row in found.only] == [
        ("B", "01_data_curation", "n"),
        ("B", "01_data_curation", "m"),
    ]
    assert found.differ


def test_times_and_rates_are_kept_apart_and_do_not_count_as_a_difference(tmp_path):
    in_a = [measure("read", 3.0, unit="MB/s"), measure("wait", 2.0, unit="s")]
    in_b = [measure("read", 9.0, unit="MB/s"), measure("wait", 5.0, unit="s")]
    found = compared(tmp_path, in_a, in_b)
    assert all(pair.of_the_clock for pair in found.pairs) and not found.differ
    page = BeautifulSoup(comparison_page.page(found), "html.parser")
    assert page.find(id="clock") and not page.find(id="bare")
    assert "0 without an interval, 2 times and rates" in found.summary()
    row = page.find("table", class_="plain").tbody.tr
    assert [cell.get_text() for cell in row.find_all("td")] == ["0", "0", "0", "0", "0", "2"]


def test_what_one_run_alone_has_is_counted_apart_from_what_differs(tmp_path):
    said = [{"id": "x.y", "verdict": "reproduced", "evidence": ""}]
    made = {"documents": {"sha256": "f" * 64, "size": 1}}
    found = compared(
        tmp_path,
        [measure("m", 1.0)],
        [],
        {"claims": said, "outputs": made},
        {"claims": [], "outputs": {}},
    )
    assert found.summary().endswith(
        "0 verdicts and 0 of 0 artifacts differ; in one run only: 1 measures, 1 verdicts, "
        "1 artifacts"
    )
    assert "verdict of" not in comparison_page.in_text(found)


def test_verdicts_artifacts_and_settings_that_differ_are_named(tmp_path):
    said = [{"id": "x.y", "verdict": "reproduced", "evidence": ""}]
    other = [{"id": "x.y", "verdict": "contradicted", "evidence": ""}]
    found = compared(
        tmp_path,
        [],
        [],
        {"claims": said, "key_parts": {"parameters": {"seed": 0}}},
        {
            "claims": other,
            "key_parts": {"parameters": {"seed": 1}},
            "outputs": {"documents": {"sha256": "f" * 64, "size": 1}},
        },
    )
    assert found.verdicts == (("x.y", "reproduced", "contradicted"),)
    assert [row[:2] for row in found.artifacts] == [("01_data_curation", "documents")]
    assert ("01_data_curation", "parameter seed: 0 -> 1") in found.settings


def test_a_run_is_found_by_folder_by_clone_and_by_scale_and_else_refused(tmp_path):
    write_run(tmp_path / "clone" / "runs" / "tiny", [measure("m", 1)])
    root = tmp_path / "clone"
    by_name = comparison.read_run(root, "tiny")
    by_clone = comparison.read_run(tmp_path, str(root))
    by_folder = comparison.read_run(tmp_path, str(root / "runs" / "tiny"))
    assert by_name.records == by_clone.records == by_folder.records
    with pytest.raises(LabError, match=r"huge is not a run: no stage has finished in huge or"):
        comparison.read_run(root, "huge")
    (root / "runs/tiny/01_data_curation/stage.json").write_text('{"outputs": 3, "key": ""}')
    with pytest.raises(LabError, match=r"is not a stage record: 'outputs' is of the wrong type"):
        comparison.read_run(root, "tiny")


def test_the_command_writes_a_page_without_script_or_path_and_json_with_every_value(
    tmp_path, capsys
):
    for folder in ("notebooks", "moxin_lab", "data_cards"):
        (tmp_path / folder).mkdir()
    low, high = [measure("loss", 1 / 3, (0.3, 0.4))], [measure("loss", 0.7, (0.6, 0.8))]
    write_run(tmp_path / "runs" / "tiny", low)
    write_run(tmp_path / "ein Ordner 中文", high)
    command = ["--root", str(tmp_path), "compare", "tiny", str(tmp_path / "ein Ordner 中文")]
    assert cli.main(command) == 0
    assert "01 loss: 0.3333 [0.3000, 0.4000] -> 0.7000" in capsys.readouterr().out
    assert cli.main([*command, "--exit-code"]) == 1
    (page,) = (tmp_path / "reports" / "comparisons").glob("*.html")
    text = page.read_text(encoding="utf-8")
    check_page(BeautifulSoup(text, "html.parser"), page.parent)
    values = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert values["measures"][0]["a"] == 1 / 3 and values["measures"][0]["relation"] == "outside"
    for written in (text, json.dumps(values)):
        assert str(tmp_path) not in written
    before = page.read_bytes()
    assert cli.main(command) == 0 and page.read_bytes() == before
    capsys.readouterr()
    assert cli.main([*command, "--out", str(tmp_path / "page.txt")]) == 1
    assert "give a name that ends in .html" in capsys.readouterr().err
