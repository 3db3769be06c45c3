"""From the interval of a difference to a verdict: the only place where an interval becomes a word.

    judge_gain(low, high)                  "A is better than B", of A minus B
    judge_null(value, low, high, margin)   "A is as good as B", "C adds nothing"
    all_of(verdicts)                       a claim of several parts

"No difference seen" is never "reproduced". A claim that there is no difference is reproduced only
if the whole interval lies inside a margin that `papers/claims.yml` states before the run: an
equivalence test (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, 657-680), here with the 95 %
interval of the comparison instead of the usual 90 % one, which is stricter.

Guarantees: every finite interval has exactly one verdict of `claims.VERDICTS`, never `not
attempted`; a wider interval around the same value is never closer to `reproduced`.
Out of scope: computing intervals (`evaluation.statistics`); what to say where there is none, as
with one seed: that is `not attempted`.
"""

import math
from collections.abc import Iterable

ORDER = (
    "contradicted",
    "not testable as stated",
    "not attempted",
    "undecided",
    "no difference seen",
    "reproduced",
)
"""A claim of several parts has the verdict of its part that comes first here."""


def judge_gain(low: float, high: float) -> str:
    """Verdict on "the difference is above zero" from its interval.

    Reproduced if the interval is above zero, contradicted if it is below, else `no difference
    seen`. Raises ValueError for ends that are not finite or not in order.
    """
    _check(low, low, high)
    return "reproduced" if low > 0 else "contradicted" if high < 0 else "no difference seen"


def judge_null(
    value: float, low: float, high: float, margin: float, *, one_sided: bool = False
) -> str:
    """Verdict on "there is no difference" from a difference and its interval.

    margin: the largest difference that the claim would still call none, in the unit of `value`.
    one_sided: the claim says "not above" (it adds nothing), so that no value below zero is against
    it.

    Reproduced if the whole interval is inside the margin, contradicted if it is wholly outside.
    Between the two: `no difference seen` if the interval contains zero and the value itself is
    inside the margin, else `undecided`. Raises ValueError for a margin that is not positive, and
    for numbers that are not finite or not in order.
    """
    _check(low, value, high)
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"the margin is {margin}: state a positive one in papers/claims.yml")
    floor = -math.inf if one_sided else -margin
    if low >= floor and high <= margin:
        return "reproduced"
    if low > margin or high < floor:
        return "contradicted"
    none_seen = low <= 0 <= high and floor <= value <= margin
    return "no difference seen" if none_seen else "undecided"


def all_of(verdicts: Iterable[str]) -> str:
    """The verdict of a claim that says several things: the least favourable of its parts, in
    `ORDER`. Raises ValueError for no parts or an unknown verdict.
    """
    return min(verdicts, key=ORDER.index)


def _check(low: float, value: float, high: float) -> None:
    if not all(map(math.isfinite, (low, value, high))) or not low <= value <= high:
        raise ValueError(
            f"{value} with the interval {low} to {high} decides nothing: a verdict needs finite "
            "ends in order; record 'not attempted' where there is one seed"
        )
