"""A multiple-choice cloze built from held-out pages: which of four passages continues the page?

    items = build_items(heldout, train, language="zh", num_items=60, seed=0)
    cue_accuracy(items)      # what shallow cues alone score: near chance, or the task measures the cue

An item is a context cut from a held-out page, the passage that follows it there, and three passages
of other held-out pages.

Guarantees, each one a shortcut closed:
- length: all four from one bin of sizes in bytes, whose ends differ by `LENGTH_TOLERANCE`. (Within
  so much of the right one would
  make it the one of middle size: three in four times neither shortest nor longest.) Whole sentences
  or whole lines, all four;
- position: the four places of the right answer are used equally often, in seeded order;
- domain: distractors from the same language and data set, code from files of the same suffix;
- script: in zh, ja and ko at least half the letters of every passage are not Latin (the pages carry
  English leftovers);
- white space: what stands before the passage on its own page (a blank, a line break, an
  indentation) is the same for all four;
- boilerplate and memory: no passage, nor its longest sentence or line, stands verbatim in training
  text of its language or
  twice in held-out text;
- the same inputs and seed give the same items, whatever the order of the rows.
Does not: exclude that a distractor continues the page as well; remove topic words shared by context
and answer, since using them is part of what is measured (`cue_accuracy` says how far they alone
carry).
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

NUM_CHOICES = 4
LENGTH_TOLERANCE = 0.2
PASSAGE_BYTES = (60, 240)
CONTEXT_BYTES = (80, 256)
MAX_ITEMS_PER_PAGE = 2
LATIN_SHARE = {"zh": 0.5, "ja": 0.5, "ko": 0.5}

# a unit ends with a line, behind CJK sentence marks, or behind western ones that white space
# follows
_TEXT_UNITS = re.compile(r".+?(?:[。！？]+[」』）]*|[.!?]+[\"')\]]*(?=\s)|$)", re.MULTILINE)
_CODE_UNITS = re.compile(r".+$", re.MULTILINE)


class Passage(NamedTuple):
    """A run of whole sentences or lines of one page: `text[start:end]`, without white space at its
    ends.
    """

    page: str
    group: str
    start: int
    end: int
    body: str
    longest: str
    """Its longest sentence or line."""
    gap: str
    """White space before it, back to the last visible character."""
    num_bytes: int


def build_items(
    heldout: pd.DataFrame, train: pd.DataFrame, *, language: str, num_items: int, seed: int
) -> list[dict[str, Any]]:
    """Items for one language from tables with the columns id, source, language, page, text.

    Returns at most `num_items` dictionaries with id, language, source, page, context, choices,
    label, choice_pages; fewer if the held-out pages do not yield more. Raises ValueError if they
    yield none.
    """
    pages = heldout[heldout["language"] == language].sort_values("id")
    texts = {row.id: row.text for row in pages.itertuples()}
    sources = dict(zip(pages["id"], pages["source"], strict=True))
    passages = [
        passage
        for row in pages.itertuples()
        for passage in find_passages(row.id, row.source, row.text, language)
        if len(_context(row.text, passage.start).encode())
        >= CONTEXT_BYTES[0]  # a title could never be right
    ]
    rng = np.random.default_rng([seed, zlib.crc32(language.encode())])
    passages = [passages[i] for i in rng.permutation(len(passages))]
    is_new = _Novelty(train.loc[train["language"] == language, "text"], list(texts.values()))
    pool: dict[str, list[Passage]] = {}
    for passage in passages:
        pool.setdefault(passage.group, []).append(passage)
    items: list[dict[str, Any]] = []
    used = Counter[str]()
    for passage in passages:
        if len(items) == num_items:
            break
        if used[passage.page] == MAX_ITEMS_PER_PAGE or not is_new(passage.longest):
            continue
        distractors = _distractors(passage, pool[passage.group], is_new)
        if len(distractors) == NUM_CHOICES - 1:
            used[passage.page] += 1
            options = [passage, *distractors]
            items.append(
                {
                    "id": f"{passage.page}#{passage.start}",
                    "language": language,
                    "source": sources[passage.page],
                    "page": passage.page,
                    "context": _context(texts[passage.page], passage.start),
                    "choices": [option.gap + option.body for option in options],
                    "choice_pages": [option.page for option in options],
                    "label": 0,
                }
            )
            pool[passage.group] = [
                p for p in pool[passage.group] if p not in distractors
            ]  # each distracts once
    if not items:
        raise ValueError(
            f"no cloze items for {language!r}: its {len(pages)} held-out pages hold no passages with "
            f"{NUM_CHOICES - 1} comparable ones on other pages; hold out more pages"
        )
    _place_answers(items, rng)
    return items


def find_passages(page: str, source: str, text: str, language: str) -> list[Passage]:
    """The usable passages of a page, disjoint and in order."""
    pattern = _CODE_UNITS if language == "code" else _TEXT_UNITS
    group = source + (PurePosixPath(page).suffix if language == "code" else "")
    units = [match.span() for match in pattern.finditer(text) if match.group().strip()]
    found = []
    first = 0
    while first < len(units):
        last = first
        start = units[first][0]
        while (
            last + 1 < len(units) and len(text[start : units[last][1]].encode()) < PASSAGE_BYTES[0]
        ):
            last += 1
        block = text[start : units[last][1]]
        body = block.strip()
        num_bytes = len(body.encode())
        if PASSAGE_BYTES[0] <= num_bytes <= PASSAGE_BYTES[1] and _is_words(body, language):
            begin = start + len(block) - len(block.lstrip())
            gap = text[len(text[:begin].rstrip()) : begin]
            longest = max((text[a:b].strip() for a, b in units[first : last + 1]), key=len)
            found.append(
                Passage(page, group, begin, begin + len(body), body, longest, gap, num_bytes)
            )
        first = last + 1
    return found


def cue_accuracy(items: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of items that each shallow rule answers rightly: shortest, longest (in characters),
    most shared with the context.

    The last counts character trigrams of the choice that the context holds too, as a share of the
    choice's.
    """
    rules: dict[str, Callable[[str, str], float]] = {
        "shortest choice": lambda choice, context: -len(choice),
        "longest choice": lambda choice, context: len(choice),
        "most trigrams shared with the context": _overlap,
    }
    return {
        name: float(
            np.mean(
                [
                    _hit([rule(c, item["context"]) for c in item["choices"]], item["label"])
                    for item in items
                ]
            )
        )
        for name, rule in rules.items()
    }


class _Novelty:
    """Says whether a string occurs in no training text and only once in held-out text, white space
    and case aside.
    """

    def __init__(self, training: Sequence[str], heldout: Sequence[str]) -> None:
        self.training = b"\n".join(
            _plain(text) for text in training
        )  # bytes: searched six times faster than str
        words = self.training.split()
        self.bigrams = set(pairwise(words))  # refutes most passages without a search
        self.heldout = b"\n".join(_plain(text) for text in heldout)
        self.known: dict[str, bool] = {}

    def __call__(self, text: str) -> bool:
        if text not in self.known:
            wanted = _plain(text)
            inner = wanted.split()[1:-1]  # the outer words may be parts of longer ones
            in_training = self.bigrams.issuperset(pairwise(inner)) and wanted in self.training
            self.known[text] = (
                not in_training and self.heldout.find(wanted, self.heldout.find(wanted) + 1) < 0
            )
        return self.known[text]


def _distractors(truth: Passage, pool: Sequence[Passage], is_new: _Novelty) -> list[Passage]:
    """The first comparable passages of the shuffled pool, each of another page."""
    chosen: list[Passage] = []
    taken = {truth.page}
    for other in pool:
        if (
            other.page not in taken
            and other.gap == truth.gap
            and _size_bin(other) == _size_bin(truth)
            and _digits_aside(other.body) not in {_digits_aside(p.body) for p in [truth, *chosen]}
            and is_new(other.longest)
        ):
            chosen.append(other)
            taken.add(other.page)
            if len(chosen) == NUM_CHOICES - 1:
                break
    return chosen


def _size_bin(passage: Passage) -> int:
    return math.floor(
        math.log(passage.num_bytes / PASSAGE_BYTES[0]) / math.log(1 + LENGTH_TOLERANCE)
    )


def _context(text: str, start: int) -> str:
    """What stands before a passage, at most CONTEXT_BYTES[1] bytes; where that cuts a line, from
    the next one on if near.
    """
    context = text[:start].rstrip()
    if len(context.encode()) > CONTEXT_BYTES[1]:
        context = context.encode()[-CONTEXT_BYTES[1] :].decode(
            errors="ignore"
        )  # a character cut in two is dropped
        line_end = context.find("\n")
        if 0 <= line_end < len(context) // 2:
            context = context[line_end + 1 :]
    return context


def _place_answers(items: list[dict[str, Any]], rng: np.random.Generator) -> None:
    """Put right answers in all places equally often (to within one) and the distractors around
    them, in place.
    """
    labels = rng.permutation(np.arange(len(items)) % NUM_CHOICES)
    for item, label in zip(items, labels.tolist(), strict=True):
        for key in ("choices", "choice_pages"):
            truth, *others = item[key]
            item[key] = [*others[:label], truth, *others[label:]]
        item["label"] = label


def _is_words(body: str, language: str) -> bool:
    """True for running text or code, not for rulers, tables of numbers, or text in a script that is
    not the language's.
    """
    letters = [character for character in body if character.isalpha()]
    if len(letters) < 0.5 * len("".join(body.split())):
        return False
    latin = sum(character.isascii() for character in letters)
    return latin <= LATIN_SHARE.get(language, 1.0) * len(letters)


def _plain(text: str) -> bytes:
    return " ".join(text.split()).casefold().encode()


def _digits_aside(text: str) -> bytes:
    return re.sub(rb"\d+", b"0", _plain(text))


def _overlap(choice: str, context: str) -> float:
    trigrams = {choice[i : i + 3] for i in range(len(choice) - 2)}
    return len([t for t in trigrams if t in context]) / len(trigrams)


def _hit(scores: Sequence[float], label: int) -> float:
    """Chance that the best-scored choice, a tie broken at random, is the right one."""
    best = [i for i, value in enumerate(scores) if value == max(scores)]
    return (label in best) / len(best)
