"""Quality classifiers on weak labels of the small corpus, and what their scores are good for.

Labels are `quality.weak_label` of English pages. A classifier is tested on projects that it was not
trained on: the projects are dealt into three folds, so that a site's style gives nothing away. What
is kept is compared by a language model of bytes, trained on equally many bytes of each selection
and read on good pages of the projects left out.

Guarantees: the same pages, folds, labels and budget for all; nothing is chosen by these results.
Out of scope: large models. The language model has counts of five bytes.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

FOLDS = 3
PAGES = 80
"""Labelled pages of a project and label that are used at most, so that no site outvotes others."""
KEPT = 0.1
ORDER, VOCABULARY, BOS = 5, 257, 256
LONGEST, READ = 20_000, 2_000
"""Characters of a page that are used, and of a good page that the language model is tested on."""


class Page(NamedTuple):
    id: str
    project: str
    label: int | None
    text: str


def read_pages(per_project: int = PAGES) -> list[Page]:
    """English prose of the small corpus: of every project at most so many pages with each label,
    those with the smallest hashes. Raises CorpusError if the corpus was not built.
    """
    import pyarrow.parquet as pq

    from moxin_lab.data import corpus
    from moxin_lab.data.quality import weak_label

    found: dict[tuple[str, int | None], list[tuple[str, Page]]] = defaultdict(list)
    columns = ["id", "project", "page", "text"]
    for shard in corpus.sources("small"):
        table = pq.read_table(shard, columns=columns, filters=[("language", "==", "en")])
        for row in table.to_pylist():
            text = row["text"][:LONGEST]
            page = Page(row["id"], row["project"], weak_label(row["page"]), text)
            kept = found[page.project, page.label]
            kept.append((hashlib.sha256(page.id.encode()).hexdigest(), page))
            if len(kept) > 4 * per_project:
                kept.sort()
                del kept[per_project:]
    return [page for kept in found.values() for _, page in sorted(kept)[:per_project]]


def fold_of(project: str) -> int:
    """The fold in which a project is tested."""
    return hashlib.sha256(project.encode()).digest()[0] % FOLDS


def rows(pages: Sequence[Page]) -> list[dict[str, Any]]:
    """For every classifier the AUC and the precision among the best tenth on projects left out, the
    mean of the folds and the folds; its speed; bits per byte after its two selections.
    """
    from moxin_lab.data import quality

    measured: dict[str, list[dict[str, float]]] = {name: [] for name in quality.CLASSIFIERS}
    for fold in range(FOLDS):
        train = [page for page in pages if fold_of(page.project) != fold]
        test = [page for page in pages if fold_of(page.project) == fold]
        labelled = [page for page in train if page.label is not None]
        judged = [page for page in test if page.label is not None]
        good = [page.text[:READ] for page in judged if page.label == 1]
        labels = [int(page.label or 0) for page in labelled]
        truth = [int(page.label or 0) for page in judged]
        if not good or len(good) == len(judged):
            continue
        for name, make in quality.CLASSIFIERS.items():
            began = time.process_time()
            score = make([page.text for page in labelled], labels, 0)
            trained = time.process_time()
            scores = score([page.text for page in judged])
            ended = time.process_time()
            best = quality.top_share(scores, [page.id for page in judged], KEPT)
            measured[name].append(
                {
                    "AUC": quality.auc(scores, truth),
                    "good among the best tenth": float(np.mean(np.array(truth)[best])),
                    "training CPU seconds": trained - began,
                    "documents/s": len(judged) / max(1e-9, ended - trained),
                    "labelled": len(labelled),
                    "tested": len(judged),
                }
                | selections(train, score([page.text for page in train]), good)
            )
    return [
        {"method": name}
        | {key: float(np.mean([fold[key] for fold in folds])) for key in folds[0]}
        | {"AUC of the folds": " ".join(f"{fold['AUC']:.3f}" for fold in folds)}
        for name, folds in measured.items()
        if folds
    ]


def selections(pool: Sequence[Page], scores: np.ndarray, good: Sequence[str]) -> dict[str, float]:
    """Bits per byte of `good` under models of the best tenth and of quality-aware upsampling, both
    of about a tenth of the pool's bytes.
    """
    from moxin_lab.data import quality

    ids = [page.id for page in pool]
    sizes = np.array([len(page.text.encode()) for page in pool])
    budget = KEPT * sizes.sum()
    order = np.argsort(-scores, kind="stable")
    # By bytes, not documents, so that both selections are of one size.
    best = order[: max(1, int(np.searchsorted(np.cumsum(sizes[order]), budget)))]
    times = quality.upsampled(scores, ids, sizes, float(budget))
    return {
        "bits/byte, best tenth": bits_per_byte([pool[at].text for at in best], good),
        "bits/byte, upsampled": bits_per_byte(
            [pool[at].text for at in np.repeat(np.arange(len(pool)), times)], good
        ),
        "MB, best tenth": float(sizes[best].sum()) / 1e6,
        "MB, upsampled": float((sizes * times).sum()) / 1e6,
    }


def bits_per_byte(train: Sequence[str], heldout: Sequence[str]) -> float:
    """Of `heldout` under a Kneser-Ney model of bytes of order 5 that was fitted on `train`."""
    from moxin_lab.evaluation.ngrams import NGram

    model = NGram.fit(
        [list(text.encode()) for text in train], order=ORDER, vocab_size=VOCABULARY, bos_id=BOS
    )
    texts = [list(text.encode()) for text in heldout]
    nats = model.document_losses(texts)
    return float(np.sum(nats)) / np.log(2) / max(1, sum(map(len, texts)))
