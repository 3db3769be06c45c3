"""Every stage's checkpoint in one table: what each stage bought, on the same items.

    found = checkpoints(settings.checkpoints, stage.input)     # by name, in training's order
    results = run(found, tokenizer, tasks, folder, limits=limits, progress=stage.progress)
    steps = differences(scores(results, right), bits(results), found, seed=0)

Guarantees: all checkpoints answer the same items; every share has Wilson's interval; each
checkpoint is compared with the one that it was trained from, over the same items, and the level of
these intervals is corrected for their number (Bonferroni), so that with 95 % all of them hold; a
benchmark's metric is fixed here, not chosen by its result.
Out of scope: the spread between trainings (one seed); building the items.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from moxin_lab.evaluation import harness
from moxin_lab.evaluation.checkpoints import load_decoder
from moxin_lab.evaluation.cloze import NUM_CHOICES
from moxin_lab.evaluation.language_models import MoxinLM
from moxin_lab.evaluation.results import BITS_TASK, CLOZE_TASK, TRANSLATION_TASK
from moxin_lab.evaluation.statistics import paired_bootstrap, paired_proportions, wilson_interval
from moxin_lab.lab.progress import Progress
from moxin_lab.lab.recording import Number

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from moxin_lab.model.decoder import MoxinForCausalLM

UNTRAINED, BASE = "untrained", "phase 3 (base)"


class Place(NamedTuple):
    """Where a checkpoint lies, and the one that it was trained from."""

    artifact: str
    folder: str
    after: str


CHAIN: Mapping[str, Place] = {
    "phase 1": Place("phase_checkpoints", "phase_1", UNTRAINED),
    "phase 2": Place("phase_checkpoints", "phase_2", "phase 1"),
    BASE: Place("pretrained", "", "phase 2"),
    "SFT": Place("sft", "", BASE),
    "DPO": Place("instruct", "", "SFT"),
    "CoT-SFT": Place("cot_sft", "", "DPO"),
    "GRPO": Place("reasoning", "", "CoT-SFT"),
    "VLM, language half": Place("vlm", "", BASE),
}
"""In training's order. What a vision-language model begins from is a setting: `checkpoints`."""

METRIC = "acc_norm"
"""Of the choices: by log-likelihood per character."""
QUESTIONS = "reasoning questions"
BITS = "bits per byte"
CHANCE = {
    "held-out cloze": 1 / NUM_CHOICES,
    "code completion": 1 / NUM_CHOICES,
    "translation choice": 1 / NUM_CHOICES,
}
"""The choice benchmarks, and what a blind choice answers."""


class Checkpoint(NamedTuple):
    """A folder and the name of the checkpoint that it was trained from."""

    folder: Path
    after: str


def checkpoints(
    artifacts: Sequence[str], path: Callable[[str], Path], *, vlm_began_from: str = "pretrained"
) -> dict[str, Checkpoint]:
    """The checkpoints of these artifacts by name, in training's order.

    artifacts: of `CHAIN`; path: of an artifact (`Stage.input`). vlm_began_from: the artifact that
    is the language half of the vision-language model before its training. A checkpoint whose
    predecessor is not among them is compared with the nearest one before it that is.
    Raises ValueError for an artifact that is no checkpoint.
    """
    known = {place.artifact for place in CHAIN.values()}
    if unknown := [name for name in artifacts if name not in known]:
        raise ValueError(f"no checkpoint is called {', '.join(unknown)}: there are {sorted(known)}")
    name_of = {place.artifact: name for name, place in CHAIN.items()}
    before = {name: place.after for name, place in CHAIN.items()}
    before[name_of["vlm"]] = name_of.get(vlm_began_from, UNTRAINED)
    chosen = {name: place for name, place in CHAIN.items() if place.artifact in artifacts}
    found = {}
    for name, place in chosen.items():
        after = before[name]
        while after not in chosen and after != UNTRAINED:
            after = before[after]
        found[name] = Checkpoint(path(place.artifact) / place.folder, after)
    return found


def run(
    found: Mapping[str, Checkpoint],
    tokenizer: "PreTrainedTokenizerFast",
    tasks: Sequence[str],
    folder: Path,
    *,
    limits: Mapping[str, Any],
    known: Mapping[str, dict[str, Any]],
    limit: int,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """lm-eval's result structure of each checkpoint on the task files in `folder`/tasks, one model
    in memory at a time; also written below `folder`. limits: of `MoxinLM`. known: the results of
    models that have answered already: `found` decides the order of those that are in it, the others
    come first. limit: the first items of each task, also of what is known. Of the tasks in bits per
    byte only the first is kept.
    """
    first_bits = [task for task in tasks if task.startswith(BITS_TASK)][:1]
    tasks = [*first_bits, *(task for task in tasks if not task.startswith(BITS_TASK))]
    known = {name: _cut(result, tasks, limit) for name, result in known.items()}
    results = {name: result for name, result in known.items() if name not in found}
    for index, (name, checkpoint) in enumerate(found.items()):
        if name in known:
            results[name] = known[name]
            continue
        progress(index, len(found), f"{name} in the harness")
        model = load_decoder(checkpoint.folder, device=limits["device"])
        lm = MoxinLM(model, tokenizer, **limits, folder=checkpoint.folder)
        results[name] = harness.run_tasks(lm, tasks, folder / "tasks", limit=limit)
        short = name.replace(",", "").replace("(", "").replace(")", "").replace(" ", "_")
        harness.write_results(results[name], folder / short, short)
    return results


def answers(
    found: Mapping[str, Checkpoint],
    answer: Callable[["MoxinForCausalLM"], Sequence[bool]],
    *,
    device: Any,
    progress: Progress,
) -> dict[str, list[bool]]:
    """For each checkpoint, which of the questions its own words answer rightly; `answer` asks and
    judges.
    """
    right = {}
    for index, (name, checkpoint) in enumerate(found.items()):
        progress(index, len(found), f"{name} answers questions")
        right[name] = list(map(bool, answer(load_decoder(checkpoint.folder, device=device))))
    return right


def scores(
    results: Mapping[str, Mapping[str, Any]], right: Mapping[str, Sequence[bool]]
) -> pd.DataFrame:
    """Every single answer: columns checkpoint, benchmark, item, right (0 or 1).

    results: by checkpoint, of `run`. right: by checkpoint, of `answers`.
    """
    rows = [
        (name, _benchmark(task), f"{task}/{sample['doc']['id']}", float(sample[METRIC]))
        for name, result in results.items()
        for task, samples in result["samples"].items()
        if _benchmark(task)
        for sample in samples
    ]
    rows += [
        (name, QUESTIONS, str(index), float(each))
        for name, marks in right.items()
        for index, each in enumerate(marks)
    ]
    return pd.DataFrame(rows, columns=["checkpoint", "benchmark", "item", "right"])


def bits(results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Every held-out document: columns checkpoint, item, bits, bytes."""
    rows = [
        (name, f"{task}/{sample['doc']['id']}", -nats / np.log(2), num_bytes)
        for name, result in results.items()
        for task, samples in result["samples"].items()
        if task.startswith(BITS_TASK)
        for sample in samples
        for nats, num_bytes in [sample["bits_per_byte"]]
    ]
    return pd.DataFrame(rows, columns=["checkpoint", "item", "bits", "bytes"])


def shares(singles: pd.DataFrame) -> pd.DataFrame:
    """One row per checkpoint and benchmark: share, low, high (Wilson, 95 %), items."""
    rows = []
    for (name, benchmark), part in singles.groupby(["checkpoint", "benchmark"], sort=False):
        rows.append(
            (name, benchmark, *wilson_interval(int(part["right"].sum()), len(part)), len(part))
        )
    return pd.DataFrame(rows, columns=["checkpoint", "benchmark", "share", "low", "high", "items"])


def table(
    table_of_shares: pd.DataFrame, documents: pd.DataFrame, baselines: Mapping[str, float]
) -> pd.DataFrame:
    """For readers: a row per checkpoint, a column per benchmark with its interval in percent, then
    bits per byte over all documents. The rows `chance` and `majority` come first; `baselines` has
    the share of the questions that the most frequent answer of their family answers.
    """
    cells = {
        (row.checkpoint, row.benchmark): (
            f"{100 * row.share:.1f} ({100 * row.low:.1f} to {100 * row.high:.1f})"
        )
        for row in table_of_shares.itertuples()
    }
    benchmarks = list(dict.fromkeys(table_of_shares["benchmark"]))
    names = list(dict.fromkeys(table_of_shares["checkpoint"]))
    wide = pd.DataFrame(
        [[cells.get((name, benchmark)) for benchmark in benchmarks] for name in names],
        index=pd.Index(names, name="checkpoint"),
        columns=benchmarks,
    )
    sums = documents.groupby("checkpoint")[["bits", "bytes"]].sum()
    wide[BITS] = [f"{bits / size:.3f}" for bits, size in sums.loc[names].to_numpy()]
    blind = {each: f"{100 * CHANCE[each]:.1f}" for each in benchmarks if each in CHANCE}
    common = {each: f"{100 * share:.1f}" for each, share in baselines.items()}
    head = pd.DataFrame([blind, common], index=["chance", "majority"], columns=wide.columns)
    return pd.concat([head, wide]).rename_axis("checkpoint")


def above_in_words(table_of_shares: pd.DataFrame, majority: float) -> str:
    """Which checkpoints are above the dashed line of each benchmark with their whole interval:
    chance, or of the questions `majority`, the share of the most frequent answer.
    """
    parts = []
    for benchmark, part in table_of_shares.groupby("benchmark", sort=False):
        line = CHANCE.get(str(benchmark), majority)
        above = part.loc[part["low"] > line, "checkpoint"].tolist()
        names = "all" if len(above) == len(part) else ", ".join(above) or "none"
        parts.append(f"{benchmark}: {names}")
    return f"Above the dashed line with the whole interval: {'; '.join(parts)}."


def differences(
    singles: pd.DataFrame,
    documents: pd.DataFrame,
    found: Mapping[str, Checkpoint],
    *,
    seed: int,
    level: float = 0.95,
) -> pd.DataFrame:
    """Each checkpoint beside the one it was trained from: columns checkpoint, after, benchmark,
    difference, low, high, seen.

    Shares in percentage points, bits per byte in bits. The intervals are paired over items and
    documents; their level is 1 - (1 - level) / their number. seen: the interval excludes zero.
    """
    marks = singles.pivot(index=["benchmark", "item"], columns="checkpoint", values="right")
    parts = [(name, part) for name, part in marks.groupby("benchmark", sort=False)]
    each = 1 - (1 - level) / (len(found) * (len(parts) + 1))
    used = documents.pivot(index="item", columns="checkpoint", values="bits")
    size = documents.drop_duplicates("item").set_index("item")["bytes"].loc[used.index]
    rows = []
    for name, checkpoint in found.items():
        for benchmark, part in parts:
            pair = part[[name, checkpoint.after]].to_numpy()
            found_here = paired_proportions(pair[:, 0], pair[:, 1], level=each)
            rows.append((name, checkpoint.after, benchmark, *(100 * end for end in found_here)))
        changed = paired_bootstrap(used[name], used[checkpoint.after], size, level=each, seed=seed)
        rows.append((name, checkpoint.after, BITS, *changed))
    columns = ["checkpoint", "after", "benchmark", "difference", "low", "high"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(seen=(frame["low"] > 0) | (frame["high"] < 0))


def sentence(steps: pd.DataFrame) -> str:
    """Which of the differences are seen, in words."""

    def said(row: Any) -> str:
        unit = "bits per byte" if row.benchmark == BITS else f"points on {row.benchmark}"
        return f"{row.checkpoint} after {row.after} {row.difference:+.2f} {unit}"

    seen = [said(row) for row in steps[steps["seen"]].itertuples()]
    rest = len(steps) - len(seen)
    return (
        f"Of {len(steps)} comparisons, {len(seen)} show a difference with all intervals together "
        f"at 95 %: {'; '.join(seen) or 'none'}. In the other {rest} no difference is seen, which "
        "does not say that there is none."
    )


def numbers(table_of_shares: pd.DataFrame, steps: pd.DataFrame) -> list[Number]:
    """The measures of the table, in percent, and of the differences."""
    rows = []
    for row in table_of_shares.itertuples():
        labels = {"checkpoint": row.checkpoint, "benchmark": row.benchmark}
        ends = (100 * row.low, 100 * row.high)
        rows.append(Number("checkpoint_accuracy", 100 * row.share, "%", ends, labels))
    for row in steps.itertuples():
        labels = {"checkpoint": row.checkpoint, "after": row.after, "benchmark": row.benchmark}
        unit = "bits/byte" if row.benchmark == BITS else "percentage points"
        rows.append(Number("checkpoint_gain", row.difference, unit, (row.low, row.high), labels))
    return rows


def _cut(result: Mapping[str, Any], tasks: Sequence[str], limit: int) -> dict[str, Any]:
    samples = {
        task: [sample for sample in result["samples"][task] if sample["doc_id"] < limit]
        for task in tasks
        if task in result["samples"]
    }
    return {**result, "samples": samples}


def _benchmark(task: str) -> str:
    if task == f"{CLOZE_TASK}code":
        return "code completion"
    if task.startswith(CLOZE_TASK):
        return "held-out cloze"
    return "translation choice" if task.startswith(TRANSLATION_TASK) else ""
