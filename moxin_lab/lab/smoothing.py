"""The running mean of every loss curve and reward curve.

Guarantees: the mean at a step is over as many steps before it as after it, so that it lies on a
straight line where the values do, and neither above a falling curve nor below a rising one as a
trailing mean would.
Out of scope: drawing it.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def centred_mean(values: ArrayLike, window: int) -> NDArray[np.float64]:
    """The mean of the `window` values around each value, float64 [n]; an even window counts one
    more. Towards both ends the window narrows to what there is on both sides.

    Raises ValueError for a window below 1 or values that are not one row.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if window < 1 or numbers.ndim != 1:
        raise ValueError(f"a window of {window} over values of shape {numbers.shape} has no mean")
    index = np.arange(len(numbers))
    half = np.minimum(window // 2, np.minimum(index, len(numbers) - 1 - index))
    sums = np.concatenate([[0.0], np.cumsum(numbers)])
    means: NDArray[np.float64] = (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)
    return means
