"""The measures behind the claims of stage 01, on cases small enough to count by hand."""

import pandas as pd
import pyarrow as pa
import pytest

from moxin_lab.data import figures, measures
from moxin_lab.data.extract import DOCUMENTS

PAIRS = [("a", "b", 0.55), ("a", "c", 0.85), ("b", "c", 0.9), ("c", "d", 1.0), ("d", "e", 0.3)]


def pairs(*rows: tuple[str, str, float]) -> pa.Table:
    return pa.Table.from_pylist([{"a": a, "b": b, "jaccard": s} for a, b, s in rows])


def test_recall_counts_only_pairs_inside_an_interval() -> None:
    found = {"some": pairs(PAIRS[1], PAIRS[3], PAIRS[4])}
    recall = measures.recall_by_similarity(pairs(*PAIRS), found, [0.5, 0.8, 1.0])
    assert recall["pairs"].tolist() == [1, 3] and recall["found"].tolist() == [0, 2]
    (above,) = measures.recall_by_similarity(pairs(*PAIRS), found, [0.8, 1.0]).to_dict("records")
    assert (above["pairs"], above["found"]) == (3, 2)
    assert above["share_low"] < 2 / 3 < above["share_high"]


def test_expected_pairs_follow_the_collision_probability() -> None:
    mean, spread = measures.expected_found(
        pairs(("a", "b", 0.8), ("a", "c", 1.0), ("a", "d", 0.5)), 0.8, 9, 13
    )
    probability = 1 - (1 - 0.8**13) ** 9
    assert mean == pytest.approx(1 + probability) and spread == pytest.approx(
        (probability * (1 - probability)) ** 0.5
    )
    # The share that the notebook and the scale files state.
    assert probability == pytest.approx(0.40, abs=0.005)


def test_wilson_matches_the_published_example() -> None:
    """Newcombe 1998, table I, method 3: 81 of 263 gives 0.2553 to 0.3662."""
    assert measures.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert measures.wilson(0, 0) == (0.0, 1.0)


def test_extraction_is_compared_with_the_publishers_main_area() -> None:
    text = "<h1>Sorting rows</h1><p>Choose Data and then choose Sort in the menu.</p>"
    area = f"<div id='DisplayArea'>{text}</div>"
    navigation = "<nav><ul><li><a href='x'>Contents</a></li></ul></nav>"
    footer = "<footer>All rights reserved</footer>"
    page = f"<html><body>{navigation}{area}{footer}</body></html>"
    table = measures.extraction_agreement(
        [("en", page), ("en", "<html><body><p>no area</p></body></html>")]
    ).set_index("method")
    assert table["pages"].tolist() == [1, 1, 1]
    assert table.loc["tags stripped", "recall"] == 1.0 and table.loc[
        "tags stripped", "precision"
    ] == pytest.approx(11 / 15)
    assert table.loc["main content", ["precision", "recall", "pages halved"]].tolist() == [
        1.0,
        1.0,
        0,
    ]


def marked(inside: str) -> tuple[str, str]:
    beside = "<nav><a href='x'>目次</a></nav>"
    return "ja", f"<html><body>{beside}<div id='DisplayArea'>{inside}</div></body></html>"


def test_lost_characters_are_counted_by_script() -> None:
    page = marked("<p>文書は<code>a</code>と<code>b</code>「<b>c</b>」です。</p>" * 3)
    frame = measures.lost_characters([page, ("ja", "<p>no area</p>")]).set_index("script")
    assert frame["characters"].to_dict() == {
        "Latin": 9,
        "Kana": 12,
        "Han": 6,
        "East Asian signs": 9,
    }
    assert frame["main content"].sum() == 0
    # resiliparse drops a text node of one character of three bytes: と and 「
    assert frame["resiliparse"].to_dict() == {
        "Latin": 0,
        "Kana": 3,
        "Han": 0,
        "East Asian signs": 3,
    }


def test_of_hidden_alternatives_the_reference_has_one() -> None:
    switch = "<i hidden>Command</i><i hidden id='default'>Ctrl</i>"
    assert measures.marked_text(marked(f"<p><b>{switch}</b>+Z</p>")[1], "#DisplayArea") == "Ctrl+Z"


def test_the_slowest_page_is_named() -> None:
    small, large = (f"<p>{'word ' * n}</p>".encode() for n in (10, 300_000))
    frame = measures.extraction_speed([("small", small), ("large", large)])
    assert set(frame["slowest page"]) == {"large"} and (frame["its bytes"] == len(large)).all()
    assert (frame["MB"] == (len(small) + len(large)) / 1e6).all()


def test_short_shares_distinguish_pages_that_are_long_enough_in_english() -> None:
    rows = [
        ("p", "en", "x" * 300),
        ("p", "zh", "字" * 100),
        ("q", "en", "x" * 10),
        ("q", "zh", "字" * 10),
    ]
    table = pa.Table.from_pylist(
        [
            {"id": page + lang, "source": "s", "language": lang, "page": page, "text": text}
            for page, lang, text in rows
        ],
        schema=DOCUMENTS,
    )
    shares = measures.short_shares(measures.lengths(table), 200).set_index("language")
    assert shares.loc["en"].tolist() == [2, 50.0, 0.0] and shares.loc["zh"].tolist() == [
        2,
        100.0,
        100.0,
    ]


def test_none_found_of_many_pairs_is_a_contradiction_of_three_undecided_and_of_none_no_attempt():
    schema = pairs(*PAIRS).schema
    many = [(f"a{i}", f"b{i}", 0.9) for i in range(8)]
    for rows, verdict in (
        (many, "contradicted"),
        (PAIRS, "undecided"),
        (PAIRS[:1], "not attempted"),
    ):
        found = {"recipe": schema.empty_table()}
        above = measures.recall_above(pairs(*rows), found, {"recipe": (9, 13)}, 0.8)
        assert measures.recall_verdict(above, "cards", 0.8)[0] == verdict


def test_the_worked_example_agrees_in_as_many_minima_as_its_similarity_says():
    words = " ".join(f"token{n} of the text" for n in range(200))
    changes = {"none": 10**6, "few": 50, "many": 5}
    bands = {"9 of 13": (9, 13), "128 of 1": (128, 1)}
    table = measures.minhash_example(words, changes, bands, 13).set_index("copy")
    assert table.loc["none"].tolist() == [1.0, 128, 9, 128]
    assert table["similarity"].is_monotonic_decreasing and 0 < table.loc["many", "similarity"] < 0.8
    # four standard deviations of 128 draws at most
    assert ((table["equal minima of 128"] / 128 - table["similarity"]).abs() < 4 * 0.045).all()
    assert (table["equal, 128 of 1"] == table["equal minima of 128"]).all()


def test_captions_say_what_the_figures_of_stage_01_show():
    bands = {"9 bands of 13": (9, 13), "21 bands of 6": (21, 6)}
    said = figures.collision_in_words(bands, 0.8)
    assert "40 % with 9 bands of 13 and 100 % with 21 bands of 6" in said
    assert said in figures.collision_alt(bands, 0.8)
    columns = ["bands", "similarity", "pairs", "share_low", "share_high"]
    rows = [("9 bands of 13", 0.8, 90, 0.3, 0.5), ("21 bands of 6", 0.8, 90, 0.3, 0.5)]
    recall = pd.DataFrame([*rows, ("21 bands of 6", 0.9, 0, 0, 1)], columns=columns)
    assert figures.recall_in_words(recall, bands).startswith("1 of 2 intervals")
    shares = pd.DataFrame({"language": ["en", "zh"], "short, %": [11.3, 27.9]})
    assert "28 % of the Chinese pages and 11 % of the English" in figures.length_caption(
        shares, 200
    )
    ended = pd.DataFrame({"train": [3, 1], "too short": [1, 3]}, index=["en", "zh"])
    assert "75 % of English and 25 % of Chinese" in figures.outcome_caption(ended)
