"""A multiple-choice cloze test from held-out pages: which of four passages continues the page?

    items = build_items(heldout, train, language="zh", num_items=60, seed=0)
    cue_accuracy(items)  # accuracy of shallow cues; well above chance, the test measures the cue

An item has a context cut from a held-out page, the passage that follows it there, and three
passages of other held-out pages (distractors).

Guarantees, each of which closes a shortcut:
- length: all four passages are whole sentences or whole lines, with sizes in bytes from one bin
  whose ends differ by `LENGTH_TOLERANCE`. (A tolerance around the size of the right passage would
  make that passage the middle one: in three of four items neither shortest nor longest.)
- position: each of the four positions holds the right passage equally often, in seeded order.
- domain: distractors have the same language and data set; in code, the same file suffix.
- script: in zh, ja and ko at least half the letters of every passage are not Latin, since the
  pages contain untranslated English.
- white space: the white space before a passage on its own page (a blank, a line break, an
  indentation) is the same for all four.
- boilerplate and memorisation: no passage, and no passage's longest sentence or line, occurs
  verbatim in training text of its language, or twice in held-out text.
- The same inputs and seed give the same items, whatever the order of the rows.
Out of scope: excluding that a distractor continues the page as well; removing topic words shared by
context and answer. Their use is part of what is measured, and `cue_accuracy` says how far they
suffice alone.
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from moxin_lab.lab.progress import Progress

NUM_CHOICES = 4
LENGTH_TOLERANCE = 0.2
PASSAGE_BYTES = (60, 240)
CONTEXT_BYTES = (80, 256)
MAX_ITEMS_PER_PAGE = 2
LATIN_SHARE = {"zh": 0.5, "ja": 0.5, "ko": 0.5}
"""Largest share of Latin letters in a passage; any in other languages."""

# A unit ends at the end of a line, after a CJK sentence mark, or after a western one followed by
# white space.
_TEXT_UNITS = re.compile(r".+?(?:[。！？]+[」』）]*|[.!?]+[\"')\]]*(?=\s)|$)", re.MULTILINE)
_CODE_UNITS = re.compile(r".+$", re.MULTILINE)


class Passage(NamedTuple):
    """Whole sentences or lines of one page: `text[start:end]`, without white space at its ends."""

    page: str
    group: str
    """Data set and, for code, file suffix: passages of one group may be choices of one item."""
    start: int
    end: int
    body: str
    longest: str
    """Its longest sentence or line."""
    gap: str
    """White space between the last visible character before the passage and the passage."""
    num_bytes: int


def build_items(
    heldout: pd.DataFrame, train: pd.DataFrame, *, language: str, num_items: int, seed: int
) -> list[dict[str, Any]]:
    """Items of one language, as dictionaries.

    Args:
        heldout: held-out pages; columns id, source, language, page, text.
        train: training text, with the same columns.
        num_items: most items to build; fewer if the pages do not yield that many.
        seed: of the order of the passages and the positions of the answers.
    The keys of an item: id, language, source, page, context, choices, label (the index of the right
    choice), choice_pages.
    Raises ValueError if the pages yield no item.
    """
    pages = heldout[heldout["language"] == language].sort_values("id")
    texts = {row.id: row.text for row in pages.itertuples()}
    sources = dict(zip(pages["id"], pages["source"], strict=True))
    passages = [
        passage
        for row in pages.itertuples()
        for passage in find_passages(row.id, row.source, row.text, language)
        # Also for distractors: otherwise a title, which has no context, could only be wrong.
        if len(_context(row.text, passage.start).encode()) >= CONTEXT_BYTES[0]
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
            # Each passage is a distractor at most once.
            pool[passage.group] = [p for p in pool[passage.group] if p not in distractors]
    if not items:
        raise ValueError(
            f"no cloze items for {language!r}: no passage of its {len(pages)} held-out pages has "
            f"{NUM_CHOICES - 1} comparable ones on other pages; hold out more pages"
        )
    place_answers(items, rng)
    return items


def build_all(
    heldout: pd.DataFrame,
    train: pd.DataFrame,
    languages: Sequence[str],
    *,
    num_items: int,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """`build_items` of each language."""
    items = {}
    for index, language in enumerate(languages):
        if progress is not None:
            progress(index, len(languages), f"building cloze items, {language}")
        items[language] = build_items(
            heldout, train, language=language, num_items=num_items, seed=seed
        )
    return items


def shown_item(item: Mapping[str, Any]) -> tuple[str, pd.DataFrame, str]:
    """An item to look at: the end of its context on one line, its choices with the correct one
    marked, and its page.
    """
    marks = ["correct" if index == item["label"] else "" for index in range(NUM_CHOICES)]
    choices = pd.DataFrame({"choice": item["choices"], "": marks})
    return item["context"][-120:].replace("\n", " "), choices, item["page"]


def find_passages(page: str, source: str, text: str, language: str) -> list[Passage]:
    """The usable passages of a page, disjoint and in order.

    A passage has `PASSAGE_BYTES` bytes, from and to, and mostly letters in the language's script.
    """
    pattern = _CODE_UNITS if language == "code" else _TEXT_UNITS
    group = source + (PurePosixPath(page).suffix if language == "code" else "")
    units = [match.span() for match in pattern.finditer(text) if match.group().strip()]
    passages = []
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
            passages.append(
                Passage(page, group, begin, begin + len(body), body, longest, gap, num_bytes)
            )
        first = last + 1
    return passages


def cue_accuracy(items: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Accuracy of three shallow rules: share of items that each answers rightly.

    The rules choose the shortest passage, the longest (both in characters), and the one with the
    largest share of character trigrams that occur in the context too.
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


def cue_table(items: Mapping[str, Sequence[dict[str, Any]]]) -> pd.DataFrame:
    """`cue_accuracy` in percent: one row per language, one column per rule, after the number of
    items.
    """
    accuracy = {language: cue_accuracy(rows) for language, rows in items.items()}
    table = pd.DataFrame(accuracy).T * 100
    table.insert(0, "items", [len(rows) for rows in items.values()])
    return table.rename_axis("language")


class _Novelty:
    """Whether a string occurs in no training text and only once in held-out text.

    White space and case are ignored.
    """

    def __init__(self, training: Sequence[str], heldout: Sequence[str]) -> None:
        # A search in bytes is six times as fast as in str.
        self.training = b"\n".join(_plain(text) for text in training)
        # Rules out most passages without a search.
        self.bigrams = set(pairwise(self.training.split()))
        self.heldout = b"\n".join(_plain(text) for text in heldout)
        self.known: dict[str, bool] = {}

    def __call__(self, text: str) -> bool:
        if text not in self.known:
            plain = _plain(text)
            inner = plain.split()[1:-1]  # the outer words may be parts of longer ones
            in_training = self.bigrams.issuperset(pairwise(inner)) and plain in self.training
            self.known[text] = (
                not in_training and self.heldout.find(plain, self.heldout.find(plain) + 1) < 0
            )
        return self.known[text]


def _distractors(truth: Passage, pool: Sequence[Passage], is_new: _Novelty) -> list[Passage]:
    """The first comparable passages of the shuffled pool, each from a different page."""
    chosen: list[Passage] = []
    used_pages = {truth.page}
    for other in pool:
        if (
            other.page not in used_pages
            and other.gap == truth.gap
            and _size_bin(other) == _size_bin(truth)
            and _without_digits(other.body)
            not in {_without_digits(p.body) for p in [truth, *chosen]}
            and is_new(other.longest)
        ):
            chosen.append(other)
            used_pages.add(other.page)
            if len(chosen) == NUM_CHOICES - 1:
                break
    return chosen


def _size_bin(passage: Passage) -> int:
    return math.floor(
        math.log(passage.num_bytes / PASSAGE_BYTES[0]) / math.log(1 + LENGTH_TOLERANCE)
    )


def _context(text: str, start: int) -> str:
    """The text before a passage, at most CONTEXT_BYTES[1] bytes of it.

    A cut context begins with a whole line if one begins in its first half.
    """
    context = text[:start].rstrip()
    if len(context.encode()) > CONTEXT_BYTES[1]:
        # `ignore` drops the first character if the cut falls inside it.
        context = context.encode()[-CONTEXT_BYTES[1] :].decode(errors="ignore")
        line_end = context.find("\n")
        if 0 <= line_end < len(context) // 2:
            context = context[line_end + 1 :]
    return context


def place_answers(
    items: list[dict[str, Any]],
    rng: np.random.Generator,
    keys: Sequence[str] = ("choices", "choice_pages"),
) -> None:
    """Moves the right choice of each item, which is its first, to its position, in place.

    Over all items, each position is used equally often, to within one. keys: of the lists with one
    entry for each choice.
    """
    labels = rng.permutation(np.arange(len(items)) % NUM_CHOICES)
    for item, label in zip(items, labels.tolist(), strict=True):
        for key in keys:
            truth, *others = item[key]
            item[key] = [*others[:label], truth, *others[label:]]
        item["label"] = label


def _is_words(body: str, language: str) -> bool:
    """True for running text or code in the language's script.

    False for rulers, tables of numbers, and text in another script.
    """
    letters = [character for character in body if character.isalpha()]
    if len(letters) < 0.5 * len("".join(body.split())):
        return False
    latin = sum(character.isascii() for character in letters)
    return latin <= LATIN_SHARE.get(language, 1.0) * len(letters)


def _plain(text: str) -> bytes:
    return " ".join(text.split()).casefold().encode()


def _without_digits(text: str) -> bytes:
    """The text with every number replaced by 0: choices must differ in more than numbers."""
    return re.sub(rb"\d+", b"0", _plain(text))


def _overlap(choice: str, context: str) -> float:
    trigrams = {choice[i : i + 3] for i in range(len(choice) - 2)}
    return len([t for t in trigrams if t in context]) / len(trigrams)


def _hit(scores: Sequence[float], label: int) -> float:
    """Probability that the best choice is the right one, with ties broken at random."""
    best = [i for i, value in enumerate(scores) if value == max(scores)]
    return (label in best) / len(best)
