"""Intervals for measured numbers.

Bootstrap over items, paired bootstrap for differences, Wilson's interval for proportions, Bonett
and Price's for the difference of two proportions on the same items, and Student's interval over
training seeds.

Guarantees: the same numbers and seed give the same interval; the item (a document, a question) is
the unit of resampling; a ratio such as bits per byte is resampled as a ratio of sums, never as a
mean of ratios.
Out of scope: combining the two kinds of spread. An interval over items says how far a number would
move with other items of the same kind, for one trained model. An interval over seeds says how far
it would move with another training, for the same items.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

RESAMPLES, DRAWS_BEYOND = 2000, 20
"""Bootstrap samples at least, and how many of them lie beyond each end of an interval at least."""

CHUNK_CELLS = 4_000_000
"""Bootstrap counts in memory at once: 32 MB of int64."""


class Estimate(NamedTuple):
    """A number and the two ends of its interval."""

    value: float
    low: float
    high: float


def bootstrap_interval(
    values: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap of sum(values) / sum(weights) over items; without weights, of the mean.

    Args:
        values: one number per item, e.g. the bits of a document, or 0 or 1 for a question.
        weights: one positive number per item, e.g. the bytes of a document.
        level: nominal coverage.
        resamples: number of bootstrap samples; by default `RESAMPLES`, or as many as put
            `DRAWS_BEYOND` beyond each end, which a level corrected for many comparisons needs.
        seed: of the bootstrap samples.
    Raises ValueError for no items, differing lengths, or weights that are not positive.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    numerators, denominators = _columns(values, weights)
    if resamples is None:
        resamples = max(RESAMPLES, math.ceil(2 * DRAWS_BEYOND / (1 - level)))
    draws = np.concatenate(
        [c @ numerators / (c @ denominators) for c in _resampled(len(numerators), resamples, seed)]
    )
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(numerators.sum() / denominators.sum()), float(low), float(high))


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Bootstrap of the difference `first - second` on the same items.

    Both use the same samples of items, so that the difficulty of the items cancels. Arguments and
    errors as in `bootstrap_interval`.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a paired comparison needs the same items: {a.shape} against {b.shape}")
    return bootstrap_interval(a - b, weights, level=level, resamples=resamples, seed=seed)


def wilson_interval(successes: int, trials: int, *, level: float = 0.95) -> Estimate:
    """Wilson's score interval of a proportion.

    Raises ValueError for impossible counts. Source: Wilson, JASA 22 (1927) 209-212.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials is not a proportion")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = (
        z
        / (1 + z * z / trials)
        * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    )
    # Where all or none succeed one end is the share itself, which rounding would miss by 1e-18.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Estimate(share, low, high)


def paired_proportions(first: ArrayLike, second: ArrayLike, *, level: float = 0.95) -> Estimate:
    """The share of items that `first` answers rightly minus that of `second`, on the same items.

    first, second: 0 or 1 for each item. The interval is an adjusted Wald interval, in closed form:
    also where the two never or seldom differ, where a bootstrap has nothing to draw from.
    Raises ValueError for no items, for differing lengths, and for other values.
    Source: Bonett and Price, Journal of Educational and Behavioral Statistics 37 (2012) 479-488.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"a paired comparison needs the same items: {a.shape} against {b.shape}")
    if not np.isin(np.concatenate((a, b)), (0.0, 1.0)).all():
        raise ValueError("each item must be answered rightly (1) or not (0)")
    only_first, only_second = float((a > b).sum()), float((b > a).sum())
    count = len(a) + 2
    gained, lost = (only_first + 1) / count, (only_second + 1) / count
    centre = gained - lost
    z = NormalDist().inv_cdf((1 + level) / 2)
    half = z * math.sqrt((gained + lost - centre * centre) / count)
    return Estimate(
        (only_first - only_second) / len(a), max(-1.0, centre - half), min(1.0, centre + half)
    )


def seed_interval(values: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Mean over training runs that differ only in their seed, with Student's interval.

    The interval has n - 1 degrees of freedom. With one value, both ends are NaN. To compare two
    settings, pass the differences between runs of the same seed.
    Raises ValueError for no values and for values that are not finite.
    """
    each = np.asarray(values, dtype=np.float64)
    if each.ndim != 1 or not len(each) or not np.isfinite(each).all():
        raise ValueError(f"an interval over seeds needs one finite number per seed; got {each!r}")
    mean = float(each.mean())
    if len(each) == 1:
        return Estimate(mean, math.nan, math.nan)
    half = float(stdtrit(len(each) - 1, (1 + level) / 2) * each.std(ddof=1) / math.sqrt(len(each)))
    return Estimate(mean, mean - half, mean + half)


def _columns(
    values: ArrayLike, weights: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    numerators = np.asarray(values, dtype=np.float64)
    denominators = (
        np.ones_like(numerators) if weights is None else np.asarray(weights, dtype=np.float64)
    )
    if numerators.ndim != 1 or not len(numerators):
        raise ValueError(
            f"an interval needs at least one item in one dimension; got shape {numerators.shape}"
        )
    if denominators.shape != numerators.shape:
        raise ValueError(
            f"there must be one weight per item: {denominators.shape} weights for "
            f"{numerators.shape} values"
        )
    if not (denominators > 0).all():
        raise ValueError("weights must be positive")
    return numerators, denominators


def _resampled(items: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each item is in each bootstrap sample: float64 [rows, items], in chunks.

    A chunk has at most `CHUNK_CELLS` cells, and at least one row.
    """
    rng = np.random.default_rng(seed)
    shares: Sequence[float] = np.full(items, 1.0 / items).tolist()
    rows = max(1, CHUNK_CELLS // items)
    for start in range(0, resamples, rows):
        yield rng.multinomial(items, shares, size=min(rows, resamples - start)).astype(np.float64)
