"""Committed measurements of the recipe on a GPU (`reports/released/`), as notebook 04 shows them.

    record = read(root / "reports/released/ladder/ladder.json")
    ladder_in_words(record)      # what the ladder of widths says, in sentences

Guarantees: every measured number in a sentence is computed from the record, and so is what it says:
another measurement gives another sentence; a file that is not such a record raises an error with
its name. Constants of the benches and of the paper (full scale, its tokens and price) are written.
Out of scope: measuring (`bench/`); drawing (`experiments.py`, `figures.py`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from moxin_lab.lab import measured
from moxin_lab.pretraining import results

NEEDED = {
    "recipe": ("settings", "ladder", "verdicts", "differences", "plan"),
    "smollm2-expansion": ("settings", "verdicts", "differences", "not_run", "rule"),
    "pretraining": ("rows", "training"),
    "scaling": ("settings", "rows"),
}
"""What the functions of this module read, by the name of the bench."""
NGRAMS = {"order 3": "trigram", "order 5": "5-gram"}
"""Names of the record, and those that notebook 04 has for the same models."""
BASELINE, FINAL = "5-gram", "after phase 3"
CONTINUED = "continued"
"""The arm of `bench smollm2-expansion` that adds no block."""


def read(path: Path) -> dict[str, Any]:
    """The record in a file, of a bench in NEEDED; errors as `measured.read_record`."""
    return measured.read_record(path, NEEDED)


def against_ngrams(record: Mapping[str, Any]) -> pd.DataFrame:
    """Scores of `bench pretraining` on held-out text that repeats no training text: the n-grams and
    the model after the last phase; columns model, group, bits_per_byte, low, high.
    """
    rows = pd.DataFrame([row for row in record["rows"] if row.get("text") == "fresh"])
    rows = rows[rows["model"].isin([*NGRAMS, FINAL])].replace({"model": NGRAMS})
    return rows.rename(columns={"language": "group"})[
        ["model", "group", "bits_per_byte", "low", "high"]
    ].reset_index(drop=True)


def against_ngrams_in_words(record: Mapping[str, Any]) -> str:
    """Tokens read, in how many texts the model's interval lies below that of the 5-gram,
    and how far its bits per byte are from its.
    """
    scores = against_ngrams(record)
    ends = scores.set_index(["model", "group"])
    model, ngram = ends.loc[FINAL], ends.loc[BASELINE]
    below = int((model["high"] < ngram["low"]).sum())
    gaps = results.gaps_in_words(results.scores_by_language(scores), FINAL, BASELINE)
    return (
        f"Held-out bits per byte after three phases on {record['training']['tokens']:,} tokens, "
        f"beside n-grams fitted on the same tokens. In {below} of {len(model)} kinds of text the "
        "model's whole 95 % interval (over documents, one seed) lies below that of the "
        f"{BASELINE}: "
        f"{gaps}."
    )


def against_ngrams_alt(record: Mapping[str, Any]) -> str:
    """The figure of these scores in words, with each interval."""
    parts = [
        f"{model}: "
        + ", ".join(
            f"{row.group} {row.bits_per_byte:.2f} ({row.low:.2f} to {row.high:.2f})"
            for row in rows.itertuples()
        )
        for model, rows in against_ngrams(record).groupby("model", sort=False)
    ]
    return f"Held-out bits per byte by language. {'; '.join(parts)}."


def ladder_in_words(record: Mapping[str, Any]) -> str:
    """Whether the first rungs predict the last, and what the law of all gives at full scale."""
    rungs, fit = record["ladder"]["rungs"], record["ladder"]["fits"]["mean"]
    full = fit["all"]["predictions"]["full scale"]
    times = full["compute"] / rungs[-1]["flops"]
    doubt = (
        "which holds only if the same law goes on"
        if fit["holds"]
        else "and a law that missed one rung says little there"
    )
    return (
        f"Held-out bits per byte. {fit['line']} At 8.1 B parameters and 2 T tokens, about "
        f"{float(f'{times:.1g}'):,.0f} times the last rung's compute, the law of all "
        f"{len(rungs)} gives {full['value']:.2f} ({full['low']:.2f} to "
        f"{full['high']:.2f}), {doubt}."
    )


def ladder_limits(record: Mapping[str, Any]) -> str:
    """Floor, seeds and repetition of text: what the ladder leaves open."""
    rungs, fit = record["ladder"]["rungs"], record["ladder"]["fits"]["mean"]["all"]
    low, high = fit["floor_interval"]
    seeds = ", ".join(str(rung["seeds"]) for rung in rungs)
    pool, times = max(rungs[-1]["epochs"].items(), key=lambda item: item[1])
    return (
        f"How little is known: the floor of the law, the loss that no compute goes below, is "
        f"{fit['floor']:.2f} ({low:.2f} to {high:.2f}); the rungs have {seeds} seeds; and the last "
        f"one reads its most repeated pool, {pool}, {times:.1f} times."
    )


def ablations(folder: Path) -> dict[str, Any]:
    """The ablations of a folder, which may have several files, as `together` puts them. Raises
    ValueError for a folder without one.
    """
    files = [file for file in sorted(folder.glob("*.json")) if file.name != "manifest.json"]
    if not files:
        raise ValueError(f"{folder} has no record of `moxin-lab bench recipe`")
    return together([read(file) for file in files])


def together(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Records of `bench recipe` as one: of each experiment what the newest record has that decided
    it, for two records may differ in their text.

    Keys: settings (the newest's), verdicts, differences, plan, and records, the oldest first, each
    with the rows that are taken from it alone. Of one day, the record with more seeds is the newer.
    """

    def age(record: Mapping[str, Any]) -> tuple[str, int]:
        return record["machine"]["date"], sum(row["seeds"] for row in record["differences"])

    ordered = sorted(records, key=age)
    source: dict[str, int] = {}  # experiment to place of its record
    for decided in (False, True):  # what is undecided gives way to what is not, the old to the new
        for place, record in enumerate(ordered):
            for one in record["verdicts"] if decided else record["plan"]:
                if not decided or one["verdict"] != "undecided":
                    source[one["experiment"]] = place
    rows = ("verdicts", "differences", "plan")
    parts = [
        {
            **record,
            **{name: [o for o in record[name] if source[o["experiment"]] == n] for name in rows},
        }
        for n, record in enumerate(ordered)
    ]
    joined = {name: [one for part in parts for one in part[name]] for name in rows}
    return {**joined, "settings": ordered[-1]["settings"], "records": parts}


def ablations_in_words(record: Mapping[str, Any]) -> str:
    """The verdict lines of the experiments that were decided, as a Markdown list, then one sentence
    on the trainings that were planned and not run.
    """
    decided = [one for one in record["verdicts"] if one["verdict"] != "undecided"]
    lines = [f"- **{one['experiment']}**: {one['line']}" for one in decided]
    undecided = [one["experiment"] for one in record["verdicts"] if one["verdict"] == "undecided"]
    return "\n".join([*lines, "", not_run(record["plan"], list(dict.fromkeys(undecided)))])


def not_run(plan: Sequence[Mapping[str, Any]], undecided: Sequence[str]) -> str:
    """The arms of a plan that lack trainings, and the experiments that stay undecided."""
    missing: dict[str, list[str]] = {}
    for row in plan:
        if row["done"] < row["trainings"]:
            share = f"{row['arm']}: {row['trainings'] - row['done']} of {row['trainings']}"
            missing.setdefault(row["experiment"], []).append(share)
    if not missing:
        return "Every training of the plan was run."
    arms = "; ".join(f"{name} ({', '.join(shares)})" for name, shares in missing.items())
    open_still = f" Hence undecided: {', '.join(undecided)}." if undecided else ""
    return f"Planned and not run, in trainings: {arms}.{open_still}"


def ablations_caption(record: Mapping[str, Any]) -> str:
    """Width, tokens and how many verdicts there are of each kind."""
    settings = record["settings"]
    found = [one["verdict"] for one in record["verdicts"] if one["verdict"] != "undecided"]
    counts = ", ".join(f"{found.count(kind)} {kind}" for kind in dict.fromkeys(found))
    return (
        f"What a change of the recipe costs or gains at width {settings['width']} and "
        f"{settings['steps'] * settings['tokens_per_step']:,} tokens, 95 % intervals over seeds. "
        f"The changed arm against the recipe: {counts}."
    )


def deeper(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Differences on all text of the arms with more blocks to the model continued as it is."""
    return [
        row for row in record["differences"] if row["text"] == "all" and row["against"] == CONTINUED
    ]


def deeper_in_words(record: Mapping[str, Any]) -> str:
    """How many ways of adding blocks are better than adding none, at equal compute."""
    old, new = record["settings"]["blocks"]
    rows = [row for row in deeper(record) if row["interval"] is not None]
    better = [row["arm"] for row in rows if row["interval"][1] < 0]
    worse = [row["arm"] for row in rows if row["interval"][0] > 0]
    gain = f"better: {', '.join(better)}" if better else "none is better"
    loss = f"worse: {'; '.join(worse)}" if worse else "none is worse"
    return (
        f"SmolLM2-135M with {new} blocks in place of {old}, against the same model continued as it "
        f"is with equal compute. Of {len(rows)} ways to add blocks {gain}; {loss}. Points are "
        "seeds, bars 95 % intervals (Student's t)."
    )


def deeper_alt(record: Mapping[str, Any]) -> str:
    """The figure of `experiments.expansion` in words."""
    parts = [
        f"{row['arm']} {row['mean']:+.3f}"
        + ("" if row["interval"] is None else " ({:+.3f} to {:+.3f})".format(*row["interval"]))
        for row in deeper(record)
    ]
    return f"Bits per byte minus those of the model continued as it is: {'; '.join(parts)}."


def utilisation(record: Mapping[str, Any]) -> float:
    """The highest useful share of the peak in `bench scaling` on its largest number of GPUs. Raises
    ValueError if no row has one.
    """
    rows = _measured(record)
    most = max(row["gpus"] for row in rows)
    return float(max(row["model_flops_utilisation"] for row in rows if row["gpus"] == most))


def _measured(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows with a speed; others say why a number of GPUs has none."""
    rows = [row for row in record["rows"] if row.get("model_flops_utilisation")]
    if not rows:
        raise ValueError("no row of the record has a model_flops_utilisation: run it on a GPU")
    return rows


def cost_in_words(record: Mapping[str, Any], hours: float, dollars: float) -> str:
    """What was measured, and days and price per hour that follow. hours: device hours of the whole
    training at this utilisation; dollars: per device hour.
    """
    gpus = max(row["gpus"] for row in _measured(record))
    blocks = record["settings"]["config"]["num_hidden_layers"]
    return (
        f"The last row's utilisation, {utilisation(record):.1%}, was measured at full width with "
        f"{blocks} of 36 blocks on {gpus} GPUs of one host. If it held for all blocks and many "
        f"hosts, which was not measured, 2 trillion tokens would take {hours / 24:,.0f} device "
        f"days, for example {hours / 24 / 512:,.0f} days on 512 GPUs, and \\$160,000 would be "
        f"\\${dollars:.2f} per hour. The hours are a little low: $6ND$ leaves attention out."
    )
