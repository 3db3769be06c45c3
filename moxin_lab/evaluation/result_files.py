"""The JSON of an evaluation: the harness's own structure, and one entry of ours, `moxin_lab`.

    {"results": ..., "configs": ..., "samples": ..., ...           # as lm-eval writes them
     "moxin_lab": {"format": 1, "model": ..., "tasks": ..., "scores": [...]}}

Each row of `scores` has the value with its interval, the baselines and the protocol in words: what
a score means depends on it, so two scores are compared only if it is the same.

Guarantees: a file of another format, or of something else, is refused with what it is; a file
without texts keeps hashes, likelihoods and metrics of each sample, and none of its words.
Out of scope: running an evaluation (`evaluate`).
"""

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval import __version__ as lm_eval_version
from lm_eval.utils import handle_non_serializable

from moxin_lab.evaluation.named_tasks import Facts
from moxin_lab.evaluation.statistics import (
    Estimate,
    paired_bootstrap,
    paired_proportions,
    wilson_interval,
)
from moxin_lab.lab.artifacts import LabError, read_json, write_atomically

FORMAT = 1
MAX_BYTES = 2**30
ACCURACIES = ("acc", "acc_norm", "acc_bytes")
ROW = {"task", "metric", "filter", "value", "low", "high", "protocol"}
"""What every row of `scores` has at least."""
TEXTS = ("doc", "target", "arguments", "filtered_resps")
LEFT_OUT = ("pretty_env_info", "git_hash", "upper_git_hash")
"""What lm-eval says of the machine."""


def scores(results: Mapping[str, Any], facts: Mapping[str, Facts], extra: str) -> list[dict]:
    """One row for each task, metric and filter.

    Keys: task, metric, filter, shots, items, value, stderr, low, high (95 %: Wilson's interval
    where each sample scores 0 or 1, else value -+ 1.96 stderr), chance, majority (None where they
    do not apply) and protocol. extra: what was asked beside the task files, for the protocol.
    """
    rows = []
    for task, metric, chosen, value, stderr in _metrics(results):
        fact = facts.get(task)
        singles = [
            sample[metric]
            for sample in results["samples"].get(task, ())
            if sample["filter"] == chosen and metric in sample
        ]
        low = high = None
        if singles and all(single in (0, 1) for single in singles):
            _, low, high = wilson_interval(int(sum(singles)), len(singles))
        elif stderr is not None:
            low, high = value - 1.96 * stderr, value + 1.96 * stderr
        is_answer = metric in (*ACCURACIES, "exact_match")
        rows.append(
            {
                "task": task,
                "metric": metric,
                "filter": chosen,
                "shots": results["n-shot"].get(task),
                "items": None if fact is None else fact.scored,
                "value": value,
                "stderr": stderr,
                "low": low,
                "high": high,
                "chance": fact.chance if fact and metric in ACCURACIES else None,
                "majority": fact.majority if fact and is_answer else None,
                "protocol": _protocol(results, task, metric, chosen, fact, extra),
            }
        )
    return rows


def _metrics(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str, float, float | None]]:
    """The harness writes `acc,none` for a metric and its filter, and `acc_stderr,none`."""
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                error = values.get(f"{metric}_stderr,{chosen}")
                known = isinstance(error, int | float) and math.isfinite(error)
                yield task, metric, chosen, float(value), float(error) if known else None


def _protocol(
    results: Mapping[str, Any], task: str, metric: str, chosen: str, fact: Facts | None, extra: str
) -> str:
    metadata = results["configs"].get(task, {}).get("metadata") or {}
    version = results["versions"].get(task, metadata.get("version"))
    parts = [f"lm-eval {lm_eval_version} {task} {version}", f"{results['n-shot'].get(task)} shots"]
    parts.append(metric if chosen == "none" else f"{metric} ({chosen})")
    if isinstance(metadata.get("protocol"), str):
        parts.append(metadata["protocol"])
    if fact is not None and fact.scored < fact.items:
        parts.append(f"first {fact.scored:,} of {fact.items:,} items")
    return "; ".join([*parts, extra] if extra else parts)


def write(
    path: Path, results: Mapping[str, Any], ours: Mapping[str, Any], *, texts: bool = True
) -> None:
    """Write the JSON. texts: False leaves out the words of items, prompts and answers, which may
    not be passed on; their hashes stay.
    """
    whole = {key: value for key, value in results.items() if key not in LEFT_OUT}
    for config in whole["configs"].values():
        kwargs = config.get("dataset_kwargs")
        if isinstance(kwargs, dict):  # names of files, not where they lie on this machine
            kwargs.pop("cache_dir", None)
            kwargs["data_files"] = _names(kwargs.get("data_files"))
    if not texts:
        whole["samples"] = {
            task: [_without_texts(sample) for sample in samples]
            for task, samples in results["samples"].items()
        }
    whole["moxin_lab"] = {"format": FORMAT, **ours}
    text = json.dumps(whole, indent=1, ensure_ascii=False, default=handle_non_serializable)
    text = re.sub(r"(<function [\w.<>]+) at 0x[0-9a-f]+>", r"\1>", text)  # differs each time
    write_atomically(path, text + "\n")


def _names(files: Any) -> Any:
    if isinstance(files, dict):
        return {split: _names(each) for split, each in files.items()}
    if isinstance(files, list):
        return [_names(each) for each in files]
    return Path(files).name if isinstance(files, str) else files


def _without_texts(sample: Mapping[str, Any]) -> dict[str, Any]:
    kept = copy.copy({key: value for key, value in sample.items() if key not in TEXTS})
    if _holds_text(kept.get("resps")):
        kept.pop("resps")
    return kept


def _holds_text(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_text(each) for each in value)
    return isinstance(value, str)


def read(path: Path) -> dict[str, Any]:
    """A file that `write` wrote. Raises LabError for another format, and for anything else."""
    remedy = "run `moxin-lab evaluate` again with another --json"
    if not path.is_file():
        raise LabError(f"there is no results file {path}")
    value = read_json(path, remedy, max_bytes=MAX_BYTES)
    ours = value.get("moxin_lab") if isinstance(value, dict) else None
    if not isinstance(ours, dict) or not isinstance(ours.get("scores"), list):
        raise LabError(f"{path} is not a results file of `moxin-lab evaluate`; {remedy}")
    if ours.get("format") != FORMAT:
        raise LabError(
            f"{path} has format {ours.get('format')!r}, and this version reads {FORMAT}; {remedy}"
        )
    rows, samples = ours["scores"], value.get("samples")
    whole = isinstance(samples, dict) and all(isinstance(each, list) for each in samples.values())
    if not whole or not all(isinstance(row, dict) and row.keys() >= ROW for row in rows):
        raise LabError(f"{path} lacks samples or parts of its scores: it was changed; {remedy}")
    return value


def in_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table for a terminal, each protocol once below it."""
    header = ("task", "metric", "shots", "items", "score", "95 %", "stderr", "chance", "majority")
    lines = [header]
    for row in rows:
        metric = row["metric"] if row["filter"] == "none" else f"{row['metric']}, {row['filter']}"
        ends = row["low"] is not None
        lines.append(
            (
                row["task"],
                metric,
                _shown(row["shots"]),
                _shown(row["items"]),
                _shown(row["value"]),
                f"{row['low']:.3f} to {row['high']:.3f}" if ends else "-",
                *(_shown(row[key]) for key in ("stderr", "chance", "majority")),
            )
        )
    widths = [max(len(line[place]) for line in lines) for place in range(len(header))]
    table = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*table, "", *dict.fromkeys(row["protocol"] for row in rows)])


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"


def compare(paths: Sequence[Path], *, level: float = 0.95) -> str:
    """Each file beside the first, by task and metric, as text: the scores with their intervals, and
    the differences on the same items with paired ones (`statistics.paired_proportions` where each
    item scores 0 or 1, else a paired bootstrap).

    The level is corrected for the number of differences shown (Bonferroni: each interval at
    1 - (1 - level) / number), so that with this probability all of them hold. Raises LabError if a
    file cannot be read, or if no score has the same protocol in all of them.
    """
    files = [read(path) for path in paths]
    names = [str(path) for path in paths]
    keyed = [
        {
            (row["task"], row["metric"], row["filter"], row["protocol"]): row
            for row in file["moxin_lab"]["scores"]
        }
        for file in files
    ]
    shared = [key for key in keyed[0] if all(key in each for each in keyed[1:])]
    if not shared:
        raise LabError(
            f"{', '.join(names)} have no score of the same protocol, so nothing is compared"
        )
    number = len(shared) * (len(files) - 1)
    corrected = 1 - (1 - level) / max(1, number)
    lines = []
    for key in shared:
        task, metric, chosen, _ = key
        first = _singles(files[0], task, metric, chosen)
        lines.append(f"{task}, {metric}{'' if chosen == 'none' else f' ({chosen})'}")
        lines.append(f"  {_with_interval(keyed[0][key])}  {names[0]}")
        for name, file, rows in zip(names[1:], files[1:], keyed[1:], strict=True):
            other = _singles(file, task, metric, chosen)
            if set(other) != set(first):
                raise LabError(f"{name} has other items of {task} than {names[0]}")
            order = sorted(first)
            gain = ""
            if order:
                pair = [other[each] for each in order], [first[each] for each in order]
                found = _difference(*pair, level=corrected)
                gain = f"  {found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
            lines.append(f"  {_with_interval(rows[key])}  {name}{gain}")
    lines += [
        "",
        f"In square brackets: {100 * level:.0f} % of each score. In brackets: intervals of the "
        f"difference from {names[0]}, over the same items, {100 * level:.0f} % for all {number} "
        "together.",
    ]
    return "\n".join(lines)


def _with_interval(row: Mapping[str, Any]) -> str:
    ends = "" if row["low"] is None else f" [{row['low']:.3f} to {row['high']:.3f}]"
    return f"{row['value']:.3f}{ends}"


def _difference(first: Sequence[float], second: Sequence[float], *, level: float) -> Estimate:
    if set(first) | set(second) <= {0.0, 1.0}:
        return paired_proportions(first, second, level=level)
    return paired_bootstrap(first, second, level=level)


def _singles(file: Mapping[str, Any], task: str, metric: str, chosen: str) -> dict[Any, float]:
    """Each item's score, by its number and its document's hash."""
    return {
        (sample["doc_id"], sample["doc_hash"]): float(sample[metric])
        for sample in file["samples"].get(task, ())
        if sample["filter"] == chosen and isinstance(sample.get(metric), int | float)
    }
