"""Which of several systems are worth having: no other is both better and cheaper."""

import numpy as np
from jaxtyping import Bool, Float


def frontier(costs: Float[np.ndarray, " items"], values: Float[np.ndarray, " items"]) -> Bool[np.ndarray, " items"]:
    """True for items to which no other is preferable: none that costs no more and is worth no less, but for one equal.

    Equal items are all on the frontier or all below it.
    """
    cheaper = (costs[None] <= costs[:, None]) & (values[None] >= values[:, None])
    differ = (costs[None] < costs[:, None]) | (values[None] > values[:, None])
    return np.logical_not((cheaper & differ).any(axis=1))
