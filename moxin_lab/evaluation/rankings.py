"""What printed tables rank: the interval of each cell, and which differences it supports.

    cells = with_intervals(published.cells(folder))
    compared = pairs(cells, "table_2_zero_shot_base")        # every two models, by their average

Guarantees: intervals follow from the printed share and the number of questions alone; the level of
the comparisons is corrected for their number (Bonferroni).
Out of scope: what two models answer on the same questions, which nobody published. Models tend to
fail on the same ones, so that a paired interval would be narrower: `no difference seen` here may be
a difference to whoever has the answers.
"""

import itertools
import math
from statistics import NormalDist

import pandas as pd

from moxin_lab.evaluation.statistics import wilson_interval

AVERAGE = "Ave"


def with_intervals(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with low and high: Wilson's 95 % interval of a printed percentage, missing where
    the number of questions or the value is not known. cells: of `lab.published.cells`.
    """
    ends = []
    for row in cells.itertuples():
        if pd.isna(row.n) or not isinstance(row.value, float) or not 0 <= row.value <= 100:
            ends.append((math.nan, math.nan))
            continue
        found = wilson_interval(round(row.value / 100 * row.n), int(row.n))
        ends.append((100 * found.low, 100 * found.high))
    low, high = zip(*ends, strict=True)
    return cells.assign(low=low, high=high)


def pairs(cells: pd.DataFrame, table: str, *, level: float = 0.95) -> pd.DataFrame:
    """Every two models of a table by the mean of its benchmarks: columns first (the higher mean),
    second, difference, low, high (points), seen.

    The variance of a mean of K shares is the sum of p (1 - p) / n over K^2, as of independent
    samples; the level of each interval is 1 - (1 - level) / number of pairs. Raises ValueError for
    a table with a benchmark whose number of questions is not known.
    """
    part = cells[(cells["table"] == table) & (cells["benchmark"] != AVERAGE)]
    unknown = sorted(part.loc[part["n"].isna(), "benchmark"].unique())
    if part.empty or unknown:
        raise ValueError(f"{table}: the number of questions of {unknown or 'it'} is not known")
    share, count = part["value"].astype(float) / 100, part["n"].astype(float)
    summed = part.assign(share=share, variance=share * (1 - share) / count)
    each = summed.groupby("model", sort=False).agg(
        mean=("share", "mean"), variance=("variance", "sum"), number=("share", "size")
    )
    each["variance"] /= each["number"] ** 2
    order = each.sort_values("mean", ascending=False)
    number = len(order) * (len(order) - 1) // 2
    z = NormalDist().inv_cdf(1 - (1 - level) / number / 2)
    rows = []
    for first, second in itertools.combinations(order.index, 2):
        difference = order.at[first, "mean"] - order.at[second, "mean"]
        half = z * math.sqrt(order.at[first, "variance"] + order.at[second, "variance"])
        ends = [100 * end for end in (difference, difference - half, difference + half)]
        rows.append((first, second, *ends, difference - half > 0))
    return pd.DataFrame(rows, columns=["first", "second", "difference", "low", "high", "seen"])


def sentence(compared: pd.DataFrame) -> str:
    """How many rankings the intervals support, and what the first place rests on."""
    best = compared["first"].iloc[0]
    above = compared[compared["first"] == best]
    level = above.loc[~above["seen"], "second"].tolist()
    return (
        f"The intervals support {compared['seen'].sum()} of {len(compared)} rankings. {best}, the "
        f"highest average, is told apart from {above['seen'].sum()} of {len(above)} others"
        + (f", not from {', '.join(level)}." if level else ".")
    )
