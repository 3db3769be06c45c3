"""Heuristics of RefinedWeb and Gopher on one document, with DCLM's values.

Source of the limits, unless a constant names another: mlfoundations/dclm 361714b,
baselines_configs/dclm_baseline_refinedweb.yaml; repetition: Gopher (arXiv 2112.11446, table A1).

Words are what white space separates. A script without spaces has no such words: there each letter
counts as half a word (a Chinese word has about two letters; our own rule), and the limits on word
length and stop words, which were set on English, do not apply.

Guarantees: every rule is a pure function of the text and takes time linear in it; a rule never
fails, on an empty text either.
Out of scope: lists of banned addresses; the quality classifier; line removers.
"""

from collections import Counter
from collections.abc import Callable

from moxin_lab.data.findings import Finding
from moxin_lab.data.ngrams import is_unspaced

WORDS = (50, 100_000)
MEAN_WORD_LENGTH = (3.0, 10.0)
SYMBOLS_A_WORD = 0.1
BULLET_LINES = 0.9
ELLIPSIS_LINES = 0.3
# DCLM names 0.2 as the largest share of words without a letter: Gopher's 80 % with one.
WORDS_WITHOUT_LETTER = 0.2
STOP_WORDS = 2
# Gopher: share of lines, then of their characters, that repeat an earlier line.
DUPLICATE_LINES = 0.3
DUPLICATE_LINE_CHARACTERS = 0.2
# Gopher: largest share of the characters in the most frequent n-gram of words.
TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}

# Gopher, section A.1.1.
_ENGLISH = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS = ("•", "‣", "▪", "-", "*", "・", "●")
_SYMBOLS = ("#", "...", "…")


def word_count(text: str) -> float:
    """Words between white space; a letter of a script without spaces counts one half."""
    spaced = "".join(" " if is_unspaced(c) else c for c in text) if not text.isascii() else text
    unspaced = 0 if text.isascii() else sum(map(is_unspaced, text))
    return len(spaced.split()) + unspaced / 2


def mostly_unspaced(text: str) -> bool:
    """Whether at least half of the letters belong to scripts without spaces."""
    if text.isascii():
        return False
    letters = [c for c in text if c.isalpha()]
    return 2 * sum(map(is_unspaced, letters)) >= len(letters) > 0


def length(text: str) -> Finding | None:
    """Number of words."""
    count = word_count(text)
    return None if WORDS[0] <= count <= WORDS[1] else Finding("number of words", f"{count:g}")


def mean_word_length(text: str) -> Finding | None:
    """Mean length of the words in characters."""
    words = text.split()
    if not words or mostly_unspaced(text):
        return None
    mean = sum(map(len, words)) / len(words)
    low, high = MEAN_WORD_LENGTH
    return None if low <= mean <= high else Finding("mean word length", f"{mean:.2f}")


def symbols(text: str) -> Finding | None:
    """Hashes and ellipses a word."""
    share = sum(map(text.count, _SYMBOLS)) / max(1.0, word_count(text))
    return _above("symbols a word", share, SYMBOLS_A_WORD)


def bullet_lines(text: str) -> Finding | None:
    """Share of lines that begin with a bullet."""
    lines = _lines(text)
    share = sum(line.startswith(_BULLETS) for line in lines) / max(1, len(lines))
    return _above("bullet lines", share, BULLET_LINES)


def ellipsis_lines(text: str) -> Finding | None:
    """Share of lines that end with an ellipsis."""
    lines = _lines(text)
    share = sum(line.endswith(("...", "…")) for line in lines) / max(1, len(lines))
    return _above("ellipsis lines", share, ELLIPSIS_LINES)


def alphabetic(text: str) -> Finding | None:
    """Share of words without any letter, of the words that `word_count` counts."""
    without = sum(not any(map(str.isalpha, word)) for word in text.split())
    share = without / max(1.0, word_count(text))
    return _above("words without a letter", share, WORDS_WITHOUT_LETTER)


def stop_words(text: str) -> Finding | None:
    """Number of English stop words, repeated ones counted; for English text only."""
    count = sum(word in _ENGLISH for word in text.lower().split())
    return None if count >= STOP_WORDS else Finding("stop words", str(count))


def duplicate_lines(text: str) -> Finding | None:
    """Shares of the lines, and of their characters, that repeat an earlier line."""
    lines = _lines(text)
    counts = Counter(lines)
    repeated = (len(lines) - len(counts)) / max(1, len(lines))
    characters = sum(len(line) * (count - 1) for line, count in counts.items())
    share = characters / max(1, sum(map(len, lines)))
    return _above("duplicate lines", repeated, DUPLICATE_LINES) or _above(
        "characters in duplicate lines", share, DUPLICATE_LINE_CHARACTERS
    )


def top_ngrams(text: str) -> Finding | None:
    """Share of the characters in the most frequent n-gram of words, if it occurs twice."""
    words = text.split()
    total = max(1, sum(map(len, words)))
    for size, limit in TOP_NGRAMS.items():
        grams = Counter(zip(*(words[start:] for start in range(size)), strict=False))
        # Of equally frequent n-grams the longest counts, so that order does not matter.
        count, longest = max(((n, sum(map(len, g))) for g, n in grams.items()), default=(0, 0))
        found = _above(f"most frequent {size}-gram", count * longest / total, limit)
        if count > 1 and found:
            return found
    return None


RULES: tuple[Callable[[str], Finding | None], ...] = (
    length,
    mean_word_length,
    symbols,
    bullet_lines,
    ellipsis_lines,
    alphabetic,
    duplicate_lines,
    top_ngrams,
)


def check(text: str, language: str) -> Finding | None:
    """The first finding of `RULES`; for English ("en") the stop words as well."""
    for rule in (*RULES, stop_words) if language == "en" else RULES:
        found = rule(text)
        if found is not None:
            return found
    return None


def _lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if line]


def _above(reason: str, value: float, limit: float) -> Finding | None:
    return Finding(reason, f"{value:.3f}") if value > limit else None
