"""The parts of `moxin-lab bench curation` that read the corpus of the small scale: samples of its
texts, the whole pipeline, and deduplication of growing sizes.

Guarantees: a sample is every n-th document, in the order of the shards; `pipeline` and `cost` run
in a process of their own, whose peak memory is told.
Out of scope: peers (`curation.py`).
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# ---- texts


def corpus_texts(megabytes: float, cards: Path, *, code: bool = False) -> Iterator[str]:
    """A regular sample of about so many MB of the corpus of the small scale, in the order of its
    shards; of the help pages in `cards` where no corpus was built, which may be fewer.
    """
    import pyarrow.parquet as pq

    from moxin_lab.data import corpus

    try:
        shards = corpus.sources("small")
    except corpus.CorpusError:
        yield from _sampled((text for _, text in help_pages(cards)), megabytes, 20.0)
        return
    built = json.loads((corpus.cache_folder() / "build.json").read_text(encoding="utf-8"))
    whole = sum(
        group["text_bytes"] / 1e6
        for group in built["groups"]
        if code or group["language"] != "code"
    )
    columns = ["language", "text"]
    rows = (
        row
        for shard in shards
        for batch in pq.ParquetFile(shard).iter_batches(256, columns=columns)
        for row in batch.to_pylist()
    )
    yield from _sampled(
        (row["text"] for row in rows if code or row["language"] != "code"), megabytes, whole
    )


def _sampled(texts: Iterator[str], megabytes: float, whole: float) -> Iterator[str]:
    """Every n-th text, so that about `megabytes` of the `whole` come."""
    return islice(texts, 0, None, max(1, round(whole / megabytes)))


def help_pages(cards: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of the help pages of the tree that can be read, by page and language."""
    from moxin_lab.data.card_files import read_card
    from moxin_lab.data.html_text import html_to_text
    from moxin_lab.data.unreadable import Unreadable

    table = read_card(cards / "help_pages").sort_by([("page", "ascending")])
    for batch in table.to_batches(256):
        for row in batch.to_pylist():
            try:
                yield row["language"], html_to_text(row["html"].decode())
            except Unreadable:
                continue


# ---- whole pipeline and cost, in processes of their own


def pipeline(megabytes: float) -> dict[str, Any]:
    """`slimpajama` from the raw HTML of about so many MB, a regular sample of the corpus."""
    from moxin_lab.data import corpus

    try:
        corpus.sources("small", "raw")
    except corpus.CorpusError as error:
        return {"method": "slimpajama from raw pages", "reason": str(error)}
    with tempfile.TemporaryDirectory() as folder:
        return _apart(_pipeline, megabytes, folder)


def _pipeline(megabytes: float, folder: str) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from moxin_lab.data import corpus, engine, pipelines, readers

    shards = corpus.sources("small", "raw")
    built = json.loads((corpus.cache_folder() / "build.json").read_text(encoding="utf-8"))
    whole = sum(group["raw_bytes"] for group in built["groups"] if group["format"] == "html") / 1e6
    every = max(1, round(whole / megabytes))
    files, raw, pages, seen = [], 0, 0, 0
    for shard in shards:
        table = pq.read_table(shard, filters=[("format", "==", "html")])
        places = pa.array(range(-seen % every, table.num_rows, every), pa.int64())
        seen += table.num_rows
        table = table.take(places)
        if table.num_rows:
            path = Path(folder) / shard.name
            pq.write_table(table, path, row_group_size=256)
            files.append(readers.File(shard.name, str(path), path.stat().st_size))
            raw += pc.sum(pc.binary_length(table["content"])).as_py()
            pages += table.num_rows
    del table
    corpora = readers.of_corpus("small", "html")._replace(files=tuple(files))
    began = time.process_time()
    steps = pipelines.slimpajama(pipelines.Options())
    out = Path(folder) / "out"
    engine.run("slimpajama", steps, [corpora], out, say=lambda line: None)
    spent = time.process_time() - began
    funnel = json.loads((out / "funnel.json").read_text(encoding="utf-8"))
    # The first step of the funnel is reading: text of the pages that could be read.
    names = list(dict.fromkeys(row["step"] for row in funnel["steps"]))
    left = {
        name: sum(row["bytes"] for row in funnel["steps"] if row["step"] == name) / 1e6
        for name in names
    }
    return {
        "method": "slimpajama from raw pages",
        "raw MB": raw / 1e6,
        "pages": pages,
        "MB": left[names[0]],
        "MB left": left[names[-1]],
        "CPU seconds": spent,
        "raw MB/s": raw / 1e6 / spent,
        "MB/s": left[names[0]] / spent,
        "documents/s": pages / spent,
    }


def cost(megabytes: float, cards: Path) -> dict[str, Any]:
    """Signatures, buckets and verified pairs of a sample of the corpus; where a size exceeds it,
    copies with a twentieth of the words replaced make up for what is missing.
    """
    return _apart(_deduplicate, megabytes, str(cards))


def _deduplicate(megabytes: float, cards: str) -> dict[str, Any]:
    import random

    import pyarrow as pa

    from moxin_lab.bench.planted import edited, words
    from moxin_lab.data import dedup

    texts = list(corpus_texts(megabytes, Path(cards), code=True))
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / 1e6
    draw, originals = random.Random(0), len(texts)
    pool = [word for text in texts[:: max(1, len(texts) // 50)] for word in words(text)]
    # A sample is a little smaller than asked for; a corpus that is too small is much smaller.
    for text in texts[:originals] if size < 0.9 * megabytes else []:
        if size >= megabytes:
            break
        texts.append(edited(text, 0.05, pool, draw) if text.strip() else text)
        size += len(texts[-1].encode("utf-8", "surrogatepass")) / 1e6
    ids = pa.array(f"{number:08}" for number in range(len(texts)))
    table = pa.table({"id": ids, "text": pa.array(texts, pa.large_string())})
    edited_copies, settings = len(texts) - originals, dedup.RECIPE_WIDE
    del texts, pool
    began = time.process_time()
    frame = dedup.frame(table)
    signed = dedup.signatures(frame, settings.permutations, settings.ngram_size).collect()
    hashed = time.process_time() - began
    found = dedup.buckets(signed, settings.bands, settings.rows)
    pairs = dedup.verified_pairs(found, frame, settings.ngram_size, settings.threshold)
    groups = dedup.groups(pairs, settings.threshold)
    spent = time.process_time() - began
    return {
        "method": "deduplication, wide bands",
        "MB": size,
        "documents": table.num_rows,
        "edited copies": edited_copies,
        "in groups": groups.num_rows,
        "CPU seconds": spent,
        "of it signatures": hashed,
        "MB/s": size / spent,
    }


def _apart(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The row of `work` in a new process, with that process's peak memory in MiB."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        row: dict[str, Any] = pool.submit(work, *arguments).result()
        return row | {"peak MiB": pool.submit(_peak).result()}


def _peak() -> float:
    from moxin_lab.data.corpus_text import peak_bytes

    return peak_bytes() / 2**20


def exponent(measured: list[tuple[float, float]]) -> float:
    """The slope of log(seconds) over log(MB), by least squares. Needs two different sizes."""
    xs, ys = ([math.log(value) for value in column] for column in zip(*measured, strict=True))
    return statistics.linear_regression(xs, ys).slope


def draw_cost(measured: list[tuple[float, float]], slope: float, path: Path) -> None:
    """CPU seconds over megabytes, both logarithmic, with a line of exponent 1 beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    xs, ys = zip(*sorted(measured), strict=True)
    figure, axes = pyplot.subplots(figsize=(5.5, 3.6), layout="constrained")
    axes.loglog(xs, ys, "o-", label=f"measured, exponent {slope:.2f}")
    axes.loglog(xs, [ys[-1] * x / xs[-1] for x in xs], "--", color="grey", label="exponent 1")
    axes.set(xlabel="text, MB", ylabel="CPU seconds", title="Deduplication of the small corpus")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
