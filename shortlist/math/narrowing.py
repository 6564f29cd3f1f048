"""Number of a list's first documents that are near its best one."""

import numpy as np
from jaxtyping import Float


def num_near_top(scores: Float[np.ndarray, " hits"], drop: float) -> int:
    """Count the first hits whose scores have fallen little.

    They have fallen by at most a share of the fall from the first score to the last. Where scores fall steeply at
    first, few are near the top; where they fall evenly, the share itself. Adding to all scores, or multiplying them by
    a number above 0, changes nothing.

    Args:
        scores: scores of a query's hits, best first.
        drop: share of the fall, 0 to 1; 1 counts all hits.

    Returns:
        The number of hits; 0 only where there are none.
    """
    if not len(scores) or drop >= 1:
        return len(scores)
    near = scores >= scores[0] - drop * (scores[0] - scores[-1])
    return len(scores) if near.all() else int(np.argmin(near))
