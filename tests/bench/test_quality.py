"""The quality bench: projects are whole in one fold, both selections have one size."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moxin_lab.bench import quality
from moxin_lab.data import corpus
from moxin_lab.data import quality as classifiers


def page(project: str, number: int, label: int | None) -> quality.Page:
    words = {1: "read", 0: "list", None: "other"}[label]
    text = " ".join(f"{words}{project}{(number * 7 + n) % 50}" for n in range(30 + number))
    return quality.Page(f"{project}/{label}/{number}", project, label, text)


PROJECTS = ("a", "b", "c", "d", "e", "f", "g", "h")
PAGES = [page(p, n, label) for p in PROJECTS for label in (1, 0, None) for n in range(6)]


def test_each_classifier_is_tested_on_projects_that_it_has_not_seen(monkeypatch) -> None:
    seen = []

    def spy(texts, labels, seed):
        seen.append({text.split()[0].rstrip("0123456789")[-1] for text in texts})
        return classifiers.length(texts, labels, seed)

    monkeypatch.setattr(classifiers, "CLASSIFIERS", {"length": spy, "random": classifiers.chance})
    rows = {row["method"]: row for row in quality.rows(PAGES)}
    assert set(rows) == {"length", "random"}
    folds = [{p for p in PROJECTS if quality.fold_of(p) != fold} for fold in range(3)]
    assert seen == folds
    assert len(rows["random"]["AUC of the folds"].split()) == 3
    assert 0 < rows["random"]["bits/byte, best tenth"] < 8.1


def test_both_selections_are_about_a_tenth_of_the_bytes() -> None:
    pool = [page(p, n, None) for p in "xyz" for n in range(150)]
    scores = classifiers.chance([], [], 0)([each.text for each in pool])
    found = quality.selections(pool, scores, [pool[0].text])
    tenth = 0.1 * sum(len(each.text) for each in pool) / 1e6
    assert found["MB, best tenth"] == pytest.approx(tenth, rel=0.05)
    assert found["MB, upsampled"] == pytest.approx(tenth, rel=0.05)


def test_a_model_of_the_same_text_needs_fewer_bits() -> None:
    text = "the button opens the menu and the menu has a list of commands. " * 30
    near = quality.bits_per_byte([text], [text[:500]])
    assert near < 1.5 < quality.bits_per_byte(["ぼたん" * 300], [text[:500]])


def test_so_many_pages_of_a_project_and_label_are_read(monkeypatch, tmp_path) -> None:
    rows = [
        {"id": f"{project}/{part}/{n}", "project": project, "language": language,
         "page": f"{project}/{part}/{n}.html", "text": "text"}
        for project in ("p", "q") for part in ("tutorial", "release", "x")
        for n in range(30) for language in ("en", "ja")
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    monkeypatch.setattr(corpus, "sources", lambda scale: [tmp_path / "a.parquet"])
    pages = quality.read_pages(per_project=4)
    assert len(pages) == 2 * 3 * 4
    assert {(each.project, each.label) for each in pages} == {
        (project, label) for project in "pq" for label in (1, 0, None)
    }
