"""The three recipes on documents made for each of their steps."""

import random

import daft
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moxin_lab.data import (
    decontaminate,
    dedup,
    engine,
    pipelines,
    readers,
    split,
    steps_across,
)
from moxin_lab.data.extract import CurationError
from moxin_lab.data.steps import Held, Marks
from moxin_lab.lab import curated

WORDS = """
    river stone cloud window paper engine garden market winter letter copper silver bridge forest
    harbour kitchen ladder mirror needle orange pepper quarry ribbon saddle tunnel valley whistle
    the of and a in to is that it was for on with as his they at be this from
""".split()  # noqa: SIM905
COLUMNS = ("key", "page", "site", "language", "code_language", "licence", "body")
LABELS = {"id": "key", "page": "page", "project": "site", "licence": "licence"}


def prose(seed, words=120):
    return " ".join(random.Random(seed).choices(WORDS, k=words)).capitalize() + "."


def document(key, body, *, page="", site="", language="en", licence="MIT"):
    return dict(zip(COLUMNS, (key, page or key, site, language, "", licence, body), strict=True))


def curate(recipe, rows, folder, **options):
    """Removals as {id: (step, reason, detail)} and texts of what is kept, by id."""
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    (folder / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "in" / "0.parquet")
    layout = readers.plain("body", "", language_column="language", **LABELS)
    given = readers.Input("x", layout, readers.files_below(str(folder / "in")))
    steps = pipelines.RECIPES[recipe](pipelines.Options(**options))
    engine.run(recipe, steps, [given], folder / "out", say=lambda line: None)
    found = {
        side: [row for each in curated.shards(folder / "out", side) for row in each.to_pylist()]
        for side in engine.SIDES
    }
    assert sum(map(len, found.values())) == len(rows)
    told = {
        row["id"].removeprefix("x/"): (row["step"], row["reason"], row["detail"])
        for row in found["removed"]
    }
    kept = [*found["train"], *found["heldout"]]
    return told, {row["id"].removeprefix("x/"): row["text"] for row in kept}


MENU = "Home\nContents\nIndex\n"


def test_lines_that_a_sites_pages_share_go_and_code_keeps_its_own(tmp_path):
    rows = [document(f"p{n}", MENU + prose(n), site="manual") for n in range(12)]
    rows += [
        document(f"c{n}", MENU + prose(50 + n), site="manual", language="code") for n in range(12)
    ]
    removed, kept = curate("slimpajama", rows, tmp_path)
    assert removed == {}
    assert kept["p3"] == prose(3) and kept["c3"] == MENU + prose(53)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_a_near_duplicate_in_a_script_without_spaces_is_found_as_in_english(language, tmp_path):
    drawn = random.Random(1)
    units = WORDS if language == "en" else [chr(0x3042 + n) for n in range(80)]
    space = " " if language == "en" else ""
    text = space.join(drawn.choices(units, k=3000))
    rows = [document("a", text, language=language), document("b", text[:-40], language=language)]
    options = {"near": dedup.RECIPE_WIDE, "language_share": 0.01}
    removed, _ = curate("slimpajama", rows, tmp_path, **options)
    assert removed.keys() == {"b"} and removed["b"][0] == "near-duplicates"


def test_without_verification_what_shares_a_bucket_is_removed(tmp_path):
    drawn = random.Random(0)
    text = [drawn.choice(WORDS) for _ in range(400)]
    other = [drawn.choice(WORDS) if drawn.random() < 0.3 else word for word in text]
    rows = [document("a", " ".join(text)), document("b", " ".join(other))]
    loose = dedup.Settings(5, 128, 42, 3, 0.8)
    for name in ("verified", "trusted"):
        (tmp_path / name).mkdir()
    removed, _ = curate("slimpajama", rows, tmp_path / "verified", near=loose)
    assert removed == {}
    removed, _ = curate("slimpajama", rows, tmp_path / "trusted", near=loose, verify=False)
    assert removed["b"][2].startswith("x/a stays (Jaccard 0.")


def near_copies():
    """Forty pairs of documents: `a`, and `b` with one word in a hundred changed."""
    drawn = random.Random(3)
    rows = []
    for number in range(40):
        text = drawn.choices(WORDS, k=600)
        near = [drawn.choice(WORDS) if drawn.random() < 0.01 else word for word in text]
        rows += [document(f"{number}a", " ".join(text)), document(f"{number}b", " ".join(near))]
    return rows


def test_what_resembles_a_held_out_document_leaves_the_training_text():
    rows = [
        {"id": row["key"], "page": row["page"], "text": row["body"], "step": None,
         "sizes": [len(row["body"])]}
        for row in near_copies()
    ]  # fmt: skip
    frame = daft.from_pylist(rows).with_column("step", daft.lit(None).cast(daft.DataType.string()))
    frame = Marks(128, 13)(frame)
    held = Held(frozenset(f"{number}a" for number in range(0, 40, 2)), frozenset(["2a"]))
    step = steps_across.held_out(dedup.RECIPE, 0.3, 1, bands=21, rows=6)
    gone = step.removals(frame, held).to_pylist()
    # 2a is on neither side, so its near-copy may stay
    assert [row["id"] for row in gone if row["reason"] == split.REASONS[1]] == ["2a"]
    gone = [row for row in gone if row["id"] != "2a"]
    assert {row["id"] for row in gone} == {f"{n}b" for n in range(0, 40, 2) if n != 2}
    for row in gone:
        assert row["reason"] == "duplicate of a held-out document"
        assert row["detail"] == f"near-duplicate of {row['id'][:-1]}a"


def test_held_out_pages_have_little_of_the_training_text_and_stay_whole(tmp_path):
    drawn = random.Random(5)
    passages = [" ".join(drawn.choices(WORDS, k=60)) for _ in range(12)]
    rows = []
    for number in range(120):
        shared = f" {passages[number % 12]}" if number < 40 else ""
        rows += [
            document(f"{number}/{part}", prose(300 + number, 150) + shared, page=f"p{number}")
            for part in ("en", "xx")
        ]
        rows[-1]["body"] = prose(900 + number, 200)
    blind = dedup.Settings(13, 128, 1, 60, 0.8)
    curate("slimpajama", rows, tmp_path, near=blind, heldout_share=0.2, seed=1)
    train, held = (
        pa.concat_tables(curated.shards(tmp_path / "out", side)) for side in ("train", "heldout")
    )
    assert held.num_rows > 20
    assert not set(train["page"].to_pylist()) & set(held["page"].to_pylist())
    assert (split.overlap([train], held)["covered"] <= split.MAX_OVERLAP).all()


def test_the_page_on_recipes_names_the_steps_in_their_order(repository):
    page = (repository / "docs" / "pipelines.md").read_text(encoding="utf-8")
    options = pipelines.Options(evaluation=decontaminate.Index(), heldout_share=0.1)
    for name, recipe in pipelines.RECIPES.items():
        steps = [step.name for step in recipe(options) if not isinstance(step, Marks)]
        assert f"| `{name}` | {', '.join(steps)} |" in page
        assert len(set(steps)) == len(steps)


# ---- DCLM


def web_pages():
    return [
        document(f"{'tutorial' if n % 2 else 'genindex'}/{n}", body, page=f"{kind}/{n}")
        for n in range(120)
        for kind, body in [
            ("tutorial", prose(n)) if n % 2 else ("genindex", f"{prose(n, 60)} symbol table {n}")
        ]
    ]


def test_dclm_keeps_the_best_tenth_by_quality_and_tells_each_score(tmp_path):
    rows = web_pages()
    rows += [document("code", "int main() { return 0; }\n" * 20, language="code")]
    rows += [document("list", "- one\n" * 60 + prose(7))]
    removed, kept = curate("dclm", rows, tmp_path)
    good = sum(key.startswith("tutorial") for key in kept)
    assert len(kept) == 12 and good >= 10
    assert removed["code"][:2] == ("prose only", "code")
    assert removed["list"][0] == "heuristics"
    quality = [told for told in removed.values() if told[0] == "quality"]
    assert len(quality) == 108 and {told[1] for told in quality} == {"not in the top 10%"}
    score, cut = quality[0][2].removeprefix("score ").removesuffix(" needed in en").split(", ")
    assert 0 <= float(score) <= float(cut) <= 1


def test_no_language_vanishes_because_another_scores_better():
    # Lists are English alone, guides of both languages: to the classifier German is good.
    english, german = (
        [document(f"{code}{n}", words + prose(n), language=code) for n in range(40)]
        for code, words in (("en", "the of and "), ("de", "der die und " * 40))
    )
    for n, row in enumerate(english):
        row["page"] = f"manual/{'genindex' if n % 4 else 'tutorial'}/{n}"
    for n, row in enumerate(german):
        row["page"] = f"manual/tutorial/de{n}"
    lone = document("lone", prose(99), language="is")
    rows = [*english, *german, lone]
    step = steps_across.top_quality("fasttext", 0.1, 0)
    frame = daft.from_pylist(rows).with_columns_renamed({"key": "id", "body": "text"})
    gone = step.removals(frame).to_pylist()
    kept = {row["key"] for row in rows} - {row["id"] for row in gone}
    assert sorted(key[:2] for key in kept) == ["de"] * 4 + ["en"] * 4 + ["lo"]
    cuts = {row["detail"].split(", ")[1] for row in gone}
    assert len(cuts) == 2 and {cut[-5:] for cut in cuts} == {"in de", "in en"}


def test_a_paragraph_that_an_earlier_document_has_goes_whatever_the_order(tmp_path):
    shared, own = prose(1000, 40), [prose(2000 + n) for n in range(3)]
    rows = web_pages() + [
        document("a", f"{own[0]}\n{shared}\n"),
        document("b", f"{shared.upper()}\n{own[1]}\nShort line.\n"),
        document("c", f"{shared}\n{own[0]}\nToo little of its own.\n"),
    ]
    told = []
    for name, ordered in (("up", rows), ("down", rows[::-1])):
        (tmp_path / name).mkdir()
        removed, kept = curate("dclm", ordered, tmp_path / name, top_share=1.0)
        assert kept["a"] == f"{own[0]}\n{shared}\n"
        assert kept["b"] == f"{own[1]}\nShort line.\n"
        assert removed["c"][:2] == ("paragraph duplicates", "duplicate paragraphs")
        told.append((removed, kept))
    assert told[0] == told[1]


def test_dclm_without_labelled_pages_says_which_are_missing(tmp_path):
    rows = [document(f"d{n}", prose(n)) for n in range(5)]
    with pytest.raises(
        CurationError, match="needs pages of both kinds; there are 0 good and 0 bad"
    ):
        curate("dclm", rows, tmp_path)


# ---- The Stack


def function(seed):
    drawn = random.Random(seed)
    lines = (f"    {drawn.choice(WORDS)} = {drawn.choice(WORDS)}({n})" for n in range(40))
    return "def run():\n" + "\n".join(lines) + "\n"


def test_the_stack_drops_by_licence_generated_files_prose_and_copies(tmp_path):
    code = {"language": "code"}
    rows = [
        document("lib/a.py", function(1), **code),
        document("lib/b.py", function(1), **code),
        document("lib/c.py", "# Code generated by protoc. DO NOT EDIT.\n" + function(2), **code),
        document("lib/d.py", function(3), licence="GPL-3.0-or-later", **code),
        document("lib/e.py", "x = '" + "a" * 5000 + "'\n", **code),
        document("lib/f.zzz9", "\x01 ?? !!", **code),
        document("guide", prose(5)),
    ]
    removed, kept = curate("the_stack", rows, tmp_path)
    assert kept.keys() == {"lib/a.py"}
    steps = {key: told[0] for key, told in removed.items()}
    assert steps == {
        "lib/b.py": "exact duplicates",
        "lib/c.py": "code filters",
        "lib/d.py": "licence",
        "lib/e.py": "code filters",
        "lib/f.zzz9": "known language",
        "guide": "code only",
    }
    (table,) = curated.shards(tmp_path / "out", "train")
    assert table["code_language"].to_pylist() == ["python"]
