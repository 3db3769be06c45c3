"""Task files for the harness, and tables from its results.

    write_task_data(folder, texts, items)                 # <task>.jsonl for each language
    bits = bits_table({"trained": results, ...}, seed=0)

Guarantees: every number comes from the samples that the harness logged; intervals are over
documents (bootstrap) and items (Wilson); two models are compared on the same items.
Out of scope: running a model (harness.py), drawing (figures.py).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moxin_lab.evaluation.bits_per_byte import bits_per_byte_by_group
from moxin_lab.evaluation.cloze import NUM_CHOICES
from moxin_lab.evaluation.statistics import Estimate, paired_bootstrap, wilson_interval
from moxin_lab.lab import curated
from moxin_lab.lab.recording import Number

BITS_TASK = "moxin_bits_per_byte_"
CLOZE_TASK = "moxin_cloze_"
TRANSLATION_TASK = "moxin_translation_"
METRICS = {"acc": "by log-likelihood", "acc_norm": "by log-likelihood per character"}
"""The harness's metrics of a multiple-choice task, and how each one ranks the choices."""


def read_splits(documents: Path, languages: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training documents of stage 01, and its held-out documents in these languages."""
    train, held_out = (curated.read(documents, side).to_pandas() for side in ("train", "heldout"))
    return train, held_out[held_out["language"].isin(list(languages))]


def drawn(texts: pd.DataFrame, held_out: pd.DataFrame, languages: Sequence[str]) -> pd.DataFrame:
    """Documents and bytes that are scored, beside the documents held out: one row per language."""
    by_language = texts.groupby("language")
    table = by_language.agg(documents=("id", "size"), bytes=("num_bytes", "sum"))
    table = table.loc[list(languages)]
    table["documents held out"] = held_out.groupby("language").size()
    return table


def write_task_data(
    folder: Path,
    texts: pd.DataFrame,
    items: Mapping[str, Sequence[Mapping[str, Any]]],
    translations: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> list[str]:
    """Writes one JSON Lines file per task and language; returns the names of the tasks.

    texts: columns id, language, text. items, translations: the cloze items and the items of
    `translation` of each language.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks: dict[str, Sequence[Mapping[str, Any]]] = {}
    for language, part in texts.groupby("language", sort=False):
        tasks[f"{BITS_TASK}{language}"] = part[["id", "language", "text"]].to_dict("records")
    tasks |= {f"{CLOZE_TASK}{language}": rows for language, rows in items.items()}
    tasks |= {f"{TRANSLATION_TASK}{name}": rows for name, rows in (translations or {}).items()}
    for task, rows in tasks.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return list(tasks)


def bits_table(results: Mapping[str, Mapping[str, Any]], *, seed: int) -> pd.DataFrame:
    """Bits per byte: one row per model and language.

    results: lm-eval's result structure of each model.
    Columns: language, bits_per_byte, low, high, documents, bytes, model.
    """
    tables = []
    for model, result in results.items():
        frame = _samples(result, BITS_TASK, "bits_per_byte")
        nats, num_bytes = zip(*frame["bits_per_byte"], strict=True)
        table = bits_per_byte_by_group(
            -np.array(nats), num_bytes, frame["language"].tolist(), seed=seed
        )
        tables.append(table.rename(columns={"group": "language"}).assign(model=model))
    return pd.concat(tables, ignore_index=True)


def cloze_table(results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Cloze accuracy: one row per model, language and metric.

    The language `all` pools the items of all languages.
    Columns: model, language, metric, accuracy, low, high, items.
    """
    rows = []
    for model, result in results.items():
        for metric in METRICS:
            frame = _samples(result, CLOZE_TASK, metric)
            for language, part in [*frame.groupby("language", sort=False), ("all", frame)]:
                estimate = wilson_interval(int(part[metric].sum()), len(part))
                rows.append((model, language, metric, *estimate, len(part)))
    return pd.DataFrame(
        rows, columns=["model", "language", "metric", "accuracy", "low", "high", "items"]
    )


def cloze_difference(
    results: Mapping[str, Mapping[str, Any]], first: str, second: str, metric: str, *, seed: int
) -> Estimate:
    """Accuracy of model `first` minus that of model `second`, over the items of all languages.

    The interval is a paired bootstrap over items. Raises ValueError if their items differ.
    """
    a, b = (_samples(results[name], CLOZE_TASK, metric) for name in (first, second))
    if a["id"].tolist() != b["id"].tolist():
        raise ValueError(f"{first} and {second} answered different items")
    return paired_bootstrap(a[metric], b[metric], seed=seed)


def bits_wide(table: pd.DataFrame) -> pd.DataFrame:
    """`bits_table` with one row per language and one column per model, in their order."""
    wide = table.pivot(index="language", columns="model", values="bits_per_byte")
    return wide.loc[table["language"].unique(), table["model"].unique()]


def bits_sentence(wide: pd.DataFrame) -> str:
    """The trained model against the untrained one and the trigram. wide: of `bits_wide`."""
    saved = (1 - wide["trained"] / wide["untrained"]) * 100
    below = wide.index[wide["trained"] < wide["trigram"]].tolist()
    rest = len(wide) - len(below)
    return (
        f"Training reduces the untrained model's bits per byte by {saved.min():.0f} to "
        f"{saved.max():.0f} %. The trained model is below the trigram in {len(below)} of "
        f"{len(wide)} languages ({', '.join(below) or 'none'})"
        + (f"; in the other {rest} the trigram predicts this text better." if rest else ".")
    )


def cue_sentence(answers: pd.DataFrame, cues: pd.DataFrame) -> str:
    """In how many languages counting shared trigrams answers more items than the trained model, by
    the model's better metric. answers: of `cloze_table`; cues: of `cloze.cue_table`.
    """
    trained = answers[answers["model"] == "trained"]
    best = 100 * trained.groupby("language")["accuracy"].max().loc[cues.index]
    rule = cues["most trigrams shared with the context"]
    wins = cues.index[rule >= best].tolist()
    return (
        "Counting shared trigrams, which reads nothing, answers at least as many items as the "
        f"trained model in {len(wins)} of {len(cues)} languages ({', '.join(wins) or 'none'})."
    )


def numbers(
    cues: pd.DataFrame,
    bits: pd.DataFrame,
    answers: pd.DataFrame,
    gains: Mapping[str, Estimate],
    named: pd.DataFrame,
) -> list[Number]:
    """The measures of stage 08 from its tables, in percent where the tables have shares.

    gains: by metric, of `cloze_difference`. named: of `benchmarks.run_named`.
    """
    rows = [
        Number("cloze_cue_accuracy", value, "%", None, {"language": language, "rule": rule})
        for language, row in cues.drop(columns="items").iterrows()
        for rule, value in row.items()
    ]
    for row in bits.itertuples():
        labels = {"language": row.language, "model": row.model}
        interval = (row.low, row.high)
        rows.append(
            Number("heldout_bits_per_byte", row.bits_per_byte, "bits/byte", interval, labels)
        )
    for row in answers.itertuples():
        labels = {"language": row.language, "model": row.model, "metric": row.metric}
        interval = (100 * row.low, 100 * row.high)
        rows.append(Number("cloze_accuracy", 100 * row.accuracy, "%", interval, labels))
    for metric, gain in gains.items():
        value, low, high = (100 * number for number in gain)
        name, unit = "cloze_gain_over_untrained", "percentage points"
        rows.append(Number(name, value, unit, (low, high), {"metric": metric}))
    for row in named.itertuples():
        labels = {"task": row.task, "metric": row.metric, "model": row.model, "shots": row.shots}
        rows.append(Number("benchmark", row.value, "score", None, labels))
    return rows


def cloze_wide(table: pd.DataFrame) -> pd.DataFrame:
    """`cloze_table` in percent with one row per language and one column per model and metric, after
    the number of items.
    """
    names = table["model"] + ", " + table["metric"]
    long = table.assign(name=names, percent=100 * table["accuracy"])
    wide = long.pivot(index="language", columns="name", values="percent")
    wide = wide.loc[table["language"].unique(), names.unique()]
    items = table.drop_duplicates("language").set_index("language")["items"]
    wide.insert(0, "items", items)
    return wide


def cloze_pooled(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `cloze_table` over all languages by model and metric, and `text`: the accuracy
    with its interval in percent.
    """
    pooled = table[table["language"] == "all"].set_index(["model", "metric"])
    texts = [
        f"{100 * row.accuracy:.0f} % ({100 * row.low:.0f} to {100 * row.high:.0f})"
        for row in pooled.itertuples()
    ]
    return pooled.assign(text=texts)


def cloze_sentence(table: pd.DataFrame, gain: Estimate, metric: str) -> str:
    """Whether the trained model is above chance, and whether a difference from the untrained one is
    seen.

    gain: of `cloze_difference` between the trained and the untrained model.
    """
    row = cloze_pooled(table).loc[("trained", metric)]
    chance = 1 / NUM_CHOICES
    side = (
        "is above chance"
        if row["low"] > chance
        else "is below chance"
        if row["high"] < chance
        else "cannot be distinguished from chance"
    )
    seen = "a difference is seen" if gain.low > 0 or gain.high < 0 else "no difference is seen"
    value, low, high = (100 * number for number in gain)
    return (
        f"By `{metric}` the trained model {side} with {row['text']}, and {value:+.1f} points from "
        f"the untrained model (interval {low:+.1f} to {high:+.1f}, same items): {seen}."
    )


def _samples(result: Mapping[str, Any], prefix: str, metric: str) -> pd.DataFrame:
    """One row per sample of the tasks that begin with `prefix`, in the order of the documents.

    Columns: language, id, and the metric.
    """
    rows = [
        (task.removeprefix(prefix), sample["doc"]["id"], sample[metric])
        for task, samples in result["samples"].items()
        if task.startswith(prefix)
        for sample in sorted(samples, key=lambda sample: sample["doc_id"])
    ]
    return pd.DataFrame(rows, columns=["language", "id", metric])
