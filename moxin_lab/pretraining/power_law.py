"""A power law of loss against compute, L(C) = E + a (C / C0)^-b, fitted to a few rungs of a ladder,
with intervals.

    law = fit(compute, losses)                       # C0: the geometric mean of the compute
    found = assess(compute, losses, seeds=[3, 3, 3, 1], seed_spread=0.01, at={"next": 2e17})

For a given b the law is linear in E and a, so b is searched on a grid and the rest solved; there is
no starting value and no local minimum. Form: Hoffmann et al. 2022, arXiv 2203.15556, appendix D.2,
along one path of the compute (parameters and tokens in a fixed proportion).

Guarantees: E and a are not negative; equal inputs give equal numbers; the intervals redraw each
loss with the spread of the runs around the law, between seeds and off the law together, and widen
by how few degrees of freedom it was estimated from.
Out of scope: whether the law holds far from the rungs, which no interval knows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

EXPONENTS = np.geomspace(0.01, 2.0, 600)
"""Candidates for b. Published ones for compute lie between 0.05 and 0.35."""


class PowerLaw(NamedTuple):
    """L(C) = floor + scale (C / unit)^-exponent."""

    floor: float
    scale: float
    exponent: float
    unit: float

    def at(self, compute: float) -> float:
        """The law's loss at this compute."""
        return float(self.floor + self.scale * (compute / self.unit) ** -self.exponent)


def fit(
    compute: ArrayLike,
    losses: ArrayLike,
    seeds: Sequence[int] | None = None,
    *,
    floor: bool = True,
) -> PowerLaw:
    """Least squares, each rung weighted by its number of seeds. floor: False sets E to 0. Raises
    ValueError for fewer rungs than the law has parameters, and for numbers that are not positive.
    """
    work, values, weights = _checked(compute, losses, seeds, 3 if floor else 2)
    unit = math.exp(float(np.log(work).mean()))
    floors, scales, exponents, _ = _solve(work / unit, values[None], weights, floor)
    return PowerLaw(float(floors[0]), float(scales[0]), float(exponents[0]), unit)


def assess(
    compute: ArrayLike,
    losses: ArrayLike,
    *,
    seeds: Sequence[int],
    seed_spread: float,
    at: Mapping[str, float],
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> dict[str, Any]:
    """The fit with intervals of its parameters and of the loss of one run at other computes.

    losses: means over `seeds` runs of each rung. seed_spread: pooled standard deviation between
    runs of a rung that differ in their seeds, 0 where no rung has two. at: compute by name.
    Raises ValueError as `fit` does, and if neither seeds nor residuals give a spread.
    """
    work, values, weights = _checked(compute, losses, seeds, 3)
    law = fit(compute, losses, seeds)
    residuals = values - np.array([law.at(c) for c in work])
    spread, freedom = _spread(residuals, weights, seed_spread)
    generator = np.random.default_rng(seed)
    # Each resample has its own spread, as far as the estimate could be off.
    factors = np.sqrt(freedom / generator.chisquare(freedom, resamples))
    noise = generator.standard_normal((resamples, len(work)))
    drawn = (values - residuals) + noise * factors[:, None] * spread / np.sqrt(weights)
    floors, scales, exponents, _ = _solve(work / law.unit, drawn, weights, True)

    def interval(draws: NDArray[np.float64]) -> list[float]:
        return [float(q) for q in np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])]

    predictions = {}
    for name, amount in at.items():
        mean = floors + scales * (amount / law.unit) ** -exponents
        one_run = mean + generator.standard_normal(resamples) * factors * spread
        low, high = interval(one_run)
        predictions[name] = {"compute": amount, "value": law.at(amount), "low": low, "high": high}
    return {
        "floor": law.floor,
        "floor_interval": interval(floors),
        "scale": law.scale,
        "exponent": law.exponent,
        "exponent_interval": interval(exponents),
        "unit": law.unit,
        "spread": spread,
        "degrees_of_freedom": freedom,
        "residuals": residuals.tolist(),
        "predictions": predictions,
    }


def _spread(
    residuals: NDArray[np.float64], weights: NDArray[np.float64], seed_spread: float
) -> tuple[float, int]:
    """Standard deviation of single runs around the law, with what seeds and misfit add to it, and
    its degrees of freedom.
    """
    freedom = int(weights.sum()) - 3
    if freedom < 1:
        raise ValueError(
            "three rungs with one seed each fit any power law: an interval needs a fourth rung or "
            "a second seed"
        )
    of_seeds = (weights.sum() - len(weights)) * seed_spread**2
    return math.sqrt(((weights * residuals**2).sum() + of_seeds) / freedom), freedom


def _checked(
    compute: ArrayLike, losses: ArrayLike, seeds: Sequence[int] | None, parameters: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    work, values = (np.asarray(one, dtype=np.float64) for one in (compute, losses))
    weights = np.ones(len(work)) if seeds is None else np.asarray(seeds, dtype=np.float64)
    if not len(work) == len(values) == len(weights) or len(work) < parameters:
        raise ValueError(
            f"{len(work)} computes, {len(values)} losses, {len(weights)} numbers of seeds: a law of"
            f" {parameters} parameters needs as many of each, at least {parameters}"
        )
    if not (np.isfinite(values).all() and (values > 0).all() and (work > 0).all()):
        raise ValueError(f"compute and losses must be positive numbers: {work}, {values}")
    return work, values, weights


def _solve(
    work: NDArray[np.float64],
    losses: NDArray[np.float64],
    weights: NDArray[np.float64],
    floor: bool,
) -> tuple[NDArray[np.float64], ...]:
    """Least squares of every row of losses [resamples, rungs]: floors, scales, exponents and sums
    of squares, [resamples] each.
    """
    best = np.full(len(losses), np.inf)
    found = [np.zeros(len(losses)) for _ in range(3)]
    share = weights / weights.sum()
    mean = losses @ share
    for exponent in EXPONENTS:
        powers = work**-exponent
        centre = powers @ share
        through_zero = (losses @ (share * powers)) / (share @ powers**2)
        slopes = through_zero
        if floor:
            slopes = (losses - mean[:, None]) @ (share * powers) / (share @ (powers - centre) ** 2)
            slopes = np.maximum(slopes, 0)
            # Where the best floor is negative it is 0.
            slopes = np.where(mean - slopes * centre < 0, through_zero, slopes)
        floors = np.maximum(mean - slopes * centre, 0) if floor else np.zeros(len(losses))
        squares = ((losses - floors[:, None] - slopes[:, None] * powers) ** 2) @ weights
        better = squares < best
        best[better] = squares[better]
        for kept, now in zip(found, (floors, slopes, np.full(len(losses), exponent)), strict=True):
            kept[better] = now[better]
    return (*found, best)
