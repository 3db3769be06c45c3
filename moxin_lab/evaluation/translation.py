"""A multiple-choice test of translation from held-out pages: which of four beginnings of pages, in
another language, is the beginning of this English page?

    items = build_items(heldout, language="ja", num_items=16, seed=0)

An item has the beginning of an English help page, that of the same page in another language, and
those of three other pages in it (distractors).

Guarantees, of which the first two close a shortcut:
- script: choices hold no Latin letters, digits or signs of ASCII. Names, commands and untranslated
  lines stay as they are in a translation, and who only counts shared letters would find the page.
- position: each of the four positions holds the right beginning equally often.
- beginnings are whole lines of about `BEGINNING_BYTES`, and the four differ.
- The same inputs and seed give the same items, whatever the order of the rows.
Out of scope: choices without the gaps that removed names leave; equal lengths.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from moxin_lab.evaluation.cloze import NUM_CHOICES, cue_accuracy, place_answers

BEGINNING_BYTES = (30, 240)
"""Fewest and most UTF-8 bytes of a beginning."""

_KEPT_BY_TRANSLATORS = re.compile(r"[!-~\u00a1-\u024f\u2010-\u2044]+")
"""Latin letters, digits and signs of ASCII and its neighbours."""


def build_items(
    heldout: pd.DataFrame, *, language: str, num_items: int, seed: int
) -> list[dict[str, Any]]:
    """Items from English into one language, as dictionaries with the keys of `cloze.build_items`.

    heldout: columns id, source, language, page, text; a page and its translations share `page`.
    num_items: most items; fewer if fewer pages are there in both languages.
    Raises ValueError if fewer than four pages are.
    """
    begin = {
        name: {
            row.page: _beginning(row.text if name == "en" else _own_script(row.text))
            for row in part.sort_values("id").itertuples()
        }
        for name, part in heldout.groupby("language")
        if name in ("en", language)
    }
    english, other = begin.get("en", {}), begin.get(language, {})
    pages = sorted(page for page in english if english[page] and other.get(page))
    rng = np.random.default_rng([seed, zlib.crc32(f"translation/{language}".encode())])
    order = [pages[index] for index in rng.permutation(len(pages))]
    items = []
    for page in order[:num_items]:
        others = dict.fromkeys(
            other[each]
            for each in (order[index] for index in rng.permutation(len(order)))
            if other[each] != other[page]
        )
        if len(others) < NUM_CHOICES - 1:
            break
        items.append(
            {
                "id": f"{page}#{language}",
                "language": language,
                "page": page,
                "context": f"{english[page]}\n\n",
                "choices": [other[page], *list(others)[: NUM_CHOICES - 1]],
                "label": 0,
            }
        )
    if not items:
        raise ValueError(
            f"no translation items for {language!r}: {len(pages)} held-out pages are there in "
            f"English and in it, and {NUM_CHOICES} different ones are needed"
        )
    place_answers(items, rng, keys=("choices",))
    return items


def build_all(
    heldout: pd.DataFrame, languages: Sequence[str], *, num_items: int, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """`build_items` of each language that shares at least four pages with English."""
    shared = heldout.loc[heldout["language"] == "en", "page"]
    count = heldout[heldout["page"].isin(shared)].groupby("language").size()
    return {
        language: build_items(heldout, language=language, num_items=num_items, seed=seed)
        for language in languages
        if language != "en" and count.get(language, 0) >= NUM_CHOICES
    }


def sentence(items: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """How many items there are, and what simple rules answer. items: of `build_all`."""
    if not items:
        return "No language of this scale shares four held-out pages with English."
    counts = ", ".join(f"{len(rows)} into {language}" for language, rows in items.items())
    every = [item for rows in items.values() for item in rows]
    rules = ", ".join(f"{name} {100 * share:.0f} %" for name, share in cue_accuracy(every).items())
    return f"Items: {counts}. Simple rules answer: {rules}; chance is {100 // NUM_CHOICES} %."


def _own_script(text: str) -> str:
    """The text in letters and signs of its own script alone; lines without any are left out."""
    lines = (_KEPT_BY_TRANSLATORS.sub(" ", line) for line in text.splitlines())
    return "\n".join(
        " ".join(line.split()) for line in lines if any(letter.isalpha() for letter in line)
    )


def _beginning(text: str) -> str:
    """The first lines of a page, whole, within `BEGINNING_BYTES`; empty if the first is longer."""
    taken = ""
    for line in text.strip().splitlines():
        longer = f"{taken}\n{line}".strip() if taken else line.strip()
        if len(longer.encode()) > BEGINNING_BYTES[1]:
            break
        taken = longer
    return taken if len(taken.encode()) >= BEGINNING_BYTES[0] else ""
