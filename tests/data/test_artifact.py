"""Stage 01's run of the recipe: what goes in is in the folder once, and the folder tells all."""

import json
import random
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moxin_lab import scales
from moxin_lab.data import artifact, curation, engine, scores
from moxin_lab.data.corpus import CorpusError
from moxin_lab.lab import curated
from moxin_lab.scales.sections import CorpusSettings, HubSettings

WORDS = """
    river stone cloud window paper engine garden market winter letter copper silver bridge forest
    harbour kitchen ladder mirror needle orange pepper quarry ribbon saddle tunnel valley whistle
    the of and a in to is that it was for on with as his they at be this from
""".split()  # noqa: SIM905


def prose(seed, words=90):
    return " ".join(random.Random(seed).choices(WORDS, k=words)).capitalize() + "."


def stage_at(folder, repository, data):
    """What `artifact` asks of a stage, with the repository's cards."""
    (folder / "data_cards").symlink_to(repository / "data_cards")
    (folder / "scratch").mkdir()
    sections = {"data": data, "hub": HubSettings(paths={})}
    return SimpleNamespace(
        root=folder,
        seed=0,
        settings=sections.__getitem__,
        data_card=lambda name: folder / "data_cards" / name,
        scratch=lambda: folder / "scratch",
        output=lambda name: folder / name,
        progress=lambda step, total, text: None,
    )


def poems(folder):
    """40 documents, of which one is empty, one short, one a copy, one a near-copy."""
    texts = [prose(number) for number in range(36)] + ["", "Roses.", prose(3), prose(4) + " End."]
    (folder / "poems").mkdir()
    lines = [json.dumps({"body": text}) for text in texts]
    (folder / "poems" / "a.jsonl").write_text("\n".join(lines))
    entry = {"name": "poems", "path": "poems", "text": "body", "language": "en", "licence": "CC0"}
    return CorpusSettings(**entry)


@pytest.fixture(scope="module")
def stage(tmp_path_factory, repository):
    folder = tmp_path_factory.mktemp("stage")
    data = scales.load("tiny").data
    data = data.model_copy(update={"sources": (), "corpora": (poems(folder),)})
    return stage_at(folder, repository, data.model_copy(update={"heldout_share": 0.3}))


@pytest.fixture(scope="module")
def made(stage):
    return artifact.make(stage, artifact.inputs(stage))


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_document_that_was_read_is_in_the_folder_once(made):
    ids = [
        key
        for side in engine.SIDES
        for key in curated.read(made.folder, side, ["id"])["id"].to_pylist()
    ]
    assert len(ids) == len(set(ids)) == 40
    read = made.counts[made.counts["step"] == "reading"]
    assert read["documents"].sum() == 39
    assert made.reasons["documents"].sum() == len(artifact.removed(made.folder))
    steps = artifact.removed(made.folder).groupby("step").size().to_dict()
    assert steps["reading"] == steps["short filter"] == steps["exact duplicates"] == 1
    sides = [artifact.kept(made.folder, side) for side in ("train", "heldout")]
    assert all(len(side) > 3 for side in sides)
    left = made.counts[made.counts["step"] == made.counts["step"].iloc[-1]]
    assert sum(map(len, sides)) == left["documents"].sum()


def test_the_declaration_lies_beside_and_can_be_explained(made):
    rows = curated.read(made.folder, "udhr")
    assert rows.num_rows > 500 and set(rows["source"].to_pylist()) == {"udhr"}
    key = rows["id"][0].as_py()
    assert "kept, in udhr: " in curation.explain(made.folder, key)
    assert "5 characters, 200 needed" in curation.explain(made.folder, "poems/a/000000037")


def test_the_folder_has_nothing_that_differs_between_two_runs(made, stage, tmp_path):
    before = content(made.folder)
    assert "seconds" not in json.loads(before["run.json"]) and made.cpu_seconds > 0
    again = SimpleNamespace(**vars(stage))
    again.scratch, again.output = (lambda: tmp_path), (lambda name: tmp_path / "out" / name)
    second = artifact.make(again, artifact.inputs(again))
    assert content(second.folder) == before


def test_a_run_that_went_on_has_no_rate(made, stage, tmp_path):
    again = SimpleNamespace(**vars(stage))
    again.output = lambda name: tmp_path / name
    assert artifact.make(again, artifact.inputs(again)).cpu_seconds is None


def test_texts_are_found_on_every_side(made):
    for side in engine.SIDES:
        row = curated.read(made.folder, side).slice(0, 1).to_pylist()[0]
        assert artifact.texts(made.folder, [row["id"], "no such id"]) == {row["id"]: row["text"]}


def test_pages_to_look_at_are_read_where_they_are_no_source(made, stage, monkeypatch):
    monkeypatch.setattr(artifact, "SHOWN", "udhr")
    pages = artifact.shown_pages(stage, made)
    assert pages.num_rows == curated.read(made.folder, "udhr").num_rows
    searched = artifact.compared(pages)
    assert 0 < searched.num_rows < pages.num_rows
    assert set(searched["step"].to_pylist()) <= {None, *artifact.AFTER_LANGUAGE}
    assert len(set(searched["text"].to_pylist())) == searched.num_rows


def test_a_missing_corpus_is_told_before_any_work(tmp_path, repository, monkeypatch):
    monkeypatch.setenv("MOXIN_CORPUS", str(tmp_path / "none"))
    with pytest.raises(CorpusError, match="moxin-lab corpus build --scale small"):
        artifact.inputs(stage_at(tmp_path, repository, scales.load("small").data))
    assert list((tmp_path / "scratch").iterdir()) == []


# ---- the classifier's scores


def written(folder, rows):
    """A folder of curated documents; every fourth is held out."""
    schema = pa.schema([(name, pa.string()) for name in ("id", "language", "page", "text")])
    for side in ("train", "heldout"):
        mine = [row for number, row in enumerate(rows) if (number % 4 == 3) == (side == "heldout")]
        (folder / side).mkdir(exist_ok=True)
        for shard in range(2):
            table = pa.Table.from_pylist(mine[shard::2], schema=schema)
            pq.write_table(table, folder / side / f"{shard}.parquet")


def labelled_pages(count=240):
    """Tutorials in one half of the words, indexes in the other, and pages without a label."""
    rows = []
    for number in range(count):
        kinds = [("tutorial", WORDS[:20]), ("genindex", WORDS[20:]), ("c", WORDS)]
        kind, words = kinds[number % 3]
        text = " ".join(random.Random(number).choices(words, k=80))
        rows.append(
            {"id": f"p{number}", "language": "en", "page": f"{kind}/{number}", "text": text}
        )
    return rows


def test_a_score_tells_kinds_of_pages_apart_and_no_scored_page_was_learnt_from(tmp_path):
    rows = labelled_pages()
    written(tmp_path, rows)
    found = scores.measure(tmp_path, seed=0)
    assert found.learnt == (45, 45) and (len(found.good), len(found.bad)) == (15, 15)
    assert found.auc > 0.9 and len(found.unlabelled) == 60
    assert (found.unlabelled >= found.cut).sum() == pytest.approx(6, abs=1)
    assert "above a bad one in" in scores.sentence(found)


def test_without_both_kinds_of_names_there_is_no_score(tmp_path):
    written(tmp_path, [row for row in labelled_pages() if "genindex" not in row["page"]])
    assert scores.measure(tmp_path, seed=0) is None
