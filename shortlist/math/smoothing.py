"""Smoothing that makes noisy curves readable."""

import numpy as np
from jaxtyping import Float


def running_mean(values: Float[np.ndarray, " steps"], window: int) -> Float[np.ndarray, " steps"]:
    """Average each value with its neighbours.

    The neighbours are the values up to `window // 2` positions away; at the ends there are fewer.
    """
    reach = min(window // 2, len(values) - 1)
    box = np.ones(2 * reach + 1)
    sums = np.convolve(values, box)[reach : reach + len(values)]
    return sums / np.convolve(np.ones(len(values)), box)[reach : reach + len(values)]
