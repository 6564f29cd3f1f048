"""Noisy curves made readable."""

import numpy as np
from jaxtyping import Float


def running_mean(values: Float[np.ndarray, " steps"], window: int) -> Float[np.ndarray, " steps"]:
    """The mean of each value and of its neighbours up to `window // 2` places away; at the ends there are fewer."""
    reach = min(window // 2, len(values) - 1)
    box = np.ones(2 * reach + 1)
    sums = np.convolve(values, box)[reach : reach + len(values)]
    return sums / np.convolve(np.ones(len(values)), box)[reach : reach + len(values)]
