"""`moxin-lab bench curation`: speed, memory and quality of stage 01, beside peers in the same run.

    minhash    signatures of the same texts: ours, rensa, datasketch
    filters    heuristics and language identification
    pipeline   `slimpajama` from raw pages: extraction, language, personal data, duplicates
    planted    near-duplicates planted in pages of four languages, settings `strict` and `recipe`
    quality    classifiers on weak labels, and what their best tenth teaches (`bench/quality.py`)
    cost       deduplication of 10 MB to 1 GB, and the exponent of its cost

Reads the corpus of the small scale (`moxin-lab corpus build`) where it was built; `planted` reads
the help pages of the tree, those with odd numbers (`dedup.STRICT` was chosen on others).

Guarantees: times are CPU seconds of the process, of all its threads, because the cores may be
shared; `pipeline` and `cost` run in a process of their own, whose peak memory is told; peers get
the same texts and n-grams; a peer that is not installed is a row with its reason.
Out of scope: verdicts; reports/released/curation/README.md gives them.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moxin_lab.bench.curation_scale import (
    corpus_texts,
    cost,
    draw_cost,
    exponent,
    help_pages,
    pipeline,
)
from moxin_lab.bench.keeping import Keep, keeping

PARTS = ("minhash", "filters", "pipeline", "planted", "quality", "cost")
LANGUAGES = ("en", "zh", "ja", "ko")
SIZES = (10, 30, 100, 300, 1000)
REPEATS = 3
OLMO3 = 532
"""Documents a second and virtual core of OLMo 3's heuristics, derived from arXiv 2512.13961: 252.6
billion documents to 38.7 billion in about 1,030 hours of 128 of them.
"""
NO_DATATROVE = "not run: it needs an environment of its own, see --datatrove"
DATATROVE_LANGUAGES = {"en": "eng", "zh": "zho", "ja": "jpn", "ko": "kor"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--megabytes", type=float, default=20, help="text of minhash and filters")
    parser.add_argument("--raw-megabytes", type=float, default=200, help="pages of pipeline")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="MB of text of cost")
    parser.add_argument("--pages", type=int, default=100, help="of planted, in each language")
    parser.add_argument("--cards", type=Path, default=Path("data_cards"))
    parser.add_argument(
        "--datatrove",
        metavar="PYTHON",
        help="interpreter with datatrove[io,processing] and spacy (bench/datatrove_peer.py)",
    )
    parser.add_argument("--picture", type=Path, help="writes the cost of deduplication as SVG")


@keeping("curation")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: one per measurement, with `part`. `exponent`: of the cost of deduplication, if that was
    measured at two sizes or more.
    """
    # Rows that are measured together, group by group.
    parts: dict[str, Callable[[], Iterable[list[dict[str, Any]]]]] = {
        "minhash": lambda: [minhash_rows(options)],
        "filters": lambda: [filter_rows(options)],
        "pipeline": lambda: [[pipeline(options.raw_megabytes)]],
        "planted": lambda: [planted_rows(options)],
        "quality": lambda: [quality_rows(options)],
        "cost": lambda: ([cost(size, options.cards)] for size in options.sizes),
    }
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"rows": rows}
    for name, make in parts.items():
        for group in make() if name in options.parts else ():
            rows += [{"part": name} | row for row in group]
            keep(result)
    spent = [(row["MB"], row["CPU seconds"]) for row in rows if row["part"] == "cost"]
    if len({size for size, _ in spent}) > 1:
        result["exponent"] = exponent(spent)
        if options.picture is not None:
            draw_cost(spent, result["exponent"], options.picture)
    return result


# ---- minhash and filters


def minhash_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Megabytes a CPU second of signatures of 128 minima over character 13-grams, text to array."""
    from moxin_lab.bench.planted import shingle_sets
    from moxin_lab.data import dedup, minhash

    width, permutations = dedup.RECIPE.ngram_size, dedup.RECIPE.permutations
    texts = list(corpus_texts(options.megabytes, options.cards))

    def by_rensa(tokens: Callable[[str], Any]) -> Callable[[list[str]], Any]:
        from rensa import RMinHash

        def hashed(part: list[str]) -> None:
            for start in range(0, len(part), 64):
                sets = [list(tokens(text)) for text in part[start : start + 64]]
                RMinHash.digest_matrix_from_token_sets(sets, permutations, 42)

        return hashed

    def by_datasketch(part: list[str]) -> None:
        from datasketch import MinHash

        for text in part:
            sketch = MinHash(permutations)
            sketch.update_batch([gram.encode() for gram in shingle_sets(text, width)])

    methods: dict[str, tuple[str, Callable[[], Callable[[list[str]], Any]]]] = {
        "ours": ("", lambda: lambda part: minhash.signatures(part, permutations, width)),
        "rensa": ("rensa", lambda: by_rensa(lambda text: shingle_sets(text, width))),
        "rensa, words as n-grams": ("rensa", lambda: by_rensa(str.split)),
        "datasketch": ("datasketch", lambda: by_datasketch),
    }
    rows: list[dict[str, Any]] = []
    runnable = {}
    for name, (package, make) in methods.items():
        if package and find_spec(package) is None:
            rows.append({"method": name, "reason": f"not installed: pip install {package}"})
        else:
            runnable[name] = make()
    # Peers are slow: they get a regular tenth of the texts. Methods take turns.
    parts = {name: texts if name == "ours" else texts[::10] for name in runnable}
    seconds: dict[str, list[float]] = {name: [] for name in runnable}
    for _ in range(REPEATS):
        for name, call in runnable.items():
            seconds[name].append(_cpu_seconds(call, parts[name]))
    measured = [
        _speed(parts[name], statistics.median(spent), method=name, ngram=_ngram(name, width))
        for name, spent in seconds.items()
    ]
    answer = _datatrove(options, "en", texts[::20])
    if "reason" in answer:
        rows.append({"method": "datatrove", "reason": answer["reason"]})
    else:
        row = _speed(texts[::20], answer["seconds"], method="datatrove", ngram="5 words")
        measured.append(row)
    return [*measured, *rows]


def _datatrove(options: argparse.Namespace, language: str, texts: list[str]) -> dict[str, Any]:
    """The answer of `datatrove_peer`, or the reason why there is none."""
    if options.datatrove is None:
        return {"reason": NO_DATATROVE}
    asked = json.dumps({"language": DATATROVE_LANGUAGES[language], "texts": texts})
    script = Path(__file__).with_name("datatrove_peer.py")
    done = subprocess.run(
        [options.datatrove, str(script)], input=asked, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"reason": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _ngram(method: str, width: int) -> str:
    return "words" if "words" in method else f"{width} characters"


def filter_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Heuristics (DCLM's values) and language identification, each alone and together."""
    from moxin_lab.data import heuristics, languages

    texts = list(corpus_texts(options.megabytes / 4, options.cards))
    rules: dict[str, Callable[[str], Any]] = {
        "heuristics": lambda text: heuristics.check(text, "en"),
        "language": languages.shares,
    }
    rows = []
    for name, rule in rules.items():
        each = partial(_each, rule)
        spent = [_cpu_seconds(each, texts) for _ in range(REPEATS)]
        rows.append(_speed(texts, statistics.median(spent), method=name))
    both = sum(row["CPU seconds"] for row in rows)
    rows.append(_speed(texts, both, method="heuristics and language"))
    published = {"method": "OLMo 3, published, other machine", "documents/s": OLMO3}
    return [*rows, published]


def _each(rule: Callable[[str], Any], texts: list[str]) -> None:
    for text in texts:
        rule(text)


def _speed(texts: list[str], seconds: float, **labels: Any) -> dict[str, Any]:
    megabytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / 1e6
    return labels | {
        "MB": megabytes,
        "CPU seconds": seconds,
        "MB/s": megabytes / seconds,
        "documents/s": len(texts) / seconds,
        "kB a document": 1000 * megabytes / len(texts),
    }


def _cpu_seconds(call: Callable[[list[str]], Any], texts: list[str]) -> float:
    began = time.process_time()
    call(texts)
    return time.process_time() - began


# ---- planted near-duplicates


def planted_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Recall and precision by setting, language, share of edited words and method."""
    from moxin_lab.bench import planted
    from moxin_lab.data import dedup

    pages: dict[str, list[str]] = {language: [] for language in LANGUAGES}
    for language, text in help_pages(options.cards):
        if len(text) >= 500:
            pages[language].append(text)
    settings = {
        "strict": (dedup.STRICT, 0.0),
        "recipe": (dedup.RECIPE, dedup.RECIPE.threshold),
        "recipe, wide bands": (dedup.RECIPE_WIDE, dedup.RECIPE.threshold),
    }
    rows: list[dict[str, Any]] = []
    for setting, (values, least) in settings.items():
        for language in LANGUAGES:
            odd = pages[language][1::2]
            chosen = odd[:: max(1, len(odd) // options.pages)][: options.pages]
            for share in (0.02, 0.05, 0.10):
                case = planted.plant(chosen, share, values, seed=0)
                labels = {"setting": setting, "language": language, "edited words": share}
                for method, find in planted.METHODS.items():
                    labels["method"] = method
                    if method != "ours" and find_spec(method) is None:
                        rows.append(labels | {"reason": f"not installed: pip install {method}"})
                        continue
                    rows.append(labels | planted.score(case, find(case.documents, values), least))
                if setting == "strict":  # it has one setting of its own
                    labels["method"] = "datatrove"
                    rows.append(labels | _datatrove_score(options, language, case))
    return rows


def _datatrove_score(options: argparse.Namespace, language: str, case: Any) -> dict[str, Any]:
    from moxin_lab.bench import planted

    answer = _datatrove(options, language, case.documents["text"].to_pylist())
    if "reason" in answer:
        return {"reason": answer["reason"]}
    ids = case.documents["id"].to_pylist()
    return planted.score(case, [(ids[a], ids[b]) for a, b in answer["pairs"]])


def quality_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each classifier, on the small corpus."""
    from moxin_lab.bench import quality
    from moxin_lab.data.corpus import CorpusError

    try:
        return quality.rows(quality.read_pages())
    except CorpusError as error:
        return [{"method": "quality classifiers", "reason": str(error)}]
