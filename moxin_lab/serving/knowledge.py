"""How well a knowledge base answers: recall, when it should say nothing, and quoted answers.

    found = candidates(index, questions)                     # both halves' candidates, once
    weight = choose_weight(found_by_language)                # on validation questions
    table = recall_table(found, weight)                      # on test questions
    limit = choose_coverage(answerable, unanswerable)        # on validation questions
    read = read_answers(index, questions, choosers)          # the paragraph that each reader quotes

Guarantees: every share has a Wilson interval over questions; what is chosen is chosen on the
questions given, so the caller keeps the halves apart; a quoted answer counts as right only if it is
the marked paragraph, letter by letter, of a page that is right.
Out of scope: making questions (`questions.py`), drawing (`figures.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from moxin_lab.evaluation.statistics import wilson_interval
from moxin_lab.serving.answers import Grounding, Source, ground, quote
from moxin_lab.serving.index import Index
from moxin_lab.serving.questions import Question
from moxin_lab.serving.retrieval import CANDIDATES, Mode, coverage, fuse, search

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
"""Weights of the dense half that are tried."""
COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 20))
AT = 5
"""Recall is of the right page among so many."""
MODES: tuple[Mode, ...] = ("lexical", "dense", "hybrid")
CLOSED_BOOK = "model without retrieval"
NAMES = {"lexical": "BM25", "dense": "vectors", "hybrid": "both"}
COLUMNS = ["question", "language", "reader", "quoted", "exact", "page"]
Chooser = Callable[[Sequence[Grounding]], Sequence[Source]]
"""From the sources of each question, the one that answers it."""


@dataclass(frozen=True)
class Candidates:
    """What both halves propose for a question: passage to score. owners: page of each passage."""

    question: Question
    lexical: dict[int, float]
    dense: dict[int, float]
    owners: Mapping[int, str]

    def rank(self, mode: Mode, weight: float) -> int | None:
        """Place of the first right page, from 1; None if there is none among the candidates."""
        lexical = {} if mode == "dense" else self.lexical
        dense = {} if mode == "lexical" else self.dense
        scores = fuse(lexical, dense, {"lexical": 0.0, "dense": 1.0}.get(mode, weight))
        order = sorted(scores, key=lambda passage: (-scores[passage], passage))
        pages = dict.fromkeys(self.owners[passage] for passage in order)
        places = (place for place, page in enumerate(pages, 1) if page in self.question.pages)
        return next(places, None)


def candidates(index: Index, questions: Sequence[Question]) -> list[Candidates]:
    """The candidates of both halves for each question; no dense ones without vectors."""
    owners = {place: name.removesuffix(".html") for place, name in index.owners().items()}
    dense: list[dict[int, float]] = [{} for _ in questions]
    if index.has_vectors and questions:
        vectors = index.encoder.queries([question.text for question in questions])
        dense = [dict(index.nearest(vector, CANDIDATES)) for vector in vectors]
    return [
        Candidates(question, dict(index.lexical(question.text, CANDIDATES)), near, owners)
        for question, near in zip(questions, dense, strict=True)
    ]


def recall(found: Sequence[Candidates], mode: Mode, weight: float, at: int = AT) -> list[bool]:
    """For each question, whether a right page is among the first `at`."""
    ranks = [one.rank(mode, weight) for one in found]
    return [rank is not None and rank <= at for rank in ranks]


def choose_weight(found: Mapping[str, Sequence[Candidates]]) -> tuple[float, pd.Series]:
    """The weight of the dense half whose mean reciprocal rank, averaged over languages, is highest;
    the smaller of equals. Also the value of each weight tried.
    """
    tried = {}
    for weight in WEIGHTS:
        means = []
        for part in found.values():
            ranks = [one.rank("hybrid", weight) for one in part]
            means.append(np.mean([0.0 if rank is None else 1 / rank for rank in ranks]))
        tried[weight] = float(np.mean(means))
    return max(tried, key=lambda weight: (round(tried[weight], 12), -weight)), pd.Series(tried)


def recall_table(
    found: Mapping[tuple[str, str], Sequence[Candidates]], weight: float
) -> pd.DataFrame:
    """Recall at AT and at 1 by language of the question, language of the pages, and half.

    found: (language of the question, language of the pages) to candidates.
    Columns: recall, low, high (95 % Wilson over questions), recall at 1, questions.
    """
    rows = []
    for (asked, pages), part in found.items():
        for mode in MODES:
            if mode != "lexical" and not any(one.dense for one in part):
                continue
            hits = recall(part, mode, weight)
            estimate = wilson_interval(sum(hits), len(hits))
            first = float(np.mean(recall(part, mode, weight, 1)))
            rows.append((asked, pages, NAMES[mode], *estimate, first, len(hits)))
    columns = [
        "question",
        "pages",
        "retrieval",
        "recall",
        "low",
        "high",
        "recall at 1",
        "questions",
    ]
    return pd.DataFrame(rows, columns=columns).set_index(["question", "pages", "retrieval"])


def coverages(index: Index, questions: Sequence[Question]) -> list[float]:
    """`retrieval.coverage` of each question in an index."""
    return [
        coverage(index, one.text, search(index, one.text, AT, mode="lexical")) for one in questions
    ]


class Threshold(NamedTuple):
    """A coverage below which nothing is answered: the share of questions with an answer that are
    answered, and of those without that are not.
    """

    coverage: float
    answered: float
    refused: float


def choose_coverage(answerable: Sequence[float], unanswerable: Sequence[float]) -> Threshold:
    """The threshold of COVERAGES with the highest mean of both shares; the smaller of equals."""
    tried = [at_coverage(limit, answerable, unanswerable) for limit in COVERAGES]
    return max(tried, key=lambda one: (round(one.answered + one.refused, 12), -one.coverage))


def at_coverage(
    limit: float, answerable: Sequence[float], unanswerable: Sequence[float]
) -> Threshold:
    """The two shares at a threshold."""
    answered = float(np.mean([value >= limit for value in answerable]))
    refused = float(np.mean([value < limit for value in unanswerable]))
    return Threshold(limit, answered, refused)


def first_source(groundings: Sequence[Grounding]) -> list[Source]:
    """The first paragraph that retrieval puts forward: a baseline that does not read."""
    return [grounding.sources[0] for grounding in groundings]


def shared_terms(groundings: Sequence[Grounding]) -> list[Source]:
    """The paragraph that `answers.quote` quotes."""
    return [quote(grounding).sources[0] for grounding in groundings]


def read_answers(
    index: Index,
    questions: Sequence[Question],
    readers: Mapping[str, Chooser],
    *,
    coverage_needed: float,
) -> pd.DataFrame:
    """What each reader quotes: columns question, language, reader, quoted, exact (the marked
    paragraph), page (of a right page). A question where retrieval is weak has no quotation.
    """
    grounded = [
        (question, ground(index, question.text, coverage_needed=coverage_needed))
        for question in questions
    ]
    answered = [(question, one) for question, one in grounded if one is not None]
    rows = [
        (question.text, question.language, reader, "", False, False)
        for question, one in grounded
        if one is None
        for reader in readers
    ]
    for reader, choose in readers.items():
        chosen = choose([one for _, one in answered])
        for (question, _), source in zip(answered, chosen, strict=True):
            right_page = source.document.removesuffix(".html") in question.pages
            exact = right_page and source.text == question.answer
            rows.append((question.text, question.language, reader, source.text, exact, right_page))
    return pd.DataFrame(rows, columns=COLUMNS)


def closed_book_rows(questions: Sequence[Question], said: Sequence[str]) -> pd.DataFrame:
    """As `read_answers`, for answers that were given without retrieval and cite no page."""
    rows = [
        (one.text, one.language, CLOSED_BOOK, text, text.split() == str(one.answer).split(), False)
        for one, text in zip(questions, said, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def first_answers(read: pd.DataFrame, readers: Sequence[str]) -> pd.DataFrame:
    """Of each language the first question to which one of `readers` quotes anything, and what each
    of them quotes; index language and question.
    """
    part = read[read["reader"].isin(readers)]
    wide = part.pivot(index=["language", "question"], columns="reader", values="quoted")
    wide = wide.loc[part.set_index(["language", "question"]).index.unique(), list(readers)]
    answered = wide[wide.ne("").any(axis=1)]
    first = answered.groupby(level="language", sort=False).head(1)
    return first.replace("", "no answer found").rename_axis(columns=None)


def answers_table(read: pd.DataFrame) -> pd.DataFrame:
    """Shares of `read_answers` by reader: exact match with its Wilson interval, and citations of a
    right page.
    """
    rows = {}
    for reader, part in read.groupby("reader", sort=False):
        exact = wilson_interval(int(part["exact"].sum()), len(part))
        rows[reader] = (*exact, float(part["page"].mean()), len(part))
    columns = ["exact match", "low", "high", "right page cited", "questions"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)
