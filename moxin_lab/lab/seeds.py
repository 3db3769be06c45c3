"""What several trainings with different seeds measured, as one table.

    over_seeds({0: {"win rate": 0.6}, 1: {"win rate": 0.7}}, statistics.seed_interval)

Guarantees: a mean and its interval are what the caller's `interval` makes of the seeds' values.
Out of scope: the interval (`evaluation.statistics`), running the seeds (`training.side_by_side`).
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def over_seeds(
    by_seed: "Mapping[int, Mapping[str, float] | pd.Series[float]]", interval: Callable[[Any], Any]
) -> "pd.DataFrame":
    """One row per name, `what`; columns `mean`, `low`, `high` by `interval(values)`, which gives
    them in this order, and `seed N` for each seed.
    """
    import pandas as pd

    each = pd.DataFrame({f"seed {seed}": pd.Series(values) for seed, values in by_seed.items()})
    columns = ["mean", "low", "high"]
    rows = [interval(values) for values in each.to_numpy()]
    summary = pd.DataFrame(rows, index=each.index, columns=columns)
    return pd.concat([summary, each], axis=1).rename_axis("what")
