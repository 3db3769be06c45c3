"""`moxin-lab bench scaling`: the sharded training on 1, 2, 4 and 8 GPUs of one host: speed, memory,
the loss curve beside one GPU's, and a run that is saved on one number of ranks and continued on
another.

    moxin-lab bench scaling --device cuda --counts 1,2 --json FILE
    moxin-lab bench scaling --device cpu --scale tiny --counts 1,2 --sequence 64 --rows 1 --steps 2

Every job is started by torchrun with as many ranks as it has GPUs, and trains by
`pretraining.trainer.fit`, as notebook 04 does, on generated tokens (speed does not depend on the
text). Parts of the result, by `part`:

    weak, strong    full width at one depth for all rows; weak: `--rows` rows of every GPU at once;
                    strong: a step of as many rows in all, whatever the number of GPUs
    curve           losses of a small model on the same batches, against one GPU, not sharded
    resume          the same training, ended halfway on some ranks and continued on others

Guarantees: useful FLOPs are those of `bench pretraining`, of the exact mask and without
recomputation; a layout that fails is a row with its reason, a number of GPUs that the machine lacks
a row `not run`; the file is written after every job, so that an interrupted run keeps its rows.
Out of scope: several hosts, peers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from moxin_lab.bench import say
from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    from moxin_lab.model.config import MoxinConfig
    from moxin_lab.pretraining.packing import TrainingStream

WHOLE, SHARDED, SPLIT = "one device, not sharded", "FSDP2", "FSDP2, tensor parallel 2"
TENSOR = {WHOLE: 1, SHARDED: 1, SPLIT: 2}
WARMUP = 3
"""Steps that are not timed: in the first the blocks compile."""
CURVE_ROWS = 16
"""Rows of a step of the small model, two of them at a time."""
CURVE_TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 2e-2}
"""Largest relative difference of a step's loss from one GPU's: our choice. Sums over ranks have
another order, which 50 steps at a high rate amplify; bfloat16 has three digits, and FSDP2 sums
gradients of bfloat16 where one GPU has float32.
"""
MEMORY_SHARE = 0.9  # of a GPU, for the estimate: the allocator's gaps, NCCL and the CUDA context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", default="full", help="scale of the width (default full)")
    parser.add_argument(
        "--blocks",
        type=int,
        default=None,
        help="depth (default: the largest that fits by the estimate; on the CPU the scale's)",
    )
    parser.add_argument("--counts", default="1,2,4,8", help="numbers of GPUs (default 1,2,4,8)")
    parser.add_argument(
        "--rows", type=int, default=2, help="rows of a GPU's micro-batch (default 2)"
    )
    parser.add_argument("--sequence", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=6, help="timed steps (default 6)")
    parser.add_argument("--curve-steps", type=int, default=50, help="steps of the small model")
    parser.add_argument(
        "--precision", choices=("bf16-mixed", "32-true"), default=None, help="of the speed rows"
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="WORDS",
        help="only jobs whose text contains one of these, separated by semicolons, for example "
        "'curve;2 x FSDP2, full'",
    )
    parser.add_argument(
        "--add",
        action="store_true",
        help="keep the rows that the file of --json has, and run only jobs that it lacks",
    )
    parser.add_argument(
        "--timeout", type=int, default=240, help="seconds after which a job is ended (default 240)"
    )


@keeping("scaling")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows by `part`, with `gpus`, `layout`, `checkpointing` and what was measured, or `reason`."""
    counts = sorted({int(count) for count in options.counts.split(",")})
    there = available(options.device)
    config = speed_config(options, min(counts))
    largest = max((count for count in counts if count <= there), default=0)
    common = {
        "device": options.device,
        "config": dataclasses.asdict(config),
        "rows": options.rows,
        "sequence": options.sequence,
        "strong_rows": options.rows * largest,
        "steps": options.steps,
        "curve_steps": options.curve_steps,
        "precision": options.precision or ("bf16-mixed" if options.device == "cuda" else "32-true"),
    }
    result: dict[str, Any] = {
        "settings": {**common, "memory_share": MEMORY_SHARE, "tolerance": CURVE_TOLERANCE},
        "rows": kept_rows(options, common),
    }
    done = {key_of(row) for row in result["rows"]}
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs(counts):
            chosen = any(word in name_of(job) for word in options.only.split(";"))
            if not chosen or key_of(job) in done:
                continue
            ranks = max(job["gpus"], job.get("saved_on", 0))
            if ranks > there:
                rows = [{**job, "reason": f"not run: the machine has {there}"}]
            else:
                say(f"  {name_of(job)}")
                rows = start(job, common, Path(folder), options.timeout)
            result["rows"] += rows
            compare(result["rows"])
            keep(result)
    return result


def available(device: str) -> int:
    """GPUs, or cores of the CPU, on which ranks can run."""
    import torch

    from moxin_lab import threads

    return torch.cuda.device_count() if device == "cuda" else threads.usable_cores()


def jobs(counts: list[int]) -> list[dict[str, Any]]:
    """What is run, in order: the cheap parts first."""
    found: list[dict[str, Any]] = []
    for gpus in counts:
        for layout in layouts(gpus):
            found.append({"part": "curve", "gpus": gpus, "layout": layout})
    for saved_on in counts:
        if saved_on > 1:
            more = {"layout": SHARDED, "saved_on": saved_on}
            found.append({"part": "resume", "gpus": saved_on // 2, **more})
    for gpus in counts:
        for layout in layouts(gpus):
            for checkpointing in ("none", "full"):
                more = {"layout": layout, "checkpointing": checkpointing}
                found.append({"part": "speed", "gpus": gpus, **more})
    return found


def layouts(gpus: int) -> list[str]:
    """Without sharding on one GPU alone, with tensor parallelism on an even number."""
    return [WHOLE, SHARDED] if gpus == 1 else [SHARDED, *([SPLIT] if gpus % 2 == 0 else [])]


def name_of(job: dict[str, Any]) -> str:
    """What `--only` searches: "speed 2 x FSDP2, full"."""
    saved = f"saved on {job['saved_on']}, " if "saved_on" in job else ""
    more = f", {job['checkpointing']}" if "checkpointing" in job else ""
    return f"{job['part']} {saved}{job['gpus']} x {job['layout']}{more}"


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells jobs apart; rows of weak and strong scaling are of one job."""
    part = "speed" if row["part"] in ("weak", "strong") else row["part"]
    return part, *(row.get(name) for name in ("gpus", "layout", "checkpointing", "saved_on"))


def kept_rows(options: argparse.Namespace, common: dict[str, Any]) -> list[dict[str, Any]]:
    """With --add, the rows of the file of jobs that did not fail. Raises ValueError if they were
    measured with other settings.
    """
    if not options.add:
        return []
    if not options.json or options.json == "-":
        raise ValueError("--add needs --json FILE, whose rows are kept")
    if not Path(options.json).exists():
        return []
    found = json.loads(Path(options.json).read_text(encoding="utf-8"))
    other = {
        name: found["settings"].get(name)
        for name, value in json.loads(json.dumps(common)).items()
        if found["settings"].get(name) != value
    }
    if other:
        raise ValueError(
            f"{options.json} was measured with other settings, {other}: give these, or another file"
        )
    failed = {key_of(row) for row in found["rows"] if "reason" in row}
    return [row for row in found["rows"] if key_of(row) not in failed]


def compare(rows: list[dict[str, Any]]) -> None:
    """Add what needs another row: shares of one GPU's speed, and differences from its curve."""
    measured = [row for row in rows if "reason" not in row]
    for row in measured:
        if row["part"] in ("weak", "strong"):
            base = [
                other["tokens_per_second"] / other["gpus"]
                for other in measured
                if other["part"] == row["part"] and other["gpus"] == 1
            ]
            if base:  # the best layout of one GPU, checkpointed or not
                row["efficiency"] = row["tokens_per_second"] / row["gpus"] / max(base)
        else:
            base = [
                other["losses"]
                for other in measured
                if other["part"] == "curve"
                and other["layout"] == WHOLE
                and other["precision"] == row["precision"]
            ]
            if base:
                one, here = np.array(base[0]), np.array(row["losses"])
                row["largest_difference"] = float(np.abs(here / one - 1).max())
                tolerance = CURVE_TOLERANCE[row["precision"]]
                row["within_tolerance"] = row["largest_difference"] <= tolerance


# ---- depth by memory


def speed_config(options: argparse.Namespace, fewest: int) -> MoxinConfig:
    """The scale's width at the depth of the options, or the largest that fits the fewest GPUs
    without checkpointing, so that all rows train the same model.
    """
    import torch

    from moxin_lab import scales
    from moxin_lab.model.config import MoxinConfig
    from moxin_lab.pretraining.dry_run import estimated_bytes

    scale = scales.load(options.scale)
    values = scale.model.model_dump()
    values["sliding_window"] = min(values["sliding_window"], options.sequence)
    values["num_hidden_layers"] = options.blocks or values["num_hidden_layers"]
    config = MoxinConfig(vocab_size=scale.tokenizer.vocab_size, **values)
    if options.blocks or options.device == "cpu":
        return config
    room = MEMORY_SHARE * torch.cuda.get_device_properties(0).total_memory
    for blocks in range(config.num_hidden_layers, 0, -1):
        config = dataclasses.replace(config, num_hidden_layers=blocks)
        tokens = options.rows * options.sequence
        if estimated_bytes(config, fewest, 1, "none", tokens) < room:
            return config
    raise ValueError(
        f"not one block of scale {options.scale} fits {room / 1e9:.0f} GB: lower --rows or "
        "--sequence"
    )


# ---- starting ranks


def start(
    job: dict[str, Any], common: dict[str, Any], folder: Path, timeout: int
) -> list[dict[str, Any]]:
    """Rows of a job: what its first rank wrote, and a row with the reason if it failed."""
    if job["part"] == "resume":
        points = folder / f"resume-{job['saved_on']}-{job['gpus']}"
        saving = {**job, "part": "save", "gpus": job["saved_on"], "points": str(points)}
        saved = start(saving, common, folder, timeout)
        if "reason" in saved[-1]:
            return [{**job, "reason": saved[-1]["reason"]}]
        job = {**job, "points": str(points), "saved_weights": saved[-1]["weights"]}
    work = Path(tempfile.mkdtemp(dir=folder))
    (work / "job.json").write_text(json.dumps({**common, **job}))
    began = time.monotonic()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        # NVLink's multicast memory stays off: a job must not depend on it.
        "NCCL_NVLS_ENABLE": "0",
        "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ranks = ["--nproc-per-node", str(job["gpus"]), "-m", "moxin_lab.bench.scaling", str(work)]
    with (work / "output").open("w") as output:
        process = subprocess.Popen(
            [*torchrun, *ranks],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
            failed = None if code == 0 else reason(work, f"torchrun ended with {code}")
        except subprocess.TimeoutExpired:
            failed = f"ended after {timeout} seconds (--timeout)"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)  # torchrun ends its ranks
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    written = work / "rows.jsonl"
    lines = written.read_text().splitlines() if written.exists() else []
    rows = [json.loads(line) for line in lines]
    told = {key: value for key, value in job.items() if key not in ("points", "saved_weights")}
    seconds = {"job_seconds": round(time.monotonic() - began, 1)}
    rows = [{**told, **row, **seconds} for row in rows]
    return rows if failed is None else [*rows, {**told, "reason": failed, **seconds}]


def reason(work: Path, otherwise: str) -> str:
    """What a rank said: the first that failed, for the others fail with it."""
    said = sorted(work.glob("error-*"), key=lambda path: path.stat().st_mtime_ns)
    if said:
        return said[0].read_text()
    lines = (work / "output").read_text(errors="replace").strip().splitlines()
    return f"{otherwise}: {lines[-1][:200]}" if lines else otherwise


# ---- one rank


def main(work: Path) -> None:
    """One rank of a job; the first appends rows to `rows.jsonl`."""
    rank = int(os.environ["RANK"])
    try:
        job = SimpleNamespace(**json.loads((work / "job.json").read_text()))
        job.is_first, job.written = rank == 0, work / "rows.jsonl"
        {"speed": speed, "curve": curve, "save": curve, "resume": curve}[job.part](job)
    except Exception as error:
        lines = str(error).splitlines() or [""]
        (work / f"error-{rank}").write_text(f"{type(error).__name__}: {lines[0][:300]}")
        raise


def write_row(job: SimpleNamespace, row: dict[str, Any]) -> None:
    if job.is_first:
        with job.written.open("a") as rows:
            rows.write(json.dumps(row) + "\n")


def speed(job: SimpleNamespace) -> None:
    """Weak and strong scaling of one layout."""
    from moxin_lab.model.config import MoxinConfig

    config = MoxinConfig(**job.config)
    of_strong: dict[str, Any] | None = None
    for part, rows in (("weak", job.rows * job.gpus), ("strong", job.strong_rows)):
        if part == "weak" or rows != job.rows * job.gpus:
            of_strong = timed(job, config, rows)
        write_row(job, {"part": part, **(of_strong or {})})


def timed(job: SimpleNamespace, config: MoxinConfig, rows: int) -> dict[str, Any]:
    """Speed and memory of steps of `rows` rows."""
    import torch

    from moxin_lab.bench import free_memory, peak_bytes
    from moxin_lab.bench.pretraining import StepTimes, useful_flops
    from moxin_lab.bench.train_step import device_peak
    from moxin_lab.pretraining.dry_run import estimated_bytes

    count = WARMUP + job.steps
    tokens = rows * job.sequence
    stream = random_stream(config.vocab_size, count, job.sequence, tokens)
    micro = job.rows * TENSOR[job.layout] * job.sequence
    settings = training_settings(stream, micro, job.precision)
    times = StepTimes(job.device)
    free_memory(job.device)
    train(job, config, stream, settings, None, [times])
    seconds = times.seconds()[-job.steps :]
    flops = useful_flops(stream, config, range(count))[-job.steps :]
    peak, memory = device_peak(job.device), peak_bytes(job.device)
    memories: list[Any] = [memory]
    if job.gpus > 1:
        memories = [None] * job.gpus
        torch.distributed.all_gather_object(memories, memory)
    return {
        "blocks": config.num_hidden_layers,
        "tokens_per_step": tokens,
        "micro_batches": tokens // (micro * (job.gpus // TENSOR[job.layout])),
        "median_ms": statistics.median(seconds) * 1000,
        "tokens_per_second": tokens * len(seconds) / sum(seconds),
        "model_flops_utilisation": sum(flops) / sum(seconds) / peak / job.gpus if peak else None,
        "peak_bytes": max(memories) if job.device == "cuda" else None,
        "estimated_bytes": estimated_bytes(
            config, job.gpus, TENSOR[job.layout], job.checkpointing, micro
        ),
    }


def curve(job: SimpleNamespace) -> None:
    """Losses of the small model. part: `save` ends halfway, `resume` continues."""
    import torch

    wide = job.device == "cuda"
    sequence = 512 if wide else 64
    config = curve_config(sequence, 256 if wide else 64)
    precisions = ("32-true", "bf16-mixed") if job.part == "curve" and wide else ("32-true",)
    for precision in precisions:
        stream = structured_stream(
            config.vocab_size, job.curve_steps, sequence, CURVE_ROWS * sequence
        )
        settings = training_settings(stream, 2 * sequence, precision, rate=1e-3)
        points, watch = getattr(job, "points", None), Watch()
        job.checkpointing = "none"
        stop = job.curve_steps // 2 if job.part == "save" else None
        torch.compiler.reset()
        watches = [] if job.part == "curve" else [watch]  # whole weights are slow to gather
        losses = train(
            job, config, stream, settings, points, watches, stop, compiled=precision != "32-true"
        )
        if stop is not None:
            write_row(job, {"weights": watch.weights_at_end})
        else:
            row = {"precision": precision, "losses": losses, "tokens": CURVE_ROWS * sequence}
            if job.part == "resume":
                row["step"] = watch.first_step
                row["same_weights"] = watch.weights_at_start == job.saved_weights
            write_row(job, row)


def curve_config(sequence: int, width: int) -> MoxinConfig:
    from moxin_lab.model.config import MoxinConfig

    return MoxinConfig(
        vocab_size=2048,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        sliding_window=sequence // 2,
        max_position_embeddings=sequence,
    )


class Watch:
    """A callback made late, for Lightning is slow to import: digests of the whole weights before
    the first step and after the last.
    """

    def __new__(cls) -> Any:
        from lightning.pytorch.callbacks import Callback

        from moxin_lab.pretraining.parallel import whole_weights
        from moxin_lab.training.identity import digest

        class Weights(Callback):
            weights_at_start = weights_at_end = None
            first_step = 0

            def on_train_start(self, trainer: Any, module: Any) -> None:
                self.first_step = trainer.global_step
                self.weights_at_start = digest(whole_weights(module.model))

            def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
                self.last = module.model

            def at_end(self) -> None:
                self.weights_at_end = digest(whole_weights(self.last))

        return Weights()


def train(
    job: SimpleNamespace,
    config: MoxinConfig,
    stream: TrainingStream,
    settings: Any,
    points: str | None,
    callbacks: list[Any],
    stop: int | None = None,
    compiled: bool = True,
) -> list[float]:
    """Losses by step, trained as the job's layout says. stop: end after this step, as a cluster
    would, with a resume point in `points`.
    """
    import torch

    from moxin_lab.model.decoder import MoxinForCausalLM
    from moxin_lab.pretraining import trainer
    from moxin_lab.pretraining.parallel import ParallelSettings, initial_weight

    tensor = TENSOR[job.layout]
    parallel = None
    with torch.device("meta"):
        model = MoxinForCausalLM(config)
    if job.layout == WHOLE:
        model.to_empty(device=job.device)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(initial_weight(config, name, weight.shape, 0, weight.device))
        model.activation_checkpointing = job.checkpointing
    else:
        parallel = ParallelSettings(job.gpus // tensor, tensor, job.checkpointing)

    def end(step: int, total: int, text: str) -> None:
        if step == stop and job.is_first:
            os.kill(os.getpid(), signal.SIGTERM)

    options = {"accelerator": "gpu" if job.device == "cuda" else "cpu"}
    try:
        log = trainer.fit(
            model,
            stream,
            settings,
            resume_folder=None if points is None else Path(points),
            save_phase=lambda index: None,
            trainer_options=options,
            progress=end,
            compiled=compiled and job.device == "cuda",
            callbacks=callbacks,
            parallel=parallel,
        )
    except SystemExit:
        if stop is None:
            raise
        callbacks[0].at_end()
        return []
    return log["loss"].tolist()


def training_settings(
    stream: TrainingStream, micro: int, precision: str, rate: float = 1e-4
) -> SimpleNamespace:
    """A `pretraining` section of one phase. No resume point is due: where one is wanted, SIGTERM
    asks for it.
    """
    return SimpleNamespace(
        tokens_per_step=stream.tokens_per_step,
        micro_batch_tokens=micro,
        learning_rate=rate,
        warmup_steps=min(5, stream.num_steps // 2),
        final_learning_rate_ratio=0.1,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_eps=1e-8,
        weight_decay=0.1,
        gradient_clip_norm=1.0,
        precision=precision,
        checkpoint_every_steps=10 * stream.num_steps,
    )


def random_stream(vocab_size: int, steps: int, sequence: int, tokens: int) -> TrainingStream:
    """Uniform tokens in documents of 16 rows, so that almost every row is one document."""
    generator = np.random.default_rng(0)
    lengths = np.full(max(16, steps * tokens // (16 * sequence) + 1), 16 * sequence)
    ids = generator.integers(4, vocab_size, lengths.sum())
    return stream_of(ids, lengths, vocab_size, steps, sequence, tokens)


def structured_stream(vocab_size: int, steps: int, sequence: int, tokens: int) -> TrainingStream:
    """Documents of 20 to 300 tokens that can be learnt: half of the tokens follow from the one
    before.
    """
    generator = np.random.default_rng(1)
    lengths = generator.integers(20, 300, steps * tokens // 160)
    ids = generator.integers(4, vocab_size, lengths.sum())
    follows = generator.random(len(ids)) < 0.5
    for index in np.flatnonzero(follows[1:]) + 1:
        ids[index] = 4 + (7 * ids[index - 1]) % (vocab_size - 4)
    return stream_of(ids, lengths, vocab_size, steps, sequence, tokens)


def stream_of(
    ids: np.ndarray, lengths: np.ndarray, vocab_size: int, steps: int, sequence: int, tokens: int
) -> TrainingStream:
    from moxin_lab.pretraining.packing import TrainingStream
    from moxin_lab.pretraining.pools import Tokens

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = ids.astype(np.int32)
    ids[offsets[:-1]], ids[offsets[1:] - 1] = 1, 2
    names = [str(index) for index in range(len(lengths))]
    pool = Tokens(ids, offsets, lengths.astype(np.int64), names, vocab_size)
    phase: Any = SimpleNamespace(
        name="generated", steps=steps, sequence_length=sequence, mixture={"generated": 100}
    )
    return TrainingStream({"generated": pool}, [phase], tokens_per_step=tokens, seed=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
