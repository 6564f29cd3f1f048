"""The Pareto frontier of several systems by cost and value."""

import numpy as np
from jaxtyping import Bool, Float


def frontier(costs: Float[np.ndarray, " items"], values: Float[np.ndarray, " items"]) -> Bool[np.ndarray, " items"]:
    """Mark the items that no other item beats.

    An item beats another if it costs no more and is worth no less, and the two are not equal in both. Equal items are
    therefore all on the frontier or all below it.
    """
    cheaper = (costs[None] <= costs[:, None]) & (values[None] >= values[:, None])
    differ = (costs[None] < costs[:, None]) | (values[None] > values[:, None])
    return np.logical_not((cheaper & differ).any(axis=1))
