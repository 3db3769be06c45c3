"""The runs of notebook 09: indexes and questions of the help pages, readers, LoRA by rank and rows.

    bases = build_indexes(pages, encoder, folder)                  # one index per language
    asked = ask_titles(bases, pages, "validation", limit=60)       # candidates by language pair
    runs = run_adaptations(folder, data, settings, seed=0, ...)    # a table and the last model

Guarantees: what is chosen is chosen on the validation half, what is shown is of the test half, and
no page of the test half is a training row of an adaptation.
Out of scope: single steps (`knowledge.py`, `adaptation.py`), figures and verdicts.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moxin_lab.evaluation import heldout
from moxin_lab.evaluation.results import read_splits
from moxin_lab.evaluation.statistics import Estimate, paired_bootstrap
from moxin_lab.lab import sampling
from moxin_lab.lab.progress import Progress
from moxin_lab.scales.sections import AdaptationSettings, ApplicationsSettings
from moxin_lab.serving import adaptation, knowledge, questions
from moxin_lab.serving.documents import Document
from moxin_lab.serving.encoders import Encoder
from moxin_lab.serving.index import Index, build_from, open_index
from moxin_lab.serving.knowledge import Candidates
from moxin_lab.serving.questions import Half, Page, Question

Pages = Mapping[str, Sequence[Page]]
PRODUCT = re.compile(r"help_pages/(.+)|libreoffice-help/.*/text/(.+)\.html")
"""Pages of stage 01 that document one product, and their names: those of the data card, and those
of the corpus that the small scale reads.
"""


def example_page(pages: Sequence[Page]) -> Document:
    """The page of 12 to 24 paragraphs that has most kinds of them; the first of equals."""
    fitting = [page.document for page in pages if 12 <= len(page.document.paragraphs) <= 24]
    return max(fitting, key=lambda one: len({part.kind for part in one.paragraphs}))


def build_indexes(pages: Pages, encoder: Encoder, folder: Path) -> dict[str, Path]:
    """An index of the pages of each language, but those that are left out for questions without an
    answer.
    """
    built = {}
    for language, part in pages.items():
        kept = [page.document for page in part if not questions.is_left_out(page.name)]
        built[language] = folder / language
        build_from(kept, built[language], encoder=encoder)
    return built


@contextlib.contextmanager
def opened(folders: Mapping[str, Path], encoder: Encoder) -> Iterator[dict[str, Index]]:
    """The indexes of `build_indexes`, open; they share the encoder."""
    with contextlib.ExitStack() as stack:
        yield {
            language: stack.enter_context(open_index(folder, encoder))
            for language, folder in folders.items()
        }


def titles(pages: Sequence[Page], half: Half) -> tuple[list[Question], list[Question]]:
    """The headings of one half as questions: of indexed pages, and of pages left out whose heading
    no indexed page has.
    """
    kept = [page for page in pages if not questions.is_left_out(page.name)]
    left_out = [page for page in pages if questions.is_left_out(page.name)]
    known = {page.document.title for page in kept}
    gone = [one for one in questions.title_questions(left_out) if one.text not in known]
    return (
        questions.of_half(questions.title_questions(kept), half),
        questions.of_half(gone, half),
    )


def commands(pages: Sequence[Page], half: Half, *, left_out: bool = False) -> list[Question]:
    """The questions about commands of one half: of indexed pages, or of those left out whose
    heading no indexed page has.
    """
    kept = [page for page in pages if not questions.is_left_out(page.name)]
    if left_out:
        known = {page.document.title for page in kept}
        gone = [page for page in pages if questions.is_left_out(page.name)]
        kept = [page for page in gone if page.document.title not in known]
    return questions.of_half(questions.command_questions(kept), half)


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """`count` of the items, or all if there are fewer, evenly spread."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def ask_titles(
    indexes: Mapping[str, Index], pages: Pages, half: Half, limit: int
) -> dict[tuple[str, str], list[Candidates]]:
    """Candidates for the headings of each language in the index of each language."""
    asked = {language: evenly(titles(part, half)[0], limit) for language, part in pages.items()}
    return {
        (language, of_pages): knowledge.candidates(index, asked[language])
        for of_pages, index in indexes.items()
        for language in pages
    }


def own(found: Mapping[tuple[str, str], list[Candidates]]) -> dict[str, list[Candidates]]:
    """Those of questions to pages of their own language."""
    return {asked: part for (asked, of_pages), part in found.items() if asked == of_pages}


def all_coverages(
    indexes: Mapping[str, Index], pages: Pages, half: Half, limit: int
) -> tuple[list[float], list[float]]:
    """Coverage of questions with an answer in the index of their language, and of those without;
    of both kinds, headings and commands, at most `limit` of each.
    """
    answerable: list[float] = []
    unanswerable: list[float] = []
    for language, index in indexes.items():
        part = pages[language]
        known, gone = titles(part, half)
        for asked in (known, commands(part, half)):
            answerable += knowledge.coverages(index, evenly(asked, limit))
        for asked in (gone, commands(part, half, left_out=True)):
            unanswerable += knowledge.coverages(index, evenly(asked, limit))
    return answerable, unanswerable


@dataclass(frozen=True)
class AdaptationData:
    """Training rows, and held-out texts of the product and of everything else."""

    rows: list[adaptation.Row]
    product: list[str]
    general: list[str]


def adaptation_data(
    documents: Path, pages: Pages, tokenizer: Any, settings: ApplicationsSettings, *, seed: int
) -> AdaptationData:
    """Rows of the product's training documents and questions, none of a page of the test half, in
    turn as far as both reach; held-out texts of the product's test half and of other sources.
    """
    train, held_out = read_splits(documents, [*settings.languages, "code"])
    heads = heldout.beginnings(held_out, max_bytes=settings.heldout_bytes_per_document)
    is_product = heads["page"].map(_is_product).to_numpy(dtype=bool)
    general = _chosen(heads[~is_product], settings, seed)
    mine = train[train["page"].map(_is_product) & train["language"].isin(list(settings.languages))]
    if mine.empty:  # full scale: stage 01 reads hub sets, and the product is its pages alone
        learned = _texts_of_pages(pages, "validation")
        product = [
            sampling.beginning(text, settings.heldout_bytes_per_document)
            for text in _texts_of_pages(pages, "test")
        ]
    else:
        halves = np.array([_half(page) for page in mine["page"]])
        learned = mine[halves == "validation"]["text"].tolist()
        asked_about = heads[is_product]
        tested = np.array([_half(page) == "test" for page in asked_about["page"]], dtype=bool)
        product = _chosen(asked_about[tested], settings, seed)
    texts = adaptation.text_rows(learned, tokenizer, settings.adaptation.max_tokens)
    asked = [one for part in pages.values() for one in commands(part, "validation")]
    pairs = adaptation.question_rows(asked, tokenizer, settings.adaptation.max_tokens)
    return AdaptationData(_in_turn(texts, pairs), product, general)


def _chosen(documents: pd.DataFrame, settings: ApplicationsSettings, seed: int) -> list[str]:
    """Texts of at most the settings' bytes, shared among languages. ValueError if there is none."""
    if documents.empty:
        raise ValueError("stage 01 held out no such document; give it more text, or another seed")
    share = settings.heldout_bytes // documents["language"].nunique()
    texts = heldout.choose(documents, bytes_per_language=share, seed=seed)["text"]
    return [text for text in texts if text.strip()]


def _texts_of_pages(pages: Pages, half: Half) -> list[str]:
    return [
        "\n".join(paragraph.text for paragraph in page.document.paragraphs)
        for part in pages.values()
        for page in part
        if questions.half(page.name) == half and page.document.paragraphs
    ]


def _is_product(page: str) -> bool:
    return PRODUCT.fullmatch(page) is not None


def _half(page: str) -> Half:
    """The half of a page of the product."""
    match = PRODUCT.fullmatch(page)
    assert match is not None
    return questions.half(match[1] or match[2])


def _in_turn(texts: list[adaptation.Row], pairs: list[adaptation.Row]) -> list[adaptation.Row]:
    """Evenly mixed: the questions spread over the texts."""
    places = [(i / max(len(part), 1), row) for part in (texts, pairs) for i, row in enumerate(part)]
    return [row for _, row in sorted(places, key=lambda pair: pair[0])]


@dataclass(frozen=True)
class Adaptations:
    """table: one row per rank and number of rows. model: of the last row, with its log. before,
    after: nats and bytes of the held-out texts under the base model and under `model`.
    """

    table: pd.DataFrame
    model: Any
    log: pd.DataFrame
    before: dict[str, tuple[np.ndarray, np.ndarray]]
    after: dict[str, tuple[np.ndarray, np.ndarray]]


def run_adaptations(
    folder: Path,
    data: AdaptationData,
    settings: ApplicationsSettings,
    *,
    seed: int,
    scratch: Path,
    progress: Progress | None = None,
) -> Adaptations:
    """Every rank with every number of rows, the largest of both last.

    Columns of the table: bits per byte of the product's and of general held-out text, parameters
    trained, seconds. Its first row is the model before.
    """
    base, tokenizer = adaptation.load(folder)
    texts = {"product": data.product, "general": data.general}

    def measured(model: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {
            kind: adaptation.losses(model, tokenizer, part, settings.context_tokens)
            for kind, part in texts.items()
        }

    before = measured(base)
    rows = [_row("before", 0, before, 0, 0.0)]
    options: AdaptationSettings = settings.adaptation
    for count in options.rows:
        chosen = adaptation.spread(data.rows, count)
        for rank in options.ranks:
            model, log = adaptation.adapt(
                folder,
                chosen,
                options,
                rank=rank,
                seed=seed,
                progress=progress,
                scratch=scratch / f"rank-{rank}-rows-{count}",
            )
            after = measured(model)
            trained, _ = adaptation.trained_share(model)
            rows.append(_row(f"rank {rank}", count, after, trained, log.attrs["seconds"]))
    table = pd.DataFrame(rows).set_index(["adapters", "rows"])
    return Adaptations(table, model, log, before, after)


def _row(
    name: str, rows: int, measured: Mapping[str, Any], trained: int, seconds: float
) -> dict[str, Any]:
    bits = {f"{kind} text": adaptation.bits(values) for kind, values in measured.items()}
    return {
        "adapters": name,
        "rows": rows,
        **bits,
        "parameters trained": trained,
        "seconds": seconds,
    }


def change(runs: Adaptations, kind: str, *, seed: int) -> Estimate:
    """Bits per byte after minus before on one kind of held-out text, with its interval over
    documents, of the last adaptation.
    """
    (before, sizes), (after, _) = runs.before[kind], runs.after[kind]
    scale = 1 / np.log(2)
    return paired_bootstrap(after * scale, before * scale, sizes, seed=seed)
