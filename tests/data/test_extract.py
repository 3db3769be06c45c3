"""Extraction keeps what it can read and sets aside, with its bytes and a reason, what it cannot."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.data import extract
from moxin_lab.data.extract import Raw, html_to_text, keep_text, render

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
    return render("help_pages", raws, len(raws))


def test_main_content_stays_and_navigation_script_and_footer_go() -> None:
    documents, rejected = rows(PAGE.encode())
    text = documents["text"][0].as_py()
    assert "Sorting rows" in text and "Choose Data and then Sort." in text
    assert not any(word in text for word in ("Contents", "menu", "rights"))
    assert rejected.num_rows == 0


BROKEN = {
    "invalid UTF-8": [
        PAGE.encode().replace(b"Choose", b"Ch\xff\xfeose"),
        "日本語のページ".encode("shift_jis"),
        PAGE.encode("utf-16"),
    ],
    "broken HTML": [
        PAGE.encode()[: PAGE.index("<h1>") + 2],
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
def test_hub_sets_are_streamed_by_their_published_columns(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
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
    documents, rejected = extract.extract_hub(name, 1, path=str(tmp_path))
    assert rejected.num_rows == 0
    (row,) = documents.to_pylist()
    assert row["text"] == first and row["source"] == name
    assert row["language"] == ("code" if name == "the-stack-dedup" else "en")
    assert extract.extract_hub(name, None, path=str(tmp_path))[0].num_rows == 2


def test_a_hub_set_without_its_text_column_is_refused(tmp_path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "train.parquet")
    with pytest.raises(extract.CurationError, match=r"has the columns body; .*text missing"):
        extract.extract_hub("slimpajama", None, path=str(tmp_path))


def test_a_source_of_the_hub_is_read_where_the_scale_says(tmp_path) -> None:
    pq.write_table(pa.table({"text": ["One text."]}), tmp_path / "part.parquet")
    where = {"cerebras/SlimPajama-627B": str(tmp_path)}
    documents, _ = extract.extract("slimpajama", lambda name: tmp_path / name, where.__getitem__)
    assert documents["text"].to_pylist() == ["One text."]
