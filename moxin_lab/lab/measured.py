"""Committed measurements of GPUs (`reports/released/*/*.json`) as one chart per question.

    for chart in charts(root): ...      # in the order of QUESTIONS

A row that several runs hold is shown once: the median of its runs, with the lowest and the highest.
Runs differ by what else the machine did, so two rows whose ranges overlap are not told apart.

Guarantees: every number is read from a file, and the chart names it; a row that could not run keeps
its reason. Imports nothing heavy.
Out of scope: verdicts, and ratios within one run (`bench/released.py`).
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from moxin_lab.lab.artifacts import LabError, read_json

RULE = (
    "A row that several runs hold is the median of its runs, with the lowest and the highest in "
    "brackets. Rows whose ranges overlap are not told apart, nor are attention rows within 12 %: "
    "that much separates two rows that call the same kernel."
)


def read_record(path: Path, needed: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The record in a file that a notebook reads. needed: the parts that a record must have, by
    bench. Raises LabError if the file is missing or no JSON, ValueError if it is not a record of
    one of these benches, is of a run that did not finish or lacks a part.
    """
    record: dict[str, Any] = read_json(path)
    bench: Any = record.get("bench")
    if bench not in needed:
        raise ValueError(
            f"{path} says that it is of bench {bench!r}; expected one of {', '.join(needed)}"
        )
    if cut := unfinished(record):
        raise ValueError(f"{path} {cut}")
    missing = [name for name in (*needed[bench], "command", "machine") if name not in record]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}: make it again with `moxin-lab bench {bench}`"
        )
    return record


def unfinished(record: Mapping[str, Any]) -> str:
    """Empty for the record of a whole run; else that it is not, why it stopped, and what to do. A
    run marks its record until it has ended (`bench/keeping.py`).
    """
    if record.get("finished", True):
        return ""
    stopped = record.get("stopped", "killed, or still running")
    return (
        f"is of a run that did not finish ({stopped}; {len(record['rows'])} rows): run it again, "
        f"`{record['command']}`"
    )


class Question(NamedTuple):
    """What one chart answers."""

    bench: str
    title: str
    column: str
    unit: str
    digits: int
    shape: Mapping[str, int | str] = {}
    """Values that a row must have to be in the chart."""
    floor: str = ""
    """Name of the limit that is drawn: a column, or a key of LIMITS."""
    larger_is_better: bool = False
    named_by: tuple[str, ...] = ("implementation",)
    """Columns that together name a row."""
    named_as: str = ""
    """How they do, as a format; without one, with commas between them."""


QUESTIONS = (
    Question(
        "decode",
        "How long does a token take after 32,000, one row?",
        "ms_per_token",
        "ms",
        1,
        {"tokens": 32_000, "rows": 1},
        "floor_ms",
    ),
    Question(
        "decode",
        "How long does a token take after 8,192, eight rows?",
        "ms_per_token",
        "ms",
        1,
        {"tokens": 8_192, "rows": 8},
        "floor_ms",
    ),
    Question(
        "prefill",
        "How long does a prompt of 32,000 tokens take?",
        "ms",
        "ms",
        0,
        {"tokens": 32_000},
        "floor_ms",
    ),
    *(
        Question(
            "attention",
            f"How fast is the {way} pass of window attention, {rows} × {tokens:,} tokens{packed}?",
            f"{way}_tflops",
            "TFLOP/s",
            0,
            {"tokens": tokens, "rows": rows, "document_tokens": documents},
            "matrix_product",
            True,
        )
        for tokens, rows, documents, packed in (
            (16_384, 1, 0, ""),
            (32_768, 1, 0, ""),
            (4_096, 4, 0, ""),
            (16_384, 1, 2_048, ", packed documents of 2,048"),
        )
        for way in ("forward", "backward")
    ),
    Question(
        "train-step",
        "How long does a training step take, 8 blocks of full width, 2 × 4,096 tokens?",
        "median_ms",
        "ms",
        0,
        {},
        "peak",
    ),
    Question(
        "pretraining",
        "How fast is pretraining, small width, 64 packed rows of 1,024 tokens?",
        "tokens_per_second",
        "tokens/s",
        0,
        {"sequence": 1024},
        "",
        True,
    ),
    Question(
        "pretraining",
        "How many bits per byte of fresh English, three phases at small width beside n-grams?",
        "bits_per_byte",
        "bits per byte",
        2,
        {"row": "held-out text", "text": "fresh", "language": "en"},
        named_by=("model",),
    ),
    Question(
        "scaling",
        "How fast is sharded training, 24 blocks of full width, two rows of 4,096 a GPU?",
        "tokens_per_second",
        "tokens/s",
        0,
        {"part": "weak", "blocks": 24},
        larger_is_better=True,
        named_by=("gpus", "layout", "checkpointing"),
        named_as="{} GPUs, {}, activation checkpointing {}",
    ),
    Question(
        "sft",
        "How fast is instruction tuning?",
        "tokens_per_second",
        "tokens/s",
        0,
        larger_is_better=True,
        named_by=("what", "layout", "attention"),
    ),
    Question(
        "rollout",
        "How fast are 512 rollouts of 128 tokens?",
        "tokens_per_second",
        "tokens/s",
        0,
        {},
        "",
        True,
    ),
    Question(
        "overlap",
        "What does overlapping rollouts with training gain?",
        "seconds_per_step",
        "s",
        2,
        named_by=("arrangement", "sampler"),
    ),
    Question(
        "serve",
        "How many tokens a second through the server's scheduler, 8.11 billion parameters?",
        "tokens_per_second",
        "tokens/s",
        0,
        {"kind": "decode", "prompt_tokens": 128},
        larger_is_better=True,
        named_by=("rows",),
        named_as="{} at once",
    ),
    Question(
        "serve",
        "How near is the scheduler to the memory's limit?",
        "floor_share",
        "of the time to read weights and cache once",
        2,
        {"kind": "decode"},
        larger_is_better=True,
        named_by=("rows", "prompt_tokens"),
        named_as="{} at once, after {:,} tokens",
    ),
    Question(
        "serve",
        "How long does a token take through the scheduler after 8,192, eight rows?",
        "ms_per_token",
        "ms",
        1,
        {"kind": "decode", "prompt_tokens": 8_192, "rows": 8},
        "floor_ms",
        named_by=("rows",),
        named_as="ours, {} at once",
    ),
    Question(
        "serve",
        "How long until the first token of an answer?",
        "first_token_ms",
        "ms",
        0,
        {"kind": "first token"},
        named_by=("prompt_tokens",),
        named_as="prompt of {:,} tokens",
    ),
    Question(
        "serve",
        "How many tokens a second do streaming clients get over HTTP?",
        "tokens_per_second",
        "tokens/s",
        0,
        {"kind": "clients"},
        larger_is_better=True,
        named_by=("rows",),
        named_as="{} at once",
    ),
    Question(
        "towers",
        "How fast are the two vision towers?",
        "images_per_second",
        "images/s",
        0,
        {},
        "",
        True,
    ),
)
SHOWN_ELSEWHERE = ("recipe", "smollm2-expansion", "grpo-variants")
"""Benches of a GPU that compare trainings by quality: the page lies beside the file, and notebook
04 or 06 shows it."""
EVALUATED = ({"moxin_lab", "results"}, {"model", "window", "table", "items"})
"""Keys of what `moxin-lab evaluate` writes: scores; with `--needles`, a model in long contexts."""
SPEEDS = ("ms", "s", "TFLOP/s", "tokens/s", "images/s")
"""Units of which a ratio says how many times as fast."""
NOISE = {"attention": 0.12}
"""Share by which rows of a bench differ for their place in a run alone. In runs 1 to 3 of
reports/released/h100/attention.json `auto` calls flash-attn-4, and it is up to 1.11 times as fast
as the row that calls it directly.
"""
OTHER_WORK = "full triangle"
"""In the name of a row that computes more pairs than the window has: a rate to see, not a peer."""
OURS = (
    *("ours", "moxin-lab", "overlapped", "auto", "triton"),
    *("after phase", "training loop", "bare step"),
)
"""How names of our implementations begin."""


@dataclass(frozen=True)
class Bar:
    """One implementation: its value, the range over runs (equal ends for one run), and why there is
    no value if there is none.
    """

    name: str
    value: float | None
    low: float
    high: float
    runs: int
    reason: str = ""

    def in_words(self, digits: int) -> str:
        """The value, and its range if there are several runs; or why there is none."""
        if self.value is None:
            return f"not measured: {self.reason}"
        text = f"{self.value:,.{digits}f}"
        if self.runs > 1:
            text += f" ({self.low:,.{digits}f} to {self.high:,.{digits}f}, {self.runs} runs)"
        return text

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)


@dataclass(frozen=True)
class Chart:
    """A question with its bars, best first, and the limit that the hardware sets, if known."""

    question: Question
    bars: tuple[Bar, ...]
    floor: float | None
    floor_name: str
    source: str
    """Path of the JSON file, from the root."""
    machine: str
    note: str

    @property
    def finding(self) -> str:
        """Our best row beside the best peer's: how many times as fast, unless RULE does not tell
        them apart. Both values where the question is not about speed; the best row without a peer.
        """
        ours = next((bar for bar in self.bars if bar.is_ours and bar.value), None)
        peers = (bar for bar in self.bars if not bar.is_ours and OTHER_WORK not in bar.name)
        peer = next((bar for bar in peers if bar.value), None)
        digits, unit = self.question.digits, self.question.unit
        if ours is None or peer is None or ours.value is None or peer.value is None:
            best = next((bar for bar in self.bars if bar.value is not None), None)
            return f"{best.name}: {best.in_words(digits)} {unit}." if best else ""
        if unit not in SPEEDS:
            return (
                f"{ours.name}: {ours.in_words(digits)} {unit}; the best peer, {peer.name}: "
                f"{peer.in_words(digits)}."
            )
        ratio = ours.value / peer.value
        if not self.question.larger_is_better:
            ratio = 1 / ratio
        overlap = ours.low <= peer.high and peer.low <= ours.high
        close = max(ratio, 1 / ratio) < 1 + NOISE.get(self.question.bench, 0.0)
        if overlap or close:
            return f"{ours.name} and {peer.name} are not told apart."
        return f"{ours.name} is {ratio:.2f} times as fast as the best peer, {peer.name}."

    def share(self, value: float) -> float:
        """Per cent of the chart's width."""
        values = [bar.high for bar in self.bars if bar.value is not None]
        return round(100 * value / max([*values, self.floor or 0]), 2)


def charts(root: Path, folder: str = "*") -> list[Chart]:
    """A chart for each question that a committed file answers, of one folder of `reports/released`
    or of all. Results of `moxin-lab evaluate` have none. Raises LabError for any other file that no
    bench wrote, and for a run that did not finish.
    """
    found = []
    for path in sorted((root / "reports" / "released").glob(f"{folder}/*.json")):
        if path.name == "manifest.json":
            continue
        record = read_json(path)
        if isinstance(record, dict) and any(kind <= record.keys() for kind in EVALUATED):
            continue
        if not isinstance(record, dict) or not {"bench", "machine", "rows"} <= record.keys():
            raise LabError(f"{path} is not a record of `moxin-lab bench`: it lacks bench or rows")
        if cut := unfinished(record):
            raise LabError(f"{path} {cut}")
        if record["machine"].get("gpu"):
            source = path.relative_to(root).as_posix()
            found += [chart(record, question, source) for question in QUESTIONS]
    order = {question: position for position, question in enumerate(map(repr, QUESTIONS))}
    return sorted((c for c in found if c), key=lambda c: order[repr(c.question)])


def chart(record: Mapping[str, Any], question: Question, source: str) -> Chart | None:
    """The answer of one record to a question; None if the record is of another bench or shape."""
    if record["bench"] != question.bench:
        return None
    rows = [row for row in record["rows"] if question.shape.items() <= row.items()]
    if not rows:
        return None
    floor, floor_name = _limit(record, rows, question)
    bars = merged(rows, question)
    machine = record["machine"]
    return Chart(
        question,
        tuple(bars),
        floor,
        floor_name,
        source,
        f"{machine['gpu']}, {machine['date']}",
        str(record.get("note", "")),
    )


def merged(rows: Sequence[Mapping[str, Any]], question: Question) -> list[Bar]:
    """One bar per implementation by RULE, best first; those without a value last."""
    values: dict[str, list[float]] = {}
    reasons: dict[str, str] = {}
    for row in rows:
        parts = [row[key] for key in question.named_by]
        name = question.named_as.format(*parts) or ", ".join(map(str, parts))
        chunk = row.get("chunk")
        if chunk and chunk != row["tokens"]:
            name += f", in chunks of {chunk:,}"
        measured = row.get(question.column)
        values.setdefault(name, []).extend([] if measured is None else [float(measured)])
        if row.get("reason"):
            reasons[name] = str(row["reason"])
    bars = [
        Bar(name, statistics.median(each), min(each), max(each), len(each))
        if each
        else Bar(name, None, 0.0, 0.0, 0, reasons.get(name, "not measured"))
        for name, each in values.items()
    ]
    sign = -1 if question.larger_is_better else 1
    return sorted(bars, key=lambda bar: (bar.value is None, sign * (bar.value or 0.0)))


def _limit(
    record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], question: Question
) -> tuple[float | None, str]:
    """The limit of the hardware in the question's unit, and its name."""
    if question.floor == "floor_ms":
        return float(
            rows[0]["floor_ms"]
        ), "floor: what has to be read or computed, at the speed measured on the same GPU"
    if question.floor == "matrix_product":
        ceiling = float(record["ceilings"]["matrix_product_tflops"])
        return ceiling, "ceiling: a large matrix product on the same GPU"
    if question.floor == "peak":
        settings = record["settings"]
        seconds = settings["flops_per_step"] / settings["peak_flops"]
        return 1000 * seconds, "floor: the step's FLOP at the GPU's stated peak"
    return None, ""
