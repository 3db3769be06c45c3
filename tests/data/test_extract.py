"""Extraction keeps what it can read and sets aside, with its bytes and a reason, what it cannot."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.data import extract, readers
from moxin_lab.data.extract import HUB_SETS, Raw, keep_text, render
from moxin_lab.data.html_text import html_to_text
from moxin_lab.data.unreadable import Unreadable

PAGE = (
    '<!DOCTYPE html><html lang="en"><head><title>Sorting</title><script>var menu = 1;</script>'
    '</head><body>\n<nav><a href="a.html">Contents</a></nav><div id="DisplayArea">'
    "<h1>Sorting rows</h1><p>Choose Data and then Sort.</p></div>\n"
    "<footer><p>All rights reserved</p></footer></body></html>"
)


def rows(*contents: bytes, read=html_to_text) -> tuple[pa.Table, pa.Table]:
    raws = [
        Raw(f"help_pages/en/{i:03d}", "en", f"help_pages/{i:03d}", content, read)
        for i, content in enumerate(contents)
    ]
    return render("help_pages", raws)


def test_main_content_stays_and_navigation_script_and_footer_go() -> None:
    documents, rejected = rows(PAGE.encode())
    text = documents["text"][0].as_py()
    assert "Sorting rows" in text and "Choose Data and then Sort." in text
    assert not any(word in text for word in ("Contents", "menu", "rights"))
    assert rejected.num_rows == 0


BROKEN = {
    "invalid UTF-8": [
        PAGE.encode().replace(b"Choose", b"Ch\xff\xfeose"),
        PAGE.replace("Data", "データ").encode()[:-1] + b"\xe3\x83",
    ],
    "wrong encoding": [
        b"<meta charset=Shift_JIS>" + PAGE.encode() + b"\x81\xff\x81",
    ],
    "unknown encoding": [
        b"<meta charset=no-such-set>" + PAGE.encode() + b"\x81\xff\x81",
    ],
    "damaged text": [
        PAGE.replace("Choose", "Ch\ufffdo\ufffds\ufffde").encode(),
    ],
    "page too complex": [
        PAGE.replace("<h1>", "<h1>" + "<div>" * 20_000).encode(),
    ],
    "broken HTML": [
        PAGE.encode()[: PAGE.index("<h1>") + 2],
        PAGE.encode()[: PAGE.index("Data")],
        PAGE.encode()[: PAGE.index("<p>Choose")],
        PAGE.replace("</script>", "").encode(),
        PAGE.replace("<nav>", "<!-- menu <nav>").encode(),
        PAGE.replace("</title>", "").encode(),
        b"just some words and no markup at all",
        PAGE.replace("Sorting rows", "Sorting\0rows").encode(),
        b"",
    ],
    "no main content": [
        b"<html><body><nav><a href='x'>Home</a></nav></body></html>",
        b"<html><body> \n </body></html>",
    ],
}


@pytest.mark.parametrize(
    ("reason", "content"),
    [(reason, content) for reason, all_ in BROKEN.items() for content in all_],
)
def test_damaged_pages_are_kept_aside_with_reason_and_bytes(reason: str, content: bytes) -> None:
    documents, rejected = rows(PAGE.encode(), content)
    assert documents["id"].to_pylist() == ["help_pages/en/000"]
    (row,) = rejected.to_pylist()
    assert row["step"] == "extraction" and row["reason"] == reason and row["detail"]
    assert row["content"] == content and row["id"] == "help_pages/en/001"


@given(
    st.lists(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(str.encode)), max_size=6)
)
def test_no_bytes_raise_and_every_row_ends_in_one_table(contents: list[bytes]) -> None:
    documents, rejected = rows(*contents)
    assert sorted(documents["id"].to_pylist() + rejected["id"].to_pylist()) == [
        f"help_pages/en/{i:03d}" for i in range(len(contents))
    ]
    assert all(row["content"] == contents[int(row["id"][-3:])] for row in rejected.to_pylist())


def test_a_missing_closing_html_tag_is_legal() -> None:
    documents, rejected = rows(PAGE.replace("</html>", "").replace("</body>", "").encode())
    assert (documents.num_rows, rejected.num_rows) == (1, 0)


@pytest.mark.parametrize("encoding", ["utf-16", "shift_jis", "iso2022_jp", "utf-8-sig"])
def test_pages_in_other_encodings_are_read(encoding: str) -> None:
    page = PAGE.replace("Choose Data", "「データ」を選び")
    documents, rejected = rows(page.encode(encoding))
    assert rejected.num_rows == 0
    assert documents["text"][0].as_py() == "Sorting rows\n\n「データ」を選び and then Sort."


DAMAGED = (None, 5, 1.5, ["x"], {"a": "b"}, "missing")


def damaged(row: dict[str, object], column: str, value: object) -> dict[str, object]:
    if value == "missing":
        return {name: other for name, other in row.items() if name != column}
    return row | {column: value}


CARD_ROWS = {
    "help_pages": {"page": "p", "language": "ja", "path": "x", "html": PAGE.encode()},
    "python_docs": {"page": "p", "path": "x", "rst": b"text"},
    "code_samples": {"path": "x.c", "language": "c", "content": b"int x;"},
    "udhr": {"code": "eng", "language": "en", "html": PAGE.encode()},
    "conversations": {
        "language": "en",
        "category": "ai",
        "path": "x/ai.yml",
        "index": 0,
        "conversation": ["Hi", "Hello"],
    },
}


@pytest.mark.parametrize("value", DAMAGED, ids=repr)
@pytest.mark.parametrize("card", extract.CARDS)
def test_a_damaged_row_of_a_card_is_rejected_and_the_others_are_read(card: str, value) -> None:
    good = CARD_ROWS[card]
    read = {"path"} if card == "code_samples" else set(good) - {"path"}
    for column in read | ({"path"} if card == "conversations" else set()):
        if isinstance(value, type(good[column])):
            continue
        raws = extract.CARDS[card]([damaged(good, column, value), good])
        documents, rejected = render(card, raws)
        (row,) = rejected.to_pylist()
        assert documents.num_rows == 1, column
        assert row["reason"] == "damaged row" and column in row["detail"]


HUB_ROWS = {
    "slimpajama": {"text": "a"},
    "dclm-baseline": {"text": "a"},
    "the-stack-dedup": {"content": "a"},
    "mmlu-auxiliary-train": {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 1},
    "hellaswag-train": {
        "activity_label": "x",
        "ctx_a": "a",
        "ctx_b": "b",
        "endings": ["a", "b", "c", "d"],
        "label": "1",
    },
}


@pytest.mark.parametrize("value", DAMAGED, ids=repr)
@pytest.mark.parametrize("name", HUB_ROWS)
def test_a_damaged_row_of_a_hub_set_is_refused_and_a_good_one_read(name: str, value) -> None:
    good = HUB_ROWS[name]
    for column in HUB_SETS[name].columns:
        if isinstance(value, type(good[column])):
            continue
        with pytest.raises(Unreadable) as told:
            extract.hub_text(HUB_SETS[name], damaged(good, column, value))
        assert told.value.args[0] == "damaged row" and told.value.args[1], column
    assert extract.hub_text(HUB_SETS[name], good)


def test_text_that_no_encoding_can_hold_is_rejected() -> None:
    raws = [Raw("a", "en", "a", "x\ud800", keep_text), Raw("b", "en", "b", "\ufeffy", keep_text)]
    documents, rejected = render("s", raws)
    assert documents["text"].to_pylist() == ["y"]
    assert rejected["reason"].to_pylist() == ["invalid Unicode"]


def test_code_in_an_old_encoding_is_read_by_its_own_line() -> None:
    code = "# -*- coding: euc-jp -*-\r\nx = '日本語の文字列です'\t \n\n"
    documents, _ = rows(code.encode("euc-jp"), read=keep_text)
    assert documents["text"][0].as_py() == code


def test_code_is_kept_to_the_byte() -> None:
    code = "e\u0301 = 'Viê\u0323t'\r\n\tx = 1  \n\n\n".encode()
    documents, _ = rows(code, read=keep_text)
    assert documents["text"][0].as_py().encode() == code


def test_dialogues_of_a_topic_file_become_one_document_in_their_order() -> None:
    lines = [
        {
            "language": "en",
            "category": "ai",
            "path": "x/english/ai.yml",
            "index": i,
            "conversation": turns,
        }
        for i, turns in ((1, ["Are you alive?", "No."]), (0, ["Hi ", "Hello", "Bye"]))
    ]
    (raw,) = extract.CARDS["conversations"](lines)
    assert raw.content.decode() == "Hi\nHello\nBye\n\nAre you alive?\nNo."
    assert raw.id == "conversations/en/ai" and raw.page == "conversations/ai"


def test_an_unknown_card_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(extract.CurationError, match="tweets"):
        extract.extract_card(tmp_path / "tweets")


@pytest.mark.parametrize("name", extract.HUB_SETS)
def test_hub_sets_are_read_by_their_published_columns(name: str, tmp_path) -> None:
    columns = {
        "slimpajama": {
            "text": ["One text.", "Another."],
            "meta": [{"redpajama_set_name": "RedPajamaC4"}] * 2,
        },
        "dclm-baseline": {
            "text": ["One text.", "Another."],
            "url": ["u", "v"],
            "language_id_whole_page_fasttext": [{"en": 0.9}] * 2,
        },
        "the-stack-dedup": {
            "content": ["One text.", "Another."],
            "lang": ["C", "C"],
            "hexsha": ["a", "b"],
            "max_stars_repo_licenses": [["MIT"], []],
            "max_stars_repo_name": ["a/b", "c/d"],
        },
        "mmlu-auxiliary-train": {
            "question": ["One ", "Another"],
            "subject": ["", ""],
            "choices": [["a", "b", "c", "d"]] * 2,
            "answer": [1, 0],
        },
        "hellaswag-train": {
            "ind": [4, 5],
            "activity_label": ["Cutting hair"] * 2,
            "ctx_a": ["A man cuts hair. [header] How", "B"],
            "ctx_b": ["the man", ""],
            "ctx": ["A man cuts hair. [header] How the man", "B"],
            "endings": [["sings.", " [title] Stops. [step] Then waits.", "x", "y"]] * 2,
            "source_id": ["activitynet~1", "wikihow~2"],
            "split": ["train"] * 2,
            "label": ["1", "0"],
        },
    }[name]
    first = {
        "mmlu-auxiliary-train": "One\nA. a\nB. b\nC. c\nD. d\nAnswer: B",
        "hellaswag-train": "Cutting hair: A man cuts hair. How The man Stops. Then waits.",
    }.get(name, "One text.")
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    given = readers.of_hub(name, str(tmp_path), "")
    rows_ = given.read(given.files[0]).to_pylist()
    assert [row["step"] for row in rows_] == [None, None]
    assert rows_[0]["text"] == first and rows_[0]["source"] == name
    assert rows_[0]["language"] == ("code" if name == "the-stack-dedup" else "en")
