"""The split: no page on both sides, whatever the seed; what is left of the held-out text in
training is removed or measured.
"""

import random

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab.data import split
from moxin_lab.data.extract import DOCUMENTS


def documents(*rows: tuple[str, str, str]) -> pa.Table:
    """(page, language, text) rows."""
    return pa.Table.from_pylist(
        [
            {
                "id": f"{page}/{language}",
                "source": "s",
                "language": language,
                "page": page,
                "text": text,
            }
            for page, language, text in rows
        ],
        schema=DOCUMENTS,
    )


@settings(deadline=None)
@given(
    st.lists(st.text(max_size=8), unique=True, max_size=30),
    st.integers(0, 2**31),
    st.floats(0.01, 0.99),
)
def test_no_page_is_on_both_sides(pages: list[str], seed: int, share: float) -> None:
    table = documents(
        *((page, language, "x") for page in pages for language in ("en", "zh", "ja", "ko"))
    )
    train, heldout = split.split(table, share, seed)
    assert train.num_rows + heldout.num_rows == table.num_rows
    assert not set(train["page"].to_pylist()) & set(heldout["page"].to_pylist())


def test_the_share_is_kept_and_the_seed_decides() -> None:
    pages = [f"help/{i}" for i in range(20_000)]
    sides = {seed: [split.is_heldout(page, 0.08, seed) for page in pages] for seed in (0, 1)}
    for side in sides.values():
        assert 0.07 < sum(side) / len(side) < 0.09  # five standard errors are 0.0096
    both = sum(a and b for a, b in zip(sides[0], sides[1], strict=True))
    assert both < 250  # independent seeds share about 128 of 1,600


def test_other_pages_and_row_order_move_nothing() -> None:
    table = documents(*((f"p{i}", "en", "x") for i in range(100)))
    _, all_heldout = split.split(table, 0.2, 3)
    _, some_heldout = split.split(table.take(list(range(99, 49, -1))), 0.2, 3)
    assert set(some_heldout["page"].to_pylist()) == {
        page for page in all_heldout["page"].to_pylist() if int(page[1:]) >= 50
    }


def passage(name: str, words: int = 60) -> str:
    return " ".join(f"{name}x{i}" for i in range(words))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0.05, 0.5))
def test_of_heldout_text_at_most_a_twentieth_is_in_training_text(seed: int, share: float) -> None:
    draw = random.Random(seed)
    # pages of one to four passages, of a pool in which some are everywhere and most are rare
    pool = [passage(f"p{i}", draw.choice([13, 20, 200])) for i in range(60)]
    rows = [
        (f"page{i}", language, " ".join(pool[int(60 * draw.random() ** 2)] for _ in range(4)))
        for i in range(40)
        for language in ("en", "zh")
    ]
    train, heldout = split.split(documents(*rows), share, seed)
    held, sizes = set(heldout["page"].to_pylist()), {}
    assert not held & set(train["page"].to_pylist())
    for page, _, text in rows:
        sizes[page] = sizes.get(page, 0) + len(text)
    left = len(rows) - train.num_rows - heldout.num_rows
    assert 0 <= left <= heldout.num_rows  # of two documents one may be left out
    kept = sum(map(len, heldout["text"].to_pylist()))
    assert kept >= split.OWN_SHARE * sum(sizes[page] for page in held)
    assert (split.overlap([train], heldout)["covered"] <= split.MAX_OVERLAP).all()


def test_passages_and_row_order_decide_and_the_share_is_reached_nevertheless() -> None:
    # three in four pages repeat one passage; of the others a third is drawn
    rows = [
        (f"p{i}", "en", passage(f"own{i}") + (passage("menu") if i % 4 else ""))
        for i in range(1000)
    ]
    train, heldout = split.split(documents(*rows), 0.08, 0)
    pages = heldout["page"].to_pylist()
    assert all(int(page[1:]) % 4 == 0 for page in pages)
    assert 60 < len(pages) < 140
    _, shuffled = split.split(documents(*random.Random(0).sample(rows, len(rows))), 0.08, 0)
    assert sorted(pages) == sorted(shuffled["page"].to_pylist())
    assert train.num_rows + len(pages) == 1000


def test_a_translation_that_repeats_other_pages_does_not_keep_its_page_in_training() -> None:
    # every English page repeats the menu, no Korean page does
    rows = [(f"p{i}", "en", passage(f"en{i}", 60) + passage("menu", 30)) for i in range(300)]
    rows += [(f"p{i}", "ko", passage(f"ko{i}", 120)) for i in range(300)]
    train, heldout = split.split(documents(*rows), 0.2, 0)
    sides = [side["language"].to_pylist() for side in (train, heldout)]
    assert "en" not in sides[1]
    assert 30 < sides[1].count("ko") < 150
    # what is left out is not in training either
    assert sides[0].count("en") == sides[0].count("ko") == 300 - sides[1].count("ko")


def test_a_page_of_which_most_repeats_other_pages_stays_in_training() -> None:
    rows = [(f"p{i}", "en", passage(f"en{i}", 20) + passage("menu", 90)) for i in range(100)]
    rows += [(f"p{i}", "ko", passage(f"ko{i}", 30)) for i in range(100)]
    train, heldout = split.split(documents(*rows), 0.3, 0)
    assert (train.num_rows, heldout.num_rows) == (200, 0)


def test_pages_that_share_passages_are_held_out_together() -> None:
    rows = [
        (f"{unit:03}-{part}", "en", passage(f"shared{unit}") + " " + passage(f"own{unit}-{part}"))
        for unit in range(200)
        for part in range(3)
    ]
    _, heldout = split.split(documents(*rows), 0.1, 0)
    units = [page[:3] for page in heldout["page"].to_pylist()]
    assert 10 < len(set(units)) < 35
    assert all(units.count(unit) == 3 for unit in units)


def test_a_small_project_is_held_out_whole_and_a_large_one_by_page() -> None:
    rows = [(f"large/{i}", "ja", passage(f"a{i}")) for i in range(300)]
    rows += [(f"small{i // 4}/{i}", "ja", passage(f"b{i}")) for i in range(300)]
    table = documents(*rows)
    projects = [page.split("/")[0] for page, _, _ in rows]
    train, heldout = split.split(table.append_column("project", pa.array(projects)), 0.1, 0)
    sides = [{name.split("/")[0] for name in side["page"].to_pylist()} for side in (train, heldout)]
    assert sides[0] & sides[1] == {"large"}
    assert len(sides[1]) > 3
    assert 30 < heldout.num_rows < 100


def test_a_small_source_is_not_held_out_for_a_large_one_of_its_languages() -> None:
    rows = [(f"large/{i}", "en", passage(f"a{i}") + passage("menu", 30)) for i in range(400)]
    rows += [(f"small/{i}", "en", passage(f"b{i}")) for i in range(100)]
    sources = pa.array([page.split("/")[0] for page, _, _ in rows])
    table = documents(*rows).set_column(1, "source", sources)
    for seed in range(3):
        pages = split.split(table, 0.1, seed)[1]["page"].to_pylist()
        assert 1 <= sum(page.startswith("small/") for page in pages) <= 25


def test_no_language_vanishes_from_training_with_a_project() -> None:
    rows = [(f"manual/{i}", "ko", passage(f"k{i}", 20)) for i in range(30)]
    rows += [(f"other/{i}", "en", passage(f"e{i}", 20)) for i in range(600)]
    table = documents(*rows).append_column("project", pa.array([r[0].split("/")[0] for r in rows]))
    for seed in range(3):
        train, _ = split.split(table, 0.1, seed)
        assert train["language"].to_pylist().count("ko") > 15


@given(
    st.integers(13, 60).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 13), unique=True))
    )
)
def test_covered_tokens_count_each_token_once(case: tuple[int, list[int]]) -> None:
    length, starts = case
    covered = {token for start in starts for token in range(start, start + 13)}
    # beside a row with none and one with a single 13-gram
    row = np.array([0] * len(starts) + [2])
    place = np.array([*sorted(starts), 4])
    assert split._covered_tokens(row, place, np.array([length, 9, 20])).tolist() == [
        len(covered),
        0,
        13,
    ]


def test_overlap_counts_the_tokens_inside_shared_13_grams() -> None:
    words = [f"w{i}" for i in range(40)]
    train = documents(("t", "en", " ".join(words[:20])))
    heldout = documents(
        ("all", "en", " ".join(words[:20])),
        ("half", "en", " ".join(words[7:20] + words[20:33])),
        ("none", "en", " ".join(words[8:20] + words[20:33])),
        ("short", "en", " ".join(words[:12])),
        ("empty", "en", "!"),
    )
    assert split.overlap([train], heldout)["covered"].tolist() == [1.0, 0.5, 0.0, 0.0, 0.0]


HINDI = "एक रेलगाड़ी नौ बजे स्टेशन से निकलती है और साठ किलोमीटर प्रति घंटे की गति से चलती है"


def test_overlap_in_hindi_and_thai_does_not_depend_on_marks_taken_for_separators() -> None:
    # 13 syllables of few words: a token cut at each mark would call them a 13-gram
    train = documents(("t", "hi", HINDI), ("u", "th", "รถไฟออกจากสถานีเวลาเก้าโมง"))
    heldout = documents(
        ("all", "hi", HINDI.replace(" ", "\n")),
        ("part", "hi", " ".join(HINDI.split()[:12])),
        ("thai", "th", "รถไฟออกจากสถานี เวลาเก้าโมง"),
    )
    assert split.overlap([train], heldout)["covered"].tolist() == [1.0, 0.0, 1.0]


def test_overlap_with_no_training_text_is_zero() -> None:
    measured = split.overlap([], documents(("a", "en", "word " * 20)))
    assert measured["covered"].tolist() == [0.0]
