"""The bench of extraction measures all methods on the same pages of one half."""

import argparse

import pytest

from moxin_lab.bench import extraction


def options(folder, half: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    extraction.add_arguments(parser)
    words = ["--folder", str(folder), "--mark", "#text", "--half", half, "--language", "ja"]
    return parser.parse_args(words)


def test_pages_of_one_half_are_measured_by_each_method(tmp_path) -> None:
    for number in range(6):
        page = f"<body><nav><a href=x>目次</a></nav><div id=text><p>本文の<b>{'と' * number}"
        (tmp_path / f"{number}.html").write_text(f"{page}</b></p></div></body>", "utf-8")
    result = extraction.run(options(tmp_path, "odd"))
    speed = {row["method"]: row for row in result["speed"]}
    assert {row["pages"] for row in speed.values()} == {3}
    assert {row["slowest page"] for row in speed.values()} <= {"1.html", "3.html", "5.html"}
    rows = {row["method"]: row for row in result["rows"]}
    assert rows["main content"]["recall"] == rows["main content"]["precision"] == 1.0
    assert set(rows) >= {"tags stripped", "resiliparse", "trafilatura"}
    (kana,) = (row for row in result["scripts"] if row["script"] == "Kana")
    assert (kana["characters"], kana["main content"], kana["resiliparse"]) == (12, 0, 1)


def test_a_folder_without_pages_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="holds no pages"):
        extraction.run(options(tmp_path, "even"))
