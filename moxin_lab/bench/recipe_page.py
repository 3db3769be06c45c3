"""The page of `moxin-lab bench recipe`: README.md, ladder.svg and ablations.svg of a folder.

    python -m moxin_lab.bench.recipe_page reports/released/ablations

Guarantees: each number is read from the folder's JSON files; a part that was not run is in the plan
as such; verdicts are those of the files, by the rule that stood there before the run.
Out of scope: the measurements (`recipe.py`); merging trainings of several files (`--read`).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moxin_lab.bench import recipe_arms, recipe_training, released
from moxin_lab.lab import pictures
from moxin_lab.pretraining import experiments
from moxin_lab.pretraining import released as recipe_records

TITLES = {
    (True, True): "What the choices of the pretraining recipe are worth",
    (True, False): "A ladder of widths of the pretraining recipe",
    (False, True): "Ablations of the pretraining recipe",
    (False, False): "Experiments on the pretraining recipe, not yet run",
}
PART_OF_PLAN = (
    "The table has the experiments that are shown from this file; the file has the whole plan."
)


def write(folder: Path) -> Path:
    """Writes page and pictures; returns the page. Raises ValueError for a folder without a record
    of the bench.
    """
    records = released.records(folder, "recipe")
    ladders = [record["ladder"] for record in records if record["ladder"]]
    pairs = any(record["differences"] for record in records)
    parts = [f"# {TITLES[bool(ladders), pairs]}", "", "\n\n".join(map(_made, records)), ""]
    for ladder in ladders[:1]:
        parts += _ladder(ladder, folder)
    together = recipe_records.together(records)
    if pairs:
        parts += _forest(together, folder)
    for record in reversed(together["records"]):  # the newest first
        parts += [f"## Measured on {record['machine']['date']}", ""] if len(records) > 1 else []
        parts += _pairs(record) if record["differences"] else []
        parts += _plan(record)
        parts += [PART_OF_PLAN, ""] if len(records) > 1 else []
    page = folder / "README.md"
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


def _made(record: dict[str, Any]) -> str:
    machine, settings = record["machine"], record["settings"]
    if "gpu" in machine:
        where = f"one {machine['gpu']}"
    else:
        where = f"{machine['cores']} cores of {machine['cpu']}"
    return (
        f"`{record['command']}`: {where}, torch {machine['versions']['torch']}, "
        f"{machine['date']}, scale {settings['scale']}, tokens with the SHA-256 "
        f"{record['corpus']['sha256'][:8]}…. "
        "Every model is small and has read little: this shows orders and sizes of effects here, "
        "not what they are at 8 billion parameters."
        f"{' ' * ('note' in record)}{record.get('note', '')}"
    )


def _ladder(ladder: dict[str, Any], folder: Path) -> list[str]:
    fit = ladder["fits"]["mean"]
    alt = experiments.ladder_alt(ladder)
    _picture(experiments.ladder(ladder), folder / "ladder.svg", "ladder")
    low, high = fit["all"]["exponent_interval"]
    floor_low, floor_high = fit["all"]["floor_interval"]
    full = fit["all"]["predictions"]["full scale"]
    most = max(ladder["rungs"][-1]["epochs"].items(), key=lambda item: item[1])
    return [
        "## The ladder",
        "",
        f"![{alt}](ladder.svg)",
        "",
        "36 blocks at every width, rows of one length, tokens in proportion to the parameters "
        "outside the embeddings, learning rate in inverse proportion to the width. Bits per byte "
        "is the mean over the languages and code of the held-out test pages.",
        "",
        "| width | parameters outside the embeddings | tokens | FLOPs | seeds | bits per byte | "
        "nats per token |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {rung['width']} | {rung['parameters']:,} | {rung['tokens']:,} | "
            f"{rung['flops']:.2e} | {rung['seeds']} | {rung['mean']:.4f} | "
            f"{rung['nats_per_token']:.4f} |"
            for rung in ladder["rungs"]
        ),
        "",
        f"- {fit['line']} A law without a floor predicted {fit['without_floor']:.3f}.",
        f"- The same in nats per token. {ladder['fits']['nats_per_token']['line']}",
        f"- All rungs: exponent {fit['all']['exponent']:.3f} ({low:.3f} to {high:.3f}), floor "
        f"{fit['all']['floor']:.2f} ({floor_low:.2f} to {floor_high:.2f}) bits per byte. The "
        "intervals redraw the rungs' losses by the spread of all runs around the law.",
        f"- At {full['compute']:.1e} FLOPs, 8.1 B parameters and 2 T tokens, the law gives "
        f"{full['value']:.2f} ({full['low']:.2f} to {full['high']:.2f}). That is "
        f"{full['compute'] / ladder['rungs'][-1]['flops']:.0e} times the last rung's compute, on "
        "other text and at another ratio of tokens to parameters: the interval holds only if the "
        "same law goes on, which nothing here shows.",
        f"- The larger the rung, the more its text repeats: the last one reads {most[0]}, its most "
        f"repeated pool, {most[1]:.2f} times.",
        "",
    ]


def _forest(together: dict[str, Any], folder: Path) -> list[str]:
    verdicts, differences = together["verdicts"], together["differences"]
    alt = experiments.forest_alt(verdicts, differences)
    _picture(experiments.forest(verdicts, differences), folder / "ablations.svg", "ablations")
    several = (
        "Of an experiment that two files have, the newest that decided it is shown. The files "
        "differ in their text and in the learning rate that was chosen."
    )
    return [
        "## The ablations",
        "",
        f"![{alt}](ablations.svg)",
        "",
        *([several, ""] if len(together["records"]) > 1 else []),
        *([_benchmark(), ""] if any(v["experiment"] == "benchmark" for v in verdicts) else []),
    ]


def _benchmark() -> str:
    trained, kept_out = (
        ", ".join(f"`{task}`" for task in tasks)
        for tasks in (recipe_training.BENCHMARK_TASKS, recipe_training.NEIGHBOUR_TASKS)
    )
    return (
        "The benchmark is ours: generated questions of `data_cards/instructions`, of the families "
        f"{trained}. Its training questions are {recipe_arms.BENCHMARK_SHARE:g} % of the rows of "
        f"phase 3. The neighbouring families, kept out, are {kept_out}; some are close to the "
        "trained ones."
    )


def _pairs(record: dict[str, Any]) -> list[str]:
    verdicts, differences = record["verdicts"], record["differences"]
    base = next(row for row in differences if row["measure"] == "mean")
    table = {one["name"]: one for one in record["experiments"]}
    text = []
    if base["recipe_spread"] is not None:
        text += [
            f"The recipe itself, {base['seeds']} seeds: {base['recipe']:.4f} bits per byte, with a "
            f"standard deviation of {base['recipe_spread']:.4f} between seeds. Arms are paired "
            "by seed, so smaller differences can show where a seed moves both arms alike.",
            "",
        ]
    rules = {one["rule"] for one in table.values() if "recipe" in one}
    text += [*(f"The rule, stated before the run: {rule}" for rule in sorted(rules)), ""]
    text += [
        "Changed arms take the recipe's learning rate, Muon its own: an arm that another rate "
        "would suit better is shown at a disadvantage. Intervals are not widened for the number of "
        "verdicts, and one whose end lies near zero is weak evidence.",
        "",
    ]
    for name, chosen in record["rates"].items():
        tried = ", ".join(
            f"{rate}: {'diverged' if bits is None else f'{bits:.4f}'}"
            for rate, bits in chosen["validation"].items()
        )
        edge = " The best lies at the edge of the grid." if chosen["at_edge"] else ""
        text += [
            f"Learning rate of {name}, chosen on the validation half: {chosen['rate']:.3g} "
            f"({tried}).{edge}",
            "",
        ]
    text += [f"- **{one['experiment']}**: {one['line']}" for one in verdicts]
    text += ["", *_languages(differences), *_seeds(record["spreads"])]
    return text


def _languages(differences: Sequence[dict[str, Any]]) -> list[str]:
    """Each experiment's differences in bits per byte by language."""
    kept = [row for row in differences if "_" not in row["measure"]]
    names = list(dict.fromkeys(row["measure"] for row in kept))
    by_experiment: dict[str, dict[str, dict[str, Any]]] = {}
    for row in kept:
        by_experiment.setdefault(row["experiment"], {})[row["measure"]] = row
    return [
        "Bits per byte of the changed arm minus the recipe's, with the 95 % interval over seeds:",
        "",
        f"| experiment | {' | '.join(names)} |",
        f"| --- |{' --- |' * len(names)}",
        *(
            f"| {name} | {' | '.join(_cell(rows.get(measure)) for measure in names)} |"
            for name, rows in by_experiment.items()
        ),
        "",
    ]


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["low"] is None:
        return f"{row['difference']:+.3f}"
    return f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"


def _seeds(spreads: Sequence[dict[str, Any]]) -> list[str]:
    if not spreads:
        return []
    return [
        "Standard deviation of bits per byte where one kind of seed changes:",
        "",
        "| what | seed that changes | runs | spread |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row['what']} | {row['changes']} | {row['runs']} | {row['spread']:.4f} |"
            for row in spreads
        ),
        "",
    ]


def _plan(record: dict[str, Any]) -> list[str]:
    return [
        "### What was planned, and what was not run",
        "",
        "| experiment | arm | all parameters | tokens | trainings | seconds expected | status |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['experiment']} | {row['arm']} | {row['parameters']:,} | {row['tokens']:,} | "
            f"{row['trainings']} | {row['expected_seconds']} | {row['status']} |"
            for row in record["plan"]
        ),
        "",
        "A training that two experiments share ran once. Where the command gives `--seconds`, no "
        "training started that would have ended later.",
        "",
    ]


def _picture(figure: Any, path: Path, caption: str) -> None:
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    with mpl.rc_context(pictures.SVG_SETTINGS):
        path.write_text(pictures.figure_svg(figure, caption), encoding="utf-8")
    plt.close(figure)


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
