"""The arms of `bench smollm2-expansion` and what its rows show of them: chosen learning rates,
differences with intervals over seeds, and verdicts by the rule.

Guarantees: pure functions of rows, so that the page repeats them; the half of pages that chooses a
rate is not the one that is reported.
Out of scope: measuring (`smollm2_expansion.py`), drawing (`smollm2_expansion_page.py`).
"""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from moxin_lab.bench.expansion import STUDENT_T_95, paired_differences


class Arm(NamedTuple):
    """recipe: of the expansion, None for the start's own depth. alone: only new blocks train.
    rate_of: the arm whose learning rate it takes.
    """

    recipe: str | None
    alone: bool
    rate_of: str


CONTINUED, IDENTITY, ALONE = "continued", "identity", "identity, new blocks alone"
ARMS = {
    CONTINUED: Arm(None, False, CONTINUED),
    IDENTITY: Arm("identity", False, IDENTITY),
    "interleaved": Arm("interleaved", False, IDENTITY),
    "top": Arm("top", False, IDENTITY),
    ALONE: Arm("identity", True, ALONE),
}
TUNED = (CONTINUED, IDENTITY, ALONE)

RULE = (
    "For each arm of 36 blocks: the mean over seeds of its bits per byte on the reported half "
    "minus those of `continued` with the same seed, and Student's 95 % interval over seeds. An "
    "interval below zero: the deeper model is better at equal compute. Above zero: worse. "
    "Otherwise no difference is shown, which is a result: none larger than the interval's far end "
    "is compatible with these seeds. `identity, new blocks alone` is read against `identity` in "
    "the same way. Intervals are not widened for their number, five; those of single languages "
    "are shown and decide nothing."
)


def chosen_rates(rows: list[dict[str, Any]], rates: Sequence[float]) -> dict[str, float]:
    """The rate with the fewest validation bits per byte of each tuned arm whose grid is whole."""
    chosen = {}
    for arm in TUNED:
        tried = {
            row["learning_rate"]: row["validation"]
            for row in rows
            if row["row"] == "arm" and row["arm"] == arm and row["seed"] == 0
        }
        if set(rates) <= set(tried):
            chosen[arm] = min(rates, key=tried.__getitem__)
    return chosen


def best_deeper(rows: list[dict[str, Any]], rates: dict[str, float]) -> str | None:
    """The arm of more blocks with the fewest validation bits per byte, as a mean over its seeds."""
    means = {}
    for name, arm in ARMS.items():
        values = [row["validation"] for row in of_arm(rows, name, rates)]
        if arm.recipe and values:
            means[name] = statistics.fmean(values)
    return min(means, key=means.__getitem__) if means else None


def of_arm(rows: list[dict[str, Any]], name: str, rates: dict[str, float]) -> list[dict[str, Any]]:
    """The rows of an arm at its chosen rate, by seed."""
    rate = rates.get(ARMS[name].rate_of)
    found = [
        row
        for row in rows
        if row["row"] == "arm" and row["arm"] == name and row["learning_rate"] == rate
    ]
    return sorted(found, key=lambda row: row["seed"])


def summarise(rows: list[dict[str, Any]], grid: Sequence[float]) -> dict[str, Any]:
    """`spread` of the baseline, `differences` by text (`all`, then each language) and `verdicts`,
    by RULE. grid: the learning rates that were to be tried.
    """
    rates = chosen_rates(rows, grid)
    counted = [row for name in ARMS for row in of_arm(rows, name, rates)]
    baseline = [row for row in counted if row["arm"] == CONTINUED]
    differences = []
    languages = sorted({language for row in counted for language in row["by_language"]})
    for text in ("all", *languages):
        values = [
            {
                "arm": row["arm"],
                "seed": row["seed"],
                "bits_per_byte": row["bits_per_byte"]
                if text == "all"
                else row["by_language"][text],
            }
            for row in counted
        ]
        records = paired_differences(
            values, [name for name in ARMS if name != CONTINUED], CONTINUED
        )
        records += paired_differences(values, [ALONE], IDENTITY)
        differences += [{"text": text, **record} for record in records]
    spread = baseline_spread([row["bits_per_byte"] for row in baseline])
    decided = [record for record in differences if record["text"] == "all"]
    return {
        "spread": spread,
        "differences": differences,
        "verdicts": [spread_line(spread), *map(verdict, decided), *at_the_end(rates, grid)],
    }


def baseline_spread(values: list[float]) -> dict[str, Any]:
    """Standard deviation of `continued` over seeds, and the smallest mean difference that Student's
    interval would tell from zero if arms differed as independently as its seeds do.
    """
    count = len(values)
    deviation = statistics.stdev(values) if count > 1 else None
    seen = None
    if deviation is not None:
        seen = STUDENT_T_95.get(count, 2.571) * deviation * (2 / count) ** 0.5
    return {
        "arm": CONTINUED,
        "seeds": count,
        "mean": statistics.fmean(values) if values else None,
        "standard_deviation": deviation,
        "could_be_seen": seen,
    }


def spread_line(spread: dict[str, Any]) -> str:
    if spread["standard_deviation"] is None:
        return f"{CONTINUED}: {spread['seeds']} seed(s), so its spread is not known."
    return (
        f"{CONTINUED}: {spread['mean']:.4f} bits per byte, standard deviation "
        f"{spread['standard_deviation']:.4f} over {spread['seeds']} seeds; unpaired, a difference "
        f"of {spread['could_be_seen']:.4f} could be seen."
    )


def verdict(record: dict[str, Any]) -> str:
    """One line for a difference, by RULE."""
    pair = f"{record['arm']} against {record['against']}"
    if record["interval"] is None:
        return f"{pair}: {record['mean']:+.4f} with one seed, which decides nothing."
    low, high = record["interval"]
    numbers = (
        f"{record['mean']:+.4f} bits per byte, {low:+.4f} to {high:+.4f}, "
        f"{len(record['by_seed'])} seeds"
    )
    if high < 0:
        return f"{pair}: better ({numbers})."
    if low > 0:
        return f"{pair}: worse ({numbers})."
    return (
        f"{pair}: no difference is shown ({numbers}); one of more than {max(-low, high):.4f} is "
        "not compatible with these seeds."
    )


def at_the_end(rates: dict[str, float], grid: Sequence[float]) -> list[str]:
    """A line for each arm whose chosen rate is the lowest or highest of the grid."""
    return [
        f"{arm}: the chosen learning rate, {rate:g}, is at the end of the grid, so a better one "
        "may lie outside."
        for arm, rate in rates.items()
        if rate in (min(grid), max(grid))
    ]
