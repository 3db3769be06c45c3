"""A pipeline on files: equal bytes however it is run, nothing lost, every removal with a reason."""

import json
import random
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moxin_lab.data import decontaminate, engine, pipelines, readers
from moxin_lab.data.extract import CurationError
from moxin_lab.data.findings import Finding
from moxin_lab.data.steps import Across, Learned, Local
from moxin_lab.lab import curated

WORDS = """
    river stone cloud window paper engine garden market winter letter copper silver bridge forest
    harbour kitchen ladder mirror needle orange pepper quarry ribbon saddle tunnel valley whistle
    the of and a in to is that it was for on with as his they at be this from
""".split()  # noqa: SIM905


def prose(seed, words=120):
    return " ".join(random.Random(seed).choices(WORDS, k=words)).capitalize() + "."


def table(**texts):
    rows = [{"key": key, "body": text, "site": key[0]} for key, text in texts.items()]
    return pa.Table.from_pylist(rows, schema=pa.schema([(n, pa.string()) for n in rows[0]]))


ITEM = "How many clips did Natalia sell altogether in April and May if she sold half as many in May"


def corpus():
    """Documents with one of each kind that a step removes."""
    texts = {f"a{number:02d}": prose(number) for number in range(30)}
    texts |= {
        "b-copy": texts["a03"],
        "b-near": texts["a04"] + " One more.",
        "c-short": "Too short.",
        "c-german": "Der Hund schläft auf dem Sofa, und die Katze sitzt am Fenster. " * 8,
        "d-item": prose(77) + " how MANY clips\ndid Natalia sell\taltogether; in april and may "
        "if she sold half as many in may? " + prose(78),
        "e-mail": prose(79) + " Write to jane.doe@example.org, please. " + prose(80),
        "f-empty": "",
        "f-null": None,
    }
    return table(**texts)


def source(folder, *tables, layout=None):
    folder.mkdir()
    for number, each in enumerate(tables):
        pq.write_table(each, folder / f"{number}.parquet", row_group_size=7)
    layout = layout or readers.plain("body", "en", id="key", project="site")
    return readers.Input("tales", layout, readers.files_below(str(folder)))


def options(**changes):
    index = decontaminate.Index()
    index.add("gsm8k", "test 1", ITEM)
    return pipelines.Options(evaluation=index, heldout_share=0.2)._replace(**changes)


def curate(source, out, seed=0, **changes):
    steps = pipelines.slimpajama(options(seed=seed))
    arguments = {"say": lambda line: None} | changes
    return engine.run("slimpajama", steps, [source], out, **arguments)


def content(out):
    return {
        path.relative_to(out): path.read_bytes()
        for side in engine.SIDES
        for path in sorted((out / side).iterdir())
    } | {"funnel": (out / "funnel.json").read_bytes()}


def rows(out, side):
    return [row for each in curated.shards(out, side) for row in each.to_pylist()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    curate(source(folder / "in", corpus()), folder / "out")
    return folder / "out"


def test_every_document_read_is_in_one_folder_and_every_removal_has_its_reason(finished):
    kept = {row["id"] for side in ("train", "heldout") for row in rows(finished, side)}
    removed = {row["id"].removeprefix("tales/"): row for row in rows(finished, "removed")}
    assert len(kept) + len(removed) == corpus().num_rows
    assert rows(finished, "heldout")
    told = {key: (row["step"], row["reason"], row["detail"]) for key, row in removed.items()}
    assert told["b-copy"] == ("exact duplicates", "exact duplicate", "copy of tales/a03")
    assert told["b-near"][0] == "near-duplicates"
    assert told["b-near"][2].startswith("tales/a04 stays (Jaccard 0.9")
    assert told["c-short"] == ("short filter", "short document", "8 characters, 200 needed")
    assert told["c-german"][:2] == ("language", "language mismatch")
    assert told["d-item"][:2] == ("decontamination", "contaminated")
    assert told["d-item"][2].startswith("gsm8k test 1: how many clips did natalia")
    assert told["f-empty"] == ("reading", "no text", "column 'body' is null or empty")
    assert told["f-null"] == told["f-empty"]
    assert len(removed) == 7


def test_no_planted_personal_data_survives(finished):
    kept = [row for side in ("train", "heldout") for row in rows(finished, side)]
    (mail,) = [row["text"] for row in kept if row["id"] == "tales/e-mail"]
    assert "Write to <EMAIL>, please." in mail
    assert not any("@" in row["text"] for row in kept)


def test_the_funnel_counts_what_is_left_after_each_step(finished):
    counted = json.loads((finished / "funnel.json").read_text())
    left = {row["step"]: row["documents"] for row in counted["steps"]}
    assert list(left) == json.loads((finished / "run.json").read_text())["steps"]
    assert left["reading"] == 36 and left["short filter"] == 35 and left["language"] == 34
    assert left["decontamination"] == 33 and left["near-duplicates"] == 31
    size = sum(row["num_bytes"] for side in ("train", "heldout") for row in rows(finished, side))
    assert counted["steps"][-1]["bytes"] == size
    assert sum(row["documents"] for row in counted["removed"]) == 7


@pytest.mark.parametrize("parts", [2, 5])
def test_one_file_and_many_in_any_order_give_the_same_bytes(parts, finished, tmp_path):
    whole = corpus()
    shuffled = whole.take(random.Random(parts).sample(range(len(whole)), len(whole)))
    ends = [number * len(whole) // parts for number in range(parts + 1)]
    tables = [shuffled.slice(start, end - start) for start, end in pairwise(ends)]
    curate(source(tmp_path / "in", *tables), tmp_path / "out", threads=2)
    assert content(tmp_path / "out") == content(finished)


def test_a_second_run_changes_nothing(finished):
    before, lines = content(finished), []
    record = (finished / "run.json").read_bytes()
    curate(source_again(finished), finished, say=lines.append)
    assert content(finished) == before and (finished / "run.json").read_bytes() == record
    assert lines == [f"{finished}: done before, nothing to do"]


def source_again(finished):
    files = readers.files_below(str(finished.parent / "in"))
    return readers.Input("tales", readers.plain("body", "en", id="key", project="site"), files)


@pytest.mark.parametrize("stop", range(1, 8, 2))
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(stop, finished, tmp_path, monkeypatch):
    whole = corpus()
    given = source(tmp_path / "in", *(whole.slice(start, 13) for start in range(0, 38, 13)))
    written = []

    def killed(function):
        def once(*arguments, **named):
            written.append(arguments)
            if len(written) == stop:
                raise KeyboardInterrupt
            return function(*arguments, **named)

        return once

    with monkeypatch.context() as patched:
        patched.setattr(engine, "_write", killed(engine._write))
        patched.setattr(engine, "write_table", killed(engine.write_table))
        with pytest.raises(KeyboardInterrupt):
            curate(given, tmp_path / "out")
    assert len(list((tmp_path / "out" / "work" / "pass-0").glob("*"))) == min(stop - 1, 3)
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_write", killed(engine._write))
        curate(given, tmp_path / "out")
    again = [target for _, target, *_ in written[stop:] if target.parent.name == "pass-0"]
    assert len(again) == 3 - min(stop - 1, 3)
    assert content(tmp_path / "out") == content(finished)


def test_a_folder_with_the_work_of_another_run_is_refused(finished, tmp_path):
    with pytest.raises(CurationError, match=r"another run \(other seed\): remove it, or name"):
        curate(source_again(finished), finished, seed=1)
    with pytest.raises(CurationError, match=r"another run \(other settings\)"):
        curate(source_again(finished), finished, settings={"minimum_characters": 100})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CurationError, match=r"is not empty and has no run\.json"):
        curate(source_again(finished), tmp_path)


@pytest.fixture
def damaged(tmp_path):
    """Two files, the first of them with a hole in it."""
    given = source(tmp_path / "in", corpus().slice(0, 20), corpus().slice(20))
    path = tmp_path / "in" / "0.parquet"
    data = bytearray(path.read_bytes())
    data[200:900] = bytes(700)
    path.write_bytes(data)
    return given


def test_a_corrupt_file_is_named(damaged, tmp_path):
    with pytest.raises(CurationError, match=r"in/0\.parquet: .* With --keep-going the other files"):
        curate(damaged, tmp_path / "out")


def test_with_keep_going_the_other_files_run_and_the_corrupt_one_is_recorded(damaged, tmp_path):
    record = curate(damaged, tmp_path / "out", keep_going=True)
    (failed,) = record["failed"]
    assert failed["file"].endswith("in/0.parquet")
    kept = {row["id"] for side in ("train", "heldout") for row in rows(tmp_path / "out", side)}
    assert "tales/a25" in kept and "tales/a03" not in kept
    pq.write_table(corpus().slice(0, 20), tmp_path / "in" / "0.parquet", row_group_size=7)
    repaired = readers.Input("tales", damaged.layout, damaged.files)
    curate(repaired, tmp_path / "out", keep_going=True)
    kept = {row["id"] for side in ("train", "heldout") for row in rows(tmp_path / "out", side)}
    assert {"tales/a25", "tales/a03"} <= kept


def test_if_no_file_can_be_read_keep_going_is_an_error(damaged, tmp_path):
    alone = damaged._replace(files=damaged.files[:1])
    with pytest.raises(
        CurationError, match=r"no input file could be read; the first: .*0\.parquet"
    ):
        curate(alone, tmp_path / "out", keep_going=True)


def test_two_documents_of_one_id_are_refused(tmp_path):
    given = source(tmp_path / "in", table(a=prose(1)), table(a=prose(2)))
    with pytest.raises(CurationError, match="two documents have the id 'tales/a'"):
        curate(given, tmp_path / "out")


@pytest.mark.parametrize(
    "texts",
    [
        {f"a{n}": prose(n) for n in range(5)},
        {f"a{n}": prose(0) for n in range(5)},
        {"a": ""},
        {"a": "abc"},
        {"a": "The wind crosses the wide world and nobody sees it. " * 190_000},
        {"a": "\n".join(prose(n) for n in range(16_000))},
        {"a": "\ufeffe\u0301\x00\U0001f600 " * 300},
    ],
    ids=["no copies", "copies only", "empty", "tiny", "a line of 10 MB", "10 MB", "odd characters"],
)
def test_no_kind_of_document_ends_a_run_or_is_lost(texts, tmp_path):
    steps = pipelines.slimpajama(options(language_share=0.01))
    given = source(tmp_path / "in", table(**texts))
    engine.run("x", steps, [given], tmp_path / "out", say=lambda line: None)
    assert sum(len(rows(tmp_path / "out", side)) for side in engine.SIDES) == len(texts)


def test_a_learned_step_sees_what_is_left_and_later_steps_its_text(tmp_path):
    drop = Local("first", lambda text, labels: Finding("no", "b") if "b" in text else text)

    def learn(frame):
        return sorted(frame.select("text").to_pydict()["text"])

    shown = Learned("count", learn, lambda seen: lambda text, labels: text + "".join(seen))
    last = Across("last", lambda frame: removals(frame, "aac"))
    steps = [drop, shown, last, Local("more", lambda text, labels: text + "!")]
    engine.run(
        "x",
        steps,
        [source(tmp_path / "in", table(a="a", b="b", c="c"))],
        tmp_path / "out",
        say=lambda line: None,
    )
    assert [row["text"] for row in rows(tmp_path / "out", "train")] == ["cac!"]
    gone = {row["id"]: (row["step"], row["text"]) for row in rows(tmp_path / "out", "removed")}
    assert gone == {"tales/b": ("first", "b"), "tales/a": ("last", "aac")}
    steps = json.loads((tmp_path / "out/funnel.json").read_text())["steps"]
    assert [(row["step"], row["documents"], row["bytes"]) for row in steps] == [
        ("reading", 3, 3),
        ("first", 2, 2),
        ("count", 2, 6),
        ("last", 1, 3),
        ("more", 1, 4),
    ]


def removals(frame, text):
    found = frame.select("id", "text").to_pylist()
    ids = [row["id"] for row in found if row["text"] == text]
    return pa.table({"id": ids, "reason": ["chosen"] * len(ids), "detail": [""] * len(ids)})


def test_a_local_ray_gives_the_same_bytes(finished, tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'moxin-lab[cluster]'")
    import subprocess
    import sys

    code = (
        "import ray; ray.init(num_cpus=2, include_dashboard=False, _node_ip_address='127.0.0.1');"
        "import sys; from pathlib import Path; from moxin_lab.data import engine; engine.use_ray();"
        f"sys.path.insert(0, {str(__file__.rpartition('/')[0])!r}); import test_engine as t;"
        f"t.curate(t.source_again(Path({str(finished)!r})), Path({str(tmp_path / 'out')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
    assert content(tmp_path / "out") == content(finished)
