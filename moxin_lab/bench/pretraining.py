"""`moxin-lab bench pretraining`: a scale's three phases on the corpus, how fast the training loop
is beside a bare step, and held-out bits per byte beside n-grams fitted on the same tokens.

    moxin-lab bench pretraining --scale small --folder WORK --until packed   # needs no GPU
    moxin-lab bench pretraining --scale small --folder WORK --device cuda --json FILE

A bare step is forward, loss, backward, clipping and AdamW on batches that are on the device
already, launched without a wait: what the loop (Lightning, the log, the loader) is measured
against. Both run the same compiled blocks, in the same process, on the same batches.

Guarantees: useful FLOPs are 6 for each weight of a matrix product and token plus 12 x heads x
head_dim for each pair of tokens that the mask of the very rows allows (Chowdhery et al. 2022, arXiv
2204.02311, appendix B), nothing for recomputation; n-grams read the documents that the training
read, as often; all models are scored on the same held-out documents, of which at most 5 % lie in
13-grams of the training pools.
Out of scope: peers (`bench train-step`), several devices.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.callbacks import Callback

from moxin_lab.bench import free_memory, peak_bytes, say
from moxin_lab.bench.keeping import Keep, keeping, sigterm_left_to_the_training

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from moxin_lab.model.config import MoxinConfig
    from moxin_lab.model.decoder import MoxinForCausalLM
    from moxin_lab.pretraining.packing import TrainingStream
    from moxin_lab.scales import Scale

WARMUP = 8
"""Steps of each context that are not timed: in the first the blocks compile."""
STEPS = ("curated", "tokenizer", "packed", "speed", "trained", "scored")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", default="small", help="its model and phases (default small)")
    parser.add_argument(
        "--folder", required=True, metavar="WORK", help="where the prepared text is or goes"
    )
    parser.add_argument(
        "--until", choices=STEPS, default="scored", help="the last step to do (default all)"
    )
    parser.add_argument(
        "--without-speed", action="store_true", help="train at once, without the bare steps"
    )
    parser.add_argument(
        "--speed-steps", type=int, default=40, help="timed steps of each row (default 40)"
    )
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="on a GPU: also say which kernels the bare step's time goes to",
    )
    parser.add_argument(
        "--loss-chunk",
        type=int,
        default=None,
        metavar="TOKENS",
        help="tokens whose logits are held at once (default: the trainer's)",
    )
    parser.add_argument("--seed", type=int, default=0)


@keeping("pretraining")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows of the speed (`implementation`: bare step or loop), and of the scores (`row`)."""
    from moxin_lab import scales
    from moxin_lab.lab.artifacts import LabError, write_atomically

    if options.kernels and options.device != "cuda":
        raise LabError("--kernels are a GPU's: leave it out, or give --device cuda")
    if options.loss_chunk is not None:
        from moxin_lab.pretraining import trainer

        trainer.LOSS_CHUNK[options.device] = options.loss_chunk
    scale = scales.load(options.scale)
    folder = Path(options.folder)
    prepared = prepare(scale, folder, options)
    if options.until in STEPS[:3]:
        return {"rows": [], "corpus": prepared}
    setup = load(scale, folder, options)
    result: dict[str, Any] = {"corpus": prepared, "settings": setup.settings, "rows": []}
    if not options.without_speed:
        for rows in measure_speed(setup, options):
            result["rows"] += rows
            keep(result)
    if options.kernels:
        result["kernels"] = kernels(setup, options)
        keep(result)
    if options.until in STEPS[4:]:
        # A machine is lent for a time: what was trained is kept before anything is scored.
        kept = folder / "run" / "training.json"
        if not kept.is_file():
            with sigterm_left_to_the_training():
                summary = train(setup, options)
            write_atomically(kept, json.dumps(summary))
        result["training"] = json.loads(kept.read_text(encoding="utf-8"))
        keep(result)
    if options.until == "scored":
        for rows in score(setup, folder / "run", options):
            result["rows"] += rows
            keep(result)
    return result


# ---- text to tokens


def prepare(scale: Scale, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What is missing of the text, the tokenizer and the tokens; a few numbers of each."""
    from moxin_lab.bench import pretraining_corpus as text
    from moxin_lab.data.corpus_pack import pack_sha256
    from moxin_lab.lab.artifacts import find_root

    until = STEPS.index(options.until)
    curated = folder / "curated"
    if not (curated / "heldout.parquet").is_file() and not (folder / "packed").is_dir():
        text.curate(scale, find_root(), folder / "documents", options.seed)
        text.take(folder / "documents", scale.pretraining.phases, curated)
    files = sorted(curated.glob("train-*.parquet"))
    of_corpus = sorted(curated.glob("train-[0-9]*.parquet"))
    tokenizer = folder / "tokenizer"
    if until >= 1 and not tokenizer.is_dir():
        text.learn_tokenizer(of_corpus, scale.tokenizer, tokenizer)
    if until < 2:
        return {}
    manifest = text.pack(files, tokenizer, folder / "packed")
    return {"pools": manifest["pools"], "sha256": pack_sha256(manifest)}


def load(scale: Scale, folder: Path, options: argparse.Namespace) -> SimpleNamespace:
    """The stream, the model's configuration and the held-out text."""
    import pandas as pd
    from transformers import AutoTokenizer

    from moxin_lab.data import corpus_pack
    from moxin_lab.model.config import MoxinConfig
    from moxin_lab.pretraining import packing, pools

    settings = scale.pretraining
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    drawn = {name for phase in settings.phases for name in phase.mixture}
    packed = corpus_pack.read_pools(folder / "packed", drawn, folder / "tokenizer")
    tokens = {name: pools.Tokens(*pool) for name, pool in packed.items()}
    stream = packing.TrainingStream(
        tokens, settings.phases, tokens_per_step=settings.tokens_per_step, seed=options.seed
    )
    config = MoxinConfig(vocab_size=scale.tokenizer.vocab_size, **scale.model.model_dump())
    heldout = pd.read_parquet(folder / "curated" / "heldout.parquet")
    return SimpleNamespace(
        scale=scale,
        phases=settings,
        pools=tokens,
        stream=stream,
        config=config,
        tokenizer=tokenizer,
        heldout=heldout.assign(num_bytes=[len(text.encode()) for text in heldout["text"]]),
        settings={
            "scale": scale.name,
            "pretraining": settings.model_dump(),
            "model": scale.model.model_dump(),
            "vocab_size": scale.tokenizer.vocab_size,
        },
    )


# ---- floating-point operations


def useful_flops(stream: TrainingStream, config: MoxinConfig, steps: Sequence[int]) -> list[float]:
    """Forward and backward operations of each step, by the pairs that its rows' masks allow."""
    from moxin_lab.model.config import matrix_parameters

    window = config.sliding_window or config.max_position_embeddings
    per_pair = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    flops = []
    for step in steps:
        lengths = np.array([span.tokens for span in stream.spans(step)], dtype=np.float64)
        seen = np.minimum(lengths, window)
        pairs = float((lengths * seen - seen * (seen - 1) / 2).sum())
        flops.append(6 * matrix_parameters(config) * lengths.sum() + per_pair * pairs)
    return flops


# ---- speed: a bare step and the loop


class StepTimes(Callback):
    """When each optimizer step ended, by events on a GPU, without a wait."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        self._marks: list[Any] = []

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step > len(self._marks):
            self._marks.append(mark(self._on_gpu))

    def seconds(self) -> list[float]:
        """Between the ends of steps: one number less than there were steps."""
        return between(self._marks, self._on_gpu)


def mark(on_gpu: bool) -> Any:
    """A point in time: an event of the GPU's stream, or the clock."""
    import torch

    if not on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(marks: list[Any], on_gpu: bool) -> list[float]:
    """Seconds between consecutive marks."""
    import torch

    if not on_gpu:
        return [after - before for before, after in pairwise(marks)]
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(marks)]


def measure_speed(
    setup: SimpleNamespace, options: argparse.Namespace
) -> Iterator[list[dict[str, Any]]]:
    """Bare step and loop for each context of the phases, and the loop as it would be uncompiled:
    the rows of each as soon as it has run.
    """
    first_of = {phase.sequence_length: phase for phase in reversed(setup.phases.phases)}
    count = WARMUP + options.speed_steps
    phases = [first_of[length].model_copy(update={"steps": count}) for length in sorted(first_of)]
    stream = stream_of(setup, phases, options)
    kinds: list[tuple[str, Callable[..., list[float]], bool]] = [
        ("bare step, compiled", bare_steps, True),
        ("training loop, compiled", loop_steps, True),
        ("training loop, not compiled", loop_steps, False),
    ]
    if options.device == "cpu":  # where no training compiles
        kinds = [
            ("bare step, not compiled", bare_steps, False),
            ("training loop, not compiled", loop_steps, False),
        ]
    for name, timed, compiled in kinds:
        say(f"  {name}")
        free_memory(options.device)
        seconds = timed(setup, stream, compiled, options)
        rows: list[dict[str, Any]] = []
        for phase in stream.phases:
            # seconds[i] ends with step i + 1
            steps = range(phase.first_step + WARMUP, phase.first_step + phase.steps)
            part = [seconds[step - 1] for step in steps]
            rows.append(
                {
                    "implementation": name,
                    "sequence": phase.sequence_length,
                    "peak_bytes": peak_bytes(options.device),
                    **speed_of(part, useful_flops(stream, setup.config, steps), setup, options),
                }
            )
        yield rows


def stream_of(
    setup: SimpleNamespace, phases: Sequence[Any], options: argparse.Namespace
) -> TrainingStream:
    """The pools' batches in these phases."""
    from moxin_lab.pretraining.packing import TrainingStream

    return TrainingStream(
        setup.pools, phases, tokens_per_step=setup.phases.tokens_per_step, seed=options.seed
    )


def kernels(setup: SimpleNamespace, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds and calls of each kernel in a bare step of the longest context, longest first;
    kernels below 0.1 ms a step are one row.
    """
    import torch

    longest = max(setup.phases.phases, key=lambda phase: phase.sequence_length)
    found: list[dict[str, Any]] = []
    profiled = 4
    phase = longest.model_copy(update={"steps": WARMUP + profiled})
    stream = stream_of(setup, [phase], options)
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])

    def at_step(step: int) -> None:
        if step == WARMUP:
            torch.cuda.synchronize()
            profile.start()

    bare_steps(setup, stream, True, options, at_step)
    torch.cuda.synchronize()
    profile.stop()
    rest = {"kernel": "all others", "ms": 0.0, "calls": 0.0}
    for event in profile.key_averages():
        row = {
            "kernel": event.key,
            "ms": event.self_device_time_total / 1000 / profiled,
            "calls": event.count / profiled,
        }
        if row["ms"] >= 0.1:
            found.append(row)
        else:
            rest = {"kernel": "all others"} | {k: rest[k] + row[k] for k in ("ms", "calls")}
    return sorted(found, key=lambda row: -row["ms"]) + [rest]


def speed_of(
    seconds: list[float], flops: list[float], setup: SimpleNamespace, options: argparse.Namespace
) -> dict[str, Any]:
    """Median step, tokens per second and share of the peak over all of these steps."""
    from moxin_lab.bench.train_step import device_peak

    tokens = setup.phases.tokens_per_step * len(seconds)
    peak = device_peak(options.device)
    return {
        "steps": len(seconds),
        "median_ms": statistics.median(seconds) * 1000,
        "tokens_per_second": tokens / sum(seconds),
        "flops_per_token": sum(flops) / tokens,
        "model_flops_utilisation": sum(flops) / sum(seconds) / peak if peak else None,
    }


def new_model(setup: SimpleNamespace, options: argparse.Namespace) -> MoxinForCausalLM:
    from moxin_lab.model.experiments import new_model as untrained

    return untrained(setup.config, options.seed)


def bare_steps(
    setup: SimpleNamespace,
    stream: TrainingStream,
    compiled: bool,
    options: argparse.Namespace,
    at_step: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Seconds of each step without Lightning, log and loader. at_step: called before each."""
    import torch

    from moxin_lab.pretraining import trainer
    from moxin_lab.training.compiled import GraphedPass, compiled_blocks
    from moxin_lab.training.fit import autocast
    from moxin_lab.training.loss import linear_cross_entropy

    device = torch.device(options.device)
    model = new_model(setup, options).to(device).train()
    optimizer = trainer.adamw(model, setup.phases)
    parts = trainer.accumulation(setup.phases, 1)
    batches = [
        [on_device(stream.batch(step, part=part, parts=parts), device) for part in range(parts)]
        for step in range(stream.num_steps)
    ]
    loss_of: Any = linear_cross_entropy
    if compiled:
        loss_of = torch.compile(linear_cross_entropy, dynamic=False)

    def sums(part: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with autocast(setup.phases.precision, device):
            return {"loss": trainer.token_loss(model, part, loss_of) / part["num_targets"]}

    graphed = None
    if compiled and trainer.can_be_graphed(model, setup.phases, trainer_options(options)):
        graphed = GraphedPass(sums, model.parameters())
    marks = []
    with compiled_blocks(model.model.layers, on=compiled):
        for step, batch in enumerate(batches):
            at_step(step)
            for part in batch:
                if graphed is None:
                    sums(part)["loss"].backward()
                else:
                    graphed.load(part)
                    graphed.replay()
            torch.nn.utils.clip_grad_norm_(model.parameters(), setup.phases.gradient_clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            marks.append(mark(options.device == "cuda"))
    return between(marks, options.device == "cuda")


def trainer_options(options: argparse.Namespace) -> dict[str, Any]:
    """Lightning's options for one device of the bench's kind."""
    return {"accelerator": "gpu" if options.device == "cuda" else "cpu", "devices": 1}


def on_device(batch: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.as_tensor(values).to(device) for name, values in batch.items()}


def loop_steps(
    setup: SimpleNamespace, stream: TrainingStream, compiled: bool, options: argparse.Namespace
) -> list[float]:
    """Seconds of each step of the training loop."""
    times = StepTimes(options.device)
    with tempfile.TemporaryDirectory() as folder:
        _fit(setup, stream, Path(folder), lambda index: None, compiled, [times], options)
    return times.seconds()


def _fit(
    setup: SimpleNamespace,
    stream: TrainingStream,
    folder: Path,
    save_phase: Callable[[int], None],
    compiled: bool | None,
    callbacks: Sequence[Callback],
    options: argparse.Namespace,
    model: MoxinForCausalLM | None = None,
) -> pd.DataFrame:
    from moxin_lab.pretraining import trainer

    return trainer.fit(
        new_model(setup, options) if model is None else model,
        stream,
        setup.phases,
        resume_folder=folder,
        save_phase=save_phase,
        trainer_options=trainer_options(options),
        compiled=compiled,
        callbacks=callbacks,
    )


# ---- the training and its scores


def train(setup: SimpleNamespace, options: argparse.Namespace) -> dict[str, Any]:
    """The three phases, timed by the clock and by step; their checkpoints go to `run/phase_N`."""
    from moxin_lab.model import convert

    folder = Path(options.folder) / "run"
    model = new_model(setup, options)

    def save_phase(index: int) -> None:
        convert.save_pretrained(model, folder / f"phase_{index + 1}")

    times = StepTimes(options.device)
    free_memory(options.device)
    began = time.monotonic()
    log = _fit(
        setup,
        setup.stream,
        folder,
        save_phase,
        None,
        [times],
        options,
        model,
    )
    wall = time.monotonic() - began
    peak = peak_bytes(options.device)
    model.cpu()
    seconds = times.seconds()
    flops = useful_flops(setup.stream, setup.config, range(setup.stream.num_steps))
    summary: dict[str, Any] = {
        "tokens": setup.stream.num_steps * setup.phases.tokens_per_step,
        "wall_seconds": wall,
        "flops": sum(flops),
        "peak_bytes": peak,
        "consumed": setup.stream.consumed,
        "phases": [],
        "loss": log["loss"].round(4).tolist(),
        "gradient_norm": log["gradient_norm"].round(4).tolist(),
        "learning_rate": log["learning_rate"].tolist(),
    }
    for phase in setup.stream.phases:
        # Without the steps in which blocks compile, a resume point is written or a phase is saved.
        first = phase.first_step + 2
        part = seconds[first : phase.first_step + phase.steps - 2]
        if not part:  # a phase of so few steps has no speed
            continue
        typical = statistics.median(part)
        kept = [i for i, value in enumerate(part) if value < 3 * typical]
        chosen = [part[i] for i in kept]
        counted = [flops[first + 1 + i] for i in kept]
        named = {"name": phase.name, "sequence": phase.sequence_length}
        left_out = {"left_out": len(part) - len(kept)}
        summary["phases"].append(named | left_out | speed_of(chosen, counted, setup, options))
    return summary


def score(
    setup: SimpleNamespace, folder: Path, options: argparse.Namespace
) -> Iterator[list[dict[str, Any]]]:
    """Bits per byte of the phases' checkpoints and of n-grams, by language, on held-out text: rows
    of fresh pages, of all, of the overlap.
    """
    from moxin_lab.bench.pretraining_corpus import repeated
    from moxin_lab.data.split import MAX_OVERLAP
    from moxin_lab.evaluation import heldout, ngrams
    from moxin_lab.evaluation.bits_per_byte import encode_documents
    from moxin_lab.model import convert
    from moxin_lab.pretraining import results

    # Twice as much as is scored, since some of it repeats training text.
    texts = heldout.choose(
        setup.heldout,
        bytes_per_language=3 * setup.phases.heldout_bytes_per_language,
        seed=options.seed,
    )
    streams = [tokens.ids for tokens in setup.pools.values()]
    overlap = repeated(
        encode_documents(setup.tokenizer, texts["text"].tolist()), streams, options.device
    )
    texts = texts.assign(overlap=overlap)
    fresh = heldout.choose(
        texts[texts["overlap"] <= MAX_OVERLAP],
        bytes_per_language=setup.phases.heldout_bytes_per_language,
        seed=options.seed,
    )
    read = results.tokens_read(setup.stream)
    models: dict[str, Any] = ngrams.fit_orders(
        read, setup.tokenizer, {"order 3": 3, "order 5": 5}, device=options.device
    )
    for phase in range(1, len(setup.stream.phases) + 1):
        models[f"after phase {phase}"] = convert.from_pretrained(
            folder / f"phase_{phase}", device=options.device
        )
    context = setup.phases.phases[-1].sequence_length
    for name, chosen in (("fresh", fresh), ("all", texts)):
        scores = heldout.compare(
            models,
            chosen,
            setup.tokenizer,
            context=context,
            seed=options.seed,
            device=options.device,
        )
        yield [
            {"row": "held-out text", "text": name, **row}
            for row in scores.rename(columns={"group": "language"}).to_dict("records")
        ]
    shares = texts.groupby("language")["overlap"]
    yield [
        {
            "row": "overlap",
            "language": language,
            "documents": len(part),
            "mean": float(part.mean()),
            "above_limit": int((part > MAX_OVERLAP).sum()),
        }
        for language, part in shares
    ]
