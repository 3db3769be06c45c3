"""The split: no page on both sides, whatever the seed; what is left of the held-out text in
training is removed or measured.
"""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.data import curate, split
from moxin_lab.data.extract import DOCUMENTS, REJECTED, CurationError


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


def test_copies_of_heldout_texts_leave_training_with_the_reason() -> None:
    train = documents(("a", "en", "one"), ("b", "en", "two"), ("c", "en", "same"))
    heldout = documents(("x", "en", "three"), ("y", "en", "same"))
    rows = [("a/en", "x/en", 0.85), ("b/en", "x/en", 0.75), ("a/en", "b/en", 0.99)]
    pairs = pa.Table.from_pylist([{"a": a, "b": b, "jaccard": s} for a, b, s in rows])
    kept, rejected = split.drop_straddling(train, heldout, pairs, 0.8)
    assert kept["id"].to_pylist() == ["b/en"]
    assert rejected["detail"].to_pylist() == ["x/en (Jaccard 0.850)", "exact copy"]
    assert rejected["content"].to_pylist() == [b"one", b"same"]


def test_tokens_are_words_and_single_cjk_characters() -> None:
    assert split.tokens("Hello, World 2! 数据 カナ 한글 x_1") == [
        "hello",
        "world",
        "2",
        "数",
        "据",
        "カ",
        "ナ",
        "한",
        "글",
        "x_1",
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
    assert split.overlap(train, heldout)["covered"].tolist() == [1.0, 0.5, 0.0, 0.0, 0.0]


def test_overlap_with_no_training_text_is_zero() -> None:
    measured = split.overlap(DOCUMENTS.empty_table(), documents(("a", "en", "word " * 20)))
    assert measured["covered"].tolist() == [0.0]


def rejected_row(key: str) -> pa.Table:
    row = {
        "id": key,
        "source": "s",
        "language": "en",
        "page": key,
        "step": "extraction",
        "reason": "invalid UTF-8",
    }
    return pa.Table.from_pylist(
        [row | {"detail": "at byte 3", "content": b"abc\xff"}], schema=REJECTED
    )


def write(folder, tables: list[pa.Table], rejected: pa.Table, entered: int) -> None:
    train, heldout, udhr = tables
    funnel = curate.Funnel()
    funnel.step("extraction", curate.table_of([train, heldout]), rejected)
    funnel.write(folder, train, heldout, udhr, entered)


def test_the_artifact_has_its_schema_and_keeps_rejected_bytes(tmp_path) -> None:
    train, heldout, udhr = (
        documents(("b", "zh", "数据"), ("a", "en", "x")),
        documents(("c", "en", "y")),
        documents(("u", "vi", "z")),
    )
    write(tmp_path / "documents", [train, heldout, udhr], rejected_row("r"), 5)
    table = pq.read_table(tmp_path / "documents" / "train.parquet")
    assert table.schema.names == ["id", "source", "language", "page", "text", "num_bytes"]
    assert table["id"].to_pylist() == ["a/en", "b/zh"] and table["num_bytes"].to_pylist() == [1, 6]
    assert table.schema.field("num_bytes").type == pa.int64()
    (row,) = pq.read_table(tmp_path / "documents" / "rejected.parquet").to_pylist()
    assert row["content"] == b"abc\xff" and row["reason"] == "invalid UTF-8"


def test_the_same_documents_in_any_order_give_the_same_bytes(tmp_path) -> None:
    one = documents(*((f"p{i:02d}", "en", f"text {i}") for i in range(50)))
    shuffled = one.take([(i * 17) % 50 for i in range(50)])
    for name, table in (("one", one), ("two", shuffled)):
        write(
            tmp_path / name,
            [table, documents(("h", "en", "y")), documents(("u", "vi", "z"))],
            rejected_row("r"),
            53,
        )
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("page", "entered", "message"), [("c", 99, "99 rows entered"), ("a", 5, "same id")]
)
def test_lost_and_doubled_documents_are_refused(
    tmp_path, page: str, entered: int, message: str
) -> None:
    tables = [
        documents(("b", "zh", "w"), ("a", "en", "x")),
        documents((page, "en", "y")),
        documents(("u", "vi", "z")),
    ]
    with pytest.raises(CurationError, match=message):
        write(tmp_path / "documents", tables, rejected_row("r"), entered)
    assert not (tmp_path / "documents").exists()
