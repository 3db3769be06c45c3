"""Guarantees of the questions made by rule, and of what is measured with them."""

import numpy as np
import pandas as pd
import pytest

from moxin_lab.evaluation.statistics import Estimate
from moxin_lab.lab import claims
from moxin_lab.serving import experiments, figures, index, knowledge, passages, questions, verdicts
from moxin_lab.serving.documents import Document, Paragraph
from moxin_lab.serving.knowledge import Candidates
from moxin_lab.serving.questions import Page, Question

LANGUAGES = ("en", "zh", "ja", "ko")


@pytest.fixture(scope="module")
def pages(repository):
    return questions.read_pages(repository / "data_cards" / "help_pages", LANGUAGES, 40)


def test_the_same_pages_are_read_in_each_language(pages):
    names = [[page.name for page in pages[language]] for language in LANGUAGES]
    assert len(names[0]) == 40
    assert names[0] == names[1] == names[2] == names[3]


def test_halves_and_pages_left_out_are_the_same_in_each_language_and_disjoint(pages):
    halves = {}
    for half in ("validation", "test"):
        chosen = [experiments.titles(pages[language], half) for language in LANGUAGES]
        halves[half] = {name for known, _ in chosen for one in known for name in one.pages}
        for known, gone in chosen:
            assert known
            assert not any(questions.is_left_out(name) for one in known for name in one.pages)
            assert all(questions.is_left_out(name) for one in gone for name in one.pages)
            assert not {one.text for one in known} & {one.text for one in gone}
    assert not halves["validation"] & halves["test"]


def test_the_answer_of_a_command_question_is_one_paragraph_of_its_page(pages):
    by_name = {(page.language, page.name): page for part in pages.values() for page in part}
    asked = [one for language in LANGUAGES for one in questions.command_questions(pages[language])]
    assert len(asked) > 12
    for one in asked:
        (name,) = one.pages
        page = by_name[one.language, name]
        texts = [paragraph.text for paragraph in page.document.paragraphs]
        assert texts.count(one.answer) == 1
        assert page.document.title in one.text


def page(name, title, *texts, command=None):
    document = Document(
        f"{name}.html", title, tuple(Paragraph((title,), "text", text) for text in texts)
    )
    return Page(name, "en", document, command)


PAGES = [
    page("a", "Sort", "Sorts rows.", "Choose Data - Sort.", command="Choose Data - Sort."),
    page("b", "Filter", "Filters rows.", "Choose Data - Filter.", command="Choose Data - Filter."),
    page("c", "Sort", "Sorts a list in a dialog."),
]


def test_a_heading_of_several_pages_is_one_question_that_any_of_them_answers():
    by_text = {one.text: one.pages for one in questions.title_questions(PAGES)}
    assert by_text == {"Sort": {"a", "c"}, "Filter": {"b"}}
    assert [one.pages for one in questions.command_questions(PAGES)] == [{"b"}]


def found(rank, *, dense_rank=None, language="en"):
    """Candidates whose right page has these places in the two halves."""
    owners = {i: f"p{i}" for i in range(1, 9)} | {9: "right"}
    others = list(range(1, 9))

    def scores(place):
        order = others[: place - 1] + [9] + others[place - 1 :]
        return {passage: 1 - 0.1 * i for i, passage in enumerate(order)}

    question = Question("q", language, frozenset({"right"}))
    return Candidates(question, scores(rank), scores(dense_rank or rank), owners)


@pytest.mark.parametrize(("rank", "at", "expected"), [(1, 5, True), (5, 5, True), (6, 5, False)])
def test_recall_counts_the_first_five_pages(rank, at, expected):
    assert knowledge.recall([found(rank)], "lexical", 0.0, at) == [expected]


def test_several_passages_of_a_page_are_one_place():
    one = Candidates(
        Question("q", "en", frozenset({"right"})), {1: 9, 2: 8, 3: 7}, {},
        {1: "other", 2: "other", 3: "right"},
    )  # fmt: skip
    assert one.rank("lexical", 0.0) == 2
    assert one.rank("dense", 0.0) is None


def test_the_weight_is_that_of_the_better_half_and_zero_where_vectors_bring_nothing():
    worse = {"en": [found(1, dense_rank=8)], "ja": [found(2, dense_rank=8)]}
    assert knowledge.choose_weight(worse)[0] == 0.0
    better = {"en": [found(6, dense_rank=1)], "ja": [found(7, dense_rank=1)]}
    assert knowledge.choose_weight(better)[0] >= 0.5


def test_the_threshold_parts_questions_with_an_answer_from_those_without():
    chosen = knowledge.choose_coverage([0.9, 0.8, 0.7, 0.2], [0.3, 0.4, 0.6, 0.75])
    assert 0.6 < chosen.coverage <= 0.7
    assert (chosen.answered, chosen.refused) == (0.75, 0.75)


def test_a_quotation_is_exact_only_if_it_is_the_marked_paragraph_of_a_right_page(tmp_path):
    index.build_from([one.document for one in PAGES], tmp_path)
    asked = [
        Question("How do I get to Filter?", "en", frozenset({"b"}), "Choose Data - Filter."),
        Question("Sort rows of quantum foam", "en", frozenset({"a"}), "Choose Data - Sort."),
    ]
    readers = {
        "first": knowledge.first_source,
        "last": lambda ones: [one.sources[-1] for one in ones],
        "marked": lambda ones: [
            next(s for s in one.sources if s.text == "Choose Data - Filter.") for one in ones
        ],
    }
    with index.open_index(tmp_path) as opened:
        read = knowledge.read_answers(opened, asked, readers, coverage_needed=0.9)
    rows = read.set_index(["question", "reader"])
    assert not rows.loc[asked[1].text]["quoted"].any()  # retrieval is weak: nothing is quoted
    assert rows.loc[(asked[0].text, "marked"), ["exact", "page"]].tolist() == [True, True]
    assert rows.loc[(asked[0].text, "first"), ["exact", "page"]].tolist() == [False, True]
    table = knowledge.answers_table(read)
    assert table.loc["marked", "exact match"] == 0.5
    closed = knowledge.closed_book_rows(asked, ["Choose  Data - Filter.", ""])
    assert closed["exact"].tolist() == [True, False]
    both = pd.concat([closed, read])
    assert verdicts.gain(both, "marked", knowledge.CLOSED_BOOK, seed=0).value == 0


@pytest.mark.parametrize(
    ("product", "answers", "verdict"),
    [
        ((-0.2, -0.3, -0.1), (0.2, 0.1, 0.3), "reproduced"),
        ((-0.2, -0.3, -0.1), (0.0, -0.1, 0.1), "no difference seen"),
        ((-0.2, -0.3, -0.1), (-0.2, -0.3, -0.1), "contradicted"),
        ((0.2, 0.1, 0.3), (0.2, 0.1, 0.3), "contradicted"),
    ],
)
def test_the_vertical_claim_needs_both_of_its_parts(product, answers, verdict):
    judged, evidence = verdicts.judge_vertical(
        Estimate(*product), Estimate(*answers), Estimate(0.01, -0.01, 0.03)
    )
    assert judged == verdict
    assert f"{product[0]:+.3f}" in evidence


def test_every_claim_of_stage_09_is_judged_by_a_rule_of_this_module(repository):
    of_stage = {
        claim["id"]
        for claim in claims.load(repository)
        if claim["tested_in"] == "09_applications" and claim["status"] != "not testable as stated"
    }
    assert of_stage == {"app.knowledge-base", "app.vertical", "app.image-dialogue"}
    verdict, _ = verdicts.judge_image_dialogue(3, 4)
    assert verdict == "not attempted"


@pytest.mark.parametrize(("by_rule", "ahead"), [(0.4, True), (0.1, False)])
def test_a_rule_that_quotes_more_than_the_models_is_said(by_rule, ahead):
    shares = {verdicts.TERMS: by_rule, verdicts.MODEL: 0.2, verdicts.ADAPTED: 0.3}
    text = verdicts.readers_sentence(pd.DataFrame({"exact match": shares}))
    assert ("ahead of both models" in text) == ahead
    assert text.startswith(f"Exact quotations, best first: {max(shares, key=shares.get)} ")


def test_the_answers_shown_are_of_one_question_of_each_language_that_got_any():
    rows = [
        ("en", "q1", "a", ""),
        ("en", "q1", "b", ""),
        ("en", "q2", "a", "said"),
        ("en", "q2", "b", ""),
        ("ko", "q3", "a", "x"),
        ("ko", "q3", "b", "y"),
    ]
    read = pd.DataFrame(rows, columns=["language", "question", "reader", "quoted"])
    shown = knowledge.first_answers(read, ["b", "a"])
    assert shown.index.tolist() == [("en", "q2"), ("ko", "q3")]
    assert shown.loc[("en", "q2")].tolist() == ["no answer found", "said"]
    assert shown.notna().all(axis=None)


def test_each_figure_has_its_values_in_words():
    one = PAGES[0].document
    cut = passages.cut(one)
    assert figures.page(one, cut).axes
    assert "2 paragraphs become 1 passages" in figures.page_finding(one, cut)
    assert "2 paragraphs (2 of kind text), cut into 1 passages" in figures.page_alt(one, cut)
    asked = {
        (a, b): [found(2, dense_rank=7, language=a)] for a in ("en", "ja") for b in ("en", "ja")
    }
    table = knowledge.recall_table(asked, 0.1)
    assert figures.recall(table).axes
    assert "en: BM25 1.00, vectors 0.00, both 1.00" in figures.recall_alt(table)
    assert figures.across(table).shape == (2, 2)
    limit = knowledge.Threshold(0.5, 0.9, 0.8)
    assert figures.coverage([0.9, 1.0], [0.1], limit).axes
    assert "median 0.95" in figures.coverage_alt([0.9, 1.0], [0.1], limit)
    runs = pd.DataFrame(
        [("before", 0, 2.0, 3.0), ("rank 2", 8, 1.5, 3.1), ("rank 2", 16, 1.4, 3.2)],
        columns=["adapters", "rows", "product text", "general text"],
    ).set_index(["adapters", "rows"])
    assert len(figures.adaptation(runs).axes) == 2
    assert "rank 2, 16 rows: product 1.400, general 3.200" in figures.adaptation_alt(runs)


@pytest.mark.parametrize(
    ("source", "called"),
    [
        ("help_pages", "help_pages/{}"),
        ("small_corpus", "libreoffice-help/usr/share/libreoffice/help/*/text/{}.html"),
    ],
)
def test_training_rows_hold_no_page_of_the_test_half(source, called, tmp_path):
    class Letters:
        bos_token_id, eos_token_id, unk_token_id, added_tokens_decoder = 0, 1, None, {}

        def __call__(self, text, **_):
            many = [text] if isinstance(text, str) else text
            ids = [[ord(letter) for letter in one] for one in many]
            return {"input_ids": ids[0] if isinstance(text, str) else ids}

        def decode(self, ids, **_):
            return "".join(map(chr, ids))

    from types import SimpleNamespace

    names = [f"n{i}" for i in range(40)]
    for split in ("train", "heldout"):
        (tmp_path / split).mkdir()
        pd.DataFrame(
            [
                (f"{split} {page_}", place, "en", page_, f"{split} {name} x", 12)
                for place, form in ((source, called), (source, "other/{}"))
                for name in names
                for page_ in [form.format(name)]
            ],
            columns=["id", "source", "language", "page", "text", "num_bytes"],
        ).to_parquet(tmp_path / split / "0.parquet")
    pages = {
        "en": [page(name, f"Title {name}", f"Choose {name}.", command=f"Choose {name}.")
               for name in names]
    }  # fmt: skip
    settings = SimpleNamespace(
        languages=("en",), heldout_bytes=9000, heldout_bytes_per_document=100,
        adaptation=SimpleNamespace(max_tokens=64),
    )  # fmt: skip
    data = experiments.adaptation_data(tmp_path, pages, Letters(), settings, seed=0)
    taught = " ".join(Letters().decode(row.tokens) for row in data.rows)
    tested = [name for name in names if questions.half(name) == "test"]
    assert 10 < len(tested) < 30
    assert not any(f"{name} " in taught or f"{name}." in taught for name in tested)
    assert "Question: How do I get to Title" in taught
    assert all(text.startswith("heldout") for text in (*data.product, *data.general))
    assert {text.split()[1] for text in data.product} <= set(tested)


def test_the_change_is_of_the_largest_adaptation_in_bits_per_byte():
    before = {"product": (np.array([6.931, 13.863]), np.array([10, 20]))}
    after = {"product": (np.array([3.466, 6.931]), np.array([10, 20]))}
    runs = experiments.Adaptations(pd.DataFrame(), None, pd.DataFrame(), before, after)
    assert experiments.change(runs, "product", seed=0).value == pytest.approx(-0.5, abs=1e-3)
