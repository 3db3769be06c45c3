"""`moxin-lab curate` and `explain`, on data cards and on files of the hub's schemas."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moxin_lab import cli, scales
from moxin_lab.data import corpus, curation, engine, extract, readers
from moxin_lab.data.extract import HUB_SETS, CurationError
from moxin_lab.lab import curated
from moxin_lab.scales import sections

UDHR = ("curate", "slimpajama", "--source", "udhr")


@pytest.fixture(scope="module")
def udhr(tmp_path_factory, repository):
    """The translations of the declaration through SlimPajama's recipe by the command line."""
    out = tmp_path_factory.mktemp("curation") / "out"
    assert cli.main(["--root", str(repository), *UDHR, "--out", str(out)]) == 0
    return out


def test_a_card_goes_through_a_recipe_and_each_row_is_accounted_for(udhr, repository):
    rows = [
        row
        for side in engine.SIDES
        for each in curated.shards(udhr, side)
        for row in each["id"].to_pylist()
    ]
    entered = sum(map(len, extract.extract_card(repository / "data_cards" / "udhr")))
    assert len(rows) == len(set(rows)) == entered == 532
    steps = json.loads((udhr / "funnel.json").read_text())["steps"]
    assert sum(row["documents"] for row in steps if row["step"] == "reading") > 500


def test_a_runs_page_has_its_numbers_and_short_excerpts_alone(udhr):
    text = (udhr / "README.md").read_text()
    assert "Made by `moxin-lab curate slimpajama --scale tiny --source udhr --out out`." in text
    counted = json.loads((udhr / "funnel.json").read_text())
    for step in ("reading", "near-duplicates"):
        rows = [row for row in counted["steps"] if row["step"] == step]
        documents, size = (sum(row[unit] for row in rows) for unit in ("documents", "bytes"))
        assert f"| {step} | {documents:,} | {size / 1e6:,.1f} |" in text
    for row in counted["removed"]:
        assert f"**{row['step']}**" in text and f"| {row['step']} | {row['reason']} |" in text
    assert max(map(len, text.splitlines())) < 500


def test_explain_tells_the_step_and_the_reason_of_a_removal(udhr, capsys):
    (row, *_) = (row for each in curated.shards(udhr, "removed") for row in each.to_pylist())
    assert cli.main(["explain", row["id"], "--folder", str(udhr)]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0] == row["id"]
    assert f"removed by the step '{row['step']}': {row['reason']}\n  {row['detail']}" in told


def test_explain_tells_which_documents_a_kept_one_stands_for(tmp_path):
    texts = {"a": "one " * 90, "b": "one " * 90, "c": "two " * 90}
    rows = [{"body": text, "key": key} for key, text in texts.items()]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "0.parquet")
    files = readers.files_below(str(tmp_path / "in"))
    given = readers.Input("x", readers.plain("body", "code", id="key"), files)
    options = curation.options(scales.load("tiny").data, None, 0)
    steps = curation.RECIPES["slimpajama"](options)
    engine.run("x", steps, [given], tmp_path / "out", say=lambda line: None)
    told = curation.explain(tmp_path / "out", "x/a")
    assert "kept, in train: 360 bytes of text" in told
    assert "1 documents were removed because it stays, such as:\n    x/b: copy of x/a" in told
    with pytest.raises(CurationError, match=r"no document 'x/d' in .*; an id looks like 'x/a'"):
        curation.explain(tmp_path / "out", "x/d")


def test_explain_without_a_run_says_what_to_run(tmp_path, capsys):
    assert cli.main(["explain", "a", "--folder", str(tmp_path / "none")]) == 1
    assert "has no curated documents: run `moxin-lab run --only 01`" in capsys.readouterr().err


def test_an_unknown_source_is_refused_with_those_that_there_are(tmp_path, repository, capsys):
    words = ["--root", str(repository), "curate", "slimpajama", "--source", "wikipedia"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 1
    assert "no source 'wikipedia': there are small_corpus, help_pages" in capsys.readouterr().err


# ---- hub sets, by path


FILES = scales.load("full").data.hub_files
ROWS = {
    "slimpajama": {"text": "A page.", "meta": {"redpajama_set_name": "RedPajamaC4"}},
    "dclm-baseline": {"text": "A page.", "url": "http://example.org/a", "language_id": 0},
    "the-stack-dedup": {
        "content": "int a;", "hexsha": "00ff", "lang": "C", "size": 6,
        "max_stars_repo_licenses": ["MIT", "ISC"], "max_stars_repo_name": "a/b",
    },
    "mmlu-auxiliary-train": {
        "question": "2 + 2?", "subject": "", "choices": ["1", "2", "3", "4"], "answer": 3,
    },
    "hellaswag-train": {
        "ind": 1, "activity_label": "Baking", "ctx_a": "A cook", "ctx_b": "he", "ctx": "",
        "endings": ["a", "bakes a pie.", "c", "d"], "label": "1",
    },
}  # fmt: skip
TEXTS = {
    "slimpajama": "A page.",
    "dclm-baseline": "A page.",
    "the-stack-dedup": "int a;",
    "mmlu-auxiliary-train": "2 + 2?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: D",
    "hellaswag-train": "Baking: A cook He bakes a pie.",
}


def hub_file(folder, name, rows):
    """A file where and as the set has it on the hub."""
    path = folder / FILES[name].replace("*", "0")
    path.parent.mkdir(parents=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    plain = path.with_suffix("")
    plain.write_text("\n".join(map(json.dumps, rows)) + "\n")
    data = pa.compress(plain.read_bytes(), codec="zstd", asbytes=True)
    path.write_bytes(data)
    plain.unlink()
    return path


@pytest.mark.parametrize("name", HUB_SETS)
def test_a_hub_set_is_read_by_path_as_its_files_are(name, tmp_path):
    assert ROWS.keys() == HUB_SETS.keys() == FILES.keys()
    hub_file(tmp_path, name, [ROWS[name], dict.fromkeys(ROWS[name])])
    given = readers.of_hub(name, str(tmp_path), FILES[name])
    first, second = given.read(given.files[0]).to_pylist()
    assert first["text"] == TEXTS[name] and first["step"] is None
    assert first["sizes"] == [len(TEXTS[name])]
    assert (second["step"], second["text"]) == ("reading", "")
    if name == "the-stack-dedup":
        assert (first["id"], first["licence"]) == ("the-stack-dedup/00ff", "MIT, ISC")
        assert (first["code_language"], first["project"]) == ("C", "a/b")
    else:
        stem = FILES[name].replace("*", "0").split(".")[0]
        assert first["id"] == f"{name}/{stem}/000000000"


@pytest.mark.parametrize("name", HUB_SETS)
def test_a_file_of_another_schema_is_refused_with_its_columns(name, tmp_path):
    hub_file(tmp_path, name, [{"body": "A page.", "title": "a"}])
    given = readers.of_hub(name, str(tmp_path), FILES[name])
    with pytest.raises(CurationError, match=rf"{name} has no column '\w+', only body, title"):
        given.read(given.files[0])


def test_a_local_copy_of_a_hub_set_runs_through_a_recipe(tmp_path):
    rows = [{"text": "The cat sat on the mat. " * 20}] * 3
    hub_file(tmp_path / "set", "slimpajama", rows)
    full = scales.load("full")
    hub = sections.HubSettings(paths={"cerebras/SlimPajama-627B": "set"})
    (given,) = curation.inputs(["slimpajama"], full.data, hub, tmp_path)
    assert [file.name for file in given.files] == ["train/0/0.jsonl.zst"]
    steps = curation.RECIPES["slimpajama"](curation.options(full.data, None, 0))
    engine.run("x", steps, [given], tmp_path / "out", say=lambda line: None)
    assert sum(map(len, curated.shards(tmp_path / "out", "train"))) == 1


def test_an_entry_of_a_scale_is_an_input(tmp_path):
    (tmp_path / "poems").mkdir()
    (tmp_path / "poems" / "a.jsonl").write_text('{"body": "Roses", "title": "t"}\n{"body": ""}\n')
    entry = {"name": "poems", "path": "poems", "text": "body", "page": "title", "language": "en"}
    given = curation.of_entry(sections.CorpusSettings(**entry, licence="CC0-1.0"), tmp_path)
    rows = given.read(given.files[0]).to_pylist()
    assert [(row["id"], row["page"], row["reason"]) for row in rows] == [
        ("poems/a/000000000", "t", None),
        ("poems/a/000000001", "poems/a/000000001", "no text"),
    ]


def test_full_scales_mixtures_draw_from_sources_whose_files_are_named():
    full = scales.load("full")
    drawn = {name for phase in full.pretraining.phases for name in phase.mixture}
    drawn |= {name for phase in full.pretraining.phases for name in phase.benchmark_mixture or ()}
    assert {"slimpajama", "mmlu-auxiliary-train"} <= drawn
    assert drawn <= set(full.data.sources) == full.data.hub_files.keys()


# ---- the corpus's raw pages, as `dclm` reads them


def test_raw_pages_are_decoded_and_extracted_or_set_aside_with_the_reason(tmp_path, monkeypatch):
    body = "<main><h1>猫の本</h1><p>" + "猫は窓のそばで静かに眠っている。" * 20 + "</p></main>"
    page = f"<html><head><meta charset=shift_jis></head><body>{body}</body></html>"
    rows = [
        ("sjis.html", "html", page.encode("shift_jis")),
        ("cut.html", "html", b"<html><body><p>Half a page <a hre"),
        ("bytes.html", "html", bytes(range(128, 256)) * 8),
        ("empty.html", "html", b"<html><body></body></html>"),
        ("a.1", "man", b".TH A 1\n"),
    ]
    labels = {"package": "p", "project": "p", "page": "p", "language": "ja", "code_language": "",
              "licence": "MIT", "path": "x"}  # fmt: skip
    table = pa.Table.from_pylist(
        [labels | {"id": f"p/{n}", "format": f, "content": c} for n, f, c in rows],
        schema=corpus.RAW,
    )
    for kind in ("raw", "text"):
        (tmp_path / kind).mkdir()
        pq.write_table(table, tmp_path / kind / "p-00000.parquet")
    (tmp_path / "build.json").write_text(json.dumps({"shards": ["p-00000.parquet"]}))
    monkeypatch.setenv("MOXIN_CORPUS", str(tmp_path))
    small = scales.load("small")
    (given,) = curation.inputs(["small_corpus"], small.data, small.hub, tmp_path, "dclm")
    found = {row["id"].rpartition("/")[2]: row for row in given.read(given.files[0]).to_pylist()}
    assert found["sjis.html"]["step"] is None
    assert found["sjis.html"]["text"].count("猫は窓のそばで静かに眠っている。") == 20
    assert found["sjis.html"]["project"] == "p"
    reasons = {name: row["reason"] for name, row in found.items() if row["step"] == "reading"}
    assert reasons.keys() == {"cut.html", "bytes.html", "empty.html", "a.1"}
    assert reasons["empty.html"] == "no main content" and reasons["a.1"] == "no web page"
