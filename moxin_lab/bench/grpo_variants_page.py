"""The page of `moxin-lab bench grpo-variants`: README.md and variants.svg of a folder.

    python -m moxin_lab.bench.grpo_variants_page reports/released/grpo-variants

Guarantees: each number is read from the folder's JSON file; scores and verdicts are made again from
its rows and counts, by the rule that the file states, and must be those that the run wrote; what
was not run stands there with its reason.
Out of scope: the measurements (`grpo_variants.py`).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from moxin_lab.bench import grpo_variants_results as results
from moxin_lab.bench.released import origin
from moxin_lab.lab import pictures
from moxin_lab.reasoning import released

SAME = 1e-9
"""By how much a number may differ that another machine computes again."""


def write(folder: Path) -> Path:
    """Writes both files; returns the page. Raises ValueError for a folder without one record, or
    whose verdicts do not follow from its rows.
    """
    files = [
        file
        for file in sorted(folder.glob("*.json"))
        if json.loads(file.read_text(encoding="utf-8")).get("bench") == released.BENCH
    ]
    if len(files) != 1:
        raise ValueError(
            f"{folder} has {len(files)} JSON files of `moxin-lab bench {released.BENCH}`, not 1"
        )
    record = released.read(files[0])
    if not record["rows"]:
        raise ValueError(f"{files[0]} has no training: run the bench first")
    against = {one["name"]: one["against"] for one in record["variants"]}
    again = results.summarise(record["rows"], record["right"], record["settings"], against)
    if record["rule"] != results.RULE or not all(
        _same(again[name], record[name]) for name in ("scores", "differences", "verdicts", "choice")
    ):
        raise ValueError(
            f"{files[0]}: rule or verdicts are not those of the code; run the bench again"
        )
    figure = released.variants(record)
    with mpl.rc_context(pictures.SVG_SETTINGS):
        svg = pictures.figure_svg(figure, "variants")
    plt.close(figure)
    (folder / "variants.svg").write_text(svg, encoding="utf-8")
    page = folder / "README.md"
    page.write_text("\n".join(_parts(record)), encoding="utf-8")
    return page


def _same(one: Any, other: Any) -> bool:
    """Equal, numbers up to `SAME`."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return abs(one - other) < SAME if isinstance(one, float) else one == other


def _parts(record: dict[str, Any]) -> list[str]:
    settings = record["settings"]
    most = max(settings["pass_at"])
    groups = settings["questions"]
    trained = [row["variant"] for row in record["rows"]]
    counted = ", ".join(f"{count} {group}" for group, count in groups.items())
    return [
        f"# What keeps pass@{most} when GRPO raises pass@1",
        "",
        f"![{released.variants_alt(record)}](variants.svg)",
        "",
        f"{released.variants_caption(record)} Scale {settings['scale']}.",
        "",
        "## What it says",
        "",
        released.in_words(record),
        "",
        f"The rule, stated before the run: {record['rule']}",
        "",
        record["choice_rule"],
        "",
        record["equal_samples"],
        "",
        f"## pass@1 and pass@{most}",
        "",
        f"Questions: {counted}. Validation questions come from the training families, with a seed "
        f"of their own ({settings['validation_seed']}); none is in a chain, a problem or the "
        f"test. {settings['samples']} samples each, temperature {settings['temperature']:g}, "
        "the same seed for every model. In brackets 95 % intervals, over seeds where there are "
        "several, else over questions.",
        "",
        *_table(
            ("variant", "seeds", "k", *groups),
            (
                (name, str(trained.count(name)), str(k), *_scores(record, name, k))
                for name in released.names(record)
                for k in settings["pass_at"]
            ),
        ),
        "## Differences",
        "",
        "The variant minus the one it is compared with.",
        "",
        *_table(
            ("difference", "k", *groups),
            (
                (name, measure.removeprefix("pass@"), *(row[group] for group in groups))
                for (name, measure), row in released.differences(record).iterrows()
            ),
        ),
        *_trainings(record["rows"]),
        "## Variants, and what was expected before the run",
        "",
        *(f"- **{one['name']}** ({_changes(one)}): {one['expects']}" for one in record["variants"]),
        "",
        *_not_run(record["not_run"]),
        "## How it was made",
        "",
        f"{origin(record)} The start's SHA-256 is {settings['start_sha256']}.",
        "",
    ]


def _scores(record: dict[str, Any], name: str, k: int) -> list[str]:
    """pass@k of a variant by group of questions, in the order of the settings."""
    found = {
        row["group"]: f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        for row in record["scores"]
        if (row["variant"], row["k"]) == (name, k)
    }
    return [found[group] for group in record["settings"]["questions"]]


def _changes(variant: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in variant["changes"].items()) or "as it is"


def _trainings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the logs say, one line for each training."""
    trained = [row for row in rows if row["variant"] != results.START]
    return [
        "## Trainings",
        "",
        "Over the last tenth of the steps: entropy and KL to the start in nats a token at the "
        "temperature of the training, so those of another temperature do not compare; the share of "
        "tokens that clipping acts on. Groups without contrast are those drawn first. Different "
        "answers: to a validation question, mean.",
        "",
        *_table(
            (
                "variant",
                "seed",
                "entropy",
                "KL",
                "clipped",
                "without contrast",
                "different answers",
            ),
            (
                (
                    row["variant"],
                    str(row["seed"]),
                    f"{row['entropy at the end']:.3f} (at first "
                    f"{row['entropy at the beginning']:.3f})",
                    f"{row['kl at the end']:.4f}",
                    f"{row['clip fraction at the end']:.4f}",
                    f"{row['groups without contrast']:.3f} (at the end "
                    f"{row['groups without contrast at the end']:.3f})",
                    f"{row['different answers']:.2f}",
                )
                for row in trained
            ),
        ),
        "Completions, with tokens in brackets:",
        "",
        *_table(
            ("variant", "seed", "steps", "generated", "consumed", "discarded", "seconds"),
            (
                (
                    row["variant"],
                    str(row["seed"]),
                    str(row["steps"]),
                    *(
                        f"{row[name]:,} ({row[f'{name} tokens']:,})"
                        for name in ("generated", "consumed", "discarded")
                    ),
                    f"{row['seconds']:.0f}",
                )
                for row in trained
            ),
        ),
    ]


def _not_run(missing: Sequence[dict[str, Any]]) -> list[str]:
    if not missing:
        return []
    lines = [f"- {one['variant']}, seed {one['seed']}: {one['reason']}" for one in missing]
    return ["## Not run", "", *lines, ""]


def _table(head: Sequence[str], rows: Any) -> list[str]:
    lines = (" | ".join(row) for row in rows)
    return [
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        *(f"| {line} |" for line in lines),
        "",
    ]


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
