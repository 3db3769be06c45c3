"""Guarantees of `moxin-lab bench stores`: every store is a row, with numbers or with a reason."""

import argparse

import pytest

from moxin_lab import bench
from moxin_lab.bench import stores


@pytest.fixture(scope="module")
def result(repository):
    parser = argparse.ArgumentParser()
    bench.add_common_arguments(parser)
    stores.add_arguments(parser)
    words = ["--pages", "40", "--questions", "3", "--cards", str(repository / "data_cards")]
    return stores.run(parser.parse_args(words))


def test_each_store_is_a_row_with_its_numbers_or_the_reason_for_none(result):
    rows = {row["store"].split()[0]: row for row in result["rows"]}
    assert rows.keys() == {"SQLite", "LanceDB", "DuckDB"}
    for row in rows.values():
        assert row.get("reason") or row["question_cpu_ms"] > 0
    assert rows["SQLite"]["disk_mb"] * 1e6 > result["passages"] * stores.DIMENSION * 2


def test_a_store_that_is_not_installed_names_its_package(result, monkeypatch, repository):
    monkeypatch.setattr(stores, "find_spec", lambda name: None)
    options = argparse.Namespace(pages=20, questions=2, cards=repository / "data_cards", json=None)
    assert all("pip install" in row["reason"] for row in stores.run(options)["rows"])
